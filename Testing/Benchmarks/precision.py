"""Precision: what bf16 and int8 cost in Dice and gain in time, on hippocampus_mri; the table of docs/segmenting.md.

    python Testing/Benchmarks/precision.py precision_runs

Trains two students (8 minutes, unless they are there), and prints the table. `teacher` trains, `transferal` calibrates,
`test` is only evaluated. Times are processor seconds of one thread, the least of several passes, so that other work of
the machine counts little.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch

torch.set_num_threads(1)

from runs import DATA  # noqa: E402

from KnowledgeTransferLib.learning.evidence import batches_of, volumes_of  # noqa: E402
from KnowledgeTransferLib.learning.precision_cost import dice_of  # noqa: E402
from KnowledgeTransferLib.learning.student import How, Student, load_student  # noqa: E402
from KnowledgeTransferLib.learning.volume import read_annotation  # noqa: E402
from KnowledgeTransferLib.records.cohort import read_cohort  # noqa: E402
from KnowledgeTransferLib.steps.distil import distil  # noqa: E402
from KnowledgeTransferLib.steps.export import export  # noqa: E402

COHORT = DATA / "hippocampus_mri"
MINUTES = {"tiny": 1.5, "large": 6.0}
PRECISIONS = ("f32", "bf16", "int8")
LARGE = (1, 1, 128, 128, 128)
PASSES = {"tiny": 40, "large": 8}


def main(folder: Path) -> None:
    print("| student | precision | Dice with the experts | Dice with f32 | a scan (ms) | 128 x 128 x 128 (ms) |")
    print("|---|---|---|---|---|---|")
    for name, minutes in MINUTES.items():
        if not (folder / name / "training.json").is_file():
            teaching = read_cohort(COHORT, "teacher")
            distil(folder / name, teaching, annotations="expert", student=name, minutes=minutes, seed=0)
        export(folder / name, ["openvino", "openvino-int8"], check=read_cohort(COHORT, "transferal"))
        students = {p: load_student(folder / name).run_as(How("openvino", p)) for p in PRECISIONS}
        experts, agreement = dice_on_test(students)
        scan = next(batches_of(students["f32"], read_cohort(COHORT, "test").cases))
        small, large = (milliseconds(students, batch, PASSES[name]) for batch in (scan, torch.randn(LARGE)))
        for p in PRECISIONS:
            print(f"| `{name}` | {p} | {experts[p]:.4f} | {agreement[p]:.4f} | {small[p]:.1f} | {large[p]:.0f} |")


def dice_on_test(students: dict[str, Student]) -> tuple[dict[str, float], dict[str, float]]:
    """The mean Dice of each precision over cases and structures, with the experts and with f32."""
    values = students["f32"].labels.values[1:]
    experts, agreement = ({p: [] for p in students} for _ in range(2))
    for case, volume in volumes_of(read_cohort(COHORT, "test").cases):
        expert = read_annotation(case.label, students["f32"].labels, volume)
        maps = {p: student.segment(volume) for p, student in students.items()}
        for p, decision in maps.items():
            experts[p] += dice_of(decision, expert, values)
            agreement[p] += dice_of(decision, maps["f32"], values)
    return tuple({p: float(np.nanmean(dice)) for p, dice in of.items()} for of in (experts, agreement))


def milliseconds(students: dict[str, Student], batch: torch.Tensor, passes: int) -> dict[str, float]:
    """The least processor time of a pass, the precisions one after the other in each round."""
    least = dict.fromkeys(students, np.inf)
    for number in range(passes + 1):
        for p, student in students.items():
            began = time.process_time()
            student.runner(batch)
            if number:  # the first one prepares for the size
                least[p] = min(least[p], (time.process_time() - began) * 1000)
    return least


if __name__ == "__main__":
    main(Path(sys.argv[1]))
