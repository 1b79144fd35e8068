"""Serve: a process that stays warm: requests come in on stdin, one after the other, and find everything loaded."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

from ..learning.predictor import pick_device
from ..learning.preprocessing import Normalisation, Preprocessing
from ..learning.student import Student, new_network
from ..learning.volume import Volume, read_image, write_annotation
from ..records.bundle import CHECKSUMS, METADATA, WEIGHTS, bundle_in
from ..records.labels import Labels
from ..records.progress import Listener, explain, stop_signal
from ..records.run_directory import RunDirectory, append_line, json_text, now
from ..records.students import design_named

DONE, REFUSED = 0, 2  # exit statuses of a request
CLOSED = None  # on the queue: nobody can ask any more
CLOCK_S = 0.05  # a file's time may lie so far behind the clock's
STUDENTS_KEPT = 3
FORM = '{"id": 1, "arguments": ["segment", ...]} with a list of texts'

RunRequest = Callable[[list[str], Listener, float], int]


def serve(folder: Path | str, run_request: RunRequest, *, idle_minutes: float = 10.0, requests: int = 0) -> None:
    """Carry out requests until their stream is closed, or none came for a while.

    A request is a line of JSON, `{"id": 1, "arguments": ["segment", ...]}`, if wanted with `asked`, the time (seconds
    since 1970) from when on a wish to cancel is meant for it. What is told goes to `served.jsonl` of the
    folder, which is begun anew: a line `ready` once everything is loaded, then every event of a request with its `id`,
    and at its end `{"event": "served", "id": 1, "status": 0}`. A file `cancel` in the request's own run directory stops
    it. When the stream is closed, or the process is told to end, the running request is stopped where nothing is lost.

    Args:
        run_request: carries out a command line and returns its exit status; it gets a listener for the events, and the
            time since when a wish to cancel is meant for it. Raises ValueError for what it does not understand.
        requests: file descriptor that the lines are read from.
    """
    run, stop = RunDirectory(folder).create(), stop_signal()
    run.served.unlink(missing_ok=True)
    _warm_up(run.path)
    lines, closed = queue.Queue(), threading.Event()
    # A thread of its own, so that a closed stream is noticed while a request runs. It reads the bare descriptor: one
    # that waits in sys.stdin would be in the way when the process ends.
    listening = threading.Thread(target=_listen, args=(requests, lines, closed, stop), daemon=True)
    listening.start()
    _tell(run, {"event": "ready", "pid": os.getpid()})
    while not stop.is_set() and (received := _next(lines, idle_minutes, stop)) is not CLOSED:
        stop.clear()
        if closed.is_set():
            break
        _answer(run, *received, run_request)
    if closed.is_set():
        listening.join()
    stop.clear()


def keeping(load_student: Callable[[Path, str], Student]) -> Callable[[Path, str], Student]:
    """`load_student` that keeps the students it opened last, until a file of their bundle is changed."""

    @lru_cache(maxsize=STUDENTS_KEPT)
    def kept(folder: Path, device: str, files: tuple) -> Student:
        return load_student(folder, device)

    def open_student(folder: Path | str, device: str = "cpu") -> Student:
        folder = Path(folder).absolute()
        files = [bundle_in(folder) / name for name in (METADATA, WEIGHTS, CHECKSUMS)]
        if not all(file.is_file() for file in files):
            return load_student(folder, device)  # which says what is missing
        return kept(folder, device, tuple((file, *_stamp(file)) for file in files))

    return open_student


def _stamp(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_mtime_ns, found.st_size


def _next(lines: queue.Queue, idle_minutes: float, stop: threading.Event):
    """The next line and when it came; CLOSED when none will come, or none came for too long."""
    stop.set()  # a signal while nothing runs ends the process at once, as a second one does
    try:
        return lines.get(timeout=idle_minutes * 60)
    except queue.Empty:
        return CLOSED


def _listen(descriptor: int, lines: queue.Queue, closed: threading.Event, stop: threading.Event) -> None:
    with contextlib.suppress(OSError):  # there is no stream
        for line in _lines_of(descriptor):
            lines.put((line, time.time()))
    closed.set()
    stop.set()
    lines.put(CLOSED)


def _lines_of(descriptor: int) -> Iterator[bytes]:
    rest = b""
    while block := os.read(descriptor, 1 << 16):
        *whole, rest = (rest + block).split(b"\n")
        yield from (line for line in whole if line.strip())


def _answer(run: RunDirectory, line: bytes, received: float, run_request: RunRequest) -> None:
    """Carry out one request; whatever is wrong with it, the next one is served."""
    request = {}
    try:
        request = _request(line)
        arguments = _arguments(request)
        status = run_request(arguments, lambda event: _tell(run, event, request), _asked(request, received) - CLOCK_S)
    except Exception as error:
        _tell(run, {"event": "error", "text": explain(error)}, request)
        status = REFUSED
    _tell(run, {"event": "served", "status": status}, request)


def _request(line: bytes) -> dict:
    try:
        request = json.loads(line)
    except ValueError as error:
        raise ValueError(f"the request is no JSON: {error}") from error
    if not isinstance(request, dict):
        raise ValueError(f"the request is {request!r}; {FORM} is needed")
    return request


def _asked(request: dict, received: float) -> float:
    """When it was asked for: while this process started, a wish to cancel may have come before the request was read."""
    asked = request.get("asked")
    return min(asked, received) if isinstance(asked, (int, float)) else received


def _arguments(request: dict) -> list[str]:
    arguments = request.get("arguments")
    if not isinstance(arguments, list) or not all(isinstance(argument, str) for argument in arguments):
        raise ValueError(f"the request's arguments are {arguments!r}; {FORM} is needed")
    return arguments


def _tell(run: RunDirectory, event: dict, request: dict | None = None) -> None:
    of_request = {} if request is None else {"id": request.get("id")}
    append_line(run.served, json_text({"time": now(), **event, **of_request}))


def _warm_up(folder: Path) -> None:
    """Do once what is slow the first time: a pass through a small network, a file written and read."""
    labels, design = Labels.unnamed([1]), design_named("tiny")
    preprocessing = Preprocessing(3, (1.0, 1.0, 1.0), (Normalisation("z-score"),))
    student = Student(new_network(design, preprocessing, labels, 0), design, labels, preprocessing)
    student.device, student.footprint = pick_device("auto"), 1.0  # too small a pass for its footprint to matter
    volume = Volume(np.random.default_rng(0).normal(size=(1, 32, 32, 32)).astype(np.float32), np.eye(4), "warm-up")
    file = folder / "warm-up.seg.nrrd"
    try:
        write_annotation(file, student.segment(volume), volume.affine, labels)
        read_image(file)
    finally:
        file.unlink(missing_ok=True)
