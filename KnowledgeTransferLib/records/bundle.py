"""Bundle: the folder a finished student travels in. A MONAI Bundle, with a checksum of each file."""

from __future__ import annotations

import hashlib
from pathlib import Path

from .run_directory import RunDirectory, read_json, write_json

FORMAT = 1
METADATA = "configs/metadata.json"
INFERENCE = "configs/inference.json"
CHECKSUMS = "configs/sha256.json"
WEIGHTS = "models/model.safetensors"
MODEL_CARD = "docs/README.md"
OURS = "knowledge_transfer"  # our part of metadata.json


def is_bundle(path: Path) -> bool:
    """Whether a folder looks like a bundle of ours."""
    return (Path(path) / METADATA).is_file() and (Path(path) / WEIGHTS).is_file()


def made_here(folder: Path) -> bool:
    """Whether KnowledgeTransfer made a bundle, damaged or not; others come from MONAI."""
    return f'"{OURS}"' in (Path(folder) / METADATA).read_text(encoding="utf-8", errors="replace")


def bundle_in(path: Path | str) -> Path:
    """The bundle that a path means: of a run directory its student, else the path itself."""
    path = Path(path)
    student = RunDirectory(path).student
    return student if is_bundle(student) and not is_bundle(path) else path


def read_metadata(folder: Path, check: bool = True) -> dict:
    """Read metadata.json after checking the files' checksums.

    Args:
        check: False where it is only shown: every file of the bundle is read for its checksum.

    Raises:
        FileNotFoundError, ValueError: no bundle, made by a newer version, or a file was changed since.
    """
    folder = Path(folder)
    if not is_bundle(folder):
        raise FileNotFoundError(f"{folder}: is not a bundle (it needs {METADATA} and {WEIGHTS})")
    metadata = read_json(folder / METADATA)
    ours = metadata.get(OURS) if isinstance(metadata, dict) else None
    if not isinstance(ours, dict):
        raise ValueError(f"{folder}: is a MONAI Bundle that KnowledgeTransfer did not make")
    version = ours.get("format_version")
    if not isinstance(version, int):
        raise ValueError(f"{folder}: its metadata names no format version; the bundle is damaged")
    if version > FORMAT:
        raise ValueError(f"{folder}: was made by a newer version of KnowledgeTransfer; update to open it")
    if check:
        check_files(folder)
    return metadata


def check_files(folder: Path) -> None:
    """Compare each file with its checksum.

    Raises:
        ValueError: a file is missing or was changed; the message names it.
    """
    checksums = read_json(folder / CHECKSUMS)
    if not isinstance(checksums, dict) or not {METADATA, WEIGHTS} <= set(checksums):
        raise ValueError(f"{folder}: {CHECKSUMS} does not name {METADATA} and {WEIGHTS}; copy the whole folder again")
    for name, expected in checksums.items():
        path = (folder / name).resolve()
        if folder.resolve() not in path.parents or not path.is_file():
            raise ValueError(f"{folder}: the file {name} is missing; copy the whole folder again")
        if sha256(path) != expected:
            raise ValueError(f"{folder}: {name} was changed or damaged (its sha256 differs); copy the folder again")


def checked_files(folder: Path) -> set[str]:
    """The files, by their names in the bundle, that its checksums vouch for."""
    return set(read_json(Path(folder) / CHECKSUMS))


def write_checksums(folder: Path) -> None:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != Path(CHECKSUMS).name)
    write_json(folder / CHECKSUMS, {p.relative_to(folder).as_posix(): sha256(p) for p in files})


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
