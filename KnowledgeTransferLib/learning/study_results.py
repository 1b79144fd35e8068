"""Study results: every cell of a study against its baseline, patient by patient, and what each costs."""

from __future__ import annotations

from collections import defaultdict
from statistics import fmean

import numpy as np

from ..records.plans import Cell
from ..records.run_directory import RunDirectory, read_json
from .metrics import MEASURES, group_means, holm
from .seeds import against, by_seed, mean_of_seeds

METHOD = "student"  # what the evaluation of each training calls its student


def study_results(cells: list[Cell], study: RunDirectory) -> dict:
    """What the trainings that were measured say; a cell is all trainings of a point and name, one per seed.

    Returns:
        `cells`: in the plan's order, with `dice` (mean over patients and seeds with 95 % interval), `seeds` (mean Dice
        of each), `against` (the baseline, see seeds.py; None for the baseline itself),
        `cost` and `curve`.
    """
    runs = {cell.folder: RunDirectory(study.cells / cell.folder) for cell in cells}
    baselines: dict[str, str] = {}
    trained: dict[tuple[str, str], list[Cell]] = defaultdict(list)
    for cell in cells:
        baselines.setdefault(cell.point, cell.name)
        if runs[cell.folder].evaluation.is_file():
            trained[cell.point, cell.name].append(cell)
    dice = _dice([cell for part in trained.values() for cell in part], runs)
    results = [_result(part, dice, runs) for part in trained.values()]
    for result in results:
        title, base = (result["point"], result["name"]), (result["point"], baselines[result["point"]])
        compared = title != base and base in trained
        result["against"] = _against(trained[title], trained[base], dice) if compared else None
    compared = [result["against"] for result in results if result["against"]]
    for test, corrected in zip(compared, holm([test["p"] for test in compared]), strict=True):
        test["p_holm"] = corrected
    return {"cells": results}


def _dice(cells: list[Cell], runs: dict[str, RunDirectory]) -> dict[str, dict[str, float]]:
    """Folder -> patient -> Dice."""
    found = {}
    for cell in cells:
        rows = read_json(runs[cell.folder].evaluation)["cases"]
        found[cell.folder] = group_means([_numbers(row) for row in rows if row["method"] == METHOD], "dice")
    return found


def _numbers(row: dict) -> dict:
    """A row of evaluation.json, in which null stands for what is no number."""
    return {**row, **{name: np.nan for name in MEASURES if row[name] is None}}


def _against(own: list[Cell], base: list[Cell], dice: dict[str, dict[str, float]]) -> dict | None:
    """A cell's trainings against those of its baseline with the same seeds; None where they have none in common."""
    bases = {cell.seed: cell for cell in base}
    pairs = [(cell, bases[cell.seed]) for cell in own if cell.seed in bases]
    return against(*([dice[cell.folder] for cell in part] for part in zip(*pairs, strict=True))) if pairs else None


def _result(part: list[Cell], dice: dict, runs: dict[str, RunDirectory]) -> dict:
    trainings = [read_json(runs[cell.folder].training) for cell in part]
    return {
        "point": part[0].point, "name": part[0].name, "folders": [cell.folder for cell in part],
        "dice": mean_of_seeds(by_seed([dice[cell.folder] for cell in part])[1]),
        "seeds": [fmean(dice[cell.folder].values()) if dice[cell.folder] else np.nan for cell in part],
        "cost": _cost(part, trainings, runs),
        "curve": _curve(trainings),
    }  # fmt: skip


def _cost(part: list[Cell], trainings: list[dict], runs: dict[str, RunDirectory]) -> dict:
    last = [training["history"][-1] for training in trainings]
    methods = read_json(runs[part[0].folder].evaluation)["methods"]
    return {
        "parameters": methods[METHOD]["parameters"],
        "training_s": fmean(training["duration_s"] for training in trainings),
        "step_ms": 1000 * fmean(row["duration_s"] / row["iteration"] for row in last),
    }


def _curve(trainings: list[dict]) -> list[tuple[int, float]]:
    """Epoch and mean validation Dice over the seeds."""
    looks = defaultdict(list)
    for training in trainings:
        for row in training["history"]:
            if row["validation_dice"] is not None:
                looks[row["epoch"]].append(row["validation_dice"])
    return [(epoch, fmean(found)) for epoch, found in sorted(looks.items()) if len(found) == len(trainings)]
