"""Benchmarks: speed and memory beside what a user would otherwise run; one process per side, ratios in the table.

make bench           writes docs/benchmarks.md; about 5 minutes on 2 CPU cores
KT_DATA=/my/data make bench
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from KnowledgeTransferLib import __version__
from KnowledgeTransferLib.records.run_directory import write_text

ROOT = Path(__file__).parents[2]
FASTEST = "openvino f32"
DATA = Path(os.environ.get("KT_DATA", ROOT.parent / "shared" / "data")).resolve()


def main() -> None:
    if not (DATA / "hippocampus_mri").is_dir():
        sys.exit(f"{DATA}: the public data sets are not there; set KT_DATA to the folder that holds them")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        side("student", work)
        text = "\n\n".join(
            [
                heading(),
                training(work),
                networks(work),
                whole_ct(work),
                growth_of_segment(work),
                folders(work),
                growth(work),
            ]
        )
    write_text(ROOT / "docs" / "benchmarks.md", text + "\n")
    print(text)


def side(name: str, work: Path, *arguments) -> dict:
    """Run one side in a process of its own; its last line of output is JSON."""
    command = [
        sys.executable,
        str(Path(__file__).with_name("sides.py")),
        name,
        str(DATA),
        str(work),
        *map(str, arguments),
    ]
    print(f"- {name} {' '.join(map(str, arguments))}", file=sys.stderr, flush=True)
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    return json.loads(done.stdout.splitlines()[-1])


def heading() -> str:
    return (
        "# Benchmarks\n\nWritten by `make bench` (Testing/Benchmarks/run.py); do not edit by hand. Every side runs in a "
        "process of its own, one after the other. Figures hold for this machine; the ratios are what to look at.\n\n"
        f"- KnowledgeTransfer {__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{torch.get_num_threads()} threads, no GPU used\n- Data: hippocampus_mri, split `transferal` (60 scans of about "
        "35 x 51 x 35 voxels); seed 0"
    )


def training(work: Path) -> str:
    ours, monai = side("step", work), side("monai_batches", work)
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
    found = side("networks", work)
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
    made = side("ct_make", work)
    ours = {name: side("ct_ours", work, name) for name in ("openvino", "onnxruntime", "torch")}
    little = side("ct_ours", work, "openvino", 0.85)
    side("ct_ours", work, "openvino")
    monai = side("ct_monai", work)
    differ, gflops = side("ct_differences", work), side("rate", work)
    rows = "\n".join(
        f"| `segment`, {name} | {t['s']:.2f} | {t['cold_s']:.2f} | {t['peak_mib']:.0f} | {monai['s'] / t['s']:.0f} | {t['peak_mib'] / monai['peak_mib']:.3f} | {t['network_s'] / t['s']:.0%} | {gflops.get(name.split(',')[0], 0):.0f} |"
        for name, t in {**ours, "openvino, `--max-memory 0.85`": little}.items()
    )
    return (
        f"## A CT of 512 x 512 x 215 voxels (.nii.gz, 0.8 x 0.8 x 2.5 mm), file to file, `tiny` at 2.5 mm with {differ['classes']} classes\n\n"
        "| | warm (s) | first in a process (s) | peak memory (MiB) | times faster than MONAI | memory / MONAI's | time in the network | its GFLOP/s |\n"
        f"|---|---|---|---|---|---|---|---|\n{rows}\n"
        f"| MONAI: LoadImaged, Orientationd, Spacingd, ScaleIntensityRanged, sliding window, Invertd, AsDiscreted, SaveImaged | | {monai['s']:.2f} | {monai['peak_mib']:.0f} | 1 | 1 | | |\n\n"
        f"Imports are not counted on either side. The CT is made by the benchmark (smooth regions; the student, trained for a minute, finds them with a mean Dice of {made['dice']:.3f}). "
        f"Voxels that differ from the dense computation (same class maps, every voxel interpolated): **{differ['dense']} of {differ['voxels']}**, "
        f"in {differ['sparse_s']:.2f} s instead of {differ['dense_s']:.2f} s. From torch's labels differ: OpenVINO {differ['openvino']:.4%}, ONNX Runtime {differ['onnxruntime']:.4%}; "
        f"MONAI's pipeline {differ['monai']:.3%} (it pads the windows with zeros and resamples on another grid). "
        f"A 4096 x 4096 matrix product reaches {gflops['matrix']:.0f} GFLOP/s on the same cores. nnU-Net's predictor was not measured here."
    )


def growth_of_segment(work: Path) -> str:
    """Against voxels and against structures."""
    rows = []
    for edge, structures in ((96, 5), (192, 5), (288, 5), (384, 5), (192, 1), (192, 20), (192, 50), (192, 100)):
        found = side("growth_of_segment", work, edge, structures)
        rows.append(
            f"| {edge} x {edge} x {edge} | {structures} | {found['s']:.2f} | {found['s'] / edge**3 * 1e9:.0f} | {found['peak_mib']:.0f} |"
        )
    return (
        "## Growth with the number of voxels and of structures (`tiny` at 1.5 mm, volumes of 1 mm, in memory)\n\n"
        "| voxels | structures | s | ns per voxel | peak memory (MiB) |\n|---|---|---|---|---|\n"
        + "\n".join(rows)
        + "\n\n"
        "The student is untrained, so that its classes are noise: the most borders that there can be."
    )


def folders(work: Path) -> str:
    ours, monai = side("segment", work), side("monai_segment", work)
    return (
        "## A folder of 60 scans, file to file, same weights\n\n"
        "| | s | ms per scan | peak memory (MiB) |\n|---|---|---|---|\n"
        f"| `segment` | {ours['s']:.2f} | {ours['s'] / ours['scans'] * 1000:.0f} | {ours['peak_mib']:.0f} |\n"
        f"| MONAI: LoadImaged, Orientationd, Spacingd, ScaleIntensityRangePercentilesd, NormalizeIntensityd, sliding window, Invertd, AsDiscreted, SaveImaged | "
        f"{monai['s']:.2f} | {monai['s'] / monai['scans'] * 1000:.0f} | {monai['peak_mib']:.0f} |\n\n"
        f"**{monai['s'] / ours['s']:.1f} times faster** (imports not counted), {monai['peak_mib'] / ours['peak_mib']:.2f} times the memory "
        f"of ours. Voxels that differ: {monai['differ']:.3%}; the sliding window pads a scan with zeros to 96 voxels, ours continues its edge to the next multiple of 8."
    )


def growth(work: Path) -> str:
    rows = []
    for step in ("annotate", "segment"):
        few, many = (side("growth", work, step, count)["peak_mib"] for count in (3, 30))
        rows.append(f"| {step} | {few:.0f} | {many:.0f} | {many / few:.2f} |")
    return (
        "## Peak memory does not grow with the number of cases (128 x 128 x 96 voxels each, MiB)\n\n"
        "| step | 3 cases | 30 cases | ratio |\n|---|---|---|---|\n" + "\n".join(rows)
    )


if __name__ == "__main__":
    main()
