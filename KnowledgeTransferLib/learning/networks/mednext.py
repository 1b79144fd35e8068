"""MedNeXt: depthwise convolutions in blocks like those of a transformer, as MONAI has it."""

from __future__ import annotations

from torch import nn

from .taps import level_taps

LEVELS = 4


def mednext(dimensions: int, in_channels: int, classes: int, variant: str) -> nn.Module:
    """MedNeXt (Roy et al. 2023, arXiv:2303.09975) with kernels of 3 voxels: images to logits `(B, classes, *size)`.

    Args:
        variant: "S", "B", "M" or "L", as published.
    """
    from monai.networks.nets.mednext import create_mednext

    network = create_mednext(variant, dimensions, in_channels, classes, kernel_size=3)
    network.total_stride = 2**LEVELS
    network.margin = None  # its group norms look at the whole image
    levels = range(LEVELS)
    network.taps = level_taps([f"enc_stages.{n}" for n in levels], "bottleneck", [f"dec_stages.{n}" for n in levels])
    return network
