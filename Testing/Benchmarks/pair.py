"""Pair: a large teacher and the tiny student that learnt from its pseudo-annotations, on hippocampus_mri."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
from scans import folder_of_scans
from side import ROOT, peak_mib

from KnowledgeTransferLib.records.cohort import read_cohort

RUNS = Path(os.environ.get("KT_RUNS", ROOT / "real_runs")).resolve()  # what `make real` leaves
TEACHER_MINUTES, STUDENT_MINUTES, REPEATS = 2.0, 1.0, 2


def bundles(work: Path) -> dict[str, Path]:
    """Those of `make real` where they are, else the places of a pair that `train` makes."""
    runs = RUNS if (RUNS / "hippocampus" / "student").is_dir() else work
    return {"large": runs / "hippocampus_teacher" / "student", "tiny": runs / "hippocampus" / "student"}


def train(data: Path, work: Path) -> dict:
    """A few minutes: a teacher of split `teacher`, its pseudo-annotations of `transferal`, a student of these."""
    from KnowledgeTransferLib.steps.annotate import annotate
    from KnowledgeTransferLib.steps.distil import distil

    cohort, teacher, run = data / "hippocampus_mri", work / "hippocampus_teacher", work / "hippocampus"
    distil(teacher, read_cohort(cohort, "teacher"), annotations="expert", student="large", minutes=TEACHER_MINUTES,
           precision="bf16-mixed", device="cpu")  # fmt: skip
    annotate(run, read_cohort(cohort, "transferal"), {str(teacher / "student"): 1.0}, device="cpu")
    distil(run, student="tiny", minutes=STUDENT_MINUTES, device="cpu")
    return {}


def measure(data: Path, work: Path, name: str) -> dict:
    """The folder of scans of split `transferal` by one of the two, warm; Dice with its expert annotations."""
    from KnowledgeTransferLib.learning.student import load_student
    from KnowledgeTransferLib.steps.segment import segment
    from KnowledgeTransferLib.steps.serve import keeping

    bundle, scans, open_student, times = bundles(work)[name], folder_of_scans(data, work), keeping(load_student), []
    for _ in range(REPEATS):
        began = time.perf_counter()
        done = segment(bundle, [scans], work / name, device="cpu", overwrite=True, open_student=open_student)
        times.append((time.perf_counter() - began) / len(done["files"]) * 1000)
    peak, student = peak_mib(), open_student(bundle, "cpu")
    found = {"ms": min(times), "peak_mib": peak, "parameters": student.parameters, "pass_ms": pass_ms(student, scans)}
    return {**found, "dice": dice(data, work / name)}


def pass_ms(student, scans: Path) -> float:
    """Median milliseconds of one warm pass through the network."""
    from KnowledgeTransferLib.learning.predictor import class_maps
    from KnowledgeTransferLib.learning.volume import read_image

    times = []
    for scan in sorted(scans.iterdir()):
        image = student.prepare(read_image(scan)).image
        began = time.perf_counter()
        next(class_maps(student.runner, image, 3, student.limit_voxels))
        times.append((time.perf_counter() - began) * 1000)
    return float(np.median(times))


def dice(data: Path, folder: Path) -> dict[str, float]:
    """Structure -> mean Dice over the cases of split `transferal`."""
    from KnowledgeTransferLib.learning.volume import read_annotation

    cohort = read_cohort(data / "hippocampus_mri", "transferal")
    scores = {structure.name: [] for structure in cohort.labels.structures}
    for case in cohort.cases:
        expert = read_annotation(case.label, cohort.labels)
        found = read_annotation(folder / case.images[0].name, cohort.labels)
        for structure in cohort.labels.structures:
            a, b = expert == structure.value, found == structure.value
            scores[structure.name].append(2 * (a & b).sum() / max(1, a.sum() + b.sum()))
    return {name: float(np.mean(values)) for name, values in scores.items()}
