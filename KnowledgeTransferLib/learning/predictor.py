"""Predictor: a network over a whole prepared image, in one pass or block by block with the same result.

A network whose layers look at a neighbourhood alone (batch norms are folded) gives the same classes in a block as in
the whole image, when the block's input reaches as far beyond it as the network looks. A norm over the image makes that
impossible, and so does attention: such networks (`large`, `transunet`) go over large images in overlapping windows with
Gaussian weights. A network that can be had in two halves needs fewer blocks: of the features of a large one its logits
are made piece by piece.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
import torch
from torch import nn

WHOLE_VALUES = 1 << 28  # that a network holds at once (1 GiB in 32 bits)
PIECE_VALUES = 1 << 22  # logits that the head of a network in halves makes at once (16 MiB)
PIECE_STEP = 16  # of which the edges of such a piece are multiples, in voxels; runtimes are slow with thinner ones
WINDOW_OVERLAP = 0.25
Size = tuple[int, int, int]
Block = tuple[Size, Size, torch.Tensor]
Box = tuple[tuple[int, int], ...]  # first and last (exclusive) voxel along each axis


@dataclass(frozen=True)
class Halves:
    """A network in two: `body` makes features of images, `head` makes logits of any part of them, alone.

    So the body, which needs little memory, goes over a whole image where the logits of all of it would not fit.
    """

    body: Callable[[torch.Tensor], torch.Tensor]  # (B, C, *size) to (B, F, *size / factor)
    head: Callable[[torch.Tensor], torch.Tensor]  # (B, F, *size / factor) to (B, classes, *size)
    factor: int
    classes: int


def halves_of(network, dimensions: int, mirror) -> Halves | None:
    """The halves in which a network goes over an image, where it does."""
    return getattr(network, "halves", None) if dimensions == 3 and not mirror else None  # noqa: PLR2004


def whole_image_limit(values_per_voxel: float) -> int:
    """Voxels of the largest image that goes through a network in one pass. Fixed, so that results repeat."""
    return int(WHOLE_VALUES / values_per_voxel)


def predict(  # noqa: PLR0913 (those of class_maps)
    network, image: torch.Tensor, dimensions: int, limit_voxels: int, mirror=(), lowered: float = 0.0
) -> torch.Tensor:
    """Class probabilities `(classes, i, j, k)` float32 of a prepared image, on the CPU.

    Arguments as `class_maps`; `lowered`: what was taken from the network's logit of the background (decision.py).
    """
    whole = None
    for start, stop, maps in class_maps(network, image, dimensions, limit_voxels, mirror):
        if whole is None:
            whole = torch.empty(len(maps), *image.shape[1:])
        inside = _cut((0, b - a) for a, b in zip(start, stop, strict=True))
        logits = maps[inside]
        if lowered:
            logits = torch.cat([logits[:1] + lowered, logits[1:]])
        whole[_cut(zip(start, stop, strict=True))] = logits.softmax(0)
    return whole


def class_maps(
    network, image: torch.Tensor, dimensions: int, limit_voxels: int, mirror=(), box: Box | None = None
) -> Iterator[Block]:
    """Logits of a prepared image, block by block.

    Args:
        network: `(B, C, *size)` to logits; knows its `total_stride` and, where it looks at a neighbourhood alone, the
            `margin` of that; where it can be had in two, its `halves`.
        image: `(C, i, j, k)` on the CPU.
        dimensions: 2 runs slice by slice over k.
        limit_voxels: of the largest image that goes through the network in one pass.
        mirror: axes along which the image is also mirrored; the logits of all combinations are averaged.
        box: only the blocks that it needs, for networks with a margin; None: all.

    Yields:
        start, stop and maps `(classes, i, j, k)` float32 on the CPU of each block `start..stop`, with the next voxel
        along each axis where there is one.
    """
    size, stride = tuple(image.shape[1:]), network.total_stride
    image = _padded(image, dimensions, stride)
    margin = getattr(network, "margin", None)
    halves = halves_of(network, dimensions, mirror)
    run = _mirrored(network, tuple(axis for axis in mirror if axis < dimensions))
    smallest = math.prod(image.shape[1 : 1 + dimensions])
    if margin is None and smallest > limit_voxels:
        run, limit_voxels = _in_windows(run, limit_voxels, stride), smallest
    for start, full, region in blocks_of(network, dimensions, tuple(image.shape[1:]), limit_voxels, box):
        stop = tuple(min(b, n) for b, n in zip(full, size, strict=True))
        if any(a >= b for a, b in zip(start, stop, strict=True)):
            continue  # padding alone
        part, ends = image[_cut(region)], tuple(min(n, r) for n, (_, r) in zip(size, region, strict=True))
        if halves and math.prod(part.shape[1:]) * halves.classes > PIECE_VALUES:
            yield from _piece_by_piece(halves, part, start, stop, region, ends)
            continue
        maps = run(part[None])[0] if dimensions == 3 else run(part.permute(3, 0, 1, 2)).permute(1, 2, 3, 0)
        yield start, stop, maps[_cut(_inside(start, stop, region, ends))]
        del maps  # the next pass needs its memory


def _inside(start: Size, stop: Size, region: list, ends: Size) -> Box:
    """Where in a pass's input `start..stop` lies, with the next voxel where there is one."""
    return tuple((a - r, min(b + 1, end) - r) for a, b, (r, _), end in zip(start, stop, region, ends, strict=True))


def _piece_by_piece(halves: Halves, part: torch.Tensor, start: Size, stop: Size, region: list, ends: Size):  # noqa: PLR0913
    """What `class_maps` yields of one block, in pieces."""
    features, f = halves.body(part[None]), halves.factor
    lengths = [b - a for a, b in zip(start, stop, strict=True)]
    for first, last, _ in blocks(lengths, [PIECE_STEP] * 3, [0] * 3, PIECE_VALUES // halves.classes):
        low = tuple(a + n for a, n in zip(start, first, strict=True))
        high = tuple(min(a + n, b) for a, n, b in zip(start, last, stop, strict=True))
        inside = _inside(low, high, region, ends)
        logits = halves.head(features[(slice(None), *_cut((a // f, -(-b // f)) for a, b in inside))])
        yield low, high, logits[0][_cut((0, b - a) for a, b in inside)]
        del logits


def blocks_of(network, dimensions: int, shape: Size, limit_voxels: int, box: Box | None = None):
    """The blocks in which an image of that shape, or a box of it, goes through a network, as `blocks` yields them."""
    margin, stride = getattr(network, "margin", None), network.total_stride
    steps = [stride if margin is not None else n for n in shape[:dimensions]] + [1] * (3 - dimensions)
    margins = [margin or 0] * dimensions + [0] * (3 - dimensions)
    return blocks(shape, steps, margins, limit_voxels, box)


def blocks(shape, steps, margins, limit_voxels: int, box=None) -> Iterator[tuple[Size, Size, list[tuple[int, int]]]]:
    """Divide an image, or a box of it, into as few blocks as the limit allows.

    Args:
        shape: of the image, multiples of the steps.
        steps: blocks begin at multiples of these.
        margins: how far beyond a block its input reaches, cut at the image's ends.

    Yields:
        start and stop of each block, and of its input along each axis.
    """

    def cost(axes) -> tuple[int, int, int]:
        """Voxels of the largest input where they are too many, those of all inputs, and the number of blocks."""
        voxels, all_voxels, count = (math.prod(counted) for counted in zip(*(axis[1:] for axis in axes), strict=True))
        return voxels if voxels > limit_voxels else 0, all_voxels, count

    box = box or [(0, n) for n in shape]
    along = [_divided(*axis) for axis in zip(shape, steps, margins, box, strict=True)]
    chosen = whole = tuple(next(axis) for axis in along)
    if cost(whole)[0]:
        chosen = min(product(*([first, *others] for first, others in zip(whole, along, strict=True))), key=cost)
    for block in product(*(axis[0] for axis in chosen)):
        start, stop, region = zip(*block, strict=True)
        yield start, stop, list(region)


def _divided(length: int, step: int, margin: int, ends: tuple[int, int]) -> Iterator[tuple]:
    """The ways to divide a part of an axis, the one with the largest parts first."""
    first, last = ends[0] // step * step, -(-ends[1] // step) * step
    return (_parts(range(first, last, edge), length, margin) for edge in _edges(last - first, step))


def _parts(starts: range, length: int, margin: int) -> tuple[list[tuple[int, int, tuple[int, int]]], int, int, int]:
    """Start and stop of each part of an axis, and of its input; length of the largest input, of all, their number."""
    bounds = [(start, min(start + starts.step, starts.stop)) for start in starts]
    parts = [(a, b, (max(0, a - margin), min(length, b + margin))) for a, b in bounds]
    lengths = [b - a for *_, (a, b) in parts]
    return parts, max(lengths), sum(lengths), len(parts)


def _edges(length: int, step: int) -> list[int]:
    """Multiples of the step that divide a length into equal parts as well as they can, the largest first."""
    return sorted({-(-length // (count * step)) * step for count in range(1, max(1, length // step) + 1)}, reverse=True)


def _cut(bounds) -> tuple[slice, ...]:
    """An index into `(C, i, j, k)`."""
    return (slice(None), *(slice(a, b) for a, b in bounds))


def _padded(image: torch.Tensor, dimensions: int, stride: int) -> torch.Tensor:
    """The image with its edge continued to multiples of the stride, at least two."""
    wanted = [max(-(-n // stride), 2) * stride for n in image.shape[1 : 1 + dimensions]] + list(
        image.shape[1 + dimensions :]
    )
    if list(image.shape[1:]) == wanted:
        return image
    padding = [(0, m - n) for n, m in zip(image.shape[1:], wanted, strict=True)]
    return torch.from_numpy(np.pad(image.numpy(), [(0, 0), *padding], mode="edge"))  # torch would wait for all cores


def _mirrored(network, axes: tuple[int, ...]) -> Callable[[torch.Tensor], torch.Tensor]:
    """`(B, C, *size)` to logits on the CPU: the mean over the image and its mirror images."""
    ways = [[2 + axis for axis in chosen] for n in range(len(axes) + 1) for chosen in combinations(axes, n)]

    @torch.inference_mode()
    def run(batch: torch.Tensor) -> torch.Tensor:
        total = _logits(network, batch)
        for way in ways[1:]:
            total = total + _logits(network, batch.flip(way)).flip(way)
        return total / len(ways) if len(ways) > 1 else total

    return run


def _logits(network, batch: torch.Tensor) -> torch.Tensor:
    device = next(network.parameters()).device if isinstance(network, nn.Module) else "cpu"
    return network(batch.to(device)).float().cpu()


def _in_windows(run, limit_voxels: int, stride: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """The same in overlapping windows with Gaussian weights."""
    from monai.inferers import sliding_window_inference  # MONAI takes 200 MiB and two seconds, which few students need

    @torch.inference_mode()
    def in_windows(batch: torch.Tensor) -> torch.Tensor:
        edge = max(2, int(limit_voxels ** (1 / (batch.dim() - 2)) + 1e-6) // stride) * stride
        window = [min(edge, n) for n in batch.shape[2:]]
        return sliding_window_inference(batch, window, 1, run, overlap=WINDOW_OVERLAP, mode="gaussian")

    return in_windows


def pick_device(asked: str) -> str:
    """The device to work on: what was asked for, or with "auto" the fastest that is there.

    Raises:
        ValueError: the device is not there; the message says what to do.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if asked == "auto":
        return next(device for device, is_there in there.items() if is_there)
    if not there.get(asked, False):
        found = ", ".join(device for device, is_there in there.items() if is_there)
        raise ValueError(f"the device {asked!r} is not there; found: {found}. Choose one of these, or auto")
    return asked
