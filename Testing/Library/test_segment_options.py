"""How a student is run: backend, mirror images, largest components, memory; named in the log, refused with advice."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from KnowledgeTransferLib.learning import memory
from KnowledgeTransferLib.learning.backends import is_there
from KnowledgeTransferLib.learning.components import largest_components
from KnowledgeTransferLib.learning.networks import build_network
from KnowledgeTransferLib.learning.preprocessing import Normalisation, Preprocessing
from KnowledgeTransferLib.learning.student import How, Student, load_student, save_student
from KnowledgeTransferLib.learning.volume import Volume, read_annotation, write_image
from KnowledgeTransferLib.records.labels import Labels
from KnowledgeTransferLib.records.students import design_named

REPOSITORY = Path(__file__).parents[2]


def a_student(design: str = "tiny", classes: int = 3, spacing_mm=(1.0, 1.0, 1.0), **card) -> Student:
    """An untrained one with regions of every class."""
    torch.manual_seed(0)
    network = build_network(design_named(design), 3, 1, classes).eval()
    labels = Labels.from_names({value: f"structure {value}" for value in range(1, classes)})
    window = Normalisation("ct", -1000, 1000, 0, 300)
    return Student(network, design_named(design), labels, Preprocessing(3, spacing_mm, (window,)), card)


def a_volume(*shape) -> Volume:
    array = np.random.default_rng(0).integers(-800, 800, (1, *shape)).astype(np.int16)
    return Volume(np.asfortranarray(array), np.eye(4), "scan")


@pytest.fixture
def an_image(a_foreign_cohort) -> Path:
    return sorted((a_foreign_cohort / "images").iterdir())[0]


def test_the_log_names_the_backend(command, a_teacher, an_image, tmp_path):
    done = command("segment", a_teacher, an_image, tmp_path / "a.nii.gz", "--backend", "torch")
    start = next(event for event in done.events if event["event"] == "start")
    assert start["backend"] == f"torch {torch.__version__} on cpu, f32"


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_every_backend_writes_the_same_segmentation(command, a_teacher, an_image, tmp_path, name):
    if not is_there(name):
        pytest.skip(f"{name} is not installed")
    files = {backend: tmp_path / f"{backend}.nii.gz" for backend in ("torch", name)}
    for backend, file in files.items():
        assert command("segment", a_teacher, an_image, file, "--overwrite", "--backend", backend).status == 0
    first, second = (read_annotation(file) for file in files.values())
    assert (first != second).mean() <= 1e-4 and first.any()


def test_a_backend_that_is_absent_is_refused_with_what_to_install(command, a_teacher, an_image, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = command("segment", a_teacher, an_image, tmp_path / "a.nii.gz", "--backend", "onnxruntime")
    assert done.status == 2
    assert "the backend onnxruntime is not installed; pip install onnx onnxruntime" in done.messages


def test_mirror_images_are_refused_by_a_student_that_does_not_know_them(command, a_teacher, an_image, tmp_path):
    done = command("segment", a_teacher, an_image, tmp_path / "a.nii.gz", "--mirror")
    assert done.status == 2
    assert "was trained without mirror images, and would not know them; leave out --mirror" in done.messages


def test_mirror_images_are_averaged_along_the_axes_of_the_training():
    student, volume = a_student(settings={"mirror_axes": [0]}), a_volume(24, 18, 16)
    plain = student.predict(volume)
    mirrored = Volume(np.ascontiguousarray(volume.array[:, ::-1]), volume.affine)
    student.run_as(How(mirror=True))
    both = student.predict(volume)
    np.testing.assert_allclose(both, student.predict(mirrored)[:, ::-1], atol=1e-5)
    assert np.abs(both - plain).max() > 1e-4


def test_only_the_largest_part_of_each_structure_stays():
    labels = np.zeros((12, 9, 8), np.uint8)
    labels[0:3, 0:3, 0:3], labels[5:7, 0:3, 0:3] = 1, 1
    labels[0:2, 6:8, 0:2], labels[3:9, 6:8, 0:2] = 7, 7
    labels[2, 5, 2] = 7  # touches the first part with an edge alone
    found = largest_components(labels.copy())
    assert (found[0:3, 0:3, 0:3] == 1).all() and (found == 1).sum() == 27
    assert (found[3:9, 6:8, 0:2] == 7).all() and (found == 7).sum() == 24
    np.testing.assert_array_equal(found[found > 0], labels[found > 0])


def test_largest_component_is_an_option(command, a_teacher, an_image, tmp_path):
    from scipy import ndimage

    assert command("segment", a_teacher, an_image, tmp_path / "a.nii.gz", "--largest-component").status == 0
    found = read_annotation(tmp_path / "a.nii.gz")
    assert all(ndimage.label(found == value)[1] == 1 for value in np.unique(found[found > 0]))


@pytest.mark.parametrize("limit", [3000, 40000])
def test_little_memory_gives_the_same_labels(monkeypatch, limit):
    student, volume = a_student(spacing_mm=(1.7, 1.3, 1.0)), a_volume(70, 52, 34)
    whole = student.segment(volume)
    monkeypatch.setattr("KnowledgeTransferLib.learning.student.fitting_voxels", lambda *_: limit)
    assert len(np.unique(whole)) > 1
    np.testing.assert_array_equal(student.segment(volume), whole)


@pytest.mark.parametrize("text", ["0", "-1", "much", "nan"])
def test_a_memory_that_is_no_size_is_refused(command, a_teacher, an_image, tmp_path, text):
    done = command("segment", a_teacher, an_image, tmp_path / "a.nii.gz", f"--max-memory={text}")
    assert done.status == 2 and "is no size; give a number of GiB above 0" in done.text


def test_a_volume_that_does_not_fit_says_what_would(command, a_teacher, an_image, tmp_path):
    done = command("segment", a_teacher, an_image, tmp_path / "a.nii.gz", "--max-memory", "0.1")
    assert done.status == 2
    expected = r"segmenting it needs \d\.\d\d GiB of memory beside what is in use, and 0\.00 GiB may be taken"
    assert re.search(expected, done.messages)
    enough = re.search(r"--max-memory (\d+\.\d\d) would do", done.messages)[1]
    more = float(enough) + 0.05  # for what the process holds by then
    assert command("segment", a_teacher, an_image, tmp_path / "a.nii.gz", "--max-memory", more).status == 0


def test_probabilities_that_do_not_fit_are_refused_before_they_are_made():
    student, volume = a_student(), a_volume(20, 18, 16)
    huge = Volume(np.broadcast_to(volume.array, (1, 20, 18, 16)), volume.affine, "scan")
    student.how = How(most_bytes=1)
    with pytest.raises(ValueError, match=r"scan: holding its 3 class probabilities needs 0\.00 GiB of memory"):
        student.predict(huge)


def test_the_estimate_of_the_memory_grows_with_classes_and_width():
    few, many = memory.bytes_per_voxel(a_student(classes=3)), memory.bytes_per_voxel(a_student(classes=100))
    assert few < 100 and many > 1000
    assert memory.bytes_per_voxel(a_student("s2")) > 4 * memory.bytes_per_voxel(a_student("small"))


PEAK = """
import json, re, sys
from pathlib import Path
from KnowledgeTransferLib.__main__ import main
status = main(sys.argv[1:])
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]
sys.stderr.write(json.dumps({"status": status, "peak_mib": int(peak) / 1024}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize(("backend", "limit"), [("auto", 0.72), ("torch", 0.9)])
def test_the_memory_stays_within_the_limit(tmp_path, backend, limit):
    """A CT of 2000 slices in 4 GB, scaled down: without a limit the same command takes more."""
    save_student(a_student("small", classes=40, spacing_mm=(1.5, 1.5, 1.5)), tmp_path / "bundle")
    array = np.random.default_rng(0).integers(-800, 800, (224, 224, 300)).astype(np.int16)
    write_image(tmp_path / "scan.nii", array, np.eye(4))
    peaks = {}
    for gib in (limit, 8):
        files = [tmp_path / "bundle", tmp_path / "scan.nii", tmp_path / f"{gib}.nii.gz"]
        command = ["segment", *files, "--max-memory", gib, "--backend", backend]
        done = subprocess.run(
            [sys.executable, "-c", PEAK, *map(str, command)],
            cwd=REPOSITORY, capture_output=True, encoding="utf-8", check=True,
        )  # fmt: skip
        told = json.loads(done.stderr.splitlines()[-1])
        assert told["status"] == 0, done.stdout
        peaks[gib] = told["peak_mib"]
    assert peaks[limit] < limit * 1024 * 1.05 < peaks[8]
    np.testing.assert_array_equal(read_annotation(tmp_path / f"{limit}.nii.gz"), read_annotation(files[-1]))


def test_a_changed_way_of_running_opens_the_backend_anew(a_teacher):
    student = load_student(a_teacher)
    first = student.runner
    assert student.run_as(How(largest_component=True)).runner is first
    assert student.run_as(How("torch", "bf16")).runner is not first


@pytest.mark.parametrize("shape", [(6, 5, 4), (1, 2, 3), (40, 3, 9)])
def test_a_volume_smaller_than_the_network_sees_is_padded(shape):
    student, volume = a_student(), a_volume(*shape)
    found = student.segment(volume)
    assert found.shape == shape
    np.testing.assert_array_equal(found, student.predict(volume).argmax(0))
