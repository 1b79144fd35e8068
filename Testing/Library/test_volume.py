"""Volumes: every format keeps values and geometry; names, colours and terminology; DICOM; channels; pictures."""

import warnings
from concurrent.futures import ThreadPoolExecutor

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from KnowledgeTransferLib.learning.segments import labels_of_folder, labels_of_segmentation
from KnowledgeTransferLib.learning.volume import (
    Volume,
    annotation_suffix,
    read_annotation,
    read_image,
    read_probabilities,
    steps_of,
    write_annotation,
    write_image,
    write_probabilities,
)
from KnowledgeTransferLib.records.labels import Labels, Structure

SHAPE = (9, 7, 5)
VOLUME_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")
LABELS = Labels((Structure.named("left kidney", 2, (10, 20, 255)), Structure.named("Läsion, groß", 7)))


def affine_of(name: str) -> np.ndarray:
    """Voxel -> RAS in mm: anisotropic voxels in the named orientation, away from the origin."""
    turns = {"RAS": (1, 1, 1), "LPS": (-1, -1, 1), "left-handed": (-1, 1, 1), "top-down": (1, 1, -1)}
    matrix = np.diag(turns.get(name, (1, 1, 1))) @ np.diag([0.7, 1.3, 2.5])
    if name == "oblique":
        angle = 0.4
        turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
        tilt = np.array([[1, 0, 0], [0, np.cos(0.2), -np.sin(0.2)], [0, np.sin(0.2), np.cos(0.2)]])
        matrix = turn @ tilt @ matrix
    if name == "sagittal":
        matrix = matrix[:, [1, 2, 0]]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = matrix, (-31.5, 12.25, 140)
    return affine


ORIENTATIONS = ("RAS", "LPS", "left-handed", "top-down", "oblique", "sagittal")


def values_by_place(affine: np.ndarray, shape=SHAPE) -> np.ndarray:
    """Voxels `(I, J, K)` that tell where in RAS they lie."""
    right, anterior, superior = (
        np.einsum("rc,cijk->rijk", affine[:3, :3], np.indices(shape)) + affine[:3, 3, None, None, None]
    )
    return (right + 10 * anterior + 100 * superior).astype(np.float32)


def some_labels(shape=SHAPE) -> np.ndarray:
    return np.random.default_rng(0).choice(np.uint8([0, 2, 7]), shape)


@pytest.mark.parametrize("suffix", VOLUME_SUFFIXES)
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_an_image_comes_back_with_each_value_at_its_place(tmp_path, suffix, orientation):
    affine = affine_of(orientation)
    write_image(tmp_path / f"a{suffix}", values_by_place(affine), affine)
    volume = read_image(tmp_path / f"a{suffix}")
    np.testing.assert_allclose(volume.array[0], values_by_place(volume.affine, volume.shape), atol=0.05)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-4)
    np.testing.assert_allclose(sorted(volume.spacing_mm), (0.7, 1.3, 2.5), atol=1e-4)


@pytest.mark.parametrize("suffix", (".seg.nrrd", *VOLUME_SUFFIXES))
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_an_annotation_fits_the_image_in_any_format(tmp_path, suffix, orientation):
    affine, annotation = affine_of(orientation), some_labels()
    like = Volume(np.zeros((1, *SHAPE), np.int16), affine, "image")
    write_annotation(tmp_path / f"a{suffix}", annotation, affine, LABELS)
    again = read_annotation(tmp_path / f"a{suffix}", LABELS, like)
    assert again.dtype == np.uint8
    np.testing.assert_array_equal(again, annotation)


@pytest.mark.parametrize("flipped", [(), (0,), (2,), (0, 1, 2)])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_an_annotation_whose_axes_run_otherwise_is_turned_to_its_image(tmp_path, orientation, order, flipped):
    affine, annotation = affine_of(orientation), some_labels()
    turned, back = np.flip(annotation, flipped).transpose(order), np.eye(4)
    for axis in flipped:  # index n of the turned array is SHAPE - 1 - n of the image
        back[axis, axis], back[axis, 3] = -1, SHAPE[axis] - 1
    write_annotation(tmp_path / "a.nrrd", turned, affine @ back[:, [*order, 3]], LABELS)
    like = Volume(np.zeros((1, *SHAPE), np.int16), affine, "image")
    np.testing.assert_array_equal(read_annotation(tmp_path / "a.nrrd", LABELS, like), annotation)


@pytest.mark.parametrize("suffix", VOLUME_SUFFIXES)
@pytest.mark.parametrize("orientation", ["oblique", "left-handed"])
def test_itk_and_slicer_see_the_same_places_as_we_do(tmp_path, suffix, orientation):
    affine = affine_of(orientation)
    write_image(tmp_path / f"a{suffix}", values_by_place(affine), affine)
    image = sitk.ReadImage(str(tmp_path / f"a{suffix}"))
    for index in ((0, 0, 0), (8, 3, 1), (2, 6, 4)):
        left, posterior, superior = image.TransformIndexToPhysicalPoint(index)
        assert image[index] == pytest.approx(-left - 10 * posterior + 100 * superior, abs=0.05)


def test_an_empty_annotation_is_written_and_read(tmp_path):
    for suffix in (".seg.nrrd", ".nii.gz"):
        write_annotation(tmp_path / f"a{suffix}", np.zeros(SHAPE, np.uint8), np.eye(4), LABELS)
        assert read_annotation(tmp_path / f"a{suffix}", LABELS).shape == SHAPE


def test_a_segmentation_holds_names_colors_and_terminology(tmp_path):
    write_annotation(tmp_path / "a.seg.nrrd", some_labels(), np.eye(4), LABELS)
    assert labels_of_segmentation(tmp_path / "a.seg.nrrd") == LABELS
    header = sitk.ReadImage(str(tmp_path / "a.seg.nrrd"))
    assert header.GetMetaData("Segment0_Name") == "left kidney"
    assert "64033007^Kidney" in header.GetMetaData("Segment0_Tags")


def test_slicerio_reads_our_segmentations_alike(tmp_path):
    slicerio = pytest.importorskip("slicerio")
    labels = Labels.from_names({1: "right kidney", 4: "liver"})
    annotation = np.random.default_rng(0).choice(np.uint8([0, 1, 4]), SHAPE)
    write_annotation(tmp_path / "a.seg.nrrd", annotation, affine_of("oblique"), labels)
    segmentation = slicerio.read_segmentation(str(tmp_path / "a.seg.nrrd"))
    np.testing.assert_array_equal(segmentation["voxels"], annotation)
    np.testing.assert_allclose(segmentation["ijkToLPS"], np.diag([-1, -1, 1, 1]) @ affine_of("oblique"), atol=1e-6)
    assert [(s["name"], s["labelValue"]) for s in segmentation["segments"]] == [("right kidney", 1), ("liver", 4)]
    assert segmentation["segments"][0]["terminology"]["typeModifier"] == ["SCT", "24028007", "Right"]


def test_structures_of_a_folder_come_from_its_first_segmentation_or_its_list(tmp_path):
    assert labels_of_folder(tmp_path) is None
    write_annotation(tmp_path / "a.seg.nrrd", some_labels(), np.eye(4), LABELS)
    assert labels_of_folder(tmp_path) == LABELS
    (tmp_path / "dataset.json").write_text('{"labels": {"0": "background", "1": "spleen"}}')
    assert labels_of_folder(tmp_path).names == ("spleen",)


def test_a_segmentation_without_segments_is_refused(tmp_path):
    write_image(tmp_path / "a.nrrd", some_labels(), np.eye(4))
    (tmp_path / "a.nrrd").rename(tmp_path / "a.seg.nrrd")
    with pytest.raises(ValueError, match=r"a\.seg\.nrrd: its header names no segments"):
        labels_of_segmentation(tmp_path / "a.seg.nrrd")


@pytest.mark.parametrize("suffix", (".nii.gz", ".nrrd", ".seg.nrrd", ".mha", ".png"))
def test_blanks_and_letters_of_any_language_in_the_path_are_fine(tmp_path, suffix):
    path = tmp_path / "Müller, Jörg – 研究" / f"größe 1{suffix}"
    annotation = some_labels((9, 7, 1))
    affine = np.diag([-1.0, -1, 1, 1])
    write_annotation(path, annotation, affine, LABELS)
    np.testing.assert_array_equal(read_annotation(path, LABELS), annotation)
    np.testing.assert_array_equal(read_image(path).array[0], annotation)


def test_a_dicom_series_is_read_with_its_geometry_and_hounsfield_units(tmp_path):
    affine = affine_of("LPS")
    values = np.rint(values_by_place(affine) / 10).astype(np.int16)
    write_dicom_series(tmp_path / "series", values, affine)
    volume = read_image(tmp_path / "series")
    assert volume.shape == SHAPE
    np.testing.assert_allclose(volume.affine, affine, atol=1e-3)
    np.testing.assert_array_equal(volume.array[0], values)


def test_two_series_in_one_folder_are_refused(tmp_path):
    values = some_labels().astype(np.int16)
    write_dicom_series(tmp_path / "s", values, np.eye(4), uid="1.2.3.1", prefix="a")
    write_dicom_series(tmp_path / "s", values, np.eye(4), uid="1.2.3.2", prefix="b")
    with pytest.raises(ValueError, match="holds 2 DICOM series; put each into a folder of its own"):
        read_image(tmp_path / "s")


def test_files_of_several_channels_become_one_volume(tmp_path):
    for channel in (0, 1):
        write_image(tmp_path / f"a_000{channel}.nii.gz", some_labels() + channel, np.eye(4))
    volume = read_image([tmp_path / "a_0000.nii.gz", tmp_path / "a_0001.nii.gz"])
    assert volume.array.shape == (2, *SHAPE)
    np.testing.assert_array_equal(volume.array[1], volume.array[0] + 1)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_have_one_slice_and_no_opacity(tmp_path, channels):
    pixels = np.random.default_rng(0).integers(0, 255, (7, 9, channels), np.uint8)  # rows, columns
    image = sitk.GetImageFromArray(pixels.squeeze(), isVector=channels > 1)
    sitk.WriteImage(image, str(tmp_path / "a.png"))
    volume = read_image(tmp_path / "a.png")
    assert volume.is_picture
    assert volume.array.shape == (min(channels, 3), 9, 7, 1)
    np.testing.assert_array_equal(volume.array[:, 4, 2, 0], pixels[2, 4, :3])
    assert volume.spacing_mm == (1, 1, 1)


def test_a_tiff_of_16_bits_keeps_its_values(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 65535, (7, 9), np.uint16)
    sitk.WriteImage(sitk.GetImageFromArray(pixels), str(tmp_path / "a.tiff"))
    np.testing.assert_array_equal(read_image(tmp_path / "a.tiff").array[0, :, :, 0], pixels.T)


def test_a_picture_and_its_mask_fit_whatever_their_dots_per_inch(tmp_path):
    for name, spacing in (("image", 0.3), ("label", 1)):
        image = sitk.GetImageFromArray(some_labels()[:, :, 0])
        image.SetSpacing([spacing, spacing])
        sitk.WriteImage(image, str(tmp_path / f"{name}.png"))
    volume = read_image(tmp_path / "image.png")
    assert read_annotation(tmp_path / "label.png", LABELS, volume).shape == (7, 9, 1)


def test_time_axes_of_length_one_are_dropped(tmp_path):
    nifti(tmp_path / "a.nii.gz", some_labels()[..., None])
    assert read_image(tmp_path / "a.nii.gz").shape == SHAPE


def test_scaled_integers_are_read_in_their_units(tmp_path):
    image = nibabel.Nifti1Image(some_labels().astype(np.int16), np.eye(4))
    image.header.set_slope_inter(2, -1024)
    nibabel.save(image, tmp_path / "a.nii.gz")
    assert read_image(tmp_path / "a.nii.gz").array.min() == -1024


def test_probabilities_come_back_within_half_a_step(tmp_path):
    probabilities = np.random.default_rng(0).dirichlet(np.ones(3), SHAPE).transpose(3, 0, 1, 2).astype(np.float32)
    like = Volume(np.zeros((1, *SHAPE)), affine_of("oblique"), "a")
    write_probabilities(tmp_path / "a.nii.gz", steps_of(probabilities), like.affine)
    again = read_probabilities(tmp_path / "a.nii.gz", like)
    assert again.dtype == np.uint8
    np.testing.assert_array_equal(again.sum(0, dtype=int), 255)
    np.testing.assert_allclose(again[1:] / 255, probabilities[1:], atol=0.5 / 255 + 1e-6)
    with pytest.raises(ValueError, match="does not hold the class probabilities of b"):
        read_probabilities(tmp_path / "a.nii.gz", Volume(np.zeros((1, 2, 2, 2)), np.eye(4), "b"))


def test_an_axis_that_nifti_cannot_count_is_refused(tmp_path):
    with pytest.raises(ValueError, match="NIfTI cannot hold 40000 x 2 x 1 voxels .*nrrd can"):
        write_image(tmp_path / "long.nii.gz", np.zeros((40000, 2, 1), np.uint8), np.eye(4))
    assert not any(tmp_path.iterdir())


def test_reading_in_threads_leaves_warnings_and_logs_as_they_were(tmp_path):
    write_image(tmp_path / "a.nii.gz", np.arange(64.0).reshape(4, 4, 4), np.eye(4))
    before, level = list(warnings.filters), nibabel.imageglobals.logger.level
    with ThreadPoolExecutor(8) as threads:
        assert len(list(threads.map(read_image, [tmp_path / "a.nii.gz"] * 200))) == 200
    assert list(warnings.filters) == before
    assert nibabel.imageglobals.logger.level == level


def test_a_volume_does_not_fit_into_one_picture(tmp_path):
    with pytest.raises(ValueError, match="5 slices does not fit into one picture"):
        write_annotation(tmp_path / "a.png", some_labels(), np.eye(4), LABELS)
    assert list(tmp_path.iterdir()) == []


def test_formats_that_would_change_labels_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"segmentations are written as \.seg\.nrrd"):
        annotation_suffix(tmp_path / "a.jpg")


@pytest.mark.realdata
def test_all_public_data_sets_are_read(real_data):
    from KnowledgeTransferLib.records.cohort import read_cohort

    for table in sorted(real_data.glob("*/cohort.csv")):
        cohort = read_cohort(table)
        for case in cohort.cases[:3]:
            volume = read_image(case.images, case.id)
            assert read_annotation(case.label, cohort.labels, volume).shape == volume.shape


def nifti(path, array: np.ndarray, affine=None) -> None:
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine), path)


def write_dicom_series(
    folder, values: np.ndarray, affine: np.ndarray, uid="1.2.826.0.1.3680043.2.1125.1", prefix=""
) -> None:
    """Write `values (I, J, K)` as a CT series of one file per slice, in reverse order of the names."""
    folder.mkdir(exist_ok=True)
    lps = np.diag([-1.0, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    direction = lps[:3, :3] / spacing
    for k in range(values.shape[2]):
        image = sitk.GetImageFromArray(values[:, :, k : k + 1].transpose(2, 1, 0))
        image.SetSpacing(spacing.tolist())
        position = "\\".join(f"{x:.6f}" for x in lps[:3, 3] + lps[:3, 2] * k)
        cosines = "\\".join(f"{x:.6f}" for x in (*direction[:, 0], *direction[:, 1]))
        tags = {
            "0008|0060": "CT", "0020|000e": uid, "0020|000d": "1.2.3", "0020|0013": str(k + 1),
            "0020|0032": position, "0020|0037": cosines, "0028|1052": "0", "0028|1053": "1",
        }  # fmt: skip
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        image.SetMetaData("0008|0018", f"{uid}.{k + 1}")
        writer.SetFileName(str(folder / f"{prefix}{99 - k}.dcm"))
        writer.Execute(image)


def test_a_dicom_series_with_a_missing_slice_is_refused(tmp_path):
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for number in (1, 2, 3, 5, 6, 7, 8):
        slice_ = sitk.GetImageFromArray(np.full((1, 6, 5), number, np.int16))
        slice_.SetOrigin((0, 0, 3.0 * number))
        values = {"0008|0060": "CT", "0020|000e": "1.2.3.4", "0020|000d": "1.2.3", "0020|0013": str(number),
                  "0020|0032": f"0\\0\\{3.0 * number}", "0020|0037": "1\\0\\0\\0\\1\\0",
                  "0008|0018": f"1.2.3.4.{number}"}  # fmt: skip
        for key, value in values.items():
            slice_.SetMetaData(key, value)
        (tmp_path / "series").mkdir(exist_ok=True)
        writer.SetFileName(str(tmp_path / "series" / f"{number}.dcm"))
        writer.Execute(slice_)
    with pytest.raises(ValueError, match="slices are missing or unevenly spaced"):
        read_image(tmp_path / "series")


def test_a_volume_of_four_channels_keeps_all_four(tmp_path):
    voxels = np.random.default_rng(0).integers(0, 99, (3, 4, 5, 4)).astype(np.int16)
    sitk.WriteImage(sitk.GetImageFromArray(voxels, isVector=True), str(tmp_path / "a.nrrd"))
    assert read_image(tmp_path / "a.nrrd").array.shape == (4, 5, 4, 3)
