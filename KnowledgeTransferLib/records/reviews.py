"""Reviews: what a person decided of each pseudo-annotation, and the state of every case of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .cohort import Case, read_recorded
from .run_directory import RunDirectory, read_json, write_json

FORMAT = 1
DECISIONS = ("accepted", "rejected")


@dataclass(frozen=True)
class CaseState:
    """A case as a table of cases shows it.

    `state` is rejected, corrected, accepted, annotated, failed or waiting; the first of these that holds.
    """

    id: str
    state: str
    confidence: float | None
    images: tuple[Path, ...]
    annotation: Path | None  # the corrected one, where there is one
    message: str  # why it failed


def read_reviews(run: RunDirectory | Path | str) -> dict[str, str]:
    """Case id -> accepted or rejected; a case that nobody decided on is left out.

    Raises:
        ValueError: reviews.json is damaged, or written by a newer version.
    """
    run = _opened(run)
    if not run.reviews.is_file():
        return {}
    content = read_json(run.reviews)
    cases = content.get("cases") if isinstance(content, dict) else None
    if not isinstance(cases, dict) or content.get("format_version") != FORMAT:
        raise ValueError(f"{run.reviews}: holds no reviews that this version can read")
    for id_, decision in cases.items():
        _check(decision, f"{run.reviews}: {id_}")
    return cases


def write_review(run: RunDirectory | Path | str, case_id: str, decision: str | None) -> None:
    """Remember that a case was accepted or rejected; None forgets it.

    Raises:
        ValueError: another decision, or reviews.json is damaged.
    """
    run = _opened(run)
    reviews = {id_: known for id_, known in read_reviews(run).items() if id_ != case_id}
    if decision is not None:
        _check(decision, case_id)
        reviews[case_id] = decision
    write_json(run.reviews, {"format_version": FORMAT, "cases": reviews})


def case_states(run: RunDirectory | Path | str) -> list[CaseState]:
    """Every case of the run's cohort in its order; empty where there is no cohort yet.

    Raises:
        ValueError: one of the run's files is damaged.
    """
    run = _opened(run)
    if not run.cohort.is_file():
        return []
    cohort = read_recorded(run.cohort)
    record = read_json(run.annotations) if run.annotations.is_file() else {"cases": {}, "problems": []}
    problems = {problem["case"]: problem["message"] for problem in record["problems"]}
    reviews = read_reviews(run)
    return [_state(run, case, record["cases"].get(case.id, {}), problems, reviews) for case in cohort.cases]


def _state(run: RunDirectory, case: Case, known: dict, problems: dict, reviews: dict) -> CaseState:
    """`known` is what `annotate` recorded of the case, perhaps of another image with the same id."""
    corrected, pseudo = run.corrected_annotation(case.id), run.pseudo_annotation(case.id)
    of_this_image = known.get("images", case.paths) == case.paths
    annotated = of_this_image and bool(known) and pseudo.is_file()
    if of_this_image and corrected.is_file():
        state, annotation = "corrected", corrected
    elif annotated:
        state, annotation = reviews.get(case.id, "annotated"), pseudo
    else:
        state, annotation = "failed" if case.id in problems else "waiting", None
    if reviews.get(case.id) == "rejected":
        state = "rejected"
    confidence = known.get("confidence") if annotated else None
    return CaseState(case.id, state, confidence, case.images, annotation, problems.get(case.id, ""))


def _check(decision, what: str) -> None:
    if decision not in DECISIONS:
        raise ValueError(f"{what}: the decision is {decision!r}; allowed are {', '.join(DECISIONS)}")


def _opened(run: RunDirectory | Path | str) -> RunDirectory:
    return run if isinstance(run, RunDirectory) else RunDirectory(run)
