"""U-Net in 2-D and 3-D, with an optional sub-pixel stem that makes it fast.

With `stem` 2, blocks of 2 x 2 (x 2) voxels become channels without loss, the U-Net works on the coarser grid, and the
head writes the classes of every voxel of a block (sub-pixel convolution, Shi et al. 2016, arXiv:1609.05158). The
costly full-resolution levels are gone, the full-resolution detail is not. All layers are local.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from .field_of_view import margin_of
from .layers import LAYERS, RepeatVoxels, conv_level
from .taps import level_taps


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015, arXiv:1505.04597): images `(B, C, *size)` to logits `(B, classes, *size)`.

    Args:
        channels: width of each level, finest first; each level halves the grid.
        convolutions: 3 x 3 (x 3) convolutions per level, each with norm and ReLU.
        stem: edge of the blocks that become channels before the first level; 1 for none.
        down: "stride" (in the first convolution of a level) or "max-pool" (before it).
        join: "concatenate" a skip with the transposed convolution of the level below, or "add" it to the repeated
            voxels of the level below, which halves the work of the decoder.

    Every size must be divisible by `total_stride`. `margin` says how far beyond a region its classes depend on the
    image (None: on the whole image, through a norm). `taps` names the level whose output is each feature.
    """

    head_is_pointwise = True  # what it makes of a voxel of the last level depends on that voxel alone

    def __init__(  # noqa: PLR0913 (a network in numbers)
        self, dimensions: int, in_channels: int, classes: int, channels: Sequence[int], *,
        convolutions: int = 1, stem: int = 1, down: str = "stride", join: str = "concatenate",
    ):  # fmt: skip
        super().__init__()
        conv, transposed = LAYERS[dimensions][:2]
        self.stem = stem
        self.dimensions = dimensions
        self.total_stride = stem * 2 ** (len(channels) - 1)
        self.margin = _margin(len(channels), convolutions, stem, down)
        levels = range(len(channels) - 1)
        deepest = f"encoder.{len(levels)}"
        self.taps = level_taps([f"encoder.{n}" for n in levels], deepest, [f"decoder.{n}" for n in levels])
        block = stem**dimensions
        inputs = (in_channels * block, *channels[:-1])
        self.encoder = nn.ModuleList(
            conv_level(dimensions, before, width, convolutions, down if depth else "")
            for depth, (before, width) in enumerate(zip(inputs, channels, strict=True))
        )
        steps = list(zip(channels[:-1], channels[1:], strict=True))[::-1]
        self.add = join == "add"
        self.up = nn.ModuleList(
            nn.Sequential(conv(coarse, fine, 1), RepeatVoxels()) if self.add else transposed(coarse, fine, 2, 2)
            for fine, coarse in steps
        )
        width = 1 if self.add else 2
        # The finest level's skip, what comes up to it and what both become, with half as much for the coarser levels.
        self.body_values_per_voxel = in_channels + (2.5 + width) * channels[0] / block
        self.decoder = nn.ModuleList(conv_level(dimensions, width * fine, fine, convolutions) for fine, _ in steps)
        self.head = conv(channels[0], classes * block, 1)
        _begin_alike(self.head, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = space_to_depth(x, self.stem) if self.stem > 1 else x
        skips = []
        for level in self.encoder:
            x = level(x)
            skips.append(x)
        skips.pop()
        for up, level in zip(self.up, self.decoder, strict=True):
            x = level(up(x) + skips.pop() if self.add else torch.cat([skips.pop(), up(x)], dim=1))
        x = self.head(x)
        return depth_to_space(x, self.stem) if self.stem > 1 else x


@torch.no_grad()
def _begin_alike(head: nn.Module, classes: int) -> None:
    """Let all voxels of a block begin with the same logits: else a checkerboard must be unlearnt first (Aitken et al.
    2017, arXiv:1707.02937)."""
    for parameter in head.parameters():
        of_voxels = parameter.view(classes, -1, *parameter.shape[1:])
        of_voxels.copy_(of_voxels[:, :1].clone().expand_as(of_voxels))


def space_to_depth(x: torch.Tensor, factor: int) -> torch.Tensor:
    """Blocks of `factor` voxels per axis become channels: `(B, C, *size)` -> `(B, C * factor**n, *size / factor)`."""
    batch, channels, *size = x.shape
    n = len(size)
    x = x.reshape(batch, channels, *(part for length in size for part in (length // factor, factor)))
    x = x.permute(0, 1, *range(3, 3 + 2 * n, 2), *range(2, 2 + 2 * n, 2))
    return x.reshape(batch, channels * factor**n, *(length // factor for length in size))


def depth_to_space(x: torch.Tensor, factor: int) -> torch.Tensor:
    """The inverse of `space_to_depth`."""
    batch, channels, *size = x.shape
    n = len(size)
    x = x.reshape(batch, channels // factor**n, *[factor] * n, *size)
    x = x.permute(0, 1, *(axis for i in range(n) for axis in (2 + n + i, 2 + i)))
    return x.reshape(batch, channels // factor**n, *(length * factor for length in size))


def _margin(levels: int, convolutions: int, stem: int, down: str) -> int:
    strides = [stem * 2**level for level in range(levels)]
    path = [(stride, convolutions) for stride in strides[:-1]]  # decoder, from fine to coarse
    for level in range(levels - 1, -1, -1):  # encoder, from coarse to fine
        first = strides[level - 1] if level and down == "stride" else strides[level]  # it looks at the finer grid
        path += [(strides[level], convolutions - 1), (first, 1)]
    return margin_of(path, strides[-1])
