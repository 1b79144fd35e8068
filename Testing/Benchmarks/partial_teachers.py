"""Partial teachers: one knows the anterior hippocampus alone, one the posterior; their student beside a whole one's."""

from __future__ import annotations

from dataclasses import replace

from part_cohorts import only
from runs import DATA, RUNS, Run
from transfer import FORMER, SEEDS, SETS, TWO, Experiment, evaluation, length, single_student, student, table, teacher

DATA_SET, STRUCTURES = "hippocampus_mri", ("anterior hippocampus", "posterior hippocampus")
NOTE = (
    "Each student learnt from two teachers that know one structure each, and is compared with the student of one teacher "
    "that knows both, of the same designs, lengths and seed. All drew the most probable class. The aim is a Dice within 1 % of it.\n\n"
)


def partial_teachers() -> Experiment:
    """Three students of two partial teachers beside those of the whole one."""
    expert = ("--annotations", "expert", "--student", TWO[1], "--seed", "0", *length(DATA_SET, "teacher"))
    cohorts = {name: only(DATA / DATA_SET, name, RUNS / f"cohort of {name}") for name in STRUCTURES}
    knowing_one = [
        Run(f"partial/{name}", (("distil", "--cohort", str(cohort), *expert),)) for name, cohort in cohorts.items()
    ]
    of_both = [single_student(DATA_SET, TWO[1], SETS[DATA_SET].student, seed, FORMER) for seed in SEEDS]
    of_parts = [_student(knowing_one, other, seed) for seed, other in zip(SEEDS, of_both, strict=True)]
    rows = {(DATA_SET, TWO[1], SETS[DATA_SET].student): of_parts}
    runs = [teacher(DATA_SET, TWO[1]), *knowing_one, *of_both, *of_parts]
    columns, title = ("data", "teachers", "student"), "Two partial teachers, one student"
    return title, runs, lambda failed: table(columns, rows, failed, against="student of a whole teacher")


def _student(teachers: list[Run], other: Run, seed: int) -> Run:
    """A student of partial teachers, evaluated beside the student of a whole one instead of its teachers."""
    run = student(f"partial/student {seed}", DATA_SET, teachers, SETS[DATA_SET].student, seed, FORMER)
    *learning, _ = run.commands
    compared = evaluation(DATA_SET, f"whole={other.student}", f"student={run.student}")
    return replace(run, commands=(*learning, compared), after=(*run.after, other.name))
