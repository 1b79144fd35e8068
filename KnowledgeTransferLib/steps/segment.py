"""Segment: a student segments files or folders, each in the geometry of its image."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..learning.ahead import ahead, at_once
from ..learning.arriving import image_arriving
from ..learning.predictor import pick_device
from ..learning.student import How, Prepared, Student, load_student
from ..learning.volume import PICTURES, annotation_suffix, volumes_ml, write_annotation
from ..records.cohort import (
    SEGMENTATION,
    SUFFIXES,
    Case,
    dataset_of,
    is_dicom_folder,
    is_image,
    is_segmentation,
    read_cohort,
    write_names,
)
from ..records.labels import Labels
from ..records.progress import FAILURES, Listener, Progress
from ..records.run_directory import RunDirectory, check_writable, read_json

FORMATS = (SEGMENTATION, ".nii.gz", ".nii", ".nrrd", ".mha", ".png")


@dataclass(frozen=True)
class _Job:
    """What is segmented, into which files, and which of these are there already and kept."""

    cases: list[Case]
    targets: dict[str, Path]  # of each case
    kept: set[str]  # case ids
    names: Path | None  # the dataset.json beside label maps in a folder; None where none is needed
    progress: Progress


def segment(  # noqa: PLR0913
    bundle: Path | str,
    inputs: list[Path | str],
    output: Path | str,
    *,
    format: str | None = None,
    device: str = "auto",
    overwrite: bool = False,
    run: RunDirectory | Path | str | None = None,
    listener: Listener | None = None,
    how: How | None = None,
    open_student: Callable[[Path, str], Student] = load_student,
) -> dict:
    """Segment images with a student.

    Args:
        bundle: the student's folder, or a run directory with a student.
        inputs: image files, DICOM series, or folders of images; one image whose channels lie in several files is a
            folder with `name_0000`, `name_0001`, ...
        output: a file (for one image), or a folder that gets one file per image, named like it.
        format: suffix of the files in an output folder; None takes that of the image (.nrrd for DICOM, .png for
            pictures).
        overwrite: replace what is there. Else an output file that is there is refused, and in an output folder it is
            kept, so that the same call goes on after a stop.
        run: directory for events.jsonl and for a file `cancel` that stops the step; held while the step runs.
        how: backend, precision, mirror images, largest components, memory; None takes the defaults.
        open_student: opens the bundle; a process that segments again and again gives one that keeps it open.

    Returns:
        `files` (case id -> path, with those that were kept) and `problems`.

    Raises:
        ValueError, OSError: nothing can be done at all; an image that fails is a problem, and the others go on.
        RuntimeError: another process works in the run directory.
    """
    run = RunDirectory(run) if isinstance(run, (str, Path)) else run
    output = Path(output).absolute()
    with run.locked("segment") if run else nullcontext(), _progress(run, listener) as progress:
        cases = _cases([Path(i) for i in inputs])
        targets = _targets(cases, output, format)
        kept = set() if overwrite else _kept(targets, output)
        job = _Job(cases, targets, kept, _names(targets, output), progress)
        student = open_student(Path(bundle), pick_device(device)).run_as(how or How())
        progress.event("start", cases=len(cases), device=student.device, backend=student.runner.about)
        if student.runner.cost:
            progress.message(student.runner.cost)
        files = _segment_cases(student, job)
        progress.event("done", files=files, problems=progress.problems)
        return {"files": files, "problems": progress.problems}


def _progress(run: RunDirectory | None, listener: Listener | None) -> Progress:
    return Progress("segment", listener, run.events, run.cancel_requested) if run else Progress("segment", listener)


def _kept(targets: dict[str, Path], output: Path) -> set[str]:
    """The cases whose segmentation is there already; one file that was asked for by its name is never kept silently."""
    there = {id_ for id_, target in targets.items() if target.exists()}
    if there and _is_one_file(output):
        raise ValueError(f"{output}: exists already; add --overwrite or name another output")
    return there


def _names(targets: dict[str, Path], output: Path) -> Path | None:
    needed = not _is_one_file(output) and not all(map(is_segmentation, targets.values()))
    return output / "dataset.json" if needed else None


def _tell_what_is_kept(job: _Job, labels: Labels) -> None:
    if job.kept:
        found = f"{len(job.kept)} of {len(job.cases)} are there already and are kept"
        job.progress.message(f"{found}; add --overwrite to make them again")
    if job.names and job.names.exists() and len(job.kept) < len(job.cases) and not _holds(job.names, labels):
        values = ", ".join(f"{s.value} {s.name}" for s in labels.structures)
        job.progress.warning(f"{job.names}: holds something else and is kept; this student's values are {values}")


def _holds(names: Path, labels: Labels) -> bool:
    try:
        return read_json(names) == dataset_of(labels)
    except (OSError, ValueError):
        return False


def _segment_cases(student: Student, job: _Job) -> dict[str, str]:
    """Segment what is not kept; returns the files of all cases that have one."""
    made, todo = set(job.kept), [case for case in job.cases if case.id not in job.kept]
    _tell_what_is_kept(job, student.labels)
    stage = job.progress.stage("segment", len(job.cases), len(job.kept))

    def finish(case: Case, writing: Future | None) -> None:
        if writing and _is_written(job, case, writing):
            made.add(case.id)
            if job.names and not job.names.exists():  # at once: a step that is stopped leaves no values without names
                write_names(job.names.parent, student.labels)
        stage.advance(text=case.id)

    count = 1 if student.how.most_bytes else at_once(job.cases)
    side_by_side = count > 1 and student.opens_beside()
    with ThreadPoolExecutor(1) as writer:  # writes one case while the next is segmented
        before = None
        for case, looking in ahead(lambda case: _look(student, case, side_by_side), todo, count):
            if before and job.progress.stop_asked():
                finish(*before)  # stops here
            now = case, _segment_case(student, job, case, looking, writer)
            if before:
                finish(*before)
            before = now
        if before:
            finish(*before)
    return {case.id: str(job.targets[case.id]) for case in job.cases if case.id in made}


def _look(student: Student, case: Case, side_by_side: bool) -> tuple[Prepared, np.ndarray | None]:
    """Read and prepare a case; small ones are segmented side by side, each in the thread that read it."""
    prepared = _prepared(student, case)
    return prepared, student.decide(prepared) if side_by_side and student.goes_beside(prepared) else None


def _prepared(student: Student, case: Case) -> Prepared:
    with image_arriving(case.images, case.id) as volume:
        return student.prepare(volume)


def _segment_case(
    student: Student, job: _Job, case: Case, looking: Future, writer: ThreadPoolExecutor
) -> Future | None:
    """Begin to write what was segmented; what is in the way of one image is a problem."""
    try:
        prepared, decision = looking.result()
        decision = student.decide(prepared) if decision is None else decision
    except FAILURES as error:
        job.progress.problem(case.id, error)
        return None
    return writer.submit(_write, job.targets[case.id], decision, prepared.affine, student.labels)


def _write(target: Path, decision: np.ndarray, affine: np.ndarray, labels: Labels) -> dict[str, float]:
    """Write a label map; returns the volume of each structure."""
    write_annotation(target, decision, affine, labels)
    return volumes_ml(decision, affine, labels)


def _is_written(job: _Job, case: Case, writing: Future) -> bool:
    """Whether it went well; a full disk is in the way of all."""
    try:
        ml = writing.result()
    except (ValueError, RuntimeError, MemoryError) as error:
        job.progress.problem(case.id, error)
        return False
    job.progress.event("case", case=case.id, file=str(job.targets[case.id]), volumes_ml=ml)
    return True


def _cases(inputs: list[Path]) -> list[Case]:
    cases = [case for path in inputs for case in read_cohort(path).cases]
    if not cases:
        raise ValueError("no image was given; name at least one file or folder")
    ids = [case.id for case in cases]
    twice = sorted({id_ for id_ in ids if ids.count(id_) > 1})
    if twice:
        raise ValueError(f"two images have the same name: {', '.join(twice[:5])}; segment them into different folders")
    return cases


def _is_one_file(output: Path) -> bool:
    return not output.is_dir() and output.name.lower().endswith(SUFFIXES)


def _targets(cases: list[Case], output: Path, format: str | None) -> dict[str, Path]:
    """Where each segmentation goes; proves that it can be written there and that no input is overwritten."""
    if _is_one_file(output):
        if len(cases) > 1:
            raise ValueError(f"{output}: is one file, but there are {len(cases)} images; name a folder")
        targets = {cases[0].id: output}
    else:
        targets = {case.id: output / f"{case.id}{_suffix(case, format)}" for case in cases}
    sources = {Path(file).resolve() for case in cases for file in case.images}
    beside = {source.parent for source in sources} & {target.resolve().parent for target in targets.values()}
    if beside and len(cases) > 1 and not all(map(is_segmentation, targets.values())):
        raise ValueError(
            f"{output}: holds the images; label maps among them would be taken for images next time. "
            "Name another output folder, or add --format .seg.nrrd"
        )
    for target in targets.values():
        annotation_suffix(target)
        if target.resolve() in sources:
            raise ValueError(f"{target}: is an input; name another output")
        if target.is_dir():
            raise ValueError(f"{target}: is a folder; move it away or name another output")
    check_writable(next(iter(targets.values())).parent)
    return targets


def _suffix(case: Case, format: str | None) -> str:
    if format:
        suffix = "." + format.lstrip(".")
        if suffix.lower() not in FORMATS:
            raise ValueError(f"--format {format}: segmentations are written as {', '.join(FORMATS)}")
        return suffix
    name = case.images[0].name.lower()
    if is_dicom_folder(case.images[0]):
        return ".nrrd"
    if is_image(case.images[0]) and name.endswith(PICTURES):
        return ".png"
    return next((suffix for suffix in FORMATS if name.endswith(suffix)), ".nrrd")
