"""Teachers: whatever gives class probabilities for a volume. A kind is a class listed in TEACHER_KINDS.

A kind has a NAME and a sentence KIND for people, recognises its files, opens them, tells their checksum, and describes
them without opening a network.
"""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Protocol

import numpy as np
from scipy import special
from torch import nn

from ..records import bundle
from ..records.cohort import annotation_of, is_image
from ..records.labels import Labels
from .segments import labels_of_folder
from .student import load_student
from .volume import Volume, read_annotation


class Teacher(Protocol):
    """What annotates. `network` is None for a black box; some have a `hint` that a person should read."""

    name: str
    labels: Labels
    network: nn.Module | None

    def predict(self, volume: Volume) -> np.ndarray:
        """Class probabilities `(C, I, J, K)` float32 in the geometry of the volume, background first."""


class OwnBundle:
    """A bundle that KnowledgeTransfer made, or the run directory whose student it is."""

    NAME = "student"
    KIND = "bundle made by KnowledgeTransfer (a folder with configs/ and models/), or a run directory with a student/"

    @staticmethod
    def recognises(path: Path) -> bool:
        return bundle.is_bundle(bundle.bundle_in(path))

    @staticmethod
    def open(path: Path, device: str, labels: Labels | None) -> Teacher:
        return load_student(path, device)

    @staticmethod
    def describe(path: Path) -> dict:
        folder = bundle.bundle_in(path)
        ours = bundle.read_metadata(folder)[bundle.OURS]
        try:
            labels = Labels.from_json(ours["labels"])
            kinds = [normalisation["kind"] for normalisation in ours["preprocessing"]["normalisation"]]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{folder}: the bundle's metadata are damaged ({error!r})") from error
        card = folder / bundle.MODEL_CARD
        return {
            "labels": labels, "channels": len(kinds), "hint": "",
            "modality": "CT" if set(kinds) == {"ct"} else "",
            "card": card.read_text(encoding="utf-8") if card.is_file() else "",
        }  # fmt: skip

    @staticmethod
    def sha256(path: Path) -> str:
        return bundle.sha256(bundle.bundle_in(path) / bundle.WEIGHTS)


class AnnotationsOnDisk:
    """Segmentations that lie on disk, from any tool or hand: `<case id>.<suffix>` in one folder."""

    NAME = "segmentations"
    KIND = "folder of segmentations named like the cases (.seg.nrrd, .nii.gz, .nrrd, .mha, .png)"
    network = None

    def __init__(self, folder: Path, labels: Labels, hint: str = ""):
        self.folder, self.labels, self.name, self.hint = folder, labels, folder.name, hint

    @staticmethod
    def recognises(path: Path) -> bool:
        return path.is_dir() and any(is_image(file) for file in path.iterdir())

    @classmethod
    def open(cls, path: Path, device: str, labels: Labels | None) -> Teacher:
        labels = labels_of_folder(path) or labels
        if labels is not None:
            return cls(path, labels)
        labels, advice = _unnamed(path), "put a dataset.json into it or give --labels"
        if not labels.structures:
            raise ValueError(f"{path}: nothing names the structures, and no value tells them; {advice}")
        return cls(path, labels, f"{path}: nothing names the structures {', '.join(labels.names)}; {advice}")

    @classmethod
    def describe(cls, path: Path) -> dict:
        opened, count = cls.open(path, "cpu", None), sum(map(is_image, path.iterdir()))
        return {
            "labels": opened.labels, "channels": None, "modality": "", "hint": opened.hint,
            "card": f"{count} segmentations, which go to the cases of the same names.",
        }  # fmt: skip

    @staticmethod
    def sha256(path: Path) -> str:
        return ""  # a folder may grow: a segmentation that was missing is added, and annotate goes on

    def predict(self, volume: Volume) -> np.ndarray:
        file = annotation_of(volume.name, self.folder)
        if file is None:
            raise FileNotFoundError(f"{self.folder}: holds no segmentation of the case {volume.name}")
        annotation = read_annotation(file, self.labels, volume)
        return np.stack([(annotation == value) for value in self.labels.values]).astype(np.float32)


def _unnamed(folder: Path) -> Labels:
    """ "structure 1" and so on: the values in a folder of label maps; a file that cannot be read has none."""
    values = set()
    for file in sorted(entry for entry in folder.iterdir() if is_image(entry)):
        with contextlib.suppress(OSError, ValueError, RuntimeError, MemoryError):  # told when its case is annotated
            values.update(np.unique(read_annotation(file)).tolist())
    return Labels.unnamed(sorted(values - {0}))


TEACHER_KINDS = (OwnBundle, AnnotationsOnDisk)


class Ensemble:
    """Several teachers that are one: the weighted mean of their probabilities (Wang et al., arXiv:2101.09560).

    Raises:
        ValueError: the teachers do not know the same structures, or a weight is not above 0.
    """

    network = None

    def __init__(self, teachers: list[Teacher], weights: list[float]):
        self.teachers, self.labels = teachers, teachers[0].labels
        self.name = " + ".join(t.name for t in teachers)
        self.hint = "\n".join(filter(None, (getattr(t, "hint", "") for t in teachers)))
        if not all(0 < w < math.inf for w in weights):
            raise ValueError(f"weights of teachers must be above 0; found {weights}")
        self.weights = [w / sum(weights) for w in weights]
        for teacher in teachers[1:]:
            if set(teacher.labels.names) != set(self.labels.names):
                raise ValueError(
                    f"{teacher.name} knows {', '.join(teacher.labels.names)}, but {teachers[0].name} knows "
                    f"{', '.join(self.labels.names)}; teachers must know the same structures"
                )

    def predict(self, volume: Volume) -> np.ndarray:
        total = 0
        for teacher, weight in zip(self.teachers, self.weights, strict=True):
            order = [0] + [1 + teacher.labels.names.index(name) for name in self.labels.names]
            total = total + weight * teacher.predict(volume)[order]
        return total


def kind_of(path: Path):
    """The kind of teacher that a path is.

    Raises:
        FileNotFoundError, ValueError: nothing there, or no known kind; the message lists the kinds.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such teacher")
    for kind in TEACHER_KINDS:
        if kind.recognises(path):
            return kind
    kinds = "; ".join(kind.KIND for kind in TEACHER_KINDS)
    raise ValueError(f"{path}: is no kind of teacher that is known. Known are: {kinds}")


def confidence_of(probabilities: np.ndarray) -> float:
    """Soft Dice confidence (arXiv:2402.10665): the Dice that the teacher itself expects of its decision.

    Twice the probability inside the decided structure over the sum of the whole probability and the structure's size,
    averaged over the structures found; 0 where nothing was found. Hard annotations have 1.

    Args:
        probabilities: `(C, I, J, K)`, background first.
    """
    decision = probabilities.argmax(0)
    scores = []
    for channel in np.unique(decision[decision > 0]):
        inside = decision == channel
        expected = 2 * probabilities[channel][inside].sum(dtype=np.float64)
        scores.append(expected / (probabilities[channel].sum(dtype=np.float64) + inside.sum()))
    return float(np.mean(scores)) if scores else 0.0


def uncertainty_of(probabilities: np.ndarray) -> np.ndarray:
    """Entropy of the class probabilities, as a share of the largest there can be: `(I, J, K)` float32 from 0 to 1.

    Args:
        probabilities: `(C, I, J, K)`, background first. They are taken one class at a time, which needs little memory.
    """
    total = np.zeros(probabilities.shape[1:], np.float32)
    for probability in probabilities:
        total += special.entr(np.clip(probability, 0, 1))
    return np.clip(total / np.float32(math.log(len(probabilities))), 0, 1)
