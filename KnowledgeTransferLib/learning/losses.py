"""Losses: what a student is trained to make small. Each owns its projection heads, if it has any."""

from __future__ import annotations

import torch
from monai.losses import DiceLoss
from torch import nn
from torch.nn.functional import cross_entropy

from .features import Outputs, Target
from .marginal import marginal_logits


class DiceCrossEntropy(nn.Module):
    """Dice plus cross-entropy against hard or soft targets, each voxel by its weight.

    The Dice term has squared denominators (Milletari et al. 2016, arXiv:1606.04797), so that for soft targets too it is
    smallest where the student says exactly what the teacher says; it leaves the background out and counts the batch as
    one volume, so that a patch without a structure does no harm.

    Structures that nobody judged in a sample count as its background (marginal loss, arXiv:2007.03868).
    """

    def __init__(self):
        super().__init__()
        self.dice = DiceLoss(include_background=False, squared_pred=True, batch=True)

    def forward(self, student: Outputs, teacher: Outputs | None, target: Target) -> torch.Tensor:
        """Scalar loss; it needs no live teacher."""
        logits, truth = marginal_logits(student.logits.float(), target.known), target.probabilities
        probabilities, entropy = logits.softmax(1), cross_entropy(logits, truth, reduction="none")
        if target.weights is None:
            return self.dice(probabilities, truth) + entropy.mean()
        weights = target.weights
        root = weights.sqrt()  # of both: products and squares of the Dice are then weighted
        mean = (weights[:, 0] * entropy).sum() / weights.sum().clamp_min(1e-6)
        return self.dice(root * probabilities, root * truth) + mean


LOSSES = {"dice-ce": DiceCrossEntropy}


class WeightedLosses(nn.Module):
    """The weighted sum of the losses that a run names.

    Raises:
        ValueError: a loss that does not exist; the message lists those that there are.
    """

    def __init__(self, weights: dict[str, float]):
        super().__init__()
        unknown = sorted(set(weights) - set(LOSSES))
        if unknown or not weights:
            raise ValueError(f"losses {unknown or 'none'}: choose from {', '.join(LOSSES)}")
        self.weights = dict(weights)
        self.losses = nn.ModuleList(LOSSES[name]() for name in weights)

    def forward(self, student: Outputs, teacher: Outputs | None, target: Target) -> torch.Tensor:
        parts = [
            weight * loss(student, teacher, target)
            for weight, loss in zip(self.weights.values(), self.losses, strict=True)
        ]
        return torch.stack(parts).sum()
