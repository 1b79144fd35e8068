"""Review: cases of a run are opened, judged and corrected in the panel; with the real library."""

import json
import os
import shutil

import numpy as np
import pytest
from panel_tables import texts

from KnowledgeTransferLib.learning.volume import read_annotation
from KnowledgeTransferLib.records.reviews import case_states
from KnowledgeTransferLib.records.run_directory import RunDirectory


def opened_of(run, case):
    """The scan and the annotation of a case in the scene, or None."""
    from KnowledgeTransferSlicer import SceneRuns

    return SceneRuns.openedOf(run, case)


def edited(volume, segmentation):
    """Draw the first segment anew, beside the others; returns its value and how many voxels it has now."""
    import slicer

    source = segmentation.GetSegmentation()
    value, segment_id = source.GetNthSegment(0).GetLabelValue(), source.GetNthSegmentID(0)
    others = [source.GetNthSegmentID(number) for number in range(1, source.GetNumberOfSegments())]
    there = [slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, other, volume) > 0 for other in others]
    mask = slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, segment_id, volume)
    mask[:] = 0
    mask[:3] = ~np.any([other[:3] for other in there], axis=0) if there else 1  # two that overlap are no plain edit
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, segmentation, segment_id, volume)
    return value, mask.sum()


def state_of(tab, case) -> str:
    return next(row[1] for row in texts(tab.ui.casesTable) if row[0] == case)


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


def corrected_of(tab, a_scan, a_teacher, wait_until):
    """A loaded scan is annotated and corrected: the run, the case, and the value and voxels that were drawn."""
    tab.ui.annotateVolumesSelector.check(a_scan)
    tab.addTeacher(str(a_teacher))
    tab.ui.annotateRunName.text = "again"
    tab.ui.annotateButton.click()
    wait_until(lambda: not tab.panel.status.job.running, 60)
    run = RunDirectory(tab.run())
    tab.ui.casesTable.selectRow(0)
    case = tab.chosen()
    value, voxels = edited(*opened_of(run, case))
    tab.ui.saveCorrectionButton.click()
    return run, case, value, voxels


def test_annotating_again_does_not_put_the_teachers_opinion_in_place_of_a_correction(
    tab, a_scan, a_teacher, wait_until
):
    ui, panel = tab.ui, tab.panel
    run, case, value, voxels = corrected_of(tab, a_scan, a_teacher, wait_until)
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
    run, case, value, voxels = corrected_of(tab, a_scan, a_teacher, wait_until)
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


@pytest.mark.skipif(os.name == "nt", reason="no folder of Windows has such a name")
def test_a_run_of_a_shell_whose_name_holds_a_colon_can_be_reviewed(reviewing):
    ui, run = reviewing.ui, RunDirectory(reviewing.shown)
    run.path.rename(run.path.with_name("day 10:12"))
    reviewing.panel.refresh()
    reviewing.panel.parameters.annotateRunName = "day 10:12"
    assert ui.casesTable.rowCount == 4 and reviewing._runName() == "day 10:12"
