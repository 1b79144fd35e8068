"""Components: only the largest connected part of each structure, and no holes in it."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from .ahead import in_threads


def largest_components(labels: np.ndarray) -> np.ndarray:
    """Set all but the largest part of each structure of `(I, J, K)` to background; voxels that share a face hang
    together. Equally large parts: the first stays."""
    boxes = ndimage.find_objects(labels)
    found = [(value, box) for value, box in enumerate(boxes, 1) if box is not None]
    kept = in_threads(lambda part: _largest(labels[part[1]] == part[0]), found, labels.size)
    for (value, box), mask in zip(found, kept, strict=True):
        part = labels[box]
        part[(part == value) & ~mask] = 0
    return labels


def without_holes(labels: np.ndarray) -> np.ndarray:
    """Give background of `(I, J, K)` that a structure encloses to that structure; in a single slice, within it.

    What hangs together with the image's edge by faces is outside. A hole that several structures enclose together
    stays.
    """
    faces = ndimage.generate_binary_structure(3, 1)
    if labels.shape[2] == 1:
        faces[:, :, [0, 2]] = False  # else every pixel would hang together with the outside
    filled = labels.copy()
    for value, box in enumerate(ndimage.find_objects(labels), 1):
        if box is not None:
            whole = ndimage.binary_fill_holes(labels[box] == value, faces)
            filled[box][whole & (labels[box] == 0)] = value
    return filled


def _largest(mask: np.ndarray) -> np.ndarray:
    numbers, count = ndimage.label(mask)
    if count < 2:
        return mask
    return numbers == 1 + np.bincount(numbers.ravel())[1:].argmax()
