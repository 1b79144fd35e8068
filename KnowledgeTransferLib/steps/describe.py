"""Describe: what a teacher or student is, without opening its network."""

from __future__ import annotations

from pathlib import Path

from ..learning.teachers import kind_of
from ..records.progress import Listener, Progress


def describe(path: Path | str, *, listener: Listener | None = None) -> dict:
    """Tell what lies at a path that is given as a teacher or a student.

    Returns:
        `path`, `kind` (a word), `structures` (name and colour of each), `channels` (of the image; None: any),
        `modality` (empty: not known), `hint` (what a person should know, or empty), `card` (the model card, or empty).

    Raises:
        FileNotFoundError, ValueError: nothing there, damaged, or no known kind; the message lists the kinds.
    """
    path = Path(path).absolute()
    with Progress("describe", listener) as progress:
        kind = kind_of(path)
        found = kind.describe(path)
        labels = found.pop("labels")
        structures = [{"name": s.name, "color": list(s.color)} for s in labels.structures]
        result = {"path": str(path), "kind": kind.NAME, "structures": structures, **found}
        progress.event("done", **result)
        return result
