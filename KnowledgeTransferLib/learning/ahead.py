"""Ahead: work on the next items in a thread while the current one is used."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor


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
