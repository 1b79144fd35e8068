"""Arriving: a large .nii.gz is prepared while it is read, with the same result and the same refusals."""

import threading

import nibabel
import numpy as np
import pytest

from KnowledgeTransferLib.learning import arriving
from KnowledgeTransferLib.learning.arriving import image_arriving
from KnowledgeTransferLib.learning.preprocessing import Normalisation, Preprocessing
from KnowledgeTransferLib.learning.volume import read_image, write_image

CT, Z_SCORE = Normalisation("ct", -900, 900, 0, 300), Normalisation("z-score")
SHAPE = (40, 37, 45)


@pytest.fixture(autouse=True)
def every_file_counts_as_large(monkeypatch):
    monkeypatch.setattr(arriving, "LARGE_BYTES", 0)
    monkeypatch.setattr(arriving, "BLOCK_BYTES", 5000)  # less than two planes


def voxels(kind=np.int16) -> np.ndarray:
    return np.random.default_rng(0).integers(-800, 800, SHAPE).astype(kind)


def a_file(folder, array=None, affine=None):
    write_image(folder / "a.nii.gz", voxels() if array is None else array, np.eye(4) if affine is None else affine)
    return folder / "a.nii.gz"


def prepared(file, normalisation=CT):
    with image_arriving((file,), "a") as volume:
        assert volume.arriving is not None
        return Preprocessing(3, (1.7, 0.8, 2.1), (normalisation,)).prepare(volume)[0].numpy()


@pytest.mark.parametrize("normalisation", [CT, Z_SCORE], ids=["ct", "z-score"])
@pytest.mark.parametrize("kind", [np.int16, np.uint8, np.float32, ">i2"])
@pytest.mark.parametrize("diagonal", [(1, 1, 1), (-1, -1, 1), (1, 1, -1)])
def test_what_is_prepared_while_it_is_read_is_the_same(tmp_path, normalisation, kind, diagonal):
    file = a_file(tmp_path, voxels(kind), np.diag([*diagonal, 1.0]))
    expected, _ = Preprocessing(3, (1.7, 0.8, 2.1), (normalisation,)).prepare(read_image(file))
    np.testing.assert_array_equal(prepared(file, normalisation), expected.numpy())


def test_the_first_planes_are_looked_at_before_the_last_are_there(tmp_path, monkeypatch):
    looked, early, readinto = threading.Event(), [], nibabel.openers.Opener.readinto

    def slow(stream, buffer):
        if len(buffer) < 5000:  # the last block
            early.append(looked.wait(10))
        return readinto(stream, buffer)

    apply = Normalisation.apply
    monkeypatch.setattr(nibabel.openers.Opener, "readinto", slow)
    monkeypatch.setattr(Normalisation, "apply", lambda self, grey: looked.set() or apply(self, grey))
    prepared(a_file(tmp_path))
    assert early == [True]


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_a_truncated_file_is_told(tmp_path, share):
    file = a_file(tmp_path)
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    with pytest.raises(ValueError, match="a.nii.gz: cannot be read as an image; truncated"):
        prepared(file)


def test_a_changed_byte_is_told(tmp_path):
    content = bytearray(a_file(tmp_path).read_bytes())
    content[-6] ^= 0xFF  # of the checksum at its end
    (tmp_path / "a.nii.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"a.nii.gz: cannot be read"):
        prepared(tmp_path / "a.nii.gz")


def test_what_read_image_refuses_is_refused_at_the_end(tmp_path):
    with pytest.raises(ValueError, match="every voxel has the value 7"):
        prepared(a_file(tmp_path, np.full(SHAPE, 7, np.int16)))
    wrong = voxels(np.float32)
    wrong[3, 4, 5] = np.nan
    with pytest.raises(ValueError, match="1 of 66600 voxels are NaN or infinite"):
        prepared(a_file(tmp_path, wrong))


def test_who_leaves_early_leaves_no_thread_behind(tmp_path):
    file, others = a_file(tmp_path), threading.active_count()
    with pytest.raises(RuntimeError, match="enough"), image_arriving((file,)):
        raise RuntimeError("enough")
    assert threading.active_count() == others


@pytest.mark.parametrize("name", ["a.nii.gz", "scaled.nii.gz", "missing.nii.gz", "a.mha"])
def test_other_files_are_read_as_always(tmp_path, name, monkeypatch):
    if name == "a.nii.gz":
        monkeypatch.setattr(arriving, "LARGE_BYTES", 1 << 22)
    write_image(tmp_path / "a.mha", voxels(), np.eye(4))
    image = nibabel.load(a_file(tmp_path))
    image.header.set_slope_inter(2, 1)
    nibabel.save(nibabel.Nifti1Image(voxels() * 2.0 + 1, np.eye(4), image.header), tmp_path / "scaled.nii.gz")
    if name == "missing.nii.gz":
        with pytest.raises(FileNotFoundError, match=name), image_arriving((tmp_path / name,)):
            pass
        return
    with image_arriving((tmp_path / name,)) as volume:
        assert volume.arriving is None
        np.testing.assert_array_equal(volume.array, read_image(tmp_path / name).array)
