"""Pseudo-annotation: what is kept of the teachers' opinion of a case."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..records.labels import Labels
from ..records.settings import AnnotateSettings
from .components import largest_components, without_holes
from .teachers import Opinion, confidence_of, uncertainty_of
from .volume import Volume, steps_of, volumes_ml


@dataclass(frozen=True)
class PseudoAnnotation:
    """The decision `(I, J, K)` in label values; where they are kept, probabilities as `steps_of` gives them and the
    uncertainty `(I, J, K)` from 0 to 1; and the figures that annotations.json holds of the case."""

    decision: np.ndarray
    steps: np.ndarray | None
    uncertainty: np.ndarray | None
    figures: dict


def pseudo_annotation(opinion: Opinion, volume: Volume, labels: Labels, settings: AnnotateSettings) -> PseudoAnnotation:
    """Decide, clean up and count, as the settings say."""
    uncertainty, measure = None, {}
    if settings.uncertainty:
        uncertainty, measure = opinion.disagreement, {"uncertainty": "disagreement"}
        if uncertainty is None:  # not asked for, or too few teachers judged this case
            uncertainty, measure = uncertainty_of(opinion.probabilities), {"uncertainty": "entropy"}
    channels, probabilities = _cleaned(opinion, settings)
    decision = np.array(labels.values, np.uint8)[channels]
    figures = {
        "confidence": round(confidence_of(probabilities, channels), 4),
        "foreground_voxels": int(np.count_nonzero(channels)),
        "volumes_ml": {
            name: volume_ml
            for name, volume_ml in volumes_ml(decision, volume.affine, labels).items()
            if name not in opinion.unknown
        },
    }
    figures |= measure
    figures |= {"background_lowered_by": round(opinion.lowered, 4)} if opinion.lowered else {}
    figures |= {"unknown": list(opinion.unknown)} if opinion.unknown else {}
    figures |= {"failed": opinion.failed} if opinion.failed else {}
    steps = steps_of(probabilities) if settings.probabilities else None
    return PseudoAnnotation(decision, steps, uncertainty, figures)


def _cleaned(opinion: Opinion, settings: AnnotateSettings) -> tuple[np.ndarray, np.ndarray]:
    """Decided channels `(I, J, K)` and probabilities `(C, I, J, K)`; where the clean-up decides, they are 0 and 1."""
    decided, probabilities = opinion.decided(), opinion.probabilities
    clean = largest_components(decided.copy()) if settings.largest_component else decided
    clean = without_holes(clean) if settings.fill_holes else clean
    changed = clean != decided
    if changed.any():
        probabilities = probabilities.copy()
        probabilities[:, changed] = np.arange(len(probabilities))[:, None] == clean[changed]
    return clean, probabilities
