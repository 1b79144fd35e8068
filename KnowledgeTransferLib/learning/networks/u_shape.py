"""U-shape: encoder, decoder and the skips between them, for networks that differ in their levels alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from .layers import LAYERS
from .taps import level_taps


class UShape(nn.Module):
    """Images `(B, C, *size)` to logits `(B, classes, *size)`.

    Args:
        widths: channels of each level, finest first.
        encoder: the levels, finest first; each but the first halves the grid.
        decoder: the levels, coarsest first; each gets what `join` makes of a skip and the level below, brought to the
            same grid and width by a transposed convolution.
    """

    def __init__(  # noqa: PLR0913 (its parts)
        self, dimensions: int, classes: int, widths: Sequence[int],
        encoder: Sequence[nn.Module], decoder: Sequence[nn.Module],
    ):  # fmt: skip
        super().__init__()
        conv, transposed = LAYERS[dimensions][:2]
        self.encoder, self.decoder = nn.ModuleList(encoder), nn.ModuleList(decoder)
        steps = list(zip(widths[:-1], widths[1:], strict=True))[::-1]
        self.up = nn.ModuleList(transposed(coarse, fine, 2, 2) for fine, coarse in steps)
        self.head = conv(widths[0], classes, 1)
        self.total_stride = 2 ** len(steps)
        self.margin: int | None = None
        levels = range(len(steps))
        deepest = f"encoder.{len(steps)}"
        self.taps = level_taps([f"encoder.{n}" for n in levels], deepest, [f"decoder.{n}" for n in levels])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for level in self.encoder:
            x = level(x)
            skips.append(x)
        skips.pop()
        for place, (up, level) in enumerate(zip(self.up, self.decoder, strict=True)):
            x = level(self.join(place, skips.pop(), up(x)))
        return self.head(x)

    def join(self, place: int, skip: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
        """What the decoder's level at a place gets: here both, concatenated."""
        return torch.cat([skip, below], dim=1)
