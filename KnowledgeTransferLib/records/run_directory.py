"""Run directory: names, reads and writes every file of a run; written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from datetime import datetime, timezone
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

PARTIAL = ".partial-"
ASIDE = ".aside-"  # of a folder that another one replaces just now
LONGEST_NAME = 200  # bytes; file systems allow about 255
LEAST_FREE_BYTES = 1 << 16  # with less the disk counts as full
FILE_CLOCK_LAG_S = 0.05  # a file's time may lie so much before the moment at which it was written
LOCK_PATIENCE_S = 1.0  # who only looks whether a run is held holds its lock for a moment
# Since when a file `cancel` is meant for this process: Slicer says when it was asked for, which is before it began.
_ASKED = float(os.environ.get("KT_ASKED") or time.time())
_command: ContextVar[tuple[tuple[str, ...], float]] = ContextVar("command", default=((), _ASKED))


@contextlib.contextmanager
def commanded(arguments: Sequence[str], since: float | None = None) -> Iterator[None]:
    """The command line that the steps in this block carry out: job.json names it.

    Args:
        since: seconds since the epoch; a file `cancel` that is older is not meant for it. None: the process's start.
    """
    token = _command.set((tuple(arguments), since or _command.get()[1]))
    try:
        yield
    finally:
        _command.reset(token)


class RunDirectory:
    """Everything of one run, on disk. The only place that knows the names of its files."""

    def __init__(self, path: Path | str):
        self.path = Path(path).absolute()
        self.settings = self.path / "settings.json"
        self.cohort = self.path / "cohort.json"
        self.annotations = self.path / "annotations.json"
        self.pseudo_annotations = self.path / "pseudo_annotations"
        self.probabilities = self.path / "probabilities"
        self.uncertainty = self.path / "uncertainty"
        self.corrected_annotations = self.path / "corrected_annotations"
        self.reviews = self.path / "reviews.json"
        self.prepared = self.path / "prepared"
        self.training_cohort = self.path / "training_cohort.json"  # where it is not what was annotated
        self.checkpoint = self.path / "checkpoint.pt"
        self.student = self.path / "student"
        self.training = self.path / "training.json"
        self.evaluation = self.path / "evaluation.json"
        self.evaluation_table = self.path / "evaluation.csv"
        self.predictions = self.path / "predictions"
        self.report = self.path / "report.html"
        self.study = self.path / "study.json"
        self.study_report = self.path / "study.html"
        self.study_table = self.path / "study.csv"
        self.study_latex = self.path / "study.tex"
        self.annotated = self.path / "annotated"  # the run of a study in which its teacher annotated the cohort
        self.cells = self.path / "cells"
        self.events = self.path / "events.jsonl"
        self.served = self.path / "served.jsonl"  # of the folder that `serve` works in
        self.job = self.path / "job.json"
        self.log = self.path / "log.txt"
        self.cancel = self.path / "cancel"
        self.lock_file = self.path / "lock"

    def pseudo_annotation(self, case_id: str) -> Path:
        return self.pseudo_annotations / f"{case_id}.seg.nrrd"

    def probability_maps(self, case_id: str) -> Path:
        return self.probabilities / f"{case_id}.nii.gz"

    def uncertainty_map(self, case_id: str) -> Path:
        return self.uncertainty / f"{case_id}.nii.gz"

    def corrected_annotation(self, case_id: str) -> Path:
        return self.corrected_annotations / f"{case_id}.seg.nrrd"

    def create(self) -> RunDirectory:
        """Make the folder and prove that it can be written.

        Raises:
            OSError: it cannot be made or written; the message says where.
        """
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(f"{self.path} is a file; name a folder for the run")
        check_writable(self.path)
        return self

    @contextlib.contextmanager
    def locked(self, step: str = "") -> Iterator[RunDirectory]:
        """Hold the run for a step of this process; the lock ends with the process, however that ends.

        job.json tells what works here, and stays when it ended.

        Raises:
            RuntimeError: another process works in this run directory; the message says which.
        """
        self.create()
        handle = open(self.lock_file, "a+", encoding="utf-8")  # noqa: SIM115 (held open for the lock)
        try:
            _lock(handle)
        except BlockingIOError:
            handle.seek(0)
            pid = handle.read().strip() or "unknown"
            handle.close()
            raise RuntimeError(
                f"{self.path} is in use by the process {pid}; wait for it, stop it, or name another run directory"
            ) from None
        except OSError as error:
            handle.close()
            found = f"the file system cannot lock files ({error.strerror}); name a run directory on a local disk"
            raise OSError(error.errno, found, str(self.lock_file)) from error
        try:
            handle.truncate(0)
            handle.write(str(os.getpid()))
            handle.flush()
            self._forget_stale_files()
            self._write_job(step)
            yield self
        finally:
            self.cancel.unlink(missing_ok=True)  # answered, or too late
            handle.truncate(0)
            handle.close()

    def held(self) -> bool:
        """Whether a process works in this run. Looking writes nothing and is in nobody's way."""
        try:
            with open(self.lock_file, "rb") as handle:
                return not _locks_at_once(handle, only_look=True)
        except OSError:  # never held, or not ours to open
            return False

    def cancel_requested(self) -> bool:
        return self.cancel.exists()

    def _write_job(self, step: str) -> None:
        job = {
            "pid": os.getpid(), "step": step, "arguments": list(_command.get()[0]), "began": now(),
            "host": socket.gethostname(),
            "events_before_bytes": self.events.stat().st_size if self.events.is_file() else 0,
        }  # fmt: skip
        write_json(self.job, job)

    def _forget_stale_files(self) -> None:
        """Remove half-written files of a killed process, and a cancel file that is older than the command."""
        for folder in (self.path, self.pseudo_annotations, self.probabilities, self.uncertainty, self.prepared):
            for old in folder.glob(f"{ASIDE}*"):  # killed while the new one took its place
                path = old.with_name(old.name.removeprefix(ASIDE))
                shutil.rmtree(old) if path.exists() else old.rename(path)
            for partial in folder.glob(f"{PARTIAL}*"):
                shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
        with contextlib.suppress(FileNotFoundError):
            if self.cancel.stat().st_mtime < _command.get()[1] - FILE_CLOCK_LAG_S:
                self.cancel.unlink()


@contextlib.contextmanager
def written_whole(path: Path | str):
    """Give a temporary path beside `path`; it takes the place of `path` only when the block ends without error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{PARTIAL}{os.getpid()}-{_end_of(path.name)}")  # its end tells the format
    try:
        with told_when_full(path):
            yield temporary
            _flush_to_disk(temporary)
        if path.is_dir():
            _replace_folder(temporary, path)
        else:
            _replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def _end_of(name: str) -> str:
    """The last LONGEST_NAME bytes of a name, so that there is room for more before it."""
    return os.fsencode(name)[-LONGEST_NAME:].decode("utf-8", "ignore")


def _replace_folder(temporary: Path, path: Path) -> None:
    """The old folder is moved aside first, and comes back where the new one cannot take its place."""
    aside = path.with_name(f"{ASIDE}{_end_of(path.name)}")
    shutil.rmtree(aside, ignore_errors=True)  # what an earlier time could not remove
    _replace(path, aside)
    try:
        _replace(temporary, path)
    except OSError:
        _replace(aside, path)
        raise
    shutil.rmtree(aside, ignore_errors=True)  # on Windows a file of it may still be open; the next time removes it


def _replace(temporary: Path, path: Path) -> None:
    """Put a file in the place of another; on Windows it waits a moment for who reads the other one just now."""
    for _ in range(20):
        try:
            return os.replace(temporary, path)
        except PermissionError:
            if os.name != "nt":
                raise
            time.sleep(0.05)
    return os.replace(temporary, path)


@contextlib.contextmanager
def told_when_full(path: Path):
    """Raise an OSError of a full disk when the block leaves one: libraries have their own words for it, or none.

    SimpleITK, for one, writes an empty or truncated file and says nothing.
    """
    failure = None
    try:
        yield
    except Exception as error:
        failure = error
    usage = shutil.disk_usage(path.parent)
    if usage.total and usage.free < LEAST_FREE_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from failure
    if failure:
        raise failure


def now() -> str:
    """The time in ISO 8601, UTC, as all records hold it."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def append_line(path: Path, line: str) -> None:
    """Append a line whole or not at all."""
    with open(path, "ab", buffering=0) as file:
        end = file.tell()
        try:
            written = file.write((line + "\n").encode())
            if written < len(line.encode()) + 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            file.truncate(end)
            raise OSError(error.errno, error.strerror, str(path)) from error


def write_text(path: Path, text: str) -> None:
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content) -> None:
    write_text(path, json_text(content, indent=2) + "\n")


def json_text(content, indent: int | None = None) -> str:
    """JSON that every reader accepts: numbers that are not finite become null."""
    return json.dumps(_finite(content), indent=indent, ensure_ascii=False, default=str, allow_nan=False)


def _finite(content):
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def read_json(path: Path):
    """Read a JSON file.

    Raises:
        FileNotFoundError, ValueError: missing, or not JSON; the message says which file.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def check_writable(folder: Path) -> None:
    """Make `folder` and write a file in it, before hours of work go into something that cannot be saved.

    Raises:
        OSError: it cannot be made or written.
    """
    probe = folder / f"{PARTIAL}{os.getpid()}-probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"1")
        probe.unlink()
    except OSError as error:
        raise type(error)(error.errno, f"cannot write into the folder ({error.strerror})", str(folder)) from error


def _lock(handle) -> None:
    """Take the lock; an OSError when another process keeps it."""
    end = time.monotonic() + LOCK_PATIENCE_S
    while not _locks_at_once(handle):
        if time.monotonic() > end:
            raise BlockingIOError
        time.sleep(0.02)


def _locks_at_once(handle, only_look: bool = False) -> bool:
    """Whether the lock could be taken; `only_look` gives it back, and two that look do not see each other."""
    try:
        if fcntl:
            fcntl.flock(handle, (fcntl.LOCK_SH if only_look else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        else:
            _lock_a_byte(handle, msvcrt.LK_NBLCK)
    except (BlockingIOError, PermissionError):
        return False
    if only_look:
        fcntl.flock(handle, fcntl.LOCK_UN) if fcntl else _lock_a_byte(handle, msvcrt.LK_UNLCK)
    return True


def _lock_a_byte(handle, how: int) -> None:
    """On Windows: a byte far behind the text, so that others can still read the pid."""
    handle.seek(1 << 20)
    msvcrt.locking(handle.fileno(), how, 1)
    handle.seek(0)


def _flush_to_disk(path: Path) -> None:
    """Of a file, or of all files of a folder."""
    for part in [path, *path.rglob("*")]:
        if part.is_file():
            with open(part, "rb+") as file:
                os.fsync(file.fileno())
