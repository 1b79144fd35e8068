"""Way back: from class maps on the student's grid to label values in the volume, without class maps of its size.

Where all corners of a cell of the student's grid have the same winning class, linear interpolation of the class maps
cannot give another winner. So the winner is copied there, and only the voxels in cells at a border (a few per cent) are
interpolated. The result equals the dense computation in every voxel.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from numpy.lib.stride_tricks import as_strided

from .ahead import SMALL_VOXELS, in_threads
from .resampling import Places, places

MARGIN = 1e-4  # a smaller lead of a winner might be lost in rounding: its cells are interpolated
PIECE = 1 << 15  # voxels that are looked at together: they stay in the processor's cache
TOGETHER = 1 << 18  # voxels of the volume that are interpolated together


class WayBack:
    """Fills a label map block by block.

    Args:
        shape: of the volume `(I, J, K)`.
        axes, flipped: as in Grid: which axis of the volume each axis of the student's grid is, and which of these run
            the other way in the volume.
        size: of the student's grid `(i, j, k)`.
        values: the label value of each class.
        margin: the lead with which a class wins for sure; infinite interpolates everywhere.
    """

    def __init__(self, shape, axes, flipped, size, values, margin: float = MARGIN):  # noqa: PLR0913 (a grid in parts)
        self.order = tuple(int(a) for a in np.argsort(axes))[::-1]  # axes of the student's grid as K, J, I
        found = [places(shape[axes[axis]], size[axis]) for axis in range(3)]
        found = [p.flipped() if axis in flipped else p for axis, p in enumerate(found)]
        self.along = tuple(found[axis] for axis in self.order)
        self.values, self.margin = np.asarray(values, np.uint8), margin
        self.type = np.uint8 if len(values) < 256 else np.uint16
        self.open = np.iinfo(self.type).max  # stands for "must be interpolated" among the classes
        self.classes = np.zeros(tuple(shape)[::-1], self.type)  # (K, J, I), background where nothing is put

    @property
    def decision(self) -> np.ndarray:
        """Label map `(I, J, K)` uint8, the first axis closest in memory as in NIfTI. Ask for it once, at the end."""
        if self.type is np.uint8 and (self.values == np.arange(len(self.values))).all():
            return self.classes.T
        decision = self.classes if self.type is np.uint8 else np.empty(self.classes.shape, np.uint8)
        in_threads(
            lambda z: np.copyto(decision[z], self.values.take(self.classes[z])), range(len(decision)), decision.size
        )
        return decision.T

    def put(self, maps: torch.Tensor, start: tuple[int, int, int], stop: tuple[int, int, int], logits: bool) -> None:
        """Decide all voxels whose cell begins in `start..stop` of the student's grid.

        Args:
            maps: `(C, i, j, k)` float32 of that block and, where there is one, the next voxel along each axis.
            logits: the maps are logits; their softmax is interpolated. Else they are probabilities.
        """
        start, stop = ([bound[axis] for axis in self.order] for bound in (start, stop))
        where = [_range_of(p, a, b) for p, a, b in zip(self.along, start, stop, strict=True)]
        along = [_shifted(p.part(part), a) for p, part, a in zip(self.along, where, start, strict=True)]
        part = self.classes[tuple(where)]
        if not part.size:
            return
        same_grid = all(p.is_same for p in along) and self.margin < np.inf  # then only ties are left to be decided
        winners = _winners(maps.numpy(), 0.0 if same_grid else self.margin, self.type).transpose(self.order)
        cells = _cells(np.ascontiguousarray(winners), along, self.open)
        z, y, x = (p.below for p in along)
        if part.size < SMALL_VOXELS:
            part[...] = cells.take(z, 0).take(y, 1).take(x, 2)
        else:
            planes = range(len(part))
            in_threads(lambda n: cells[z[n]].take(x, 1).take(y, 0, out=part[n], mode="clip"), planes, part.size)
        is_open = cells == self.open
        if is_open.any():
            maps = maps.numpy().transpose(0, *(1 + axis for axis in self.order))
            self._interpolate(part, along, *_corner_rows(maps, is_open, along, logits))

    def _interpolate(self, part: np.ndarray, along: list[Places], rows: torch.Tensor, table: np.ndarray) -> None:
        """Decide the open voxels of `(K, J, I)`."""
        width = part.shape[2]
        found = in_threads(lambda plane: np.divmod(np.flatnonzero(plane == self.open), width), part, part.size)
        corners = _Corners(along, table)
        for planes in _groups([len(y) for y, _ in found]):
            points = [found[n] for n in planes]
            index, weight = corners.of(planes, points)
            maps = F.embedding_bag(index, rows, mode="sum", per_sample_weights=weight)
            classes = maps.max(1).indices.numpy().astype(self.type)
            for n, at, decided in zip(planes, points, np.split(classes, _ends(points)), strict=True):
                part[n][at] = decided


class _Corners:
    """The corners of a voxel's cell, as rows of the class maps, and their weights in linear interpolation."""

    def __init__(self, along: list[Places], table: np.ndarray):
        self.table = table.ravel("K")
        strides = [s // table.itemsize for s in table.strides]
        self.sides = [  # of each axis, below and above: where it lies in the table, and its weight
            [(p.below * stride, 1 - p.share)] + [(p.above * stride, p.share)] * (not p.is_same)
            for p, stride in zip(along, strides, strict=True)
        ]
        self.count = int(np.prod([len(sides) for sides in self.sides]))

    def of(self, planes: list[int], points: list[tuple]) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows and weights `(n, corners)` of the points `(y, x)` of each plane."""
        index = np.empty((sum(len(y) for y, _ in points), self.count), np.int32)
        weight = np.empty(index.shape, np.float32)
        ends = _ends(points)
        in_threads(
            lambda job: self._fill(*job),
            zip(planes, points, np.split(index, ends), np.split(weight, ends), strict=True),
            index.size,
        )
        return torch.from_numpy(index), torch.from_numpy(weight)

    def _fill(self, z: int, points: tuple[np.ndarray, np.ndarray], index: np.ndarray, weight: np.ndarray) -> None:
        in_y, in_x = (
            [(place.take(at), share.take(at)) for place, share in sides]
            for sides, at in zip(self.sides[1:], points, strict=True)
        )
        for column, ((in_z, wz), (y, wy), (x, wx)) in enumerate(product(self.sides[0], in_y, in_x)):
            index[:, column] = self.table.take(y + x + in_z[z])
            weight[:, column] = wy * wx * wz[z]


def _ends(points: list[tuple]) -> np.ndarray:
    """Where the points of each plane but the last end when they lie one after the other."""
    return np.cumsum([len(y) for y, _ in points])[:-1]


def _winners(maps: np.ndarray, margin: float, type_) -> np.ndarray:
    """`(i, j, k)`: the class of `(C, i, j, k)` that wins by more than the margin, else the type's largest number."""
    order = sorted(range(3), key=lambda axis: -maps.strides[axis + 1])  # as it lies in memory
    maps = maps.transpose(0, *(axis + 1 for axis in order))
    result = np.empty(maps.shape[1:], type_)

    def decide(part: slice) -> None:
        best = maps[0, part].copy()
        second, lower, winner = np.full_like(best, -np.inf), np.empty_like(best), np.zeros(best.shape, type_)
        for number in range(1, len(maps)):
            scores = np.ascontiguousarray(maps[number, part])  # of padded maps, which are slow to walk through
            np.maximum(second, np.minimum(best, scores, out=lower), out=second)
            np.maximum(winner, (scores > best) * type_(number), out=winner)
            np.maximum(best, scores, out=best)
        best -= second
        winner |= (best <= margin) * type_(np.iinfo(type_).max)
        result[part] = winner

    step = max(1, PIECE // max(1, result[0].size))
    in_threads(decide, [slice(n, n + step) for n in range(0, len(result), step)], maps.size)
    return result.transpose(np.argsort(order))


def _cells(winners: np.ndarray, along: list[Places], open_: int) -> np.ndarray:
    """`(k, j, i)`: the class that wins at all corners of a cell, `open_` where there is none."""
    cells = winners
    for axis, places_along in enumerate(along):
        if not places_along.is_same:
            lower, upper = (_along(cells, axis, part) for part in (slice(None, -1), slice(1, None)))
            differ = (lower != upper).astype(cells.dtype) * cells.dtype.type(open_)
            _along(cells, axis, slice(None, -1))[...] |= differ
    return cells


def _corner_rows(maps: np.ndarray, is_open: np.ndarray, along: list[Places], logits: bool):
    """Probabilities at the corners of open cells.

    Args:
        maps: `(C, k, j, i)`.

    Returns:
        rows `(n, C)`, and which of them each voxel `(k, j, i)` has.
    """
    for axis, places_along in enumerate(along):
        if not places_along.is_same:
            _along(is_open, axis, slice(1, None))[...] |= _along(is_open, axis, slice(None, -1)).copy()
    strides = [s // maps.itemsize for s in maps.strides[1:]]
    order = sorted(range(3), key=lambda axis: -strides[axis])  # as it lies in memory
    is_open = np.ascontiguousarray(is_open.transpose(order))
    needed = np.flatnonzero(is_open)
    table = np.zeros(is_open.shape, np.int32)
    table.ravel()[needed] = np.arange(len(needed), dtype=np.int32)
    rows = np.empty((max(1, len(needed)), len(maps)), np.float32)
    length = sum((n - 1) * stride for n, stride in zip(maps.shape[1:], strides, strict=True)) + 1
    flat = [as_strided(m, (length,), (maps.itemsize,), writeable=False) for m in maps]

    def gather(part: slice) -> None:
        where = np.unravel_index(needed[part], is_open.shape)
        where = sum(index * strides[axis] for index, axis in zip(where, order, strict=True))
        found = np.stack([m.take(where) for m in flat])
        rows[part] = (_softmax(found) if logits else found).T

    in_threads(gather, [slice(n, n + PIECE) for n in range(0, len(needed), PIECE)], rows.size)
    return torch.from_numpy(rows), table.transpose(np.argsort(order))


def _softmax(logits: np.ndarray) -> np.ndarray:
    """Over the first axis."""
    logits = np.exp(logits - logits.max(0))
    logits /= logits.sum(0)
    return logits


def _groups(counts: list[int]):
    """Neighbouring planes that hold about TOGETHER open voxels."""
    planes, total = [], 0
    for number, count in enumerate(counts):
        planes, total = planes + [number], total + count
        if total >= TOGETHER or (total and number == len(counts) - 1):
            yield planes
            planes, total = [], 0


def _range_of(along: Places, start: int, stop: int) -> slice:
    """The voxels of the volume whose cell begins in `start..stop`: they lie side by side."""
    inside = np.flatnonzero((along.below >= start) & (along.below < stop))
    return slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(0, 0)


def _shifted(along: Places, by: int) -> Places:
    return Places(along.below - by, along.above - by, along.share)


def _along(array: np.ndarray, axis: int, part: slice) -> np.ndarray:
    return array[(slice(None),) * axis + (part,)]
