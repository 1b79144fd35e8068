"""Ensemble: several teachers are one, whatever each of them knows and however they are combined."""

import numpy as np
import pytest

from KnowledgeTransferLib.learning.teachers import Ensemble
from KnowledgeTransferLib.learning.teachers.combining import COMBINATIONS
from KnowledgeTransferLib.learning.volume import Volume
from KnowledgeTransferLib.records.labels import Labels, Structure

LABELS = Labels((Structure.named("liver", 4), Structure.named("spleen", 2)))
LIVER, SPLEEN = (Labels.from_names({1: name}) for name in LABELS.names)
SHAPE = (6, 5, 4)
VOLUME = Volume(np.zeros((1, *SHAPE)), np.eye(4), "p1")
VOXEL = Volume(np.zeros((1, 1, 1, 1)), np.eye(4), "voxel")
EVERY_COMBINATION = pytest.mark.parametrize("combine", COMBINATIONS)


class Fixed:
    """A teacher that always says the same; with no probabilities it always fails."""

    network = None

    def __init__(self, labels: Labels, probabilities: np.ndarray | None, name: str = "fixed"):
        self.labels, self.name = labels, name
        self.probabilities = None if probabilities is None else np.asarray(probabilities, np.float32)

    def predict(self, volume: Volume) -> np.ndarray:
        if self.probabilities is None:
            raise FileNotFoundError(f"holds no segmentation of {volume.name}")
        return self.probabilities


def soft(seed: int, classes: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(classes), SHAPE).transpose(3, 0, 1, 2)


def sure(seed: int, classes: int = 3) -> np.ndarray:
    """Probabilities of 0 and 1."""
    return (soft(seed, classes).argmax(0) == np.arange(classes)[:, None, None, None]).astype(np.float32)


def at_one_voxel(*probabilities: float) -> np.ndarray:
    return np.array(probabilities, np.float32).reshape(-1, 1, 1, 1)


def together(teachers: list, weights=None, **options) -> np.ndarray:
    volume = VOXEL if teachers[0].probabilities.size < VOLUME.array.size else VOLUME
    return Ensemble(teachers, weights or [1.0] * len(teachers), **options).predict(volume)


def test_an_ensemble_is_the_weighted_mean_of_its_teachers():
    a, b, c = soft(0), soft(1), soft(2)
    ensemble = Ensemble([Fixed(LABELS, x, n) for x, n in ((a, "a"), (b, "b"), (c, "c"))], [1, 2, 5])
    found = ensemble.predict(VOLUME)
    np.testing.assert_allclose(found, (a + 2 * b + 5 * c) / 8, atol=1e-6)
    assert ensemble.maps == 6, "the sum, and what one teacher says"
    assert ensemble.name == "a + b + c" and ensemble.labels == LABELS and found.dtype == np.float32


def test_an_ensemble_orders_channels_by_the_names_of_structures():
    turned = Labels.from_names({1: "spleen", 9: "liver"})
    a, b = soft(0), soft(1)
    found = together([Fixed(LABELS, a), Fixed(turned, b)])
    np.testing.assert_allclose(found, (a + b[[0, 2, 1]]) / 2, atol=1e-6)


def test_one_teacher_is_left_as_it_is():
    probabilities = Fixed(LABELS, soft(0)).probabilities
    np.testing.assert_array_equal(together([Fixed(LABELS, probabilities)], [7.0]), probabilities)


@EVERY_COMBINATION
def test_probabilities_add_up_to_1_whatever_the_teachers_know(combine):
    three = Labels.from_names({1: "spleen", 2: "pancreas", 3: "liver"})
    found = together([Fixed(LABELS, soft(0)), Fixed(SPLEEN, soft(1, 2)), Fixed(three, soft(2, 4))], combine=combine)
    assert found.shape == (4, *SHAPE) and found.dtype == np.float32 and found.min() >= 0
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)


@EVERY_COMBINATION
def test_teachers_that_agree_are_followed(combine):
    found = together([Fixed(LABELS, sure(3), name) for name in "abc"], combine=combine)
    np.testing.assert_allclose(found, sure(3), atol=1e-6)


@EVERY_COMBINATION
def test_partial_teachers_add_up_to_one_that_knows_everything(combine):
    whole = sure(3)
    parts = [np.stack([1 - whole[c], whole[c]]) for c in (1, 2)]
    ensemble = Ensemble([Fixed(LIVER, parts[0]), Fixed(SPLEEN, parts[1])], [1.0, 5.0 if combine == "mean" else 1.0])
    assert ensemble.labels.names == ("liver", "spleen")
    np.testing.assert_allclose(ensemble.predict(VOLUME), whole, atol=1e-6)


def test_a_structure_is_averaged_over_those_who_know_it_and_background_is_what_all_leave():
    both, spleen = Fixed(LABELS, at_one_voxel(0.3, 0.5, 0.2)), Fixed(SPLEEN, at_one_voxel(0.8, 0.2))
    found = together([both, spleen], [1.0, 3.0]).ravel()
    np.testing.assert_allclose(found, [0.3, 0.5, 0.2], atol=1e-6)
    surer = Fixed(SPLEEN, at_one_voxel(0.6, 0.4))
    np.testing.assert_allclose(together([both, surer], [1.0, 3.0]).ravel(), [0.15, 0.5, 0.35], atol=1e-6)


def test_two_structures_that_claim_a_voxel_share_it():
    liver, spleen = Fixed(LIVER, at_one_voxel(0.1, 0.9)), Fixed(SPLEEN, at_one_voxel(0.4, 0.6))
    np.testing.assert_allclose(together([liver, spleen]).ravel(), [0, 0.6, 0.4], atol=1e-6)


def test_teachers_are_weighted_by_structure():
    a, b = at_one_voxel(0.2, 0.8, 0), at_one_voxel(0.6, 0, 0.4)
    found = together([Fixed(LABELS, a), Fixed(LABELS, b)], [{"Liver": 3.0}, 1.0]).ravel()
    np.testing.assert_allclose(found, [0.2, 0.6, 0.2], atol=1e-6)


def test_a_teacher_of_weight_0_is_not_asked_about_that_structure():
    a, b = at_one_voxel(0.2, 0.8, 0), at_one_voxel(0.6, 0, 0.4)
    found = together([Fixed(LABELS, a), Fixed(LABELS, b)], [{"spleen": 0.0}, {"liver": 0.0}]).ravel()
    np.testing.assert_allclose(found, [0, 2 / 3, 1 / 3], atol=1e-6)
    alone = Ensemble([Fixed(LABELS, a)], [{"liver": 0.0}])
    assert alone.labels.names == ("spleen",) and alone.predict(VOLUME).shape[0] == 2


@pytest.mark.parametrize("weights", [[1, 0], [1, -2], [1, float("nan")], [1, float("inf")], [1, {"liver": -1.0}]])
def test_weights_must_be_above_0(weights):
    with pytest.raises(ValueError, match="weights of teachers must be above 0"):
        Ensemble([Fixed(LABELS, soft(0)), Fixed(LABELS, soft(1))], weights)


def test_a_weight_of_a_structure_that_a_teacher_does_not_know_is_refused():
    with pytest.raises(ValueError, match="b: does not know pancreas, which has a weight; it knows spleen"):
        Ensemble([Fixed(LABELS, soft(0), "a"), Fixed(SPLEEN, soft(1), "b")], [1.0, {"pancreas": 2.0}])


def slow_vote(votes: list[int], means: list[float]) -> int:
    """The class with most votes; of equally many the one with the highest mean probability, then the earlier one."""
    return max(range(len(means)), key=lambda c: (votes.count(c), means[c], -c))


def test_a_majority_wins_and_ties_go_to_what_is_more_likely():
    opinions = [soft(seed) for seed in range(4)]
    found = together([Fixed(LABELS, p) for p in opinions], combine="majority").argmax(0)
    for place in np.ndindex(*SHAPE):
        at = [p[(slice(None), *place)] for p in opinions]
        assert found[place] == slow_vote([int(p.argmax()) for p in at], np.mean(at, 0).tolist())


def test_a_majority_counts_votes_by_weight():
    sees, not_ = Fixed(LIVER, at_one_voxel(0.4, 0.6)), Fixed(LIVER, at_one_voxel(0.9, 0.1))
    assert together([sees, not_, not_], combine="majority").argmax(0) == 0
    assert together([sees, not_, not_], [2.5, 1.0, 1.0], combine="majority").argmax(0) == 1


def slow_staple(votes: list[list[bool]], rounds: int = 200) -> np.ndarray:
    """Expectation maximisation of Warfield et al.: sensitivity p and specificity q of each, and the truth in turn."""
    votes = np.array(votes, float)
    prior, p, q = votes.mean(), np.full(len(votes), 0.99999), np.full(len(votes), 0.99999)
    for _ in range(rounds):
        yes = prior * np.prod(np.where(votes == 1, p[:, None], 1 - p[:, None]), 0)
        no = (1 - prior) * np.prod(np.where(votes == 0, q[:, None], 1 - q[:, None]), 0)
        truth = yes / (yes + no)
        p, q = (votes * truth).sum(1) / truth.sum(), ((1 - votes) * (1 - truth)).sum(1) / (1 - truth).sum()
    return truth


def test_staple_equals_its_formula():
    i, j, k = np.indices((12, 12, 3))
    seen = [(i - a) ** 2 + (j - b) ** 2 < r for a, b, r in ((5, 5, 17), (6, 5, 20), (5, 7, 10))]
    teachers = [Fixed(LIVER, np.stack([~s, s])) for s in seen]
    volume = Volume(np.zeros((1, 12, 12, 3)), np.eye(4), "p1")
    found = Ensemble(teachers, [1.0] * 3, "staple").predict(volume)[1]
    np.testing.assert_allclose(found.ravel(), slow_staple([s.ravel() for s in seen]), atol=0.01)


def test_staple_of_teachers_that_see_nothing_is_nothing():
    nothing = np.stack([np.ones(SHAPE), np.zeros(SHAPE)])
    found = together([Fixed(LIVER, nothing)] * 2, combine="staple")
    np.testing.assert_array_equal(found, nothing)


def test_staple_takes_no_weights():
    with pytest.raises(ValueError, match="STAPLE finds out by itself"):
        Ensemble([Fixed(LABELS, soft(0)), Fixed(LABELS, soft(1))], [1, 2], "staple")


@EVERY_COMBINATION
def test_a_teacher_that_fails_leaves_the_case_to_the_others(combine):
    good, bad = Fixed(LABELS, sure(1), "good"), Fixed(SPLEEN, None, "bad")
    opinion = Ensemble([good, bad], [1, 1], combine).judge(VOLUME)
    np.testing.assert_allclose(opinion.probabilities, sure(1), atol=1e-6)
    assert opinion.failed == {"bad": "holds no segmentation of p1"} and opinion.unknown == ()


def test_structures_that_nobody_judged_are_unknown():
    opinion = Ensemble([Fixed(LIVER, sure(1, 2)), Fixed(LABELS, None, "bad")], [1, 1]).judge(VOLUME)
    assert opinion.unknown == ("spleen",) and opinion.probabilities.shape == (3, *SHAPE)
    assert not opinion.probabilities[2].any()


def test_a_case_that_every_teacher_fails_on_fails():
    with pytest.raises(FileNotFoundError, match="holds no segmentation of p1"):
        Ensemble([Fixed(LIVER, None), Fixed(SPLEEN, None)], [1, 1]).predict(VOLUME)


def slow_entropy(p: float) -> float:
    return -sum(x * np.log2(x) for x in (p, 1 - p) if x > 0)


def test_disagreement_is_the_entropy_of_the_mean_less_the_mean_of_entropies():
    a, b = soft(0), soft(1)
    found = Ensemble([Fixed(LABELS, a), Fixed(LABELS, b)], [1, 3]).judge(VOLUME, disagreement=True).disagreement
    for place in np.ndindex(*SHAPE):
        pairs = [(float(a[(c, *place)]), float(b[(c, *place)])) for c in (1, 2)]
        expected = [
            slow_entropy((x + 3 * y) / 4) - (slow_entropy(x) + 3 * slow_entropy(y)) / 4 for x, y in pairs
        ]  # fmt: skip
        assert found[place] == pytest.approx(max(expected), abs=1e-5)


def test_teachers_who_are_sure_of_opposites_disagree_fully_and_unsure_ones_that_agree_not_at_all():
    opposite = [Fixed(LIVER, at_one_voxel(0, 1)), Fixed(LIVER, at_one_voxel(1, 0))]
    assert Ensemble(opposite, [1, 1]).judge(VOXEL, disagreement=True).disagreement.item() == pytest.approx(1)
    unsure = [Fixed(LIVER, at_one_voxel(0.5, 0.5))] * 2
    assert Ensemble(unsure, [1, 1]).judge(VOXEL, disagreement=True).disagreement.item() == pytest.approx(0, abs=1e-6)


def test_teachers_disagree_only_where_two_know_the_same_structure():
    a, b = Fixed(LIVER, soft(0, 2)), Fixed(SPLEEN, soft(1, 2))
    assert not Ensemble([a, b], [1, 1]).may_disagree()
    assert Ensemble([a, b, Fixed(LABELS, soft(2))], [1, 1, 1]).may_disagree()


def test_names_that_differ_in_case_or_underscores_alone_are_one_structure():
    names = [Labels.from_names({1: name}) for name in ("left kidney", "Left_Kidney", "LEFT KIDNEY")]
    ensemble = Ensemble([Fixed(labels, sure(n, 2)) for n, labels in enumerate(names)], [1, 1, 1])
    assert ensemble.labels.names == ("left kidney",)


def test_structures_of_one_terminology_code_are_one():
    spleen = LABELS.structures[1].terminology
    milz = Labels((Structure.named("Milz", 7, None, spleen), Structure.named("Leber", 2)))
    ensemble = Ensemble([Fixed(LABELS, soft(0)), Fixed(milz, soft(1))], [1, 1])
    assert ensemble.labels.names == ("liver", "spleen", "Leber")
    expected = (soft(0)[2] + soft(1)[1]) / 2
    total = expected + soft(0)[1] + soft(1)[2]
    np.testing.assert_allclose(ensemble.predict(VOLUME)[2], expected / np.maximum(total, 1), atol=1e-6)


def test_left_and_right_are_not_one_structure_and_nor_are_two_of_one_code_in_one_teacher():
    sides = [Labels.from_names({1: name}) for name in ("left kidney", "kidney_right")]
    assert len(Ensemble([Fixed(labels, soft(0, 2)) for labels in sides], [1, 1]).labels.names) == 2
    code = LABELS.structures[0].terminology
    parts = Labels((Structure.named("Leber", 1, None, code), Structure.named("Tumor", 2, None, code)))
    assert Ensemble([Fixed(LABELS, soft(0)), Fixed(parts, soft(1))], [1, 1]).labels.names == (
        "liver", "spleen", "Leber", "Tumor",
    )  # fmt: skip


def test_synonyms_of_the_user_make_one_structure_of_two_and_name_it():
    odd = Labels.from_names({3: "Spl_01"})
    ensemble = Ensemble([Fixed(odd, sure(0, 2)), Fixed(SPLEEN, sure(1, 2))], [1, 1], synonyms={"spl 01": "spleen"})
    assert ensemble.labels.names == ("spleen",) and ensemble.labels.values == (0, 3)
    np.testing.assert_allclose(ensemble.predict(VOLUME), (sure(0, 2) + sure(1, 2)) / 2, atol=1e-6)
    assert ensemble.labels.structures[0].terminology == SPLEEN.structures[0].terminology


def test_structures_of_one_teacher_that_get_one_name_are_added_up():
    lobes = Labels.from_names({1: "upper lobe", 2: "lower lobe"})
    synonyms = {"upper lobe": "lung", "lower lobe": "lung"}
    ensemble = Ensemble([Fixed(lobes, soft(0))], [1.0], synonyms=synonyms)
    assert ensemble.labels.names == ("lung",)
    np.testing.assert_allclose(ensemble.predict(VOLUME)[1], soft(0)[1:].sum(0), atol=1e-6)


@pytest.mark.parametrize("combine", ["majority", "staple"])
def test_structures_of_one_name_vote_as_one(combine):
    lobes, synonyms = (
        Labels.from_names({1: "upper lobe", 2: "lower lobe"}),
        {"upper lobe": "lung", "lower lobe": "lung"},
    )
    teachers = [Fixed(lobes, at_one_voxel(0.4, 0.3, 0.3)) for _ in range(2)]
    assert together(teachers, combine=combine, synonyms=synonyms)[1].item() > 0.9


def test_a_structure_made_of_several_has_the_code_of_none_of_them():
    kidneys = Labels((Structure.named("left kidney", 1), Structure.named("right kidney", 2)))
    both = Ensemble([Fixed(kidneys, soft(0))], [1.0], synonyms={"left kidney": "kidney", "right kidney": "kidney"})
    assert both.labels.structures[0].terminology == Structure.named("kidney", 1).terminology
    beside = Ensemble([Fixed(both.labels, soft(0, 2)), Fixed(kidneys, soft(1))], [1, 1])
    assert beside.labels.names == ("kidney", "left kidney", "right kidney")


@pytest.mark.parametrize(
    "synonyms", [{"liver": "organ", "organ": "thing"}, {"liver": "spleen", "spleen": "liver"}], ids=["chain", "swap"]
)
def test_a_name_that_gets_another_name_itself_is_refused(synonyms):
    with pytest.raises(ValueError, match="is given another name itself; give the last name to all of them"):
        Ensemble([Fixed(LABELS, soft(0))], [1.0], synonyms=synonyms)


def test_structures_that_are_one_have_one_weight():
    lobes, synonyms = (
        Labels.from_names({1: "upper lobe", 2: "lower lobe"}),
        {"upper lobe": "lung", "lower lobe": "lung"},
    )
    with pytest.raises(ValueError, match="upper lobe and lower lobe are lung by the synonyms; give lung a weight"):
        Ensemble([Fixed(lobes, soft(0))], [{"upper lobe": 3.0}], synonyms=synonyms)
    assert Ensemble([Fixed(lobes, soft(0))], [{"lung": 3.0}], synonyms=synonyms).weights.tolist() == [[0, 3]]


def test_a_teacher_that_is_asked_about_nothing_is_refused():
    with pytest.raises(ValueError, match="odd: is asked about no structure, since all its weights are 0; leave it out"):
        Ensemble([Fixed(LABELS, soft(0)), Fixed(LIVER, soft(1, 2), "odd")], [1.0, {"liver": 0.0}])


def test_whatever_the_runtime_of_a_teacher_raises_is_told_with_its_name_and_leaves_the_case_to_the_others():
    class Odd(Fixed):
        def predict(self, volume):
            raise AssertionError("Guard failed\nand much more")

    opinion = Ensemble([Fixed(LIVER, soft(0, 2)), Odd(LIVER, None, "odd")], [1, 1]).judge(VOLUME)
    assert opinion.failed == {"odd": "p1: odd fails (AssertionError: Guard failed)"}


def test_a_synonym_stands_above_a_terminology_code():
    lists = Labels.from_names({1: "left kidney"}), Labels.from_names({1: "kidney_left"})
    teachers = [Fixed(labels, soft(0, 2)) for labels in lists]
    assert Ensemble(teachers, [1, 1], synonyms={"kidney_left": "cyst"}).labels.names == ("left kidney", "cyst")


def test_a_small_lead_in_votes_is_a_majority():
    teachers = [Fixed(LIVER, at_one_voxel(0.49, 0.51)), Fixed(LIVER, at_one_voxel(1, 0))]
    assert together(teachers, [1.005, 1], combine="majority")[1].item() > 0.5


def test_where_no_structure_is_judged_by_two_there_is_no_disagreement():
    ensemble = Ensemble([Fixed(LIVER, soft(0, 2)), Fixed(LIVER, None, "gone")], [1, 1])
    assert ensemble.judge(VOLUME, disagreement=True).disagreement is None


def test_a_value_that_is_taken_gives_way_to_a_free_one():
    others = Labels.from_names({4: "pancreas", 1: "heart"})
    ensemble = Ensemble([Fixed(LABELS, soft(0)), Fixed(others, soft(1))], [1, 1])
    assert dict(zip(ensemble.labels.names, ensemble.labels.values[1:], strict=True)) == {
        "liver": 4, "spleen": 2, "heart": 1, "pancreas": 3,
    }  # fmt: skip


def test_more_structures_than_values_are_refused():
    many = [Labels.from_names({n: f"{name} {n}" for n in range(1, 200)}) for name in "ab"]
    with pytest.raises(ValueError, match="more than 255 structures together"):
        Ensemble([Fixed(labels, None) for labels in many], [1, 1])
