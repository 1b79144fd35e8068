"""Cohorts: folders, tables and dataset.json; ids; splits; what is refused."""

import json
from pathlib import Path

import pytest

from KnowledgeTransferLib.records.cohort import Case, Cohort, annotation_of, read_cohort, stem_of, write_names
from KnowledgeTransferLib.records.labels import Labels

DICOM = b"\0" * 128 + b"DICM"


def touch(*files: Path) -> None:
    """Make files that look like images by name; a cohort does not open them."""
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")


def ids(cohort: Cohort) -> list[str]:
    return [case.id for case in cohort.cases]


def test_a_folder_of_images_is_a_cohort_without_labels(tmp_path):
    touch(tmp_path / "b.nii.gz", tmp_path / "a.png", tmp_path / "notes.txt", tmp_path / ".hidden.nii.gz")
    cohort = read_cohort(tmp_path)
    assert ids(cohort) == ["a", "b"]
    assert all(case.label is None and case.group == case.id for case in cohort.cases)
    assert cohort.labels is None


def test_labels_lie_beside_images_in_any_format(tmp_path):
    touch(tmp_path / "images/a.nii.gz", tmp_path / "images/b.nrrd")
    touch(tmp_path / "labels/a.seg.nrrd", tmp_path / "labels/a.nii.gz", tmp_path / "labels/c.nrrd")
    case_a, case_b = read_cohort(tmp_path).cases
    assert case_a.label == tmp_path / "labels/a.seg.nrrd"
    assert case_b.label is None


def test_channels_of_nnunet_become_one_case(tmp_path):
    touch(
        tmp_path / "a_0000.nii.gz",
        tmp_path / "a_0001.nii.gz",
        tmp_path / "b_0000.nii.gz",
        tmp_path / "visit_2021.nii.gz",
    )
    cohort = read_cohort(tmp_path)
    assert ids(cohort) == ["a", "b", "visit_2021"]
    assert [file.name for file in cohort.cases[0].images] == ["a_0000.nii.gz", "a_0001.nii.gz"]


def test_dicom_series_are_cases_named_by_their_folder(tmp_path):
    for name in ("series 1/1.dcm", "series 1/2.dcm", "series 2/IM0"):
        touch(tmp_path / name)
        (tmp_path / name).write_bytes(DICOM)
    assert ids(read_cohort(tmp_path)) == ["series 1", "series 2"]
    assert ids(read_cohort(tmp_path / "series 1")) == ["series 1"]


def test_segmentations_of_slicer_are_no_images_but_may_be_labels(tmp_path):
    touch(tmp_path / "s1.nrrd", tmp_path / "Segmentation.seg.nrrd", tmp_path / "s1.SEG.NRRD")
    assert ids(read_cohort(tmp_path)) == ["s1"]
    touch(tmp_path / "both/images/a.nrrd", tmp_path / "both/images/a.seg.nrrd", tmp_path / "both/labels/a.seg.nrrd")
    (case,) = read_cohort(tmp_path / "both").cases
    assert (case.images[0].name, case.label) == ("a.nrrd", tmp_path / "both/labels/a.seg.nrrd")
    with pytest.raises(ValueError, match="no images found; looked for (?!.*seg.nrrd)"):
        read_cohort(tmp_path / "both/labels")


def test_one_image_is_a_cohort_of_one(tmp_path):
    touch(tmp_path / "a scan.seg.nrrd")
    assert ids(read_cohort(tmp_path / "a scan.seg.nrrd")) == ["a scan"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_table_may_be_written_by_any_program(tmp_path, delimiter, encoding, newline):
    lines = [
        ("id", "group", "split", "image", "label"),
        ("é 1", "p1", "test", "bilder/é 1.nii.gz", ""),
        ("2", "", "", "b.png", "c.png"),
    ]
    table = tmp_path / "cohort.csv"
    table.write_bytes(newline.join(delimiter.join(line) for line in lines).encode(encoding))
    first, second = read_cohort(table).cases
    assert (first.id, first.group, first.split, first.label) == ("é 1", "p1", "test", None)
    assert first.images == (tmp_path / "bilder/é 1.nii.gz",)
    assert (second.group, second.label) == ("2", tmp_path / "c.png")


def test_a_table_gives_several_channels_divided_by_a_bar(tmp_path):
    (tmp_path / "t.tsv").write_text("id\timage\na\tt1.nii.gz | t2.nii.gz\n")
    assert [file.name for file in read_cohort(tmp_path / "t.tsv").cases[0].images] == ["t1.nii.gz", "t2.nii.gz"]


def test_the_table_in_a_folder_is_used_with_the_dataset_beside_it(a_phantom_cohort):
    cohort = read_cohort(a_phantom_cohort, split="teacher")
    assert ids(cohort) == ["A_001", "A_002", "A_003"]
    assert cohort.labels.names == ("liver", "spleen", "left kidney", "right kidney")
    assert cohort.modality == "CT"


def test_a_medical_decathlon_data_set_is_read(tmp_path):
    dataset = {
        "modality": {"0": "CT"}, "labels": {"0": "background", "1": "spleen"}, "numTraining": 1,
        "training": [{"image": "./imagesTr/s_1.nii.gz", "label": "./labelsTr/s_1.nii.gz"}],
        "test": ["./imagesTs/s_2.nii.gz"],
    }  # fmt: skip
    (tmp_path / "dataset.json").write_text(json.dumps(dataset))
    cohort = read_cohort(tmp_path)
    assert [(c.id, c.split, c.label is None) for c in cohort.cases] == [
        ("s_1", "training", False),
        ("s_2", "test", True),
    ]
    assert cohort.modality == "CT"
    assert cohort.labels.names == ("spleen",)


def test_an_nnunet_data_set_is_read(tmp_path):
    touch(*(tmp_path / f"imagesTr/h_{n}_000{c}.nii.gz" for n in (1, 2) for c in (0, 1)))
    touch(tmp_path / "labelsTr/h_1.nii.gz", tmp_path / "labelsTr/h_2.nii.gz", tmp_path / "imagesTs/h_9_0000.nii.gz")
    dataset = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "head": 1}, "numTraining": 2}
    (tmp_path / "dataset.json").write_text(json.dumps(dataset))
    cohort = read_cohort(tmp_path / "dataset.json")
    assert [(c.id, c.split, len(c.images)) for c in cohort.cases] == [
        ("h_1", "training", 2),
        ("h_2", "training", 2),
        ("h_9", "test", 1),
    ]
    assert cohort.cases[0].label == tmp_path / "labelsTr/h_1.nii.gz"
    assert cohort.modality == "T1, T2"


@pytest.mark.parametrize("named", ["", "dataset.json"], ids=["folder", "file"])
def test_a_dataset_that_lists_no_cases_leaves_them_to_the_folder(tmp_path, named):
    write_names(tmp_path, Labels.from_names({1: "liver"}))
    touch(tmp_path / "a_0000.nii.gz", tmp_path / "a_0001.nii.gz", tmp_path / "b.nii.gz")
    cohort = read_cohort(tmp_path / named)
    assert [(case.id, len(case.images)) for case in cohort.cases] == [("a", 2), ("b", 1)]
    assert cohort.labels.names == ("liver",)


def test_a_dataset_beside_a_dicom_series_does_not_hide_it(tmp_path):
    touch(tmp_path / "series/1.dcm", tmp_path / "series/dataset.json")
    (tmp_path / "series/1.dcm").write_bytes(DICOM)
    (tmp_path / "series/dataset.json").write_text("{}")
    assert ids(read_cohort(tmp_path / "series")) == ["series"]


def test_the_first_nnunet_lists_images_without_the_number_of_their_channel(tmp_path):
    touch(*(tmp_path / f"imagesTr/{name}.nii.gz" for name in ("a_0000", "a_0001", "b_0000", "c", "c_0000")))
    entries = [{"image": f"./imagesTr/{id_}.nii.gz", "label": f"./labelsTr/{id_}.nii.gz"} for id_ in "abcd"]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": entries}))
    found = {case.id: [file.name for file in case.images] for case in read_cohort(tmp_path).cases}
    assert found == {
        "a": ["a_0000.nii.gz", "a_0001.nii.gz"], "b": ["b_0000.nii.gz"], "c": ["c.nii.gz"], "d": ["d.nii.gz"],
    }  # fmt: skip


def test_an_option_names_the_structures(tmp_path):
    touch(tmp_path / "images/a.nii.gz")
    (tmp_path / "names.ctbl").write_text("1 liver 1 2 3 255\n")
    assert read_cohort(tmp_path / "images", labels=tmp_path / "names.ctbl").labels.names == ("liver",)


def test_names_written_beside_label_maps_are_found_again(tmp_path):
    labels = Labels.from_names({1: "liver", 2: "spleen"})
    touch(tmp_path / "a.nii.gz")
    write_names(tmp_path, labels)
    (tmp_path / "images").mkdir()
    touch(tmp_path / "images/a.nii.gz")
    assert read_cohort(tmp_path).labels == labels


def test_a_cohort_survives_json(a_phantom_cohort):
    cohort = read_cohort(a_phantom_cohort)
    assert Cohort.from_json(json.loads(json.dumps(cohort.to_json()))) == cohort


def test_an_unknown_split_is_answered_with_those_there_are(a_phantom_cohort):
    with pytest.raises(ValueError, match="no case has the split 'nonsense'; splits found: teacher, test"):
        read_cohort(a_phantom_cohort, split="nonsense")


def test_an_empty_folder_is_refused_with_what_was_looked_for(tmp_path):
    with pytest.raises(ValueError, match=r"no images found; looked for \.nii\.gz"):
        read_cohort(tmp_path)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        read_cohort(tmp_path / "nowhere")


def test_two_formats_of_one_id_are_refused(tmp_path):
    touch(tmp_path / "a.png", tmp_path / "a.nii.gz")
    with pytest.raises(ValueError, match=r"two cases have the same id: a\.nii\.gz and a\.png"):
        read_cohort(tmp_path)


def test_ids_that_differ_in_case_alone_are_refused(tmp_path):
    (tmp_path / "c.csv").write_text("id,image\nScan,a.png\nscan,b.png\n")
    with pytest.raises(ValueError, match="two cases have the same id: Scan, scan"):
        read_cohort(tmp_path / "c.csv")


def test_a_file_and_a_dicom_folder_of_one_id_are_refused(tmp_path):
    touch(tmp_path / "a/1.dcm", tmp_path / "a.nii.gz")
    (tmp_path / "a/1.dcm").write_bytes(DICOM)
    with pytest.raises(ValueError, match=r"two cases have the same id: a\.nii\.gz and a$"):
        read_cohort(tmp_path)


@pytest.mark.parametrize("hostile", ["../x", "a/b", "..", ".", "", "C:x", "a\\b", "x\n", "a*"])
def test_ids_that_could_leave_the_run_directory_are_refused(hostile):
    with pytest.raises(ValueError, match="ids become file names"):
        Case(hostile, (Path("a.png"),))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "first line must name the columns id and image"),
        ("name,file\na,b\n", "first line must name the columns id and image .*found 'name,file'"),
        ("id,image\n", "names no cases"),
        ("id,image\na,a.png\n\n,b.png\n", "line 4: id or image is empty"),
        ("id,image\na\n", "line 2: id or image is empty"),
        ("id,image\n../x,a.png\n", "ids become file names"),
    ],
)
def test_a_table_that_cannot_be_understood_is_refused_with_the_line(tmp_path, text, message):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_cohort(tmp_path / "t.csv")


def test_a_table_with_a_field_beyond_all_bounds_is_refused(tmp_path):
    (tmp_path / "cohort.csv").write_text("id,image\na,a.nii.gz\nb," + "x" * 140_000)
    with pytest.raises(ValueError, match="line 3: cannot be read as a table .field larger than field limit"):
        read_cohort(tmp_path / "cohort.csv")


def test_a_folder_that_may_not_be_read_is_no_dicom_series(tmp_path, monkeypatch):
    (tmp_path / "a.nii.gz").touch()
    (tmp_path / "lost+found").mkdir()
    iterdir = Path.iterdir

    def refused(path):
        if path.name == "lost+found":
            raise PermissionError(13, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", refused)
    assert [case.id for case in read_cohort(tmp_path).cases] == ["a"]


def test_a_table_that_is_not_utf8_is_refused_with_advice(tmp_path):
    (tmp_path / "t.csv").write_bytes("id,image\né,a.png\n".encode("latin-1"))
    with pytest.raises(ValueError, match="save the table as CSV UTF-8"):
        read_cohort(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged"),
        ("[1]", "holds one object; found a list"),
        ('{"training": [{"label": "a"}]}', "entry 1 of training names no image"),
        ('{"training": 3}', "no images found"),
        ('{"training": [{"image": "a.png", "label": 5}]}', "entry 1 of training names its label by 5"),
        ('{"cases": [{"id": "../x", "image": "a.png"}]}', "ids become file names"),
    ],
)
def test_a_dataset_that_cannot_be_understood_is_refused(tmp_path, text, message):
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_cohort(tmp_path)


def test_many_cases_are_read_at_once(tmp_path):
    rows = "".join(f"case {n},images/{n}.nii.gz\n" for n in range(20_000))
    (tmp_path / "t.csv").write_text("id,image\n" + rows)
    assert len(read_cohort(tmp_path / "t.csv").cases) == 20_000


@pytest.mark.parametrize(
    ("name", "stem"),
    [("a.nii.gz", "a"), ("A.B.SEG.NRRD", "A.B"), ("é 1.png", "é 1"), ("folder", "folder"), ("a.xyz", "a")],
)
def test_the_stem_leaves_out_the_whole_suffix(name, stem):
    assert stem_of(Path(name)) == stem


def test_an_annotation_is_found_only_for_its_own_id(tmp_path):
    touch(tmp_path / "case_10.nii.gz")
    assert annotation_of("case_1", tmp_path) is None
    assert annotation_of("case_10", tmp_path) == tmp_path / "case_10.nii.gz"
    assert annotation_of("case_10", tmp_path / "nowhere") is None
