"""Logic: the module as a script in Slicer's Python console uses it, with the real library as child process."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from KnowledgeTransferLib.records.run_directory import RunDirectory, read_json
from KnowledgeTransferLib.steps.segment import segment


def temporary_folders() -> set:
    import tempfile

    return set(Path(tempfile.gettempdir()).glob("KnowledgeTransfer-temporary-*"))


def test_a_loaded_volume_is_segmented_as_the_command_line_does(logic, scans, a_teacher, a_foreign_cohort, tmp_path):
    import slicer

    from KnowledgeTransferSlicer import Edits, SceneIO

    before = temporary_folders()
    job = logic.segment(scans, a_teacher, device="cpu").wait()
    assert [node.GetName() for node in job.nodes] == [f"{scan.GetName()} segmentation" for scan in scans]
    assert job.problems == [] and temporary_folders() == before
    assert "liver" in SceneIO.segmentNames(job.nodes[0])
    assert Edits.volumesMl(job.nodes[0])["liver"] > 1

    SceneIO.exportVolume(scans[0], tmp_path / "scan.nrrd")
    segment(a_teacher, [tmp_path / "scan.nrrd"], tmp_path / "outside.nrrd", device="cpu")
    outside = slicer.util.arrayFromVolume(slicer.util.loadLabelVolume(str(tmp_path / "outside.nrrd")))
    source = job.nodes[0].GetSegmentation()
    for number in range(source.GetNumberOfSegments()):
        value = source.GetNthSegment(number).GetLabelValue()
        inside = slicer.util.arrayFromSegmentBinaryLabelmap(job.nodes[0], source.GetNthSegmentID(number), scans[0])
        assert (inside.astype(bool) == (outside == value)).all()  # Dice 1


def test_annotating_loaded_volumes_leaves_a_run_to_distil_from(logic, scans, a_teacher, tmp_path):
    from KnowledgeTransferSlicer import SceneIO

    job = logic.annotate(scans, {str(a_teacher): 2.0}, tmp_path / "run", uncertainty=True, device="cpu").wait()
    names = [node.GetName() for node in job.nodes]
    for scan in scans:
        assert f"{scan.GetName()} pseudo-annotation" in names and f"{scan.GetName()} uncertainty" in names
    assert SceneIO.referenceVolume(job.nodes[0]) is scans[0]
    assert read_json(tmp_path / "run" / "settings.json")["annotate"]["teachers"][0]["weight"] == 2.0

    job = logic.distil(tmp_path / "run", epochs=2, device="cpu", spacing_mm=(18, 18, 22), patience_epochs=0)
    metrics = []
    job.onEvent.append(lambda event: metrics.append(event) if event["event"] == "metrics" else None)
    assert job.wait().status == 0 and len(metrics) == 2
    job = logic.segment(scans[:1], tmp_path / "run" / "student", device="cpu").wait()
    assert len(job.nodes) == 1


def test_the_same_run_again_shows_what_is_there_and_takes_no_scan_for_another(logic, scans, a_teacher, tmp_path):
    import slicer

    from KnowledgeTransferSlicer import SceneRuns

    for node in logic.annotate(scans, [a_teacher], tmp_path / "run", device="cpu").wait().nodes:
        slicer.mrmlScene.RemoveNode(node)
    again = logic.annotate(scans[:1], [a_teacher], tmp_path / "run", device="cpu").wait()
    assert logic.annotate(scans[:1], [a_teacher], tmp_path / "run", device="cpu").wait().nodes == []  # is there already
    assert [node.GetName().split("_1")[0] for node in again.nodes] == [f"{scans[0].GetName()} pseudo-annotation"]
    other = slicer.util.addVolumeFromArray(slicer.util.arrayFromVolume(scans[1]) + 1)
    other.CopyOrientation(scans[1])
    other.SetName(scans[0].GetName())  # another patient's scan of the same name
    job = logic.annotate([other], [a_teacher], tmp_path / "run", device="cpu").wait()
    assert len(job.nodes) == 1 and job.nodes[0].GetAttribute(SceneRuns.CASE) == f"{scans[0].GetName()} 2"
    assert len(read_json(RunDirectory(tmp_path / "run").annotations)["cases"]) == 3


def test_a_cohort_on_disk_is_annotated_without_a_node(logic, a_foreign_cohort, a_teacher, tmp_path):
    job = logic.annotateCohort(a_foreign_cohort, [a_teacher], tmp_path / "run", device="cpu").wait()
    assert job.nodes == [] and len(read_json(RunDirectory(tmp_path / "run").annotations)["cases"]) == 4


def test_a_folder_is_segmented_into_a_folder(logic, a_foreign_cohort, a_teacher, tmp_path):
    logic.segmentFiles(a_foreign_cohort / "images", a_teacher, tmp_path / "out", device="cpu").wait()
    names = sorted(file.name for file in (a_foreign_cohort / "images").iterdir())
    written = [name.removesuffix(".nrrd") + ".seg.nrrd" for name in names]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == written
    logic.segmentFiles(a_foreign_cohort / "images", a_teacher, tmp_path / "maps", device="cpu", format=".nii.gz").wait()
    assert len(list((tmp_path / "maps").glob("*.nii.gz"))) == 4


def test_segmentations_in_the_scene_can_teach(logic, scans, tmp_path):
    import slicer

    from KnowledgeTransferLib.learning.volume import read_annotation
    from KnowledgeTransferSlicer.SceneRuns import SCENE

    drawn = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "by hand")
    drawn.CreateDefaultDisplayNodes()
    drawn.SetReferenceImageGeometryParameterFromVolumeNode(scans[0])
    bright = slicer.util.arrayFromVolume(scans[0]) > 100
    segment_id = drawn.GetSegmentation().AddEmptySegment("bone", "bone")
    slicer.util.updateSegmentBinaryLabelmapFromArray(bright.astype(np.uint8), drawn, segment_id, scans[0])
    job = logic.annotate(scans, [SCENE], tmp_path / "run").wait()
    assert len(job.problems) == 1 and "holds no segmentation of the case" in job.problems[0]["message"]
    run, name = RunDirectory(tmp_path / "run"), scans[0].GetName()
    learnt = read_annotation(run.pseudo_annotation(name)).transpose(2, 1, 0)
    assert (learnt.astype(bool) == bright).all()
    with pytest.raises(ValueError, match="can only teach loaded volumes"):
        logic.annotateCohort(tmp_path, [SCENE], tmp_path / "other")
    with pytest.raises(ValueError, match="No segmentation in the scene belongs"):
        logic.annotate(scans[1:], [SCENE], tmp_path / "third")
    assert list((tmp_path / "third").rglob("*.nrrd")) == []  # no scan stays in a run that did not start


def test_a_result_of_no_scan_that_was_given_is_an_error_that_is_shown(a_volume, tmp_path):
    from types import SimpleNamespace

    from KnowledgeTransferSlicer import SceneRuns

    run, cases = RunDirectory(tmp_path).create(), {"mine": a_volume(name="mine")}
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "of an earlier start.nrrd").write_bytes(b"")
    job = SimpleNamespace(run=run, problems=[])
    for case in ("of an earlier start", "nobody's"):
        event = {"event": "case", "case": case, "file": "none"}
        SceneRuns.showAnnotation(job, cases, set(), event, False)
        SceneRuns.showSegmentation(job, cases, event)
    assert [problem["case"] for problem in job.problems] == ["nobody's"] * 2
    assert "no scan that was given" in job.problems[0]["message"]


def test_of_several_segmentations_of_a_volume_it_is_said_which_one_teaches(logic, scans, tmp_path):
    import slicer

    from KnowledgeTransferSlicer.SceneRuns import SCENE
    from KnowledgeTransferSlicer.Status import endOf

    for name in ("liver", "spleen"):
        drawn = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
        drawn.CreateDefaultDisplayNodes()
        drawn.SetReferenceImageGeometryParameterFromVolumeNode(scans[0])
        segment_id = drawn.GetSegmentation().AddEmptySegment(name, name)
        bright = (slicer.util.arrayFromVolume(scans[0]) > 100).astype(np.uint8)
        slicer.util.updateSegmentBinaryLabelmapFromArray(bright, drawn, segment_id, scans[0])
    job = logic.annotate(scans[:1], [SCENE], tmp_path / "run").wait()
    assert job.hints == [f"2 segmentations lie on {scans[0].GetName()}; only spleen is used"]
    assert job.hints[0] in endOf(job)


def test_overlapping_segments_are_told_when_one_loses_voxels(logic, scans, a_teacher):
    import slicer

    drawn = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "by hand")
    drawn.CreateDefaultDisplayNodes()
    drawn.SetReferenceImageGeometryParameterFromVolumeNode(scans[0])
    organ = np.zeros(slicer.util.arrayFromVolume(scans[0]).shape, np.uint8)
    organ[4:9, 4:9, 4:9] = 1
    tumour = np.zeros_like(organ)
    tumour[6:8, 6:8, 6:8] = 1
    for name, mask in (("liver", organ), ("tumour", tumour)):
        segment_id = drawn.GetSegmentation().AddEmptySegment(name, name)
        slicer.util.updateSegmentBinaryLabelmapFromArray(mask, drawn, segment_id, scans[0])
    other = logic.segment(scans[:1], a_teacher, device="cpu").wait().nodes[0]
    before = {node.GetName() for node in slicer.util.getNodesByClass("vtkMRMLNode")}
    job = logic.compare(drawn, other, scans[0])
    assert job.hints == ["by hand: segments overlap; liver count only where no later segment lies"]
    job.wait()
    assert {node.GetName() for node in slicer.util.getNodesByClass("vtkMRMLNode")} == before


def test_volumes_are_counted_anew_after_an_edit_and_for_other_segmentations(logic, scans, a_teacher):
    import slicer

    from KnowledgeTransferSlicer import Edits

    node = logic.segment(scans[:1], a_teacher, device="cpu").wait().nodes[0]
    before = Edits.volumesMl(node)
    counted = Edits._countedMl(node)
    assert counted == pytest.approx({name: ml for name, ml in before.items() if name in counted}, rel=1e-3)
    source = node.GetSegmentation()
    mask = np.zeros(slicer.util.arrayFromVolume(scans[0]).shape, np.uint8)
    mask[2:4, 2:5, 2:6] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, node, source.GetSegmentIdBySegmentName("liver"), scans[0])
    voxel_ml = np.prod(scans[0].GetSpacing()) / 1000
    assert Edits.volumesMl(node)["liver"] == pytest.approx(24 * voxel_ml, rel=1e-3)


def test_saving_the_scene_does_not_refer_to_files_of_the_run(logic, scans, a_teacher, tmp_path):
    nodes = logic.annotate(scans, [a_teacher], tmp_path / "run", uncertainty=True, device="cpu").wait().nodes
    assert nodes and all(node.GetStorageNode() is None and node.GetModifiedSinceRead() for node in nodes)


@pytest.mark.own_warm_process
def test_scans_do_not_stay_in_the_temporary_folder(logic, scans, a_teacher, tmp_path):
    before = temporary_folders()
    logic.segment(scans, a_teacher, device="cpu")
    assert len(temporary_folders() - before) == 1
    logic.close()
    assert temporary_folders() == before
    for wrong in (lambda: logic.describe(tmp_path / "nowhere"), lambda: logic.segmentFiles(tmp_path, "", tmp_path)):
        with pytest.raises(OSError):
            wrong()
    assert temporary_folders() == before


def test_two_segmentations_are_compared(logic, scans, a_teacher):
    first = logic.segment(scans[:1], a_teacher, device="cpu").wait().nodes[0]
    second = logic.segment(scans[:1], a_teacher, device="cpu").wait().nodes[0]
    rows = logic.compare(first, second, scans[0]).wait().result["structures"]
    assert rows and all(row["dice"] == 1 for row in rows if row["volume_ml"])


def test_results_of_a_closed_scene_are_kept_on_disk_and_said(logic, scans, a_teacher, tmp_path, monkeypatch):
    import slicer

    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    names = [scan.GetName() for scan in scans]
    job = logic.segment(scans, a_teacher, device="cpu")
    slicer.mrmlScene.Clear(0)
    job.wait()
    assert job.nodes == [] and len(job.lost) == 2
    kept = list((tmp_path / "KnowledgeTransfer" / "results").iterdir())
    assert sorted(file.name.split(" ", 2)[2] for file in kept) == sorted(f"{name}.seg.nrrd" for name in names)
    assert slicer.util.getNodesByClass("vtkMRMLSegmentationNode") == []


def test_a_volume_deleted_meanwhile_costs_only_its_own_node(logic, scans, a_teacher, tmp_path):
    import slicer

    job = logic.annotate(scans, [a_teacher], tmp_path / "run", device="cpu")
    left = scans[1].GetName()
    slicer.mrmlScene.RemoveNode(scans[0])
    job.wait()
    assert [node.GetName() for node in job.nodes] == [f"{left} pseudo-annotation"]
    assert len(job.lost) == 1 and str(tmp_path / "run") in job.lost[0]


def test_of_a_sequence_the_shown_frame_is_taken_and_said(logic, scans, a_teacher):
    import slicer

    from KnowledgeTransferSlicer.Status import endOf

    sequence = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", "heart beat")
    for number, scan in enumerate(scans):
        sequence.SetDataNodeAtValue(scan, str(number))
    browser = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "browser")
    browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
    slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(browser)
    frame = browser.GetProxyNode(sequence)
    job = logic.segment([frame], a_teacher, device="cpu").wait()
    assert len(job.nodes) == 1 and "is a sequence; the frame that is shown now is taken" in endOf(job)


def test_a_full_disk_is_explained_and_leaves_nothing_behind(logic, scans, a_teacher, tmp_path, monkeypatch):
    import slicer

    monkeypatch.setattr(slicer.util, "exportNode", lambda *arguments, **options: False)
    with pytest.raises(ValueError, match="could not write .*is the disk full or read-only"):
        logic.annotate(scans, [a_teacher], tmp_path / "run")
    assert list((tmp_path / "run").rglob("*.nrrd")) == [] and logic.library.jobs == []


def test_a_job_in_the_same_run_is_refused(logic, scans, a_teacher, tmp_path):
    job = logic.annotate(scans, [a_teacher], tmp_path / "run", device="cpu")
    with pytest.raises(RuntimeError, match="a job works in this folder already"):
        logic.distil(tmp_path / "run")
    job.wait()


def test_what_is_missing_is_said_before_anything_starts(logic, scans, a_teacher, tmp_path):
    from KnowledgeTransferSlicer.SceneIO import VolumeError

    for wrong, words in (
        (lambda: logic.segment([], a_teacher), "No volume is chosen"),
        (lambda: logic.segment([None], a_teacher), "No volume is chosen"),
        (lambda: logic.segment(scans, ""), "nothing chosen"),
        (lambda: logic.segment(scans, tmp_path / "nowhere"), "there is no such file or folder"),
        (lambda: logic.annotate(scans, []), "No teacher is chosen"),
    ):
        with pytest.raises((VolumeError, ValueError, OSError), match=words):
            wrong()
    assert logic.library.jobs == [] and logic.library.warm is None


def test_a_folder_that_cannot_be_written_is_named(logic, scans, a_teacher, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match="file"):
        logic.annotate(scans, [a_teacher], tmp_path / "file" / "run")


def test_a_bundle_of_a_newer_version_is_refused_with_what_to_do(logic, scans, a_teacher, tmp_path):
    import json

    newer = Path(shutil.copytree(a_teacher, tmp_path / "newer"))
    metadata = newer / "configs" / "metadata.json"
    content = json.loads(metadata.read_text(encoding="utf-8"))
    content["knowledge_transfer"]["format_version"] = 99
    metadata.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(RuntimeError, match="newer version of KnowledgeTransfer; update"):
        logic.segment(scans, newer, device="cpu").wait()


def test_an_unknown_teacher_is_refused_with_the_kinds_that_are_known(logic, scans, tmp_path):
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "readme.txt").write_text("hello")
    with pytest.raises(RuntimeError, match="is no kind of teacher that is known. Known are"):
        logic.annotate(scans, [tmp_path / "teacher"], tmp_path / "run").wait()


def test_without_the_packages_a_job_says_what_to_install(a_scene, tmp_path):
    from KnowledgeTransferSlicer.Logic import KnowledgeTransferLogic
    from KnowledgeTransferSlicer.Requirements import RequirementsError

    class Without:
        @staticmethod
        def ensure(also=()):
            raise RequirementsError("Not installed: torch>=2.8")

    logic = KnowledgeTransferLogic(requirements=Without)
    with pytest.raises(RuntimeError, match="torch"):
        logic.distil(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_goes_on_asks_for_the_packages_of_its_own_teachers(a_scene, tmp_path):
    from KnowledgeTransferSlicer.Logic import KnowledgeTransferLogic

    class Without:
        @staticmethod
        def ensure(also=()):
            raise RuntimeError(f"Not installed: {', '.join(also)}")

    teacher = {"path": "totalsegmentator:total", "weight": 1.0, "sha256": "0" * 64}
    content = {"format_version": 1, "annotate": {"teachers": [teacher]}}
    (tmp_path / "settings.json").write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "job.json").write_text(json.dumps({"step": "annotate"}), encoding="utf-8")
    with pytest.raises(RuntimeError, match="Not installed: TotalSegmentator"):
        KnowledgeTransferLogic(requirements=Without).goOn(tmp_path)


@pytest.mark.parametrize("page", ["README.md", "docs/slicer.md"])
def test_the_scripts_of_the_documentation_run(
    page, a_scene, a_teacher, a_phantom_cohort, a_foreign_cohort, tmp_path, monkeypatch, wait_until
):
    import re

    import slicer

    from KnowledgeTransferSlicer import LibraryProcess

    jobs, finish = [], LibraryProcess.Library._watch
    monkeypatch.setattr(LibraryProcess.Library, "_watch", lambda self, job: jobs.append(job) or finish(self, job))
    shutil.copytree(a_teacher, tmp_path / "their_model")
    shutil.copytree(a_teacher, tmp_path / "teacher")
    shutil.copytree(a_phantom_cohort, tmp_path / "annotated_scans")
    shutil.copytree(a_foreign_cohort / "images", tmp_path / "my_scans")
    if page == "README.md":
        scan = slicer.util.loadVolume(str(sorted((tmp_path / "my_scans").iterdir())[0]))
        scan.SetName("new_scan")
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / page).read_text(encoding="utf-8")
    text = text.replace("C:/clinic", tmp_path.as_posix()).replace("minutes=30", "epochs=1")
    blocks = [
        block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "Logic" in block or "logic" in block
    ]
    assert blocks
    names = {"slicer": slicer}  # as in the console
    for block in blocks:
        exec(compile(block, page, "exec"), names)
        wait_until(lambda: not any(job.running for job in jobs), 120)
    assert jobs and all(job.status == 0 for job in jobs), [job.error for job in jobs]
    names["logic"].close()


def test_weights_by_structure_and_synonyms_become_the_options_of_the_command_line():
    from KnowledgeTransferSlicer.Logic import _options, _teacherArguments

    assert _teacherArguments({"a": 2.0, "b": {"spleen": 3.0, "liver": 0.0}}) == [
        "--teacher", "a=2", "--teacher", "b=spleen:3,liver:0",
    ]  # fmt: skip
    assert _options({"synonyms": {"kidney_left": "left kidney"}, "fill_holes": True}) == [
        "--synonym", "left kidney=kidney_left", "--fill-holes",
    ]  # fmt: skip
