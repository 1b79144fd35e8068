"""Confidence: how well the confidence of pseudo-annotations foretells their Dice with expert annotations."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

import numpy as np
from scipy import stats

from ..records.run_directory import RunDirectory, read_json

FEWEST_CASES = 3


def foretold(folder: Path, rows: list[dict]) -> dict:
    """Spearman's rank correlation between the confidence of each case and its mean Dice.

    Args:
        folder: of segmentations; only of a run's pseudo-annotations a confidence is known.
        rows: of one method, with `case` and `dice` of each structure.

    Returns:
        `confidence`: `cases`, `spearman` and its two-sided `p`; {} where it is not known, never differs, or of too few
        cases.
    """
    run, known = RunDirectory(folder.parent), {}
    if folder.name == run.pseudo_annotations.name:
        with contextlib.suppress(OSError, ValueError):
            known = {case: record["confidence"] for case, record in read_json(run.annotations)["cases"].items()}
    scores: dict[str, list[float]] = {}
    for row in rows:
        if row["case"] in known and row["dice"] is not None and math.isfinite(row["dice"]):
            scores.setdefault(row["case"], []).append(row["dice"])
    if len(scores) < FEWEST_CASES or len({known[case] for case in scores}) == 1:
        return {}
    found = stats.spearmanr([known[case] for case in scores], [np.mean(dice) for dice in scores.values()])
    return {"confidence": {"cases": len(scores), "spearman": float(found.statistic), "p": float(found.pvalue)}}
