"""GPU: what a large teacher gains there from half precision, from channels last and from compilation."""

from __future__ import annotations

import contextlib
import statistics
import time
from pathlib import Path

import torch

SHAPE, CLASSES, PASSES = (160, 160, 160), 14, 10
WAYS = ("f32", "autocast", "channels last", "autocast, channels last", "compiled", "autocast, channels last, compiled")


def large_teacher(data: Path, work: Path) -> dict[str, float]:
    """Median milliseconds of one pass of `large` over an image of SHAPE, in each of WAYS."""
    from KnowledgeTransferLib.learning.networks import build_named_network

    found = {}
    for way in WAYS:
        torch.manual_seed(0)
        network = build_named_network("large", 3, 1, CLASSES).eval().cuda()
        image = torch.randn(1, 1, *SHAPE, device="cuda")
        if "channels last" in way:
            network, image = (x.to(memory_format=torch.channels_last_3d) for x in (network, image))
        network = torch.compile(network) if "compiled" in way else network
        half = torch.autocast("cuda", torch.bfloat16) if "autocast" in way else contextlib.nullcontext()
        with torch.inference_mode(), half:
            found[way] = _median_ms(network, image)
    return found


def _median_ms(network, image: torch.Tensor) -> float:
    times = []
    for _ in range(PASSES + 2):  # two to warm up and to compile
        torch.cuda.synchronize()
        began = time.perf_counter()
        network(image)
        torch.cuda.synchronize()
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times[2:])
