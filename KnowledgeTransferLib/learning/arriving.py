"""Arriving: a large .nii.gz is still being read in a thread of its own while its first planes are looked at."""

from __future__ import annotations

import threading
from collections.abc import Callable

import nibabel
import numpy as np
from nibabel.openers import ImageOpener

BLOCK_BYTES = 1 << 22  # read at once: they stay in the processor's cache
LARGE_BYTES = 1 << 25  # of voxels; smaller files are read before anyone could begin


class Arriving:
    """The voxels `array` of a file, plane after plane of its last axis.

    Args:
        told: makes of an error while reading what `wait` and `end` raise.
    """

    def __init__(self, image: nibabel.Nifti1Image, shape: list[int], told: Callable[[Exception], Exception]):
        self.array = np.empty(shape, image.get_data_dtype(), order="F")
        self._there_bytes, self._error, self._stopped, self._told = 0, None, False, told
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._read, args=(image,), name="reading", daemon=True)
        self._thread.start()

    def wait(self, planes: int) -> None:
        """Wait until so many planes are there."""
        needed = planes * self.array[..., 0].nbytes
        with self._news:
            self._news.wait_for(lambda: self._error or self._there_bytes >= needed)
            if self._error:
                raise self._error

    def end(self) -> None:
        """Wait until all is there."""
        self._thread.join()
        self.wait(self.array.shape[2])

    def stop(self) -> None:
        """Nobody needs the rest."""
        self._stopped = True
        self._thread.join()

    def _read(self, image: nibabel.Nifti1Image) -> None:
        try:
            self._fill(image)
        except Exception as error:  # every library has its own kinds of complaint about a damaged file
            with self._news:
                self._error = self._told(error)
                self._news.notify_all()

    def _fill(self, image: nibabel.Nifti1Image) -> None:
        voxels = memoryview(self.array.ravel("K").view(np.uint8))
        with ImageOpener(image.get_filename()) as stream:
            stream.seek(image.dataobj.offset)
            while self._there_bytes < len(voxels) and not self._stopped:
                count = stream.readinto(voxels[self._there_bytes : self._there_bytes + BLOCK_BYTES])
                if not count:
                    raise EOFError(f"{self._there_bytes} of {len(voxels)} bytes of voxels are there")
                with self._news:
                    self._there_bytes += count
                    self._news.notify_all()
            if not self._stopped:
                stream.read(1)  # at its end the checksum is compared


def can_arrive(image: nibabel.Nifti1Image, shape: list[int]) -> bool:
    """Whether it pays: a large compressed file whose numbers are grey values as they are."""
    proxy, kind = image.dataobj, image.get_data_dtype()
    is_plain = kind.kind in "iuf" and (proxy.slope, proxy.inter) == (1, 0)
    is_large = float(np.prod(shape, dtype=float)) * kind.itemsize >= LARGE_BYTES
    return is_plain and is_large and str(image.get_filename()).lower().endswith(".gz")
