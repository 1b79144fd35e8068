"""Fast gzip: nibabel reads and writes .nii.gz with ISA-L where the package `isal` is installed, else as always.

Measured on a CT of 113 MB (76 MB in the file): read in 0.36 s instead of 0.99 s.
"""

from __future__ import annotations

import gzip
from pathlib import Path

from nibabel.openers import ImageOpener

try:
    from isal import igzip
except ImportError:  # an optional package
    igzip = None

HIGHEST_LEVEL = 3


def use_fast_gzip() -> None:
    """From now on, in this process."""
    if igzip is not None:
        ImageOpener.compress_ext_map[".gz"] = (_open, ("mode", "compresslevel", "mtime", "keep_open"))


def breaks_off(file: Path) -> bool:
    """Whether a gzip file ends too early; ISA-L reads far ahead, and then gives nothing of what comes before."""
    try:
        with (igzip or gzip).open(file) as stream:
            stream.read(1024)
    except EOFError:
        return True
    except Exception:  # damaged, or no gzip; ISA-L's own error is not an OSError
        return False
    return False


def _open(filename, mode: str = "rb", compresslevel: int = 1, mtime: float = 0, keep_open: bool = False):
    """As nibabel's own: no name and no time in the file, so that the same voxels give the same bytes."""
    if "r" in mode:
        return _Read(filename, "rb")
    raw = open(filename, "wb")  # noqa: SIM115 (closed with what is around it)
    return _Written(raw, min(compresslevel, HIGHEST_LEVEL), mtime)


class _Read(igzip.IGzipFile if igzip else object):
    """A gzip file that is read without a second copy of what is in it."""

    def readinto(self, buffer) -> int:
        return self._buffer.readinto(buffer)


class _Written(igzip.IGzipFile if igzip else object):
    """A gzip file that closes what it writes into."""

    def __init__(self, raw, level: int, mtime: float):
        self.raw_file = raw
        super().__init__("", "wb", level, raw, mtime)

    def close(self) -> None:
        try:
            super().close()
        finally:
            self.raw_file.close()
