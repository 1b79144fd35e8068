"""Resources: how long something takes, how much memory, and what the processor can."""

from __future__ import annotations

import contextlib
import ctypes
import statistics
import sys
import threading
from collections.abc import Sequence

import psutil
import torch

FREE_SHARE = 0.8  # of the memory that is free; the rest is left for others


def typical(seconds: list[float]) -> float | None:
    """Median, without the first (it warms up) where there are more than two."""
    return statistics.median(seconds[1:] if len(seconds) > 2 else seconds) if seconds else None


def free_bytes(most_bytes: int | None = None) -> int:
    """How much more memory this process may take: four fifths of what is free, within `most_bytes` for all of it."""
    free = int(psutil.virtual_memory().available * FREE_SHARE)
    return free if most_bytes is None else min(free, most_bytes - held_bytes())


def held_bytes() -> int:
    """The memory that this process holds."""
    return psutil.Process().memory_info().rss


def give_back_freed_memory() -> None:
    """Let the system have what was freed; on Linux, malloc keeps much of it (measured after a CT: 250 MiB)."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # another C library than glibc
            ctypes.CDLL(None).malloc_trim(0)


def emulates_bf16(device: str) -> bool:
    """Whether bfloat16 is only imitated: by a processor without AVX-512, where a step took 13 to 15 times as long."""
    return device == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"


def bf16_is_wrong(device: str, size: Sequence[int], total_stride: int) -> bool:
    """Whether a network's bfloat16 convolutions would read memory that nobody wrote.

    On CPUs with AVX-512 those of stride 2 do, where they leave one voxel along the last axis (torch 2.13, oneDNN): the
    features are then others each time, and at times no numbers. `size` is that of the image `(..., last axis)`; patches
    of a training are never so thin.
    """
    return device == "cpu" and size[-1] < 2 * total_stride


class PeakMemory:
    """The most memory that this process held while the block ran, looked at every 10 ms."""

    INTERVAL_S = 0.01

    def __enter__(self):
        self._process, self._ended = psutil.Process(), threading.Event()
        self.peak_bytes = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(self.INTERVAL_S):
            self.peak_bytes = max(self.peak_bytes, self._process.memory_info().rss)
