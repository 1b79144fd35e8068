"""Footprint: how much memory the tensors of a forward pass take, found without computing anything."""

from __future__ import annotations

import copy
import math
import weakref

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

PROBE_STRIDES = 8  # edge of the imagined image, in total strides: windows and padding then weigh little


def most_alive(network: nn.Module, in_channels: int) -> float:
    """Values that are alive at once in a forward pass, for each voxel of the image; the image itself is one of them.

    A copy of the network runs on torch's device "meta", where tensors have sizes and no content.
    """
    network = copy.deepcopy(network).to("meta").eval()
    size = [PROBE_STRIDES * network.total_stride] * network.dimensions
    with torch.no_grad(), _Counter() as counter:
        network(torch.empty(1, in_channels, *size, device="meta"))
    return counter.most / math.prod(size)


class _Counter(TorchDispatchMode):
    """Counts the values of all tensors that operations make, until they are let go."""

    def __init__(self):
        super().__init__()
        self.alive = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(found):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage(), tensor.element_size())
        return found

    def _count(self, storage: torch.UntypedStorage, bytes_each: int) -> None:
        key, values = storage._cdata, storage.nbytes() // bytes_each
        if key in self.known:
            return  # a view
        self.known.add(key)
        self.alive += values
        self.most = max(self.most, self.alive)
        weakref.finalize(storage, self._let_go, key, values)

    def _let_go(self, key: int, values: int) -> None:
        self.known.discard(key)
        self.alive -= values
