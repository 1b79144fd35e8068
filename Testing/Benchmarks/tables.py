"""Tables: each part of the benchmark, measured side by side and written as Markdown."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import growth as growth_sides
import pair
import scans
import torch
from side import ROOT, side

FASTEST = "openvino f32"
BACKENDS = ("openvino", "onnxruntime", "torch")
LITTLE_GIB = 0.85
MONAI_STEPS = "LoadImaged, Orientationd, Spacingd, {scaling}, sliding window, Invertd, AsDiscreted, SaveImaged"
FIGURE = "benchmarks_growth.png"


def training(work: Path) -> str:
    ours, monai = side("scans.step", work), side("scans.monai_batches", work)
    return (
        "## Loading and augmentation in a training step (`tiny`, CPU, batch of 8)\n\n"
        "| | ms per step |\n|---|---|\n"
        f"| loading and augmentation, ours | {ours['preparing_ms']:.1f} |\n"
        f"| loading and augmentation, MONAI's CacheDataset, dictionary transforms and DataLoader | {monai['batch_ms']:.1f} |\n"
        f"| network, loss and optimiser | {ours['learning_ms']:.1f} |\n\n"
        f"Share of the step: **{ours['preparing_ms'] / (ours['preparing_ms'] + ours['learning_ms']):.0%}** (aim: at most 25 %); "
        f"MONAI's pipeline takes {monai['batch_ms'] / ours['preparing_ms']:.1f} times as long for the same kind of changes."
    )


def networks(work: Path) -> str:
    found = side("scans.networks", work)
    columns = list(next(iter(found.values()))["ms"])
    rows = "\n".join(
        f"| {name} | {t['parameters']} | "
        + " | ".join(f"{t['ms'][c]:.1f}" for c in columns)
        + f" | {t['ms'][columns[0]] / t['ms'][FASTEST]:.1f} | "
        f"{found['large']['ms'][FASTEST] / t['ms'][FASTEST]:.1f} |"
        for name, t in found.items()
    )
    return (
        "## One pass over a scan of 40 x 56 x 40 voxels (median of 30, ms)\n\n"
        f"| design | parameters | plain torch | {' | '.join(columns[1:])} | plain torch / {FASTEST} | times faster than `large` |\n"
        f"|{'---|' * (len(columns) + 4)}\n{rows}\n\n"
        "`segment` takes OpenVINO in f32 where it is installed, else torch with folded batch norms and oneDNN's convolutions; "
        "labels are the same (at most 0.01 % of voxels differ, by a test of every design)."
    )


def whole_ct(work: Path) -> str:
    """From file to file, one process per side."""
    made = side("ct.make", work)
    ours = {name: side("ct.ours", work, name) for name in BACKENDS}
    little = side("ct.ours", work, BACKENDS[0], LITTLE_GIB)
    others = {f"MONAI: {MONAI_STEPS.format(scaling='ScaleIntensityRanged')}": side("ct.monai", work), **nnunet(work)}
    floor, differ = side("ct.floor", work), side("ct.differences", work)
    return (
        f"## A CT of 512 x 512 x 215 voxels (.nii.gz, 0.8 x 0.8 x 2.5 mm), file to file, `tiny` at 2.5 mm with {differ['classes']} classes\n\n"
        + beside_others(ours[BACKENDS[0]], others)
        + f"\n\n{backends({**ours, f'{BACKENDS[0]}, `--max-memory {LITTLE_GIB}`': little}, others, floor)}\n\n"
        + f"Imports are not counted on any side. The CT is made by the benchmark (smooth regions; the student, trained for a minute, finds them with a mean Dice of {made['dice']:.2f}). "
        f"Voxels that differ from the dense computation (same class maps, every voxel interpolated): **{differ['dense']} of {differ['voxels']}**, "
        f"in {differ['sparse_s']:.2f} s instead of {differ['dense_s']:.2f} s. From torch's labels differ: OpenVINO {differ['openvino']:.4%}, ONNX Runtime {differ['onnxruntime']:.4%}; "
        f"MONAI's pipeline {differ['monai']:.3%} (it pads the windows with zeros and resamples on another grid)."
    )


def nnunet(work: Path) -> dict[str, dict]:
    """The sides of nnU-Net, where it is installed."""
    if find_spec("nnunetv2") is None:
        return {}
    same, plain = side("ct_nnunet.predict", work, "same"), side("ct_nnunet.predict", work, "plain")
    return {
        "nnU-Net v2's nnUNetPredictor (no mirror images) with the same network and weights": same,
        f"nnU-Net v2's nnUNetPredictor (no mirror images) with its own U-Net of the same widths ({plain['parameters']} parameters)": plain,
    }


def beside_others(ours: dict, others: dict[str, dict]) -> str:
    rows = [f"| `segment`, {BACKENDS[0]}, in a warm process | {ours['s']:.2f} | {ours['peak_mib']:.0f} | 1 | 1 |"]
    rows += [
        f"| {name} | {t['s']:.1f} | {t['peak_mib']:.0f} | **{t['s'] / ours['s']:.0f}** | {t['peak_mib'] / ours['peak_mib']:.1f} |"
        for name, t in others.items()
    ]
    absent = "" if len(others) > 1 else "\n\nnnU-Net v2 is not installed (`make teachers`) and was not measured."
    return (
        "| | s | peak memory (MiB) | times slower | times the memory |\n|---|---|---|---|---|\n"
        + "\n".join(rows)
        + absent
    )


def backends(ours: dict[str, dict], others: dict[str, dict], floor: dict) -> str:
    monai, matrix = next(iter(others.values())), floor["matrix_gflops"]
    rows = [
        f"| {name} | {t['s']:.2f} | {t['cold_s']:.2f} | {t['peak_mib']:.0f} | {t['peak_mib'] / monai['peak_mib']:.3f} | "
        f"{t['network_s'] / t['s']:.0%} | {t['gflops']:.0f} | {t['gflops'] / matrix:.0%} |"
        for name, t in ours.items()
    ]
    parts = [floor[f"{name}_s"] for name in ("read", "look", "network", "write")]
    return (
        "| `segment` with the backend | warm (s) | first in a process (s) | peak memory (MiB) | memory / MONAI's | time in the network | its GFLOP/s | of a matrix product's |\n"
        f"|{'---|' * 8}\n" + "\n".join(rows) + "\n\n"
        f"A 4096 x 4096 matrix product reaches {matrix:.0f} GFLOP/s on the same cores. Reading alone takes {parts[0]:.2f} s, looking at every voxel once {parts[1]:.2f} s, "
        f"the network's operations at the rate of the matrix product {parts[2]:.2f} s, writing {parts[3]:.2f} s: together {sum(parts):.2f} s, the least that this way of working needs."
    )


def region_first(work: Path) -> str:
    t = side("ct.region", work)
    return (
        "## `--region-first`: the same CT, a `tiny` student of one organ at 1.5 mm, file to file in a warm process\n\n"
        "| | s |\n|---|---|\n"
        f"| `segment` | {t['whole_s']:.2f} |\n| `segment --region-first` | {t['region_s']:.2f} |\n\n"
        f"**{t['whole_s'] / t['region_s']:.1f} times faster**; {t['differ']} of {t['voxels']} voxels differ, of which the organ has {t['structure']} "
        f"(the student, trained for a minute, finds it with a Dice of {t['dice']:.2f})."
    )


def growth(work: Path) -> str:
    """Against voxels and against structures, as a table and as a figure."""
    found = growth_sides.measure(work)
    growth_sides.figure(found, ROOT / "docs" / FIGURE)
    rows = [
        f"| {r['edge']} x {r['edge']} x {r['edge']} | {r['structures']} | {r['s']:.2f} | {r['s'] / r['edge'] ** 3 * 1e9:.0f} | {r['peak_mib']:.0f} | {n['s']:.2f} | {n['peak_mib']:.0f} |"
        for r, n in zip(found["regions"], found["noise"], strict=True)
    ]
    return (
        "## Growth with the number of voxels and of structures (`tiny` at 1.5 mm, volumes of 1 mm, in memory)\n\n"
        f"![Time and memory against voxels and structures]({FIGURE})\n\n"
        "| voxels | structures | regions: s | ns per voxel | peak memory (MiB) | noise: s | peak memory (MiB) |\n"
        f"|{'---|' * 7}\n" + "\n".join(rows) + "\n\n"
        "The student is untrained. *Regions*: its classes form smooth regions, as organs do. *Noise*: they change from voxel to voxel, "
        "which are the most borders that there can be; every voxel is interpolated."
    )


def folder(work: Path) -> str:
    learnt(work)
    ours, monai = side("scans.segment", work), side("scans.monai_segment", work)
    least = ours["read_ms"] + ours["pass_ms"] + ours["write_ms"]
    return (
        "## A folder of 60 scans, file to file, same weights\n\n"
        "| | ms per scan | peak memory (MiB) |\n|---|---|---|\n"
        f"| `segment`, in a warm process | {ours['ms']:.1f} | {ours['peak_mib']:.0f} |\n"
        f"| `segment`, first in a process, with loading the student | {ours['cold_ms']:.1f} | |\n"
        f"| MONAI: {MONAI_STEPS.format(scaling='ScaleIntensityRangePercentilesd, NormalizeIntensityd')} | {monai['ms']:.0f} | {monai['peak_mib']:.0f} |\n\n"
        f"**{monai['ms'] / ours['ms']:.0f} times faster** (imports not counted), {monai['peak_mib'] / ours['peak_mib']:.2f} times the memory "
        f"of ours. Voxels that differ: {monai['differ']:.3%}; the sliding window pads a scan with zeros to 96 voxels, ours continues its edge to the next multiple of 8.\n\n"
        f"One scan alone, in the same process: reading {ours['read_ms']:.1f} ms, one warm pass through the network {ours['pass_ms']:.1f} ms, writing {ours['write_ms']:.1f} ms (it waits for the disk), together {least:.1f} ms. "
        f"A scan of the folder takes **{ours['ratio']:.2f} times** that (aim: at most 1.2): the median of {scans.ROUNDS} rounds, both in turn; from {ours['least']:.2f} to {ours['largest']:.2f}."
    )


def annotation(work: Path) -> str:
    """With the teacher that `make real` left, or one that is trained for a few minutes."""
    teacher = pair.bundles(work)["large"]
    if not teacher.is_dir():
        side("pair.train", work)
    t = side("annotate_cost.measure", work, pair.bundles(work)["large"])
    each = {name: t[f"{name}_s"] / t["scans"] * 1000 for name in ("bare", "annotate")}
    return (
        f"## Cost of annotation (teacher `{t['design']}`, {t['scans']} scans of split `transferal`)\n\n"
        "| | s | ms per scan |\n|---|---|---|\n"
        f"| bare forward passes of the teacher, scans prepared in memory | {t['bare_s']:.2f} | {each['bare']:.0f} |\n"
        f"| `annotate`, file to file: reading, preparing, forward passes, probabilities and pseudo-annotations written | {t['annotate_s']:.2f} | {each['annotate']:.0f} |\n\n"
        f"**{t['ratio']:.2f} times** the bare forward passes (aim: at most 1.15). Median of the rounds, both in turn; opening the teacher is counted, imports are not."
    )


def distillation(work: Path) -> str:
    return (
        "## Cost of the losses of distillation (a training step; times the step that only runs both networks)\n\n"
        + side("distil_cost.measure", work)
        + "\nAim: all contrastive losses together at most 1.6 times."
    )


def student_and_teacher(work: Path) -> str:
    """The pair that `make real` left, or one that is trained for a few minutes."""
    brief = not any(bundle.is_dir() for bundle in pair.bundles(work).values())
    if brief:
        side("pair.train", work)
    found = {name: side("pair.measure", work, name) for name in ("large", "tiny")}
    structures, large, tiny = list(found["large"]["dice"]), found["large"], found["tiny"]
    dice = {name: " | ".join(f"{t['dice'][s]:.3f}" for s in structures) for name, t in found.items()}
    rows = [
        f"| {who} `{name}` | {t['parameters']} | {dice[name]} | {t['pass_ms']:.1f} | {t['ms']:.1f} | {t['peak_mib']:.0f} |"
        for who, (name, t) in zip(("teacher", "student"), found.items(), strict=True)
    ]
    origin = (
        f"Both were trained within the benchmark, the teacher for {pair.TEACHER_MINUTES:g} minutes and the student for {pair.STUDENT_MINUTES:g}; what longer training gives is in [results.md](results.md)"
        if brief
        else "Both are those of `make real` ([results.md](results.md))"
    )
    return (
        "## A student beside its teacher (60 scans of split `transferal`, `segment` in a warm process)\n\n"
        f"| | parameters | {' | '.join(f'Dice: {s}' for s in structures)} | one pass (ms) | file to file (ms per scan) | peak memory (MiB) |\n"
        f"|{'---|' * (5 + len(structures))}\n" + "\n".join(rows) + "\n\n"
        f"The student's pass is **{large['pass_ms'] / tiny['pass_ms']:.0f} times faster**, from file to file it is {large['ms'] / tiny['ms']:.1f} times faster and takes {tiny['peak_mib'] / large['peak_mib']:.2f} times the memory. "
        f"{origin}. The student learnt from the teacher's pseudo-annotations of these scans; neither saw their expert annotations, with which Dice is measured."
    )


def cases(work: Path) -> str:
    learnt(work)
    rows = []
    for step in ("annotate", "segment"):
        few, many = (side("scans.many_cases", work, step, count)["peak_mib"] for count in (3, 30))
        rows.append(f"| {step} | {few:.0f} | {many:.0f} | {many / few:.2f} |")
    return (
        "## Peak memory does not grow with the number of cases (128 x 128 x 96 voxels each, MiB)\n\n"
        "| step | 3 cases | 30 cases | ratio |\n|---|---|---|---|\n" + "\n".join(rows)
    )


def learnt(work: Path) -> None:
    """The student of the folder of scans, trained once."""
    if not (work / "run" / "student").is_dir():
        side("scans.student", work)


def gpu(work: Path) -> str:
    """The CT on the GPU, and what a large teacher gains there; without one, that nothing was measured."""
    title = "## On a GPU\n\n"
    if not torch.cuda.is_available():
        return f"{title}Not measured: no GPU."
    if not (work / "ct" / "student").is_dir():
        side("ct.make", work)
    ways = {"f32": ("torch", "", "cuda"), "bf16": ("torch", "", "cuda", "bf16"), "on the CPU": (BACKENDS[0],)}
    rows = [
        f"| {name} | {t['s']:.2f} | {t['cold_s']:.2f} | {t['network_s'] / t['s']:.0%} | {t['gflops']:.0f} |"
        for name, t in ((name, side("ct.ours", work, *way)) for name, way in ways.items())
    ]
    large = side("gpu.large_teacher", work)
    teacher = [f"| {way} | {ms:.1f} | {large['f32'] / ms:.2f} |" for way, ms in large.items()]
    return (
        f"{title}{torch.cuda.get_device_name()}\n\n"
        "| `segment` of the CT | warm (s) | first in a process (s) | time in the network | its GFLOP/s |\n|---|---|---|---|---|\n"
        + "\n".join(rows)
        + "\n\n| `large`, one pass over 160 x 160 x 160 voxels | ms | times faster |\n|---|---|---|\n"
        + "\n".join(teacher)
    )
