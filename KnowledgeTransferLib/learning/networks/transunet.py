"""TransUNet: a U-Net whose deepest level is a vision transformer over the whole image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from .attention import SelfAttention, TransformerBlock
from .layers import LAYERS, conv_level
from .u_shape import UShape


class TokenLevel(nn.Module):
    """The grid halved into patches of 2 voxels per axis, each a token, and transformer blocks over all of them.

    Where a token lies it learns by a depthwise convolution over its neighbours (Chu et al. 2021, arXiv:2102.10882)
    instead of a table for one size, so that images of any size go through.
    """

    def __init__(self, dimensions: int, before: int, width: int, blocks: int, heads: int):  # noqa: PLR0913
        super().__init__()
        conv = LAYERS[dimensions][0]
        self.patches = conv(before, width, 2, 2)
        self.place = conv(width, width, 3, 1, 1, groups=width)
        self.blocks = nn.Sequential(
            *(TransformerBlock(width, SelfAttention(width, heads)) for _ in range(blocks)), nn.LayerNorm(width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x)
        x = x + self.place(x)
        tokens = self.blocks(x.flatten(2).transpose(1, 2))
        return tokens.transpose(1, 2).reshape(x.shape)


class TransUNet(UShape):
    """TransUNet (Chen et al. 2021, arXiv:2102.04306) in a student's size.

    Its encoder is a plain one of convolutions instead of a ResNet-50, and its transformer has fewer and narrower
    blocks than the published ViT-B, with the positions of `TokenLevel`.

    Args:
        channels: width of the levels of convolutions, finest first, and of the tokens.
        blocks, heads: of the transformer.
    """

    def __init__(  # noqa: PLR0913 (a network in numbers)
        self, dimensions: int, in_channels: int, classes: int, *, channels: Sequence[int], blocks: int, heads: int
    ):
        steps = list(zip((in_channels, *channels[:-2]), channels[:-1], strict=True))
        encoder = [conv_level(dimensions, *step, 2, "max-pool" if depth else "") for depth, step in enumerate(steps)]
        tokens = TokenLevel(dimensions, channels[-2], channels[-1], blocks, heads)
        decoder = [conv_level(dimensions, 2 * width, width) for width in channels[-2::-1]]
        super().__init__(dimensions, classes, channels, [*encoder, tokens], decoder)
