"""Networks: builds what a student design names, from our own U-Net and MONAI's networks."""

from __future__ import annotations

import math

from torch import nn

from ...records.students import Design, design_named
from .inference import for_inference
from .plain import plain
from .unet import UNet

__all__ = ["NETWORKS", "build_named_network", "build_network", "for_inference", "parameters_of", "plain"]


def build_network(design: Design, dimensions: int, in_channels: int, classes: int) -> nn.Module:
    """A new network of a design: images `(B, in_channels, *size)` to logits `(B, classes, *size)`.

    `dimensions` is 2 or 3; each size must be divisible by the network's `total_stride`. The network also knows its
    `dimensions` and `classes`.

    Raises:
        ValueError: other than 2 or 3 dimensions.
    """
    if dimensions not in design.arguments:
        raise ValueError(f"a student has 2 or 3 dimensions; found {dimensions}")
    network = NETWORKS[design.network](dimensions, in_channels, classes, **design.arguments[dimensions])
    network.dimensions, network.classes = dimensions, classes
    return network


def parameters_of(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def _dynunet(dimensions: int, in_channels: int, classes: int, channels: tuple[int, ...], norm: str) -> nn.Module:
    """MONAI's DynUNet, nnU-Net's architecture: two convolutions per level, strided, transposed upsampling."""
    from monai.networks.nets import DynUNet

    levels = len(channels)
    strides = [1] + [2] * (levels - 1)
    network = DynUNet(
        dimensions, in_channels, classes, [3] * levels, strides, strides[1:], list(channels),
        norm_name=(norm, {"affine": True}), act_name=("leakyrelu", {"inplace": True, "negative_slope": 0.01}),
    )  # fmt: skip
    # DynUNet registers every block twice. Its skip_layers stay usable, but their weights are counted and saved once.
    network.__dict__["skip_layers"] = network._modules.pop("skip_layers")
    network.total_stride = math.prod(strides)
    network.margin = None  # its instance norms look at the whole image
    return network


NETWORKS = {"unet": UNet, "dynunet": _dynunet}


def build_named_network(name: str, dimensions: int, in_channels: int, classes: int) -> nn.Module:
    """`build_network` by the design's name; a bundle's configs/inference.json names it for MONAI."""
    return build_network(design_named(name), dimensions, in_channels, classes)
