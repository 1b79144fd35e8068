"""Evaluate: from images, expert annotations and methods to evaluation.json, evaluation.csv and report.html."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from foreign_models import write_torchscript

from KnowledgeTransferLib.learning.preprocessing import Normalisation, Preprocessing
from KnowledgeTransferLib.learning.resources import PeakMemory
from KnowledgeTransferLib.learning.student import Student, new_network, save_student
from KnowledgeTransferLib.learning.teachers import TorchScript
from KnowledgeTransferLib.learning.volume import read_annotation, read_image, write_annotation, write_image
from KnowledgeTransferLib.records.bundle import WEIGHTS
from KnowledgeTransferLib.records.cohort import Case, Cohort, read_cohort, write_names
from KnowledgeTransferLib.records.labels import Labels
from KnowledgeTransferLib.records.progress import Cancelled, Stage
from KnowledgeTransferLib.records.run_directory import RunDirectory, read_json, write_json
from KnowledgeTransferLib.records.settings import read_settings
from KnowledgeTransferLib.records.students import STUDENTS
from KnowledgeTransferLib.steps.evaluate import evaluate

LABELS = Labels.from_names({1: "liver", 2: "spleen"})
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
SHAPE = (20, 18, 10)
CASES = ("first", "second", "third", "fourth")


def an_annotation(number: int) -> np.ndarray:
    array = np.zeros(SHAPE, np.uint8)
    array[2 : 8 + number, 2:14, 2:8] = 1
    array[14:18, 4:12, 3:7] = 2
    return array


def a_cohort(folder, expert: bool = True, names: bool = True, suffix: str = ".nii.gz"):
    """Four small volumes with expert annotations."""
    for number, case in enumerate(CASES):
        image = np.random.default_rng(number).normal(size=SHAPE).astype(np.float32)
        write_image(folder / "images" / f"{case}.nii.gz", image + an_annotation(number), AFFINE)
        if expert:
            write_annotation(folder / "labels" / f"{case}{suffix}", an_annotation(number), AFFINE, LABELS)
    if names:
        write_names(folder, LABELS)
    return folder


def segmentations(folder, shift: int = 0, values=(0, 1, 2), labels: Labels | None = None, suffix: str = ".nii.gz"):
    """The expert annotations of `a_cohort`, shifted along I, in other values."""
    for number, case in enumerate(CASES):
        array = np.array(values, np.uint8)[np.roll(an_annotation(number), shift, axis=0)]
        write_annotation(folder / f"{case}{suffix}", array, AFFINE, labels or LABELS)
    if labels and suffix != ".seg.nrrd":
        write_names(folder, labels)
    return folder


def a_student(folder, labels: Labels = LABELS, seed: int = 0):
    """A bundle whose network was never trained."""
    design = next(iter(STUDENTS.values()))
    preprocessing = Preprocessing(3, (1.0, 1.0, 2.0), (Normalisation("z-score"),))
    student = Student(new_network(design, preprocessing, labels, seed).eval(), design, labels, preprocessing)
    save_student(student, folder)
    return folder


@pytest.fixture
def cohort(tmp_path):
    return a_cohort(tmp_path / "cohort")


@pytest.fixture
def run(tmp_path):
    return RunDirectory(tmp_path / "run")


def rows_of(result: dict, **wanted) -> list[dict]:
    return [row for row in result["cases"] if all(row[key] == value for key, value in wanted.items())]


def strict_json(path) -> dict:
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def test_methods_are_compared_and_everything_is_written(run, cohort, tmp_path):
    methods = {"same": segmentations(tmp_path / "same"), "moved": segmentations(tmp_path / "moved", shift=2)}
    result = evaluate(run, cohort, methods)
    assert result["summary"]["same"]["all"]["dice"]["mean"] == 1
    assert result["summary"]["moved"]["structures"]["spleen"]["dice"]["mean"] == pytest.approx(0.5)
    assert result["tests"][0]["p"] == pytest.approx(2 / 2**4)
    assert strict_json(run.evaluation) == result
    with open(run.evaluation_table, encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(result["cases"]) == 2 * 4 * 2
    assert float(table[-1]["dice"]) == result["cases"][-1]["dice"]
    report = run.report.read_text(encoding="utf-8")
    assert report.count("data:image/png") == 2 * 3 and "fourth" in report


def test_runs_and_cohorts_may_be_paths_or_objects(tmp_path, cohort):
    methods = {"same": segmentations(tmp_path / "same")}
    by_path = evaluate(str(tmp_path / "run"), str(cohort), methods)
    by_object = evaluate(RunDirectory(tmp_path / "other"), read_cohort(cohort), methods)
    assert by_path == by_object


def test_structures_are_matched_by_name_not_by_value(run, cohort, tmp_path):
    other = Labels.from_names({4: "Spleen", 9: "liver"})
    with_names = segmentations(tmp_path / "a", values=(0, 9, 4), labels=other)
    in_segments = segmentations(tmp_path / "b", values=(0, 9, 4), labels=other, suffix=".seg.nrrd")
    result = evaluate(run, cohort, {"names": with_names, "segments": in_segments})
    assert {row["dice"] for row in result["cases"]} == {1.0}
    assert result["problems"] == result["warnings"] == []


def test_structures_that_only_one_side_knows_are_told_and_left_out(run, cohort, tmp_path):
    other = Labels.from_names({1: "liver", 2: "pancreas"})
    result = evaluate(run, cohort, {"other": segmentations(tmp_path / "other", labels=other)})
    assert {row["structure"] for row in result["cases"]} == {"liver"}
    assert result["methods"]["other"]["ignored_structures"] == ["pancreas"]
    assert result["methods"]["other"]["missing_structures"] == ["spleen"]
    assert any("pancreas" in text for text in result["warnings"])
    assert any(json.loads(line)["event"] == "warning" for line in run.events.read_text().splitlines())


def test_no_structure_in_common_is_refused(run, cohort, tmp_path):
    other = segmentations(tmp_path / "other", labels=Labels.from_names({1: "heart", 2: "aorta"}))
    with pytest.raises(ValueError, match=r"heart.*liver"):
        evaluate(run, cohort, {"other": other})


def test_a_cohort_without_names_is_measured_by_value(run, tmp_path):
    cohort = a_cohort(tmp_path / "cohort", names=False)
    result = evaluate(run, cohort, {"same": segmentations(tmp_path / "same")})
    assert [s["name"] for s in result["structures"]] == ["structure 1", "structure 2"]
    assert {row["dice"] for row in result["cases"]} == {1.0}


def test_a_cohort_without_expert_annotations_is_refused(run, tmp_path):
    cohort = a_cohort(tmp_path / "cohort", expert=False)
    with pytest.raises(ValueError, match="none of the 4 cases has an expert annotation.*labels/"):
        evaluate(run, cohort, {"same": segmentations(tmp_path / "same")})


def test_cases_without_expert_annotation_are_counted_and_left_out(run, cohort, tmp_path):
    (cohort / "labels" / "second.nii.gz").unlink()
    result = evaluate(run, cohort, {"same": segmentations(tmp_path / "same")})
    assert (result["cases_with_expert"], result["cases_without_expert"]) == (3, 1)
    assert not rows_of(result, case="second")


def test_only_the_split_that_is_asked_for_is_measured(run, cohort, tmp_path):
    whole = read_cohort(cohort)
    cases = tuple(replace(case, split="test" if case.id in ("first", "third") else "teacher") for case in whole.cases)
    result = evaluate(run, replace(whole, cases=cases), {"same": segmentations(tmp_path / "same")}, split="test")
    assert {row["case"] for row in result["cases"]} == {"first", "third"}
    assert result["split"] == "test"


def test_one_bad_case_does_not_stop_the_others(run, cohort, tmp_path):
    methods = {"same": segmentations(tmp_path / "same"), "moved": segmentations(tmp_path / "moved", shift=1)}
    (cohort / "images" / "first.nii.gz").write_bytes(b"no image")
    (tmp_path / "moved" / "second.nii.gz").write_bytes(b"")
    (tmp_path / "moved" / "third.nii.gz").unlink()
    events = []
    result = evaluate(run, cohort, methods, listener=events.append)
    assert {row["case"] for row in rows_of(result, method="same")} == {"second", "third", "fourth"}
    assert {row["case"] for row in rows_of(result, method="moved")} == {"fourth"}
    assert [problem["case"] for problem in result["problems"]] == ["first", "second", "third"]
    assert "moved" in result["problems"][1]["message"] and "0 bytes" in result["problems"][1]["message"]
    assert [e["case"] for e in events if e["event"] == "problem"] == ["first", "second", "third"]
    assert "0 bytes" in run.report.read_text(encoding="utf-8")
    assert result["tests"][0]["groups"] == 1


def test_a_segmentation_of_another_geometry_is_a_problem(run, cohort, tmp_path):
    folder = segmentations(tmp_path / "same")
    write_annotation(folder / "first.nii.gz", an_annotation(0), AFFINE + np.diag([0.5, 0, 0, 0]), LABELS)
    result = evaluate(run, cohort, {"same": folder})
    assert [problem["case"] for problem in result["problems"]] == ["first"]
    assert "mm away" in result["problems"][0]["message"]


def test_when_every_case_is_bad_the_first_reason_is_told(run, cohort, tmp_path):
    folder = segmentations(tmp_path / "same")
    for file in (cohort / "images").iterdir():
        file.write_bytes(b"")
    with pytest.raises(ValueError, match="no case could be measured.*0 bytes"):
        evaluate(run, cohort, {"same": folder})


def test_numbers_that_are_not_defined_are_null(run, cohort, tmp_path):
    without_spleen = segmentations(tmp_path / "liver only", values=(0, 1, 0))
    result = evaluate(run, cohort, {"liver only": without_spleen})
    spleen = rows_of(strict_json(run.evaluation), structure="spleen")
    assert {row["precision"] for row in spleen} == {None}
    assert {row["dice"] for row in spleen} == {0}
    assert result["summary"]["liver only"]["all"]["missed"] == 4
    assert spleen[0]["hd95_mm"] == pytest.approx(np.linalg.norm([20, 18, 20]))


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\\b", "<script>"])
def test_a_method_name_cannot_leave_the_run(run, cohort, tmp_path, name):
    with pytest.raises(ValueError, match="method"):
        evaluate(run, cohort, {name: segmentations(tmp_path / "same")})


def test_methods_that_are_not_there_are_refused(run, cohort, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        evaluate(run, cohort, {"a": tmp_path / "nowhere"})
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"first\.nii\.gz"):
        evaluate(run, cohort, {"a": tmp_path / "empty"})
    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluate(run, cohort, {})


def test_a_student_is_measured_with_its_size_speed_and_memory(run, cohort, tmp_path):
    bundle = a_student(tmp_path / "student")
    result = evaluate(run, cohort, {"ours": bundle, "same": segmentations(tmp_path / "same")})
    facts = result["methods"]["ours"]
    assert facts["kind"] == "student" and facts["parameters"] > 1000
    assert facts["file_size_bytes"] == (bundle / WEIGHTS).stat().st_size
    assert 0 < facts["seconds_per_case"] < 60
    assert 50 < facts["peak_memory_mib"] < 50_000
    assert "parameters" not in result["methods"]["same"]
    assert len(rows_of(result, method="ours")) == 8


def test_a_teacher_of_any_kind_is_measured_like_a_student(run, cohort, tmp_path, monkeypatch):
    file = write_torchscript(tmp_path / "theirs")
    result = evaluate(run, cohort, {"theirs": file, "ours": a_student(tmp_path / "student")})
    facts = result["methods"]["theirs"]
    assert facts["kind"] == "torchscript" and facts["file_size_bytes"] is None and facts["seconds_per_case"] > 0
    image = next(case for case in read_cohort(cohort).cases if case.id == "first")
    volume = read_image(image.images, "first")
    teacher = TorchScript.open(file, "cpu", None)
    decision = np.array(teacher.labels.values)[teacher.predict(volume).argmax(0)]
    found = read_annotation(run.predictions / "theirs" / "first.seg.nrrd", teacher.labels, volume)
    assert np.array_equal(found, decision) and found.any()
    assert "torchscript" not in strict_json(run.evaluation)["methods"]["ours"]["kind"]
    monkeypatch.setattr(TorchScript, "risk", lambda path: "it would be run")
    monkeypatch.setattr(TorchScript, "sha256", lambda path: "changed")
    with pytest.raises(PermissionError, match="it would be run.*--trust"):
        evaluate(run, cohort, {"theirs": file})
    assert rows_of(evaluate(run, cohort, {"theirs": file}, trust=True), method="theirs")


def test_what_a_student_segmented_can_be_looked_at(run, cohort, tmp_path):
    result = evaluate(run, cohort, {"ours": a_student(tmp_path / "student")})
    files = sorted(file.name for file in (run.predictions / "ours").iterdir())
    assert files == sorted(f"{case}.seg.nrrd" for case in CASES)
    again = evaluate(run, cohort, {"from disk": run.predictions / "ours"})
    assert [row["dice"] for row in again["cases"]] == [row["dice"] for row in result["cases"]]
    assert read_annotation(run.predictions / "ours" / files[0], LABELS).shape == SHAPE


def test_a_case_that_a_student_cannot_segment_is_not_taken_from_an_earlier_evaluation(run, cohort, tmp_path):
    bundle = a_student(tmp_path / "student")
    evaluate(run, cohort, {"ours": bundle})
    channels = tuple([cohort / "images" / "first.nii.gz"] * 2)  # the student knows one channel
    whole = read_cohort(cohort)
    cases = tuple(replace(case, images=channels) if case.id == "first" else case for case in whole.cases)
    result = evaluate(run, replace(whole, cases=cases), {"ours": bundle})
    assert [problem["case"] for problem in result["problems"]] == ["first"]
    assert "channels" in result["problems"][0]["message"]
    assert len(rows_of(result, method="ours")) == 6


def test_a_student_of_other_structures_is_refused_before_it_segments(run, cohort, tmp_path):
    bundle = a_student(tmp_path / "student", Labels.from_names({1: "heart"}))
    with pytest.raises(ValueError, match="heart"):
        evaluate(run, cohort, {"ours": bundle})
    assert not run.predictions.exists()


def test_training_curves_are_shown_where_the_run_trained(run, cohort, tmp_path):
    row = {"epoch": 1, "iteration": 5, "loss": 1.0, "validation_dice": 0.5, "learning_rate": 0.01, "duration_s": 1.0}
    methods = {"same": segmentations(tmp_path / "same")}
    evaluate(run, cohort, methods)
    assert "Training curves" not in run.report.read_text(encoding="utf-8")
    write_json(run.training, {"history": [row]})
    evaluate(run, cohort, methods)
    assert "Training curves" in run.report.read_text(encoding="utf-8")


def test_a_damaged_training_history_costs_only_the_curves(run, cohort, tmp_path):
    run.create()
    run.training.write_text("{", encoding="utf-8")
    events = []
    evaluate(run, cohort, {"same": segmentations(tmp_path / "same")}, listener=events.append)
    assert run.report.is_file()
    assert any(e["event"] == "warning" and "training curves" in e["text"] for e in events)


def test_pictures_are_measured_too(run, tmp_path):
    rng, case = np.random.default_rng(0), Case("a b", (tmp_path / "a b.png",), tmp_path / "labels" / "a b.png")
    array = np.zeros((24, 20, 1), np.uint8)
    array[5:15, 5:15] = 1
    labels = Labels.from_names({1: "lesion"})
    write_image(case.images[0], rng.integers(0, 255, (24, 20, 1)).astype(np.uint8), np.eye(4))
    write_annotation(case.label, array, np.eye(4), labels)
    write_annotation(tmp_path / "moved" / "a b.png", np.roll(array, 2, axis=1), np.eye(4), labels)
    (row,) = evaluate(run, Cohort((case,), labels), {"moved": tmp_path / "moved"})["cases"]
    assert row["dice"] == pytest.approx(0.8)
    assert row["hd95_mm"] == pytest.approx(2.0)


def test_the_user_can_stop_it(run, cohort, tmp_path):
    def stop(event):
        if event["event"] == "stage":
            run.cancel.touch()

    with pytest.raises(Cancelled):
        evaluate(run, cohort, {"same": segmentations(tmp_path / "same")}, listener=stop)
    assert not run.evaluation.exists()


def test_peak_memory_sees_what_was_held_only_for_a_while():
    with PeakMemory() as before:
        pass
    with PeakMemory() as memory:
        block = np.ones(25_000_000)  # 200 MB
        block += 1
        del block
    assert memory.peak_bytes > before.peak_bytes + 100e6


def normal_cohort(tmp_path):
    """In all cases but the first the expert drew no spleen; `right` neither, `wrong` does."""
    cohort = a_cohort(tmp_path / "cohort")
    for number, case in enumerate(CASES[1:], 1):
        array = np.where(an_annotation(number) == 2, 0, an_annotation(number))
        for folder in (cohort / "labels", tmp_path / "right"):
            write_annotation(folder / f"{case}.nii.gz", array, AFFINE, LABELS)
    write_annotation(tmp_path / "right" / "first.nii.gz", np.roll(an_annotation(0), 1, axis=0), AFFINE, LABELS)
    return cohort, {"right": tmp_path / "right", "wrong": segmentations(tmp_path / "wrong")}


def test_false_alarms_are_counted_beside_the_dice_of_the_cases_that_have_the_structure(run, tmp_path):
    cohort, methods = normal_cohort(tmp_path)
    result = evaluate(run, cohort, methods)
    right, wrong = (result["summary"][name]["structures"]["spleen"] for name in ("right", "wrong"))
    assert right["dice"]["groups"] == wrong["dice"]["groups"] == 1
    assert right["dice"]["mean"] < wrong["dice"]["mean"] == 1
    assert (right["specificity"], wrong["specificity"]) == (1, 0)
    assert (right["false_alarms"], wrong["false_alarms"], wrong["expert_empty"]) == (0, 3, 3)
    alone = evaluate(run, cohort, {"right": methods["right"]})
    assert str(alone["summary"]["right"]) == str(result["summary"]["right"])  # whatever it is compared with


def test_the_table_says_what_was_rightly_left_empty(run, tmp_path):
    evaluate(run, *normal_cohort(tmp_path))
    with open(run.evaluation_table, encoding="utf-8", newline="") as file:
        table = [row for row in csv.DictReader(file) if row["structure"] == "spleen" and row["case"] == "second"]
    assert [(r["method"], r["dice"], r["expert_volume_ml"]) for r in table] == [
        ("right", "", "0.0"),
        ("wrong", "0.0", "0.0"),
    ]


@pytest.fixture
def segmented(monkeypatch) -> list[str]:
    """Names of the images that a student segmented, in order."""
    names, segment = [], Student.segment
    monkeypatch.setattr(Student, "segment", lambda self, image: names.append(image.name) or segment(self, image))
    return names


def test_predictions_of_the_same_student_are_kept_with_their_figures(run, cohort, tmp_path, segmented):
    bundle = a_student(tmp_path / "student")
    first = evaluate(run, cohort, {"ours": bundle})
    again = evaluate(run, cohort, {"ours": bundle})
    assert segmented == sorted(CASES)
    assert again == first  # seconds and memory too


def test_an_interrupted_evaluation_goes_on(run, cohort, tmp_path, segmented, monkeypatch):
    monkeypatch.setattr(Stage, "INTERVAL_S", 0)

    def stop(event):
        if len(segmented) == 2:
            run.cancel.touch()

    bundle = a_student(tmp_path / "student")
    with pytest.raises(Cancelled):
        evaluate(run, cohort, {"ours": bundle}, listener=stop)
    stages = []
    result = evaluate(run, listener=lambda event: stages.append(event) if event["event"] == "stage" else None)
    assert segmented == sorted(CASES)
    assert (stages[0]["done"], stages[0]["total"]) == (2, 4)
    assert len(rows_of(result, method="ours")) == 8


def test_a_changed_student_segments_anew(run, cohort, tmp_path, segmented):
    evaluate(run, cohort, {"ours": a_student(tmp_path / "student")})
    before = (run.predictions / "ours" / "first.seg.nrrd").read_bytes()
    evaluate(run, cohort, {"ours": a_student(tmp_path / "other", seed=1)})
    assert segmented == sorted(CASES) * 2
    assert (run.predictions / "ours" / "first.seg.nrrd").read_bytes() != before


@pytest.mark.parametrize("damage", ["removed", "edited", "no record", "damaged record"])
def test_only_what_the_student_itself_made_is_kept(run, cohort, tmp_path, segmented, damage):
    bundle = a_student(tmp_path / "student")
    evaluate(run, cohort, {"ours": bundle})
    file, record = run.predictions / "ours" / "second.seg.nrrd", run.predictions / "ours.json"
    {
        "removed": file.unlink,
        "edited": lambda: write_annotation(file, an_annotation(1), AFFINE, LABELS),
        "no record": record.unlink,
        "damaged record": lambda: record.write_text("{", encoding="utf-8"),
    }[damage]()
    evaluate(run, cohort, {"ours": bundle})
    assert segmented[4:] == (sorted(CASES) if "record" in damage else ["second"])


def test_a_case_with_other_images_is_segmented_anew(run, cohort, tmp_path, segmented):
    bundle = a_student(tmp_path / "student")
    evaluate(run, cohort, {"ours": bundle})
    (cohort / "images" / "third.nii.gz").rename(tmp_path / "moved.nii.gz")
    whole = read_cohort(cohort)
    third = Case("third", (tmp_path / "moved.nii.gz",), cohort / "labels" / "third.nii.gz")
    evaluate(run, replace(whole, cases=(*whole.cases, third)), {"ours": bundle})
    assert segmented[4:] == ["third"]


def test_settings_are_written_before_the_work_begins(run, cohort, tmp_path):
    stored = []

    def listen(event):
        if event["event"] == "stage":
            stored.append(read_settings(run, "evaluate"))

    methods = {"same": segmentations(tmp_path / "same")}
    evaluate(run, cohort, methods, tolerance_mm=2.5, seed=3, listener=listen)
    assert stored[0] == {
        "methods": ({"name": "same", "path": str(tmp_path / "same")},), "cohort": str(cohort), "labels": "",
        "split": None, "tolerance_mm": 2.5, "device": "auto", "seed": 3,
    }  # fmt: skip


def test_without_arguments_the_last_evaluation_is_repeated(run, cohort, tmp_path):
    rows = [
        f"{case},images/{case}.nii.gz,labels/{case}.nii.gz,{'test' if case == 'third' else 'rest'}" for case in CASES
    ]
    (cohort / "table.csv").write_text("\n".join(["id,image,label,split", *rows]), encoding="utf-8")
    methods = {"same": segmentations(tmp_path / "same")}
    labels = {"labels": cohort / "dataset.json"}
    first = evaluate(run, cohort / "table.csv", methods, split="test", tolerance_mm=2, **labels)
    assert evaluate(run) == first
    assert {row["case"] for row in first["cases"]} == {"third"}
    assert not run.cohort.exists()  # it is that of the training
    assert evaluate(run, cohort)["split"] is None  # another cohort has other splits


def test_a_run_without_an_evaluation_has_none_to_repeat(run, cohort):
    with pytest.raises(ValueError, match="--cohort"):
        evaluate(run)
    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluate(run, cohort)


@pytest.mark.parametrize("wrong", [{"tolerance_mm": -1}, {"device": "gpu"}, {"nonsense": 1}])
def test_settings_that_cannot_be_are_refused(run, cohort, tmp_path, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        evaluate(run, cohort, {"same": segmentations(tmp_path / "same")}, **wrong)


def test_a_mistyped_method_is_told_before_the_others_segment(run, cohort, tmp_path, segmented):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        evaluate(run, cohort, {"ours": a_student(tmp_path / "student"), "b": tmp_path / "nowhere"})
    assert not segmented


def test_a_run_directory_stands_for_its_student(run, cohort, tmp_path):
    a_student(tmp_path / "training" / "student")
    result = evaluate(run, cohort, {"ours": tmp_path / "training"})
    assert result["methods"]["ours"]["kind"] == "student"


def learnt_from(run: RunDirectory, cases) -> None:
    """A run that trained a student on these cases."""
    a_student(run.student)
    write_json(run.cohort, Cohort(tuple(cases)).to_json())


def test_measuring_on_the_run_s_own_training_cases_is_warned_of(run, cohort, tmp_path):
    own = read_cohort(cohort).cases
    learnt_from(run, [*(replace(case, id=f"as {case.id}", group="") for case in own[:2]), Case("x", (tmp_path / "x",))])
    events = []
    result = evaluate(run, cohort, {"same": segmentations(tmp_path / "same")}, listener=events.append)
    text = "2 of 4 cases were also in this run's training set; the figures are too good"
    assert result["warnings"] == [text]
    assert [event["text"] for event in events if event["event"] == "warning"] == [text]
    assert "2 of 4 cases were also" in run.report.read_text(encoding="utf-8")


def test_measuring_on_patients_of_the_training_is_warned_of(run, cohort, tmp_path):
    whole = read_cohort(cohort)
    cases = tuple(
        replace(case, group=group) for case, group in zip(whole.cases, ("Ann", "Ann", "Bob", ""), strict=True)
    )
    learnt_from(run, [Case("x", (tmp_path / "x",), group="Ann"), Case(cases[3].id, (tmp_path / "y",))])
    result = evaluate(run, replace(whole, cases=cases), {"same": segmentations(tmp_path / "same")})
    assert result["warnings"] == [
        "the patients of 2 more of 4 cases were also in this run's training set; the figures are too good"
    ]


def test_the_training_set_of_a_compared_run_is_looked_at_too(run, cohort, tmp_path):
    other = RunDirectory(tmp_path / "other run")
    learnt_from(other, read_cohort(cohort).cases)
    (text,) = evaluate(run, cohort, {"ours": other.path})["warnings"]
    assert "4 of 4 cases" in text and str(other.path) in text


def test_there_is_no_warning_where_nothing_was_learnt_from_the_cases(run, cohort, tmp_path):
    methods = {"same": segmentations(tmp_path / "same")}
    write_json(run.cohort, read_cohort(cohort).to_json())  # annotated, but nothing was trained
    assert evaluate(run, cohort, methods)["warnings"] == []
    learnt_from(run, [Case("x", (tmp_path / "x",), group="Zoe")])
    assert evaluate(run, cohort, methods)["warnings"] == []


def test_a_damaged_first_annotation_does_not_stop_the_cohort(run, tmp_path):
    cohort = a_cohort(tmp_path / "cohort", names=False, suffix=".seg.nrrd")
    first = read_cohort(cohort).cases[0]
    first.label.write_bytes(b"no image")
    result = evaluate(run, cohort, {"same": segmentations(tmp_path / "same", labels=LABELS, suffix=".seg.nrrd")})
    assert [problem["case"] for problem in result["problems"]] == [first.id]
    assert [s["name"] for s in result["structures"]] == list(LABELS.names)
    assert len(result["cases"]) == 3 * 2


def test_the_record_of_the_predictions_says_which_student_made_them(run, cohort, tmp_path):
    bundle = a_student(tmp_path / "student")
    evaluate(run, cohort, {"ours": bundle})
    record = read_json(run.predictions / "ours.json")
    assert record["made_by"]["sha256"][WEIGHTS] == read_json(bundle / "configs/sha256.json")[WEIGHTS]
    assert set(record["cases"]) == set(CASES)
    assert {"images", "seconds", "sha256", "peak_memory_mib"} == set(record["cases"]["first"])


def test_pseudo_annotations_are_told_how_well_their_confidence_foretells_their_dice(run, cohort):
    for number, case in enumerate(CASES):
        moved = np.roll(an_annotation(number), number, axis=0)
        write_annotation(run.pseudo_annotation(case), moved, AFFINE, LABELS)
    confidence = dict(zip(CASES, (0.9, 0.8, 0.3, 0.5), strict=True))
    write_json(run.annotations, {"cases": {case: {"confidence": value} for case, value in confidence.items()}})
    result = evaluate(run, cohort, {"pseudo": run.pseudo_annotations, "same": segmentations(run.path / "same")})
    found = result["methods"]["pseudo"]["confidence"]
    assert found["cases"] == 4 and found["spearman"] == pytest.approx(0.8)  # one pair is swapped: 1 - 6 * 2 / 60
    assert "confidence" not in result["methods"]["same"]
    assert "0.80 (4 cases)" in run.report.read_text(encoding="utf-8")


def test_a_confidence_that_never_differs_foretells_nothing(run, cohort):
    for number, case in enumerate(CASES):
        write_annotation(run.pseudo_annotation(case), np.roll(an_annotation(number), number, axis=0), AFFINE, LABELS)
    write_json(run.annotations, {"cases": {case: {"confidence": 1.0} for case in CASES}})
    result = evaluate(run, cohort, {"pseudo": run.pseudo_annotations})
    assert "confidence" not in result["methods"]["pseudo"]
