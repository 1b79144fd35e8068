"""Features: a network's levels are read on the way."""

import pytest
import torch

from KnowledgeTransferLib.learning.features import Shapes, outputs_of, shapes_of, tap_pairs
from KnowledgeTransferLib.learning.networks import build_named_network


class TwoLayers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.Conv2d(4, 2, 1)
        self.taps = {"encoder1": "first"}

    def forward(self, x):
        return self.head(self.first(x))


def test_features_are_read_at_the_taps_and_the_gradient_goes_through_them():
    network, image = TwoLayers(), torch.randn(1, 1, 8, 8)
    outputs = outputs_of(network, image, ("encoder1",))
    assert torch.equal(outputs.features["encoder1"], network.first(image))
    assert torch.equal(outputs.logits, network(image))
    outputs.features["encoder1"].sum().backward()
    assert network.first.weight.grad.abs().max() > 0


def test_nothing_stays_hooked_to_the_network():
    network = TwoLayers()
    outputs_of(network, torch.zeros(1, 1, 8, 8), ("encoder1",))
    assert not network.first._forward_hooks


def test_an_unknown_tap_is_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match="no feature tap 'decoder9'; it has encoder1"):
        outputs_of(TwoLayers(), torch.zeros(1, 1, 8, 8), ("decoder9",))


SHAPES = Shapes(
    student={"encoder1": (4, 32, 32), "encoder2": (6, 16, 16), "bottleneck": (8, 8, 8), "decoder1": (4, 32, 32)},
    teacher={f"encoder{n}": (9, 128 >> n, 128 >> n) for n in range(1, 5)}
    | {"bottleneck": (9, 4, 4), "decoder1": (9, 64, 64)},
    image=(1, 64, 64), classes=2,
)  # fmt: skip


@pytest.mark.parametrize(
    ("scales", "pairs"),
    [
        (("encoder",), {("encoder1", "encoder2"): 0.5, ("encoder2", "encoder3"): 0.5}),
        (("encoder2",), {("encoder2", "encoder3"): 1}),
        (("bottleneck", "decoder"), {("bottleneck", "bottleneck"): 0.5, ("decoder1", "decoder1"): 0.5}),
        (("encoder1:bottleneck",), {("encoder1", "bottleneck"): 1}),
        (("bottleneck", "bottleneck"), {("bottleneck", "bottleneck"): 1}),
        (
            ("encoder", "bottleneck=2", "decoder"),
            {("encoder1", "encoder2"): 0.125, ("encoder2", "encoder3"): 0.125, ("bottleneck", "bottleneck"): 0.5}
            | {("decoder1", "decoder1"): 0.25},
        ),
    ],
)
def test_a_scale_pairs_the_taps_of_a_kind_whose_grids_are_nearest(scales, pairs):
    assert tap_pairs(scales, SHAPES) == pairs


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        ("encoder9", "the student has no such feature tap; it has encoder1, encoder2, bottleneck, decoder1"),
        ("skips", "the student has no such feature tap"),
        ("encoder=0", "--scales encoder=0: 0 is no weight; write bottleneck=2, say"),
        ("encoder=", "--scales encoder=: nothing is no weight"),
        ("encoder=much", "much is no weight"),
        ("encoder1:encoder9", "the teacher has no such feature tap; it has encoder1, encoder2, encoder3"),
    ],
)
def test_a_scale_that_is_not_there_is_refused_with_those_that_are(scale, message):
    with pytest.raises(ValueError, match=message):
        tap_pairs((scale,), SHAPES)


def test_the_shapes_of_two_networks_are_those_of_one_image():
    student, teacher = build_named_network("s1", 2, 3, 2), build_named_network("large", 2, 3, 4)
    student.train()
    found = shapes_of(student, teacher, 3)
    assert found.image == (3, 32, 32) and found.classes == 2
    assert found.student["encoder1"] == (16, 32, 32) and found.student["bottleneck"] == (64, 8, 8)
    assert found.teacher["encoder1"] == (32, 32, 32) and found.teacher["bottleneck"] == (320, 2, 2)
    assert student.training and student.encoder[0][1].num_batches_tracked == 0, "looking changes nothing"


def test_an_image_gives_features_of_the_shapes_that_were_foreseen():
    network = build_named_network("s1", 3, 1, 2)
    foreseen = shapes_of(network, None, 1)
    features = outputs_of(network, torch.zeros(2, *foreseen.image), network.taps).features
    assert {tap: tuple(feature.shape[1:]) for tap, feature in features.items()} == foreseen.student
    assert foreseen.teacher == {}
