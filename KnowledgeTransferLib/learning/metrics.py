"""Metrics: how well a segmentation agrees with an expert's, and what the numbers of many patients say together.

Conventions, for each case and structure:
- empty in both: every measure is NaN.
- empty in one of them: Dice, IoU and surface Dice are 0 and HD95 is the diagonal of the image, so that a failure
  weighs in the mean. Precision or recall is NaN only where nothing was found or nothing is there (0 / 0).
- means and tests cover the cases in which the expert drew the structure; what a method draws in the others are false
  alarms, which are counted by themselves (specificity; Maier-Hein et al. 2024, doi:10.1038/s41592-023-02151-z). So no
  method's figures depend on what it is compared with.
- pictures (K = 1) are measured in their plane.
"""

from __future__ import annotations

import itertools
import warnings
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import scipy.ndimage
import scipy.stats
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice

from ..records.cohort import Case

MEASURES = ("dice", "iou", "precision", "recall", "hd95_mm", "surface_dice", "volume_error_ml")
CONFIDENCE = 0.95
RESAMPLES = 2000
DECIMALS = 12  # differences below this come from the order of a sum


def measure(
    prediction: np.ndarray,
    expert: np.ndarray,
    values: dict[str, int],
    spacing_mm: tuple[float, float, float],
    tolerance_mm: float = 1.0,
) -> dict[str, dict[str, float]]:
    """Compare two label maps `(I, J, K)`.

    Args:
        values: name of each structure that is measured -> its value in both maps.
        tolerance_mm: surfaces that lie no farther apart agree for the surface Dice.

    Returns:
        structure -> MEASURES and `expert_volume_ml`. `volume_error_ml` is prediction minus expert.

    Raises:
        ValueError: the maps differ in shape.
    """
    if prediction.shape != expert.shape or expert.ndim != 3:
        raise ValueError(
            f"the prediction is {prediction.shape} and the expert annotation {expert.shape}; equal (I, J, K) are needed"
        )
    voxel_ml, diagonal_mm = float(np.prod(spacing_mm)) / 1000, _diagonal_mm(expert.shape, spacing_mm)
    if expert.shape[2] == 1:
        prediction, expert, spacing_mm = prediction[:, :, 0], expert[:, :, 0], spacing_mm[:2]
    boxes = _union_boxes(prediction, expert, max(values.values(), default=0))
    measured = {}
    for name, value in values.items():
        found, true = prediction[boxes[value]] == value, expert[boxes[value]] == value
        measured[name] = _overlap(found, true, voxel_ml) | _surface(found, true, spacing_mm, tolerance_mm, diagonal_mm)
    return measured


def _diagonal_mm(shape: tuple[int, ...], spacing_mm: tuple[float, ...]) -> float:
    axes = [axis for axis in range(3) if shape[axis] > 1]
    return float(np.linalg.norm([shape[axis] * spacing_mm[axis] for axis in axes]))


def _union_boxes(a: np.ndarray, b: np.ndarray, largest: int) -> dict[int, tuple[slice, ...]]:
    """Label value -> the smallest box that holds it in both maps; distances are measured in there."""
    boxes, found = {}, [scipy.ndimage.find_objects(array, largest) for array in (a, b)]
    for value, pair in enumerate(zip(*found, strict=True), 1):
        there = [box for box in pair if box is not None]
        axes = [[box[axis] for box in there] for axis in range(a.ndim)]
        boxes[value] = tuple(
            slice(min((s.start for s in axis), default=0), max((s.stop for s in axis), default=0)) for axis in axes
        )
    return boxes


def _overlap(found: np.ndarray, true: np.ndarray, voxel_ml: float) -> dict[str, float]:
    """What three counts say. MONAI has no function for all of them; the tests hold Dice and IoU against MONAI's."""
    both, n_found, n_true = (int(np.count_nonzero(mask)) for mask in (found & true, found, true))
    anything = n_found + n_true > 0
    return {
        "dice": _ratio(2 * both, n_found + n_true),
        "iou": _ratio(both, n_found + n_true - both),
        "precision": _ratio(both, n_found),
        "recall": _ratio(both, n_true),
        "volume_error_ml": (n_found - n_true) * voxel_ml if anything else np.nan,
        "expert_volume_ml": n_true * voxel_ml,
    }


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else np.nan


def _surface(
    found: np.ndarray, true: np.ndarray, spacing_mm, tolerance_mm: float, diagonal_mm: float
) -> dict[str, float]:
    """HD95: the larger of the two directed 95th percentiles. Surface Dice: by area, arXiv:1809.04430."""
    if not found.any() and not true.any():
        return {"hd95_mm": np.nan, "surface_dice": np.nan}
    if not found.any() or not true.any():
        return {"hd95_mm": diagonal_mm, "surface_dice": 0.0}
    pair = [torch.from_numpy(mask)[None, None].float() for mask in (found, true)]  # MONAI pads them by a voxel
    shared = {"include_background": True, "spacing": [float(s) for s in spacing_mm]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI warns of an argument that it passes itself
        distance_mm = compute_hausdorff_distance(*pair, percentile=95, **shared)
        share = compute_surface_dice(*pair, class_thresholds=[tolerance_mm], use_subvoxels=True, **shared)
    return {"hd95_mm": float(distance_mm), "surface_dice": float(share)}


def summarise(rows: list[dict], seed: int = 0) -> dict:
    """Means of one method over patients.

    Args:
        rows: one dict per case and structure: `case`, `group`, `structure`, MEASURES, `expert_volume_ml`.

    Returns:
        `all` (the structures of a case averaged first) and `structures`: measure -> `mean_with_interval`, and counts:
        cases, expert_drew and expert_empty (cases with and without the structure; in `all`, structures of cases),
        empty_in_both, missed (only the expert drew it), false_alarms (only the method did), and `specificity`, the
        share of expert_empty in which the method drew nothing (NaN where there are none).
    """
    by_structure = defaultdict(list)
    for row in rows:
        by_structure[row["structure"]].append(row)
    return {
        "all": _summary(rows, seed),
        "structures": {name: _summary(part, seed) for name, part in by_structure.items()},
    }


def _summary(rows: list[dict], seed: int) -> dict:
    means = {name: mean_with_interval(list(group_means(rows, name).values()), seed) for name in MEASURES}
    drew, empty = sum(row["expert_volume_ml"] > 0 for row in rows), sum(bool(np.isnan(row["dice"])) for row in rows)
    return means | {
        "cases": len({row["case"] for row in rows}),
        "expert_drew": drew,
        "expert_empty": len(rows) - drew,
        "specificity": _ratio(empty, len(rows) - drew),
        "empty_in_both": empty,
        "missed": sum(row["expert_volume_ml"] > 0 and bool(np.isnan(row["precision"])) for row in rows),
        "false_alarms": sum(row["expert_volume_ml"] == 0 and row["dice"] == 0 for row in rows),
    }


def case_means(rows: list[dict], name: str) -> dict[tuple[str, str], float]:
    """(group, case) -> mean of a measure, where it is a number, over the structures that the expert drew."""
    values = defaultdict(list)
    for row in rows:
        if row["expert_volume_ml"] > 0 and not np.isnan(row[name]):
            values[row["group"], row["case"]].append(row[name])
    return {key: float(np.mean(numbers)) for key, numbers in values.items()}


def group_means(rows: list[dict], name: str) -> dict[str, float]:
    """Group (patient) -> mean of a measure over the patient's cases: patients, not images, are independent."""
    values = defaultdict(list)
    for (group, _), number in case_means(rows, name).items():
        values[group].append(number)
    return {group: float(np.mean(numbers)) for group, numbers in values.items()}


def shared_with(learnt: Sequence[Case], cases: Sequence[Case]) -> tuple[int, int]:
    """How many cases have an image in common with cases that were learnt from, and how many others only the patient.

    A group that is just the case's id names no patient.
    """
    files = {path.resolve() for case in learnt for path in case.images}
    groups = {case.group for case in learnt if case.group != case.id}
    other = [case for case in cases if not any(path.resolve() in files for path in case.images)]
    return len(cases) - len(other), sum(case.group != case.id and case.group in groups for case in other)


def mean_with_interval(values: list[float], seed: int = 0) -> dict:
    """Mean and its 95 % bootstrap interval (percentiles of RESAMPLES means).

    One patient has a mean and no interval (`low` and `high` are NaN); none has neither.
    """
    if len(values) < 2:
        return {"mean": float(values[0]) if values else np.nan, "low": np.nan, "high": np.nan, "groups": len(values)}
    interval = scipy.stats.bootstrap(
        (np.asarray(values, float),), np.mean, n_resamples=RESAMPLES, confidence_level=CONFIDENCE,
        method="percentile", rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return {
        "mean": float(np.mean(values)),
        "low": float(interval.low),
        "high": float(interval.high),
        "groups": len(values),
    }


def compare(rows: dict[str, list[dict]]) -> list[dict]:
    """Wilcoxon's signed-rank test of the patients' mean Dice between every two methods, corrected after Holm.

    Args:
        rows: method -> its rows. Each pair is compared over what the expert drew and both were measured on.

    Returns:
        per pair: `a`, `b`, `groups`, `mean_difference` (a minus b), `p`, `p_holm`; NaN where no patient has both.
    """
    tests = [_paired(a, b, rows[a], rows[b]) for a, b in itertools.combinations(rows, 2)]
    for test, corrected in zip(tests, holm([test["p"] for test in tests]), strict=True):
        test["p_holm"] = corrected
    return tests


def _paired(a: str, b: str, rows_a: list[dict], rows_b: list[dict]) -> dict:
    keys = [{(row["case"], row["structure"]) for row in rows} for rows in (rows_a, rows_b)]
    shared = keys[0] & keys[1]
    means = [
        group_means([r for r in rows if (r["case"], r["structure"]) in shared], "dice") for rows in (rows_a, rows_b)
    ]
    groups = [group for group in means[0] if group in means[1]]
    differences = np.round([means[0][group] - means[1][group] for group in groups], DECIMALS)
    mean = float(differences.mean()) if groups else np.nan
    return {"a": a, "b": b, "groups": len(groups), "mean_difference": mean, "p": signed_rank(differences)}


def signed_rank(differences: np.ndarray) -> float:
    """Two-sided p of Wilcoxon's signed-rank test; 1 where nothing differs, NaN without patients."""
    if len(differences) == 0:
        return np.nan
    return float(scipy.stats.wilcoxon(differences).pvalue) if np.any(differences) else 1.0


def holm(p_values: list[float]) -> list[float]:
    """Holm's step-down correction for several tests (Scand J Stat 1979; 6:65-70, jstor.org/stable/4615733).

    With p sorted upwards: `corrected_i = max over j <= i of min(1, (m - j + 1) p_j)`. NaN is no test and stays NaN.
    """
    order = [i for i in np.argsort(p_values) if not np.isnan(p_values[i])]
    corrected, largest = [np.nan] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected
