"""Command line: one word per step. `python -m KnowledgeTransferLib STEP ...` or `knowledge-transfer STEP ...`.

Exit status: 0 done, 1 done but some cases failed, 2 the request cannot be carried out, 130 stopped by the user.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import traceback
from dataclasses import fields
from importlib import import_module
from pathlib import Path

from . import __version__
from .records.progress import Cancelled, explain, stop_signal
from .records.run_directory import RunDirectory, json_text
from .records.settings import AnnotateSettings, DistilSettings, EvaluateSettings
from .records.students import STUDENTS

DONE, SOME_CASES_FAILED, REFUSED, STOPPED = 0, 1, 2, 130
HIDDEN = {
    "teachers",
    "reasons",
    "losses",
    "start_from",
    "start_sha256",
    "methods",
    "cohort",
    "labels",
    "split",
}  # have their own option, or none
WITHOUT = {"minutes": "none"}  # defaults of settings that nothing is chosen for
GROUPS = {  # of the settings of distil; others stand beside --help
    "what to learn from": ("annotations", "soft", "validation_share", "foreground_share"),
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
KINDS = {"int": int, "float": float, "str": str}


def main(arguments: list[str] | None = None) -> int:
    """Run one step; returns the exit status."""
    options = parser().parse_args(arguments)
    # Threads that wait must sleep: with spinning ones (the default of GNU OpenMP) a training beside another busy
    # program was measured to be 20 times slower. Read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _stop_cleanly()
    listener = _listener()
    try:
        return options.go(options, listener)
    except (Cancelled, KeyboardInterrupt):
        return STOPPED
    except Exception as error:
        _write_log(options)
        if not getattr(error, "told", False):
            listener({"event": "error", "text": explain(error)})
        if os.environ.get("KT_DEBUG"):
            traceback.print_exc()
        return REFUSED


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
    _add_export(steps)
    _add_demo(steps)
    return top


def _add_annotate(steps) -> None:
    step = _step(steps, "annotate", _annotate, "let teachers annotate the cases of a cohort")
    step.add_argument("run", metavar="RUN", type=Path, help="run directory")
    _add_cohort(step)
    step.add_argument(
        "--teacher", action="append", metavar="PATH[=WEIGHT]", default=[],
        help="bundle, run directory or folder of segmentations; give it several times for several teachers",
    )  # fmt: skip
    _add_settings(step, AnnotateSettings)


def _add_distil(steps) -> None:
    step = _step(steps, "distil", _distil, "train a student on what the teachers, or experts, annotated")
    step.add_argument("run", metavar="RUN", type=Path, help="run directory")
    step.add_argument("--restart", action="store_true", help="forget an earlier training of this run")
    groups = {title: step.add_argument_group(title) for title in GROUPS}
    lessons = groups["what to learn from"]
    _add_cohort(lessons)
    lessons.add_argument(
        "--from", dest="start_from", metavar="BUNDLE", help="start from this student or teacher (fine-tuning)"
    )
    places = {name: groups[title] for title, names in GROUPS.items() for name in names}
    _add_settings(step, DistilSettings, {"student": (tuple(STUDENTS), f"student design: {_sizes()}")}, places)


def _add_segment(steps) -> None:
    step = _step(steps, "segment", _segment, "segment images with a student")
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
        "--backend", default="auto", choices=("auto", "torch", "openvino", "onnxruntime", "torchscript"),
        help="what runs the network (default: the fastest that is installed); all give the same labels",
    )  # fmt: skip
    step.add_argument("--precision", default="f32", choices=("f32", "bf16"), help="bf16: faster on some processors")
    step.add_argument("--mirror", action="store_true", help="average over mirror images too: slower, a little better")
    step.add_argument("--largest-component", action="store_true", help="keep the largest part of each structure alone")
    step.add_argument("--max-memory", type=_gib, metavar="GIB", help="memory it may take (default: what is free)")


def _gib(text: str) -> int:
    """GiB as bytes."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 2**20:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; give a number of GiB above 0, for example 4")
    return int(number * 2**30)


def _how(options: argparse.Namespace):
    from .learning.student import How

    return How(options.backend, options.precision, options.mirror, options.largest_component, options.max_memory)


def _add_evaluate(steps) -> None:
    step = _step(steps, "evaluate", _evaluate, "compare students, teachers or segmentations with expert annotations")
    step.add_argument("run", metavar="RUN", type=Path, help="run directory")
    _add_cohort(step)
    step.add_argument(
        "--method", action="append", metavar="NAME=PATH", default=[],
        help="bundle or folder of segmentations; give it several times to compare",
    )  # fmt: skip
    _add_settings(step, EvaluateSettings)


def _add_export(steps) -> None:
    step = _step(steps, "export", _export, "add files that other tools run to a student's bundle")
    step.add_argument("bundle", metavar="BUNDLE", type=Path, help="the student's folder, or its run directory")
    step.add_argument(
        "--to", metavar="KIND", nargs="+", required=True, choices=("onnx", "torchscript", "pt2", "openvino", "monai"),
        help="onnx, torchscript, pt2 (torch.export), openvino, monai (runs with `python -m monai.bundle run`)",
    )  # fmt: skip
    step.add_argument("--check", metavar="PATH", type=Path, help="images to check it on (default: random ones)")


def _add_demo(steps) -> None:
    step = _step(steps, "demo", _demo, "the whole job on a small synthetic cohort, in minutes")
    step.add_argument("run", metavar="FOLDER", type=Path, nargs="?", default=Path("demo_run"), help="where to work")
    step.add_argument("--seed", type=int, default=0, help="seed of everything random")


def _step(steps, name: str, go, text: str) -> argparse.ArgumentParser:
    step = steps.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    step.set_defaults(go=go)
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
        if setting.name in HIDDEN:
            continue
        choices, text = (known or {}).get(setting.name, (setting.metadata["choices"], setting.metadata["help"]))
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
    if kind.startswith("tuple"):
        return {**given, "type": KINDS[kind[6:].split(",")[0]], "nargs": "*", "metavar": "N"}
    return {**given, "type": KINDS[kind]}


def _asked(options: argparse.Namespace, settings_class) -> dict:
    names = [f.name for f in fields(settings_class) if hasattr(options, f.name)]
    values = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _cohort(options: argparse.Namespace):
    from .records.cohort import read_cohort

    _check_cohort_options(options)
    return read_cohort(options.cohort, options.split, options.labels) if options.cohort else None


def _check_cohort_options(options: argparse.Namespace) -> None:
    if options.cohort is None and (options.split or options.labels):
        raise ValueError("--split and --labels belong to --cohort PATH; name it too")


def _annotate(options: argparse.Namespace, listener) -> int:
    step = import_module(".steps.annotate", __package__)
    teachers = dict(_path_and_weight(text) for text in options.teacher)
    asked = _asked(options, AnnotateSettings)
    result = step.annotate(options.run, _cohort(options), teachers, listener=listener, **asked)
    return _status(result["problems"], len(result["cases"]))


def _distil(options: argparse.Namespace, listener) -> int:
    step = import_module(".steps.distil", __package__)
    asked = _asked(options, DistilSettings)
    result = step.distil(options.run, _cohort(options), restart=options.restart, listener=listener, **asked)
    return _status(result["problems"], 1)


def _segment(options: argparse.Namespace, listener) -> int:
    step = import_module(".steps.segment", __package__)
    result = step.segment(
        options.bundle, options.inputs, options.output, format=options.format, device=options.device,
        overwrite=options.overwrite, run=options.run, listener=listener, how=_how(options),
    )  # fmt: skip
    return _status(result["problems"], len(result["files"]))


def _evaluate(options: argparse.Namespace, listener) -> int:
    step = import_module(".steps.evaluate", __package__)
    methods = dict(_name_and_path(text) for text in options.method)
    _check_cohort_options(options)
    asked = _asked(options, EvaluateSettings)
    result = step.evaluate(options.run, methods=methods or None, listener=listener, **asked)
    return _status(result["problems"], 1)


def _export(options: argparse.Namespace, listener) -> int:
    step = import_module(".steps.export", __package__)
    step.export(options.bundle, options.to, check=options.check, listener=listener)
    return DONE


def _demo(options: argparse.Namespace, listener) -> int:
    import_module(".steps.demo", __package__).demo(options.run, main, seed=options.seed, listener=listener)
    return DONE


def _status(problems: list, done: int) -> int:
    return DONE if not problems else SOME_CASES_FAILED if done else REFUSED


def _path_and_weight(text: str) -> tuple[str, float]:
    path, equals, weight = text.rpartition("=")
    try:
        return (path, float(weight)) if equals else (text, 1.0)
    except ValueError:
        return text, 1.0  # the path itself holds an equals sign


def _name_and_path(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not equals or not name or not path:
        raise ValueError(f"--method {text}: write NAME=PATH, for example student=my_run/student")
    return name, Path(path)


def _listener():
    """Rich progress in a terminal, JSON lines otherwise."""
    if sys.stdout.isatty():
        from .terminal import TerminalListener

        return TerminalListener()
    sys.stdout.reconfigure(encoding="utf-8")  # whatever the locale: paths hold letters of any language
    return _print_json


def _print_json(event: dict) -> None:
    """A reader that goes away (`| head`, a closed Slicer) is no reason to stop."""
    try:
        print(json_text(event), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _write_log(options: argparse.Namespace) -> None:
    """Keep the traceback where a run has a place for it."""
    run = getattr(options, "run", None)
    if run is not None and Path(run).is_dir():
        try:
            with open(RunDirectory(run).log, "a", encoding="utf-8") as file:
                file.write(traceback.format_exc() + "\n")
        except OSError:
            pass  # the disk may be what is wrong; the message is shown all the same


def _stop_cleanly() -> None:
    """The first Ctrl-C or termination asks the step to stop where nothing is lost; the second stops at once."""
    stop = stop_signal()

    def ask(*_) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    for name in ("SIGINT", "SIGTERM", "SIGBREAK"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), ask)


if __name__ == "__main__":
    sys.exit(main())
