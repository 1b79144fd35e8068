"""Resampling plane by plane equals plain linear interpolation, for any memory order and type."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from KnowledgeTransferLib.learning.resampling import on_planes, places


@pytest.mark.parametrize("wanted", [1, 2, 5, 12, 30])
@pytest.mark.parametrize("given", [1, 2, 12, 13])
def test_places_are_those_of_torch(wanted, given):
    values = torch.randn(given, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(values[None, None], wanted, mode="linear", align_corners=False)[0, 0]
    found = places(wanted, given)
    below, above = values.numpy()[found.below], values.numpy()[found.above]
    np.testing.assert_allclose((1 - found.share) * below + found.share * above, expected, atol=1e-5)
    if wanted == given:
        assert found.is_same


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("size", [(4, 5, 6), (11, 9, 13), (20, 9, 3), (1, 30, 13)])
@pytest.mark.parametrize("kind", [np.int16, np.uint8, np.float64])
def test_planes_equal_torchs_interpolation(order, size, kind):
    array = np.random.default_rng(0).integers(0, 200, (11, 9, 13)).astype(kind)
    stored = np.ascontiguousarray(array.transpose(order)).transpose(np.argsort(order))
    along = tuple(places(w, g) for w, g in zip(size, array.shape, strict=True))
    found = on_planes(stored, along, lambda grey: grey.astype(np.float32) / 100)
    image = torch.from_numpy(array.astype(np.float32))[None, None] / 100
    expected = F.interpolate(image, size, mode="trilinear", align_corners=False)[0, 0]
    assert found.shape == size and found.dtype == np.float32
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_only_what_is_needed_is_converted():
    converted = []

    def grey(piece):
        converted.append(piece.size)
        return piece.astype(np.float32)

    array = np.zeros((64, 64, 64), np.int16)
    on_planes(array, tuple(places(8, 64) for _ in range(3)), grey)
    assert sum(converted) == 16**3


def test_a_flipped_axis_is_read_from_its_other_end():
    array = np.random.default_rng(0).normal(size=(6, 5, 4)).astype(np.float32)
    along = [places(w, g) for w, g in zip((3, 7, 4), array.shape, strict=True)]
    expected = on_planes(np.ascontiguousarray(array[::-1]), along, np.copy)
    found = on_planes(array, [along[0].of_flipped(6), *along[1:]], np.copy)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("size", [(4, 5, 6), (11, 9, 13), (20, 9, 3), (11, 12, 26)])
def test_a_small_array_is_resampled_at_once_to_the_same_bits(size, monkeypatch):
    array = np.asfortranarray(np.random.default_rng(0).normal(size=(11, 9, 13)))
    along = [places(w, g) for w, g in zip(size, array.shape, strict=True)]
    along[1] = along[1].of_flipped(9)
    at_once = on_planes(array, tuple(along), lambda grey: grey.astype(np.float32))
    monkeypatch.setattr("KnowledgeTransferLib.learning.resampling.SMALL_VOXELS", 0)
    by_planes = on_planes(array, tuple(along), lambda grey: grey.astype(np.float32))
    np.testing.assert_array_equal(at_once, by_planes)
    assert at_once.strides == by_planes.strides
