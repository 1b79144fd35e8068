"""Segmentation: the losses of a student's classes against what annotations say of them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from ...records.settings import DistilSettings
from ..features import Outputs, Shapes, Target, taps_of_kind
from ..marginal import marginal_logits
from .loss import CONVOLUTIONS, DistillationLoss, on_grid, weighted_mean

SMOOTH = 1e-5  # a class that is nowhere, and is found nowhere, has the Dice 1


class DiceCrossEntropy(DistillationLoss):
    """Dice plus cross-entropy against hard or soft targets, each voxel by its weight.

    Structures that nobody judged in a sample count as its background (marginal loss, arXiv:2007.03868).
    """

    def forward(self, student: Outputs, teacher: Outputs | None, target: Target) -> torch.Tensor:
        logits, truth = marginal_logits(student.logits.float(), target.known), target.probabilities
        probabilities, entropy = logits.softmax(1), cross_entropy(logits, truth, reduction="none")
        if target.weights is None:
            return dice_loss(probabilities, truth) + entropy.mean()
        root = target.weights.sqrt()  # of both: products and squares of the Dice are then weighted
        return dice_loss(root * probabilities, root * truth) + weighted_mean(entropy, target.weights)


def dice_loss(found: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """1 less the Dice of two probability maps `(batch, classes, ...)`, averaged over the classes but the background.

    Its denominators are squared (Milletari et al. 2016, arXiv:1606.04797), so that for soft targets too it is smallest
    where the student says exactly what the teacher says. The batch counts as one volume, so that a patch without a
    structure does no harm. It is MONAI's DiceLoss without its import, which takes seconds at every training's start.
    """
    found, truth, axes = found[:, 1:], truth[:, 1:], (0, *range(2, found.dim()))
    overlap, sizes = (found * truth).sum(axes), found.square().sum(axes) + truth.square().sum(axes)
    return (1 - (2 * overlap + SMOOTH) / (sizes + SMOOTH)).mean()


class DeepSupervision(DistillationLoss):
    """Dice and cross-entropy of the coarser levels too (Lee et al. 2015, arXiv:1409.5185).

    A 1x1 convolution turns the features of the bottleneck and of each decoder level but the finest into classes. Each
    level weighs half of the next finer one; the weights add up to 1, as in nnU-Net.
    """

    def __init__(self, shapes: Shapes, settings: DistilSettings):
        super().__init__(shapes, settings)
        self.student_taps = (*taps_of_kind(shapes.student, "decoder")[1:], *taps_of_kind(shapes.student, "bottleneck"))
        convolution = CONVOLUTIONS[len(shapes.image) - 1]
        self.heads = nn.ModuleList(convolution(shapes.student[tap][0], shapes.classes, 1) for tap in self.student_taps)
        self.loss = DiceCrossEntropy(shapes, settings)

    def forward(self, student: Outputs, teacher: Outputs | None, target: Target) -> torch.Tensor:
        total, shares = 0.0, [0.5**level for level in range(len(self.heads))]
        for share, tap, head in zip(shares, self.student_taps, self.heads, strict=True):
            logits = head(student.features[tap].float())
            there = _coarser(target, logits.shape[2:])
            total = total + share / sum(shares) * self.loss(Outputs(logits), None, there)
        return total


def _coarser(target: Target, grid: torch.Size) -> Target:
    weights = None if target.weights is None else on_grid(target.weights, grid)
    return replace(target, probabilities=on_grid(target.probabilities, grid), weights=weights)
