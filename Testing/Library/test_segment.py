"""Segment: any format in, any format out, in the geometry of the input; nothing is overwritten unasked."""

import json
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from KnowledgeTransferLib.learning.phantom import LABELS, phantom_case
from KnowledgeTransferLib.learning.segments import labels_of_segmentation
from KnowledgeTransferLib.learning.student import Student, load_student
from KnowledgeTransferLib.learning.volume import read_annotation, read_image, write_annotation, write_image
from KnowledgeTransferLib.records.bundle import WEIGHTS
from KnowledgeTransferLib.records.cohort import read_cohort
from KnowledgeTransferLib.records.labels import read_labels
from KnowledgeTransferLib.records.progress import Cancelled
from KnowledgeTransferLib.records.run_directory import RunDirectory
from KnowledgeTransferLib.steps.segment import segment

REPOSITORY = Path(__file__).parents[2]
ONLY_NIFTI = """
import sys
from KnowledgeTransferLib.__main__ import main
status = main(sys.argv[1:])
sys.stderr.write(f"status {status}, loaded {[n for n in ('SimpleITK', 'monai', 'torch._dynamo') if n in sys.modules]}")
"""
FORMATS = (".seg.nrrd", ".nii.gz", ".nii", ".nrrd", ".mha")


@pytest.fixture(scope="session")
def a_scan(tmp_path_factory) -> Path:
    """A scan whose axes are neither in Slicer's order nor parallel to the patient's; do not change it."""
    volume, _ = phantom_case(3, "A", (32, 30, 20))
    angle = np.deg2rad(12)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    path = tmp_path_factory.mktemp("scan") / "scan.nii.gz"
    affine = turn @ volume.affine
    # stored as (superior, left, anterior)
    swap = np.array([[0, -1, 0, 31], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
    write_image(path, np.ascontiguousarray(volume.array[0][::-1].transpose(2, 0, 1)), affine @ swap)
    return path


@pytest.fixture
def scan(a_scan):
    return read_image(a_scan)


@pytest.fixture
def expected(a_teacher, scan) -> np.ndarray:
    return load_student(a_teacher).segment(scan)


def as_format(scan, path: Path) -> Path:
    write_image(path, scan.array[0], scan.affine)
    return path


@pytest.mark.parametrize("suffix", FORMATS)
def test_one_file_is_segmented_in_its_own_geometry(a_teacher, a_scan, scan, expected, tmp_path, suffix):
    target = tmp_path / f"out{suffix}"
    assert segment(a_teacher, [a_scan], target) == {"files": {"scan": str(target)}, "problems": []}
    assert len(np.unique(expected)) > 2
    assert np.array_equal(read_annotation(target, LABELS, scan), expected)
    assert read_image(target).affine == pytest.approx(scan.affine, abs=1e-4)
    assert list(tmp_path.iterdir()) == [target]


def test_the_affine_of_a_nifti_is_kept_to_the_last_bit_that_matters(a_teacher, a_scan, tmp_path):
    segment(a_teacher, [a_scan], tmp_path / "out.nii.gz")
    before, after = nibabel.load(a_scan), nibabel.load(tmp_path / "out.nii.gz")
    assert after.affine == pytest.approx(before.affine, abs=1e-5)
    assert after.header.get_zooms() == pytest.approx(before.header.get_zooms(), abs=1e-5)
    assert after.shape == before.shape and after.get_data_dtype() == np.uint8


def test_a_seg_nrrd_names_its_structures(a_teacher, a_scan, tmp_path):
    segment(a_teacher, [a_scan], tmp_path / "out.seg.nrrd")
    assert labels_of_segmentation(tmp_path / "out.seg.nrrd") == LABELS


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_a_folder_gets_the_format_of_the_image(a_teacher, scan, expected, tmp_path, suffix):
    image = as_format(scan, tmp_path / f"a scan{suffix}")
    segment(a_teacher, [image], tmp_path / "out")
    assert np.array_equal(read_annotation(tmp_path / "out" / f"a scan{suffix}", LABELS, scan), expected)
    assert read_labels(tmp_path / "out" / "dataset.json") == LABELS


def test_a_folder_gets_the_format_that_was_asked_for(a_teacher, a_scan, a_foreign_cohort, tmp_path):
    result = segment(a_teacher, [a_scan, a_foreign_cohort], tmp_path / "out", format="seg.nrrd")
    names = {"scan.seg.nrrd"} | {f"{case.id}.seg.nrrd" for case in read_cohort(a_foreign_cohort).cases}
    assert {Path(file).name for file in result["files"].values()} == names
    assert {file.name for file in (tmp_path / "out").iterdir()} == names  # which hold the names themselves


@pytest.mark.usefixtures("cores")
def test_a_folder_of_images_is_segmented_into_a_folder(a_teacher, a_foreign_cohort, tmp_path):
    segment(a_teacher, [a_foreign_cohort / "images"], tmp_path / "new" / "out")
    for case in read_cohort(a_foreign_cohort).cases:
        assert read_annotation(tmp_path / "new" / "out" / f"{case.id}.nrrd", LABELS, read_image(case.images)).any()


def test_pictures_become_pictures(a_picture_student, a_picture_cohort, tmp_path):
    segment(a_picture_student, [a_picture_cohort], tmp_path / "out")
    for case in read_cohort(a_picture_cohort).cases:
        decided = read_annotation(tmp_path / "out" / f"{case.id}.png")
        truth = read_annotation(case.label)
        assert decided.shape == truth.shape
        assert 2 * ((decided == 7) & (truth == 7)).sum() / ((decided == 7).sum() + (truth == 7).sum()) > 0.5


def test_a_picture_can_be_segmented_into_a_volume_format(a_picture_student, a_picture_cohort, tmp_path):
    image = a_picture_cohort / "images" / "p3.png"
    segment(a_picture_student, [image], tmp_path / "out.seg.nrrd")
    segment(a_picture_student, [image], tmp_path / "out.png")
    assert np.array_equal(read_annotation(tmp_path / "out.seg.nrrd"), read_annotation(tmp_path / "out.png"))
    assert labels_of_segmentation(tmp_path / "out.seg.nrrd").names == ("lesion",)


def test_a_two_dimensional_student_segments_volumes_slice_by_slice(a_picture_student, a_picture_cohort, tmp_path):
    slices = [read_image(a_picture_cohort / "images" / f"p{n}.png").array[0, :, :, 0] for n in range(4)]
    write_image(tmp_path / "stack.nii.gz", np.stack(slices, -1), np.diag([1, 1, 5.0, 1]))
    segment(a_picture_student, [tmp_path / "stack.nii.gz"], tmp_path / "out.nii.gz")
    assert (read_annotation(tmp_path / "out.nii.gz") == 7).any((0, 1)).all()


def test_a_volume_does_not_fit_into_a_picture_and_the_others_go_on(a_picture_student, a_picture_cohort, tmp_path):
    stack = np.stack([read_image(a_picture_cohort / "images" / "p0.png").array[0, :, :, 0]] * 3, -1)
    (tmp_path / "in").mkdir()
    sitk.WriteImage(sitk.GetImageFromArray(stack.transpose(2, 1, 0)), str(tmp_path / "in" / "a.tif"))
    shutil.copy(a_picture_cohort / "images" / "p1.png", tmp_path / "in")
    result = segment(a_picture_student, [tmp_path / "in"], tmp_path / "out")
    assert list(result["files"]) == ["p1"]
    assert "3 slices does not fit into one picture; choose .nii.gz" in result["problems"][0]["message"]


def test_a_single_slice_is_refused_by_a_student_of_volumes(a_teacher, a_picture_cohort, tmp_path):
    result = segment(a_teacher, [a_picture_cohort / "images" / "p0.png"], tmp_path / "out.png")
    assert result["files"] == {}
    assert "is a single slice; the student segments volumes" in result["problems"][0]["message"]
    assert not (tmp_path / "out.png").exists()


def test_channels_in_files_of_their_own_are_one_image(a_teacher, scan, tmp_path):
    for channel in range(2):
        as_format(scan, tmp_path / "in" / f"case_000{channel}.nii.gz")
    result = segment(a_teacher, [tmp_path / "in"], tmp_path / "out")
    assert result["problems"] == [{"case": "case", "message": "case: has 2 channels; the student needs 1"}]


def test_a_colour_picture_is_refused_by_a_student_of_grey_ones(a_picture_student, tmp_path):
    colours = np.random.default_rng(0).integers(0, 255, (20, 20, 3), np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(colours, isVector=True), str(tmp_path / "a.png"))
    result = segment(a_picture_student, [tmp_path / "a.png"], tmp_path / "out.png")
    assert "has 3 channels; the student needs 1" in result["problems"][0]["message"]


def test_dicom_is_segmented_into_nrrd(a_teacher, scan, tmp_path):
    series = tmp_path / "a series"
    series.mkdir()
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    array = scan.array[0].astype(np.int16)
    for k in range(array.shape[2]):
        image = sitk.GetImageFromArray(array[:, :, k].T)
        image.SetSpacing(scan.spacing_mm[:2])
        for tag, value in (
            ("0008|0060", "CT"), ("0020|000e", "1.2.3"), ("0020|000d", "1.2"), ("0020|0013", str(k)),
            ("0020|0032", f"0\\0\\{k * scan.spacing_mm[2]}"), ("0020|0037", "1\\0\\0\\0\\1\\0"),
        ):  # fmt: skip
            image.SetMetaData(tag, value)
        writer.SetFileName(str(series / f"{k:03d}.dcm"))
        writer.Execute(image)
    result = segment(a_teacher, [series], tmp_path / "out")
    assert list(result["files"].values()) == [str(tmp_path / "out" / "a series.nrrd")]
    assert read_annotation(tmp_path / "out" / "a series.nrrd", LABELS, read_image(series)).shape == scan.shape


def test_letters_of_any_language_and_blanks_in_paths_are_no_obstacle(a_teacher, a_scan, scan, expected, tmp_path):
    folder = tmp_path / "Müller, Jörg – 研究 'a' & b"
    student = Path(shutil.copytree(a_teacher, folder / "my stüdent"))
    for suffix in (".nii.gz", ".nrrd", ".mha"):
        image = as_format(scan, folder / f"scän 1{suffix}")
        segment(student, [image], folder / f"äus gabe{suffix}")
        assert np.array_equal(read_annotation(folder / f"äus gabe{suffix}", LABELS, scan), expected)


def test_an_input_is_never_overwritten(a_teacher, scan, tmp_path, monkeypatch):
    image = as_format(scan, tmp_path / "scan.nii.gz")
    before = image.read_bytes()
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    for output in (image, tmp_path, tmp_path / "link", tmp_path / "link" / "scan.nii.gz", Path("scan.nii.gz")):
        with pytest.raises(ValueError, match="is an input; name another output"):
            segment(a_teacher, [image], output)
    assert image.read_bytes() == before


@pytest.mark.parametrize("name", ["out.jpg", "out.tif", "out.mhd", "out.BMP"])
def test_a_format_that_cannot_hold_labels_is_refused(a_teacher, a_scan, tmp_path, name):
    with pytest.raises(ValueError, match="segmentations are written as .seg.nrrd, .nii.gz"):
        segment(a_teacher, [a_scan], tmp_path / name)
    with pytest.raises(ValueError, match="segmentations are written as .seg.nrrd, .nii.gz"):
        segment(a_teacher, [a_scan], tmp_path / "out", format=Path(name).suffix)
    assert list(tmp_path.iterdir()) == []


def test_several_images_do_not_fit_into_one_file(a_teacher, a_scan, a_foreign_cohort, tmp_path):
    with pytest.raises(ValueError, match="is one file, but there are 5 images; name a folder"):
        segment(a_teacher, [a_scan, a_foreign_cohort], tmp_path / "out.nii.gz")


def test_two_images_of_the_same_name_are_refused(a_teacher, scan, tmp_path):
    images = [as_format(scan, tmp_path / folder / "a.nrrd") for folder in ("x", "y")]
    with pytest.raises(ValueError, match="two images have the same name: a; segment them into different folders"):
        segment(a_teacher, images, tmp_path / "out")


def test_an_existing_segmentation_is_replaced_as_a_whole(a_teacher, a_scan, scan, expected, tmp_path):
    (tmp_path / "out.nii.gz").write_bytes(b"old")
    segment(a_teacher, [a_scan], tmp_path / "out.nii.gz", overwrite=True)
    assert np.array_equal(read_annotation(tmp_path / "out.nii.gz", LABELS, scan), expected)


@pytest.mark.parametrize("output", ["/proc/kt/out.nii.gz", "/proc/kt"])
def test_an_output_that_cannot_be_written_is_found_before_the_work(a_teacher, a_scan, output):
    if not Path("/proc").is_dir():
        pytest.skip("needs Linux")
    events = []
    with pytest.raises(OSError, match="cannot write into the folder.*/proc/kt"):
        segment(a_teacher, [a_scan], output, listener=events.append)
    assert [event["event"] for event in events] == ["error"]


def test_a_file_where_a_folder_is_needed_is_kept(a_teacher, a_scan, tmp_path):
    (tmp_path / "file").write_text("mine")
    for output in (tmp_path / "file", tmp_path / "file" / "out.nii.gz"):
        with pytest.raises(OSError, match="cannot write into the folder.*file"):
            segment(a_teacher, [a_scan], output)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.usefixtures("cores")
def test_label_maps_do_not_go_among_the_images(a_picture_student, a_picture_cohort, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for file in (a_picture_cohort / "images").iterdir():
        Image.open(file).save(photos / f"{file.stem}.tif")
    with pytest.raises(ValueError, match="holds the images; label maps among them would be taken for images"):
        segment(a_picture_student, [photos], photos)
    done = segment(a_picture_student, [photos], photos, format=".seg.nrrd")
    assert len(done["files"]) == 6
    assert len(segment(a_picture_student, [photos], photos, format=".seg.nrrd")["files"]) == 6


def test_without_an_image_there_is_nothing_to_segment(a_teacher, tmp_path):
    with pytest.raises(ValueError, match="no image was given"):
        segment(a_teacher, [], tmp_path / "out")


def test_a_segmentation_that_cannot_be_written_does_not_stop_the_others(
    a_teacher, a_foreign_cohort, tmp_path, monkeypatch
):
    def refused(path, *rest):
        if "B_002" in path.name:
            raise RuntimeError("no memory")
        write_annotation(path, *rest)

    monkeypatch.setattr("KnowledgeTransferLib.steps.segment.write_annotation", refused)
    done = segment(a_teacher, [a_foreign_cohort / "images"], tmp_path / "out")
    assert sorted(done["files"]) == ["B_001", "B_003", "B_004"]
    assert [problem["case"] for problem in done["problems"]] == ["B_002"]


def test_a_bad_image_is_reported_and_the_others_go_on(a_teacher, a_foreign_cohort, tmp_path):
    images = Path(shutil.copytree(a_foreign_cohort / "images", tmp_path / "in"))
    (images / "B_002.nrrd").write_bytes((images / "B_002.nrrd").read_bytes()[:300])
    (images / "B_002b.nii").write_text("no image")
    events = []
    result = segment(a_teacher, [images], tmp_path / "out", listener=events.append)
    assert sorted(result["files"]) == ["B_001", "B_003", "B_004"]
    assert [problem["case"] for problem in result["problems"]] == ["B_002", "B_002b"]
    assert not (tmp_path / "out" / "B_002.nrrd").exists()
    assert events[-1]["event"] == "done" and len(events[-1]["problems"]) == 2


def test_a_damaged_bundle_is_refused(a_teacher, a_scan, tmp_path):
    student = Path(shutil.copytree(a_teacher, tmp_path / "student"))
    content = bytearray((student / WEIGHTS).read_bytes())
    content[len(content) // 2] ^= 255
    (student / WEIGHTS).write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"model\.safetensors was changed or damaged .*copy the folder again"):
        segment(student, [a_scan], tmp_path / "out.nii.gz")
    (student / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match="is not a bundle"):
        segment(student, [a_scan], tmp_path / "out.nii.gz")
    with pytest.raises(FileNotFoundError, match="nowhere: is not a bundle"):
        segment(tmp_path / "nowhere", [a_scan], tmp_path / "out.nii.gz")
    assert not (tmp_path / "out.nii.gz").exists()


@pytest.mark.usefixtures("cores")
def test_the_same_image_gives_the_same_segmentation_whatever_else_is_segmented(
    a_teacher, a_scan, a_foreign_cohort, tmp_path
):
    segment(a_teacher, [a_scan], tmp_path / "alone.nii.gz")
    segment(a_teacher, [a_foreign_cohort, a_scan], tmp_path / "out")
    assert (tmp_path / "alone.nii.gz").read_bytes() == (tmp_path / "out" / "scan.nii.gz").read_bytes()


@pytest.mark.usefixtures("cores")
def test_what_is_in_the_folder_is_kept_and_the_rest_is_segmented(a_teacher, a_foreign_cohort, tmp_path):
    labels, events = tmp_path / "labels", []
    labels.mkdir()
    (labels / "B_002.nrrd").write_bytes(b"of an expert")
    result = segment(a_teacher, [a_foreign_cohort / "images"], labels, listener=events.append)
    assert (labels / "B_002.nrrd").read_bytes() == b"of an expert"
    assert result["files"] == {f"B_00{n}": str(labels / f"B_00{n}.nrrd") for n in range(1, 5)}
    told = [event["text"] for event in events if event["event"] == "message"]
    assert told == ["1 of 4 are there already and are kept; add --overwrite to make them again"]
    stage = next(event for event in events if event["event"] == "stage")
    assert (stage["done"], stage["total"]) == (1, 4)
    assert [event["case"] for event in events if event["event"] == "case"] == ["B_001", "B_003", "B_004"]
    segment(a_teacher, [a_foreign_cohort / "images"], labels, overwrite=True)
    assert read_annotation(labels / "B_002.nrrd", LABELS).any()


@pytest.mark.usefixtures("cores")
def test_a_stopped_segmentation_goes_on_and_ends_in_the_same_files(a_teacher, a_foreign_cohort, tmp_path):
    run, told = RunDirectory(tmp_path / "run"), []

    def stop(event: dict) -> None:
        if event["event"] == "case":
            run.cancel.touch()

    with pytest.raises(Cancelled):
        segment(a_teacher, [a_foreign_cohort], tmp_path / "out", run=run, listener=stop)
    there = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"B_001.nrrd", "dataset.json"} <= there <= {"B_001.nrrd", "B_002.nrrd", "dataset.json"}  # the one in work
    first = (tmp_path / "out" / "B_001.nrrd").stat().st_mtime_ns
    segment(a_teacher, [a_foreign_cohort], tmp_path / "out", run=tmp_path / "run", listener=told.append)
    assert not [event for event in told if event["event"] == "warning"]  # the names are its own
    assert (tmp_path / "out" / "B_001.nrrd").stat().st_mtime_ns == first
    segment(a_teacher, [a_foreign_cohort], tmp_path / "whole")
    for file in (tmp_path / "whole").iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()
    lines = [json.loads(line) for line in run.events.read_text(encoding="utf-8").splitlines()]
    assert [line["event"] for line in lines if line["event"] in ("cancelled", "done")] == ["cancelled", "done"]
    assert lines[-len(told) :] == told


def test_a_run_directory_is_held_while_it_segments(a_teacher, a_scan, tmp_path):
    held = []

    def look(_: dict) -> None:
        with pytest.raises(RuntimeError, match="is in use by the process"), RunDirectory(tmp_path / "run").locked():
            pass
        held.append(True)

    segment(a_teacher, [a_scan], tmp_path / "out.nii.gz", run=tmp_path / "run", listener=look)
    assert held


@pytest.mark.parametrize("content", ['{"training": ["a.nii.gz"]}', "no json"])
def test_a_dataset_json_with_other_content_is_never_replaced(a_teacher, a_scan, tmp_path, content):
    (tmp_path / "dataset.json").write_text(content)
    events = []
    segment(a_teacher, [a_scan], tmp_path, overwrite=True, listener=events.append)
    assert (tmp_path / "scan.nii.gz").is_file()
    assert (tmp_path / "dataset.json").read_text() == content
    told = [event["text"] for event in events if event["event"] == "warning"]
    assert len(told) == 1 and "dataset.json: holds something else and is kept; this student's values are 1" in told[0]


def test_a_folder_of_kept_files_alone_gets_no_names(a_teacher, a_scan, tmp_path):
    (tmp_path / "scan.nii.gz").write_bytes(b"of an expert")
    assert segment(a_teacher, [a_scan], tmp_path)["files"] == {"scan": str(tmp_path / "scan.nii.gz")}
    assert [file.name for file in tmp_path.iterdir()] == ["scan.nii.gz"]


def test_a_folder_in_the_place_of_a_file_is_left_alone(a_teacher, a_scan, tmp_path):
    (tmp_path / "scan.nii.gz" / "mine").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"scan\.nii\.gz: is a folder; move it away"):
        segment(a_teacher, [a_scan], tmp_path, overwrite=True)
    assert (tmp_path / "scan.nii.gz" / "mine").is_dir()


def test_the_event_of_a_case_tells_the_volume_of_each_structure(a_teacher, a_scan, scan, expected, tmp_path):
    events = []
    segment(a_teacher, [a_scan], tmp_path / "out.seg.nrrd", listener=events.append)
    volumes_ml = next(event for event in events if event["event"] == "case")["volumes_ml"]
    assert list(volumes_ml) == list(LABELS.names)
    voxel_ml = np.prod(scan.spacing_mm) / 1000
    for structure in LABELS.structures:
        count = np.count_nonzero(expected == structure.value)
        assert volumes_ml[structure.name] == pytest.approx(count * voxel_ml, abs=1e-3)


@pytest.mark.usefixtures("cores")
def test_the_volume_is_gone_when_the_network_runs(a_teacher, a_scan, tmp_path, monkeypatch):
    prepare, decide, volumes = Student.prepare, Student.decide, []

    def preparing(student, volume):
        volumes.append(weakref.ref(volume))
        return prepare(student, volume)

    def deciding(student, prepared):
        assert [volume() for volume in volumes] == [None]
        return decide(student, prepared)

    monkeypatch.setattr(Student, "prepare", preparing)
    monkeypatch.setattr(Student, "decide", deciding)
    assert segment(a_teacher, [a_scan], tmp_path / "out.nii.gz")["problems"] == []


def test_a_nifti_file_is_segmented_without_loading_what_it_does_not_need(a_teacher, a_scan, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", ONLY_NIFTI, "segment", a_teacher, a_scan, tmp_path / "out.nii.gz"],
        cwd=REPOSITORY, capture_output=True, encoding="utf-8", check=True,
    )  # fmt: skip
    assert done.stderr.endswith("status 0, loaded []")
