"""Many teachers, end to end: partial teachers and partial experts make one student that knows all their structures."""

from pathlib import Path

import numpy as np
import pytest

from KnowledgeTransferLib.learning.phantom import LABELS
from KnowledgeTransferLib.learning.student import load_student
from KnowledgeTransferLib.learning.volume import read_annotation, read_image, write_annotation, write_image
from KnowledgeTransferLib.records.cohort import read_cohort, write_names
from KnowledgeTransferLib.records.labels import Labels, read_labels
from KnowledgeTransferLib.records.run_directory import RunDirectory, read_json
from KnowledgeTransferLib.steps.annotate import annotate
from KnowledgeTransferLib.steps.distil import distil

DISCS = Labels.from_names({3: "bright disc", 5: "dark disc"})
SIZE = (32, 32)


def only(cohort: Path, folder: Path, labels: Labels, names: tuple[str, ...], cases: slice = slice(None)) -> Path:
    """A teacher: the expert annotations of some structures, under these names, for some cases."""
    kept = Labels(tuple(s for s in labels.structures if s.name in names))
    for case in read_cohort(cohort).cases[cases]:
        volume = read_image(case.images)
        expert = read_annotation(case.label, labels, volume)
        write_annotation(
            folder / f"{case.id}.nii.gz", np.where(np.isin(expert, kept.values), expert, 0), volume.affine, kept
        )
    write_names(folder, kept)
    return folder


@pytest.fixture(scope="module")
def discs(tmp_path_factory) -> Path:
    """Eight noisy pictures, each with a bright and a dark disc, with expert annotations; do not change it."""
    folder, (i, j) = tmp_path_factory.mktemp("cohort") / "discs", np.mgrid[: SIZE[0], : SIZE[1]]
    for number in range(8):
        random = np.random.default_rng(number)
        bright, dark = (
            ((i - random.integers(9, 22)) ** 2 + (j - column) ** 2 < 25)[..., None] for column in (8, 23)
        )  # fmt: skip
        grey = 120 + 80 * bright - 80 * dark + random.integers(-20, 20, (*SIZE, 1))
        write_image(folder / "images" / f"p{number}.png", grey.astype(np.uint8), np.eye(4))
        write_annotation(
            folder / "labels" / f"p{number}.png", (3 * bright + 5 * dark).astype(np.uint8), np.eye(4), DISCS
        )
    write_names(folder, DISCS)
    return folder


def dice_of(student: Path, cohort: Path) -> dict[str, float]:
    """Structure -> mean Dice with the experts."""
    student, scores = load_student(student), {name: [] for name in DISCS.names}
    values = dict(zip(DISCS.names, DISCS.values[1:], strict=True))
    for case in read_cohort(cohort).cases:
        found, expert = student.segment(read_image(case.images)), read_annotation(case.label, DISCS)
        for structure in student.labels.structures:
            a, b = found == structure.value, expert == values[structure.name]
            scores[structure.name].append(2 * (a & b).sum() / (a.sum() + b.sum()))
    return {name: float(np.mean(values)) for name, values in scores.items()}


def test_two_partial_teachers_teach_the_very_student_of_a_teacher_that_knows_both(a_foreign_cohort, tmp_path):
    parts = [only(a_foreign_cohort, tmp_path / n[0], LABELS, n) for n in (LABELS.names[:2], LABELS.names[2:])]
    whole = only(a_foreign_cohort, tmp_path / "whole", LABELS, LABELS.names)
    weights = []
    for run, teachers in (("partial", parts), ("both", [whole])):
        annotate(tmp_path / run, a_foreign_cohort, {str(teacher): 1.0 for teacher in teachers})
        weights.append(Path(distil(tmp_path / run, epochs=2)["student"], "models/model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_a_structure_that_was_judged_in_some_cases_only_is_learnt_from_those(discs, tmp_path):
    bright = only(discs, tmp_path / "bright", DISCS, ("bright disc",))
    dark = only(discs, tmp_path / "dark", DISCS, ("dark disc",), slice(3))
    record = annotate(tmp_path / "run", discs, {str(bright): 1.0, str(dark): 1.0})
    assert [id_ for id_, case in record["cases"].items() if case.get("unknown") == ["dark disc"]] == [
        "p3", "p4", "p5", "p6", "p7",
    ]  # fmt: skip
    student = distil(tmp_path / "run", epochs=60)["student"]
    assert min(dice_of(student, discs).values()) > 0.85


def test_experts_who_know_one_structure_and_teachers_who_know_the_other_teach_both(discs, tmp_path):
    dark = only(discs, tmp_path / "dark", DISCS, ("dark disc",))
    annotate(tmp_path / "run", discs, {str(dark): 1.0})
    table = ["id,image,label"]
    experts = only(discs, tmp_path / "experts", DISCS, ("bright disc",), slice(4))
    for case in read_cohort(discs).cases:
        label = experts / f"{case.id}.nii.gz"
        table.append(f"{case.id},{case.images[0]},{label if label.is_file() else ''}")
    (tmp_path / "cohort.csv").write_text("\n".join(table))
    cohort = read_cohort(tmp_path / "cohort.csv", labels=experts / "dataset.json")
    wanted = {"annotations": "both", "expert_weight": 2.0, "voxel_weights": "certainty", "epochs": 60}
    student = distil(tmp_path / "run", cohort, **wanted)["student"]
    assert load_student(student).labels.names == ("dark disc", "bright disc")
    assert min(dice_of(student, discs).values()) > 0.8


def test_left_out_cases_stand_in_the_record_of_the_training(discs, tmp_path):
    folder = only(discs, tmp_path / "teacher", DISCS, DISCS.names)
    write_annotation(folder / "p2.nii.gz", np.zeros((*SIZE, 1), np.uint8), np.diag([-1.0, -1, 1, 1]), DISCS)
    annotate(tmp_path / "run", discs, {str(folder): 1.0})
    distil(tmp_path / "run", epochs=1, least_foreground_voxels=1)
    training = read_json(RunDirectory(tmp_path / "run").training)
    assert [case["case"] for case in training["left_out"]] == ["p2"]
    assert "7 images" in (tmp_path / "run" / "student" / "docs" / "README.md").read_text()


def test_a_student_that_teaches_the_next_one_is_then_tuned_on_experts_who_know_less(discs, tmp_path, command):
    """The commands of docs/teachers.md: transfer on the downstream set itself, a round of self-training, tuning."""
    folder = only(discs, tmp_path / "teacher", DISCS, DISCS.names)
    experts = only(discs, tmp_path / "experts", DISCS, ("dark disc",))
    table = "\n".join(f"{c.id},{c.images[0]},{experts / c.id}.nii.gz" for c in read_cohort(discs).cases)
    (tmp_path / "cohort.csv").write_text(f"id,image,label\n{table}")
    write_names(tmp_path, read_labels(experts / "dataset.json"))
    first, second, tuned = (tmp_path / name for name in ("first", "second", "tuned"))
    tuning = ("--annotations", "expert", "--from", second, "--epochs", 9)
    for line in (
        ("annotate", first, "--cohort", discs, "--teacher", folder),
        ("distil", first, "--epochs", 60),
        ("annotate", second, "--cohort", discs, "--teacher", first),
        ("distil", second, "--epochs", 60),
        ("distil", tuned, "--cohort", tmp_path / "cohort.csv", *tuning),
    ):
        outcome = command(*line)
        assert outcome.status == 0, outcome.messages
    assert load_student(tuned / "student").labels == DISCS
    assert min(dice_of(tuned / "student", discs).values()) > 0.85, "what the experts do not know is not forgotten"
