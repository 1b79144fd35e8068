"""Reviews: a person's decisions and corrections, what a table of cases shows of them, and what distil makes of them."""

import shutil

import numpy as np
import pytest

from KnowledgeTransferLib.learning.phantom import LABELS, write_phantom
from KnowledgeTransferLib.learning.training_cases import training_cases_of
from KnowledgeTransferLib.learning.volume import read_annotation, read_image, write_annotation
from KnowledgeTransferLib.records.cohort import Cohort
from KnowledgeTransferLib.records.labels import Labels
from KnowledgeTransferLib.records.progress import Progress
from KnowledgeTransferLib.records.reviews import case_states, read_reviews, write_review
from KnowledgeTransferLib.records.run_directory import RunDirectory, read_json, write_json
from KnowledgeTransferLib.records.settings import DistilSettings
from KnowledgeTransferLib.steps.annotate import annotate
from KnowledgeTransferLib.steps.distil import distil

QUICK = {"epochs": 1, "batch_size": 2, "spacing_mm": (18.0, 18.0, 22.0)}
OTHERWISE = Labels.from_names({3: "Right_Kidney", 7: "liver"})  # other values, another order, two missing


@pytest.fixture
def run(an_annotated_run) -> RunDirectory:
    return RunDirectory(an_annotated_run)


def states(run: RunDirectory) -> dict[str, str]:
    return {case.id: case.state for case in case_states(run)}


def correct(run: RunDirectory, id_: str, labels: Labels = OTHERWISE, values: tuple = (3, 7)) -> np.ndarray:
    """Save a correction: the first half along I holds the first value, the second the other."""
    image = next(case.images for case in case_states(run) if case.id == id_)
    volume = read_image(image)
    array = np.full(volume.shape, values[0], np.uint8)
    array[volume.shape[0] // 2 :] = values[1]
    write_annotation(run.corrected_annotation(id_), array, volume.affine, labels)
    return array


def lessons(run: RunDirectory, **settings) -> tuple[dict, list[str]]:
    """The training cases by id, and what was said."""
    told = []
    cohort = Cohort.from_json(read_json(run.cohort))
    found = training_cases_of(run, cohort, DistilSettings(**settings), Progress("distil", told.append))
    return {item.case.id: item for item in found}, [event["text"] for event in told]


def test_a_decision_is_kept_changed_and_taken_back(run):
    assert read_reviews(run) == {}
    write_review(run.path, "B_001", "accepted")
    write_review(run.path, "B_002", "rejected")
    write_review(run.path, "B_001", "rejected")
    assert read_reviews(run.path) == {"B_001": "rejected", "B_002": "rejected"}
    write_review(run, "B_001", None)
    write_review(run, "never reviewed", None)
    assert read_reviews(run) == {"B_002": "rejected"}


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"cases": {}}', '{"format_version": 1, "cases": {"B_001": "perhaps"}}']
)
def test_damaged_reviews_are_told_by_name_and_never_overwritten(run, content):
    run.reviews.write_text(content)
    with pytest.raises(ValueError, match=r"reviews\.json"):
        write_review(run, "B_001", "accepted")
    assert run.reviews.read_text() == content


def test_another_decision_is_refused(run):
    with pytest.raises(ValueError, match="'perhaps'; allowed are accepted, rejected"):
        write_review(run, "B_001", "perhaps")
    assert not run.reviews.exists()


def test_every_case_has_a_state(run):
    write_review(run, "B_001", "accepted")
    write_review(run, "B_002", "rejected")
    correct(run, "B_003")
    found = {case.id: case for case in case_states(run.path)}
    assert {id_: case.state for id_, case in found.items()} == {
        "B_001": "accepted", "B_002": "rejected", "B_003": "corrected", "B_004": "annotated",
    }  # fmt: skip
    assert found["B_003"].annotation == run.corrected_annotation("B_003")
    assert found["B_004"].annotation == run.pseudo_annotation("B_004")
    assert all(0 < case.confidence < 1 and case.images[0].is_file() and case.message == "" for case in found.values())


def test_taking_a_correction_away_is_the_undo(run):
    correct(run, "B_003")
    write_review(run, "B_003", "accepted")
    run.corrected_annotation("B_003").unlink()
    assert states(run)["B_003"] == "accepted" and run.pseudo_annotation("B_003").is_file()


def test_a_corrected_case_can_be_rejected(run):
    correct(run, "B_003")
    write_review(run, "B_003", "rejected")
    assert states(run)["B_003"] == "rejected"


def test_a_run_without_a_cohort_has_no_cases(tmp_path):
    assert case_states(tmp_path) == []


def test_cases_that_are_not_annotated_yet_are_waiting_and_bad_ones_failed(a_teacher, a_foreign_cohort, tmp_path):
    cohort = shutil.copytree(a_foreign_cohort, tmp_path / "cohort")
    (cohort / "images" / "B_002.nrrd").write_bytes(b"")
    run = RunDirectory(tmp_path / "run")
    annotate(run, cohort, {str(a_teacher): 1.0})
    run.pseudo_annotation("B_003").unlink()
    found = {case.id: case for case in case_states(run)}
    assert [case.state for case in found.values()] == ["annotated", "failed", "waiting", "annotated"]
    assert "B_002.nrrd" in found["B_002"].message
    assert found["B_002"].annotation is found["B_003"].annotation is found["B_002"].confidence is None


def test_an_annotation_of_another_image_with_the_same_id_is_not_shown(run):
    correct(run, "B_003")
    cohort = read_json(run.cohort)
    for case in cohort["cases"]:
        case["images"] = ["/elsewhere/" + case["id"]]
    write_json(run.cohort, cohort)
    assert set(states(run).values()) == {"waiting"}


def test_what_a_person_said_of_an_image_is_not_said_of_another_one_with_the_same_name(run, tmp_path):
    correct(run, "B_003")
    write_review(run, "B_002", "rejected")
    correction, pseudo = run.corrected_annotation("B_003").read_bytes(), run.pseudo_annotation("B_003").read_bytes()
    told = []
    record = annotate(run, write_phantom(tmp_path / "other", 4, "B", 5, (36, 36, 18)), listener=told.append)
    assert [problem["case"] for problem in record["problems"]] == ["B_003"]
    assert "another image; it stays as it is" in record["problems"][0]["message"]
    assert run.corrected_annotation("B_003").read_bytes() == correction
    assert run.pseudo_annotation("B_003").read_bytes() == pseudo
    assert "B_003" not in lessons(run)[0] and "B_002" in lessons(run)[0]
    assert "B_002: was rejected in the review, but as another image" in str(told) and read_reviews(run) == {}
    assert not [path for path in run.path.iterdir() if path.name.startswith("tmp")]


def test_what_a_person_said_of_an_image_holds_when_it_lies_elsewhere_now(run, a_foreign_cohort, tmp_path):
    correct(run, "B_003")
    write_review(run, "B_002", "rejected")
    record = annotate(run, shutil.copytree(a_foreign_cohort, tmp_path / "moved"))
    assert record["problems"] == [] and read_reviews(run) == {"B_002": "rejected"}
    assert states(run)["B_003"] == "corrected" and states(run)["B_002"] == "rejected"
    assert lessons(run)[0]["B_003"].corrected


def test_rejected_cases_are_left_out_and_counted(run):
    write_review(run, "B_001", "accepted")
    write_review(run, "B_002", "rejected")
    found, told = lessons(run)
    assert list(found) == ["B_001", "B_003", "B_004"]
    assert told == ["1 of 4 cases were rejected in the review and are left out"]


def test_too_few_cases_that_nobody_rejected_are_refused_with_the_reason(run):
    for id_ in ("B_001", "B_002", "B_003"):
        write_review(run, id_, "rejected")
    with pytest.raises(ValueError, match="4 of 4 cases have .*, but 3 were rejected in the review; at least 2 are"):
        lessons(run)


def test_a_decision_on_a_pseudo_annotation_says_nothing_of_the_experts(run):
    write_review(run, "B_002", "rejected")
    correct(run, "B_003")
    found, told = lessons(run, annotations="expert")
    assert len(found) == 4 and all(item.by_expert for item in found.values()) and told == []


def test_a_correction_is_learnt_hard_by_name_instead_of_the_pseudo_annotation(run):
    array = correct(run, "B_003")
    found, told = lessons(run)
    item = found["B_003"]
    assert item.corrected and item.probabilities is None and found["B_001"].probabilities
    _, target = item.read(LABELS)
    channels = {3: 1 + LABELS.names.index("right kidney"), 7: 1 + LABELS.names.index("liver")}
    assert target.shape == (1, *array.shape)
    assert all((target[0][array == value] == channel).all() for value, channel in channels.items())
    assert told == ["1 of 4 cases were corrected in the review; the corrections are learnt"]


def test_a_correction_saves_a_case_that_the_teachers_failed_at(run):
    record = read_json(run.annotations)
    del record["cases"]["B_003"]
    write_json(run.annotations, record)
    run.pseudo_annotation("B_003").unlink()
    correct(run, "B_003")
    assert lessons(run)[0]["B_003"].corrected and states(run)["B_003"] == "corrected"


def test_a_correction_without_any_segment_teaches_background(run):
    shape = correct(run, "B_003", Labels(()), (0, 0)).shape
    _, target = lessons(run)[0]["B_003"].read(LABELS)
    assert target.shape == (1, *shape) and not target.any()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (Labels.from_names({3: "heart", 7: "liver"}), "unknown structure 'heart'; known are liver"),
        (Labels.from_names({3: "Segment_1", 7: "Segment_2"}), "holds Segment_1, Segment_2; known structures are liver"),
    ],
)
def test_a_correction_with_foreign_structures_is_refused(run, labels, message):
    correct(run, "B_003", labels)
    with pytest.raises(ValueError, match=message):
        lessons(run)[0]["B_003"].read(LABELS)


def test_the_student_learns_from_the_review_and_its_card_says_so(run):
    write_review(run, "B_002", "rejected")
    correct(run, "B_003")
    distil(run, **QUICK)
    card = (run.student / "docs" / "README.md").read_text(encoding="utf-8")
    assert "on 2 images and pseudo-annotations of 1 images that a person corrected" in card


def test_a_damaged_correction_is_a_problem_of_its_case(run):
    correct(run, "B_003")
    run.corrected_annotation("B_003").write_bytes(run.corrected_annotation("B_003").read_bytes()[:-200])
    result = distil(run, **QUICK)
    assert [problem["case"] for problem in result["problems"]] == ["B_003"]
    assert str(run.corrected_annotation("B_003")) in result["problems"][0]["message"]
    assert read_annotation(run.pseudo_annotation("B_003")).any()


def test_a_finished_student_says_that_corrections_are_newer(run, tmp_path):
    distil(run, **QUICK)
    moved, told = RunDirectory(run.path.rename(tmp_path / "moved")), []
    again = distil(moved, listener=told.append)
    assert again["student"] == str(moved.student) and "newer" not in str(told)
    correct(moved, "B_003")
    distil(moved, listener=told.append)
    assert "1 annotations or corrections are newer than this student; --restart learns them too" in str(told)
