"""U-Net in 2-D and 3-D, with an optional sub-pixel stem that makes it fast.

With `stem` 2, blocks of 2 x 2 (x 2) voxels become channels without loss, the U-Net works on the coarser grid, and the
head writes the classes of every voxel of a block (sub-pixel convolution, Shi et al. 2016, arXiv:1609.05158). The
costly full-resolution levels are gone, the full-resolution detail is not. All layers have a deterministic backward
pass on CUDA, and all but the norms over a whole image are local.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from .taps import level_taps

LAYERS = {
    2: (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.InstanceNorm2d, nn.MaxPool2d),
    3: (nn.Conv3d, nn.ConvTranspose3d, nn.BatchNorm3d, nn.InstanceNorm3d, nn.MaxPool3d),
}


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

    def __init__(  # noqa: PLR0913 (a network in numbers)
        self, dimensions: int, in_channels: int, classes: int, channels: Sequence[int], *,
        convolutions: int = 1, stem: int = 1, down: str = "stride", join: str = "concatenate", norm: str = "batch",
    ):  # fmt: skip
        super().__init__()
        conv, transposed = LAYERS[dimensions][:2]
        self.stem = stem
        self.dimensions = dimensions
        self.total_stride = stem * 2 ** (len(channels) - 1)
        self.margin = _margin(len(channels), convolutions, stem, down) if norm == "batch" else None
        levels = range(len(channels) - 1)
        deepest = f"encoder.{len(levels)}"
        self.taps = level_taps([f"encoder.{n}" for n in levels], deepest, [f"decoder.{n}" for n in levels])
        block = stem**dimensions
        inputs = (in_channels * block, *channels[:-1])
        self.encoder = nn.ModuleList(
            _level(dimensions, before, width, convolutions, down if depth else "", norm)
            for depth, (before, width) in enumerate(zip(inputs, channels, strict=True))
        )
        steps = list(zip(channels[:-1], channels[1:], strict=True))[::-1]
        self.add = join == "add"
        self.up = nn.ModuleList(
            nn.Sequential(conv(coarse, fine, 1), RepeatVoxels()) if self.add else transposed(coarse, fine, 2, 2)
            for fine, coarse in steps
        )
        width = 1 if self.add else 2
        self.decoder = nn.ModuleList(
            _level(dimensions, width * fine, fine, convolutions, "", norm) for fine, _ in steps
        )
        self.head = conv(channels[0], classes * block, 1)

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


class RepeatVoxels(nn.Module):
    """Each voxel becomes a block of 2 per axis; by expansion, so that the backward pass is a plain sum."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, channels, *size = x.shape
        x = x.reshape(batch, channels, *(part for length in size for part in (length, 1)))
        x = x.expand(batch, channels, *(part for length in size for part in (length, 2)))
        # Sizes are spelled out from the shape of x, so that exporters keep them dynamic.
        return x.reshape(batch, channels, *(2 * length for length in size))


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
    """How far beyond a region, whose ends are multiples of the total stride, its classes depend on the image.

    In voxels, a multiple of the total stride; counted for one voxel more than the region, which interpolation needs.
    """
    strides, reach = [stem * 2**level for level in range(levels)], 1
    for stride in strides[:-1]:  # decoder, from fine to coarse
        reach = _outward(reach, stride) + convolutions * stride
    for level in range(levels - 1, -1, -1):  # encoder, from coarse to fine
        first = strides[level - 1] if level and down == "stride" else strides[level]  # it looks at the finer grid
        reach = _outward(reach, strides[level]) + (convolutions - 1) * strides[level] + first
    return _outward(reach, strides[-1])


def _outward(length: int, step: int) -> int:
    return -(-length // step) * step


def _level(dimensions: int, before: int, width: int, convolutions: int, down: str, norm: str) -> nn.Sequential:
    conv, _, batch_norm, instance_norm, pool = LAYERS[dimensions]
    layers: list[nn.Module] = [pool(2)] if down == "max-pool" else []
    for index in range(convolutions):
        stride = 2 if down == "stride" and index == 0 else 1
        layers.append(conv(before if index == 0 else width, width, 3, stride, 1, bias=norm != "batch"))
        layers.append(batch_norm(width) if norm == "batch" else instance_norm(width, affine=True))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)
