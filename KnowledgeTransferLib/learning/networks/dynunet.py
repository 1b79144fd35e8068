"""DynUNet: nnU-Net's architecture, as MONAI has it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .taps import level_taps


def dynunet(dimensions: int, in_channels: int, classes: int, channels: Sequence[int]) -> nn.Module:
    """nnU-Net's U-Net (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z): images to logits `(B, classes, *size)`.

    Two convolutions per level with instance norm, strided convolutions down, transposed ones up.
    """
    from monai.networks.nets import DynUNet

    levels = len(channels)
    strides = [1] + [2] * (levels - 1)
    network = DynUNet(
        dimensions, in_channels, classes, [3] * levels, strides, strides[1:], list(channels),
        norm_name=("instance", {"affine": True}), act_name=("leakyrelu", {"inplace": True, "negative_slope": 0.01}),
    )  # fmt: skip
    # DynUNet registers every block twice. Its skip_layers stay usable, but their weights are counted and saved once.
    network.__dict__["skip_layers"] = network._modules.pop("skip_layers")
    network.total_stride = 2 ** (levels - 1)
    network.margin = None  # its instance norms look at the whole image
    encoder = ["input_block", *(f"downsamples.{n}" for n in range(levels - 2))]
    network.taps = level_taps(encoder, "bottleneck", [f"upsamples.{n}" for n in range(levels - 1)])
    return network
