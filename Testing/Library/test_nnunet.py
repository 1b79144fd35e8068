"""nnU-Net v2 models as teachers: read without unpickling, run by nnU-Net itself; what it says equals nnU-Net's own."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_models import NNUNET_ARCHITECTURE, Payload, nnunet_plans, write_nnunet

from KnowledgeTransferLib.learning.teachers import NnUnet, kind_of, remember_trust, risk_of
from KnowledgeTransferLib.learning.teachers.nnunet import checkpoints_in, labels_of, read_checkpoint
from KnowledgeTransferLib.learning.volume import Volume, read_image
from KnowledgeTransferLib.steps.annotate import annotate
from KnowledgeTransferLib.steps.describe import describe


@pytest.fixture
def nnunetv2():
    return pytest.importorskip("nnunetv2", reason="nnU-Net is not installed (make teachers)")


def a_volume(affine=None, shape=(12, 10, 9)) -> Volume:
    array = np.random.default_rng(0).normal(5, 2, (1, *shape)).astype(np.float32)
    return Volume(array, np.diag([-1.0, 2, 3, 1]) if affine is None else affine, "p1")


def test_a_trained_model_is_recognised_and_described_without_nnunet(tmp_path):
    folder = write_nnunet(tmp_path / "model", folds=2)
    assert kind_of(folder) is NnUnet
    found = describe(folder)
    assert [s["name"] for s in found["structures"]] == ["liver", "spleen"]
    assert (found["channels"], found["modality"], found["risk"]) == (1, "", "")
    assert found["card"].endswith("of 2 folds.")
    shutil.rmtree(folder / "fold_1")
    shutil.rmtree(folder / "fold_0")
    assert not NnUnet.recognises(folder)


def test_without_the_package_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nnunetv2.inference.predict_from_raw_data", None)
    with pytest.raises(RuntimeError, match="needs the package nnunetv2; install it"):
        NnUnet.open(write_nnunet(tmp_path / "model"), "cpu", None)


def test_folds_are_taken_before_the_model_of_all_data_and_final_before_best(tmp_path):
    folder = write_nnunet(tmp_path / "model", folds=2)
    shutil.copytree(folder / "fold_0", folder / "fold_all")
    shutil.copy(folder / "fold_0" / "checkpoint_final.pth", folder / "fold_0" / "checkpoint_best.pth")
    found = [str(file.relative_to(folder)) for file in checkpoints_in(folder)]
    assert found == ["fold_0/checkpoint_final.pth", "fold_1/checkpoint_final.pth"]


def test_regions_have_the_values_with_which_they_are_painted(tmp_path):
    dataset = {
        "labels": {"background": 0, "whole tumor": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4},
        "regions_class_order": [1, 2, 3],
    }
    labels = labels_of(dataset, tmp_path)
    assert dict(zip(labels.names, labels.values[1:], strict=True)) == {"whole tumor": 1, "core": 2, "enhancing": 3}
    with pytest.raises(ValueError, match="its labels are not understood"):
        labels_of({"labels": {"background": 0, "whole": [1, 2]}}, tmp_path)


def test_a_checkpoint_with_a_payload_is_never_unpickled_without_trust(tmp_path):
    folder = write_nnunet(tmp_path / "model", more={"more": Payload(tmp_path / "executed")})
    assert "holds more than weights" in describe(folder)["risk"]
    with pytest.raises(PermissionError, match="give --trust once"):
        NnUnet.open(folder, "cpu", None)
    assert not (tmp_path / "executed").exists()
    read_checkpoint(folder / "fold_0" / "checkpoint_final.pth", trusted=True)
    assert (tmp_path / "executed").exists()


FOREIGN = {
    "a function as network": {"network_class_name": "os.system"},
    "a module of a known package": {
        "network_class_name": "dynamic_network_architectures.architectures.unet.torch.load"
    },
    "a function as layer": {"arch_kwargs": {**NNUNET_ARCHITECTURE["arch_kwargs"], "nonlin": "os.system"}},
    "a hidden function as layer": {
        "arch_kwargs": {**NNUNET_ARCHITECTURE["arch_kwargs"], "conv_op": "torch.nn.modules.module.torch.load"}
    },
}


@pytest.mark.parametrize("changes", FOREIGN.values(), ids=FOREIGN)
def test_plans_that_name_other_code_are_refused_without_trust(tmp_path, changes):
    folder = write_nnunet(tmp_path / "model")
    plans = nnunet_plans({**NNUNET_ARCHITECTURE, **changes})
    (folder / "plans.json").write_text(json.dumps(plans))
    assert "which is no network of nnU-Net" in risk_of(folder)
    with pytest.raises(PermissionError, match="give --trust once"):
        NnUnet.open(folder, "cpu", None)
    assert remember_trust(folder) and risk_of(folder) == ""


def test_folds_are_an_ensemble_and_probabilities_lie_as_the_scan_does(tmp_path, nnunetv2):
    both = NnUnet.open(write_nnunet(tmp_path / "both", folds=2), "cpu", None)
    one = NnUnet.open(write_nnunet(tmp_path / "one"), "cpu", None)
    volume = a_volume()
    found = both.predict(volume)
    assert found.shape == (3, *volume.shape) and found.dtype == np.float32
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)
    assert np.abs(found - one.predict(volume)).max() > 0.01
    assert isinstance(one.network, torch.nn.Module)


def test_regions_overlap_and_the_later_one_counts(tmp_path, nnunetv2):
    labels = {"background": 0, "whole tumor": [1, 2], "core": 2}
    folder = write_nnunet(tmp_path / "model", labels=labels, regions_class_order=[1, 2])
    teacher = NnUnet.open(folder, "cpu", None)
    found = teacher.predict(a_volume())
    assert teacher.labels.names == ("whole tumor", "core") and found.shape[0] == 3
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)


def test_images_are_turned_as_the_models_reader_turned_them(tmp_path, nnunetv2):
    folder = write_nnunet(tmp_path / "model")
    (folder / "plans.json").write_text(json.dumps(nnunet_plans(reader="NibabelIOWithReorient")))
    teacher = NnUnet.open(folder, "cpu", None)
    straight = a_volume(np.diag([1.0, 2, 3, 1]))
    array = np.flip(straight.array, (1, 2)).transpose(0, 3, 2, 1)
    turned = Volume(np.ascontiguousarray(array), np.array([[0, 0, -1, 0], [0, -2, 0, 0], [3, 0, 0, 0], [0, 0, 0, 1.0]]))
    back = np.flip(teacher.predict(turned).transpose(0, 3, 2, 1), (1, 2))
    np.testing.assert_allclose(back, teacher.predict(straight), atol=1e-5)


def test_trainers_are_found_beside_files_that_cannot_be_imported(tmp_path, nnunetv2, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    folder = write_nnunet(tmp_path / "model", more={"trainer_name": "nnUNetTrainerNoMirroring"})
    assert NnUnet.open(folder, "cpu", None).predict(a_volume()).shape[0] == 3
    odd = write_nnunet(tmp_path / "odd", more={"trainer_name": "nnUNetTrainerOfSomebody"})
    with pytest.raises((RuntimeError, ImportError), match="nnUNetTrainerOfSomebody|torchvision"):
        NnUnet.open(odd, "cpu", None)


def test_another_number_of_channels_is_told(tmp_path, nnunetv2):
    teacher = NnUnet.open(write_nnunet(tmp_path / "model"), "cpu", None)
    with pytest.raises(ValueError, match="has 2 channels; the teacher needs 1"):
        teacher.predict(Volume(np.zeros((2, 8, 8, 8)), np.eye(4), "p1"))


@pytest.mark.slow
def test_a_model_that_nnunet_trained_gives_what_nnunet_itself_predicts(tmp_path, nnunetv2):
    """Trained for two iterations by nnU-Net's own code; annotates, and agrees with nnUNetPredictor on the files."""
    from KnowledgeTransferLib.learning.phantom import write_phantom

    cohort = write_phantom(tmp_path / "cohort", cases=4, site="A", size_voxels=(32, 32, 20))
    script = Path(__file__).with_name("train_nnunet.py")
    done = subprocess.run(
        [sys.executable, script, cohort], check=False, capture_output=True, encoding="utf-8", timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    model = Path(done.stdout.split()[-1])
    assert risk_of(model) == ""  # its checkpoints are read with weights_only=True
    scan = sorted((cohort / "images").iterdir())[0]
    found = NnUnet.open(model, "cpu", None).predict(read_image(scan))
    np.testing.assert_allclose(found, by_nnunet_itself(model, scan, tmp_path / "predicted"), atol=1e-5)
    for partial in ("raw", "preprocessed"):
        shutil.rmtree(cohort / partial)
    record = annotate(tmp_path / "run", cohort, {str(model): 1.0})
    assert len(record["cases"]) == 4 and not record["problems"]


def by_nnunet_itself(model: Path, scan: Path, output: Path) -> np.ndarray:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), None)
    output.mkdir()
    predictor.predict_from_files_sequential([[str(scan)]], [str(output / "case")], save_probabilities=True)
    return np.load(output / "case.npz")["probabilities"].transpose(0, 3, 2, 1)


@pytest.mark.parametrize(("name", "content"), [
    ("dataset.json", []), ("dataset.json", {"channel_names": ["CT"]}),
    ("plans.json", "plans"), ("plans.json", {"configurations": ["3d_fullres"]}),
])  # fmt: skip
def test_files_that_are_not_as_nnunet_writes_them_are_told(tmp_path, name, content):
    folder = write_nnunet(tmp_path / "model")
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"{name}: is not as nnU-Net writes it; copy the model's folder anew"):
        describe(folder)


@pytest.mark.usefixtures("nnunetv2")
def test_a_spacing_that_differs_by_rounding_alone_gives_the_same(tmp_path):
    teacher = NnUnet.open(write_nnunet(tmp_path / "model"), "cpu", None)
    seen = []
    teacher.predictor.predict_single_npy_array = lambda image, about, **_: (
        seen.append(about["spacing"]) or (None, np.zeros((3, *image.shape[1:]), np.float32))
    )
    for size in (0.7, float(np.float32(0.7))):
        teacher.predict(a_volume(np.diag([size, size, 2.5, 1])))
    assert seen == [[2.5, 0.7, 0.7]] * 2


@pytest.mark.usefixtures("nnunetv2")
def test_a_single_slice_is_refused_by_a_model_of_volumes(tmp_path):
    teacher = NnUnet.open(write_nnunet(tmp_path / "model"), "cpu", None)
    with pytest.raises(ValueError, match=r"p1: is a single slice; model annotates volumes \(3-D\)"):
        teacher.predict(a_volume(shape=(12, 10, 1)))
