"""Decision: how probable a structure must be for a student to draw it, so that its Dice is the best to be expected."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..records.progress import Progress
from .batches import PreparedCase
from .networks import drawn_from, lower_background
from .predictor import predict

if TYPE_CHECKING:
    from .training import Training

MOST_CASES = 100  # that are looked at
MOST_IN_BUDGET = 20  # where the time is limited
SHIFTS = np.linspace(-2, 2, 81)  # of the background's logit, downwards: a structure is drawn from 0.12 to 0.88 on
GAIN = 0.001  # of the expected Dice that is worth no further shift
LEAST_PROBABILITY = 1e-7


def settle_decision(training: Training, progress: Progress) -> float:
    """Shift the background's logit of a trained network for the best expected Dice; returns the shift downwards.

    The most probable class gives the fewest wrong voxels. The best Dice needs a structure to be drawn from half of the
    attainable Dice on (Lipton et al. 2014, arXiv:1402.1892, theorem 1): where a structure is hard to tell, from far
    below one half on. That holds for probabilities that are true; so the shift is not computed from them but measured
    on the cases. It is one number, and where a network knows its cases by heart it finds no reason for a shift.

    Raises:
        Cancelled: the user asked for it; the network is as it was.
    """
    cases = list({case.id: case for case in (*training.held_out, *training.sampler.cases)}.values())
    most = MOST_CASES if training.settings.minutes is None else MOST_IN_BUDGET
    cases = cases[:: math.ceil(len(cases) / most)]
    stage, sums = progress.stage("decide", len(cases)), 0.0
    for case in cases:
        sums = sums + _overlaps(training, case)
        stage.advance(text=case.id)
    dice = _expected_dice(sums)
    shift = _least_good_shift(dice)
    lower_background(training.network.module, shift)
    if shift:
        now, before = np.interp([shift, 0], SHIFTS, dice)
        progress.message(
            f"it draws a structure from {drawn_from(shift):.2f} on of its probability and the background's "
            f"together: its expected Dice with what it learnt is {now:.3f} so, instead of {before:.3f}"
        )
    return shift


def _overlaps(training: Training, case: PreparedCase) -> np.ndarray:
    """Of each structure at each shift `(3, classes - 1, SHIFTS)`: twice the overlap with what was taught, the voxels
    drawn, and those taught; taught probabilities count as such."""
    network, classes = training.network.module.eval(), training.sampler.classes
    image = torch.from_numpy(np.asarray(case.image, np.float32))
    found = predict(network, image, network.dimensions, training.limit_voxels).clamp_min_(LEAST_PROBABILITY)
    counts = np.ones(image[0].numel()) if case.weights is None else np.asarray(case.weights).ravel() / 255
    best = found[1:].max(0)
    # The first shift at which the likeliest structure of a voxel is drawn.
    first = np.searchsorted(SHIFTS, (found[0].log() - best.values.log()).flatten().numpy(), side="right")
    likeliest, sums = best.indices.flatten().numpy(), np.zeros((3, classes - 1, len(SHIFTS)))
    for channel in sorted({*range(1, classes)} - {*case.unknown}):
        taught = case.target[channel] / 255 if len(case.target) > 1 else case.target[0] == channel
        mine, there = likeliest == channel - 1, taught.ravel() * counts
        for row, weights in enumerate((2 * there, counts)):
            bins = np.bincount(first[mine], weights[mine], len(SHIFTS) + 1)
            sums[row, channel - 1] = bins.cumsum()[:-1]
        sums[2, channel - 1] = there.sum()
    return sums


def _expected_dice(sums: np.ndarray) -> np.ndarray:
    """Of each shift, the mean over the structures; the voxels of all cases count together."""
    both, drawn, taught = sums
    there = taught[:, 0] > 0
    return np.mean(both[there] / (drawn + taught)[there], axis=0) if there.any() else np.zeros(len(SHIFTS))


def _least_good_shift(dice: np.ndarray) -> float:
    """The smallest shift that comes near the best Dice."""
    good = SHIFTS[dice >= dice.max() - GAIN]
    return round(float(good[np.abs(good).argmin()]), 2)
