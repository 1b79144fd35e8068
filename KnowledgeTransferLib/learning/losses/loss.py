"""Loss: what all losses have in common, and what those have that compare features of student and teacher."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ...records.settings import DistilSettings
from ..features import Outputs, Shape, Shapes, Target, tap_pairs

CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}
LEAST_VARIANCE = 1e-5  # what is added to a variance that may be 0


class DistillationLoss(nn.Module):
    """`forward(student: Outputs, teacher: Outputs | None, target: Target)` gives a scalar, smallest for a good student.

    It tells which feature taps it reads, and owns its heads: they exist when it is built, before the optimiser.
    `needs_teacher` says whether a network must run beside the student (a live teacher).
    """

    needs_teacher = False
    student_taps: tuple[str, ...] = ()
    teacher_taps: tuple[str, ...] = ()

    def __init__(self, shapes: Shapes | None, settings: DistilSettings):
        super().__init__()


class PairedLoss(DistillationLoss):
    """The weighted mean, over the pairs of feature taps that `--scales` names, of what `compare` says of a pair.

    `compare(number, own, other, target)` is the loss of the pair of that number, whose features
    `(B, channels, *grid)` are the student's own and the other, the teacher's.
    """

    needs_teacher = True

    def __init__(self, shapes: Shapes, settings: DistilSettings):
        super().__init__(shapes, settings)
        self.pairs = tap_pairs(settings.scales, shapes)
        self.student_taps = tuple(dict.fromkeys(own for own, _ in self.pairs))
        self.teacher_taps = tuple(dict.fromkeys(other for _, other in self.pairs))

    def forward(self, student: Outputs, teacher: Outputs, target: Target) -> torch.Tensor:
        parts = [
            share * self.compare(number, student.features[own].float(), teacher.features[other].float(), target)
            for number, ((own, other), share) in enumerate(self.pairs.items())
        ]
        return torch.stack(parts).sum()


class ProjectedLoss(PairedLoss):
    """A paired loss for which each pair has a head that brings the student's features to the teacher's channels."""

    most_channels = 16  # of whole maps, whose many voxels make up for few channels

    def __init__(self, shapes: Shapes, settings: DistilSettings):
        super().__init__(shapes, settings)
        self.heads = nn.ModuleList(
            Head(shapes.student[own], shapes.teacher[other], self.most_channels) for own, other in self.pairs
        )


class Head(nn.Module):
    """Brings the features of a pair of taps to the same channels.

    A learnt 1x1 convolution takes the student's channels to the teacher's. It is on the student's side: what the
    teacher has to say stands still, and no head can make the task trivial by leaving it out (FitNets,
    arXiv:1412.6550). Where the teacher has more than `most` channels, fixed random orthonormal weights mix them into so
    many, which keeps angles and distances on the whole (Johnson & Lindenstrauss 1984) and makes a step cheap.
    """

    def __init__(self, own: Shape, other: Shape, most: int):
        super().__init__()
        channels = min(other[0], most)
        self.project = CONVOLUTIONS[len(own) - 1](own[0], channels, 1, bias=False)
        mixing = torch.linalg.qr(torch.randn(other[0], channels)).Q.T if other[0] > channels else None
        self.register_buffer("mixing", mixing)

    @property
    def channels(self) -> int:
        return self.project.out_channels

    def mixed(self, other: torch.Tensor) -> torch.Tensor:
        """The teacher's features `(B, C, *grid)` or vectors `(n, C)` in the head's channels."""
        if self.mixing is None:
            return other
        if other.ndim == 2:
            return other @ self.mixing.T
        return (self.mixing @ other.flatten(2)).reshape(len(other), self.channels, *other.shape[2:])


def standardised(features: torch.Tensor) -> torch.Tensor:
    """Features `(B, channels, *grid)` with mean 0 and variance 1 in each channel of the batch.

    After a ReLU all features point into the same corner; only from their mean on do angles between them tell much.
    """
    return _Standardised.apply(features)


class _Standardised(torch.autograd.Function):
    """Batch norm without weights: a few passes over the maps each way, on a CPU half as long as `F.batch_norm`."""

    @staticmethod
    def forward(ctx, features: torch.Tensor) -> torch.Tensor:
        axes = [0, *range(2, features.ndim)]
        centred = features - features.mean(axes, keepdim=True)
        scale = (centred.square().mean(axes, keepdim=True) + LEAST_VARIANCE).rsqrt()
        values = centred.mul_(scale)
        ctx.save_for_backward(values, scale)
        return values

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        """Without its mean, and without what would only make the values larger (Ioffe & Szegedy, arXiv:1502.03167)."""
        values, scale = ctx.saved_tensors
        axes = [0, *range(2, values.ndim)]
        along = (gradient * values).mean(axes, keepdim=True)
        return (gradient - gradient.mean(axes, keepdim=True)).addcmul_(values, along, value=-1).mul_(scale)


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
