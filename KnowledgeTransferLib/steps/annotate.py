"""Annotate: the teachers run over a cohort and leave a pseudo-annotation of each case."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np

from ..learning.ahead import ahead
from ..learning.memory import check_probabilities_fit
from ..learning.predictor import pick_device
from ..learning.student import How, Student
from ..learning.teachers import (
    Ensemble,
    Teacher,
    absolute,
    confidence_of,
    kind_of,
    remember_trust,
    uncertainty_of,
)
from ..learning.volume import Volume, read_image, volumes_ml, write_annotation, write_image, write_probabilities
from ..records.bundle import sha256
from ..records.cohort import Case, Cohort, read_cohort
from ..records.labels import Labels
from ..records.progress import Listener, Progress
from ..records.run_directory import RunDirectory, read_json, write_json
from ..records.settings import AnnotateSettings, differences, read_settings, write_settings

MAY_CHANGE = ("device", "uncertainty", "most_bytes")  # settings that a run may go on with another value of


def annotate(
    run: RunDirectory | Path | str,
    cohort: Cohort | Path | str | None = None,
    teachers: dict[str, float] | None = None,
    *,
    trust: bool = False,
    listener: Listener | None = None,
    **asked,
) -> dict:
    """Annotate the cases of a cohort; cases that are done already are left as they are.

    Args:
        cohort: what `read_cohort` reads; None goes on with the run's own cohort.
        teachers: path -> weight; None goes on with the run's own teachers.
        trust: teachers that bring code of their own may execute it, now and later, until their files change.
        asked: other fields of AnnotateSettings.

    Returns:
        What annotations.json holds: `cases` (confidence, volume in ml of each structure), `teachers`, `problems`.

    Raises:
        ValueError, OSError: nothing can be done at all; a case that fails is a problem, and the others go on.
    """
    run = run if isinstance(run, RunDirectory) else RunDirectory(run)
    with run.locked("annotate"), Progress("annotate", listener, run.events, run.cancel_requested) as progress:
        progress.event("start", run=str(run.path))
        settings = _settings(run, teachers, asked)
        cohort = _cohort(run, cohort)
        if trust:
            _trust(settings, progress)
        ensemble = open_teachers(settings, cohort.labels)
        if getattr(ensemble, "hint", ""):
            progress.warning(ensemble.hint)
        write_settings(run, "annotate", settings)
        write_json(run.cohort, cohort.to_json())
        record = _record(run, settings, ensemble)
        _annotate_cases(run, cohort, ensemble, settings, record, progress)
        progress.event("done", cases=len(record["cases"]), problems=progress.problems)
        return record


def open_teachers(settings: AnnotateSettings, labels: Labels | None) -> Teacher:
    """The teachers as one."""
    device = pick_device(settings.device)
    teachers = [kind_of(Path(t["path"])).open(Path(t["path"]), device, labels) for t in settings.teachers]
    for teacher in teachers:
        if isinstance(teacher, Student):
            teacher.run_as(How(most_bytes=settings.most_bytes))
    weights = [t["weight"] for t in settings.teachers]
    return teachers[0] if len(teachers) == 1 else Ensemble(teachers, weights)


def _trust(settings: AnnotateSettings, progress: Progress) -> None:
    for teacher in settings.teachers:
        if remember_trust(Path(teacher["path"])):
            progress.message(f"{teacher['path']}: is trusted from now on, until its files change")


def _settings(run: RunDirectory, teachers: dict[str, float] | None, asked: dict) -> AnnotateSettings:
    """What was asked for on top of settings.json; a run keeps the teachers that it was begun with."""
    stored = read_settings(run, "annotate")
    teachers = teachers or {t["path"]: t.get("weight", 1.0) for t in stored.get("teachers", ())}
    if teachers:
        asked = {**asked, "teachers": tuple(_reference(Path(path), weight) for path, weight in teachers.items())}
    changed = differences(stored, {k: v for k, v in asked.items() if k not in MAY_CHANGE}) if stored else []
    if changed and run.annotations.is_file():
        raise ValueError(f"{run.path}: was begun with other settings ({'; '.join(changed)}); use another run directory")
    settings = AnnotateSettings(**{**stored, **asked})
    if not settings.teachers:
        raise ValueError("no teacher was given; name at least one (--teacher PATH)")
    return settings


def _reference(path: Path, weight: float) -> dict:
    path = absolute(path)
    return {"path": str(path), "weight": float(weight), "sha256": kind_of(path).sha256(path)}


def _cohort(run: RunDirectory, cohort: Cohort | Path | str | None) -> Cohort:
    if isinstance(cohort, Cohort):
        return cohort
    if cohort is not None:
        return read_cohort(cohort)
    if not run.cohort.is_file():
        raise ValueError(f"{run.path}: has no cohort yet; name one (--cohort PATH)")
    return Cohort.from_json(read_json(run.cohort))


def _record(run: RunDirectory, settings: AnnotateSettings, ensemble: Teacher) -> dict:
    """What is known of the run's pseudo-annotations, from an earlier start or new."""
    if run.annotations.is_file():
        return {**read_json(run.annotations), "problems": []}
    teachers = [{"name": Path(t["path"]).name, **t} for t in asdict(settings)["teachers"]]
    return {"teachers": teachers, "structures": ensemble.labels.to_json(), "cases": {}, "problems": []}


def _annotate_cases(run, cohort: Cohort, ensemble: Teacher, settings, record: dict, progress: Progress) -> None:
    todo = [case for case in cohort.cases if not _is_done(run, case, settings, record)]
    stage = progress.stage("annotate", len(cohort.cases), len(cohort.cases) - len(todo))
    for case, reading in ahead(lambda case: read_image(case.images, case.id), todo):
        try:
            volume = reading.result()
            check_probabilities_fit(volume, ensemble.labels.channels, settings.most_bytes)
            probabilities = ensemble.predict(volume)
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            progress.problem(case.id, error)
        else:
            known = record["cases"].pop(case.id, {})
            decision = np.array(ensemble.labels.values, np.uint8)[probabilities.argmax(0)]
            _keep_maps(run, volume, probabilities, settings)
            checksum = _keep_decision(run, case, Volume(decision[None], volume.affine), ensemble.labels, known)
            volumes = volumes_ml(decision, volume.affine, ensemble.labels)
            figures = {"confidence": round(confidence_of(probabilities), 4), "volumes_ml": volumes}
            record["cases"][case.id] = {"images": case.paths, "sha256": checksum, **figures}
            files = {"uncertainty": str(run.uncertainty_map(case.id))} if settings.uncertainty else {}
            progress.event("case", case=case.id, file=str(run.pseudo_annotation(case.id)), **files, **figures)
        record["problems"] = progress.problems
        write_json(run.annotations, record)
        stage.advance(text=case.id)


def _is_done(run: RunDirectory, case: Case, settings: AnnotateSettings, record: dict) -> bool:
    files = [run.pseudo_annotation(case.id)] + [run.probability_maps(case.id)] * settings.probabilities
    files += [run.uncertainty_map(case.id)] * settings.uncertainty
    done = record["cases"].get(case.id, {})  # of another image, where another cohort has the same ids
    return done.get("images") == case.paths and all(file.is_file() for file in files)


def _keep_maps(run: RunDirectory, volume: Volume, probabilities: np.ndarray, settings: AnnotateSettings) -> None:
    if settings.probabilities:
        write_probabilities(run.probability_maps(volume.name), probabilities, volume.affine)
    if settings.uncertainty:
        write_image(run.uncertainty_map(volume.name), uncertainty_of(probabilities), volume.affine)
    else:
        run.uncertainty_map(volume.name).unlink(missing_ok=True)  # of an earlier image


def _keep_decision(run: RunDirectory, case: Case, decision: Volume, labels: Labels, known: dict) -> str:
    """Write the pseudo-annotation; returns the checksum by which a correction by hand is noticed later.

    One of this image that is there stays, for example when only its uncertainty was missing: a person may have
    corrected it. `known` is what is recorded of it.
    """
    file = run.pseudo_annotation(case.id)
    if known.get("images") == case.paths and file.is_file():
        return known["sha256"]
    write_annotation(file, decision.array[0], decision.affine, labels)
    return sha256(file)
