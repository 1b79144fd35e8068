"""SegmentTab: a student is chosen and segments; the result is shown, measured and compared."""

import numpy as np
import pytest


@pytest.fixture
def tab(the_panel, a_teacher, tmp_path):
    the_panel.ui.workingFolderPath.currentPath = str(tmp_path)
    the_panel.parameters.device = "cpu"
    the_panel.segmentTab.choose(str(a_teacher))
    return the_panel.segmentTab


@pytest.fixture
def a_scan(a_scene, a_foreign_cohort):
    import slicer

    return slicer.util.loadVolume(str(sorted((a_foreign_cohort / "images").iterdir())[0]))


def cells(table) -> list[list[str]]:
    return [[table.item(r, c).text() for c in range(table.columnCount)] for r in range(table.rowCount)]


def test_a_volume_is_segmented_by_the_press_of_a_button(tab, a_scan, wait_until):
    ui, panel = tab.ui, tab.panel
    assert not ui.segmentButton.enabled and "volumes" in ui.segmentButton.toolTip
    ui.segmentVolumesSelector.check(a_scan)
    assert ui.segmentButton.enabled
    ui.segmentButton.click()
    wait_until(lambda: not panel.status.job.running, 60)
    node = ui.resultSelector.currentNode()
    assert node.GetName() == f"{a_scan.GetName()} segmentation" and panel.parameters.result is node
    rows = {row[0]: row[1:] for row in cells(ui.volumesTable)}
    assert float(rows["liver"][0]) > 1 and rows["liver"][1:] == ["", ""]
    assert ui.show3DButton.enabled
    ui.show3DButton.click()
    assert node.GetSegmentation().ContainsRepresentation("Closed surface")


def test_where_the_only_scan_fails_the_panel_says_why(tab, a_volume, wait_until, dialogs):
    ui, panel = tab.ui, tab.panel
    ui.segmentVolumesSelector.check(a_volume((8, 30, 30), name="nothing in it"))
    ui.segmentButton.click()
    wait_until(lambda: dialogs.shown, 60)
    for said in (dialogs.shown[-1].text, ui.statusLabel.text):
        assert said.startswith("Segment: nothing in it: ") and "every voxel has the value 0" in said
        assert "unexpectedly" not in said and "see " not in said
    assert panel.status.job.status == 2


def test_volumes_that_are_named_like_channels_are_segmented_one_by_one(tab, a_scan, wait_until):
    import slicer

    other = slicer.modules.volumes.logic().CloneVolume(slicer.mrmlScene, a_scan, "p_0001")
    a_scan.SetName("p_0000")
    tab.panel.parameters.segmentVolumes = [a_scan, other]
    tab.ui.segmentButton.click()
    job = tab.panel.status.job
    wait_until(lambda: not job.running, 60)
    assert [node.GetName() for node in job.nodes] == ["p_0000 segmentation", "p_0001 segmentation"], job.error


def test_two_results_are_compared(tab, a_scan, wait_until):
    import slicer

    ui, panel = tab.ui, tab.panel
    ui.segmentVolumesSelector.check(a_scan)
    for _ in range(2):
        ui.segmentButton.click()
        wait_until(lambda: not panel.status.job.running, 60)
    result = ui.resultSelector.currentNode()
    ui.compareSelector.setCurrentNode(result)
    assert not ui.compareButton.enabled  # with itself
    others = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    ui.compareSelector.setCurrentNode(next(n for n in others if n is not result))
    ui.compareButton.click()
    wait_until(lambda: not panel.status.job.running, 60)
    rows = {row[0]: row[1:] for row in cells(ui.volumesTable)}
    assert rows["liver"][1:] == ["1.000", "0.00"]
    panel.enter()
    assert "1.000" in {cell for row in cells(ui.volumesTable) for cell in row}, "nothing was edited"
    segment = result.GetSegmentation().GetSegmentIdBySegmentName("liver")
    before = {row[0]: row[1] for row in cells(ui.volumesTable)}
    array = slicer.util.arrayFromSegmentBinaryLabelmap(result, segment, a_scan)
    array[np.nonzero(array)[0].min()] = 0
    slicer.util.updateSegmentBinaryLabelmapFromArray(array, result, segment, a_scan)
    panel.enter()
    after = {row[0]: row[1:] for row in cells(ui.volumesTable)}
    assert float(after["liver"][0]) < float(before["liver"]) and after["liver"][1:] == ["", ""]


def test_a_folder_is_segmented_into_a_folder(tab, a_foreign_cohort, tmp_path, wait_until):
    ui, panel = tab.ui, tab.panel
    ui.segmentFolderRadio.click()
    ui.segmentFolderPath.currentPath = str(a_foreign_cohort / "images")
    assert not ui.segmentButton.enabled  # nowhere to write to
    ui.segmentOutputPath.currentPath = str(tmp_path / "out")
    ui.segmentButton.click()
    wait_until(lambda: not panel.status.job.running, 60)
    assert panel.status.job.status == 0 and len(list((tmp_path / "out").glob("*.seg.nrrd"))) == 4


def test_segmentations_may_be_written_beside_their_scans(tab, a_foreign_cohort, tmp_path, wait_until):
    import shutil

    ui, panel = tab.ui, tab.panel
    scans = shutil.copytree(a_foreign_cohort / "images", tmp_path / "scans")
    ui.segmentFolderRadio.click()
    ui.segmentFolderPath.currentPath = ui.segmentOutputPath.currentPath = str(scans)
    ui.segmentButton.click()
    wait_until(lambda: not panel.status.job.running, 60)
    assert panel.status.job.status == 0, panel.status.job.error
    assert len(list(scans.glob("*.seg.nrrd"))) == 4 and len(list(scans.iterdir())) == 8


def test_the_model_card_of_the_chosen_student_is_shown_and_recent_ones_are_listed(tab, a_teacher, tmp_path):
    import shutil

    import slicer

    from KnowledgeTransferSlicer.SegmentTab import RECENT

    shown = tab.ui.modelCardText.plainText
    assert (
        shown.startswith("Segments liver")
        and "It learnt from" in shown[:300]
        and "Dice with the annotations" in shown[:500]
    )
    other = shutil.copytree(a_teacher, tmp_path / "other run" / "student")
    tab.choose(str(other))
    assert [tab.ui.bundleSelector.itemText(i) for i in range(2)] == ["other run", a_teacher.parent.name]
    assert list(slicer.app.settings().value(RECENT)) == [str(other), str(a_teacher)]
    tab.ui.bundleSelector.setCurrentIndex(1)
    assert tab.panel.parameters.bundle == str(a_teacher)


def test_a_recent_student_that_cannot_be_looked_at_is_left_out(tab, a_teacher):
    import slicer

    from KnowledgeTransferSlicer.SegmentTab import RECENT

    slicer.app.settings().setValue(RECENT, ["x" * 5000, str(a_teacher)])  # longer than a path may be: an OSError
    assert tab._readRecent() == [str(a_teacher)]


def test_a_damaged_student_is_explained(tab, a_teacher, a_scan, tmp_path, wait_until, dialogs):
    import shutil

    broken = shutil.copytree(a_teacher, tmp_path / "broken")
    (broken / "models" / "model.safetensors").write_bytes(b"0" * 100)
    tab.choose(str(broken))
    tab.ui.segmentVolumesSelector.check(a_scan)
    tab.ui.segmentButton.click()
    wait_until(lambda: not tab.panel.status.job.running, 60)
    wait_until(lambda: dialogs.shown)
    assert "changed or damaged" in dialogs.shown[-1].text
    (broken / "configs" / "metadata.json").write_text("{", encoding="utf-8")
    tab.choose(str(broken))
    assert "Cannot be used" in tab.ui.modelCardText.plainText and "damaged" in tab.ui.modelCardText.plainText


def test_a_student_is_shown_without_reading_its_weights(tab, a_teacher, tmp_path, monkeypatch):
    import shutil

    from KnowledgeTransferLib.records import bundle
    from KnowledgeTransferSlicer.Controls import structuresOf

    read, real = [], bundle.sha256
    monkeypatch.setattr(bundle, "sha256", lambda path: read.append(path) or real(path))
    other = str(shutil.copytree(a_teacher, tmp_path / "large"))
    tab.choose(other)
    assert tab.ui.modelCardText.plainText.startswith("Segments liver") and "liver" in structuresOf(other)
    assert read == []
    bundle.read_metadata(a_teacher)  # as those do who use it
    assert read


def test_several_volumes_are_segmented_in_one_go_also_under_a_transform(tab, a_foreign_cohort, wait_until):
    import numpy as np
    import slicer

    scans = [slicer.util.loadVolume(str(file)) for file in sorted((a_foreign_cohort / "images").iterdir())[:2]]
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "moved")
    moved = np.eye(4)
    moved[:3, 3] = 10, -20, 30
    transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(moved))
    scans[1].SetAndObserveTransformNodeID(transform.GetID())
    tab.panel.parameters.segmentVolumes = scans
    tab.ui.segmentButton.click()
    wait_until(lambda: not tab.panel.status.job.running, 60)
    nodes = tab.panel.status.job.nodes
    assert len(nodes) == 2 and nodes[1].GetParentTransformNode() is transform
    assert nodes[0].GetParentTransformNode() is None


def test_an_unchosen_student_says_so(the_panel, a_scan):
    the_panel.ui.segmentVolumesSelector.check(a_scan)
    assert not the_panel.ui.segmentButton.enabled and "student" in the_panel.ui.segmentButton.toolTip
    assert "No student" in the_panel.ui.modelCardText.plainText
