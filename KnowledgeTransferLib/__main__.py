"""Command line: one word per step. `python -m KnowledgeTransferLib STEP ...` or `knowledge-transfer STEP ...`.

Exit status: 0 done, 1 done but some cases failed, 2 the request cannot be carried out, 130 stopped by the user.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import signal
import sys
import traceback
from dataclasses import fields
from functools import partial
from importlib import import_module
from pathlib import Path

from .options import parser
from .records.progress import Cancelled, Listener, explain, stop_signal
from .records.run_directory import RunDirectory, commanded, json_text
from .records.settings import AnnotateSettings, DistilSettings, EvaluateSettings

DONE, SOME_CASES_FAILED, REFUSED, STOPPED = 0, 1, 2, 130


def main(arguments: list[str] | None = None) -> int:
    """Run one step; returns the exit status."""
    arguments = _arguments() if arguments is None else arguments
    options = parser().parse_args(arguments)
    # Threads that wait must sleep: with spinning ones (the default of GNU OpenMP) a training beside another busy
    # program was measured to be 20 times slower. Read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _stop_cleanly()
    with commanded(arguments):
        return _carry_out(options, _listener(), STEPS)


def _arguments() -> list[str]:
    """Those of the command line; without any, what the Slicer module gave by the environment, to this process alone."""
    given = os.environ.pop("KT_ARGUMENTS", "[]")
    return sys.argv[1:] or json.loads(given)


def _carry_out(options: argparse.Namespace, listener: Listener, steps: dict) -> int:
    try:
        return steps[options.step](options, listener)
    except (Cancelled, KeyboardInterrupt):
        return STOPPED
    except Exception as error:
        _write_log(options)
        if not getattr(error, "told", False):
            listener({"event": "error", "text": explain(error)})
        if os.environ.get("KT_DEBUG"):
            traceback.print_exc()
        return REFUSED


def _asked(options: argparse.Namespace, settings_class) -> dict:
    names = [f.name for f in fields(settings_class) if hasattr(options, f.name)]
    values = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return {**values, "losses": dict(values["losses"])} if "losses" in values else values


def _cohort(options: argparse.Namespace):
    from .records.cohort import read_cohort

    _check_cohort_options(options)
    return read_cohort(options.cohort, options.split, options.labels) if options.cohort else None


def _check_cohort_options(options: argparse.Namespace) -> None:
    if options.cohort is None and (options.split or options.labels):
        raise ValueError("--split and --labels belong to --cohort PATH; name it too")


def _annotate(options: argparse.Namespace, listener) -> int:
    if options.describe is not None:
        import_module(".steps.describe", __package__).describe(options.describe, template=True, listener=listener)
        return DONE
    if options.run is None:
        raise ValueError("annotate needs a run directory (annotate RUN --cohort PATH --teacher PATH)")
    step = import_module(".steps.annotate", __package__)
    teachers = _each_once("--teacher", map(_path_and_weight, options.teacher))
    asked = _asked(options, AnnotateSettings)
    if options.synonyms:
        asked["synonyms"] = dict(_other_and_name(text) for text in options.synonyms)
    cohort = _cohort(options)
    result = step.annotate(options.run, cohort, teachers, trust=options.trust, listener=listener, **asked)
    return _status(result["problems"], len(result["cases"]))


def _distil(options: argparse.Namespace, listener) -> int:
    step = import_module(".steps.distil", __package__)
    asked = _asked(options, DistilSettings)
    result = step.distil(options.run, _cohort(options), restart=options.restart, listener=listener, **asked)
    return _status(result["problems"], 1)


def _segment(options: argparse.Namespace, listener, open_student=None) -> int:
    step = import_module(".steps.segment", __package__)
    result = step.segment(
        options.bundle, options.inputs, options.output, format=options.format, device=options.device,
        overwrite=options.overwrite, run=options.run, listener=listener, how=_how(options),
        **({"open_student": open_student} if open_student else {}),
    )  # fmt: skip
    return _status(result["problems"], len(result["files"]))


def _how(options: argparse.Namespace):
    from .learning.student import How

    return How(
        options.backend, options.precision, options.mirror, options.largest_component, options.region_first,
        options.most_bytes,
    )  # fmt: skip


def _evaluate(options: argparse.Namespace, listener) -> int:
    step = import_module(".steps.evaluate", __package__)
    methods = _each_once("--method", map(_name_and_path, options.method))
    _check_cohort_options(options)
    asked = _asked(options, EvaluateSettings)
    result = step.evaluate(options.run, methods=methods or None, trust=options.trust, listener=listener, **asked)
    return _status(result["problems"], 1)


def _study(options: argparse.Namespace, listener) -> int:
    step = import_module(".steps.study", __package__)
    _check_cohort_options(options)
    cases = step.Cases(options.cohort, options.split, options.labels)
    same = options.test_cohort is None
    test = step.Cases(options.cohort if same else options.test_cohort, options.test_split, options.labels)
    result = step.study(
        options.run, (cases, test), options.plan, teacher=options.teacher, seeds=options.seeds, at_once=options.at_once,
        listener=listener, **_asked(options, DistilSettings),
    )  # fmt: skip
    return _status(result["problems"], len(result["cells"]))


def _export(options: argparse.Namespace, listener) -> int:
    step = import_module(".steps.export", __package__)
    step.export(options.bundle, options.to, check=options.check, listener=listener)
    return DONE


def _describe(options: argparse.Namespace, listener) -> int:
    step = import_module(".steps.describe", __package__)
    step.describe(options.path, template=options.template, trust=options.trust, listener=listener)
    return DONE


def _compare(options: argparse.Namespace, listener) -> int:
    import_module(".steps.compare", __package__).compare(options.segmentation, options.reference, listener=listener)
    return DONE


def _phantom(options: argparse.Namespace, listener) -> int:
    step = import_module(".steps.phantom", __package__)
    step.phantom(options.folder, options.cases, options.site, seed=options.seed, listener=listener)
    return DONE


def _serve(options: argparse.Namespace, listener) -> int:
    step = import_module(".steps.serve", __package__)
    for name in WARM:
        import_module(f".steps.{name}", __package__)
    opener = step.keeping(import_module(".learning.student", __package__).load_student)
    steps = {name: STEPS[name] for name in SERVED} | {"segment": partial(_segment, open_student=opener)}
    step.serve(options.folder, partial(_carry_out_request, steps=steps), idle_minutes=options.idle_minutes)
    return DONE


def _carry_out_request(arguments: list[str], listener: Listener, since: float, steps: dict) -> int:
    """One request of `serve`; the process lives on, whatever the request is.

    Raises:
        ValueError: a command line that cannot be understood, or that is not served.
    """
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(told):
            options = parser().parse_args(arguments)
    except SystemExit:
        raise ValueError(told.getvalue().strip().rpartition("\n")[2]) from None
    if options.step not in steps:
        raise ValueError(f"{options.step} is not served; known are {', '.join(steps)}")
    with commanded(arguments, since):
        return _carry_out(options, listener, steps)


def _demo(options: argparse.Namespace, listener) -> int:
    import_module(".steps.demo", __package__).demo(options.run, main, seed=options.seed, listener=listener)
    return DONE


STEPS = {
    "annotate": _annotate, "distil": _distil, "segment": _segment, "evaluate": _evaluate, "study": _study,
    "export": _export,
    "describe": _describe, "compare": _compare, "phantom": _phantom, "serve": _serve, "demo": _demo,
}  # fmt: skip
SERVED = ("annotate", "distil", "segment", "evaluate", "export", "describe", "compare", "phantom")
WARM = ("segment", "annotate", "describe", "compare")  # those of them that are loaded before somebody asks


def _status(problems: list, done: int) -> int:
    return DONE if not problems else SOME_CASES_FAILED if done else REFUSED


def _each_once(option: str, pairs) -> dict:
    found = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{option} {name}: is given twice")
        found[name] = value
    return found


def _path_and_weight(text: str) -> tuple[str, float | dict[str, float]]:
    """A teacher's path and weight, or path and weight of each structure."""
    path, equals, weight = text.rpartition("=")
    if not equals:
        return text, 1.0
    try:
        if ":" not in weight:
            return path, float(weight)
        pairs = (part.rpartition(":") for part in weight.split(","))
        return path, {structure.strip(): float(number) for structure, _, number in pairs}
    except ValueError:
        if Path(path).exists() and not Path(text).exists():
            raise ValueError(
                f"--teacher {text}: {weight!r} is no weight; write PATH=2 or PATH=STRUCTURE:2,..."
            ) from None
        return text, 1.0  # the path itself holds an equals sign


def _other_and_name(text: str) -> tuple[str, str]:
    name, equals, other = (part.strip() for part in text.partition("="))
    if not (name and equals and other):
        raise ValueError(f'--synonym {text}: write NAME=OTHER, for example "left kidney=kidney_left"')
    return other, name


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
    # Whatever the locale: paths hold letters of any language and, on Linux, bytes that are none.
    sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
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
