"""Jobs: the state of runs as another process sees it, without disturbing them."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from KnowledgeTransferLib.records import jobs, run_directory
from KnowledgeTransferLib.records.jobs import runs_in, state_of
from KnowledgeTransferLib.records.progress import Cancelled, Progress, stop_signal
from KnowledgeTransferLib.records.run_directory import RunDirectory, commanded, read_json, write_json

REPOSITORY = Path(__file__).parents[2]
WORK_IN_IT = """
import sys, time
from KnowledgeTransferLib.records.progress import Progress
from KnowledgeTransferLib.records.run_directory import RunDirectory
run = RunDirectory(sys.argv[1])
with run.locked("annotate"), Progress("annotate", events=run.events) as progress:
    stage = progress.stage("annotate", 4)
    progress.problem("a", "is empty")
    stage.INTERVAL_S = 0
    stage.advance(text="b")
    print("works", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


@pytest.fixture
def a_working_process(run):
    """Another process that annotates in the run; 1 of 4 cases is done, one failed."""
    command = [sys.executable, "-c", WORK_IN_IT, str(run.path)]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, encoding="utf-8")
    assert process.stdout.readline() == "works\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def work(run: RunDirectory, step: str = "distil", error: BaseException | None = None, units: int = 3, **result) -> None:
    """A step that ends well, or with an error after its first unit."""
    with run.locked(step), Progress(step, events=run.events) as progress:
        stage = progress.stage("train", units)
        stage.INTERVAL_S = 0
        for number in range(units):
            stage.advance(text=f"unit {number}")
            if error:
                raise error
        progress.event("done", **result)


def test_a_folder_in_which_no_step_worked_is_no_run(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert state_of(tmp_path) is None
    assert state_of(tmp_path / "nothing") is None
    assert state_of(tmp_path / "notes.txt") is None


def test_the_job_tells_who_does_what_since_when(run):
    with commanded(["annotate", "my run", "--cohort", "Größe"]), run.locked("annotate"):
        pass
    job = read_json(run.job)
    assert (job["pid"], job["step"], job["events_before_bytes"]) == (os.getpid(), "annotate", 0)
    assert job["arguments"] == ["annotate", "my run", "--cohort", "Größe"]
    assert job["began"].endswith("+00:00") and job["host"]


def test_a_command_line_leaves_its_arguments_in_the_job(command, tmp_path):
    line = ["annotate", str(tmp_path / "run"), "--no-probabilities"]
    assert command(*line).status == 2  # no teacher
    state = state_of(tmp_path / "run")
    assert (state.state, state.step, list(state.arguments)) == ("failed", "annotate", line)
    assert state.text.startswith("no teacher was given")


def test_a_run_in_which_a_process_works_is_running(run, a_working_process):
    state = state_of(run.path)
    assert (state.state, state.step, state.pid) == ("running", "annotate", a_working_process.pid)
    assert (state.done, state.total, state.text, state.problems) == (1, 4, "b", 1)
    assert state.time_left_s is not None and not state.has_student and not state.has_annotations


def test_a_killed_process_leaves_an_interrupted_run_whatever_has_its_pid_now(run, a_working_process):
    a_working_process.send_signal(signal.SIGKILL)
    a_working_process.wait()
    write_json(run.job, read_json(run.job) | {"pid": os.getpid()})  # reused: this process lives
    state = state_of(run.path)
    assert (state.state, state.done, state.problems) == ("interrupted", 1, 1)
    assert state.time_left_s is None and "the same command goes on" in state.text


@pytest.mark.parametrize(
    ("error", "state", "text"),
    [
        (Cancelled("distil was stopped"), "cancelled", "distil was stopped"),
        (KeyboardInterrupt(), "cancelled", "stopped at once; the same command goes on where it was"),
        (ValueError("no such cohort"), "failed", "no such cohort"),
        (ZeroDivisionError("oops"), "failed", "unexpected ZeroDivisionError: oops"),
    ],
)
def test_a_run_tells_how_it_ended(run, error, state, text):
    with pytest.raises(type(error)):
        work(run, error=error)
    found = state_of(run.path)
    assert (found.state, found.text, found.done, found.total) == (state, text, 1, 3)


def test_a_run_that_is_done_counts_the_cases_that_failed(run):
    work(run, problems=[{"case": "a", "message": "is empty"}, {"case": "b", "message": "is empty"}])
    state = state_of(run.path)
    assert (state.state, state.text, state.done, state.total, state.problems) == ("done", "", 3, 3, 2)


def test_the_state_is_that_of_the_latest_step(run):
    work(run, "annotate", problems=[{"case": "a", "message": "is empty"}])
    with run.locked("distil"):
        assert (state_of(run.path).state, state_of(run.path).step) == ("running", "distil")
    state = state_of(run.path)  # killed before it could say anything
    assert (state.state, state.step, state.done, state.problems) == ("interrupted", "distil", 0, 0)


def test_a_run_of_an_earlier_version_has_no_job_but_a_state(run):
    work(run, problems=[])
    run.job.unlink()
    state = state_of(run.path)
    assert (state.state, state.step, state.pid, state.arguments) == ("done", "distil", None, ())
    assert state.began


def test_only_the_end_of_a_long_list_of_events_is_read(run, monkeypatch):
    work(run, units=300, problems=[], files={f"case {n}": "x" * 50 for n in range(300)})
    whole = state_of(run.path)
    monkeypatch.setattr(jobs, "TAIL_BYTES", 2000)  # less than the last line
    assert state_of(run.path) == whole
    assert (whole.done, whole.total) == (300, 300)


def test_problems_are_counted_when_the_first_ones_are_far_back(run, monkeypatch):
    with pytest.raises(Cancelled), run.locked("annotate"), Progress("annotate", events=run.events) as progress:
        stage = progress.stage("annotate", 100)
        stage.INTERVAL_S = 0
        for number in range(50):
            progress.problem(f"case {number}", "is empty")
            stage.advance(text="x" * 200)
        progress.problem("the last", "is empty")
        raise Cancelled("stopped")
    monkeypatch.setattr(jobs, "TAIL_BYTES", 2000)
    assert state_of(run.path).problems == 51


def test_a_half_written_line_is_passed_over(run):
    work(run, problems=[])
    with open(run.events, "ab") as file:
        file.write(b'{"event": "prog')
    assert state_of(run.path).state == "done"


@pytest.mark.parametrize("damage", ["", "{", "[1]", '{"pid": 3}'])
def test_a_damaged_job_is_no_reason_to_fail(run, damage):
    work(run, problems=[])
    run.job.write_text(damage)
    assert state_of(run.path).state == "done"


def test_runs_come_newest_first_and_what_cannot_be_read_is_left_out(tmp_path):
    for name in ("first", "second", "third"):
        work(RunDirectory(tmp_path / name), problems=[])
        time.sleep(0.002)  # times are in ms
    (tmp_path / "no run").mkdir()
    (tmp_path / ".partial-1-x").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "job.json").write_text('{"arguments": 5}')
    assert [state.name for state in runs_in(tmp_path)] == ["third", "second", "first"]
    assert runs_in(tmp_path / "nowhere") == []


def test_a_run_that_has_ended_is_read_again_only_when_something_worked_in_it(run, monkeypatch):
    work(run)
    read = []
    monkeypatch.setattr(jobs, "state_of", lambda path: read.append(path) or state_of(path))
    assert [state.state for state in runs_in(run.path.parent)] == ["done"]
    assert runs_in(run.path.parent) == runs_in(run.path.parent)
    assert len(read) == 1
    with pytest.raises(ValueError):
        work(run, error=ValueError("no"))
    assert [state.state for state in runs_in(run.path.parent)] == ["failed"]
    with run.locked("annotate"):
        assert [state.state for state in runs_in(run.path.parent)] == ["running"]
    assert len(read) == 3


def test_runs_that_have_ended_cost_no_look_at_single_files(run, monkeypatch):
    work(run)
    (run.path.parent / "no run").mkdir()
    before = runs_in(run.path.parent)
    assert [state.has_annotations for state in before] == [False]
    looked, real = [], os.stat
    monkeypatch.setattr(os, "stat", lambda path, **how: looked.append(path) or real(path, **how))
    assert runs_in(run.path.parent) == before
    assert looked == []
    run.annotations.write_text("{}")  # as by a copy from elsewhere
    assert [state.has_annotations for state in runs_in(run.path.parent)] == [True]


def test_a_state_is_plain_data(run, the_annotated_run):
    work(run, problems=[])
    json.dumps(dataclasses.asdict(state_of(run.path)), default=str)
    state = state_of(the_annotated_run)
    assert (state.has_annotations, state.has_student, state.total) == (True, False, 4)


def test_looking_at_a_run_writes_nothing_and_wants_no_lock_file(run):
    work(run, problems=[])
    run.lock_file.unlink()
    before = {file: file.stat().st_mtime_ns for file in run.path.iterdir()}
    state_of(run.path)
    assert {file: file.stat().st_mtime_ns for file in run.path.iterdir()} == before


def test_a_step_that_starts_while_others_look_is_never_refused(run, monkeypatch):
    run.create()
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            run.held()

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(50):
            with run.locked("annotate"):
                assert run.held()
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert not run.held()


def test_a_lock_that_somebody_keeps_is_given_up_after_a_moment(run, monkeypatch):
    monkeypatch.setattr(run_directory, "LOCK_PATIENCE_S", 0.05)
    with run.locked("annotate"), pytest.raises(RuntimeError, match=f"in use by the process {os.getpid()}"):
        RunDirectory(run.path).locked("distil").__enter__()
    assert read_json(run.job)["step"] == "annotate"


def test_a_wish_to_cancel_from_before_the_command_is_ignored_in_an_old_process(run):
    run.create().cancel.touch()
    with commanded(["segment"], since=time.time() + 1), run.locked("segment"):
        assert not run.cancel_requested()
    assert not stop_signal().is_set()


def test_a_run_with_a_hostile_record_does_not_hide_the_others(tmp_path):
    for name in ("bad", "good"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "job.json").write_text('{"step": "distil", "pid": 0}')
    (tmp_path / "bad" / "job.json").write_text("[" * 100_000)
    assert "good" in [state.name for state in runs_in(tmp_path)]
