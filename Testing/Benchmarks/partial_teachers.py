"""Partial teachers: one knows the anterior hippocampus alone, one the posterior; their student beside a whole one's.

python Testing/Benchmarks/partial_teachers.py        into KT_RUNS, as real.py; goes on where it was
KT_DATA=/my/data KT_RUNS=/my/runs python ... --epochs 30 200      of the teachers and of the students
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from real import DATA, RUNS, compare, do, section

from KnowledgeTransferLib.learning.volume import read_annotation, read_image, write_annotation
from KnowledgeTransferLib.records.cohort import read_cohort, write_names
from KnowledgeTransferLib.records.labels import Labels

PARTS = {"anterior": ("anterior hippocampus",), "posterior": ("posterior hippocampus",)}
TITLE = "Two partial teachers: anterior and posterior hippocampus, one student of both"


def partial_teachers(teacher_epochs: int = 40, student_epochs: int = 400) -> str:
    """A section of docs/results.md. `whole` learnt from a teacher that knows both structures, `student` from two."""
    cohort, runs = DATA / "hippocampus_mri", {name: RUNS / f"partial_{name}" for name in (*PARTS, "whole")}
    learn = ("--annotations", "expert", "--student", "medium", "--epochs", teacher_epochs, "--precision", "bf16-mixed")
    commands = [
        do("distil", runs[name], "--cohort", only(cohort, PARTS[name], RUNS / f"cohort_{name}"), *learn)
        for name in PARTS
    ]
    commands.append(do("distil", runs["whole"], "--cohort", cohort, "--split", "teacher", *learn))
    students = {"student": tuple(PARTS), "whole": ("whole",)}
    for student, teachers in students.items():
        named = [word for name in teachers for word in ("--teacher", runs[name])]
        run = RUNS / f"partial_students_{student}"
        commands.append(do("annotate", run, "--cohort", cohort, "--split", "transferal", *named))
        commands.append(do("distil", run, "--epochs", student_epochs, "--validation-share", "0.05"))
    run, other = (RUNS / f"partial_students_{student}" for student in students)
    commands.append(compare(run, str(cohort), student=run / "student", teacher=other / "student"))
    return section(TITLE, commands, run) + (
        "\n\n`teacher` is here the student of a teacher that knows both structures; the aim is a Dice within 1 % of it."
    )


def only(cohort: Path, names: tuple[str, ...], folder: Path) -> Path:
    """The cases of split `teacher` with the expert annotations of some structures, as a cohort of its own."""
    whole = read_cohort(cohort, "teacher")
    kept = Labels(tuple(s for s in whole.labels.structures if s.name in names))
    rows = ["id,image,label,group"]
    for case in whole.cases:
        file, image = folder / "labels" / f"{case.id}.nii.gz", read_image(case.images)
        expert = read_annotation(case.label, whole.labels, image)
        write_annotation(file, np.where(np.isin(expert, kept.values), expert, 0), image.affine, kept)
        rows.append(f"{case.id},{case.images[0]},{file},{case.group}")
    write_names(folder, kept)
    (folder / "cohort.csv").write_text("\n".join(rows), encoding="utf-8")
    return folder / "cohort.csv"


if __name__ == "__main__":
    RUNS.mkdir(parents=True, exist_ok=True)
    print(partial_teachers(*map(int, sys.argv[2:4])))
