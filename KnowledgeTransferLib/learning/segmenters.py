"""Segmenters: whatever makes a label map of an image, a student or a teacher of any kind; what it made is kept."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import __version__
from ..records.bundle import CHECKSUMS, METADATA, WEIGHTS, is_bundle, made_here, sha256
from ..records.cohort import Case
from ..records.labels import Labels
from ..records.run_directory import read_json
from .networks import parameters_of
from .student import load_student
from .teachers import TEACHER_KINDS, AnnotationsOnDisk, kind_of
from .volume import Volume


@dataclass(frozen=True)
class Segmenter:
    """Something that segments: `segment` gives a label map `(I, J, K)` in the values of `labels`.

    `sha256` tells it from others: name -> checksum. `facts` are its kind, parameters and file size, as far as known.
    """

    labels: Labels
    segment: Callable[[Volume], np.ndarray]
    sha256: dict[str, str]
    facts: dict


def is_segmenter(path: Path) -> bool:
    """Whether a path is a student or teacher; any other folder is one of segmentations.

    Raises:
        FileNotFoundError, ValueError: it is neither; the message lists the kinds of teachers.
    """
    if path.is_dir():
        return any(kind.recognises(path) for kind in TEACHER_KINDS if kind is not AnnotationsOnDisk)
    return kind_of(path) is not AnnotationsOnDisk


def open_segmenter(path: Path, device: str) -> Segmenter:
    """Open a student's bundle, or a teacher of any other kind.

    Raises:
        ValueError, OSError: it cannot be opened, or would execute code that nobody trusted.
    """
    return _student(path, device) if _is_student(path) else _teacher(path, device)


def kept_record(file: Path, made_by: dict) -> dict:
    """What the same segmenter on the same device made of which images, as `file` remembers it, or a new record."""
    made_by = {**made_by, "library_version": __version__}
    with contextlib.suppress(OSError, ValueError):
        record = read_json(file)
        if isinstance(record, dict) and record.get("made_by") == made_by:
            return record
    return {"made_by": made_by, "cases": {}}


def is_kept(record: dict, case: Case, path: Path) -> bool:
    """Whether the segmentation of these very images is there, as the segmenter made it."""
    made = record["cases"].get(case.id, {})
    return made.get("images") == case.paths and path.is_file() and sha256(path) == made.get("sha256")


def _is_student(path: Path) -> bool:
    return is_bundle(path) and made_here(path)


def _student(path: Path, device: str) -> Segmenter:
    student = load_student(path, device)
    sums = read_json(path / CHECKSUMS)  # load_student has compared the files with them
    size = (path / WEIGHTS).stat().st_size
    facts = {"kind": "student", "parameters": int(student.parameters), "file_size_bytes": size}
    return Segmenter(student.labels, student.segment, {name: sums[name] for name in (WEIGHTS, METADATA)}, facts)


def _teacher(path: Path, device: str) -> Segmenter:
    kind = kind_of(path)
    teacher = kind.open(path, device, None)
    values = np.array(teacher.labels.values, np.uint8)
    parameters = None if teacher.network is None else parameters_of(teacher.network)
    facts = {"kind": kind.NAME, "parameters": parameters, "file_size_bytes": None}
    return Segmenter(teacher.labels, lambda volume: values[teacher.predict(volume).argmax(0)],
                     {kind.NAME: kind.sha256(path)}, facts)  # fmt: skip
