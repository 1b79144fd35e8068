"""Export: every kind gives the student's labels, is checked before it counts, and runs where it is said to run."""

import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from scipy import ndimage
from test_backends import DIMENSIONS, a_student, an_image, expected

from KnowledgeTransferLib.learning import exporters
from KnowledgeTransferLib.learning.backends import is_there, open_backend
from KnowledgeTransferLib.learning.evidence import Evidence
from KnowledgeTransferLib.learning.exported_files import PT2
from KnowledgeTransferLib.learning.exporters import EXPORTERS
from KnowledgeTransferLib.learning.student import load_student, save_student
from KnowledgeTransferLib.learning.volume import read_annotation, read_image, write_image
from KnowledgeTransferLib.records import bundle
from KnowledgeTransferLib.records.run_directory import RunDirectory
from KnowledgeTransferLib.records.students import STUDENTS
from KnowledgeTransferLib.steps.export import export

WITHOUT_US = """
import runpy, sys
sys.modules["KnowledgeTransferLib"] = None
sys.argv = ["monai.bundle", "run", *sys.argv[1:]]
runpy.run_module("monai.bundle", run_name="__main__")
"""
SOME_DESIGNS = ["small", "medium", "s1", "dynunet"]
EVERY_KIND = pytest.mark.parametrize("kind", list(EXPORTERS))


def some_scans(folder: Path, dimensions: int = 3, channels: int = 1) -> Path:
    """A cohort of three images with smooth regions: volumes, or colour pictures' channels in files of their own."""
    size = (24, 26, 20) if dimensions == 3 else (40, 36, 1)
    for number in range(3):
        for channel in range(channels):
            noise = np.random.default_rng([number, channel]).normal(size=(6, 6, 6 if dimensions == 3 else 1))
            array = ndimage.zoom(noise, [n / m for n, m in zip(size, noise.shape, strict=True)], order=1)
            write_image(folder / f"scan{number}_{channel:04}.nii.gz", array.astype(np.float32), np.eye(4))
    return folder


def skip_where_absent(kind: str) -> None:
    for package in EXPORTERS[kind].needs:
        pytest.importorskip(package)


@pytest.fixture
def a_bundle(tmp_path) -> Path:
    save_student(a_student(), tmp_path / "student")
    return tmp_path / "student"


@EVERY_KIND
@pytest.mark.parametrize("design", ["tiny", "s1"])
@DIMENSIONS
def test_an_export_gives_the_students_classes_at_any_size(kind, design, dimensions, tmp_path):
    skip_where_absent(kind)
    student = a_student(design, dimensions)
    save_student(student, tmp_path / "student")
    found = export(tmp_path / "student", [kind], check=some_scans(tmp_path / "scans", dimensions))[kind]
    exact, student.folder = EXPORTERS[kind].exact, tmp_path / "student"
    assert found["differing"] <= (1e-4 if exact else 0.02) and found["images"] == 2
    assert all((tmp_path / "student" / name).is_file() for name in found["files"])
    run, apart = EXPORTERS[kind].open(student), 1e-3 if exact else 0.1
    for units in (1, 2, 4):  # 1: the coarsest layer is one voxel wide
        image = an_image(student, units=units)
        torch.testing.assert_close(run(image), expected(student, image), rtol=apart, atol=apart)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "design"),
    [(kind, design) for kind in EXPORTERS for design in STUDENTS if design in SOME_DESIGNS or kind == "torchscript"],
)
def test_every_design_can_be_exported(kind, design, tmp_path):
    """Of ONNX and OpenVINO that is part of the backends' tests."""
    skip_where_absent(kind)
    save_student(a_student(design), tmp_path / "student")
    found = export(tmp_path / "student", [kind], check=some_scans(tmp_path / "scans"))[kind]
    assert found["differing"] <= (1e-4 if EXPORTERS[kind].exact else 0.05)


@pytest.mark.parametrize(
    ("kind", "design", "message"),
    [
        ("pt2", "swin-unetr", "does not know swin-unetr students of any size; export it to onnx"),
        ("openvino-int8", "attention-unet", "8-bit integers are not known for attention-unet students .*take openvino"),
    ],
)
def test_an_export_that_a_design_does_not_have_is_refused(kind, design, message, tmp_path):
    skip_where_absent(kind)
    save_student(a_student(design), tmp_path / "student")
    with pytest.raises(ValueError, match=message):
        export(tmp_path / "student", [kind], check=some_scans(tmp_path / "scans"))


@EVERY_KIND
def test_the_bundle_vouches_for_what_was_exported_and_its_card_tells(kind, a_bundle, tmp_path):
    skip_where_absent(kind)
    export(a_bundle, [kind], check=some_scans(tmp_path / "Jane Doe"))
    bundle.check_files(a_bundle)
    student = load_student(a_bundle)
    assert set(EXPORTERS[kind].files) <= bundle.checked_files(a_bundle)
    assert student.card["exports"][kind]["files"] == list(EXPORTERS[kind].files)
    card = (a_bundle / bundle.MODEL_CARD).read_text(encoding="utf-8")
    assert f"- {kind} (" in card and "2 image(s) (those of --check)" in card
    told = "".join(file.read_text(encoding="utf-8") for file in (a_bundle / "configs").iterdir()) + card
    assert "Jane" not in told and "scan0" not in told


@pytest.mark.parametrize(
    ("kind", "backend"),
    [("onnx", "onnxruntime"), ("openvino", "openvino"), ("torchscript", "torchscript"), ("pt2", "pt2")],
)
def test_segment_runs_what_was_exported(command, a_teacher, a_foreign_cohort, tmp_path, kind, backend):
    skip_where_absent(kind)
    if not is_there(backend):
        pytest.skip(f"{backend} is not installed")
    folder = Path(shutil.copytree(a_teacher, tmp_path / "copy"))
    scan = sorted((a_foreign_cohort / "images").iterdir())[0]
    assert command("export", folder, "--to", kind, "--check", scan).status == 0
    done = command("segment", folder, scan, tmp_path / "exported.nii.gz", "--backend", backend)
    start = next(event for event in done.events if event["event"] == "start")
    assert start["backend"].endswith(", from " + Path(EXPORTERS[kind].files[0]).name)
    assert command("segment", a_teacher, scan, tmp_path / "own.nii.gz", "--backend", "torch").status == 0
    first, second = (read_annotation(tmp_path / f"{name}.nii.gz") for name in ("exported", "own"))
    assert first.any() and (first != second).mean() <= 1e-4


def test_a_pt2_of_another_machine_is_not_opened_and_can_be_made_anew(a_bundle, tmp_path, monkeypatch):
    export(a_bundle, ["pt2"])
    assert open_backend(load_student(a_bundle), "pt2").backend.file == a_bundle / PT2
    monkeypatch.setenv("KT_CONFIG", str(tmp_path / "another machine"))
    with monkeypatch.context() as watched:
        watched.setattr("torch.export.load", lambda file: pytest.fail("it was opened"))
        with pytest.raises(ValueError, match="not exported on this machine.*`export --to pt2` makes it anew"):
            open_backend(load_student(a_bundle), "pt2")
    export(a_bundle, ["pt2"])
    assert "torch.export" in open_backend(load_student(a_bundle), "pt2").about


def test_a_pt2_that_was_changed_is_not_opened(a_bundle):
    """Even where whoever changed it wrote the checksums anew."""
    export(a_bundle, ["pt2"])
    with open(a_bundle / PT2, "ab") as file:
        file.write(b"more")
    bundle.write_checksums(a_bundle)
    with pytest.raises(ValueError, match="not exported on this machine"):
        open_backend(load_student(a_bundle), "pt2")


def test_an_export_that_fails_its_check_leaves_the_bundle_as_it_was(a_bundle, monkeypatch):
    before = {file: file.read_bytes() for file in a_bundle.rglob("*") if file.is_file()}
    wrong = replace(EXPORTERS["torchscript"], open=lambda student: lambda batch: -student.network(batch))
    monkeypatch.setitem(exporters.EXPORTERS, "torchscript", wrong)
    with pytest.raises(ValueError, match=r"torchscript failed its check: \d+\.\d+% of the voxels get another"):
        export(a_bundle, ["torchscript"])
    assert {file: file.read_bytes() for file in a_bundle.rglob("*") if file.is_file()} == before


def test_without_a_scan_an_export_is_checked_on_random_images_and_says_so(command, a_bundle):
    done = command("export", a_bundle, "--to", "torchscript")
    assert done.status == 0
    (warning,) = [event["text"] for event in done.events if event["event"] == "warning"]
    assert warning == "no scan is at hand: checked on random images, which says little; give --check PATH"
    assert "(random images)" in (a_bundle / bundle.MODEL_CARD).read_text(encoding="utf-8")


@pytest.mark.parametrize("named", ["run", "run/student"])
def test_the_student_of_a_run_is_checked_on_the_cohort_of_the_run(command, a_teacher, tmp_path, monkeypatch, named):
    shutil.copytree(a_teacher.parent, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    done = command("export", named, "--to", "torchscript")
    start = next(event for event in done.events if event["event"] == "start")
    assert done.status == 0 and start["source"] == "the run's own cohort" and start["cases"][0].startswith("A_")
    assert not [event for event in done.events if event["event"] == "warning"]


def test_an_export_and_a_step_do_not_work_in_a_run_at_the_same_time(command, a_teacher, tmp_path):
    """A step that begins in a run removes half-written files there, which those of an export would be."""
    run = RunDirectory(shutil.copytree(a_teacher.parent, tmp_path / "run"))
    with run.locked("evaluate"):
        refused = command("export", run.path, "--to", "torchscript")
    assert refused.status == 2 and "is in use by the process" in refused.messages
    assert command("export", run.path, "--to", "torchscript").status == 0


def test_a_run_whose_images_went_away_falls_back_to_random_ones(command, a_teacher, tmp_path):
    folder = Path(shutil.copytree(a_teacher.parent, tmp_path / "run"))
    cohort = folder / "cohort.json"
    cohort.write_text(cohort.read_text(encoding="utf-8").replace("/images/", "/moved/"), encoding="utf-8")
    done = command("export", folder, "--to", "torchscript")
    assert done.status == 0 and "checked on random images" in done.text


def test_a_cohort_to_check_on_without_images_is_refused(a_bundle, tmp_path):
    table = tmp_path / "cohort.csv"
    table.write_text("id,image\na,gone.nii.gz\n", encoding="utf-8")
    with pytest.raises(FileNotFoundError, match="gone.nii.gz|none of its images is there"):
        export(a_bundle, ["torchscript"], check=table)


def test_an_export_whose_packages_are_absent_is_refused(a_bundle, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="the export onnx needs packages .* pip install onnx onnxruntime"):
        export(a_bundle, ["onnx"])


def test_a_kind_that_is_not_known_is_refused(a_bundle):
    with pytest.raises(ValueError, match="there is no export 'coreml'; choose from onnx, torchscript"):
        export(a_bundle, ["coreml"])


def test_an_exported_file_that_was_changed_is_not_run(a_bundle):
    export(a_bundle, ["torchscript"])
    with open(a_bundle / "models" / "model.ts", "ab") as file:
        file.write(b"more")
    with pytest.raises(ValueError, match="models/model.ts was changed or damaged"):
        load_student(a_bundle)


def test_a_file_that_the_checksums_do_not_name_is_not_run(a_bundle):
    (a_bundle / "models" / "model.ts").write_bytes(b"anything")
    with pytest.raises(ValueError, match="models/model.ts is not among the bundle's checksums; export it again"):
        open_backend(load_student(a_bundle), "torchscript")


def test_an_exported_network_of_another_student_is_not_run(a_bundle, tmp_path):
    other = a_student()
    other.network.head = torch.nn.Conv3d(16, 5 * 8, 1)
    exporters._write_torchscript(other, a_bundle, Evidence())
    bundle.write_checksums(a_bundle)
    with pytest.raises(ValueError, match="model.ts gives .* for 3 classes; it is not the network of the model card"):
        open_backend(load_student(a_bundle), "torchscript")


@pytest.mark.parametrize(
    ("kind", "backend"),
    [("onnx", "onnxruntime"), ("openvino", "openvino"), ("torchscript", "torchscript"), ("pt2", "pt2")],
)
def test_an_exported_network_with_other_weights_is_not_run(a_bundle, kind, backend):
    skip_where_absent(kind)
    export(a_bundle, [kind])
    student = load_student(a_bundle)
    student.network.head.bias.data += torch.linspace(-1, 1, len(student.network.head.bias))
    with pytest.raises(ValueError, match=r"model\.\w+ gives other classes than the bundle's weights; export it again"):
        open_backend(student, backend)


@pytest.mark.slow
def test_stock_monai_runs_the_bundle(a_teacher, a_phantom_cohort, a_foreign_cohort, tmp_path):
    """`python -m monai.bundle run` on the unpacked zip, in a Python that does not find this package."""
    pytest.importorskip("fire")  # what monai.bundle reads its command line with
    from KnowledgeTransferLib.steps.segment import segment

    shutil.copytree(a_teacher, tmp_path / "made" / "student")
    export(tmp_path / "made" / "student", ["monai"])
    zipfile.ZipFile(tmp_path / "made" / "student.zip").extractall(tmp_path / "else")
    for cohort in (a_phantom_cohort, a_foreign_cohort):
        file = sorted((cohort / "images").iterdir())[0]
        volume = read_image(file)
        write_image(tmp_path / "scans" / (file.name.split(".")[0] + ".nii.gz"), volume.array[0], volume.affine)
    root = tmp_path / "else" / "student"
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_US, f"--config_file={root}/configs/inference.json", f"--bundle_root={root}",
         f"--dataset_dir={tmp_path / 'scans'}", f"--output_dir={tmp_path / 'out'}"],
        capture_output=True, encoding="utf-8", cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    segment(a_teacher, [tmp_path / "scans"], tmp_path / "ours", format=".nii.gz")
    # Site A's scans have the student's spacing; those of site B are resampled, by MONAI in its own way.
    for name, agreement in {"A_001.nii.gz": 0.999, "B_001.nii.gz": 0.95}.items():
        theirs, ours = nibabel.load(tmp_path / "out" / name), nibabel.load(tmp_path / "ours" / name)
        np.testing.assert_allclose(theirs.affine, ours.affine, atol=1e-4)
        assert len(np.unique(ours.dataobj)) > 1
        assert (np.asarray(theirs.dataobj) == np.asarray(ours.dataobj)).mean() > agreement


def test_a_monai_workflow_names_nothing_of_ours(a_bundle):
    export(a_bundle, ["monai"])
    text = (a_bundle / bundle.INFERENCE).read_text(encoding="utf-8")
    assert "KnowledgeTransferLib" not in text and json.loads(text)["network_def"]["_target_"] == "torch.jit.load"


def test_a_torchscript_file_that_reaches_out_is_refused_even_when_the_checksums_vouch_for_it(a_bundle):
    export(a_bundle, ["torchscript"])

    @torch.jit.script
    def reads_a_file(image: torch.Tensor) -> torch.Tensor:
        return torch.from_file("/etc/hostname", False, 1, dtype=torch.uint8) + image

    reads_a_file.save(str(a_bundle / "models" / "model.ts"))
    bundle.write_checksums(a_bundle)
    with pytest.raises(ValueError, match="reaches files or libraries"):
        open_backend(load_student(a_bundle), "torchscript")
