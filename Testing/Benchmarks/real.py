"""Real: the results of docs/results.md, by the command line, on public data. Each run goes on where it was.

    make real                           everything; several hours on 2 CPU cores
    make real PARTS="single several"    these parts alone; the other sections stay as they are
    KT_DATA=/my/data KT_RUNS=/my/runs make real
    KT_ONLY_MEASURED=1 make real PARTS=single    the table of what was measured so far (not of every part)

Teachers learn from split `teacher`, students from the pseudo-annotations of `transferal`; `test` is only evaluated.
"""

from __future__ import annotations

import os
import sys
from datetime import date
from functools import partial
from pathlib import Path

import choices
import confidence
import contrastive
import decision
import lessons
import numpy as np
import partial_teachers
import site_teachers
import torch
from document import Document, origin, parts_asked
from runs import DATA, HALF_SIZE, ROOT, RUNS, Run, carry_out, not_measured, to_do
from timing import median_ms
from transfer import EXPERIMENTS, NOTES, interval

from KnowledgeTransferLib.learning.student import load_student
from KnowledgeTransferLib.records.bundle import WEIGHTS
from KnowledgeTransferLib.records.run_directory import read_json

QUICK = ("--precision", "bf16-mixed")  # of the teachers: half the time on a CPU that knows bfloat16
SCAN = (1, 1, 40, 56, 40)  # a prepared hippocampus scan
HEADING = (
    "# Results on real data\n\nWritten by `make real` (Testing/Benchmarks/real.py) from the runs' own files; do not "
    "edit by hand. Data: `../shared/data` (each folder's README gives source and licence). Splits are by patient; "
    "busi and la_heart_lge_mri name none, so that there every image or group of near-duplicates, and every scan, counts "
    "as a patient, and two of one patient may lie on both sides of a split. "
    "`test` is only evaluated, and designs and settings were chosen on `teacher` and `transferal`; but it is not untouched: "
    "sections say where something was changed after figures on `test` had been seen. Brackets: 95 % bootstrap interval "
    "over patients and, where there are several, seeds. p: Wilcoxon's signed-rank test over patients, for these trainings "
    "and this teacher; where the interval of the difference holds 0, other seeds may say otherwise. Dice: of the cases in "
    "which the expert drew the structure. Sections *by the old rule* counted normal images of busi and bus_uclm too (1 for "
    "drawing nothing) wherever another method of the same comparison drew something there, so that their figures cannot "
    "be set beside others. In sections that do not name *best Dice* students drew the most probable class, as "
    "`--decision most-probable` still does; their commands would draw otherwise now. "
    "Training times include whatever else the machine did."
)


def main(wanted: list[str]) -> None:
    if not (DATA / "hippocampus_mri").is_dir():
        sys.exit(f"{DATA}: the public data sets are not there; set KT_DATA to the folder that holds them")
    document = Document(ROOT / "docs" / "results.md", HEADING, list(PARTS))
    for part in wanted:
        text, command = PARTS[part](), f"make real PARTS={part}"
        # What was measured elsewhere says so itself.
        written = f"*Written {date.today()} by `{command}`.*" if part in TRANSFERS else origin(command)
        document.write(part, f"{text}\n\n{written}{notes()}\n")
        print(f"written: {document.file}, {part}", flush=True)


def hippocampus() -> str:
    cohort, seed = ("--cohort", str(DATA / "hippocampus_mri")), ("--seed", "0")
    large = ("--annotations", "expert", "--student", "large", "--epochs", "40", *QUICK, *seed)
    teacher = Run("hippocampus_teacher", (("distil", *cohort, "--split", "teacher", *large),))
    tiny = ("--student", "tiny", "--epochs", "700", "--validation-share", "0.05", *seed)
    methods = compared(teacher=teacher.student, student=Run("hippocampus", ()).student)
    commands = (
        ("annotate", *cohort, "--split", "transferal", "--teacher", teacher.student),
        ("distil", *tiny),
        ("evaluate", *cohort, "--split", "test", *methods, *seed),
    )
    run = Run("hippocampus", commands, (teacher.name,))
    title = "Hippocampus in T1 MRI (3-D): a large teacher, a tiny student"
    return section(title, [teacher, run]) + speed(run, teacher)


def ultrasound() -> str:
    home, abroad, seed = str(DATA / "busi"), str(DATA / "bus_uclm"), ("--seed", "0")
    learn = ("--annotations", "expert", *HALF_SIZE, *seed)
    medium = ("--student", "medium", "--epochs", "72", "--validate-every-epochs", "3", *QUICK)
    teacher = Run("busi_teacher", (("distil", "--cohort", home, "--split", "teacher", *learn, *medium),))
    tiny = ("--student", "tiny", "--epochs", "312", "--validate-every-epochs", "15")
    expert = Run("bus_uclm_expert", (("distil", "--cohort", abroad, "--split", "teacher", *learn, *tiny),))
    student = Run("bus_uclm", ()).student
    methods = compared(teacher=teacher.student, student=student, expert_student=expert.student)
    commands = (
        ("annotate", "--cohort", abroad, "--split", "transferal", "--teacher", teacher.student),
        ("distil", "--student", "tiny", *HALF_SIZE, "--epochs", "417", "--validate-every-epochs", "20", *seed),
        ("evaluate", "--cohort", abroad, "--split", "test", *methods, *seed),
    )
    run = Run("bus_uclm", commands, (teacher.name, expert.name))
    return section(
        "Breast ultrasound (2-D): a teacher from one hospital, a student at another", [teacher, expert, run]
    ) + (
        "\n`teacher` learnt from busi (Cairo), `student` from its pseudo-annotations of bus_uclm's `transferal` images, "
        "`expert_student` (same design) from the expert annotations of bus_uclm's `teacher` images."
    )


TRANSFERS = {**EXPERIMENTS, "sites": site_teachers.site_teachers, "partial": partial_teachers.partial_teachers}
TRANSFER_NOTES = {**NOTES, "sites": site_teachers.NOTE, "partial": partial_teachers.NOTE}


def transfer(name: str) -> str:
    """One of the experiments of arXiv:2101.09560."""
    title, runs, table = TRANSFERS[name]()
    failed = not_measured(runs) if os.environ.get("KT_ONLY_MEASURED") else carry_out(to_do(runs))
    example = runs[-1].text()
    return f"## {title}\n\n{table(failed)}\n\n{TRANSFER_NOTES.get(name, '')}Every cell is an ordinary run, such as\n\n```bash\n{example}\n```"


PARTS = {
    "hippocampus": hippocampus,
    "ultrasound": ultrasound,
    **{name: partial(transfer, name) for name in TRANSFERS},
    **decision.PARTS,
    **confidence.PARTS,
    **lessons.PARTS,
    **choices.PARTS,
    **contrastive.PARTS,
}


def compared(**methods: str) -> list[str]:
    return [word for name, path in methods.items() for word in ("--method", f"{name}={path}")]


def notes() -> str:
    """What whoever ran it wrote into notes.md beside the runs."""
    file = RUNS / "notes.md"
    return "\n\n" + file.read_text(encoding="utf-8").strip() if file.is_file() else ""


def section(title: str, runs: list[Run]) -> str:
    """Carry out runs, one after the other; the last one was evaluated."""
    failed = carry_out(runs, at_once=1)
    if failed:
        sys.exit("\n".join(f"{name}: {why}" for name, why in failed.items()))
    evaluation = read_json(runs[-1].folder / "evaluation.json")
    listing = "\n".join(run.text() for run in runs)
    parts = (f"```bash\n{listing}\n```", table(evaluation), tests(evaluation), annotations(runs[-1].folder))
    return "\n\n".join([f"## {title}", *parts])


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


def speed(run: Run, teacher: Run) -> str:
    """Network time per scan of both, one after the other in this process, and the size of the bundle."""
    image = torch.randn(SCAN, generator=torch.Generator().manual_seed(0))
    times = {
        name: median_ms(load_student(Path(path)).runner, image)
        for name, path in (("teacher", teacher.student), ("student", run.student))
    }
    files = [file for file in Path(run.student).rglob("*") if file.is_file()]
    bundle_kb = sum(file.stat().st_size for file in files) / 1000
    weights_kb = (Path(run.student) / WEIGHTS).stat().st_size / 1000
    return (
        f"\n\nNetwork time per scan of {' x '.join(map(str, SCAN[2:]))} voxels (median of 30 passes, both as `segment` runs "
        f"them): teacher {times['teacher']:.1f} ms, student {times['student']:.2f} ms: "
        f"**{times['teacher'] / times['student']:.0f} times faster**. Bundle: {bundle_kb:.0f} kB, of which weights {weights_kb:.0f} kB."
    )


if __name__ == "__main__":
    main(parts_asked(__doc__, list(PARTS)))
