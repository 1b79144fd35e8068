"""Choices: which defaults for pseudo-annotations serve a student best, by a study on each of some data sets.

A teacher of split `teacher` annotates `transferal`, students learn from that and are measured on the expert annotations
of split `teacher`, which no student saw; `test` is not touched.
"""

from __future__ import annotations

from functools import partial

from contrastive import described, must
from runs import DATA, RUNS, Run
from transfer import TWO, length, teacher

from KnowledgeTransferLib.records.run_directory import write_json

CELLS = {
    "the defaults": {},
    "hard labels": {"soft": False},
    "voxels count by their certainty": {"voxel_weights": "certainty"},
    "voxels below a certainty of 0.7 left out": {"least_certainty": 0.7},
    "hard labels, voxels below 0.7 left out": {"soft": False, "least_certainty": 0.7},
    "the most probable class is drawn": {"decision": "most-probable"},
    "defaults with response": {"losses": {"response": 0.2}},
}
# Data set -> whose teacher annotates it: teachers of the same hospital, and one of another.
SETS = {"scd_lv_myocardium": "scd_lv_myocardium", "hippocampus_mri": "hippocampus_mri", "bus_uclm": "busi"}


def choices(data: str) -> str:
    """The study of one data set."""
    study = _study(data)
    must([teacher(SETS[data], TWO[0]), study])
    title = f"Defaults for pseudo-annotations: {data} (student small, teacher {TWO[0]} of {SETS[data]}, Dice on split `teacher`)"
    return described(title, study, "")


def _study(data: str) -> Run:
    file, taught_by = RUNS / "choices" / "plan.json", teacher(SETS[data], TWO[0])
    write_json(file, {"cells": CELLS})
    cases = ("--cohort", str(DATA / data), "--split", "transferal", "--test-split", "teacher")
    taught = ("--teacher", taught_by.student, "--plan", str(file), "--seeds", "3", "--at-once", "2")
    command = ("study", *cases, *taught, "--student", "small", *length(data, "transferal"))
    return Run(f"choices/{data}", (command,), (taught_by.name,))


PARTS = {f"choices-{data}": partial(choices, data) for data in SETS}
