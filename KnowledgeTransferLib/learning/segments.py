"""Segments: the names, colours and terminology that Slicer keeps in the header of a .seg.nrrd."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from ..records.labels import Labels, Structure, read_labels
from ..records.structure_names import plain_name

# SimpleITK writes and reads the header as UTF-8, as Slicer does; pynrrd (and so slicerio) knows ASCII alone.
TERMINOLOGY = re.compile(r"TerminologyEntry:([^|]*)")


def segment_fields(labels: Labels, shape: tuple[int, int, int]) -> dict[str, str]:
    """The header fields with which Slicer shows a label map `(I, J, K)` as named, coloured segments."""
    extent = " ".join(f"0 {n - 1}" for n in shape)
    fields = {
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_MasterRepresentation": "Binary labelmap",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
    }
    for number, structure in enumerate(labels.structures):
        own = _fields_of(structure)
        fields |= {f"Segment{number}_{key}": value for key, value in {**own, "Extent": extent}.items()}
    return fields


def labels_of_segmentation(file: Path) -> Labels:
    """The structures that a .seg.nrrd names, with colours and terminology.

    Raises:
        ValueError: it is no image, or its header names no segments.
    """
    import SimpleITK as sitk  # 90 MiB, which who has NIfTI does not need

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise ValueError(f"{file}: cannot be read as a segmentation; truncated or not an image?") from error
    fields = {key: reader.GetMetaData(key) for key in reader.GetMetaDataKeys() if key.startswith("Segment")}
    numbers = sorted(int(m[1]) for m in (re.fullmatch(r"Segment(\d+)_LabelValue", key) for key in fields) if m)
    if not numbers:
        raise ValueError(f"{file}: its header names no segments; was it saved as a segmentation (.seg.nrrd)?")
    return Labels(tuple(_structure_of(fields, number) for number in numbers))


def numbered_as(labels: Labels, array: np.ndarray, file: Path) -> np.ndarray:
    """Turn the label values `(I, J, K)` of a .seg.nrrd into those of `labels`, by the structures' names.

    A file none of whose names is known ("Segment_1", as drawn by hand) keeps its values.

    Raises:
        ValueError: a segment that is drawn has a name that `labels` lacks, while others are known.
    """
    try:
        own = labels_of_segmentation(file)
    except ValueError:
        return array
    values = {plain_name(s.name): s.value for s in labels.structures}
    if not any(plain_name(name) in values for name in own.names):
        return array
    table = np.arange(256)
    for structure in own.structures:
        value = values.get(plain_name(structure.name))
        if value is None and (array == structure.value).any():
            raise ValueError(f"{file}: unknown structure {structure.name!r}; known are {', '.join(labels.names)}")
        table[structure.value] = value or 0
    return table[array] if array.max() < len(table) else array


def refuse_foreign_names(file: Path, labels: Labels) -> None:
    """Refuse a .seg.nrrd that names segments, but none that is known: its values mean something else.

    Raises:
        ValueError: the message tells both kinds of names.
    """
    try:
        own = labels_of_segmentation(file)
    except ValueError:  # no segment at all, or no image, which is told when it is read
        return
    if not {plain_name(name) for name in own.names} & {plain_name(name) for name in labels.names}:
        raise ValueError(f"{file}: holds {', '.join(own.names)}; known structures are {', '.join(labels.names)}")


def labels_of_folder(folder: Path) -> Labels | None:
    """The structures of a folder of segmentations: from its dataset.json, else from its first .seg.nrrd."""
    folder = Path(folder)
    if (folder / "dataset.json").is_file():
        return read_labels(folder / "dataset.json")
    first = next(iter(sorted(folder.glob("*.seg.nrrd"))), None)
    return labels_of_segmentation(first) if first else None


def _fields_of(structure: Structure) -> dict[str, str]:
    return {
        "ID": f"Segment_{structure.value}",
        "Name": " ".join(structure.name.split()),
        "LabelValue": str(structure.value),
        "Layer": "0",
        "Color": " ".join(f"{c / 255:.6g}" for c in structure.color),
        "Tags": f"TerminologyEntry:{structure.terminology.rstrip('|')}|",
    }


def _structure_of(fields: dict[str, str], number: int) -> Structure:
    name = fields.get(f"Segment{number}_Name") or fields.get(f"Segment{number}_ID") or f"segment {number}"
    color = [round(float(c) * 255) for c in fields.get(f"Segment{number}_Color", "").split()]
    terminology = TERMINOLOGY.search(fields.get(f"Segment{number}_Tags", ""))
    value = int(fields[f"Segment{number}_LabelValue"])
    return Structure.named(name, value, color or None, terminology[1] if terminology else None)
