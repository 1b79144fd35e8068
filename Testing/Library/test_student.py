"""Student: saved and opened as a bundle that MONAI can open too, that notices damage and tells nothing of patients."""

import json
import locale
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from KnowledgeTransferLib.learning.networks import parameters_of
from KnowledgeTransferLib.learning.phantom import write_phantom
from KnowledgeTransferLib.learning.preprocessing import Normalisation, Preprocessing
from KnowledgeTransferLib.learning.student import Student, load_student, new_network, save_student
from KnowledgeTransferLib.learning.volume import Volume
from KnowledgeTransferLib.records import bundle
from KnowledgeTransferLib.records.labels import Labels, Structure
from KnowledgeTransferLib.records.run_directory import read_json, write_json
from KnowledgeTransferLib.records.students import STUDENTS, design_named
from KnowledgeTransferLib.steps.distil import distil

LABELS = Labels((Structure.named("left kidney", 7, (1, 2, 3)), Structure.named("Läsion", 2)))
CARD = {"taught_by": "It learnt from nobody.", "figures": {"mean Dice": 0.5}}
MONAI_REQUIRED = (
    "version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version", "task", "description",
    "authors", "copyright", "network_data_format",
)  # fmt: skip


def a_student(name: str = "tiny", dimensions: int = 3, channels: int = 1) -> Student:
    preprocessing = Preprocessing(dimensions, (1.0, 1.5, 2.0), (Normalisation("z-score"),) * channels)
    design = design_named(name)
    network = new_network(design, preprocessing, LABELS, seed=1).eval()
    torch.nn.init.normal_(list(network.parameters())[-1])
    return Student(network, design, LABELS, preprocessing, CARD)


def a_volume(channels: int = 1, shape=(17, 11, 7)) -> Volume:
    array = np.random.default_rng(0).normal(100, 20, (channels, *shape)).astype(np.float32)
    return Volume(array, np.diag([-1.0, 1.2, 2.5, 1]), "a")


@pytest.fixture
def a_bundle(tmp_path) -> Path:
    save_student(a_student(), tmp_path / "student")
    return tmp_path / "student"


def rewritten(folder: Path, file: str, change) -> None:
    """Change a JSON file of a bundle and its checksum, as somebody who means harm would."""
    content = read_json(folder / file)
    write_json(folder / file, change(content) or content)
    bundle.write_checksums(folder)


@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_student_comes_back_from_its_bundle_with_equal_outputs(tmp_path, name, dimensions):
    student = a_student(name, dimensions, channels=2)
    save_student(student, tmp_path / "student")
    again, volume = load_student(tmp_path / "student"), a_volume(2)
    assert (again.design, again.labels, again.preprocessing) == (student.design, LABELS, student.preprocessing)
    assert (again.card, again.parameters, again.name) == (CARD, student.parameters, "student")
    assert again.footprint == student.values_per_voxel
    np.testing.assert_array_equal(again.predict(volume), student.predict(volume))
    assert student.predict(volume).std() > 0


@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_student_speaks_in_the_geometry_of_the_volume(dimensions):
    student, volume = a_student(dimensions=dimensions), a_volume()
    probabilities, decision = student.predict(volume), student.segment(volume)
    assert probabilities.shape == (3, *volume.shape) and probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-4)
    assert decision.shape == volume.shape and decision.dtype == np.uint8
    first, second = np.sort(probabilities, 0)[[-1, -2]]
    clear = first - second > 1e-5
    np.testing.assert_array_equal(decision[clear], np.array([0, 7, 2])[probabilities.argmax(0)][clear])


def test_looking_at_a_volume_changes_no_weights_and_no_statistics():
    student = a_student()
    before = {k: v.clone() for k, v in student.network.state_dict().items()}
    student.segment(a_volume())
    after = student.network.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_same_seed_gives_the_same_student():
    preprocessing = a_student().preprocessing
    networks = [new_network(design_named("tiny"), preprocessing, LABELS, seed) for seed in (4, 4, 5)]
    first, again, other = (torch.cat([p.flatten() for p in network.parameters()]) for network in networks)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_the_same_student_is_written_with_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        save_student(a_student(), tmp_path / name)
    files = [p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file()]
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)


def test_a_tiny_bundle_is_small_and_holds_what_a_monai_bundle_holds(a_bundle):
    files = {p.relative_to(a_bundle).as_posix(): p.stat().st_size for p in a_bundle.rglob("*") if p.is_file()}
    assert {bundle.METADATA, bundle.INFERENCE, bundle.WEIGHTS, bundle.MODEL_CARD, bundle.CHECKSUMS} == set(files)
    assert sum(files.values()) < 1_000_000
    assert set(read_json(a_bundle / bundle.CHECKSUMS)) == set(files) - {bundle.CHECKSUMS}


def test_the_metadata_has_what_monai_requires(a_bundle):
    from monai.bundle.properties import MetaProperties

    metadata = read_json(a_bundle / bundle.METADATA)
    assert all(key in metadata for key in MONAI_REQUIRED)
    for found in MetaProperties.values():
        content = metadata
        for key in found["id"].removeprefix("_meta_::").split("::"):
            content = content[key]
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"] == {
        "0": "background", "1": "left kidney", "2": "Läsion",
    }  # fmt: skip


@pytest.fixture
def the_users_locale():
    """MONAI opens files in the encoding of the locale, which GDCM sets to C when a test before writes DICOM."""
    locale.setlocale(locale.LC_CTYPE, "")


@pytest.mark.usefixtures("the_users_locale")
@pytest.mark.parametrize("name", STUDENTS)
def test_monai_builds_the_network_and_loads_its_weights(tmp_path, name):
    from monai.bundle import ConfigParser

    student = a_student(name)
    save_student(student, tmp_path / "b")
    parser = ConfigParser()
    parser.read_config(tmp_path / "b" / bundle.INFERENCE)
    parser.read_meta(tmp_path / "b" / bundle.METADATA)
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(safetensors.torch.load_file(tmp_path / "b" / bundle.WEIGHTS))
    image = torch.randn(1, 1, *(2 * network.total_stride,) * 3)
    with torch.no_grad():
        assert torch.equal(network.eval()(image), student.network(image))


@pytest.mark.usefixtures("the_users_locale")
@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.parametrize("dimensions", [2, 3])
def test_the_sizes_that_the_metadata_claims_go_through_the_network(tmp_path, name, dimensions):
    from monai.bundle import verify_net_in_out

    save_student(a_student(name, dimensions, 2), tmp_path / "b")
    files = {"config_file": str(tmp_path / "b" / bundle.INFERENCE), "meta_file": str(tmp_path / "b" / bundle.METADATA)}
    verify_net_in_out("network_def", device="cpu", n=1, **files)


@pytest.mark.parametrize("file", [bundle.WEIGHTS, bundle.METADATA, bundle.INFERENCE, bundle.MODEL_CARD])
def test_a_changed_byte_is_noticed_and_its_file_named(a_bundle, file):
    content = bytearray((a_bundle / file).read_bytes())
    content[-2] ^= 1 if file == bundle.WEIGHTS else 0x2A  # 0x0A or "}" becomes blank or another sign
    if file in (bundle.METADATA, bundle.INFERENCE):
        content[-2] ^= 0x2A
        content.insert(1, ord(" "))
    (a_bundle / file).write_bytes(content)
    with pytest.raises(ValueError, match=f"{file} was changed or damaged"):
        load_student(a_bundle)


@pytest.mark.parametrize("file", [bundle.INFERENCE, bundle.MODEL_CARD])
def test_a_missing_file_is_noticed(a_bundle, file):
    (a_bundle / file).unlink()
    with pytest.raises(ValueError, match=f"the file {file} is missing"):
        load_student(a_bundle)


def test_no_bundle_at_all_is_told(tmp_path, a_bundle):
    for folder in (tmp_path / "nothing", a_bundle / "models"):
        with pytest.raises(FileNotFoundError, match="is not a bundle"):
            load_student(folder)
    (a_bundle / bundle.CHECKSUMS).unlink()
    with pytest.raises(FileNotFoundError, match=r"sha256\.json is missing"):
        load_student(a_bundle)


def test_a_run_directory_stands_for_its_student(a_bundle):
    assert bundle.bundle_in(a_bundle.parent) == bundle.bundle_in(str(a_bundle)) == a_bundle
    assert bundle.bundle_in(a_bundle / "models") == a_bundle / "models"
    assert load_student(a_bundle.parent).parameters == load_student(a_bundle).parameters
    (a_bundle / bundle.WEIGHTS).write_bytes(b"other")
    with pytest.raises(ValueError, match="student: .*was changed or damaged"):
        load_student(a_bundle.parent)


def change_ours(**changes):
    return lambda metadata: metadata[bundle.OURS].update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_ours(format_version=bundle.FORMAT + 1), "made by a newer version of KnowledgeTransfer; update"),
        (change_ours(format_version="1"), "no format version"),
        (lambda m: m.pop(bundle.OURS) and m, "is a MONAI Bundle that KnowledgeTransfer did not make"),
        (lambda m: [m], "did not make"),
        (change_ours(student="evil"), "no student design 'evil'"),
        (change_ours(student="small"), "do not fit together"),
        (change_ours(labels=[{"name": "x", "value": 1}]), "do not fit together"),
        (change_ours(labels="x"), "structures are a list"),
        (change_ours(preprocessing=None), "do not fit together"),
        (
            change_ours(preprocessing={"dimensions": 5, "spacing_mm": [1, 1, 1], "normalisation": []}),
            "2 or 3 dimensions",
        ),
        (
            change_ours(preprocessing={"dimensions": 3, "spacing_mm": [1, 0, 1], "normalisation": []}),
            r"student: spacing_mm is \(1, 0, 1\); three numbers",
        ),
    ],
)
def test_metadata_that_fit_not_are_refused(a_bundle, change, message):
    rewritten(a_bundle, bundle.METADATA, change)
    with pytest.raises(ValueError, match=message):
        load_student(a_bundle)


def test_weights_that_are_none_are_refused_even_with_a_right_checksum(a_bundle):
    (a_bundle / bundle.WEIGHTS).write_bytes(b"\x80\x04rubbish")
    bundle.write_checksums(a_bundle)
    with pytest.raises(ValueError, match="do not fit together"):
        load_student(a_bundle)


@pytest.mark.parametrize("name", ["../../secret.txt", "models/../../../secret.txt", "/etc/hostname", "models/link"])
def test_checksums_lead_to_no_file_outside_the_bundle(tmp_path, a_bundle, name):
    (tmp_path.parent / "secret.txt").write_text("secret")
    (a_bundle / "models" / "link").symlink_to(tmp_path.parent / "secret.txt")
    checksums = read_json(a_bundle / bundle.CHECKSUMS)
    write_json(a_bundle / bundle.CHECKSUMS, {**checksums, name: bundle.sha256(tmp_path.parent / "secret.txt")})
    with pytest.raises(ValueError, match="is missing"):
        load_student(a_bundle)


@pytest.mark.parametrize("content", [{}, [], None, {bundle.METADATA: "0"}])
def test_checksums_that_leave_out_the_weights_are_refused(a_bundle, content):
    write_json(a_bundle / bundle.CHECKSUMS, content)
    with pytest.raises(ValueError, match=f"does not name {bundle.METADATA} and {bundle.WEIGHTS}"):
        load_student(a_bundle)


@pytest.mark.parametrize("shift", [1e9, -1e9, "nan"])
def test_a_shift_that_no_training_makes_is_refused(a_bundle, shift):
    rewritten(a_bundle, bundle.METADATA, change_ours(background_lowered_by=shift))
    with pytest.raises(ValueError, match="background_lowered_by is .*; allowed is -10 to 10"):
        load_student(a_bundle)


def test_nothing_that_a_bundle_says_is_executed(tmp_path, a_bundle):
    def evil(inference):
        inference["network_def"] = {"_target_": "pathlib.Path.touch", "self": str(tmp_path / "ran")}
        inference["imports"] = [f"$open({str(tmp_path / 'ran')!r}, 'w')"]

    rewritten(a_bundle, bundle.INFERENCE, evil)
    rewritten(a_bundle, bundle.METADATA, change_ours(card={"taught_by": "$open('ran', 'w')", "_target_": "os.abort"}))
    (a_bundle / "models" / "model.pt").write_bytes(b"cos\nabort\n(tR.")
    assert load_student(a_bundle).segment(a_volume()).shape == a_volume().shape
    assert not (tmp_path / "ran").exists() and not Path("ran").exists()


def test_a_bundle_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    save_student(a_student(), tmp_path / "student")
    before = bundle.sha256(tmp_path / "student" / bundle.CHECKSUMS)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundle, "write_checksums", fail)
    with pytest.raises(OSError, match="No space left"):
        save_student(a_student("small"), tmp_path / "student")
    assert [p.name for p in tmp_path.iterdir()] == ["student"]
    assert bundle.sha256(tmp_path / "student" / bundle.CHECKSUMS) == before
    assert parameters_of(load_student(tmp_path / "student").network) == a_student().parameters


SECRETS = ("SECRETPATIENT", "SECRETFOLDER", "SECRETGROUP", "SECRETSPLIT", "SECRETCOHORT", "19650403")


@pytest.fixture(scope="module")
def a_secret_cohort(tmp_path_factory) -> Path:
    """A cohort with unmistakable ids, patients, folder, split and dates."""
    folder = tmp_path_factory.mktemp("x") / "SECRETFOLDER_19650403"
    write_phantom(folder, 4, "A", size_voxels=(16, 16, 16))
    lines = (folder / "cohort.csv").read_text().splitlines()
    rows = [line.split(",") for line in lines[1:]]
    for n, row in enumerate(rows):
        for column, kind in ((3, "images"), (4, "labels")):
            (folder / row[column]).rename(folder / kind / f"SECRETPATIENT_19650403_{n}.nii.gz")
        row[:] = [
            f"SECRETPATIENT_19650403_{n}", f"SECRETGROUP_{n}", "SECRETSPLIT",
            f"images/SECRETPATIENT_19650403_{n}.nii.gz", f"labels/SECRETPATIENT_19650403_{n}.nii.gz",
        ]  # fmt: skip
    (folder / "cohort.csv").write_text("\n".join([lines[0], *(",".join(row) for row in rows)]) + "\n")
    dataset = read_json(folder / "dataset.json")
    write_json(folder / "dataset.json", {**dataset, "name": "SECRETCOHORT", "modality": "CT SECRETCOHORT"})
    return folder


def tells(folder: Path, run: Path) -> list[str]:
    """Which secrets, paths or dates stand in any file or file name of a bundle."""
    from datetime import datetime, timezone

    today = datetime.now(timezone.utc)
    words = [*SECRETS, str(run), str(run.parent), "/tmp", str(today.date()), today.strftime("%Y%m%d")]
    found = []
    for path in folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        text = content + path.relative_to(folder).as_posix().encode()
        found += [f"{word} in {path.name}" for word in words if word.lower().encode() in text.lower()]
    return found


def test_a_finished_bundle_tells_nothing_of_the_cohort(a_secret_cohort, tmp_path):
    first = tmp_path / "SECRETFOLDER_teacher"
    result = distil(first, a_secret_cohort, annotations="expert", epochs=1, batch_size=2)
    assert "SECRETPATIENT" in (first / "cohort.json").read_text(), "the secrets were never there"
    assert tells(Path(result["student"]), first) == []

    second = tmp_path / "SECRETFOLDER_student"
    result = distil(second, a_secret_cohort, annotations="expert", epochs=1, batch_size=2, start_from=result["student"])
    assert "SECRETFOLDER_teacher" in (second / "settings.json").read_text()
    assert tells(Path(result["student"]), second) == []
    assert "it started from a bundle" in (second / "student" / bundle.MODEL_CARD).read_text()


def test_a_student_of_pseudo_annotations_tells_nothing_of_teacher_and_cohort(a_secret_cohort, tmp_path):
    from KnowledgeTransferLib.steps.annotate import annotate

    teacher = tmp_path / "SECRETFOLDER_teacher_19650403"
    save_student(_student_of_phantoms(), teacher)
    run = tmp_path / "SECRETFOLDER_run"
    annotate(run, a_secret_cohort, {str(teacher): 1.0})
    result = distil(run, epochs=1, batch_size=2)
    assert tells(Path(result["student"]), run) == []
    card = json.loads((run / "student" / bundle.METADATA).read_text())[bundle.OURS]["card"]
    assert bundle.sha256(teacher / bundle.WEIGHTS)[:12] in card["taught_by"]
    assert "on 4 images" in card["taught_by"]


def _student_of_phantoms() -> Student:
    from KnowledgeTransferLib.learning.phantom import LABELS as ORGANS

    preprocessing = Preprocessing(3, (20.0, 20.0, 12.5), (Normalisation("ct", -200, 200, 50, 50),))
    design = design_named("tiny")
    network = new_network(design, preprocessing, ORGANS, seed=0).eval()
    return Student(network, design, ORGANS, preprocessing)
