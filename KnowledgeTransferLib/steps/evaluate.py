"""Evaluate: compare students, teachers and folders of segmentations with the expert annotations of a cohort."""

from __future__ import annotations

import contextlib
import json
import re
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from .. import __version__
from ..learning import metrics
from ..learning.confidence import foretold
from ..learning.predictor import pick_device
from ..learning.report import best_median_worst, earlier_problems, overlay, training_of, write_report, write_table
from ..learning.resources import PeakMemory, typical
from ..learning.segmenters import Segmenter, is_kept, is_segmenter, kept_record, open_segmenter
from ..learning.segments import labels_of_folder, labels_of_segmentation
from ..learning.teachers import absolute, remember_trust
from ..learning.volume import Volume, read_annotation, read_image, write_annotation
from ..records.bundle import bundle_in, sha256
from ..records.cohort import Case, Cohort, annotation_of, read_cohort, read_recorded
from ..records.labels import Labels
from ..records.progress import Progress
from ..records.run_directory import RunDirectory, json_text, write_json
from ..records.settings import EvaluateSettings, checked, read_settings, write_settings
from ..records.structure_names import plain_name
from ..records.training_cohort import learnt_from, runs_of

FORMAT = 1
BAD_CASE = (OSError, ValueError, RuntimeError, MemoryError)  # what one bad file or too large a scan raises
COLUMNS = ("method", "case", "group", "structure", *metrics.MEASURES, "expert_volume_ml")
MIB = 2**20


@dataclass(frozen=True)
class _Job:
    """What is evaluated, against what, and where it is told and written."""

    run: RunDirectory
    cohort: Cohort  # only cases with an expert annotation; its labels are known
    progress: Progress
    settings: EvaluateSettings
    device: str


@dataclass(frozen=True)
class _Method:
    """A folder with a segmentation per case, its structures, what is known of how they were made, and whether here."""

    name: str
    folder: Path
    labels: Labels
    facts: dict = field(default_factory=dict)
    made_here: bool = False


def evaluate(run, cohort=None, methods=None, *, trust=False, listener=None, **asked) -> dict:
    """Measure methods on the cases that an expert annotated; write evaluation.json, evaluation.csv and report.html.

    What students segmented is kept: the same call goes on after a stop, and only a changed student segments anew.

    Args:
        run: run directory, as a path or a RunDirectory.
        cohort: a path that `read_cohort` understands, or a Cohort; None takes the one of the run's last evaluation,
            read anew from its path (of a Cohort: its source) with the `labels` and `split` asked for then.
        methods: name -> a student's bundle, a run directory with a student, a teacher of any kind, or a folder with a
            segmentation (any format) per case id; None takes those of the run's last evaluation.
        trust: teachers that bring code of their own may execute it, now and later, until their files change.
        listener: called with every event.
        asked: other fields of EvaluateSettings; those left out are taken from the run's settings.json.

    Returns:
        What evaluation.json holds: `cases` (a row per method, case and structure, see metrics.py),
        `summary`, `tests`, `methods`, `problems`, `warnings`. None stands where a number is not defined.

    Raises:
        ValueError, OSError: nothing can be measured at all; a case that fails is a problem, and the others go on.
    """
    run = run if isinstance(run, RunDirectory) else RunDirectory(run)
    with run.locked("evaluate"), Progress("evaluate", listener, run.events, run.cancel_requested) as progress:
        settings = _settings(run, cohort, methods, asked)
        progress.event("start", run=str(run.path), methods=[method["name"] for method in settings.methods])
        whole = cohort if isinstance(cohort, Cohort) else read_cohort(settings.cohort, labels=settings.labels or None)
        whole = whole.only(settings.split)
        job = _Job(run, _with_expert(whole), progress, settings, pick_device(settings.device))
        _check_methods(settings.methods)
        if trust:
            _trust(settings.methods, progress)
        write_settings(run, "evaluate", settings)
        seen = _seen_in_training(job)
        sources = [_method(job, method["name"], bundle_in(Path(method["path"]))) for method in settings.methods]
        rows = _measure_all(job, sources)
        evaluation = _result(job, sources, rows, seen)
        evaluation["cases_without_expert"] = len(whole.cases) - len(job.cohort.cases)
        _write(job, sources, rows, evaluation)
        progress.event("done", report=str(run.report), problems=progress.problems)
    return evaluation


def _settings(run: RunDirectory, cohort, methods: dict | None, asked: dict) -> EvaluateSettings:
    """What was asked for on top of settings.json; another cohort does not inherit the split and the labels."""
    asked = {name: value for name, value in asked.items() if value is not None}
    stored = read_settings(run, "evaluate")
    if cohort is not None:
        stored = {name: value for name, value in stored.items() if name not in ("labels", "split")}
        asked["cohort"] = cohort.source if isinstance(cohort, Cohort) else str(Path(cohort).absolute())
    if methods is not None:
        asked["methods"] = tuple({"name": n, "path": str(absolute(Path(path)))} for n, path in methods.items())
    if asked.get("labels"):
        asked["labels"] = str(Path(asked["labels"]).absolute())
    settings = EvaluateSettings(**{**stored, **checked(asked, "evaluate", "options")})
    if cohort is None and not settings.cohort:
        raise ValueError(f"{run.path}: has no evaluation to repeat; name an annotated cohort (--cohort PATH)")
    return settings


def _with_expert(cohort: Cohort) -> Cohort:
    """The cases that an expert annotated, with labels that are known."""
    cases = tuple(case for case in cohort.cases if case.label)
    if not cases:
        raise ValueError(
            f"{cohort.source}: none of the {len(cohort.cases)} cases has an expert annotation to compare with; put "
            "label maps with the images' names into a folder labels/ beside images/, or name them in the column label"
        )
    cohort = replace(cohort, cases=cases)
    return cohort if cohort.labels else replace(cohort, labels=_labels_found(cases))


def _labels_found(cases: tuple[Case, ...]) -> Labels:
    """Structures of a cohort that names none: from the first good .seg.nrrd, else by the values that occur."""
    values = set()
    for case in cases:
        if case.label.name.lower().endswith(".seg.nrrd"):
            with contextlib.suppress(*BAD_CASE):  # told when the case is measured
                return labels_of_segmentation(case.label)
    for case in cases:
        with contextlib.suppress(*BAD_CASE):
            values.update(np.unique(read_annotation(case.label)).tolist())
    return Labels.unnamed(sorted(values - {0}))


def _check_methods(methods: tuple[dict, ...]) -> None:
    """Refuse names and paths that cannot be, before hours of work go into the others."""
    if not methods:
        raise ValueError("nothing to evaluate; give at least one student or folder of segmentations")
    for name, path in ((method["name"], method["path"]) for method in methods):
        if not name or name in (".", "..") or re.search(r'[/\\:*?"<>|\x00-\x1f]', name):
            raise ValueError(f'method {name!r}: names become folder names, so they must not hold / \\ : * ? " < > |')
        _is_segmenter(name, path)


def _is_segmenter(name: str, path: Path | str) -> bool:
    try:
        return is_segmenter(bundle_in(Path(path)))
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"method {name}: {error}") from error


def _trust(methods: tuple[dict, ...], progress: Progress) -> None:
    for path in (bundle_in(Path(method["path"])) for method in methods):
        if remember_trust(path):
            progress.message(f"{path}: is trusted from now on, until its files change")


def _method(job: _Job, name: str, path: Path) -> _Method:
    if _is_segmenter(name, path):
        return _predicted(job, name, path)
    if not any(annotation_of(case.id, path) for case in job.cohort.cases):
        example = f"{job.cohort.cases[0].id}.nii.gz"
        raise ValueError(f"method {name}: {path} holds no segmentation of any case; expected is, for one, {example}")
    labels = labels_of_folder(path) or job.cohort.labels
    return _Method(name, path, labels, {"kind": "segmentations", "path": str(path), **_matched(job, name, labels)})


def _matched(job: _Job, name: str, labels: Labels) -> dict:
    """Structures in common and not; a warning for those that cannot be measured."""
    known, own = _by_name(job.cohort.labels), _by_name(labels)
    if not known.keys() & own.keys():
        raise ValueError(
            f"method {name} segments {', '.join(labels.names) or 'nothing'}; the expert annotations hold "
            f"{', '.join(job.cohort.labels.names) or 'nothing'}. No name is the same: correct the names in dataset.json"
        )
    ignored = [s.name for s in labels.structures if plain_name(s.name) not in known]
    missing = [s.name for s in job.cohort.labels.structures if plain_name(s.name) not in own]
    warnings = [f"{name}: no expert annotation of {', '.join(ignored)}; ignored"] if ignored else []
    warnings += [f"{name}: does not segment {', '.join(missing)}; its means are without them"] if missing else []
    for text in warnings:
        job.progress.warning(text)
    structures = [s.name for s in job.cohort.labels.structures if plain_name(s.name) in own]
    return {
        "structures": structures, "ignored_structures": ignored, "missing_structures": missing, "warnings": warnings,
    }  # fmt: skip


def _by_name(labels: Labels) -> dict[str, int]:
    return {plain_name(s.name): s.value for s in labels.structures}


def _predicted(job: _Job, name: str, path: Path) -> _Method:
    """Segment the cases, timed and weighed, into the run's predictions; what the same one made before is kept."""
    folder, file = job.run.predictions / name, job.run.predictions / f"{name}.json"
    paths = {case.id: folder / f"{case.id}.seg.nrrd" for case in job.cohort.cases}
    with PeakMemory() as memory:
        segmenter = open_segmenter(path, job.device)
        matched = _matched(job, name, segmenter.labels)
        record = kept_record(file, {"sha256": segmenter.sha256, "device": job.device})
        todo = [case for case in job.cohort.cases if not is_kept(record, case, paths[case.id])]
        stage = job.progress.stage(f"segment with {name}", len(paths), len(paths) - len(todo))
        for case in todo:
            record["cases"].pop(case.id, None)
            for made in _segment(job, segmenter, case, paths[case.id]):
                record["cases"][case.id] = {**made, "peak_memory_mib": round(memory.peak_bytes / MIB, 1)}
            write_json(file, record)
            stage.advance(text=case.id)
    made = [record["cases"][id_] for id_ in paths if id_ in record["cases"]]
    facts = {
        **segmenter.facts, "path": str(path), "sha256": segmenter.sha256,
        "seconds_per_case": typical([m["seconds"] for m in made]),
        "peak_memory_mib": max((m["peak_memory_mib"] for m in made), default=None),
    }  # fmt: skip
    return _Method(name, folder, segmenter.labels, facts | matched, made_here=True)


def _segment(job: _Job, segmenter: Segmenter, case: Case, path: Path) -> list[dict]:
    """Segment one case and write it; what was made of what in how many seconds, nothing when it failed."""
    path.unlink(missing_ok=True)  # what an earlier evaluation left must not be measured
    try:
        image = read_image(case.images, case.id)
    except BAD_CASE:
        return []  # told once, when the case is measured
    began = time.perf_counter()
    try:
        array = segmenter.segment(image)
    except BAD_CASE as error:
        job.progress.problem(case.id, f"{path.parent.name}: {error}")
        return []
    duration_s = time.perf_counter() - began  # of the segmentation alone
    write_annotation(path, array, image.affine, segmenter.labels)
    return [{"images": case.paths, "seconds": duration_s, "sha256": sha256(path)}]


def _measure_all(job: _Job, methods: list[_Method]) -> list[dict]:
    rows, stage = [], job.progress.stage("measure", len(job.cohort.cases))
    for case in job.cohort.cases:
        try:
            image = read_image(case.images, case.id)
            expert = read_annotation(case.label, job.cohort.labels, image)
        except BAD_CASE as error:
            job.progress.problem(case.id, error)
        else:
            rows += [row for method in methods for row in _rows(job, method, case, (image, expert))]
        stage.advance(text=case.id)
    if not rows:
        raise ValueError(f"no case could be measured; the first problem: {job.progress.problems[0]['message']}")
    return rows


def _rows(job: _Job, method: _Method, case: Case, seen: tuple[Volume, np.ndarray]) -> list[dict]:
    """One row per structure; none, and a problem, when the segmentation is missing or cannot be used."""
    image, expert = seen
    try:
        prediction = _prediction(job, method, case, image)
        if prediction is None:
            return []
        values = {s.name: s.value for s in job.cohort.labels.structures if s.name in method.facts["structures"]}
        measured = metrics.measure(prediction, expert, values, image.spacing_mm, job.settings.tolerance_mm)
    except BAD_CASE as error:
        job.progress.problem(case.id, f"{method.name}: {error}")
        return []
    where = {"method": method.name, "case": case.id, "group": case.group}
    return [{**where, "structure": name, **numbers} for name, numbers in measured.items()]


def _prediction(job: _Job, method: _Method, case: Case, image: Volume) -> np.ndarray | None:
    """A method's label map `(I, J, K)` in the cohort's values; None when the problem has been told already."""
    file = annotation_of(case.id, method.folder)
    if file is None and method.made_here:
        return None
    if file is None:
        raise FileNotFoundError(f"{method.folder} holds no segmentation of this case")
    labels = labels_of_segmentation(file) if file.name.lower().endswith(".seg.nrrd") else method.labels
    known, table = _by_name(job.cohort.labels), np.zeros(256, np.uint8)
    for structure in labels.structures:
        table[structure.value] = known.get(plain_name(structure.name), 0)
    return table[read_annotation(file, labels, image)]


def _result(job: _Job, methods: list[_Method], rows: list[dict], seen: list[str]) -> dict:
    by_method = {method.name: [row for row in rows if row["method"] == method.name] for method in methods}
    warnings = seen + [text for method in methods for text in method.facts["warnings"]]
    content = {
        "format_version": FORMAT, "library_version": __version__,
        "cohort": job.cohort.source, "modality": job.cohort.modality, "split": job.settings.split,
        "structures": job.cohort.labels.to_json(), "tolerance_mm": float(job.settings.tolerance_mm),
        "device": job.device, "seed": job.settings.seed,
        "cases_with_expert": len(job.cohort.cases),
        "groups": len({case.group for case in job.cohort.cases}),
        "methods": {method.name: method.facts | foretold(method.folder, by_method[method.name]) for method in methods},
        "summary": {name: metrics.summarise(part, job.settings.seed) for name, part in by_method.items()},
        "tests": metrics.compare(by_method),
        "warnings": warnings,
        "problems": job.progress.problems,
        "earlier_problems": earlier_problems(job.run),
        "cases": rows,
    }  # fmt: skip
    return json.loads(json_text(content))  # NaN is no JSON; None takes its place


def _write(job: _Job, methods: list[_Method], rows: list[dict], evaluation: dict) -> None:
    """The numbers first: they are safe should a picture fail."""
    write_json(job.run.evaluation, evaluation)
    write_table(job.run.evaluation_table, evaluation["cases"], COLUMNS)
    pictures = [
        {**picture, "method": method.name, "image": _drawn(job, method, picture["case"])}
        for method in methods
        for picture in best_median_worst([row for row in rows if row["method"] == method.name])
    ]
    write_report(job.run.report, evaluation, training_of(job.run, job.progress), pictures)


def _seen_in_training(job: _Job) -> list[str]:
    """Warnings when this run's student, or one that is compared, learnt from what it is measured on."""
    paths = [job.run.student, *(bundle_in(Path(method["path"])) for method in job.settings.methods)]
    texts = [text for home in runs_of(paths) for text in _overlap(job, home)]
    for text in texts:
        job.progress.warning(text)
    return texts


def _overlap(job: _Job, home: RunDirectory) -> list[str]:
    whose = "this run's training set" if home.path == job.run.path else f"the training set of {home.path}"
    try:
        learnt = read_recorded(learnt_from(home)).cases
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"it is not known whether cases were also in {whose}: {error}"]
    (same, kin), total = metrics.shared_with(learnt, job.cohort.cases), len(job.cohort.cases)
    counts = [(same, f"{same} of {total} cases"), (kin, f"the patients of {kin} more of {total} cases")]
    return [f"{text} were also in {whose}; the figures are too good" for number, text in counts if number]


def _drawn(job: _Job, method: _Method, case_id: str) -> str:
    case = next(case for case in job.cohort.cases if case.id == case_id)
    image = read_image(case.images, case.id)
    expert = read_annotation(case.label, job.cohort.labels, image)
    return overlay(image, expert, _prediction(job, method, case, image), job.cohort.labels)
