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
    """A request to the warm process."""

    read_s = 0  # its events come from a temporary folder

    def __init__(self, step, run, warm, number):
        super().__init__(step, run, None)
        self.warm, self.number, self.served = warm, number, None
        self.log = warm.log

    def poll(self):
        self.tail = self.warm.tailOf(self.number)
        return super().poll()

    def _look(self):
        super()._look()
        if self.running and self.served is not None:  # the last line of its answer has just been read
            self._finish(self.served)

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
        return status or -1

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
        atexit.register(self.close)  # for scripts that never call it
        self.process = startChild(
            ["serve", str(self.folder), "--idle-minutes", str(IDLE_MINUTES)], self.log, stdin=subprocess.PIPE
        )

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

    def read(self):
        """Sort what the process said by request."""
        for event in self.tail.read():
            if event.get("id") in self.events:
                self.events[event["id"]].append(event)
                if event["event"] == "served":
                    self._waiting.remove(event["id"])

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
