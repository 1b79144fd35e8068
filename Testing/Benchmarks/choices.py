"""Choices: which defaults for pseudo-annotations serve a student best, by a study on two data sets.

A teacher of split `teacher` annotates `transferal`, students learn from that and are measured on the expert annotations
of split `teacher`, which no student saw; `test` is not touched.
"""

from __future__ import annotations

from contrastive import described, must
from runs import DATA, RUNS, Run
from transfer import length, teacher

from KnowledgeTransferLib.records.run_directory import write_json

CELLS = {
    "the defaults": {},
    "hard labels": {"soft": False},
    "voxels count by their certainty": {"voxel_weights": "certainty"},
    "voxels below a certainty of 0.7 left out": {"least_certainty": 0.7},
    "hard labels, voxels below 0.7 left out": {"soft": False, "least_certainty": 0.7},
    "defaults with response": {"losses": {"response": 0.2}},
}
SETS = ("scd_lv_myocardium", "hippocampus_mri")


def choices() -> str:
    """One study for each data set."""
    studies = {data: _study(data) for data in SETS}
    must([*(teacher(data, "large") for data in SETS), *studies.values()])
    titles = {data: f"Defaults for pseudo-annotations: {data} (student small, teacher large)" for data in SETS}
    return "\n\n".join(described(titles[data], study, "") for data, study in studies.items())


def _study(data: str) -> Run:
    file = RUNS / "choices" / "plan.json"
    write_json(file, {"cells": CELLS})
    cases = ("--cohort", str(DATA / data), "--split", "transferal", "--test-split", "teacher")
    taught = ("--teacher", teacher(data, "large").student, "--plan", str(file), "--seeds", "3", "--at-once", "2")
    command = ("study", *cases, *taught, "--student", "small", *length(data, "transferal"))
    return Run(f"choices/{data}", (command,), (teacher(data, "large").name,))
