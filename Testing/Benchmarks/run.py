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
DATA = Path(os.environ.get("KT_DATA", ROOT.parent / "shared" / "data")).resolve()


def main() -> None:
    if not (DATA / "hippocampus_mri").is_dir():
        sys.exit(f"{DATA}: the public data sets are not there; set KT_DATA to the folder that holds them")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        side("student", work)
        text = "\n\n".join([heading(), training(work), networks(work), folders(work), growth(work)])
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
    times = side("networks", work)
    rows = "\n".join(
        f"| {name} | {t['parameters']} | {t['plain_ms']:.1f} | {t['ours_ms']:.1f} | {t['plain_ms'] / t['ours_ms']:.1f} | "
        f"{times['large']['ours_ms'] / t['ours_ms']:.1f} |"
        for name, t in times.items()
    )
    return (
        "## One pass over a scan of 40 x 56 x 40 voxels (median of 30)\n\n"
        "| design | parameters | plain torch (ms) | as `segment` runs it (ms) | ratio | times faster than `large` |\n"
        f"|---|---|---|---|---|---|\n{rows}\n\n"
        "`segment` folds batch norms and sends every convolution to oneDNN; decisions are the same."
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
