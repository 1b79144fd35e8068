"""Progress: what a step tells the world, as events; time left, problems of single cases, and cancelling."""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from collections.abc import Callable
from pathlib import Path

from .run_directory import append_line, json_text, now

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
Listener = Callable[[dict], None]
STAGES = {  # what a person reads, in the shell and in the panel
    "annotate": "annotating",
    "segment": "segmenting",
    "train": "training",
    "fingerprint": "looking at cases",
    "prepare": "preparing",
    "decide": "when to draw",
    "measure": "measuring",
    "export": "exporting",
    "phantom": "writing cases",
}
_stop = threading.Event()


def stop_signal() -> threading.Event:
    """Set it to ask every step of this process to stop; the command line does so on Ctrl-C."""
    return _stop


# What is in the way of one case, while the others go on; torch tells of too little memory by a RuntimeError.
FAILURES = (ValueError, OSError, RuntimeError, MemoryError)


class Cancelled(Exception):
    """The user asked the step to stop. What was done is kept; the same command goes on from there."""


EXPECTED = (*FAILURES, Cancelled)


class Progress:
    """Sends events (dicts that JSON can hold) to a listener and to `events.jsonl`, and notices a wish to stop.

    Every event has `time` (ISO 8601, UTC), `step` and `event`, one of: start, stage, progress, message, warning,
    problem (one case failed, the others go on), metrics, done, cancelled, error.
    """

    def __init__(
        self,
        step: str,
        listener: Listener | None = None,
        events: Path | None = None,
        cancel_requested: Callable[[], bool] = lambda: False,
    ):
        self.step = step
        self.listener = listener
        self.events = events
        self.cancel_requested = cancel_requested
        self.stop = False
        self.problems: list[dict] = []
        self.left_out: list[dict] = []

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind, error: BaseException | None, traceback) -> None:
        """Tell how the step ended when it did not end well; the error goes on to the caller."""
        if isinstance(error, (Exception, KeyboardInterrupt)):
            stopped = isinstance(error, (Cancelled, KeyboardInterrupt))
            with contextlib.suppress(OSError):  # the disk may be what is wrong
                facts = getattr(error, "facts", {})  # what a listener can act on
                self.event("cancelled" if stopped else "error", text=explain(error), **facts)
            error.told = True

    def event(self, event: str, **fields) -> None:
        record = {"time": now(), "step": self.step, "event": event, **fields}
        try:
            if self.events is not None:
                append_line(self.events, json_text(record))
        finally:
            if self.listener is not None:
                self.listener(record)

    def message(self, text: str) -> None:
        self.event("message", text=text)

    def warning(self, text: str) -> None:
        self.event("warning", text=text)

    def problem(self, case: str, error: Exception | str) -> None:
        """One case failed: say so and remember it; the others go on."""
        text = explain(error) if isinstance(error, Exception) else error
        self.problems.append({"case": case, "message": text})
        self.event("problem", case=case, text=text)

    def leave_out(self, case: str, reason: str) -> None:
        """One case is left out on purpose, by a setting: say why and remember it."""
        self.left_out.append({"case": case, "message": f"is left out: {reason}"})
        self.event("warning", case=case, text=f"{case}: is left out: {reason}")

    def stop_asked(self) -> bool:
        """Whether Ctrl-C was pressed or the run directory holds a file `cancel`."""
        return self.stop or _stop.is_set() or self.cancel_requested()

    def check(self) -> None:
        """Raise Cancelled when the user asked the step to stop."""
        if self.stop_asked():
            raise Cancelled(f"{self.step} was stopped; the same command goes on where it was")

    def stage(self, name: str, total: int, done: int = 0) -> Stage:
        """Begin a part of the step that has `total` units of work, `done` of them before this process began."""
        return Stage(self, name, total, done)


def explain(error: BaseException) -> str:
    """One line on what went wrong, where, and what to do."""
    if isinstance(error, KeyboardInterrupt):
        return "stopped at once; the same command goes on where it was"
    if not isinstance(error, EXPECTED):  # a mistake of ours, whose message means little by itself
        return f"unexpected {type(error).__name__}: {error}"
    if not isinstance(error, OSError) or not error.strerror:
        return str(error) or type(error).__name__
    text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if error.errno in DISK_FULL:
        text += ". Make room and give the same command again; what is done is kept"
    return text


class Stage:
    """A part of a step with a known amount of work; knows how long the rest will take."""

    INTERVAL_S = 0.2  # not more than five events a second

    def __init__(self, progress: Progress, name: str, total: int, done: int):
        self.progress, self.name, self.total, self.done = progress, name, total, done
        self.done_before = done
        self.began = self.told = time.monotonic()
        progress.event("stage", name=name, total=total, done=done)

    def advance(self, by: int = 1, text: str = "", check: bool = True) -> None:
        """Count `by` more units as done, tell it, and stop here (if `check`) when the user asked for it."""
        self.done += by
        moment = time.monotonic()
        if moment - self.told >= self.INTERVAL_S or self.done >= self.total:
            self.told = moment
            left = round(self.time_left_s(moment), 1)
            self.progress.event(
                "progress", name=self.name, done=self.done, total=self.total, time_left_s=left, text=text,
                problems_so_far=len(self.progress.problems),
            )  # fmt: skip
        if check:
            self.progress.check()

    def time_left_s(self, moment: float) -> float:
        finished_here = max(self.done - self.done_before, 1)
        return (moment - self.began) / finished_here * max(self.total - self.done, 0)
