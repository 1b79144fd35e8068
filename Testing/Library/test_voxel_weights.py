"""Voxel weights: teachers' certainty decides how much a voxel counts; what a person annotated is certain."""

import dataclasses

import numpy as np
import pytest

from KnowledgeTransferLib.learning.preprocessing import Normalisation, Preprocessing
from KnowledgeTransferLib.learning.teachers import uncertainty_of
from KnowledgeTransferLib.learning.training_cases import TrainingCase
from KnowledgeTransferLib.learning.volume import Volume, steps_of, write_image, write_probabilities
from KnowledgeTransferLib.learning.voxel_weights import voxel_weights
from KnowledgeTransferLib.records.cohort import Case
from KnowledgeTransferLib.records.settings import DistilSettings

SHAPE, AFFINE = (6, 5, 4), np.diag([-1.0, 1.0, 1.0, 1.0])  # the first axis runs to the left: the grid turns it
SAME_GRID = Preprocessing(3, (1.0, 1.0, 1.0), (Normalisation("z-score"),))
VOLUME = Volume(np.random.default_rng(0).normal(size=(1, *SHAPE)).astype(np.float32), AFFINE, "a")
BY_CERTAINTY = DistilSettings(voxel_weights="certainty")


@pytest.fixture
def soft() -> np.ndarray:
    return np.random.default_rng(1).dirichlet(np.ones(3), SHAPE).transpose(3, 0, 1, 2).astype(np.float32)


@pytest.fixture
def item(tmp_path, soft) -> TrainingCase:
    """A case with the teachers' probabilities."""
    write_probabilities(tmp_path / "maps.nii.gz", steps_of(soft), AFFINE)
    return TrainingCase(Case("a", ()), tmp_path / "a.seg.nrrd", maps=tmp_path / "maps.nii.gz")


def weights_of(item: TrainingCase, settings: DistilSettings, preprocessing=SAME_GRID) -> np.ndarray:
    return voxel_weights(item, VOLUME, preprocessing, settings).numpy() / 255


def test_voxels_count_alike_unless_something_else_is_asked_for(item):
    assert voxel_weights(item, VOLUME, SAME_GRID, DistilSettings()) is None


def test_a_voxel_counts_by_1_less_the_entropy_of_its_probabilities(item, soft):
    found = weights_of(item, BY_CERTAINTY)
    assert found.shape == (1, *SHAPE)
    np.testing.assert_allclose(found[0, ::-1], 1 - uncertainty_of(soft), atol=0.03)
    assert found.min() < 0.1 and found.max() > 0.4


def test_a_map_of_uncertainty_goes_before_the_entropy(item, tmp_path):
    unsure = np.zeros(SHAPE, np.float32)
    unsure[0] = 0.75
    write_image(tmp_path / "map.nii.gz", unsure, AFFINE)
    item = dataclasses.replace(item, uncertainty=tmp_path / "map.nii.gz")
    expected = np.broadcast_to(1 - unsure[::-1], (1, *SHAPE))
    np.testing.assert_allclose(weights_of(item, BY_CERTAINTY), expected, atol=1 / 255)
    left_out = weights_of(item, DistilSettings(least_certainty=0.5))
    np.testing.assert_array_equal(left_out, expected == 1)
    both = weights_of(item, dataclasses.replace(BY_CERTAINTY, least_certainty=0.2))
    np.testing.assert_allclose(both, expected, atol=1 / 255)


def test_teachers_that_are_sure_everywhere_give_every_voxel_its_full_weight(item, tmp_path):
    write_image(tmp_path / "map.nii.gz", np.zeros(SHAPE, np.float32), AFFINE)
    item = dataclasses.replace(item, uncertainty=tmp_path / "map.nii.gz")
    assert (weights_of(item, BY_CERTAINTY) == 1).all()


def test_weights_lie_on_the_grid_of_the_student(item):
    halved = Preprocessing(3, (2.0, 2.0, 2.0), SAME_GRID.normalisation)
    assert weights_of(item, BY_CERTAINTY, halved).shape == (1, *halved.prepare(VOLUME)[0].shape[1:])


@pytest.mark.parametrize("who", ["by_expert", "corrected", "edited"])
def test_what_a_person_annotated_is_certain(item, who):
    assert voxel_weights(dataclasses.replace(item, **{who: True}), VOLUME, SAME_GRID, BY_CERTAINTY) is None


def test_without_probabilities_and_map_it_is_told_what_to_do(item):
    with pytest.raises(ValueError, match="a: nothing tells how certain the teachers are; annotate with"):
        weights_of(dataclasses.replace(item, maps=None), BY_CERTAINTY)
