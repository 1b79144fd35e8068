"""Fast gzip: what it writes every tool reads, the same voxels give the same bytes, and damage is told."""

import gzip

import nibabel
import numpy as np
import pytest

from KnowledgeTransferLib.learning.volume import read_image, write_image


def some_voxels() -> np.ndarray:
    return np.random.default_rng(0).integers(-1000, 1000, (40, 30, 20)).astype(np.int16)


def test_written_files_are_ordinary_gzip(tmp_path):
    write_image(tmp_path / "a.nii.gz", some_voxels(), np.eye(4))
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress((tmp_path / "a.nii.gz").read_bytes()))
    np.testing.assert_array_equal(np.asarray(image.dataobj), some_voxels())


def test_files_of_ordinary_gzip_are_read(tmp_path):
    content = nibabel.Nifti1Image(some_voxels(), np.eye(4)).to_bytes()
    parts = content[:1000], content[1000:]  # several members, as pigz and bgzip write them
    (tmp_path / "a.nii.gz").write_bytes(b"".join(gzip.compress(part) for part in parts))
    np.testing.assert_array_equal(read_image(tmp_path / "a.nii.gz").array[0], some_voxels())


def test_the_same_voxels_give_the_same_bytes(tmp_path):
    for name in ("a.nii.gz", "b.nii.gz"):
        write_image(tmp_path / name, some_voxels(), np.eye(4))
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_a_truncated_file_is_told(tmp_path, share):
    write_image(tmp_path / "a.nii.gz", some_voxels(), np.eye(4))
    content = (tmp_path / "a.nii.gz").read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match="a.nii.gz: cannot be read as an image; truncated"):
        read_image(tmp_path / "a.nii.gz")


def test_a_changed_byte_is_told(tmp_path):
    write_image(tmp_path / "a.nii.gz", some_voxels(), np.eye(4))
    content = bytearray((tmp_path / "a.nii.gz").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "a.nii.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"a.nii.gz"):
        read_image(tmp_path / "a.nii.gz")


def test_a_damaged_header_is_told(tmp_path):
    content = bytearray(gzip.compress(bytes(range(256)) * 40))
    for place in (12, 13, 15):
        content[place] ^= 0x5A
    (tmp_path / "a.nii.gz").write_bytes(content)
    with pytest.raises(ValueError, match="a.nii.gz"):
        read_image(tmp_path / "a.nii.gz")
