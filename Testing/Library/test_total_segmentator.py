"""TotalSegmentator's tasks as teachers, with a stand-in and, where it is installed, with the real one."""

import sys
from pathlib import Path

import numpy as np
import pytest
from foreign_models import a_totalsegmentator_task

from KnowledgeTransferLib.learning.teachers import TotalSegmentatorTask, absolute, kind_of
from KnowledgeTransferLib.learning.volume import Volume
from KnowledgeTransferLib.records.run_directory import read_json
from KnowledgeTransferLib.steps.annotate import annotate
from KnowledgeTransferLib.steps.describe import describe

TASK = Path("totalsegmentator:total")


def a_volume() -> Volume:
    array = np.random.default_rng(0).normal(size=(1, 6, 5, 4)).astype(np.float32)
    return Volume(array, np.diag([-1.0, 2, 3, 1]), "p1")


def test_a_task_is_recognised_by_its_name_and_stays_as_it_is():
    assert kind_of(TASK) is TotalSegmentatorTask
    assert absolute(TASK) == TASK and absolute(Path("folder")).is_absolute()


def test_its_decision_comes_in_the_geometry_of_the_scan(monkeypatch):
    teacher = kind_of(TASK).open(a_totalsegmentator_task(monkeypatch), "cuda", None)
    volume = a_volume()
    found = teacher.predict(volume)
    np.testing.assert_array_equal(found[1], volume.array[0] > 0.5)
    np.testing.assert_array_equal(found[2], volume.array[0] < -0.5)
    np.testing.assert_array_equal(found.sum(0), 1)
    options = sys.modules["totalsegmentator.python_api"].called[0]
    assert (options["task"], options["fast"], options["device"], options["ml"]) == ("total", False, "gpu", True)


def test_the_fast_form_of_a_task_can_be_named(monkeypatch):
    a_totalsegmentator_task(monkeypatch)
    kind_of(TASK).open(Path("totalsegmentator:total:fast"), "cpu", None).predict(a_volume())
    assert sys.modules["totalsegmentator.python_api"].called[0]["fast"] is True


def test_it_neither_downloads_nor_reports_and_leaves_its_interface_as_it_was(monkeypatch):
    a_totalsegmentator_task(monkeypatch)
    interface = sys.modules["totalsegmentator.python_api"]
    before = interface.download_pretrained_weights, interface.send_usage_stats
    kind_of(TASK).open(TASK, "cpu", None).predict(a_volume())  # the stand-in's own functions raise
    assert (interface.download_pretrained_weights, interface.send_usage_stats) == before


def test_missing_weights_are_refused_with_how_to_fetch_them(monkeypatch, tmp_path):
    a_totalsegmentator_task(monkeypatch, weights=tmp_path / "weights")
    with pytest.raises(FileNotFoundError, match="totalseg_download_weights -t TASK"):
        kind_of(TASK).open(TASK, "cpu", None)


def test_an_unknown_task_a_missing_licence_and_a_missing_package_are_told(monkeypatch):
    a_totalsegmentator_task(monkeypatch)
    with pytest.raises(ValueError, match="knows no task 'odd'; known are total"):
        describe("totalsegmentator:odd")

    def needs_a_licence(*_, **__):
        raise SystemExit(1)

    monkeypatch.setattr(sys.modules["totalsegmentator.python_api"], "get_task_config", needs_a_licence)
    with pytest.raises(ValueError, match="has no licence for this task"):
        kind_of(TASK).open(TASK, "cpu", None)
    monkeypatch.setitem(sys.modules, "totalsegmentator.map_to_binary", None)
    with pytest.raises(RuntimeError, match="needs the package TotalSegmentator"):
        describe(str(TASK))


def test_its_prefix_alone_tells_the_tasks_that_can_be_named(monkeypatch):
    a_totalsegmentator_task(monkeypatch)
    found = describe("totalsegmentator:")
    assert found["tasks"] == ["total", "total:fast", "face"]  # neither a part of another task nor one without weights
    for task in found["tasks"]:
        assert describe(f"totalsegmentator:{task}")["structures"]


def test_what_a_task_needs_is_told_before_it_is_used(monkeypatch, tmp_path):
    a_totalsegmentator_task(monkeypatch)
    assert describe(str(TASK))["hint"] == ""
    assert "needs a licence" in describe("totalsegmentator:face")["hint"]
    a_totalsegmentator_task(monkeypatch, weights=tmp_path / "weights")
    for name in (str(TASK), f"{TASK}:fast"):
        assert "totalseg_download_weights -t TASK" in describe(name)["hint"]


def test_annotate_keeps_its_name_and_goes_on_with_it(monkeypatch, tmp_path, a_foreign_cohort):
    a_totalsegmentator_task(monkeypatch)
    annotate(tmp_path / "run", a_foreign_cohort, {str(TASK): 2.0})
    settings = read_json(tmp_path / "run" / "settings.json")["annotate"]
    assert settings["teachers"][0]["path"] == "totalsegmentator:total"
    assert len(annotate(tmp_path / "run")["cases"]) == 4


def test_the_real_package_tells_its_structures_and_downloads_nothing(monkeypatch, tmp_path):
    pytest.importorskip("totalsegmentator", reason="TotalSegmentator is not installed (make teachers)")
    monkeypatch.setenv("TOTALSEG_HOME_DIR", str(tmp_path))
    monkeypatch.setenv("TOTALSEG_WEIGHTS_PATH", str(tmp_path / "weights"))
    names = [structure["name"] for structure in describe(str(TASK))["structures"]]
    assert len(names) > 100 and {"spleen", "kidney right"} <= set(names)
    tasks = describe("totalsegmentator:")["tasks"]
    assert {"total", "total:fast", "lung_vessels"} <= set(tasks) and "test" not in tasks
    assert all("weights are not there" in describe(f"totalsegmentator:{task}")["hint"] for task in tasks)
    with pytest.raises(FileNotFoundError, match="nothing is downloaded by itself"):
        kind_of(TASK).open(TASK, "cpu", None)
    assert not any(tmp_path.rglob("*.zip"))
