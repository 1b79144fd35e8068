"""Annotate cost: wall time of `annotate` beside the bare forward passes of its teacher, on the same prepared scans.

    python Testing/Benchmarks/annotate_cost.py TEACHER       prints the table; under a minute on 2 CPU cores
    KT_DATA=/my/data python ...

TEACHER is the bundle of a trained `large` student, such as real_runs/hippocampus_teacher of `make real`.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

import torch

from KnowledgeTransferLib.learning.student import Student, load_student
from KnowledgeTransferLib.learning.volume import Volume, read_image
from KnowledgeTransferLib.records.bundle import bundle_in
from KnowledgeTransferLib.records.cohort import Cohort, read_cohort
from KnowledgeTransferLib.steps.annotate import annotate

DATA = Path(os.environ.get("KT_DATA", Path(__file__).parents[3] / "shared" / "data")).resolve()
ROUNDS = 3  # of both in turn; the median counts


def main() -> None:
    if len(sys.argv) != 2:  # noqa: PLR2004
        sys.exit(__doc__)
    print(annotate_cost(Path(sys.argv[1]), read_cohort(DATA / "hippocampus_mri", "transferal")))


def annotate_cost(teacher: Path, cohort: Cohort) -> str:
    """A section of docs/benchmarks.md."""
    student = load_student(bundle_in(teacher))
    images = [prepared(student, read_image(case.images)) for case in cohort.cases]
    one_annotation(teacher, replace(cohort, cases=cohort.cases[:2]))  # imports and warms up
    rounds = [(passes(student, images), one_annotation(teacher, cohort)) for _ in range(ROUNDS)]
    bare, whole = (statistics.median(times) for times in zip(*rounds, strict=True))
    count = len(cohort.cases)
    return (
        f"## Cost of annotation (`{student.design.name}` on {count} scans of the hippocampus)\n\n"
        "| | s | ms per scan |\n|---|---|---|\n"
        f"| bare forward passes of the teacher, scans prepared in memory | {bare:.2f} | {bare / count * 1000:.0f} |\n"
        f"| `annotate`: reading, preparing, forward passes, probabilities and pseudo-annotations written "
        f"| {whole:.2f} | {whole / count * 1000:.0f} |\n\n"
        f"**{whole / bare:.2f} times** the bare forward passes (aim: at most 1.15). Median of {ROUNDS} rounds of both in "
        f"turn, {torch.get_num_threads()} threads; opening the teacher is counted, imports are not."
    )


def prepared(student: Student, volume: Volume) -> torch.Tensor:
    """What the network sees of a volume `(1, C, i, j, k)`, continued to a size that it can take."""
    image = student.preprocessing.prepare(volume)[0][None]
    missing = [-n % student.runner.total_stride for n in image.shape[2:]]
    return torch.nn.functional.pad(image, [n for m in reversed(missing) for n in (0, m)], mode="replicate")


@torch.inference_mode()
def passes(student: Student, images: list[torch.Tensor]) -> float:
    """Seconds of the network alone."""
    began = time.perf_counter()
    for image in images:
        student.runner(image)
    return time.perf_counter() - began


def one_annotation(teacher: Path, cohort: Cohort) -> float:
    """Seconds of `annotate` into a new run directory."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        annotate(folder, cohort, {str(teacher): 1.0}, device="cpu")
        return time.perf_counter() - began


if __name__ == "__main__":
    main()
