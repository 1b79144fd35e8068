"""Phantom: a small synthetic cohort with expert annotations, to try everything on."""

from __future__ import annotations

from pathlib import Path

from ..learning.phantom import write_phantom
from ..records.progress import Listener, Progress


def phantom(
    folder: Path | str,
    cases: int = 12,
    site: str = "A",
    *,
    seed: int = 0,
    size_voxels: tuple[int, int, int] | None = None,
    listener: Listener | None = None,
) -> Path:
    """Write the cohort into a new folder; returns the folder.

    Args:
        site: "A" (.nii.gz) or "B" (another scanner, contrast agent, .nrrd).
        size_voxels: voxels along I, J, K; None: those of the site.

    Raises:
        FileExistsError: the folder holds something already.
        Cancelled: the user asked for it; the cases so far stay.
    """
    folder = Path(folder).absolute()
    with Progress("phantom", listener) as progress:
        if cases < 1:
            raise ValueError(f"{cases} cases were asked for; at least 1 is needed")
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise FileExistsError(f"{folder}: holds something already; name a new folder")
        stage = progress.stage("phantom", cases)
        write_phantom(folder, cases, site, seed, size_voxels, written=lambda id_: stage.advance(text=id_))
        progress.event("done", folder=str(folder), cases=cases)
        return folder
