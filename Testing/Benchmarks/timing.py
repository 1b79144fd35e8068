"""Timing: how long one forward pass takes, measured the same way everywhere."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


@torch.inference_mode()
def median_ms(network: Callable, image: torch.Tensor, passes: int = 30) -> float:
    """Median of `passes` forward passes in milliseconds, after three to warm up."""
    times = []
    for number in range(passes + 3):
        began = time.perf_counter()
        network(image)
        if number >= 3:
            times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times)
