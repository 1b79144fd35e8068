"""Annotate: named, coloured pseudo-annotations and probabilities of each case, once, whatever the teachers are."""

import shutil
import threading
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from KnowledgeTransferLib.learning import student as student_module
from KnowledgeTransferLib.learning.backends import open_backend
from KnowledgeTransferLib.learning.phantom import LABELS, write_phantom
from KnowledgeTransferLib.learning.student import How, Student, load_student, save_student
from KnowledgeTransferLib.learning.teachers import uncertainty_of
from KnowledgeTransferLib.learning.volume import (
    read_annotation,
    read_image,
    read_probabilities,
    write_annotation,
    write_probabilities,
)
from KnowledgeTransferLib.records.bundle import METADATA, write_checksums
from KnowledgeTransferLib.records.cohort import read_cohort, write_names
from KnowledgeTransferLib.records.labels import Labels
from KnowledgeTransferLib.records.run_directory import RunDirectory, read_json, write_json
from KnowledgeTransferLib.steps.annotate import annotate

STEP = 1 / 255  # of stored probabilities


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


@pytest.fixture
def done(the_annotated_run) -> RunDirectory:
    """The run that the teacher annotated; do not change it."""
    return RunDirectory(the_annotated_run)


def expert_folder(cohort: Path, target: Path, shift: int = 0) -> Path:
    """A folder of segmentations: the cohort's expert annotations, shifted along I."""
    for case in read_cohort(cohort).cases:
        volume = read_image(case.images)
        array = np.roll(read_annotation(case.label), shift, axis=0)
        write_annotation(target / f"{case.id}.nii.gz", array, volume.affine, LABELS)
    write_names(target, LABELS)
    return target


def times_of(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}


def test_a_pseudo_annotation_lies_in_the_geometry_of_its_image(done, a_foreign_cohort):
    for case in read_cohort(a_foreign_cohort).cases:
        image = sitk.ReadImage(str(case.images[0]))
        pseudo = sitk.ReadImage(str(done.pseudo_annotation(case.id)))
        assert pseudo.GetSize() == image.GetSize()
        for name in ("GetSpacing", "GetOrigin", "GetDirection"):
            assert getattr(pseudo, name)() == pytest.approx(getattr(image, name)(), abs=1e-6)


def test_a_pseudo_annotation_names_and_colours_its_segments(done, a_foreign_cohort):
    slicerio = pytest.importorskip("slicerio")
    segmentation = slicerio.read_segmentation(str(done.pseudo_annotation("B_001")))
    segments = {segment["name"]: segment for segment in segmentation["segments"]}
    assert list(segments) == list(LABELS.names)
    for structure in LABELS.structures:
        segment = segments[structure.name]
        assert segment["labelValue"] == structure.value
        assert np.array(segment["color"]) * 255 == pytest.approx(structure.color, abs=0.01)
    assert segments["liver"]["terminology"]["type"][1] == "10200004"  # SNOMED CT


def test_probabilities_sum_to_one_and_agree_with_the_pseudo_annotation(done, a_foreign_cohort):
    values, known = np.array(LABELS.values), read_json(done.annotations)["cases"]
    for case in read_cohort(a_foreign_cohort).cases:
        volume = read_image(case.images)
        steps = read_probabilities(done.probability_maps(case.id), volume)
        assert np.abs(steps.sum(0, dtype=int) * STEP - 1).max() <= LABELS.channels * STEP / 2
        decided = read_annotation(done.pseudo_annotation(case.id), LABELS, volume)
        assert len(np.unique(decided)) > 1
        steps = steps.astype(float)
        steps[0] *= np.exp(-known[case.id].get("background_lowered_by", 0.0))
        first, second = np.sort(steps, axis=0)[[-1, -2]]
        clear = first - second > 2  # closer ones may tie after rounding
        assert clear.mean() > 0.9
        assert np.array_equal(values[steps.argmax(0)][clear], decided[clear])


def test_stored_probabilities_are_those_of_the_teacher(done, a_teacher, a_foreign_cohort):
    case = read_cohort(a_foreign_cohort).cases[0]
    volume = read_image(case.images)
    expected = load_student(a_teacher).predict(volume)
    stored = nibabel.load(done.probability_maps(case.id))
    assert np.abs(np.moveaxis(stored.get_fdata(), -1, 0) - expected[1:]).max() <= 0.51 * STEP
    assert stored.affine == pytest.approx(volume.affine, abs=1e-4)


def test_the_record_holds_confidence_and_volume_of_each_case(done, a_foreign_cohort):
    record = read_json(done.annotations)
    assert list(record["cases"]) == [case.id for case in read_cohort(a_foreign_cohort).cases]
    for id_, case in record["cases"].items():
        decided = read_annotation(done.pseudo_annotation(id_), LABELS)
        assert 0 < case["confidence"] < 1
        assert case["volumes_ml"]["liver"] == pytest.approx((decided == 1).sum() * 9 * 9 * 204 / 18 / 1000, rel=1e-3)
    assert record["problems"] == []


def test_without_probabilities_only_the_decision_is_written(run, done, a_teacher, a_foreign_cohort):
    annotate(run, a_foreign_cohort, {str(a_teacher): 1.0}, probabilities=False)
    assert not run.probabilities.exists()
    for id_ in ("B_001", "B_004"):
        assert run.pseudo_annotation(id_).read_bytes() == done.pseudo_annotation(id_).read_bytes()


def test_cases_that_are_done_are_left_and_missing_ones_made_again(an_annotated_run):
    run = RunDirectory(an_annotated_run)
    before, record = times_of(run.pseudo_annotations), read_json(run.annotations)
    run.pseudo_annotation("B_002").unlink()
    run.probability_maps("B_003").unlink()
    annotate(run)
    after = times_of(run.pseudo_annotations)
    assert {name for name in before if before[name] != after[name]} == {"B_002.seg.nrrd"}
    assert run.probability_maps("B_003").is_file()
    assert run.probability_maps("B_003").is_file()
    assert read_json(run.annotations) == record


def test_another_cohort_with_the_same_ids_is_annotated_anew(an_annotated_run, tmp_path):
    other = write_phantom(tmp_path / "other", 4, "B", seed=5, size_voxels=(36, 36, 18))
    run = RunDirectory(an_annotated_run)
    before = run.pseudo_annotation("B_001").read_bytes()
    annotate(run, other)
    assert run.pseudo_annotation("B_001").read_bytes() != before
    assert str(other) in read_json(run.annotations)["cases"]["B_001"]["images"][0]


def test_a_correction_by_hand_stays_when_the_scans_have_another_path_now(an_annotated_run, a_foreign_cohort, tmp_path):
    run, moved = RunDirectory(an_annotated_run), shutil.copytree(a_foreign_cohort, tmp_path / "moved")
    corrected, maps = run.pseudo_annotation("B_001"), run.probability_maps("B_001")
    volume = read_image(read_cohort(a_foreign_cohort).cases[0].images)
    write_annotation(corrected, np.ones(volume.shape, np.uint8), volume.affine, LABELS)
    before, maps_before = corrected.read_bytes(), maps.read_bytes()
    record = annotate(run, moved)
    assert corrected.read_bytes() == before and maps.read_bytes() == maps_before
    assert [problem["case"] for problem in record["problems"]] == ["B_001"]
    assert "was corrected by hand" in record["problems"][0]["message"]
    assert "Move the correction elsewhere" in record["problems"][0]["message"]
    assert str(moved) in record["cases"]["B_002"]["images"][0], "the others go on"


def test_the_same_scans_named_in_another_way_are_the_same(an_annotated_run, a_foreign_cohort, monkeypatch):
    run = RunDirectory(an_annotated_run)
    before = times_of(run.pseudo_annotations)
    monkeypatch.chdir(a_foreign_cohort / "images")
    annotate(run, "..")
    assert times_of(run.pseudo_annotations) == before


def test_a_folder_of_segmentations_whose_structures_change_their_order_is_refused(run, a_foreign_cohort, tmp_path):
    """Else the stored class probabilities would stand for other structures than the record says."""
    folder, cases = tmp_path / "drawn", read_cohort(a_foreign_cohort).cases
    names = [LABELS.names, LABELS.names[::-1]]
    for case, order in ((cases[1], names[0]), (cases[0], names[1])):
        volume, labels = read_image(case.images), Labels.from_names(dict(enumerate(order, 1)))
        write_annotation(folder / f"{case.id}.seg.nrrd", read_annotation(case.label), volume.affine, labels)
        if case is cases[1]:
            before = annotate(run, a_foreign_cohort, {str(folder): 1.0})["cases"]
    with pytest.raises(ValueError, match="holds pseudo-annotations of liver, .*use another run directory"):
        annotate(run)
    assert list(before) == [cases[1].id] and read_json(run.annotations)["cases"] == before


def test_students_are_opened_once_and_not_by_the_threads_that_use_them(
    run, a_teacher, a_foreign_cohort, tmp_path, monkeypatch
):
    """From Python 3.12 on nothing else keeps two threads from opening the same one at a time, and that fails."""
    opened = []
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    monkeypatch.setattr(
        student_module, "open_backend", lambda *args: opened.append(threading.current_thread()) or open_backend(*args)
    )
    annotate(run, a_foreign_cohort, {str(a_teacher): 1.0})
    assert opened == [threading.main_thread()]


def test_numbers_that_are_none_are_the_problem_of_their_case(run, a_teacher, a_foreign_cohort, monkeypatch):
    predict = Student.predict

    def damaged(student, volume, *prepared):
        found = predict(student, volume, *prepared)
        found[1, 0, 0, 0] = np.nan if volume.name == "B_002" else found[1, 0, 0, 0]
        return found

    monkeypatch.setattr(Student, "predict", damaged)
    record = annotate(run, a_foreign_cohort, {str(a_teacher): 1.0})
    assert sorted(record["cases"]) == ["B_001", "B_003", "B_004"]
    assert "gives class probabilities that are no numbers" in record["problems"][0]["message"]


def test_a_case_that_cannot_be_written_does_not_stop_the_others(run, a_teacher, a_foreign_cohort, monkeypatch):
    def refused(path, *rest):
        if "B_002" in path.name:
            raise ValueError("NIfTI cannot hold it")
        write_probabilities(path, *rest)

    monkeypatch.setattr("KnowledgeTransferLib.steps.annotate.write_probabilities", refused)
    record = annotate(run, a_foreign_cohort, {str(a_teacher): 1.0})
    assert sorted(record["cases"]) == ["B_001", "B_003", "B_004"]
    assert [problem["message"] for problem in record["problems"]] == ["NIfTI cannot hold it"]


@pytest.mark.usefixtures("cores")
def test_teachers_are_averaged_by_their_weights(run, a_foreign_cohort, tmp_path):
    one, two = (expert_folder(a_foreign_cohort, tmp_path / str(shift), shift) for shift in (0, 3))
    annotate(run, a_foreign_cohort, {str(one): 3.0, str(two): 1.0})
    first, second = (read_annotation(folder / "B_002.nii.gz") for folder in (one, two))
    volume = read_image(read_cohort(a_foreign_cohort).cases[1].images)
    steps = read_probabilities(run.probability_maps("B_002"), volume)
    for channel, value in enumerate(LABELS.values[1:], 1):
        expected = 0.75 * (first == value) + 0.25 * (second == value)
        assert np.abs(steps[channel] * STEP - expected).max() <= STEP
    assert np.array_equal(read_annotation(run.pseudo_annotation("B_002")), first)
    weights = [teacher["weight"] for teacher in read_json(run.settings)["annotate"]["teachers"]]
    assert weights == [3.0, 1.0]


def test_a_synonym_for_a_name_that_nobody_uses_is_told(run, a_teacher, a_foreign_cohort):
    events, used = [], LABELS.names[0]
    annotate(run, a_foreign_cohort, {str(a_teacher): 1.0}, synonyms={"lver": "spleen", used: f"left {used}"},
             listener=events.append)  # fmt: skip
    told = [event["text"] for event in events if event["event"] == "warning"]
    assert [text for text in told if "--synonym" in text] == [
        f"--synonym spleen=lver: no structure has that other name; there are {', '.join(sorted(LABELS.names))}"
    ]


def test_teachers_of_different_kinds_and_orders_of_structures_work_together(run, a_teacher, a_foreign_cohort, tmp_path):
    folder = expert_folder(a_foreign_cohort, tmp_path / "experts")
    names = dict(zip((4, 3, 2, 1), LABELS.names, strict=True))  # the same organs, other values
    write_names(folder, Labels.from_names(names))
    for file in folder.glob("*.nii.gz"):
        image = nibabel.load(file)
        flipped = np.array([0, 4, 3, 2, 1], np.uint8)[np.asarray(image.dataobj)]
        nibabel.save(nibabel.Nifti1Image(flipped, image.affine), file)
    annotate(run, a_foreign_cohort, {str(a_teacher): 1.0, str(folder): 1000.0})
    expert = read_annotation(read_cohort(a_foreign_cohort).cases[0].label)
    assert np.array_equal(read_annotation(run.pseudo_annotation("B_001")), expert)


def test_a_case_that_a_folder_of_segmentations_lacks_is_reported(run, a_foreign_cohort, tmp_path):
    folder = expert_folder(a_foreign_cohort, tmp_path / "experts")
    (folder / "B_003.nii.gz").unlink()
    record = annotate(run, a_foreign_cohort, {str(folder): 1.0})
    assert list(record["cases"]) == ["B_001", "B_002", "B_004"]
    assert record["problems"][0]["case"] == "B_003"
    assert "holds no segmentation of the case B_003" in record["problems"][0]["message"]
    assert {case["confidence"] for case in record["cases"].values()} == {1.0}


@pytest.mark.parametrize(
    ("teachers", "message"),
    [
        ([{"weight": 1.0}], r"settings\.json: teachers is .*each needs path"),
        ([{"path": "a", "weight": "much"}], "each needs weight"),
        ([{"path": 3, "structures": []}], "each needs path and structures"),
        (["a"], r"teachers is \['a'\]; expected tuple"),
    ],
)
def test_teachers_that_somebody_wrote_wrongly_into_the_settings_are_refused(run, a_foreign_cohort, teachers, message):
    run.create()
    write_json(run.settings, {"format_version": 1, "annotate": {"teachers": teachers}})
    with pytest.raises(ValueError, match=message):
        annotate(run, a_foreign_cohort)


def test_other_teachers_in_the_same_run_are_refused(an_annotated_run, a_foreign_cohort, tmp_path):
    before = read_json(RunDirectory(an_annotated_run).annotations)
    other = expert_folder(a_foreign_cohort, tmp_path / "experts")
    with pytest.raises(ValueError, match="was begun with other settings .*use another run directory"):
        annotate(an_annotated_run, a_foreign_cohort, {str(other): 1.0})
    assert read_json(RunDirectory(an_annotated_run).annotations) == before


def test_a_teacher_that_was_trained_again_since_is_refused(run, a_teacher, a_foreign_cohort, tmp_path):
    teacher = Path(shutil.copytree(a_teacher, tmp_path / "teacher"))
    annotate(run, a_foreign_cohort, {str(teacher): 1.0})
    weights = teacher / "models/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    write_checksums(teacher)
    run.pseudo_annotation("B_001").unlink()
    with pytest.raises(ValueError, match="begun with other settings"):
        annotate(run)
    assert not run.pseudo_annotation("B_001").exists()


@pytest.mark.usefixtures("cores")
def test_one_bad_case_is_listed_and_the_others_are_annotated(run, a_teacher, a_foreign_cohort, tmp_path):
    cohort = Path(shutil.copytree(a_foreign_cohort, tmp_path / "cohort"))
    (cohort / "images" / "B_002.nrrd").write_bytes(b"no image")
    events = []
    record = annotate(run, cohort, {str(a_teacher): 1.0}, listener=events.append)
    assert sorted(record["cases"]) == ["B_001", "B_003", "B_004"]
    assert [problem["case"] for problem in read_json(run.annotations)["problems"]] == ["B_002"]
    assert [event["case"] for event in events if event["event"] == "problem"] == ["B_002"]
    shutil.copy(a_foreign_cohort / "images" / "B_002.nrrd", cohort / "images")
    before = times_of(run.pseudo_annotations)
    record = annotate(run)  # the case was repaired
    assert len(record["cases"]) == 4 and record["problems"] == []
    assert before.items() <= times_of(run.pseudo_annotations).items()


def test_side_by_side_cases_are_annotated_as_one_after_another(run, a_teacher, a_foreign_cohort, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    ids, told = [case.id for case in read_cohort(a_foreign_cohort).cases], []
    annotate(run, a_foreign_cohort, {str(a_teacher): 1.0}, listener=told.append)
    assert [event["case"] for event in told if event["event"] == "case"] == ids
    assert list(read_json(run.annotations)["cases"]) == ids
    alone = RunDirectory(tmp_path / "alone")
    for case in read_cohort(a_foreign_cohort).cases:
        annotate(alone, replace(read_cohort(a_foreign_cohort), cases=(case,)), {str(a_teacher): 1.0})
    for id_ in ids:
        for file in ("pseudo_annotation", "probability_maps"):
            assert getattr(run, file)(id_).read_bytes() == getattr(alone, file)(id_).read_bytes()


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_must_be_a_number_above_zero(run, a_teacher, a_foreign_cohort, tmp_path, weight):
    folder = expert_folder(a_foreign_cohort, tmp_path / "experts")
    with pytest.raises(ValueError, match="weights of teachers must be above 0"):
        annotate(run, a_foreign_cohort, {str(a_teacher): 1.0, str(folder): weight})


def test_a_run_without_cohort_or_teacher_says_what_to_name(run, a_teacher, a_foreign_cohort):
    with pytest.raises(ValueError, match="name one .--cohort PATH"):
        annotate(run, None, {str(a_teacher): 1.0})
    with pytest.raises(ValueError, match="name at least one .--teacher PATH"):
        annotate(run, a_foreign_cohort)


def test_what_is_no_teacher_is_refused_with_the_kinds_that_are_known(run, a_foreign_cohort, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: there is no such teacher"):
        annotate(run, a_foreign_cohort, {str(tmp_path / "nowhere"): 1.0})
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: is no kind of teacher.*bundle made by KnowledgeTransfer.*folder of"):
        annotate(run, a_foreign_cohort, {str(tmp_path / "empty"): 1.0})


def test_a_damaged_teacher_is_refused_by_the_name_of_its_file(run, a_teacher, a_foreign_cohort, tmp_path):
    teacher = Path(shutil.copytree(a_teacher, tmp_path / "teacher"))
    (teacher / METADATA).write_text((teacher / METADATA).read_text() + " ")
    with pytest.raises(ValueError, match=r"configs/metadata\.json was changed or damaged"):
        annotate(run, a_foreign_cohort, {str(teacher): 1.0})


@pytest.mark.usefixtures("cores")
def test_only_the_cases_of_a_cohort_object_are_annotated(run, a_teacher, a_foreign_cohort):
    cohort = read_cohort(a_foreign_cohort)
    annotate(run, replace(cohort, cases=cohort.cases[:1]), {str(a_teacher): 1.0})
    assert [file.name for file in run.pseudo_annotations.iterdir()] == ["B_001.seg.nrrd"]


def test_uncertainty_is_the_entropy_of_the_probabilities_in_the_geometry_of_the_image(
    run, done, a_teacher, a_foreign_cohort
):
    events = []
    annotate(run, a_foreign_cohort, {str(a_teacher): 1.0}, uncertainty=True, listener=events.append)
    case = read_cohort(a_foreign_cohort).cases[0]
    volume = read_image(case.images)
    stored = nibabel.load(run.uncertainty_map(case.id))
    assert stored.get_data_dtype() == np.float32 and stored.shape == volume.shape
    assert stored.affine == pytest.approx(volume.affine, abs=1e-4)
    p = load_student(a_teacher).predict(volume).astype(float)
    expected = -(p * np.log(np.maximum(p, 1e-30))).sum(0) / np.log(len(p))
    np.testing.assert_allclose(stored.get_fdata(), expected, atol=1e-5)
    told = next(event for event in events if event["event"] == "case")
    assert told["uncertainty"] == str(run.uncertainty_map(case.id))
    assert run.pseudo_annotation(case.id).read_bytes() == done.pseudo_annotation(case.id).read_bytes()


def test_uncertainty_is_0_where_teachers_are_sure_and_1_where_they_know_nothing():
    assert np.all(uncertainty_of(np.eye(4, dtype=np.float32)[:, :, None, None]) == 0)
    even = uncertainty_of(np.full((5, 2, 3, 4), 0.2, np.float32))
    assert even.shape == (2, 3, 4) and even.dtype == np.float32
    np.testing.assert_allclose(even, 1, atol=1e-6)
    assert even.max() <= 1


def test_cases_done_without_uncertainty_are_done_again_when_it_is_asked_for(an_annotated_run):
    run = RunDirectory(an_annotated_run)
    corrected = run.pseudo_annotation("B_002")
    shutil.copy(run.pseudo_annotation("B_001"), corrected)  # a person saved something else in its place
    before, record = times_of(run.pseudo_annotations), read_json(run.annotations)["cases"]
    annotate(run, uncertainty=True)
    assert len(list(run.uncertainty.iterdir())) == 4
    assert times_of(run.pseudo_annotations) == before
    with_measure = {id_: {**case, "uncertainty": "entropy"} for id_, case in record.items()}
    assert read_json(run.annotations)["cases"] == with_measure  # with the checksum that tells the correction
    maps = times_of(run.uncertainty)
    annotate(run)  # goes on with it
    annotate(run, uncertainty=False)
    assert times_of(run.uncertainty) == maps


def test_uncertainty_is_not_written_unasked_and_none_of_another_image_stays(
    an_annotated_run, a_foreign_cohort, tmp_path
):
    run = RunDirectory(an_annotated_run)
    assert not run.uncertainty.exists()
    annotate(run, uncertainty=True)
    shutil.copytree(a_foreign_cohort, tmp_path / "moved")
    annotate(run, tmp_path / "moved", uncertainty=False)
    assert list(run.uncertainty.iterdir()) == []


def test_uncertainty_is_an_option(command, an_annotated_run):
    assert command("annotate", an_annotated_run, "--uncertainty").status == 0
    assert RunDirectory(an_annotated_run).uncertainty_map("B_001").is_file()
    assert read_json(RunDirectory(an_annotated_run).settings)["annotate"]["uncertainty"] is True


@pytest.mark.usefixtures("cores")
def test_a_case_that_does_not_fit_into_the_memory_is_listed_with_what_would(
    command, a_teacher, a_foreign_cohort, tmp_path
):
    done = command(
        "annotate", tmp_path / "run", "--cohort", a_foreign_cohort, "--teacher", a_teacher, "--max-memory", 0.1
    )
    assert done.status == 2
    assert "and 0.00 GiB may be taken; --max-memory " in done.messages and "would do" in done.messages
    more = command("annotate", tmp_path / "run", "--max-memory", 16)  # may change, for the result does not
    assert more.status == 0
    assert read_json(tmp_path / "run" / "settings.json")["annotate"]["most_bytes"] == 16 * 2**30


def test_own_bundles_go_in_blocks_that_fit_with_the_same_result(done, run, a_teacher, a_foreign_cohort, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "KnowledgeTransferLib.learning.student.fitting_voxels", lambda student, *_: asked.append(student.how) or 4000
    )
    annotate(run, a_foreign_cohort, {str(a_teacher): 1.0}, most_bytes=1 << 40)
    assert asked and all(how.most_bytes == 1 << 40 for how in asked)
    for case in read_cohort(a_foreign_cohort).cases:
        first, second = (read_annotation(r.pseudo_annotation(case.id)) for r in (done, run))
        np.testing.assert_array_equal(first, second)


@pytest.mark.usefixtures("cores")
def test_a_case_that_one_of_two_teachers_lacks_is_annotated_by_the_other_until_both_have_it(
    run, a_foreign_cohort, tmp_path
):
    one, two = (expert_folder(a_foreign_cohort, tmp_path / str(shift), shift) for shift in (0, 3))
    kept = (one / "B_003.nii.gz").rename(tmp_path / "kept.nii.gz")
    events = []
    record = annotate(run, a_foreign_cohort, {str(one): 3.0, str(two): 1.0}, listener=events.append)
    assert record["problems"] == [] and len(record["cases"]) == 4
    assert list(record["cases"]["B_003"]["failed"]) == ["0"] and "failed" not in record["cases"]["B_001"]
    assert "B_003: is annotated without 0" in next(e["text"] for e in events if e["event"] == "warning")
    found = read_annotation(run.pseudo_annotation("B_003"))
    assert np.array_equal(found, read_annotation(two / "B_003.nii.gz"))
    kept.rename(one / "B_003.nii.gz")
    before = times_of(run.pseudo_annotations)
    record = annotate(run)
    after = times_of(run.pseudo_annotations)
    assert {name for name in before if before[name] != after[name]} == {"B_003.seg.nrrd"}
    assert np.array_equal(read_annotation(run.pseudo_annotation("B_003")), read_annotation(one / "B_003.nii.gz"))
    assert "failed" not in record["cases"]["B_003"]


def test_structures_that_nobody_judged_are_recorded_as_unknown(run, a_foreign_cohort, tmp_path):
    folders = {name: expert_folder(a_foreign_cohort, tmp_path / name) for name in ("whole", "heart")}
    write_names(folders["heart"], Labels.from_names({1: "heart", 2: "lung", 3: "bone", 4: "skin"}))
    (folders["heart"] / "B_002.nii.gz").unlink()
    record = annotate(run, a_foreign_cohort, {str(folder): 1.0 for folder in folders.values()})
    assert [s["name"] for s in record["structures"]] == [*LABELS.names, "heart", "lung", "bone", "skin"]
    assert record["cases"]["B_002"]["unknown"] == ["heart", "lung", "bone", "skin"]
    assert list(record["cases"]["B_002"]["volumes_ml"]) == list(LABELS.names)
    assert "unknown" not in record["cases"]["B_001"]


def test_the_map_of_uncertainty_may_hold_the_disagreement_of_teachers(run, a_foreign_cohort, tmp_path):
    one, two = (expert_folder(a_foreign_cohort, tmp_path / str(shift), shift) for shift in (0, 3))
    wanted = {"uncertainty": True, "uncertainty_measure": "disagreement"}
    with pytest.raises(ValueError, match="disagreement needs two teachers"):
        annotate(run, a_foreign_cohort, {str(one): 1.0}, **wanted)
    annotate(run, a_foreign_cohort, {str(one): 1.0, str(two): 1.0}, **wanted)
    first, second = (read_annotation(folder / "B_001.nii.gz") for folder in (one, two))
    stored = nibabel.load(run.uncertainty_map("B_001")).get_fdata()
    np.testing.assert_allclose(stored, first != second, atol=1e-6)
    annotate(run, uncertainty_measure="entropy")
    entropy = nibabel.load(run.uncertainty_map("B_001")).get_fdata()
    assert 0.3 < entropy[first != second].min() < 0.6 and not entropy[first == second].any()


def test_clean_up_leaves_the_largest_part_without_holes_in_decision_and_probabilities(run, a_foreign_cohort, tmp_path):
    folder = expert_folder(a_foreign_cohort, tmp_path / "teacher")
    volume = read_image(read_cohort(a_foreign_cohort).cases[0].images)
    drawn = np.zeros(volume.shape, np.uint8)
    drawn[4:12, 4:12, 4:12] = 1
    drawn[7, 7, 7] = 0
    drawn[20:22, 20:22, 6] = 1
    write_annotation(folder / "B_001.nii.gz", drawn, volume.affine, LABELS)
    annotate(run, a_foreign_cohort, {str(folder): 1.0}, largest_component=True, fill_holes=True)
    clean = read_annotation(run.pseudo_annotation("B_001"))
    assert clean[7, 7, 7] == 1 and not clean[20:22, 20:22, 6].any()
    assert (clean != drawn).sum() == 5
    steps = read_probabilities(run.probability_maps("B_001"), volume)
    assert np.array_equal(steps[1] == 255, clean == 1) and (steps.sum(0, dtype=int) == 255).all()
    assert read_json(run.annotations)["cases"]["B_001"]["foreground_voxels"] == 8**3


def test_mirror_images_are_averaged_where_a_bundle_was_trained_with_them(run, a_teacher, a_foreign_cohort, tmp_path):
    knows, case = tmp_path / "knows", read_cohort(a_foreign_cohort).cases[0]
    student = load_student(a_teacher)
    save_student(replace(student, card={"settings": {"mirror_axes": [0]}}), knows)
    one_case = replace(read_cohort(a_foreign_cohort), cases=(case,))
    annotate(run, one_case, {str(knows): 1.0, str(a_teacher): 1.0}, mirror=True)
    volume = read_image(case.images)
    plain, both = student.predict(volume), load_student(knows).run_as(How(mirror=True)).predict(volume)
    stored = read_probabilities(run.probability_maps(case.id), volume) / 255
    assert np.abs(stored - (plain + both) / 2).max() < 2 * STEP
    assert np.abs(stored - plain).max() > 10 * STEP


def test_mirror_images_are_refused_where_no_teacher_knows_them(command, a_teacher, a_foreign_cohort, tmp_path):
    done = command("annotate", tmp_path / "run", "--cohort", a_foreign_cohort, "--teacher", a_teacher, "--mirror")
    assert done.status == 2
    assert "no teacher is a bundle that was trained with mirror images; leave out --mirror" in done.messages


def test_a_teacher_that_fails_later_takes_nothing_from_what_all_of_them_said(run, a_foreign_cohort, tmp_path):
    folders = [expert_folder(a_foreign_cohort, tmp_path / name, shift) for name, shift in (("a", 0), ("b", 2))]
    annotate(run, a_foreign_cohort, {str(folder): 1.0 for folder in folders})
    files = [run.pseudo_annotation("B_001"), run.probability_maps("B_001")]
    before, entry = [file.read_bytes() for file in files], read_json(run.annotations)["cases"]["B_001"]
    (folders[1] / "B_001.nii.gz").unlink()
    record = annotate(run, uncertainty=True)
    assert [file.read_bytes() for file in files] == before and record["cases"]["B_001"] == entry
    assert "what all teachers said of it before stays as it is" in str(record["problems"])


def test_where_two_teachers_contradict_each_other_probabilities_say_what_the_decision_says(
    run, a_foreign_cohort, tmp_path
):
    folders = [expert_folder(a_foreign_cohort, tmp_path / name, shift) for name, shift in (("a", 0), ("b", 2))]
    annotate(run, a_foreign_cohort, {str(folder): 1.0 for folder in folders})
    case = read_cohort(a_foreign_cohort).cases[0]
    steps = read_probabilities(run.probability_maps(case.id), read_image(case.images))
    decision = read_annotation(run.pseudo_annotation(case.id))
    halves = (steps == 128).any(0)
    assert halves.any() and np.array_equal((steps.argmax(0) > 0)[halves], (decision > 0)[halves])


def test_a_run_of_an_earlier_version_goes_on_with_the_default_of_a_setting_that_is_new(done, run):
    shutil.copytree(done.path, run.path, dirs_exist_ok=True)
    content = read_json(run.settings)
    del content["annotate"]["mirror"]
    write_json(run.settings, content)
    assert annotate(run, mirror=False)["cases"] == read_json(done.annotations)["cases"]


def test_the_record_says_which_measure_the_uncertainty_map_holds(run, a_foreign_cohort, tmp_path):
    folders = [expert_folder(a_foreign_cohort, tmp_path / name, shift) for name, shift in (("a", 0), ("b", 2))]
    (folders[1] / "B_001.nii.gz").unlink()
    teachers = {str(folder): 1.0 for folder in folders}
    cases = annotate(run, a_foreign_cohort, teachers, uncertainty=True, uncertainty_measure="disagreement")["cases"]
    assert (cases["B_001"]["uncertainty"], cases["B_002"]["uncertainty"]) == ("entropy", "disagreement")
