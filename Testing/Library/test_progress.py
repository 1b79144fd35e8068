"""Progress: events as dicts and JSON lines, time left, problems of cases, cancelling."""

import json

import pytest

from KnowledgeTransferLib.records.progress import Cancelled, Progress, Stage


@pytest.fixture
def told() -> list[dict]:
    return []


def test_events_go_to_the_listener_and_the_file_in_the_same_words(tmp_path, told):
    progress = Progress("annotate", told.append, tmp_path / "events.jsonl")
    progress.message("Größe: 5 mm")
    progress.event("metrics", dice=0.5, file=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["text"] for line in lines if "text" in line] == ["Größe: 5 mm"]
    assert [event["event"] for event in told] == [line["event"] for line in lines] == ["message", "metrics"]
    assert all({"time", "step", "event"} <= set(line) for line in lines)


def test_events_of_a_resumed_run_are_appended(tmp_path):
    for _ in range(2):
        Progress("distil", events=tmp_path / "events.jsonl").message("once more")
    assert len((tmp_path / "events.jsonl").read_text().splitlines()) == 2


def test_a_stage_tells_its_last_unit_even_when_all_is_quick(told):
    stage = Progress("segment", told.append).stage("cases", total=3)
    for _ in range(3):
        stage.advance()
    assert told[0]["event"] == "stage"
    assert (told[-1]["done"], told[-1]["total"], told[-1]["time_left_s"]) == (3, 3, 0)


def test_no_more_than_a_few_events_a_second(told):
    stage = Progress("distil", told.append).stage("iterations", total=10_000)
    for _ in range(9_999):
        stage.advance()
    assert len(told) < 20


def test_time_left_counts_only_what_this_process_did():
    stage = Progress("distil").stage("iterations", total=100, done=90)
    stage.advance(5)
    assert stage.time_left_s(stage.began + 10) == pytest.approx(10)


def test_a_stage_without_work_is_no_error(told):
    stage = Stage(Progress("annotate", told.append), "cases", total=0, done=0)
    assert stage.time_left_s(stage.began) == 0


def test_a_problem_of_one_case_is_remembered_with_a_text(told):
    progress = Progress("annotate", told.append)
    progress.problem("a", ValueError("is empty"))
    progress.problem("b", MemoryError())
    assert progress.problems == [{"case": "a", "message": "is empty"}, {"case": "b", "message": "MemoryError"}]
    assert [event["event"] for event in told] == ["problem", "problem"]


@pytest.mark.parametrize("how", ["signal", "file"])
def test_a_wish_to_stop_is_noticed_at_the_next_unit_which_still_counts(tmp_path, how):
    cancel = tmp_path / "cancel"
    progress = Progress("distil", cancel_requested=cancel.exists)
    stage = progress.stage("iterations", total=3)
    stage.advance()
    if how == "signal":
        progress.stop = True
    else:
        cancel.touch()
    with pytest.raises(Cancelled, match="distil was stopped; the same command goes on"):
        stage.advance()
    assert stage.done == 2
