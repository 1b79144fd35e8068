"""Widget: parameter node and widgets both ways, settings, saved scenes, and that the event loop is never held up."""

import sys

import pytest


@pytest.fixture
def ui(the_panel):
    return the_panel.ui


def test_widgets_follow_the_parameter_node(the_panel, ui, a_volume):
    p, volume = the_panel.parameters, a_volume(name="scan")
    p.annotateFrom, p.annotateCohort, p.uncertainty, p.annotateRunName = "disk", "/data/cohort", True, "night"
    p.annotateVolumes = [volume]
    assert ui.annotateCohortRadio.checked and ui.annotateCohortPath.currentPath == "/data/cohort"
    assert ui.uncertaintyCheckBox.checked and ui.annotateRunName.text == "night"
    assert list(ui.annotateVolumesSelector.checkedNodes()) == [volume]
    p.distilRun, p.lengthBy, p.epochs, p.student, p.learnFrom = "/data/run", "epochs", 12, "small", "both"
    assert ui.distilRunPath.currentPath == "/data/run" and ui.epochsSpinBox.value == 12
    assert ui.studentSelector.currentIndex == 1 and ui.learnFromSelector.currentText == "Both"
    assert ui.epochsSpinBox.isVisibleTo(ui.distilTab) and not ui.minutesSpinBox.isVisibleTo(ui.distilTab)
    p.segmentFrom, p.segmentInput, p.segmentOutput, p.overwrite = "disk", "/data/in", "/data/out", True
    assert ui.segmentFolderRadio.checked and ui.segmentFolderPath.currentPath == "/data/in"
    assert ui.segmentOutputPath.currentPath == "/data/out" and ui.overwriteCheckBox.checked


def test_the_parameter_node_follows_the_widgets(the_panel, ui, a_volume):
    p, volume = the_panel.parameters, a_volume(name="scan")
    ui.annotateVolumesSelector.check(volume)
    assert list(p.annotateVolumes) == [volume]
    ui.annotateVolumesSelector.uncheck(volume)
    assert list(p.annotateVolumes) == []
    ui.annotateCohortRadio.click()
    ui.annotateCohortPath.currentPath = "/data/cohort"
    assert p.annotateFrom == "disk" and p.annotateCohort == "/data/cohort"
    ui.learnFromSelector.setCurrentIndex(1)
    ui.lengthSelector.setCurrentIndex(1)
    ui.minutesSpinBox.value = 12.5
    ui.softCheckBox.checked = False
    ui.seedSpinBox.value = 3
    assert (p.learnFrom, p.lengthBy, p.minutes, p.soft, p.seed) == ("expert", "minutes", 12.5, False, 3)
    ui.deviceSelector.setCurrentIndex(3)
    assert p.device == "cpu"


def test_a_scene_that_was_saved_and_loaded_brings_everything_back(the_panel, ui, a_volume, tmp_path):
    import slicer

    a_volume(name="first")
    second = a_volume(name="second")
    p = the_panel.parameters
    p.segmentVolumes, p.annotateRunName, p.epochs, p.bundle = [second], "night", 33, str(tmp_path)
    p.teacherPaths, p.teacherWeights = ["/a/teacher", "scene:"], [1.0, 2.5]
    slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    slicer.mrmlScene.Clear(0)
    assert the_panel.parameters.annotateRunName == "" and list(the_panel.parameters.segmentVolumes) == []
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    p = the_panel.parameters
    assert [node.GetName() for node in p.segmentVolumes] == ["second"]
    assert (p.annotateRunName, p.epochs, p.bundle) == ("night", 33, str(tmp_path))
    assert p.teacherPaths == ["/a/teacher", "scene:"] and list(p.teacherWeights) == [1.0, 2.5]
    assert ui.annotateRunName.text == "night"
    assert [node.GetName() for node in ui.segmentVolumesSelector.checkedNodes()] == ["second"]


def test_folders_and_device_are_kept_for_the_next_start(the_panel, ui, tmp_path):
    import slicer_standin

    ui.workingFolderPath.currentPath = str(tmp_path / "runs")
    ui.deviceSelector.setCurrentIndex(3)
    ui.deviceSelector.activated.emit(3)  # as when the user chose it
    slicer_standin.close_panel("KnowledgeTransfer")
    import slicer

    for node in slicer.util.getNodesByClass("vtkMRMLScriptedModuleNode"):
        slicer.mrmlScene.RemoveNode(node)
    again = slicer_standin.open_panel("KnowledgeTransfer")
    assert again.ui.workingFolderPath.currentPath == str(tmp_path / "runs")
    assert again.parameters.device == "cpu" and again.ui.deviceSelector.currentIndex == 3


def test_a_developer_can_reload_the_module(the_panel, monkeypatch):
    import slicer

    for name in [name for name in sys.modules if name.startswith("KnowledgeTransfer")]:
        monkeypatch.setitem(sys.modules, name, sys.modules[name])  # comes back for the tests after this one
    old = type(the_panel)
    the_panel.onReload()
    new = slicer.modules.KnowledgeTransferWidget
    assert type(new) is not old and new.parameters is not None
    new.enter()


def test_nothing_is_made_on_disk_before_something_is_asked_for(the_panel, tmp_path):
    the_panel.ui.workingFolderPath.currentPath = str(tmp_path / "not there yet")
    the_panel.enter()
    assert not (tmp_path / "not there yet").exists()


def test_the_module_can_be_left_entered_and_closed_at_any_time(the_panel):
    import slicer

    the_panel.exit()
    slicer.mrmlScene.Clear(0)
    the_panel.enter()
    assert the_panel.parameters is not None
    the_panel.enter()


def test_the_event_loop_is_not_held_up_while_the_library_works(
    the_panel, app, a_foreign_cohort, a_teacher, tmp_path, wait_until
):
    import qt
    import slicer

    the_panel.parameters.device = "cpu"
    the_panel.ui.workingFolderPath.currentPath = str(tmp_path)
    scan = slicer.util.loadVolume(str(sorted((a_foreign_cohort / "images").iterdir())[0]))
    the_panel.parameters.segmentVolumes = [scan]
    the_panel.segmentTab.choose(str(a_teacher))
    ticks, timer = [], qt.QTimer()
    timer.connect("timeout()", lambda: ticks.append(the_panel.status.job.running))
    the_panel.ui.segmentButton.click()
    job = the_panel.status.job
    assert job.running  # the click came back before the work was done
    timer.start(0)  # in every round of the event loop; how long a round takes at most is in docs/benchmarks_slicer.md
    wait_until(lambda: not job.running, 60)
    timer.stop()
    assert job.status == 0 and any(ticks)


def test_tooltips_name_every_kind_of_teacher_and_what_is_written_elsewhere(ui):
    kinds = ("made by KnowledgeTransfer", "run folder", "MONAI Bundle", "nnU-Net v2", "Auto3DSeg", "segmentations")
    assert all(kind in ui.addTeacherFolderButton.toolTip for kind in kinds)
    assert "nothing is written elsewhere" not in ui.workingFolderPath.toolTip
    assert all(word in ui.workingFolderPath.toolTip for word in ("KnowledgeTransfer/results", "temporary", "Segment"))


def test_many_runs_on_a_slow_drive_are_looked_at_less_often(the_panel, monkeypatch):
    import time

    from KnowledgeTransferSlicer.Widget import REFRESH_MS, refreshAfterMs

    assert [refreshAfterMs(seconds) for seconds in (0, 0.099, 0.5, 100)] == [REFRESH_MS, REFRESH_MS, 10_000, 60_000]
    monkeypatch.setattr(the_panel.distilTab, "showRuns", lambda: time.sleep(0.2))
    the_panel.refresh()
    assert the_panel._refreshTimer.interval >= 4000
    monkeypatch.undo()
    the_panel.refresh()
    assert the_panel._refreshTimer.interval == REFRESH_MS


@pytest.mark.parametrize("seconds, text", [(0, "0 s"), (59.7, "1 min 0 s"), (61, "1 min 1 s"), (3725, "1 h 2 min")])
def test_waiting_times_are_told_as_people_do(a_scene, seconds, text):
    from KnowledgeTransferSlicer.Status import duration

    assert duration(seconds) == text


def test_an_exception_in_a_slot_is_not_lost(the_panel, slot_errors):
    the_panel.ui.cancelButton.connect("clicked()", lambda: 1 / 0)
    the_panel.ui.cancelButton.enabled = True
    the_panel.ui.cancelButton.click()
    assert [type(error) for error in slot_errors] == [ZeroDivisionError]
    slot_errors.clear()


def test_the_sample_data_are_made_here_and_loaded(the_panel, tmp_path, monkeypatch):
    from types import ModuleType, SimpleNamespace

    registered = {}
    sample_data = ModuleType("SampleData")
    sample_data.SampleDataLogic = SimpleNamespace(registerCustomSampleDataSource=lambda **what: registered.update(what))
    monkeypatch.setitem(sys.modules, "SampleData", sample_data)
    import KnowledgeTransfer
    from KnowledgeTransferSlicer import SampleScans

    KnowledgeTransfer.registerSampleData()
    monkeypatch.setattr(SampleScans, "CASES", 2)
    the_panel.ui.workingFolderPath.currentPath = str(tmp_path)
    volume = registered["customDownloader"](None)
    assert volume.GetImageData() is not None
    assert (tmp_path / "phantom hospital A" / "labels").is_dir()
