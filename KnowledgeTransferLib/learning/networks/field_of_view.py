"""Field of view: how far beyond a region its classes depend on the image."""

from __future__ import annotations

from collections.abc import Iterable


def margin_of(path: Iterable[tuple[int, int]], total_stride: int) -> int:
    """The margin of a network whose layers all look at a neighbourhood, for regions that end at its total stride.

    Args:
        path: of the layers that see most, from the output back to the input: the stride of the grid that a layer
            reads, in voxels of the image, and how many voxels of that grid it looks to each side.
        total_stride: of the network.

    Returns:
        voxels, a multiple of the total stride; counted for one voxel more than the region, which interpolation needs.
    """
    reach = 1
    for stride, sides in path:
        reach = _outward(reach, stride) + sides * stride
    return _outward(reach, total_stride)


def _outward(length: int, step: int) -> int:
    return -(-length // step) * step
