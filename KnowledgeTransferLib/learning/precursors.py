"""Precursors: the bundles that a training starts from or runs beside the student. It keeps their preprocessing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import nn

from ..records import bundle
from ..records.labels import Labels
from ..records.losses import OF_TEACHER
from ..records.run_directory import RunDirectory, read_json
from ..records.settings import DistilSettings
from ..records.structure_names import matches
from .features import Outputs, outputs_of
from .losses import losses_of, need_teacher
from .preprocessing import Preprocessing
from .student import Student, as_it_learnt, load_student


@dataclass(frozen=True)
class LiveTeacher:
    """A network that runs beside the student on the same augmented batch, and does not learn.

    Args:
        channels: for each class of the student, the channels of the teacher that it adds up; the background takes the
            structures that the student does not learn.
    """

    network: nn.Module
    channels: tuple[tuple[int, ...], ...]
    fabric: Fabric

    @torch.no_grad()
    def outputs(self, image: torch.Tensor, taps: Iterable[str]) -> Outputs:
        """Of a batch `(B, C, *size)`, in the precision of the training; logits `(B, classes of the student, *size)`."""
        with self.fabric.autocast():
            outputs = outputs_of(self.network, image, taps)
        logits = outputs.logits.float()
        classes = [logits[:, list(channels)].logsumexp(1) for channels in self.channels]
        return Outputs(torch.stack(classes, dim=1), outputs.features)


def live_teacher(settings: DistilSettings, labels: Labels, fabric: Fabric) -> LiveTeacher | None:
    """The live teacher that settings name, frozen; None where they name none, or no loss would look at it.

    Raises:
        ValueError: it has been changed since the training began, or lacks a structure.
    """
    if not runs_beside(settings):
        return None
    folder = Path(settings.live_teacher)
    if bundle.sha256(folder / bundle.WEIGHTS) != settings.live_sha256:
        raise ValueError(f"{folder}: has been trained again since this training began; begin anew with --restart")
    student = as_it_learnt(load_student(folder))
    network = fabric.to_device(student.network.requires_grad_(False).eval())
    return LiveTeacher(network, _channels(student, labels), fabric)


def runs_beside(settings: DistilSettings) -> bool:
    """Whether a live teacher is named and a loss looks at it."""
    return bool(settings.live_teacher and set(losses_of(settings)) & set(OF_TEACHER))


def _channels(teacher: Student, labels: Labels) -> tuple[tuple[int, ...], ...]:
    missing = [name for name in labels.names if name not in teacher.labels.names]
    if missing:
        raise ValueError(
            f"{teacher.folder}: segments {', '.join(teacher.labels.names)}, but not {', '.join(missing)}; a live "
            "teacher knows every structure that the student learns"
        )
    own = [1 + teacher.labels.names.index(name) for name in labels.names]
    rest = [channel for channel in range(teacher.labels.channels) if channel not in own]
    return (tuple(rest), *((channel,) for channel in own))


def with_precursors(settings: DistilSettings, run: RunDirectory, design: str | None) -> DistilSettings:
    """Settings with the bundles that are needed and their checksums.

    A live teacher is named, or is the run's own when a loss needs one: the only teacher that annotated its cohort.

    Args:
        design: the student design that was asked for, if any.

    Raises:
        ValueError, OSError: no such bundle, another design than that of the start, or a loss without a live teacher.
    """
    needing = need_teacher(losses_of(settings))
    live = settings.live_teacher or (_only_teacher(run, needing) if needing else "")
    live = str(bundle.bundle_in(Path(live).absolute())) if live else ""
    settings = dataclasses.replace(settings, start_sha256="", live_teacher=live, live_sha256=_checksum(live))
    if not settings.start_from:
        return settings
    student = _start(Path(settings.start_from).absolute())
    if design not in (None, student.design.name):
        raise ValueError(
            f"{student.folder}: is a {student.design.name} student; leave out --student {design} to start from it"
        )
    digest = _checksum(str(student.folder))
    return dataclasses.replace(
        settings, start_from=str(student.folder), start_sha256=digest, student=student.design.name
    )


def _start(path: Path) -> Student:
    if path.exists() and not bundle.is_bundle(bundle.bundle_in(path)):
        raise ValueError(
            f"{path}: is not a bundle of KnowledgeTransfer, from whose weights a training could start (--from). "
            "A student learns from other models, and from annotations, by `annotate --teacher`"
        )
    return load_student(path)


def _checksum(folder: str) -> str:
    return bundle.sha256(Path(folder) / bundle.WEIGHTS) if folder else ""


def _only_teacher(run: RunDirectory, needing: list[str]) -> str:
    teachers = read_json(run.annotations)["teachers"] if run.annotations.is_file() else []
    folders = [bundle.bundle_in(Path(teacher["path"])) for teacher in teachers]
    if len(folders) != 1 or not bundle.is_bundle(folders[0]) or not bundle.made_here(folders[0]):
        raise ValueError(
            f"the losses {', '.join(needing)} need a teacher that runs beside the student; name one bundle made by "
            "KnowledgeTransfer (--live-teacher PATH)"
        )
    return str(folders[0])


def labels_of_start(settings: DistilSettings, labels: Labels) -> Labels:
    """The structures of the bundle that the training starts from; those in `labels` where it starts from none.

    What the bundle knows beyond them gives no loss, and is neither learnt nor forgotten on purpose.

    Raises:
        ValueError: the annotations hold a structure that the bundle does not know.
    """
    if not settings.start_from:
        return labels
    start = load_student(Path(settings.start_from)).labels
    if len(matches(labels, start)) < len(labels.structures):
        raise ValueError(
            f"{settings.start_from}: segments {', '.join(start.names)}, but the annotations hold "
            f"{', '.join(labels.names)}; fine-tuning cannot add structures"
        )
    return start


def kept_preprocessing(settings: DistilSettings, labels: Labels) -> tuple[DistilSettings, Preprocessing | None]:
    """The preprocessing of the precursors, which the training keeps, with settings that say so; None without them.

    Raises:
        ValueError: other structures of the live teacher, other settings, or two precursors that see images differently.
    """
    start = load_student(Path(settings.start_from)) if settings.start_from else None
    live = load_student(Path(settings.live_teacher)) if settings.live_teacher else None
    if live:
        _channels(live, labels)
    if start and live and start.preprocessing != live.preprocessing:
        raise ValueError(
            f"{settings.live_teacher}: sees images with another spacing or normalisation than {settings.start_from}; "
            "a training that starts from one bundle beside the other needs the same of both"
        )
    return _fixed(settings, start or live) if start or live else (settings, None)


def _fixed(settings: DistilSettings, giver: Student) -> tuple[DistilSettings, Preprocessing]:
    kept = giver.preprocessing
    fixed = {
        "dimensions": kept.dimensions, "spacing_mm": kept.spacing_mm, "normalisation": kept.normalisation[0].kind,
    }  # fmt: skip
    doing = "fine-tuning" if settings.start_from else "learning beside a live teacher"
    for name, value in fixed.items():
        if getattr(settings, name) not in (None, value):
            raise ValueError(f"{giver.folder}: {doing} keeps its {name} of {value}; leave that option out")
    which = "which the training starts from" if settings.start_from else "which is the live teacher"
    reasons = {**settings.reasons, **dict.fromkeys(fixed, f"that of the bundle {which}")}
    return dataclasses.replace(settings, **fixed, reasons=reasons), kept
