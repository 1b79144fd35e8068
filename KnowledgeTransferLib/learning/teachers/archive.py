"""Archive: looks into zip archives, in which torch, MONAI and others pack their models. Nothing is unpacked to disk."""

from __future__ import annotations

import zipfile
from pathlib import Path


def members(path: Path) -> list[str]:
    """Names in a zip archive; none for other files and for broken archives."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return []
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        return []


def read_member(path: Path, name: str, largest_bytes: int | None = None) -> bytes:
    """The content of one member.

    Raises:
        ValueError: damaged, encrypted, or larger than allowed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if largest_bytes is not None and archive.getinfo(name).file_size > largest_bytes:
                raise ValueError(f"{path}: {name} is larger than {largest_bytes} bytes")
            return archive.read(name)
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError) as error:
        raise ValueError(f"{path}: {name} in it is damaged ({error})") from error
