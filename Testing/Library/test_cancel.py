"""Cancel: a file, Ctrl-C or a termination stops a step where nothing is lost, and the same command goes on."""

import json
import os
import shutil
import signal
import time

import pytest

from KnowledgeTransferLib import __main__ as command_line
from KnowledgeTransferLib.records.bundle import WEIGHTS, sha256
from KnowledgeTransferLib.records.progress import Cancelled
from KnowledgeTransferLib.records.run_directory import RunDirectory, read_json
from KnowledgeTransferLib.steps.annotate import annotate
from KnowledgeTransferLib.steps.distil import distil

LINE = ("--epochs", 6, "--batch-size", 2, "--spacing-mm", 18, 18, 22)
ASKED = {"epochs": 6, "batch_size": 2, "spacing_mm": (18.0, 18.0, 22.0)}
ENDS = ("done", "cancelled", "error")


@pytest.fixture
def run(an_annotated_run) -> RunDirectory:
    return RunDirectory(an_annotated_run)


@pytest.fixture(scope="session")
def the_digest(the_annotated_run, tmp_path_factory) -> str:
    """sha256 of the weights of a training that nobody stopped."""
    run = RunDirectory(shutil.copytree(the_annotated_run, tmp_path_factory.mktemp("undisturbed") / "run"))
    distil(run, **ASKED)
    return sha256(run.student / WEIGHTS)


@pytest.fixture
def at_event(monkeypatch):
    """`at_event(name, number, action)`: run `action` when the command line tells the n-th event of that name."""

    def arrange(name: str, number: int, action) -> None:
        left, usual = [number], command_line._listener()

        def listen(event: dict) -> None:
            usual(event)
            if event["event"] == name or event.get("name") == name:
                left[0] -= 1
                if left[0] == 0:
                    action()

        monkeypatch.setattr(command_line, "_listener", lambda: listen)

    return arrange


def events_of(run: RunDirectory) -> list[dict]:
    return [json.loads(line) for line in run.events.read_text(encoding="utf-8").splitlines()]


def last_step(events: list[dict]) -> list[dict]:
    """The events of the latest start."""
    begin = max(i for i, event in enumerate(events) if event["event"] == "start")
    return events[begin:]


def signals():
    return [getattr(signal, name) for name in ("SIGINT", "SIGTERM") if hasattr(signal, name)]


def press(number: int = signal.SIGINT) -> None:
    """What the command line does on a signal. (A real one to this process now and then ended the whole test process;
    real ones go to a process of its own, below.)"""
    signal.getsignal(number)(number, None)


@pytest.mark.parametrize("epoch", [1, 4])
def test_a_cancel_file_stops_a_training_which_then_goes_on(run, command, at_event, monkeypatch, the_digest, epoch):
    at_event("metrics", epoch, run.cancel.touch)
    outcome = command("distil", run.path, *LINE)
    assert outcome.status == 130
    assert outcome.events[-1]["event"] == "cancelled"
    assert outcome.events[-1]["text"] == "distil was stopped; the same command goes on where it was"
    assert run.checkpoint.is_file() and not run.student.exists()
    monkeypatch.undo()
    outcome = command("distil", run.path, *LINE)
    assert outcome.status == 0
    assert any(event.get("text") == "goes on with the training that is there" for event in outcome.events)
    assert sha256(run.student / WEIGHTS) == the_digest
    assert not run.cancel.exists()


@pytest.mark.parametrize("stage", ["fingerprint", "prepare"])
def test_a_training_can_be_stopped_before_it_begins(run, command, at_event, monkeypatch, the_digest, stage):
    at_event(stage, 1, run.cancel.touch)
    assert command("distil", run.path, *LINE).status == 130
    monkeypatch.undo()
    assert command("distil", run.path, *LINE).status == 0
    assert sha256(run.student / WEIGHTS) == the_digest


@pytest.mark.parametrize("number", signals())
def test_ctrl_c_and_termination_stop_a_training_which_then_goes_on(
    run, command, at_event, monkeypatch, the_digest, number
):
    at_event("metrics", 3, lambda: press(number))
    outcome = command("distil", run.path, *LINE)
    assert (outcome.status, outcome.events[-1]["event"]) == (130, "cancelled")
    assert "Traceback" not in outcome.text
    assert run.checkpoint.is_file()
    monkeypatch.undo()
    assert command("distil", run.path, *LINE).status == 0
    assert sha256(run.student / WEIGHTS) == the_digest


def test_a_second_ctrl_c_stops_at_once_and_loses_nothing_of_the_checkpoint(
    run, command, at_event, monkeypatch, the_digest
):
    def twice() -> None:
        for _ in range(2):
            press()

    at_event("metrics", 4, twice)
    outcome = command("distil", run.path, *LINE)
    assert outcome.status == 130 and "Traceback" not in outcome.text
    monkeypatch.undo()
    assert command("distil", run.path, *LINE).status == 0
    assert sha256(run.student / WEIGHTS) == the_digest


def test_a_cancel_file_stops_the_annotation_which_then_goes_on(
    command, at_event, the_annotated_run, a_teacher, a_foreign_cohort, tmp_path
):
    run, whole = RunDirectory(tmp_path / "run"), RunDirectory(the_annotated_run)
    line = ("annotate", run.path, "--cohort", a_foreign_cohort, "--teacher", a_teacher)
    at_event("stage", 1, run.cancel.touch)
    outcome = command(*line)
    assert (outcome.status, outcome.events[-1]["event"]) == (130, "cancelled")
    done = {file.name: file.stat().st_mtime_ns for file in run.pseudo_annotations.iterdir()}
    assert len(done) == len(read_json(run.annotations)["cases"]) == 1
    assert command(*line).status == 0
    after = {file.name: file for file in run.pseudo_annotations.iterdir()}
    assert all(after[name].stat().st_mtime_ns == when for name, when in done.items())
    assert all(after[file.name].read_bytes() == file.read_bytes() for file in whole.pseudo_annotations.iterdir())
    assert len(after) == 4


def test_ctrl_c_stops_a_segmentation_between_two_images(command, at_event, a_teacher, a_foreign_cohort, tmp_path):
    at_event("stage", 1, press)
    outcome = command("segment", a_teacher, a_foreign_cohort, tmp_path / "out")
    assert (outcome.status, outcome.events[-1]["event"]) == (130, "cancelled")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"B_001.nrrd", "dataset.json"}


def test_a_cancel_file_from_before_the_start_is_ignored(run, command):
    run.cancel.touch()
    long_ago = time.time() - 7200
    os.utime(run.cancel, (long_ago, long_ago))
    assert command("distil", run.path, *LINE).status == 0
    assert not run.cancel.exists()


def test_a_wish_to_stop_is_over_when_the_step_was_stopped(run, the_digest):
    def stop(event: dict) -> None:
        if event["event"] == "metrics":
            run.cancel.touch()

    with pytest.raises(Cancelled):
        distil(run, **ASKED, listener=stop)
    distil(run, **ASKED)
    assert sha256(run.student / WEIGHTS) == the_digest


def test_every_event_is_a_line_of_json_with_time_left_and_an_end(run, command, at_event, a_teacher, monkeypatch):
    at_event("metrics", 2, run.cancel.touch)
    command("distil", run.path, *LINE)
    monkeypatch.undo()
    cancelled = last_step(events_of(run))
    with pytest.raises(ValueError, match="begun with other settings"):
        distil(run, epochs=7)
    refused = last_step(events_of(run))
    distil(run)
    done = last_step(events_of(run))
    for events, end in ((cancelled, "cancelled"), (refused, "error"), (done, "done")):
        assert [event["event"] for event in events if event["event"] in ENDS] == [end]
        assert events[-1]["event"] == end
    for event in events_of(run):
        assert {"time", "step", "event"} <= set(event)
        assert event["time"].endswith("+00:00")
        if event["event"] == "progress":
            assert event["time_left_s"] >= 0 and 0 < event["done"] <= event["total"]
    told = [event for event in done if event["event"] == "progress" and event["name"] == "train"]
    assert (told[-1]["done"], told[-1]["total"], told[-1]["time_left_s"]) == (12, 12, 0)


@pytest.mark.slow
@pytest.mark.parametrize("number", signals())
def test_a_process_that_gets_a_signal_says_that_it_was_stopped(run, start_process, number):
    process = start_process("distil", run.path, "--epochs", 2000)
    for text in process.stdout:
        if json.loads(text)["event"] == "metrics":
            break
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert json.loads(output.splitlines()[-1])["event"] == "cancelled"
    assert "Traceback" not in output
    assert run.checkpoint.is_file()


@pytest.mark.usefixtures("cores")
def test_annotating_is_stopped_through_the_function_too(the_annotated_run, a_teacher, a_foreign_cohort, tmp_path):
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(Cancelled, match="annotate was stopped"):
        annotate(run, a_foreign_cohort, {str(a_teacher): 1.0}, listener=lambda _: run.cancel.touch())
    assert len(annotate(run)["cases"]) == 4
