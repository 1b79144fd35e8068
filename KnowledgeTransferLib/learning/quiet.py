"""Quiet: what libraries say about the files that they read is kept away; our own messages are enough."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator

import nibabel

SILENT = 50  # the level of nibabel's log, which tells what it repairs in a header


class _Quiet:
    """Python's filter of warnings and nibabel's log belong to the whole process: the first thread that reads silences
    them, and the last one puts back what was there."""

    def __init__(self):
        self._lock, self._readers, self._before = threading.Lock(), 0, contextlib.ExitStack()

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if not self._readers:
                self._before.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")
                logger = nibabel.imageglobals.logger
                self._before.callback(setattr, logger, "level", logger.level)
                logger.level = SILENT
            self._readers += 1
        try:
            yield
        finally:
            with self._lock:
                self._readers -= 1
                if not self._readers:
                    self._before.close()


quiet = _Quiet()
