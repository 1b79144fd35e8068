"""Jobs: a step of the library that runs in another process, whoever started it: events, the end, three ways to stop."""

import contextlib
import shutil
import socket
import sys
import time

import slicer
from slicer.i18n import tr as _

from KnowledgeTransferLib.records.jobs import state_of

from .ChildProcess import Tail, killGroup, lastWords, startChild, stopTree
from .Words import eventInWordsOfThePanel, inWordsOfThePanel

GRACE_S = 10  # a step that was asked to stop ends at the next iteration; after that its processes are stopped
GRACE_OF_SIGNAL_S = 5
LOOK_S = 0.5  # between two looks at whether a run of another process still goes on
READ_S = 0.1  # between two looks at what a run wrote, which may lie on a network drive
DONE = (0, 1)  # exit statuses of a step that came to its end: all cases, or all but some
NOTHING_DONE = 2  # the exit status of a step that could not be carried out, or of whose cases all failed
STOPPED = 130  # the exit status of a step that the user stopped


class Job:
    """One step of the library that runs somewhere. `status` is None while it runs, then the step's exit status."""

    read_s = READ_S

    def __init__(self, step, run, tail):
        self.step, self.run, self.tail = step, run, tail
        self.log = run.log
        self.status = None
        self.error = ""
        self.failure = {}  # the event `error`
        self.problems = []
        self.result = {}  # the event `done`
        self.onEvent = []
        self.onFinished = []
        self.cancelAsked = None
        self.temporary = False  # whether the run directory is removed at the end
        self.folder = run.path  # where its results lie
        self.nodes = []  # that came into the scene
        self.places = {}  # id of a volume -> where it lay when it was written
        self.names = {}  # file that was written for the library -> name of the node, by which the user knows it
        self.hints = []  # what is good to know
        self.lost = []  # results whose scan is no longer in the scene
        self._signals = 0
        self._polling = False
        self._read = 0.0

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
            self.poll()  # Qt holds back the timer while a listener, whom it called, waits
            time.sleep(0.005)
        if self.status not in DONE:
            raise RuntimeError(self.error or _("{step} was stopped").format(step=self.step))
        return self

    def poll(self):
        """Take in what is new; to be called often. True while the job runs."""
        if self._polling or not self.running:  # a listener lets the event loop go on, in a dialog for one
            return self.running
        self._polling = True
        try:
            self._look()
        finally:
            self._polling = False
        return self.running

    def _look(self):
        ended = self.exitStatus()  # first, so that nothing is written after the last look
        if ended is not None or time.monotonic() - self._read >= self.read_s:
            self._takeNews(ended is not None)
        if ended is not None:
            self._finish(ended)
        elif self.cancelAsked is not None:
            self._enforce(time.monotonic() - self.cancelAsked)

    def _takeNews(self, everything):
        """Take in what was written since the last look: a block of it, or everything."""
        self._read = time.monotonic()
        while events := self.tail.read():
            for event in events:
                self.take(event)
            if not everything:
                break

    def take(self, event):
        event = eventInWordsOfThePanel(event, self.names)
        kind = event["event"]
        if kind == "error":
            self.error, self.failure = event.get("text", ""), event
        elif kind == "problem":
            self.problems.append({"case": event.get("case", ""), "message": event.get("text", "")})
        elif kind == "done":
            self.result = event
        tell(self.onEvent, event)

    def _finish(self, status):
        self.killLeftovers()
        if status in DONE and not self.saidDone():
            status = -1  # PythonSlicer, a launcher, ends with 1 also when the Python below it crashed or was killed
        self.status = STOPPED if self.cancelAsked is not None and status not in (*DONE, NOTHING_DONE) else status
        if self.status not in (*DONE, STOPPED) and not self.error:
            self.error = inWordsOfThePanel(self._whyFailed(status))
        self.removeTemporary()
        tell(self.onFinished, self)

    def _whyFailed(self, status):
        """Why the only case failed, or the first of all; else what is known of a process that broke off."""
        if self.problems and status == NOTHING_DONE:
            others = len(self.problems) - 1
            more = _(" ({number} more failed)").format(number=others) if others else ""
            return "{case}: {message}".format(**self.problems[0]) + more
        kept = not self.temporary and self.log == self.run.log
        see = _("; see {log}").format(log=self.log) if kept else ""
        text = _("The process of {step} ended unexpectedly (status {status})").format(step=self.step, status=status)
        return text + lastWords(self.log) + see

    def saidDone(self):
        """Whether the step told that it came to its end."""
        return bool(self.result)

    def removeTemporary(self):
        if self.temporary:
            shutil.rmtree(self.run.path, ignore_errors=True)

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
        super().__init__(state.step, run, Tail(run.events))
        self._state, self._looked = state, time.monotonic()

    def exitStatus(self):
        if time.monotonic() - self._looked < LOOK_S:  # it may lie on a slow network drive
            return None
        self._looked, state = time.monotonic(), state_of(self.run.path)
        if state is not None and state.state == "running":
            self._state = state
            return None
        return {"done": 0, "cancelled": STOPPED, "failed": 2}.get(state.state if state else "", -1)

    def saidDone(self):
        return True  # so the run itself says; this job may have come too late for the event

    def stopProcesses(self, gently):
        """Of another computer's run only the file `cancel` can be written."""
        if self._state.host == socket.gethostname() and self._state.pid:
            stopTree(self._state.pid, gently)


def tell(listeners, subject):
    """Call each listener; the error of one is shown as Slicer shows errors of slots, and the others are called."""
    for listener in list(listeners):
        try:
            listener(subject)
        except Exception:
            sys.excepthook(*sys.exc_info())
