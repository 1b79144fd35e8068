"""Partial teachers: one knows the anterior hippocampus alone, one the posterior; their student beside a whole one's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from runs import DATA, RUNS, Run

from KnowledgeTransferLib.learning.volume import read_annotation, read_image, write_annotation
from KnowledgeTransferLib.records.cohort import read_cohort, write_names
from KnowledgeTransferLib.records.labels import Labels

PARTS = ("anterior hippocampus", "posterior hippocampus")
TITLE = "Two partial teachers, one student: anterior and posterior hippocampus"
NOTE = (
    "\n\n`student` learnt from two teachers that know one structure each; what is called `teacher` here is a student of "
    "the same design that learnt from one teacher that knows both. The aim is a Dice within 1 % of it."
)


def partial_teachers(teacher_epochs: int = 20, student_epochs: int = 200) -> list[Run]:
    """The runs, the last of which is evaluated: teachers, the student of the whole one, the student of the partial."""
    whole = DATA / "hippocampus_mri"
    cohorts = {name: ("--cohort", str(only(whole, name, RUNS / f"cohort of {name}"))) for name in PARTS}
    cohorts["both"] = ("--cohort", str(whole), "--split", "teacher")
    learn = ("--annotations", "expert", "--student", "medium", "--epochs", str(teacher_epochs), "--seed", "0")
    quick = ("--precision", "bf16-mixed")
    teachers = {
        name: Run(f"partial/{name}", (("distil", *cohort, *learn, *quick),)) for name, cohort in cohorts.items()
    }
    of_both = _student("student of both", [teachers["both"]], student_epochs)
    of_parts = _student("student of parts", [teachers[name] for name in PARTS], student_epochs)
    methods = ("--method", f"student={of_parts.student}", "--method", f"teacher={of_both.student}")
    evaluation = ("evaluate", "--cohort", str(whole), "--split", "test", *methods)
    last = Run(of_parts.name, (*of_parts.commands, evaluation), (*of_parts.after, of_both.name))
    return [*teachers.values(), of_both, last]


def _student(name: str, teachers: list[Run], epochs: int) -> Run:
    named = [word for teacher in teachers for word in ("--teacher", teacher.student)]
    commands = (
        ("annotate", "--cohort", str(DATA / "hippocampus_mri"), "--split", "transferal", *named),
        ("distil", "--epochs", str(epochs), "--validation-share", "0.05", "--seed", "0"),
    )
    return Run(f"partial/{name}", commands, tuple(teacher.name for teacher in teachers))


def only(cohort: Path, name: str, folder: Path) -> Path:
    """The cases of split `teacher` with the expert annotation of one structure, as a cohort of its own."""
    whole = read_cohort(cohort, "teacher")
    kept = Labels(tuple(s for s in whole.labels.structures if s.name == name))
    rows = ["id,image,label,group"]
    for case in whole.cases:
        file, image = folder / "labels" / f"{case.id}.nii.gz", read_image(case.images)
        expert = read_annotation(case.label, whole.labels, image)
        write_annotation(file, np.where(np.isin(expert, kept.values), expert, 0), image.affine, kept)
        rows.append(f"{case.id},{case.images[0]},{file},{case.group}")
    write_names(folder, kept)
    (folder / "cohort.csv").write_text("\n".join(rows), encoding="utf-8")
    return folder / "cohort.csv"
