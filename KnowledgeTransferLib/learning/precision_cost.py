"""Precision cost: what less exact arithmetic costs in Dice, and what it gains in time, measured on real images."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from .evidence import Evidence, volumes_of
from .volume import Volume

if TYPE_CHECKING:
    from .student import Student

DECIMALS = 4


def precision_cost(student: Student, precision: str, evidence: Evidence) -> dict:
    """Segment the images that check with OpenVINO in f32 and in another precision.

    Returns:
        `images` and their `source`; `dice_with_f32`, the mean Dice between both (None where the student finds nothing);
        `experts`, how many images experts annotated; `dice_lost` against these (None without any); `seconds_f32` and
        `seconds`, the median for an image, from array to label map.
    """
    both = [replace(student, how=replace(student.how, backend="openvino", precision=p)) for p in ("f32", precision)]
    values, rows = student.labels.values[1:], []
    for case, volume in volumes_of(evidence.checking, student.preprocessing):
        (exact, exact_s), (other, other_s) = (_timed(one, volume) for one in both)
        expert = evidence.expert(case, volume, student.labels)
        lost = [] if expert is None else np.subtract(dice_of(exact, expert, values), dice_of(other, expert, values))
        rows.append((dice_of(exact, other, values), lost, exact_s, other_s))
    agreement, lost = (_mean([dice for row in rows for dice in row[n]]) for n in (0, 1))
    exact_s, other_s = (float(np.median([row[n] for row in rows])) for n in (2, 3))
    return {
        "images": len(rows), "source": evidence.source, "dice_with_f32": agreement,
        "experts": sum(len(row[1]) > 0 for row in rows), "dice_lost": lost,
        "seconds_f32": round(exact_s, DECIMALS), "seconds": round(other_s, DECIMALS),
    }  # fmt: skip


def in_words(precision: str, cost: dict) -> str:
    """For people: the model card, the log of `segment`, the report of `export`."""
    found = "none of its structures" if cost["dice_with_f32"] is None else f"Dice {cost['dice_with_f32']:.4f}"
    lost = "no expert annotations"
    if cost["dice_lost"] is not None:
        lost = f"Dice lost against the experts of {cost['experts']}: {cost['dice_lost']:+.4f}"
    times = f"{cost['seconds']:.3g} s instead of {cost['seconds_f32']:.3g} s for an image (OpenVINO)"
    return (
        f"{precision}: {found} with the labels of f32 on {cost['images']} image(s) ({cost['source']}); {lost}; {times}"
    )


def _timed(student: Student, volume: Volume) -> tuple[np.ndarray, float]:
    """The label map, and the seconds of the second of two runs: OpenVINO prepares itself for each new size."""
    student.segment(volume)
    begin = time.perf_counter()
    return student.segment(volume), time.perf_counter() - begin


def dice_of(a: np.ndarray, b: np.ndarray, values: tuple[int, ...]) -> list[float]:
    """Of each structure; NaN where it is in neither."""
    masks = ((a == value, b == value) for value in values)
    counts = ((2 * np.count_nonzero(x & y), np.count_nonzero(x) + np.count_nonzero(y)) for x, y in masks)
    return [both / all_ if all_ else np.nan for both, all_ in counts]


def _mean(dice: list[float]) -> float | None:
    known = [value for value in dice if not np.isnan(value)]
    return round(float(np.mean(known)), DECIMALS) if known else None
