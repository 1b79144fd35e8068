"""Archive: looks into zip archives, in which torch, MONAI and others pack their models. Nothing is unpacked to disk."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import torch

# TorchScript is interpreted and cannot reach Python; but some of its words reach files, and others the C++ code of
# libraries. `torch` and `ops` must stand before a dot, so that nobody reaches those words by another name. Between two
# words there may be comments and new lines.
GAP = rb"(?:\s|#[^\n]*(?:\n|$))*"
REACHES_OUT = re.compile(
    rb"\btorch" + GAP + rb"\." + GAP + rb"(?:\w*save\w*|\w*load\w*|from_file|classes)\b"
    rb"|\btorch\b(?!\s*\.)|\bops\b(?!\s*\.\s*prim\s*\.)|\\\s*\n"
)
SMALL_BYTES = 1 << 26
MOST_UNPACKED = 20  # times its size in the archive, for a larger member: weights hardly get smaller when packed
LARGEST_CODE_BYTES = 1 << 24


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
    """The content of one member; by default one that unpacks to no more than weights would.

    Raises:
        ValueError: damaged, encrypted, or larger than allowed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.getinfo(name)
            largest_bytes = largest_bytes or max(SMALL_BYTES, MOST_UNPACKED * member.compress_size)
            if member.file_size > largest_bytes:
                raise ValueError(f"{path}: {name} is larger than {largest_bytes} bytes")
            return archive.read(name)
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError) as error:
        raise ValueError(f"{path}: {name} in it is damaged ({error})") from error


def torchscript_risk(path: Path) -> str:
    """What of a TorchScript file's code reaches out of it, as a sentence; empty where nothing does.

    The code is read as torch reads it: another reader may see another of two members with the same name.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            code = [member for member in archive.infolist() if _is_code(member.filename)]
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        return f"its TorchScript code cannot be looked at ({error})"
    if any(member.file_size > LARGEST_CODE_BYTES for member in code):
        return f"its TorchScript code is larger than {LARGEST_CODE_BYTES} bytes, and was not looked at"
    try:
        reader = torch._C.PyTorchFileReader(str(path))
    except RuntimeError:
        return ""  # torch cannot run it either
    try:
        return _risk_of_code(reader)
    except RuntimeError as error:  # one member is damaged; torch may run the others
        return f"its TorchScript code cannot be looked at ({str(error).splitlines()[0]})"


def _risk_of_code(reader) -> str:
    names = reader.get_all_records()
    if len({name.casefold() for name in names}) < len(names):
        return "it holds two files with the same name, and torch may run another one than was looked at"
    for name in filter(_is_code, names):
        if found := REACHES_OUT.search(reader.get_record(name)):
            return f"its TorchScript code uses {found[0].decode().strip()!r}, which reaches files or libraries"
    return ""


def _is_code(name: str) -> bool:
    return name.casefold().endswith(".py")  # torch takes capitals too
