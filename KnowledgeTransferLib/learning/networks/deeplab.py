"""DeepLabv3+: a ResNet, dilated convolutions of several rates side by side, and a small decoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from .field_of_view import margin_of
from .layers import LAYERS, DoubleLinearly, conv_level, convolution
from .resnet import STRIDES, features_of, field_of, resnet
from .taps import level_taps


class DeepLabV3Plus(nn.Module):
    """DeepLabv3+ (Chen et al. 2018, arXiv:1802.02611): images `(B, C, *size)` to logits `(B, classes, *size)`.

    Spatial pyramid pooling at stride 16 is MONAI's SimpleASPP; the decoder joins it to the low-level features. As
    published but for size: low-level features at stride 2 instead of 4, rates for small patches, and no pooling over
    the whole image, so that the network is local.

    Args:
        channels: of the four layers of the ResNet.
        blocks: of each of these layers.
        width: of the pyramid and of the decoder.
        rates: dilations side by side; the first is 1.
    """

    def __init__(  # noqa: PLR0913 (a network in numbers)
        self, dimensions: int, in_channels: int, classes: int, *,
        channels: Sequence[int], blocks: Sequence[int], width: int, rates: Sequence[int],
    ):  # fmt: skip
        from monai.networks.blocks import SimpleASPP

        super().__init__()
        self.backbone = resnet(dimensions, in_channels, channels, blocks)
        kernels, act = [1] + [3] * (len(rates) - 1), ("relu", {"inplace": True})
        each = width // len(rates)
        self.pyramid = SimpleASPP(
            dimensions, channels[-1], each, kernels, list(rates), norm_type="batch", acti_type=act
        )
        self.low = nn.Sequential(*convolution(dimensions, channels[0], width // 4, kernel=1))
        self.up = nn.Sequential(*(DoubleLinearly() for _ in STRIDES[1:]))
        self.decoder = conv_level(dimensions, each * len(rates) + width // 4, width, 2)
        self.head = nn.Sequential(LAYERS[dimensions][0](width, classes, 1), DoubleLinearly())
        self.total_stride = STRIDES[-1]
        ups = [(stride, 1) for stride in STRIDES[1:]]
        self.margin = margin_of([(2, 1), (2, 2), *ups, (16, max(rates)), *field_of(blocks)], self.total_stride)
        self.taps = level_taps([f"backbone.layer{n}" for n in (1, 2, 3)], "pyramid", ["decoder"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = features_of(self.backbone, x)
        x = self.up(self.pyramid(features[-1]))
        return self.head(self.decoder(torch.cat([x, self.low(features[0])], dim=1)))
