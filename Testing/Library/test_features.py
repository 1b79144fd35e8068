"""Features: a network's levels are read on the way."""

import pytest
import torch

from KnowledgeTransferLib.learning.features import outputs_of


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
