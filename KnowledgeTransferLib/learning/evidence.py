"""Evidence: the images on which an export is checked and, for 8-bit integers, calibrated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..records.cohort import Case, Cohort
from ..records.labels import Labels
from ..records.progress import FAILURES
from .preprocessing import Preprocessing
from .segments import plain_name
from .volume import Volume, read_annotation, read_image

if TYPE_CHECKING:
    from .student import Student

MOST_CASES = 16  # half of them calibrate, the others check
MOST_IMAGES = 3  # whose labels are compared with the student's own
EDGE = {2: 512, 3: 128}  # of the middle of an image that is taken, in voxels
SLICES = 8  # of a volume, for a student of slices
RANDOM = "random images"


@dataclass(frozen=True)
class Evidence:
    """Cases, evenly spread over a cohort, and where they come from; without cases random images are taken."""

    source: str = RANDOM
    cases: tuple[Case, ...] = ()
    labels: Labels | None = None  # of the expert annotations

    @property
    def checking(self) -> tuple[Case, ...]:
        return self.cases[::2]

    @property
    def calibrating(self) -> tuple[Case, ...]:
        """Other cases than those that check, where there is more than one."""
        return self.cases[1::2] or self.cases

    def batches(self, student: Student) -> list[torch.Tensor]:
        """What the student's network sees of the images that check: `(B, C, *size)`."""
        return list(batches_of(student, self.checking[:MOST_IMAGES])) or _random_batches(student)

    def expert(self, case: Case, volume: Volume, labels: Labels) -> np.ndarray | None:
        """The expert annotation `(I, J, K)` with the values of `labels`, matched by name; None where there is none."""
        known = {plain_name(structure.name): structure.value for structure in labels.structures}
        if case.label is None or self.labels is None or not known.keys() & set(map(plain_name, self.labels.names)):
            return None
        try:
            annotation = read_annotation(case.label, self.labels, volume)
        except (ValueError, OSError):  # whoever trained on the cohort, or evaluates on it, is told
            return None
        table = np.zeros(256, np.uint8)
        for structure in self.labels.structures:
            table[structure.value] = known.get(plain_name(structure.name), 0)
        return table[annotation]


def evidence_of(cohort: Cohort, source: str) -> Evidence:
    """Cases evenly spread over a cohort whose images are there; RANDOM where none is."""
    there = [case for case in cohort.cases if all(file.exists() for file in case.images)]
    chosen = tuple(there[index] for index in _spread(len(there), MOST_CASES))
    return Evidence(source, chosen, cohort.labels) if chosen else Evidence()


def volumes_of(cases: Sequence[Case], preprocessing: Preprocessing) -> Iterator[tuple[Case, Volume]]:
    """One at a time, of those that a student with this preprocessing can look at.

    One bad scan of a cohort is left out; when there is no other, it raises what is wrong with it.
    """
    count, wrong = 0, None
    for case in cases:
        try:
            volume = read_image(case.images, case.id)
            preprocessing.check(volume)
        except FAILURES as error:
            wrong = error
        else:
            count += 1
            yield case, volume
    if wrong is not None and count == 0:
        raise wrong


def batches_of(student: Student, cases: Sequence[Case]) -> Iterator[torch.Tensor]:
    """The middle of each image as the student's network sees it, one at a time."""
    for _, volume in volumes_of(cases, student.preprocessing):
        yield _batch(student, student.preprocessing.prepare(volume)[0])


def _spread(count: int, most: int) -> list[int]:
    return [index * count // min(count, most) for index in range(min(count, most))]


def _batch(student: Student, image: torch.Tensor) -> torch.Tensor:
    """The middle of a prepared image `(C, i, j, k)`, in a size that the network takes."""
    stride, dimensions = student.network.total_stride, student.preprocessing.dimensions
    most = [EDGE[dimensions]] * dimensions + [SLICES] * (3 - dimensions)
    middle = [slice(max(0, (n - m) // 2), max(0, (n - m) // 2) + m) for n, m in zip(image.shape[1:], most, strict=True)]
    image = image[(slice(None), *middle)]
    batch = image[None] if dimensions == 3 else image.permute(3, 0, 1, 2)
    missing = [max(-n % stride, 2 * stride - n) for n in reversed(batch.shape[2:])]
    padding = [part for n in missing for part in (0, n)]
    return torch.nn.functional.pad(batch, padding, mode="replicate").contiguous()


def _random_batches(student: Student) -> list[torch.Tensor]:
    """Two images of different size with smooth regions, in prepared grey values."""
    stride, generator = student.network.total_stride, torch.Generator().manual_seed(0)
    sizes = [(3 * stride, 4 * stride, 5 * stride), (5 * stride, 3 * stride, 3 * stride)]
    smooth = [torch.randn(1, student.preprocessing.channels, *(n // 4 for n in s), generator=generator) for s in sizes]
    images = [torch.nn.functional.interpolate(m, s, mode="trilinear")[0] for m, s in zip(smooth, sizes, strict=True)]
    return [_batch(student, image) for image in images]
