"""Study results: every cell of a study against its baseline, patient by patient, and what each costs."""

from __future__ import annotations

from collections import defaultdict
from statistics import fmean, stdev

import numpy as np

from ..records.plans import Cell
from ..records.run_directory import RunDirectory, read_json
from .metrics import DECIMALS, MEASURES, group_means, holm, mean_with_interval, signed_rank, with_empty_resolved

METHOD = "student"  # what the evaluation of each training calls its student


def study_results(cells: list[Cell], study: RunDirectory) -> dict:
    """What the trainings that were measured say; a cell is all trainings of a point and name, one per seed.

    Returns:
        `cells`: in the plan's order, with `dice` (mean over patients with 95 % interval, each patient the mean of the
        seeds), `seeds` (mean Dice of each), `against` (the baseline, see `_against`; None for the baseline itself),
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
    means = {title: _mean_of_seeds([dice[cell.folder] for cell in part]) for title, part in trained.items()}
    results = [_result(part, dice, means[title], runs) for title, part in trained.items()]
    for result in results:
        title, base = (result["point"], result["name"]), (result["point"], baselines[result["point"]])
        result["against"] = _against(means[title], means[base]) if title != base and base in means else None
    compared = [result["against"] for result in results if result["against"]]
    for test, corrected in zip(compared, holm([test["p"] for test in compared]), strict=True):
        test["p_holm"] = corrected
    return {"cells": results}


def _dice(cells: list[Cell], runs: dict[str, RunDirectory]) -> dict[str, dict[str, float]]:
    """Folder -> patient -> Dice. Where one student of a point drew something, those that drew nothing count too."""
    by_point = defaultdict(list)
    for cell in cells:
        rows = read_json(runs[cell.folder].evaluation)["cases"]
        by_point[cell.point] += [{**_numbers(row), "folder": cell.folder} for row in rows if row["method"] == METHOD]
    rows_of = defaultdict(list)
    for rows in by_point.values():
        for row in with_empty_resolved(rows):
            rows_of[row["folder"]].append(row)
    return {cell.folder: group_means(rows_of[cell.folder], "dice") for cell in cells}


def _numbers(row: dict) -> dict:
    """A row of evaluation.json, in which null stands for what is no number."""
    return {**row, **{name: np.nan for name in MEASURES if row[name] is None}}


def _mean_of_seeds(seeds: list[dict[str, float]]) -> dict[str, float]:
    """Patient -> mean Dice, of the patients that every seed has."""
    return {patient: fmean(seed[patient] for seed in seeds) for patient in seeds[0] if all(patient in s for s in seeds)}


def _result(part: list[Cell], dice: dict, means: dict[str, float], runs: dict[str, RunDirectory]) -> dict:
    trainings = [read_json(runs[cell.folder].training) for cell in part]
    return {
        "point": part[0].point, "name": part[0].name, "folders": [cell.folder for cell in part],
        "dice": mean_with_interval(list(means.values())),
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


def _against(own: dict[str, float], base: dict[str, float]) -> dict:
    """A cell minus its baseline over the patients of both.

    `difference` with its 95 % bootstrap interval, `gain_percent` of the baseline's mean, `p` of Wilcoxon's signed-rank
    test, and `effect`: the mean difference in its standard deviations (Cohen's d for pairs, d_z).
    """
    patients = [patient for patient in own if patient in base]
    differences = np.round([own[patient] - base[patient] for patient in patients], DECIMALS)
    mean = float(differences.mean()) if patients else np.nan
    spread = stdev(differences.tolist()) if len(patients) > 1 else 0.0
    level = fmean(base[patient] for patient in patients) if patients else 0.0
    return {
        "difference": mean_with_interval(differences.tolist()),
        "gain_percent": 100 * mean / level if level else np.nan,
        "p": signed_rank(differences),
        "effect": mean / spread if spread else np.nan,
    }
