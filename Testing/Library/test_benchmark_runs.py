"""The runs behind docs/results.md: what they measured is kept, and is not measured again."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "Benchmarks"


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.delitem(sys.modules, "runs", raising=False)
    import runs

    monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(runs, "MEASURED", tmp_path / "measured")
    yield runs
    sys.modules.pop("runs", None)


@pytest.fixture
def a_teacher_and_two_students(runs):
    teacher = runs.Run("teacher", (("distil", "--student", "large"),))
    students = [
        runs.Run(f"student {seed}", (("distil", "--seed", seed), ("evaluate", "--split", "test")), ("teacher",))
        for seed in (0, 1)
    ]
    return [teacher, *students]


def finish(run, dice: float, training_s: float = 55.0) -> None:
    """Leave behind what a run's commands would."""
    case = {"method": "student", "case": "a", "group": "p", "structure": "organ", "hd95_mm": 1.0}
    rows = [{**case, "dice": dice, "expert_volume_ml": 1.5}, {**case, "dice": None, "expert_volume_ml": 0.0}]
    files = {
        "evaluation": {"methods": {"student": {"sha256": {"weights": "a1"}}}, "cases": rows},
        "training": {"epoch": 7, "history": [{"epoch": 8}], "duration_s": training_s},
        "carried_out": {"distil": 60.0, "evaluate": 2.5},
        "begun": {"code": "abc", "machine": "a CPU, 2 cores", "date": "2026-11-30"},
    }
    run.folder.mkdir(parents=True)
    for name, content in files.items():
        (run.folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


def test_a_run_that_was_measured_is_read_back_case_by_case(runs, a_teacher_and_two_students):
    student = a_teacher_and_two_students[1]
    finish(student, dice=0.123456789)
    runs.keep(student)
    record = runs.measured(student)
    assert "cores" in record["machine"]
    assert (record["epoch"], record["epochs"], record["seconds"]) == (7, 8, 62)
    assert record["methods"] == {"student": {"weights": "a1"}}
    assert [row["dice"] for row in record["cases"]] == [0.123457, None]
    assert record["cases"][0]["group"] == "p"


def test_a_training_that_was_stopped_and_went_on_counts_as_a_whole(runs, a_teacher_and_two_students):
    student = a_teacher_and_two_students[1]
    finish(student, dice=0.5, training_s=300.0)
    runs.keep(student)
    assert runs.measured(student)["seconds"] == 302


def test_what_is_not_measured_yet_is_named(runs, a_teacher_and_two_students):
    finish(a_teacher_and_two_students[1], dice=0.5)
    runs.keep(a_teacher_and_two_students[1])
    assert runs.not_measured(a_teacher_and_two_students) == {"student 1": "not yet"}


def test_only_what_is_not_measured_and_what_it_needs_is_to_do(runs, a_teacher_and_two_students):
    teacher, first, second = a_teacher_and_two_students
    assert runs.to_do(a_teacher_and_two_students) == [teacher, first, second]
    for student, left in ((first, [teacher, second]), (second, [])):
        finish(student, dice=0.5)
        runs.keep(student)
        assert runs.to_do(a_teacher_and_two_students) == left


def test_a_record_of_other_commands_does_not_count(runs, a_teacher_and_two_students):
    student = a_teacher_and_two_students[1]
    finish(student, dice=0.5)
    runs.keep(student)
    longer = runs.Run(student.name, (("distil", "--epochs", 9), ("evaluate", "--split", "test")))
    assert runs.measured(student)
    assert runs.measured(longer) is None
