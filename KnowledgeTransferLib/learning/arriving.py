"""Arriving: a large .nii.gz is still being read in a thread of its own while its first planes are looked at."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
from nibabel.openers import ImageOpener

from .volume import Volume, check_geometry, open_nifti, read_image, shape_of, told_of, unreadable
from .voxel_checks import check_voxels

BLOCK_BYTES = 1 << 22  # read at once: they stay in the processor's cache
LARGE_BYTES = 1 << 22  # of a file; smaller ones are read before anyone could begin


@contextlib.contextmanager
def image_arriving(files: tuple[Path, ...], name: str = "") -> Iterator[Volume]:
    """As `read_image`, for who can begin with the first planes: a large .nii.gz is still being read within the block.

    When the block ends all of it is there and was checked, or the error of `read_image` is raised.
    """
    volume = _begun(files[0], name) if len(files) == 1 else None
    if volume is None:
        yield read_image(files, name)
        return
    try:
        yield volume
        volume.arriving.end()
    finally:
        volume.arriving.stop()
    check_voxels(volume.array, files[0])


class Arriving:
    """The voxels `array` of a file, plane after plane of its last axis."""

    def __init__(self, image: nibabel.Nifti1Image, shape: list[int]):
        self.array = np.empty(shape, image.get_data_dtype(), order="F")
        self._there_bytes, self._error, self._stopped = 0, None, False
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._read, args=(image,), name="reading", daemon=True)
        self._thread.start()

    def wait(self, planes: int) -> None:
        """Wait until so many planes are there.

        Raises:
            ValueError: the file cannot be read; the message says which and why.
        """
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
                self._error = unreadable(Path(image.get_filename()), error)
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


def _begun(file: Path, name: str) -> Volume | None:
    """A file that is large enough to be read while others look at it; None: `read_image` reads it."""
    if not file.name.lower().endswith(".nii.gz") or not file.is_file() or file.stat().st_size < LARGE_BYTES:
        return None
    with told_of(file):
        image = open_nifti(file)
        shape, affine = shape_of(image, file), np.asarray(image.affine, float)
    proxy = image.dataobj
    if proxy.dtype.kind not in "iuf" or (proxy.slope, proxy.inter) != (1, 0):
        return None  # no grey values, or not as they are
    check_geometry(affine, file)
    arriving = Arriving(image, shape)
    return Volume(arriving.array[None], affine, name or file.name, arriving)
