"""Seeds: figures over trainings and patients equal plain formulas, and intervals cover what either would change."""

import numpy as np
import pytest
import scipy.stats

from KnowledgeTransferLib.learning.metrics import mean_with_interval
from KnowledgeTransferLib.learning.seeds import against, by_seed, mean_of_seeds

RANDOM = np.random.default_rng(0)


def trainings(values: np.ndarray) -> list[dict[str, float]]:
    return [{f"p{patient}": value for patient, value in enumerate(row)} for row in values]


def test_only_patients_that_every_training_has_count():
    patients, values = by_seed([{"a": 0.1, "b": 0.2, "c": 0.3}, {"c": 0.5, "a": 0.4}])
    assert patients == ["a", "c"]
    assert values.tolist() == [[0.1, 0.3], [0.4, 0.5]]


def test_one_training_has_the_interval_over_patients():
    values = RANDOM.random((1, 12))
    assert mean_of_seeds(values, seed=3) == mean_with_interval(values[0].tolist(), seed=3)
    assert np.isnan(mean_of_seeds(RANDOM.random((3, 1)))["low"])
    assert mean_of_seeds(np.zeros((2, 0)))["groups"] == 0


@pytest.mark.parametrize("spread", [(0.1, 0.0), (0.0, 0.1), (0.05, 0.1)])
def test_the_interval_is_as_wide_as_patients_and_trainings_together_make_it(spread):
    """Of means of 20 trainings and 30 patients whose effects add up."""
    values = spread[0] * RANDOM.normal(size=(20, 1)) + spread[1] * RANDOM.normal(size=(1, 30))
    found = mean_of_seeds(values)
    error = np.hypot(values.mean(1).std() / np.sqrt(20), values.mean(0).std() / np.sqrt(30))
    assert found["mean"] == pytest.approx(values.mean())
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * error, rel=0.08)
    assert found["low"] < found["mean"] < found["high"] and found["groups"] == 30


def test_differences_equal_plain_formulas():
    base, gains = RANDOM.random((3, 9)), RANDOM.normal(0.05, 0.02, (3, 9))
    found = against(trainings(base + gains), trainings(base))
    of_patients = gains.mean(0)
    assert found["difference"]["mean"] == pytest.approx(gains.mean())
    assert found["seeds"] == pytest.approx(gains.mean(1).tolist())
    assert found["gain_percent"] == pytest.approx(100 * gains.mean() / base.mean())
    assert found["p"] == pytest.approx(scipy.stats.wilcoxon(of_patients).pvalue)
    assert found["effect"] == pytest.approx(of_patients.mean() / of_patients.std(ddof=1))


def test_seeds_that_disagree_make_the_interval_wide():
    """A gain of one training of three is none of the method, however many patients agree."""
    gains = np.array([[0.06], [0.0], [0.0]]) + 0.001 * RANDOM.normal(size=(3, 50))
    found = against(trainings(0.5 + gains), trainings(np.full((3, 50), 0.5)))
    assert found["p"] < 1e-6
    assert found["difference"]["low"] < 0.001
    assert found["difference"]["high"] > 0.03


def test_what_does_not_differ_has_no_effect_and_no_doubt():
    same = trainings(np.full((2, 4), 0.5))
    found = against(same, same)
    assert found["difference"]["mean"] == 0 and found["p"] == 1 and np.isnan(found["effect"])
    assert against([{"a": 1.0}], [{"b": 1.0}])["seeds"] == []
