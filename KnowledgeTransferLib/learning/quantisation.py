"""Quantisation: what a network's convolutions need to be computed with 8-bit integers.

Post-training and static (Krishnamoorthi, arXiv:1806.08342): one scale for each output channel of the weights, and one
range for the input of each convolution, as wide as it was on real images.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import nn

CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LEVELS = 256
LARGEST_WEIGHT = 127
SMALLEST_SCALE = 1e-12

Ranges = dict[str, tuple[float, float]]


@torch.inference_mode()
def input_ranges(network: nn.Module, batches: Iterable[torch.Tensor]) -> Ranges:
    """The smallest and the largest input of each convolution, by its name, over batches `(B, C, *size)`."""
    ranges: Ranges = {}

    def look(name: str, image: torch.Tensor) -> None:
        low, high = ranges.get(name, (0.0, 0.0))  # 0 is always within: images are padded with it
        ranges[name] = min(low, image.min().item()), max(high, image.max().item())

    named = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, CONVOLUTIONS)]
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs, name=name: look(name, inputs[0])) for name, layer in named
    ]
    for batch in batches:
        network(batch)
    for hook in hooks:
        hook.remove()
    return ranges


def in_levels(low: float, high: float) -> tuple[np.float32, np.float32]:
    """The range `low..high`, moved so that 0 is exactly one of its 256 levels."""
    scale = max((high - low) / (LEVELS - 1), SMALLEST_SCALE)
    zero = round(-low / scale)
    return np.float32(-zero * scale), np.float32((LEVELS - 1 - zero) * scale)


def quantised(weight: np.ndarray, output_axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights as int8 and the scale float32 of each output channel, with which they are to be multiplied."""
    others = tuple(axis for axis in range(weight.ndim) if axis != output_axis)
    scale = np.maximum(np.abs(weight).max(others, keepdims=True) / LARGEST_WEIGHT, SMALLEST_SCALE).astype(np.float32)
    return np.round(weight / scale).astype(np.int8), scale
