"""ChildProcess: start a Python process of the library, read what it writes, stop it with all that it started."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

MOST_BYTES = 1 << 16  # read in one turn of the event loop


class Tail:
    """The whole lines that a growing file got since the last look; lines that are no JSON are text for the log."""

    def __init__(self, path, position=None):
        """Begin at a byte; None: at the end that the file has now."""
        self.path = Path(path)
        self.position = position if position is not None else self.path.stat().st_size if self.path.is_file() else 0

    def read(self):
        """New events, at most a few hundred at once."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self.position)
                block = file.read(MOST_BYTES)
        except OSError:
            return []
        whole = block.rfind(b"\n") + 1
        if not whole and len(block) == MOST_BYTES:
            whole = len(block)  # one endless line is no reason to stand still
        self.position += whole
        return [event for line in block[:whole].splitlines() if (event := eventOf(line))]


def eventOf(line):
    """The event in a line of output; what other packages print is an event `log`."""
    text = line.decode("utf-8", "replace").strip()
    with contextlib.suppress(ValueError):
        event = json.loads(text)
        if isinstance(event, dict) and isinstance(event.get("event"), str):
            return event
    return {"event": "log", "text": text} if text else None


def lastWords(log):
    """The last line of a process's output, as the end of a sentence; empty where there is none."""
    events = Tail(log)
    events.position = max(0, events.position - MOST_BYTES // 2)
    said = [event["text"] for event in events.read() if event.get("text")]
    return f": {said[-1]}" if said else ""


def startChild(arguments, log, stdin=subprocess.DEVNULL):
    """Start `python -m KnowledgeTransferLib ...` with its output in a file, in a process group of its own.

    The arguments go by the environment: up to Slicer 5.10, PythonSlicer garbles letters beyond ASCII on Windows.
    """
    windows = os.name == "nt"
    flags = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW if windows else 0
    with open(log, "ab") as output:
        return subprocess.Popen(
            [pythonExecutable(), "-u", "-m", "KnowledgeTransferLib"],
            stdin=stdin, stdout=output, stderr=subprocess.STDOUT, env=childEnvironment(arguments),
            cwd=tempfile.gettempdir(), start_new_session=not windows, creationflags=flags,
        )  # fmt: skip


def pythonExecutable():
    return shutil.which("PythonSlicer") or sys.executable


def childEnvironment(arguments):
    """The child's environment with what it is asked for; Slicer's own is left as it is."""
    library = str(Path(find_spec("KnowledgeTransferLib").origin).parents[1])
    paths = [library, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    own = {
        "KT_ASKED": repr(time.time()),
        "KT_ARGUMENTS": json.dumps([str(argument) for argument in arguments]),
        "PYTHONUTF8": "1",
        "PYTHONIOENCODING": "utf-8",
        "PYTHONUNBUFFERED": "1",
        "PYTHONSAFEPATH": "1",
    }
    return {**os.environ, **own, "PYTHONPATH": os.pathsep.join(paths)}


def stopTree(pid, gently):
    """Stop a process and all that it started: by a signal that a step answers, or at once."""
    if os.name == "nt":
        command = ["taskkill", "/T", "/PID", str(pid)] + ([] if gently else ["/F"])
        subprocess.run(command, capture_output=True, check=False, creationflags=subprocess.CREATE_NO_WINDOW)
        return
    number, others = signal.SIGTERM if gently else signal.SIGKILL, descendants(pid)
    # PythonSlicer is a launcher that a gentle signal would end alone: the Python below it answers, then both end.
    for process in others if gently and others else [pid, *others]:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process, number)


def descendants(pid):
    """The processes that a process started, and those that these started."""
    try:
        import psutil  # comes with the library

        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except Exception:  # not installed, or the process has just ended
        return []


def killGroup(pid):
    """End what is left of a child's process group."""
    if os.name != "nt":
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
