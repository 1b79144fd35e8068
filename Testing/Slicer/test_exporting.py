"""Exporting: many volumes are written one by one, with progress and Cancel between them."""

import contextlib

import pytest


@pytest.fixture
def tab(the_panel, scans, a_teacher, tmp_path, monkeypatch):
    """The third tab with two scans and a student, where the dialog comes at once."""
    from KnowledgeTransferSlicer import Exporting

    monkeypatch.setattr(Exporting, "SOON_MS", 0)
    the_panel.ui.workingFolderPath.currentPath = str(tmp_path)
    the_panel.parameters.device = "cpu"
    the_panel.parameters.segmentVolumes = scans
    the_panel.segmentTab.choose(str(a_teacher))
    return the_panel.segmentTab


@pytest.fixture
def meanwhile(monkeypatch):
    """`meanwhile(look)`: what the event loop does while nodes are written; `look` gets the dialog."""
    import qt
    import slicer

    write = slicer.util.exportNode

    def install(look):
        def export(*args, **keywords):
            qt.QTimer.singleShot(0, lambda: look(qt.QApplication.activeModalWidget()))
            return write(*args, **keywords)

        monkeypatch.setattr(slicer.util, "exportNode", export)

    return install


def test_the_panel_shows_which_volume_is_written_and_lets_the_event_loop_go_on(tab, scans, meanwhile, wait_until):
    shown = []
    meanwhile(lambda dialog: shown.append((dialog.labelText, dialog.value, dialog.maximum)) if dialog else None)
    tab.ui.segmentButton.click()
    assert shown == [(f"Writing {scans[1].GetName()} for the library", 1, 2)]
    job = tab.panel.status.job
    wait_until(lambda: not job.running, 60)
    assert job.status == 0 and len(job.nodes) == 2


def test_cancel_between_two_volumes_begins_nothing_and_leaves_nothing(
    tab, meanwhile, monkeypatch, tmp_path, dialogs, wait_until
):
    from KnowledgeTransferSlicer import Logic

    folder = tmp_path / "temporary"
    monkeypatch.setattr(Logic.tempfile, "mkdtemp", lambda prefix: (folder.mkdir(), str(folder))[1])
    meanwhile(lambda dialog: dialog.cancel() if dialog else None)
    tab.ui.segmentButton.click()
    assert tab.ui.statusLabel.text == "Stopped before anything was begun" and dialogs.shown == []
    assert tab.panel.status.job is None and tab.logic.library.jobs == [] and not folder.exists()
    meanwhile(lambda dialog: None)
    tab.ui.segmentButton.click()
    job = tab.panel.status.job
    wait_until(lambda: not job.running, 60)
    assert job.status == 0


def test_segmentations_that_teach_are_written_in_the_same_way(the_panel, scans, tmp_path, monkeypatch):
    import slicer

    from KnowledgeTransferLib.records.run_directory import RunDirectory
    from KnowledgeTransferSlicer import SceneRuns

    told, run = [], RunDirectory(tmp_path / "run").create()

    @contextlib.contextmanager
    def exporting(total):
        yield lambda name: told.append((name, total))

    for scan in scans:
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", f"drawn on {scan.GetName()}")
        node.SetReferenceImageGeometryParameterFromVolumeNode(scan)
    monkeypatch.setattr(SceneRuns.SceneIO, "exportSegmentation", lambda *_: "")
    cases = {scan.GetName(): scan for scan in scans}
    weights, hints = SceneRuns.withScene({SceneRuns.SCENE: 1.0}, run, cases, exporting)
    assert told == [(f"drawn on {name}", 2) for name in cases] and hints == []
    assert weights == {str(run.path / SceneRuns.DRAWN): 1.0}
