"""Foreign: a network that somebody else made, as a teacher: prepared, run in windows, brought back to the volume."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ...records.labels import Labels
from ..volume import Volume
from .preparation import Preparation

ACTIVATIONS = ("softmax", "sigmoid", "none")


@dataclass(frozen=True)
class Window:
    """Size of the part of an image that a network sees at once (None: the whole), and how much windows overlap."""

    patch_size_voxels: tuple[int, ...] | None
    overlap: float = 0.25


@dataclass
class ForeignNetwork:
    """A teacher around any function that gives scores `(B, channels, *size)` for `(B, C, *size)`.

    `activation` turns its scores into probabilities: softmax over the channels; sigmoid of each; none where they are
    probabilities already. `background`: whether channel 0 is the background. Without it, each channel is a
    structure by itself, and where several are likely the later one counts, as tumours and their parts are painted.
    """

    name: str
    labels: Labels
    run: Callable[[torch.Tensor], torch.Tensor]
    preparation: Preparation
    window: Window
    activation: str = "softmax"
    background: bool = True
    network: nn.Module | None = None
    hint: str = ""
    device: str = "cpu"

    @torch.inference_mode()
    def predict(self, volume: Volume) -> np.ndarray:
        """Class probabilities `(C, I, J, K)` float32 in the geometry of the volume, background first."""
        image = self.preparation.prepare(volume)
        scores = self._scores(image.as_tensor().float())
        probabilities = exclusive(activated(scores, self.activation), self.background)
        return self.preparation.to_volume(probabilities, image, volume)

    def _scores(self, image: torch.Tensor) -> torch.Tensor:
        """Scores `(channels, i, j, k)` of a prepared image `(C, i, j, k)`."""
        if self.preparation.dimensions == 3:
            return self._in_windows(image[None])[0]
        slices = image.permute(3, 0, 1, 2)
        return torch.cat([self._in_windows(one) for one in slices.split(1)]).permute(1, 2, 3, 0)

    def _in_windows(self, batch: torch.Tensor) -> torch.Tensor:
        from monai.inferers import sliding_window_inference

        size = self.window.patch_size_voxels
        if size is None:
            return self._checked(batch.to(self.device)).float().cpu()
        options = {"overlap": self.window.overlap, "mode": "gaussian", "sw_device": self.device, "device": "cpu"}
        return sliding_window_inference(batch, size, 1, self._checked, **options).float()

    def _checked(self, batch: torch.Tensor) -> torch.Tensor:
        """The network's scores of a batch; deep supervision's first, which is the finest."""
        scores = self.run(batch)
        while isinstance(scores, (tuple, list, dict)):
            scores = next(iter(scores.values() if isinstance(scores, dict) else scores))
        channels = self.labels.channels if self.background else len(self.labels.structures)
        if scores.shape[0] != batch.shape[0] or scores.shape[2:] != batch.shape[2:] or scores.shape[1] != channels:
            found, needed = tuple(scores.shape), (batch.shape[0], channels, *batch.shape[2:])
            raise ValueError(f"{self.name}: the network gives an array {found}; for its structures it must be {needed}")
        return scores


def activated(scores: torch.Tensor, activation: str) -> torch.Tensor:
    """Probabilities of scores `(C, i, j, k)`."""
    if activation == "none":
        return scores.clamp(0, 1)
    return scores.softmax(0) if activation == "softmax" else scores.sigmoid()


def exclusive(probabilities: torch.Tensor, background: bool) -> torch.Tensor:
    """Class probabilities that add up to 1, background first.

    Without a background, structure n is there where it is likely and no later one is:
    `p_n * prod over m > n of (1 - p_m)`; what is missing to 1 is the background. At p = 0 or 1 that is painting one
    structure over the other.
    """
    if background:
        return probabilities / probabilities.sum(0, keepdim=True).clamp_min(1e-6)
    left, parts = torch.ones_like(probabilities[0]), []
    for probability in probabilities.flip(0):
        parts.append(probability * left)
        left = left * (1 - probability)
    return torch.stack([left, *reversed(parts)])
