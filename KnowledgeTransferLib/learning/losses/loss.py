"""Loss: what all losses have in common, and what those have that compare features of student and teacher."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ...records.settings import DistilSettings
from ..features import Outputs, Shapes, Target, tap_pairs

CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}


class DistillationLoss(nn.Module):
    """Tells which feature taps it reads, and owns its heads: they exist when it is built, before the optimiser.

    `needs_teacher` says whether a network must run beside the student (a live teacher).
    """

    needs_teacher = False
    student_taps: tuple[str, ...] = ()
    teacher_taps: tuple[str, ...] = ()

    def __init__(self, shapes: Shapes | None, settings: DistilSettings):
        super().__init__()

    def forward(self, student: Outputs, teacher: Outputs | None, target: Target) -> torch.Tensor:
        """A scalar, smallest where the student is what it should be."""
        raise NotImplementedError


class PairedLoss(DistillationLoss):
    """The mean, over the pairs of feature taps that `--scales` names, of what `compare` says of a pair."""

    needs_teacher = True

    def __init__(self, shapes: Shapes, settings: DistilSettings):
        super().__init__(shapes, settings)
        self.pairs = tap_pairs(settings.scales, shapes)
        self.student_taps = tuple(dict.fromkeys(own for own, _ in self.pairs))
        self.teacher_taps = tuple(dict.fromkeys(other for _, other in self.pairs))

    def forward(self, student: Outputs, teacher: Outputs, target: Target) -> torch.Tensor:
        parts = [
            self.compare(number, student.features[own].float(), teacher.features[other].float(), target)
            for number, (own, other) in enumerate(self.pairs)
        ]
        return torch.stack(parts).mean()

    def compare(self, number: int, own: torch.Tensor, other: torch.Tensor, target: Target) -> torch.Tensor:
        """The loss of the pair of that number; features `(B, channels, *grid)` of the student and of the teacher."""
        raise NotImplementedError


def projections(pairs: list[tuple[str, str]], shapes: Shapes) -> nn.ModuleList:
    """For each pair a learnt 1x1 convolution from the student's channels to the teacher's.

    The heads are on the student's side: what it has to say is the teacher's and stands still, and no head can make
    the task trivial by leaving out what the teacher knows (FitNets, arXiv:1412.6550).
    """
    convolution = CONVOLUTIONS[len(shapes.image) - 1]
    return nn.ModuleList(
        convolution(shapes.student[own][0], shapes.teacher[other][0], 1, bias=False) for own, other in pairs
    )


def standardised(features: torch.Tensor) -> torch.Tensor:
    """Features `(B, channels, *grid)` with mean 0 and variance 1 in each channel of the batch.

    After a ReLU all features point into the same corner; only from their mean on do angles between them tell much.
    """
    return F.batch_norm(features, None, None, training=True)


def weighted_mean(values: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """The mean over voxels of values `(B, *size)`, each by its weight `(B, 1, *size)`; 0 where nothing has a weight."""
    if weights is None:
        return values.mean()
    return (weights[:, 0] * values).sum() / weights.sum().clamp_min(1e-6)


def on_grid(values: torch.Tensor, grid: torch.Size) -> torch.Tensor:
    """Values `(B, channels, *other)` on a grid: averaged where it is coarser, interpolated linearly where it is finer.

    For what needs no gradient (features of a teacher, targets): its backward pass is not deterministic on CUDA.
    """
    if values.shape[2:] == grid:
        return values
    if all(new <= old for new, old in zip(grid, values.shape[2:], strict=True)):
        return F.interpolate(values, size=grid, mode="area")
    mode = {2: "bilinear", 3: "trilinear"}[len(grid)]
    return F.interpolate(values, size=grid, mode=mode, align_corners=False)
