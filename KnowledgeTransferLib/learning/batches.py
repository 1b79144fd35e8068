"""Batches: prepared cases on disk, and the patches of one training step drawn from them.

What step n sees depends on the seed and on n alone, so a resumed training goes on bit for bit where it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ..records.run_directory import read_json, told_when_full, write_json
from ..records.settings import DistilSettings

SPOTS = 512  # remembered foreground voxels per structure, to centre patches on


@dataclass(frozen=True)
class PreparedCase:
    """One case on the student's grid, mapped from disk: the page cache is the only copy.

    `image (C, i, j, k)` float16; `target` uint8: a label map of channels `(1, i, j, k)`, or class probabilities
    `(classes, i, j, k)` in steps of 1/255; `spots (n, 3)`: voxels that lie in a structure. A voxel counts `weight`
    times its `weights (1, i, j, k)`, uint8 in steps of 1/255 (None: 1); `unknown` are the channels that nobody judged.
    """

    id: str
    group: str
    image: np.ndarray
    target: np.ndarray
    spots: np.ndarray
    weights: np.ndarray | None = None
    weight: float = 1.0
    unknown: tuple[int, ...] = ()


class PreparedCases:
    """The folder of prepared cases of a run. It holds patients' images and is removed when the run is done."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.index = folder / "index.json"

    def write(
        self, number: int, image: torch.Tensor, target: torch.Tensor, seed: int, weights: torch.Tensor | None = None
    ) -> None:
        spots = _spots(target, np.random.default_rng((seed, number)))
        arrays = {"image": image.half().numpy(), "target": target.numpy(), "spots": spots}
        arrays |= {} if weights is None else {"weights": weights.numpy()}
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, array in arrays.items():
            with told_when_full(self._file(number, name)):
                np.save(self._file(number, name), array, allow_pickle=False)

    def complete(self, index: dict) -> None:
        """Write the index: only now the folder counts as prepared.

        Its `cases` have number, id and group and, where they are not as usual, `weight` and `unknown`.
        """
        write_json(self.index, index)

    def read_index(self) -> dict:
        if not self.index.is_file():
            raise FileNotFoundError(
                f"{self.index} is missing: without the images that were prepared for it the training cannot go on; "
                "begin anew with --restart"
            )
        return read_json(self.index)

    def load(self) -> list[PreparedCase]:
        return [self._load(case) for case in self.read_index()["cases"]]

    def _load(self, case: dict) -> PreparedCase:
        files = {name: self._file(case["number"], name) for name in ("image", "target", "spots", "weights")}
        arrays = {
            name: np.load(file, mmap_mode="r", allow_pickle=False)
            for name, file in files.items()
            if name != "weights" or file.is_file()
        }
        others = {"weight": case.get("weight", 1.0), "unknown": tuple(case.get("unknown", ()))}
        return PreparedCase(case["id"], case["group"], **arrays, **others)

    def _file(self, number: int, name: str) -> Path:
        return self.folder / f"{number:05d}.{name}.npy"


class Batch(NamedTuple):
    """The patches of one training step, as they lie on disk.

    `image (B, C, i, j, k)` float32; `target (B, 1 or classes, i, j, k)` uint8; `weights (B, 1, i, j, k)` float32, or
    None where every voxel counts 1; `known (B, classes)` bool, or None where all are.
    """

    image: torch.Tensor
    target: torch.Tensor
    weights: torch.Tensor | None = None
    known: torch.Tensor | None = None


@dataclass
class Sampler:
    """Draws the patches of a training step.

    Args:
        rank, ranks: this process and how many there are; each draws its own share of a batch.
    """

    cases: list[PreparedCase]
    classes: int
    settings: DistilSettings
    rank: int = 0
    ranks: int = 1

    @property
    def steps_per_epoch(self) -> int:
        return max(1, -(-len(self.cases) // (self.settings.batch_size * self.ranks)))

    def __post_init__(self):
        self.weighted = any(case.weights is not None or case.weight != 1 for case in self.cases)
        self.partial = any(case.unknown for case in self.cases)

    def __call__(self, step: int) -> Batch:
        """The batch of one step."""
        drawn = [self._place(step, slot) for slot in range(self.settings.batch_size)]
        cut = [(case, start, self.settings.patch_size_voxels) for case, start in drawn]
        images = torch.from_numpy(np.stack([_cut(case.image, *where) for case, *where in cut])).float()
        targets = self._stack([_cut(case.target, *where) for case, *where in cut])
        weights = np.stack([_weights(case, *where) for case, *where in cut]) if self.weighted else None
        known = [[c not in case.unknown for c in range(self.classes)] for case, _ in drawn] if self.partial else None
        return Batch(
            images, targets, None if weights is None else torch.from_numpy(weights), known and torch.tensor(known)
        )

    def _stack(self, targets: list[np.ndarray]) -> torch.Tensor:
        """Label maps and probabilities in one batch all become probabilities."""
        if len({len(t) for t in targets}) > 1:
            targets = [_steps_of_labels(t, self.classes) if len(t) == 1 else t for t in targets]
        return torch.from_numpy(np.stack(targets))

    def _place(self, step: int, slot: int) -> tuple[PreparedCase, list[int]]:
        """A case, and the first voxel of the patch to cut out of it."""
        place = (step * self.ranks + self.rank) * self.settings.batch_size + slot
        epoch, position = divmod(place, len(self.cases))
        order = np.random.default_rng((self.settings.seed, 1, epoch)).permutation(len(self.cases))
        case = self.cases[order[position]]
        random = np.random.default_rng((self.settings.seed, 2, place))
        return case, self._start(case, random)

    def _start(self, case: PreparedCase, random: np.random.Generator) -> list[int]:
        """First voxel of a patch: anywhere inside the image or, in a share of the draws, around a structure."""
        centred = random.random() < self.settings.foreground_share and len(case.spots)
        spot = case.spots[random.integers(len(case.spots))] if centred else None
        start = []
        for axis, (length, patch) in enumerate(zip(case.image.shape[1:], self.settings.patch_size_voxels, strict=True)):
            room = length - patch
            if room <= 0:
                start.append(room // 2)  # the patch reaches over both ends
            elif spot is None:
                start.append(int(random.integers(room + 1)))
            else:
                start.append(int(np.clip(spot[axis] - random.integers(patch // 4, 3 * patch // 4 + 1), 0, room)))
        return start


def to_probabilities(target: torch.Tensor, classes: int) -> torch.Tensor:
    """Targets as the sampler gives them, as class probabilities `(B, classes, i, j, k)` float32."""
    if target.shape[1] > 1:
        return target.float() / 255
    numbers = torch.arange(classes, device=target.device, dtype=torch.uint8).reshape(1, -1, 1, 1, 1)
    return (target == numbers).float()


def _steps_of_labels(target: np.ndarray, classes: int) -> np.ndarray:
    return (target == np.arange(classes, dtype=np.uint8)[:, None, None, None]).astype(np.uint8) * 255


def _weights(case: PreparedCase, start: list[int], size: tuple[int, ...]) -> np.ndarray:
    """How much each voxel of a patch counts `(1, *size)` float32."""
    if case.weights is None:
        return np.full((1, *size), case.weight, np.float32)
    return _cut(case.weights, start, size) * np.float32(case.weight / 255)


def _cut(array: np.ndarray, start: list[int], size: tuple[int, ...]) -> np.ndarray:
    """Cut `(C, *size)` out of `(C, i, j, k)`; beyond the image its edge goes on."""
    inside = tuple(slice(max(s, 0), s + n) for s, n in zip(start, size, strict=True))
    part = array[(slice(None), *inside)]
    missing = [(max(-s, 0), max(s + n - length, 0)) for s, n, length in zip(start, size, array.shape[1:], strict=True)]
    return np.pad(part, [(0, 0), *missing], mode="edge") if any(map(any, missing)) else part


def _spots(target: torch.Tensor, random: np.random.Generator) -> np.ndarray:
    """Up to SPOTS voxels of each structure `(n, 3)`, so that rare structures are met as often as large ones."""
    decision = (target[0] if len(target) == 1 else target.argmax(0)).numpy()
    spots = []
    for channel in np.unique(decision[decision > 0]):
        voxels = np.argwhere(decision == channel)
        spots.append(random.permutation(voxels)[:SPOTS])
    return np.concatenate(spots).astype(np.int32) if spots else np.zeros((0, 3), np.int32)
