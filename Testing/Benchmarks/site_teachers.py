"""Teachers of several sites: each network learnt from patients of its own, and one student learns from all of them.

The patients of split `teacher` are divided among three sites, as if each gave its network away but not its scans. They
are from one hospital, so that the sites are alike.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

from part_cohorts import sites
from runs import DATA, RUNS, Run
from transfer import (
    SEEDS,
    SETS,
    TEACHERS,
    USUAL,
    Experiment,
    asked,
    length_of,
    steps_per_epoch,
    student,
    table,
)  # fmt: skip

SETS_OF_SITES = (  # all but chase_vessels, whose five patients are too few for three sites
    "busi", "bus_uclm", "hc18_fetal_head", "scd_lv_myocardium", "la_heart_lge_mri", "hippocampus_mri", "drive_vessels",
)  # fmt: skip
DESIGNS = TEACHERS[:3]  # site by site
NOTE = (
    "The patients of split `teacher` are divided at random into three sites, which are alike, and each teacher learnt from "
    "the patients of one site alone, for as many steps as a teacher of all of them. The student saw none of these "
    "patients, only what the three say of `transferal`, together; it learnt for 1000 steps, with more augmentation than "
    "the teachers. All draw where the *best Dice* is to be expected (docs/distilling.md); that was developed on busi's "
    "splits `transferal` and `teacher`, after busi's figures on `test` in the other sections had been seen. *Together*: "
    "what the three say of `test`, averaged. The best teacher is the best on `test`.\n\n"
)


def site_teachers() -> Experiment:
    """Students of three sites' teachers, three seeds; the set that takes longest comes last."""
    runs, rows = {}, {}
    *quick, slow = SETS_OF_SITES
    for seed, data in (*product(SEEDS, quick), *product(SEEDS, [slow])):
        cohorts = sites(DATA / data, len(DESIGNS), RUNS / "sites")
        teachers = [_teacher(data, *site) for site in zip(DESIGNS, cohorts, strict=True)]
        together, learner = _together(data, teachers), _student(data, teachers, seed)
        rows.setdefault((data, ", ".join(DESIGNS), SETS[data].student), []).append(learner)
        runs |= {run.name: run for run in (*teachers, together, learner)}
    columns, title = ("data", "teachers", "student"), "Teachers of three sites, one student"
    return title, list(runs.values()), lambda failed: table(columns, rows, failed)


def _teacher(data: str, design: str, cohort: Path) -> Run:
    expert = ("--annotations", "expert", "--student", design, "--seed", "0")
    size = length_of(data, SETS[data].batch_size * steps_per_epoch(data, cohort))
    return Run(f"sites/{cohort.parent.name} {design}", (("distil", "--cohort", str(cohort), *expert, *size),))


def _together(data: str, teachers: list[Run]) -> Run:
    cases = ("--cohort", str(DATA / data), "--split", "test")
    command = ("annotate", *cases, *asked(data, teachers, USUAL), "--no-probabilities")
    return Run(f"sites/{data} together", (command,), tuple(run.name for run in teachers))


def _student(data: str, teachers: list[Run], seed: int) -> Run:
    taught = SETS[data].student
    run, together = student(f"sites/{data} {taught} {seed}", data, teachers, taught, seed), _together(data, teachers)
    *learning, compared = run.commands
    compared = (*compared, "--method", f"together={together.folder / 'pseudo_annotations'}")
    return replace(run, commands=(*learning, compared), after=(*run.after, together.name))
