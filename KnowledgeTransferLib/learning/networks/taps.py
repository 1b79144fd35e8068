"""Feature taps: under one name for every network, the submodule whose output is a level's feature.

A network's `taps` go from "encoder1" (the finest level) over "bottleneck" to "decoder1" (the finest again), in the
order of the forward pass; each value is a name for `network.get_submodule`, whose output is `(B, channels, *grid)`.
"""

from __future__ import annotations

from collections.abc import Sequence


def level_taps(encoder: Sequence[str], bottleneck: str, decoder: Sequence[str]) -> dict[str, str]:
    """The taps of a network whose submodules are named in the order of the forward pass.

    Args:
        encoder: of its levels, finest first.
        decoder: of its levels, coarsest first.
    """
    coming = {f"encoder{level}": name for level, name in enumerate(encoder, 1)}
    going = {f"decoder{len(decoder) - place}": name for place, name in enumerate(decoder)}
    return {**coming, "bottleneck": bottleneck, **going}
