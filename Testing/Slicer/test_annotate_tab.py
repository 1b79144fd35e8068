"""AnnotateTab: scans and teachers are chosen, and the teachers annotate; with the real library."""

import shutil

import numpy as np
from panel_tables import texts

from KnowledgeTransferLib.records.run_directory import RunDirectory


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
