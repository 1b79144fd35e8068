"""Serve: requests one after the other in a warm process, which outlives every bad one and ends when nobody asks."""

import json
import os
import queue
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from KnowledgeTransferLib.learning.student import load_student
from KnowledgeTransferLib.records.cohort import read_cohort
from KnowledgeTransferLib.records.progress import Cancelled, Progress, stop_signal
from KnowledgeTransferLib.records.run_directory import RunDirectory, read_json
from KnowledgeTransferLib.steps import serve as step
from KnowledgeTransferLib.steps.serve import keeping, serve

LONG = 60  # s, after which a test gives up


class Client:
    """The other end: sends requests, and reads served.jsonl as it grows."""

    def __init__(self, folder: Path, send, close):
        self.served, self.send_bytes, self.close = RunDirectory(folder).served, send, close
        self.position = 0

    def ask(self, id_, *arguments) -> None:
        self.send(json.dumps({"id": id_, "arguments": [str(argument) for argument in arguments]}))

    def send(self, line: str) -> None:
        self.send_bytes(line.encode() + b"\n")

    def until(self, name: str) -> list[dict]:
        """The events up to the next one of that name."""
        events, end = [], time.monotonic() + LONG
        while time.monotonic() < end:
            for event in self._new():
                events.append(event)
                if event["event"] == name:
                    return events
            time.sleep(0.002)
        raise TimeoutError(f"no event {name}; so far {events}")

    def _new(self):
        if self.served.exists():
            with open(self.served, "rb") as file:
                file.seek(self.position)
                while (line := file.readline()).endswith(b"\n"):
                    self.position = file.tell()
                    yield json.loads(line)


def requested(arguments: list[str], listener, since: float) -> int:
    """Stands for the command line: `error TEXT`, `wait` until it is stopped, else it says what it was asked."""
    if arguments[0] == "error":
        raise ValueError(arguments[1])
    try:
        with Progress("test", listener) as progress:
            progress.message(" ".join(arguments))
            while arguments[0] == "wait":
                progress.check()
                time.sleep(0.002)
            progress.event("done")
    except Cancelled:
        return 130
    return 0


@pytest.fixture
def server(tmp_path, monkeypatch):
    """`serve` in a thread of this process, without the warm-up."""
    monkeypatch.setattr(step, "_warm_up", lambda folder: None)
    reading, writing = os.pipe()
    thread = threading.Thread(target=serve, args=(tmp_path, requested), kwargs={"requests": reading})
    thread.start()
    closed = []
    client = Client(tmp_path, lambda data: os.write(writing, data), lambda: closed or closed.append(os.close(writing)))
    client.thread = thread
    assert client.until("ready")[0]["pid"] == os.getpid()
    yield client
    client.close()
    thread.join(LONG)
    os.close(reading)
    assert not thread.is_alive() and not stop_signal().is_set()


def test_every_event_of_a_request_carries_its_id(server):
    server.ask(7, "hello", "Größe")
    server.ask("b", "again")
    events = [*server.until("served"), *server.until("served")]
    assert [event["id"] for event in events] == [7, 7, 7, "b", "b", "b"]
    assert [event["event"] for event in events] == ["message", "done", "served"] * 2
    assert events[0]["text"] == "hello Größe" and events[2]["status"] == events[5]["status"] == 0
    assert all(event["time"].endswith("+00:00") for event in events)


@pytest.mark.parametrize(
    ("line", "id_", "text"),
    [
        ("fly me", None, "the request is no JSON"),
        ("[1, 2]", None, "the request is [1, 2]"),
        ('{"id": 3}', 3, "arguments are None"),
        ('{"id": 3, "arguments": "segment"}', 3, "arguments are 'segment'"),
        ('{"id": 3, "arguments": ["segment", 5]}', 3, "with a list of texts is needed"),
        ('{"id": 3, "arguments": []}', 3, "unexpected IndexError"),
        ('{"id": 3, "arguments": ["error", "no such student"]}', 3, "no such student"),
    ],
)
def test_a_bad_request_is_answered_and_the_next_one_is_served(server, line, id_, text):
    server.send(line)
    error, served = server.until("served")
    assert (error["event"], error["id"], served["id"], served["status"]) == ("error", id_, id_, 2)
    assert text in error["text"]
    server.ask(4, "hello")
    served = server.until("served")[-1]
    assert (served["id"], served["status"]) == (4, 0)


def test_a_closed_stream_stops_what_runs_and_begins_nothing_more(server):
    server.ask(1, "wait")
    server.ask(2, "hello")
    server.until("message")
    server.close()
    cancelled, served = server.until("served")
    assert (cancelled["event"], served["id"], served["status"]) == ("cancelled", 1, 130)
    server.thread.join(LONG)
    assert "hello" not in server.served.read_text()


def test_nobody_asking_for_a_while_ends_it(tmp_path, monkeypatch):
    monkeypatch.setattr(step, "_warm_up", lambda folder: None)
    reading, writing = os.pipe()
    try:
        began = time.monotonic()
        serve(tmp_path, requested, idle_minutes=0.1 / 60, requests=reading)
        assert 0.1 <= time.monotonic() - began < 5
    finally:
        os.close(writing)
        time.sleep(0.05)
        os.close(reading)
        stop_signal().clear()


def test_waiting_costs_no_work(server):
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.1


def test_a_second_start_begins_the_answers_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(step, "_warm_up", lambda folder: None)
    RunDirectory(tmp_path).served.write_text("old\n")
    reading, writing = os.pipe()
    os.close(writing)
    serve(tmp_path, requested, requests=reading)
    os.close(reading)
    assert [json.loads(line)["event"] for line in RunDirectory(tmp_path).served.read_text().splitlines()] == ["ready"]


def test_a_student_is_kept_until_its_bundle_changes(a_teacher, tmp_path):
    opened, bundle = [], shutil.copytree(a_teacher, tmp_path / "bundle")
    open_student = keeping(lambda folder, device: opened.append(folder) or load_student(folder, device))
    first = open_student(bundle, "cpu")
    assert open_student(str(bundle), "cpu") is first and len(opened) == 1
    os.utime(bundle / "models" / "model.safetensors")
    assert open_student(bundle, "cpu") is not first and len(opened) == 2


def test_a_student_that_is_not_there_is_told_as_always(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a bundle"):
        keeping(load_student)(tmp_path, "cpu")


def test_an_unanswered_line_waits_for_its_end():
    reading, writing = os.pipe()
    lines: queue.Queue = queue.Queue()
    listening = (reading, lines, threading.Event(), threading.Event())
    thread = threading.Thread(target=step._listen, args=listening)
    thread.start()
    os.write(writing, b'{"id": 1, "argu')
    time.sleep(0.02)
    assert lines.empty()
    os.write(writing, b'ments": []}\n\n')
    assert lines.get(timeout=LONG)[0] == b'{"id": 1, "arguments": []}'
    os.close(writing)
    assert lines.get(timeout=LONG) is None
    thread.join()
    os.close(reading)


@pytest.fixture
def a_process(start_process, tmp_path):
    """The real thing, warm."""
    process = start_process("serve", tmp_path / "served", stdin=subprocess.PIPE)

    def send(data: bytes) -> None:
        process.stdin.write(data.decode())
        process.stdin.flush()

    client = Client(tmp_path / "served", send, process.stdin.close)
    client.process = process
    assert client.until("ready")[0]["pid"] == process.pid
    return client


def test_the_real_process_segments_compares_cancels_and_ends(a_process, a_teacher, a_foreign_cohort, tmp_path):
    images = [case.images[0] for case in read_cohort(a_foreign_cohort).cases]
    run = RunDirectory(tmp_path / "run")
    for number in (1, 2):
        a_process.ask(
            number, "segment", a_teacher, images[0], tmp_path / f"{number}.seg.nrrd", "--run", run.path,
        )  # fmt: skip
        events = a_process.until("served")
        assert (events[-1]["status"], events[-2]["event"]) == (0, "done")
        in_file = [json.loads(line) for line in run.events.read_text(encoding="utf-8").splitlines()]
        assert in_file[-len(events) + 1 :] == [{k: v for k, v in e.items() if k != "id"} for e in events[:-1]]
        job = read_json(run.job)
        assert (job["pid"], job["arguments"][:2]) == (a_process.process.pid, ["segment", str(a_teacher)])
    a_process.ask(3, "compare", tmp_path / "1.seg.nrrd", tmp_path / "2.seg.nrrd")
    assert {row["dice"] for row in a_process.until("served")[-2]["structures"]} <= {1.0, None}
    for id_, line, text in (
        (4, ["segment", a_teacher], "the following arguments are required"),
        (5, ["segment", tmp_path, images[0], tmp_path / "x.nrrd"], "is not a bundle"),
        (6, ["serve", tmp_path], "serve is not served; known are"),
        (7, ["segment", a_teacher, images[0], tmp_path / "x.nrrd", "--device", "tpu"], "invalid choice: 'tpu'"),
    ):
        a_process.ask(id_, *line)
        error, served = a_process.until("served")
        assert (served["id"], served["status"]) == (id_, 2) and text in error["text"]
    run.cancel.touch()
    os.utime(run.cancel, (time.time() + 5,) * 2)  # as if made while the request waits
    a_process.ask(8, "segment", a_teacher, *images, tmp_path / "out", "--run", run.path)
    assert a_process.until("served")[-1]["status"] == 130
    a_process.ask(9, "segment", a_teacher, *images, tmp_path / "out", "--run", run.path)
    assert a_process.until("served")[-1]["status"] == 0
    a_process.close()
    assert a_process.process.wait(LONG) == 0
    assert a_process.process.stdout.read() == ""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_real_process_while_it_waits(a_process, number):
    a_process.process.send_signal(number)
    assert a_process.process.wait(LONG) == 130
    assert "Traceback" not in a_process.process.stdout.read()


@pytest.mark.slow
def test_a_closed_stream_stops_a_training_in_the_real_process(a_process, an_annotated_run):
    a_process.ask(1, "distil", an_annotated_run, "--epochs", 2000)
    a_process.until("metrics")
    a_process.close()
    assert a_process.until("served")[-1]["status"] == 130
    assert a_process.process.wait(LONG) == 0
    assert RunDirectory(an_annotated_run).checkpoint.is_file()
