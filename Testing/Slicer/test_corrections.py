"""Corrections: a script loads cases of a run for review and saves what was corrected, as a training reads it."""

import numpy as np
import pytest

from KnowledgeTransferLib.records.run_directory import RunDirectory, read_json


def test_a_correction_is_kept_beside_the_pseudo_annotation_and_can_be_discarded(logic, an_annotated_run):
    import slicer

    from KnowledgeTransferLib.learning.volume import read_annotation, read_image
    from KnowledgeTransferLib.records.reviews import case_states

    run = RunDirectory(an_annotated_run)
    case = case_states(run)[0]
    before = run.pseudo_annotation(case.id).read_bytes()
    volume, segmentation = logic.loadForReview(an_annotated_run, case.id)
    source = segmentation.GetSegmentation()
    name = source.GetNthSegment(0).GetName()
    value = source.GetNthSegment(0).GetLabelValue()
    mask = slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, source.GetNthSegmentID(0), volume)
    mask[:2] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, segmentation, source.GetNthSegmentID(0), volume)
    logic.saveCorrection(an_annotated_run, case.id, segmentation, volume)

    corrected = run.corrected_annotation(case.id)
    image = read_image(case.images)
    found = read_annotation(corrected, None, image)
    assert (found == value).sum() >= mask[:2].size, name
    assert run.pseudo_annotation(case.id).read_bytes() == before
    assert next(s for s in case_states(run) if s.id == case.id).state == "corrected"
    saved = corrected.read_bytes()
    kept = logic.discardCorrection(an_annotated_run, case.id)
    assert not corrected.exists() and kept.read_bytes() == saved and kept.name == corrected.name
    assert next(s for s in case_states(run) if s.id == case.id).state == "annotated"


def test_a_correction_that_another_one_replaces_is_kept(logic, an_annotated_run):
    """A scene that was saved before the correction was made still knows its case."""
    run = RunDirectory(an_annotated_run)
    case = sorted(run.pseudo_annotations.iterdir())[0].name.removesuffix(".seg.nrrd")
    volume, segmentation = logic.loadForReview(run.path, case)
    logic.saveCorrection(run.path, case, segmentation, volume)
    assert not (run.corrected_annotations / "earlier").exists()
    first = run.corrected_annotation(case).read_bytes()
    segmentation.GetSegmentation().GetNthSegment(0).SetColor(0.1, 0.2, 0.3)
    logic.saveCorrection(run.path, case, segmentation, volume)
    (kept,) = (run.corrected_annotations / "earlier").rglob("*.seg.nrrd")
    assert kept.read_bytes() == first != run.corrected_annotation(case).read_bytes()


def test_a_correction_of_a_left_handed_scan_fits_it_although_slicer_turns_an_axis(logic, a_teacher, tmp_path):
    import slicer

    from KnowledgeTransferLib.learning.volume import read_annotation, read_image, write_image
    from KnowledgeTransferLib.records.reviews import case_states
    from KnowledgeTransferLib.steps.annotate import annotate

    for number in range(2):
        values = np.random.default_rng(number).normal(0, 200, (14, 12, 10)).astype(np.int16)
        write_image(tmp_path / "scans" / f"scan {number}.nii.gz", values, np.diag([-6.0, 6.0, 6.0, 1]))
    run = RunDirectory(tmp_path / "run")
    annotate(run, tmp_path / "scans", {str(a_teacher): 1.0})
    case = case_states(run)[0]
    volume, segmentation = logic.loadForReview(run.path, case.id)
    bright = slicer.util.arrayFromVolume(volume) > 150
    segmentation.GetSegmentation().RemoveAllSegments()
    segment_id = segmentation.GetSegmentation().AddEmptySegment("liver", "liver")
    slicer.util.updateSegmentBinaryLabelmapFromArray(bright.astype(np.uint8), segmentation, segment_id, volume)
    logic.saveCorrection(run.path, case.id, segmentation, volume)
    image = read_image(case.images)
    assert ((read_annotation(run.corrected_annotation(case.id), None, image) > 0) == (image.array[0] > 150)).all()


def test_a_correction_in_which_everything_was_erased_keeps_the_geometry(logic, an_annotated_run):
    import slicer

    from KnowledgeTransferLib.learning.volume import read_annotation, read_image
    from KnowledgeTransferLib.records.reviews import case_states

    run = RunDirectory(an_annotated_run)
    case = case_states(run)[0]
    volume, segmentation = logic.loadForReview(run.path, case.id)
    source = segmentation.GetSegmentation()
    for number in range(source.GetNumberOfSegments()):
        nothing = np.zeros(slicer.util.arrayFromVolume(volume).shape, np.uint8)
        slicer.util.updateSegmentBinaryLabelmapFromArray(nothing, segmentation, source.GetNthSegmentID(number), volume)
    assert logic.saveCorrection(run.path, case.id, segmentation, volume) == ""
    found = read_annotation(run.corrected_annotation(case.id), None, read_image(case.images))
    assert not found.any()


def test_a_dicom_series_can_be_reviewed(logic, a_teacher, tmp_path):
    import SimpleITK as sitk

    from KnowledgeTransferLib.records.reviews import case_states
    from KnowledgeTransferLib.steps.annotate import annotate

    series = tmp_path / "scans" / "patient 1"
    series.mkdir(parents=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for number in range(6):
        image = sitk.GetImageFromArray(np.full((1, 12, 14), 40 * number, np.int16))
        image.SetSpacing((6.0, 6.0, 6.0))
        for tag, value in {
            "0020|000e": "1.2.3.4", "0020|000d": "1.2.3", "0008|0018": f"1.2.3.4.{number}", "0020|0013": str(number),
            "0020|0032": f"0\\0\\{6 * number}", "0020|0037": "1\\0\\0\\0\\1\\0", "0008|0060": "CT",
            "0018|0050": "6",
        }.items():  # fmt: skip
            image.SetMetaData(tag, value)
        writer.SetFileName(str(series / f"{number}.dcm"))
        writer.Execute(image)
    run = RunDirectory(tmp_path / "run")
    annotate(run, tmp_path / "scans", {str(a_teacher): 1.0})
    case = case_states(run)[0]
    assert case.state == "annotated", case.message
    for other in (".DS_Store", "0 notes.txt", "DICOMDIR"):  # before the images, in the order of the names
        (series / other).write_bytes(b"no image")
    volume, segmentation = logic.loadForReview(run.path, case.id)
    assert volume.GetImageData().GetDimensions() == (14, 12, 6)


def trained_on(run, case_id):
    """The target that a training makes of a case's correction."""
    from KnowledgeTransferLib.learning.training_cases import TrainingCase
    from KnowledgeTransferLib.records.cohort import read_recorded
    from KnowledgeTransferLib.records.labels import Labels

    case = next(case for case in read_recorded(run.cohort).cases if case.id == case_id)
    labels = Labels.from_json(read_json(run.annotations)["structures"])
    return TrainingCase(case, run.corrected_annotation(case_id), labels=labels, corrected=True).read(labels)[1]


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_a_case_of_one_slice_is_reviewed_alone_though_numbered_files_lie_beside_it(logic, tmp_path, suffix):
    import slicer

    from KnowledgeTransferLib.learning.volume import write_annotation, write_image
    from KnowledgeTransferLib.records.labels import Labels
    from KnowledgeTransferLib.steps.annotate import annotate

    pictures, place = np.random.default_rng(0).integers(0, 255, (3, 32, 30, 1), np.uint8), np.diag([6.0, 6.0, 6.0, 1])
    for number, picture in enumerate(pictures):
        write_image(tmp_path / "scans" / f"patient_{number:03d}{suffix}", picture, place)
        (tmp_path / "drawn").mkdir(exist_ok=True)
        labels, drawn = Labels.from_names({1: "lesion"}), (picture > 200).astype(np.uint8)
        write_annotation(tmp_path / "drawn" / f"patient_{number:03d}.seg.nrrd", drawn, place, labels)
    run = RunDirectory(tmp_path / "run")
    annotate(run, tmp_path / "scans", {str(tmp_path / "drawn"): 1.0})
    volume, segmentation = logic.loadForReview(run.path, "patient_001")
    assert (slicer.util.arrayFromVolume(volume).transpose(2, 1, 0) == pictures[1]).all()
    logic.saveCorrection(run.path, "patient_001", segmentation, volume)
    assert (trained_on(run, "patient_001")[0] == (pictures[1] > 200)).all()


def test_a_correction_with_a_structure_that_no_training_knows_is_refused(logic, an_annotated_run):
    import slicer

    run = RunDirectory(an_annotated_run)
    case = sorted(run.pseudo_annotations.iterdir())[0].name.removesuffix(".seg.nrrd")
    volume, segmentation = logic.loadForReview(run.path, case)
    source = segmentation.GetSegmentation()
    source.AddEmptySegment("drawn on by nobody", "drawn on by nobody")
    logic.saveCorrection(run.path, case, segmentation, volume)
    before = run.corrected_annotation(case).read_bytes()
    drawn = np.zeros(slicer.util.arrayFromVolume(volume).shape, np.uint8)
    drawn[:2] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(drawn, segmentation, "drawn on by nobody", volume)
    source.GetSegment("drawn on by nobody").SetName("Segment_1")
    with pytest.raises(ValueError, match=r"does not know Segment_1.* its structures are liver, .*Rename"):
        logic.saveCorrection(run.path, case, segmentation, volume)
    assert run.corrected_annotation(case).read_bytes() == before
    assert not list(run.path.rglob(".partial-*"))
    source.GetSegment("drawn on by nobody").SetName("Left_Kidney")
    logic.saveCorrection(run.path, case, segmentation, volume)
    assert (trained_on(run, case)[0, :, :, :2] > 0).all()


@pytest.mark.parametrize("hardened", [False, True])
def test_a_correction_of_a_scan_that_was_moved_lies_on_the_voxels_of_its_file(logic, an_annotated_run, hardened):
    import slicer

    run = RunDirectory(an_annotated_run)
    case = sorted(run.pseudo_annotations.iterdir())[0].name.removesuffix(".seg.nrrd")
    volume, segmentation = logic.loadForReview(run.path, case)
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "alignment")
    moved = np.array([[0.8, -0.6, 0, 5], [0.6, 0.8, 0, -9], [0, 0, 1, 30], [0, 0, 0, 1]])
    transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(moved))
    for node in (volume, segmentation):
        node.SetAndObserveTransformNodeID(transform.GetID())
        if hardened:
            node.HardenTransform()
    segment_id = segmentation.GetSegmentation().GetNthSegmentID(0)
    drawn = np.zeros(slicer.util.arrayFromVolume(volume).shape, np.uint8)
    drawn[3:6, 4:9, 5:11] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(drawn, segmentation, segment_id, volume)
    logic.saveCorrection(run.path, case, segmentation, volume)
    assert ((trained_on(run, case)[0] == 1) == drawn.transpose(2, 1, 0).astype(bool)).all()


def test_a_correction_of_a_loaded_scan_lies_where_it_was_annotated_though_its_transform_changed(
    logic, scans, a_teacher, tmp_path
):
    import slicer

    from KnowledgeTransferSlicer import SceneRuns

    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "alignment")
    moved = np.array([[0.8, -0.6, 0, 5], [0.6, 0.8, 0, -9], [0, 0, 1, 30], [0, 0, 0, 1]])
    transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(moved))
    scans[0].SetAndObserveTransformNodeID(transform.GetID())
    (node,) = logic.annotate(scans[:1], [a_teacher], tmp_path / "run", device="cpu").wait().nodes
    drawn = np.zeros(slicer.util.arrayFromVolume(scans[0]).shape, np.uint8)
    drawn[3:6, 4:9, 5:11] = 1
    segment_id = node.GetSegmentation().GetNthSegmentID(0)
    slicer.util.updateSegmentBinaryLabelmapFromArray(drawn, node, segment_id, scans[0])
    run, case = RunDirectory(tmp_path / "run"), node.GetAttribute(SceneRuns.CASE)
    for place in (moved, moved @ moved, np.eye(4)):
        transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(place))
        logic.saveCorrection(run.path, case, node, scans[0])
        assert ((trained_on(run, case)[0] == 1) == drawn.transpose(2, 1, 0).astype(bool)).all()


def test_a_correction_of_a_scan_that_was_cropped_is_refused(logic, an_annotated_run):
    import slicer

    run = RunDirectory(an_annotated_run)
    case = sorted(run.pseudo_annotations.iterdir())[0].name.removesuffix(".seg.nrrd")
    volume, segmentation = logic.loadForReview(run.path, case)
    slicer.util.updateVolumeFromArray(volume, slicer.util.arrayFromVolume(volume)[:-2].copy())
    with pytest.raises(ValueError, match="has other voxels than the scan of this run"):
        logic.saveCorrection(run.path, case, segmentation, volume)
    assert not run.corrected_annotation(case).exists()
