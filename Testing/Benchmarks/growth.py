"""Growth: time and memory of one volume against its number of voxels and of structures, and the figure of both."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from side import peak_mib, side

VOXELS = [(edge, 5) for edge in (96, 192, 288, 384)]
STRUCTURES = [(192, structures) for structures in (1, 5, 20, 50, 100)]
CLASSES = ("regions", "noise")  # what an untrained student sees: smooth regions, or borders everywhere


def one(data: Path, work: Path, edge: str, structures: str, classes: str) -> dict:
    """`student.segment` of a cube at 1 mm, in memory, of a student at 1.5 mm; the better of two runs."""
    from KnowledgeTransferLib.learning.volume import Volume

    smooth = torch.randn(1, 1, 6, 6, 6, generator=torch.Generator().manual_seed(0)) * 300
    array = torch.nn.functional.interpolate(smooth, (int(edge),) * 3, mode="trilinear")[0].to(torch.int16).numpy()
    volume, student, times = Volume(array, np.eye(4)), untrained(int(structures), classes), []
    for _ in range(2):
        began = time.perf_counter()
        student.segment(volume)
        times.append(time.perf_counter() - began)
    return {"edge": int(edge), "structures": int(structures), "s": min(times), "peak_mib": peak_mib()}


def untrained(structures: int, classes: str):
    """A `tiny` student; with "regions" all voxels of a block of its sub-pixel head say the same."""
    from KnowledgeTransferLib.learning.networks import build_named_network
    from KnowledgeTransferLib.learning.preprocessing import Normalisation, Preprocessing
    from KnowledgeTransferLib.learning.student import Student
    from KnowledgeTransferLib.records.labels import Labels
    from KnowledgeTransferLib.records.students import design_named

    torch.manual_seed(0)
    labels = Labels.from_names({value: f"organ {value}" for value in range(1, structures + 1)})
    network = build_named_network("tiny", 3, 1, labels.channels).eval()
    if classes == "regions":
        for values in (network.head.weight.data, network.head.bias.data):
            blocks = values.view(labels.channels, -1, *values.shape[1:])
            blocks[:] = blocks[:, :1].clone()
    preprocessing = Preprocessing(3, (1.5,) * 3, (Normalisation("ct", -1000, 1000, 0, 300),))
    return Student(network, design_named("tiny"), labels, preprocessing)


def measure(work: Path) -> dict[str, list[dict]]:
    """Of both kinds of classes, every volume once: `regions` and `noise`."""
    sizes = list(dict.fromkeys(VOXELS + STRUCTURES))
    return {classes: [side("growth.one", work, *size, classes) for size in sizes] for classes in CLASSES}


def figure(found: dict[str, list[dict]], target: Path) -> None:
    """Time above, memory below; against voxels on the left, against structures on the right."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(9, 6), dpi=110, layout="constrained")
    axes = drawing.subplots(2, 2, sharex="col")
    columns = (
        (VOXELS, lambda row: row["edge"] ** 3 / 1e6, "million voxels (5 structures)"),
        (STRUCTURES, lambda row: row["structures"], "structures (7.1 million voxels)"),
    )
    rows = (("s", 1, "time (s)"), ("peak_mib", 1024, "peak memory (GiB)"))
    for column, (sizes, x, x_title) in enumerate(columns):
        for row, (key, unit, y_title) in enumerate(rows):
            at = axes[row, column]
            for classes in CLASSES:
                chosen = sorted((r for r in found[classes] if (r["edge"], r["structures"]) in sizes), key=x)
                at.plot([x(r) for r in chosen], [r[key] / unit for r in chosen], "o-", label=classes)
            at.set(ylabel=y_title, ylim=(0, None), xlim=(0, None))
            at.grid(alpha=0.3)
        axes[1, column].set_xlabel(x_title)
    axes[0, 0].legend(title="classes")
    drawing.savefig(target)
