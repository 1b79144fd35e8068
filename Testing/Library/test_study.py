"""Study: its plans, its trainings as processes of their own, stops and failures, and what its table says."""

import csv
import itertools
import json
import re
import subprocess
import threading

import numpy as np
import pytest

from KnowledgeTransferLib.learning import training as training_module
from KnowledgeTransferLib.learning.metrics import MEASURES
from KnowledgeTransferLib.learning.study_results import study_results
from KnowledgeTransferLib.records.bundle import WEIGHTS, sha256
from KnowledgeTransferLib.records.cohort import read_cohort
from KnowledgeTransferLib.records.losses import USUAL_WEIGHTS
from KnowledgeTransferLib.records.plans import PLANS, Cell, cells_of, plan_named
from KnowledgeTransferLib.records.progress import Cancelled
from KnowledgeTransferLib.records.run_directory import RunDirectory, read_json, write_json
from KnowledgeTransferLib.records.settings import checked
from KnowledgeTransferLib.steps import study as module
from KnowledgeTransferLib.steps.distil import distil
from KnowledgeTransferLib.steps.study import Cases, study

PLAN = {"cells": {"baseline": {}, "contrastive": {"losses": {"contrastive": 0.2}, "scales": ["encoder"]}}}


# Plans


def test_the_plan_of_scales_holds_every_sum_with_and_without_response():
    cells = plan_named("scales")["cells"]
    assert len(cells) == 16 and next(iter(cells)) == "baseline"
    for count in range(4):
        for chosen in itertools.combinations(("E-E", "B-B", "D-D"), count):
            for response in ((), ("response",)):
                settings = cells[" + ".join((*chosen, *response)) or "baseline"]
                scales = [{"E": "encoder", "B": "bottleneck", "D": "decoder"}[title[0]] for title in chosen]
                assert settings.get("scales", []) == scales
                expected = {*(["contrastive"] if chosen else []), *response}
                assert set(settings.get("losses", {})) == expected


def test_the_plan_of_losses_holds_each_of_them():
    assert set(plan_named("losses")["cells"]) == {"baseline"} | set(USUAL_WEIGHTS) - {"dice-ce"}


@pytest.mark.parametrize("name", PLANS)
def test_settings_of_plans_are_settings(name):
    cells = cells_of(plan_named(name), {"epochs": 3}, 2)
    for cell in cells:
        assert checked(cell.settings, "distil", name)["epochs"] == 3
        assert re.fullmatch(r"[\w.+=-]+", cell.folder)
    assert len({cell.folder for cell in cells}) == len(cells)
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells), "a first answer comes early"


def test_a_grid_has_the_cells_at_each_of_its_points():
    plan = {**PLAN, "grid": {"student": ["s1", "s2"], "batch_size": [2, 4]}}
    cells = cells_of(plan, {"losses": {"deep-supervision": 0.5}}, 1)
    assert [cell.point for cell in cells[::2]] == [
        "s1 batch_size=2",
        "s1 batch_size=4",
        "s2 batch_size=2",
        "s2 batch_size=4",
    ]
    assert cells[3].settings == {
        "student": "s1", "batch_size": 4, "scales": ["encoder"],
        "losses": {"deep-supervision": 0.5, "contrastive": 0.2},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"cells": {"one": {}}}, "at least 2 are needed"),
        ({"cells": {"a": {}, "b": {"batch": 4}}}, "cell b: there is no setting 'batch'"),
        ({"cells": {"a": {}, "b": {}}, "grid": {"student": ["s1", 5]}}, "student is 5"),
        ({"cells": {"a": {}, "b": {}}, "grid": {"student": "s1"}}, "names the values of each setting in a list"),
        ({"cells": {"a": {}, "b": {}}, "grid": {"labelled_share": 0.5}}, "names the values of each setting in a list"),
        ({"cells": {"a": {}, "b": {}}, "grid": ["s1"]}, "names the values of each setting in a list"),
        ({"trainings": {}}, "a plan is"),
        ([], "a plan is"),
    ],
)
def test_a_wrong_plan_is_refused_with_what_is_expected(tmp_path, content, message):
    write_json(tmp_path / "plan.json", content)
    with pytest.raises(ValueError, match=message):
        plan_named(str(tmp_path / "plan.json"))


def test_an_unknown_plan_and_cells_of_the_same_folder_are_refused():
    with pytest.raises(ValueError, match="choose scales, losses, fractions, or name a JSON file"):
        plan_named("everything")
    with pytest.raises(ValueError, match="the same folder"):
        cells_of({"cells": {"a b": {}, "a_b": {}}}, {}, 1)


# Trainings


@pytest.fixture
def plan(tmp_path) -> str:
    write_json(tmp_path / "plan.json", PLAN)
    return str(tmp_path / "plan.json")


@pytest.fixture
def cases(a_foreign_cohort) -> tuple[Cases, Cases]:
    return Cases(a_foreign_cohort, "transferal"), Cases(a_foreign_cohort, "test")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_whole_study_from_the_shell(command, plan, a_foreign_cohort, a_teacher, tmp_path):
    run = RunDirectory(tmp_path / "study")
    line = ["--cohort", a_foreign_cohort, "--split", "transferal", "--test-split", "test", "--teacher", a_teacher]
    more = ["--plan", plan, "--seeds", 1, "--annotations", "both", "--labelled-share", 0.5, "--epochs", 2]
    more += ["--device", "cpu"]
    outcome = command("study", run.path, *line, *more)
    assert outcome.status == 0, outcome.messages
    content = read_json(run.study)
    assert [cell["name"] for cell in content["cells"]] == ["baseline", "contrastive"]
    base, other = content["cells"]
    assert base["against"] is None and other["against"]["difference"]["groups"] == 1
    change = other["dice"]["mean"] - base["dice"]["mean"]
    assert other["against"]["difference"]["mean"] == pytest.approx(change, abs=1e-9)
    for training in content["trainings"]:
        cell = RunDirectory(run.cells / training)
        settings = read_json(cell.settings)["distil"]
        assert settings["live_teacher"] == str(a_teacher), "the same preprocessing for all"
        card = (cell.student / "docs" / "README.md").read_text(encoding="utf-8")
        assert ("ran beside it" in card) == ("contrastive" in training)
    rows = list(csv.DictReader(run.study_table.read_text(encoding="utf-8").splitlines()))
    assert [row["cell"] for row in rows] == ["baseline", "contrastive"]
    assert float(rows[1]["dice"]) == other["dice"]["mean"]
    page, table = run.study_report.read_text(encoding="utf-8"), run.study_latex.read_text(encoding="utf-8")
    assert page.count("<svg") + page.count("data:image/svg") == 1 and "contrastive" in page
    assert table.startswith(r"\begin{tabular}") and r"\bottomrule" in table

    again = command("study", run.path)
    assert again.status == 0, again.messages
    (stage,) = [event for event in again.events if event["event"] == "stage"]
    assert stage["done"] == stage["total"] == 2, "nothing is trained twice"


class Child:
    """Stands in for a process: carries out one step in a moment, or fails."""

    def __init__(self, arguments: list, place, fails: str = "", dices=None):
        step, folder = arguments[0], RunDirectory(arguments[1])
        self.returncode = 2 if fails and fails in str(folder.path) else 0
        with folder.locked(step):
            if self.returncode:
                folder.events.write_text('{"event": "error", "text": "it broke"}\n', encoding="utf-8")
            elif step == "distil":
                row = {"epoch": 1, "iteration": 4, "duration_s": 2.0, "validation_dice": 0.5}
                write_json(folder.training, {"history": [row], "duration_s": 2.0})
            elif step == "evaluate":
                write_json(folder.evaluation, evaluation([0.5, 0.7, 0.9]))

    def poll(self) -> int:
        return self.returncode

    def kill(self) -> None:
        pass


def evaluation(dices: list) -> dict:
    measures = dict.fromkeys(MEASURES, 1.0)
    rows = [
        {**measures, "method": "student", "case": f"c{n}", "group": f"p{n}", "structure": "a", "dice": dice,
         "expert_volume_ml": 1.0}
        for n, dice in enumerate(dices)
    ]  # fmt: skip
    return {"cases": rows, "methods": {"student": {"parameters": 5}}}


@pytest.fixture
def started(monkeypatch) -> list:
    """The command lines of the children, which are no real ones."""
    lines = []

    def start(arguments, place):
        lines.append(list(map(str, arguments)))
        return Child(arguments, place)

    monkeypatch.setattr(module, "_started", start)
    return lines


def test_a_failed_cell_is_told_and_the_others_go_on(monkeypatch, tmp_path, plan, cases, a_teacher):
    monkeypatch.setattr(module, "_started", lambda arguments, place: Child(arguments, place, fails="baseline"))
    asked = {"teacher": a_teacher, "seeds": 2, "annotations": "expert"}
    content = study(tmp_path / "study", cases, plan, **asked)
    assert [problem["message"] for problem in content["problems"]] == ["it broke", "it broke"]
    assert [cell["name"] for cell in content["cells"]] == ["contrastive"]
    assert content["cells"][0]["against"] is None
    monkeypatch.setattr(module, "_started", Child)
    content = study(tmp_path / "study", cases, plan, **asked)
    assert not content["problems"] and len(content["cells"]) == 2, "it is tried again"


def test_a_stopped_study_goes_on_where_it_was(tmp_path, plan, cases, a_teacher, started, monkeypatch):
    run, usual = RunDirectory(tmp_path / "study"), module._started

    def stopping(arguments, place):
        if len(started) == 4:
            run.cancel.touch()
        return usual(arguments, place)

    monkeypatch.setattr(module, "_started", stopping)
    asked = {"teacher": a_teacher, "annotations": "expert"}
    with pytest.raises(Cancelled):
        study(run, cases, plan, seeds=4, **asked)
    assert [line[0] for line in started] == ["distil", "evaluate"] * (len(started) // 2)
    assert 4 < len(started) < 16 and not run.study_report.exists()
    monkeypatch.setattr(module, "_started", usual)
    content = study(run)
    assert len(started) == 16 and len(content["cells"][0]["seeds"]) == 4
    content = study(run, seeds=5)
    assert len(content["cells"][0]["seeds"]) == 5, "a study may grow"


def test_other_settings_in_the_same_study_are_refused(tmp_path, plan, cases, a_teacher, started):
    study(tmp_path / "study", cases, plan, teacher=a_teacher, seeds=1, annotations="expert")
    with pytest.raises(ValueError, match="begun with other settings .*baseline_seed_0"):
        study(tmp_path / "study", epochs=7)
    with pytest.raises(ValueError, match=r"begun with other settings \(cases, test"):
        study(tmp_path / "study", (cases[1], cases[0]))


def test_what_a_study_lacks_is_told_before_anything_is_trained(tmp_path, plan, cases, a_teacher, started):
    with pytest.raises(ValueError, match="has no cohort yet"):
        study(tmp_path / "a", plan=plan)
    everything = Cases(cases[0].path)
    for test, count in ((cases[0], "3 of 3"), (everything, "3 of 4")):
        with pytest.raises(ValueError, match=f"{count} test cases are also learnt from"):
            study(tmp_path / "b", (cases[0], test), plan, teacher=a_teacher)
    with pytest.raises(ValueError, match="cells that learn from a teacher; name it"):
        study(tmp_path / "c", cases, plan, annotations="expert")
    with pytest.raises(ValueError, match="is no bundle made by KnowledgeTransfer"):
        study(tmp_path / "d", cases, plan, teacher=tmp_path)
    assert not started


def test_the_teacher_annotates_once_and_only_where_pseudo_annotations_are_learnt(
    tmp_path, plan, cases, a_teacher, started
):
    study(tmp_path / "expert", cases, plan, teacher=a_teacher, seeds=1, annotations="expert")
    assert {line[0] for line in started} == {"distil", "evaluate"}
    started.clear()
    study(tmp_path / "both", cases, plan, teacher=a_teacher, seeds=2, annotations="both")
    assert [line[0] for line in started].count("annotate") == 1
    assert f"{a_teacher}=1" in started[0] and started[0][0] == "annotate"


def test_each_gpu_gets_one_training_at_a_time(monkeypatch, tmp_path, plan, cases, a_teacher):
    monkeypatch.setattr(module, "_gpus", lambda asked: ["0", "1"])
    busy, most = [], []

    class Watched(Child):
        def __init__(self, arguments, place):
            busy.append(place["CUDA_VISIBLE_DEVICES"])
            most.append(sorted(busy))
            super().__init__(arguments, place)

        def poll(self):
            if self.returncode is not None and busy:
                busy.pop()
            return self.returncode

    monkeypatch.setattr(module, "_started", Watched)
    study(tmp_path / "study", cases, plan, teacher=a_teacher, seeds=3, annotations="expert")
    assert {device for devices in most for device in devices} == {"0", "1"}


def test_trainings_at_the_same_time_share_what_there_is(monkeypatch, tmp_path):
    cores = module.os.cpu_count()
    on_the_cpu = {"settings": {"device": "cpu"}}
    assert module._places(on_the_cpu, None) == [{}]
    assert module._places(on_the_cpu, 2) == [{"OMP_NUM_THREADS": str(max(1, cores // 2))}] * 2
    assert module._places(on_the_cpu, 4 * cores) == [{"OMP_NUM_THREADS": "1"}] * 4 * cores
    with pytest.raises(ValueError, match="--at-once 0: at least one"):
        study(tmp_path / "study", at_once=0)
    assert not (tmp_path / "study").exists()
    monkeypatch.setattr(module, "_gpus", lambda asked: ["0", "1"])
    assert [place["CUDA_VISIBLE_DEVICES"] for place in module._places(on_the_cpu, 3)] == ["0", "1", "0"]


def test_cells_are_trained_at_the_same_time_where_that_is_asked_for(
    monkeypatch, tmp_path, plan, cases, a_teacher, started
):
    together, usual = threading.Barrier(2), module._started

    def start(arguments, place):
        if arguments[0] == "distil":
            together.wait(20)  # breaks unless two trainings are begun before one ends
        return usual(arguments, place)

    monkeypatch.setattr(module, "_started", start)
    asked = {"teacher": a_teacher, "seeds": 1, "annotations": "expert"}
    content = study(tmp_path / "study", cases, plan, at_once=2, **asked)
    assert not content["problems"] and [line[0] for line in started].count("distil") == 2


def test_a_child_gets_its_gpu_and_is_out_of_reach_of_ctrl_c(monkeypatch):
    seen = {}
    monkeypatch.setattr(subprocess, "Popen", lambda line, **given: seen.update(given, line=line))
    module._started(["distil", "run"], {"CUDA_VISIBLE_DEVICES": "3"})
    assert seen["env"]["CUDA_VISIBLE_DEVICES"] == "3" and seen["start_new_session"]
    assert seen["line"][1:] == ["-m", "KnowledgeTransferLib", "distil", "run"]


def test_a_cell_is_the_training_that_the_same_settings_give(
    tmp_path, a_foreign_cohort, plan, cases, a_teacher, monkeypatch
):
    """Settings reach a training through its settings.json alone."""

    def start(arguments, place):

        if arguments[0] == "distil":
            distil(arguments[1], read_cohort(a_foreign_cohort, "transferal"))
        child = Child(["", arguments[1]], place)
        if arguments[0] == "evaluate":
            write_json(RunDirectory(arguments[1]).evaluation, evaluation([0.5, 0.7]))
        return child

    monkeypatch.setattr(module, "_started", start)
    common = {"annotations": "expert", "epochs": 1, "losses": {"deep-supervision": 0.5}}
    study(tmp_path / "study", cases, plan, teacher=a_teacher, seeds=1, **common)
    cell = RunDirectory(tmp_path / "study" / "cells" / "contrastive_seed_0")
    losses = {"losses": {"deep-supervision": 0.5, "contrastive": 0.2}, "scales": ("encoder",)}
    other = RunDirectory(tmp_path / "other")

    distil(other, read_cohort(a_foreign_cohort, "transferal"), **common | losses, live_teacher=str(a_teacher))
    assert sha256(cell.student / WEIGHTS) == sha256(other.student / WEIGHTS)


def test_the_best_epoch_is_chosen_on_patients_of_the_training_split_alone(a_foreign_cohort, tmp_path, monkeypatch):
    """Not on the test images, as in the published code of arXiv:2406.03173."""
    looked_at, usual = set(), training_module.held_out_dice
    monkeypatch.setattr(
        training_module, "held_out_dice",
        lambda training: looked_at.update(case.id for case in training.held_out) or usual(training),
    )  # fmt: skip
    everything = read_cohort(a_foreign_cohort)
    distil(tmp_path / "run", everything.only("transferal"), annotations="expert", epochs=1)
    assert looked_at and looked_at <= {case.id for case in everything.cases if case.split == "transferal"}


# Numbers


def results_of(tmp_path, dices: dict[tuple[str, int], list]) -> list[dict]:
    """Results of cells (name, seed) with the Dice of patients p0, p1, ..."""
    study_run, cells = RunDirectory(tmp_path), [Cell("", name, seed, {}) for name, seed in dices]
    for cell, values in zip(cells, dices.values(), strict=True):
        run = RunDirectory(study_run.cells / cell.folder).create()
        write_json(run.evaluation, json.loads(json.dumps(evaluation(values))))
        row = {"epoch": 2, "iteration": 10, "duration_s": 1.0 + cell.seed, "validation_dice": 0.1 * cell.seed}
        write_json(run.training, {"history": [row], "duration_s": 3.0 + cell.seed})
    return study_results(cells, study_run)["cells"]


def test_results_equal_plain_formulas(tmp_path):
    base = np.array([[0.5, 0.6, 0.7, 0.4, 0.55, 0.61, 0.3], [0.52, 0.66, 0.64, 0.44, 0.5, 0.6, 0.41]])
    gains = np.array([0.05, 0.1, 0.02, 0.08, 0.04, 0.12, 0.03])
    worse, better = base - gains / 3, base + gains
    dices = {
        (name, seed): values[seed].tolist()
        for name, values in (("b", base), ("w", worse), ("g", better))
        for seed in (0, 1)
    }
    b, w, g = results_of(tmp_path, dices)
    assert b["dice"]["mean"] == pytest.approx(base.mean()) and b["seeds"] == pytest.approx(base.mean(1).tolist())
    assert g["against"]["difference"]["mean"] == pytest.approx(gains.mean())
    assert g["against"]["gain_percent"] == pytest.approx(100 * gains.mean() / base.mean())
    assert g["against"]["effect"] == pytest.approx(gains.mean() / gains.std(ddof=1))
    assert g["against"]["p"] == pytest.approx(2 / 2**7), "all signs of seven patients agree"
    assert g["against"]["p_holm"] == pytest.approx(4 / 2**7), "two comparisons"
    assert w["against"]["difference"]["mean"] == pytest.approx(-gains.mean() / 3)
    assert b["cost"] == {"parameters": 5, "training_s": 3.5, "step_ms": pytest.approx(150.0)}
    assert b["curve"] == [[2, pytest.approx(0.05)]] or b["curve"] == [(2, pytest.approx(0.05))]


def test_a_cell_that_equals_its_baseline_differs_in_nothing(tmp_path):
    _, other = results_of(tmp_path, {("a", 0): [0.5, 0.6], ("b", 0): [0.5, 0.6]})
    against = other["against"]
    assert against["difference"]["mean"] == 0 and against["p"] == against["p_holm"] == 1
    assert np.isnan(against["effect"])


def test_a_patient_whom_one_seed_lacks_is_left_out(tmp_path):
    (found,) = results_of(tmp_path, {("a", 0): [0.5, 0.6], ("a", 1): [0.7]})
    assert found["dice"]["groups"] == 1 and found["dice"]["mean"] == pytest.approx(0.6)
