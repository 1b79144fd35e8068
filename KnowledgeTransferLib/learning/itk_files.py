"""ITK files: NRRD, MetaImage, DICOM series and pictures through SimpleITK.

Imported when the first such file is read or written: SimpleITK takes 90 MiB, which who has NIfTI does not need.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..records.cohort import is_dicom_folder
from ..records.labels import Labels
from .segments import segment_fields
from .volume import PICTURES
from .voxel_checks import check_shape

RAS_OF_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
UNEVEN_SLICES = "ITK_non_uniform_sampling_deviation"  # what ITK notes of a series with gaps
sitk.ProcessObject.SetGlobalWarningDisplay(False)


def read_with_itk(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """A file, or a folder with a DICOM series, as `array (C, I, J, K)` and `affine (4, 4)` to RAS in mm.

    Raises:
        ValueError: slices are missing, complex voxels, too large for the memory; RuntimeError: ITK's own complaints.
    """
    reader = _series_reader(file) if file.is_dir() else _file_reader(file)
    image = reader.Execute()
    if _has_gaps(reader, image):
        raise ValueError(f"{file}: slices are missing or unevenly spaced; copy the whole series, or resample it")
    dimension, components = image.GetDimension(), image.GetNumberOfComponentsPerPixel()
    if file.is_dir() or dimension == 2:
        check_shape(list(image.GetSize()) + [1] * (3 - dimension), 4, file)
    if "complex" in image.GetPixelIDTypeAsString():
        raise ValueError(f"{file}: complex voxels are not supported; grey values are needed")
    array = sitk.GetArrayViewFromImage(image)  # (K, J, I, C), K and C only where there are some
    array = array.reshape(*image.GetSize()[::-1], components) if components > 1 else array[..., None]
    array = array[None] if dimension == 2 else array
    picture = file.name.lower().endswith(PICTURES)
    array = array[..., :3] if picture and components == 4 else array  # its fourth channel is opacity
    # A picture's dots per inch are no physical size: its pixels count as 1 mm.
    affine = RAS_OF_LPS if picture else _affine_of(image)
    return np.array(array.transpose(3, 2, 1, 0), order="K"), affine  # a copy, for the image goes


def _has_gaps(reader, image: sitk.Image) -> bool:
    """Whether the slices of a DICOM series lie unevenly by more than a tenth of their distance; less is rounding."""
    if not image.HasMetaDataKey(UNEVEN_SLICES):
        return False
    places = [sitk.ReadImage(file).GetOrigin() for file in reader.GetFileNames()]
    steps_mm = np.linalg.norm(np.diff(places, axis=0), axis=1)
    return float(np.ptp(steps_mm)) > 0.1 * float(np.median(steps_mm))


def _file_reader(file: Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    reader.ReadImageInformation()
    size = list(reader.GetSize())
    while len(size) > 3 and size[-1] == 1:
        size.pop()
    bytes_each = sitk.Image([1] * 2, reader.GetPixelID()).GetSizeOfPixelComponent() * reader.GetNumberOfComponents()
    check_shape(size + [1] * (3 - len(size)), bytes_each, file)
    return reader


def _series_reader(folder: Path) -> sitk.ImageSeriesReader:
    if not is_dicom_folder(folder):
        raise ValueError(f"{folder}: is a folder without DICOM files")
    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        raise ValueError(f"{folder}: holds {len(series)} DICOM series; put each into a folder of its own")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0]))
    return reader


def _affine_of(image: sitk.Image) -> np.ndarray:
    dimension = image.GetDimension()
    affine = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(dimension, dimension)[:3, :3]
    n = min(dimension, 3)
    affine[:n, :n] = direction * np.array(image.GetSpacing())[None, :n]
    affine[:n, 3] = image.GetOrigin()[:n]
    return RAS_OF_LPS @ affine


def write_with_itk(temporary: Path, array: np.ndarray, affine: np.ndarray, path: Path) -> None:
    """Write `(I, J, K)` to a temporary file; `path` is what it will be called.

    Raises:
        ValueError: a picture was asked for, but there are several slices.
    """
    picture = path.name.lower().endswith(PICTURES)
    if picture and array.shape[2] != 1:
        found = f"a volume of {array.shape[2]} slices does not fit into one picture"
        raise ValueError(f"{path}: {found}; choose .nii.gz or .nrrd")
    image = sitk.GetImageFromArray(array[:, :, 0].T) if picture else _sitk_image(array, affine)
    sitk.WriteImage(image, str(temporary), useCompression=True)


def write_segmentation(path: Path, array: np.ndarray, affine: np.ndarray, labels: Labels) -> None:
    """Write a label map `(I, J, K)` as .seg.nrrd with names, colours and terminology."""
    image = _sitk_image(array.astype(np.uint8), affine)
    for key, value in segment_fields(labels, array.shape).items():
        image.SetMetaData(key, value)
    sitk.WriteImage(image, str(path), useCompression=True)


def _sitk_image(array: np.ndarray, affine: np.ndarray) -> sitk.Image:
    image = sitk.GetImageFromArray(array.transpose(2, 1, 0))
    lps = RAS_OF_LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    return image
