"""Training cohort: the cases that a training learns from; what the run annotated is a record of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from .bundle import is_bundle
from .cohort import Case, Cohort, read_recorded
from .labels import Labels
from .run_directory import RunDirectory, read_json, write_json
from .settings import read_settings
from .structure_names import plain_name

FEW = 3  # ids named in a message


def training_cohort(run: RunDirectory, given: Cohort | None, annotations: str) -> Cohort:
    """The cases to learn from; `both` takes the given ones and those that the run annotated together.

    Args:
        given: None takes those of the run's earlier training, or the run's own.
        annotations: pseudo, expert or both.

    Raises:
        ValueError, OSError: there is no cohort, or the two cannot be one.
    """
    if given is None:
        given = read_recorded(_remembered(run, annotations))
    if annotations == "both" and run.annotations.is_file() and run.cohort.is_file():
        return joined(given, read_recorded(run.cohort))
    return given


def learnt_from(run: RunDirectory) -> Path:
    """The record of the cases that the run's student learnt from."""
    return run.training_cohort if run.training_cohort.is_file() else run.cohort


def has_other_cases(run: RunDirectory, given: Cohort, annotations: str) -> bool:
    """Whether the training that was begun in the run learns from other cases than from these.

    Raises:
        ValueError: nothing in the run names its cases.
    """
    if not learnt_from(run).is_file():
        raise ValueError(
            f"{run.path}: a training was begun here, but {run.cohort.name}, which lists its cases, is missing, so that "
            "nobody knows whether they are the given ones. Leave the cohort out (--cohort PATH) to go on, add "
            "--restart to begin anew, or name another run directory"
        )
    return training_cohort(run, given, annotations).to_json() != read_json(learnt_from(run))


def runs_of(bundles: Iterable[Path]) -> list[RunDirectory]:
    """The runs whose students these bundles are, each once, where it is known what they learnt from."""
    runs = {path: RunDirectory(path.parent) for path in bundles}
    return [run for path, run in runs.items() if run.student == path and is_bundle(path) and learnt_from(run).is_file()]


def remember(run: RunDirectory, cohort: Cohort) -> None:
    """Write down what is learnt from; where the run annotated, cohort.json stays the record of that."""
    if not run.annotations.is_file() or not run.cohort.is_file():
        write_json(run.cohort, cohort.to_json())
    if cohort.to_json() == read_json(run.cohort):
        run.training_cohort.unlink(missing_ok=True)
    else:
        write_json(run.training_cohort, cohort.to_json())


def remember_annotated(run: RunDirectory, cohort: Cohort) -> str:
    """Write down what is annotated; cases whose experts taught the run's student stay the record of that.

    Returns:
        a sentence on annotated cases that the run then no longer lists; empty where there are none.
    """
    earlier = _listed(run)
    if earlier and earlier.to_json() != cohort.to_json() and _experts_taught(run):
        write_json(run.training_cohort, earlier.to_json())
    write_json(run.cohort, cohort.to_json())
    there = {case.id for case in cohort.cases}
    gone = [case.id for case in earlier.cases if case.id not in there] if earlier and run.annotations.is_file() else []
    if not gone:
        return ""
    few = ", ".join(gone[:FEW]) + (", ..." if len(gone) > FEW else "")
    return (
        f"{len(gone)} cases that the run had ({few}) are not in this cohort, and neither reviewed nor learnt from any "
        "more. What was annotated of them is kept: a cohort that holds them, too, brings them back"
    )


def _listed(run: RunDirectory) -> Cohort | None:
    """The run's cohort so far; None where there is none, or one that nobody can read."""
    with contextlib.suppress(OSError, ValueError):
        return read_recorded(run.cohort)
    return None


def _experts_taught(run: RunDirectory) -> bool:
    """Whether cohort.json is what a training with expert annotations learns or learnt from."""
    began = any(path.exists() for path in (run.prepared, run.checkpoint, run.training))
    with_experts = read_settings(run, "distil").get("annotations", "pseudo") != "pseudo"
    return began and with_experts and not run.training_cohort.is_file()


def _remembered(run: RunDirectory, annotations: str) -> Path:
    if not run.cohort.is_file():
        raise ValueError(f"{run.path}: {_why_no_cohort(run)}")
    earlier = read_settings(run, "distil").get("annotations", "pseudo")
    # Pseudo-annotations are of the run's own cases, not of those whose experts an earlier training learnt from.
    return run.cohort if annotations == "pseudo" and earlier != "pseudo" else learnt_from(run)


def _why_no_cohort(run: RunDirectory) -> str:
    if any(file.is_file() for file in (run.annotations, run.checkpoint, run.training)):
        return (
            f"{run.cohort.name}, which lists its cases, is missing; annotate them again, or name them (--cohort PATH)"
        )
    return "has no cohort yet; annotate one first, or name one (--cohort PATH)"


def joined(given: Cohort, own: Cohort) -> Cohort:
    """The cases of two cohorts, those of `given` first; where both have a case, what `given` says of it counts.

    Raises:
        ValueError: one id with two images, one image with two ids, or experts who number the structures otherwise.
    """
    by_id, ids = {case.id: case for case in own.cases}, {case.id for case in given.cases}
    id_of = {_files(case): case.id for case in own.cases}
    cases = [_checked(given.source, case, by_id.get(case.id), id_of.get(_files(case))) for case in given.cases]
    more = tuple(case for case in own.cases if case.id not in ids)
    modality = given.modality or (own.modality if more else "")
    return replace(given, cases=(*cases, *more), labels=_labels(given, own, more), modality=modality)


def _files(case: Case) -> tuple[Path, ...]:
    return tuple(path.resolve() for path in case.images)


def _checked(source: str, case: Case, own: Case | None, id_there: str | None) -> Case:
    """A given case; `own` has its id, `id_there` its image."""
    image = ", ".join(case.paths)
    if own is None and id_there is None:
        return case
    if own is None:
        raise ValueError(f"{source}: {case.id} is {image}, which the run has as {id_there}; give it this id")
    if _files(case) != _files(own):
        raise ValueError(
            f"{source}: {case.id} is {image}, but the run has {', '.join(own.paths)} under this id. If these are two "
            "scans, give one of them another id; if it is one that lies elsewhere now, annotate it again from there"
        )
    return replace(case, images=own.images)  # named as annotations.json names them


def _labels(given: Cohort, own: Cohort, more: tuple[Case, ...]) -> Labels | None:
    """What the expert annotations hold; `more` are the run's own cases that `given` does not have."""
    by_given, by_own = (any(case.label for case in cases) for cases in (given.cases, more))
    if by_given and by_own and _values(given.labels) != _values(own.labels):
        raise ValueError(
            f"{given.source}: its expert annotations hold {_in_words(given.labels)}, those of the run's own cases "
            f"{_in_words(own.labels)}. Give the structures the same names and values, or name a table of all these "
            "scans (--cohort) without the labels of one of them"
        )
    return own.labels if by_own and not by_given else given.labels


def _values(labels: Labels | None) -> dict[str, int]:
    return {plain_name(s.name): s.value for s in labels.structures} if labels else {}


def _in_words(labels: Labels | None) -> str:
    return ", ".join(f"{name} = {value}" for name, value in _values(labels).items()) or "structures without names"
