"""Losses: what a student is trained to make small. A new one is a class, a line here and one in records/losses.py."""

from __future__ import annotations

import torch
from torch import nn

from ...records.losses import TASKS, USUAL_WEIGHTS, check_losses
from ...records.settings import DistilSettings
from ..features import Outputs, Shapes, Target
from .comparisons import AttentionTransfer, FeatureMse, RegionAffinity
from .contrastive import Contrastive
from .loss import DistillationLoss
from .reconstruction import Reconstruction
from .response import Response
from .segmentation import DeepSupervision, DiceCrossEntropy
from .voxel_contrastive import StructureContrastive, VoxelContrastive

__all__ = ["LOSSES", "DistillationLoss", "WeightedLosses", "losses_of", "need_teacher"]

LOSSES: dict[str, type[DistillationLoss]] = {
    "dice-ce": DiceCrossEntropy,
    "response": Response,
    "contrastive": Contrastive,
    "voxel-contrastive": VoxelContrastive,
    "structure-contrastive": StructureContrastive,
    "feature-mse": FeatureMse,
    "attention-transfer": AttentionTransfer,
    "region-affinity": RegionAffinity,
    "deep-supervision": DeepSupervision,
    "reconstruction": Reconstruction,
}


def losses_of(settings: DistilSettings) -> dict[str, float]:
    """The weight of each loss of a training: those that were asked for, and those of its further tasks."""
    of_tasks = {TASKS[task]: USUAL_WEIGHTS[TASKS[task]] for task in settings.tasks or ()}
    return {name: weight for name, weight in (of_tasks | settings.losses).items() if weight}


def need_teacher(weights: dict[str, float]) -> list[str]:
    """The losses among them that read a live teacher."""
    return [name for name in weights if LOSSES[name].needs_teacher]


class WeightedLosses(nn.Module):
    """The weighted sum of the losses that a run names.

    Args:
        shapes: of the networks' features; None where no loss looks at them.

    Raises:
        ValueError: a loss that does not exist, or one that needs a tap that a network does not have.
    """

    def __init__(
        self, weights: dict[str, float], shapes: Shapes | None = None, settings: DistilSettings | None = None
    ):  # fmt: skip
        super().__init__()
        check_losses(weights)
        self.weights = dict(weights)
        self.losses = nn.ModuleList(LOSSES[name](shapes, settings or DistilSettings()) for name in weights)
        self.student_taps = tuple(dict.fromkeys(tap for loss in self.losses for tap in loss.student_taps))
        self.teacher_taps = tuple(dict.fromkeys(tap for loss in self.losses for tap in loss.teacher_taps))

    def forward(self, student: Outputs, teacher: Outputs | None, target: Target) -> torch.Tensor:
        parts = [
            weight * loss(student, teacher, target)
            for weight, loss in zip(self.weights.values(), self.losses, strict=True)
        ]
        return torch.stack(parts).sum()
