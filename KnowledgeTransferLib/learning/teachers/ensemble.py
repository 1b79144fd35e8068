"""Ensemble: several teachers that are one."""

from __future__ import annotations

import math

import numpy as np

from ..volume import Volume
from .teacher import Teacher


class Ensemble:
    """Several teachers that are one: the weighted mean of their probabilities (Wang et al., arXiv:2101.09560).

    Raises:
        ValueError: the teachers do not know the same structures, or a weight is not above 0.
    """

    network = None

    def __init__(self, teachers: list[Teacher], weights: list[float]):
        self.teachers, self.labels = teachers, teachers[0].labels
        self.name = " + ".join(t.name for t in teachers)
        self.hint = "\n".join(filter(None, (getattr(t, "hint", "") for t in teachers)))
        if not all(0 < w < math.inf for w in weights):
            raise ValueError(f"weights of teachers must be above 0; found {weights}")
        self.weights = [w / sum(weights) for w in weights]
        for teacher in teachers[1:]:
            if set(teacher.labels.names) != set(self.labels.names):
                raise ValueError(
                    f"{teacher.name} knows {', '.join(teacher.labels.names)}, but {teachers[0].name} knows "
                    f"{', '.join(self.labels.names)}; teachers must know the same structures"
                )

    def predict(self, volume: Volume) -> np.ndarray:
        total = 0
        for teacher, weight in zip(self.teachers, self.weights, strict=True):
            order = [0] + [1 + teacher.labels.names.index(name) for name in self.labels.names]
            total = total + weight * teacher.predict(volume)[order]
        return total
