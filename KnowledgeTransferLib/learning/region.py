"""Region: where the structures lie, found at a coarse resolution, so that the full one is needed only there.

Inside the region every label is that of the whole image. What the coarse look misses outside it is lost.
"""

from __future__ import annotations

from itertools import starmap

import torch
import torch.nn.functional as F

from .predictor import Box, class_maps

COARSER = 2  # voxels along each axis that become one; more would be little faster, and miss more
AROUND_VOXELS = 8  # of the student's grid, added on each side of what was found


def region_of_structures(network, image: torch.Tensor, dimensions: int, limit_voxels: int) -> Box | None:
    """The box around all structures that a network finds in a coarse copy of a prepared image.

    Arguments as `class_maps`.

    Returns:
        first and last (exclusive) voxel along each axis of the image; None where nothing was found.
    """
    factors = [COARSER] * dimensions + [1] * (3 - dimensions)
    coarse = F.avg_pool3d(image[None], factors, ceil_mode=True)[0]
    ends = starmap(_ends_of_structures, class_maps(network, coarse, dimensions, limit_voxels))
    found = [part for part in ends if part is not None]
    if not found:
        return None
    first = torch.stack([low for low, _ in found]).amin(0).tolist()
    last = torch.stack([high for _, high in found]).amax(0).tolist()
    return tuple(
        (max(0, low * factor - AROUND_VOXELS), min(size, high * factor + AROUND_VOXELS))
        for low, high, factor, size in zip(first, last, factors, image.shape[1:], strict=True)
    )


def _ends_of_structures(start, stop, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """First and last (exclusive) voxel in a block at which another class than the background wins."""
    own = (slice(None), *(slice(b - a) for a, b in zip(start, stop, strict=True)))
    where = maps[own].max(0).indices.nonzero() + torch.tensor(start)
    return (where.amin(0), where.amax(0) + 1) if len(where) else None
