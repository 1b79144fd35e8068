"""Response: the student's classes against the teacher's, both softened by a temperature."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ...records.settings import DistilSettings
from ..features import Outputs, Shapes, Target
from ..marginal import marginal_logits
from .loss import DistillationLoss, weighted_mean

LEAST_PROBABILITY = 1 / 512  # half a step of the stored probabilities: what is stored as 0 lies below it


class Response(DistillationLoss):
    """`T^2 KL(p_T || q_T)`, the mean over voxels (Hinton et al. 2015, arXiv:1503.02531, section 2).

    `p_T` and `q_T` are the softmax of the teacher's and the student's logits divided by the temperature T. Without a
    live teacher, the logarithms of the stored probabilities are its logits. A single channel is one structure without a
    background: its softmax with a background of logit 0 is the sigmoid. (A softmax over the channel alone is 1
    everywhere, and the loss 0.) What stored probabilities do not know counts as background, as in the loss dice-ce.
    """

    def __init__(self, shapes: Shapes | None, settings: DistilSettings):
        super().__init__(shapes, settings)
        self.temperature = settings.response_temperature

    def forward(self, student: Outputs, teacher: Outputs | None, target: Target) -> torch.Tensor:
        given, own = teacher.logits.float() if teacher else None, student.logits.float()
        if given is None:
            stored = target.probabilities.clamp_min(LEAST_PROBABILITY).log()
            given, own = (marginal_logits(logits, target.known) for logits in (stored, own))
        expected, found = self._log_classes(given), self._log_classes(own)
        divergence = (expected.exp() * (expected - found)).sum(1)
        return self.temperature**2 * weighted_mean(divergence, target.weights)

    def _log_classes(self, logits: torch.Tensor) -> torch.Tensor:
        if logits.shape[1] == 1:
            logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
        return F.log_softmax(logits / self.temperature, dim=1)
