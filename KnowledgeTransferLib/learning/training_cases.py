"""Training cases: what a student learns from each case, read from disk and brought to the student's grid."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from ..records.bundle import sha256
from ..records.cohort import Case, Cohort
from ..records.labels import Labels
from ..records.progress import Progress
from ..records.reviews import read_reviews
from ..records.run_directory import RunDirectory, read_json
from ..records.settings import DistilSettings, read_settings
from ..records.structure_names import matches, merged
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
    labels: Labels | None = None  # how the annotation names and numbers the structures; None: as they are learnt
    synonyms: dict[str, str] = field(default_factory=dict)  # other name of a structure -> its name
    not_judged: tuple[str, ...] = ()  # structures of `labels` that no teacher judged
    by_expert: bool = False
    corrected: bool = False  # by the person who reviewed the pseudo-annotation
    edited: bool = False  # the pseudo-annotation itself was saved anew by a person
    maps: Path | None = None  # the teachers' probabilities, wanted as a target or not
    uncertainty: Path | None = None  # the map of it that `annotate` wrote

    @property
    def by_person(self) -> bool:
        return self.by_expert or self.corrected or self.edited

    def read(self, labels: Labels) -> tuple[Volume, np.ndarray]:
        """The image, and the target `(1, I, J, K)` of channels or `(classes, I, J, K)` in steps of 1/255, uint8."""
        volume = read_image(self.case.images, self.case.id)
        if self.corrected:
            refuse_foreign_names(self.annotation, labels)
        channels = self._channels(labels)
        if self.probabilities is not None:
            own = read_probabilities(self.probabilities, volume)
            target = np.zeros((labels.channels, *volume.shape), np.uint8)
            target[channels] = own
            return volume, target
        table = np.zeros(256, np.uint8)
        table[list((self.labels or labels).values)] = channels
        return volume, table[read_annotation(self.annotation, self.labels or labels, volume)][None]

    def unknown(self, labels: Labels, target: np.ndarray) -> list[int]:
        """Channels that nobody judged in this case: the annotator does not know them, and nothing of them is there."""
        names, channels = (self.labels or labels).names, self._channels(labels)[1:]
        judged = {c for c, name in zip(channels, names, strict=True) if name not in self.not_judged}
        others = [c for c in range(1, labels.channels) if c not in judged]
        return [c for c in others if not (target[0] == c if len(target) == 1 else target[c]).any()]

    def _channels(self, labels: Labels) -> list[int]:
        """Channel of each class of the annotation among the structures to learn."""
        own = self.labels or labels
        same = matches(own, labels, self.synonyms)
        return [0] + [1 + labels.names.index(same[name]) for name in own.names]


def training_cases_of(
    run: RunDirectory, cohort: Cohort, settings: DistilSettings, progress: Progress
) -> list[TrainingCase]:
    """What each case is learnt from; cases without an annotation of the wanted kind are left out, and said so.

    Raises:
        ValueError: fewer than two cases are left; the message says what is missing.
    """
    record = read_json(run.annotations) if run.annotations.is_file() else {"cases": {}}
    record["synonyms"] = read_settings(run, "annotate").get("synonyms", {})
    reviews = read_reviews(run)
    cohort = with_labelled_share(cohort, settings)
    found = {case.id: _training_case(run, case, cohort.labels, settings, record) for case in cohort.cases}
    rejected = {id_ for id_, item in found.items() if item and not item.by_expert and reviews.get(id_) == "rejected"}
    unsure = _left_out({id_: item for id_, item in found.items() if id_ not in rejected}, settings, record, progress)
    cases = [item for id_, item in found.items() if item and id_ not in rejected | unsure]
    have = f"{sum(map(bool, found.values()))} of {len(cohort.cases)} cases have {WANTED[settings.annotations]}"
    if len(cases) < FEWEST_CASES:
        told = f", but {len(rejected)} were rejected in the review" if rejected else ""
        told += f", but {len(unsure)} have too little or too uncertain foreground for the settings" if unsure else ""
        raise ValueError(f"{run.path}: {have}{told}; at least {FEWEST_CASES} are needed")
    if not all(found.values()):
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


def _training_case(run: RunDirectory, case: Case, labels: Labels | None, settings: DistilSettings, record: dict):
    """One case with its target, or None; `record` is what `annotate` recorded, and its synonyms."""
    synonyms = record["synonyms"]
    if case.label is not None and settings.annotations in ("expert", "both"):
        return TrainingCase(case, case.label, labels=labels, synonyms=synonyms, by_expert=True)
    known = record["cases"].get(case.id, {})
    of_this_image = known.get("images", case.paths) == case.paths  # not of another one with the same id
    if settings.annotations == "expert" or not of_this_image:
        return None
    teachers = Labels.from_json(record["structures"]) if "structures" in record else None
    judged = {"labels": teachers, "synonyms": synonyms, "not_judged": tuple(known.get("unknown", ()))}
    # What a person corrected stands above what the teachers thought.
    if run.corrected_annotation(case.id).is_file():
        return TrainingCase(case, run.corrected_annotation(case.id), **judged, corrected=True)
    pseudo, maps, uncertainty = (
        file(case.id) for file in (run.pseudo_annotation, run.probability_maps, run.uncertainty_map)
    )
    if not known or not pseudo.is_file():
        return None
    if sha256(pseudo) != known.get("sha256"):
        return TrainingCase(case, pseudo, **judged, edited=True)
    kept = maps if maps.is_file() else None
    return TrainingCase(
        case, pseudo, kept if settings.soft else None, **judged,
        maps=kept, uncertainty=uncertainty if uncertainty.is_file() else None,
    )  # fmt: skip


def _left_out(found: dict, settings: DistilSettings, record: dict, progress: Progress) -> set[str]:
    """Ids of cases whose pseudo-annotation holds too little or too uncertain foreground for the settings."""
    left_out = set()
    for id_, item in found.items():
        if item is None or item.by_person:
            continue
        confidence = record["cases"][id_].get("confidence", 1.0)
        voxels = record["cases"][id_].get("foreground_voxels", math.inf)
        reasons = []
        if confidence < settings.least_confidence:
            reasons.append(f"its confidence of {confidence} is below {settings.least_confidence}")
        if voxels < settings.least_foreground_voxels:
            reasons.append(f"{voxels} voxels lie in structures, fewer than {settings.least_foreground_voxels}")
        if reasons:
            progress.leave_out(id_, " and ".join(reasons))
            left_out.add(id_)
    return left_out


def labels_to_learn(run: RunDirectory, cohort: Cohort, cases: list[TrainingCase], progress: Progress) -> Labels:
    """The structures: the teachers' and, beside them, the experts'; else the values found, unnamed.

    Teachers and experts need not know the same ones: what one of them does not know gives no loss in its cases.

    Raises:
        ValueError: no annotation holds a structure, or those of the experts have no names beside the teachers'.
    """
    if not all(case.by_expert for case in cases):
        if not run.annotations.is_file():
            raise ValueError(f"{run.path}: corrections need the pseudo-annotations that they correct; annotate first")
        labels = Labels.from_json(read_json(run.annotations)["structures"])
        if any(case.by_expert for case in cases):
            labels = _with_those_of_experts(labels, cohort.labels, cases[0].synonyms, progress)
        return labels
    return cohort.labels or _labels_found(cohort, cases, progress)


def _with_those_of_experts(labels: Labels, experts: Labels | None, synonyms: dict, progress: Progress) -> Labels:
    if experts is None:
        raise ValueError(
            "to learn from teachers and experts, the experts' structures need names; put a dataset.json beside the "
            "cohort or give --labels"
        )
    whole, (_, names) = merged([labels, experts], synonyms)
    lacking = [name for name in whole.names if name not in names.values()]
    for who, missing in (("experts", lacking), ("teachers", whole.names[len(labels.names) :])):
        if missing:
            progress.warning(f"the {who} do not know {', '.join(missing)}; it is learnt from the others alone")
    return whole


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
