"""Preprocessing: from a volume to what a student sees (orientation, spacing, intensity), and back."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from numbers import Real

import nibabel
import numpy as np
import psutil
import torch
import torch.nn.functional as F

from .ahead import in_threads
from .resampling import Places, on_planes, places
from .volume import Volume
from .voxel_checks import times
from .way_back import WayBack

KINDS = ("ct", "z-score")
PERCENTILES = (0.5, 99.5)
SAMPLED_VOXELS = 1 << 20  # percentiles are taken from at most about this many voxels, evenly spread
PIECE_VOXELS = 1 << 15  # that are looked at together: they stay in the processor's cache
BYTES_PER_VOXEL = 8  # of a prepared image: 32 bits, twice while it is resampled or padded
LARGEST = sys.float_info.max
SPACINGS_MM = (1e-6, 1e6)  # from a microscope's picture to a satellite's
SAME_SPACING = 0.01  # a difference of one per cent is not resampled


@dataclass(frozen=True)
class Normalisation:
    """How grey values become numbers around 0.

    ct: clip to `low..high`, subtract `mean`, divide by `deviation`, the same for all images (Hounsfield units).
    z-score: clip to the image's own percentiles 0.5 and 99.5, subtract its mean, divide by its standard deviation.
    """

    kind: str
    low: float = 0.0
    high: float = 0.0
    mean: float = 0.0
    deviation: float = 1.0

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"the normalisation is {self.kind!r}; allowed are {', '.join(KINDS)}")
        for name in ("low", "high", "mean", "deviation"):
            value = getattr(self, name)
            if not _is_within(value, -LARGEST, LARGEST) or (name == "deviation" and value <= 0):
                needed = "a number above 0" if name == "deviation" else "a finite number"
                raise ValueError(f"the normalisation's {name} is {value!r}; {needed} is needed")

    def of_image(self, channel: np.ndarray) -> Normalisation:
        """The same with the numbers that hold for this image `(I, J, K)` of any type."""
        if self.kind == "ct":
            return self
        step = channel.size // SAMPLED_VOXELS | 1  # odd: an even one would see only some slices of an even number
        low, high = np.percentile(_every(channel, step), PERCENTILES)
        mean, deviation = _moments(channel, float(low), float(high))
        return replace(self, low=float(low), high=float(high), mean=mean, deviation=max(deviation, 1e-6))

    def apply(self, grey: np.ndarray) -> np.ndarray:
        """Grey values of any type as float32, with the numbers that this holds."""
        grey = grey.astype(np.float32)
        np.clip(grey, np.float32(self.low), np.float32(self.high), out=grey)
        grey -= np.float32(self.mean)
        grey /= np.float32(self.deviation)
        return grey


def _every(channel: np.ndarray, step: int) -> np.ndarray:
    """Every `step`-th voxel."""
    if step == 1:
        return channel.ravel("K")
    return channel[np.unravel_index(np.arange(0, channel.size, step), channel.shape)].astype(np.float32)


def _moments(channel: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """Mean and standard deviation of the clipped voxels, piece by piece in the order in which they lie in memory."""
    planes = channel.transpose(sorted(range(3), key=lambda axis: -abs(channel.strides[axis])))
    step = max(1, PIECE_VOXELS // planes[0].size)
    centre = (low + high) / 2

    def sums(piece: np.ndarray) -> tuple[float, float]:
        values = np.clip(piece.astype(np.float32), np.float32(low), np.float32(high)).astype(np.float64).ravel()
        values -= centre
        return values.sum(), np.einsum("i,i", values, values)  # BLAS would wake threads that then wait on all cores

    pieces = [planes[n : n + step] for n in range(0, len(planes), step)]
    total, squares = np.sum(in_threads(sums, pieces, channel.size), 0) / channel.size
    return float(total + centre), math.sqrt(max(0.0, squares - total**2))


@dataclass(frozen=True)
class Grid:
    """Where a prepared image lies: enough to bring what a network said of it back to the volume."""

    shape: tuple[int, int, int]  # of the volume
    axes: tuple[int, int, int]  # axis of the volume that became each prepared axis
    flipped: tuple[int, ...]  # prepared axes that run the other way in the volume

    def to_volume(self, array: np.ndarray) -> np.ndarray:
        """Undo the orientation of `(..., i, j, k)`."""
        lead = array.ndim - 3
        array = np.flip(array, [lead + a for a in self.flipped]) if self.flipped else array
        return np.ascontiguousarray(array.transpose(*range(lead), *(lead + int(a) for a in np.argsort(self.axes))))

    def from_volume(self, array: np.ndarray) -> np.ndarray:
        """Apply the orientation to `(..., I, J, K)`."""
        return np.ascontiguousarray(self.seen(array))

    def seen(self, array: np.ndarray) -> np.ndarray:
        """`(..., I, J, K)` in the orientation, not copied."""
        lead = array.ndim - 3
        array = array.transpose(*range(lead), *(lead + a for a in self.axes))
        return np.flip(array, [lead + a for a in self.flipped]) if self.flipped else array

    @property
    def oriented_shape(self) -> tuple[int, int, int]:
        return tuple(self.shape[a] for a in self.axes)


@dataclass(frozen=True)
class Preprocessing:
    """What a student needs to know of a volume before it looks at it. Travels in its bundle."""

    dimensions: int  # 2: slice by slice over K; 3: volumes
    spacing_mm: tuple[float, float, float]  # along right, anterior, superior; of pictures: along I, J
    normalisation: tuple[Normalisation, ...]  # one per channel

    def __post_init__(self):
        if type(self.dimensions) is not int or self.dimensions not in (2, 3):
            raise ValueError(f"dimensions is {self.dimensions!r}; students work in 2 or 3 dimensions")
        low, high = SPACINGS_MM
        if len(self.spacing_mm) != 3 or not all(_is_within(s, low, high) for s in self.spacing_mm):
            raise ValueError(
                f"spacing_mm is {self.spacing_mm!r}; three numbers from {low:g} to {high:g} are needed "
                "(pictures: 1 at the end)"
            )

    @property
    def channels(self) -> int:
        return len(self.normalisation)

    def prepare(self, volume: Volume) -> tuple[torch.Tensor, Grid]:
        """Bring a volume to the student's grid.

        Returns:
            image `(C, i, j, k)` float32, and the grid that leads back.

        Raises:
            ValueError: other number of channels, a single slice for a student of volumes, or too large for the memory
                at the student's spacing.
        """
        self.check(volume)
        grid = grid_of(volume)
        size = self.size_of(volume, grid)
        self._check_memory(volume, size)
        image = np.empty((self.channels, *size), np.float32)
        along, wait = _along_volume(grid, size), self._wait_for(volume)
        for prepared, normalisation, channel in zip(image, self.normalisation, volume.array, strict=True):
            normalised = normalisation.of_image(grid.seen(channel))
            prepared[...] = on_planes(channel, along, normalised.apply, wait).transpose(grid.axes)
        return torch.from_numpy(image), grid

    def _wait_for(self, volume: Volume) -> Callable[[int], None] | None:
        """What waits for the planes of a volume that is still being read; None where all are there, or have to be."""
        if volume.arriving is None:
            return None
        if all(normalisation.kind == "ct" for normalisation in self.normalisation):
            return volume.arriving.wait
        volume.arriving.end()
        return None

    def check(self, volume: Volume) -> None:
        if volume.channels != self.channels:
            raise ValueError(f"{volume.name}: has {volume.channels} channels; the student needs {self.channels}")
        if self.dimensions == 3 and volume.is_picture:
            raise ValueError(f"{volume.name}: is a single slice; the student segments volumes (3-D)")

    def _check_memory(self, volume: Volume, size: tuple[int, int, int]) -> None:
        needed = float(np.prod(size, dtype=float)) * self.channels * BYTES_PER_VOXEL
        free = psutil.virtual_memory().available
        if needed > free:
            spacing = " x ".join(f"{s:g}" for s in self.spacing_mm)
            found = f"at the student's spacing of {spacing} mm its {times(size)} voxels need {needed / 2**30:.1f} GiB"
            raise ValueError(f"{volume.name}: {found} of memory; {free / 2**30:.1f} GiB are free")

    def size_of(self, volume: Volume, grid: Grid) -> tuple[int, int, int]:
        """Size of the prepared image: the volume's extent at the student's spacing."""
        found = volume.spacing_mm
        spacing = [found[a] for a in grid.axes]
        along = range(3) if self.dimensions == 3 else range(2)
        size = list(grid.oriented_shape)
        for axis in along:
            ratio = spacing[axis] / self.spacing_mm[axis]
            if abs(ratio - 1) > SAME_SPACING:
                size[axis] = max(1, round(size[axis] * ratio))
        return tuple(size)

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict) -> Preprocessing:
        normalisation = tuple(Normalisation(**n) for n in content["normalisation"])
        return cls(content["dimensions"], tuple(content["spacing_mm"]), normalisation)


def _is_within(value, low: float, high: float) -> bool:
    """Whether a value of JSON is a number in a range; NaN is in none."""
    return isinstance(value, Real) and not isinstance(value, bool) and low <= value <= high


def grid_of(volume: Volume) -> Grid:
    """The grid whose axes run closest to right, anterior, superior; pictures are left as they are."""
    if volume.is_picture:
        return Grid(volume.shape, (0, 1, 2), ())
    return Grid(volume.shape, *_orientation(tuple(volume.affine[:3, :3].ravel().tolist())))


@functools.lru_cache
def _orientation(directions: tuple[float, ...]) -> tuple[tuple[int, int, int], tuple[int, ...]]:
    """Axes and flipped axes of a Grid; the same for all scans that lie alike, as those of a folder most often do."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(directions, (3, 3))
    orientation = nibabel.io_orientation(affine)  # row per volume axis: RAS axis, direction
    axes = tuple(int(a) for a in np.argsort(orientation[:, 0]))
    return axes, tuple(i for i, a in enumerate(axes) if orientation[a, 1] < 0)


def _along_volume(grid: Grid, size: tuple[int, int, int]) -> tuple[Places, ...]:
    """For each axis of the volume, where the voxels of the student's grid lie."""
    along = [None, None, None]
    for axis, own in enumerate(grid.axes):
        found = places(size[axis], grid.shape[own])
        along[own] = found.of_flipped(grid.shape[own]) if axis in grid.flipped else found
    return tuple(along)


def resample(image: torch.Tensor, size: tuple[int, int, int]) -> torch.Tensor:
    """Linear interpolation of `(C, i, j, k)` to another size over the same extent."""
    if tuple(image.shape[1:]) == tuple(size):
        return image
    return F.interpolate(image[None].float(), tuple(size), mode="trilinear", align_corners=False)[0]


def probabilities_in_volume(probabilities: torch.Tensor, grid: Grid) -> np.ndarray:
    """Class probabilities `(C, i, j, k)` of the student's grid as `(C, I, J, K)` float32 of the volume."""
    result = np.empty((len(probabilities), *grid.shape), np.float32)
    for channel, maps in enumerate(probabilities):  # one at a time: all would take as much memory again
        result[channel] = grid.to_volume(resample(maps[None], grid.oriented_shape)[0].numpy())
    return result


def decision_in_volume(probabilities: torch.Tensor, grid: Grid, values: tuple[int, ...]) -> np.ndarray:
    """Label map `(I, J, K)` uint8 of the volume: the class that wins after linear interpolation."""
    size = tuple(probabilities.shape[1:])
    back = way_back(grid, size, values)
    back.put(probabilities, (0, 0, 0), size, logits=False)
    return back.decision


def way_back(grid: Grid, size: tuple[int, int, int], values: tuple[int, ...]) -> WayBack:
    """From class maps on a student's grid of `size` to label values in the volume."""
    return WayBack(grid.shape, grid.axes, grid.flipped, size, values)
