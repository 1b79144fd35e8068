"""Plain: the same network in the standard layers of every runtime, for export and for other backends.

Blocks that become channels and back need reshapes and permutations, which runtimes do slowly and at fixed sizes. As
one strided convolution and one transposed convolution they are ordinary layers that take any size: measured with
OpenVINO on a 168 x 168 x 216 image and 14 classes, 0.2 s instead of 0.3 s; torch on the CPU needs 0.6 s for either.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from .inference import folded, with_interpolation
from .layers import LAYERS, RepeatVoxels
from .unet import UNet


def plain(network: nn.Module) -> nn.Module:
    """A copy on the CPU that computes the same (to rounding) with convolutions, norms, activations and upsampling."""
    network = with_interpolation(folded(copy.deepcopy(network).cpu().float()))
    for name in [name for name, module in vars(network).items() if isinstance(module, nn.Module)]:
        network.add_module(name, vars(network).pop(name))  # what DynUNet's modules are walked by must be one of them
    if isinstance(network, UNet):
        for up in network.up:
            if isinstance(up, nn.Sequential) and isinstance(up[-1], RepeatVoxels):
                up[-1] = nn.Upsample(scale_factor=2, mode="nearest")
        if network.stem > 1:
            _merge_stem(network)
            _merge_head(network)
            network.stem = 1
    return network.requires_grad_(False)


def _merge_stem(network: UNet) -> None:
    """Space to depth and the first convolution as one convolution of larger stride."""
    first, f, n = network.encoder[0][0], network.stem, network.dimensions
    width, inputs, kernel = first.weight.shape[0], first.weight.shape[1] // f**n, first.weight.shape[2]
    weight = first.weight.reshape(width, inputs, *[f] * n, *[kernel] * n)
    weight = weight.permute(0, 1, *(axis for i in range(n) for axis in (2 + n + i, 2 + i)))
    merged = LAYERS[n][0](inputs, width, kernel * f, f, first.padding[0] * f)
    _set(merged, weight.reshape(width, inputs, *[kernel * f] * n), first.bias)
    network.encoder[0][0] = merged


def _merge_head(network: UNet) -> None:
    """The head and depth to space as one transposed convolution.

    Its bias differs between the voxels of a block, which a transposed convolution's own bias cannot; so a small
    convolution before it adds one more channel that is always 1, and the bias becomes that channel's weight.
    """
    head, f, n = network.head, network.stem, network.dimensions
    width, classes = head.weight.shape[1], head.weight.shape[0] // f**n
    conv, transposed = LAYERS[n][:2]
    with_one, spread = conv(width, width + 1, 1), transposed(width + 1, classes, f, f, bias=False)
    _set(with_one, torch.eye(width + 1, width).reshape(width + 1, width, *[1] * n), torch.eye(width + 1)[width])
    weight = torch.cat([head.weight.reshape(classes, *[f] * n, width), head.bias.reshape(classes, *[f] * n, 1)], -1)
    _set(spread, weight.permute(n + 1, *range(n + 1)), None)
    network.head = nn.Sequential(with_one, spread)


def _set(layer: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    layer.weight = nn.Parameter(weight.detach().clone().contiguous())
    layer.bias = None if bias is None else nn.Parameter(bias.detach().clone())
