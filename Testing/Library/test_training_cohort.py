"""Training cohort: given cases and those that the run annotated are learnt from together, and neither is forgotten."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from KnowledgeTransferLib.learning.phantom import LABELS
from KnowledgeTransferLib.records.bundle import METADATA, OURS, WEIGHTS, sha256
from KnowledgeTransferLib.records.cohort import Case, Cohort, read_cohort, read_recorded
from KnowledgeTransferLib.records.labels import Labels
from KnowledgeTransferLib.records.reviews import case_states, write_review
from KnowledgeTransferLib.records.run_directory import RunDirectory, read_json, write_json
from KnowledgeTransferLib.records.training_cohort import joined, learnt_from, training_cohort
from KnowledgeTransferLib.steps.annotate import annotate
from KnowledgeTransferLib.steps.distil import distil
from KnowledgeTransferLib.steps.evaluate import evaluate

QUICK = {"epochs": 2, "batch_size": 2, "spacing_mm": (18.0, 18.0, 22.0)}
BOTH = {**QUICK, "annotations": "both"}


class Killed(BaseException):
    """Ends a step at once, as a kill would."""


def killed_at(kind: str, name: str | None = None):
    """A listener that kills the step at an event."""

    def listen(event: dict) -> None:
        if event["event"] == kind and event.get("name") == name:
            raise Killed

    return listen


def without_experts(run: RunDirectory) -> RunDirectory:
    own = read_recorded(run.cohort)
    write_json(run.cohort, replace(own, cases=tuple(replace(case, label=None) for case in own.cases)).to_json())
    return run


@pytest.fixture
def run(an_annotated_run) -> RunDirectory:
    """A run that annotated site B, of which no expert said anything."""
    return without_experts(RunDirectory(an_annotated_run))


@pytest.fixture(scope="module")
def the_finished_run(the_annotated_run, a_phantom_cohort, tmp_path_factory) -> RunDirectory:
    """The same run, whose student learnt from the experts of site A, too; do not change it."""
    folder = shutil.copytree(the_annotated_run, tmp_path_factory.mktemp("finished") / "run")
    run = without_experts(RunDirectory(folder))
    distil(run, a_phantom_cohort, **BOTH)
    return run


def ids(file: Path) -> list[str]:
    return [case["id"] for case in read_json(file)["cases"]]


def taught_by(run: RunDirectory) -> str:
    return read_json(run.student / METADATA)[OURS]["card"]["taught_by"]


def a_case(id_: str, image: str = "", label: str = "") -> Case:
    return Case(id_, (Path(f"/scans/{image or id_}.nii.gz"),), Path(f"/labels/{label}") if label else None)


def test_both_learns_from_given_experts_and_from_what_the_run_annotated_and_reviewed(run, a_phantom_cohort):
    write_review(run, "B_002", "rejected")
    run.corrected_annotations.mkdir()
    shutil.copy(run.pseudo_annotation("B_003"), run.corrected_annotation("B_003"))
    cohort, states, told = run.cohort.read_bytes(), case_states(run), []
    distil(run, a_phantom_cohort, **BOTH, listener=told.append)
    assert "on 2 images and pseudo-annotations of 1 images that a person corrected and" in taught_by(run)
    assert taught_by(run).endswith("expert annotations of 4 images.")
    assert "4 cases of the run's own cohort are learnt from, beside the 4 given" in str(told)
    assert run.cohort.read_bytes() == cohort and case_states(run) == states
    assert ids(run.training_cohort) == ["A_001", "A_002", "A_003", "A_004", "B_001", "B_002", "B_003", "B_004"]


def test_experts_of_another_cohort_leave_the_record_of_what_was_annotated(run, a_phantom_cohort, a_foreign_cohort):
    cohort = run.cohort.read_bytes()
    distil(run, a_phantom_cohort, **QUICK, annotations="expert")
    assert taught_by(run) == "It learnt from expert annotations of 4 images."
    assert run.cohort.read_bytes() == cohort and ids(run.training_cohort)[0] == "A_001"
    (text,) = evaluate(run, a_phantom_cohort, {"ours": run.path})["warnings"]
    assert "4 of 4 cases were also in this run's training set" in text
    assert evaluate(run, a_foreign_cohort, {"ours": run.path})["warnings"] == []
    told = []
    annotate(run, listener=told.append)
    assert not [event for event in told if event["event"] == "case"], "it was annotated again"


def test_pseudo_annotations_are_those_of_the_run_after_a_training_with_other_experts(run, a_phantom_cohort):
    distil(run, a_phantom_cohort, **QUICK, annotations="expert")
    distil(run, **QUICK, annotations="pseudo", restart=True)
    assert "on 4 images." in taught_by(run)
    assert not run.training_cohort.exists() and learnt_from(run) == run.cohort


def test_a_training_killed_twice_goes_on_with_the_same_cases_when_none_are_named(
    run, the_finished_run, a_phantom_cohort
):
    with pytest.raises(Killed):
        distil(run, a_phantom_cohort, **BOTH, listener=killed_at("stage", "prepare"))
    assert not run.checkpoint.exists()
    with pytest.raises(Killed):
        distil(run, listener=killed_at("metrics"))
    assert run.checkpoint.exists()
    distil(run)
    assert sha256(run.student / WEIGHTS) == sha256(the_finished_run.student / WEIGHTS)
    assert taught_by(run) == taught_by(the_finished_run)


def test_a_finished_training_knows_the_cohort_that_it_was_begun_with(the_finished_run, a_phantom_cohort, tmp_path):
    run, told = RunDirectory(shutil.copytree(the_finished_run.path, tmp_path / "run")), []
    distil(run, a_phantom_cohort, **BOTH, listener=told.append)
    assert "this training is finished" in str(told)
    with pytest.raises(ValueError, match="the cohort has other cases"):
        distil(run, replace(read_cohort(a_phantom_cohort), modality="MR"), **BOTH)


def test_a_run_of_an_earlier_version_goes_on_with_the_cohort_that_replaced_its_own(run, a_phantom_cohort):
    given = read_cohort(a_phantom_cohort)
    write_json(run.cohort, given.to_json())
    assert training_cohort(run, given, "both") == training_cohort(run, None, "both") == given
    assert learnt_from(run) == run.cohort


def test_a_training_whose_list_of_cases_is_missing_says_so_and_what_to_do(
    command, the_finished_run, a_phantom_cohort, tmp_path
):
    run = RunDirectory(shutil.copytree(the_finished_run.path, tmp_path / "run"))
    run.cohort.unlink(), run.training_cohort.unlink()
    refused = command("distil", run.path, "--cohort", a_phantom_cohort)
    assert refused.status == 2 and "cohort.json, which lists its cases, is missing" in refused.messages
    assert "Leave the cohort out (--cohort PATH) to go on, add --restart to begin anew, or name" in refused.messages
    refused = command("distil", run.path, "--restart")
    assert refused.status == 2 and "is missing; annotate them again, or name them (--cohort PATH)" in refused.messages
    assert command("distil", run.path).status == 0, "a training that is there needs no list"


def test_a_training_whose_prepared_images_are_missing_says_so_and_what_to_do(command, run):
    with pytest.raises(Killed):
        distil(run, **QUICK, listener=killed_at("metrics"))
    shutil.rmtree(run.prepared)
    refused = command("distil", run.path)
    assert refused.status == 2 and "index.json is missing: without the images that were prepared" in refused.messages
    assert "begin anew with --restart" in refused.messages
    assert command("distil", run.path, "--restart").status == 0


def test_annotating_a_run_that_experts_taught_keeps_the_record_of_what_it_learnt_from(
    run, a_teacher, a_phantom_cohort, a_foreign_cohort, tmp_path
):
    taught, told = RunDirectory(tmp_path / "taught by experts"), []
    distil(taught, a_phantom_cohort, **QUICK, annotations="expert")
    annotate(taught, a_foreign_cohort, {str(a_teacher): 1.0}, listener=told.append)
    assert ids(taught.cohort) == ["B_001", "B_002", "B_003", "B_004"] and len(case_states(taught)) == 4
    assert ids(taught.training_cohort) == ["A_001", "A_002", "A_003", "A_004"]
    assert not [event for event in told if event["event"] == "warning"]
    assert training_cohort(taught, None, "expert").source == str(a_phantom_cohort)
    assert training_cohort(taught, None, "pseudo").source == str(a_foreign_cohort)
    assert len(training_cohort(taught, None, "both").cases) == 8
    distil(taught, listener=told.append)
    assert "this training is finished" in str(told)


def test_annotated_cases_that_another_cohort_does_not_list_are_told(run, a_foreign_cohort):
    told, cohort = [], read_cohort(a_foreign_cohort)
    annotate(run, replace(cohort, cases=cohort.cases[1:3]), listener=told.append)
    (text,) = [event["text"] for event in told if event["event"] == "warning"]
    assert text.startswith("2 cases that the run had (B_001, B_004) are not in this cohort")
    told.clear()
    annotate(run, cohort, listener=told.append)
    assert not [event for event in told if event["event"] in ("warning", "case")], "they were lost meanwhile"


def test_a_cohort_that_nobody_worked_on_is_replaced_by_another(run, a_teacher, a_phantom_cohort, tmp_path):
    new = RunDirectory(tmp_path / "new")
    with pytest.raises(Killed):
        annotate(new, read_recorded(run.cohort), {str(a_teacher): 1.0}, listener=killed_at("stage", "annotate"))
    annotate(new, a_phantom_cohort)
    assert ids(new.cohort)[0] == "A_001" and not new.training_cohort.exists()


def test_a_table_of_all_scans_is_taken_as_it_stands():
    own = Cohort((a_case("b"), a_case("a", label="old")), LABELS, "CT", "own")
    given = Cohort((a_case("a"), a_case("b", label="b"), a_case("c")), Labels.from_names({3: "liver"}), "", "given")
    assert joined(given, own) == given


def test_cases_that_only_the_run_has_come_after_the_given_ones_with_what_their_experts_said():
    own = Cohort((a_case("a"), a_case("b", label="b")), LABELS, "CT", "own")
    found = joined(Cohort((a_case("c"), a_case("a"))), own)
    assert [case.id for case in found.cases] == ["c", "a", "b"] and found.cases[2].label
    assert (found.labels, found.modality) == (LABELS, "CT")


def test_an_image_that_is_named_in_another_way_is_the_same():
    given = replace(a_case("a", label="a"), images=(Path("/scans/other/../a.nii.gz"),))
    (case,) = joined(Cohort((given,), LABELS), Cohort((a_case("a"),))).cases
    assert case == a_case("a", label="a")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            a_case("a", "other"),
            r"given: a is \S*other\.nii\.gz, but the run has \S*a\.nii\.gz .*give one of",
        ),
        (a_case("x", "a"), r"given: x is \S*a\.nii\.gz, which the run has as a; give it this id"),
    ],
)
def test_a_case_with_another_image_and_an_image_with_another_id_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        joined(Cohort((given,), source="given"), Cohort((a_case("a"),)))


def test_a_refused_cohort_leaves_the_run_as_it_is(run, a_phantom_cohort):
    given, before = read_cohort(a_phantom_cohort), run.cohort.read_bytes()
    given = replace(given, cases=(replace(given.cases[0], id="B_001"), *given.cases[1:]))
    with pytest.raises(ValueError, match=r"B_001 is .*A_001.*under this id"):
        distil(run, given, **BOTH)
    assert run.cohort.read_bytes() == before and not run.training_cohort.exists()


def test_experts_who_number_the_structures_otherwise_are_refused_with_what_each_holds():
    own = Cohort((a_case("a", label="a"),), Labels.from_names({1: "Liver", 2: "spleen"}))
    for labels, text in ((Labels.from_names({1: "spleen"}), "spleen = 1"), (None, "structures without names")):
        with pytest.raises(ValueError, match=f"hold {text}, those of the run's own cases liver = 1, spleen = 2"):
            joined(Cohort((a_case("b", label="b"),), labels), own)
    same = Labels.from_names({1: "liver", 2: "Spleen"})
    assert joined(Cohort((a_case("b", label="b"),), same), own).labels == same
