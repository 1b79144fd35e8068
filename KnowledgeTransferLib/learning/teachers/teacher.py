"""Teacher: what every kind of teacher gives."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from torch import nn

from ...records.labels import Labels
from ..volume import Volume


class Teacher(Protocol):
    """What annotates. `network` is None for a black box; some have a `hint` that a person should read."""

    name: str
    labels: Labels
    network: nn.Module | None

    def predict(self, volume: Volume) -> np.ndarray:
        """Class probabilities `(C, I, J, K)` float32 in the geometry of the volume, background first."""
