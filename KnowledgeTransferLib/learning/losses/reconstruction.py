"""Reconstruction: a second task for any design. A decoder of its own paints the image again from the same encoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from ...records.settings import DistilSettings
from ..features import Outputs, Shape, Shapes, Target, taps_of_kind
from ..networks.unet import LAYERS
from .loss import DistillationLoss


class Reconstruction(DistillationLoss):
    """Mean squared difference between the image and what a second decoder makes of the encoder's features.

    Encoder, bottleneck and skips are shared with the segmentation (the multi-task teacher of arXiv:2406.03173). The
    decoder belongs to the loss: it is trained with the network, and a finished bundle neither holds nor runs it.
    """

    def __init__(self, shapes: Shapes, settings: DistilSettings):
        super().__init__(shapes, settings)
        self.student_taps = (*taps_of_kind(shapes.student, "encoder"), *taps_of_kind(shapes.student, "bottleneck"))
        self.decoder = SecondDecoder([shapes.student[tap] for tap in self.student_taps], shapes.image)

    def forward(self, student: Outputs, teacher: Outputs | None, target: Target) -> torch.Tensor:
        return F.mse_loss(self.decoder([student.features[tap].float() for tap in self.student_taps]), target.image)


class SecondDecoder(nn.Module):
    """The decoder of a U-Net: features of all levels to an image `(B, C, *size)`.

    Args:
        levels: `(channels, *grid)` of each level, finest first.
        image: `(C, *size)`.
    """

    def __init__(self, levels: Sequence[Shape], image: Shape):
        super().__init__()
        conv, transposed, batch_norm = LAYERS[len(image) - 1][:3]
        steps = list(zip(levels[:-1], levels[1:], strict=True))[::-1]
        self.up = nn.ModuleList(
            transposed(coarse[0], fine[0], ratio, ratio) for fine, coarse in steps for ratio in [_ratio(fine, coarse)]
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(
                conv(2 * fine[0], fine[0], 3, padding=1, bias=False),
                batch_norm(fine[0], track_running_stats=False), nn.ReLU(inplace=True),
            )
            for fine, _ in steps
        )  # fmt: skip
        ratio = _ratio(image, levels[0])
        self.head = transposed(levels[0][0], image[0], ratio, ratio)  # a 1x1 convolution where the grids are the same

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        *skips, x = features
        for up, block in zip(self.up, self.blocks, strict=True):
            x = block(torch.cat([skips.pop(), up(x)], dim=1))
        return self.head(x)


def _ratio(fine: Shape, coarse: Shape) -> tuple[int, ...]:
    return tuple(a // b for a, b in zip(fine[1:], coarse[1:], strict=True))
