"""Annotate: the teachers run over a cohort and leave a pseudo-annotation of each case."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from ..learning.ahead import ahead, at_once
from ..learning.memory import check_probabilities_fit
from ..learning.predictor import pick_device
from ..learning.pseudo_annotation import PseudoAnnotation, pseudo_annotation
from ..learning.student import How, Student
from ..learning.teachers import Ensemble, Opinion, absolute, kind_of, remember_trust
from ..learning.volume import Volume, read_image, write_annotation, write_image, write_probabilities
from ..records.bundle import sha256
from ..records.cohort import Case, Cohort, read_cohort, read_recorded
from ..records.labels import Labels
from ..records.progress import FAILURES, Listener, Progress
from ..records.reviews import read_reviews, write_review
from ..records.run_directory import RunDirectory, read_json, write_json
from ..records.settings import AnnotateSettings, differences, read_settings, write_settings
from ..records.structure_names import plain_name
from ..records.training_cohort import remember_annotated

MAY_CHANGE = ("device", "uncertainty", "uncertainty_measure", "most_bytes")  # while a run goes on


@dataclass(frozen=True)
class _Job:
    """What annotates as what, what is known of the cases already, and where it is told and written."""

    run: RunDirectory
    settings: AnnotateSettings
    labels: Labels
    record: dict
    progress: Progress


def annotate(
    run: RunDirectory | Path | str,
    cohort: Cohort | Path | str | None = None,
    teachers: dict[str, float | dict[str, float]] | None = None,
    *,
    trust: bool = False,
    listener: Listener | None = None,
    **asked,
) -> dict:
    """Annotate the cases of a cohort; cases that are done already are left as they are.

    Args:
        cohort: what `read_cohort` reads; None goes on with the run's own cohort.
        teachers: path -> weight, or path -> weight of each structure; None goes on with the run's own teachers.
        trust: teachers that bring code of their own may execute it, now and later, until their files change.
        asked: other fields of AnnotateSettings.

    Returns:
        What annotations.json holds: `cases` (confidence, volume in ml of each structure), `teachers`, `problems`.

    Raises:
        ValueError, OSError: nothing can be done at all; a case that fails is a problem, and the others go on. A case
            that one of several teachers fails on is annotated by the others.
    """
    run = run if isinstance(run, RunDirectory) else RunDirectory(run)
    with run.locked("annotate"), Progress("annotate", listener, run.events, run.cancel_requested) as progress:
        progress.event("start", run=str(run.path))
        settings = _settings(run, teachers, asked)
        cohort = _cohort(run, cohort)
        if trust:
            _trust(settings, progress)
        ensemble = open_teachers(settings, cohort.labels)
        write_settings(run, "annotate", settings)
        unknown, gone = _unknown_synonyms(settings, ensemble, cohort.labels), remember_annotated(run, cohort)
        for hint in filter(None, (ensemble.hint, unknown, gone)):
            progress.warning(hint)
        job = _Job(run, settings, ensemble.labels, _record(run, settings, ensemble.labels), progress)
        _annotate_cases(job, cohort, ensemble)
        progress.event("done", cases=len(job.record["cases"]), problems=progress.problems)
        return job.record


def open_teachers(settings: AnnotateSettings, labels: Labels | None) -> Ensemble:
    """The teachers as one.

    Raises:
        ValueError: they cannot be one; or their disagreement is asked for, and no structure is judged by two; or mirror
            images, and none knows them.
    """
    device = pick_device(settings.device)
    teachers = [kind_of(Path(t["path"])).open(Path(t["path"]), device, labels) for t in settings.teachers]
    own = [teacher for teacher in teachers if isinstance(teacher, Student)]
    if settings.mirror and not any(teacher.mirror_axes for teacher in own):
        raise ValueError("no teacher is a bundle that was trained with mirror images; leave out --mirror")
    for teacher in own:
        teacher.run_as(How(mirror=settings.mirror and bool(teacher.mirror_axes), most_bytes=settings.most_bytes))
    weights = [_weight(t) for t in settings.teachers]
    ensemble = Ensemble(teachers, weights, settings.combine, settings.synonyms)
    if settings.uncertainty_measure == "disagreement" and not ensemble.may_disagree():
        raise ValueError("disagreement needs two teachers that know the same structure; the entropy can be measured")
    return ensemble


def _unknown_synonyms(settings: AnnotateSettings, ensemble: Ensemble, experts: Labels | None) -> str:
    """A sentence on synonyms for names that nobody uses; "" where there are none."""
    lists = [*(teacher.labels for teacher in ensemble.teachers), *([experts] if experts else [])]
    used = sorted({name for labels in lists for name in labels.names})
    plain = {plain_name(name) for name in used}
    unknown = [f"{name}={other}" for other, name in settings.synonyms.items() if plain_name(other) not in plain]
    if not unknown:
        return ""
    return f"--synonym {', '.join(unknown)}: no structure has that other name; there are {', '.join(used)}"


def _trust(settings: AnnotateSettings, progress: Progress) -> None:
    for teacher in settings.teachers:
        if remember_trust(Path(teacher["path"])):
            progress.message(f"{teacher['path']}: is trusted from now on, until its files change")


def _settings(run: RunDirectory, teachers: dict[str, float] | None, asked: dict) -> AnnotateSettings:
    """What was asked for on top of settings.json; a run keeps the teachers that it was begun with."""
    stored = read_settings(run, "annotate")
    teachers = teachers or {t["path"]: _weight(t) for t in stored.get("teachers", ())}
    if teachers:
        asked = {**asked, "teachers": tuple(_reference(Path(path), weight) for path, weight in teachers.items())}
    changed = differences("annotate", stored, {k: v for k, v in asked.items() if k not in MAY_CHANGE}) if stored else []
    if changed and run.annotations.is_file():
        raise ValueError(f"{run.path}: was begun with other settings ({'; '.join(changed)}); use another run directory")
    settings = AnnotateSettings(**{**stored, **asked})
    if not settings.teachers:
        raise ValueError("no teacher was given; name at least one (--teacher PATH)")
    return settings


def _reference(path: Path, weight: float | dict[str, float]) -> dict:
    path = absolute(path)
    reference = {"path": str(path), "weight": 1.0, "sha256": kind_of(path).sha256(path)}
    return reference | ({"structures": weight} if isinstance(weight, dict) else {"weight": float(weight)})


def _weight(reference: dict) -> float | dict[str, float]:
    return reference.get("structures") or reference.get("weight", 1.0)


def _cohort(run: RunDirectory, cohort: Cohort | Path | str | None) -> Cohort:
    if isinstance(cohort, Cohort):
        return cohort
    if cohort is not None:
        return read_cohort(cohort)
    if not run.cohort.is_file():
        raise ValueError(f"{run.path}: has no cohort yet; name one (--cohort PATH)")
    return read_recorded(run.cohort)


def _record(run: RunDirectory, settings: AnnotateSettings, labels: Labels) -> dict:
    """What is known of the run's pseudo-annotations, from an earlier start or new."""
    if run.annotations.is_file():
        record = {**read_json(run.annotations), "problems": []}
        if record["cases"] and record["structures"] != labels.to_json():
            names = [", ".join(known.names) for known in (Labels.from_json(record["structures"]), labels)]
            raise ValueError(
                f"{run.path}: holds pseudo-annotations of {names[0]}, but the teachers now know {names[1]}, in that "
                "order; use another run directory, or a dataset.json beside the segmentations that names them as before"
            )
        return record
    teachers = [{"name": Path(t["path"]).name, **t} for t in asdict(settings)["teachers"]]
    return {"teachers": teachers, "structures": labels.to_json(), "cases": {}, "problems": []}


def _annotate_cases(job: _Job, cohort: Cohort, ensemble: Ensemble) -> None:
    """Read and prepare the next case, and write the one before, while the teachers judge one.

    Small ones are judged side by side, twice as many as there are cores, since some of them wait for the disk.
    """
    todo = [case for case in cohort.cases if not _is_done(job, case)]
    stage = job.progress.stage("annotate", len(cohort.cases), len(cohort.cases) - len(todo))
    writing: list[tuple[Case, Future]] = []
    count = 1 if job.settings.most_bytes else at_once(cohort.cases)
    side_by_side = count > 1 and ensemble.opens_beside()

    def look(case: Case) -> _Look:
        volume = read_image(case.images, case.id)
        prepared = ensemble.prepare(volume)
        beside = side_by_side and ensemble.goes_beside(prepared)
        return _Look(volume, prepared, _judged(job, ensemble, volume, prepared) if beside else None)

    with ThreadPoolExecutor(1, "write") as thread:
        try:
            for case, looking in ahead(look, todo, 2 * count if count > 1 else 1):
                found = _found(job, ensemble, case, looking)
                _tell(job, writing)
                writing.append((case, thread.submit(_keep, job, case, found)))
                stage.advance(text=case.id)
        finally:
            _tell(job, writing)


@dataclass(frozen=True)
class _Look:
    """A case that was read, what the teachers see of it, and what they said of it if they did already."""

    volume: Volume
    prepared: list
    said: tuple[Opinion, PseudoAnnotation] | None


def _judged(job: _Job, ensemble: Ensemble, volume: Volume, prepared: list) -> tuple[Opinion, PseudoAnnotation]:
    disagreement = job.settings.uncertainty and job.settings.uncertainty_measure == "disagreement"
    check_probabilities_fit(volume, ensemble.maps, job.settings.most_bytes)
    opinion = ensemble.judge(volume, prepared, disagreement)
    return opinion, pseudo_annotation(opinion, volume, ensemble.labels, job.settings)


def _found(job: _Job, ensemble: Ensemble, case: Case, looking: Future) -> tuple[np.ndarray, PseudoAnnotation] | None:
    """Where a case lies and what the teachers say of it; None, and a problem, when none of them can."""
    try:
        look: _Look = looking.result()
        opinion, found = look.said or _judged(job, ensemble, look.volume, look.prepared)
    except FAILURES as error:
        job.progress.problem(case.id, error)
        return None
    if opinion.failed and _is_complete(job, case):
        failed = "; ".join(f"{name} fails now ({reason})" for name, reason in opinion.failed.items())
        job.progress.problem(case.id, ValueError(f"{failed}; what all teachers said of it before stays as it is"))
        return None
    for name, reason in opinion.failed.items():
        unknown = f"; nobody judged {', '.join(opinion.unknown)}" if opinion.unknown else ""
        job.progress.warning(f"{case.id}: is annotated without {name} ({reason}){unknown}")
    return look.volume.affine, found


def _keep(job: _Job, case: Case, found: tuple[np.ndarray, PseudoAnnotation] | None) -> dict:
    """Write what is kept of a case and remember it; returns what annotations.json holds of it, {} after a problem."""
    try:
        entry = _write(job, case, *found) if found else {}
    except (ValueError, RuntimeError, MemoryError) as error:  # a full disk, an OSError, is in the way of all
        job.progress.problem(case.id, error)
        entry = {}
    if entry:
        job.record["cases"].pop(case.id, None)
        job.record["cases"][case.id] = entry
    job.record["problems"] = list(job.progress.problems)
    write_json(job.run.annotations, job.record)
    return entry


def _write(job: _Job, case: Case, affine: np.ndarray, found: PseudoAnnotation) -> dict:
    run = job.run
    _refuse_to_replace_correction(job, case)
    _review_of_another_image(job, case, found.decision, affine)
    if found.steps is not None:
        write_probabilities(run.probability_maps(case.id), found.steps, affine)
    if found.uncertainty is not None:
        write_image(run.uncertainty_map(case.id), found.uncertainty, affine)
    else:
        run.uncertainty_map(case.id).unlink(missing_ok=True)  # of an earlier image
    checksum = _keep_decision(job, case, found.decision, affine)
    return {"images": case.paths, "sha256": checksum, **found.figures}


def _tell(job: _Job, writing: list[tuple[Case, Future]]) -> None:
    """Wait for what is being written, and tell it."""
    while writing:
        case, future = writing.pop()
        if entry := future.result():
            files = {"uncertainty": str(job.run.uncertainty_map(case.id))} if job.settings.uncertainty else {}
            figures = {name: entry[name] for name in ("confidence", "volumes_ml")}
            job.progress.event("case", case=case.id, file=str(job.run.pseudo_annotation(case.id)), **files, **figures)


def _is_done(job: _Job, case: Case) -> bool:
    """Whether all that is wanted of a case is there; one that a teacher failed on is tried again."""
    run, settings = job.run, job.settings
    files = [run.pseudo_annotation(case.id)] + [run.probability_maps(case.id)] * settings.probabilities
    files += [run.uncertainty_map(case.id)] * settings.uncertainty
    done = job.record["cases"].get(case.id, {})  # of another image, where another cohort has the same ids
    same_measure = not settings.uncertainty or done.get("uncertainty", "entropy") == settings.uncertainty_measure
    good = done.get("images") == case.paths and not done.get("failed")
    return good and same_measure and all(file.is_file() for file in files)


def _is_complete(job: _Job, case: Case) -> bool:
    """Whether all teachers annotated it before, perhaps without what is asked for now."""
    done = job.record["cases"].get(case.id, {})
    there = job.run.pseudo_annotation(case.id).is_file()
    return there and done.get("images") == case.paths and not done.get("failed")


def _refuse_to_replace_correction(job: _Job, case: Case) -> None:
    """A correction by hand stays, also where its case seems to be of another image now: a folder may have moved."""
    file, known = job.run.pseudo_annotation(case.id), job.record["cases"].get(case.id, {})
    if known and known["images"] != case.paths and file.is_file() and sha256(file) != known["sha256"]:
        raise ValueError(
            f"{file}: was corrected by hand, for {known['images'][0]}; it stays as it is, and {case.paths[0]} is not "
            "annotated. Move the correction elsewhere, or use another run directory"
        )


def _review_of_another_image(job: _Job, case: Case, decision: np.ndarray, affine: np.ndarray) -> None:
    """What a person said of a case holds for its image alone, not for another one with the same name.

    An image that lies elsewhere now is the same where the teachers say the same of it.
    """
    known, correction = job.record["cases"].get(case.id, {}), job.run.corrected_annotation(case.id)
    if not known or known["images"] == case.paths:
        return
    verdict = read_reviews(job.run).get(case.id)
    if not verdict and not correction.is_file():
        return
    with TemporaryDirectory(dir=job.run.path) as folder:
        file = Path(folder) / job.run.pseudo_annotation(case.id).name
        write_annotation(file, decision, affine, job.labels)
        if sha256(file) == known["sha256"]:
            return
    if correction.is_file():
        raise ValueError(
            f"{correction}: is a correction of {known['images'][0]}, another image; it stays as it is, and "
            f"{case.paths[0]} is not annotated. Move the correction elsewhere, or use another run directory"
        )
    write_review(job.run, case.id, None)
    job.progress.warning(f"{case.id}: was {verdict} in the review, but as another image; it has to be reviewed again")


def _keep_decision(job: _Job, case: Case, decision: np.ndarray, affine: np.ndarray) -> str:
    """Write the pseudo-annotation; returns the checksum by which a correction by hand is noticed later.

    One of this image that is there stays, for example when only its uncertainty was missing: a person may have
    corrected it. Only what some of the teachers said is replaced, uncorrected.
    """
    file, known = job.run.pseudo_annotation(case.id), job.record["cases"].get(case.id, {})
    there = known.get("images") == case.paths and file.is_file()
    if there and not (known.get("failed") and sha256(file) == known["sha256"]):
        return known["sha256"]
    write_annotation(file, decision, affine, job.labels)
    return sha256(file)
