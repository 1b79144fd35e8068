"""Exported files of a student's bundle, and the backends that run those of torch: TorchScript and torch.export.

Only files that the bundle's checksums vouch for are run, and none that could execute what somebody else put there.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..records import bundle, trust
from .archive import torchscript_risk

if TYPE_CHECKING:
    from .student import Student

ONNX, OPENVINO, TORCHSCRIPT, PT2 = (f"models/model.{ending}" for ending in ("onnx", "xml", "ts", "pt2"))
OPENVINO_INT8 = "models/model_int8.xml"


def exported(student: Student, name: str) -> Path | None:
    """An exported file of the student's bundle: only one that the bundle's checksums vouch for."""
    if student.folder is None or not (student.folder / name).is_file():
        return None
    if name not in bundle.checked_files(student.folder):
        raise ValueError(f"{student.folder}: {name} is not among the bundle's checksums; export it again")
    return student.folder / name


class TorchScript:
    """The file of `export --to torchscript`, in torch."""

    NEEDS = ()
    PRECISIONS = ("f32",)

    def __init__(self, student: Student, precision: str):
        self.file = exported(student, TORCHSCRIPT)
        if self.file is None:
            raise ValueError(f"{student.folder}: holds no {TORCHSCRIPT}; make it with `export --to torchscript`")
        if risk := torchscript_risk(self.file):  # the bundle's checksums tell damage, not who made it
            raise ValueError(f"{self.file}: {risk}; `export --to torchscript` makes it anew from the weights")
        self.device = student.device
        self.network = torch.jit.load(str(self.file), map_location=student.device).eval()
        self.about = f"TorchScript in torch {torch.__version__} on {student.device}, f32"

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return self.network(batch.to(self.device)).float().cpu()


class TorchExport:
    """The file of `export --to pt2`, in torch; only one that was exported on this machine."""

    NEEDS = ()
    PRECISIONS = ("f32",)

    def __init__(self, student: Student, precision: str):
        self.file = exported(student, PT2)
        if self.file is None:
            raise ValueError(f"{student.folder}: holds no {PT2}; make it with `export --to pt2`")
        if not trust.is_trusted(bundle.sha256(self.file)):  # the bundle's checksums tell damage, not who made it
            found = "was not exported on this machine, and torch.export executes expressions of such a file"
            raise ValueError(f"{self.file}: {found}; `export --to pt2` makes it anew from the weights")
        self.device = student.device
        self.network = _module(torch.export.load(self.file), student.device)
        self.about = f"torch.export in torch {torch.__version__} on {student.device}, f32"

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self.network(batch.to(self.device)).float().cpu()


def _module(program: torch.export.ExportedProgram, device: str) -> torch.nn.Module:
    """Without the guards, of torch 2.9 and newer, that refuse images whose coarsest layer is one voxel wide."""
    from torch.export.passes import move_to_device_pass

    moved = move_to_device_pass(program, device)
    known = inspect.signature(moved.module).parameters
    return moved.module(**{"check_guards": False} if "check_guards" in known else {})
