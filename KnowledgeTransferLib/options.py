"""Options: the command line of each step. Nothing heavy is imported here, so that --help answers at once."""

from __future__ import annotations

import argparse
import re
from dataclasses import fields
from pathlib import Path

from . import __version__
from .records.losses import USUAL_WEIGHTS, weight_of
from .records.plans import PLANS
from .records.settings import NONE, AnnotateSettings, DistilSettings, EvaluateSettings
from .records.students import STUDENTS

HIDDEN = {
    "teachers",
    "reasons",
    "losses",
    "start_from",
    "start_sha256",
    "live_sha256",
    "methods",
    "cohort",
    "labels",
    "split",
    "most_bytes",
    "synonyms",
}  # have their own option, or none
WITHOUT = {"minutes": "none"}  # defaults of settings that nothing is chosen for
GROUPS = {  # of the settings of distil; others stand beside --help
    "what to learn from": (
        "annotations", "labelled_share", "soft", "expert_weight", "voxel_weights", "least_certainty",
        "least_confidence", "least_foreground_voxels", "validation_share", "foreground_share",
        "decision",
    ),
    "losses": ("tasks", "live_teacher", "scales", "response_temperature", "contrastive_temperature"),
    "length": ("epochs", "minutes", "validate_every_epochs", "patience_epochs"),
    "choices made from the cohort": (
        "dimensions", "spacing_mm", "normalisation", "patch_size_voxels", "batch_size", "learning_rate", "weight_decay",
    ),
    "augmentation": (
        "rotation_degrees", "scale_share", "shift_share", "mirror_axes", "contrast_share", "gamma_share",
        "noise_deviation",
    ),
    "machine": ("device", "precision"),
}  # fmt: skip
TAKEN_BACK = ("epochs", "minutes")  # settings that the option `none` takes back
KINDS = {"int": int, "float": float, "str": str}


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        "knowledge-transfer", description="Teachers annotate a cohort, a student learns from it, the student segments."
    )
    top.add_argument("--version", action="version", version=__version__)
    steps = top.add_subparsers(metavar="STEP", required=True)
    _add_annotate(steps)
    _add_distil(steps)
    _add_segment(steps)
    _add_evaluate(steps)
    _add_study(steps)
    _add_export(steps)
    _add_describe(steps)
    _add_compare(steps)
    _add_phantom(steps)
    _add_serve(steps)
    _add_demo(steps)
    return top


def _add_annotate(steps) -> None:
    step = _step(steps, "annotate", "let teachers annotate the cases of a cohort")
    step.add_argument("run", metavar="RUN", type=Path, nargs="?", help="run directory")
    _add_cohort(step)
    step.add_argument(
        "--teacher", action="append", metavar="PATH[=WEIGHT]", default=[],
        help="model of any known kind, or folder of segmentations; give it several times for several teachers; "
        "PATH=STRUCTURE:WEIGHT,... weights it by structure (0: it is not asked about that one)",
    )  # fmt: skip
    step.add_argument(
        "--synonym", action="append", dest="synonyms", metavar="NAME=OTHER",
        help="OTHER is another name of the structure NAME; case, underscores and terminology need none",
    )  # fmt: skip
    _add_trust(step)
    _add_max_memory(
        step, "; own bundles then go in smaller blocks, of others only the size of their probabilities is checked"
    )
    step.add_argument(
        "--describe", metavar="PATH", type=Path,
        help="only write the teacher.json that a bare network (.ts, .pt2, .onnx) needs, to be filled in",
    )  # fmt: skip
    _add_settings(step, AnnotateSettings)


def _add_distil(steps) -> None:
    step = _step(steps, "distil", "train a student on what the teachers, or experts, annotated")
    step.add_argument("run", metavar="RUN", type=Path, help="run directory")
    step.add_argument("--restart", action="store_true", help="forget an earlier training of this run")
    groups = _add_training(step)
    lessons = groups["what to learn from"]
    _add_cohort(lessons)
    lessons.add_argument(
        "--from", dest="start_from", metavar="BUNDLE", help="start from this student or teacher (fine-tuning)"
    )


def _add_training(step, without: tuple[str, ...] = ()) -> dict:
    """The settings of a training, in groups by their titles, which are returned."""
    groups = {title: step.add_argument_group(title) for title in GROUPS}
    groups["losses"].add_argument(
        "--loss", action="append", metavar="NAME[=WEIGHT]", type=_loss, dest="losses",
        help=f"one of {', '.join(USUAL_WEIGHTS)}; give it several times for several (dice-ce is always there, unless "
        "its weight is 0)",
    )  # fmt: skip
    places = {name: groups[title] for title, names in GROUPS.items() for name in names}
    known = {"student": (tuple(STUDENTS), f"student design: {_sizes()}"), **dict.fromkeys(without)}
    _add_settings(step, DistilSettings, known, places)
    return groups


def _add_segment(steps) -> None:
    step = _step(steps, "segment", "segment images with a student")
    step.add_argument("bundle", metavar="BUNDLE", type=Path, help="the student's folder, or its run directory")
    step.add_argument("inputs", metavar="INPUT", type=Path, nargs="+", help="image, DICOM series or folder of images")
    step.add_argument("output", metavar="OUTPUT", type=Path, help="file (for one image) or folder")
    step.add_argument("--format", metavar="SUFFIX", help="of files in a folder: .seg.nrrd, .nii.gz, .nrrd, .mha, .png")
    step.add_argument(
        "--overwrite", action="store_true", help="replace segmentations that are there (else they are kept)"
    )
    step.add_argument("--run", metavar="DIR", type=Path, help="directory for events.jsonl and a file `cancel`")
    step.add_argument("--device", default="auto", choices=("auto", "cuda", "mps", "cpu"), help="where it runs")
    _add_how(step)


def _add_how(step) -> None:
    """How a student is run: the fields of learning.student.How."""
    step.add_argument(
        "--backend", default="auto", choices=("auto", "torch", "openvino", "onnxruntime", "torchscript", "pt2"),
        help="what runs the network (default: the fastest that is installed); all give the same labels",
    )  # fmt: skip
    step.add_argument(
        "--precision", default="f32", choices=("f32", "bf16", "int8"),
        help="bf16, int8: less exact, faster on many processors; int8 needs `export --to openvino-int8`",
    )  # fmt: skip
    step.add_argument("--mirror", action="store_true", help="average over mirror images too: slower, a little better")
    step.add_argument(
        "--region-first", action="store_true",
        help="find the structures coarsely, then work only around them: faster; what the coarse look misses is lost",
    )  # fmt: skip
    step.add_argument("--largest-component", action="store_true", help="keep the largest part of each structure alone")
    _add_max_memory(step)


def _add_max_memory(step, more: str = "") -> None:
    text = f"GiB of memory that it may take (default: what is free){more}"
    step.add_argument("--max-memory", dest="most_bytes", type=_gib, metavar="GIB", help=text)


def _gib(text: str) -> int:
    """GiB as bytes."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 2**20:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; give a number of GiB above 0, for example 4")
    return int(number * 2**30)


def _add_evaluate(steps) -> None:
    step = _step(steps, "evaluate", "compare students, teachers or segmentations with expert annotations")
    step.add_argument("run", metavar="RUN", type=Path, help="run directory")
    _add_cohort(step)
    step.add_argument(
        "--method", action="append", metavar="NAME=PATH", default=[],
        help="student, teacher of any kind, or folder of segmentations; give it several times to compare",
    )  # fmt: skip
    _add_trust(step)
    _add_settings(step, EvaluateSettings)


def _add_study(steps) -> None:
    step = _step(steps, "study", "train many students that differ in some settings, and compare them on the same cases")
    step.add_argument("run", metavar="RUN", type=Path, help="run directory of the study")
    step.add_argument("--plan", metavar="PLAN", help=f"{', '.join(PLANS)}, or a JSON file (default: scales)")
    step.add_argument("--teacher", metavar="PATH", type=Path, help="bundle that teaches, made by KnowledgeTransfer")
    step.add_argument("--seeds", type=int, help="trainings of each cell (default: 3)")
    step.add_argument(
        "--at-once", metavar="N", type=int, help="trainings at the same time (default: one on each GPU, else one)"
    )
    _add_cohort(step)
    step.add_argument(
        "--test-cohort", metavar="PATH", type=Path, help="what students are measured on (default: --cohort)"
    )
    step.add_argument("--test-split", metavar="NAME", help="only the cases of this split")
    _add_training(step, without=("seed", "live_teacher"))


def _add_export(steps) -> None:
    step = _step(steps, "export", "add files that other tools run to a student's bundle")
    step.add_argument("bundle", metavar="BUNDLE", type=Path, help="the student's folder, or its run directory")
    step.add_argument(
        "--to", metavar="KIND", nargs="+", required=True,
        choices=("onnx", "torchscript", "pt2", "openvino", "openvino-int8", "monai"),
        help="onnx, torchscript, pt2 (torch.export), openvino, openvino-int8 (for `segment --precision int8`), "
        "monai (runs with `python -m monai.bundle run`)",
    )  # fmt: skip
    step.add_argument(
        "--check", metavar="PATH", type=Path,
        help="image or cohort to check it on (default: the cohort of the run that the student lies in)",
    )  # fmt: skip


def _add_describe(steps) -> None:
    step = _step(steps, "describe", "tell what a teacher or student is: its structures, channels and model card")
    step.add_argument(
        "path", metavar="PATH", type=Path,
        help="model of any known kind, or folder of segmentations; totalsegmentator: tells TotalSegmentator's tasks",
    )  # fmt: skip
    step.add_argument(
        "--template", action="store_true",
        help="write the teacher.json that a bare network (.ts, .pt2, .onnx) needs, to be filled in",
    )  # fmt: skip
    _add_trust(step)


def _add_trust(step) -> None:
    text = "let a teacher that brings code of its own execute it; remembered until its files change"
    step.add_argument("--trust", action="store_true", help=text)


def _add_compare(steps) -> None:
    step = _step(steps, "compare", "compare two segmentations of one image: Dice, HD95 and volumes")
    step.add_argument("segmentation", metavar="SEGMENTATION", type=Path, help="file, best a .seg.nrrd")
    step.add_argument("reference", metavar="REFERENCE", type=Path, help="file with which it is compared")


def _add_phantom(steps) -> None:
    step = _step(steps, "phantom", "write a small synthetic cohort with expert annotations, to try everything on")
    step.add_argument("folder", metavar="FOLDER", type=Path, help="new folder for the cohort")
    step.add_argument("--cases", type=int, default=12, help="number of cases (default: 12)")
    step.add_argument("--site", default="A", choices=("A", "B"), help="hospital A, or B with contrast agent and .nrrd")
    step.add_argument("--seed", type=int, default=0, help="seed of everything random")


def _add_serve(steps) -> None:
    step = _step(steps, "serve", "wait for requests on stdin, so that each one finds everything loaded")
    step.add_argument("folder", metavar="FOLDER", type=Path, help="directory for served.jsonl, where the answers go")
    step.add_argument(
        "--idle-minutes", type=float, default=10.0, metavar="MINUTES", help="ends after so long without a request"
    )


def _add_demo(steps) -> None:
    step = _step(steps, "demo", "the whole job on a small synthetic cohort, in minutes")
    step.add_argument("run", metavar="FOLDER", type=Path, nargs="?", default=Path("demo_run"), help="where to work")
    step.add_argument("--seed", type=int, default=0, help="seed of everything random")


def _step(steps, name: str, text: str) -> argparse.ArgumentParser:
    step = steps.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    step.set_defaults(step=name)
    return step


def _add_cohort(step) -> None:
    """Of a parser, or of a group of its arguments."""
    step.add_argument("--cohort", metavar="PATH", type=Path, help="folder of images, table (.csv) or dataset.json")
    step.add_argument("--split", metavar="NAME", help="only the cases of this split")
    step.add_argument("--labels", metavar="FILE", type=Path, help="names of the structures: dataset.json or .ctbl")


def _sizes() -> str:
    """The parameters of each student design, from its sentence: "tiny under 60 000, small 0.25 million"."""
    size = re.compile(r"(?:under |[\d.]+ to )?[\d.]+ (?:000|million)", re.IGNORECASE)
    sizes = {design.name: size.search(design.sentence) for design in STUDENTS.values()}
    return "parameters of " + ", ".join(f"{name} {found[0].lower()}" for name, found in sizes.items() if found)


def _add_settings(step, settings_class, known: dict | None = None, places: dict | None = None) -> None:
    """An option for each setting, in its place (a group); what is left out is taken from settings.json or chosen."""
    for setting in fields(settings_class):
        given = (known or {}).get(setting.name, (setting.metadata["choices"], setting.metadata["help"]))
        if setting.name in HIDDEN or given is None:
            continue
        choices, text = given
        text = text.removeprefix("augmentation: ")  # the title of its group
        default = setting.default if setting.default is not None else WITHOUT.get(setting.name, "chosen")
        (places or {}).get(setting.name, step).add_argument(
            "--" + setting.name.replace("_", "-"), default=None, help=f"{text} (default: {default})",
            **_kind_of(setting, choices),
        )  # fmt: skip


def _kind_of(setting, choices) -> dict:
    """How argparse reads a setting's option."""
    kind, given = setting.type.split(" ")[0], {"choices": choices} if choices else {}
    if kind == "bool":
        return {**given, "action": argparse.BooleanOptionalAction}
    if kind == "tuple[str,":
        return {"type": lambda text: tuple(text.split(",")), "metavar": "A,B"}
    if kind.startswith("tuple"):
        return {**given, "type": KINDS[kind[6:].split(",")[0]], "nargs": "*", "metavar": "N"}
    if setting.name in TAKEN_BACK:
        return {**given, "type": _number_or_none(KINDS[kind]), "metavar": "N|none"}
    return {**given, "type": KINDS[kind]}


def _loss(text: str) -> tuple[str, float]:
    try:
        return weight_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _number_or_none(kind):
    """Reads a number, or `none`, which takes back what an earlier start asked for."""

    def read(text: str):
        return text if text == NONE else kind(text)

    read.__name__ = kind.__name__  # argparse names it in its message
    return read
