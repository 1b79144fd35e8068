"""Teachers: each kind knows its own files; several are one; and how sure they are."""

import json

import numpy as np
import pytest
import torch
from foreign_models import (
    a_totalsegmentator_task,
    write_auto3dseg,
    write_monai_bundle,
    write_nnunet,
    write_onnx,
    write_torch_export,
    write_torchscript,
)

from KnowledgeTransferLib.learning.preprocessing import Normalisation, Preprocessing
from KnowledgeTransferLib.learning.student import Student, new_network, save_student
from KnowledgeTransferLib.learning.teachers import (
    TEACHER_KINDS,
    AnnotationsOnDisk,
    Auto3DSeg,
    Ensemble,
    MonaiBundle,
    NnUnet,
    Onnx,
    OwnBundle,
    TorchExport,
    TorchScript,
    TotalSegmentatorTask,
    confidence_of,
    kind_of,
    remember_trust,
)
from KnowledgeTransferLib.learning.volume import Volume, write_annotation
from KnowledgeTransferLib.records import bundle
from KnowledgeTransferLib.records.cohort import write_names
from KnowledgeTransferLib.records.labels import Labels, Structure
from KnowledgeTransferLib.records.students import design_named

LABELS = Labels((Structure.named("liver", 4), Structure.named("spleen", 2)))
PACKAGES = {NnUnet: "nnunetv2", Onnx: "onnxruntime"}  # optional ones, without which a kind can only be recognised
SHAPE = (6, 5, 4)
AFFINE = np.diag([-1.0, 2, 3, 1])


def a_volume(name: str = "p1", affine=AFFINE) -> Volume:
    return Volume(np.random.default_rng(0).normal(size=(1, *SHAPE)).astype(np.float32), affine, name)


def an_annotation(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.uint8([0, 2, 4]), SHAPE)


@pytest.fixture
def a_folder(tmp_path):
    """Segmentations of p1 (.nii.gz, without names) and a list of the structures."""
    write_annotation(tmp_path / "seg" / "p1.nii.gz", an_annotation(), AFFINE, LABELS)
    write_names(tmp_path / "seg", LABELS)
    return tmp_path / "seg"


@pytest.fixture
def a_bundle(tmp_path):
    preprocessing = Preprocessing(3, (1.0, 2.0, 3.0), (Normalisation("z-score"),))
    design = design_named("tiny")
    network = new_network(design, preprocessing, LABELS, seed=0).eval()
    save_student(Student(network, design, LABELS, preprocessing), tmp_path / "student")
    return tmp_path / "student"


@pytest.fixture
def one_of_each(a_folder, a_bundle, tmp_path, monkeypatch) -> dict:
    """A path of every kind of teacher: a new kind needs an entry here. Those that need trust have it."""
    paths = {
        OwnBundle: a_bundle,
        AnnotationsOnDisk: a_folder,
        MonaiBundle: write_monai_bundle(tmp_path / "MONAI bundle"),
        Auto3DSeg: write_auto3dseg(tmp_path / "auto3dseg"),
        NnUnet: write_nnunet(tmp_path / "nnunet"),
        TorchScript: write_torchscript(tmp_path / "torchscript"),
        TorchExport: write_torch_export(tmp_path / "torch export"),
        Onnx: write_onnx(tmp_path / "onnx"),
        TotalSegmentatorTask: a_totalsegmentator_task(monkeypatch),
    }
    for path in paths.values():
        remember_trust(path)
    return paths


@pytest.mark.parametrize("kind", TEACHER_KINDS, ids=lambda kind: kind.__name__)
def test_each_kind_recognises_its_own_files_and_no_others(one_of_each, kind):
    assert kind_of(one_of_each[kind]) is kind
    assert [other for other, path in one_of_each.items() if kind.recognises(path)] == [kind]


@pytest.mark.parametrize("kind", TEACHER_KINDS, ids=lambda kind: kind.__name__)
def test_a_teacher_of_each_kind_gives_probabilities_in_the_geometry_of_the_volume(one_of_each, kind):
    if kind in PACKAGES:
        pytest.importorskip(PACKAGES[kind])
    teacher = kind.open(one_of_each[kind], "cpu", None)
    assert teacher.labels.names == LABELS.names and teacher.name == one_of_each[kind].name
    assert teacher.network is None or isinstance(teacher.network, torch.nn.Module)
    probabilities = teacher.predict(a_volume())
    assert probabilities.shape == (3, *SHAPE) and probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-4)
    assert probabilities.std() > 0


def test_the_checksum_of_a_bundle_tells_when_it_changed(one_of_each):
    path = one_of_each[OwnBundle]
    before = OwnBundle.sha256(path)
    assert OwnBundle.sha256(path) == before and len(before) == 64
    (path / bundle.WEIGHTS).write_bytes(b"other")
    assert OwnBundle.sha256(path) != before


def test_a_folder_of_segmentations_may_grow(one_of_each):
    path = one_of_each[AnnotationsOnDisk]
    before = AnnotationsOnDisk.sha256(path)
    write_annotation(path / "p9.nii.gz", an_annotation(1), AFFINE, LABELS)
    assert AnnotationsOnDisk.sha256(path) == before


def test_what_is_no_teacher_is_refused_with_a_list_of_the_kinds(tmp_path):
    (tmp_path / "model.pth").write_bytes(b"x")
    (tmp_path / "notes").mkdir()
    for path in (tmp_path / "model.pth", tmp_path / "notes"):
        with pytest.raises(ValueError, match="is no kind of teacher that is known") as error:
            kind_of(path)
        assert all(kind.KIND in str(error.value) for kind in TEACHER_KINDS)
    with pytest.raises(FileNotFoundError, match="no such teacher"):
        kind_of(tmp_path / "nothing")


def test_annotations_on_disk_are_hard_probabilities_in_channel_order(a_folder):
    probabilities = AnnotationsOnDisk.open(a_folder, "cpu", None).predict(a_volume())
    for channel, value in enumerate((0, 4, 2)):
        np.testing.assert_array_equal(probabilities[channel], an_annotation() == value)


def test_annotations_on_disk_of_a_missing_case_are_told(a_folder):
    with pytest.raises(FileNotFoundError, match="seg: holds no segmentation of the case p2"):
        AnnotationsOnDisk.open(a_folder, "cpu", None).predict(a_volume("p2"))


def test_annotations_on_disk_must_lie_where_the_image_lies(a_folder):
    moved = AFFINE.copy()
    moved[0, 3] = 5
    teacher = AnnotationsOnDisk.open(a_folder, "cpu", None)
    with pytest.raises(ValueError, match=r"p1\.nii\.gz: lies up to 5\.00 mm away from p1"):
        teacher.predict(a_volume(affine=moved))
    smaller = Volume(np.zeros((1, 6, 5, 3)), AFFINE, "p1")
    with pytest.raises(ValueError, match="has 6 x 5 x 4 voxels, but p1 has 6 x 5 x 3"):
        teacher.predict(smaller)


def test_annotations_on_disk_with_unknown_values_are_refused(a_folder):
    write_annotation(a_folder / "p1.nii.gz", an_annotation() + 5, AFFINE, LABELS)
    with pytest.raises(ValueError, match=r"p1\.nii\.gz: unknown label values"):
        AnnotationsOnDisk.open(a_folder, "cpu", None).predict(a_volume())


def test_names_come_from_the_list_then_from_a_segmentation_then_from_the_cohort(tmp_path):
    folder, others = tmp_path / "seg", Labels.from_names({2: "a", 4: "b"})
    write_annotation(folder / "p1.nii.gz", an_annotation(), AFFINE, LABELS)
    assert AnnotationsOnDisk.open(folder, "cpu", None).labels.names == ("structure 2", "structure 4")
    assert AnnotationsOnDisk.open(folder, "cpu", others).labels == others
    write_annotation(folder / "p1.seg.nrrd", an_annotation(), AFFINE, LABELS)
    assert AnnotationsOnDisk.open(folder, "cpu", others).labels == LABELS
    (folder / "dataset.json").write_text(json.dumps({"labels": {"2": "x", "4": "y"}}))
    assert AnnotationsOnDisk.open(folder, "cpu", others).labels.names == ("x", "y")


class Fixed:
    """A teacher that always says the same."""

    network = None

    def __init__(self, labels: Labels, probabilities: np.ndarray, name: str = "fixed"):
        self.labels, self.probabilities, self.name = labels, probabilities.astype(np.float32), name

    def predict(self, volume: Volume) -> np.ndarray:
        return self.probabilities


def soft(seed: int, classes: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(classes), SHAPE).transpose(3, 0, 1, 2)


def test_label_maps_without_names_teach_numbered_structures_with_a_hint(tmp_path):
    folder = tmp_path / "seg"
    for name, seed in (("p1.nii.gz", 0), ("p2.nrrd", 1)):
        write_annotation(folder / name, np.where(an_annotation(seed) == 2, 7 + seed, 0), AFFINE, LABELS)
    (folder / "damaged.nii.gz").write_bytes(b"x")
    teacher = AnnotationsOnDisk.open(folder, "cpu", None)
    assert teacher.labels == Labels.unnamed([7, 8])
    assert teacher.hint.endswith(
        "seg: nothing names the structures structure 7, structure 8; put a dataset.json into it or give --labels"
    )
    np.testing.assert_array_equal(teacher.predict(a_volume())[1], an_annotation() == 2)
    assert Ensemble([teacher, Fixed(teacher.labels, soft(0))], [1, 1]).hint == teacher.hint
    assert AnnotationsOnDisk.open(folder, "cpu", Labels.from_names({7: "a", 8: "b"})).hint == ""


def test_label_maps_that_hold_nothing_are_no_teacher(tmp_path):
    write_annotation(tmp_path / "seg" / "p1.nii.gz", np.zeros(SHAPE), AFFINE, LABELS)
    with pytest.raises(ValueError, match="nothing names the structures, and no value tells them; put a dataset.json"):
        AnnotationsOnDisk.open(tmp_path / "seg", "cpu", None)


def test_a_folder_of_slicers_segmentations_is_a_teacher(tmp_path):
    write_annotation(tmp_path / "seg" / "p1.seg.nrrd", an_annotation(), AFFINE, LABELS)
    kind = kind_of(tmp_path / "seg")
    assert kind is AnnotationsOnDisk
    teacher = kind.open(tmp_path / "seg", "cpu", None)
    np.testing.assert_array_equal(teacher.predict(a_volume())[1], an_annotation() == 4)


def test_a_run_directory_teaches_by_its_student(a_bundle):
    run = a_bundle.parent
    assert kind_of(run) is OwnBundle
    assert OwnBundle.sha256(run) == OwnBundle.sha256(a_bundle)
    teacher = OwnBundle.open(run, "cpu", None)
    assert teacher.name == run.name
    expected = OwnBundle.open(a_bundle, "cpu", None).predict(a_volume())
    np.testing.assert_array_equal(teacher.predict(a_volume()), expected)


def slow_confidence(probabilities: np.ndarray) -> float:
    """Per structure: 2 sum of p inside its decision / (sum of p everywhere + voxels of its decision); the mean."""
    scores = []
    for channel in range(1, len(probabilities)):
        inside, everywhere, size = 0.0, 0.0, 0
        for place in np.ndindex(*probabilities.shape[1:]):
            p = [float(probabilities[(c, *place)]) for c in range(len(probabilities))]
            everywhere += p[channel]
            if p.index(max(p)) == channel:
                inside += p[channel]
                size += 1
        if size:
            scores.append(2 * inside / (everywhere + size))
    return sum(scores) / len(scores)


@pytest.mark.parametrize("seed", range(4))
def test_confidence_equals_its_formula(seed):
    probabilities = soft(seed, 2 + seed).astype(np.float32)
    assert confidence_of(probabilities) == pytest.approx(slow_confidence(probabilities), rel=1e-5)


def test_confidence_of_a_hard_decision_is_1_and_of_nothing_found_0():
    hard = np.stack([an_annotation() == value for value in LABELS.values]).astype(np.float32)
    assert confidence_of(hard) == 1
    nothing = np.zeros((3, *SHAPE), np.float32)
    nothing[0], nothing[1] = 0.6, 0.4
    assert confidence_of(nothing) == 0


def test_confidence_leaves_out_structures_that_were_not_found():
    hard = np.stack([an_annotation() == value for value in LABELS.values]).astype(np.float32)
    without = np.stack([hard[0] + hard[2], hard[1], 0 * hard[2]])
    assert confidence_of(without) == 1


def test_confidence_falls_with_softness():
    hard = np.stack([an_annotation() == value for value in LABELS.values]).astype(np.float32)
    scores = [confidence_of((1 - softness) * hard + softness / 3) for softness in (0, 0.2, 0.4, 0.6, 0.8)]
    assert scores == sorted(scores, reverse=True) and len(set(scores)) == 5
    assert 0.3 < scores[-1] < 0.7
