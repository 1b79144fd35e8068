"""Distil: what a student learns from, its settings, its end, and what it leaves behind."""

import json
import shutil
import time
from dataclasses import fields, replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import safetensors.numpy

from KnowledgeTransferLib.learning import training
from KnowledgeTransferLib.learning.phantom import LABELS, write_phantom
from KnowledgeTransferLib.learning.student import as_it_learnt, load_student, save_student
from KnowledgeTransferLib.learning.volume import write_probabilities
from KnowledgeTransferLib.records.bundle import METADATA, OURS, WEIGHTS, sha256
from KnowledgeTransferLib.records.cohort import Cohort, read_cohort
from KnowledgeTransferLib.records.labels import Labels
from KnowledgeTransferLib.records.run_directory import RunDirectory, read_json, write_json
from KnowledgeTransferLib.records.settings import DistilSettings
from KnowledgeTransferLib.steps.distil import distil


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


@pytest.fixture(scope="session")
def the_finished_run(the_annotated_run, tmp_path_factory) -> RunDirectory:
    """A run whose student learnt for two epochs; do not change it."""
    run = RunDirectory(shutil.copytree(the_annotated_run, tmp_path_factory.mktemp("finished") / "run"))
    distil(run, epochs=2)
    return run


@pytest.fixture
def a_finished_run(the_finished_run, tmp_path) -> RunDirectory:
    """A copy of `the_finished_run`, free to change."""
    return RunDirectory(shutil.copytree(the_finished_run.path, tmp_path / "finished run"))


def taught_by(run: RunDirectory) -> str:
    return read_json(run.student / METADATA)[OURS]["card"]["taught_by"]


def with_labels_of(cohort: Cohort, ids: tuple[str, ...]) -> Cohort:
    """The cohort, of which only some cases have expert annotations."""
    return replace(cohort, cases=tuple(replace(c, label=c.label if c.id in ids else None) for c in cohort.cases))


def weights_of(bundle: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(bundle / WEIGHTS)


@pytest.mark.parametrize(
    ("annotations", "soft", "sentence"),
    [
        ("pseudo", True, "the class probabilities of 1 teacher(s) (weight 1, sha256 {}) on 4 images."),
        ("pseudo", False, "the decisions of 1 teacher(s) (weight 1, sha256 {}) on 4 images."),
        ("expert", True, "It learnt from expert annotations of 1 images."),
        ("both", True, "teacher(s) (weight 1, sha256 {}) on 3 images and expert annotations of 1 images."),
    ],
)
def test_a_student_learns_from_what_was_asked_for(an_annotated_run, a_teacher, annotations, soft, sentence):
    run = RunDirectory(an_annotated_run)
    cohort = with_labels_of(Cohort.from_json(read_json(run.cohort)), ("B_001",))
    if annotations == "expert":
        with pytest.raises(ValueError, match="1 of 4 cases have expert annotations; at least 2 are needed"):
            distil(run, cohort, annotations=annotations, epochs=1)
        return
    distil(run, cohort, annotations=annotations, soft=soft, epochs=1)
    assert taught_by(run).endswith(sentence.format(sha256(a_teacher / WEIGHTS)[:12]))


def test_soft_and_hard_labels_and_experts_teach_differently(an_annotated_run, tmp_path):
    students = {}
    for name, asked in {"soft": {}, "hard": {"soft": False}, "expert": {"annotations": "expert"}}.items():
        run = RunDirectory(shutil.copytree(an_annotated_run, tmp_path / name))
        distil(run, epochs=1, **asked)
        students[name] = sha256(run.student / WEIGHTS)
    assert len(set(students.values())) == 3


def test_where_no_voxel_is_as_certain_as_asked_the_case_is_left_out_and_told(an_annotated_run):
    run = RunDirectory(an_annotated_run)
    for file in run.probabilities.iterdir():
        image = nibabel.load(file)
        write_probabilities(file, np.full(image.shape, 50, np.uint8), image.affine)
    events = []
    with pytest.raises(ValueError, match="only 0 of 4 cases can be used: B_001 is left out: no voxel is as certain"):
        distil(run, epochs=1, least_certainty=1.0, listener=events.append)
    told = [event["case"] for event in events if event["event"] == "warning" and "no voxel is as certain" in str(event)]
    assert told == ["B_001", "B_002", "B_003", "B_004"]


def test_without_probabilities_soft_labels_are_the_decisions(an_annotated_run, tmp_path):
    hard = RunDirectory(shutil.copytree(an_annotated_run, tmp_path / "hard"))
    distil(hard, epochs=1, soft=False)
    run = RunDirectory(an_annotated_run)
    shutil.rmtree(run.probabilities)
    distil(run, epochs=1)
    assert sha256(run.student / WEIGHTS) == sha256(hard.student / WEIGHTS)


@pytest.mark.slow
def test_a_student_learns(run, a_phantom_cohort):
    summary = distil(run, a_phantom_cohort, annotations="expert", epochs=100, decision="most-probable")
    losses = [row["loss"] for row in summary["history"]]
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    assert summary["validation_dice"] > 0.4
    late = [row["validation_dice"] or 0 for row in summary["history"] if row["epoch"] >= 75]  # the last quarter
    assert summary["validation_dice"] == max(late)


def test_a_two_dimensional_student_learns_from_pictures(a_picture_student):
    student = load_student(a_picture_student)
    assert student.preprocessing.dimensions == 2
    assert student.labels.names == ("lesion",)
    assert next(iter(student.card["figures"].values())) > 0.5


def test_fine_tuning_keeps_weights_and_preprocessing(an_annotated_run, a_teacher):
    distil(an_annotated_run, start_from=str(a_teacher), epochs=1, learning_rate=1e-9)
    student = RunDirectory(an_annotated_run).student
    start, end = weights_of(a_teacher), weights_of(student)
    names = [name for name in start if name.endswith("weight")]
    assert len(names) > 5
    assert all(np.abs(start[name] - end[name]).max() < 1e-6 for name in names)
    assert load_student(student).preprocessing == load_student(a_teacher).preprocessing
    assert f"it started from a bundle (sha256 {sha256(a_teacher / WEIGHTS)[:12]})" in taught_by(
        RunDirectory(an_annotated_run)
    )


def test_fine_tuning_of_a_foreign_model_says_how_a_student_learns_from_it(an_annotated_run, tmp_path):
    model = tmp_path / "model.onnx"
    model.write_bytes(b"onnx")
    with pytest.raises(ValueError, match=r"is not a bundle of KnowledgeTransfer.*by `annotate --teacher`"):
        distil(an_annotated_run, start_from=str(model), epochs=1)


def test_fine_tuning_changes_the_weights(an_annotated_run, a_teacher):
    distil(an_annotated_run, start_from=str(a_teacher), epochs=1)
    assert sha256(RunDirectory(an_annotated_run).student / WEIGHTS) != sha256(a_teacher / WEIGHTS)


@pytest.fixture
def a_plain_teacher(a_teacher, tmp_path) -> Path:
    """The teacher, drawing what is most probable."""
    student = as_it_learnt(load_student(a_teacher))
    save_student(student, tmp_path / "plain")
    return tmp_path / "plain"


def test_fine_tuning_that_makes_a_student_worse_leaves_it_as_it_was(an_annotated_run, a_plain_teacher):
    events = []
    worse = {"epochs": 1, "learning_rate": 3.0, "decision": "most-probable", "listener": events.append}
    summary = distil(an_annotated_run, start_from=str(a_plain_teacher), **worse)
    start, end = weights_of(a_plain_teacher), weights_of(RunDirectory(an_annotated_run).student)
    assert summary["epoch"] == 0 and summary["validation_dice"] > 0
    assert all(np.array_equal(start[name], end[name]) for name in start)
    texts = [event.get("text", "") for event in events]
    assert any("before fine-tuning, the Dice of the held-out patients is" in text for text in texts)
    assert any("keeps the weights that it started from" in text for text in texts)


def test_a_student_that_fine_tuning_made_no_better_settles_only_when_it_draws(an_annotated_run, a_teacher):
    summary = distil(an_annotated_run, start_from=str(a_teacher), epochs=1, learning_rate=3.0)
    start, end = weights_of(a_teacher), weights_of(RunDirectory(an_annotated_run).student)
    assert summary["epoch"] == 0
    assert [name for name in start if not np.array_equal(start[name], end[name])] in ([], ["head.bias"])
    assert np.allclose(np.diff(start["head.bias"].reshape(LABELS.channels, -1)[1:], axis=0),
                       np.diff(end["head.bias"].reshape(LABELS.channels, -1)[1:], axis=0))  # fmt: skip


def test_fine_tuning_refuses_other_structures(run, a_teacher, a_foreign_cohort):
    other = replace(read_cohort(a_foreign_cohort), labels=Labels.from_names({1: "a", 2: "b", 3: "c", 4: "d"}))
    with pytest.raises(ValueError, match="segments liver, spleen.*but the annotations hold a, b, c, d"):
        distil(run, other, annotations="expert", start_from=str(a_teacher), epochs=1)


def test_fine_tuning_refuses_another_design(run, a_teacher, a_foreign_cohort):
    with pytest.raises(ValueError, match="is a tiny student; leave out --student small"):
        distil(run, a_foreign_cohort, annotations="expert", start_from=str(a_teacher), student="small", epochs=1)


def test_a_start_named_by_a_relative_path_is_the_same_start_in_the_next_call(
    run, a_teacher, a_foreign_cohort, monkeypatch
):
    monkeypatch.chdir(a_teacher.parent)
    asked = {"annotations": "expert", "start_from": a_teacher.name, "epochs": 1}
    assert distil(run, a_foreign_cohort, **asked) == distil(run, a_foreign_cohort, **asked)


def test_settings_given_in_a_file_are_kept_and_completed_before_the_training(an_annotated_run):
    run = RunDirectory(an_annotated_run)
    given = {"student": "s1", "epochs": 2, "noise_deviation": 0.0, "spacing_mm": [12, 12, 12.5], "batch_size": 2}
    write_json(run.settings, {**read_json(run.settings), "distil": given})
    seen = []

    def look(event):
        if event["event"] == "stage" and event["name"] == "prepare":
            seen.append(read_json(run.settings)["distil"])

    distil(run, listener=look)
    (before,) = seen
    after = read_json(run.settings)["distil"]
    assert before == after
    assert given.items() <= after.items()
    assert set(after) == {field.name for field in fields(DistilSettings)}
    left_to_choose = {"dimensions", "normalisation", "patch_size_voxels", "learning_rate", "mirror_axes", "precision"}
    assert left_to_choose <= set(after["reasons"])
    assert not set(given) & set(after["reasons"])
    assert all(after[name] is not None and reason for name, reason in after["reasons"].items())
    assert load_student(run.student).preprocessing.spacing_mm == (12, 12, 12.5)
    assert load_student(run.student).design.name == "s1"


def test_options_go_before_settings_given_in_a_file(an_annotated_run):
    run = RunDirectory(an_annotated_run)
    write_json(run.settings, {**read_json(run.settings), "distil": {"epochs": 5, "seed": 3}})
    assert len(distil(run, epochs=1)["history"]) == 1
    stored = read_json(run.settings)["distil"]
    assert (stored["epochs"], stored["seed"]) == (1, 3)


def test_settings_of_annotate_survive_those_of_distil(the_finished_run, a_teacher):
    settings = read_json(the_finished_run.settings)
    assert settings["annotate"]["teachers"][0]["path"] == str(a_teacher)
    assert settings["format_version"] == 1


def test_a_precision_that_the_processor_only_imitates_is_warned_of(an_annotated_run, tmp_path, monkeypatch):
    monkeypatch.setattr("KnowledgeTransferLib.steps.distil.emulates_bf16", lambda device: device == "cpu")
    for precision in ("bf16-mixed", "32-true"):
        events, run = [], shutil.copytree(an_annotated_run, tmp_path / precision)
        distil(run, epochs=1, precision=precision, listener=events.append)
        warnings = [event["text"] for event in events if event["event"] == "warning"]
        assert any("imitates bf16-mixed" in text for text in warnings) == (precision == "bf16-mixed")


def test_the_precision_of_a_settings_file_is_the_one_of_the_option(an_annotated_run, tmp_path):
    by_option, by_file, usual = (
        RunDirectory(shutil.copytree(an_annotated_run, tmp_path / n)) for n in ("option", "file", "usual")
    )
    write_json(by_file.settings, {**read_json(by_file.settings), "distil": {"precision": "bf16-mixed"}})
    distil(by_option, epochs=1, precision="bf16-mixed")
    distil(by_file, epochs=1)
    distil(usual, epochs=1)
    digests = [sha256(run.student / WEIGHTS) for run in (by_option, by_file, usual)]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"format_version": 2}, "format version 2; this is KnowledgeTransfer .*Use the version that wrote it"),
        ({"distil": {"epochz": 3}}, "there is no setting 'epochz' of distil; known are student, annotations"),
        ({"distil": {"epochs": "many"}}, "epochs is 'many'; expected int"),
        ({"distil": {"epochs": 0}}, "epochs is 0; allowed is 1 to inf"),
        ({"distil": {"epochs": True}}, "epochs is True; expected int"),
        ({"distil": {"spacing_mm": [1, "a", 1]}}, "spacing_mm is .*expected tuple"),
        ({"distil": {"spacing_mm": [1]}}, "spacing_mm is .*three numbers above 0 are needed"),
        ({"distil": {"patch_size_voxels": [30, 30, 30]}}, "patch_size_voxels is .*three multiples of 8"),
        ({"distil": {"mirror_axes": [3]}}, "mirror_axes is .*allowed is 0 to 2"),
        ({"distil": {"dimensions": 4}}, "dimensions is 4; allowed are 2, 3"),
        ({"distil": {"annotations": "all"}}, "annotations is 'all'; allowed are pseudo, expert, both"),
        ({"distil": {"learning_rate": float("nan")}}, "learning_rate is nan; allowed is"),
        ({"distil": {"losses": {"magic": 1}}}, "losses .*magic.*choose from dice-ce"),
        ({"distil": {"student": "huge"}}, "there is no student design 'huge'; choose one of tiny"),
        ({"distil": ["epochs", 3]}, "distil holds .*an object with settings is needed"),
        ([], "format version None"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_with_what_is_allowed(run, a_phantom_cohort, content, message):
    run.create()
    run.settings.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        distil(run, a_phantom_cohort, annotations="expert")
    assert run.settings.read_text(encoding="utf-8") == json.dumps(content)
    assert not run.student.exists()


def test_a_settings_file_that_is_no_json_is_refused_and_kept(run, a_phantom_cohort):
    run.create()
    run.settings.write_text('{"distil": {"epochs": 3', encoding="utf-8")
    with pytest.raises(ValueError, match=r"settings\.json is damaged"):
        distil(run, a_phantom_cohort, annotations="expert", epochs=1)
    assert run.settings.read_text() == '{"distil": {"epochs": 3'


def test_other_settings_for_a_training_that_was_begun_are_refused(a_finished_run):
    digest = sha256(a_finished_run.student / WEIGHTS)
    with pytest.raises(ValueError, match=r"epochs is 2, asked for is 3.*--restart"):
        distil(a_finished_run, epochs=3)
    with pytest.raises(ValueError, match="the cohort has other cases.*--restart"):
        distil(a_finished_run, replace(Cohort.from_json(read_json(a_finished_run.cohort)), cases=()))
    assert sha256(a_finished_run.student / WEIGHTS) == digest
    assert len(read_json(a_finished_run.training)["history"]) == 2


def test_restart_begins_anew(a_finished_run):
    digest = sha256(a_finished_run.student / WEIGHTS)
    summary = distil(a_finished_run, epochs=3, restart=True)
    assert len(summary["history"]) == 3
    assert sha256(a_finished_run.student / WEIGHTS) != digest


def test_a_restart_that_cannot_begin_keeps_the_student(a_finished_run):
    with pytest.raises(ValueError, match="0 of 0 cases have"):
        distil(a_finished_run, Cohort(()), restart=True)
    assert load_student(a_finished_run.student).design.name == "tiny"
    assert a_finished_run.training.is_file()


def test_a_finished_training_is_left_as_it_is_and_says_so(a_finished_run):
    before = {file: file.stat().st_mtime_ns for file in a_finished_run.student.rglob("*")}
    events = []
    summary = distil(a_finished_run, epochs=2, listener=events.append)
    assert summary == {**read_json(a_finished_run.training), "student": str(a_finished_run.student)}  # it was moved
    assert {file: file.stat().st_mtime_ns for file in a_finished_run.student.rglob("*")} == before
    assert any("this training is finished; add --restart" in event.get("text", "") for event in events)
    assert not any(event["event"] == "stage" for event in events)
    assert events[-1]["event"] == "done" and events[-1]["student"] == summary["student"]


def test_no_images_of_patients_stay_behind(the_finished_run):
    assert not the_finished_run.prepared.exists()
    assert not the_finished_run.checkpoint.exists()


def test_images_that_a_killed_process_left_are_removed_by_the_next_call(a_finished_run):
    a_finished_run.prepared.mkdir()
    (a_finished_run.prepared / "00000.image.npy").write_bytes(b"a patient")
    a_finished_run.checkpoint.write_bytes(b"x")
    distil(a_finished_run)
    assert not a_finished_run.prepared.exists() and not a_finished_run.checkpoint.exists()


def test_a_bundle_names_no_patient_and_no_path(the_finished_run, a_foreign_cohort, a_teacher):
    cohort = read_cohort(a_foreign_cohort)
    secrets = [case.id for case in cohort.cases] + [cohort.source, str(the_finished_run.path), str(a_teacher)]
    secrets += [Path.home().name + "/", time.strftime("%Y-%m-%d")]
    files = [file for file in the_finished_run.student.rglob("*") if file.is_file()]
    assert len(files) >= 5
    for file in files:
        content = file.read_bytes()
        assert not [secret for secret in secrets if secret.encode() in content], file


def test_a_time_budget_is_kept(an_annotated_run):
    run = RunDirectory(an_annotated_run)
    began = time.monotonic()
    summary = distil(run, minutes=0.1)
    assert time.monotonic() - began < 60  # without a budget it would take much longer
    stored = read_json(run.settings)["distil"]
    assert stored["epochs"] >= len(summary["history"])
    assert stored["reasons"]["epochs"] == "what fits into 0.1 minutes on this computer"


def test_a_time_budget_is_measured_anew_after_a_restart(an_annotated_run):
    def stop(event):
        if event["event"] == "stage" and event["name"] == "train":
            raise SystemExit  # as good as a kill

    run = RunDirectory(an_annotated_run)
    with pytest.raises(SystemExit):
        distil(run, minutes=60, listener=stop)
    assert read_json(run.settings)["distil"]["epochs"] > 1000
    distil(run, minutes=0.02, restart=True)
    assert read_json(run.settings)["distil"]["epochs"] < 500


def test_a_training_without_progress_ends_early_when_asked_to(an_annotated_run, monkeypatch):
    monkeypatch.setattr(training, "held_out_dice", lambda _: 0.5)
    events = []
    summary = distil(an_annotated_run, epochs=9, patience_epochs=2, listener=events.append)
    assert (summary["epoch"], len(summary["history"])) == (1, 3)
    assert any("no better student for 2 epochs: ended early at epoch 3" in event.get("text", "") for event in events)


def test_the_best_of_the_late_students_is_kept(an_annotated_run, tmp_path, monkeypatch):
    dices, shorter = iter([0.1, 0.95, 0.9, 0.3]), RunDirectory(shutil.copytree(an_annotated_run, tmp_path / "shorter"))
    kept = []

    def dice(state):
        value = next(dices)
        if value == 0.9:
            kept.append({k: v.clone().numpy() for k, v in state.network.module.state_dict().items()})
        return value

    monkeypatch.setattr(training, "held_out_dice", dice)
    summary = distil(shorter, epochs=4, decision="most-probable")
    assert (summary["epoch"], summary["validation_dice"]) == (3, 0.9), "an early one was kept, or the last"
    saved = weights_of(shorter.student)
    assert all(np.array_equal(saved[name], kept[0][name]) for name in saved)


def test_a_bad_case_is_left_out_and_the_others_teach(run, a_phantom_cohort, tmp_path):
    cohort = Path(shutil.copytree(a_phantom_cohort, tmp_path / "cohort"))
    (cohort / "images" / "A_002.nii.gz").write_bytes(b"")
    summary = distil(run, cohort, annotations="expert", epochs=1)
    assert [problem["case"] for problem in summary["problems"]] == ["A_002"]
    assert "the file is empty" in read_json(run.training)["problems"][0]["message"]
    assert taught_by(run) == "It learnt from expert annotations of 3 images."


def test_fewer_than_two_good_cases_are_refused_with_the_reason(run, a_phantom_cohort, tmp_path):
    cohort = Path(shutil.copytree(a_phantom_cohort, tmp_path / "cohort"))
    for file in sorted((cohort / "images").iterdir())[1:]:
        file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"only 1 of 4 cases can be used: .*A_002\.nii\.gz: the file is empty"):
        distil(run, cohort, annotations="expert", epochs=1)


def test_a_run_without_anything_to_learn_from_says_what_to_do(run, a_phantom_cohort):
    with pytest.raises(ValueError, match="has no cohort yet; annotate one first, or name one"):
        distil(run, epochs=1)
    with pytest.raises(ValueError, match=r"0 of 4 cases have pseudo-annotations \(annotate the cohort first\)"):
        distil(run, a_phantom_cohort, epochs=1)


def test_cases_with_another_number_of_channels_are_left_out(run, a_phantom_cohort):
    cohort = read_cohort(a_phantom_cohort)
    odd = replace(cohort.cases[2], images=cohort.cases[2].images * 2)
    cohort = replace(cohort, cases=(*cohort.cases[:2], odd, cohort.cases[3]))
    summary = distil(run, cohort, annotations="expert", epochs=1)
    assert [p["message"] for p in summary["problems"]] == ["A_003: has 2 channels; the others 1"]


def test_a_damaged_checkpoint_is_told_with_what_to_do(run, a_phantom_cohort):
    def stop(event):
        if event["event"] == "metrics" and event["epoch"] == 3:
            run.cancel.touch()

    with pytest.raises(Exception, match="was stopped"):
        distil(run, a_phantom_cohort, annotations="expert", epochs=5, listener=stop)
    run.checkpoint.write_bytes(run.checkpoint.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"checkpoint\.pt: cannot be taken up.*begin anew with --restart"):
        distil(run)
    assert len(distil(run, restart=True)["history"]) == 5


def test_labels_of_the_student_are_those_of_the_teacher(the_finished_run):
    assert load_student(the_finished_run.student).labels == LABELS
    assert load_student(the_finished_run.student).parameters < 60_000


def test_epochs_and_minutes_exclude_each_other(an_annotated_run):
    with pytest.raises(ValueError, match="exclude each other"):
        distil(an_annotated_run, epochs=2, minutes=1)


def test_minutes_take_the_place_of_earlier_epochs(an_annotated_run):
    distil(an_annotated_run, epochs=1)
    distil(an_annotated_run, minutes=0.02, restart=True)
    stored = read_json(RunDirectory(an_annotated_run).settings)["distil"]
    assert stored["minutes"] == 0.02 and "what fits into" in stored["reasons"]["epochs"]


def test_none_takes_back_what_an_earlier_start_asked_for(an_annotated_run, a_teacher, command):
    run = RunDirectory(an_annotated_run)
    settings = read_json(run.settings)
    write_json(run.settings, {**settings, "distil": {"minutes": 5.0, "start_from": str(a_teacher), "batch_size": 3}})
    line = ["--minutes", "none", "--from", "none", "--epochs", "1", "--device", "cpu"]
    outcome = command("distil", run.path, *line)
    assert outcome.status == 0, outcome.messages
    found = read_json(run.settings)["distil"]
    assert found["minutes"] is None and found["start_from"] == found["start_sha256"] == "" and found["batch_size"] == 3


def test_none_is_refused_for_a_training_that_was_begun_with_a_value(a_finished_run):
    with pytest.raises(ValueError, match="epochs was"):
        distil(a_finished_run, epochs="none")


def test_a_run_is_fine_tuned_from_its_own_student_at_a_lower_rate(an_annotated_run):
    run = RunDirectory(an_annotated_run)
    distil(run, epochs=1)
    usual = read_json(run.settings)["distil"]["learning_rate"]
    distil(run, epochs=1, start_from=str(run.student), restart=True)
    assert read_json(run.settings)["distil"]["learning_rate"] == pytest.approx(usual / 10)
    assert run.student.is_dir()


def test_a_refused_cohort_does_not_take_the_place_of_the_runs_own(an_annotated_run, a_phantom_cohort):
    run = RunDirectory(an_annotated_run)
    before = run.cohort.read_bytes()
    with pytest.raises(ValueError, match="have pseudo-annotations"):
        distil(run, a_phantom_cohort)
    assert run.cohort.read_bytes() == before


def test_a_training_stopped_at_its_first_step_need_not_be_prepared_again(an_annotated_run):
    def stop(event):
        if event["event"] == "stage" and event["name"] == "train":
            raise SystemExit  # as good as a kill

    with pytest.raises(SystemExit):
        distil(an_annotated_run, epochs=1, listener=stop)
    events = []
    distil(an_annotated_run, listener=events.append)
    assert "prepare" not in {event.get("name") for event in events}


def test_the_case_with_the_odd_number_of_channels_is_the_problem_even_when_it_is_the_first(tmp_path):
    write_phantom(tmp_path / "site", 4, "A", size_voxels=(32, 32, 20))
    images = tmp_path / "site" / "images"
    table = (
        (tmp_path / "site" / "cohort.csv")
        .read_text()
        .replace("images/A_001.nii.gz", "images/A_001.nii.gz|images/A_001.nii.gz")
    )
    (tmp_path / "site" / "cohort.csv").write_text(table)
    assert images.is_dir()
    summary = distil(tmp_path / "run", tmp_path / "site", annotations="expert", epochs=1)
    assert [p["case"] for p in summary["problems"]] == ["A_001"]
