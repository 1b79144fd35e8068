"""Auto3DSeg's SegResNet as a teacher: its checkpoint is read as data; it says what the bare network says."""

import numpy as np
import pytest
import torch
from foreign_models import AUTO3DSEG, SEGRESNET, Payload, segresnet, write_auto3dseg

from KnowledgeTransferLib.learning.teachers import Auto3DSeg, kind_of
from KnowledgeTransferLib.learning.volume import Volume
from KnowledgeTransferLib.steps.describe import describe


def a_volume(shape=(8, 8, 8), channels: int = 1) -> Volume:
    array = np.random.default_rng(0).normal(5, 2, (channels, *shape)).astype(np.float32)
    return Volume(array, np.diag([1.0, 2, 3, 1]), "p1")


def by_the_bare_network(image: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return segresnet()(image[None].float()).softmax(1)[0].numpy()


NORMALISED = {
    "none": lambda x: x,
    "meanstd": lambda x: (x - x.mean()) / x.std(correction=0),
    "meanstdtanh": lambda x: 3 * torch.tanh((x - x.mean()) / x.std(correction=0) / 3),
    "range": lambda x: torch.sigmoid((x + 3) / 3 - 1),
    "pet": lambda x: torch.sigmoid((x - x.min()) / x.std()),
}


@pytest.mark.parametrize("mode", NORMALISED)
def test_it_gives_what_its_network_gives_for_each_normalisation(tmp_path, mode):
    teacher = Auto3DSeg.open(write_auto3dseg(tmp_path / "model", normalize_mode=mode), "cpu", None)
    expected = by_the_bare_network(NORMALISED[mode](torch.from_numpy(a_volume().array)))
    np.testing.assert_allclose(teacher.predict(a_volume()), expected, atol=1e-3)


def test_the_extensions_folder_and_the_bare_checkpoint_are_recognised(tmp_path):
    folder = write_auto3dseg(tmp_path / "model")
    assert kind_of(folder) is Auto3DSeg and kind_of(folder / "model.pt") is Auto3DSeg
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    assert not Auto3DSeg.recognises(tmp_path / "other.pt")


def test_names_come_from_labels_csv_then_from_the_configuration_then_they_are_numbers(tmp_path):
    with_csv = write_auto3dseg(tmp_path / "a", {0: "background", 1: "left_kidney", 2: "right_kidney"})
    assert [s["name"] for s in describe(with_csv)["structures"]] == ["left kidney", "right kidney"]
    assert [s["name"] for s in describe(write_auto3dseg(tmp_path / "b"))["structures"]] == ["liver", "spleen"]
    found = describe(write_auto3dseg(tmp_path / "c", class_names=None))
    assert [s["name"] for s in found["structures"]] == ["structure 1", "structure 2"]
    assert (found["modality"], found["channels"], found["risk"]) == ("MR", 1, "")


def test_a_wrong_labels_csv_is_told(tmp_path):
    folder = write_auto3dseg(tmp_path / "model")
    (folder / "labels.csv").write_text("Value,Label\n1,liver\n")
    with pytest.raises(ValueError, match="labels.csv: has no columns LabelValue and Name"):
        describe(folder)


def test_overlapping_tumour_channels_are_painted_as_the_extension_paints_them(tmp_path):
    names = {1: "necrosis", 2: "edema", 3: "enhancing tumor"}
    folder = write_auto3dseg(tmp_path / "model", names, sigmoid=True)
    teacher = Auto3DSeg.open(folder, "cpu", None)
    assert teacher.labels.names == ("edema", "necrosis", "enhancing tumor") and teacher.labels.values == (0, 2, 1, 3)
    assert teacher.predict(a_volume()).shape == (4, 8, 8, 8)


def test_each_channel_of_several_has_a_normalisation_of_its_own(tmp_path):
    folder = write_auto3dseg(
        tmp_path / "model", network={"in_channels": 2}, extra_modalities={"image2": "ct"}, normalize_mode="none"
    )
    teacher, volume = Auto3DSeg.open(folder, "cpu", None), a_volume(channels=2)
    image = teacher.preparation.prepare(volume)
    np.testing.assert_allclose(image[0], volume.array[0], atol=1e-6)
    np.testing.assert_allclose(image[1], NORMALISED["range"](torch.from_numpy(volume.array[1])), atol=1e-6)
    with pytest.raises(ValueError, match="has 1 channels; the teacher needs 2"):
        teacher.predict(a_volume())


def test_outside_of_the_cropped_foreground_is_background(tmp_path):
    teacher = Auto3DSeg.open(write_auto3dseg(tmp_path / "model", crop_foreground=True), "cpu", None)
    volume = a_volume((40, 12, 10))
    volume.array[:, 14:] = 0
    found = teacher.predict(volume)
    assert found.shape == (3, 40, 12, 10)
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)
    assert (found[0, 26:] == 1).all() and found[0, :14].max() < 1


def test_a_checkpoint_with_a_payload_is_never_unpickled(tmp_path):
    state = {"config": AUTO3DSEG, "state_dict": segresnet().state_dict(), "more": Payload(tmp_path / "executed")}
    torch.save(state, tmp_path / "model.pt")
    for use in (describe, lambda path: Auto3DSeg.open(path, "cpu", None)):
        with pytest.raises(ValueError, match="is no Auto3DSeg checkpoint of plain weights"):
            use(tmp_path / "model.pt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(("changes", "message"), [
    ({"normalize_mode": "odd"}, "its normalisation 'odd' is not known"),
    ({"network": {**SEGRESNET, "act": "$__import__('os').system('true')"}}, "is not a plain value"),
    ({"network": {**SEGRESNET, "_target_": "os.SegResNetDS"}}, "is not one of MONAI's"),
    ({"roi_size": None}, "incomplete"),
])  # fmt: skip
def test_a_configuration_that_is_not_known_is_refused(tmp_path, changes, message):
    config = {**AUTO3DSEG, **changes}
    torch.save({"config": config, "state_dict": segresnet().state_dict()}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=message):
        Auto3DSeg.open(tmp_path / "model.pt", "cpu", None)
