"""Swin UNETR: an encoder of transformers over shifted windows, and a decoder of convolutions.

MONAI's Swin UNETR fixes its windows to one image size when it is exported; so the windows are our own, and the
convolutions MONAI's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .attention import SelfAttention, TransformerBlock
from .layers import LAYERS
from .taps import level_taps

HEAD_WIDTH = 12


class SwinUNETR(nn.Module):
    """Swin UNETR (Hatamizadeh et al. 2022, arXiv:2201.01266): images `(B, C, *size)` to logits `(B, classes, *size)`.

    As published, but for one stage less (total stride 16), smaller windows, and windows that shut out the padding.

    Args:
        width: channels at strides 1 and 2; each further stage has twice as many.
        stages: each has two transformer blocks, and merges 2 voxels per axis into one.
        window: edge of the windows, in voxels of a stage's grid.
    """

    def __init__(  # noqa: PLR0913 (a network in numbers)
        self, dimensions: int, in_channels: int, classes: int, *, width: int, stages: int, window: int
    ):
        from monai.networks.blocks import UnetOutBlock, UnetrBasicBlock, UnetrUpBlock

        super().__init__()
        norm = ("instance", {"affine": True})
        widths = [width * 2**stage for stage in range(stages + 1)]
        self.patches = LAYERS[dimensions][0](in_channels, width, 2, 2)
        self.stages = nn.ModuleList(SwinStage(dimensions, each, window) for each in widths[:-1])
        self.norms = nn.ModuleList(nn.LayerNorm(each, elementwise_affine=False) for each in widths)
        inputs, outputs = (in_channels, *widths), (width, *widths)
        self.encoder = nn.ModuleList(
            UnetrBasicBlock(dimensions, before, after, 3, 1, norm, res_block=True)
            for before, after in zip(inputs, outputs, strict=True)
        )
        self.decoder = nn.ModuleList(
            UnetrUpBlock(dimensions, coarse, fine, 3, 2, norm, res_block=True)
            for fine, coarse in list(zip(outputs[:-1], outputs[1:], strict=True))[::-1]
        )
        self.head = UnetOutBlock(dimensions, width, classes)
        self.total_stride = 2 ** (stages + 1)
        self.margin = None  # its instance norms look at the whole image
        self.no_export = "pt2"  # torch.export cannot prove that windows fit into an image of any size
        levels = range(stages + 1)
        deepest = f"encoder.{stages + 1}"
        self.taps = level_taps([f"encoder.{n}" for n in levels], deepest, [f"decoder.{n}" for n in levels])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = [self.patches(x)]
        for stage in self.stages:
            hidden.append(stage(hidden[-1]))
        skips = [self.encoder[0](x)]
        for norm, block, tokens in zip(self.norms, self.encoder[1:], hidden, strict=True):
            skips.append(block(_channels_first(norm(_channels_last(tokens)))))
        x = skips.pop()
        for block in self.decoder:
            x = block(x, skips.pop())
        return self.head(x)


class SwinStage(nn.Module):
    """Two transformer blocks over windows, the second over shifted ones (Liu et al. 2021, arXiv:2103.14030), then
    patch merging: `(B, width, *grid)` to `(B, 2 width, *grid / 2)`.
    """

    def __init__(self, dimensions: int, width: int, window: int):
        super().__init__()
        attentions = [WindowAttention(dimensions, width, window, shift) for shift in (0, window // 2)]
        self.blocks = nn.Sequential(*(TransformerBlock(width, attention) for attention in attentions))
        self.norm = nn.LayerNorm(width * 2**dimensions)
        self.merge = nn.Linear(width * 2**dimensions, 2 * width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = _channels_first(self.blocks(_channels_last(x)))
        merged = _windows(tokens, 2).flatten(-2)  # (B, windows, 2**n * width)
        merged = self.merge(self.norm(merged)).transpose(1, 2)
        return merged.reshape(x.shape[0], -1, *(length // 2 for length in x.shape[2:]))


class WindowAttention(nn.Module):
    """Self-attention within windows of `(B, *grid, width)`, with a learned bias for each relative position."""

    def __init__(self, dimensions: int, width: int, window: int, shift: int):
        super().__init__()
        self.window, self.shift, heads = window, shift, width // HEAD_WIDTH
        self.attention = SelfAttention(width, heads)
        self.bias = nn.Parameter(torch.zeros((2 * window - 1) ** dimensions, heads))
        nn.init.trunc_normal_(self.bias, std=0.02)
        self.register_buffer("index", _relative_positions(dimensions, window), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size, x = x.shape[1:-1], _channels_first(x)
        x = F.pad(x, [p for length in reversed(size) for p in (0, -length % self.window)])
        axes = list(range(2, x.dim()))
        shifted = torch.roll(x, [-self.shift] * len(axes), axes) if self.shift else x
        bias = self.bias[self.index].permute(2, 0, 1)
        tokens = self.attention(_windows(shifted, self.window), bias, self._apart(size, x))
        back = _grid(tokens, self.window, shifted)
        back = torch.roll(back, [self.shift] * len(axes), axes) if self.shift else back
        for axis, length in zip(axes, size, strict=True):
            back = back.narrow(axis, 0, length)
        return _channels_last(back)

    def _apart(self, size, padded: torch.Tensor) -> torch.Tensor:
        """Which tokens of a window do not see each other `(windows, T, T)`: image and padding, and the image's ends."""
        regions = torch.zeros_like(padded[:1, :1])
        for axis, length in enumerate(size, 2):
            whole = padded.shape[axis]
            place = torch.arange(whole, device=padded.device)
            wrapped = place >= whole - self.shift
            outside = (place + self.shift) % whole >= length
            kind = (2 * wrapped + outside).to(padded.dtype) * 4 ** (axis - 2)
            regions = regions + kind.reshape(-1, *[1] * (padded.dim() - axis - 1))
        regions = _windows(regions, self.window)[0]
        return regions != regions.transpose(-1, -2)


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, *range(2, x.dim()), 1)


def _channels_first(x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, x.dim() - 1, *range(1, x.dim() - 1))


def _windows(x: torch.Tensor, edge: int) -> torch.Tensor:
    """Cut `(B, C, *grid)` into windows of tokens `(B, windows, edge**n, C)`."""
    batch, channels, *size = x.shape
    n = len(size)
    x = x.reshape(batch, channels, *(part for length in size for part in (length // edge, edge)))
    x = x.permute(0, *range(2, 2 + 2 * n, 2), *range(3, 3 + 2 * n, 2), 1)
    return x.reshape(batch, -1, edge**n, channels)


def _grid(tokens: torch.Tensor, edge: int, like: torch.Tensor) -> torch.Tensor:
    """The inverse of `_windows`: tokens back to the shape of `like`, `(B, C, *grid)`."""
    batch, channels, *size = like.shape
    n = len(size)
    x = tokens.reshape(batch, *(length // edge for length in size), *[edge] * n, channels)
    x = x.permute(0, 1 + 2 * n, *(axis for i in range(n) for axis in (1 + i, 1 + n + i)))
    return x.reshape(batch, channels, *size)


def _relative_positions(dimensions: int, window: int) -> torch.Tensor:
    """For each pair of a window's tokens `(T, T)`, the number of their relative position."""
    axes = torch.meshgrid(*[torch.arange(window)] * dimensions, indexing="ij")
    places = torch.stack([axis.flatten() for axis in axes], 1)
    apart = places[:, None] - places[None] + window - 1
    return (apart * (2 * window - 1) ** torch.arange(dimensions)).sum(-1)
