"""Describe: what a teacher or student is, without executing anything of it."""

from __future__ import annotations

from pathlib import Path

from ..learning.teachers import absolute, kind_of, remember_trust, risk_of
from ..records.progress import Listener, Progress


def describe(
    path: Path | str, *, template: bool = False, trust: bool = False, listener: Listener | None = None
) -> dict:
    """Tell what lies at a path that is given as a teacher or a student.

    Args:
        template: first write the teacher.json that a bare network needs beside it, to be filled in.
        trust: if it brings code of its own, that may be executed from now on, until its files change.

    A network whose teacher.json is missing or wrong is told by the event `error` with `sidecar`, that file's path.

    Returns:
        `path`, `kind` (a word), `structures` (name and colour of each), `channels` (of the image; None: any),
        `modality` (empty: not known), `hint` (what a person should know, or empty), `card` (the model card, or empty),
        `risk` (what of it would be executed as code and is not trusted yet, or empty). For a template: `path`, `kind`
        and `template`, the file. For `totalsegmentator:` alone: `path`, `kind` and `tasks`, those that can be named.

    Raises:
        FileNotFoundError, ValueError: nothing there, damaged, or no known kind; the message lists the kinds.
    """
    path = absolute(Path(path))
    with Progress("describe", listener) as progress:
        kind = kind_of(path)
        result = {"path": str(path), "kind": kind.NAME}
        if template:
            result["template"] = str(_template(kind, path))
        elif tasks := _tasks(kind, path):
            result["tasks"] = tasks
        else:
            result |= _description(kind, path, trust)
        progress.event("done", **result)
        return result


def _description(kind, path: Path, trust: bool) -> dict:
    found = _described(kind, path)
    labels = found.pop("labels")
    structures = [{"name": s.name, "color": list(s.color)} for s in labels.structures]
    if trust:
        remember_trust(path)
    return {"structures": structures, **found, "risk": risk_of(path)}


def _described(kind, path: Path) -> dict:
    try:
        return kind.describe(path)
    except (OSError, ValueError) as error:
        if hasattr(kind, "sidecar"):
            error.facts = {"sidecar": str(kind.sidecar(path))}
        raise


def _tasks(kind, path: Path) -> list[str]:
    return kind.tasks(path) if hasattr(kind, "tasks") else []


def _template(kind, path: Path) -> Path:
    if not hasattr(kind, "template"):
        raise ValueError(f"{path}: needs no teacher.json; it is a {kind.KIND}")
    return kind.template(path)
