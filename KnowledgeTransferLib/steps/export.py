"""Export: a student's bundle gets files that other tools run; each is checked before it counts."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..learning.exporters import exporter_named, write_export
from ..learning.student import load_student
from ..learning.volume import Volume, read_image
from ..records.bundle import bundle_in
from ..records.cohort import read_cohort
from ..records.progress import Listener, Progress
from ..records.run_directory import written_whole

MOST_IMAGES = 3  # that an export is checked on


def export(
    bundle: Path | str, to: list[str], *, check: Path | str | None = None, listener: Listener | None = None
) -> dict:
    """Add exports to a bundle, all of them or none.

    Args:
        bundle: the student's folder, or a run directory with a student. "monai" also writes `<folder>.zip` beside it.
        to: keys of EXPORTERS.
        check: images (as `segment` takes them) on which each export must give the student's labels; None takes random
            ones.

    Returns:
        What each export consists of, and on how many images how many voxels differ.

    Raises:
        ValueError, OSError: a kind that is not known or whose packages are not installed, or an export that fails its
            check; the bundle is then as it was.
    """
    with Progress("export", listener) as progress:
        folder = bundle_in(bundle)
        for name in to:
            exporter_named(name)
        student = load_student(folder)
        volumes = _volumes(check)
        progress.event("start", exports=list(to), images=len(volumes))
        found, stage = {}, progress.stage("export", len(to))
        with written_whole(folder) as temporary:
            shutil.copytree(folder, temporary)
            for name in to:
                found[name] = write_export(student, name, temporary, volumes)
                progress.event("exported", export=name, **found[name])
                stage.advance(text=name)
        if "monai" in to:
            _zip(folder)
        progress.event("done", folder=str(folder), exports=found)
        return found


def _volumes(check: Path | str | None) -> list[Volume]:
    cases = read_cohort(Path(check)).cases[:MOST_IMAGES] if check else []
    return [read_image(case.images, case.id) for case in cases]


def _zip(folder: Path) -> None:
    with written_whole(folder.with_name(folder.name + ".zip")) as temporary:
        made = shutil.make_archive(str(temporary), "zip", folder.parent, folder.name)
        Path(made).replace(temporary)
