"""Annotate cost: wall time of `annotate` beside the bare forward passes of its teacher, on the same scans."""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from KnowledgeTransferLib.learning.student import Student, load_student
from KnowledgeTransferLib.learning.volume import Volume, read_image
from KnowledgeTransferLib.records.cohort import Cohort, read_cohort
from KnowledgeTransferLib.steps.annotate import annotate

ROUNDS = 5  # of both in turn


def measure(data: Path, work: Path, teacher: str) -> dict:
    """Seconds of both over the scans of split `transferal`: the median of the rounds, and of their ratios."""
    cohort, student = read_cohort(data / "hippocampus_mri", "transferal"), load_student(Path(teacher))
    images = [prepared(student, read_image(case.images)) for case in cohort.cases]
    one_annotation(teacher, replace(cohort, cases=cohort.cases[:2]))  # imports and warms up
    rounds = [(passes(student, images), one_annotation(teacher, cohort)) for _ in range(ROUNDS)]
    bare, whole = (statistics.median(times) for times in zip(*rounds, strict=True))
    ratio = statistics.median(whole / bare for bare, whole in rounds)
    return {"design": student.design.name, "scans": len(images), "bare_s": bare, "annotate_s": whole, "ratio": ratio}


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


def one_annotation(teacher: str, cohort: Cohort) -> float:
    """Seconds of `annotate` into a new run directory."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        annotate(folder, cohort, {teacher: 1.0}, device="cpu")
        return time.perf_counter() - began
