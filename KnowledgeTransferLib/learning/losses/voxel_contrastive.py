"""Voxel contrastive: what a voxel is in the teacher it shall be in the student, and unlike other structures."""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed
import torch.nn.functional as F

from ...records.settings import DistilSettings
from ..features import Outputs, Shapes, Target
from .loss import ProjectedLoss, on_grid, standardised

DRAWN = 64  # voxels of each class in a step
REMEMBERED = 256  # voxels of each class in the memory bank
MOST_DRAWN = 2048  # of all classes together; with many classes fewer of each are drawn and remembered
HARDEST = 128  # negatives that count: those nearest to the anchor


class VoxelContrastive(ProjectedLoss):
    """InfoNCE between voxels: `-log(exp(s p / T) / (exp(s p / T) + sum_n exp(s n / T)))`, the mean over anchors.

    The anchors s are voxels of the student, equally many of each class. The positive p is the teacher at the same
    place; the negatives n are the teacher's voxels of other classes, in this batch and in a memory bank of earlier
    ones, the hardest of them (Wang et al. 2021, arXiv:2101.11939, section 3.2). The teacher stands still and the bank
    holds its features as they are, so it does not age: they are standardised together with those of the batch, which
    may lack classes. What is drawn depends on the seed and on how many steps there were; the bank and that number are
    part of the checkpoint.
    """

    most_channels = 64  # of single voxels
    same_structure = False

    def __init__(self, shapes: Shapes, settings: DistilSettings):
        super().__init__(shapes, settings)
        self.temperature, self.seed, self.classes = settings.contrastive_temperature, settings.seed, shapes.classes
        limit = max(2, MOST_DRAWN // self.classes)
        self.drawn, self.remembered = min(DRAWN, limit), min(REMEMBERED, 4 * limit)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        for number, head in enumerate(self.heads):
            self.register_buffer(f"bank{number}", torch.zeros(self.classes, self.remembered, head.channels))

    def forward(self, student: Outputs, teacher: Outputs, target: Target) -> torch.Tensor:
        value = super().forward(student, teacher, target)
        self.steps += 1
        return value

    def compare(self, number: int, own: torch.Tensor, other: torch.Tensor, target: Target) -> torch.Tensor:
        places, drawn = self._draw(_places(target, own.shape[2:], self.classes), number)
        images, voxels = places // own[0, 0].numel(), places % own[0, 0].numel()
        head = self.heads[number]
        there = _same_place(voxels, own.shape[2:], other.shape[2:])
        own = own.flatten(2)[images, :, voxels] @ head.project.weight.flatten(1).T  # (anchors, channels)
        other = head.mixed(other.flatten(2)[images, :, there])
        names, known = self._with_remembered(drawn, other, getattr(self, f"bank{number}"))
        if len(drawn):  # else nothing in this batch has a weight
            own, known = (F.normalize(standardised(vectors), dim=1) for vectors in (own, known))
        value = self._info_nce(own, drawn, known, names)
        self._remember(number, other, drawn)
        return value

    def _with_remembered(self, drawn: torch.Tensor, other: torch.Tensor, bank: torch.Tensor):
        """Classes and vectors of the teacher: those of this batch, then those in the bank `(classes, n, channels)`."""
        filled = bank.flatten(0, 1).any(1)
        names = torch.arange(self.classes, device=drawn.device).repeat_interleave(bank.shape[1])[filled]
        return torch.cat([drawn, names]), torch.cat([other, bank.flatten(0, 1)[filled]])

    def _draw(self, places: list[torch.Tensor], number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Place and class of each anchor, from the places of each class; a place may be drawn twice."""
        parts = (self.seed, 5, int(self.steps), number)
        random = torch.Generator().manual_seed(int(np.random.SeedSequence(parts).generate_state(1)[0]))
        chances = torch.rand(self.classes, self.drawn, generator=random).to(places[0].device)
        there = [name for name, found in enumerate(places) if len(found)]
        chosen = [
            places[name][(chances[name] * len(places[name])).long().clamp_max(len(places[name]) - 1)] for name in there
        ]
        drawn = torch.tensor(there, dtype=torch.long, device=chances.device).repeat_interleave(self.drawn)
        return torch.cat([places[0][:0], *chosen]), drawn

    def _info_nce(self, own, drawn: torch.Tensor, known: torch.Tensor, names: torch.Tensor) -> torch.Tensor:
        """The loss of anchors `(n, channels)` of the classes `drawn`; the first n of the known are at their places."""
        if not len(drawn) or not (names != names[0]).any():
            return own.sum() * 0.0  # one class alone has no negatives
        similarities, same = own @ known.T / self.temperature, drawn[:, None] == names[None]
        hardest = similarities.masked_fill(same, -torch.inf).topk(min(HARDEST, len(known)), dim=1, sorted=False).values
        negatives = hardest.logsumexp(1)
        if not self.same_structure:
            return F.softplus(negatives - (own * known[: len(own)]).sum(1) / self.temperature).mean()
        each = F.softplus(negatives[:, None] - similarities) * same
        return (each.sum(1) / same.sum(1)).mean()

    def _remember(self, number: int, other: torch.Tensor, drawn: torch.Tensor) -> None:
        """Put the teacher's voxels of this step, of all processes, before those that the bank holds."""
        new = other.new_zeros(self.classes, self.drawn, other.shape[1])
        present = torch.unique(drawn)
        new[present] = other.detach().reshape(len(present), self.drawn, other.shape[1])
        new = _of_all_processes(new)
        bank = getattr(self, f"bank{number}")
        rolled = torch.cat([new, bank], dim=1)[:, : self.remembered]
        setattr(self, f"bank{number}", torch.where(new.flatten(1).any(1)[:, None, None], rolled, bank))


class StructureContrastive(VoxelContrastive):
    """The same with annotations as the guide: the positives are all voxels of the teacher of the anchor's class.

    The mean over the positives, each against all negatives (arXiv:2101.11939, equation 3).
    """

    same_structure = True


def _same_place(voxels: torch.Tensor, grid: torch.Size, other: torch.Size) -> torch.Tensor:
    """For the numbers of voxels of a grid, those of the voxels of another grid at the same places."""
    there = torch.zeros_like(voxels)
    for place, length, other_length in zip(torch.unravel_index(voxels, grid), grid, other, strict=True):
        there = there * other_length + (2 * place + 1) * other_length // (2 * length)
    return there


def _places(target: Target, grid: torch.Size, classes: int) -> list[torch.Tensor]:
    """Of each class, the numbers of its voxels in a batch of a grid; the same for all pairs and losses of a step."""
    if grid not in target.places:
        found = _certain_classes(target, grid).flatten()
        target.places[grid] = [(found == name).nonzero()[:, 0] for name in range(classes)]
    return target.places[grid]


def _certain_classes(target: Target, grid: torch.Size) -> torch.Tensor:
    """The class of each voxel `(B, *grid)`; -1 where it has no weight, or may be a structure that nobody judged."""
    classes = on_grid(target.probabilities, grid).max(1).indices  # argmax takes 20 times as long on a CPU
    left_out = torch.zeros_like(classes, dtype=torch.bool)
    if target.weights is not None:
        left_out |= on_grid(target.weights, grid)[:, 0] == 0
    if target.known is not None:
        partial = ~target.known.all(1).reshape(-1, *[1] * len(grid))
        left_out |= partial & (classes == 0)
    return classes.masked_fill(left_out, -1)


def _of_all_processes(new: torch.Tensor) -> torch.Tensor:
    """`(classes, n, channels)` of every process, one after the other, so that all have the same bank."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return new
    parts = [torch.empty_like(new) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, new)
    return torch.cat(parts, dim=1)
