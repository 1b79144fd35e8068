"""Features: what goes into a loss. The outputs of a network, with the features at its taps, and the target."""

from __future__ import annotations

import contextlib
import functools
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import nn

Shape = tuple[int, ...]


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

    @functools.cached_property
    def places(self) -> dict[Shape, list[torch.Tensor]]:
        """Grid -> where each class lies on it, as the first loss that asked found it; gone with the step."""
        return {}


@dataclass(frozen=True)
class Shapes:
    """What a loss knows of the networks before the training, so that its heads exist before the optimiser.

    Args:
        student, teacher: feature tap -> `(channels, *grid)` for one small image; {} without a live teacher.
        image: `(C, *size)` of that image.
        classes: how many the student tells apart, background included.
    """

    student: dict[str, Shape]
    teacher: dict[str, Shape]
    image: Shape
    classes: int


def shapes_of(student: nn.Module, teacher: nn.Module | None, channels: int) -> Shapes:
    """Run both networks once on a small image `(1, channels, *size)` and look at the features of all their taps."""
    networks = [network for network in (student, teacher) if network is not None]
    edge = 2 * math.lcm(*(network.total_stride for network in networks))
    size = (channels, *[edge] * student.dimensions)
    return Shapes(_tap_shapes(student, size), _tap_shapes(teacher, size) if teacher else {}, size, student.classes)


def _tap_shapes(network: nn.Module, size: Shape) -> dict[str, Shape]:
    was_training = network.training
    with torch.no_grad():
        device = next(network.parameters()).device
        outputs = outputs_of(network.eval(), torch.zeros(1, *size, device=device), network.taps)
    network.train(was_training)
    return {tap: tuple(outputs.features[tap].shape[1:]) for tap in network.taps}


def taps_of_kind(shapes: dict[str, Shape], kind: str) -> list[str]:
    """The taps of a kind ("encoder", "bottleneck" or "decoder"), the finest first."""
    taps = [tap for tap in shapes if tap.rstrip("0123456789") == kind]
    return sorted(taps, key=lambda tap: int(tap[len(kind) :] or 0))


def tap_pairs(scales: Iterable[str], shapes: Shapes) -> dict[tuple[str, str], float]:
    """Which tap of the student learns from which of the teacher's, and what share of a loss that pair has.

    Args:
        scales: "encoder", "bottleneck", "decoder" stand for all taps of the kind, "encoder2" for one; each learns from
            the teacher's tap of the same kind whose grid is nearest to its own. "encoder1:encoder3" names both. All
            scales count the same, however many pairs they have; "bottleneck=2" counts twice.

    Returns:
        pair -> its share; the shares add up to 1.

    Raises:
        ValueError: a tap that a network does not have (the message lists those that it has), or a weight that is none.
    """
    shares: dict[tuple[str, str], float] = defaultdict(float)
    for scale in scales:
        named, equals, weight = scale.partition("=")
        wanted, _, partner = named.partition(":")
        taps = [wanted] if wanted in shapes.student else taps_of_kind(shapes.student, wanted)
        if not taps or (partner and partner not in shapes.teacher):
            whose = "teacher" if taps else "student"
            raise ValueError(
                f"--scales {scale}: the {whose} has no such feature tap; it has {', '.join(getattr(shapes, whose))}"
            )
        for tap in taps:
            shares[tap, partner or _nearest(tap, shapes)] += _weight(scale, weight if equals else "1") / len(taps)
    whole = sum(shares.values())
    return {pair: share / whole for pair, share in shares.items()}


def _weight(scale: str, text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise ValueError(f"--scales {scale}: {text or 'nothing'} is no weight; write bottleneck=2, say")


def _nearest(tap: str, shapes: Shapes) -> str:
    kind, voxels = tap.rstrip("0123456789"), math.prod(shapes.student[tap][1:])
    candidates = taps_of_kind(shapes.teacher, kind)
    if not candidates:
        raise ValueError(f"--scales {kind}: the teacher has no such feature tap; it has {', '.join(shapes.teacher)}")
    return min(candidates, key=lambda other: abs(math.log(math.prod(shapes.teacher[other][1:]) / voxels)))


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
