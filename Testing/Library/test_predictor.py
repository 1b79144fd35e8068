"""Predictor: whole or in windows, volumes or slices, any size; and the device that was asked for."""

import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from KnowledgeTransferLib.learning import predictor
from KnowledgeTransferLib.learning.networks import build_named_network
from KnowledgeTransferLib.learning.networks.unet import depth_to_space, space_to_depth
from KnowledgeTransferLib.learning.predictor import (
    Halves,
    blocks,
    class_maps,
    pick_device,
    predict,
    whole_image_limit,
)
from KnowledgeTransferLib.records.students import STUDENTS

ENOUGH = 10**9
LOCAL = [name for name in STUDENTS if build_named_network(name, 2, 1, 2).margin is not None]


class Recorder(nn.Module):
    """Class 1 has the logit of the image's own value; remembers the sizes that it was shown."""

    def __init__(self, total_stride: int = 4):
        super().__init__()
        self.total_stride, self.sizes = total_stride, []
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        self.sizes.append(tuple(x.shape))
        return torch.cat([torch.zeros_like(x), x], 1)


def an_image(*shape) -> torch.Tensor:
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))


class Spy:
    """Notes the sizes of what goes through a network."""

    def __init__(self, network):
        self.network, self.sizes = network, []
        self.total_stride, self.margin = network.total_stride, network.margin

    def __call__(self, x):
        self.sizes.append(tuple(x.shape))
        return self.network(x)


def a_tiny_network(dimensions: int) -> nn.Module:
    return a_network("tiny", dimensions)


def a_network(name: str, dimensions: int) -> nn.Module:
    """With made-up statistics of its batch norms, in evaluation mode."""
    torch.manual_seed(0)
    network = build_named_network(name, dimensions, 1, 3)
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return network.eval()


@pytest.mark.parametrize("limit", [ENOUGH, 8**3])
@pytest.mark.parametrize("shape", [(5, 7, 11), (1, 2, 3), (8, 8, 8), (13, 9, 4)])
def test_each_voxel_gets_its_own_answer_and_padding_is_cut_off(shape, limit):
    image, network = an_image(*shape), Recorder()
    probabilities = predict(network, image, 3, limit)
    expected = torch.sigmoid(image[0])
    assert probabilities.shape == (2, *shape) and probabilities.dtype == torch.float32
    torch.testing.assert_close(probabilities[1], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(probabilities[0], 1 - expected, rtol=0, atol=1e-5)
    assert all(n % 4 == 0 and n >= 8 for size in network.sizes for n in size[2:])


def test_padding_continues_the_edge():
    class Spy(Recorder):
        def forward(self, x):
            self.seen = x.clone()
            return super().forward(x)

    image, network = an_image(9, 3, 8), Spy()
    predict(network, image, 3, ENOUGH)
    assert network.seen.shape == (1, 1, 12, 8, 8)
    expected = np.pad(image.numpy(), ((0, 0), (0, 3), (0, 5), (0, 0)), mode="edge")
    np.testing.assert_array_equal(network.seen[0].numpy(), expected)


@pytest.mark.parametrize("limit", [12**3, 5000, 9 * 9 * 9])
def test_windows_hold_no_more_voxels_than_allowed(limit):
    network = Recorder()
    predict(network, an_image(40, 33, 29), 3, limit)
    assert len(network.sizes) > 1
    assert max(np.prod(size[2:]) for size in network.sizes) <= limit
    assert {size[0] for size in network.sizes} == {1}


@pytest.mark.parametrize("edge", [8, 12, 48, 64, 100])
def test_a_window_is_as_large_as_the_limit_allows(edge):
    network = Recorder()
    predict(network, an_image(edge + 4, edge, edge), 3, edge**3)
    assert {size[2:] for size in network.sizes} == {(edge, edge, edge)}


def test_an_image_within_the_limit_goes_through_in_one_pass():
    network = Recorder()
    predict(network, an_image(16, 16, 16), 3, 16**3)
    assert network.sizes == [(1, 1, 16, 16, 16)]


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("name", LOCAL)
def test_blocks_equal_the_whole_image(name, dimensions):
    """For every design whose layers look at a neighbourhood alone."""
    network = a_network(name, dimensions)
    length = 2 * network.margin + 3 * network.total_stride
    across = 3 * network.total_stride
    image = an_image(length - 3, across - 3, across - 2 if dimensions == 3 else 2)
    whole = predict(network, image, dimensions, ENOUGH)
    spy, limit = Spy(network), (length - network.total_stride) * across ** (dimensions - 1)
    parts = predict(spy, image, dimensions, limit)
    assert len(spy.sizes) > 1, "it was not cut"
    assert max(np.prod(size) for size in spy.sizes) <= limit
    torch.testing.assert_close(parts, whole, rtol=0, atol=2e-6)


def test_blocks_are_as_few_as_the_limit_allows():
    assert [b[:2] for b in blocks((64, 48, 32), (8, 8, 8), (16, 16, 16), ENOUGH)] == [((0, 0, 0), (64, 48, 32))]
    two = list(blocks((128, 48, 32), (8, 8, 8), (16, 16, 16), 128 * 48 * 32 - 1))
    assert [(start, stop) for start, stop, _ in two] == [((0, 0, 0), (64, 48, 32)), ((64, 0, 0), (128, 48, 32))]
    assert [region[0] for *_, region in two] == [(0, 80), (48, 128)]
    smallest = list(blocks((64, 64, 64), (8, 8, 8), (16, 16, 16), 1))
    assert len(smallest) == 8**3


@pytest.mark.parametrize("limit", [ENOUGH, 30000, 3000, 1])
def test_each_block_brings_the_next_voxel_for_interpolation(limit):
    network, size = a_tiny_network(3), (41, 36, 29)
    image = an_image(*size)
    whole = network(F.pad(image[None], (0, 3, 0, 4, 0, 7), mode="replicate"))[0]
    seen = torch.zeros(size)
    for start, stop, maps in class_maps(network, image, 3, limit):
        inner = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        more = tuple(slice(a, min(b + 1, n)) for a, b, n in zip(start, stop, size, strict=True))
        seen[inner] += 1
        torch.testing.assert_close(maps, whole[(slice(None), *more)], rtol=0, atol=1e-5)
    assert (seen == 1).all()


def test_a_network_with_a_norm_over_the_image_goes_in_windows():
    """Seams are blended; what is far from them agrees only roughly, for the norm sees another part of the image."""
    network, image = build_named_network("large", 3, 1, 3).eval(), an_image(20, 16, 16)
    assert network.margin is None
    spy = Spy(network)
    predict(spy, image, 3, 16**3)
    assert {size[2:] for size in spy.sizes} == {(16, 16, 16)}


@pytest.mark.parametrize("dimensions", [2, 3])
def test_mirroring_averages_the_logits_of_all_mirror_images(dimensions):
    network, image = a_tiny_network(dimensions), an_image(24, 32, 16 if dimensions == 3 else 2)
    found = predict(network, image, dimensions, ENOUGH, mirror=(0, 1))
    total = 0
    for axes in ([], [1], [2], [1, 2]):
        total = total + predict(network, image.flip(axes), dimensions, ENOUGH).log().flip(axes)
    torch.testing.assert_close(found, (total / 4).softmax(0), rtol=0, atol=1e-5)
    blocks = predict(network, image, dimensions, 8000 if dimensions == 3 else 600, mirror=(0, 1))
    torch.testing.assert_close(blocks, found, rtol=0, atol=1e-5)


def test_mirroring_of_a_symmetric_network_changes_nothing():
    network, image = Recorder(), an_image(16, 16, 16)
    plain = predict(network, image, 3, ENOUGH)
    torch.testing.assert_close(predict(network, image, 3, ENOUGH, mirror=(0, 1, 2)), plain, rtol=0, atol=1e-6)


def test_a_2d_network_works_slice_by_slice():
    network, image = a_tiny_network(2), an_image(20, 14, 5)
    together = predict(network, image, 2, ENOUGH)
    for k in range(5):
        alone = predict(network, image[..., k : k + 1], 2, ENOUGH)
        torch.testing.assert_close(together[..., k : k + 1], alone, rtol=0, atol=1e-5)
    assert (together[..., 0] - together[..., 1]).abs().max() > 1e-3


@pytest.mark.parametrize(("limit", "batches"), [(ENOUGH, [7]), (16 * 16 * 3, [3, 3, 1]), (16 * 16, [1] * 7)])
def test_slices_go_through_together_as_far_as_the_limit_allows(limit, batches):
    network = Recorder()
    predict(network, an_image(16, 16, 7), 2, limit)
    assert [size[0] for size in network.sizes] == batches
    assert all(len(size) == 4 for size in network.sizes)


def test_the_limit_is_the_same_for_all_networks_in_values():
    assert whole_image_limit(8.0) == 8 * whole_image_limit(64.0) == 2**25


def test_auto_picks_a_device_that_is_there_and_a_named_one_is_kept():
    expected = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert pick_device("auto") == expected
    assert pick_device("cpu") == "cpu"


@pytest.mark.parametrize("asked", ["mps", "tpu"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(asked):
    if asked == "mps" and torch.backends.mps.is_available():
        pytest.skip("it is there")
    with pytest.raises(ValueError, match=f"the device '{asked}' is not there; found: .*cpu"):
        pick_device(asked)


def test_the_maps_of_a_pass_are_gone_before_the_next_begins():
    given = []

    def network(batch):
        assert all(array() is None for array in given)
        maps = np.zeros((1, 2, *batch.shape[2:]), np.float32)
        given.append(weakref.ref(maps))
        return torch.from_numpy(maps)

    network.total_stride, network.margin = 4, 4
    for _, _, maps in class_maps(network, an_image(16, 16, 64), 3, 16**3):
        assert maps.shape[0] == 2
        del maps
    assert len(given) > 2


class InHalves:
    """Class 0 has the logit of the image's own value, class 1 twice that; counts what its halves are shown."""

    total_stride = margin = 4

    def __init__(self):
        self.halves, self.bodies, self.heads = Halves(self.body, self.head, 2, 2), [], []

    def body(self, batch):
        self.bodies.append(batch.numel())
        return space_to_depth(batch, 2)

    def head(self, features):
        self.heads.append(2 * features.numel())
        return depth_to_space(torch.cat([features, 2 * features], 1), 2)

    def __call__(self, batch):
        return self.head(self.body(batch))


@pytest.mark.parametrize(("limit", "passes"), [(ENOUGH, 1), (40 * 40 * 72, 2)])
def test_the_head_of_a_network_in_halves_works_piece_by_piece(limit, passes, monkeypatch):
    monkeypatch.setattr(predictor, "PIECE_VALUES", 20000)
    size, network = (37, 38, 83), InHalves()
    image, seen = an_image(*size), torch.zeros(size)
    for start, stop, maps in class_maps(network, image, 3, limit):
        seen[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] += 1
        more = image[0][tuple(slice(a, min(b + 1, n)) for a, b, n in zip(start, stop, size, strict=True))]
        torch.testing.assert_close(maps, torch.stack([more, 2 * more]))
    assert (seen == 1).all()
    assert len(network.bodies) == passes and max(network.bodies) <= 40 * 40 * 84
    assert len(network.heads) > 5 * passes and max(network.heads) < 2 * 20000


def test_mirrored_and_small_images_go_through_a_network_in_halves_as_a_whole():
    image, network = an_image(20, 20, 20), InHalves()
    found = predict(network, image, 3, ENOUGH, mirror=(0,))
    torch.testing.assert_close(found, torch.stack([image[0], 2 * image[0]]).softmax(0))
    assert len(network.bodies) == len(network.heads) == 2
