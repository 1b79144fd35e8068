"""Volume: an image with its geometry; reading and writing of all formats, with a check of what was read."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel
import numpy as np
from nibabel.openers import ImageOpener

from ..records.labels import Labels
from ..records.run_directory import written_whole
from .ahead import in_threads
from .fast_gzip import breaks_off, use_fast_gzip
from .quiet import quiet
from .segments import numbered_as
from .voxel_checks import check_file, check_shape, check_values, check_voxels, times, whole_numbers

if TYPE_CHECKING:
    from .arriving import Arriving

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
COUNTED_TOGETHER = 1 << 20  # voxels
use_fast_gzip()


@dataclass(frozen=True)
class Volume:
    """An image: `array (C, I, J, K)`, `affine (4, 4)` from voxel index to RAS in mm. A 2-D image has K = 1."""

    array: np.ndarray
    affine: np.ndarray
    name: str = ""
    arriving: Arriving | None = None  # that its planes have to be waited for; None: all are there

    @property
    def shape(self) -> tuple[int, int, int]:
        return tuple(int(n) for n in self.array.shape[1:])

    @property
    def channels(self) -> int:
        return int(self.array.shape[0])

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        return tuple(float(s) for s in np.linalg.norm(self.affine[:3, :3], axis=0))

    @property
    def is_picture(self) -> bool:
        """True for a single slice, which has no third dimension to work in."""
        return self.shape[2] == 1


def read_image(files: tuple[Path, ...] | list[Path] | Path, name: str = "") -> Volume:
    """Read an image to be segmented: one file, one file per channel, or a folder with a DICOM series.

    Returns:
        `array (C, I, J, K)` in the type of the file (colour pictures have 3 channels).

    Raises:
        FileNotFoundError, ValueError: missing, empty, truncated, not an image, not finite, constant, 4-D, too thin,
            or larger than the memory. The message says which file and why.
    """
    files = [Path(files)] if isinstance(files, (str, Path)) else [Path(f) for f in files]
    channels = [_read(file) for file in files]
    for file, channel in zip(files[1:], channels[1:], strict=True):
        check_same_geometry(channels[0], channel, files[0], file)
    array = channels[0].array if len(channels) == 1 else np.concatenate([c.array for c in channels])
    check_voxels(array, files[0])
    return Volume(array, channels[0].affine, name or files[0].name)


def read_annotation(file: Path, labels: Labels | None = None, like: Volume | None = None) -> np.ndarray:
    """The array `(I, J, K)` of `read_label_map`."""
    return read_label_map(file, labels, like).array[0]


def read_label_map(file: Path, labels: Labels | None = None, like: Volume | None = None) -> Volume:
    """Read a label map as `(1, I, J, K)` uint8.

    Args:
        labels: the structures that are allowed; None allows every value. A .seg.nrrd, which names its segments and
            may number them in its own way, is matched with them by name.
        like: the image that it annotates; its shape and geometry must be equal, but for the order and direction of
            the axes (Slicer turns one axis of a left-handed NIfTI).

    Raises:
        FileNotFoundError, ValueError: as `read_image`; also not whole numbers, unknown values, another geometry.
    """
    volume = _read(Path(file))
    if volume.channels != 1:
        raise ValueError(f"{file}: has {volume.channels} channels; an annotation holds one whole number per voxel")
    if like is not None:
        volume = laid_like(volume, like)
        check_same_geometry(like, volume, like.name, file)
    array = whole_numbers(volume.array[0], file)
    if labels is not None and str(file).lower().endswith(".seg.nrrd"):
        array = numbered_as(labels, array, Path(file))
    check_values(array, labels, file)
    return replace(volume, array=array.astype(np.uint8)[None])


def volumes_ml(annotation: np.ndarray, affine: np.ndarray, labels: Labels) -> dict[str, float]:
    """Structure -> its volume in a label map `(I, J, K)`; counted slab by slab, which needs little memory."""
    voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    planes = annotation.T if annotation.flags.f_contiguous else annotation
    slabs = np.array_split(planes, max(1, planes.size // COUNTED_TOGETHER))
    counts = sum(in_threads(_counted, slabs, annotation.size))
    return {s.name: round(int(counts[s.value]) * voxel_ml, 4) for s in labels.structures}


def _counted(slab: np.ndarray) -> np.ndarray:
    """Voxels of each value from 0 to 255; by runs of equal values, which are few and long in a label map."""
    values = slab.ravel()
    starts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
    return np.bincount(values[starts], np.diff(starts, append=values.size), 256)


def laid_like(volume: Volume, like: Volume) -> Volume:
    """The same voxels with the axes in the order and direction of those of `like`."""
    between = np.linalg.inv(like.affine) @ volume.affine
    axes = nibabel.io_orientation(between)
    if np.isnan(axes).any():
        return volume
    turned = nibabel.apply_orientation(volume.array.transpose(1, 2, 3, 0), axes).transpose(3, 0, 1, 2)
    return replace(volume, array=turned, affine=volume.affine @ nibabel.orientations.inv_ornt_aff(axes, volume.shape))


def check_same_geometry(a: Volume, b: Volume, name_a, name_b) -> None:
    """Raise ValueError unless two volumes have the same shape and lie at the same place (within 1 % of a voxel)."""
    if a.shape != b.shape:
        raise ValueError(f"{name_b}: has {times(b.shape)} voxels, but {name_a} has {times(a.shape)}")
    corners = np.array([[i, j, k, 1] for i in (0, a.shape[0]) for j in (0, a.shape[1]) for k in (0, a.shape[2])]).T
    distance_mm = np.abs(a.affine @ corners - b.affine @ corners)[:3].max()
    if distance_mm > 0.01 * min(a.spacing_mm) + 1e-3:
        raise ValueError(
            f"{name_b}: lies up to {distance_mm:.2f} mm away from {name_a} (another spacing, origin or orientation)"
        )


def write_annotation(path: Path, array: np.ndarray, affine: np.ndarray, labels: Labels) -> None:
    """Write a label map `(I, J, K)` whole or not at all; the suffix says how.

    .seg.nrrd holds names, colours and terminology; .nii, .nii.gz, .nrrd, .mha and .png hold the values alone.
    """
    path = Path(path)
    suffix = annotation_suffix(path)
    with written_whole(path) as temporary:
        if suffix == ".seg.nrrd":
            _itk().write_segmentation(temporary, array, affine, labels)
        elif suffix in (".nii", ".nii.gz"):
            _write_nifti(temporary, array.astype(np.uint8, copy=False), affine)
        else:
            _itk().write_with_itk(temporary, array.astype(np.uint8), affine, path)


def annotation_suffix(path: Path) -> str:
    """The format that an annotation's name asks for.

    Raises:
        ValueError: no format of annotations; JPEG, for one, would change the values.
    """
    name = Path(path).name.lower()
    for suffix in (".seg.nrrd", ".nii.gz", ".nii", ".nrrd", ".mha", ".png"):
        if name.endswith(suffix):
            return suffix
    raise ValueError(f"{path}: segmentations are written as .seg.nrrd, .nii.gz, .nii, .nrrd, .mha or .png")


def write_image(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    """Write one channel `(I, J, K)` as .nii.gz, .nii, .nrrd, .mha or .png."""
    with written_whole(path) as temporary:
        if str(path).endswith((".nii", ".nii.gz")):
            _write_nifti(temporary, array, affine)
        else:
            _itk().write_with_itk(temporary, array, affine, Path(path))


def steps_of(probabilities: np.ndarray) -> np.ndarray:
    """The structures' probabilities in steps of 1/255, `(I, J, K, C - 1)` uint8; the background is what they leave.

    Halves are rounded down: a voxel that is as likely background as a structure is decided as background, and stays so.
    """
    steps = np.empty((*probabilities.shape[1:], len(probabilities) - 1), np.uint8)
    for channel, probability in enumerate(probabilities[1:]):  # one at a time: all would need another copy in floats
        steps[..., channel] = np.ceil(probability * 255 - 0.5)
    return steps


def write_probabilities(path: Path, steps: np.ndarray, affine: np.ndarray) -> None:
    """Write what `steps_of` gives as a 4-D NIfTI. About 0.1 to 0.3 bytes per voxel and structure."""
    with written_whole(path) as temporary:
        _write_nifti(temporary, steps, affine, slope=1 / 255)


def read_probabilities(path: Path, like: Volume) -> np.ndarray:
    """Read what `write_probabilities` wrote, as `(C, I, J, K)` uint8 in steps of 1/255, with the background."""
    image = open_nifti(path)
    steps = np.asarray(image.dataobj.get_unscaled())
    if steps.ndim != 4 or steps.shape[:3] != like.shape or steps.dtype != np.uint8:
        raise ValueError(f"{path}: does not hold the class probabilities of {like.name}")
    check_same_geometry(like, Volume(steps[None, ..., 0], np.asarray(image.affine, float)), like.name, path)
    steps = np.moveaxis(steps, -1, 0)
    background = 255 - np.minimum(steps.sum(0, dtype=np.int32), 255)
    return np.concatenate([background[None].astype(np.uint8), steps])


def read_map(path: Path, like: Volume) -> np.ndarray:
    """Read a map of numbers that `write_image` wrote of a volume, such as its uncertainty: `(I, J, K)` float32."""
    volume = _read_nifti(path)
    check_same_geometry(like, volume, like.name, path)
    return volume.array[0].astype(np.float32)


def _read(file: Path) -> Volume:
    check_file(file)
    with told_of(file):
        volume = _read_nifti(file) if _is_nifti(file) else Volume(*_itk().read_with_itk(file))
    check_geometry(volume.affine, file)
    return replace(volume, name=file.name)


def _is_nifti(file: Path) -> bool:
    return file.name.lower().endswith((".nii", ".nii.gz"))


@contextlib.contextmanager
def told_of(file: Path):
    """Every library has its own kinds of complaint about a damaged file; make one of them."""
    try:
        with quiet():
            yield
    except (ValueError, MemoryError):
        raise
    except Exception as error:
        raise unreadable(file, error) from error


def unreadable(file: Path, error: Exception) -> ValueError:
    return ValueError(f"{file}: cannot be read as an image; truncated or not an image? ({_first_line(error)})")


def check_geometry(affine: np.ndarray, file: Path) -> None:
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise ValueError(f"{file}: has no valid geometry (its voxel axes do not span a volume)")


def _read_nifti(file: Path) -> Volume:
    try:
        with ImageOpener(str(file)) as stream:  # once: nibabel.load opens and decompresses a file three times
            return _volume_of(nibabel.Nifti1Image.from_stream(stream.fobj), file)
    except Exception:  # another kind of NIfTI, or none
        return _volume_of(open_nifti(file), file)


def _volume_of(image, file: Path) -> Volume:
    shape = shape_of(image, file)
    array = np.asanyarray(image.dataobj).reshape(shape)
    if array.dtype.names or np.iscomplexobj(array):
        raise ValueError(f"{file}: voxels of type {array.dtype} are not supported; grey values are needed")
    return Volume(array[None], np.asarray(image.affine, float))


def shape_of(image, file: Path) -> list[int]:
    """Three axes; those of one voxel at the end are left out."""
    shape = list(image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    shape += [1] * (3 - len(shape))
    check_shape(shape, image.get_data_dtype().itemsize, file)
    return shape


def open_nifti(file: Path):
    try:
        return nibabel.load(file)
    except FileNotFoundError:
        raise FileNotFoundError(f"{file}: there is no such file") from None
    except Exception as error:
        reason = "cannot be read as an image; truncated" if breaks_off(file) else "is not a NIfTI image"
        raise ValueError(f"{file}: {reason} ({_first_line(error)})") from error


def _write_nifti(path: Path, array: np.ndarray, affine: np.ndarray, slope: float | None = None) -> None:
    try:
        image = nibabel.Nifti1Image(array, None)  # set below, the way it is kept
    except nibabel.spatialimages.HeaderDataError as error:  # more than 32767 voxels along an axis
        raise ValueError(f"NIfTI cannot hold {times(array.shape)} voxels ({error}); .nrrd can") from error
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, 1, strip_shears=True)
    image.set_sform(affine, 1)
    if slope:
        image.header.set_slope_inter(slope, 0)
    nibabel.save(image, path)


def _itk():
    """What reads and writes the other formats; imported when the first such file comes."""
    from . import itk_files

    return itk_files


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:200]
