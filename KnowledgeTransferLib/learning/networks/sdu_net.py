"""SDU-Net: a U-Net whose levels stack dilated convolutions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from .field_of_view import margin_of
from .layers import LAYERS, convolution
from .u_shape import UShape

DILATIONS = (1, 3, 6, 9, 12)
SHARES = (2, 4, 8, 16, 16)  # the part of a level's width that comes from each dilation: a half, a quarter ...


class StackedDilations(nn.Module):
    """A standard convolution, then dilated ones, each on the output of the one before; all outputs concatenated."""

    def __init__(self, dimensions: int, before: int, width: int):
        super().__init__()
        widths = [before, *(width // share for share in SHARES)]
        self.stack = nn.ModuleList(
            nn.Sequential(*convolution(dimensions, before, width, dilation=dilation))
            for before, width, dilation in zip(widths[:-1], widths[1:], DILATIONS, strict=True)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = []
        for layer in self.stack:
            x = layer(x)
            found.append(x)
        return torch.cat(found, dim=1)


class SDUNet(UShape):
    """SDU-Net (Wang et al. 2020, arXiv:2004.03466).

    Of the paper: a U-Net whose levels hold one standard convolution followed by dilated ones instead of two standard
    ones, and hand on the outputs of all. The rates and shares of `DILATIONS` and `SHARES` are told from memory of it.

    Args:
        channels: width of each level, finest first; multiples of 16.
    """

    def __init__(self, dimensions: int, in_channels: int, classes: int, channels: Sequence[int]):
        pool = LAYERS[dimensions][-1]
        first = StackedDilations(dimensions, in_channels, channels[0])
        coarser = [
            nn.Sequential(pool(2), StackedDilations(dimensions, fine, coarse))
            for fine, coarse in zip(channels[:-1], channels[1:], strict=True)
        ]
        decoder = [StackedDilations(dimensions, 2 * width, width) for width in channels[-2::-1]]
        super().__init__(dimensions, classes, channels, [first, *coarser], decoder)
        strides = [2**n for n in range(len(channels))]
        self.margin = margin_of([(s, sum(DILATIONS)) for s in strides + strides[-2::-1]], self.total_stride)
