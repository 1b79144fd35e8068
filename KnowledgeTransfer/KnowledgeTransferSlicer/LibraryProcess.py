"""LibraryProcess: runs the library as a child process. Events come in by a file, so that a run can outlive Slicer."""

import atexit
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import qt
import slicer

from KnowledgeTransferLib.records.jobs import state_of
from KnowledgeTransferLib.records.run_directory import RunDirectory

from .ChildProcess import Tail, killGroup, lastWords, startChild, stopTree

POLL_MS = 20
GRACE_S = 10  # a step that was asked to stop ends at the next iteration; after that its processes are stopped
GRACE_OF_SIGNAL_S = 5
IDLE_MINUTES = 10
STOPPED = 130  # the exit status of a step that the user stopped


class Job:
    """One step of the library that runs somewhere. `status` is None while it runs, then the step's exit status."""

    def __init__(self, step, run, tail):
        self.step, self.run, self.tail = step, run, tail
        self.log = run.log
        self.status = None
        self.error = ""
        self.problems = []
        self.result = {}  # the event `done`
        self.onEvent = []
        self.onFinished = []
        self.cancelAsked = None
        self._signals = 0

    @property
    def running(self):
        return self.status is None

    def cancel(self):
        """Ask the step to stop; what does not follow within seconds is stopped with all its processes."""
        if self.running and self.cancelAsked is None:
            self.cancelAsked = time.monotonic()
            with contextlib.suppress(OSError):
                self.run.cancel.touch()

    def wait(self):
        """Let Slicer's event loop go on until the step has ended; returns the job.

        Raises:
            RuntimeError: it failed or was stopped.
        """
        while self.running:
            slicer.app.processEvents()
            time.sleep(0.005)
        if self.status not in (0, 1):
            raise RuntimeError(self.error or f"{self.step} was stopped")
        return self

    def poll(self):
        """Take in what is new; to be called often. True while the job runs."""
        ended = self.exitStatus()  # first, so that nothing is written after the last look
        while events := self.tail.read():
            for event in events:
                self.take(event)
            if ended is None:
                break
        if ended is not None:
            self._finish(ended)
        elif self.cancelAsked is not None:
            self._enforce(time.monotonic() - self.cancelAsked)
        return self.running

    def take(self, event):
        kind = event["event"]
        if kind == "error":
            self.error = event.get("text", "")
        elif kind == "problem":
            self.problems.append({"case": event.get("case", ""), "message": event.get("text", "")})
        elif kind == "done":
            self.result = event
        tell(self.onEvent, event)

    def _finish(self, status):
        self.killLeftovers()
        self.status = status
        if status not in (0, 1, STOPPED) and not self.error:
            said = lastWords(self.log)
            self.error = f"The process of {self.step} ended unexpectedly (status {status}){said}; see {self.log}"
        tell(self.onFinished, self)

    def _enforce(self, seconds):
        due = 0 if seconds < GRACE_S else 1 if seconds < GRACE_S + GRACE_OF_SIGNAL_S else 2
        if due > self._signals:
            self._signals = due
            self.stopProcesses(gently=due == 1)

    def exitStatus(self):
        """None while the step runs."""
        raise NotImplementedError

    def stopProcesses(self, gently):
        raise NotImplementedError

    def killLeftovers(self):
        """Processes that the step left behind."""


class OwnJob(Job):
    """A step in a process of its own that this Slicer started; it goes on when Slicer is closed."""

    def __init__(self, step, run, arguments):
        super().__init__(step, run, Tail(run.log))
        self.process = startChild([step, *arguments], run.log)

    def exitStatus(self):
        return self.process.poll()

    def stopProcesses(self, gently):
        stopTree(self.process.pid, gently)

    def killLeftovers(self):
        killGroup(self.process.pid)


class AttachedJob(Job):
    """A step that another process started: an earlier Slicer, or a shell."""

    def __init__(self, run):
        state = state_of(run.path)
        super().__init__(state.step, run, Tail(run.events, state.events_begin))
        self.pid = state.pid

    def exitStatus(self):
        state = state_of(self.run.path)
        if state is not None and state.state == "running":
            self.pid = state.pid
            return None
        return {"done": 0, "cancelled": STOPPED, "failed": 2}.get(state.state if state else "", -1)

    def stopProcesses(self, gently):
        stopTree(self.pid, gently)


class WarmJob(Job):
    """A request to the warm process."""

    def __init__(self, step, run, warm, number):
        super().__init__(step, run, None)
        self.warm, self.number, self.served = warm, number, None
        self.log = warm.log

    def poll(self):
        self.tail = self.warm.tailOf(self.number)
        if super().poll() and self.served is not None:  # the last line of its answer has just been read
            self._finish(self.served)
        return self.running

    def take(self, event):
        if event["event"] == "served":
            self.served = event["status"]
        else:
            super().take(event)

    def exitStatus(self):
        self.warm.read()
        if self.served is not None:
            return self.served
        status = self.warm.exitStatus()
        waiting = self.warm.events.get(self.number)
        if status is None or waiting:
            return None
        return STOPPED if self.cancelAsked is not None else status or -1

    def stopProcesses(self, gently):
        self.warm.stop(gently)


class _Waiting:
    """Events of one request that were read from the warm process and not yet taken."""

    def __init__(self, events):
        self.events = events

    def read(self):
        taken, self.events[:] = list(self.events), []
        return taken


class WarmProcess:
    """The library kept ready between segmentations: `serve` answers one request after the other until it is idle."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="KnowledgeTransfer-"))
        self.log = self.folder / "log.txt"
        self.tail = Tail(self.folder / "served.jsonl", 0)
        self.events = {}
        self.ready = False
        atexit.register(self.close)  # for scripts that never call it
        self.process = startChild(
            ["serve", str(self.folder), "--idle-minutes", str(IDLE_MINUTES)], self.log, stdin=subprocess.PIPE
        )

    def exitStatus(self):
        return self.process.poll()

    def request(self, number, arguments):
        """Raises OSError when the process has ended."""
        line = json.dumps({"id": number, "arguments": [str(a) for a in arguments]}) + "\n"
        self.process.stdin.write(line.encode("utf-8"))
        self.process.stdin.flush()
        self.events[number] = []

    def read(self):
        """Sort what the process said by request."""
        for event in self.tail.read():
            if event["event"] == "ready":
                self.ready = True
            elif event.get("id") in self.events:
                self.events[event["id"]].append(event)

    def tailOf(self, number):
        return _Waiting(self.events.setdefault(number, []))

    def stop(self, gently):
        stopTree(self.process.pid, gently)

    def close(self):
        """End the process: it ends by itself when nobody can ask any more."""
        atexit.unregister(self.close)
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            stopTree(self.process.pid, gently=False)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=2)
        killGroup(self.process.pid)
        shutil.rmtree(self.folder, ignore_errors=True)


class Library:
    """Starts steps, keeps the warm process, and looks at all jobs from Slicer's event loop."""

    def __init__(self):
        self.jobs = []
        self.warm = None
        self._number = 0
        self._timer = qt.QTimer()
        self._timer.setInterval(POLL_MS)
        self._timer.connect("timeout()", self.poll)

    def start(self, step, run, arguments):
        """A step in a process of its own."""
        return self._watch(OwnJob(step, run, [str(a) for a in arguments]))

    def attach(self, runDirectory):
        """Follow a step that another process started, or the job of this Slicer that works in that folder."""
        run = RunDirectory(runDirectory)
        return self.jobIn(run.path) or self._watch(AttachedJob(run))

    def ask(self, step, run, arguments):
        """A step in the warm process."""
        if self.warm is None or self.warm.exitStatus() is not None:
            if self.warm is not None:
                self.warm.close()
            self.warm = WarmProcess()
        self._number += 1
        self.warm.request(self._number, [step, *arguments])
        return self._watch(WarmJob(step, run, self.warm, self._number))

    def jobIn(self, path):
        return next((job for job in self.jobs if job.run.path == Path(path).absolute()), None)

    def poll(self):
        for job in list(self.jobs):
            if not job.poll() and job in self.jobs:
                self.jobs.remove(job)
        if not self.jobs:
            self._timer.stop()

    def close(self, stopRuns=False):
        """Slicer ends: the warm process ends with it, runs go on unless they are to be stopped too."""
        self._timer.stop()
        for job in self.jobs:
            if isinstance(job, OwnJob) and stopRuns:
                job.cancel()
                job.stopProcesses(gently=True)
        self.jobs = []
        if self.warm is not None:
            self.warm.close()
            self.warm = None

    def _watch(self, job):
        self.jobs.append(job)
        self._timer.start()
        return job


def tell(listeners, subject):
    """Call each listener; the error of one is shown as Slicer shows errors of slots, and the others are called."""
    for listener in list(listeners):
        try:
            listener(subject)
        except Exception:
            sys.excepthook(*sys.exc_info())
