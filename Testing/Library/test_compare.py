"""Compare: structures of two segmentations matched by name, in one geometry."""

import numpy as np
import pytest

from KnowledgeTransferLib.learning.metrics import measure
from KnowledgeTransferLib.learning.volume import write_annotation
from KnowledgeTransferLib.records.cohort import write_names
from KnowledgeTransferLib.records.labels import Labels
from KnowledgeTransferLib.steps.compare import compare

AFFINE = np.diag([2.0, 2.0, 2.5, 1.0])
ONE = Labels.from_names({1: "liver", 2: "left kidney"})
OTHER = Labels.from_names({1: "Left_Kidney", 5: "spleen", 9: "liver"})


def boxes(shift: int = 0, **values: int) -> np.ndarray:
    """Liver 8 x 10 x 4 voxels, left kidney 4 x 4 x 4, spleen 2 x 2 x 2."""
    array = np.zeros((30, 24, 10), np.uint8)
    array[2 + shift : 10 + shift, 4:14, 2:6] = values.get("liver", 0)
    array[14:18, 4:8, 3:7] = values.get("kidney", 0)
    array[22:24, 4:6, 3:5] = values.get("spleen", 0)
    return array


@pytest.fixture
def pair(tmp_path):
    """Two files that number the structures in their own ways; the second's liver lies 2 voxels further along I."""
    files = tmp_path / "a.seg.nrrd", tmp_path / "b.seg.nrrd"
    write_annotation(files[0], boxes(liver=1, kidney=2), AFFINE, ONE)
    write_annotation(files[1], boxes(2, liver=9, kidney=1, spleen=5), AFFINE, OTHER)
    return files


def rows(result: dict) -> dict[str, dict]:
    return {row["name"]: row for row in result["structures"]}


def test_structures_are_matched_by_name_whatever_their_values(pair):
    found = rows(compare(*pair))
    assert list(found) == ["liver", "left kidney", "spleen"]
    assert (found["left kidney"]["dice"], found["left kidney"]["hd95_mm"]) == (1.0, 0.0)
    assert found["liver"]["dice"] == pytest.approx(6 / 8)
    assert found["liver"]["volume_ml"] == found["liver"]["reference_ml"] == 8 * 10 * 4 * 10 / 1000


def test_the_figures_are_those_of_evaluate(pair):
    expected = measure(boxes(liver=1), boxes(2, liver=1), {"liver": 1}, (2.0, 2.0, 2.5))["liver"]
    found = rows(compare(*pair))["liver"]
    assert (found["dice"], found["hd95_mm"]) == (pytest.approx(expected["dice"]), pytest.approx(expected["hd95_mm"]))


def test_a_structure_that_only_one_knows_is_listed_without_agreement(pair):
    expected = {"name": "spleen", "dice": None, "hd95_mm": None, "volume_ml": None, "reference_ml": 0.08}
    assert rows(compare(*pair))["spleen"] == expected
    assert rows(compare(*reversed(pair)))["spleen"] == expected | {"volume_ml": 0.08, "reference_ml": None}


def test_what_is_empty_in_one_has_dice_0_and_in_both_none(tmp_path):
    files = tmp_path / "a.seg.nrrd", tmp_path / "b.seg.nrrd"
    write_annotation(files[0], boxes(liver=1), AFFINE, Labels.from_names({1: "liver", 2: "gallbladder"}))
    write_annotation(files[1], boxes(), AFFINE, Labels.from_names({1: "liver", 2: "gallbladder"}))
    found = rows(compare(*files))
    assert (found["liver"]["dice"], found["liver"]["reference_ml"]) == (0, 0)
    assert found["liver"]["hd95_mm"] == pytest.approx(np.linalg.norm([60, 48, 25]))
    assert (found["gallbladder"]["dice"], found["gallbladder"]["hd95_mm"]) == (None, None)


def test_label_maps_take_their_names_from_a_dataset_beside_them(pair, tmp_path):
    write_annotation(tmp_path / "maps" / "c.nii.gz", boxes(liver=1, kidney=2), AFFINE, ONE)
    write_names(tmp_path / "maps", ONE)
    assert rows(compare(tmp_path / "maps" / "c.nii.gz", pair[0]))["liver"]["dice"] == 1


def test_label_maps_that_nothing_names_are_compared_by_value(tmp_path):
    for name in ("a.nii.gz", "b.mha"):
        write_annotation(tmp_path / name, boxes(liver=1, kidney=2), AFFINE, ONE)
    found = rows(compare(tmp_path / "a.nii.gz", tmp_path / "b.mha"))
    assert {name: row["dice"] for name, row in found.items()} == {"structure 1": 1, "structure 2": 1}


@pytest.mark.parametrize("what", ["shape", "place"])
def test_another_geometry_is_refused(pair, tmp_path, command, what):
    array, affine = boxes(liver=1), AFFINE.copy()
    affine[0, 3] = 7.0 if what == "place" else 0
    write_annotation(tmp_path / "c.seg.nrrd", array[:20] if what == "shape" else array, affine, ONE)
    outcome = command("compare", pair[0], tmp_path / "c.seg.nrrd")
    assert outcome.status == 2
    assert (
        "c.seg.nrrd: " + {"shape": "has 20 x 24 x 10 voxels", "place": "lies up to 7.00 mm"}[what] in outcome.messages
    )


def test_no_name_in_common_is_refused_with_the_names(pair, tmp_path, command):
    write_annotation(tmp_path / "c.seg.nrrd", boxes(liver=1), AFFINE, Labels.from_names({1: "heart"}))
    outcome = command("compare", pair[0], tmp_path / "c.seg.nrrd")
    assert outcome.status == 2
    assert "no structure has the same name" in outcome.messages and "heart" in outcome.messages


def test_the_command_ends_with_one_event_that_tells_it_all(pair, command):
    outcome = command("compare", *pair)
    assert outcome.status == 0
    assert [event["event"] for event in outcome.events] == ["done"]
    assert outcome.events[0]["structures"] == compare(*pair)["structures"]


def test_a_map_whose_axes_run_otherwise_is_turned(tmp_path):
    """As Slicer does with a left-handed NIfTI when it loads one."""
    files = tmp_path / "turned.nii.gz", tmp_path / "as_it_was.nii.gz"
    turned = AFFINE @ np.diag([-1.0, 1, 1, 1])
    turned[0, 3] = 2.0 * (30 - 1)
    write_annotation(files[0], boxes(liver=1, kidney=2)[::-1].copy(), turned, ONE)
    write_annotation(files[1], boxes(liver=1, kidney=2), AFFINE, ONE)
    assert {row["dice"] for row in compare(*files)["structures"]} == {1.0}
