"""CT: the sides of the benchmark on a whole CT, from file to file."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from side import peak_mib

SHAPE, SPACING_MM, OWN_SPACING_MM = (512, 512, 215), (0.8, 0.8, 2.5), (2.5, 2.5, 2.5)
STRUCTURES, STEPS, PATCH, BATCH, REPEATS = 13, 400, 32, 8, 3
GREY = np.linspace(-150, 450, STRUCTURES + 1)  # Hounsfield units of tissue and each structure


def make(data: Path, work: Path) -> dict:
    """A CT with smooth organ-like regions as .nii.gz, and a `tiny` student that learnt to find them."""
    return {"dice": learn(write_ct(work), work / "ct" / "student")}


def write_ct(work: Path) -> Path:
    from KnowledgeTransferLib.learning.volume import write_image

    classes, file = organs(SHAPE, SPACING_MM), work / "ct" / "ct.nii.gz"
    noise = np.random.default_rng(0).normal(0, 20, SHAPE).astype(np.float32)
    ct = np.where(classes == 255, -1000, GREY.astype(np.float32)[classes % 255]) + noise
    write_image(file, np.asfortranarray(ct.astype(np.int16)), np.diag([*SPACING_MM, 1.0]))
    return file


def organs(shape, spacing_mm) -> np.ndarray:
    """`(I, J, K)` uint8: 255 air, 0 tissue, 1.. ellipsoids of 30 to 75 mm radius that bend smoothly."""
    rng = np.random.default_rng(1)
    i, j, k = (np.arange(n, dtype=np.float32) * s for n, s in zip(shape, spacing_mm, strict=True))
    i, j, k = i[:, None, None], j[None, :, None], k[None, None, :]
    middle = [n * s / 2 for n, s in zip(shape, spacing_mm, strict=True)]
    result = np.where(((i - middle[0]) / 190) ** 2 + ((j - middle[1]) / 150) ** 2 + 0 * k < 1, 0, 255).astype(np.uint8)
    for value in range(1, STRUCTURES + 1):
        at = [m + rng.uniform(-0.55, 0.55) * m * f for m, f in zip(middle, (0.8, 0.6, 1.4), strict=True)]
        radius = rng.uniform(30, 75, 3)
        bend = 6 * np.sin(k / 30 + value)
        inside = ((i - at[0] - bend) / radius[0]) ** 2 + ((j - at[1]) / radius[1]) ** 2 + (
            (k - at[2]) / radius[2]
        ) ** 2 < 1
        result[inside & (result == 0)] = value
    return result


def learn(file: Path, bundle: Path, spacing_mm=OWN_SPACING_MM, known=range(1, STRUCTURES + 1)) -> float:
    """Train a student of the `known` organs for a minute; returns its mean Dice on the CT."""
    from KnowledgeTransferLib.learning.networks import build_named_network
    from KnowledgeTransferLib.learning.preprocessing import Normalisation, Preprocessing
    from KnowledgeTransferLib.learning.student import Student, save_student
    from KnowledgeTransferLib.learning.volume import read_image
    from KnowledgeTransferLib.records.labels import Labels
    from KnowledgeTransferLib.records.students import design_named

    torch.manual_seed(0)
    preprocessing = Preprocessing(3, spacing_mm, (Normalisation("ct", -300, 600, 100, 200),))
    image, _ = preprocessing.prepare(read_image(file))
    truth = organs(image.shape[1:], [n * s / m for n, s, m in zip(SHAPE, SPACING_MM, image.shape[1:], strict=True)])
    truth = torch.from_numpy(sum((truth == organ) * value for value, organ in enumerate(known, 1))).long()
    network = build_named_network("tiny", 3, 1, len(known) + 1)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-2, STEPS)
    places, shares = truth.nonzero(), torch.bincount(truth.ravel()) / truth.numel()
    for _ in range(STEPS):
        anywhere = torch.stack([torch.randint(0, n, (BATCH // 2,)) for n in truth.shape], 1)
        centres = torch.cat([anywhere, places[torch.randint(0, len(places), (BATCH // 2,))]]).tolist()
        parts = [_around(centre, truth.shape) for centre in centres]
        logits = network(torch.stack([image[(slice(None), *part)] for part in parts]))
        loss = torch.nn.functional.cross_entropy(logits, torch.stack([truth[part] for part in parts]), shares.rsqrt())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    labels = Labels.from_names({value: f"organ {organ}" for value, organ in enumerate(known, 1)})
    student = Student(network.eval(), design_named("tiny"), labels, preprocessing)
    save_student(student, bundle)
    found, truth = _decision(student, image), truth.numpy()
    return float(np.mean([_dice(found == value, truth == value) for value in labels.values[1:]]))


def _decision(student, image: torch.Tensor) -> np.ndarray:
    """The winning channels `(i, j, k)` of the prepared image."""
    found = np.zeros(image.shape[1:], np.int64)
    for start, stop, maps in _maps(student, image):
        part = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        found[part] = maps.argmax(0).numpy()[tuple(slice(b - a) for a, b in zip(start, stop, strict=True))]
    return found


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.sum(a & b) / (np.sum(a) + np.sum(b))


def _around(centre, shape) -> tuple[slice, ...]:
    at = [min(max(0, c - PATCH // 2), n - PATCH) for c, n in zip(centre, shape, strict=True)]
    return tuple(slice(a, a + PATCH) for a in at)


def ours(data: Path, work: Path, backend: str, gib: str = "", device: str = "cpu", precision: str = "f32") -> dict:
    """`segment`, several times in one process: the first is cold, the best of the others warm, as in `serve`."""
    from KnowledgeTransferLib.learning.student import How, load_student
    from KnowledgeTransferLib.steps.segment import segment
    from KnowledgeTransferLib.steps.serve import keeping

    passes, open_student = watched_passes(), keeping(load_student)
    how, name = How(backend, precision, most_bytes=int(float(gib) * 2**30) if gib else None), f"{backend}{gib}"
    bundle, scan, times = work / "ct" / "student", work / "ct" / "ct.nii.gz", []
    for _ in range(REPEATS + 1):
        passes.append([])
        began = time.perf_counter()
        segment(bundle, [scan], work / "ct" / f"{name}.nii.gz", overwrite=True, device=device, how=how,
                open_student=open_student)  # fmt: skip
        times.append(time.perf_counter() - began)
    best = int(np.argmin(times[1:])) + 1
    network_s, voxels = (sum(found) for found in zip(*passes[best], strict=True))
    gflops = flops_per_voxel(load_student(bundle).network) * voxels / network_s / 1e9
    return {"cold_s": times[0], "s": times[best], "network_s": network_s, "gflops": gflops, "peak_mib": peak_mib()}


def region(data: Path, work: Path) -> dict:
    """`segment` of one organ at 1.5 mm with and without `--region-first`, in a warm process."""
    from KnowledgeTransferLib.learning.student import How, load_student
    from KnowledgeTransferLib.learning.volume import read_image
    from KnowledgeTransferLib.steps.segment import segment
    from KnowledgeTransferLib.steps.serve import keeping

    scan, bundle, open_student = write_ct(work), work / "ct" / "small", keeping(load_student)
    ways = {"whole": How(), "region": How(region_first=True)}
    dice, times = learn(scan, bundle, (1.5, 1.5, 1.5), (STRUCTURES,)), {name: [] for name in ways}
    for _ in range(REPEATS + 1):  # by turns, so that both see the same machine
        for name, how in ways.items():
            began = time.perf_counter()
            segment(bundle, [scan], work / "ct" / f"{name}.nii.gz", overwrite=True, device="cpu", how=how,
                    open_student=open_student)  # fmt: skip
            times[name].append(time.perf_counter() - began)
    labels = {name: read_image(work / "ct" / f"{name}.nii.gz").array for name in ways}
    found = {"dice": dice, **{f"{name}_s": min(seconds) for name, seconds in times.items()}}
    differ, structure = (labels["whole"] != labels["region"]).sum(), (labels["whole"] > 0).sum()
    return {**found, "differ": int(differ), "structure": int(structure), "voxels": labels["whole"].size}


def watched_passes() -> list[list[tuple[float, int]]]:
    """Lets every pass through a network add its seconds and voxels to the last list of what is returned."""
    from KnowledgeTransferLib.learning.backends import Runner

    passes, opened = [], Runner.__init__

    def timed(run, counts: bool = True):
        def pass_through(*arguments):
            began = time.perf_counter()
            result = run(*arguments)
            passes[-1].append((time.perf_counter() - began, arguments[-1][:, 0].numel() * counts))
            return result

        return pass_through

    def open_timed(self, *arguments):
        opened(self, *arguments)
        if self.halves:
            body, head = timed(self.halves.body), timed(self.halves.head, counts=False)
            self.halves = replace(self.halves, body=body, head=head)

    Runner.__init__, Runner.__call__ = open_timed, timed(Runner.__call__)
    return passes


def floor(data: Path, work: Path) -> dict:
    """What cannot be left out: reading, looking at every voxel once, the network's operations, writing."""
    from KnowledgeTransferLib.learning.student import load_student
    from KnowledgeTransferLib.learning.volume import read_image, write_annotation

    student, volume = load_student(work / "ct" / "student"), read_image(work / "ct" / "ct.nii.gz")
    labels = read_image(work / "ct" / "torch.nii.gz").array[0].astype(np.uint8, order="F")
    voxels = np.prod(student.preprocessing.prepare(volume)[0].shape)
    a = torch.randn(4096, 4096)
    rate = 2 * 4096**3 / best_s(lambda: a @ a)
    return {
        "read_s": best_s(lambda: read_image(work / "ct" / "ct.nii.gz")), "look_s": best_s(volume.array.max),
        "network_s": flops_per_voxel(student.network) * float(voxels) / rate, "matrix_gflops": rate / 1e9,
        "write_s": best_s(lambda: write_annotation(work / "ct" / "x.nii.gz", labels, volume.affine, student.labels)),
    }  # fmt: skip


def monai(data: Path, work: Path) -> dict:
    """The usual MONAI pipeline with the same network, once."""
    from monai import transforms as t
    from monai.inferers import sliding_window_inference

    from KnowledgeTransferLib.learning.student import load_student

    student = load_student(work / "ct" / "student")
    network, grey = student.network.eval(), student.preprocessing.normalisation[0]
    before = t.Compose([
        t.LoadImaged("image", ensure_channel_first=True), t.Orientationd("image", "RAS"),
        t.Spacingd("image", OWN_SPACING_MM, mode="bilinear"),
        t.ScaleIntensityRanged("image", grey.low, grey.high, (grey.low - grey.mean) / grey.deviation,
                               (grey.high - grey.mean) / grey.deviation, clip=True),
    ])  # fmt: skip
    after = t.Compose([
        t.Invertd("pred", before, orig_keys="image", nearest_interp=False), t.AsDiscreted("pred", argmax=True),
        t.SaveImaged("pred", output_dir=work / "ct" / "monai", output_postfix="", separate_folder=False, print_log=False, output_dtype=np.uint8),
    ])  # fmt: skip
    began = time.perf_counter()
    item = before({"image": str(work / "ct" / "ct.nii.gz")})
    with torch.no_grad():
        item["pred"] = sliding_window_inference(item["image"][None], (96, 96, 96), 4, network, overlap=0.25)[0]
    after(item)
    return {"s": time.perf_counter() - began, "peak_mib": peak_mib()}


def differences(data: Path, work: Path) -> dict:
    """Voxels that differ from the dense computation (same class maps, every voxel interpolated), and between sides."""
    import nibabel

    from KnowledgeTransferLib.learning.student import load_student
    from KnowledgeTransferLib.learning.volume import read_image
    from KnowledgeTransferLib.learning.way_back import WayBack

    student = load_student(work / "ct" / "student")
    image, grid = student.preprocessing.prepare(read_image(work / "ct" / "ct.nii.gz"))
    decisions, seconds = [], []
    for margin in (1e-4, np.inf):
        maps = list(_maps(student, image))
        began = time.perf_counter()
        back = WayBack(grid.shape, grid.axes, grid.flipped, tuple(image.shape[1:]), student.labels.values, margin)
        for start, stop, block in maps:
            back.put(block, start, stop, logits=True)
        decisions.append(back.decision)
        seconds.append(time.perf_counter() - began)
    files = {
        name: np.asarray(nibabel.load(work / "ct" / f"{name}.nii.gz").dataobj)
        for name in ("torch", "openvino", "onnxruntime")
    }
    monai = np.asarray(nibabel.load(work / "ct" / "monai" / "ct.nii.gz").dataobj)
    return {
        "dense": int((decisions[0] != decisions[1]).sum()), "sparse_s": seconds[0], "dense_s": seconds[1],
        "voxels": int(decisions[0].size), "classes": len(np.unique(decisions[0])),
        "openvino": float((files["openvino"] != files["torch"]).mean()),
        "onnxruntime": float((files["onnxruntime"] != files["torch"]).mean()),
        "monai": float((monai != files["torch"]).mean()),
    }  # fmt: skip


def flops_per_voxel(network: torch.nn.Module) -> float:
    """Multiplications and additions of the convolutions, for each voxel of an image."""
    from KnowledgeTransferLib.learning.networks import plain

    total, network, convolutions = [], plain(network), (torch.nn.Conv3d, torch.nn.ConvTranspose3d)

    def count(layer, inputs, output):
        is_transposed = isinstance(layer, torch.nn.ConvTranspose3d)
        total.append(2 * layer.weight.numel() * (inputs[0] if is_transposed else output)[0, 0].numel())

    for layer in network.modules():
        if isinstance(layer, convolutions):
            layer.register_forward_hook(count)
    network(torch.zeros(1, 1, 64, 64, 64))
    return sum(total) / 64**3


def best_s(function, repeats: int = 4) -> float:
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return min(times)


def _maps(student, image):
    from KnowledgeTransferLib.learning.predictor import class_maps

    return class_maps(student.runner, image, 3, 10**9)
