"""Demo: the whole job on a synthetic cohort, by the very commands that a user would give."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

from ..learning.phantom import write_phantom
from ..records.progress import Cancelled, Listener, Progress
from ..records.run_directory import RunDirectory

STOPPED = 130  # exit status of a command that the user stopped
CASES = {"A": 24, "B": 24}
TEACHER_EPOCHS, STUDENT_EPOCHS = 80, 120


def demo(
    folder: Path | str, run_command: Callable[[list[str]], int], *, seed: int = 0, listener: Listener | None = None
):
    """Hospital A trains a teacher; hospital B, which has no annotations, distils a student from it and checks both.

    Args:
        run_command: runs one command line of this library and returns its exit status.

    Raises:
        RuntimeError: a command failed.
    """
    folder = Path(folder)
    for site, cases in CASES.items():
        _write_site(folder, site, cases, seed, listener)
    for sentence, command in _commands(folder, seed):
        _tell(listener, f"{sentence}\n  $ knowledge-transfer {shlex.join(command)}")
        status = run_command(command)
        if status == STOPPED:
            raise Cancelled("the demo was stopped; the same command goes on where it was")
        if status != 0:
            raise RuntimeError(f"the demo stopped at: knowledge-transfer {shlex.join(command)}")
    _tell(listener, _last_words(folder))


def _write_site(folder: Path, site: str, cases: int, seed: int, listener: Listener | None) -> None:
    target = folder / f"site_{site}"
    if not (target / "cohort.csv").is_file():
        _tell(listener, f"Hospital {site}: {cases} synthetic CT scans are written to {target}")
        RunDirectory(folder).create()
        write_phantom(target, cases, site, seed + ord(site))


def _commands(folder: Path, seed: int) -> list[tuple[str, list[str]]]:
    a, b, teacher, run = (str(folder / name) for name in ("site_A", "site_B", "teacher", "run"))
    repeat = ["--seed", str(seed)]
    return [
        (
            "Hospital A trains a teacher on its expert annotations.",
            ["distil", teacher, "--cohort", a, "--split", "teacher", "--annotations", "expert", "--student", "small",
             "--epochs", str(TEACHER_EPOCHS), *repeat],
        ),
        (
            "Hospital B has scans without annotations: the teacher annotates them.",
            ["annotate", run, "--cohort", b, "--split", "transferal", "--teacher", f"{teacher}/student"],
        ),
        (
            "A small student learns from these pseudo-annotations alone.",
            ["distil", run, "--student", "tiny", "--epochs", str(STUDENT_EPOCHS), *repeat],
        ),
        (
            "Both are compared with expert annotations of scans that neither has seen.",
            ["evaluate", run, "--cohort", b, "--split", "test", "--method", f"teacher={teacher}/student",
             "--method", f"student={run}/student"],
        ),
    ]  # fmt: skip


def _last_words(folder: Path) -> str:
    run = RunDirectory(folder / "run")
    return (
        f"Done. Open the report:  {run.report}\n"
        f"The student lies in     {run.student}\n\n"
        "Next, with scans of your own (a folder of images, and the teacher's bundle):\n"
        "  $ knowledge-transfer annotate my_run --cohort my_scans --teacher my_teacher\n"
        "  $ knowledge-transfer distil my_run\n"
        "  $ knowledge-transfer segment my_run/student new_scan.nii.gz new_scan.seg.nrrd"
    )


def _tell(listener: Listener | None, text: str) -> None:
    Progress("demo", listener).message(text)
