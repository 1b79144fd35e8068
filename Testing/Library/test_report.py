"""Report: what comes from outside is escaped, nothing is loaded from outside, and pictures are the right way round."""

import base64
import io
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from KnowledgeTransferLib.learning.itk_files import RAS_OF_LPS
from KnowledgeTransferLib.learning.metrics import MEASURES, compare, summarise
from KnowledgeTransferLib.learning.report import (
    best_median_worst,
    count,
    earlier_problems,
    interval,
    number,
    overlay,
    p_value,
    size,
    write_report,
    write_table,
)
from KnowledgeTransferLib.learning.volume import Volume
from KnowledgeTransferLib.records.labels import Labels
from KnowledgeTransferLib.records.run_directory import RunDirectory, write_json

LABELS = Labels.from_names({1: "liver", 2: "spleen"})
HOSTILE = '<script>alert("x")</script>&amp;'
HISTORY = [
    {"epoch": 1, "iteration": 9, "loss": 1.0, "validation_dice": None, "learning_rate": 0.01, "duration_s": 1.0},
    {"epoch": 2, "iteration": 18, "loss": 0.5, "validation_dice": 0.7, "learning_rate": 0.005, "duration_s": 2.0},
]


def some_rows(methods=("a", "b"), cases=4, structures=LABELS.names) -> list[dict]:
    rng = np.random.default_rng(0)
    return [
        {"method": m, "case": f"case {c}", "group": f"case {c}", "structure": s, "expert_volume_ml": 1.0}
        | dict.fromkeys(MEASURES, float(rng.uniform(0.5, 1)))
        for m in methods for c in range(cases) for s in structures
    ]  # fmt: skip


def an_evaluation(rows=None, methods=("a", "b"), labels=LABELS, **others) -> dict:
    rows = some_rows(methods) if rows is None else rows
    parts = {m: [r for r in rows if r["method"] == m] for m in methods}
    return {
        "library_version": "0", "cohort": "/data/site", "modality": "CT", "structures": labels.to_json(),
        "tolerance_mm": 1.0, "device": "cpu", "cases_with_expert": 4, "groups": 4, "split": None,
        "methods": {m: {"kind": "segmentations"} for m in methods},
        "summary": {m: summarise(part) for m, part in parts.items()}, "tests": compare(parts),
        "warnings": [], "problems": [], "cases": rows, **others,
    }  # fmt: skip


class Page(HTMLParser):
    """Tags, addresses and text of a page."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.addresses, self.text = [], [], ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "srcset", "action")]

    def handle_data(self, data):
        self.text += data


def a_page(tmp_path, evaluation, training=None, pictures=()) -> Page:
    write_report(tmp_path / "report.html", evaluation, training, list(pictures))
    return Page(tmp_path / "report.html")


def a_picture(method="a", case="case 1", rank="best") -> dict:
    return {"method": method, "case": case, "rank": rank, "dice": 0.912, "image": "data:image/png;base64,AAAA"}


def decoded(address: str) -> np.ndarray:
    head, content = address.split(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB")).astype(int)


def test_a_report_loads_nothing_from_outside(tmp_path):
    page = a_page(tmp_path, an_evaluation(), {"history": HISTORY}, [a_picture()])
    assert len(page.addresses) == 3  # box plots, training curves, one picture
    assert all(address.startswith("data:image/") for address in page.addresses)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "@import" not in page.text and "url(" not in page.text


def test_names_from_outside_are_escaped(tmp_path):
    rows = some_rows((HOSTILE,), structures=(HOSTILE,))
    for row in rows:
        row["case"] = row["group"] = HOSTILE
    evaluation = an_evaluation(
        rows, (HOSTILE,), Labels.from_names({1: HOSTILE}), cohort=HOSTILE, modality=HOSTILE, split=HOSTILE,
        problems=[{"case": HOSTILE, "message": HOSTILE}], warnings=[HOSTILE],
    )  # fmt: skip
    page = a_page(tmp_path, evaluation, None, [a_picture(HOSTILE, HOSTILE)])
    assert "script" not in page.tags
    assert page.text.count(HOSTILE) >= 10


def test_a_name_that_looks_like_a_formula_is_drawn_as_text(tmp_path):
    names = ("$\\nonsense{$", "_hidden")
    page = a_page(
        tmp_path,
        an_evaluation(some_rows(names, structures=names), names, Labels.from_names({1: names[0], 2: names[1]})),
    )
    assert names[0] in page.text


def test_the_tables_hold_the_figures(tmp_path):
    evaluation = an_evaluation()
    page = a_page(tmp_path, evaluation)
    mean = evaluation["summary"]["a"]["all"]["dice"]["mean"]
    assert f"{mean:.3f}" in page.text
    assert "case 3" in page.text
    assert "p after Holm" in page.text


def test_problems_and_warnings_are_listed(tmp_path):
    problems = [{"case": "case 9", "message": "the file is empty"}]
    page = a_page(tmp_path, an_evaluation(problems=problems, warnings=["b: no spleen"]))
    assert "the file is empty" in page.text and "b: no spleen" in page.text
    assert "the file is empty" not in a_page(tmp_path, an_evaluation()).text


def test_resources_are_shown_only_for_students(tmp_path):
    student = {
        "kind": "student",
        "parameters": 56789,
        "file_size_bytes": 240_000,
        "seconds_per_case": 0.25,
        "peak_memory_mib": 812.0,
    }
    assert "Parameters" not in a_page(tmp_path, an_evaluation()).text
    page = a_page(
        tmp_path, an_evaluation(methods=("a", "b")) | {"methods": {"a": student, "b": {"kind": "segmentations"}}}
    )
    assert "56\u202f789" in page.text and "240 kB" in page.text and "0.250" in page.text and "812" in page.text


@pytest.mark.parametrize("training", [None, {}, {"history": []}, {"history": HISTORY[:1]}])
def test_a_report_stands_without_curves_or_with_short_ones(tmp_path, training):
    page = a_page(tmp_path, an_evaluation(), training)
    assert ("Training" in page.text) == bool(training and training["history"])


def test_a_method_that_failed_everywhere_is_still_shown(tmp_path):
    rows = some_rows(("a",))
    page = a_page(tmp_path, an_evaluation(rows, ("a", "failed")))
    assert "failed" in page.text


def test_numbers_are_written_for_people():
    assert number(-0.5, 2, True) == "\u22120.50" and number(None) == "–"
    assert interval({"mean": 0.9, "low": None, "high": None}) == "0.900"
    assert interval({"mean": 0.9, "low": 0.8, "high": 0.95}, 2) == "0.90 [0.80, 0.95]"
    assert interval({"mean": None, "low": None, "high": None}) == "–"
    assert p_value(0.0004) == "< 0.001" and p_value(0.0421) == "0.042"
    assert size(2_345_000) == "2.3 MB" and size(999) == "1 kB" and count(1234567) == "1\u202f234\u202f567"


def test_best_median_and_worst_are_chosen_by_mean_dice():
    dice = dict(zip("abcde", (0.5, 0.9, 0.1, 0.7, np.nan), strict=True))
    rows = [{"case": case, "group": case, "dice": mean, "expert_volume_ml": 1.0} for case, mean in dice.items()]
    assert [(p["case"], p["rank"]) for p in best_median_worst(rows)] == [("b", "best"), ("a", "median"), ("c", "worst")]
    assert [p["rank"] for p in best_median_worst(rows[:2])] == ["best", "worst"]
    assert [p["rank"] for p in best_median_worst(rows[:1])] == ["best"]
    assert best_median_worst([]) == []


def a_volume_with_a_mark(affine, mark, shape=(20, 20, 6)) -> tuple[Volume, np.ndarray]:
    """A dark volume, bright in one octant, annotated in the middle of slice 3 so that the whole slice is drawn."""
    array = np.random.default_rng(0).integers(0, 20, (1, *shape)).astype(np.int16)
    array[(0, *mark)] += 200
    expert = np.zeros(shape, np.uint8)
    expert[6:14, 6:14, shape[2] // 2] = 1
    return Volume(array, np.asarray(affine, float)), expert


def brightest_quarter(address: str) -> tuple[str, str]:
    grey = decoded(address).sum(-1)
    rows, columns = (n // 2 for n in grey.shape)
    quarters = {
        ("top", "left"): grey[:rows, :columns], ("top", "right"): grey[:rows, columns:],
        ("bottom", "left"): grey[rows:, :columns], ("bottom", "right"): grey[rows:, columns:],
    }  # fmt: skip
    return max(quarters, key=lambda q: quarters[q].mean())


LOW, HIGH, ALL = slice(0, 10), slice(10, None), slice(None)


@pytest.mark.parametrize(
    ("affine", "right_and_anterior"),
    [
        (np.diag([1, 1, 1, 1]), (HIGH, HIGH, ALL)),
        (np.diag([-1, -1, 1, 1]), (LOW, LOW, ALL)),
        ([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], (HIGH, HIGH, ALL)),
        ([[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], (HIGH, LOW, ALL)),
    ],
)
def test_patient_right_is_on_the_left_and_anterior_is_up(affine, right_and_anterior):
    volume, expert = a_volume_with_a_mark(affine, right_and_anterior)
    assert brightest_quarter(overlay(volume, expert, expert, LABELS)) == ("top", "left")


def test_a_sagittal_stack_is_drawn_in_axial_slices():
    affine = [[0, 0, 4, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]  # I: anterior, J: superior, K: right
    array, expert = np.zeros((1, 20, 20, 8), np.int16), np.zeros((20, 20, 8), np.uint8)
    array[0, 10:, :, 4:] = 100
    expert[4:16, 9:12, 2:7] = 1
    address = overlay(Volume(array, np.array(affine, float)), expert, expert, LABELS)
    assert brightest_quarter(address) == ("top", "left")
    height, width = decoded(address).shape[:2]
    assert width / height == pytest.approx(8 * 4 / 20, rel=0.02)


def test_a_picture_is_drawn_as_it_is():
    volume, expert = a_volume_with_a_mark(RAS_OF_LPS, (HIGH, LOW, ALL), (20, 20, 1))
    assert brightest_quarter(overlay(volume, expert, expert, LABELS)) == ("top", "right")


def test_a_colour_picture_keeps_its_colours():
    array = np.zeros((3, 20, 24, 1), np.uint8)
    array[1] = 200
    image = decoded(overlay(Volume(array, RAS_OF_LPS), *[np.zeros((20, 24, 1), np.uint8)] * 2, LABELS))
    assert tuple(image[image.shape[0] // 2, image.shape[1] // 2]) == (0, 200, 0)


def test_outlines_have_the_colours_of_their_structures():
    volume, expert = a_volume_with_a_mark(np.eye(4), (ALL, ALL, ALL))
    prediction = np.where(expert, 2, 0).astype(np.uint8)
    both = decoded(overlay(volume, expert, prediction, LABELS))
    alone = decoded(overlay(volume, expert, np.zeros_like(expert), LABELS))
    liver, spleen = ([np.abs(p - s.color).sum(-1).min() < 40 for p in (both, alone)] for s in LABELS.structures)
    assert liver[1] and spleen == [True, False]


def test_the_slice_with_most_of_the_expert_is_drawn():
    volume, expert = a_volume_with_a_mark(np.eye(4), (HIGH, HIGH, slice(2, 3)))
    volume.array[0, :10, :10, 3] += 200  # the middle slice is bright elsewhere
    expert[5:15, 5:15, 2] = 1
    assert brightest_quarter(overlay(volume, expert, expert, LABELS)) == ("top", "left")
    assert brightest_quarter(overlay(volume, np.roll(expert, 1, axis=2), expert, LABELS)) == ("bottom", "right")


def test_an_overlay_without_any_annotation_is_drawn():
    volume, expert = a_volume_with_a_mark(np.eye(4), (HIGH, HIGH, ALL))
    empty = np.zeros_like(expert)
    assert decoded(overlay(volume, empty, empty, LABELS)).size > 0
    assert decoded(overlay(volume, empty, expert, LABELS)).size > 0


def test_cases_that_earlier_steps_left_out_are_listed_too(tmp_path):
    problems = [{"case": "case 7", "message": "was truncated"}]
    assert "was truncated" in a_page(tmp_path, an_evaluation(earlier_problems=problems)).text


def test_cases_that_a_setting_left_out_of_the_training_count_among_them(tmp_path):
    run = RunDirectory(tmp_path)
    write_json(run.annotations, {"problems": [{"case": "a", "message": "was truncated"}]})
    write_json(run.training, {"problems": [], "left_out": [{"case": "b", "message": "is left out: too uncertain"}]})
    assert [problem["case"] for problem in earlier_problems(run)] == ["a", "b"]


def rows_with_normal_cases() -> list[dict]:
    """Of four cases the expert left three empty: a rightly drew nothing there, b drew in two of them."""
    rows = some_rows(structures=("liver",))
    for row in rows[1:4] + rows[5:8]:
        drew = row["method"] == "b" and row["case"] != "case 3"
        row.update(dict.fromkeys(MEASURES, 0.0 if drew else np.nan), expert_volume_ml=0.0)
    return rows


def test_false_alarms_and_specificity_are_shown_of_how_many(tmp_path):
    labels = Labels.from_names({1: "liver"})
    text = " ".join(a_page(tmp_path, an_evaluation(rows_with_normal_cases(), labels=labels)).text.split())
    assert "0 of 1 / 0 of 3 0 of 1 / 2 of 3" in text
    assert "Specificity1.0000.333" in text  # cells of a row
    assert "Specificity" not in a_page(tmp_path, an_evaluation()).text


@pytest.mark.parametrize("method", ["a", "b"])
def test_a_case_in_which_the_expert_drew_nothing_is_no_picture(method):
    rows = [row for row in rows_with_normal_cases() if row["method"] == method]
    assert [picture["case"] for picture in best_median_worst(rows)] == ["case 0"]


def test_the_table_has_empty_cells_for_numbers_that_are_not_defined(tmp_path):
    write_table(tmp_path / "t.csv", [{"case": "a, b", "dice": None}], ("case", "dice"))
    assert (tmp_path / "t.csv").read_text(encoding="utf-8") == 'case,dice\n"a, b",\n'
