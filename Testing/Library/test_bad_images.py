"""Bad images and annotations: each is refused with the file's name and the reason, before much memory is used."""

import gzip

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from KnowledgeTransferLib.learning.volume import Volume, read_annotation, read_image, write_annotation, write_image
from KnowledgeTransferLib.records.labels import Labels

SHAPE = (16, 14, 12)
LABELS = Labels.from_names({1: "liver", 2: "spleen"})
SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".seg.nrrd", ".mha", ".png", ".jpg", ".tiff", ".bmp")


def noise(shape=SHAPE) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 200, shape, np.uint8)


def written(path, array: np.ndarray, affine=None):
    """Write an array as it is, with none of the checks of the library; give the path."""
    if path.name.endswith((".nii", ".nii.gz")):
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    elif path.suffix in (".jpg", ".bmp", ".tiff", ".png"):
        sitk.WriteImage(sitk.GetImageFromArray(array[:, :, 0].T), str(path), useCompression=True)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(array.transpose(2, 1, 0)), str(path), useCompression=True)
    return path


def test_a_missing_file_is_named(tmp_path):
    for suffix in SUFFIXES:
        with pytest.raises(FileNotFoundError, match=rf"a{suffix}: there is no such file"):
            read_image(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_empty_file_is_named(tmp_path, suffix):
    (tmp_path / f"a{suffix}").touch()
    with pytest.raises(ValueError, match=r"a\..*: the file is empty \(0 bytes\)"):
        read_image(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_file_is_refused(tmp_path, suffix, share):
    path = written(tmp_path / f"a{suffix}", noise((64, 64, 1) if suffix in SUFFIXES[-4:] else SHAPE))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(ValueError, match=r"a\.\S+: .*(cannot be read|is not a NIfTI image|truncated)"):
        read_image(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_text_file_with_the_name_of_an_image_is_refused(tmp_path, suffix):
    (tmp_path / f"a{suffix}").write_text("Dear colleague, please find attached\n" * 50)
    with pytest.raises(ValueError, match=r"a\.\S+: (cannot be read as an image|is not a NIfTI image)"):
        read_image(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".png"])
def test_random_bytes_never_give_anything_but_a_value_error(tmp_path, suffix):
    whole = written(tmp_path / f"whole{suffix}", noise()).read_bytes()
    rng = np.random.default_rng(1)
    for number in range(40):
        damaged = bytearray(whole)
        for place in rng.integers(0, min(len(damaged), 400), 6):
            damaged[place] = rng.integers(256)
        path = tmp_path / f"{number}{suffix}"
        path.write_bytes(bytes(damaged))
        try:
            read_image(path)
        except ValueError as error:
            assert path.name in str(error)


def test_a_gzip_of_something_else_is_refused(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(b"x" * 4000))
    with pytest.raises(ValueError, match=r"a\.nii\.gz: is not a NIfTI image"):
        read_image(tmp_path / "a.nii.gz")


def test_a_folder_without_dicom_files_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match="is a folder without DICOM files"):
        read_image(tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_voxels_that_are_no_numbers_are_counted(tmp_path, suffix, value):
    array = noise().astype(np.float32)
    array[3, 4, 5] = array[0, 0, 0] = value
    with pytest.raises(ValueError, match=rf"2 of {array.size} voxels are NaN or infinite"):
        read_image(written(tmp_path / f"a{suffix}", array))


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".png"])
def test_a_constant_image_is_refused(tmp_path, suffix):
    with pytest.raises(ValueError, match="every voxel has the value 7; there is nothing to segment"):
        read_image(written(tmp_path / f"a{suffix}", np.full(SHAPE, 7, np.uint8)))


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
@pytest.mark.parametrize("shape", [(1, 5, 5), (5, 1, 5), (1, 1, 1)])
def test_a_first_or_second_axis_of_one_voxel_is_refused(tmp_path, suffix, shape):
    times = " x ".join(map(str, shape))
    with pytest.raises(ValueError, match=f"has {times} voxels; at least 2 are needed"):
        read_image(written(tmp_path / f"a{suffix}", np.arange(np.prod(shape), dtype=np.int16).reshape(shape)))


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_a_four_dimensional_image_is_refused_with_what_to_do(tmp_path, suffix):
    if suffix == ".nrrd":
        image = sitk.JoinSeries([sitk.GetImageFromArray(noise())] * 3)
        sitk.WriteImage(image, str(tmp_path / "a.nrrd"))
    else:
        written(tmp_path / "a.nii.gz", np.stack([noise()] * 3, -1))
    with pytest.raises(ValueError, match="is 4-D .* x 3.*give one 3-D file per channel"):
        read_image(tmp_path / f"a{suffix}")


def test_a_header_that_claims_more_voxels_than_the_memory_holds_is_refused_at_once(tmp_path):
    header = nibabel.Nifti2Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((40_000,) * 3)
    header["vox_offset"] = 544
    (tmp_path / "a.nii").write_bytes(header.binaryblock + bytes(1000))
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(header.binaryblock + bytes(1000)))
    nrrd = "NRRD0004\ntype: short\ndimension: 3\nsizes: 40000 40000 40000\nencoding: raw\nendian: little\n\n"
    (tmp_path / "a.nrrd").write_bytes(nrrd.encode() + bytes(1000))
    mha = (
        "ObjectType = Image\nNDims = 3\nDimSize = 40000 40000 40000\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    )
    (tmp_path / "a.mha").write_bytes(mha.encode() + bytes(1000))
    for suffix in (".nii", ".nii.gz", ".nrrd", ".mha"):
        with pytest.raises(ValueError, match=r"40000 x 40000 x 40000 voxels need \d+\.\d GiB of memory"):
            read_image(tmp_path / f"a{suffix}")


def test_colors_and_complex_numbers_in_a_nifti_are_refused(tmp_path):
    written(tmp_path / "complex.nii.gz", noise().astype(np.complex64))
    written(tmp_path / "rgb.nii.gz", np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")]))
    for name in ("complex", "rgb"):
        with pytest.raises(ValueError, match=r"\.nii\.gz: voxels of type .* are not supported; grey values"):
            read_image(tmp_path / f"{name}.nii.gz")


def test_a_geometry_that_spans_no_volume_is_refused(tmp_path):
    image = nibabel.Nifti1Image(noise(), None)
    image.set_sform(np.diag([1.0, 1, 0, 1]), 1)
    nibabel.save(image, tmp_path / "a.nii.gz")
    with pytest.raises(ValueError, match="has no valid geometry"):
        read_image(tmp_path / "a.nii.gz")


def test_channels_of_another_shape_or_place_are_refused(tmp_path):
    a = written(tmp_path / "a_0000.nii.gz", noise())
    smaller = written(tmp_path / "a_0001.nii.gz", noise((16, 14, 11)))
    shifted = written(
        tmp_path / "a_0002.nii.gz", noise(), np.array([[1.0, 0, 0, 3], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    )
    with pytest.raises(ValueError, match=r"a_0001.* has 16 x 14 x 11 voxels, but .*a_0000.* has 16 x 14 x 12"):
        read_image([a, smaller])
    with pytest.raises(ValueError, match=r"a_0002.* lies up to 3\.00 mm away"):
        read_image([a, shifted])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a @ np.diag([1, 1, 2.0, 1]), r"lies up to 12\.00 mm away from image"),
        (lambda a: a @ np.diag([-1.0, 1, 1, 1]), "another spacing, origin or orientation"),
        (lambda a: a + np.eye(4)[:, [3, 0, 1, 2]] * 0 + np.outer([0, 0.5, 0, 0], [0, 0, 0, 1]), r"up to 0\.50 mm away"),
    ],
)
def test_an_annotation_of_another_geometry_is_refused(tmp_path, change, message):
    like = Volume(noise()[None], np.eye(4), "image")
    path = written(tmp_path / "label.nii.gz", np.zeros(SHAPE, np.uint8), change(np.eye(4)))
    with pytest.raises(ValueError, match=message):
        read_annotation(path, LABELS, like)


def test_an_annotation_of_another_shape_is_refused(tmp_path):
    like = Volume(noise()[None], np.eye(4), "image")
    with pytest.raises(ValueError, match=r"label\.nii\.gz: has 16 x 14 x 13 voxels, but image has 16 x 14 x 12"):
        read_annotation(written(tmp_path / "label.nii.gz", np.zeros((16, 14, 13), np.uint8)), LABELS, like)


def test_geometry_that_differs_by_rounding_alone_is_accepted(tmp_path):
    like = Volume(noise()[None], np.diag([0.33333333, 0.33333333, 1, 1]), "image")
    path = written(tmp_path / "label.nii.gz", np.zeros(SHAPE, np.uint8), np.diag([0.3333, 0.3333, 1, 1]))
    assert read_annotation(path, LABELS, like).shape == SHAPE


def test_unknown_label_values_are_named_with_those_that_are_known(tmp_path):
    path = written(tmp_path / "label.nii.gz", np.array([0, 1, 2, 3, 9], np.int16).repeat(4).reshape(5, 2, 2))
    with pytest.raises(
        ValueError, match=r"unknown label values \[3, 9\]; known are 0 \(background\), 1 \(liver\), 2 \(spleen\)"
    ):
        read_annotation(path, LABELS)
    assert read_annotation(path).max() == 9


@pytest.mark.parametrize("value", [-1, 256, 1000])
def test_label_values_that_do_not_fit_into_a_byte_are_refused(tmp_path, value):
    with pytest.raises(ValueError, match=rf"unknown label values \[{value}\]"):
        read_annotation(written(tmp_path / "label.nii.gz", np.full((4, 4, 4), value, np.int16)))


@pytest.mark.parametrize("value", [0.9999, 1.0, 1.0009, 1.9995])
def test_label_values_that_are_whole_but_for_rounding_are_rounded(tmp_path, value):
    path = written(tmp_path / "label.nii.gz", np.full((4, 4, 4), value, np.float32))
    assert (read_annotation(path, LABELS) == round(value)).all()


@pytest.mark.parametrize(
    ("value", "message"), [(0.9, r"holds 0\.9; whole numbers"), (np.nan, "NaN"), (np.inf, "infinite")]
)
def test_label_values_that_are_no_whole_numbers_are_refused(tmp_path, value, message):
    array = np.ones((4, 4, 4), np.float32)
    array[1, 2, 3] = value
    with pytest.raises(ValueError, match=message):
        read_annotation(written(tmp_path / "label.nii.gz", array), LABELS)


def test_a_colored_mask_is_refused(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(noise((8, 8, 3)), isVector=True), str(tmp_path / "label.png"))
    with pytest.raises(ValueError, match="has 3 channels; an annotation holds one whole number per voxel"):
        read_annotation(tmp_path / "label.png", LABELS)


def test_a_disk_that_fills_up_leaves_the_old_annotation(tmp_path, monkeypatch):
    path = tmp_path / "a.nii.gz"
    write_annotation(path, np.ones(SHAPE, np.uint8), np.eye(4), LABELS)

    def full(image, temporary):
        temporary.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nibabel, "save", full)
    with pytest.raises(OSError, match="No space left"):
        write_annotation(path, np.zeros(SHAPE, np.uint8), np.eye(4), LABELS)
    monkeypatch.undo()
    assert read_annotation(path, LABELS).min() == 1
    assert list(tmp_path.iterdir()) == [path]


def test_writing_below_a_file_is_refused_by_name(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="file"):
        write_image(tmp_path / "file" / "a.nii.gz", noise(), np.eye(4))
    assert (tmp_path / "file").read_text() == "mine"
