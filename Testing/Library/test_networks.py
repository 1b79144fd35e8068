"""Networks: every design in every dimension; counted parameters; folding and sub-pixel stem change nothing."""

import copy
import functools
import itertools

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from KnowledgeTransferLib.learning.features import Outputs, Target
from KnowledgeTransferLib.learning.losses import WeightedLosses
from KnowledgeTransferLib.learning.networks import (
    build_named_network,
    build_network,
    for_inference,
    most_alive,
    parameters_of,
)
from KnowledgeTransferLib.learning.networks.inference import folded
from KnowledgeTransferLib.learning.networks.layers import DoubleLinearly
from KnowledgeTransferLib.learning.networks.swin_unetr import WindowAttention
from KnowledgeTransferLib.learning.networks.unet import UNet, depth_to_space, space_to_depth
from KnowledgeTransferLib.learning.predictor import predict
from KnowledgeTransferLib.records.students import STUDENTS, design_named

EVERY_DESIGN = pytest.mark.parametrize("name", STUDENTS)
EVERY_DIMENSION = pytest.mark.parametrize("dimensions", [2, 3])
ENOUGH = 10**9  # voxels that go through in one pass


def a_network(name: str, dimensions: int, in_channels: int = 1, classes: int = 3) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_network(design_named(name), dimensions, in_channels, classes)


@EVERY_DESIGN
@EVERY_DIMENSION
def test_a_design_learns_what_it_is_shown(name, dimensions):
    network = a_network(name, dimensions)
    size = (2 * network.total_stride,) * dimensions
    image = torch.randn(1, 1, *(n // 8 for n in size), generator=torch.Generator().manual_seed(1))
    image = torch.nn.functional.interpolate(image, size)  # blocks of 8 voxels, for networks of coarser output
    classes = torch.bucketize(image[:, 0], torch.tensor([-0.5, 0.5]))
    target = torch.stack([(classes == c).float() for c in range(3)], 1)
    loss, optimizer = WeightedLosses({"dice-ce": 1.0}), torch.optim.AdamW(network.parameters(), 3e-3)
    values = []
    for _ in range(3):
        logits = network(image)
        assert logits.shape == (1, 3, *size)
        values.append(loss(Outputs(logits), None, Target(target, image)))
        optimizer.zero_grad()
        values[-1].backward()
        optimizer.step()
    assert values[-1] < values[0]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@EVERY_DESIGN
@pytest.mark.parametrize(("dimensions", "shape"), [(3, (7, 13, 3)), (3, (1, 2, 17)), (2, (11, 5, 2)), (2, (3, 19, 1))])
def test_a_design_segments_odd_sizes(name, dimensions, shape):
    network = a_network(name, dimensions, in_channels=2).eval()
    image = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    probabilities = predict(network, image, dimensions, ENOUGH)
    assert probabilities.shape == (3, *shape)
    torch.testing.assert_close(probabilities.sum(0), torch.ones(shape))
    assert probabilities.std() > 0


@pytest.mark.parametrize("name", ["tiny", "small", "medium"])
@EVERY_DIMENSION
def test_the_voxels_of_a_block_begin_with_the_same_classes(name, dimensions):
    network = a_network(name, dimensions).eval()
    logits = network(torch.randn(1, 1, *[network.total_stride] * dimensions))
    first = logits[(..., *[slice(None, None, network.stem)] * dimensions)]
    assert network.stem == 2 and first.std() > 0
    torch.testing.assert_close(logits, torch.nn.functional.interpolate(first, scale_factor=2))


@EVERY_DESIGN
@EVERY_DIMENSION
def test_a_design_names_its_levels_for_hooks_from_fine_to_coarse_and_back(name, dimensions):
    """In mixed precision and wrapped by Fabric, as in a training; and nothing changes a feature after it was read."""
    network = a_network(name, dimensions)
    features, copies = {}, {}
    for tap, module in network.taps.items():
        hook = functools.partial(_keep, features, copies, tap)
        network.get_submodule(module).register_forward_hook(hook)
    size = (*[network.total_stride] * (dimensions - 1), 2 * network.total_stride)  # see bf16_is_wrong
    Fabric(accelerator="cpu", precision="bf16-mixed").setup(network)(torch.randn(2, 1, *size))
    names, place = list(features), list(features).index("bottleneck")
    assert names[:place] == [f"encoder{n}" for n in range(1, place + 1)] and place > 1
    assert (
        names[place + 1 :] == [f"decoder{n}" for n in range(len(names) - place - 1, 0, -1)] and names[-1] == "decoder1"
    )
    assert all(feature.dim() == 2 + dimensions and len(feature) == 2 for feature in features.values())
    assert all(torch.equal(features[tap], copies[tap]) for tap in names)
    strides = [size[-1] // feature.shape[-1] for feature in features.values()]
    assert strides == sorted({*strides[: place + 1]}) + sorted({*strides[place + 1 :]}, reverse=True)


def _keep(features, copies, tap, module, inputs, output):
    features[tap], copies[tap] = output, output.clone()


@pytest.mark.parametrize(
    ("name", "dimensions", "channels", "classes", "fewest", "most"),
    [
        ("tiny", 2, 1, 2, 30_000, 60_000),
        ("tiny", 3, 1, 3, 30_000, 60_000),
        ("tiny", 3, 1, 5, 30_000, 60_000),
        ("tiny", 2, 3, 2, 30_000, 60_000),
        ("small", 3, 1, 3, 200_000, 300_000),
        ("small", 2, 1, 3, 200_000, 300_000),
        ("medium", 3, 1, 3, 1_700_000, 2_400_000),
        ("medium", 2, 1, 3, 1_700_000, 2_400_000),
        ("large", 3, 1, 3, 3_000_000, 6_500_000),
        ("large", 2, 1, 3, 3_000_000, 6_500_000),
        ("s1", 2, 3, 2, 56_500, 57_500),
        ("s2", 2, 3, 2, 226_500, 227_500),
        ("unet", 2, 1, 2, 1_000_000, 1_500_000),
        ("unet", 3, 1, 2, 1_000_000, 1_500_000),
        ("attention-unet", 2, 1, 2, 1_000_000, 1_500_000),
        ("attention-unet", 3, 1, 2, 1_000_000, 1_500_000),
        ("sdu-net", 2, 1, 2, 500_000, 750_000),
        ("sdu-net", 3, 1, 2, 500_000, 750_000),
        ("deeplabv3plus", 2, 1, 2, 1_300_000, 1_950_000),
        ("deeplabv3plus", 3, 1, 2, 1_300_000, 1_950_000),
        ("panoptic-fpn", 2, 1, 2, 1_200_000, 2_050_000),
        ("panoptic-fpn", 3, 1, 2, 1_200_000, 2_050_000),
        ("dynunet", 2, 1, 2, 1_000_000, 1_500_000),
        ("dynunet", 3, 1, 2, 1_000_000, 1_500_000),
        ("segresnet", 2, 1, 2, 1_150_000, 1_650_000),
        ("segresnet", 3, 1, 2, 1_150_000, 1_650_000),
        ("mednext-s", 2, 1, 2, 5_400_000, 5_650_000),
        ("mednext-s", 3, 1, 2, 5_400_000, 5_650_000),
        ("swin-unetr", 2, 1, 2, 1_100_000, 1_800_000),
        ("swin-unetr", 3, 1, 2, 1_100_000, 1_800_000),
        ("transunet", 2, 1, 2, 1_700_000, 1_900_000),
        ("transunet", 3, 1, 2, 1_700_000, 1_900_000),
        ("t1", 2, 1, 2, 30_900_000, 31_100_000),
        ("t1", 3, 1, 2, 5_500_000, 6_500_000),
        ("t2", 2, 1, 2, 25_500_000, 26_500_000),
        ("t2", 3, 1, 2, 5_500_000, 6_900_000),
    ],
)
def test_a_design_has_the_number_of_parameters_that_it_claims(name, dimensions, channels, classes, fewest, most):
    assert fewest <= parameters_of(a_network(name, dimensions, channels, classes)) <= most


@EVERY_DIMENSION
def test_s1_has_the_layers_of_the_paper(dimensions):
    """16-32-64, one 3 x 3 convolution with batch norm per level, transposed convolutions, skips by concatenation."""
    widths, three = (16, 32, 64), 3**dimensions
    encoder = sum(three * a * b + 2 * b for a, b in zip((3, 16, 32), widths, strict=True))
    up = sum(2**dimensions * coarse * fine + fine for coarse, fine in ((64, 32), (32, 16)))
    decoder = sum(three * 2 * fine * fine + 2 * fine for fine in (32, 16))
    assert parameters_of(a_network("s1", dimensions, 3, 2)) == encoder + up + decoder + 16 * 2 + 2


def test_an_unknown_design_or_dimension_is_refused():
    with pytest.raises(ValueError, match="no student design 'huge'; choose one of tiny, small"):
        build_named_network("huge", 3, 1, 2)
    with pytest.raises(ValueError, match="2 or 3 dimensions; found 4"):
        build_named_network("tiny", 4, 1, 2)


@EVERY_DESIGN
@EVERY_DIMENSION
def test_folding_changes_no_output(name, dimensions):
    network = a_network(name, dimensions)
    _randomise_norms(network)
    image = torch.randn(1, 1, *(2 * network.total_stride,) * dimensions, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = network.eval()(image)
        after = folded(network)(image)
    assert before.std() > 1e-3
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4 * float(before.std()))


@EVERY_DESIGN
@pytest.mark.parametrize(("dimensions", "batch"), [(2, 3), (3, 1)])
def test_a_network_for_inference_says_the_same(name, dimensions, batch):
    network = a_network(name, dimensions, in_channels=2)
    _randomise_norms(network)
    random = torch.Generator().manual_seed(1)
    image = torch.randn(batch, 2, *(n * network.total_stride for n in (3, 2, 2)[:dimensions]), generator=random)
    fast = for_inference(copy.deepcopy(network), "cpu")
    with torch.inference_mode():
        before, after = network.eval()(image), fast(image)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4 * float(before.std()))


@pytest.mark.parametrize("name", [name for name, design in STUDENTS.items() if design.network in ("unet", "sdu-net")])
@EVERY_DIMENSION
def test_folding_leaves_no_batch_norm(name, dimensions):
    network = folded(a_network(name, dimensions))
    assert not [m for m in network.modules() if isinstance(m, (torch.nn.BatchNorm2d, torch.nn.BatchNorm3d))]


@pytest.mark.parametrize("size", [(4, 6), (6, 2, 4)])
@pytest.mark.parametrize("channels", [1, 3])
def test_blocks_become_channels_as_a_slow_loop_says(size, channels):
    factor, n = 2, len(size)
    x = torch.arange(2 * channels * np.prod(size)).float().reshape(2, channels, *size)
    packed = space_to_depth(x, factor)
    assert packed.shape == (2, channels * factor**n, *(s // factor for s in size))
    for channel, place in itertools.product(range(channels), itertools.product(*map(range, size))):
        block = sum((p % factor) * factor ** (n - 1 - axis) for axis, p in enumerate(place))
        coarse = tuple(p // factor for p in place)
        torch.testing.assert_close(
            packed[(slice(None), channel * factor**n + block, *coarse)], x[(slice(None), channel, *place)]
        )


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_depth_to_space_undoes_space_to_depth(factor, dimensions):
    x = torch.randn(2, 3, *(factor * n for n in (2, 3, 1)[:dimensions]))
    torch.testing.assert_close(depth_to_space(space_to_depth(x, factor), factor), x, rtol=0, atol=0)


@EVERY_DIMENSION
def test_a_unet_of_batch_norm_is_local(dimensions):
    """What lies beyond its field of view changes nothing, so windows give what the whole image gives."""
    network = UNet(dimensions, 1, 2, (4, 4), stem=2).eval()
    image = torch.randn(1, 1, 48, *(8,) * (dimensions - 1))
    changed = image.clone()
    changed[:, :, 32:] += 5
    with torch.no_grad():
        a, b = network(image), network(changed)
    torch.testing.assert_close(a[:, :, :12], b[:, :, :12], rtol=0, atol=1e-6)
    assert (a[:, :, 32:] - b[:, :, 32:]).abs().max() > 1e-3


@EVERY_DIMENSION
def test_doubling_is_linear_interpolation(dimensions):
    x = torch.randn(2, 3, *(4, 1, 5)[:dimensions], generator=torch.Generator().manual_seed(0))
    wanted = torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear" if dimensions == 2 else "trilinear")
    torch.testing.assert_close(DoubleLinearly()(x), wanted)


@EVERY_DIMENSION
def test_shifted_windows_see_nothing_of_the_padding_nor_of_the_other_end(dimensions):
    torch.manual_seed(0)
    attention = WindowAttention(dimensions, 12, window=4, shift=2)
    x = torch.randn(1, *(6,) * dimensions, 12)
    changed = x.clone()
    changed[:, 0] += 1  # sees, and is seen by, what lies in its own shifted window: places 0 and 1
    with torch.no_grad():
        moved = (attention(x) - attention(changed)).abs().amax(dim=(0, *range(2, 2 + dimensions)))
    assert (moved[:2] > 1e-6).all() and (moved[2:] < 1e-6).all()


def test_the_same_seed_gives_the_same_weights():
    first, again = a_network("tiny", 3).state_dict(), a_network("tiny", 3).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)


@EVERY_DESIGN
@EVERY_DIMENSION
def test_no_weight_is_stored_twice_in_a_network_or_its_copy(name, dimensions):
    network = a_network(name, dimensions)
    for each in (network, copy.deepcopy(network)):
        weights = [t for t in each.state_dict().values() if t.numel()]
        assert len({t.data_ptr() for t in weights}) == len(weights)
        assert sum(t.numel() for n, t in each.named_parameters()) == parameters_of(network)


def _randomise_norms(network: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(2)
    for module in network.modules():
        if isinstance(module, (torch.nn.BatchNorm2d, torch.nn.BatchNorm3d)):
            for tensor, low, high in (
                (module.running_mean, -1, 1), (module.running_var, 0.3, 3),
                (module.weight.data, 0.5, 2), (module.bias.data, -1, 1),
            ):  # fmt: skip
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)


@pytest.mark.parametrize("name", ["tiny", "small", "medium", "unet"])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_what_a_unet_holds_before_its_head_is_known(name, dimensions):
    network = build_named_network(name, dimensions, 2, 2)
    network.head = torch.nn.Identity()
    held = most_alive(network, 2)
    assert 0.99 * held <= network.body_values_per_voxel <= 1.15 * held
