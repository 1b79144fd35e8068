"""Preprocessing: orientation, spacing and grey values, there and back, in any geometry."""

import itertools
import json

import nibabel
import numpy as np
import pytest
import torch

from KnowledgeTransferLib.learning.batches import to_probabilities
from KnowledgeTransferLib.learning.networks import build_network
from KnowledgeTransferLib.learning.preprocessing import (
    Grid,
    Normalisation,
    Preprocessing,
    decision_in_volume,
    grid_of,
    probabilities_in_volume,
    resample,
)
from KnowledgeTransferLib.learning.student import Student
from KnowledgeTransferLib.learning.training_cases import on_grid
from KnowledgeTransferLib.learning.volume import Volume
from KnowledgeTransferLib.records.labels import Labels
from KnowledgeTransferLib.records.students import design_named

LABELS = Labels.from_names({3: "liver", 7: "spleen"})
Z_SCORE = (Normalisation("z-score"),)
ORIENTATIONS = [
    "".join(ends[axis][side] for axis, side in zip(order, sides, strict=True))
    for ends in [("LR", "PA", "IS")]
    for order in itertools.permutations(range(3))
    for sides in itertools.product((0, 1), repeat=3)
]
EVERY_ORIENTATION = pytest.mark.parametrize("orientation", ORIENTATIONS)


def a_volume(shape=(8, 6, 4), spacing_mm=(1.0, 2.0, 3.0), seed: int = 0) -> Volume:
    array = np.random.default_rng(seed).normal(100, 30, (1, *shape)).astype(np.float32)
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = (-20, 15, 7)
    return Volume(array, affine, "a")


def stored_as(volume: Volume, orientation: str) -> Volume:
    """The same voxels at the same places in another order of storage (left-handed ones too)."""
    wanted = nibabel.orientations.axcodes2ornt(orientation)
    change = nibabel.orientations.ornt_transform(nibabel.io_orientation(volume.affine), wanted)
    array = np.stack([nibabel.orientations.apply_orientation(c, change) for c in volume.array])
    affine = volume.affine @ nibabel.orientations.inv_ornt_aff(change, volume.shape)
    return Volume(np.ascontiguousarray(array), affine, volume.name)


def preprocessing_at(*spacing_mm, dimensions: int = 3, normalisation=Z_SCORE) -> Preprocessing:
    return Preprocessing(dimensions, spacing_mm, normalisation)


def random_probabilities(shape, classes: int = 3, seed: int = 0) -> torch.Tensor:
    return (3 * torch.randn(classes, *shape, generator=torch.Generator().manual_seed(seed))).softmax(0)


def test_there_are_48_ways_to_store_a_volume():
    assert len(set(ORIENTATIONS)) == 48


@EVERY_ORIENTATION
def test_a_volume_stored_in_any_order_looks_the_same_to_a_student(orientation):
    volume = a_volume()
    stored = stored_as(volume, orientation)
    grid = grid_of(stored)
    np.testing.assert_array_equal(grid.from_volume(stored.array), volume.array)
    np.testing.assert_array_equal(grid.to_volume(volume.array), stored.array)
    assert grid.shape == stored.shape and grid.oriented_shape == volume.shape
    image, _ = preprocessing_at(2, 2, 2).prepare(stored)
    torch.testing.assert_close(image, preprocessing_at(2, 2, 2).prepare(volume)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("flipped", [(), (0,), (2,), (0, 1), (0, 1, 2)])
def test_a_grid_leads_there_and_back(axes, flipped):
    array = np.random.default_rng(0).normal(size=(2, 5, 4, 3))
    grid = Grid((5, 4, 3), axes, flipped)
    np.testing.assert_array_equal(grid.to_volume(grid.from_volume(array)), array)
    np.testing.assert_array_equal(grid.to_volume(grid.from_volume(array[0])), array[0])
    assert grid.from_volume(array[0]).shape == grid.oriented_shape


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "ASL", "SRA", "IPL"])
@pytest.mark.parametrize("name", ["tiny", "s1"])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_volume_stored_in_any_order_is_segmented_alike(orientation, name, dimensions):
    torch.manual_seed(3)
    design = design_named(name)
    network = build_network(design, dimensions, 1, LABELS.channels).eval()
    student = Student(network, design, LABELS, preprocessing_at(1, 1.5, 3, dimensions=dimensions))
    volume = a_volume((12, 10, 9), seed=1)
    balance(network, dimensions)
    stored = stored_as(volume, orientation)
    expected = student.segment(volume)
    assert len(np.unique(expected)) > 1
    found = stored_as(Volume(student.segment(stored)[None], stored.affine), "RAS")
    np.testing.assert_array_equal(found.array[0], expected)
    np.testing.assert_allclose(found.affine, volume.affine, atol=1e-9)


def balance(network: torch.nn.Module, dimensions: int) -> None:
    """Shift the last layer so that no class wins everywhere."""
    with torch.no_grad():
        mean = network(torch.randn(1, 1, *(32,) * dimensions)).mean(dim=[0, *range(2, 2 + dimensions)])
        network.head.bias -= mean.repeat_interleave(len(network.head.bias) // len(mean))


def test_oblique_volumes_are_turned_to_the_nearest_axes():
    turn = nibabel.eulerangles.euler2mat(z=0.3, y=0.1)
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-1, -1, 2.0])
    grid = grid_of(Volume(np.zeros((1, 4, 5, 6)), affine))
    assert (grid.axes, grid.flipped) == ((0, 1, 2), (0, 1))


def test_pictures_are_left_as_they_are():
    volume = Volume(np.zeros((3, 5, 4, 1)), np.diag([-1.0, -1, 1, 1]))
    assert grid_of(volume) == Grid((5, 4, 1), (0, 1, 2), ())


@pytest.mark.parametrize("orientation", ["RAS", "LPI", "SAR"])
@pytest.mark.parametrize("shape", [(9, 7, 5), (5, 9, 10), (9, 14, 5), (18, 14, 10), (4, 3, 2), (9, 7, 11)])
def test_the_decision_is_the_class_that_wins_after_interpolation(orientation, shape):
    """Exactly, but where two classes are as likely up to the last bits of a float."""
    grid = grid_of(stored_as(a_volume((9, 7, 5)), orientation))
    probabilities = random_probabilities(shape)
    in_volume = probabilities_in_volume(probabilities, grid)
    decision = decision_in_volume(probabilities, grid, LABELS.values)
    assert decision.dtype == np.uint8 and decision.shape == grid.shape == in_volume.shape[1:]
    expected = np.array(LABELS.values)[in_volume.argmax(0)]
    first, second = np.sort(in_volume, 0)[[-1, -2]]
    clear = first - second > 1e-6
    np.testing.assert_array_equal(decision[clear], expected[clear])
    assert clear.mean() > 0.99 and len(np.unique(decision)) == 3


def slow_linear(values: np.ndarray, length: int) -> np.ndarray:
    """Linear interpolation to `length` voxels over the same extent; beyond the outer centres the edge goes on."""
    places = (np.arange(length) + 0.5) * len(values) / length - 0.5
    return np.interp(places, np.arange(len(values)), values)


@pytest.mark.parametrize("size", [(6, 5, 4), (12, 5, 3), (3, 8, 4), (7, 2, 9)])
def test_resampling_equals_plain_linear_interpolation_along_each_axis(size):
    image = np.random.default_rng(0).normal(size=(2, 6, 5, 4)).astype(np.float32)
    expected = image
    for axis in range(3):
        expected = np.apply_along_axis(slow_linear, axis + 1, expected, size[axis])
    torch.testing.assert_close(resample(torch.from_numpy(image), size), torch.from_numpy(expected).float())


@pytest.mark.parametrize("orientation", ["RAS", "PSL"])
@pytest.mark.parametrize("spacing_mm", [(1, 1, 1), (2, 2, 2), (0.7, 0.9, 3.1), (1.5, 1.5, 2.9)])
@pytest.mark.parametrize("soft", [True, False], ids=["soft", "hard"])
def test_a_smooth_structure_survives_the_way_to_the_grid_and_back(orientation, spacing_mm, soft):
    volume = a_volume((40, 30, 24), (1.0, 1.3, 2.0))
    i, j, k = np.indices(volume.shape) * np.reshape(volume.spacing_mm, (3, 1, 1, 1))
    distance = np.sqrt(((i - 20) / 14) ** 2 + ((j - 19) / 13) ** 2 + ((k - 25) / 16) ** 2)
    spleen = 1 / (1 + np.exp((distance - 1) * 6)) if soft else distance < 1
    stored = stored_as(
        Volume(np.stack([1 - spleen, 0 * spleen, spleen]).astype(np.float32), volume.affine), orientation
    )
    classes = np.rint(stored.array * 255) if soft else stored.array.argmax(0)[None]
    scan = Volume(stored.array[2:], stored.affine)
    image, target = on_grid(scan, classes.astype(np.uint8), LABELS, preprocessing_at(*spacing_mm))
    extent = np.multiply(volume.shape, volume.spacing_mm)
    np.testing.assert_allclose(np.multiply(image.shape[1:], spacing_mm), extent, atol=0.51 * max(spacing_mm))
    assert target.dtype == torch.uint8 and target.shape == (LABELS.channels, *image.shape[1:])
    maps = to_probabilities(target[None], 3)[0]
    back = decision_in_volume(maps, grid_of(stored), LABELS.values) == 7
    truth = stored.array.argmax(0) == 2
    assert 2 * (back & truth).sum() / (back.sum() + truth.sum()) > (0.98 if soft else 0.95)


def test_soft_targets_keep_their_sum_on_the_way_to_the_grid():
    volume = a_volume((9, 8, 7))
    steps = np.random.default_rng(0).multinomial(255, [0.5, 0.3, 0.2], (9, 8, 7)).astype(np.uint8)
    _, target = on_grid(volume, np.moveaxis(steps, -1, 0), LABELS, preprocessing_at(1.7, 1.7, 2))
    assert target.dtype == torch.uint8
    assert (target.sum(0, dtype=torch.int32) - 255).abs().max() <= 1
    exact = resample(torch.from_numpy(np.moveaxis(steps, -1, 0).copy()).float(), tuple(target.shape[1:]))
    assert (target.float() - exact).abs().max() <= 0.5


@pytest.mark.parametrize(
    ("dimensions", "spacing_mm", "size"),
    [
        (3, (1, 2, 3), (20, 10, 6)),
        (3, (1.005, 2.01, 3.02), (20, 10, 6)),  # within one per cent: left as it is
        (3, (2, 2, 1), (10, 10, 18)),
        (2, (2, 1, 1), (10, 20, 6)),  # slice by slice: K stays
        (3, (100, 100, 100), (1, 1, 1)),
    ],
)
def test_the_prepared_size_is_the_extent_at_the_spacing_of_the_student(dimensions, spacing_mm, size):
    preprocessing = preprocessing_at(*spacing_mm, dimensions=dimensions)
    for orientation in ("RAS", "SAL"):
        image, _ = preprocessing.prepare(stored_as(a_volume((20, 10, 6)), orientation))
        assert tuple(image.shape[1:]) == size


def normalised(normalisation: Normalisation, values: np.ndarray) -> np.ndarray:
    values = values.astype(np.float32)
    return normalisation.of_image(values.reshape(-1, 2, 5)).apply(values)


def test_z_score_equals_a_plain_formula():
    values = np.random.default_rng(0).normal(100, 30, 5000)
    values[:10] = 1e5
    low, high = np.percentile(values, [0.5, 99.5])
    clipped = np.clip(values, low, high)
    expected = (clipped - clipped.mean()) / np.sqrt(np.mean((clipped - clipped.mean()) ** 2))
    found = normalised(Z_SCORE[0], values)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_z_score_is_blind_to_scale_and_offset_of_the_scanner():
    values = np.random.default_rng(0).normal(size=3000)
    np.testing.assert_allclose(normalised(Z_SCORE[0], values * 40 - 300), normalised(Z_SCORE[0], values), atol=1e-4)


def test_z_score_of_a_nearly_empty_image_is_finite():
    values = np.zeros(1000)
    values[0] = 1
    assert np.abs(normalised(Z_SCORE[0], values)).max() == 0


def test_the_ct_window_is_the_same_for_all_images():
    window = Normalisation("ct", -100, 300, 50, 80)
    for kind in (np.int16, np.float64):
        found = window.apply(np.array([-1000, -100, 50, 130, 300, 3000], kind))
        np.testing.assert_allclose(found, [-1.875, -1.875, 0, 1, 3.125, 3.125])
        assert found.dtype == np.float32


def test_each_channel_has_its_own_normalisation():
    array = np.stack([np.full((4, 4, 4), 130), np.arange(64).reshape(4, 4, 4)]).astype(np.int16)
    both = (Normalisation("ct", -100, 300, 50, 80), Normalisation("z-score"))
    image, _ = preprocessing_at(1, 1, 1, normalisation=both).prepare(Volume(array, np.eye(4)))
    assert (image[0] == 1).all()
    assert float(image[1].mean()) == pytest.approx(0, abs=1e-5) and float(image[1].std()) > 0.9


def test_another_number_of_channels_is_refused():
    with pytest.raises(ValueError, match="a: has 1 channels; the student needs 2"):
        preprocessing_at(1, 1, 1, normalisation=Z_SCORE * 2).prepare(a_volume())


def test_a_single_slice_is_refused_by_a_student_of_volumes_alone():
    picture = a_volume((8, 6, 1))
    with pytest.raises(ValueError, match="a: is a single slice"):
        preprocessing_at(1, 1, 1).prepare(picture)
    assert preprocessing_at(1, 2, 1, dimensions=2).prepare(picture)[0].shape == (1, 8, 6, 1)


def test_preprocessing_comes_back_from_json():
    preprocessing = preprocessing_at(0.7, 1, 2.5, normalisation=(Normalisation("ct", -1, 2, 3, 4), *Z_SCORE))
    assert Preprocessing.from_json(json.loads(json.dumps(preprocessing.to_json()))) == preprocessing


def test_percentiles_are_taken_from_all_slices_of_a_large_image():
    channel = np.zeros((256, 256, 64), np.int16)
    channel[:, :, 1::2] = 100
    for stored in (channel, np.asfortranarray(channel)):
        found = Z_SCORE[0].of_image(stored).apply(stored)
        assert float(found.std()) == pytest.approx(1, abs=1e-3)
        assert np.unique(found).tolist() == pytest.approx([-1, 1], abs=1e-3)


def json_with(**changes) -> dict:
    content = json.loads(json.dumps(preprocessing_at(1, 1, 1).to_json()))
    own = {name: value for name, value in changes.items() if name in content}
    grey = {name: value for name, value in changes.items() if name not in content}
    return {**content, "normalisation": [{**content["normalisation"][0], **grey}], **own}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dimensions": 5}, "dimensions is 5; students work in 2 or 3 dimensions"),
        ({"dimensions": "3"}, "dimensions is '3'"),
        ({"dimensions": 2.5}, "dimensions is 2.5"),
        ({"spacing_mm": [1, 1]}, "three numbers from 1e-06 to 1e[+]06 are needed"),
        ({"spacing_mm": [1, 1, 0]}, r"spacing_mm is \(1, 1, 0\)"),
        ({"spacing_mm": [1, 1, -2]}, "spacing_mm is"),
        ({"spacing_mm": [1, 1, 1e-9]}, "spacing_mm is"),
        ({"spacing_mm": [1, 1, float("nan")]}, "spacing_mm is"),
        ({"spacing_mm": [1, 1, float("inf")]}, "spacing_mm is"),
        ({"spacing_mm": [1, 1, "1"]}, "spacing_mm is"),
        ({"spacing_mm": [1, 1, True]}, "spacing_mm is"),
        ({"spacing_mm": [1, 1, None]}, "spacing_mm is"),
        ({"spacing_mm": [1, 1, 10**400]}, "spacing_mm is"),
        ({"kind": "evil"}, "the normalisation is 'evil'; allowed are ct, z-score"),
        ({"kind": ["ct"]}, "the normalisation is"),
        ({"deviation": 0}, "the normalisation's deviation is 0; a number above 0 is needed"),
        ({"deviation": -1.0}, "deviation is -1.0"),
        ({"deviation": float("inf")}, "deviation is inf"),
        ({"low": float("nan")}, "the normalisation's low is nan; a finite number is needed"),
        ({"high": "3"}, "high is '3'"),
        ({"mean": None}, "mean is None"),
    ],
)
def test_preprocessing_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing.from_json(json_with(**changes))


def test_a_prepared_image_that_does_not_fit_into_the_memory_is_refused_before_it_is_made():
    found = r"a: at the student's spacing of 1e-05 x 1e-05 x 1 mm its 800000 x 1200000 x 12 voxels need \d+\.\d GiB"
    with pytest.raises(ValueError, match=rf"{found} of memory; \d+\.\d GiB are free"):
        preprocessing_at(1e-5, 1e-5, 1).prepare(a_volume())
