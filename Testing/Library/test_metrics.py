"""Metrics: known values by hand, the conventions for empty structures, and the statistics over patients."""

import numpy as np
import pytest
import torch
from monai.metrics import compute_dice, compute_iou
from scipy.ndimage import binary_erosion, gaussian_filter
from scipy.spatial.distance import cdist

from KnowledgeTransferLib.learning.metrics import (
    MEASURES,
    compare,
    group_means,
    holm,
    mean_with_interval,
    measure,
    shared_with,
    signed_rank,
    summarise,
)
from KnowledgeTransferLib.records.cohort import Case

ISOTROPIC = (1.0, 1.0, 1.0)


def a_box(start, stop, shape=(32, 32, 32), value=1) -> np.ndarray:
    array = np.zeros(shape, np.uint8)
    array[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = value
    return array


def a_blob(seed: int, shape=(18, 16, 12)) -> np.ndarray:
    return (gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2) > 0.03).astype(np.uint8)


def of_one(prediction, expert, spacing_mm=ISOTROPIC, tolerance_mm=1.0) -> dict:
    return measure(prediction, expert, {"organ": 1}, spacing_mm, tolerance_mm)["organ"]


def a_row(case="a", group="p", structure="organ", dice=1.0, **others) -> dict:
    rest = dict.fromkeys(MEASURES, dice) | {"expert_volume_ml": 1.0}
    return {"case": case, "group": group, "structure": structure, **rest, "dice": dice, **others}


def test_a_perfect_prediction_has_perfect_measures():
    box = a_box((4, 4, 4), (14, 14, 14))
    found = of_one(box, box)
    assert found == {
        "dice": 1, "iou": 1, "precision": 1, "recall": 1, "hd95_mm": 0, "surface_dice": 1, "volume_error_ml": 0,
        "expert_volume_ml": pytest.approx(1.0),
    }  # fmt: skip


def test_a_cube_of_ten_shifted_by_three_overlaps_by_seven_tenths():
    found = of_one(a_box((7, 4, 4), (17, 14, 14)), a_box((4, 4, 4), (14, 14, 14)))
    assert found["dice"] == found["precision"] == found["recall"] == pytest.approx(0.7)
    assert found["iou"] == pytest.approx(7 / 13)
    assert found["hd95_mm"] == pytest.approx(3.0)


def test_distances_are_in_mm_along_the_axis_of_the_shift():
    expert, spacing_mm = a_box((4, 4, 4), (14, 14, 14)), (0.5, 2.0, 5.0)
    along_i = of_one(a_box((7, 4, 4), (17, 14, 14)), expert, spacing_mm)
    along_k = of_one(a_box((4, 4, 7), (14, 14, 17)), expert, spacing_mm)
    assert along_i["hd95_mm"] == pytest.approx(1.5)
    assert along_k["hd95_mm"] == pytest.approx(15.0)


def test_volume_error_is_signed_and_in_ml():
    expert, spacing_mm = a_box((4, 4, 4), (14, 14, 14)), (1.0, 2.0, 3.0)
    larger, smaller = a_box((4, 4, 4), (15, 14, 14)), a_box((4, 4, 4), (12, 14, 14))
    assert of_one(larger, expert, spacing_mm)["volume_error_ml"] == pytest.approx(100 * 6 / 1000)
    assert of_one(smaller, expert, spacing_mm)["volume_error_ml"] == pytest.approx(-200 * 6 / 1000)
    assert of_one(larger, expert, spacing_mm)["recall"] == 1
    assert of_one(smaller, expert, spacing_mm)["precision"] == 1


def test_the_tolerance_of_surface_dice_is_in_mm():
    expert, moved = a_box((4, 4, 4), (14, 14, 14)), a_box((4, 6, 4), (14, 16, 14))
    assert of_one(moved, expert, (1.0, 3.0, 1.0), tolerance_mm=6.0)["surface_dice"] == pytest.approx(1.0)
    assert of_one(moved, expert, (1.0, 3.0, 1.0), tolerance_mm=5.9)["surface_dice"] < 0.99


def test_surface_dice_weighs_by_area_not_by_voxels():
    # Shift by six slices of 5 mm: of 4 x 2880 mm2 sides three quarters agree, of 2 x 576 mm2 end faces nothing.
    expert, moved = a_box((2, 2, 1), (26, 26, 25)), a_box((2, 2, 7), (26, 26, 31))
    by_area, by_voxels = 0.75 * 4 * 2880 / (4 * 2880 + 2 * 576), 92 * 18 / (24**3 - 22**3)
    found = of_one(moved, expert, (1.0, 1.0, 5.0))["surface_dice"]
    assert found == pytest.approx(by_area, abs=0.05)
    assert found > by_voxels + 0.1


@pytest.mark.parametrize("spacing_mm", [ISOTROPIC, (0.7, 1.3, 2.9)])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_hd95_equals_the_plain_formula(seed, spacing_mm):
    a, b = a_blob(seed), a_blob(seed + 10)
    edges = [np.argwhere(m & ~binary_erosion(m)) * spacing_mm for m in (a == 1, b == 1)]
    distances = cdist(*edges)
    plain = max(np.percentile(distances.min(0), 95), np.percentile(distances.min(1), 95))
    assert of_one(a, b, spacing_mm)["hd95_mm"] == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_dice_and_iou_equal_those_of_monai(seed):
    a, b = a_blob(seed), a_blob(seed + 10)
    pair = [torch.from_numpy(m)[None, None].float() for m in (a, b)]
    assert of_one(a, b)["dice"] == pytest.approx(float(compute_dice(*pair)), rel=1e-5)
    assert of_one(a, b)["iou"] == pytest.approx(float(compute_iou(*pair)), rel=1e-5)


def test_measures_do_not_depend_on_how_much_air_is_around():
    a, b = a_blob(1), a_blob(2)
    wide = [np.pad(m, ((9, 3), (0, 7), (5, 5))) for m in (a, b)]
    assert of_one(*wide, (1.0, 2.0, 3.0)) == pytest.approx(of_one(a, b, (1.0, 2.0, 3.0)))


def test_structures_are_measured_apart():
    expert = a_box((2, 2, 2), (8, 8, 8)) + a_box((12, 12, 12), (20, 20, 20), value=7)
    prediction = a_box((2, 2, 2), (8, 8, 8)) + a_box((12, 12, 14), (20, 20, 22), value=7)
    found = measure(prediction, expert, {"liver": 1, "spleen": 7}, ISOTROPIC)
    assert found["liver"]["dice"] == 1
    assert found["spleen"]["dice"] == pytest.approx(6 / 8)


def test_a_picture_is_measured_in_its_plane():
    expert, moved = a_box((4, 4, 0), (14, 14, 1), (32, 32, 1)), a_box((7, 4, 0), (17, 14, 1), (32, 32, 1))
    found = of_one(moved, expert, (1.0, 1.0, 100.0))
    assert found["dice"] == pytest.approx(0.7)
    assert found["hd95_mm"] == pytest.approx(3.0)
    # The contour is 40 mm: two sides of 10 that disagree, two of which seven tenths agree, and a little near corners.
    assert found["surface_dice"] == pytest.approx(0.35 + 0.1, abs=0.06)


def test_a_structure_that_is_in_neither_is_left_out_with_nan():
    empty = a_box((0, 0, 0), (0, 0, 0))
    found = of_one(empty, empty)
    assert all(np.isnan(found[name]) for name in MEASURES)
    assert found["expert_volume_ml"] == 0


def test_a_missed_structure_costs_the_diagonal():
    found = of_one(a_box((0, 0, 0), (0, 0, 0)), a_box((4, 4, 4), (14, 14, 14)), (1.0, 2.0, 3.0))
    assert (found["dice"], found["iou"], found["surface_dice"], found["recall"]) == (0, 0, 0, 0)
    assert np.isnan(found["precision"])
    assert found["hd95_mm"] == pytest.approx(32 * np.sqrt(1 + 4 + 9))
    assert found["volume_error_ml"] == pytest.approx(-6.0)


def test_a_false_alarm_costs_the_diagonal_of_the_picture():
    found = of_one(a_box((4, 4, 0), (6, 6, 1), (30, 40, 1)), np.zeros((30, 40, 1), np.uint8))
    assert (found["dice"], found["precision"]) == (0, 0)
    assert np.isnan(found["recall"])
    assert found["hd95_mm"] == pytest.approx(50.0)


def test_a_single_voxel_has_finite_measures():
    found = of_one(a_box((5, 5, 5), (6, 6, 6)), a_box((5, 5, 6), (6, 6, 7)), (1.0, 1.0, 2.0))
    assert found["hd95_mm"] == pytest.approx(2.0)
    assert np.isfinite([v for v in found.values()]).all()


def test_maps_of_different_shape_are_refused():
    with pytest.raises(ValueError, match="equal"):
        of_one(np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 5), np.uint8))


def test_patients_count_once_however_many_images_they_have():
    rows = [a_row(case=f"a{i}", group="A", dice=1.0) for i in range(3)] + [a_row(case="b", group="B", dice=0.0)]
    assert summarise(rows)["all"]["dice"]["mean"] == pytest.approx(0.5)
    assert summarise(rows)["all"]["dice"]["groups"] == 2


def test_nan_is_left_out_of_means_but_counted():
    rows = [a_row(case="a", group="A", dice=0.8), a_row(case="b", group="B", dice=np.nan, precision=np.nan)]
    summary = summarise(rows)["all"]
    assert summary["dice"]["mean"] == pytest.approx(0.8)
    assert (summary["cases"], summary["empty_in_both"]) == (2, 1)


def test_missed_structures_and_false_alarms_are_counted():
    rows = [
        a_row(case="missed", dice=0.0, precision=np.nan),
        a_row(case="alarm", dice=0.0, recall=np.nan, expert_volume_ml=0.0),
        a_row(case="beside it", dice=0.0),
        a_row(case="fine", dice=0.9),
    ]
    summary = summarise(rows)["all"]
    assert (summary["missed"], summary["false_alarms"], summary["empty_in_both"]) == (1, 1, 0)


def test_a_case_s_structures_are_averaged_before_its_patient():
    rows = [a_row("a", "A", "liver", 1.0), a_row("a", "A", "spleen", 0.0), a_row("b", "A", "liver", 1.0)]
    assert group_means(rows, "dice") == {"A": pytest.approx(0.75)}


def test_the_interval_is_that_of_a_plain_bootstrap():
    values = np.random.default_rng(3).normal(0.8, 0.1, 25)
    rng = np.random.default_rng(99)
    means = [rng.choice(values, 25).mean() for _ in range(4000)]
    found = mean_with_interval(list(values), seed=5)
    assert found["mean"] == pytest.approx(values.mean())
    assert (found["low"], found["high"]) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=0.006)


def test_the_same_seed_gives_the_same_interval():
    values = list(np.random.default_rng(0).uniform(size=20))
    assert mean_with_interval(values, seed=1) == mean_with_interval(values, seed=1)
    assert mean_with_interval(values, seed=1) != mean_with_interval(values, seed=2)


@pytest.mark.filterwarnings("error")
def test_few_or_equal_patients_bring_no_surprise():
    assert mean_with_interval([0.5, 0.5, 0.5]) == {"mean": 0.5, "low": 0.5, "high": 0.5, "groups": 3}
    one, none = mean_with_interval([0.5]), mean_with_interval([])
    assert (one["mean"], one["groups"], none["groups"]) == (0.5, 1, 0)
    assert np.isnan([one["low"], one["high"], none["mean"], none["low"], none["high"]]).all()


@pytest.mark.filterwarnings("error")
def test_signed_rank_has_the_exact_p_of_a_small_sample():
    assert signed_rank(np.array([0.1, 0.2, 0.3, 0.4, 0.5])) == pytest.approx(2 / 2**5)
    assert signed_rank(np.zeros(6)) == 1
    assert signed_rank(np.array([0.1])) == 1
    assert np.isnan(signed_rank(np.array([])))


def test_holm_agrees_with_a_worked_example():
    # m = 4, sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, 0.04, which may not fall below 0.06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([]) == []


def test_holm_does_not_count_a_test_that_was_not_made():
    assert holm([0.02, np.nan, 0.03]) == pytest.approx([0.04, np.nan, 0.04], nan_ok=True)


def test_methods_are_compared_on_what_both_have():
    a = [a_row(f"c{i}", f"p{i}", dice=0.9) for i in range(6)] + [a_row("only a", "q", dice=0.0)]
    b = [a_row(f"c{i}", f"p{i}", dice=0.8 - i / 100) for i in range(6)] + [a_row("c0", "p0", "other", dice=0.0)]
    (test,) = compare({"a": a, "b": b})
    assert (test["a"], test["b"], test["groups"]) == ("a", "b", 6)
    assert test["mean_difference"] == pytest.approx(0.125)
    assert test["p"] == test["p_holm"] == pytest.approx(2 / 2**6)


def test_three_methods_give_three_corrected_tests():
    rows = {
        name: [a_row(f"c{i}", f"p{i}", dice=d + i / 1000 * d) for i in range(8)]
        for name, d in zip("xyz", (0.5, 0.7, 0.7), strict=True)
    }
    tests = {(t["a"], t["b"]): t for t in compare(rows)}
    assert len(tests) == 3
    assert tests["y", "z"]["p"] == tests["y", "z"]["p_holm"] == 1
    assert tests["x", "y"]["p_holm"] == pytest.approx(3 * tests["x", "y"]["p"])


def a_normal_row(case: str, drew: bool = False, **others) -> dict:
    """A case in which the expert drew nothing, and the method nothing or a false alarm."""
    numbers = {"dice": 0.0, "precision": 0.0, "recall": np.nan} if drew else dict.fromkeys(MEASURES, np.nan)
    return a_row(case, case, **{**numbers, "expert_volume_ml": 0.0, **others})


def lesions_and_normals() -> dict[str, list[dict]]:
    """Five patients with a lesion and ten without: a is right on these, b draws on each."""
    lesions = {"a": 0.8, "b": 0.81}
    return {
        name: [a_row(f"ill {i}", f"ill {i}", dice=dice) for i in range(5)]
        + [a_normal_row(f"normal {i}", drew=name == "b") for i in range(10)]
        for name, dice in lesions.items()
    }


def test_means_and_tests_cover_the_cases_that_have_the_structure_whatever_is_compared():
    methods = lesions_and_normals()
    (test,) = compare(methods)
    assert (test["groups"], test["mean_difference"]) == (5, pytest.approx(-0.01))
    a, b = (summarise(part)["all"] for part in methods.values())
    assert (a["dice"]["mean"], b["dice"]["mean"]) == (pytest.approx(0.8), pytest.approx(0.81))
    for name in MEASURES:
        assert a[name]["groups"] == b[name]["groups"] == 5
    assert (a["specificity"], b["specificity"]) == (1, 0)


def test_a_structure_that_the_expert_did_not_draw_takes_no_part_in_the_mean_of_the_case():
    rows = [a_normal_row("c", drew=True, structure="cyst"), a_row("c", "c", "liver", dice=0.9)]
    assert group_means(rows, "dice") == {"c": pytest.approx(0.9)}


def test_specificity_is_the_share_of_normal_cases_without_a_false_alarm():
    rows = [a_row(f"ill {i}") for i in range(2)] + [a_normal_row(f"n{i}", drew=i == 0) for i in range(4)]
    summary = summarise(rows)["all"]
    assert (summary["expert_drew"], summary["expert_empty"], summary["false_alarms"]) == (2, 4, 1)
    assert summary["specificity"] == pytest.approx(0.75)
    assert np.isnan(summarise(rows[:2])["all"]["specificity"])


def test_cases_are_known_again_by_their_files_and_their_patients(tmp_path):
    def a_case(name: str, group: str = "") -> Case:
        return Case(name, (tmp_path / f"{name}.nii.gz",), group=group)

    learnt = [a_case("a", "Ann"), a_case("b", "Bob"), a_case("c")]
    same_file = Case("other name", (tmp_path / "sub" / ".." / "a.nii.gz",))
    assert shared_with(learnt, [same_file, a_case("b2", "Bob"), a_case("d", "Dan"), a_case("e")]) == (1, 1)
    assert shared_with([Case("c", (tmp_path / "x",))], [Case("c", (tmp_path / "y",))]) == (0, 0)
