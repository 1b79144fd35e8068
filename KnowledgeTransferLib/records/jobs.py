"""Jobs: what a run directory is doing, or how it ended, seen from outside and without disturbing it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from .bundle import is_bundle
from .run_directory import RunDirectory, read_json

TAIL_BYTES = 1 << 16
ENDS = {"done": "done", "cancelled": "cancelled", "error": "failed"}
INTERRUPTED = "the process ended without a word; the same command goes on where it was"


_ended: dict[Path, tuple] = {}  # runs that have ended: what they looked like then, and their state


@dataclass(frozen=True)
class RunState:
    """A run as a table of runs shows it.

    `state` is running, done, cancelled, failed or interrupted (its process was killed, or the computer went off).
    """

    path: Path
    name: str
    step: str  # annotate, distil, ...; the latest
    state: str
    text: str  # why it ended, or what it is at
    done: int
    total: int  # 0: not known yet
    time_left_s: float | None
    began: str  # ISO 8601, UTC
    pid: int | None
    host: str  # the computer that it runs on
    arguments: tuple[str, ...]  # the same command goes on with it
    events_begin: int  # where the step's events begin in events.jsonl, in bytes
    has_student: bool
    has_annotations: bool
    problems: int  # cases that failed


def runs_in(folder: Path | str) -> list[RunState]:
    """The run directories in a folder, the newest first; what cannot be read is left out.

    Made to be asked every few seconds: of runs that have ended and did not change since, only the folder is listed.
    """
    try:
        with os.scandir(Path(folder).absolute()) as entries:
            folders = [Path(entry) for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
    except OSError:
        return []
    states = [state for state in map(_state_or_none, folders) if state is not None]
    return sorted(states, key=lambda state: (state.began, state.name), reverse=True)


def state_of(path: Path | str) -> RunState | None:
    """The state of a run directory; None where no step has worked. Reads only the end of events.jsonl.

    Raises:
        OSError: it is there but cannot be read.
    """
    run = RunDirectory(path)
    if not (run.job.is_file() or run.events.is_file()):
        return None
    running, job = run.held(), _job(run)  # looked at first: a step tells its end before it lets the run go
    events = _tail(run, job.get("events_before_bytes", 0))
    state = "running" if running else ENDS.get(events[-1]["event"] if events else "", "interrupted")
    if state == "interrupted" and run.held():  # begun this very moment
        state = "running"
    done, total, time_left_s = _progress(events)
    return RunState(
        run.path, run.path.name,
        job.get("step") or _latest(events, "step") or "",
        state, _text(events, state), done, total, time_left_s if state == "running" else None,
        str(job.get("began") or (events[0].get("time", "") if events else "")),
        job.get("pid"), job.get("host", ""), tuple(job.get("arguments", ())), job.get("events_before_bytes", 0),
        is_bundle(run.student), run.annotations.is_file(), _problems(events),
    )  # fmt: skip


def _state_or_none(path: Path) -> RunState | None:
    try:
        stamp, (known_stamp, known) = _stamp(path), _ended.get(path, (None, None))
        if not stamp or stamp == known_stamp:
            return known if stamp else None
        state = state_of(path)
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError):  # not ours to read, or damaged
        return None
    if state is not None and state.state != "running":
        _ended[path] = stamp, state
    return state


def _stamp(path: Path) -> tuple:
    """What differs when a run was touched: each step begins with job.json and ends with a line in events.jsonl.

    One listing of the folder, since it may lie on a slow network drive. Empty where no step has worked.
    """
    run, stamp = RunDirectory(path), {}
    shown, dated = {run.annotations.name, run.student.name}, {run.job.name, run.events.name}
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name in dated:
                found = entry.stat()
                stamp[entry.name] = found.st_mtime_ns, found.st_size
            elif entry.name in shown:
                stamp[entry.name] = None
    return tuple(sorted(stamp.items())) if dated & set(stamp) else ()


def _job(run: RunDirectory) -> dict:
    """What job.json holds; {} for a run of an earlier version, or a damaged file."""
    try:
        job = read_json(run.job)
    except (FileNotFoundError, ValueError):
        return {}
    return job if isinstance(job, dict) else {}


def _tail(run: RunDirectory, begin: int) -> list[dict]:
    """The last events of the latest step, with one at least that tells its progress, where there is one."""
    if not run.events.is_file():
        return []
    with open(run.events, "rb") as file:
        end = file.seek(0, 2)
        begin, size = begin if begin <= end else 0, TAIL_BYTES
        while True:
            start = max(begin, end - size)
            file.seek(start)
            lines = file.read(end - start).split(b"\n")
            events = [event for event in map(_event, lines if start == begin else lines[1:]) if event]
            if start == begin or any("total" in event for event in events):
                return events
            size *= 4


def _event(line: bytes) -> dict | None:
    """None for a line that is cut, or no event."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


def _latest(events: list[dict], name: str):
    return next((event[name] for event in reversed(events) if event.get(name)), None)


def _progress(events: list[dict]) -> tuple[int, int, float | None]:
    for event in reversed(events):
        if "done" in event and "total" in event:  # stage, progress
            return event["done"], event["total"], event.get("time_left_s")
    return 0, 0, None


def _text(events: list[dict], state: str) -> str:
    if state in ("done", "interrupted"):
        return INTERRUPTED if state == "interrupted" else ""
    if state == "running":
        return _latest([event for event in events if event["event"] != "problem"], "text") or ""
    return events[-1].get("text", "")


def _problems(events: list[dict]) -> int:
    """The end lists them all; before it, those that the latest progress counted and those since."""
    since = 0
    for event in reversed(events):
        if isinstance(event.get("problems"), list):
            return len(event["problems"])
        if "problems_so_far" in event:
            return event["problems_so_far"] + since
        since += event["event"] == "problem"
    return since
