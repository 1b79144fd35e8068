"""Features: what goes into a loss. The outputs of a network, with the features at its taps, and the target."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import nn


@dataclass(frozen=True)
class Outputs:
    """What a network gives for a batch.

    Args:
        logits: `(B, classes, *size)`.
        features: feature tap -> `(B, channels, *grid)`, of the taps that were asked for.
    """

    logits: torch.Tensor
    features: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """What a student shall say of a batch.

    Args:
        probabilities: of the classes `(B, classes, *size)`; of an expert annotation they are 0 and 1.
        image: what the network saw `(B, C, *size)`.
        weights: how much each voxel counts `(B, 1, *size)`, 0 for one that is left out; None: all alike.
        known: which classes somebody judged `(B, classes)` bool, the background always; None: all. Where an unknown
            structure may lie, `probabilities` say background.
    """

    probabilities: torch.Tensor
    image: torch.Tensor
    weights: torch.Tensor | None = None
    known: torch.Tensor | None = None


def outputs_of(network: nn.Module, image: torch.Tensor, taps: Iterable[str] = ()) -> Outputs:
    """Run a network on `(B, C, *size)` and read the features at some of its taps on the way.

    Args:
        network: has `taps`, tap name -> name of the submodule whose output it is; Fabric may have wrapped it.
        taps: such as "encoder1" (the finest level), "bottleneck", "decoder1".

    Raises:
        ValueError: a tap that the network does not have; the message lists those that it has.
    """
    bare, features = getattr(network, "module", network), {}

    def reader(tap: str):
        return lambda module, inputs, output: features.__setitem__(tap, output)

    hooks = [_tapped(bare, tap).register_forward_hook(reader(tap)) for tap in taps]
    try:
        return Outputs(network(image), features)
    finally:
        for hook in hooks:
            hook.remove()


def _tapped(network: nn.Module, tap: str) -> nn.Module:
    if tap not in network.taps:
        raise ValueError(f"the network has no feature tap {tap!r}; it has {', '.join(network.taps)}")
    return network.get_submodule(network.taps[tap])
