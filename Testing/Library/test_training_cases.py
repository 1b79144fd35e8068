"""Training cases: what each case is learnt from, structures matched by name, and patients kept on one side."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from KnowledgeTransferLib.learning.phantom import write_phantom
from KnowledgeTransferLib.learning.training_cases import (
    TrainingCase,
    labels_to_learn,
    split_by_group,
    training_cases_of,
    with_labelled_share,
)
from KnowledgeTransferLib.learning.volume import (
    read_annotation,
    read_image,
    steps_of,
    write_annotation,
    write_image,
    write_probabilities,
)
from KnowledgeTransferLib.records.bundle import sha256
from KnowledgeTransferLib.records.cohort import Case, Cohort, read_cohort
from KnowledgeTransferLib.records.labels import Labels
from KnowledgeTransferLib.records.progress import Progress
from KnowledgeTransferLib.records.run_directory import RunDirectory, read_json, write_json
from KnowledgeTransferLib.records.settings import AnnotateSettings, DistilSettings, write_settings
from KnowledgeTransferLib.steps.distil import distil

LABELS = Labels.from_names({2: "liver", 7: "spleen"})
SHAPE = (5, 4, 3)


def annotation(values=LABELS.values, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.uint8(values), SHAPE)


def a_case(folder, id_: str, expert: Labels | None = None) -> Case:
    image = folder / f"{id_}.nii.gz"
    write_image(image, np.random.default_rng(0).normal(size=SHAPE).astype(np.float32), np.eye(4))
    label = folder / f"{id_}_label.nii.gz" if expert else None
    if expert:
        write_annotation(label, annotation(expert.values), np.eye(4), expert)
    return Case(id_, (image,), label)


def annotated(run: RunDirectory, case: Case, probabilities: bool = True) -> None:
    """Let a teacher that knows LABELS annotate a case."""
    soft = np.random.default_rng(1).dirichlet(np.ones(3), SHAPE).transpose(3, 0, 1, 2).astype(np.float32)
    write_annotation(run.pseudo_annotation(case.id), np.array(LABELS.values)[soft.argmax(0)], np.eye(4), LABELS)
    if probabilities:
        write_probabilities(run.probability_maps(case.id), steps_of(soft), np.eye(4))
    known = read_json(run.annotations)["cases"] if run.annotations.is_file() else {}
    known[case.id] = {"images": case.paths, "sha256": sha256(run.pseudo_annotation(case.id))}
    write_json(run.annotations, {"structures": LABELS.to_json(), "teachers": [], "cases": known})


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    return RunDirectory(tmp_path / "run").create()


@pytest.fixture
def a_cohort(tmp_path, run) -> Cohort:
    """Two cases of experts alone, two of the teacher alone, two of both, one of nobody."""
    ids = {"e1": "e", "e2": "e", "t1": "t", "t2": "t", "b1": "et", "b2": "et", "n": ""}
    cases = [a_case(tmp_path, id_, LABELS if "e" in who else None) for id_, who in ids.items()]
    for case in cases:
        if "t" in ids[case.id]:
            annotated(run, case)
    return Cohort(tuple(cases), LABELS)


@pytest.mark.parametrize(
    ("wanted", "ids", "by_experts"),
    [
        ("expert", ["e1", "e2", "b1", "b2"], {"e1", "e2", "b1", "b2"}),
        ("pseudo", ["t1", "t2", "b1", "b2"], set()),
        ("both", ["e1", "e2", "t1", "t2", "b1", "b2"], {"e1", "e2", "b1", "b2"}),
    ],
)
def test_the_wanted_annotations_are_taken_and_experts_go_first(run, a_cohort, wanted, ids, by_experts):
    found = training_cases_of(run, a_cohort, DistilSettings(annotations=wanted), Progress("distil"))
    assert [item.case.id for item in found] == ids
    assert {item.case.id for item in found if item.annotation == item.case.label} == by_experts
    assert all((item.probabilities is None) == (item.case.id in by_experts) for item in found)


def test_hard_training_cases_leave_the_probabilities_alone(run, a_cohort):
    found = training_cases_of(run, a_cohort, DistilSettings(annotations="pseudo", soft=False), Progress("distil"))
    assert [item.probabilities for item in found] == [None] * 4
    _, target = found[0].read(LABELS)
    assert target.shape == (1, *SHAPE) and set(np.unique(target)) <= {0, 1, 2}


def test_a_teacher_without_probabilities_teaches_its_decision(run, tmp_path):
    cases = [a_case(tmp_path, f"c{n}") for n in range(2)]
    for case in cases:
        annotated(run, case, probabilities=False)
    found = training_cases_of(run, Cohort(tuple(cases)), DistilSettings(), Progress("distil"))
    assert all(item.read(LABELS)[1].shape == (1, *SHAPE) for item in found)


def test_label_values_become_channels(tmp_path):
    case = a_case(tmp_path, "a", LABELS)
    volume, target = TrainingCase(case, case.label).read(LABELS)
    assert volume.name == "a"
    values = annotation()
    assert all((target[0][values == value] == channel).all() for channel, value in enumerate(LABELS.values))
    assert target.max() == 2


def test_soft_lessons_are_the_probabilities_of_the_teacher(run, a_cohort):
    item = training_cases_of(run, a_cohort, DistilSettings(), Progress("distil"))[0]
    _, target = item.read(LABELS)
    assert target.shape == (3, *SHAPE) and target.dtype == np.uint8
    assert (target.sum(0, dtype=int) == 255).all()
    assert len(np.unique(target)) > 50


def test_experts_who_number_the_structures_otherwise_are_understood_by_name(run, tmp_path):
    theirs = Labels.from_names({2: "spleen", 7: "liver"})  # the teacher's values, swapped
    cases = [a_case(tmp_path, "e1", theirs), a_case(tmp_path, "e2", theirs), a_case(tmp_path, "t")]
    annotated(run, cases[2])
    cohort = Cohort(tuple(cases), theirs)
    found = training_cases_of(run, cohort, DistilSettings(annotations="both"), Progress("distil"))
    labels = labels_to_learn(run, cohort, found, Progress("distil"))
    assert labels == LABELS
    _, target = found[0].read(labels)
    values = annotation(theirs.values)
    assert (target[0][values == 2] == 2).all() and (target[0][values == 7] == 1).all()
    assert (values == 2).any() and (values == 7).any()


def test_what_experts_do_not_know_is_learnt_from_the_teachers_alone_and_the_other_way_round(run, tmp_path):
    theirs = Labels.from_names({1: "Liver", 4: "kidney"})
    cases = [a_case(tmp_path, "e", theirs), a_case(tmp_path, "t")]
    annotated(run, cases[1])
    cohort, events = Cohort(tuple(cases), theirs), []
    found = training_cases_of(run, cohort, DistilSettings(annotations="both"), Progress("distil"))
    labels = labels_to_learn(run, cohort, found, Progress("distil", events.append))
    assert labels.names == ("liver", "spleen", "kidney")
    assert [e["text"].partition(";")[0] for e in events] == [
        "the experts do not know spleen", "the teachers do not know kidney",
    ]  # fmt: skip
    (_, expert), (_, soft) = (item.read(labels) for item in found)
    values = annotation(theirs.values)
    assert (expert[0][values == 1] == 1).all() and (expert[0][values == 4] == 3).all()
    assert soft.shape == (4, *SHAPE) and not soft[3].any() and (soft.sum(0, dtype=int) == 255).all()
    assert [item.unknown(labels, target) for item, target in zip(found, (expert, soft), strict=True)] == [[2], [3]]


def test_synonyms_of_the_annotation_hold_for_experts_too(run, tmp_path):
    theirs = Labels.from_names({1: "Leber", 2: "spleen"})
    cases = [a_case(tmp_path, "e", theirs), a_case(tmp_path, "t")]
    annotated(run, cases[1])
    write_settings(run, "annotate", AnnotateSettings(synonyms={"Leber": "liver"}))
    cohort = Cohort(tuple(cases), theirs)
    found = training_cases_of(run, cohort, DistilSettings(annotations="both"), Progress("distil"))
    assert labels_to_learn(run, cohort, found, Progress("distil")) == LABELS
    _, target = found[0].read(LABELS)
    assert (target[0][annotation(theirs.values) == 1] == 1).all() and found[0].unknown(LABELS, target) == []


def test_a_structure_that_no_teacher_judged_is_unknown_unless_a_person_drew_it(run, tmp_path):
    cases = [a_case(tmp_path, f"c{n}") for n in range(3)]
    for case in cases:
        annotated(run, case)
    record = read_json(run.annotations)
    for case in cases[1:]:
        record["cases"][case.id]["unknown"] = ["spleen"]
        write_annotation(run.pseudo_annotation(case.id), annotation((0, 2)), np.eye(4), LABELS)
        write_probabilities(run.probability_maps(case.id), np.zeros((*SHAPE, 2), np.uint8), np.eye(4))
        record["cases"][case.id]["sha256"] = sha256(run.pseudo_annotation(case.id))
    write_json(run.annotations, record)
    write_annotation(run.corrected_annotation("c2"), annotation((0, 2, 7)), np.eye(4), LABELS)
    found = training_cases_of(run, Cohort(tuple(cases)), DistilSettings(), Progress("distil"))
    assert [item.unknown(LABELS, item.read(LABELS)[1]) for item in found] == [[], [2], []]


def test_cases_with_too_little_or_too_uncertain_foreground_are_left_out_with_the_reason(run, tmp_path):
    cases = [a_case(tmp_path, f"c{n}") for n in range(5)]
    for case in cases:
        annotated(run, case)
    record = read_json(run.annotations)
    for case, confidence, voxels in zip(cases, (0.9, 0.4, 0.9, 0.3, 0.2), (50, 50, 9, 9, 9), strict=True):
        record["cases"][case.id] |= {"confidence": confidence, "foreground_voxels": voxels}
    write_json(run.annotations, record)
    write_annotation(run.corrected_annotation("c4"), annotation(), np.eye(4), LABELS)
    progress, cohort = Progress("distil"), Cohort(tuple(cases))
    settings = DistilSettings(least_confidence=0.5, least_foreground_voxels=10)
    found = training_cases_of(run, cohort, settings, progress)
    assert [item.case.id for item in found] == ["c0", "c4"], "what a person corrected stays"
    assert progress.left_out == [
        {"case": "c1", "message": "is left out: its confidence of 0.4 is below 0.5"},
        {"case": "c2", "message": "is left out: 9 voxels lie in structures, fewer than 10"},
        {
            "case": "c3",
            "message": "is left out: its confidence of 0.3 is below 0.5 and 9 voxels lie in structures, fewer than 10",
        },
    ]
    assert len(training_cases_of(run, cohort, DistilSettings(), Progress("distil"))) == 5
    with pytest.raises(ValueError, match="5 of 5 cases .* but 4 have too little or too uncertain foreground"):
        training_cases_of(run, cohort, dataclasses.replace(settings, least_confidence=1.0), Progress("distil"))


@pytest.mark.parametrize(
    ("wanted", "advice"), [("pseudo", "annotate the cohort first"), ("expert", "expert annotations")]
)
def test_too_few_lessons_are_refused_with_what_is_missing(run, tmp_path, wanted, advice):
    cohort = Cohort(tuple(a_case(tmp_path, f"c{n}") for n in range(3)))
    with pytest.raises(ValueError, match=f"0 of 3 cases have .*{advice}.*at least 2"):
        training_cases_of(run, cohort, DistilSettings(annotations=wanted), Progress("distil"))


def test_structures_that_nobody_names_are_numbered_with_a_warning(run, tmp_path):
    cohort = Cohort(tuple(a_case(tmp_path, f"c{n}", LABELS) for n in range(2)))
    events = []
    found = training_cases_of(run, cohort, DistilSettings(annotations="expert"), Progress("distil"))
    labels = labels_to_learn(run, cohort, found, Progress("distil", events.append))
    assert labels.names == ("structure 2", "structure 7")
    assert [e["event"] for e in events] == ["warning"]


def test_a_segmentation_names_its_structures_itself(run, tmp_path):
    cases = []
    for n in range(2):
        case = a_case(tmp_path, f"c{n}")
        write_annotation(tmp_path / f"c{n}.seg.nrrd", annotation(), np.eye(4), LABELS)
        cases.append(dataclasses.replace(case, label=tmp_path / f"c{n}.seg.nrrd"))
    cohort = Cohort(tuple(cases))
    found = training_cases_of(run, cohort, DistilSettings(annotations="expert"), Progress("distil"))
    assert labels_to_learn(run, cohort, found, Progress("distil")) == LABELS


def test_annotations_without_any_structure_are_refused(run, tmp_path):
    cases = []
    for n in range(2):
        case = a_case(tmp_path, f"c{n}", LABELS)
        write_annotation(case.label, np.zeros(SHAPE, np.uint8), np.eye(4), LABELS)
        cases.append(case)
    cohort = Cohort(tuple(cases))
    found = training_cases_of(run, cohort, DistilSettings(annotations="expert"), Progress("distil"))
    with pytest.raises(ValueError, match="no annotation holds a structure"):
        labels_to_learn(run, cohort, found, Progress("distil"))


def test_a_single_slice_among_volumes_is_left_out_and_the_others_go_on(tmp_path):
    cohort = read_cohort(write_phantom(tmp_path / "cohort", 4, size_voxels=(16, 16, 16)))
    volume, expert = read_image(cohort.cases[1].images), read_annotation(cohort.cases[1].label)
    write_image(cohort.cases[1].images[0], volume.array[0, :, :, 8:9], volume.affine)
    write_annotation(cohort.cases[1].label, expert[:, :, 8:9], volume.affine, cohort.labels)
    result = distil(tmp_path / "run", cohort, annotations="expert", epochs=1)
    assert [problem["case"] for problem in result["problems"]] == ["A_002"]
    assert "single slice" in result["problems"][0]["message"]
    assert "expert annotations of 3 images" in (tmp_path / "run" / "student" / "docs" / "README.md").read_text()


def scans(patients: int, each: int) -> list[Case]:
    return [Case(f"p{p}_{n}", (), group=f"p{p}") for p in range(patients) for n in range(each)]


@pytest.mark.parametrize(("patients", "share", "held_out"), [(20, 0.15, 3), (10, 0.5, 5), (2, 0.15, 1), (3, 0.99, 2)])
def test_patients_are_on_one_side_and_everyone_is_somewhere(patients, share, held_out):
    cases = scans(patients, 3)
    learnt, held = split_by_group(cases, DistilSettings(validation_share=share))
    assert {c.group for c in learnt} & {c.group for c in held} == set()
    assert sorted(c.id for c in learnt + held) == sorted(c.id for c in cases)
    assert len({c.group for c in held}) == held_out


def test_the_split_depends_on_the_seed_and_not_on_the_order_of_the_cases():
    cases = scans(12, 2)
    held = [{c.group for c in split_by_group(order, DistilSettings())[1]} for order in (cases, cases[::-1])]
    others = [{c.group for c in split_by_group(cases, DistilSettings(seed=seed))[1]} for seed in range(1, 6)]
    assert held[0] == held[1]
    assert any(other != held[0] for other in others)


def test_a_single_patient_is_on_both_sides():
    cases = scans(1, 4)
    assert split_by_group(cases, DistilSettings()) == (cases, cases)


def test_a_hard_annotation_at_half_the_size_keeps_its_volume():
    """Deciding after an interpolation by exactly 2 would give every tie to the background."""
    from KnowledgeTransferLib.learning.preprocessing import Normalisation, Preprocessing
    from KnowledgeTransferLib.learning.training_cases import on_grid
    from KnowledgeTransferLib.learning.volume import Volume

    i, j, k = np.mgrid[:24, :24, :24]
    ball = (((i - 11.5) ** 2 + (j - 11.5) ** 2 + (k - 11.5) ** 2) < 64).astype(np.uint8)
    volume = Volume(np.random.default_rng(0).normal(size=(1, 24, 24, 24)).astype(np.float32), np.eye(4))
    preprocessing = Preprocessing(3, (2.0, 2.0, 2.0), (Normalisation("z-score"),))
    image, target = on_grid(volume, ball[None], Labels.from_names({1: "ball"}), preprocessing)
    assert tuple(image.shape) == (1, 12, 12, 12) and tuple(target.shape) == (2, 12, 12, 12)
    assert (target.int().sum(0) - 255).abs().max() <= 1
    assert target[1].sum().item() / 255 * 8 == pytest.approx(ball.sum(), rel=0.02)


def test_a_corrected_pseudo_annotation_stands_above_the_probabilities(run, a_cohort):
    case = a_cohort.cases[2]
    corrected = np.full(SHAPE, LABELS.values[1], np.uint8)
    write_annotation(run.pseudo_annotation(case.id), corrected, np.eye(4), LABELS)
    found = training_cases_of(run, a_cohort, DistilSettings(), Progress("distil"))
    item = next(item for item in found if item.case.id == case.id)
    assert item.probabilities is None and (item.read(LABELS)[1] == 1).all()
    assert all(other.probabilities for other in found if other is not item)


def test_a_pseudo_annotation_of_another_image_with_the_same_id_is_not_taken(run, a_cohort, tmp_path):
    others = [dataclasses.replace(case, images=(tmp_path / "elsewhere.nii.gz",)) for case in a_cohort.cases]
    with pytest.raises(ValueError, match="0 of 7 cases have pseudo-annotations"):
        training_cases_of(run, Cohort(tuple(others), LABELS), DistilSettings(), Progress("distil"))


def test_cases_without_an_annotation_are_said_to_be_left_out(run, a_cohort):
    events = []
    training_cases_of(run, a_cohort, DistilSettings(), Progress("distil", events.append))
    assert "4 of 7 cases have pseudo-annotations" in events[-1]["text"] and "left out" in events[-1]["text"]


def test_probabilities_that_lie_elsewhere_are_refused(run, a_cohort):
    case = a_cohort.cases[2]
    soft = np.full((3, *SHAPE), 1 / 3, np.float32)
    write_probabilities(run.probability_maps(case.id), steps_of(soft), np.diag([3.0, 3.0, 3.0, 1.0]))
    item = next(
        i for i in training_cases_of(run, a_cohort, DistilSettings(), Progress("distil")) if i.case.id == case.id
    )
    with pytest.raises(ValueError, match="mm away"):
        item.read(LABELS)


def test_one_damaged_label_file_does_not_stop_a_cohort_without_names(run, a_cohort):
    cases = tuple(case for case in a_cohort.cases if case.label)
    cases[0].label.write_bytes(b"")
    cohort = Cohort(cases)
    found = training_cases_of(run, cohort, DistilSettings(annotations="expert"), Progress("distil"))
    assert labels_to_learn(run, cohort, found, Progress("distil")).values == (0, 2, 7)


def test_experts_without_names_are_not_mixed_with_teachers(run, a_cohort):
    cohort = Cohort(a_cohort.cases)
    found = training_cases_of(run, cohort, DistilSettings(annotations="both"), Progress("distil"))
    with pytest.raises(ValueError, match="need names"):
        labels_to_learn(run, cohort, found, Progress("distil"))


@pytest.mark.parametrize(("share", "count"), [(1.0, 8), (0.5, 4), (0.25, 2), (0.01, 1), (0.0, 0)])
def test_a_share_of_the_labelled_patients_keeps_whole_patients(share, count):
    cases = [Case(f"c{n}", (Path("i"),), Path("l"), f"patient {n // 2}") for n in range(16)]
    cohort = Cohort((*cases, Case("u", (Path("i"),))), None)
    kept = {
        case.group for case in with_labelled_share(cohort, DistilSettings(labelled_share=share)).cases if case.label
    }
    assert len(kept) == count
    assert len(with_labelled_share(cohort, DistilSettings(labelled_share=share)).cases) == 17
    more = with_labelled_share(cohort, DistilSettings(labelled_share=min(1.0, share + 0.25))).cases
    assert kept <= {case.group for case in more if case.label}
    for case in with_labelled_share(cohort, DistilSettings(labelled_share=share)).cases:
        assert (case.label is not None) == (case.group in kept)


def test_the_seed_decides_which_patients_are_labelled():
    cohort = Cohort(tuple(Case(f"c{n}", (Path("i"),), Path("l")) for n in range(20)), None)
    kept = [
        {c.id for c in with_labelled_share(cohort, DistilSettings(labelled_share=0.5, seed=seed)).cases if c.label}
        for seed in (0, 0, 1)
    ]
    assert kept[0] == kept[1] != kept[2]
