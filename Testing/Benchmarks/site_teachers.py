"""Teachers of several sites: each network learnt from patients of its own, and one student learns from all of them.

The patients of split `teacher` are divided among three sites, as if each were another hospital that gives its network
away but not its scans.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

from runs import DATA, RUNS, Run
from transfer import SEEDS, SETS, TEACHERS, Experiment, length, student, table

from KnowledgeTransferLib.records.cohort import read_cohort, write_names

SETS_OF_SITES = ("busi", "hc18_fetal_head", "scd_lv_myocardium", "drive_vessels")
DESIGNS = TEACHERS[:3]  # site by site
NOTE = (
    "The patients of split `teacher` are divided among three sites, and each teacher learnt from those of one site alone, "
    "as many steps as a teacher of all of them. The student saw none of these patients, only what the three say of "
    "`transferal`, together.\n\n"
)


def site_teachers() -> Experiment:
    """Students of three sites' teachers, three seeds; the first seed of every set comes before the others."""
    runs, rows = {}, {}
    for seed, data in product(SEEDS, SETS_OF_SITES):
        cohorts = sites(DATA / data, len(DESIGNS), RUNS / "sites")
        teachers = [_teacher(data, *site) for site in zip(DESIGNS, cohorts, strict=True)]
        taught = SETS[data].student
        learner = student(f"sites/{data} {taught} {seed}", data, teachers, taught, seed)
        rows.setdefault((data, ", ".join(DESIGNS), taught), []).append(learner)
        runs |= {run.name: run for run in (*teachers, learner)}
    columns, title = ("data", "teachers", "student"), "Teachers of three sites, one student"
    return title, list(runs.values()), lambda failed: table(columns, rows, failed)


def _teacher(data: str, design: str, cohort: Path) -> Run:
    expert = ("--annotations", "expert", "--student", design, "--seed", "0")
    size = length(data, "teacher", 1 / len(DESIGNS))
    return Run(f"sites/{cohort.parent.name} {design}", (("distil", "--cohort", str(cohort), *expert, *size),))


def sites(cohort: Path, number: int, folder: Path) -> list[Path]:
    """The cases of split `teacher` as cohorts of their own, every so many patients one's."""
    whole = read_cohort(cohort, "teacher")
    patients = sorted({case.group for case in whole.cases})
    found = []
    for site in range(number):
        own = set(patients[site::number])
        file = folder / f"{cohort.name} site {site + 1}" / "cohort.csv"
        rows = [f"{case.id},{case.images[0]},{case.label},{case.group}" for case in whole.cases if case.group in own]
        write_names(file.parent, whole.labels)
        file.write_text("\n".join(["id,image,label,group", *rows]), encoding="utf-8")
        found.append(file)
    return found
