"""Compare: two segmentations of one image, structure by structure."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..learning.metrics import measure
from ..learning.segments import labels_of_segmentation
from ..learning.volume import Volume, check_same_geometry, laid_like, read_label_map, volumes_ml
from ..records.cohort import is_segmentation
from ..records.labels import Labels, read_labels
from ..records.progress import Listener, Progress
from ..records.structure_names import plain_name


def compare(segmentation: Path | str, reference: Path | str, *, listener: Listener | None = None) -> dict:
    """Measure how well a segmentation agrees with a reference; structures are matched by name.

    Names come from a .seg.nrrd itself, else from a dataset.json beside the file; else the values are the names.

    Returns:
        `structures`: for each `name`, `dice`, `hd95_mm`, `volume_ml`, `reference_ml`. A structure that only one of the
        two knows has None for what cannot be measured; one that is empty in both has no Dice.

    Raises:
        FileNotFoundError, ValueError: not readable, not in the same geometry, or without a structure in common.
    """
    files = Path(segmentation).absolute(), Path(reference).absolute()
    with Progress("compare", listener) as progress:
        first, second = (read_label_map(file) for file in files)
        maps = [laid_like(first, second), second]  # as Slicer turns a left-handed NIfTI
        check_same_geometry(*maps, *files)
        labels = [_labels_of(file, map_) for file, map_ in zip(files, maps, strict=True)]
        structures = _structures(maps, labels, files)
        progress.event("done", segmentation=str(files[0]), reference=str(files[1]), structures=structures)
        return {"structures": structures}


def _labels_of(file: Path, map_: Volume) -> Labels:
    if is_segmentation(file):
        return labels_of_segmentation(file)
    if (file.parent / "dataset.json").is_file():
        return read_labels(file.parent / "dataset.json")
    return Labels.unnamed(int(value) for value in np.unique(map_.array) if value)


def _structures(maps: list[Volume], labels: list[Labels], files: tuple[Path, Path]) -> list[dict]:
    own, other = ({plain_name(s.name): s for s in known.structures} for known in labels)
    common = [name for name in own if name in other]
    if not common:
        told = [", ".join(known.names) or "nothing" for known in labels]
        raise ValueError(f"no structure has the same name: {files[0]} holds {told[0]}, but {files[1]} {told[1]}")
    numbered = [
        _numbered(map_, [known[name].value for name in common]) for map_, known in zip(maps, (own, other), strict=True)
    ]
    measured = measure(*numbered, {name: n for n, name in enumerate(common, 1)}, maps[0].spacing_mm)
    ml, reference_ml = (volumes_ml(m.array[0], m.affine, known) for m, known in zip(maps, labels, strict=True))
    return [
        {
            "name": (own.get(name) or other[name]).name,
            "dice": _number(measured.get(name, {}).get("dice")),
            "hd95_mm": _number(measured.get(name, {}).get("hd95_mm")),
            "volume_ml": ml[own[name].name] if name in own else None,
            "reference_ml": reference_ml[other[name].name] if name in other else None,
        }
        for name in {**own, **other}
    ]


def _numbered(map_: Volume, values: list[int]) -> np.ndarray:
    """A label map `(I, J, K)` in which the structure of the n-th value has the value n."""
    table = np.zeros(256, np.uint8)
    table[values] = np.arange(1, len(values) + 1)
    return table[map_.array[0]]


def _number(value: float | None) -> float | None:
    return None if value is None or np.isnan(value) else round(float(value), 6)
