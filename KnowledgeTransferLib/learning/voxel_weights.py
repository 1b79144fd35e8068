"""Voxel weights: how much each voxel of a training case counts, by how certain the teachers are of it."""

from __future__ import annotations

import numpy as np
import torch

from ..records.settings import DistilSettings
from .preprocessing import Preprocessing, grid_of, resample
from .teachers import uncertainty_of
from .training_cases import TrainingCase
from .volume import Volume, read_map, read_probabilities


def voxel_weights(
    item: TrainingCase, volume: Volume, preprocessing: Preprocessing, settings: DistilSettings
) -> torch.Tensor | None:
    """Weights `(1, i, j, k)` uint8 in steps of 1/255 on the student's grid; None where every voxel counts alike.

    Of a pseudo-annotation: its certainty, or 1, and 0 where the certainty is below `least_certainty`. What a person
    annotated is certain.

    Raises:
        ValueError: nothing tells the teachers' certainty; the message says what to do.
    """
    if item.by_person or (settings.voxel_weights == "equal" and not settings.least_certainty):
        return None
    grid = grid_of(volume)
    certainty = torch.from_numpy(grid.from_volume(certainty_of(item, volume)[None]))
    certainty = resample(certainty, preprocessing.size_of(volume, grid))
    weights = certainty if settings.voxel_weights == "certainty" else torch.ones_like(certainty)
    weights = torch.where(certainty < settings.least_certainty, 0, weights)
    return (weights * 255).round().to(torch.uint8)


def certainty_of(item: TrainingCase, volume: Volume) -> np.ndarray:
    """How certain the teachers are `(I, J, K)` float32 from 0 to 1: 1 less the uncertainty that `annotate` wrote; where
    it wrote none, 1 less the entropy of the class probabilities."""
    if item.uncertainty is not None:
        return 1 - read_map(item.uncertainty, volume)
    if item.maps is None:
        raise ValueError(
            f"{volume.name}: nothing tells how certain the teachers are; annotate with --probabilities or --uncertainty"
        )
    return 1 - uncertainty_of(read_probabilities(item.maps, volume).astype(np.float32) / 255)
