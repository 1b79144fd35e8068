"""Certainty: how sure a teacher is, of a case and of each voxel."""

from __future__ import annotations

import math

import numpy as np
from scipy import special


def confidence_of(probabilities: np.ndarray, decision: np.ndarray | None = None) -> float:
    """Soft Dice confidence (arXiv:2402.10665): the Dice that the teacher itself expects of its decision.

    Twice the probability inside the decided structure over the sum of the whole probability and the structure's size,
    averaged over the structures found; 0 where nothing was found. Hard annotations have 1.

    Args:
        probabilities: `(C, I, J, K)`, background first.
        decision: the most probable channels `(I, J, K)`, where they are known already.
    """
    decision = probabilities.argmax(0) if decision is None else decision
    scores = []
    for channel in np.unique(decision[decision > 0]):
        inside = decision == channel
        expected = 2 * probabilities[channel][inside].sum(dtype=np.float64)
        scores.append(expected / (probabilities[channel].sum(dtype=np.float64) + inside.sum()))
    return float(np.mean(scores)) if scores else 0.0


def binary_entropy(probability: np.ndarray) -> np.ndarray:
    """Entropy in bits of whether something is there: 0 to 1, of any shape, float32."""
    p = np.clip(probability, 0, 1)
    return ((special.entr(p) + special.entr(1 - p)) / math.log(2)).astype(np.float32)


def uncertainty_of(probabilities: np.ndarray) -> np.ndarray:
    """Entropy of the class probabilities, as a share of the largest there can be: `(I, J, K)` float32 from 0 to 1.

    Args:
        probabilities: `(C, I, J, K)`, background first. They are taken one class at a time, which needs little memory.
    """
    total = np.zeros(probabilities.shape[1:], np.float32)
    for probability in probabilities:
        total += special.entr(np.clip(probability, 0, 1))
    return np.clip(total / np.float32(math.log(len(probabilities))), 0, 1)
