"""Real: the results of docs/results.md, by the command line, on public data. Each run goes on where it was.

    make real            everything; about 40 minutes on 2 CPU cores
    KT_DATA=/my/data make real

Teachers learn from split `teacher`, students from the pseudo-annotations of `transferal`; `test` is only evaluated.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

import numpy as np
import torch
from timing import median_ms

from KnowledgeTransferLib import __version__
from KnowledgeTransferLib.learning.student import load_student
from KnowledgeTransferLib.records.bundle import WEIGHTS
from KnowledgeTransferLib.records.cohort import read_cohort
from KnowledgeTransferLib.records.run_directory import read_json, write_text

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("KT_DATA", ROOT.parent / "shared" / "data")).resolve()
RUNS = Path(os.environ.get("KT_RUNS", ROOT / "real_runs")).resolve()
SEED = "0"
QUICK = ("--precision", "bf16-mixed")  # of the teachers: half the time on a CPU that knows bfloat16
HALF_SIZE = ("--spacing-mm", "2", "2", "1")  # pictures of 256 pixels as 128, for the sake of 2 CPU cores
SCAN = (1, 1, 40, 56, 40)  # a prepared hippocampus scan


def main() -> None:
    if not (DATA / "hippocampus_mri").is_dir():
        sys.exit(f"{DATA}: the public data sets are not there; set KT_DATA to the folder that holds them")
    parts = [heading(), hippocampus(), ultrasound()]
    write_text(ROOT / "docs" / "results.md", "\n\n".join(parts) + "\n")
    print(f"written: {ROOT / 'docs' / 'results.md'}")


def hippocampus() -> str:
    cohort, teacher, run = str(DATA / "hippocampus_mri"), RUNS / "hippocampus_teacher", RUNS / "hippocampus"
    commands = [
        do("distil", teacher, "--cohort", cohort, "--split", "teacher", "--annotations", "expert", "--student", "large",
           "--epochs", "40", *QUICK),
        do("annotate", run, "--cohort", cohort, "--split", "transferal", "--teacher", teacher / "student"),
        do("distil", run, "--student", "tiny", "--epochs", "700", "--validation-share", "0.05"),
        compare(run, cohort, teacher=teacher / "student", student=run / "student"),
    ]  # fmt: skip
    return section("Hippocampus in T1 MRI (3-D): a large teacher, a tiny student", commands, run) + speed(run, teacher)


def ultrasound() -> str:
    home, abroad = str(DATA / "busi"), str(DATA / "bus_uclm")
    teacher, run, expert = RUNS / "busi_teacher", RUNS / "bus_uclm", RUNS / "bus_uclm_expert"
    learn = ("--annotations", "expert", *HALF_SIZE)
    commands = [
        do("distil", teacher, "--cohort", home, "--split", "teacher", *learn, "--student", "medium",
           "--epochs", "72", "--validate-every-epochs", "3", *QUICK),
        do("annotate", run, "--cohort", abroad, "--split", "transferal", "--teacher", teacher / "student"),
        do("distil", run, "--student", "tiny", *HALF_SIZE, "--epochs", "417", "--validate-every-epochs", "20"),
        do("distil", expert, "--cohort", abroad, "--split", "teacher", *learn, "--student", "tiny",
           "--epochs", "312", "--validate-every-epochs", "15"),
        compare(run, abroad, teacher=teacher / "student", student=run / "student", expert_student=expert / "student"),
    ]  # fmt: skip
    text = section("Breast ultrasound (2-D): a teacher from one hospital, a student at another", commands, run)
    return text + (
        "\n`teacher` learnt from busi (Cairo), `student` from its pseudo-annotations of bus_uclm's `transferal` images, "
        "`expert_student` (same design) from the expert annotations of bus_uclm's `teacher` images."
    )


def do(step: str, run: Path, *options) -> str:
    """Run one command (a finished one does nothing again); returns it as text."""
    words = [step, run, *options] + (["--seed", SEED] if step != "annotate" else [])
    command = [sys.executable, "-m", "KnowledgeTransferLib", *map(str, words)]
    print("$ " + shlex.join(command[1:]), flush=True)
    with open(RUNS / f"{run.name}.{step}.log", "a", encoding="utf-8") as log:
        subprocess.run(command, check=True, cwd=ROOT, stdout=log)
    return f"knowledge-transfer {shlex.join(shorten(word) for word in words)}"


def compare(run: Path, cohort: str, **methods: Path) -> str:
    named = [word for name, path in methods.items() for word in ("--method", f"{name}={path}")]
    return do("evaluate", run, "--cohort", cohort, "--split", "test", *named)


def shorten(word) -> str:
    return str(word).replace(f"{DATA}/", "../shared/data/").replace(f"{RUNS}/", "real_runs/")


def heading() -> str:
    cores = f"{torch.get_num_threads()} threads"
    machine = f"{processor()}, {cores}, {'CUDA' if torch.cuda.is_available() else 'no GPU'}"
    return (
        "# Results on real data\n\n"
        "Written by `make real` (Testing/Benchmarks/real.py) from the runs' own files; do not edit by hand.\n\n"
        f"- KnowledgeTransfer {__version__}, torch {torch.__version__}, Python {platform.python_version()}\n"
        f"- Machine: {machine}\n- Seed: {SEED}\n- Data: `../shared/data` (each folder's README gives source and licence)\n\n"
        "Splits are by patient. `test` was only evaluated, after everything was trained; designs and settings were "
        "chosen on `teacher` and `transferal`. Brackets: 95 % bootstrap interval over patients. Training times include "
        "whatever else the machine did." + notes()
    )


def notes() -> str:
    """What whoever ran it wrote into notes.md beside the runs."""
    file = RUNS / "notes.md"
    return "\n\n" + file.read_text(encoding="utf-8").strip() if file.is_file() else ""


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def section(title: str, commands: list[str], run: Path) -> str:
    evaluation = read_json(run / "evaluation.json")
    listing = "\n".join(commands)
    return f"## {title}\n\n```bash\n{listing}\n```\n\n{table(evaluation)}\n\n{tests(evaluation)}\n\n{annotations(run)}"


def table(evaluation: dict) -> str:
    rows = [
        "| method | Dice | HD95 (mm) | surface Dice | parameters | bundle (kB) | s per case |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, summary in evaluation["summary"].items():
        facts = evaluation["methods"][name]
        rows.append(
            f"| {name} | {interval(summary['all']['dice'])} | {interval(summary['all']['hd95_mm'], 2)} "
            f"| {interval(summary['all']['surface_dice'])} | {facts['parameters']} "
            f"| {facts['file_size_bytes'] / 1000:.0f} | {facts['seconds_per_case']:.3f} |"
        )
        for structure, figures in summary["structures"].items():
            if len(summary["structures"]) > 1:
                rows.append(
                    f"| {name}: {structure} | {interval(figures['dice'])} | {interval(figures['hd95_mm'], 2)} | {interval(figures['surface_dice'])} | | | |"
                )
    return "\n".join(rows)


def interval(figure: dict, digits: int = 3) -> str:
    return f"{figure['mean']:.{digits}f} [{figure['low']:.{digits}f}, {figure['high']:.{digits}f}]"


def tests(evaluation: dict) -> str:
    rows = ["| compared | patients | difference of mean Dice | p (Wilcoxon) | p after Holm |", "|---|---|---|---|---|"]
    for test in evaluation["tests"]:
        rows.append(
            f"| {test['a']} - {test['b']} | {test['groups']} | {test['mean_difference']:+.4f} | {test['p']:.2g} | {test['p_holm']:.2g} |"
        )
    means = {name: summary["all"]["dice"]["mean"] for name, summary in evaluation["summary"].items()}
    share = f"The student has {means['student'] / means['teacher']:.1%} of the teacher's Dice."
    return "\n".join(rows) + f"\n\n{share} {len(evaluation['problems'])} cases failed."


def annotations(run: Path) -> str:
    record, maps = read_json(run / "annotations.json"), list((run / "probabilities").glob("*.nii.gz"))
    confidence = [case["confidence"] for case in record["cases"].values()]
    size = np.mean([file.stat().st_size for file in maps]) / 1000
    training = read_json(run / "training.json")
    return (
        f"Transferal set: {len(confidence)} images, mean confidence {np.mean(confidence):.3f}; class probabilities take "
        f"{size:.0f} kB per case. The student's training took {training['duration_s']:.0f} s."
    )


def speed(run: Path, teacher: Path) -> str:
    """Network time per scan of both, one after the other in this process, and the size of the bundle."""
    image = torch.randn(SCAN, generator=torch.Generator().manual_seed(0))
    times = {
        name: median_ms(load_student(path / "student").runner, image)
        for name, path in (("teacher", teacher), ("student", run))
    }
    bundle_kb = sum(file.stat().st_size for file in (run / "student").rglob("*") if file.is_file()) / 1000
    weights_kb = (run / "student" / WEIGHTS).stat().st_size / 1000
    return (
        f"\n\nNetwork time per scan of {' x '.join(map(str, SCAN[2:]))} voxels (median of 30 passes, both as `segment` runs "
        f"them): teacher {times['teacher']:.1f} ms, student {times['student']:.2f} ms: "
        f"**{times['teacher'] / times['student']:.0f} times faster**. Bundle: {bundle_kb:.0f} kB, of which weights {weights_kb:.0f} kB."
    )


if __name__ == "__main__":
    RUNS.mkdir(parents=True, exist_ok=True)
    read_cohort(DATA / "hippocampus_mri")
    main()
