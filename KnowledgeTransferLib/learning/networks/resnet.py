"""ResNet: the backbone of DeepLabv3+ and Panoptic-FPN, which is MONAI's, without any ready-made weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

STRIDES = (2, 4, 8, 16)
FIRST_REACH = 3  # of the first convolution of 7 x 7 (x 7)


def resnet(dimensions: int, in_channels: int, channels: Sequence[int], blocks: Sequence[int]) -> nn.Module:
    """A ResNet (He et al. 2016, arXiv:1512.03385) of basic blocks, whose four layers have the `STRIDES`.

    It has no pooling after the first convolution: medical patches are small, and half the published strides fit them.
    """
    from monai.networks.nets import ResNet

    return ResNet(
        "basic", list(blocks), list(channels), spatial_dims=dimensions, n_input_channels=in_channels,
        conv1_t_stride=2, no_max_pool=True, feed_forward=False, bias_downsample=False,
    )  # fmt: skip


def features_of(network: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """The outputs of the four layers, finest first."""
    x = network.act(network.bn1(network.conv1(x)))
    found = []
    for layer in (network.layer1, network.layer2, network.layer3, network.layer4):
        x = layer(x)
        found.append(x)
    return found


def field_of(blocks: Sequence[int]) -> list[tuple[int, int]]:
    """The way from the fourth layer back to the image, for `margin_of`."""
    path = []
    for stride, finer, count in zip(STRIDES[::-1], (8, 4, 2, 2), blocks[::-1], strict=True):
        path += [(stride, 2 * count - 1), (finer, 1)]
    return [*path, (1, FIRST_REACH)]
