"""Describe: what a teacher or student is, whatever its kind, before anybody runs it."""

import shutil
from pathlib import Path

import pytest

from KnowledgeTransferLib.learning.phantom import LABELS
from KnowledgeTransferLib.learning.teachers import TEACHER_KINDS
from KnowledgeTransferLib.records.bundle import METADATA, write_checksums
from KnowledgeTransferLib.records.run_directory import read_json, write_json
from KnowledgeTransferLib.steps.describe import describe

STRUCTURES = [{"name": s.name, "color": list(s.color)} for s in LABELS.structures]


def test_a_student_tells_its_structures_its_channels_and_its_card(a_teacher):
    found = describe(a_teacher)
    assert (found["kind"], found["structures"], found["channels"]) == ("student", STRUCTURES, 1)
    assert (found["modality"], found["hint"]) == ("CT", "")
    assert "expert annotations of 4 images" in found["card"]
    assert "What it must not be used for" in found["card"]


def test_a_run_directory_is_described_by_its_student(a_teacher):
    assert describe(a_teacher.parent) == describe(a_teacher) | {"path": str(a_teacher.parent)}


def test_a_student_of_pictures_has_no_modality(a_picture_student):
    assert describe(a_picture_student)["modality"] == ""


def test_a_folder_of_segmentations_tells_their_structures(the_annotated_run):
    found = describe(the_annotated_run / "pseudo_annotations")
    assert (found["kind"], found["structures"], found["channels"]) == ("segmentations", STRUCTURES, None)
    assert found["card"].startswith("4 segmentations")


def test_a_folder_that_names_nothing_says_what_to_do(a_phantom_cohort, tmp_path):
    shutil.copytree(a_phantom_cohort / "labels", tmp_path / "labels")
    found = describe(tmp_path / "labels")
    assert [structure["name"] for structure in found["structures"]] == [f"structure {n}" for n in (1, 2, 3, 4)]
    assert "put a dataset.json into it" in found["hint"]


def test_what_is_unknown_ends_with_status_2_and_the_kinds_that_are_known(command, tmp_path):
    (tmp_path / "model.pth").write_bytes(b"x")
    outcome = command("describe", tmp_path / "model.pth")
    assert outcome.status == 2
    assert [event["event"] for event in outcome.events] == ["error"]
    assert all(kind.KIND in outcome.messages for kind in TEACHER_KINDS)
    assert command("describe", tmp_path / "nowhere").status == 2


def test_the_command_ends_with_one_event_that_tells_it_all(command, a_teacher):
    outcome = command("describe", a_teacher)
    assert outcome.status == 0
    assert [event["event"] for event in outcome.events] == ["done"]
    assert {k: v for k, v in outcome.events[0].items() if k not in ("time", "step", "event")} == describe(a_teacher)


@pytest.mark.parametrize("damage", ["labels", "preprocessing"])
def test_a_bundle_whose_metadata_lack_something_is_refused(a_teacher, tmp_path, damage):
    folder = Path(shutil.copytree(a_teacher, tmp_path / "bundle"))
    metadata = read_json(folder / METADATA)
    del metadata["knowledge_transfer"][damage]
    write_json(folder / METADATA, metadata)
    write_checksums(folder)
    with pytest.raises(ValueError, match="metadata are damaged"):
        describe(folder)


def test_each_kind_has_a_name_of_its_own():
    assert len({kind.NAME for kind in TEACHER_KINDS}) == len(TEACHER_KINDS)
