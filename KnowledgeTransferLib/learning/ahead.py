"""Ahead: work in threads: on the next items while the current one is used, or on all items side by side."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from ..records.cohort import Case

SMALL_BYTES = 1 << 22  # of an image file that may be read beside others
HEADERS = (".mhd", ".nhdr")  # whose voxels lie in another file, most often a large one
MOST_AT_ONCE = 16
SMALL_VOXELS = 1 << 18  # handing out less work than this takes longer than doing it


def ahead(function: Callable, items: Iterable, count: int = 1) -> Iterator[tuple[object, Future]]:
    """Yield `(item, future of function(item))` in order; at most `count` results wait unused, so memory is bounded."""
    with ThreadPoolExecutor(max_workers=count) as threads:
        waiting: deque = deque()
        try:
            for item in items:
                waiting.append((item, threads.submit(function, item)))
                if len(waiting) > count:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:
            for _, future in waiting:
                future.cancel()


def at_once(cases: Sequence[Case]) -> int:
    """How many cases may be read at the same time: where all files are small, as many as torch may use cores."""
    small = all(_bytes_of(file) <= SMALL_BYTES for case in cases for file in case.images)
    return min(torch.get_num_threads(), MOST_AT_ONCE) if small else 1


def _bytes_of(file: Path) -> int:
    """Of a file, or of the files of a DICOM series; 0 of what is not there, which is told when its turn comes."""
    if file.suffix.lower() in HEADERS:
        return SMALL_BYTES + 1
    try:
        return sum(f.stat().st_size for f in file.iterdir()) if file.is_dir() else file.stat().st_size
    except OSError:
        return 0


def in_threads(function: Callable, items: Iterable, voxels: int) -> list:
    """`[function(item) for item in items]`, in as many threads as torch may use; for work that lets others run.

    The function must not call in_threads itself: all wait for the same threads.

    Args:
        voxels: how many all items together look at.
    """
    items = list(items)
    threads = torch.get_num_threads()
    if min(threads, len(items)) < 2 or voxels < SMALL_VOXELS:
        return [function(item) for item in items]
    share = -(-len(items) // (4 * threads))  # few large tasks: handing one over costs more than a small plane
    parts = [items[n : n + share] for n in range(0, len(items), share)]
    done = _pool(threads).map(lambda part: [function(item) for item in part], parts)
    return [result for part in done for result in part]


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "in_threads")
