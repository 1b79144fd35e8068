"""Comparisons: older ways to let a student learn from a teacher's features, to compare the contrastive losses with."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..features import Target
from .loss import PairedLoss, ProjectedLoss, on_grid, standardised

LEAST_VOXELS = 1.0  # of a region whose mean features mean something


class FeatureMse(ProjectedLoss):
    """Mean squared difference of the features (FitNets, Romero et al. 2015, arXiv:1412.6550, equation 3)."""

    def compare(self, number: int, own: torch.Tensor, other: torch.Tensor, target: Target) -> torch.Tensor:
        head = self.heads[number]
        return F.mse_loss(standardised(head.project(own)), standardised(on_grid(head.mixed(other), own.shape[2:])))


class AttentionTransfer(PairedLoss):
    """`|a_s - a_t|^2`, the mean over images (Zagoruyko & Komodakis 2017, arXiv:1612.03928, equation 2).

    `a` is the sum over channels of the squared features, as a vector of length 1 over the voxels of an image. Maps have
    one channel, so no heads are needed.
    """

    def compare(self, number: int, own: torch.Tensor, other: torch.Tensor, target: Target) -> torch.Tensor:
        maps = (own.square().sum(1, keepdim=True), on_grid(other.square().sum(1, keepdim=True), own.shape[2:]))
        own, other = (F.normalize(attention.flatten(1), dim=1) for attention in maps)
        return (own - other).square().sum(1).mean()


class RegionAffinity(PairedLoss):
    """How alike the structures are in the student's features against how alike they are in the teacher's.

    The mean features of each class in an image are its prototypes; the loss is the mean squared difference of the
    cosines between every two of them (EMKD, Qin et al. 2021, arXiv:2108.09987, region affinity distillation). Cosines
    need neither the same channels nor the same grid, so no heads either. Classes that an image lacks are left out.
    """

    def compare(self, number: int, own: torch.Tensor, other: torch.Tensor, target: Target) -> torch.Tensor:
        weights = 1.0 if target.weights is None else target.weights
        regions = target.probabilities * weights
        (own, there), (other, there_too) = (_prototypes(maps, regions) for maps in (own, other))
        difference = (own @ own.mT - other @ other.mT).square()
        both = (there & there_too).float()
        pairs = (both[:, :, None] * both[:, None, :]).triu(diagonal=1)
        return (difference * pairs).sum() / pairs.sum().clamp_min(1)


def _prototypes(maps: torch.Tensor, regions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit vectors `(B, classes, channels)`, the mean features of each class, and whether the class is there."""
    shares = on_grid(regions, maps.shape[2:]).flatten(2)
    voxels = shares.sum(2)
    means = shares @ maps.flatten(2).mT / voxels.clamp_min(LEAST_VOXELS)[:, :, None]
    return F.normalize(means, dim=2), voxels >= LEAST_VOXELS
