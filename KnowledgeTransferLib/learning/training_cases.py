"""Training cases: what a student learns from each case, read from disk and brought to the student's grid."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ..records.bundle import sha256
from ..records.cohort import Case, Cohort
from ..records.labels import Labels
from ..records.progress import Progress
from ..records.reviews import read_reviews
from ..records.run_directory import RunDirectory, read_json
from ..records.settings import DistilSettings
from .preprocessing import Preprocessing, resample
from .segments import labels_of_segmentation, refuse_foreign_names
from .volume import Volume, read_annotation, read_image, read_probabilities

FEWEST_CASES = 2
WANTED = {
    "pseudo": "pseudo-annotations (annotate the cohort first)",
    "expert": "expert annotations",
    "both": "annotations of either kind",
}


@dataclass(frozen=True)
class TrainingCase:
    """A case and its target: an annotation file and, for soft labels, the teachers' probabilities."""

    case: Case
    annotation: Path
    probabilities: Path | None = None
    labels: Labels | None = None  # how the annotation numbers the structures; None: as they are learnt
    by_expert: bool = False
    corrected: bool = False  # by the person who reviewed the pseudo-annotation

    def read(self, labels: Labels) -> tuple[Volume, np.ndarray]:
        """The image, and the target `(1, I, J, K)` of channels or `(classes, I, J, K)` in steps of 1/255, uint8."""
        volume = read_image(self.case.images, self.case.id)
        if self.corrected:
            refuse_foreign_names(self.annotation, labels)
        if self.probabilities is not None:
            return volume, read_probabilities(self.probabilities, volume)
        own = self.labels or labels
        annotation = read_annotation(self.annotation, own, volume)
        channels = np.zeros(256, np.uint8)
        channels[list(own.values[1:])] = [1 + labels.names.index(name) for name in own.names]
        return volume, channels[annotation][None]


def training_cases_of(
    run: RunDirectory, cohort: Cohort, settings: DistilSettings, progress: Progress
) -> list[TrainingCase]:
    """What each case is learnt from; cases without an annotation of the wanted kind are left out, and said so.

    Raises:
        ValueError: fewer than two cases are left; the message says what is missing.
    """
    known = read_json(run.annotations)["cases"] if run.annotations.is_file() else {}
    reviews = read_reviews(run)
    cohort = with_labelled_share(cohort, settings)
    found = {
        case.id: _training_case(run, case, cohort.labels, settings, known.get(case.id, {})) for case in cohort.cases
    }
    rejected = {id_ for id_, item in found.items() if item and not item.by_expert and reviews.get(id_) == "rejected"}
    cases = [item for id_, item in found.items() if item and id_ not in rejected]
    have = f"{len(cases) + len(rejected)} of {len(cohort.cases)} cases have {WANTED[settings.annotations]}"
    if len(cases) < FEWEST_CASES:
        told = f", but {len(rejected)} were rejected in the review" if rejected else ""
        raise ValueError(f"{run.path}: {have}{told}; at least {FEWEST_CASES} are needed")
    if len(cases) + len(rejected) < len(cohort.cases):
        progress.warning(f"{have}; the others are left out")
    if rejected:
        progress.warning(f"{len(rejected)} of {len(cohort.cases)} cases were rejected in the review and are left out")
    corrected = sum(item.corrected for item in cases)
    if corrected:
        progress.message(f"{corrected} of {len(cases)} cases were corrected in the review; the corrections are learnt")
    return cases


def with_labelled_share(cohort: Cohort, settings: DistilSettings) -> Cohort:
    """The cohort with the expert annotations of a share of its annotated patients; those of the others are not used.

    Which patients these are depends on the seed alone; a larger share holds all those of a smaller one.
    """
    groups = sorted({case.group for case in cohort.cases if case.label is not None})
    count = max(round(settings.labelled_share * len(groups)), settings.labelled_share > 0)
    labelled = set(np.random.default_rng((settings.seed, 6)).permutation(groups)[:count].tolist())
    cases = [case if case.group in labelled else replace(case, label=None) for case in cohort.cases]
    return replace(cohort, cases=tuple(cases))


def _training_case(run: RunDirectory, case: Case, labels: Labels | None, settings: DistilSettings, known: dict):
    """One case with its target, or None; `known` is what `annotate` recorded of it."""
    if case.label is not None and settings.annotations in ("expert", "both"):
        return TrainingCase(case, case.label, labels=labels, by_expert=True)
    of_this_image = known.get("images", case.paths) == case.paths  # not of another one with the same id
    if settings.annotations == "expert" or not of_this_image:
        return None
    # What a person corrected stands above what the teachers thought.
    if run.corrected_annotation(case.id).is_file():
        return TrainingCase(case, run.corrected_annotation(case.id), corrected=True)
    pseudo, maps = run.pseudo_annotation(case.id), run.probability_maps(case.id)
    if not known or not pseudo.is_file():
        return None
    soft = settings.soft and maps.is_file() and sha256(pseudo) == known.get("sha256")  # else corrected in place
    return TrainingCase(case, pseudo, maps if soft else None)


def labels_to_learn(run: RunDirectory, cohort: Cohort, cases: list[TrainingCase], progress: Progress) -> Labels:
    """The structures: the teachers' where they annotated, else the cohort's, else the values found, unnamed.

    Raises:
        ValueError: no annotation holds a structure, or teachers and experts annotated different ones.
    """
    if not all(case.by_expert for case in cases):
        if not run.annotations.is_file():
            raise ValueError(f"{run.path}: corrections need the pseudo-annotations that they correct; annotate first")
        labels = Labels.from_json(read_json(run.annotations)["structures"])
        if any(case.by_expert for case in cases):
            _refuse_other_structures(labels, cohort.labels)
        return labels
    return cohort.labels or _labels_found(cohort, cases, progress)


def _refuse_other_structures(labels: Labels, experts: Labels | None) -> None:
    if experts is None:
        raise ValueError(
            "to learn from teachers and experts, the experts' structures need names; put a dataset.json beside the "
            "cohort or give --labels"
        )
    if set(experts.names) != set(labels.names):
        raise ValueError(
            f"the teachers annotated {', '.join(labels.names)}, but the experts {', '.join(experts.names)}; "
            "to learn from both, the structures must be the same"
        )


def _labels_found(cohort: Cohort, cases: list[TrainingCase], progress: Progress) -> Labels:
    """Structures of a cohort that names none: of the first .seg.nrrd, else one for each value that occurs."""
    values: set[int] = set()
    for case in cases:
        try:
            if case.annotation.name.endswith(".seg.nrrd"):
                return labels_of_segmentation(case.annotation)
            values.update(np.unique(read_annotation(case.annotation)).tolist())
        except (ValueError, OSError):
            continue  # told when the case itself is read
    if not values - {0}:
        raise ValueError(f"{cohort.source}: no annotation holds a structure (all voxels are 0, or no file is readable)")
    progress.warning("nothing names the structures; put a dataset.json beside the cohort or give --labels")
    return Labels.unnamed(values - {0})


def on_grid(volume: Volume, target: np.ndarray, labels: Labels, preprocessing: Preprocessing):
    """Image and target on the student's grid; a target that had to be resampled comes as steps of 1/255."""
    image, grid = preprocessing.prepare(volume)
    target = torch.from_numpy(grid.from_volume(target))
    size = tuple(image.shape[1:])
    if size == grid.oriented_shape:
        return image, target
    if len(target) > 1:
        return image, resample(target.float(), size).round().to(torch.uint8)
    shares = [resample((target == c) * 255.0, size)[0] for c in range(labels.channels)]
    return image, torch.stack(shares).round().to(torch.uint8)


def split_by_group(cases: list, settings: DistilSettings) -> tuple[list, list]:
    """Cases to learn from and held-out cases; no patient is on both sides (a single patient is on both)."""
    groups = sorted({case.group for case in cases})
    if len(groups) < FEWEST_CASES:
        return cases, cases
    count = min(max(1, round(settings.validation_share * len(groups))), len(groups) - 1)
    held_out = set(np.random.default_rng((settings.seed, 4)).permutation(groups)[:count])
    return [c for c in cases if c.group not in held_out], [c for c in cases if c.group in held_out]
