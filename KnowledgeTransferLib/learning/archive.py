"""Archive: looks into zip archives, in which torch, MONAI and others pack their models. Nothing is unpacked to disk."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

# TorchScript is interpreted and cannot reach Python; but some of its words reach files, and others the C++ code of
# libraries. `torch` and `ops` must stand before a dot, so that nobody reaches those words by another name.
REACHES_OUT = re.compile(
    rb"\btorch\s*\.\s*(?:\w*save\w*|\w*load\w*|from_file|classes)\b|\btorch\b(?!\s*\.)|\bops\b(?!\s*\.\s*prim\s*\.)|\\\s*\n"
)


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


def torchscript_risk(path: Path) -> str:
    """What of a TorchScript file's code reaches out of it, as a sentence; empty where nothing does."""
    for name in members(path):
        if name.endswith(".py") and (found := REACHES_OUT.search(read_member(path, name))):
            return f"its TorchScript code uses {found[0].decode().strip()!r}, which reaches files or libraries"
    return ""
