"""Exported: networks saved without their source code, as teachers: TorchScript, torch.export and ONNX.

Such a file holds a network and no more; the rest stands in a teacher.json beside it (see sidecar.py).
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ...records import trust
from ...records.labels import Labels
from ..archive import members, torchscript_risk
from .foreign import ForeignNetwork
from .sidecar import read_sidecar, sidecar_of, write_template
from .teacher import Teacher

BESIDE = "with a teacher.json beside it"


class _Exported:
    """What the three kinds share."""

    @classmethod
    def sha256(cls, path: Path) -> str:
        """Of the network, its teacher.json, and files with weights that an ONNX network names beside it."""
        files = [path, sidecar_of(path), *cls.weights_beside(path)]
        return trust.sha256_of_files([file for file in files if file.is_file()], path.parent)

    @staticmethod
    def weights_beside(path: Path) -> list[Path]:
        return []

    @classmethod
    def risk(cls, path: Path) -> str:
        return ""

    @classmethod
    def open(cls, path: Path, device: str, labels: Labels | None) -> Teacher:
        sidecar = read_sidecar(path)
        trust.require(path, cls.sha256(path), cls.risk(path))
        run = cls._runner(path, device)
        window, preparation = sidecar.window, sidecar.preparation()
        return ForeignNetwork(
            path.name, sidecar.labels, run, preparation, window, sidecar.activation, sidecar.background, device=device
        )

    @classmethod
    def describe(cls, path: Path) -> dict:
        sidecar = read_sidecar(path)
        return {
            "labels": sidecar.labels, "channels": sidecar.channels, "hint": "", "modality": sidecar.modality,
            "card": f"A network without a model card; {sidecar_of(path).name} tells what images it expects.",
        }  # fmt: skip

    @staticmethod
    def sidecar(path: Path) -> Path:
        """Where its teacher.json is, or belongs."""
        return sidecar_of(path)

    @classmethod
    def template(cls, path: Path) -> Path:
        """Write teacher.json to be filled in."""
        return write_template(path)


class TorchScript(_Exported):
    """A network saved by torch.jit."""

    NAME = "torchscript"
    KIND = f"network saved by torch.jit (.ts, .pt, {BESIDE})"

    @staticmethod
    def recognises(path: Path) -> bool:
        return any(name.endswith("/constants.pkl") or "/code/" in name for name in members(path)) and not any(
            name.endswith("/models/model.json") for name in members(path)
        )

    @classmethod
    def risk(cls, path: Path) -> str:
        return torchscript_risk(path)

    @staticmethod
    def _runner(path: Path, device: str) -> Callable:
        try:
            network = torch.jit.load(path, map_location=device).eval()
        except RuntimeError as error:
            raise ValueError(f"{path}: cannot be opened as TorchScript ({_first_line(error)})") from error
        return network


class TorchExport(_Exported):
    """A network saved by torch.export."""

    NAME = "torch-export"
    KIND = f"network saved by torch.export (.pt2, {BESIDE})"

    @staticmethod
    def recognises(path: Path) -> bool:
        names = members(path)
        return any(name.endswith(("/models/model.json", "serialized_exported_program.json")) for name in names)

    @classmethod
    def risk(cls, path: Path) -> str:
        return "torch.export.load reads pickled objects and evaluates expressions of the file"

    @staticmethod
    def _runner(path: Path, device: str) -> Callable:
        try:
            network = torch.export.load(path).module().to(device)
        except (RuntimeError, KeyError, AssertionError) as error:
            raise ValueError(f"{path}: cannot be opened by torch.export ({_first_line(error)})") from error
        return network


class Onnx(_Exported):
    """A network in ONNX, run by onnxruntime."""

    NAME = "onnx"
    KIND = f"ONNX network (.onnx, {BESIDE})"

    @staticmethod
    def recognises(path: Path) -> bool:
        return path.is_file() and path.suffix.lower() == ".onnx"

    @staticmethod
    def weights_beside(path: Path) -> list[Path]:
        """The files in its folder whose names stand in it: large networks keep their weights there."""
        if not path.stat().st_size:  # of which there is no map; it is refused when it is opened
            return []
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            others = (file for file in path.parent.iterdir() if file not in (path, sidecar_of(path)))
            return sorted(file for file in others if content.find(os.fsencode(file.name)) >= 0)

    @classmethod
    def template(cls, path: Path) -> Path:
        session = _session(path, "cpu")
        taken, given = session.get_inputs()[0].shape, session.get_outputs()[0].shape
        outputs, channels = (n if isinstance(n, int) else None for n in (given[1], taken[1]))
        return write_template(path, outputs, channels, len(taken) - 2)

    @staticmethod
    def _runner(path: Path, device: str) -> Callable:
        session = _session(path, device)
        return partial(_run_session, session, session.get_inputs()[0].name)


def _session(path: Path, device: str):
    try:
        import onnxruntime
    except ImportError:
        raise RuntimeError(f"{path}: needs the package onnxruntime; install it (pip install onnxruntime)") from None
    with contextlib.suppress(AttributeError):
        onnxruntime.disable_telemetry_events()
    there = onnxruntime.get_available_providers()
    wanted = ["CUDAExecutionProvider"] * (device == "cuda") + ["CPUExecutionProvider"]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone: stdout and stderr belong to the progress
    try:
        return onnxruntime.InferenceSession(str(path), options, [name for name in wanted if name in there])
    except Exception as error:  # onnxruntime has a dozen kinds of its own, none of them public
        raise ValueError(f"{path}: cannot be opened as ONNX ({_first_line(error)})") from error


def _run_session(session, name: str, batch: torch.Tensor) -> torch.Tensor:
    scores = session.run(None, {name: np.ascontiguousarray(batch.cpu().numpy(), dtype=np.float32)})[0]
    return torch.from_numpy(scores).to(batch.device)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
