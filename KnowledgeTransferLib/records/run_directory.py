"""Run directory: names, reads and writes every file of a run; written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
import time
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

PARTIAL = ".partial-"
LEAST_FREE_BYTES = 1 << 16  # with less the disk counts as full
_PROCESS_START = time.time()


class RunDirectory:
    """Everything of one run, on disk. The only place that knows the names of its files."""

    def __init__(self, path: Path | str):
        self.path = Path(path).absolute()
        self.settings = self.path / "settings.json"
        self.cohort = self.path / "cohort.json"
        self.annotations = self.path / "annotations.json"
        self.pseudo_annotations = self.path / "pseudo_annotations"
        self.probabilities = self.path / "probabilities"
        self.prepared = self.path / "prepared"
        self.checkpoint = self.path / "checkpoint.pt"
        self.student = self.path / "student"
        self.training = self.path / "training.json"
        self.evaluation = self.path / "evaluation.json"
        self.evaluation_table = self.path / "evaluation.csv"
        self.predictions = self.path / "predictions"
        self.report = self.path / "report.html"
        self.events = self.path / "events.jsonl"
        self.log = self.path / "log.txt"
        self.cancel = self.path / "cancel"
        self.lock_file = self.path / "lock"

    def pseudo_annotation(self, case_id: str) -> Path:
        return self.pseudo_annotations / f"{case_id}.seg.nrrd"

    def probability_maps(self, case_id: str) -> Path:
        return self.probabilities / f"{case_id}.nii.gz"

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
    def locked(self):
        """Hold the run for this process; the lock ends with the process, however that ends.

        Raises:
            RuntimeError: another process works in this run directory; the message says which.
        """
        self.create()
        handle = open(self.lock_file, "a+", encoding="utf-8")  # noqa: SIM115 (held open for the lock)
        try:
            _lock(handle)
        except OSError:
            handle.seek(0)
            pid = handle.read().strip() or "unknown"
            handle.close()
            raise RuntimeError(
                f"{self.path} is in use by the process {pid}; wait for it, stop it, or name another run directory"
            ) from None
        try:
            handle.truncate(0)
            handle.write(str(os.getpid()))
            handle.flush()
            self._forget_stale_files()
            yield self
        finally:
            self.cancel.unlink(missing_ok=True)  # answered, or too late
            handle.truncate(0)
            handle.close()

    def cancel_requested(self) -> bool:
        return self.cancel.exists()

    def _forget_stale_files(self) -> None:
        """Remove half-written files of a killed process, and a cancel file that is older than this process."""
        for folder in (self.path, self.pseudo_annotations, self.probabilities, self.prepared):
            for partial in folder.glob(f"{PARTIAL}*"):
                shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
        with contextlib.suppress(FileNotFoundError):
            if self.cancel.stat().st_mtime < _PROCESS_START:
                self.cancel.unlink()


@contextlib.contextmanager
def written_whole(path: Path | str):
    """Give a temporary path beside `path`; it takes the place of `path` only when the block ends without error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{PARTIAL}{os.getpid()}-{path.name}")
    try:
        with told_when_full(path):
            yield temporary
            _flush_to_disk(temporary)
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


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
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
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
    if fcntl:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:  # a byte far behind the text, so that others can still read the pid
        handle.seek(1 << 20)
        msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
        handle.seek(0)


def _flush_to_disk(path: Path) -> None:
    """Of a file, or of all files of a folder."""
    for part in [path, *path.rglob("*")]:
        if part.is_file():
            with open(part, "rb+") as file:
                os.fsync(file.fileno())
