"""Exported teachers: TorchScript, torch.export and ONNX with a teacher.json; what they say equals the bare network."""

import errno
import json
import zipfile

import numpy as np
import pytest
import torch
from foreign_models import (
    HAS_ONNX,
    SIDECAR,
    Payload,
    a_network,
    an_example,
    write_onnx,
    write_sidecar,
    write_torch_export,
    write_torchscript,
)
from torch import nn

from KnowledgeTransferLib.learning.archive import (
    LARGEST_CODE_BYTES,
    REACHES_OUT,
    SMALL_BYTES,
    read_member,
    torchscript_risk,
)
from KnowledgeTransferLib.learning.teachers import (
    Onnx,
    TorchExport,
    TorchScript,
    kind_of,
    remember_trust,
    risk_of,
    sidecar,
)
from KnowledgeTransferLib.learning.volume import Volume
from KnowledgeTransferLib.steps.describe import describe

SHAPE = (12, 10, 9)


def a_volume(affine=None, shape=SHAPE) -> Volume:
    array = np.random.default_rng(0).normal(100, 30, (1, *shape)).astype(np.int16)
    return Volume(array, np.diag([1.0, 2, 3, 1]) if affine is None else affine, "p1")


def z_scored(array: np.ndarray) -> torch.Tensor:
    low, high = np.percentile(array, (0.5, 99.5))
    clipped = np.clip(array.astype(np.float32), low, high)
    return torch.from_numpy((clipped - clipped.mean()) / clipped.std()).float()


def by_the_bare_network(volume: Volume) -> np.ndarray:
    return a_network()(z_scored(volume.array)[None]).softmax(1)[0].numpy()


with_onnx = pytest.mark.skipif(not HAS_ONNX, reason="the packages onnx and onnxruntime are not installed")
FORMATS = [write_torchscript, write_torch_export, pytest.param(write_onnx, marks=with_onnx, id="write_onnx")]


@pytest.mark.parametrize("write", FORMATS, ids=lambda write: getattr(write, "__name__", None))
def test_each_format_gives_what_the_bare_network_gives(tmp_path, write):
    path = write(tmp_path / "model")
    write_sidecar(path.parent, patch_size_voxels=[8, 8, 8] if write is write_torch_export else None)
    remember_trust(path)
    volume = a_volume(shape=(8, 8, 8))
    found = kind_of(path).open(path, "cpu", None).predict(volume)
    np.testing.assert_allclose(found, by_the_bare_network(volume), atol=1e-4)


def test_a_scan_that_lies_otherwise_gets_the_same_probabilities_turned(tmp_path):
    teacher = TorchScript.open(write_torchscript(tmp_path / "model", patch_size_voxels=None), "cpu", None)
    straight = a_volume()
    turned = np.array([[0, 0, -1, 0], [0, -2, 0, 0], [3, 0, 0, 0], [0, 0, 0, 1.0]])
    array = np.flip(straight.array, (1, 2)).transpose(0, 3, 2, 1)
    found = teacher.predict(Volume(np.ascontiguousarray(array), turned, "turned"))
    back = np.flip(found.transpose(0, 3, 2, 1), (1, 2))
    assert found.shape == (3, 9, 10, 12)
    np.testing.assert_allclose(back, teacher.predict(straight), atol=1e-4)


def test_windows_agree_with_the_whole_image_away_from_their_borders(tmp_path):
    path, volume = write_torchscript(tmp_path / "model"), a_volume(shape=(20, 18, 16))
    in_windows = TorchScript.open(path, "cpu", None).predict(volume)
    write_sidecar(path.parent, patch_size_voxels=None)
    whole = TorchScript.open(path, "cpu", None).predict(volume)
    assert np.abs(in_windows - whole).mean() < 0.01
    assert (in_windows.argmax(0) == whole.argmax(0)).mean() > 0.98


def test_a_spacing_of_its_own_comes_back_to_the_grid_of_the_volume(tmp_path):
    path = write_torchscript(tmp_path / "model", spacing_mm=[2.0, 2.0, 2.0])
    found = TorchScript.open(path, "cpu", None).predict(a_volume())
    assert found.shape == (3, *SHAPE) and found.dtype == np.float32
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)


def test_a_network_of_pictures_goes_slice_by_slice(tmp_path):
    (tmp_path / "model").mkdir()
    path = tmp_path / "model" / "slices.pt"
    torch.jit.script(a_network(2)).save(path)
    write_sidecar(path.parent, dimensions=2, spacing_mm=None, patch_size_voxels=None)
    teacher, volume = TorchScript.open(path, "cpu", None), a_volume()
    found = teacher.predict(volume)
    slices = z_scored(volume.array).permute(3, 0, 1, 2)
    expected = a_network(2)(slices).softmax(1).permute(1, 2, 3, 0)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert teacher.predict(a_volume(np.eye(4), (16, 12, 1))).shape == (3, 16, 12, 1)


def test_a_network_of_pictures_keeps_the_distance_of_slices(tmp_path):
    (tmp_path / "model").mkdir()
    path = tmp_path / "model" / "slices.pt"
    torch.jit.script(a_network(2)).save(path)
    write_sidecar(path.parent, dimensions=2, spacing_mm=[2.0, 2.0], patch_size_voxels=None)
    teacher, volume = TorchScript.open(path, "cpu", None), a_volume()
    assert teacher.preparation.prepare(volume).shape[1:] == (6, 10, 9)
    assert teacher.predict(volume).shape == (3, *SHAPE)


def test_overlapping_structures_are_painted_one_over_the_other(tmp_path):
    path = write_torchscript(
        tmp_path / "model", a_network(outputs=2), activation="sigmoid", background=False, patch_size_voxels=None
    )
    volume = a_volume()
    p = a_network(outputs=2)(z_scored(volume.array)[None]).sigmoid()[0].numpy()
    found = TorchScript.open(path, "cpu", None).predict(volume)
    np.testing.assert_allclose(found[2], p[1], atol=1e-4)
    np.testing.assert_allclose(found[1], p[0] * (1 - p[1]), atol=1e-4)
    np.testing.assert_allclose(found[0], (1 - p[0]) * (1 - p[1]), atol=1e-4)


def test_a_network_with_other_outputs_than_structures_is_told(tmp_path):
    teacher = TorchScript.open(write_torchscript(tmp_path / "model", a_network(outputs=5)), "cpu", None)
    with pytest.raises(ValueError, match=r"gives an array \(1, 5, 8, 8, 8\); for its structures it must be \(1, 3,"):
        teacher.predict(a_volume())


@pytest.mark.parametrize(("normalisation", "expected"), [
    ({"kind": "none"}, lambda a: a),
    ({"kind": "ct", "low": 50, "high": 120, "mean": 90, "deviation": 20}, lambda a: (np.clip(a, 50, 120) - 90) / 20),
    ({"kind": "range", "low": 40, "high": 140}, lambda a: np.clip((a - 40) / 100, 0, 1)),
    ({"kind": "range", "low": 40, "high": 140, "to": [-1, 1]}, lambda a: np.clip((a - 40) / 50 - 1, -1, 1)),
    ({"kind": "mean-deviation"}, lambda a: (a - a.mean()) / a.std()),
])  # fmt: skip
def test_each_normalisation_does_what_it_says(tmp_path, normalisation, expected):
    path = write_torchscript(tmp_path / "model", normalisation=normalisation, patch_size_voxels=None)
    volume, teacher = a_volume(), TorchScript.open(path, "cpu", None)
    image = teacher.preparation.prepare(volume)
    np.testing.assert_allclose(image.numpy(), expected(volume.array.astype(np.float32)), atol=1e-4)


def test_without_a_sidecar_the_message_says_how_to_get_one(tmp_path):
    path = write_torchscript(tmp_path / "model")
    (path.parent / "teacher.json").unlink()
    with pytest.raises(FileNotFoundError, match="describe --template .* writes teacher.json beside it"):
        TorchScript.open(path, "cpu", None)


def test_what_is_missing_is_told_with_the_file_where_it_belongs(tmp_path):
    path, events = write_torchscript(tmp_path / "model"), []
    (path.parent / "teacher.json").unlink()
    with pytest.raises(FileNotFoundError):
        describe(path, listener=events.append)
    describe(path, template=True)
    with pytest.raises(ValueError, match="is a template still"):
        describe(path, listener=events.append)
    told = [(event["event"], event["sidecar"]) for event in events]
    assert told == [("error", str(path.parent / "teacher.json"))] * 2


def test_where_a_template_cannot_be_written_the_message_says_what_to_do(tmp_path, monkeypatch):
    path = write_torchscript(tmp_path / "model")
    (path.parent / "teacher.json").unlink()

    def refuse(file, content):
        raise PermissionError(errno.EACCES, "Permission denied", str(file))

    monkeypatch.setattr(sidecar, "write_json", refuse)
    with pytest.raises(OSError, match=r"teacher.json: cannot be written \(Permission denied\). Copy the network to a"):
        describe(path, template=True)


@with_onnx
def test_a_template_is_refused_until_it_is_filled_in_and_never_overwritten(tmp_path):
    path = write_onnx(tmp_path / "model")
    (path.parent / "teacher.json").unlink()
    file = Onnx.template(path)
    content = json.loads(file.read_text())
    assert len(content["structures"]) == 2 and content["channels"] == 1 and content["dimensions"] == 3
    with pytest.raises(ValueError, match="is a template still"):
        Onnx.open(path, "cpu", None)
    file.write_text(json.dumps({**content, "filled_in": True, "patch_size_voxels": [8, 8, 8]}))
    assert Onnx.open(path, "cpu", None).predict(a_volume()).shape == (3, *SHAPE)
    with pytest.raises(FileExistsError, match="is there already"):
        Onnx.template(path)


def test_several_networks_in_one_folder_have_sidecars_of_their_own(tmp_path):
    path = write_torchscript(tmp_path / "model")
    other = [{"name": "left", "value": 1}, {"name": "right", "value": 2}]
    (path.parent / "model.teacher.json").write_text(json.dumps({**SIDECAR, "structures": other}))
    assert TorchScript.open(path, "cpu", None).labels.names == ("left", "right")


@pytest.mark.parametrize(("changes", "message"), [
    ({"structures": []}, "names no structure"),
    ({"activation": "tanh"}, "activation is 'tanh'; allowed are softmax, sigmoid, none"),
    ({"spacing_mm": [1, -1, 1]}, "spacing_mm is .* 3 numbers above 0 are needed"),
    ({"spacing_mm": 1.0}, "spacing_mm is 1.0"),
    ({"spacing_mm": [1, 1, 1, 1]}, "spacing_mm is .* 3 numbers above 0 are needed"),
    ({"filled_in": "false"}, "filled_in is 'false'; allowed are True, False"),
    ({"patch_size_voxels": [8.7, 8, 8]}, "patch_size_voxels is 8.7; a whole number"),
    ({"orientation": "RAX"}, "orientation is 'RAX'; three letters"),
    ({"orientation": "RRS"}, "orientation is 'RRS'; three letters"),
    ({"normalisation": "z-score"}, "normalisation is 'z-score'; known kinds are none, z-score, ct"),
    ({"normalisation": {"kind": "ct", "low": 0}}, "ct needs the numbers low, high, mean, deviation"),
    ({"patch_size_voxels": [0, 8, 8]}, "patch_size_voxels is"),
    ({"overlap": 1.0}, "overlap is 1.0"),
    ({"dimensions": 4}, "dimensions is 4; allowed are 2, 3"),
    ({"background": 1}, "background is 1; allowed are True, False"),
    ({"channels": 0}, "channels is 0"),
    ({"spacing": [1, 1, 1]}, "spacing is not known; known are"),
    ({"format_version": 2}, "has the format version 2"),
])  # fmt: skip
def test_a_wrong_sidecar_is_refused_with_its_file_and_what_is_wrong(tmp_path, changes, message):
    path = tmp_path / "model.ts"
    torch.jit.trace(a_network(), an_example()).save(path)
    write_sidecar(tmp_path, **changes)
    with pytest.raises(ValueError, match=f"teacher.json: .*{message}"):
        TorchScript.open(path, "cpu", None)


def test_a_sidecar_that_lacks_something_names_it(tmp_path):
    path = write_torchscript(tmp_path / "model")
    content = {k: v for k, v in SIDECAR.items() if k != "activation"}
    (path.parent / "teacher.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="lacks 'activation'"):
        describe(path)


class ReadsAFile(nn.Module):
    class Plain(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x, x], 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.from_file("/etc/hostname", False, 4, dtype=torch.uint8).float().sum()


def test_torchscript_that_reaches_files_is_opened_only_when_trusted(tmp_path):
    path = tmp_path / "model.ts"
    torch.jit.script(ReadsAFile()).save(path)
    write_sidecar(tmp_path)
    assert "torch.from_file" in risk_of(path)
    with pytest.raises(PermissionError, match="give --trust once"):
        TorchScript.open(path, "cpu", None)
    remember_trust(path)
    assert risk_of(path) == "" and TorchScript.open(path, "cpu", None)


@pytest.mark.parametrize("code", [
    'getattr(torch, "from_file")("x", False, 4)', "t = torch\n", "ops.aten.from_file(1)", "torch . save(x)",
    "torch.classes.a.B()", "torch.\\\nsave(x)", "ops.image.read_file(x)",
])  # fmt: skip
def test_no_other_way_of_writing_reaches_files_unseen(code):
    assert REACHES_OUT.search(code.encode())


SAVES = 'torch.save(x, "{0}")'
SNEAKY = {
    "a comment between two words": ("(torch. # c\n      save(x, '{0}'))", lambda name, evil, good: [(name, evil)]),
    "capitals in its ending": (SAVES, lambda name, evil, good: [(name.replace(".py", ".PY"), evil)]),
    "twice the same name": (SAVES, lambda name, evil, good: [(name, evil), (name, good)]),
    "twice but for capitals": (SAVES, lambda name, evil, good: [(name.replace(".py", ".Py"), evil), (name, good)]),
    "more than is looked at": ("x\n" + "#" * (LARGEST_CODE_BYTES + 1), lambda name, evil, good: [(name, evil)]),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("way", SNEAKY)
def test_code_that_is_hidden_in_the_archive_is_run_only_when_trusted(tmp_path, way):
    plain, path, harm = tmp_path / "plain.pt", tmp_path / "model.pt", tmp_path / "harm"
    torch.jit.script(ReadsAFile.Plain()).save(plain)
    line, members = SNEAKY[way]
    with zipfile.ZipFile(plain) as given, zipfile.ZipFile(path, "w") as changed:
        for name in given.namelist():
            content = given.read(name)
            evil = content.replace(b"    return", f"    {line.format(harm)}\n    return".encode())
            for member in members(name, evil, content) if name.endswith(".py") else [(name, content)]:
                changed.writestr(*member)
    write_sidecar(tmp_path)
    assert risk_of(path)
    with pytest.raises(PermissionError, match="give --trust once"):
        TorchScript.open(path, "cpu", None)
    assert not harm.exists()


def test_what_cannot_be_looked_at_is_not_taken_for_harmless(tmp_path):
    (tmp_path / "model.ts").write_bytes(b"PK\x03\x04 no archive")
    assert "cannot be looked at" in torchscript_risk(tmp_path / "model.ts")


def test_a_member_that_unpacks_to_much_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("weights", bytes(SMALL_BYTES + 1))
        archive.writestr("small", bytes(1000))
    with pytest.raises(ValueError, match="weights is larger than"):
        read_member(tmp_path / "bomb.zip", "weights")
    assert read_member(tmp_path / "bomb.zip", "small") == bytes(1000)


@pytest.mark.parametrize("code", ["torch.conv3d(x)", "ops.prim.is_cuda(x)", "__torch__.torch.nn.functional.relu(x)"])
def test_ordinary_words_of_torchscript_are_let_through(code):
    assert not REACHES_OUT.search(code.encode())


def test_ordinary_torchscript_needs_no_trust(tmp_path):
    assert risk_of(write_torchscript(tmp_path / "model")) == ""


def test_torch_export_is_opened_only_when_trusted_and_again_when_it_changed(tmp_path):
    path = write_torch_export(tmp_path / "model")
    with pytest.raises(PermissionError, match="reads pickled objects"):
        TorchExport.open(path, "cpu", None)
    assert remember_trust(path) and not remember_trust(path)
    assert TorchExport.open(path, "cpu", None).labels.names == ("liver", "spleen")
    write_sidecar(path.parent, overlap=0.5)
    with pytest.raises(PermissionError, match="give --trust once"):
        TorchExport.open(path, "cpu", None)


def test_describing_opens_no_network(tmp_path):
    path = write_torch_export(tmp_path / "model")
    found = describe(path)
    assert (found["kind"], found["channels"], len(found["structures"])) == ("torch-export", 1, 2)


@with_onnx
def test_the_checksum_holds_for_weights_beside_the_network_under_any_name(tmp_path):
    path, weights = tmp_path / "model.onnx", tmp_path / "weights of it.bin"
    path.write_bytes(b"...location\x00weights of it.bin...")
    weights.write_bytes(b"1")
    before = Onnx.sha256(path)
    (tmp_path / "other.bin").write_bytes(b"2")
    assert Onnx.sha256(path) == before
    weights.write_bytes(b"2")
    assert Onnx.sha256(path) != before
    path.write_bytes(b"")
    assert Onnx.sha256(path) != before


def test_a_damaged_network_is_told_with_its_file(tmp_path):
    onnx, script = write_onnx(tmp_path / "onnx"), write_torchscript(tmp_path / "script")
    onnx.write_bytes(b"\0" * 64)
    with zipfile.ZipFile(script, "w") as archive:
        archive.writestr("model/constants.pkl", b"nothing")
    for path in (onnx, script):
        with pytest.raises(ValueError, match=f"{path.name}: cannot be opened as"):
            kind_of(path).open(path, "cpu", None)


def test_the_command_line_writes_a_template_and_asks_for_trust(command, tmp_path, a_phantom_cohort):
    path = write_torch_export(tmp_path / "model")
    (path.parent / "teacher.json").unlink()
    assert command("annotate", "--describe", path).status == 0
    assert command("describe", path, "--template").status == 2  # it is there already
    write_sidecar(path.parent, spacing_mm=None)
    assert "reads pickled objects" in command("describe", path).events[0]["risk"]
    annotate = ("annotate", tmp_path / "run", "--cohort", a_phantom_cohort, "--teacher", path)
    refused = command(*annotate)
    assert refused.status == 2 and "give --trust once" in refused.messages
    assert command(*annotate, "--trust").status == 0
    assert command("describe", path).events[0]["risk"] == ""


def test_annotate_without_a_run_directory_says_so(command):
    outcome = command("annotate")
    assert outcome.status == 2 and "needs a run directory" in outcome.messages


def test_kinds_that_need_no_sidecar_get_none(a_teacher):
    with pytest.raises(ValueError, match="needs no teacher.json"):
        describe(a_teacher, template=True)


def test_a_pickled_model_is_no_teacher_and_is_never_unpickled(tmp_path):
    torch.save(Payload(tmp_path / "executed"), tmp_path / "model.pt")
    torch.save(Payload(tmp_path / "executed"), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("model.pt", "old.pt"):
        with pytest.raises(ValueError, match="is no kind of teacher that is known"):
            kind_of(tmp_path / name)
    assert not (tmp_path / "executed").exists()
