"""Foreign models: tiny real ones of the kinds that KnowledgeTransfer did not make, for the tests of teachers."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch
from torch import nn

STRUCTURES = [{"name": "liver", "value": 4}, {"name": "spleen", "value": 2}]
SIDECAR = {
    "structures": STRUCTURES, "activation": "softmax", "dimensions": 3, "channels": 1, "orientation": "RAS",
    "spacing_mm": [1.0, 2.0, 3.0], "normalisation": {"kind": "z-score"}, "patch_size_voxels": [8, 8, 8],
}  # fmt: skip


def a_network(dimensions: int = 3, outputs: int = 3) -> nn.Module:
    """Two convolutions whose scores depend on place and grey value; the same weights every time."""
    kind = nn.Conv3d if dimensions == 3 else nn.Conv2d
    torch.manual_seed(0)
    network = nn.Sequential(kind(1, 4, 3, padding=1), nn.ReLU(), kind(4, outputs, 1)).eval()
    return network.requires_grad_(False)


def an_example(dimensions: int = 3) -> torch.Tensor:
    return torch.zeros(1, 1, *[8] * dimensions)


def write_sidecar(folder: Path, **changes) -> Path:
    (folder / "teacher.json").write_text(json.dumps({**SIDECAR, **changes}), encoding="utf-8")
    return folder


def write_torchscript(folder: Path, network: nn.Module | None = None, name: str = "model.ts", **changes) -> Path:
    folder.mkdir(parents=True)
    torch.jit.trace(network or a_network(), an_example()).save(folder / name)
    write_sidecar(folder, **changes)
    return folder / name


def write_torch_export(folder: Path) -> Path:
    folder.mkdir(parents=True)
    torch.export.save(torch.export.export(a_network(), (an_example(),)), folder / "model.pt2")
    write_sidecar(folder)
    return folder / "model.pt2"


def write_onnx(folder: Path, name: str = "model.onnx") -> Path:
    folder.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter that needs no further package is the old one
        torch.onnx.export(
            a_network(), (an_example(),), folder / name, dynamo=False,
            dynamic_axes={"image": {0: "B", 2: "i", 3: "j", 4: "k"}}, input_names=["image"],
        )  # fmt: skip
    write_sidecar(folder)
    return folder / name
