"""Distil: a student learns from the pseudo-annotations of the transferal set, from expert annotations, or from both."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import statistics
from dataclasses import asdict
from pathlib import Path

from ..learning.ahead import ahead
from ..learning.batches import PreparedCases
from ..learning.configuration import Surroundings, configure, fingerprint, usual_precision
from ..learning.decision import settle_decision
from ..learning.losses import losses_of
from ..learning.precursors import kept_preprocessing, labels_of_start, live_teacher, runs_beside, with_precursors
from ..learning.predictor import pick_device
from ..learning.preprocessing import Preprocessing
from ..learning.resources import emulates_bf16
from ..learning.student import Student, as_it_learnt, load_student, new_network, save_student
from ..learning.training import Training, held_out_dice, length_for, new_fabric, new_training, train
from ..learning.training_cases import (
    FEWEST_CASES,
    TrainingCase,
    labels_to_learn,
    on_grid,
    split_by_group,
    training_cases_of,
)
from ..learning.voxel_weights import voxel_weights
from ..records import bundle
from ..records.cohort import Cohort, read_cohort
from ..records.labels import Labels
from ..records.losses import check_losses
from ..records.progress import FAILURES, Listener, Progress
from ..records.run_directory import RunDirectory, read_json, write_json
from ..records.settings import NONE, DistilSettings, checked, differences, read_settings, write_settings
from ..records.students import design_named
from ..records.training_cohort import has_other_cases, remember, training_cohort


def distil(
    run: RunDirectory | Path | str,
    cohort: Cohort | Path | str | None = None,
    *,
    restart: bool = False,
    listener: Listener | None = None,
    **asked,
) -> dict:
    """Train a student; a training that was stopped or killed goes on where it was.

    Args:
        cohort: what `read_cohort` reads; None takes those of the run's earlier training, or the run's own (the
            transferal set that `annotate` made). With annotations="both" the run's own are learnt from beside them.
        restart: forget an earlier training of this run.
        asked: fields of DistilSettings; those left out are taken from the run's settings.json or chosen. "none" takes
            back what settings.json says of `epochs`, `minutes` or `start_from`.

    Returns:
        `student` (the bundle's folder), `validation_dice`, `epoch` of that student, `background_lowered_by` (what
        `settle_decision` took from its logit), and `problems`.

    Raises:
        ValueError, OSError: nothing can be learnt, or the run was begun with other settings.
        Cancelled: the user asked for it; the same call goes on.
    """
    run = run if isinstance(run, RunDirectory) else RunDirectory(run)
    stored = read_settings(run, "distil")
    stored = stored if _began(run) and not restart else _unsettled(stored)
    device = pick_device(asked.get("device") or stored.get("device", "auto"))
    precision = asked.get("precision") or stored.get("precision") or usual_precision(device)
    fabric = new_fabric(device, precision)
    first = fabric.is_global_zero
    progress = Progress("distil", listener if first else None, run.events if first else None, run.cancel_requested)
    with run.locked("distil") if first else contextlib.nullcontext(), progress:
        progress.event("start", run=str(run.path), device=device, processes=fabric.world_size)
        if precision == "bf16-mixed" and emulates_bf16(device):
            progress.warning("this processor only imitates bf16-mixed, many times slower than 32-true; leave it out")
        if first:
            asked = {k: v for k, v in asked.items() if v is not None}
            for name in ("start_from", "live_teacher"):
                if asked.get(name, NONE) != NONE:
                    asked[name] = str(bundle.bundle_in(Path(asked[name]).absolute()))
            _get_ready(run, cohort, {**asked, "device": device}, restart, progress)
        fabric.barrier()
        summary = read_json(run.training) if run.training.is_file() else _learn(run, fabric, progress)
        summary["student"] = str(run.student)  # the run may have been moved
        if first:
            _forget_images(run)
        progress.event("done", **{k: v for k, v in summary.items() if k not in ("history", "left_out")})
        return summary


def _get_ready(run: RunDirectory, cohort, asked: dict, restart: bool, progress: Progress) -> None:
    """Settle the settings, and bring every case to the student's grid, unless an earlier start has done so."""
    taken_back = {name for name, value in asked.items() if value == NONE}
    asked = {name: value for name, value in asked.items() if name not in taken_back}
    checked(asked, "distil", "options")
    began = _began(run) and not restart
    stored = read_settings(run, "distil")
    chosen = _unsettled(stored)
    changed = differences("distil", stored, asked) if began else []
    changed += [f"{name} was {chosen[name]!r}" for name in sorted(taken_back) if began and chosen.get(name)]
    if began and cohort is not None and has_other_cases(run, _opened(cohort), stored.get("annotations", "pseudo")):
        changed.append("the cohort has other cases")
    if changed:
        raise ValueError(
            f"{run.path}: its training was begun with other settings ({'; '.join(changed)}). "
            "Leave these options out to go on, add --restart to begin anew, or name another run directory"
        )
    if began and run.training.is_file():
        progress.message("this training is finished; add --restart to begin anew, or name another run directory")
        _tell_what_is_newer(run, progress)
        return
    if began:
        progress.message("goes on with the training that is there")
        return
    chosen = {name: value for name, value in chosen.items() if name not in taken_back}
    settings = DistilSettings(**{**_without_other_length(chosen, asked), **asked})
    check_losses(settings.losses)  # before the work begins
    settings = with_precursors(settings, run, asked.get("student"))
    _prepare(run, _cohort(run, cohort, settings, progress), settings, progress)


def _tell_what_is_newer(run: RunDirectory, progress: Progress) -> None:
    """What the finished student cannot have learnt."""
    folders, finished = (run.pseudo_annotations, run.corrected_annotations), run.training.stat().st_mtime
    newer = sum(file.stat().st_mtime > finished for folder in folders for file in folder.glob("*.seg.nrrd"))
    if newer:
        progress.warning(f"{newer} annotations or corrections are newer than this student; --restart learns them too")


def _began(run: RunDirectory) -> bool:
    return run.checkpoint.is_file() or run.training.is_file()


def _unsettled(stored: dict) -> dict:
    """Stored settings without the automatic choices of an earlier start, which the cohort may no longer fit."""
    return {k: v for k, v in stored.items() if k not in stored.get("reasons", {}) and k != "reasons"}


def _without_other_length(stored: dict, asked: dict) -> dict:
    """Stored settings without the length that the asked one replaces: epochs and minutes exclude each other."""
    if "epochs" in asked and "minutes" in asked:
        raise ValueError("--epochs and --minutes exclude each other; give one of them")
    other = "minutes" if "epochs" in asked else "epochs" if "minutes" in asked else ""
    return {name: value for name, value in stored.items() if name != other}


def _forget_training(run: RunDirectory) -> None:
    """Forget an earlier training; its student stays until a new one takes its place."""
    _forget_images(run)
    run.training.unlink(missing_ok=True)


def _forget_images(run: RunDirectory) -> None:
    """Remove what only an unfinished training needs; it holds the patients' images."""
    run.checkpoint.unlink(missing_ok=True)
    shutil.rmtree(run.prepared, ignore_errors=True)


def _cohort(run: RunDirectory, cohort, settings: DistilSettings, progress: Progress) -> Cohort:
    given = None if cohort is None else _opened(cohort)
    whole = training_cohort(run, given, settings.annotations)
    if given is not None and len(whole.cases) > len(given.cases):
        more = len(whole.cases) - len(given.cases)
        progress.message(f"{more} cases of the run's own cohort are learnt from, beside the {len(given.cases)} given")
    return whole


def _opened(cohort: Cohort | Path | str) -> Cohort:
    return cohort if isinstance(cohort, Cohort) else read_cohort(cohort)


def _prepare(run: RunDirectory, cohort: Cohort, settings: DistilSettings, progress: Progress) -> None:
    cases = training_cases_of(run, cohort, settings, progress)
    labels = labels_of_start(settings, labels_to_learn(run, cohort, cases, progress))
    cases, fingerprints = _fingerprints(cases, labels, progress)
    to_learn, _ = split_by_group([item.case for item in cases], settings)
    around = Surroundings(cohort.modality, labels, settings.device, len(to_learn))
    settings, preprocessing = _configured(settings, around, fingerprints)
    _forget_training(run)
    remember(run, cohort)
    write_settings(run, "distil", settings)
    for name, reason in settings.reasons.items():
        progress.message(f"{name} = {getattr(settings, name)} ({reason})")
    prepared, good = PreparedCases(run.prepared), []
    stage = progress.stage("prepare", len(cases))
    for (number, item), reading in ahead(lambda item: item[1].read(labels), list(enumerate(cases))):
        try:
            volume, annotation = reading.result()
            image, target = on_grid(volume, annotation, labels, preprocessing)
            weights = voxel_weights(item, volume, preprocessing, settings)
        except FAILURES as error:  # such as a single slice among volumes
            progress.problem(item.case.id, error)
        else:
            if weights is not None and not weights.any():
                progress.leave_out(item.case.id, f"no voxel is as certain as {settings.least_certainty:g}")
            else:
                prepared.write(number, image, target, settings.seed, weights)
                counts = {"weight": settings.expert_weight} if item.by_person else {}
                unknown = item.unknown(labels, annotation)
                good.append((item, {"number": number, **counts, **({"unknown": unknown} if unknown else {})}))
        stage.advance(text=item.case.id)
    _refuse_few(good, cases, progress)
    prepared.complete(
        {
            "cases": [{"id": item.case.id, "group": item.case.group, **facts} for item, facts in good],
            "labels": labels.to_json(), "preprocessing": preprocessing.to_json(),
            "problems": progress.problems, "left_out": progress.left_out,
            "taught_by": _taught_by(run, [item for item, _ in good], settings),
        }
    )  # fmt: skip


def _fingerprints(cases: list[TrainingCase], labels: Labels, progress: Progress) -> tuple[list[TrainingCase], list]:
    """Open every case once: fingerprints of the good ones; a bad one is a problem, and the others go on."""
    stage, found = progress.stage("fingerprint", len(cases)), []
    for item, reading in ahead(lambda item: item.read(labels), cases):
        try:
            volume, target = reading.result()
            found.append((item, fingerprint(volume, target[0] if len(target) == 1 else target.argmax(0))))
        except FAILURES as error:
            progress.problem(item.case.id, error)
        stage.advance(text=item.case.id)
    found = _with_usual_channels(found, progress)
    _refuse_few(found, cases, progress)
    return [item for item, _ in found], [seen for _, seen in found]


def _with_usual_channels(found: list[tuple], progress: Progress) -> list[tuple]:
    """The cases with as many channels as most have; the others are problems."""
    usual = statistics.mode(len(seen.grey_values) for _, seen in found) if found else 0
    for item, seen in found:
        if len(seen.grey_values) != usual:
            text = f"{item.case.id}: has {len(seen.grey_values)} channels; the others {usual}"
            progress.problem(item.case.id, text)
    return [(item, seen) for item, seen in found if len(seen.grey_values) == usual]


def _refuse_few(good: list, cases: list[TrainingCase], progress: Progress) -> None:
    if len(good) < FEWEST_CASES:
        left_out = [f"{case['case']} {case['message']}" for case in progress.left_out]
        reason = next(iter([problem["message"] for problem in progress.problems] + left_out))
        raise ValueError(f"only {len(good)} of {len(cases)} cases can be used: {reason}")


def _configured(settings: DistilSettings, around: Surroundings, fingerprints: list):
    """Settings without gaps and the preprocessing; a training with precursors keeps theirs."""
    settings, kept = kept_preprocessing(settings, around.labels)
    if settings.live_teacher:
        around = dataclasses.replace(around, stride=load_student(Path(settings.live_teacher)).network.total_stride)
    configured, preprocessing = configure(settings, design_named(settings.student), fingerprints, around)
    reasons = {**settings.reasons, **configured.reasons}
    return dataclasses.replace(configured, reasons=reasons), kept or preprocessing


def _weight_in_words(teacher: dict) -> str:
    structures = teacher.get("structures", {})
    return " ".join(f"{name}:{weight:g}" for name, weight in structures.items()) or f"{teacher['weight']:g}"


def _taught_by(run: RunDirectory, cases: list[TrainingCase], settings: DistilSettings) -> str:
    """A sentence for the model card; it names no case and no path."""
    pseudo = [item for item in cases if item.annotation.parent == run.pseudo_annotations]
    parts = []
    if pseudo:
        teachers = read_json(run.annotations)["teachers"]
        names = ", ".join(f"weight {_weight_in_words(t)}, sha256 {t['sha256'][:12] or 'none'}" for t in teachers)
        soft = "class probabilities" if pseudo[0].probabilities else "decisions"
        parts.append(f"the {soft} of {len(teachers)} teacher(s) ({names}) on {len(pseudo)} images")
    corrected, by_expert = sum(item.corrected for item in cases), sum(item.by_expert for item in cases)
    if corrected:
        parts.append(f"pseudo-annotations of {corrected} images that a person corrected")
    if by_expert:
        parts.append(f"expert annotations of {by_expert} images")
    start = f"; it started from a bundle (sha256 {settings.start_sha256[:12]})" if settings.start_from else ""
    live = f"; a live teacher (sha256 {settings.live_sha256[:12]}) ran beside it" if runs_beside(settings) else ""
    return "It learnt from " + " and ".join(parts) + start + live + "."


def _learn(run: RunDirectory, fabric, progress: Progress) -> dict:
    """Train, write the bundle, and remove what is needed no more."""
    settings = DistilSettings(**read_settings(run, "distil"))
    prepared = PreparedCases(run.prepared)
    index = prepared.read_index()
    labels, preprocessing = Labels.from_json(index["labels"]), Preprocessing.from_json(index["preprocessing"])
    student = _untrained(run, settings, preprocessing, labels)
    cases = split_by_group(prepared.load(), settings)
    teacher = live_teacher(settings, labels, fabric)
    training = new_training(fabric, student.network, cases, settings, student.limit_voxels, teacher)
    if settings.epochs is None:
        settings = _with_length(training, run)
    train(training, run, progress)
    state = training.state
    if not state.best_epoch:
        progress.warning(
            f"fine-tuning made the student no better on the held-out patients (Dice {state.best_dice:.3f}): it "
            "keeps the weights that it started from. More annotated patients, or a lower --learning-rate, may help"
        )
    student.network.load_state_dict(state.best_network)
    if settings.decision == "expected-dice":
        student.lowered = settle_decision(training, progress)
    if student.lowered:
        state.best_dice = fabric.broadcast(held_out_dice(training))
    student.card = _card(index["taught_by"], settings, state, cases)
    summary = {
        "student": str(run.student), "validation_dice": state.best_dice, "epoch": state.best_epoch,
        "background_lowered_by": student.lowered, "duration_s": round(state.seconds, 1),
        "problems": index["problems"], "left_out": index.get("left_out", []), "history": state.history,
    }  # fmt: skip
    if fabric.is_global_zero:
        save_student(student, run.student)
        write_json(run.training, summary)
    fabric.barrier()
    return summary


def _with_length(training: Training, run: RunDirectory) -> DistilSettings:
    """Settle, once and for all processes, how many epochs fit into the time budget."""
    settings, fabric = training.settings, training.fabric
    epochs, every = fabric.broadcast(length_for(settings.minutes, training))
    every = every if "validate_every_epochs" in settings.reasons else settings.validate_every_epochs
    reasons = {**settings.reasons, "epochs": f"what fits into {settings.minutes:g} minutes on this computer"}
    settings = dataclasses.replace(settings, epochs=epochs, validate_every_epochs=every, reasons=reasons)
    training.settings = training.sampler.settings = settings
    if fabric.is_global_zero:
        write_settings(run, "distil", settings)
    return settings


def _untrained(run: RunDirectory, settings: DistilSettings, preprocessing: Preprocessing, labels: Labels) -> Student:
    design = design_named(settings.student)
    network = new_network(design, preprocessing, labels, settings.seed)
    if settings.start_from and not run.checkpoint.is_file():
        network.load_state_dict(as_it_learnt(load_student(Path(settings.start_from))).network.state_dict())
    return Student(network, design, labels, preprocessing)


def _card(taught_by: str, settings: DistilSettings, state, cases: tuple[list, list]) -> dict:
    share = "the same" if cases[0] == cases[1] else f"{len(cases[1])} held-out"
    figures = {f"Dice with the annotations it learns from, over {share} images": round(state.best_dice, 4)}
    hidden = ("start_from", "live_teacher", "reasons")
    known = {k: v for k, v in asdict(settings).items() if k not in hidden}
    return {
        "taught_by": taught_by, "figures": figures, "learnt_from_images": len(cases[0]),
        "settings": {**known, "losses": losses_of(settings)},
    }  # fmt: skip
