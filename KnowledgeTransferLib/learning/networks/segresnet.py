"""SegResNet: residual blocks with group norms, as MONAI has it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .taps import level_taps


def segresnet(
    dimensions: int, in_channels: int, classes: int, width: int, down: Sequence[int], up: Sequence[int]
) -> nn.Module:
    """SegResNet (Myronenko 2018, arXiv:1810.11654, without its autoencoder): images to logits `(B, classes, *size)`.

    Args:
        width: of the finest level; each coarser one has twice that.
        down, up: blocks of each level of the encoder (finest first) and of the decoder (coarsest first).
    """
    from monai.networks.nets import SegResNet

    network = SegResNet(
        dimensions, width, in_channels, classes, blocks_down=tuple(down), blocks_up=tuple(up),
        upsample_mode="deconv",  # the interpolation of the others has no deterministic backward pass on CUDA
    )  # fmt: skip
    deepest = len(down) - 1
    network.total_stride = 2**deepest
    network.margin = None  # its group norms look at the whole image
    encoder = [f"down_layers.{n}" for n in range(deepest)]
    network.taps = level_taps(encoder, f"down_layers.{deepest}", [f"up_layers.{n}" for n in range(deepest)])
    return network
