"""Labels: the structures of a segmentation, in channel order, with names, colours and terminology."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

# Distinguishable colours (red, green, blue in 0..255) for structures that bring none.
PALETTE = (
    (230, 75, 60), (60, 160, 230), (90, 190, 90), (245, 190, 60), (155, 100, 200), (80, 205, 195),
    (240, 130, 180), (160, 120, 80), (120, 140, 245), (190, 210, 80), (235, 145, 60), (110, 110, 130),
)  # fmt: skip

# SNOMED CT codes of structures that are common in published models; others are plain "Tissue".
SNOMED = {
    "adrenal gland": "23451007", "aorta": "15825003", "brain": "12738006", "duodenum": "38848004",
    "esophagus": "32849002", "gallbladder": "28231008", "heart": "80891009", "inferior vena cava": "64131007",
    "kidney": "64033007", "left atrium": "82471001", "left ventricle": "87878005", "liver": "10200004",
    "lung": "39607008", "pancreas": "15776009", "prostate": "41216001", "spleen": "78961009",
    "stomach": "69695003", "urinary bladder": "89837001",
}  # fmt: skip
SIDES = {"left": "7771000^Left", "right": "24028007^Right"}
CONTEXT = "Segmentation category and type - 3D Slicer General Anatomy list"
ANATOMIC_CONTEXT = "Anatomic codes - DICOM master list"


@dataclass(frozen=True)
class Structure:
    """One structure: its name, its value in label maps (1..255), colour (0..255 each) and Slicer terminology."""

    name: str
    value: int
    color: tuple[int, int, int]
    terminology: str

    @classmethod
    def named(cls, name: str, value: int, color=None, terminology: str | None = None) -> Structure:
        """A structure whose colour and terminology are chosen from its value and name where they are not given."""
        color = tuple(color or PALETTE[(value - 1) % len(PALETTE)])
        if len(color) != 3 or not all(isinstance(c, (int, float)) and 0 <= c <= 255 for c in color):
            raise ValueError(f"structure {name!r}: colour {color} found; three numbers from 0 to 255 are needed")
        return cls(name, value, tuple(map(int, color)), (terminology or terminology_of(name)).rstrip("|") + "|")


@dataclass(frozen=True)
class Labels:
    """Structures in channel order: channel 0 is the background, structure n has channel n + 1."""

    structures: tuple[Structure, ...]

    def __post_init__(self):
        _refuse_duplicates([s.name for s in self.structures], "structure name")
        _refuse_duplicates([s.value for s in self.structures], "label value")
        for s in self.structures:
            if not 1 <= s.value <= 255:
                raise ValueError(f"structure {s.name!r} has the label value {s.value}; 1 to 255 is allowed")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(s.name for s in self.structures)

    @property
    def values(self) -> tuple[int, ...]:
        """Label values in channel order, with the background's 0 in front."""
        return (0, *(s.value for s in self.structures))

    @property
    def channels(self) -> int:
        """Number of classes with the background."""
        return len(self.structures) + 1

    def to_json(self) -> list[dict]:
        return [{**vars(s), "color": list(s.color)} for s in self.structures]

    @classmethod
    def from_json(cls, items: list[dict]) -> Labels:
        if not isinstance(items, list):
            raise ValueError(f"structures are a list of objects with name and value; found {items!r}")
        return cls(tuple(_structure_from_json(item) for item in items))

    @classmethod
    def from_names(cls, names: dict[int, str]) -> Labels:
        """From label value -> name, background left out."""
        return cls(tuple(Structure.named(name, value) for value, name in sorted(names.items()) if value != 0))

    @classmethod
    def unnamed(cls, values) -> Labels:
        """ "structure 1" and so on, for annotations that come without names."""
        return cls.from_names({int(v): f"structure {int(v)}" for v in values})


def read_labels(path: Path) -> Labels:
    """Read structures from a `dataset.json` (Medical Decathlon, nnU-Net, ours) or a Slicer colour table (.ctbl).

    Raises:
        ValueError: the file names no structures, or in a form that is not known.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        labels = _from_dataset(json.loads(text)) if path.suffix.lower() == ".json" else _from_color_table(text)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as {path.suffix or 'text'} ({error})") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if labels is None or not labels.structures:
        raise ValueError(f'{path}: names no structures; expected "labels" in a dataset.json, or a Slicer .ctbl')
    return labels


def labels_of_dataset(dataset: dict) -> Labels | None:
    """The structures that an already read dataset.json names, or None."""
    return _from_dataset(dataset)


def terminology_of(name: str) -> str:
    """Slicer's terminology entry for a structure's name: SNOMED CT where the name is known, else "Tissue"."""
    words = name.lower().replace("_", " ").split()
    side = next((SIDES[w] for w in words if w in SIDES), "")
    plain = " ".join(words)
    bare = " ".join(w for w in words if w not in SIDES)
    code = SNOMED.get(plain) or SNOMED.get(bare)
    if code is None:
        kind = "SCT^85756007^Tissue~SCT^85756007^Tissue~^^"
    else:
        meaning = (plain if plain in SNOMED else bare).capitalize()
        modifier = f"SCT^{side}" if side and plain not in SNOMED else "^^"
        kind = f"SCT^123037004^Anatomical Structure~SCT^{code}^{meaning}~{modifier}"
    return f"{CONTEXT}~{kind}~{ANATOMIC_CONTEXT}~^^~^^|"


def _from_dataset(dataset: dict) -> Labels | None:
    if not isinstance(dataset, dict):
        return None
    if dataset.get("structures"):
        return Labels.from_json(dataset["structures"])
    entries = dataset.get("labels")
    if not isinstance(entries, dict):
        return None
    names = {}
    for key, entry in entries.items():
        # Medical Decathlon writes {"1": "liver"}, nnU-Net v2 {"liver": 1}; nnU-Net's regions are lists.
        value, name = (key, entry) if _is_whole(key) else (entry, key)
        if not _is_whole(value) or not isinstance(name, str):
            raise ValueError(f"label {key!r}: {entry!r} is not understood; write a value and a name, such as 1: liver")
        if int(value) in names:
            raise ValueError(f"the value {int(value)} is used more than once; each structure must have its own")
        names[int(value)] = name
    return Labels.from_names(names)


def _from_color_table(text: str) -> Labels:
    structures = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) < 6 or not _is_whole(words[0]) or not all(_is_number(w) for w in words[-4:]):
            raise ValueError(f"line {number}: {line!r} is not 'value name red green blue alpha'")
        if int(words[0]) > 0:
            name = " ".join(words[1:-4]).replace("_", " ")
            structures.append(Structure.named(name, int(words[0]), [int(float(w)) for w in words[-4:-1]]))
    return Labels(tuple(structures))


def _is_whole(value) -> bool:
    return re.fullmatch("[0-9]+", str(value)) is not None


def _is_number(word: str) -> bool:
    return _is_whole(word.replace(".", "", 1))


def _structure_from_json(item: dict) -> Structure:
    if not isinstance(item, dict) or "name" not in item or type(item.get("value")) is not int:
        raise ValueError(f"structure {item!r}: a name and a whole-number value are needed")
    if not isinstance(item.get("color"), (list, tuple, type(None))):
        raise ValueError(f"structure {item!r}: its colour is no list of three numbers")
    if not isinstance(item.get("terminology"), (str, type(None))):
        raise ValueError(f"structure {item!r}: its terminology is no text")
    return Structure.named(str(item["name"]), item["value"], item.get("color"), item.get("terminology"))


def _refuse_duplicates(items: list, what: str) -> None:
    twice = sorted({str(i) for i in items if items.count(i) > 1})
    if twice:
        raise ValueError(f"the {what} {', '.join(twice)} is used more than once; each must be its own")
