"""Augmentation: repeatable, image and target together, and nothing where nothing was asked for."""

import dataclasses

import pytest
import torch

from KnowledgeTransferLib.learning.augmentation import _affine_maps, augment
from KnowledgeTransferLib.records.settings import DistilSettings

NOTHING = DistilSettings(
    rotation_degrees=0, scale_share=0, shift_share=0, mirror_axes=(), contrast_share=0, gamma_share=0, noise_deviation=0
)
EVERYTHING = dataclasses.replace(DistilSettings(), mirror_axes=(0, 1))
SHAPES = pytest.mark.parametrize("shape", [(12, 9, 7), (14, 11, 1)], ids=["3-D", "2-D"])


def changed(**amounts) -> DistilSettings:
    return dataclasses.replace(NOTHING, **amounts)


def a_batch(shape, count: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(5)
    return torch.randn(count, 2, *shape, generator=random), torch.randn(count, 3, *shape, generator=random).softmax(1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@SHAPES
def test_nothing_asked_for_changes_nothing(shape):
    image, target = a_batch(shape)
    new_image, new_target = augment(image, target, NOTHING, seeded())
    torch.testing.assert_close(new_image, image, rtol=0, atol=1e-4)
    torch.testing.assert_close(new_target, target, rtol=0, atol=1e-4)


@SHAPES
def test_the_same_state_of_the_generator_gives_the_same_batch(shape):
    first, again, other = (augment(*a_batch(shape), EVERYTHING, seeded(seed)) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.allclose(first[0], other[0], atol=0.01)
    assert not torch.allclose(first[1], other[1], atol=0.01)


@SHAPES
def test_what_is_handed_in_stays_as_it_is(shape):
    image, target = a_batch(shape)
    augment(image, target, EVERYTHING, seeded())
    assert torch.equal(image, a_batch(shape)[0])
    assert torch.equal(target, a_batch(shape)[1])


@SHAPES
@pytest.mark.parametrize(
    "amounts",
    [{"rotation_degrees": 40}, {"scale_share": 0.3}, {"shift_share": 0.2}, {"mirror_axes": (0, 1)}],
    ids=lambda a: next(iter(a)),
)
def test_the_target_moves_with_the_image(shape, amounts):
    shape = tuple(2 * n if n > 1 else 1 for n in shape)
    image, target = blobs(shape)
    new_image, new_target = augment(image, target, changed(**amounts), seeded(1))
    before, after = centers(image[:, 0]), centers(new_image[:, 0])
    torch.testing.assert_close(after, centers(new_target[:, 1]), rtol=0, atol=0.02)
    assert (after - before).norm(dim=1).max() > 0.5


@SHAPES
def test_weights_move_with_the_image_and_change_nothing_else(shape):
    image, target = blobs(shape)
    alone = augment(image, target, EVERYTHING, seeded(2))
    *both, weights = augment(image, target, EVERYTHING, seeded(2), target[:, 1:])
    assert all(torch.equal(a, b) for a, b in zip(alone, both, strict=True))
    torch.testing.assert_close(weights, both[1][:, 1:])
    assert not torch.allclose(weights, target[:, 1:], atol=0.01)


@SHAPES
@pytest.mark.parametrize("settings", [EVERYTHING, changed(rotation_degrees=90, shift_share=0.5)], ids=["usual", "wild"])
def test_the_target_stays_a_probability(shape, settings):
    _, target = augment(*a_batch(shape, 8), settings, seeded())
    torch.testing.assert_close(target.sum(1), torch.ones(8, *shape), rtol=0, atol=1e-4)
    assert target.min() > -1e-5 and target.max() < 1 + 1e-5


@SHAPES
def test_what_reaches_the_edge_goes_on_beyond_it(shape):
    image, target = torch.full((8, 1, *shape), 5.0), torch.zeros(8, 3, *shape)
    target[:, 2] = 1
    image, moved = augment(image, target, changed(rotation_degrees=45, shift_share=0.5), seeded())
    torch.testing.assert_close(image, torch.full_like(image, 5.0), rtol=0, atol=1e-4)
    torch.testing.assert_close(moved, target, rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(10, 30, 18), (12, 30, 1)])
def test_a_rotation_keeps_voxels_square_in_patches_that_are_not_cubes(shape):
    """In voxels a rotation map is orthogonal; stretched patches would make it a shear."""
    n = 2 if shape[2] == 1 else 3
    maps = _affine_maps((6, 1, *shape), changed(rotation_degrees=60), seeded())
    half = torch.tensor([float(s) for s in shape[:n]][::-1]) / 2
    in_voxels = torch.diag(half) @ maps[:, :, :n] @ torch.diag(1 / half)
    torch.testing.assert_close(in_voxels @ in_voxels.mT, torch.eye(n).repeat(6, 1, 1), rtol=0, atol=1e-5)
    assert (in_voxels - torch.eye(n)).abs().max() > 0.2


def test_a_quarter_turn_in_a_plane_is_a_quarter_turn(monkeypatch):
    monkeypatch.setattr(
        "KnowledgeTransferLib.learning.augmentation._uniform", lambda shape, most, _: torch.full(shape, most)
    )
    image, target = a_batch((9, 9, 1), 1)
    turned, turned_target = augment(image, target, changed(rotation_degrees=90), seeded())
    ways = [torch.rot90(image, times, (2, 3)) for times in (1, 3)]
    assert any(torch.allclose(turned, way, atol=1e-4) for way in ways)
    assert any(torch.allclose(turned_target, torch.rot90(target, times, (2, 3)), atol=1e-4) for times in (1, 3))


def test_a_shift_moves_by_at_most_the_share_of_the_patch():
    image, target = blobs((40, 40, 1), count=32)
    moved = centers(augment(image, target, changed(shift_share=0.1), seeded())[1][:, 1]) - centers(target[:, 1])
    assert 3 < moved[:, :2].abs().max() <= 4.05


def test_a_mirror_flips_whole_samples_along_the_named_axis_alone():
    image, target = a_batch((6, 5, 4), 12)
    new_image, new_target = augment(image, target, changed(mirror_axes=(1,)), seeded())
    flipped = [torch.allclose(a, b.flip(2), atol=1e-4) for a, b in zip(new_image, image, strict=True)]
    same = [torch.allclose(a, b, atol=1e-4) for a, b in zip(new_image, image, strict=True)]
    assert all(f != s for f, s in zip(flipped, same, strict=True))
    assert 0 < sum(flipped) < 12
    for sample, expected, flip in zip(new_target, target, flipped, strict=True):
        torch.testing.assert_close(sample, expected.flip(2) if flip else expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("amounts", [{"contrast_share": 0.3}, {"gamma_share": 0.3}, {"noise_deviation": 0.3}])
def test_grey_values_change_in_the_image_alone_and_differently_for_each_channel(amounts):
    image, target = a_batch((8, 8, 4))
    new_image, new_target = augment(image, target, changed(**amounts), seeded())
    torch.testing.assert_close(new_target, target, rtol=0, atol=1e-4)
    change = (new_image - image).flatten(2)
    assert (change.abs().amax(2) > 1e-3).all()
    assert not torch.allclose(change[:, 0], change[:, 1], atol=1e-3)


def test_contrast_and_gamma_keep_the_order_of_grey_values():
    image, target = a_batch((8, 8, 4), 1)
    new_image, _ = augment(image, target, changed(contrast_share=0.3, gamma_share=0.3), seeded())
    order = image[0, 0].flatten().argsort()
    assert (new_image[0, 0].flatten()[order].diff() > -1e-3).all()


def test_gamma_keeps_darkest_and_brightest():
    image, target = a_batch((8, 8, 4))
    new_image, _ = augment(image, target, changed(gamma_share=0.5), seeded())
    torch.testing.assert_close(new_image.amin((2, 3, 4)), image.amin((2, 3, 4)), rtol=0, atol=1e-3)
    torch.testing.assert_close(new_image.amax((2, 3, 4)), image.amax((2, 3, 4)), rtol=0, atol=1e-3)


def blobs(shape, count: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """The same smooth blob away from the middle in image and target; background and structure add up to 1."""
    axes = torch.meshgrid(*(torch.arange(n).float() for n in shape), indexing="ij")
    middle = [n * share for n, share in zip(shape, (0.6, 0.35, 0.6), strict=True)] if shape[2] > 1 else None
    middle = middle or [shape[0] * 0.65, shape[1] * 0.3, 0]
    blob = torch.exp(-sum((axis - m) ** 2 for axis, m in zip(axes, middle, strict=True)) / 3)
    blob = blob.repeat(count, 1, 1, 1, 1)
    return blob, torch.cat([1 - blob, blob], 1)


def centers(blob: torch.Tensor) -> torch.Tensor:
    """Centres of mass `(B, 3)` in voxels of `(B, i, j, k)`."""
    axes = torch.meshgrid(*(torch.arange(n).float() for n in blob.shape[1:]), indexing="ij")
    mass = blob.sum((1, 2, 3))
    return torch.stack([(blob * axis).sum((1, 2, 3)) / mass for axis in axes], 1)
