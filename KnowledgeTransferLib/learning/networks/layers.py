"""Layers: what our own networks share. All have a deterministic backward pass, on CUDA too, and export at any size."""

from __future__ import annotations

import torch
from torch import nn

LAYERS = {
    2: (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.InstanceNorm2d, nn.MaxPool2d),
    3: (nn.Conv3d, nn.ConvTranspose3d, nn.BatchNorm3d, nn.InstanceNorm3d, nn.MaxPool3d),
}


def convolution(  # noqa: PLR0913 (a layer in numbers)
    dimensions: int, before: int, width: int, kernel: int = 3, stride: int = 1, dilation: int = 1
) -> list[nn.Module]:
    """A convolution that keeps the grid (or divides it by its stride), batch norm and ReLU."""
    conv, _, norm, _, _ = LAYERS[dimensions]
    padding = kernel // 2 * dilation
    layer = conv(before, width, kernel, stride, padding, dilation, bias=False)
    return [layer, norm(width), nn.ReLU(inplace=True)]


def conv_level(dimensions: int, before: int, width: int, convolutions: int = 1, down: str = "") -> nn.Sequential:
    """A level of a U-Net: convolutions of 3 x 3 (x 3), each with batch norm and ReLU.

    Args:
        down: halve the grid by "stride" (in the first convolution) or "max-pool" (before it); "" keeps it.
    """
    layers: list[nn.Module] = [LAYERS[dimensions][-1](2)] if down == "max-pool" else []
    for index in range(convolutions):
        stride = 2 if down == "stride" and index == 0 else 1
        layers += convolution(dimensions, before if index == 0 else width, width, stride=stride)
    return nn.Sequential(*layers)


class RepeatVoxels(nn.Module):
    """Each voxel becomes a block of 2 per axis; by expansion, so that the backward pass is a plain sum."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, channels, *size = x.shape
        x = x.reshape(batch, channels, *(part for length in size for part in (length, 1)))
        x = x.expand(batch, channels, *(part for length in size for part in (length, 2)))
        # Sizes are spelled out from the shape of x, so that exporters keep them dynamic.
        return x.reshape(batch, channels, *(2 * length for length in size))


class DoubleLinearly(nn.Module):
    """Linear interpolation to twice the size, as `F.interpolate`, whose backward pass is not deterministic on CUDA."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for axis in range(2, x.dim()):
            before = torch.cat([x.narrow(axis, 0, 1), x], axis)  # one longer: each voxel's neighbour on the left
            after = torch.cat([x, x.narrow(axis, -1, 1)], axis)
            middle = 0.25 * before + 0.75 * after, 0.75 * before + 0.25 * after
            left, right = middle[0].narrow(axis, 0, x.shape[axis]), middle[1].narrow(axis, 1, x.shape[axis])
            x = torch.stack([left, right], axis + 1).flatten(axis, axis + 1)
        return x
