"""Precursors: a live teacher beside the student, in whole runs on the phantom; what is kept, refused and repeated."""

import contextlib
import shutil
from dataclasses import replace

import pytest

from KnowledgeTransferLib.learning.student import load_student
from KnowledgeTransferLib.records.bundle import METADATA, OURS, WEIGHTS, sha256
from KnowledgeTransferLib.records.cohort import Cohort, read_cohort
from KnowledgeTransferLib.records.labels import Labels
from KnowledgeTransferLib.records.losses import USUAL_WEIGHTS
from KnowledgeTransferLib.records.run_directory import RunDirectory, read_json, write_json
from KnowledgeTransferLib.records.students import STUDENTS
from KnowledgeTransferLib.steps.distil import distil

FEATURES = {"contrastive": 0.2, "response": 0.2}
QUICK = {"epochs": 2, "batch_size": 2, "patch_size_voxels": (16, 16, 16)}


@pytest.fixture
def run(an_annotated_run) -> RunDirectory:
    return RunDirectory(an_annotated_run)


def half_labelled(run: RunDirectory) -> Cohort:
    """The run's cohort, of which two of four cases have expert annotations."""
    cohort = Cohort.from_json(read_json(run.cohort))
    cases = [case if number < 2 else replace(case, label=None) for number, case in enumerate(cohort.cases)]
    return replace(cohort, cases=tuple(cases))


class Killed(BaseException):
    """Ends a step at once, as a kill would."""


def test_experts_pseudo_annotations_and_all_losses_go_together_and_survive_a_kill(run, tmp_path):
    whole = RunDirectory(shutil.copytree(run.path, tmp_path / "whole"))
    asked = {**QUICK, "annotations": "both", "losses": USUAL_WEIGHTS, "student": "s1"}
    distil(whole, half_labelled(whole), **asked)

    def kill(event: dict) -> None:
        if event["event"] == "metrics" and event["epoch"] == 1:
            raise Killed

    with contextlib.suppress(Killed):
        distil(run, half_labelled(run), **asked, listener=kill)
    assert run.checkpoint.is_file()
    distil(run, half_labelled(run), **asked)
    assert sha256(run.student / WEIGHTS) == sha256(whole.student / WEIGHTS)
    card = read_json(run.student / METADATA)[OURS]["card"]
    assert "on 2 images and expert annotations of 2 images; a live teacher (sha256" in card["taught_by"]
    assert card["settings"]["losses"] == USUAL_WEIGHTS and "live_teacher" not in card["settings"]


def test_the_only_teacher_of_a_run_is_its_live_teacher_where_a_loss_needs_one(run, a_teacher):
    distil(run, **QUICK, losses=FEATURES)
    found = read_json(run.settings)["distil"]
    assert found["live_teacher"] == str(a_teacher) and found["live_sha256"] == sha256(a_teacher / WEIGHTS)
    assert load_student(run.student).preprocessing == load_student(a_teacher).preprocessing
    assert found["reasons"]["spacing_mm"] == "that of the bundle which is the live teacher"


def test_without_such_a_loss_no_network_runs_beside_the_student(run):
    distil(run, **QUICK, losses={"response": 0.2})
    found = read_json(run.settings)["distil"]
    assert found["live_teacher"] == found["live_sha256"] == ""


def test_a_bundle_without_annotations_of_its_own_can_be_a_live_teacher(a_teacher, a_foreign_cohort, command, tmp_path):
    line = ["--cohort", a_foreign_cohort, "--annotations", "expert", "--live-teacher", a_teacher.parent, "--epochs", 1]
    losses = ["--loss", "contrastive=0.3", "--loss", "reconstruction", "--scales", "encoder,bottleneck"]
    outcome = command("distil", tmp_path / "run", *line, *losses, "--tasks", "segmentation")
    assert outcome.status == 0, outcome.messages
    found = read_json(RunDirectory(tmp_path / "run").settings)["distil"]
    assert found["losses"] == {"contrastive": 0.3, "reconstruction": 0.2}
    assert found["scales"] == ["encoder", "bottleneck"] and found["live_teacher"] == str(a_teacher)
    assert command("distil", tmp_path / "run", *line, *losses).status == 0, "the same command is the same training"


def test_a_loss_without_the_teacher_that_it_needs_is_refused_before_the_work(tmp_path, a_foreign_cohort):
    with pytest.raises(ValueError, match="the losses contrastive need a teacher.*--live-teacher PATH"):
        distil(tmp_path / "run", a_foreign_cohort, annotations="expert", losses=FEATURES)


def test_a_live_teacher_of_other_structures_is_refused(tmp_path, a_teacher, a_foreign_cohort):
    cohort = replace(read_cohort(a_foreign_cohort), labels=Labels.from_names({1: "liver", 2: "lung", 3: "a", 4: "b"}))
    with pytest.raises(ValueError, match="but not lung, a, b; a live teacher knows every structure"):
        distil(tmp_path / "run", cohort, annotations="expert", losses=FEATURES, live_teacher=str(a_teacher))


def test_a_spacing_other_than_the_live_teachers_is_refused(run):
    with pytest.raises(ValueError, match="learning beside a live teacher keeps its spacing_mm"):
        distil(run, losses=FEATURES, spacing_mm=(9.0, 9.0, 9.0))


def test_a_live_teacher_that_was_trained_again_is_refused(run, a_teacher, tmp_path):
    teacher = shutil.copytree(a_teacher, tmp_path / "teacher")
    asked = {**QUICK, "losses": FEATURES, "live_teacher": str(teacher)}

    def kill(event: dict) -> None:
        if event["event"] == "metrics":
            raise Killed

    with contextlib.suppress(Killed):
        distil(run, **asked, listener=kill)
    (teacher / WEIGHTS).write_bytes(b"others")
    with pytest.raises(ValueError, match=r"trained again since .*--restart"):
        distil(run, **asked)


def test_none_takes_back_the_live_teacher(run, a_teacher, command):
    write_json(run.settings, {**read_json(run.settings), "distil": {"live_teacher": str(a_teacher)}})
    assert command("distil", run.path, "--live-teacher", "none", "--epochs", 1).status == 0
    assert read_json(run.settings)["distil"]["live_teacher"] == ""


def test_a_patch_fits_both_networks(tmp_path, a_foreign_cohort, a_teacher):
    """The stride of `s1` is 4, that of the teacher 8."""
    assert load_student(a_teacher).network.total_stride == 8
    asked = {"annotations": "expert", "losses": FEATURES, "live_teacher": str(a_teacher), "student": "s1", "epochs": 1}
    with pytest.raises(ValueError, match="multiples of 8"):
        distil(tmp_path / "run", a_foreign_cohort, **asked, patch_size_voxels=(20, 20, 20))
    distil(tmp_path / "run", a_foreign_cohort, **asked)
    assert all(
        edge % 8 == 0 for edge in read_json(RunDirectory(tmp_path / "run").settings)["distil"]["patch_size_voxels"]
    )


def test_a_further_task_costs_the_bundle_nothing(run, tmp_path):
    plain = RunDirectory(shutil.copytree(run.path, tmp_path / "plain"))
    for one, tasks in ((run, ("segmentation", "reconstruction")), (plain, ("segmentation",))):
        distil(one, **QUICK, tasks=tasks)
    student, other = load_student(run.student), load_student(plain.student)
    assert student.parameters == other.parameters
    assert student.card["settings"]["losses"] == {"dice-ce": 1.0, "reconstruction": 0.2}
    assert sha256(run.student / WEIGHTS) != sha256(plain.student / WEIGHTS), "the second task teaches the encoder"


def test_a_teacher_of_two_tasks_has_both_losses_unless_one_is_asked_for(tmp_path, a_picture_cohort, monkeypatch):
    two = STUDENTS["t1"].tasks
    assert two == STUDENTS["t2"].tasks == ("segmentation", "reconstruction")
    monkeypatch.setitem(STUDENTS, "s1", replace(STUDENTS["s1"], tasks=two))  # as t1, and quick
    for tasks, losses in ((None, {"dice-ce": 1.0, "reconstruction": 0.2}), (("segmentation",), {"dice-ce": 1.0})):
        run = RunDirectory(tmp_path / str(tasks))
        distil(run, a_picture_cohort, annotations="expert", student="s1", epochs=1, batch_size=2, tasks=tasks)
        assert read_json(run.student / METADATA)[OURS]["card"]["settings"]["losses"] == losses
