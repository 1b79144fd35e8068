"""Export: a student's bundle gets files that other tools run; each is checked before it counts."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from pathlib import Path

from ..learning.evidence import Evidence, evidence_of
from ..learning.exporters import exporter_named, write_export
from ..learning.precision_cost import in_words
from ..learning.student import load_student
from ..records.bundle import bundle_in
from ..records.cohort import Cohort, read_cohort, read_recorded
from ..records.progress import Listener, Progress
from ..records.run_directory import RunDirectory, written_whole
from ..records.training_cohort import learnt_from

OWN_COHORT, GIVEN = "the run's own cohort", "those of --check"  # no path: the model card tells it


def export(
    bundle: Path | str, to: list[str], *, check: Cohort | Path | str | None = None, listener: Listener | None = None
) -> dict:
    """Add exports to a bundle, all of them or none.

    Args:
        bundle: the student's folder, or a run directory with a student. "monai" also writes `<folder>.zip` beside it.
        to: keys of EXPORTERS.
        check: a cohort or image on which each export must give the student's labels; None takes the cohort of the run
            that the bundle lies in, or random images where there is none.

    Returns:
        What each export consists of, on which images it was checked, and how many voxels differ.

    Raises:
        ValueError, OSError: a kind that is not known or whose packages are not installed, or an export that fails its
            check; the bundle is then as it was.
    """
    folder = bundle_in(bundle).absolute()
    run = _run_of(folder)
    told = (run.events, run.cancel_requested) if run else ()
    with run.locked("export") if run else nullcontext(), Progress("export", listener, *told) as progress:
        for name in to:
            exporter_named(name)
        student = load_student(folder)
        evidence = _evidence(folder, check)
        progress.event("start", exports=list(to), cases=[case.id for case in evidence.cases], source=evidence.source)
        if not evidence.cases:
            progress.warning("no scan is at hand: checked on random images, which says little; give --check PATH")
        found, stage = {}, progress.stage("export", len(to))
        with written_whole(folder) as temporary:
            shutil.copytree(folder, temporary)
            for name in to:
                found[name] = write_export(student, name, temporary, evidence)
                _tell(progress, name, found[name])
                stage.advance(text=name)
        if "monai" in to:
            _zip(folder)
        progress.event("done", folder=str(folder), exports=found)
        return found


def _run_of(folder: Path) -> RunDirectory | None:
    """The run whose student a bundle is."""
    run = RunDirectory(folder.parent)
    return run if run.student == folder and learnt_from(run).is_file() else None


def _evidence(folder: Path, check: Cohort | Path | str | None) -> Evidence:
    """What the exports are checked on.

    Raises:
        ValueError, OSError: `check` is no cohort, or none of its images is there.
    """
    if check is None:
        run = _run_of(folder)
        return evidence_of(read_recorded(learnt_from(run)), OWN_COHORT) if run else Evidence()
    cohort = check if isinstance(check, Cohort) else read_cohort(check)
    evidence = evidence_of(cohort, GIVEN)
    if not evidence.cases:
        raise FileNotFoundError(f"{cohort.source}: none of its images is there")
    return evidence


def _tell(progress: Progress, name: str, found: dict) -> None:
    progress.event("exported", export=name, **found)
    words = (
        f"{found['differing']:.4%} of the voxels of {found['images']} image(s) ({found['source']}) get another label"
    )
    progress.message(f"{name}: {words} than from the student itself")
    for precision, cost in found["precisions"].items():
        progress.message(in_words(precision, cost))


def _zip(folder: Path) -> None:
    with written_whole(folder.with_name(folder.name + ".zip")) as temporary:
        made = shutil.make_archive(str(temporary), "zip", folder.parent, folder.name)
        Path(made).replace(temporary)
