"""Voxel checks: what an image or an annotation must be; each refusal names the file, what was found and what to do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psutil

from ..records.labels import Labels

WHOLE_NUMBER_TOLERANCE = 1e-3  # a label of 0.9999 is 1, one of 0.9 is refused


def check_file(file: Path) -> None:
    """Refuse what is missing, empty, or a picture that breaks off (whose decoders fill in grey and say nothing)."""
    if not file.exists():
        raise FileNotFoundError(f"{file}: there is no such file")
    if file.is_file() and file.stat().st_size == 0:
        raise ValueError(f"{file}: the file is empty (0 bytes)")
    if file.suffix.lower() in (".jpg", ".jpeg", ".bmp") and file.is_file() and _breaks_off(file.read_bytes()):
        raise ValueError(f"{file}: cannot be read as an image; the file is truncated")


def check_shape(shape: list[int], bytes_each: int, file: Path) -> None:
    """Refuse 4-D, too thin, and larger than the memory, before the voxels are read."""
    if len(shape) > 3:
        advice = "give one 3-D file per channel (name_0000, name_0001, ...) or time point"
        raise ValueError(f"{file}: is {len(shape)}-D ({times(shape)}); {advice}")
    if min(shape[:2]) < 2:
        raise ValueError(f"{file}: has {times(shape)} voxels; at least 2 are needed along each of the first two axes")
    needed, free = float(np.prod(shape, dtype=float)) * (bytes_each + 4), psutil.virtual_memory().available
    if needed > free:
        found = f"{times(shape)} voxels need {needed / 2**30:.1f} GiB of memory"
        raise ValueError(f"{file}: {found}; {free / 2**30:.1f} GiB are free")


def check_voxels(array: np.ndarray, file: Path) -> None:
    """Refuse an image with NaN or infinite voxels, or with one value everywhere."""
    if array.dtype.kind == "f":
        wrong = array.size - int(np.count_nonzero(np.isfinite(array)))
        if wrong:
            found = f"{wrong} of {array.size} voxels are NaN or infinite"
            raise ValueError(f"{file}: {found}; repair or leave out the image")
    if array.min() == array.max():
        raise ValueError(f"{file}: every voxel has the value {array.flat[0]}; there is nothing to segment")


def whole_numbers(array: np.ndarray, file: Path) -> np.ndarray:
    """An annotation as integers; refused when a value is further from a whole number than rounding explains."""
    if array.dtype.kind in "iub":
        return array
    if not np.isfinite(array).all():
        raise ValueError(f"{file}: the annotation holds NaN or infinite values")
    rounded = np.rint(array)
    if np.abs(array - rounded).max() > WHOLE_NUMBER_TOLERANCE:
        example = array.flat[int(np.abs(array - rounded).argmax())]
        raise ValueError(f"{file}: the annotation holds {example:g}; whole numbers are needed (was it resampled?)")
    return rounded.astype(np.int64)


def check_values(array: np.ndarray, labels: Labels | None, file: Path) -> None:
    """Refuse label values that are not among `labels` (None: 0 to 255)."""
    allowed = set(labels.values) if labels else set(range(256))
    unknown = [int(v) for v in np.unique(array) if int(v) not in allowed]
    if unknown:
        known = ", ".join(f"{s.value} ({s.name})" for s in labels.structures) if labels else "0 to 255"
        raise ValueError(f"{file}: unknown label values {unknown[:5]}; known are 0 (background), {known}")


def times(shape) -> str:
    """`(3, 4, 5)` -> "3 x 4 x 5"."""
    return " x ".join(str(int(n)) for n in shape)


def _breaks_off(data: bytes) -> bool:
    """True for a JPEG without end marker after its last scan, and a BMP shorter than its header says."""
    if data[:2] == b"\xff\xd8":
        return data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda")
    return data[:2] == b"BM" and len(data) < int.from_bytes(data[2:6], "little")
