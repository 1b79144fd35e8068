"""Cost of distillation: a training step with losses against one that only runs both networks. Prints a table.

`python Testing/Benchmarks/distil_cost.py [cpu|cuda]`; a part of `make bench`.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path

import numpy as np
import torch

from KnowledgeTransferLib.learning.features import Target, outputs_of, shapes_of
from KnowledgeTransferLib.learning.losses import WeightedLosses
from KnowledgeTransferLib.learning.networks import build_network
from KnowledgeTransferLib.records.losses import USUAL_WEIGHTS
from KnowledgeTransferLib.records.settings import DistilSettings
from KnowledgeTransferLib.records.students import design_named

CONTRASTIVE = ("contrastive", "voxel-contrastive", "structure-contrastive")
ROWS = {  # title -> losses beside dice-ce
    "teacher and student forward, student backward": (),
    "with response": ("response",),
    "with all contrastive losses": CONTRASTIVE,
    **{f"with {name}": (name,) for name in (*CONTRASTIVE, "feature-mse", "attention-transfer", "region-affinity")},
    "with every loss": tuple(name for name in USUAL_WEIGHTS if name != "dice-ce"),
}
PAIRS = (("t1", "s1"), ("medium", "s1"))
REPEATS = 3


def table(device: str = "cpu", size: int = 128, batch: int = 4) -> str:
    """A Markdown table: milliseconds of a step for each pair of teacher and student, and how many times the first."""
    columns = {pair: _column(pair, device, (size, batch)) for pair in PAIRS}
    heads = " | ".join(f"{teacher} teaches {student} (ms)" for teacher, student in columns)
    lines = [f"| step ({device}, {batch} images of {size} x {size}) | {heads} |", "|---" * (1 + len(columns)) + "|"]
    for row in ROWS:
        cells = [
            f"{1000 * times[row]:.0f} ({times[row] / next(iter(times.values())):.2f})" for times in columns.values()
        ]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def measure(data: Path, work: Path) -> str:
    return table()


def _column(pair: tuple[str, str], device: str, sizes: tuple[int, int]) -> dict[str, float]:
    """Seconds of each row's step. Rounds go over all rows, so that a busy moment of the machine meets all of them."""
    torch.manual_seed(0)
    teacher, student = (build_network(design_named(name), 2, 1, 2).to(device) for name in pair)
    teacher.requires_grad_(False).eval()
    image = torch.randn(sizes[1], 1, sizes[0], sizes[0], device=device)
    structure = torch.zeros_like(image)
    structure[:, :, : sizes[0] // 3, : sizes[0] // 3] = 1
    target = Target(torch.cat([1 - structure, structure], 1), image)
    shapes, settings = shapes_of(student, teacher, 1), DistilSettings()
    losses = {
        row: WeightedLosses({"dice-ce": 1.0} | {name: USUAL_WEIGHTS[name] for name in names}, shapes, settings).to(
            device
        )
        for row, names in ROWS.items()
    }
    times = {row: [] for row in ROWS}
    for _ in range(1 + REPEATS):
        for row, loss in losses.items():
            times[row].append(_step_s(student, teacher, loss, target))
    return {row: float(np.median(found[1:])) for row, found in times.items()}


def _step_s(student, teacher, loss, target: Target) -> float:
    target = dataclasses.replace(target)  # as in a training: no step knows what the losses of another found out
    _wait(target.image)
    began = time.perf_counter()
    with torch.no_grad():
        taught = outputs_of(teacher, target.image, loss.teacher_taps)
    loss(outputs_of(student, target.image, loss.student_taps), taught, target).backward()
    _wait(target.image)
    student.zero_grad(set_to_none=True)
    return time.perf_counter() - began


def _wait(tensor: torch.Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize()


if __name__ == "__main__":
    print(table(*sys.argv[1:2]))
