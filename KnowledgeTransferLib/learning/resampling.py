"""Resampling: linear interpolation along each axis, from a volume to the student's grid, plane by plane."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .ahead import SMALL_VOXELS, in_threads


@dataclass(frozen=True)
class Places:
    """Where the voxels of one axis lie between those of another grid over the same extent.

    A voxel's value is `(1 - share) * value[below] + share * value[above]`; beyond the outer centres the edge goes on.
    """

    below: np.ndarray  # (n,) int
    above: np.ndarray  # (n,) int
    share: np.ndarray  # (n,) float32, of `above`

    @property
    def is_same(self) -> bool:
        """Whether nothing has to be interpolated along this axis."""
        return not self.share.any()

    def flipped(self) -> Places:
        """The same axis walked from its other end."""
        return Places(self.below[::-1], self.above[::-1], self.share[::-1])

    def of_flipped(self, length: int) -> Places:
        """The same places in an axis of `length` voxels that is numbered from its other end."""
        return Places(length - 1 - self.below, length - 1 - self.above, self.share)

    def part(self, where: slice | np.ndarray) -> Places:
        return Places(self.below[where], self.above[where], self.share[where])


def places(wanted: int, given: int) -> Places:
    """Where `wanted` voxels lie in an axis of `given` voxels (half-pixel centres, as torch's align_corners=False)."""
    if wanted == given:
        index = np.arange(given)
        return Places(index, index, np.zeros(given, np.float32))
    position = np.clip((np.arange(wanted) + 0.5) * (given / wanted) - 0.5, 0, given - 1)
    below = np.floor(position).astype(np.int64)
    return Places(below, np.minimum(below + 1, given - 1), (position - below).astype(np.float32))


def on_planes(
    array: np.ndarray,
    along: tuple[Places, ...],
    grey: Callable[[np.ndarray], np.ndarray],
    wait: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Resample `(I, J, K)` of any type, after `grey` has turned a piece of it into float32.

    Only the voxels that are needed are converted, a plane at a time and in the order in which they lie in memory.

    Args:
        along: for each axis the places of the new voxels.
        wait: waits until the first n planes of the array, along its last axis, are there; None: all are there.

    Returns:
        `(i, j, k)` float32, in the memory order of `array`.
    """
    order = sorted(range(3), key=lambda axis: -abs(array.strides[axis]))
    planes, (z, y, x) = array.transpose(order), (along[axis] for axis in order)
    size = tuple(len(places_along.below) for places_along in (z, y, x))
    if max(array.size, math.prod(size)) < SMALL_VOXELS and not wait:
        return _at_once(planes, (z, y, x), grey).transpose(np.argsort(order))
    result = np.empty(size, np.float32)

    def plane(number: int) -> np.ndarray:
        found = _take(planes[number], y, 0)
        found = grey(_take(found, x, 1))
        return _join(_join(found, y, 0), x, 1)

    def fill(numbers: np.ndarray) -> None:
        known: dict[int, np.ndarray] = {}
        for n in numbers:
            needed = (int(z.below[n]), int(z.above[n]))
            if wait:
                wait(max(needed) + 1)
            known = {number: known[number] if number in known else plane(number) for number in needed}
            below, above = (known[number] for number in needed)
            result[n] = below if z.is_same else below + z.share[n] * (above - below)

    if wait:  # in this thread: those of in_threads are not there to wait
        fill(np.argsort(z.below))
        return result.transpose(np.argsort(order))
    in_threads(fill, np.array_split(np.arange(len(result)), min(len(result), 64)), result.size)
    return result.transpose(np.argsort(order))


def _at_once(planes: np.ndarray, along: tuple[Places, ...], grey: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """What `on_planes` does plane by plane, where there is too little to do for that to pay; the same to the bit."""
    found = planes
    for axis, places_along in enumerate(along):
        found = _take(found, places_along, axis)
    found = grey(found)
    for axis in (1, 2, 0):
        found = _join(found, along[axis], axis)
    return found


def _take(array: np.ndarray, along: Places, axis: int) -> np.ndarray:
    """The voxels below and, behind them, above the places."""
    needed = along.below if along.is_same else np.concatenate([along.below, along.above])
    if len(needed) == array.shape[axis] and (needed[1:] - needed[:-1] == 1).all():
        return array
    return array.take(needed, axis)


def _join(array: np.ndarray, along: Places, axis: int) -> np.ndarray:
    """Interpolate between what `_take` took."""
    if along.is_same:
        return array
    below, above = np.split(array, 2, axis)
    above = above - below
    above *= along.share.reshape(-1, *[1] * (above.ndim - axis - 1))
    above += below
    return above
