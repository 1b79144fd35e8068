"""AnnotateTab: scans and teachers are chosen, the teachers annotate, a person reviews; with the real library."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from KnowledgeTransferLib.learning.volume import read_annotation
from KnowledgeTransferLib.records.reviews import case_states
from KnowledgeTransferLib.records.run_directory import RunDirectory

READ_ONLY = """import pathlib

def refuse(self, *_, **__):
    raise PermissionError(13, "Permission denied", str(self))

pathlib.Path.write_text = refuse
"""  # for the child process; root may write everywhere


def opened_of(run, case):
    """The scan and the annotation of a case in the scene, or None."""
    from KnowledgeTransferSlicer import SceneRuns

    return SceneRuns.openedOf(run, case)


@pytest.fixture
def tab(the_panel, tmp_path):
    """The panel with a working folder; the test's end stops what still runs."""
    the_panel.ui.workingFolderPath.currentPath = str(tmp_path / "work")
    the_panel.parameters.device = "cpu"
    yield the_panel.annotateTab
    for job in the_panel.logic.library.jobs:
        job.cancel()
        job.stopProcesses(gently=True)


@pytest.fixture
def a_scan(a_scene, a_foreign_cohort):
    import slicer

    return slicer.util.loadVolume(str(sorted((a_foreign_cohort / "images").iterdir())[0]))


def edited(volume, segmentation):
    """Draw the first segment anew; returns its value and how many voxels it has now."""
    import slicer

    source = segmentation.GetSegmentation()
    value, segment_id = source.GetNthSegment(0).GetLabelValue(), source.GetNthSegmentID(0)
    mask = slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, segment_id, volume)
    mask[:] = 0
    mask[:3] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, segmentation, segment_id, volume)
    return value, mask.sum()


def state_of(tab, case) -> str:
    return next(row[1] for row in texts(tab.ui.casesTable) if row[0] == case)


def texts(table) -> list[list[str]]:
    def text(row, column):
        item = table.item(row, column)
        return item.text() if item is not None else ""

    return [[text(row, column) for column in range(table.columnCount)] for row in range(table.rowCount)]


def test_a_loaded_volume_is_annotated_by_the_press_of_a_button(tab, a_scan, a_teacher, wait_until, dialogs):
    import slicer

    ui, panel = tab.ui, tab.panel
    assert not ui.annotateButton.enabled and "Choose the scans first" in ui.annotateButton.toolTip
    ui.annotateVolumesSelector.check(a_scan)
    assert "Add a teacher" in ui.annotateButton.toolTip
    dialogs.answer(str(a_teacher))
    ui.addTeacherFolderButton.click()
    assert texts(ui.teachersTable)[0][0] == a_teacher.parent.name and "liver" in texts(ui.teachersTable)[0][1]
    assert ui.annotateButton.enabled

    ui.uncertaintyCheckBox.checked = True
    ui.annotateRunName.text = "first run"
    ui.annotateButton.click()
    assert ui.cancelButton.enabled and not ui.annotateButton.enabled
    wait_until(lambda: not panel.status.job.running, 60)
    assert panel.status.job.status == 0, panel.status.job.error
    node = slicer.util.getNode(f"{a_scan.GetName()} pseudo-annotation")
    assert "liver" in [
        node.GetSegmentation().GetNthSegment(n).GetName() for n in range(node.GetSegmentation().GetNumberOfSegments())
    ]
    overlay = slicer.util.getNode(f"{a_scan.GetName()} uncertainty")
    assert slicer.util.arrayFromVolume(overlay).min() >= 0 and slicer.util.arrayFromVolume(overlay).max() <= 1
    assert texts(ui.casesTable)[0][:2] == [a_scan.GetName(), "annotated"] and float(texts(ui.casesTable)[0][2]) > 0
    assert ui.annotateButton.enabled and not ui.cancelButton.enabled
    assert panel.parameters.distilRun == str(panel.workingFolder / "first run")
    assert "done" in ui.statusLabel.text


def test_a_cohort_on_disk_fills_the_table_with_the_least_sure_first(tab, a_foreign_cohort, a_teacher, wait_until):
    ui, panel = tab.ui, tab.panel
    ui.annotateCohortRadio.click()
    ui.annotateCohortPath.currentPath = str(a_foreign_cohort)
    tab.addTeacher(str(a_teacher))
    ui.annotateButton.click()
    assert panel.parameters.annotateRunName.startswith("run 2")  # a name is made where none was given
    wait_until(lambda: not panel.status.job.running, 60)
    rows = texts(ui.casesTable)
    assert len(rows) == 4 and all(row[1] == "annotated" for row in rows)
    confidence = [float(row[2]) for row in rows]
    assert confidence == sorted(confidence)


@pytest.fixture
def reviewing(tab, an_annotated_run):
    """The tab on a run with four annotated cases."""
    tab.ui.workingFolderPath.currentPath = str(an_annotated_run.parent)
    tab.panel.parameters.annotateRunName = an_annotated_run.name
    assert tab.ui.casesTable.rowCount == 4
    return tab


def first_case_opened(reviewing):
    """The controls, the run, and its first case, which was loaded for review."""
    reviewing.ui.casesTable.selectRow(0)
    reviewing.ui.reviewButton.click()
    return reviewing.ui, RunDirectory(reviewing.shown), reviewing.chosen()


def test_cases_are_accepted_and_rejected_and_the_verdict_can_be_taken_back(reviewing):
    ui, run = reviewing.ui, RunDirectory(reviewing.shown)
    assert not ui.acceptButton.enabled
    ui.casesTable.selectRow(1)
    case = reviewing.chosen()
    ui.rejectButton.click()
    assert next(s.state for s in case_states(run) if s.id == case) == "rejected"
    assert [row[1] for row in texts(ui.casesTable) if row[0] == case] == ["rejected"]
    assert reviewing.chosen() == case  # the row stays chosen
    ui.rejectButton.click()
    assert next(s.state for s in case_states(run) if s.id == case) == "annotated"
    ui.acceptButton.click()
    assert next(s.state for s in case_states(run) if s.id == case) == "accepted"


@pytest.mark.parametrize("saves", [True, False])
def test_who_accepts_a_case_that_was_edited_is_asked_whether_to_save_the_edits(reviewing, dialogs, saves):
    ui, run, case = first_case_opened(reviewing)
    opened_of(run, case)[1].CreateClosedSurfaceRepresentation()  # Show 3D
    ui.acceptButton.click()
    ui.acceptButton.click()  # taken back
    assert dialogs.shown == []  # nothing was edited
    value, voxels = edited(*opened_of(run, case))
    ui.rejectButton.click()
    assert dialogs.shown == [] and state_of(reviewing, case) == "rejected"
    dialogs.answer(saves)
    ui.acceptButton.click()
    assert [shown.kind for shown in dialogs.shown] == ["confirmYesNo"]
    assert "Save your changes as the correction?" in dialogs.shown[0].text
    assert run.corrected_annotation(case).is_file() == saves
    assert state_of(reviewing, case) == ("corrected" if saves else "accepted")
    if saves:
        assert np.count_nonzero(read_annotation(run.corrected_annotation(case)) == value) == voxels
    else:
        ui.acceptButton.click()
        assert len(dialogs.shown) == 1 and state_of(reviewing, case) == "annotated"


def test_a_correction_that_no_training_would_learn_is_not_said_to_be_saved(reviewing, dialogs):
    ui, run, case = first_case_opened(reviewing)
    edited(*opened_of(run, case))
    opened_of(run, case)[1].GetSegmentation().GetNthSegment(0).SetName("Segment_1")
    ui.saveCorrectionButton.click()
    assert "does not know Segment_1" in dialogs.shown[0].text and "does not know Segment_1" in ui.statusLabel.text
    assert not run.corrected_annotation(case).exists() and state_of(reviewing, case) == "annotated"


@pytest.mark.parametrize("content", [{"format_version": 2, "cases": {}}, {"cases": {}}, []])
@pytest.mark.parametrize("file", ["reviews", "annotations"])
def test_a_damaged_file_of_a_run_does_not_keep_the_panel_from_opening(reviewing, file, content):
    run, panel = RunDirectory(reviewing.shown), reviewing.panel
    getattr(run, file).write_text(json.dumps(content), encoding="utf-8")
    panel.exit()
    panel.enter()
    assert reviewing.ui.casesTable.rowCount == 0 and panel._refreshTimer.active
    assert f"{run.path.name}: its cases cannot be shown: " in reviewing.ui.statusLabel.text
    panel.parameters.segmentFrom = "disk"
    assert panel.ui.segmentFolderRadio.checked


def test_an_edited_annotation_is_saved_as_a_correction_and_learnt(reviewing, wait_until):
    ui, run = reviewing.ui, RunDirectory(reviewing.shown)
    ui.casesTable.selectRow(0)
    case = reviewing.chosen()
    assert not ui.saveCorrectionButton.enabled  # not loaded yet
    assert "press Load for review first" in ui.saveCorrectionButton.toolTip
    ui.reviewButton.click()
    value, voxels = edited(*opened_of(run, case))
    assert ui.saveCorrectionButton.enabled and "as you edited it" in ui.saveCorrectionButton.toolTip
    assert not ui.discardCorrectionButton.enabled
    ui.saveCorrectionButton.click()
    assert state_of(reviewing, case) == "corrected"
    assert np.count_nonzero(read_annotation(run.corrected_annotation(case)) == value) == voxels


def test_a_correction_is_discarded_only_after_a_yes_and_can_be_had_back(reviewing, dialogs):
    ui, run, case = first_case_opened(reviewing)
    edited(*opened_of(run, case))
    ui.saveCorrectionButton.click()
    correction = run.corrected_annotation(case)
    saved = correction.read_bytes()
    dialogs.answer(False)
    ui.discardCorrectionButton.click()
    assert correction.read_bytes() == saved and "Discard your correction" in dialogs.shown[0].text
    dialogs.answer(True)
    ui.discardCorrectionButton.click()
    (kept,) = run.corrected_annotations.rglob("*.seg.nrrd")
    assert kept != correction and kept.read_bytes() == saved and kept.parent.name in ui.statusLabel.text
    assert state_of(reviewing, case) == "annotated" and not ui.discardCorrectionButton.enabled
    assert not ui.saveCorrectionButton.enabled  # the next review loads the pseudo-annotation


def test_annotating_again_does_not_put_the_teachers_opinion_in_place_of_a_correction(
    tab, a_scan, a_teacher, wait_until
):
    ui, panel = tab.ui, tab.panel
    ui.annotateVolumesSelector.check(a_scan)
    tab.addTeacher(str(a_teacher))
    ui.annotateRunName.text = "again"
    ui.annotateButton.click()
    wait_until(lambda: not panel.status.job.running, 60)
    run = RunDirectory(tab.run())
    ui.casesTable.selectRow(0)
    case = tab.chosen()
    value, voxels = edited(*opened_of(run, case))
    ui.saveCorrectionButton.click()
    mine = opened_of(run, case)[1]
    edited(*opened_of(run, case))  # again, and not saved yet
    for uncertainty in (False, True):  # with it the library has news of the case, else it has none
        ui.uncertaintyCheckBox.checked = uncertainty
        ui.annotateButton.click()
        wait_until(lambda: not panel.status.job.running, 60)
        ui.casesTable.selectRow(0)
        assert opened_of(run, case)[1] is mine
        ui.saveCorrectionButton.click()
        assert np.count_nonzero(read_annotation(run.corrected_annotation(case)) == value) == voxels
        edited(*opened_of(run, case))


def test_a_scan_that_is_loaded_again_gets_its_correction_back(tab, a_scan, a_teacher, a_foreign_cohort, wait_until):
    import slicer

    ui, panel = tab.ui, tab.panel
    ui.annotateVolumesSelector.check(a_scan)
    tab.addTeacher(str(a_teacher))
    ui.annotateRunName.text = "again"
    ui.annotateButton.click()
    wait_until(lambda: not panel.status.job.running, 60)
    run = RunDirectory(tab.run())
    ui.casesTable.selectRow(0)
    case = tab.chosen()
    value, voxels = edited(*opened_of(run, case))
    ui.saveCorrectionButton.click()
    slicer.mrmlScene.RemoveNode(opened_of(run, case)[1])
    ui.annotateButton.click()
    wait_until(lambda: not panel.status.job.running, 60)
    volume, segmentation = opened_of(run, case)
    segment_id = segmentation.GetSegmentation().GetNthSegmentID(0)
    assert slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, segment_id, volume).sum() == voxels
    ui.casesTable.selectRow(0)
    ui.saveCorrectionButton.click()
    assert np.count_nonzero(read_annotation(run.corrected_annotation(case)) == value) == voxels


def test_a_correction_of_a_rejected_case_is_learnt(reviewing):
    ui, run = reviewing.ui, RunDirectory(reviewing.shown)
    ui.casesTable.selectRow(0)
    case = reviewing.chosen()
    ui.rejectButton.click()
    ui.reviewButton.click()
    edited(*opened_of(run, case))
    ui.saveCorrectionButton.click()
    assert "the student learns it" in ui.statusLabel.text and state_of(reviewing, case) == "corrected"
    ui.rejectButton.click()
    assert state_of(reviewing, case) == "rejected" and ui.discardCorrectionButton.enabled


def test_a_scene_that_is_opened_again_knows_which_case_is_corrected(reviewing, tmp_path):
    import slicer

    ui, run, case = first_case_opened(reviewing)
    value, voxels = edited(*opened_of(run, case))
    slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    slicer.mrmlScene.Clear(0)
    ui.casesTable.selectRow(0)
    assert opened_of(run, case) is None and not ui.saveCorrectionButton.enabled
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    assert reviewing.shown == run.path
    reviewing.showCases(case)
    assert ui.saveCorrectionButton.enabled
    ui.saveCorrectionButton.click()
    assert np.count_nonzero(read_annotation(run.corrected_annotation(case)) == value) == voxels


def test_another_run_with_the_same_cases_is_not_taken_for_this_one(reviewing):
    """Else a review, or a correction, of one run's segmentation would count for the other's."""
    ui, first = reviewing.ui, RunDirectory(reviewing.shown)
    ui.casesTable.selectRow(0)
    case = reviewing.chosen()
    ui.reviewButton.click()
    mine = opened_of(first, case)
    edited(*mine)
    shutil.copytree(first.path, first.path.parent / "second run")
    reviewing.panel.parameters.annotateRunName = "second run"
    ui.casesTable.selectRow(0)
    assert reviewing.chosen() == case and not ui.saveCorrectionButton.enabled
    ui.reviewButton.click()
    assert opened_of(RunDirectory(first.path.parent / "second run"), case)[1] is not mine[1]
    assert opened_of(first, case) == mine


def test_a_case_loaded_twice_is_loaded_once(reviewing):
    import slicer

    reviewing.ui.casesTable.selectRow(0)
    reviewing.ui.reviewButton.click()
    reviewing.ui.reviewButton.click()
    assert len(slicer.util.getNodesByClass("vtkMRMLSegmentationNode")) == 1
    slicer.mrmlScene.Clear(0)
    reviewing.panel.parameters.annotateRunName = RunDirectory(reviewing.shown or "").path.name
    reviewing.ui.casesTable.selectRow(0)
    assert reviewing._opened(reviewing.chosen()) is None


def test_cancel_in_the_middle_leaves_no_process_and_no_half_file(tab, a_foreign_cohort, a_teacher, wait_until):
    import psutil

    ui, panel = tab.ui, tab.panel
    panel.parameters.annotateFrom = "disk"
    panel.parameters.annotateCohort = str(a_foreign_cohort)
    tab.addTeacher(str(a_teacher))
    ui.annotateButton.click()
    job = panel.status.job
    processes = [psutil.Process(job.process.pid)]
    ui.cancelButton.click()  # while the process still starts
    assert not ui.cancelButton.enabled and "stopping" in ui.statusLabel.text
    wait_until(lambda: not job.running, 30)
    assert job.status == 130 and job._signals == 0  # it answered, and did not have to be stopped
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)
    assert not list(job.run.path.rglob(".partial-*"))


def test_the_scene_may_be_closed_while_the_teachers_work(tab, a_scan, a_teacher, wait_until):
    import slicer

    panel, name = tab.panel, a_scan.GetName()
    tab.ui.annotateVolumesSelector.check(a_scan)
    tab.addTeacher(str(a_teacher))
    tab.ui.annotateButton.click()
    job = panel.status.job
    slicer.mrmlScene.Clear(0)
    wait_until(lambda: not job.running, 60)
    assert job.status == 0 and job.nodes == []
    assert "no longer in the scene" in tab.ui.statusLabel.text
    assert RunDirectory(job.run.path).pseudo_annotation(name).is_file()


def test_a_teacher_of_no_known_kind_says_which_kinds_there_are(tab, tmp_path, wait_until):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.txt").write_text("hello")
    tab.addTeacher(str(tmp_path / "notes"))
    wait_until(lambda: "no kind of teacher" in texts(tab.ui.teachersTable)[0][1], 60)
    assert "Known are" in tab.ui.statusLabel.text


@pytest.mark.own_warm_process  # with a folder of settings of its own
def test_a_teacher_with_code_of_its_own_is_trusted_only_after_a_yes(tab, tmp_path, monkeypatch, wait_until, dialogs):
    monkeypatch.setenv("KT_CONFIG", str(tmp_path / "config"))
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "Library"))
    from foreign_models import write_torch_export

    teacher = write_torch_export(tmp_path / "foreign")
    dialogs.answer(False)
    tab.addTeacher(str(teacher))
    wait_until(lambda: "not trusted" in texts(tab.ui.teachersTable)[0][1] and dialogs.shown, 60)
    assert "Trust this teacher?" in dialogs.shown[0].text and not (tmp_path / "config").exists()
    tab.ui.teachersTable.selectRow(0)
    tab.ui.removeTeacherButton.click()
    dialogs.answer(True)
    tab.addTeacher(str(teacher))
    wait_until(lambda: texts(tab.ui.teachersTable)[0][1] == "liver, spleen", 60)
    assert (tmp_path / "config" / "trusted.json").is_file() and len(dialogs.shown) == 2


@pytest.fixture
def a_total_segmentator(tmp_path, monkeypatch):
    """A package TotalSegmentator for the child process that knows two tasks and has no weights."""
    folder = tmp_path / "packages" / "totalsegmentator"
    folder.mkdir(parents=True)
    for name, source in {
        "__init__": "",
        "map_to_binary": "class_map = {'total': {1: 'liver', 2: 'kidney_left'}, 'face': {1: 'face'}}",
        "map_tasks_config": "TASK_ID_WEIGHTS_CONFIGS = {1: {'foldername': 'Dataset1'}}\nTASK_CONFIGS = {'total': "
        "{'sub_modes': {'fast': {'task_id': 1}, 'default': {'task_id': 1}}}, 'face': {'task_id': 1}}",
        "config": f"def get_weights_dir():\n    return {str(tmp_path / 'weights')!r}",
    }.items():
        (folder / f"{name}.py").write_text(source, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(folder.parent), prepend=os.pathsep)


@pytest.fixture
def installed(monkeypatch):
    """Packages that pip is asked for, in place of pip; TotalSegmentator is not installed before."""
    from KnowledgeTransferSlicer import Requirements

    asked, there = [], Requirements._isThere
    monkeypatch.setattr(Requirements, "_pipInstall", asked.extend)

    def isThere(name, lowest):  # noqa: N802
        return f"{name}>={lowest}" in asked if name == "TotalSegmentator" else there(name, lowest)

    monkeypatch.setattr(Requirements, "_isThere", isThere)
    return asked


@pytest.mark.own_warm_process  # which finds the package that stands in
def test_a_task_of_total_segmentator_is_chosen_from_those_that_the_package_knows(
    tab, a_total_segmentator, installed, dialogs, wait_until
):
    ui, parameters, table = tab.ui, tab.panel.parameters, tab.ui.teachersTable
    dialogs.answer(True, True)  # install, and take the first task
    ui.addTeacherTaskButton.click()
    assert installed == ["TotalSegmentator>=2.18"] and "TotalSegmentator>=2.18" in dialogs.shown[0].text
    assert not ui.addTeacherTaskButton.enabled and "Asking TotalSegmentator" in ui.statusLabel.text
    wait_until(lambda: "liver" in (texts(table) or [["", ""]])[0][1], 60)
    assert dialogs.shown[1].text.splitlines()[-3:] == ["total", "total:fast", "face"]
    assert parameters.teacherPaths == ["totalsegmentator:total"] and parameters.teacherWeights == [1.0]
    assert texts(table)[0][:2] == ["TotalSegmentator total", "liver, kidney left"]
    # what is missing is said in Slicer's words, before anybody waits for it
    assert "extension TotalSegmentator" in ui.statusLabel.text and "weights" in table.item(0, 1).toolTip()
    assert "totalseg_download_weights" not in ui.statusLabel.text

    dialogs.answer(" totalsegmentator:total:fast ")  # typed
    ui.addTeacherTaskButton.click()
    wait_until(lambda: len(parameters.teacherPaths) == 2, 60)
    assert parameters.teacherPaths[1] == "totalsegmentator:total:fast" and ui.addTeacherTaskButton.enabled
    dialogs.answer(False)  # cancelled
    count = len(dialogs.shown)
    ui.addTeacherTaskButton.click()
    wait_until(lambda: len(dialogs.shown) > count, 60)
    table.selectRow(0)
    ui.removeTeacherButton.click()
    assert parameters.teacherPaths == ["totalsegmentator:total:fast"] and len(installed) == 1


def test_who_does_not_want_total_segmentator_installed_gets_no_teacher(tab, installed, dialogs):
    dialogs.answer(False)
    tab.ui.addTeacherTaskButton.click()
    assert installed == [] and tab.panel.parameters.teacherPaths == [] and tab.ui.addTeacherTaskButton.enabled
    assert [shown.kind for shown in dialogs.shown] == ["confirmOkCancel", "error"]
    assert "Not installed: TotalSegmentator>=2.18" in dialogs.shown[1].text


@pytest.mark.own_warm_process
def test_a_saved_scene_brings_its_task_back_and_says_without_a_dialog_how_to_install_it(
    tab, installed, dialogs, tmp_path, monkeypatch, wait_until
):
    import slicer

    folder = tmp_path / "packages" / "totalsegmentator"
    folder.mkdir(parents=True)  # without its modules: as if it were not installed
    (folder / "__init__.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(folder.parent), prepend=os.pathsep)
    tab.panel.parameters.teacherPaths, tab.panel.parameters.teacherWeights = ["totalsegmentator:total"], [2.0]
    slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    slicer.mrmlScene.Clear(0)
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    assert tab.panel.parameters.teacherPaths == ["totalsegmentator:total"]
    wait_until(lambda: "press TotalSegmentator…, which installs it" in texts(tab.ui.teachersTable)[0][1], 60)
    assert dialogs.shown == [] and installed == []


def test_annotating_with_a_task_asks_for_its_package_first(tab, a_scan, installed, dialogs, wait_until):
    tab.ui.annotateVolumesSelector.check(a_scan)
    tab.panel.parameters.teacherPaths, tab.panel.parameters.teacherWeights = ["totalsegmentator:total"], [1.0]
    dialogs.answer(False)
    tab.ui.annotateButton.click()
    assert "TotalSegmentator>=2.18" in dialogs.shown[0].text and dialogs.shown[1].kind == "error"
    assert tab.panel.jobOf("annotate") is None
    wait_until(lambda: not tab.panel.logic.library.jobs, 60)  # else the process that tests share is stopped


@pytest.fixture
def a_bare_network(tmp_path, monkeypatch):
    """A network of TorchScript and what a person would write into its teacher.json."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "Library"))
    from foreign_models import write_torchscript

    network = write_torchscript(tmp_path / "foreign")
    filled = (network.parent / "teacher.json").read_text(encoding="utf-8")
    (network.parent / "teacher.json").unlink()
    return network, filled


def test_a_bare_network_gets_a_file_to_fill_in_and_is_a_teacher_once_that_is_done(
    tab, a_bare_network, dialogs, wait_until
):
    (network, filled), ui, table = a_bare_network, tab.ui, tab.ui.teachersTable
    sidecar = network.parent / "teacher.json"
    dialogs.answer(str(network), False)
    ui.addTeacherFileButton.click()
    wait_until(lambda: len(dialogs.shown) == 2, 60)
    assert "Write one for you to fill in" in dialogs.shown[1].text and not sidecar.exists() and dialogs.opened == []
    assert "press Look again" in texts(table)[0][1] and "--template" not in ui.statusLabel.text

    table.selectRow(0)
    dialogs.answer(True)
    ui.lookAgainButton.click()
    wait_until(lambda: dialogs.opened, 60)
    assert json.loads(sidecar.read_text(encoding="utf-8"))["filled_in"] is False
    assert dialogs.opened[0].startswith("file://") and dialogs.opened[0].endswith("/foreign/teacher.json")
    assert "fill in teacher.json" in texts(table)[0][1]
    assert "set filled_in to true" in ui.statusLabel.text and "press Look again" in ui.statusLabel.text

    ui.lookAgainButton.click()  # too early: it can be opened again
    wait_until(lambda: len(dialogs.opened) == 2, 60)
    assert "is a template still" in dialogs.shown[-1].text
    sidecar.write_text(filled, encoding="utf-8")
    count = len(dialogs.shown)
    ui.lookAgainButton.click()
    wait_until(lambda: texts(table)[0][1] == "liver, spleen", 60)
    assert len(dialogs.shown) == count and tab.panel.parameters.teacherPaths == [str(network)]


def test_adding_a_teacher_again_looks_at_it_again(tab, a_bare_network, dialogs, wait_until):
    network, filled = a_bare_network
    dialogs.answer(False)
    tab.addTeacher(str(network))
    wait_until(lambda: dialogs.shown, 60)
    (network.parent / "teacher.json").write_text(filled, encoding="utf-8")
    tab.addTeacher(str(network))
    wait_until(lambda: texts(tab.ui.teachersTable)[0][1] == "liver, spleen", 60)


@pytest.mark.own_warm_process
def test_where_no_file_can_be_written_the_panel_says_what_to_do(
    tab, a_bare_network, dialogs, tmp_path, monkeypatch, wait_until
):
    network, _ = a_bare_network
    (tmp_path / "sitecustomize.py").write_text(READ_ONLY, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    tab.addTeacher(str(network))
    wait_until(lambda: len(dialogs.shown) == 2, 60)
    assert dialogs.shown[1].kind == "error" and "Copy the network to a folder" in dialogs.shown[1].text
    assert not (network.parent / "teacher.json").exists() and dialogs.opened == []


def test_a_scene_with_a_bare_network_asks_nothing_and_says_how_to_go_on(
    tab, a_scan, a_bare_network, dialogs, wait_until
):
    from KnowledgeTransferSlicer.Status import endOf

    network, _ = a_bare_network
    tab.panel.parameters.teacherPaths = [str(network)]
    wait_until(lambda: "press Look again" in texts(tab.ui.teachersTable)[0][1], 60)
    assert dialogs.shown == []
    job = tab.logic.annotate([a_scan], [str(network)])
    wait_until(lambda: not job.running, 60)
    assert "Look again (under Teachers) writes teacher.json beside it" in endOf(job)


def test_another_teacher_gets_another_run(tab, a_scan, a_teacher, tmp_path, wait_until):
    tab.ui.annotateVolumesSelector.check(a_scan)
    tab.addTeacher(str(a_teacher))
    tab.ui.annotateRunName.text = "mine"
    for name in ("mine", "mine", "mine 2"):
        if name == "mine 2":
            tab.panel.parameters.teacherPaths = [str(shutil.copytree(a_teacher, tmp_path / "other"))]
        tab.ui.annotateButton.click()
        wait_until(lambda: not tab.panel.status.job.running, 60)
        assert tab.panel.status.job.status == 0, tab.panel.status.job.error
        assert tab.panel.parameters.annotateRunName == name and tab.ui.casesTable.rowCount == 1


def test_another_folder_with_the_same_file_names_gets_another_run(
    tab, a_foreign_cohort, a_teacher, tmp_path, wait_until
):
    """Else the verdicts and corrections of one patient would count for another one's image."""
    ui, panel, days = tab.ui, tab.panel, [tmp_path / "day 1", tmp_path / "day 2"]
    for day, scan in zip(days, sorted((a_foreign_cohort / "images").iterdir()), strict=False):
        day.mkdir()
        shutil.copy(scan, day / f"patient{''.join(scan.suffixes)}")
    tab.addTeacher(str(a_teacher))
    panel.parameters.annotateFrom, panel.parameters.annotateRunName = "disk", "mine"
    state = "annotated"
    for day, name in ((days[0], "mine"), (days[0], "mine"), (days[1], "mine 2"), (days[1], "mine 2")):
        ui.annotateCohortPath.currentPath = str(day)
        ui.annotateButton.click()
        wait_until(lambda: not panel.status.job.running, 60)
        assert panel.status.job.status == 0, panel.status.job.error
        assert panel.parameters.annotateRunName == name
        assert texts(ui.casesTable)[0][:2] == ["patient", "annotated" if day is days[1] else state]
        ui.casesTable.selectRow(0)
        if name == "mine" and state == "annotated":
            ui.rejectButton.click()
            state = "rejected"


def test_a_run_that_was_removed_leaves_no_case_open_in_its_name(tab, a_volume, a_scan, a_teacher, wait_until):
    """Its segmentation would be saved as the correction of another patient's scan."""
    import slicer

    tab.addTeacher(str(a_teacher))
    tab.ui.annotateRunName.text = "mine"
    other = a_volume(slicer.util.arrayFromVolume(a_scan) + 1, name="other")
    other.CopyOrientation(a_scan)
    for volume in (a_scan, other):
        volume.SetName("CT")
        tab.panel.parameters.annotateVolumes = [volume]
        tab.ui.annotateButton.click()
        wait_until(lambda: not tab.panel.status.job.running, 60)
        assert opened_of(RunDirectory(tab.run()), "CT")[0] is volume
        edited(*opened_of(RunDirectory(tab.run()), "CT"))
        shutil.rmtree(tab.run())


def test_reviewing_one_case_after_the_other_does_not_fill_the_memory(reviewing, a_scan):
    """Edits that were not saved stay, and so does what the user loaded or used."""
    import slicer

    from KnowledgeTransferSlicer import SceneIO

    ui, run = reviewing.ui, RunDirectory(reviewing.shown)

    def review(row):
        ui.casesTable.selectRow(row)
        ui.reviewButton.click()
        return opened_of(run, reviewing.chosen())

    def there(pair):
        return [SceneIO.isInScene(node) for node in pair]

    before = slicer.mrmlScene.GetNumberOfNodes()
    looked_at = review(0)
    ui.acceptButton.click()
    count = slicer.mrmlScene.GetNumberOfNodes() - before
    corrected = review(1)
    assert there(looked_at) == [False, False] and there(corrected) == [True, True]
    assert slicer.mrmlScene.GetNumberOfNodes() - before == count  # no display stays either
    edited(*corrected)
    ui.saveCorrectionButton.click()
    unsaved = review(2)
    assert there(corrected) == [False, False]
    edited(*unsaved)
    used = review(3)
    reviewing.panel.parameters.segmentVolumes = [used[0]]
    again = review(0)
    again[0].GetImageData().Modified()  # as by a filter
    review(1)
    assert there(unsaved) == there(used) == there(again) == [True, True] and SceneIO.isInScene(a_scan)
    assert review(2) == unsaved


def test_a_reviewed_scan_on_which_something_was_drawn_stays(reviewing):
    import slicer

    from KnowledgeTransferSlicer import SceneIO

    ui, run = reviewing.ui, RunDirectory(reviewing.shown)
    ui.casesTable.selectRow(0)
    ui.reviewButton.click()
    volume, segmentation = opened_of(run, reviewing.chosen())
    own = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    own.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    ui.casesTable.selectRow(1)
    ui.reviewButton.click()
    assert all(map(SceneIO.isInScene, (volume, segmentation, own)))


def test_a_scene_whose_teacher_is_gone_opens_no_dialog(tab, tmp_path, dialogs):
    tab.panel.parameters.teacherPaths = [str(tmp_path / "on another computer")]
    assert "there is no such file" in texts(tab.ui.teachersTable)[0][1] and dialogs.shown == []


def test_weights_and_teachers_are_kept_in_the_scene(tab, a_teacher, tmp_path):
    parameters = tab.panel.parameters
    tab.addTeacher(str(a_teacher))
    tab.addTeacher("scene:")
    tab.addTeacher(str(a_teacher))  # a second time: nothing new
    tab.ui.teachersTable.cellWidget(1, 2).value = 0.5
    assert parameters.teacherPaths == [str(a_teacher), "scene:"] and parameters.teacherWeights == [1.0, 0.5]
    assert texts(tab.ui.teachersTable)[1][0] == "Segmentations in the scene"
    tab.ui.teachersTable.selectRow(0)
    tab.ui.removeTeacherButton.click()
    assert parameters.teacherPaths == ["scene:"] and parameters.teacherWeights == [0.5]
    assert tab.ui.teachersTable.cellWidget(0, 2).value == 0.5


def test_a_weight_can_be_typed(tab):
    from PySide6.QtTest import QTest
    from PySide6.QtWidgets import QLineEdit

    tab.addTeacher("scene:")
    box = tab.ui.teachersTable.cellWidget(0, 2)
    line = box.findChild(QLineEdit)
    for typed, taken in (("0.25", lambda: QTest.keyClicks(line, "\r")), ("2.5", tab.ui.annotateButton.click)):
        line.selectAll()
        tab.ui.annotateButton.enabled = True
        QTest.keyClicks(line, typed)
        taken()
        assert list(tab.panel.parameters.teacherWeights) == [float(typed)] and box.value == float(typed)


def test_a_volume_that_was_deleted_is_not_asked_for(tab, a_scan, a_teacher, wait_until, dialogs):
    import slicer

    other = slicer.modules.volumes.logic().CloneVolume(slicer.mrmlScene, a_scan, "other")
    tab.panel.parameters.annotateVolumes = [other, a_scan]
    slicer.mrmlScene.RemoveNode(other)
    tab.addTeacher(str(a_teacher))
    tab.ui.annotateButton.click()
    job = tab.panel.status.job
    assert dialogs.shown == [] and job is not None
    wait_until(lambda: not job.running, 60)
    assert job.status == 0 and texts(tab.ui.casesTable)[0][0] == a_scan.GetName()


def test_a_name_that_no_folder_can_have_is_cleaned_and_shown(tab, a_scan, a_teacher, wait_until):
    ui, panel = tab.ui, tab.panel
    ui.annotateVolumesSelector.check(a_scan)
    tab.addTeacher(str(a_teacher))
    ui.annotateRunName.text = "CT 12/05: why?"
    ui.annotateButton.click()
    wait_until(lambda: not panel.status.job.running, 60)
    assert ui.annotateRunName.text == panel.parameters.annotateRunName == "CT 12_05_ why_"
    assert tab.run() == panel.workingFolder / "CT 12_05_ why_" == panel.status.job.run.path
    panel.refresh()
    assert [run.name for run in panel.distilTab.runs] == ["CT 12_05_ why_"] and ui.casesTable.rowCount == 1
    for name in ("..", "/", " . "):
        panel.parameters.annotateRunName = name
        assert tab.run() in (None, panel.workingFolder / "_")


@pytest.mark.skipif(os.name == "nt", reason="no folder of Windows has such a name")
def test_a_run_of_a_shell_whose_name_holds_a_colon_can_be_reviewed(reviewing):
    ui, run = reviewing.ui, RunDirectory(reviewing.shown)
    run.path.rename(run.path.with_name("day 10:12"))
    reviewing.panel.refresh()
    reviewing.panel.parameters.annotateRunName = "day 10:12"
    assert ui.casesTable.rowCount == 4 and reviewing._runName() == "day 10:12"


def test_all_scans_are_checked_at_once_but_no_uncertainty_map(tab, a_volume):
    from KnowledgeTransferSlicer import SceneIO

    scans = [a_volume(name=f"scan {number}") for number in range(3)]
    a_volume(name="map").SetAttribute(SceneIO.UNCERTAINTY, scans[0].GetID())
    tab.ui.annotateAllButton.click()
    assert [node.GetName() for node in tab.panel.parameters.annotateVolumes] == ["scan 0", "scan 1", "scan 2"]
    tab.ui.annotateAllButton.click()
    assert list(tab.panel.parameters.annotateVolumes) == []
    tab.ui.segmentAllButton.click()
    assert len(list(tab.panel.parameters.segmentVolumes)) == 3


def test_a_mistake_is_shown_in_a_dialog_and_nothing_starts(tab, a_volume, a_teacher, dialogs):
    colour = a_volume(np.zeros((4, 5, 6, 3), np.uint8), name="photo", node_class="vtkMRMLVectorVolumeNode")
    tab.panel.parameters.annotateVolumes = [colour]
    tab.addTeacher(str(a_teacher))
    tab.ui.annotateButton.click()
    assert [shown.kind for shown in dialogs.shown] == ["error"]
    assert "vector volume" in dialogs.shown[0].text and tab.panel.logic.library.jobs == []
