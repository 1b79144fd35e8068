"""Bad input through the command line: a message that says what, where and what to do; a status; nothing lost.

The status is 2 where nothing can be done, and 1 where one case of a cohort is bad and the others go on.
"""

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from KnowledgeTransferLib import __main__ as command_line
from KnowledgeTransferLib.learning import training
from KnowledgeTransferLib.learning.volume import read_annotation, read_image
from KnowledgeTransferLib.records.bundle import WEIGHTS, sha256
from KnowledgeTransferLib.records.cohort import read_cohort
from KnowledgeTransferLib.records.run_directory import RunDirectory, read_json, write_json
from KnowledgeTransferLib.steps.annotate import annotate
from KnowledgeTransferLib.steps.distil import distil

REPOSITORY = Path(__file__).parents[2]
SHAPE = (16, 14, 12)
COARSE = ("--epochs", 4, "--batch-size", 2, "--spacing-mm", 18, 18, 22)
ASKED = {"epochs": 4, "batch_size": 2, "spacing_mm": (18.0, 18.0, 22.0)}


def noise(shape=SHAPE) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 100, shape).astype(np.float32)


def save(path: Path, array: np.ndarray, affine=None) -> None:
    nibabel.save(nibabel.Nifti1Image(array, np.diag([10.0, 10, 10, 1]) if affine is None else affine), path)


def with_value(value: float) -> np.ndarray:
    array = noise()
    array[1, 2, 3] = value
    return array


def header_of_a_giant(path: Path) -> None:
    header = nibabel.Nifti2Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((40_000,) * 3)
    header["vox_offset"] = 544
    path.write_bytes(gzip.compress(header.binaryblock + bytes(1000)))


def truncated(path: Path) -> None:
    save(path, noise())
    path.write_bytes(path.read_bytes()[:2000])


def four_dimensional(path: Path) -> None:
    save(path, np.stack([noise()] * 3, -1))


def without_geometry(path: Path) -> None:
    header = nibabel.Nifti1Header()
    header.set_sform(np.diag([10.0, 10, 0, 1]), 1)
    nibabel.save(nibabel.Nifti1Image(noise(), None, header), path)


BAD_IMAGES = {  # name -> what writes a bad image, and what is said of it
    "missing": (lambda path: None, "there is no such file"),
    "empty": (lambda path: path.touch(), r"the file is empty \(0 bytes\)"),
    "truncated": (truncated, "cannot be read as an image; truncated"),
    "text": (lambda path: path.write_text("Dear colleague"), "is not a NIfTI image"),
    "nan": (lambda path: save(path, with_value(np.nan)), "1 of 2688 voxels are NaN or infinite; repair or leave out"),
    "infinite": (lambda path: save(path, with_value(np.inf)), "1 of 2688 voxels are NaN or infinite"),
    "constant": (lambda path: save(path, np.ones(SHAPE, np.int16)), "every voxel has the value 1; there is nothing"),
    "thin": (lambda path: save(path, noise((1, 14, 12))), "has 1 x 14 x 12 voxels; at least 2 are needed"),
    "one slice": (lambda path: save(path, noise((16, 14, 1))), "is a single slice; the student segments volumes"),
    "giant": (header_of_a_giant, r"40000 x 40000 x 40000 voxels need \d+\.\d GiB of memory; .* GiB are free"),
    "4-D": (four_dimensional, "is 4-D .16 x 14 x 12 x 3.; give one 3-D file per channel"),
    "folder": (lambda path: path.mkdir(), "is not a NIfTI image"),
    "no geometry": (without_geometry, "has no valid geometry"),
}


@pytest.fixture(params=BAD_IMAGES)
def bad(request, tmp_path) -> tuple[Path, str]:
    """A bad image and the message that it deserves."""
    write, message = BAD_IMAGES[request.param]
    path = tmp_path / "bad images" / "bäd.nii.gz"
    path.parent.mkdir()
    write(path)
    return path, message


def table(folder: Path, rows: list[tuple]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [",".join(map(str, row)) for row in [("id", "image", "label"), *rows]]
    (folder / "cohort.csv").write_text("\n".join(lines), encoding="utf-8")
    return folder / "cohort.csv"


def is_well_told(outcome, message: str, status: int = 2) -> bool:
    """Whether the message is there, on stdout, without a traceback, with the status."""
    assert re.search(message, outcome.messages), outcome.messages
    assert "Traceback" not in outcome.text
    return outcome.status == status


# Images


def test_a_bad_image_alone_is_refused(command, a_teacher, bad, tmp_path):
    if not bad[0].exists():
        outcome = command("segment", a_teacher, bad[0], tmp_path / "out.nii.gz")
        assert is_well_told(outcome, "bäd.nii.gz: there is no such file or folder")
        return
    image = bad[0]
    if image.is_dir():  # a folder is a cohort
        assert is_well_told(
            command("segment", a_teacher, image, tmp_path / "out"), "no images found; looked for .nii.gz"
        )
        return
    outcome = command("segment", a_teacher, image, tmp_path / "out.nii.gz")
    assert is_well_told(outcome, rf"bäd.*{bad[1]}")
    assert not (tmp_path / "out.nii.gz").exists()


def test_a_bad_image_of_a_cohort_is_listed_and_the_others_are_annotated(
    command, a_teacher, a_phantom_cohort, bad, tmp_path
):
    good = a_phantom_cohort / "images" / "A_001.nii.gz"
    cohort = table(tmp_path / "cohort", [("good", good, ""), ("bäd", bad[0], ""), ("also good", good, "")])
    run = RunDirectory(tmp_path / "run")
    outcome = command("annotate", run.path, "--cohort", cohort, "--teacher", a_teacher)
    assert is_well_told(outcome, rf"bäd: .*{bad[1]}", status=1)
    assert {file.name for file in run.pseudo_annotations.iterdir()} == {"good.seg.nrrd", "also good.seg.nrrd"}
    assert [problem["case"] for problem in read_json(run.annotations)["problems"]] == ["bäd"]
    assert outcome.events[-1]["cases"] == 2 and len(outcome.events[-1]["problems"]) == 1


def test_a_cohort_of_bad_images_alone_ends_with_status_2(command, a_teacher, tmp_path):
    for number in range(2):
        (tmp_path / f"{number}.nrrd").write_bytes(b"")
    outcome = command("annotate", tmp_path / "run", "--cohort", tmp_path, "--teacher", a_teacher)
    assert is_well_told(outcome, "1: .*the file is empty")
    assert len(read_json(tmp_path / "run" / "annotations.json")["problems"]) == 2


def test_the_wrong_number_of_channels_is_refused(command, a_teacher, a_phantom_cohort, tmp_path):
    for channel in range(2):
        shutil.copy(a_phantom_cohort / "images" / "A_001.nii.gz", tmp_path / f"a_000{channel}.nii.gz")
    outcome = command("segment", a_teacher, tmp_path, tmp_path / "out")
    assert is_well_told(outcome, "a: has 2 channels; the student needs 1")


# Annotations


def expert(a_phantom_cohort: Path, number: int) -> tuple[np.ndarray, np.ndarray]:
    image = nibabel.load(a_phantom_cohort / "labels" / f"A_00{number}.nii.gz")
    return np.asarray(image.dataobj).astype(np.float32), image.affine


def other_value(array: np.ndarray, value: float) -> np.ndarray:
    array[5, 5, 5] = value
    return array


BAD_LABELS = {
    "missing": (lambda path, array, affine: None, "there is no such file"),
    "shape": (lambda p, a, f: save(p, a[:-1], f), "has 31 x 32 x 20 voxels, but A_002 has 32 x 32 x 20"),
    "origin": (lambda p, a, f: save(p, a, f + shift(7)), "lies up to 7.00 mm away from A_002"),
    "spacing": (lambda p, a, f: save(p, a, f @ np.diag([1.1, 1, 1, 1])), "lies up to .*another spacing, origin or"),
    "unknown value": (
        lambda p, a, f: save(p, other_value(a, 9), f),
        r"unknown label values \[9\]; known are .*1 .liver",
    ),
    "fraction": (lambda p, a, f: save(p, other_value(a, 0.9), f), "holds 0.9; whole numbers are needed"),
    "negative": (lambda p, a, f: save(p, other_value(a, -1), f), r"unknown label values \[-1\]"),
    "nan": (lambda p, a, f: save(p, other_value(a, np.nan), f), "the annotation holds NaN"),
}


def shift(mm: float) -> np.ndarray:
    matrix = np.zeros((4, 4))
    matrix[0, 3] = mm
    return matrix


@pytest.mark.parametrize("kind", BAD_LABELS)
def test_a_bad_annotation_is_listed_and_the_others_teach(command, a_phantom_cohort, tmp_path, kind):
    write, message = BAD_LABELS[kind]
    cohort = Path(shutil.copytree(a_phantom_cohort, tmp_path / "cohort"))
    label = cohort / "labels" / "A_002.nii.gz"
    label.unlink()
    write(label, *expert(a_phantom_cohort, 2))
    line = ["--cohort", cohort, "--annotations", "expert", *COARSE]
    outcome = command("distil", tmp_path / "run", *line)
    assert is_well_told(outcome, rf"A_002: .*A_002\.nii\.gz: .*{message}", status=1)
    assert (tmp_path / "run" / "student" / WEIGHTS).is_file()
    assert [p["case"] for p in read_json(tmp_path / "run" / "training.json")["problems"]] == ["A_002"]
    assert command("distil", tmp_path / "run").status == 1  # finished, and still not all cases


def test_an_annotation_that_is_a_hair_off_is_rounded(command, a_phantom_cohort, tmp_path):
    cohort = Path(shutil.copytree(a_phantom_cohort, tmp_path / "cohort"))
    array, affine = expert(a_phantom_cohort, 2)
    save(cohort / "labels" / "A_002.nii.gz", array * np.float32(0.9999), affine)
    assert command("distil", tmp_path / "a", "--cohort", cohort, "--annotations", "expert", *COARSE).status == 0
    command("distil", tmp_path / "b", "--cohort", a_phantom_cohort, "--annotations", "expert", *COARSE)
    assert sha256(tmp_path / "a" / "student" / WEIGHTS) == sha256(tmp_path / "b" / "student" / WEIGHTS)


# Cohorts


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "nowhere: there is no such file or folder"),
        ({}, r"no images found; looked for \.nii\.gz, .*folders of DICOM files"),
        ({"notes.txt": "x"}, "no images found"),
        ({"cohort.csv": ""}, "the first line must name the columns id and image"),
        ({"cohort.csv": "id,image"}, "names no cases"),
        ({"cohort.csv": "id,image\na,a.nii\n,b.nii"}, "line 3: id or image is empty"),
        ({"cohort.csv": "id,image\na,a.nii\nA,b.nii"}, "two cases have the same id: A, a; each id must be its own"),
        ({"cohort.csv": "id,image\n../a,a.nii"}, "ids become file names"),
        ({"a.nii": "x", "a.nrrd": "x"}, "two cases have the same id: a.nii and a.nrrd"),
        ({"dataset.json": "{"}, r"dataset\.json is damaged"),
        ({"dataset.json": "[]"}, "holds one object; found a list"),
        ({"dataset.json": '{"training": [{"label": "x"}]}'}, "entry 1 of training names no image"),
        ({"dataset.json": '{"labels": {"1": 1}}', "images/a.nii": "x"}, "dataset.json cannot be used: label '1'"),
    ],
)
def test_a_cohort_that_cannot_be_read_is_refused(command, a_teacher, tmp_path, content, message):
    cohort = tmp_path / "nowhere" if content is None else tmp_path / "cöhort 1"
    for name, text in (content or {}).items():
        (cohort / name).parent.mkdir(parents=True, exist_ok=True)
        (cohort / name).write_text(text, encoding="utf-8")
    if content == {}:
        cohort.mkdir()
    run = tmp_path / "run"
    assert is_well_told(command("annotate", run, "--cohort", cohort, "--teacher", a_teacher), message)
    assert is_well_told(command("distil", run, "--cohort", cohort, "--annotations", "expert"), message)
    assert not run.exists()


def test_a_split_that_is_not_there_is_refused_with_those_that_are(command, a_teacher, a_phantom_cohort, tmp_path):
    line = ["--cohort", a_phantom_cohort, "--split", "train", "--teacher", a_teacher]
    outcome = command("annotate", tmp_path / "run", *line)
    assert is_well_told(outcome, "no case has the split 'train'; splits found: teacher, test")


@pytest.mark.parametrize("option", [("--split", "test"), ("--labels", "names.ctbl")])
@pytest.mark.parametrize("step", ["annotate", "distil"])
def test_a_split_or_labels_without_a_cohort_are_not_silently_ignored(command, an_annotated_run, step, option):
    outcome = command(step, an_annotated_run, *option)
    assert is_well_told(outcome, "--split and --labels belong to --cohort PATH; name it too")


def test_an_image_name_that_is_no_text_is_told(command, a_teacher, tmp_path):
    if sys.platform != "linux":
        pytest.skip("file names are bytes on Linux alone")
    folder = tmp_path / "cohort"
    folder.mkdir()
    save(tmp_path / "a.nii", noise())
    os.rename(tmp_path / "a.nii", os.fsencode(folder) + b"/caf\xe9.nii")
    outcome = command("segment", a_teacher, folder, tmp_path / "out")
    assert outcome.status == 2
    assert "rename" in outcome.messages and "Traceback" not in outcome.text


# Settings, bundles, outputs


def test_settings_of_another_version_are_refused_and_kept(command, an_annotated_run):
    run = RunDirectory(an_annotated_run)
    write_json(run.settings, {"format_version": 7, "distil": {"epochs": 3}})
    before = run.settings.read_bytes()
    for step in ("distil", "annotate"):
        outcome = command(step, run.path)
        assert is_well_told(outcome, "settings.json: has the format version 7; .* another run directory")
    assert run.settings.read_bytes() == before
    assert len(list(run.pseudo_annotations.iterdir())) == 4


@pytest.mark.parametrize("damage", [WEIGHTS, "configs/metadata.json", "docs/README.md", "configs/sha256.json"])
def test_a_bundle_whose_files_were_changed_is_refused(command, a_teacher, a_foreign_cohort, tmp_path, damage):
    student = Path(shutil.copytree(a_teacher, tmp_path / "student"))
    (student / damage).write_bytes((student / damage).read_bytes()[:-3])
    refused = r"was changed or damaged \(its sha256 differs\); copy the folder again|is damaged"
    out = tmp_path / "out"
    assert is_well_told(command("segment", student, a_foreign_cohort, out), rf"student.*{refused}")
    line = ["--cohort", a_foreign_cohort, "--teacher", student]
    assert is_well_told(command("annotate", tmp_path / "run", *line), refused)
    line = ["--cohort", a_foreign_cohort, "--annotations", "expert", "--from", student]
    assert is_well_told(command("distil", tmp_path / "other", *line), refused)


@pytest.mark.parametrize("step", ["annotate", "distil", "evaluate"])
def test_a_run_directory_that_cannot_be_written_is_told(command, a_teacher, a_foreign_cohort, tmp_path, step):
    options = {
        "annotate": ["--teacher", a_teacher],
        "distil": ["--annotations", "expert"],
        "evaluate": ["--method", f"a={a_teacher}"],
    }[step]
    (tmp_path / "file").write_text("mine")
    for run in (tmp_path / "file", tmp_path / "file" / "run"):
        outcome = command(step, run, "--cohort", a_foreign_cohort, *options)
        assert is_well_told(outcome, "file.*(is a file; name a folder for the run|cannot write into the folder)")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_run_in_use_by_another_process_is_left_alone(command, an_annotated_run):
    hold = (
        "import sys, time\nfrom KnowledgeTransferLib.records.run_directory import RunDirectory\n"
        "with RunDirectory(sys.argv[1]).locked():\n    print('locked', flush=True)\n    time.sleep(100)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, str(an_annotated_run)], cwd=REPOSITORY, stdout=subprocess.PIPE, encoding="utf-8"
    )
    try:
        assert holder.stdout.readline() == "locked\n"
        before = (an_annotated_run / "events.jsonl").read_bytes()
        for line in (["annotate"], ["distil", "--epochs", 1], ["distil", "--restart"]):
            outcome = command(line[0], an_annotated_run, *line[1:])
            assert is_well_told(
                outcome, f"is in use by the process {holder.pid}; wait for it, stop it, or name another"
            )
        assert (an_annotated_run / "events.jsonl").read_bytes() == before
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    assert command("distil", an_annotated_run, *COARSE).status == 0


def test_a_scan_in_the_place_of_a_forgotten_output_is_kept(command, a_teacher, tmp_path):
    for name in ("s1.nii.gz", "s2.nii.gz"):
        save(tmp_path / name, noise())
    before = (tmp_path / "s2.nii.gz").read_bytes()
    outcome = command("segment", a_teacher, tmp_path / "s1.nii.gz", tmp_path / "s2.nii.gz")
    assert is_well_told(outcome, "s2.nii.gz: exists already; add --overwrite or name another output")
    assert (tmp_path / "s2.nii.gz").read_bytes() == before


def test_a_device_that_is_not_there_is_told_with_those_that_are(command, a_teacher, a_foreign_cohort, tmp_path):
    outcome = command("segment", a_teacher, a_foreign_cohort, tmp_path / "out", "--device", "mps")
    if outcome.status == 0:
        pytest.skip("this computer has it")
    assert is_well_told(outcome, "the device 'mps' is not there; found: .*cpu. Choose one of these, or auto")


def test_a_person_at_a_terminal_reads_the_same_messages(command, monkeypatch, a_teacher, tmp_path):
    from KnowledgeTransferLib.terminal import TerminalListener

    monkeypatch.setattr(command_line, "_listener", TerminalListener)
    (tmp_path / "[red] scan.nii.gz").write_bytes(b"")
    outcome = command("segment", a_teacher, tmp_path / "[red] scan.nii.gz", tmp_path / "out.nii.gz")
    assert outcome.status == 2
    assert "[red] scan left out:" in outcome.text and "the file is empty (0 bytes)" in " ".join(outcome.text.split())
    assert "Traceback" not in outcome.text


# A full disk


@pytest.fixture
def a_small_disk(tmp_path):
    """A real file system of 6 MiB; needs the right to mount one."""
    folder = tmp_path / "small disk"
    folder.mkdir()
    mount, umount = shutil.which("mount"), shutil.which("umount")
    line = [mount, "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)]
    if not mount or subprocess.run(line, capture_output=True, check=False).returncode != 0:
        pytest.skip("no right to mount a file system")
    yield folder
    subprocess.run([umount, "--lazy", str(folder)], check=True)


def fill(folder: Path, leave_bytes: int = 0) -> Path:
    filler = folder / "filler"
    filler.write_bytes(bytes(max(0, shutil.disk_usage(folder).free - leave_bytes)))
    return filler


@pytest.mark.parametrize("leave_bytes", [0, 100_000, 130_000, 160_000])
def test_a_disk_that_fills_up_while_annotating_loses_nothing(
    command, a_small_disk, a_teacher, a_foreign_cohort, the_annotated_run, leave_bytes
):
    run, whole = RunDirectory(a_small_disk / "run"), RunDirectory(the_annotated_run)
    run.create()
    line = ["annotate", run.path, "--cohort", a_foreign_cohort, "--teacher", a_teacher]
    filler = fill(a_small_disk, leave_bytes)
    outcome = command(*line)
    assert is_well_told(outcome, r"small disk.*No space left on device.*\. Make room and give the same command again")
    for file in run.pseudo_annotations.glob("*") if run.pseudo_annotations.is_dir() else ():
        assert file.read_bytes() == (whole.pseudo_annotations / file.name).read_bytes()  # whole, or not there
    filler.unlink()
    assert command(*line).status == 0
    for file in whole.pseudo_annotations.iterdir():
        assert (run.pseudo_annotations / file.name).read_bytes() == file.read_bytes()
    assert not list(run.path.rglob(".partial-*"))
    for text in run.events.read_text(encoding="utf-8").splitlines():
        json.loads(text)


@pytest.fixture(scope="session")
def the_digest(the_annotated_run, tmp_path_factory) -> str:
    """sha256 of the weights of a training that had room enough."""
    run = RunDirectory(shutil.copytree(the_annotated_run, tmp_path_factory.mktemp("room") / "run"))
    distil(run, **ASKED)
    return sha256(run.student / WEIGHTS)


@pytest.mark.parametrize("moment", [("prepare", 1), ("metrics", 1), ("metrics", 3), ("metrics", 4)])
def test_a_disk_that_fills_up_while_training_loses_nothing(
    command, a_small_disk, an_annotated_run, monkeypatch, the_digest, moment
):
    run = RunDirectory(shutil.copytree(an_annotated_run, a_small_disk / "run"))
    event, left, usual = moment[0], [moment[1]], command_line._listener()

    def listen(told: dict) -> None:
        usual(told)
        if event in (told["event"], told.get("name")):
            left[0] -= 1
            if left[0] == 0:
                fill(a_small_disk)

    monkeypatch.setattr(command_line, "_listener", lambda: listen)
    outcome = command("distil", run.path, *COARSE)
    assert is_well_told(outcome, r"No space left on device\. Make room and give the same command again")
    assert "small disk" in outcome.messages  # where
    monkeypatch.undo()
    (a_small_disk / "filler").unlink()
    assert command("distil", run.path, *COARSE).status == 0
    assert sha256(run.student / WEIGHTS) == the_digest


def test_a_disk_that_fills_up_while_segmenting_keeps_what_is_done(
    command, a_small_disk, a_teacher, a_foreign_cohort, tmp_path
):
    out = a_small_disk / "out"
    out.mkdir()
    filler = fill(a_small_disk, 66_000)  # a first segmentation fits
    outcome = command("segment", a_teacher, a_foreign_cohort, out)
    assert is_well_told(outcome, "out.*No space left on device")
    command("segment", a_teacher, a_foreign_cohort, tmp_path / "whole")
    for file in out.glob("*.nrrd"):
        assert file.read_bytes() == (tmp_path / "whole" / file.name).read_bytes()
    filler.unlink()
    assert command("segment", a_teacher, a_foreign_cohort, out).status == 0
    assert len(list(out.glob("*.nrrd"))) == 4


def test_a_full_disk_without_the_right_to_mount_one(command, an_annotated_run, monkeypatch, the_digest):
    """As above, simulated: the second checkpoint does not fit."""
    run, usual, count = RunDirectory(an_annotated_run), training.torch.save, []

    def no_room(content, path):
        count.append(path)
        if len(count) == 2:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        usual(content, path)

    monkeypatch.setattr(training.torch, "save", no_room)
    outcome = command("distil", run.path, *COARSE)
    assert is_well_told(outcome, "No space left on device. Make room")
    assert run.checkpoint.stat().st_size > 1000
    monkeypatch.undo()
    assert command("distil", run.path, *COARSE).status == 0
    assert sha256(run.student / WEIGHTS) == the_digest


# In processes of their own


@pytest.mark.slow
def test_the_messages_of_a_real_process(start_process, a_teacher, a_foreign_cohort, an_annotated_run, tmp_path):
    cohort = Path(shutil.copytree(a_foreign_cohort, tmp_path / "cohort"))
    (cohort / "images" / "B_002.nrrd").write_text("no image")
    write_json(an_annotated_run / "settings.json", {"format_version": 99})
    lines = {
        ("annotate", tmp_path / "run", "--cohort", cohort, "--teacher", a_teacher): (1, "B_002.nrrd: cannot be read"),
        ("distil", an_annotated_run): (2, "has the format version 99"),
    }
    started = {line: start_process(*line) for line in lines}
    for line, (status, message) in lines.items():
        output, _ = started[line].communicate(timeout=200)
        assert started[line].returncode == status, output
        assert message in output and "Traceback" not in output
        assert all(json.loads(text) for text in output.splitlines())  # warnings of libraries would stand out
    assert len(list((tmp_path / "run" / "pseudo_annotations").iterdir())) == 3


def test_a_case_that_became_good_is_annotated_by_the_same_command(command, a_teacher, a_foreign_cohort, tmp_path):
    cohort = Path(shutil.copytree(a_foreign_cohort, tmp_path / "cohort"))
    image = cohort / "images" / "B_003.nrrd"
    content = image.read_bytes()
    image.write_bytes(content[: len(content) // 2])
    line = ["annotate", tmp_path / "run", "--cohort", cohort, "--teacher", a_teacher]
    assert command(*line).status == 1
    image.write_bytes(content)
    assert command(*line).status == 0
    pseudo = RunDirectory(tmp_path / "run").pseudo_annotation("B_003")
    assert read_annotation(pseudo, like=read_image(read_cohort(cohort).cases[2].images)).any()


def test_a_truncated_pseudo_annotation_does_not_stop_the_training(command, an_annotated_run):
    run = RunDirectory(an_annotated_run)
    for file in (run.pseudo_annotation("B_001"), run.probability_maps("B_001")):
        file.write_bytes(file.read_bytes()[:200])
    outcome = command("distil", run.path, *COARSE)
    assert is_well_told(outcome, "B_001: .*B_001", status=1)
    assert (run.student / WEIGHTS).is_file()


def test_a_damaged_record_of_annotations_is_told(command, an_annotated_run):
    run = RunDirectory(an_annotated_run)
    run.annotations.write_text("{")
    assert is_well_told(command("distil", run.path, *COARSE), r"annotations\.json is damaged")
    assert is_well_told(command("annotate", run.path), r"annotations\.json is damaged")
    assert len(list(run.pseudo_annotations.iterdir())) == 4


def test_annotating_through_the_function_raises_the_same_words(tmp_path, a_teacher):
    with pytest.raises(ValueError, match="no images found; looked for"):
        annotate(tmp_path / "run", tmp_path, {str(a_teacher): 1.0})


def test_a_long_name_beyond_ascii_is_a_name_as_any_other(command, a_teacher, a_foreign_cohort, tmp_path):
    scans, name = tmp_path / "scans", "\u0436" * 118
    scans.mkdir()
    shutil.copy(read_cohort(a_foreign_cohort).cases[0].images[0], scans / f"{name}.nrrd")
    assert command("segment", a_teacher, scans, tmp_path / "out").status == 0
    assert (tmp_path / "out" / f"{name}.nrrd").is_file()


def test_a_name_too_long_for_a_file_is_refused_before_the_work(command, a_teacher, a_foreign_cohort, tmp_path):
    image = read_cohort(a_foreign_cohort).cases[0].images[0]
    (tmp_path / "table.csv").write_text(f"id,image\n{'a' * 250},{image}\n")
    refused = command("annotate", tmp_path / "run", "--cohort", tmp_path / "table.csv", "--teacher", a_teacher)
    assert refused.status == 2 and "at most" in refused.messages


@pytest.mark.parametrize("content", [{"cases": 5}, {"cases": [{}]}, {"cases": [{"id": "a", "images": "b"}]}])
def test_a_damaged_list_of_cases_is_told_by_its_file(command, an_annotated_run, content):
    write_json(an_annotated_run / "cohort.json", content)
    refused = command("distil", an_annotated_run)
    assert refused.status == 2 and "cohort.json is damaged" in refused.messages


@pytest.mark.parametrize(
    "structures",
    [{"labels": {"1": "x", "01": "y"}}, {"labels": {"\u00b2": "x"}},
     {"structures": [{"name": "a", "value": True}]}, {"structures": [{"name": "a", "value": 1, "color": 5}]},
     {"structures": [{"name": "a", "value": 1, "terminology": 5}]}],
)  # fmt: skip
def test_names_of_structures_that_make_no_sense_are_refused_with_their_file(
    command, a_teacher, a_foreign_cohort, tmp_path, structures
):
    cohort = shutil.copytree(a_foreign_cohort, tmp_path / "cohort")
    write_json(cohort / "dataset.json", structures)
    refused = command("annotate", tmp_path / "run", "--cohort", cohort, "--teacher", a_teacher)
    assert refused.status == 2 and "dataset.json" in refused.messages and "unexpected" not in refused.messages


def test_what_is_given_twice_is_refused(command, a_teacher, a_foreign_cohort, tmp_path):
    run, cohort = tmp_path / "run", ("--cohort", a_foreign_cohort)
    for words in (
        ("annotate", run, *cohort, "--teacher", a_teacher, "--teacher", f"{a_teacher}=2"),
        ("evaluate", run, *cohort, "--method", f"s={a_teacher}", "--method", f"s={a_foreign_cohort}"),
    ):
        refused = command(*words)
        assert refused.status == 2 and "is given twice" in refused.messages


def test_a_format_that_is_none_is_refused_with_those_that_are(command, a_teacher, a_foreign_cohort, tmp_path):
    images = a_foreign_cohort / "images"
    refused = command("segment", a_teacher, images, tmp_path / "out", "--format", "./../x.nii.gz")
    assert refused.status == 2 and "segmentations are written as .seg.nrrd" in refused.messages
