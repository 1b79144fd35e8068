"""LibraryProcess: the library in child processes: events, the ways to stop, what outlives Slicer, the warm process."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from KnowledgeTransferLib.records.jobs import state_of
from KnowledgeTransferLib.records.run_directory import RunDirectory

pytestmark = pytest.mark.own_warm_process
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
LONG = ["--epochs", "100000", "--device", "cpu", "--patience-epochs", "0"]
DEAF = """
import signal, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('{"event": "message"}', flush=True)
time.sleep(600)
"""


@pytest.fixture
def library(a_scene):
    from KnowledgeTransferSlicer.LibraryProcess import Library

    library = Library()
    yield library
    for job in library.jobs:
        job.cancelAsked = 0.0
        job.stopProcesses(gently=False)
    library.close()


@pytest.fixture
def a_training(library, an_annotated_run, wait_until):
    """A training that goes on for ever, and has begun to learn."""
    job = library.start("distil", RunDirectory(an_annotated_run), [an_annotated_run, *LONG])
    events = collected(job)
    wait_until(lambda: any(event["event"] == "metrics" for event in events) or not job.running, 60)
    assert job.running, job.error
    return job


def collected(job) -> list:
    events = []
    job.onEvent.append(events.append)
    return events


def family(pid) -> list:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def alive(processes) -> list:
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_whole_lines_of_a_growing_file_come_once(tmp_path):
    from KnowledgeTransferSlicer.ChildProcess import Tail

    file = tmp_path / "events.jsonl"
    tail = Tail(file)
    assert tail.read() == []
    file.write_text('{"event": "start"}\nUserWarning: something\n{"event": "sta', encoding="utf-8")
    assert tail.read() == [{"event": "start"}, {"event": "log", "text": "UserWarning: something"}]
    with open(file, "a", encoding="utf-8") as more:
        more.write('ge"}\n')
    assert tail.read() == [{"event": "stage"}]
    assert tail.read() == []


@pytest.mark.parametrize("line", [b"[1]", b'"text"', b"{}", b'{"event": 3}', b"\xff\xfe"])
def test_a_line_that_is_no_event_is_text_for_the_log(line):
    from KnowledgeTransferSlicer.ChildProcess import eventOf

    assert eventOf(line)["event"] == "log"


def test_slicers_environment_is_left_alone_and_the_child_finds_the_library():
    from KnowledgeTransferSlicer.ChildProcess import childEnvironment, pythonExecutable

    before = dict(os.environ)
    environment = childEnvironment(["segment", "C:/Jürgen"])
    assert environment["KT_ARGUMENTS"].isascii() and "J" in environment["KT_ARGUMENTS"]
    assert dict(os.environ) == before
    found = subprocess.run(
        [pythonExecutable(), "-c", "import KnowledgeTransferLib; print(KnowledgeTransferLib.__file__)"],
        env=environment, cwd="/", capture_output=True, encoding="utf-8", check=True,
    )  # fmt: skip
    assert Path(found.stdout.strip()).parents[1] == Path(__file__).parents[2]


def test_a_step_tells_its_events_and_its_end(library, a_foreign_cohort, a_teacher, tmp_path):
    run = RunDirectory(tmp_path / "Löwe mit Leerzeichen").create()
    job = library.start("annotate", run, [run.path, "--cohort", a_foreign_cohort, "--teacher", a_teacher])
    events = collected(job)
    assert job.wait() is job
    assert job.status == 0 and job.result["cases"] == 4 and job.problems == []
    kinds = [event["event"] for event in events]
    assert kinds.count("case") == 4 and kinds[-1] == "done"
    assert library.jobs == []
    assert "annotate" in run.log.read_text(encoding="utf-8")  # the log is kept


def test_a_mistake_of_the_user_comes_as_a_sentence(library, tmp_path):
    run = RunDirectory(tmp_path / "run").create()
    job = library.start("annotate", run, [run.path, "--cohort", tmp_path / "nowhere", "--teacher", tmp_path])
    with pytest.raises(RuntimeError, match="nowhere: there is no such file or folder"):
        job.wait()
    assert job.status == 2


def test_cancel_lets_the_step_end_in_order_and_leaves_no_process(a_training, wait_until):
    processes = family(a_training.process.pid)
    a_training.cancel()
    wait_until(lambda: not a_training.running, 30)
    assert a_training.status == 130 and a_training.run.checkpoint.is_file()
    assert alive(processes) == []
    assert not list(a_training.run.path.rglob(".partial-*"))
    assert not a_training.run.cancel.exists()


@POSIX
def test_a_step_that_does_not_answer_is_stopped_with_all_that_it_started(library, tmp_path, monkeypatch, wait_until):
    from KnowledgeTransferSlicer import Jobs

    monkeypatch.setattr(Jobs, "GRACE_S", 0.2)
    monkeypatch.setattr(Jobs, "GRACE_OF_SIGNAL_S", 0.3)
    monkeypatch.setattr(
        Jobs, "startChild",
        lambda arguments, log: subprocess.Popen(
            [sys.executable, "-c", DEAF], stdout=open(log, "ab"), start_new_session=True  # noqa: SIM115
        ),
    )  # fmt: skip
    job = library.start("distil", RunDirectory(tmp_path).create(), [])
    events = collected(job)
    wait_until(lambda: events and len(family(job.process.pid)) == 2)
    processes = family(job.process.pid)
    job.cancel()
    wait_until(lambda: not job.running, 10)
    assert alive(processes) == []


@POSIX
def test_a_killed_process_is_noticed_and_explained(a_training, wait_until):
    os.kill(a_training.process.pid, signal.SIGKILL)
    wait_until(lambda: not a_training.running, 10)
    assert a_training.status == -signal.SIGKILL
    assert "ended unexpectedly" in a_training.error and str(a_training.run.log) in a_training.error
    assert state_of(a_training.run.path).state == "interrupted"


@POSIX
@pytest.mark.parametrize("cancelled", [False, True])
def test_a_launcher_that_ends_with_1_for_a_crash_is_not_taken_for_a_step_that_is_done(
    library, tmp_path, monkeypatch, wait_until, cancelled
):
    """PythonSlicer does so; 1 of the library itself means done, but some cases failed."""
    crash = tmp_path / "PythonSlicer"
    crash.write_text("#!/bin/sh\nsleep 0.5\necho Killed\nexit 1\n")
    crash.chmod(0o755)
    monkeypatch.setattr("KnowledgeTransferSlicer.ChildProcess.pythonExecutable", lambda: str(crash))
    job = library.start("distil", RunDirectory(tmp_path / "run").create(), [])
    if cancelled:
        job.cancel()
    wait_until(lambda: not job.running, 10)
    assert job.status == (130 if cancelled else -1)
    assert cancelled or "ended unexpectedly (status -1): Killed" in job.error


def test_where_every_case_failed_the_first_one_says_why_and_no_log_is_named_that_is_gone(
    a_scene, tmp_path, monkeypatch
):
    from KnowledgeTransferSlicer import Jobs

    class Ended(Jobs.Job):
        def exitStatus(self):  # noqa: N802
            return self.ends

    for failed, ends, temporary, words in (
        ([], 2, True, "ended unexpectedly (status 2): no word"),
        ([], 2, False, f"ended unexpectedly (status 2): no word; see {tmp_path / 'log.txt'}"),
        (["a"], 2, True, "a: holds nothing"),
        (["a", "b", "c"], 2, False, "a: holds nothing (2 more failed)"),
        (["a"], -9, True, "ended unexpectedly (status -9): no word"),
    ):
        run = RunDirectory(tmp_path)
        run.log.write_text("no word\n", encoding="utf-8")
        job = Ended("segment", run, Jobs.Tail(tmp_path / "none"))
        monkeypatch.setattr(job, "removeTemporary", lambda: None)
        job.ends, job.temporary = ends, temporary
        for case in failed:
            job.take({"event": "problem", "case": case, "text": "holds nothing"})
        job.poll()
        assert job.error.removeprefix("The process of segment ") == words


def test_what_the_library_says_comes_in_the_words_of_the_panel(a_scene, tmp_path):
    import errno

    from KnowledgeTransferLib.records.progress import explain
    from KnowledgeTransferSlicer.Jobs import Job

    job, run = Job("distil", RunDirectory(tmp_path), None), RunDirectory(tmp_path)
    events = collected(job)
    for text in (
        explain(OSError(errno.ENOSPC, "No space left on device", "/data/run")),
        "the loss is no number any more at step 12; try a lower --learning-rate, or 32-true",
        f"{run.path}: is not a bundle of KnowledgeTransfer, from whose weights a training could start (--from). A "
        "student learns from other models, and from annotations, by `annotate --teacher`",
        "CT: holding its 5 class probabilities needs 9.00 GiB; close other programs; `segment` needs none",
        "nothing names the structures; put a dataset.json beside the cohort or give --labels",
        "2 annotations or corrections are newer than this student; --restart learns them too",
        "the weights were kept. More annotated patients, or a lower --learning-rate, may help",
    ):
        job.take({"event": "warning", "text": text})
        job.take({"event": "problem", "case": "CT", "text": text})
        job.take({"event": "error", "text": text})
        job.take({"event": "done", "hint": text})
        for said in (
            events[-1]["hint"],
            events[-4]["text"],
            job.error,
            job.problems[-1]["message"],
            job.result["hint"],
        ):
            assert not any(word in said for word in ("--", "`", "command", "32-true")), said
    assert "Make room and begin it again" in events[0]["text"]


@POSIX
def test_a_run_goes_on_when_slicer_ends_and_is_found_again(library, a_training, wait_until):
    library.close()
    assert a_training.process.poll() is None and state_of(a_training.run.path).state == "running"

    from KnowledgeTransferSlicer.LibraryProcess import Library

    other = Library()
    job = other.attach(a_training.run.path)
    events = collected(job)
    wait_until(lambda: any(event["event"] == "metrics" for event in events))
    job.cancel()
    wait_until(lambda: not job.running, 30)
    assert job.status == 130
    a_training.process.wait(timeout=10)
    other.close()


def test_a_run_ends_with_slicer_when_the_user_wants_that(library, a_training):
    library.close(stopRuns=True)
    assert a_training.process.wait(timeout=30) == 130
    assert a_training.run.checkpoint.is_file()


@POSIX
@pytest.mark.parametrize("stops", [False, True])
def test_a_job_that_goes_on_when_slicer_ends_keeps_its_temporary_folder(library, tmp_path, monkeypatch, stops):
    from KnowledgeTransferSlicer import Jobs, Logic

    monkeypatch.setattr(Jobs, "startChild", lambda *_: subprocess.Popen(["sleep", "600"], start_new_session=True))
    monkeypatch.setattr(Logic.tempfile, "gettempdir", lambda: str(tmp_path))
    run = RunDirectory(tmp_path / f"{Logic.TEMPORARY}1").create()
    job = library.start("annotate", run, [])
    job.temporary = True
    library.close(stopRuns=stops)
    assert run.path.exists() is not stops
    if not stops:
        assert job.running and job.poll()
        with run.locked():
            os.utime(run.path, (0, 0))
            Logic.removeStaleFolders()
            assert run.path.exists(), "somebody works in it"
        os.utime(run.path, (0, 0))
        Logic.removeStaleFolders()
        assert not run.path.exists()
    os.killpg(job.process.pid, signal.SIGKILL)
    job.process.wait()


def test_two_starts_in_one_run_are_refused_by_the_library_too(library, a_training, wait_until):
    second = library.start("distil", RunDirectory(a_training.run.path), [a_training.run.path, *LONG])
    wait_until(lambda: not second.running, 30)
    assert second.status == 2 and "is in use by the process" in second.error
    assert a_training.running


def test_the_warm_process_answers_one_request_after_the_other(library, a_teacher, tmp_path):
    run = RunDirectory(tmp_path / "run").create()
    first = library.ask("describe", run, [a_teacher]).wait()
    assert "liver" in [structure["name"] for structure in first.result["structures"]]
    warm = library.warm.process.pid  # of the process that has imported everything
    second = library.ask("describe", run, [a_teacher]).wait()
    assert second.result["structures"] == first.result["structures"]
    assert library.warm.process.pid == warm


def test_a_bad_request_leaves_the_warm_process_alive(library, a_teacher, tmp_path):
    run = RunDirectory(tmp_path / "run").create()
    bad = library.ask("describe", run, [tmp_path / "nothing here"])
    with pytest.raises(RuntimeError, match="nothing here"):
        bad.wait()
    assert library.ask("describe", run, [a_teacher]).wait().status == 0


@POSIX
def test_a_warm_process_that_died_is_noticed_and_replaced(library, a_teacher, tmp_path):
    run = RunDirectory(tmp_path / "run").create()
    library.ask("describe", run, [a_teacher]).wait()
    dead = library.warm.process
    job = library.ask("describe", run, [a_teacher])
    os.kill(dead.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError):
        job.wait()
    assert library.ask("describe", run, [a_teacher]).wait().status == 0
    assert library.warm.process.pid != dead.pid


def test_the_warm_process_and_its_folder_are_gone_with_slicer(library, a_teacher, tmp_path):
    library.ask("describe", RunDirectory(tmp_path / "run").create(), [a_teacher]).wait()
    processes, folder = family(library.warm.process.pid), library.warm.folder
    library.close()
    assert alive(processes) == [] and not folder.exists()


def test_a_request_that_waits_is_cancelled_alone(library, a_teacher, tmp_path, monkeypatch, wait_until):
    from KnowledgeTransferSlicer import Jobs

    monkeypatch.setattr(Jobs, "GRACE_S", 0.1)
    runs = [RunDirectory(tmp_path / name).create() for name in ("first", "second")]
    first = library.ask("phantom", runs[0], [tmp_path / "phantom", "--cases", "12"])
    second = library.ask("segment", runs[1], [a_teacher, tmp_path / "phantom", tmp_path / "out", "--run", runs[1].path])
    second.cancel()
    wait_until(lambda: not first.running and not second.running, 90)
    assert first.status == 0, first.error
    assert second.status in (130, 2) and library.warm.exitStatus() is None


def test_a_listener_may_start_and_wait_for_another_job(library, a_teacher, tmp_path):
    run = RunDirectory(tmp_path / "run").create()
    ends = []

    def and_then(job):
        ends.append(job.status)
        ends.append(library.ask("describe", run, [a_teacher]).wait().status)

    job = library.ask("describe", run, [a_teacher])
    job.onFinished.append(and_then)
    job.wait()
    assert ends == [0, 0] and library.jobs == []


def test_a_run_of_another_computer_gets_a_wish_but_no_signal(a_training, monkeypatch, wait_until):
    from KnowledgeTransferSlicer import Jobs

    job = Jobs.AttachedJob(a_training.run)
    monkeypatch.setattr(Jobs.socket, "gethostname", lambda: "elsewhere")
    job.stopProcesses(gently=False)
    assert a_training.process.poll() is None
    job.cancel()
    assert a_training.run.cancel.exists() or a_training.process.poll() is not None
    a_training.process.wait(timeout=30)


def test_an_error_in_one_listener_reaches_slicer_and_stops_nothing(library, a_teacher, tmp_path, slot_errors):
    job = library.ask("describe", RunDirectory(tmp_path / "run").create(), [a_teacher])
    events = []
    job.onEvent += [lambda event: 1 / 0, events.append]
    job.wait()
    assert events and all(isinstance(error, ZeroDivisionError) for error in slot_errors)
    assert len(slot_errors) == len(events)
    slot_errors.clear()


def test_events_of_a_job_json_name_what_to_attach_to(a_training):
    job = json.loads((a_training.run.path / "job.json").read_text(encoding="utf-8"))
    assert job["pid"] == a_training.process.pid and job["step"] == "distil"
