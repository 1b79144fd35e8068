"""Scans: the sides of the benchmark on the small scans of hippocampus_mri."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from side import peak_mib
from timing import median_ms

from KnowledgeTransferLib.records.cohort import read_cohort

BATCH, STEPS, PATCH = 8, 30, (40, 56, 40)
ROUNDS = 15  # of a folder and its floor in turn


def student(data: Path, work: Path) -> dict:
    """A tiny student to work with: a few epochs on expert annotations are enough for timing."""
    from KnowledgeTransferLib.steps.distil import distil

    distil(work / "run", read_cohort(data / "hippocampus_mri", "teacher"), annotations="expert", epochs=8, device="cpu")
    return {}


def step(data: Path, work: Path) -> dict:
    """Time of a training step, as `distil` takes it, divided into preparing and learning."""
    from KnowledgeTransferLib.steps.distil import distil

    run = work / "step"
    distil(run, read_cohort(data / "hippocampus_mri", "transferal"), annotations="expert", soft=False,
           epochs=12, validate_every_epochs=12, batch_size=BATCH, patch_size_voxels=PATCH, device="cpu")  # fmt: skip
    history = json.loads((run / "training.json").read_text())["history"][:-1]  # the last epoch holds the validation
    steps = history[-1]["iteration"] - history[1]["iteration"]
    preparing = (history[-1]["preparing_s"] - history[1]["preparing_s"]) / steps * 1000
    whole = (history[-1]["duration_s"] - history[1]["duration_s"]) / steps * 1000
    return {"preparing_ms": preparing, "learning_ms": whole - preparing}


def monai_batches(data: Path, work: Path) -> dict:
    """The usual MONAI way to the same batches: everything cached, random dictionary transforms per sample."""
    from monai import transforms as t
    from monai.data import CacheDataset, DataLoader

    both, image = ["image", "label"], "image"
    radians = float(np.radians(15))
    chain = t.Compose([
        t.LoadImaged(both, ensure_channel_first=True), t.Orientationd(both, "RAS"),
        t.ScaleIntensityRangePercentilesd(image, 0.5, 99.5, 0, 1, clip=True), t.NormalizeIntensityd(image),
        t.SpatialPadd(both, PATCH), t.CenterSpatialCropd(both, PATCH),
        t.RandAffined(both, prob=1.0, rotate_range=[radians] * 3, scale_range=[0.15] * 3, translate_range=[2] * 3,
                      mode=["bilinear", "nearest"], padding_mode="border"),
        t.RandScaleIntensityd(image, 0.2, prob=1.0), t.RandShiftIntensityd(image, 0.2, prob=1.0),
        t.RandAdjustContrastd(image, prob=1.0, gamma=(0.87, 1.15)), t.RandGaussianNoised(image, prob=1.0, std=0.1),
    ])  # fmt: skip
    cases = [
        {"image": str(c.images[0]), "label": str(c.label)}
        for c in read_cohort(data / "hippocampus_mri", "transferal").cases
    ]
    chain.set_random_state(0)
    loader = DataLoader(
        CacheDataset(cases, chain, progress=False), batch_size=BATCH, shuffle=True, num_workers=0, drop_last=True
    )
    for _ in loader:
        pass
    began, batches = time.perf_counter(), 0
    while batches < STEPS:
        batches += sum(1 for _ in loader)
    return {"batch_ms": (time.perf_counter() - began) / batches * 1000}


def networks(data: Path, work: Path) -> dict:
    """Every design in 3-D: plain torch, and each backend."""
    from KnowledgeTransferLib.learning.backends import is_there, open_backend
    from KnowledgeTransferLib.learning.networks import build_network, parameters_of
    from KnowledgeTransferLib.learning.preprocessing import Normalisation, Preprocessing
    from KnowledgeTransferLib.learning.student import Student
    from KnowledgeTransferLib.records.labels import Labels
    from KnowledgeTransferLib.records.students import STUDENTS

    torch.manual_seed(0)
    image, found = torch.randn(1, 1, *PATCH), {}
    labels, preprocessing = (
        Labels.from_names({1: "a", 2: "b"}),
        Preprocessing(3, (1, 1, 1), (Normalisation("z-score"),)),
    )
    for name, design in STUDENTS.items():
        network = build_network(design, 3, 1, 3).eval()
        student = Student(network, design, labels, preprocessing)
        times = {"plain": median_ms(network, image)}
        for backend, precision in (("torch", "f32"), ("onnxruntime", "f32"), ("openvino", "f32"), ("openvino", "bf16")):
            if is_there(backend):
                times[f"{backend} {precision}"] = median_ms(open_backend(student, backend, precision), image)
        found[name] = {"parameters": parameters_of(network), "ms": times}
    return found


def segment(data: Path, work: Path, bundle: str = "") -> dict:
    """A folder, several times in one process: the first is cold, the others warm, as in `serve` (median).

    The floor of a warm scan is measured in turn with it; `ratio` is the median of the rounds' ratios, beside the least
    and the largest.
    """
    from KnowledgeTransferLib.learning.student import load_student
    from KnowledgeTransferLib.steps.segment import segment as run
    from KnowledgeTransferLib.steps.serve import keeping

    scans, bundle = folder_of_scans(data, work), Path(bundle or work / "run" / "student")
    open_student = keeping(load_student)

    def ms_per_scan() -> float:
        began = time.perf_counter()
        done = run(bundle, [scans], work / "ours", device="cpu", overwrite=True, open_student=open_student)
        return (time.perf_counter() - began) / len(done["files"]) * 1000

    cold_ms, peak = ms_per_scan(), peak_mib()
    rounds = [(_floor(open_student(bundle, "cpu"), scans, work), ms_per_scan()) for _ in range(ROUNDS)]
    floor = {name: float(np.median([parts[name] for parts, _ in rounds])) for name in rounds[0][0]}
    ratios = sorted(ms / sum(parts.values()) for parts, ms in rounds)
    warm_ms = float(np.median([ms for _, ms in rounds]))
    ratio = {"ratio": float(np.median(ratios)), "least": ratios[0], "largest": ratios[-1]}
    return {"cold_ms": cold_ms, "ms": warm_ms, "peak_mib": peak, **floor, **ratio}


def _floor(student, scans: Path, work: Path) -> dict:
    """Milliseconds per scan (medians) of reading, of one warm pass through the network, and of writing, each alone."""
    from KnowledgeTransferLib.learning.predictor import class_maps
    from KnowledgeTransferLib.learning.volume import read_image, write_annotation

    times = {"read_ms": [], "pass_ms": [], "write_ms": []}

    def timed(name: str, function, *arguments):
        began = time.perf_counter()
        result = function(*arguments)
        times[name].append((time.perf_counter() - began) * 1000)
        return result

    for scan in sorted(scans.iterdir()):
        volume = timed("read_ms", read_image, scan)
        prepared = student.prepare(volume)
        timed("pass_ms", next, class_maps(student.runner, prepared.image, 3, prepared.image.numel() * 8))
        labels = student.decide(prepared)
        timed("write_ms", write_annotation, work / "floor" / scan.name, labels, volume.affine, student.labels)
    return {name: float(np.median(found)) for name, found in times.items()}


def monai_segment(data: Path, work: Path) -> dict:
    """The usual MONAI pipeline with the same network."""
    from monai import transforms as t
    from monai.inferers import sliding_window_inference

    from KnowledgeTransferLib.learning.student import load_student

    network = load_student(work / "run" / "student").network.eval()
    before = t.Compose([
        t.LoadImaged("image", ensure_channel_first=True), t.Orientationd("image", "RAS"),
        t.Spacingd("image", (1, 1, 1)),
        t.ScaleIntensityRangePercentilesd("image", 0.5, 99.5, 0, 1, clip=True), t.NormalizeIntensityd("image"),
    ])  # fmt: skip
    after = t.Compose([
        t.Invertd("pred", before, orig_keys="image", nearest_interp=False), t.AsDiscreted("pred", argmax=True),
        t.SaveImaged("pred", output_dir=work / "monai", output_postfix="", separate_folder=False, print_log=False),
    ])  # fmt: skip
    scans = sorted(folder_of_scans(data, work).iterdir())
    began = time.perf_counter()
    for scan in scans:
        item = before({"image": str(scan)})
        with torch.no_grad():
            item["pred"] = sliding_window_inference(item["image"][None], (96, 96, 96), 4, network, overlap=0.25)[0]
        after(item)
    duration_s = time.perf_counter() - began
    return {"ms": duration_s / len(scans) * 1000, "peak_mib": peak_mib(), "differ": _differing(work)}


def many_cases(data: Path, work: Path, step: str, count: str) -> dict:
    """Peak memory of a step over `count` copies of one larger volume."""
    from KnowledgeTransferLib.learning.volume import write_image
    from KnowledgeTransferLib.steps.annotate import annotate
    from KnowledgeTransferLib.steps.segment import segment as run

    folder = work / f"large_{step}_{count}"
    values = np.random.default_rng(0).normal(size=(128, 128, 96)).astype(np.float32)
    for number in range(int(count)):
        write_image(folder / f"case_{number}.nii", values, np.eye(4))
    bundle = work / "run" / "student"
    if step == "annotate":
        annotate(work / f"{step}_{count}", folder, {str(bundle): 1.0}, device="cpu")
    else:
        run(bundle, [folder], work / f"{step}_{count}", device="cpu")
    shutil.rmtree(folder)
    return {"peak_mib": peak_mib()}


def folder_of_scans(data: Path, work: Path) -> Path:
    scans = work / "scans"
    if not scans.is_dir():
        scans.mkdir()
        for case in read_cohort(data / "hippocampus_mri", "transferal").cases:
            shutil.copy(case.images[0], scans)
    return scans


def _differing(work: Path) -> float:
    import nibabel

    pairs = [
        (nibabel.load(f).get_fdata(), nibabel.load(work / "ours" / f.name).get_fdata())
        for f in (work / "monai").glob("*.nii.gz")
    ]
    return float(np.mean([np.mean(a != b) for a, b in pairs]))
