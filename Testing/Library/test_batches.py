"""Batches: what a step sees depends on the seed and the step alone; patches, edges, epochs, ranks."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch

from KnowledgeTransferLib.learning.batches import SPOTS, PreparedCase, PreparedCases, Sampler, to_probabilities
from KnowledgeTransferLib.records.settings import DistilSettings

SETTINGS = DistilSettings(patch_size_voxels=(4, 4, 2), batch_size=3, foreground_share=0.5, seed=7)


def a_case(number: int, shape=(9, 7, 5), soft: bool = False, structure_at=(2, 3, 1)) -> PreparedCase:
    """The image's first channel holds the case's number, the other three the place of each voxel."""
    image = np.concatenate([np.full((1, *shape), number), np.indices(shape)]).astype(np.float16)
    target = np.zeros((1, *shape), np.uint8)
    target[(0, *structure_at)] = 2
    if soft:
        target = (target == np.arange(3)[:, None, None, None]).astype(np.uint8) * 255
    return PreparedCase(f"case {number}", f"case {number}", image, target, np.array([structure_at], np.int32))


def a_sampler(count: int = 5, rank: int = 0, ranks: int = 1, **changes) -> Sampler:
    cases = [a_case(number) for number in range(count)]
    return Sampler(cases, 3, dataclasses.replace(SETTINGS, **changes), rank, ranks)


def cases_of(batch) -> list[int]:
    return batch[0][:, 0, 0, 0, 0].int().tolist()


def test_a_step_depends_on_the_seed_and_its_number_alone():
    walked = a_sampler()
    batches = [walked(step) for step in range(6)]
    for step in (5, 0, 3):
        image, target, *_ = a_sampler()(step)
        assert torch.equal(image, batches[step][0])
        assert torch.equal(target, batches[step][1])
    assert not torch.equal(a_sampler(seed=8)(5)[0], batches[5][0])
    assert not torch.equal(batches[0][0], batches[1][0])


@pytest.mark.parametrize(("count", "batch_size"), [(6, 3), (5, 3), (7, 2), (2, 5)])
def test_every_case_comes_once_before_any_comes_again(count, batch_size):
    sampler = a_sampler(count, batch_size=batch_size)
    drawn = [case for step in range(4 * count) for case in cases_of(sampler(step))]
    rounds = [drawn[i : i + count] for i in range(0, len(drawn) - count + 1, count)]
    assert all(sorted(cases) == list(range(count)) for cases in rounds)
    assert len({tuple(cases) for cases in rounds}) > 1, "every epoch has the same order"


@pytest.mark.parametrize(
    ("count", "batch_size", "ranks", "steps"), [(6, 3, 1, 2), (7, 3, 1, 3), (8, 2, 4, 1), (1, 4, 2, 1)]
)
def test_an_epoch_has_as_many_steps_as_all_processes_need_for_all_cases(count, batch_size, ranks, steps):
    assert a_sampler(count, ranks=ranks, batch_size=batch_size).steps_per_epoch == steps


def test_processes_draw_different_cases_and_together_all_of_them():
    ranks = [a_sampler(12, rank, 2) for rank in (0, 1)]
    for first_step in (0, 2):
        drawn = [case for step in (first_step, first_step + 1) for sampler in ranks for case in cases_of(sampler(step))]
        assert Counter(drawn) == Counter(range(12))


def test_processes_see_what_one_process_with_the_whole_batch_would_see():
    together = a_sampler(12, batch_size=6)(3)[0]
    apart = torch.cat([a_sampler(12, rank, 2, batch_size=3)(3)[0] for rank in (0, 1)])
    assert torch.equal(together, apart)


def test_image_and_target_are_cut_at_the_same_place():
    sampler = a_sampler(foreground_share=1.0)
    found = 0
    for step in range(10):
        image, target, *_ = sampler(step)
        assert image.dtype == torch.float32 and image.shape == (3, 4, 4, 4, 2)
        assert target.dtype == torch.uint8 and target.shape == (3, 1, 4, 4, 2)
        for place in (target[:, 0] == 2).nonzero():
            found += 1
            assert image[(place[0], slice(1, None), *place[1:])].tolist() == [2, 3, 1]
    assert found == 30


def test_a_patch_inside_the_image_is_a_piece_of_it():
    for step in range(20):
        places = a_sampler(foreground_share=0.0)(step)[0][:, 1:]
        first = places[:, :, :1, :1, :1]
        steps = torch.stack(torch.meshgrid(*(torch.arange(n).float() for n in (4, 4, 2)), indexing="ij"))
        assert torch.equal(places, first + steps)
        assert (first >= 0).all() and (first.flatten(1) <= torch.tensor([5.0, 3, 3])).all()


def test_patches_come_from_everywhere():
    sampler = a_sampler(foreground_share=0.0)
    starts = {tuple(p) for step in range(150) for p in sampler(step)[0][:, 1:, 0, 0, 0].int().tolist()}
    assert len(starts) > 0.9 * 6 * 4 * 4


def test_a_patch_larger_than_the_image_continues_its_edges():
    sampler = a_sampler(patch_size_voxels=(13, 4, 8), foreground_share=1.0)
    image, target, *_ = sampler(0)
    assert image.shape == (3, 4, 13, 4, 8)
    assert image[0, 1, :, 0, 0].tolist() == [0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8]
    assert image[0, 3, 0, 0].tolist() == [0, 0, 0, 1, 2, 3, 4, 4]
    assert (target == 2).sum() == 3, "a structure inside the image is not repeated"


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_foreground_share_leads_to_patches_with_a_structure(share):
    cases = [a_case(n, (40, 40, 6), structure_at=(31, 8, 3)) for n in range(4)]
    sampler = Sampler(cases, 3, dataclasses.replace(SETTINGS, foreground_share=share, batch_size=8))
    met = np.mean([bool((target == 2).any()) for step in range(40) for target in sampler(step)[1]])
    by_chance = 4 / 37 * 4 / 37 * 2 / 5
    assert met == pytest.approx(share + (1 - share) * by_chance, abs=0.08)


def test_a_structure_is_met_near_the_middle_of_its_patch_but_not_always_at_one_place():
    cases = [a_case(0, (60, 60, 60), structure_at=(30, 30, 30))]
    settings = dataclasses.replace(SETTINGS, foreground_share=1.0, patch_size_voxels=(16, 16, 16))
    sampler = Sampler(cases, 3, settings)
    places = torch.cat([(sampler(step)[1][:, 0] == 2).nonzero()[:, 1:] for step in range(40)])
    assert len(places) == 120
    assert places.min() >= 4 and places.max() <= 12
    assert all(len(places[:, axis].unique()) > 6 for axis in range(3))


def test_a_case_without_any_structure_is_drawn_too():
    empty = dataclasses.replace(a_case(0), spots=np.zeros((0, 3), np.int32), target=np.zeros((1, 9, 7, 5), np.uint8))
    image, target, *_ = Sampler([empty], 3, dataclasses.replace(SETTINGS, foreground_share=1.0))(0)
    assert image.shape == (3, 4, 4, 4, 2) and not target.any()


def test_label_maps_and_probabilities_mix_in_one_batch():
    hard, soft = [a_case(0), a_case(1)], [a_case(0), a_case(1, soft=True)]
    settings = dataclasses.replace(SETTINGS, batch_size=4, foreground_share=1.0)
    labels = Sampler(hard, 3, settings)(0)[1]
    mixed = Sampler(soft, 3, settings)(0)[1]
    assert labels.shape == (4, 1, 4, 4, 2) and mixed.shape == (4, 3, 4, 4, 2)
    torch.testing.assert_close(to_probabilities(mixed, 3), to_probabilities(labels, 3), rtol=0, atol=0)


def test_voxels_count_alike_and_all_structures_are_known_unless_a_case_says_otherwise():
    batch = a_sampler()(0)
    assert batch.weights is None and batch.known is None


def test_weights_are_cut_where_the_image_is_and_multiplied_by_that_of_the_case():
    weights = (np.indices((9, 7, 5))[:1] * 20).astype(np.uint8)
    cases = [dataclasses.replace(a_case(0), weights=weights, weight=3.0), a_case(1)]
    batch = Sampler(cases, 3, dataclasses.replace(SETTINGS, batch_size=4))(2)
    assert batch.weights.shape == (4, 1, 4, 4, 2) and batch.weights.dtype == torch.float32
    assert cases_of(batch).count(0) == 2
    for image, found in zip(batch.image, batch.weights, strict=True):
        expected = image[1] * 20 / 255 * 3 if image[0, 0, 0, 0] == 0 else torch.ones(4, 4, 2)
        torch.testing.assert_close(found[0], expected)


def test_a_batch_tells_which_structures_nobody_judged_in_each_of_its_cases():
    cases = [a_case(0), dataclasses.replace(a_case(1), unknown=(2,))]
    batch = Sampler(cases, 3, dataclasses.replace(SETTINGS, batch_size=4))(0)
    assert [row[2] for row in batch.known.tolist()] == [case == 0 for case in cases_of(batch)]
    assert batch.known[:, :2].all() and batch.weights is None


def test_targets_become_probabilities():
    labels = torch.tensor([0, 2, 1, 1], dtype=torch.uint8).reshape(1, 1, 4, 1, 1)
    expected = torch.tensor([[1, 0, 0, 0], [0, 0, 1, 1], [0, 1, 0, 0]]).float()
    torch.testing.assert_close(to_probabilities(labels, 3)[0, :, :, 0, 0], expected)
    steps = torch.tensor([51, 204], dtype=torch.uint8).reshape(1, 2, 1, 1, 1)
    torch.testing.assert_close(to_probabilities(steps, 2).flatten(), torch.tensor([0.2, 0.8]))


def test_prepared_cases_come_back_from_disk_as_they_were_written(tmp_path):
    cases, image = PreparedCases(tmp_path / "prepared"), torch.randn(2, 6, 5, 4)
    target = torch.randint(0, 3, (1, 6, 5, 4), dtype=torch.uint8)
    cases.write(3, image, target, seed=0)
    assert not cases.index.is_file()
    cases.complete({"cases": [{"number": 3, "id": "Zoë", "group": "p"}]})
    assert cases.index.is_file()
    (case,) = PreparedCases(tmp_path / "prepared").load()
    assert (case.id, case.group) == ("Zoë", "p")
    np.testing.assert_array_equal(case.image, image.half().numpy())
    np.testing.assert_array_equal(case.target, target.numpy())
    assert isinstance(case.image, np.memmap)


def test_weights_and_unknown_structures_come_back_from_disk(tmp_path):
    cases, image = PreparedCases(tmp_path), torch.randn(1, 6, 5, 4)
    target, weights = (torch.randint(0, 3, (1, 6, 5, 4), dtype=torch.uint8) for _ in range(2))
    cases.write(0, image, target, seed=0, weights=weights)
    cases.write(1, image, target, seed=0)
    usual = {"id": "a", "group": "a"}
    cases.complete({"cases": [{"number": 0, **usual, "weight": 2.5, "unknown": [2]}, {"number": 1, **usual}]})
    first, second = cases.load()
    np.testing.assert_array_equal(first.weights, weights.numpy())
    assert (first.weight, first.unknown) == (2.5, (2,))
    assert (second.weights, second.weight, second.unknown) == (None, 1.0, ())


@pytest.mark.parametrize("soft", [False, True])
def test_rare_structures_are_remembered_as_well_as_large_ones(tmp_path, soft):
    target = np.zeros((1, 20, 20, 10), np.uint8)
    target[0, :, :10] = 1
    target[0, 3, 15, 2:5] = 2
    given = (target == np.arange(3)[:, None, None, None]).astype(np.uint8) * 255 if soft else target
    cases = PreparedCases(tmp_path)
    cases.write(0, torch.zeros(1, 20, 20, 10), torch.from_numpy(given), seed=1)
    cases.complete({"cases": [{"number": 0, "id": "a", "group": "a"}]})
    spots = cases.load()[0].spots
    found = Counter(target[(0, *spot)] for spot in spots.tolist())
    assert found == {1: SPOTS, 2: 3}
    assert len(np.unique(spots, axis=0)) == len(spots)
