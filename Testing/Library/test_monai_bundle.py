"""MONAI bundles as teachers: read as data; what needs code is opened only when trusted; nothing malicious runs."""

import json

import numpy as np
import pytest
import torch
from foreign_models import (
    BUNDLE_NETWORK,
    BUNDLE_STEPS,
    Payload,
    bundle_config,
    bundle_network,
    write_monai_bundle,
    zipped,
)

from KnowledgeTransferLib.learning.teachers import MonaiBundle, OwnBundle, kind_of, remember_trust, risk_of
from KnowledgeTransferLib.learning.volume import Volume
from KnowledgeTransferLib.steps.describe import describe


def a_volume(affine=None, shape=(8, 8, 8)) -> Volume:
    array = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    return Volume(array, np.diag([1.0, 2, 3, 1]) if affine is None else affine, "p1")


def by_the_bare_network(volume: Volume) -> np.ndarray:
    image = torch.from_numpy(np.clip((volume.array + 3) / 6, 0, 1))[None]
    with torch.no_grad():
        return bundle_network()(image).softmax(1)[0].numpy()


def test_a_bundle_gives_what_its_network_gives(tmp_path):
    teacher = MonaiBundle.open(write_monai_bundle(tmp_path / "bundle"), "cpu", None)
    assert teacher.labels.names == ("liver", "spleen") and isinstance(teacher.network, torch.nn.Module)
    np.testing.assert_allclose(teacher.predict(a_volume()), by_the_bare_network(a_volume()), atol=1e-4)


def test_its_steps_are_undone_on_the_grid_of_the_volume(tmp_path):
    teacher = MonaiBundle.open(write_monai_bundle(tmp_path / "bundle"), "cpu", None)
    turned = np.array([[0, 0, -1.5, 0], [0, -2, 0, 0], [2.5, 0, 0, 0], [0, 0, 0, 1.0]])
    found = teacher.predict(a_volume(turned, (9, 10, 12)))
    assert found.shape == (3, 9, 10, 12)
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)


def test_monais_own_transforms_undo_them_to_the_same(tmp_path):
    """Against MONAI's dictionary transforms and Invertd, as its own inference does it."""
    from monai.data import MetaTensor
    from monai.transforms import Compose, Invertd, Orientationd, ScaleIntensityRanged, Spacingd

    teacher = MonaiBundle.open(write_monai_bundle(tmp_path / "bundle"), "cpu", None)
    volume = a_volume(np.array([[0, 0, -1.5, 0], [0, -2, 0, 0], [2.5, 0, 0, 0], [0, 0, 0, 1.0]]), (9, 10, 12))
    transforms = Compose([
        Orientationd("image", "RAS"), Spacingd("image", (1, 2, 3), mode="bilinear"),
        ScaleIntensityRanged("image", -3, 3, 0, 1, clip=True),
    ])  # fmt: skip
    item = transforms({"image": MetaTensor(torch.from_numpy(volume.array.copy()), affine=volume.affine)})
    image = item["image"].as_tensor()
    scores = teacher._scores(image)
    item["pred"] = MetaTensor(scores.softmax(0))
    expected = Invertd("pred", transforms, "image", nearest_interp=False)(item)["pred"]
    np.testing.assert_allclose(teacher.predict(volume), expected / expected.sum(0), atol=1e-4)


def test_a_zip_archive_gives_the_same_and_nothing_is_unpacked(tmp_path):
    folder = write_monai_bundle(tmp_path / "bundle")
    hostile = {"../../escaped.txt": b"x", "/tmp/escaped_t5.txt": b"x", "bundle/../../escaped.txt": b"x"}
    archive = zipped(folder, tmp_path / "bundle.zip", **hostile)
    before = sorted(tmp_path.parent.rglob("escaped*"))
    found = kind_of(archive).open(archive, "cpu", None).predict(a_volume())
    np.testing.assert_allclose(found, by_the_bare_network(a_volume()), atol=1e-4)
    assert describe(archive)["kind"] == "monai-bundle"
    assert sorted(tmp_path.parent.rglob("escaped*")) == before == []


def test_a_bundle_is_described_with_its_structures_and_its_card(tmp_path):
    folder = write_monai_bundle(tmp_path / "bundle")
    found = describe(folder)
    assert (found["kind"], found["channels"], found["modality"]) == ("monai-bundle", 1, "CT")
    assert [s["name"] for s in found["structures"]] == ["liver", "spleen"] and found["card"] == "A tiny network."
    (folder / "docs").mkdir()
    (folder / "docs" / "README.md").write_text("# A card")
    assert describe(folder)["card"] == "# A card"


def test_weights_in_safetensors_and_in_a_checkpoint_are_found(tmp_path):
    from safetensors.torch import save_file

    plain = write_monai_bundle(tmp_path / "plain")
    nested = write_monai_bundle(tmp_path / "nested", {"state_dict": bundle_network().state_dict(), "epoch": 3})
    safe = write_monai_bundle(tmp_path / "safe")
    (safe / "models" / "model.pt").unlink()
    save_file(bundle_network().state_dict(), safe / "models" / "model.safetensors")
    assert kind_of(safe) is MonaiBundle and not OwnBundle.recognises(safe)
    expected = MonaiBundle.open(plain, "cpu", None).predict(a_volume())
    for folder in (nested, safe):
        np.testing.assert_array_equal(MonaiBundle.open(folder, "cpu", None).predict(a_volume()), expected)


def test_channels_without_a_background_are_structures_by_themselves(tmp_path):
    post = [{"_target_": "Activationsd", "keys": "pred", "sigmoid": True}]
    folder = write_monai_bundle(tmp_path / "bundle", names=("whole", "core", "part"), postprocessing=post)
    teacher = MonaiBundle.open(folder, "cpu", None)
    assert teacher.labels.names == ("whole", "core", "part")
    assert (teacher.activation, teacher.background) == ("sigmoid", False)
    assert teacher.predict(a_volume()).shape == (4, 8, 8, 8)


def test_post_processing_that_changes_a_segmentation_is_left_out_and_told(tmp_path):
    post = [{"_target_": "KeepLargestConnectedComponentd", "keys": "pred"}]
    folder = write_monai_bundle(tmp_path / "bundle", postprocessing=post)
    assert "KeepLargestConnectedComponentd is left out" in describe(folder)["hint"]


def with_step(step: dict) -> dict:
    return {"preprocessing": {"_target_": "Compose", "transforms": [*BUNDLE_STEPS, step]}}


NEEDS_CODE = {
    "an expression as argument": with_step({"_target_": "Spacingd", "keys": "image", "pixdim": "$[1] * 3"}),
    "an unknown step": with_step({"_target_": "Lambdad", "keys": "image", "func": "$lambda x: x"}),
    "a function of Python": with_step({"_target_": "os.system", "keys": "image", "command": "touch executed"}),
    "a step of its own": with_step({"_target_": "scripts.Prepare", "keys": "image"}),
    "an expression as step": {"preprocessing": "$@a + @b"},
    "a network of its own": {"network_def": {"_target_": "scripts.Network"}},
    "another class as network": {"network_def": {**BUNDLE_NETWORK, "_target_": "monai.networks.nets.os"}},
    "a computed network": {"network_def": {**BUNDLE_NETWORK, "channels": "$[4, 8]"}},
    "an object as argument": {"network_def": {**BUNDLE_NETWORK, "act": {"_target_": "torch.nn.ReLU"}}},
    "a circle of references": {"pixdim": "@pixdim"},
    "references to ever more": {**{f"pixdim{n}": [f"@pixdim{n + 1}"] * 10 for n in range(9)}, "pixdim": "@pixdim0"},
    "a computed window": {"inferer": {"_target_": "SlidingWindowInferer", "roi_size": "$[8] * 3"}},
    "another inferer": {"inferer": {"_target_": "scripts.Inferer"}},
    "a step that is left out by an expression": with_step({"_target_": "Orientationd", "_disabled_": "$1"}),
}


@pytest.mark.parametrize("changes", NEEDS_CODE.values(), ids=NEEDS_CODE)
def test_what_only_code_could_do_is_refused_without_trust(tmp_path, changes):
    folder = write_monai_bundle(tmp_path / "bundle", **changes)
    assert kind_of(folder) is MonaiBundle and risk_of(folder)
    with pytest.raises(PermissionError, match="give --trust once"):
        MonaiBundle.open(folder, "cpu", None)


@pytest.mark.parametrize("where", ["preprocessing", "network_def", "inferer", "postprocessing", "imports", "device"])
def test_an_expression_anywhere_is_never_executed(tmp_path, where):
    attack = f"$__import__('pathlib').Path({str(tmp_path / 'executed')!r}).write_text('x')"
    folder = write_monai_bundle(tmp_path / "bundle", **{where: [attack] if where == "imports" else attack})
    risk_of(folder)
    describe(folder)
    try:
        MonaiBundle.open(folder, "cpu", None)
    except PermissionError:
        assert where not in ("imports", "device", "postprocessing")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_a_pickle_with_a_payload_is_never_unpickled(tmp_path, packed):
    state = {**bundle_network().state_dict(), "more": Payload(tmp_path / "executed")}
    path = write_monai_bundle(tmp_path / "bundle", state)
    path = zipped(path, tmp_path / "bundle.zip") if packed else path
    assert "objects that are not weights" in risk_of(path)
    describe(path)
    with pytest.raises(PermissionError, match="objects that are not weights"):
        MonaiBundle.open(path, "cpu", None)
    assert not (tmp_path / "executed").exists()


def test_a_bundle_with_code_of_its_own_works_once_it_is_trusted(tmp_path):
    steps = [*BUNDLE_STEPS, {"_target_": "scripts.own_steps.Doubledd", "keys": "image"}]
    folder = write_monai_bundle(
        tmp_path / "bundle", preprocessing={"_target_": "Compose", "transforms": steps}, pixdim="$[2.0] * 3",
        inferer={"_target_": "SlidingWindowInferer", "roi_size": "$[16] * 3"}, postprocessing="$[]",
    )  # fmt: skip
    (folder / "scripts").mkdir()
    (folder / "scripts" / "__init__.py").write_text("")
    (folder / "scripts" / "own_steps.py").write_text(
        "class Doubledd:\n"
        "    def __init__(self, keys): self.keys = keys\n"
        "    def __call__(self, data): return {**data, self.keys: data[self.keys] * 2}\n"
    )
    assert remember_trust(folder)
    teacher = MonaiBundle.open(folder, "cpu", None)
    found = teacher.predict(a_volume(np.diag([-1.0, 2, 3, 1]), (10, 9, 8)))
    assert found.shape == (3, 10, 9, 8) and teacher.window.patch_size_voxels == (16, 16, 16)
    assert teacher.preparation.prepare(a_volume()).max() > 1.5
    assert MonaiBundle.open(folder, "cpu", None)  # nothing was left in the folder that changes its checksum
    (folder / "scripts" / "own_steps.py").write_text("changed")
    with pytest.raises(PermissionError, match="give --trust once"):
        MonaiBundle.open(folder, "cpu", None)


DAMAGES = {
    "no structures": ("metadata.json", {}, "network_data_format"),
    "no JSON": ("inference.json", None, "inference.json is damaged"),
    "another size": ("inference.json", bundle_config(network_def={**BUNDLE_NETWORK, "channels": [4, 16]}), "fit toge"),
    "wrong arguments": ("inference.json", bundle_config(network_def={**BUNDLE_NETWORK, "odd": 1}), "cannot make its"),
}


@pytest.mark.parametrize(("file", "content", "message"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_bundle_is_refused_with_its_path(tmp_path, file, content, message):
    folder = write_monai_bundle(tmp_path / "bundle")
    (folder / "configs" / file).write_text("{" if content is None else json.dumps(content))
    with pytest.raises(ValueError, match=f"bundle: .*{message}"):
        MonaiBundle.open(folder, "cpu", None)


def test_missing_and_broken_weights_are_told(tmp_path):
    folder = write_monai_bundle(tmp_path / "bundle")
    (folder / "models" / "model.pt").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match="is damaged, or no file of torch"):
        MonaiBundle.open(folder, "cpu", None)
    (folder / "models" / "model.pt").unlink()
    with pytest.raises(ValueError, match="holds no weights; looked for models/model.safetensors"):
        MonaiBundle.open(folder, "cpu", None)


def test_a_bundle_for_pictures_goes_slice_by_slice(tmp_path):
    """With the resizing that such bundles often have."""
    from monai.networks.nets import UNet

    network = {**BUNDLE_NETWORK, "spatial_dims": 2}
    steps = [
        {"_target_": "LoadImaged", "keys": "image"},
        {"_target_": "Resized", "keys": "image", "spatial_size": [16, 16], "mode": "bilinear"},
        {"_target_": "DivisiblePadd", "keys": "image", "k": 8},
        {"_target_": "ScaleIntensityd", "keys": "image"},
    ]
    state = UNet(**{k: v for k, v in network.items() if k != "_target_"}).state_dict()
    folder = write_monai_bundle(
        tmp_path / "bundle", state, network_def=network, preprocessing={"_target_": "Compose", "transforms": steps},
        inferer={"_target_": "SimpleInferer"},
    )  # fmt: skip
    teacher = MonaiBundle.open(folder, "cpu", None)
    steps.append({"_target_": "Spacingd", "keys": "image", "pixdim": [2.0, 2.0], "max_pixdim": [2.5, 2.5]})
    (folder / "configs" / "inference.json").write_text(
        json.dumps(bundle_config(network_def=network, preprocessing=steps, inferer={"_target_": "SimpleInferer"}))
    )
    assert MonaiBundle.open(folder, "cpu", None).preparation.prepare(a_volume(np.eye(4), (16, 16, 3))).shape[3] == 3
    for shape in ((20, 14, 1), (20, 14, 5)):
        found = teacher.predict(a_volume(np.eye(4), shape))
        assert found.shape == (3, *shape) and found.std() > 0
        np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)


def test_a_broken_archive_is_no_teacher(tmp_path):
    archive = zipped(write_monai_bundle(tmp_path / "bundle"), tmp_path / "bundle.zip")
    data = archive.read_bytes()
    archive.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="is no kind of teacher that is known"):
        kind_of(archive)
    archive.write_bytes(data.replace(b"bundle_root", b"bundle_r00t"))
    with pytest.raises(ValueError, match="is damaged"):
        MonaiBundle.open(archive, "cpu", None)
