"""Configuration: each choice has a reason, fits the cohort and the device, and can be overridden."""

import dataclasses

import numpy as np
import pytest

from KnowledgeTransferLib.learning.configuration import Surroundings, configure, fingerprint, usual_precision
from KnowledgeTransferLib.learning.networks import build_network
from KnowledgeTransferLib.learning.volume import Volume
from KnowledgeTransferLib.records.labels import Labels
from KnowledgeTransferLib.records.settings import DistilSettings
from KnowledgeTransferLib.records.students import STUDENTS, design_named

LABELS = Labels.from_names({1: "liver"})
OVERRIDES = {
    "tasks": ("segmentation", "reconstruction"),
    "dimensions": 2, "spacing_mm": (3.0, 3.0, 4.0), "normalisation": "ct", "patch_size_voxels": (64, 32, 1),
    "batch_size": 5, "epochs": 17, "learning_rate": 0.123, "validate_every_epochs": 6, "patience_epochs": 8,
    "mirror_axes": (1,), "precision": "bf16-mixed",
}  # fmt: skip


def a_volume(shape=(40, 36, 20), spacing_mm=(1.0, 1.0, 2.0), low=0, high=500, kind=np.int16, channels=1) -> Volume:
    random = np.random.default_rng(0)
    array = random.integers(low, high, (channels, *shape)).astype(kind)
    return Volume(array, np.diag([*spacing_mm, 1.0]), "a")


def configured(*volumes, name="tiny", modality="", labels=LABELS, device="cpu", cases=20, **asked):
    prints = [fingerprint(volume, None) for volume in volumes or (a_volume(),)]
    return configure(DistilSettings(**asked), design_named(name), prints, Surroundings(modality, labels, device, cases))


def huge(shape, spacing_mm):
    """A fingerprint of a volume that would not fit into the tests' memory."""
    return dataclasses.replace(fingerprint(a_volume(), None), shape=shape, spacing_mm=spacing_mm)


def test_every_open_setting_is_chosen_and_has_a_reason():
    settings, _ = configured()
    open_settings = {f.name for f in dataclasses.fields(DistilSettings) if getattr(DistilSettings(), f.name) is None}
    assert set(settings.reasons) == open_settings - {"minutes"}
    assert all(getattr(settings, name) is not None for name in settings.reasons)
    assert all(len(reason) > 10 for reason in settings.reasons.values())


@pytest.mark.parametrize("name", OVERRIDES)
def test_each_choice_can_be_overridden(name):
    value = OVERRIDES[name]
    asked = {"dimensions": 2, name: value}
    assert getattr(configured(dimensions=2)[0], name) != value or name == "dimensions"
    settings, preprocessing = configured(**asked)
    assert getattr(settings, name) == value
    assert name not in settings.reasons
    if name == "spacing_mm":
        assert preprocessing.spacing_mm == value
    if name == "normalisation":
        assert preprocessing.normalisation[0].kind == "ct"


def test_everything_can_be_overridden_at_once():
    settings, _ = configured(**OVERRIDES)
    assert {name: getattr(settings, name) for name in OVERRIDES} == OVERRIDES
    assert settings.reasons == {}


def test_a_time_budget_leaves_the_number_of_epochs_open():
    settings, _ = configured(minutes=5.0)
    assert settings.epochs is None and "epochs" not in settings.reasons


@pytest.mark.parametrize("modality", ["CT", "ct", "CT, venous phase", "low-dose CT", "abdomen_CT_2"])
def test_ct_is_recognised_by_its_name(modality):
    settings, preprocessing = configured(modality=modality)
    assert settings.normalisation == "ct" == preprocessing.normalisation[0].kind
    assert modality in settings.reasons["normalisation"]


@pytest.mark.parametrize("modality", ["MRI", "OCT", "T1", "SPECT", "factor"])
def test_what_is_named_otherwise_is_no_ct_whatever_its_values(modality):
    assert configured(a_volume(low=-1000), modality=modality)[0].normalisation == "z-score"


@pytest.mark.parametrize(
    ("low", "kind", "offset", "expected"),
    [
        (-1000, np.int16, 0, "ct"),
        (-1000, np.float64, 0, "ct"),  # a slope and intercept in the header make whole numbers of type float
        (-1000, np.float32, 0.37, "z-score"),
        (-400, np.int16, 0, "z-score"),
        (0, np.uint16, 0, "z-score"),
    ],
)
def test_ct_is_recognised_by_hounsfield_units(low, kind, offset, expected):
    volume = a_volume(low=low, kind=kind)
    volume = dataclasses.replace(volume, array=volume.array + offset if offset else volume.array)
    assert configured(volume)[0].normalisation == expected


def test_the_ct_window_comes_from_the_structures_of_all_cases():
    volume, annotation = a_volume(low=-1000), np.zeros((40, 36, 20), np.uint8)
    annotation[10:20, 10:20, 5:10] = 1
    volume.array[0][annotation > 0] = np.random.default_rng(1).integers(40, 80, 500)
    prints = [fingerprint(volume, annotation)] * 2
    _, preprocessing = configure(DistilSettings(), design_named("tiny"), prints, Surroundings("CT", LABELS, "cpu", 5))
    window, inside = preprocessing.normalisation[0], volume.array[0][annotation > 0]
    assert 40 <= window.low < 43 and 76 < window.high < 80
    assert window.mean == pytest.approx(inside.mean(), abs=0.5)
    assert window.deviation == pytest.approx(inside.std(), abs=0.5)


def test_each_channel_gets_a_normalisation():
    assert len(configured(a_volume(channels=3))[1].normalisation) == 3
    assert len(configured(a_volume(channels=3), modality="CT")[1].normalisation) == 3


@pytest.mark.parametrize(("slices", "dimensions"), [(1, 2), (3, 2), (7, 2), (8, 3), (30, 3)])
def test_thin_volumes_and_pictures_are_segmented_slice_by_slice(slices, dimensions):
    settings, preprocessing = configured(a_volume((40, 36, slices)))
    assert settings.dimensions == preprocessing.dimensions == dimensions
    assert str(slices) in settings.reasons["dimensions"]
    assert (settings.patch_size_voxels[2] == 1) == (dimensions == 2)


@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(
    "shape", [(20, 11, 9), (40, 40, 1), (300, 200, 90), (512, 500, 1), (2000, 1500, 1), (30, 400, 5)]
)
def test_a_patch_fits_the_network_and_the_budget(name, device, shape):
    design = design_named(name)
    prints = [huge(shape, (1.0, 1.0, 1.0))]
    settings, preprocessing = configure(DistilSettings(), design, prints, Surroundings("", LABELS, device, 40))
    dimensions, patch = settings.dimensions, settings.patch_size_voxels
    stride = build_network(design, dimensions, 1, 2).total_stride
    assert all(n % stride == 0 and n >= 2 * stride for n in patch[:dimensions])
    assert len(patch) == 3 and set(patch[dimensions:]) <= {1}
    factor = 1 if device == "cpu" else 8
    smallest = (2 * stride) ** dimensions
    assert np.prod(patch) <= max(design.patch_voxels[dimensions] * factor, smallest)
    assert 2 <= settings.batch_size <= 16
    needed = np.ceil(np.array(shape[:dimensions]) / stride) * stride
    assert (np.array(patch[:dimensions]) <= np.maximum(needed, 2 * stride)).all(), "larger than the image needs"


def test_a_gpu_gets_larger_patches_and_quicker_arithmetic(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: True)
    prints, around = [huge((300, 300, 300), (1.0, 1.0, 1.0))], Surroundings("", LABELS, "cpu", 40)
    cpu, _ = configure(DistilSettings(), design_named("tiny"), prints, around)
    gpu, _ = configure(DistilSettings(), design_named("tiny"), prints, dataclasses.replace(around, device="cuda"))
    assert np.prod(gpu.patch_size_voxels) > 4 * np.prod(cpu.patch_size_voxels)
    assert (
        (cpu.precision, gpu.precision) == ("32-true", "bf16-mixed") == (usual_precision("cpu"), usual_precision("cuda"))
    )


def test_the_spacing_is_the_median_of_the_cohort_in_its_own_axes():
    volumes = [a_volume(spacing_mm=s) for s in ((1, 1, 2), (1.2, 1, 2), (3, 1, 9))]
    assert configured(*volumes)[0].spacing_mm == (1.2, 1, 2)
    sagittal = Volume(a_volume((20, 40, 36)).array, np.eye(4)[:, [2, 0, 1, 3]] @ np.diag([2.0, 1, 1, 1]))
    assert configured(sagittal)[0].spacing_mm == (1, 1, 2)


def test_spacings_of_a_microscope_are_kept():
    settings, preprocessing = configured(a_volume((64, 64, 1), spacing_mm=(0.000251, 0.000251, 1.0)))
    assert settings.spacing_mm[:2] == (0.000251, 0.000251)
    assert settings.patch_size_voxels[:2] == (64, 64)
    assert preprocessing.prepare(a_volume((64, 64, 1), spacing_mm=(0.000251, 0.000251, 1.0)))[0].shape == (1, 64, 64, 1)


@pytest.mark.parametrize("shape", [(2000, 2000, 1500), (512, 512, 2000), (9000, 8000, 1)])
@pytest.mark.parametrize("name", ["tiny", "large"])
def test_huge_images_are_coarsened_to_what_the_design_can_bear(shape, name):
    design = design_named(name)
    settings, _ = configure(
        DistilSettings(), design, [huge(shape, (0.3, 0.3, 0.6))], Surroundings("", LABELS, "cpu", 40)
    )
    n = settings.dimensions
    limit = design.volume_voxels // (1 if n == 3 else 8)
    voxels = np.prod(np.multiply(shape, (0.3, 0.3, 0.6))[:n] / np.array(settings.spacing_mm)[:n])
    assert 0.7 * limit < voxels <= 1.001 * limit
    assert "coarsened" in settings.reasons["spacing_mm"]
    assert all(s >= m for s, m in zip(settings.spacing_mm, (0.3, 0.3, 0.6), strict=True))
    assert n == 3 or settings.spacing_mm[2] == 0.6


def test_coarsening_begins_with_the_finest_axis():
    settings, _ = configure(
        DistilSettings(), design_named("tiny"), [huge((600, 600, 60), (0.5, 0.5, 5.0))],
        Surroundings("", LABELS, "cpu", 40),
    )  # fmt: skip
    assert settings.spacing_mm[0] == settings.spacing_mm[1] > 0.5
    assert settings.spacing_mm[2] == 5


@pytest.mark.parametrize("side", ["left kidney", "Right lung", "kidney_left", "lung_upper_lobe_right", "LEFT-EYE"])
def test_structures_with_a_side_are_not_mirrored(side):
    picture = a_volume((40, 40, 1))
    assert configured(picture, labels=Labels.from_names({1: "heart", 2: side}))[0].mirror_axes == ()


def test_pictures_without_sides_are_mirrored_and_volumes_are_not():
    labels = Labels.from_names({1: "cleft", 2: "bright spot"})
    assert configured(a_volume((40, 40, 1)), labels=labels)[0].mirror_axes == (0,)
    assert configured(a_volume((40, 40, 20)), labels=labels)[0].mirror_axes == ()


@pytest.mark.parametrize("cases", [2, 7, 500])
def test_a_training_has_the_usual_number_of_steps_whatever_the_cohort(cases):
    settings, _ = configured(cases=cases)
    steps = settings.epochs * -(-cases // settings.batch_size)
    assert steps == pytest.approx(design_named("tiny").iterations, rel=0.05)
    assert settings.batch_size <= max(2, cases)
    assert 15 <= settings.epochs / settings.validate_every_epochs <= 40


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"patch_size_voxels": (30, 32, 32)}, r"patch_size_voxels is \(30, 32, 32\); .*multiples of 8"),
        ({"patch_size_voxels": (8, 32, 32)}, "each at least 16"),
        ({"patch_size_voxels": (32, 32)}, "patch_size_voxels"),
        ({"patch_size_voxels": (32, 32, 32), "dimensions": 2}, "then 1"),
        ({"spacing_mm": (1.0, 1.0)}, "three numbers above 0"),
        ({"spacing_mm": (1.0, 0.0, 1.0)}, "three numbers above 0"),
        ({"dimensions": 4}, "2 or 3 dimensions"),
    ],
)
def test_what_no_network_can_take_is_refused(asked, message):
    with pytest.raises(ValueError, match=message):
        configured(**asked)


def test_a_fingerprint_samples_a_large_volume_evenly():
    volume = a_volume((100, 100, 40))
    volume.array[:, :50] = -7
    print_ = fingerprint(volume, None)
    assert print_.grey_values.shape[1] < 25_000
    assert np.mean(print_.grey_values == -7) == pytest.approx(0.5, abs=0.02)
    assert (print_.shape, print_.minimum) == ((100, 100, 40), -7)


def test_a_gpu_without_bfloat16_computes_in_32_bits(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert usual_precision("cuda") == "32-true"
