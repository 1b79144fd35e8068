"""Teachers: the table of who annotates, their weights and trust, tasks and bare networks; with the real library."""

import json
import os
from pathlib import Path

import pytest
from panel_tables import texts

READ_ONLY = """import pathlib

def refuse(self, *_, **__):
    raise PermissionError(13, "Permission denied", str(self))

pathlib.Path.write_text = refuse
"""  # for the child process; root may write everywhere


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
