"""Networks: builds what a student design names. One file per architecture; most are built of MONAI's blocks."""

from __future__ import annotations

import math

import torch
from torch import nn

from ...records.students import Design, design_named
from .attention_unet import AttentionUNet
from .deeplab import DeepLabV3Plus
from .dynunet import dynunet
from .footprint import most_alive
from .inference import for_inference
from .mednext import mednext
from .panoptic_fpn import PanopticFPN
from .plain import plain
from .sdu_net import SDUNet
from .segresnet import segresnet
from .swin_unetr import SwinUNETR
from .transunet import TransUNet
from .unet import UNet

__all__ = [
    "NETWORKS", "build_named_network", "build_network", "drawn_from", "for_inference", "lower_background",
    "most_alive", "parameters_of", "plain",
]  # fmt: skip

NETWORKS = {
    "unet": UNet, "attention-unet": AttentionUNet, "sdu-net": SDUNet, "deeplabv3plus": DeepLabV3Plus,
    "panoptic-fpn": PanopticFPN, "dynunet": dynunet, "segresnet": segresnet, "mednext": mednext,
    "swin-unetr": SwinUNETR, "transunet": TransUNet,
}  # fmt: skip
# The bias of the last convolution, which a logit of the whole image can be shifted by; of the others it is head.bias.
LAST_BIAS = {
    "deeplabv3plus": "head.0.bias", "panoptic-fpn": "head.0.bias", "dynunet": "output_block.conv.conv.bias",
    "segresnet": "conv_final.2.conv.bias", "mednext": "out_0.conv_out.bias", "swin-unetr": "head.conv.conv.bias",
}  # fmt: skip


def build_network(design: Design, dimensions: int, in_channels: int, classes: int) -> nn.Module:
    """A new network of a design: images `(B, in_channels, *size)` to logits `(B, classes, *size)`.

    `dimensions` is 2 or 3; each size must be divisible by the network's `total_stride`. The network also knows its
    `dimensions` and `classes`, its `margin` (how far its classes depend on the image; None: on the whole) and its
    `taps`.

    Raises:
        ValueError: other than 2 or 3 dimensions.
    """
    if dimensions not in design.arguments:
        raise ValueError(f"a student has 2 or 3 dimensions; found {dimensions}")
    network = NETWORKS[design.network](dimensions, in_channels, classes, **design.arguments[dimensions])
    network.dimensions, network.classes = dimensions, classes
    network.last_bias = LAST_BIAS.get(design.network, "head.bias")
    return network


def build_named_network(name: str, dimensions: int, in_channels: int, classes: int) -> nn.Module:
    """`build_network` by the design's name; a bundle's configs/inference.json names it for MONAI."""
    return build_network(design_named(name), dimensions, in_channels, classes)


def lower_background(network: nn.Module, by: float) -> None:
    """Lower the background's logit of every voxel: in a weight, so that it holds wherever the network runs."""
    bias = network.get_parameter(network.last_bias)
    with torch.no_grad():
        bias.view(network.classes, -1)[0] -= by  # a network with a stem has a channel for each voxel of a block


def drawn_from(lowered_by: float) -> float:
    """The probability from which a structure is drawn, out of its own and the background's together, so lowered."""
    return 1 / (1 + math.exp(lowered_by))


def parameters_of(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())
