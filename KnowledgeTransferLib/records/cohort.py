"""Cohort: the cases of a study, read from a folder, a table or a dataset.json."""

from __future__ import annotations

import contextlib
import csv
import os
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path

from .labels import Labels, labels_of_dataset, read_labels
from .run_directory import read_json, write_json

SUFFIXES = (
    ".nii.gz", ".nii", ".seg.nrrd", ".nrrd", ".nhdr", ".mha", ".mhd", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp",
)  # fmt: skip
SEGMENTATION = ".seg.nrrd"  # Slicer's own format of segmentations; never an image
CHANNEL_OF_NNUNET = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")
MOST_CHANNELS = 8
LONGEST_ID = 240  # bytes; file systems allow about 255 for a name with its ending
SEVERAL_FILES = "|"  # between the files of a case's channels in a table


@dataclass(frozen=True)
class Case:
    """One examination: its image files (one, or one per channel) and what is known of it."""

    id: str
    images: tuple[Path, ...]
    label: Path | None = None  # expert annotation
    group: str = ""  # patient
    split: str = ""

    @property
    def paths(self) -> list[str]:
        """The image files as text, as records on disk name them."""
        return [str(path) for path in self.images]

    def __post_init__(self):
        if not self.id or self.id in (".", "..") or re.search(r'[/\\:*?"<>|\x00-\x1f]', self.id):
            raise ValueError(f'case id {self.id!r}: ids become file names, so they must not hold / \\ : * ? " < > |')
        if len(self.id.encode("utf-8", "replace")) > LONGEST_ID:
            raise ValueError(f"case id {self.id!r}: ids become file names; at most {LONGEST_ID} bytes are allowed")
        if "\0" in "".join(map(str, (*self.images, self.label))):
            raise ValueError(f"case {self.id!r}: the name of its image or label holds a zero byte")
        for text in (self.id, *map(str, self.images)):
            if any("\ud800" <= letter <= "\udfff" for letter in text):  # bytes that Linux allows in a name
                raise ValueError(f"{text!r}: the name is no valid UTF-8; rename the file or folder")
        if not self.group:
            object.__setattr__(self, "group", self.id)


@dataclass(frozen=True)
class Cohort:
    """Cases, the structures their annotations hold (None where nobody said) and the modality (empty: unknown)."""

    cases: tuple[Case, ...]
    labels: Labels | None = None
    modality: str = ""
    source: str = ""

    def __post_init__(self):
        count = Counter(case.id.casefold() for case in self.cases)
        twice = sorted({case.id for case in self.cases if count[case.id.casefold()] > 1})
        if twice:
            found = ", ".join(twice[:5])
            raise ValueError(f"{self.source}: two cases have the same id: {found}; each id must be its own")

    def only(self, split: str | None) -> Cohort:
        """The cases of one split (None: all).

        Raises:
            ValueError: no such split; the message lists those that there are.
        """
        if split is None:
            return self
        cases = tuple(case for case in self.cases if case.split == split)
        if not cases:
            there = sorted({case.split for case in self.cases if case.split}) or ["none"]
            raise ValueError(f"{self.source}: no case has the split {split!r}; splits found: {', '.join(there)}")
        return replace(self, cases=cases)

    def to_json(self) -> dict:
        return {
            "source": self.source,
            "modality": self.modality,
            "structures": self.labels.to_json() if self.labels else None,
            "cases": [_case_to_json(case) for case in self.cases],
        }

    @classmethod
    def from_json(cls, content: dict) -> Cohort:
        labels = Labels.from_json(content["structures"]) if content.get("structures") else None
        cases = tuple(_case_from_json(case) for case in content["cases"])
        return cls(cases, labels, content.get("modality", ""), content.get("source", ""))


def read_recorded(file: Path) -> Cohort:
    """The cohort.json of a run.

    Raises:
        FileNotFoundError, ValueError: missing, or damaged.
    """
    try:
        return Cohort.from_json(read_json(file))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is damaged: it holds no list of cases as a run has it ({error})") from error


@dataclass
class _Found:
    """What a reader found before it becomes a Cohort."""

    cases: list[Case] = field(default_factory=list)
    dataset: dict = field(default_factory=dict)


def read_cohort(path: Path | str, split: str | None = None, labels: Path | str | None = None) -> Cohort:
    """Read a cohort from disk; the images themselves are not opened.

    Args:
        path: a folder of images, a folder with `images/` and `labels/`, a table (.csv, .tsv: id, image, and if known
            label, group, split; paths relative to the table; several channels divided by `|`), a `dataset.json`
            (Medical Decathlon, nnU-Net), or one image.
        split: only the cases of this split.
        labels: file with the structures' names (dataset.json or Slicer's .ctbl); else a dataset.json beside is used.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: it holds no cases, or cannot be understood; the message says what was looked for.
    """
    path = Path(os.path.abspath(path))  # without "..": the same file has the same name from everywhere
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file or folder")
    found = _read(path)
    if not found.cases:
        looked_for = ", ".join(suffix for suffix in SUFFIXES if suffix != SEGMENTATION)
        raise ValueError(f"{path}: no images found; looked for {looked_for} and folders of DICOM files")
    named = read_labels(Path(labels)) if labels else _labels_of(found.dataset, path)
    cohort = Cohort(tuple(found.cases), named, _modality_of(found.dataset), str(path))
    return cohort.only(split)


def stem_of(path: Path) -> str:
    """File name without its known suffix: `a.nii.gz` -> `a`."""
    name = path.name
    suffix = next((s for s in SUFFIXES if name.lower().endswith(s)), path.suffix)
    return name[: len(name) - len(suffix)] if suffix else name


def is_image(path: Path) -> bool:
    """Whether a file's name is that of an image or of a segmentation."""
    return path.is_file() and not path.name.startswith(".") and path.name.lower().endswith(SUFFIXES)


def is_segmentation(path: Path) -> bool:
    return path.name.lower().endswith(SEGMENTATION)


def is_dicom_folder(path: Path) -> bool:
    """Whether a folder holds a DICOM series; not one that may not be read, such as lost+found."""
    with contextlib.suppress(PermissionError):
        return path.is_dir() and any(is_dicom(file) for file in sorted(path.iterdir())[:50])
    return False


def images_in(folder: Path) -> dict[str, tuple[Path, ...]]:
    """Case id -> image files (in channel order) of a folder: images, nnU-Net's `_0000` channels, DICOM series.

    A .seg.nrrd is no image: it lies beside the image that it segments, under a name of Slicer's choice.
    """
    files = sorted(entry for entry in folder.iterdir() if is_image(entry) and not is_segmentation(entry))
    matches = {file: CHANNEL_OF_NNUNET.match(stem_of(file)) for file in files}
    several = {m["case"] for m in matches.values() if m and m["channel"] == "0000"}
    # A numbered series of pictures (scan_0000 to scan_0123) is that many cases, not one with many channels.
    several -= {m["case"] for m in matches.values() if m and int(m["channel"]) >= MOST_CHANNELS}
    cases: dict[str, list[Path]] = {}
    for file in files:
        match = matches[file]
        case = match["case"] if match and match["case"] in several else stem_of(file)
        if case in cases and not (match and match["case"] in several):
            raise ValueError(f"{folder}: two cases have the same id: {cases[case][0].name} and {file.name}")
        cases.setdefault(case, []).append(file)
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not entry.name.startswith(".") and is_dicom_folder(entry):
            if entry.name in cases:
                raise ValueError(f"{folder}: two cases have the same id: {cases[entry.name][0].name} and {entry.name}")
            cases[entry.name] = [entry]
    return {case: tuple(files) for case, files in cases.items()}


def annotation_of(case_id: str, folder: Path) -> Path | None:
    """The file in `folder` that annotates a case, whatever its format; .seg.nrrd before others."""
    candidates = (folder / f"{case_id}{suffix}" for suffix in (SEGMENTATION, *SUFFIXES))
    return next((path for path in candidates if path.is_file()), None) if folder.is_dir() else None


def _read(path: Path) -> _Found:
    readers = {".csv": _from_table, ".tsv": _from_table, ".json": _from_dataset}
    if not path.is_dir():
        return readers.get(path.suffix.lower(), _from_image)(path)
    if (path / "cohort.csv").is_file():
        return _from_table(path / "cohort.csv")
    if (path / "dataset.json").is_file() and not (path / "images").is_dir():
        return _from_dataset(path / "dataset.json")
    return _from_folder(path)


def _from_image(path: Path) -> _Found:
    return _Found([Case(stem_of(path), (path,))])


def _from_folder(path: Path) -> _Found:
    if is_dicom_folder(path):
        return _Found([Case(path.name, (path,))])
    images = path / "images" if (path / "images").is_dir() else path
    labels = path / "labels"
    cases = [Case(id_, files, annotation_of(id_, labels)) for id_, files in images_in(images).items()]
    return _Found(cases, _dataset_beside(path))


def _from_table(path: Path) -> _Found:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 text ({error}); save the table as CSV UTF-8") from error
    header = text.split("\n", 1)[0]
    reader = csv.DictReader(text.splitlines(), delimiter=max(",;\t", key=header.count))
    if not {"id", "image"} <= set(reader.fieldnames or ()):
        needed = "the columns id and image (and label, group, split)"
        raise ValueError(f"{path}: the first line must name {needed}; found {header.strip()!r}")
    try:
        cases = [_case_of_row(path, reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num + 1}: cannot be read as a table ({error})") from error
    if not cases:
        raise ValueError(f"{path}: names no cases; the table ends after its first line")
    return _Found(cases, _dataset_beside(path.parent))


def _case_of_row(table: Path, line: int, row: dict) -> Case:
    cell = {key: value.strip() for key, value in row.items() if isinstance(key, str) and isinstance(value, str)}
    if not cell.get("id") or not cell.get("image"):
        raise ValueError(f"{table}, line {line}: id or image is empty")
    images = tuple(table.parent / part.strip() for part in cell["image"].split(SEVERAL_FILES))
    label = table.parent / cell["label"] if cell.get("label") else None
    return Case(cell["id"], images, label, cell.get("group", ""), cell.get("split", ""))


def _from_dataset(path: Path) -> _Found:
    """Cases of a dataset.json: our `cases`, Decathlon's `training` and `test`, else nnU-Net's folders beside it.

    One that lists none, such as the one with the names that `segment` writes, leaves them to the folder.
    """
    dataset = read_json(path)
    if not isinstance(dataset, dict):
        raise ValueError(f"{path}: a dataset.json holds one object; found a {type(dataset).__name__}")
    cases = []
    for part, split in (("cases", ""), ("training", "training"), ("test", "test")):
        entries = dataset.get(part)
        for number, entry in enumerate(entries if isinstance(entries, list) else (), 1):
            cases.append(_case_of_entry(entry, path, split, f"entry {number} of {part}"))
    return _Found(cases or _from_nnunet_folders(path.parent) or _from_folder(path.parent).cases, dataset)


def _case_of_entry(entry: dict | str, path: Path, split: str, what: str) -> Case:
    content = {"image": entry} if isinstance(entry, str) else entry
    if not isinstance(content, dict) or not isinstance(content.get("image"), str):
        raise ValueError(f"{path}: {what} names no image; found {entry!r}")
    image = path.parent / content["image"]
    if not isinstance(content.get("label") or "", str):
        raise ValueError(f"{path}: {what} names its label by {content['label']!r}; the name of a file is needed")
    label = path.parent / content["label"] if content.get("label") else None
    id_ = content.get("id") or stem_of(image)
    return Case(str(id_), _channels_of(image), label, str(content.get("group", "")), content.get("split", split))


def _channels_of(image: Path) -> tuple[Path, ...]:
    """The files of a listed image: nnU-Net v1 lists `a.nii.gz` where `a_0000.nii.gz` and so on lie."""
    if image.exists():
        return (image,)
    stem = stem_of(image)
    numbered = [image.with_name(f"{stem}_{n:04d}{image.name[len(stem) :]}") for n in range(MOST_CHANNELS)]
    return tuple(takewhile(Path.is_file, numbered)) or (image,)


def _from_nnunet_folders(root: Path) -> list[Case]:
    cases = []
    for images, labels, split in (("imagesTr", "labelsTr", "training"), ("imagesTs", "labelsTs", "test")):
        if (root / images).is_dir():
            found = images_in(root / images).items()
            cases += [Case(id_, files, annotation_of(id_, root / labels), split=split) for id_, files in found]
    return cases


def _dataset_beside(folder: Path) -> dict:
    """The dataset.json of a folder when there is one; it gives structures and modality."""
    path = folder / "dataset.json"
    content = read_json(path) if path.is_file() else {}
    return content if isinstance(content, dict) else {}


def _labels_of(dataset: dict, path: Path) -> Labels | None:
    try:
        return labels_of_dataset(dataset)
    except ValueError as error:
        raise ValueError(f"{path}: the dataset.json cannot be used: {error}") from error


def _modality_of(dataset: dict) -> str:
    """Modality as text: a string, Decathlon's `modality` or nnU-Net's `channel_names` ({"0": "CT"})."""
    modality = dataset.get("modality") or dataset.get("channel_names") or ""
    return ", ".join(map(str, modality.values())) if isinstance(modality, dict) else str(modality)


def is_dicom(path: Path) -> bool:
    """DICOM files carry DICM after a preamble of 128 bytes."""
    if not path.is_file() or path.name.startswith(".") or path.name.upper() == "DICOMDIR":
        return False
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def _case_to_json(case: Case) -> dict:
    content = {"id": case.id, "images": [str(p) for p in case.images], "group": case.group, "split": case.split}
    return {**content, "label": str(case.label) if case.label else None}


def _case_from_json(content: dict) -> Case:
    label = Path(content["label"]) if content.get("label") else None
    if not isinstance(content["images"], list):
        raise TypeError("images is no list")
    images = tuple(Path(p) for p in content["images"])
    return Case(content["id"], images, label, content.get("group", ""), content.get("split", ""))


def dataset_of(labels: Labels) -> dict:
    """What a `dataset.json` beside label maps holds, whose format cannot hold names."""
    names = {"background": 0, **{s.name: s.value for s in labels.structures}}
    return {"labels": names, "structures": labels.to_json()}


def write_names(folder: Path, labels: Labels) -> None:
    """Write the structures beside label maps whose format cannot hold names, as `dataset.json`."""
    write_json(folder / "dataset.json", dataset_of(labels))
