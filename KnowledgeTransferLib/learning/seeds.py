"""Seeds: what trainings that differ by their seed alone say together, patient by patient.

Both are samples: other patients, and other seeds, would have given other numbers. The intervals resample both, each on
its own (Owen 2007, arXiv:0712.1111). Three seeds are few: what holds for each of them is worth more than a small p.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .metrics import CONFIDENCE, DECIMALS, RESAMPLES, mean_with_interval, signed_rank

Trainings = Sequence[dict[str, float]]  # of each training: patient -> a measure


def by_seed(trainings: Trainings) -> tuple[list[str], np.ndarray]:
    """The patients that every training has, and their values `(trainings, patients)`."""
    patients = [patient for patient in trainings[0] if all(patient in training for training in trainings)]
    return patients, np.array([[training[patient] for patient in patients] for training in trainings])


def mean_of_seeds(values: np.ndarray, seed: int = 0) -> dict:
    """Mean of `(trainings, patients)` with its 95 % interval, as `mean_with_interval`; `groups` counts the patients."""
    count, groups = values.shape
    if count == 1 or groups < 2:
        return mean_with_interval(values.mean(0).tolist(), seed)
    random = np.random.default_rng(seed)
    trainings = random.integers(count, size=(RESAMPLES, count, 1))
    patients = random.integers(groups, size=(RESAMPLES, 1, groups))
    low, high = np.percentile(values[trainings, patients].mean((1, 2)), [50 - 50 * CONFIDENCE, 50 + 50 * CONFIDENCE])
    return {"mean": float(values.mean()), "low": float(low), "high": float(high), "groups": groups}


def against(own: Trainings, base: Trainings) -> dict:
    """Trainings minus others, the first with the first and so on, over the patients that all have.

    Returns:
        `difference` (see `mean_of_seeds`), `seeds` (the mean difference of each pair), `gain_percent` of the others'
        mean, `p` of Wilcoxon's signed-rank test over the patients' mean differences, which holds for these trainings,
        and `effect`: the mean of these differences in their standard deviations (Cohen's d for pairs, d_z).
    """
    patients, values = by_seed([*own, *base])
    theirs = values[len(own) :]
    differences = np.round(values[: len(own)] - theirs, DECIMALS)
    of_patients = differences.mean(0)
    mean = float(of_patients.mean()) if patients else np.nan
    spread = float(of_patients.std(ddof=1)) if len(patients) > 1 else 0.0
    return {
        "difference": mean_of_seeds(differences),
        "seeds": differences.mean(1).tolist() if patients else [],
        "gain_percent": 100 * mean / float(theirs.mean()) if patients and theirs.any() else np.nan,
        "p": signed_rank(np.round(of_patients, DECIMALS)),
        "effect": mean / spread if spread > 10**-DECIMALS else np.nan,
    }
