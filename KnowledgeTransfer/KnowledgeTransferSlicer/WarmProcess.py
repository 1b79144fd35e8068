"""WarmProcess: the library kept ready between segmentations, so that nothing is imported or loaded again."""

import atexit
import contextlib
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from .ChildProcess import Tail, killGroup, startChild, stopTree
from .Jobs import Job

IDLE_MINUTES = 10


class WarmJob(Job):
    """A request to the warm process. `livingProcess` gives the one that lives, or a new one."""

    read_s = 0  # its events come from a temporary folder

    def __init__(self, step, run, arguments, livingProcess):
        super().__init__(step, run, None)
        self.arguments, self._livingProcess, self.served = [step, *arguments], livingProcess, None
        self.began = False
        self._ask()

    def _ask(self):
        self.warm = self._livingProcess()
        self.log = self.warm.log
        self.number = self.warm.request(self.arguments)

    def poll(self):
        self.tail = self.warm.tailOf(self.number)
        return super().poll()

    def _look(self):
        super()._look()
        if self.running and self.served is not None:  # the last line of its answer has just been read
            self._finish(self.served)

    def take(self, event):
        self.began = True
        if event["event"] == "served":
            self.served = event["status"]
        else:
            super().take(event)

    def exitStatus(self):
        self.warm.read()
        if self.served is not None:
            return self.served
        status = self.warm.exitStatus()
        if status is None or self.warm.hasEventsOf(self.number) or self._begunAnew():
            return None
        return status or -1

    def _begunAnew(self):
        """Whether it asked another process: this one ended with another request, before the turn of this one."""
        if self.began or self.cancelAsked is not None or not self.warm.endedWithAnother(self.number):
            return False
        with contextlib.suppress(OSError):  # no process can be started
            self._ask()
            return True
        return False

    def stopProcesses(self, gently):
        """Only while it is this request's turn; one that waits finds the file `cancel` when its turn comes."""
        if self.warm.turnOf() == self.number:
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
        self.folder = Path(tempfile.mkdtemp(prefix="KnowledgeTransfer-warm-"))
        self.log = self.folder / "log.txt"
        self.tail = Tail(self.folder / "served.jsonl", 0)
        self.events = {}
        self._count = 0
        self._waiting = []  # numbers of the requests that have no answer yet, in their order
        self._stoppedFor = None  # the request that was to be stopped
        self.process = startChild(
            ["serve", str(self.folder), "--idle-minutes", str(IDLE_MINUTES)], self.log, stdin=subprocess.PIPE
        )
        atexit.register(self.close)  # for scripts that never call it

    def exitStatus(self):
        return self.process.poll()

    def request(self, arguments):
        """Ask for a step; returns the request's number. Raises OSError when the process has ended."""
        number = self._count = self._count + 1
        request = {"id": number, "arguments": [str(a) for a in arguments], "asked": time.time()}
        line = json.dumps(request) + "\n"
        self.process.stdin.write(line.encode("utf-8"))
        self.process.stdin.flush()
        self.events[number] = []
        self._waiting.append(number)
        return number

    def turnOf(self):
        """The request that the process works on, or None."""
        return self._waiting[0] if self._waiting else None

    def endedWithAnother(self, number):
        """Whether a request was none of the reason why the process ended."""
        return number != (self.turnOf() if self._stoppedFor is None else self._stoppedFor)

    def hasEventsOf(self, number):
        """Whether there is something to take, also in what the process said last."""
        while not self.events[number] and self.read():
            pass
        return bool(self.events[number])

    def read(self):
        """Sort what the process said by request; whether it said anything."""
        found = self.tail.read()
        for event in found:
            if event.get("id") in self.events:
                self.events[event["id"]].append(event)
                if event["event"] == "served":
                    self._waiting.remove(event["id"])
        return bool(found)

    def tailOf(self, number):
        return _Waiting(self.events.setdefault(number, []))

    def stop(self, gently):
        self._stoppedFor = self.turnOf()
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
