"""Attention U-Net: a U-Net whose skips are weighted by attention gates, which are MONAI's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from .field_of_view import margin_of
from .layers import conv_level
from .u_shape import UShape


class AttentionUNet(UShape):
    """Attention U-Net (Oktay et al. 2018, arXiv:1804.03999) with additive gates between skip and level below.

    MONAI's own merges with a norm over the whole image; this one is local throughout.

    Args:
        channels: width of each level, finest first.
    """

    def __init__(self, dimensions: int, in_channels: int, classes: int, channels: Sequence[int]):
        from monai.networks.nets.attentionunet import AttentionBlock

        steps = list(zip((in_channels, *channels[:-1]), channels, strict=True))
        encoder = [conv_level(dimensions, *step, 2, "max-pool" if depth else "") for depth, step in enumerate(steps)]
        decoder = [conv_level(dimensions, 2 * width, width, 2) for width in channels[-2::-1]]
        super().__init__(dimensions, classes, channels, encoder, decoder)
        self.gates = nn.ModuleList(AttentionBlock(dimensions, width // 2, width, width) for width in channels[-2::-1])
        strides = [2**n for n in range(len(channels))]
        self.margin = margin_of([(s, 2) for s in strides + strides[-2::-1]], self.total_stride)

    def join(self, place: int, skip: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
        return super().join(place, self.gates[place](g=below, x=skip), below)
