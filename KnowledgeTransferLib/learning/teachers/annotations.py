"""Annotations: segmentations that lie on disk, as a teacher."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np

from ...records.cohort import annotation_of, is_image
from ...records.labels import Labels
from ..segments import labels_of_folder
from ..volume import Volume, read_annotation
from .teacher import Teacher


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
