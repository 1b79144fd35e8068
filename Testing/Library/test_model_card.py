"""Model card: what the bundle tells people, in Markdown and for MONAI."""

import re

import pytest

from KnowledgeTransferLib import __version__
from KnowledgeTransferLib.learning.model_card import model_card, monai_inference, monai_metadata
from KnowledgeTransferLib.learning.networks import build_named_network
from KnowledgeTransferLib.learning.preprocessing import Normalisation, Preprocessing
from KnowledgeTransferLib.learning.student import Student
from KnowledgeTransferLib.records.labels import Labels
from KnowledgeTransferLib.records.students import STUDENTS, design_named

LABELS = Labels.from_names({3: "liver", 8: "left kidney"})


def a_student(name: str = "tiny", dimensions: int = 3, **card) -> Student:
    preprocessing = Preprocessing(dimensions, (0.7, 0.75, 5.0), (Normalisation("ct", -100, 200, 50, 40),) * 2)
    network = build_named_network(name, dimensions, 2, LABELS.channels)
    return Student(network, design_named(name), LABELS, preprocessing, card)


def test_the_card_says_what_is_segmented_taught_and_measured():
    text = model_card(a_student(taught_by="It learnt from two teachers.", figures={"mean Dice": 0.8712}))
    for part in ("| 3 | liver |", "| 8 | left kidney |", "It learnt from two teachers.", "- mean Dice: 0.8712"):
        assert part in text
    for part in ("0.7 x 0.75 x 5 mm", "2 channel(s)", "Intensities: ct", f"KnowledgeTransfer {__version__}"):
        assert part in text
    assert f"{a_student().parameters} parameters" in text


def test_the_card_says_what_it_must_not_be_used_for():
    text = model_card(a_student())
    assert "no medical device" in text and "not validated for diagnosis or treatment" in text


def test_what_is_not_known_is_said_so():
    text = model_card(a_student())
    assert "Not recorded." in text and "Not measured." in text


@pytest.mark.parametrize(("dimensions", "words"), [(2, "Images, or volumes slice by slice"), (3, "Volumes with")])
def test_the_card_says_whether_it_works_slice_by_slice(dimensions, words):
    assert words in model_card(a_student(dimensions=dimensions))


@pytest.mark.parametrize("name", STUDENTS)
def test_the_card_of_every_design_is_filled_in(name):
    text = model_card(a_student(name))
    assert f"# Student `{name}`" in text
    assert not re.search(r"\{|\}|None|nan|<", text), "a gap was left"
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert tables[0] == "| value | structure |" and tables[1] == "|---|---|" and len(tables) == 4


@pytest.mark.parametrize("dimensions", [2, 3])
def test_monai_is_told_channels_and_sizes(dimensions):
    student = a_student(dimensions=dimensions)
    content = monai_metadata(student)["network_data_format"]
    image, pred = content["inputs"]["image"], content["outputs"]["pred"]
    assert (image["num_channels"], pred["num_channels"]) == (2, 3)
    assert len(image["spatial_shape"]) == len(pred["spatial_shape"]) == dimensions
    (steps,) = {int(size.removesuffix("*n")) for size in image["spatial_shape"]}
    assert steps % student.network.total_stride == 0
    assert pred["channel_def"] == {"0": "background", "1": "liver", "2": "left kidney"}


def test_monai_builds_the_network_from_our_table_alone():
    definition = dict(monai_inference(a_student())["network_def"])
    target = definition.pop("_target_")
    module, _, function = target.rpartition(".")
    assert target == f"{build_named_network.__module__}.{build_named_network.__qualname__}"
    assert (module, function) == ("KnowledgeTransferLib.learning.networks", "build_named_network")
    assert definition == {"name": "tiny", "dimensions": 3, "in_channels": 2, "classes": 3}


def test_the_task_names_the_structures():
    metadata = monai_metadata(a_student())
    assert metadata["task"] == "Segmentation of liver, left kidney"
    assert metadata["version"] == __version__
    assert "+" not in metadata["pytorch_version"]
