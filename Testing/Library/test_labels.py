"""Labels: structures from every kind of list, their colours, terminology and what is refused."""

import json

import pytest

from KnowledgeTransferLib.records.labels import (
    PALETTE,
    Labels,
    Structure,
    labels_of_dataset,
    read_labels,
    terminology_of,
)


def test_names_of_a_medical_decathlon_data_set_are_read(tmp_path):
    file = tmp_path / "dataset.json"
    file.write_text(json.dumps({"labels": {"0": "background", "1": "liver", "2": "spleen"}}))
    labels = read_labels(file)
    assert labels.names == ("liver", "spleen")
    assert labels.values == (0, 1, 2)


def test_names_of_an_nnunet_data_set_are_read(tmp_path):
    file = tmp_path / "dataset.json"
    file.write_text(json.dumps({"labels": {"background": 0, "spleen": 2, "liver": 1}}))
    assert read_labels(file).names == ("liver", "spleen")


def test_a_color_table_of_slicer_gives_names_with_blanks_and_colors(tmp_path):
    file = tmp_path / "colors.ctbl"
    file.write_text("# Color table\n0 Background 0 0 0 0\n1 right_kidney 185 102 83 255\n7 left kidney 10 20 30 255\n")
    labels = read_labels(file)
    assert labels.names == ("right kidney", "left kidney")
    assert labels.values == (0, 1, 7)
    assert labels.structures[0].color == (185, 102, 83)


def test_own_structures_win_over_plain_names_and_keep_color_and_terminology():
    own = Labels((Structure.named("tumour", 3, (1, 2, 3), "a~b~c~d~e~f~g|"),))
    dataset = {"labels": {"background": 0, "something else": 3}, "structures": own.to_json()}
    assert labels_of_dataset(dataset) == own


def test_labels_survive_json():
    labels = Labels.from_names({1: "liver", 4: "Läsion links"})
    assert Labels.from_json(json.loads(json.dumps(labels.to_json()))) == labels


def test_a_data_set_without_names_gives_none():
    assert labels_of_dataset({"modality": "CT"}) is None
    assert labels_of_dataset({"labels": ["liver"]}) is None


def test_colors_differ_until_the_palette_is_used_up():
    labels = Labels.unnamed(range(1, len(PALETTE) + 1))
    assert len({s.color for s in labels.structures}) == len(PALETTE)
    assert labels.names[0] == "structure 1"


def test_terminology_has_the_seven_parts_that_slicer_expects():
    for name in ("liver", "left kidney", "Left_Ventricle", "no such thing"):
        assert terminology_of(name).endswith("|")
        parts = terminology_of(name).rstrip("|").split("~")
        assert len(parts) == 7
        assert all(part.count("^") == 2 for part in (*parts[1:4], *parts[5:]))


def test_terminology_knows_sides_but_keeps_names_that_hold_one():
    assert "SCT^64033007^Kidney~SCT^24028007^Right" in terminology_of("right kidney")
    assert "SCT^87878005^Left ventricle~^^" in terminology_of("left ventricle")
    assert "Tissue" in terminology_of("hippocampus head")


@pytest.mark.parametrize(
    ("names", "message"),
    [({0: "background", 256: "a"}, "label value 256; 1 to 255"), ({1: "liver", 2: "liver"}, "structure name liver")],
)
def test_values_beyond_255_and_names_used_twice_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        Labels.from_names(names)


def test_a_value_used_twice_is_refused():
    with pytest.raises(ValueError, match="label value 1 is used more than once"):
        Labels((Structure.named("a", 1), Structure.named("b", 1)))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("dataset.json", "{", "dataset.json: .*cannot be read"),
        ("dataset.json", "[]", "names no structures"),
        ("dataset.json", '{"labels": {"background": 0}}', "names no structures"),
        ("dataset.json", '{"labels": {"kidney": [1, 2]}}', "dataset.json: .*'kidney'.*not understood"),
        ("dataset.json", '{"structures": [{"name": "liver"}]}', "dataset.json: .*whole-number value"),
        ("dataset.json", '{"structures": 5}', "dataset.json: .*list"),
        ("dataset.json", '{"structures": [{"name": "a", "value": 1, "color": "red"}]}', "dataset.json: .*colour"),
        (
            "dataset.json",
            '{"structures": [{"name": "a", "value": 1, "color": [0, 0, 999]}]}',
            "dataset.json: .*0 to 255",
        ),
        ("a.ctbl", "liver is 1\n", "a.ctbl: .*line 1"),
        ("a.ctbl", "1 liver x y z 255\n", "a.ctbl: .*line 1"),
        ("a.ctbl", "", "names no structures"),
    ],
)
def test_a_list_that_cannot_be_understood_is_named_with_the_reason(tmp_path, name, text, message):
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_labels(file)
