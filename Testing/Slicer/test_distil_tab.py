"""DistilTab: a training with its curves, the table of runs, what outlives the panel."""

import subprocess
import sys
from pathlib import Path

import pytest

from KnowledgeTransferLib.records.jobs import state_of
from KnowledgeTransferLib.records.run_directory import RunDirectory, read_json

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def tab(the_panel, an_annotated_run):
    """The tab on the annotated run, which lies in the working folder."""
    the_panel.ui.workingFolderPath.currentPath = str(an_annotated_run.parent)
    the_panel.parameters.device = "cpu"
    the_panel.parameters.distilRun = str(an_annotated_run)
    yield the_panel.distilTab
    for job in the_panel.logic.library.jobs:
        job.cancel()
        job.stopProcesses(gently=True)


def column(table, number) -> list[str]:
    return [table.item(row, number).text() for row in range(table.rowCount)]


def rows_of(curves, name) -> int:
    return curves.tables[name].GetTable().GetNumberOfRows()


def for_epochs(tab, epochs):
    tab.panel.parameters.lengthBy = "epochs"
    tab.panel.parameters.epochs = epochs


def test_a_student_is_distilled_with_its_curves_drawn_live(tab, wait_until):
    ui, panel = tab.ui, tab.panel
    for_epochs(tab, 4)
    assert ui.distilButton.enabled
    ui.distilButton.click()
    assert not ui.distilButton.enabled
    wait_until(lambda: tab.curves.tables and rows_of(tab.curves, "loss") >= 1 and panel.status.job.running, 60)
    assert "left" in ui.statusLabel.text or ui.progressBar.maximum > 0
    assert ui.statusLabel.text.startswith(("Distil: training", "Distil: when to draw"))
    wait_until(lambda: not panel.status.job.running, 120)
    assert panel.status.job.status == 0, panel.status.job.error
    run = RunDirectory(panel.parameters.distilRun)
    history = read_json(run.training)["history"]
    assert rows_of(tab.curves, "loss") == len(history) == 4
    assert rows_of(tab.curves, "Dice") == sum(row["validation_dice"] is not None for row in history) >= 1
    assert tab.curves.view.GetPlotChartNodeID() == tab.curves.chart.GetID()
    assert column(ui.runsTable, 2)[0] == "done"
    assert panel.parameters.bundle == str(run.student)  # ready for the third tab
    settings = read_json(run.settings)["distil"]
    assert settings["epochs"] == 4 and settings["device"] == "cpu" and settings["student"] == "tiny"


def test_all_that_the_panel_offers_reaches_the_library(tab, a_teacher, tmp_path):
    p = tab.panel.parameters
    p.student, p.learnFrom, p.soft, p.seed, p.lengthBy, p.minutes = "small", "both", False, 7, "minutes", 2.5
    tab.ui.decisionSelector.setCurrentIndex(1)
    assert tab.settings() == {
        "student": "small", "annotations": "both", "soft": False, "seed": 7, "device": "cpu", "minutes": 2.5,
        "start_from": "none", "decision": "most-probable",
    }  # fmt: skip
    p.startFrom, p.lengthBy = str(a_teacher), "automatic"
    settings = tab.settings()
    assert settings["start_from"] == str(a_teacher) and "student" not in settings
    assert settings["minutes"] == settings["epochs"] == "none"  # an earlier choice is taken back


def test_each_design_is_offered_with_its_sentence(tab):
    from KnowledgeTransferLib.records.students import STUDENTS

    for index, design in enumerate(STUDENTS.values()):
        tab.ui.studentSelector.setCurrentIndex(index)
        assert tab.panel.parameters.student == design.name
        assert tab.ui.studentSentence.text == design.sentence


def test_a_run_that_a_shell_started_is_found_followed_and_stopped(tab, wait_until, dialogs):
    ui, panel = tab.ui, tab.panel
    path = Path(panel.parameters.distilRun)
    shell = subprocess.Popen(
        [sys.executable, "-m", "KnowledgeTransferLib", "distil", path, "--epochs", "100000", "--device", "cpu"],
        cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until(lambda: (state := state_of(path)) is not None and state.state == "running", 60)
        panel.enter()  # the module is opened again
        assert panel.status.job is not None and panel.status.job.run.path == path
        assert column(ui.runsTable, 2)[0] == "running" and not ui.distilButton.enabled
        wait_until(lambda: tab.curves.tables and rows_of(tab.curves, "loss") >= 2, 60)
        ui.runsTable.selectRow(0)
        ui.stopRunButton.click()
        wait_until(lambda: shell.poll() is not None, 30)
        assert shell.returncode == 130
        wait_until(lambda: not panel.status.job.running)
        tab.showRuns()
        assert column(ui.runsTable, 2)[0] == "cancelled"
        assert dialogs.shown == []
    finally:
        shell.kill()
        shell.wait()


def test_closing_the_panel_leaves_the_run_and_opening_it_finds_it(tab, wait_until):
    import slicer_standin

    panel = tab.panel
    for_epochs(tab, 100000)
    panel.ui.distilButton.click()
    job = panel.status.job
    wait_until(lambda: any(name == "loss" and rows_of(tab.curves, name) for name in tab.curves.tables), 60)
    folder = str(panel.workingFolder)
    slicer_standin.close_panel("KnowledgeTransfer")
    assert job.process.poll() is None
    again = slicer_standin.open_panel("KnowledgeTransfer")
    again.ui.workingFolderPath.currentPath = folder
    again.enter()
    assert again.status.job.run.path == job.run.path and again.status.job.running
    wait_until(lambda: again.distilTab.curves.tables and rows_of(again.distilTab.curves, "loss") >= 1, 60)
    again.ui.cancelButton.click()
    wait_until(lambda: not again.status.job.running and job.process.poll() is not None, 30)
    assert job.process.returncode == 130


def test_the_user_may_want_runs_to_end_with_slicer(tab, wait_until):
    import slicer

    import slicer_standin

    for_epochs(tab, 100000)
    tab.ui.stopWithSlicerCheckBox.checked = True
    tab.ui.distilButton.click()
    slicer.mrmlScene.Clear(0)  # a wish for all scenes
    job = tab.panel.status.job
    wait_until(lambda: tab.curves.tables and rows_of(tab.curves, "loss") >= 1, 60)
    slicer_standin.close_panel("KnowledgeTransfer")
    assert job.process.wait(timeout=30) == 130
    assert job.run.checkpoint.is_file()
    assert slicer_standin.open_panel("KnowledgeTransfer").ui.stopWithSlicerCheckBox.checked


def test_the_scene_may_be_closed_while_the_student_learns(tab, wait_until):
    import slicer

    panel = tab.panel
    for_epochs(tab, 100000)
    tab.ui.distilButton.click()
    job = panel.status.job
    wait_until(lambda: tab.curves.tables and rows_of(tab.curves, "loss") >= 1, 60)
    slicer.mrmlScene.Clear(0)
    assert job.running and panel.parameters is not None
    wait_until(lambda: tab.curves.tables and rows_of(tab.curves, "loss") >= 1, 60)  # drawn in the new scene
    tab.ui.cancelButton.click()
    wait_until(lambda: not job.running, 30)
    assert job.status == 130


def test_a_finished_run_shows_the_curves_that_it_left(tab, wait_until):
    for_epochs(tab, 3)
    tab.ui.distilButton.click()
    wait_until(lambda: not tab.panel.status.job.running, 120)
    tab.curves.clear()
    tab.ui.runsTable.selectRow(0)
    tab.ui.followRunButton.click()
    assert rows_of(tab.curves, "loss") == 3
    tab.ui.useStudentButton.click()
    assert tab.ui.tabs.currentIndex == 2 and tab.ui.segmentButton is not None
    assert tab.panel.parameters.bundle == str(RunDirectory(tab.panel.parameters.distilRun).student)


def test_following_a_run_twice_draws_and_tells_everything_once(tab, wait_until):
    for_epochs(tab, 100000)
    tab.ui.distilButton.click()
    job = tab.panel.status.job
    wait_until(lambda: tab.curves.tables and rows_of(tab.curves, "loss") >= 2, 60)
    listeners = len(job.onEvent)
    tab.ui.runsTable.selectRow(0)
    tab.ui.followRunButton.click()
    tab.ui.followRunButton.click()
    assert len(job.onEvent) == listeners and rows_of(tab.curves, "loss") >= 2  # no point is lost
    tab.ui.cancelButton.click()
    wait_until(lambda: not job.running, 30)
    epochs = [
        tab.curves.tables["loss"].GetTable().GetValue(row, 0).ToDouble() for row in range(rows_of(tab.curves, "loss"))
    ]
    assert len(epochs) == len(set(epochs))


def test_a_training_is_shown_again_when_a_shorter_job_beside_it_has_ended(tab, a_teacher, a_foreign_cohort, wait_until):
    import slicer

    ui, panel = tab.ui, tab.panel
    for_epochs(tab, 100000)
    ui.distilButton.click()
    training = panel.status.job
    wait_until(lambda: ui.progressBar.maximum == 100000, 60)
    scan = slicer.util.loadVolume(str(sorted((a_foreign_cohort / "images").iterdir())[0]))
    panel.parameters.bundle, panel.parameters.segmentVolumes = str(a_teacher), [scan]
    ui.segmentButton.click()
    segmenting = panel.status.job
    assert segmenting.step == "segment"
    wait_until(lambda: not segmenting.running, 60)
    assert panel.status.job is training and training.running
    assert "Segment: done" in ui.logText.plainText
    assert ui.cancelButton.enabled and ui.progressBar.isVisibleTo(ui.progressBar.parentWidget())
    assert ui.progressBar.maximum == 100000  # it is known how far it is
    wait_until(lambda: ui.statusLabel.text.startswith("Distil: train"), 20)
    ui.cancelButton.click()
    wait_until(lambda: not training.running, 30)
    assert training.status == 130 and not ui.cancelButton.enabled


def stopped_with_slicer(tab, wait_until):
    """The training that goes on in the panel is stopped, and Slicer and its scene are closed and opened again."""
    import slicer

    import slicer_standin

    panel, folder = tab.panel, str(tab.panel.workingFolder)
    job = panel.status.job
    panel.ui.cancelButton.click()
    wait_until(lambda: not job.running, 30)
    slicer_standin.close_panel("KnowledgeTransfer")
    for node in slicer.util.getNodesByClass("vtkMRMLScriptedModuleNode"):
        slicer.mrmlScene.RemoveNode(node)
    again = slicer_standin.open_panel("KnowledgeTransfer")
    again.ui.workingFolderPath.currentPath = folder
    again.enter()
    return again


def test_after_a_restart_of_slicer_a_stopped_training_goes_on_with_its_own_settings(tab, wait_until, dialogs):
    tab.panel.parameters.seed, tab.panel.parameters.soft = 7, False
    for_epochs(tab, 100000)
    tab.ui.distilButton.click()
    run = tab.panel.status.job.run
    wait_until(run.checkpoint.is_file, 60)
    panel = stopped_with_slicer(tab, wait_until)
    ui = panel.ui
    assert not ui.continueRunButton.enabled and "Select a run" in ui.continueRunButton.toolTip
    ui.runsTable.selectRow(0)
    assert ui.continueRunButton.enabled and "settings that it was begun with" in ui.continueRunButton.toolTip
    ui.followRunButton.click()
    assert "cancelled" in ui.statusLabel.text and "press Continue" in ui.statusLabel.text
    panel.parameters.distilRun = str(run.path)
    ui.distilButton.click()  # with the settings of a new panel, which are others
    wait_until(lambda: dialogs.shown, 60)
    assert "Press Continue (Runs in the working folder)" in dialogs.shown[0].text
    ui.continueRunButton.click()
    job = panel.status.job
    assert job.step == "distil" and job.running
    assert not ui.continueRunButton.enabled and "Follow shows it" in ui.continueRunButton.toolTip
    wait_until(lambda: "goes on with the training that is there" in ui.logText.plainText, 60)
    ui.cancelButton.click()
    wait_until(lambda: not job.running, 30)
    assert job.status == 130 and len(dialogs.shown) == 1
    settings = read_json(run.settings)["distil"]
    assert (settings["seed"], settings["soft"], settings["epochs"]) == (7, False, 100000)


def test_an_annotation_that_was_stopped_goes_on_and_fills_the_table_of_cases(tab, wait_until):
    ui, panel = tab.ui, tab.panel
    run = RunDirectory(panel.parameters.distilRun)
    lost = sorted(run.pseudo_annotations.glob("*.seg.nrrd"))[0]
    lost.unlink()
    with run.events.open("a", encoding="utf-8") as file:
        file.write('{"event": "cancelled", "text": "stopped"}\n')
    tab.showRuns()
    ui.runsTable.selectRow(0)
    ui.continueRunButton.click()
    job = panel.status.job
    assert job.step == "annotate" and panel.parameters.annotateRunName == run.path.name
    wait_until(lambda: not job.running, 60)
    assert job.status == 0 and lost.is_file() and ui.casesTable.rowCount == 4
    assert not ui.continueRunButton.enabled and "is done" in ui.continueRunButton.toolTip


@pytest.mark.parametrize(
    "state, kept, arguments, again",
    [
        ("interrupted", "before", ("distil", "run", "--restart"), ["run", "--restart"]),  # nothing of it was kept yet
        ("interrupted", "after", ("distil", "run", "--restart"), [None]),
        ("failed", "before", ("distil", "run", "--seed", "1"), [None]),  # refused for other settings
        ("cancelled", "never", ("distil", "run", "--cohort", "experts"), ["run", "--cohort", "experts"]),
        ("interrupted", "never", (), [None]),  # a run of an earlier version
    ],
)
def test_what_goes_on_has_all_that_it_was_begun_with(a_scene, tmp_path, state, kept, arguments, again):
    import os
    from types import SimpleNamespace

    from KnowledgeTransferSlicer.Logic import _argumentsToGoOn

    run = RunDirectory(tmp_path).create()
    for file, seconds in ((run.job, 100), (run.checkpoint, {"before": 50, "after": 150}.get(kept))):
        if seconds:
            file.write_text("{}", encoding="utf-8")
            os.utime(file, (seconds, seconds))
    begun = SimpleNamespace(step="distil", state=state, arguments=arguments)
    assert list(_argumentsToGoOn(run, begun)) == [run.path if part is None else part for part in again]


def test_an_interrupted_run_says_in_words_of_the_panel_what_to_do(a_scene):
    from types import SimpleNamespace

    from KnowledgeTransferLib.records.jobs import INTERRUPTED
    from KnowledgeTransferSlicer.DistilTab import canGoOn, textOf, whatContinueDoes

    for step, can, words in (("distil", True, "press Continue"), ("segment", False, "begin it again")):
        run = SimpleNamespace(step=step, state="interrupted", text=INTERRUPTED)
        assert canGoOn(run) is can and words in textOf(run) and "command" not in textOf(run)
    assert "begin segment again" in whatContinueDoes(run)


def test_a_finished_run_is_not_trained_again_unasked(tab, wait_until, dialogs):
    for_epochs(tab, 1)
    tab.ui.distilButton.click()
    wait_until(lambda: not tab.panel.status.job.running, 60)
    tab.ui.distilButton.click()
    assert "check Begin anew" in dialogs.shown[-1].text
    tab.ui.restartCheckBox.checked = True
    tab.ui.distilButton.click()
    wait_until(lambda: not tab.panel.status.job.running, 60)
    assert tab.panel.status.job.status == 0 and len(dialogs.shown) == 1


def test_a_run_is_opened_for_review_from_the_table(tab):
    tab.ui.runsTable.selectRow(0)
    tab.ui.reviewRunButton.click()
    assert tab.ui.tabs.currentIndex == 0 and tab.ui.casesTable.rowCount == 4


def test_an_emptied_path_is_no_longer_used(tab, a_teacher):
    tab.ui.startFromPath.currentPath = str(a_teacher)
    assert tab.panel.parameters.startFrom == str(a_teacher)
    tab.ui.startFromPath.currentPath = ""
    assert tab.panel.parameters.startFrom == "" and tab.settings()["start_from"] == "none"


def test_what_the_library_refuses_is_shown(tab, wait_until, dialogs):
    for_epochs(tab, 1)
    tab.panel.parameters.learnFrom = (
        "expert"  # the run's own cohort has expert annotations, the student starts elsewhere
    )
    tab.panel.parameters.startFrom = str(tab.panel.workingFolder)
    tab.ui.distilButton.click()
    wait_until(lambda: not tab.panel.status.job.running, 60)
    assert tab.panel.status.job.status == 2
    wait_until(lambda: dialogs.shown)
    assert [shown.kind for shown in dialogs.shown] == ["error"] and "is not a bundle" in dialogs.shown[0].text


def test_the_curves_are_not_saved_with_the_scene(tab):
    tab.curves.show([{"epoch": 1, "loss": 0.5, "validation_dice": 0.7}])
    assert not tab.curves.chart.GetSaveWithScene()
    assert not any(table.GetSaveWithScene() for table in tab.curves.tables.values())
