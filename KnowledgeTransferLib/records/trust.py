"""Trust: teachers that bring code of their own, which a person allowed to run; remembered by their checksums.

A teacher is trusted as long as its files stay as they are: a changed one is asked about again.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from .bundle import sha256
from .run_directory import now, read_json, write_json

FORMAT = 1


def trust_file() -> Path:
    """Where it is remembered: in the user's folder of settings, or in the folder that KT_CONFIG names."""
    if os.environ.get("KT_CONFIG"):
        return Path(os.environ["KT_CONFIG"]) / "trusted.json"
    if sys.platform == "win32":
        base = os.environ.get("APPDATA") or Path.home() / "AppData" / "Roaming"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "KnowledgeTransfer" / "trusted.json"


def is_trusted(checksum: str) -> bool:
    return bool(checksum) and checksum in _read()


def remember(path: Path, checksum: str) -> None:
    """Trust what has this checksum; `path` is noted for people who look into the file."""
    trusted = {**_read(), checksum: {"path": str(path), "trusted_on": now()}}
    write_json(trust_file(), {"format_version": FORMAT, "trusted": trusted})


def require(path: Path, checksum: str, risk: str) -> None:
    """Refuse to go on with a teacher that has a risk and is not trusted.

    Raises:
        PermissionError: the message says what would be executed, and how to allow it.
    """
    if risk and not is_trusted(checksum):
        raise PermissionError(
            f"{path}: {risk}. Opening it could run whatever its author put there. If you know where it comes from and "
            "trust it, give --trust once; it is remembered until its files change"
        )


def sha256_of_files(files: Iterable[Path], root: Path) -> str:
    """One checksum of several files: of their names below `root` and their content."""
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.relative_to(root).as_posix()}\0{sha256(file)}\n".encode())
    return digest.hexdigest()


def _read() -> dict:
    if not trust_file().is_file():
        return {}
    content = read_json(trust_file())
    trusted = content.get("trusted") if isinstance(content, dict) else None
    if not isinstance(trusted, dict) or content.get("format_version") != FORMAT:
        raise ValueError(f"{trust_file()}: is damaged or of another version; remove it to be asked about trust again")
    return trusted
