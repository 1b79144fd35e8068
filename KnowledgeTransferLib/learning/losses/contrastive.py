"""Contrastive: the features of an image in student and teacher belong together, those of two images do not."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ...records.settings import DistilSettings
from ..features import Shapes, Target
from .loss import ProjectedLoss, on_grid, standardised


class Contrastive(ProjectedLoss):
    """InfoNCE between the whole maps of a batch, as arXiv:2406.03173 does it, with heads that are learnt.

    With `s_i` and `t_i` the maps of image i in student and teacher as vectors of length 1, and the temperature T:
    `-mean_i log(exp(s_i t_i / T) / sum_j exp(s_i t_j / T))` (van den Oord et al. 2018, arXiv:1807.03748, equation 4).
    """

    def __init__(self, shapes: Shapes, settings: DistilSettings):
        super().__init__(shapes, settings)
        if settings.batch_size == 1:
            raise ValueError("the loss contrastive compares the images of a batch; take a --batch-size of 2 or more")
        self.temperature = settings.contrastive_temperature

    def compare(self, number: int, own: torch.Tensor, other: torch.Tensor, target: Target) -> torch.Tensor:
        head = self.heads[number]
        on_both = (head.project(own), on_grid(head.mixed(other), own.shape[2:]))
        own, other = (standardised(maps).flatten(1) for maps in on_both)
        squares, other_squares = (torch.linalg.vecdot(maps, maps).clamp_min(1e-6) for maps in (own, other))
        lengths = (squares[:, None] * other_squares).sqrt()  # dividing the products saves two passes over all maps
        similarities = own @ other.T / lengths / self.temperature
        return F.cross_entropy(similarities, torch.arange(len(own), device=own.device))
