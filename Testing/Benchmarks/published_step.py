"""Published step: `knowledge-transfer` with the losses as the published code of arXiv:2406.03173 has them, faults included.

For comparison alone: `python Testing/Benchmarks/published_step.py distil RUN --loss contrastive --loss response ...`
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from torch import nn

from KnowledgeTransferLib.__main__ import main
from KnowledgeTransferLib.learning.features import Outputs, Target
from KnowledgeTransferLib.learning.losses import LOSSES
from KnowledgeTransferLib.learning.losses.loss import DistillationLoss, PairedLoss, on_grid

CONTRASTIVE_TEMPERATURE, RESPONSE_TEMPERATURE = 0.4, 4.0


class PublishedContrastive(PairedLoss):
    """Whole maps of a batch, flattened; the projection of the teacher's channels is new in each batch, never trained."""

    def compare(self, number: int, own: torch.Tensor, other: torch.Tensor, target: Target) -> torch.Tensor:
        projection = nn.Conv2d(other.shape[1], own.shape[1], 1).to(own.device)
        other = on_grid(projection(other), own.shape[2:])
        own, other = (F.normalize(maps.flatten(1), dim=1) for maps in (own, other))
        return F.cross_entropy(own @ other.T / CONTRASTIVE_TEMPERATURE, torch.arange(len(own), device=own.device))


class PublishedResponse(DistillationLoss):
    """Divergence of softened maps by a softmax over the one channel of the structure: 1 everywhere, so always 0."""

    needs_teacher = True

    def forward(self, student: Outputs, teacher: Outputs, target: Target) -> torch.Tensor:
        own, other = (_one_channel(outputs.logits) / RESPONSE_TEMPERATURE for outputs in (student, teacher))
        return (
            F.kl_div(F.log_softmax(own, dim=1), F.softmax(other, dim=1), reduction="batchmean")
            * RESPONSE_TEMPERATURE**2
        )


def _one_channel(logits: torch.Tensor) -> torch.Tensor:
    """The logit of one structure `(B, 1, *size)`, as a network with a sigmoid has it, of our two classes."""
    return (logits[:, 1:] - logits[:, :1]).float()


if __name__ == "__main__":
    LOSSES.update({"contrastive": PublishedContrastive, "response": PublishedResponse})
    sys.exit(main())
