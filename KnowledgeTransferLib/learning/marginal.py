"""Marginal: classes that nobody judged count as background, so that a partial annotation says nothing wrong."""

from __future__ import annotations

import torch

UNLIKELY = -1e4  # a logit whose probability is 0, while 0 times it is still a number


def marginal_logits(logits: torch.Tensor, known: torch.Tensor | None) -> torch.Tensor:
    """Logits of the background merged with the unknown structures, as if these did not exist.

    The probability of the merged background is the sum of theirs: the marginal probability of Shi et al. 2021,
    Medical Image Analysis 70, arXiv:2007.03868. So a student is neither drawn to an unknown structure nor away from it.

    Args:
        logits: `(B, classes, *size)`.
        known: `(B, classes)` bool, the background always; None: all.
    """
    if known is None:
        return logits
    known = known.reshape(*known.shape, *[1] * (logits.ndim - 2))
    unknown = logits.masked_fill(known, UNLIKELY)
    background = torch.cat([logits[:, :1], unknown[:, 1:]], 1).logsumexp(1, keepdim=True)
    return torch.cat([background, logits[:, 1:].masked_fill(~known[:, 1:], UNLIKELY)], 1)
