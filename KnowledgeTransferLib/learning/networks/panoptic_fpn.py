"""Panoptic-FPN: a ResNet, a feature pyramid, and the semantic branch that adds the levels up."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from .field_of_view import margin_of
from .layers import LAYERS, DoubleLinearly, conv_level
from .resnet import STRIDES, features_of, field_of, resnet
from .taps import level_taps


class PanopticFPN(nn.Module):
    """The semantic part of Panoptic-FPN (Kirillov et al. 2019, arXiv:1901.02446): images to logits.

    The pyramid is MONAI's. Each of its levels is brought to stride 2 (published: 4) by convolutions, each followed by
    doubling; the levels are added. Norms are batch norms, published group norms, so that the network is local.

    Args:
        channels: of the four layers of the ResNet.
        blocks: of each of these layers.
        width: of the pyramid's levels and of the semantic branch.
    """

    def __init__(  # noqa: PLR0913 (a network in numbers)
        self, dimensions: int, in_channels: int, classes: int, *,
        channels: Sequence[int], blocks: Sequence[int], width: int,
    ):  # fmt: skip
        from monai.networks.blocks.feature_pyramid_network import FeaturePyramidNetwork

        super().__init__()
        self.backbone = resnet(dimensions, in_channels, channels, blocks)
        self.pyramid = FeaturePyramidNetwork(dimensions, list(channels), width)
        self.branches = nn.ModuleList(_branch(dimensions, width, doublings) for doublings in range(len(channels)))
        self.head = nn.Sequential(LAYERS[dimensions][0](width, classes, 1), DoubleLinearly())
        self.total_stride = STRIDES[-1]
        ups = [entry for stride in STRIDES[1:] for entry in ((stride, 1), (stride, 1))]
        self.margin = margin_of([(2, 1), *ups, (16, 1), *field_of(blocks)], self.total_stride)
        encoder = [f"backbone.layer{n}" for n in (1, 2, 3)]
        self.taps = level_taps(encoder, "backbone.layer4", [f"pyramid.layer_blocks.{n}" for n in (2, 1, 0)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = features_of(self.backbone, x)
        levels = self.pyramid(dict(enumerate(features))).values()
        branches = [branch(feature) for branch, feature in zip(self.branches, levels, strict=True)]
        return self.head(sum(branches[1:], branches[0]))


def _branch(dimensions: int, width: int, doublings: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(max(1, doublings)):
        layers += conv_level(dimensions, width, width)
        layers += [DoubleLinearly()] if doublings else []
    return nn.Sequential(*layers)
