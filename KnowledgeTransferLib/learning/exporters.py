"""Exporters: a student's network as files that other tools run. An export is one entry of EXPORTERS.

Nothing counts as exported before it gave the student's own labels, at several sizes.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..records import bundle
from ..records.run_directory import write_json, write_text
from .backends import ONNX, OPENVINO, TORCHSCRIPT, OpenVino, onnx_bytes, open_backend, probe
from .model_card import model_card, monai_inference, monai_metadata
from .monai_workflow import monai_workflow
from .networks import plain
from .openvino_graph import import_openvino
from .student import Student
from .volume import Volume

PT2 = "models/model.pt2"
MOST_DIFFERING = 1e-4  # share of the voxels whose label may differ, through rounding
Run = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Exporter:
    """`write(student, folder)` writes `files` into a bundle's folder; `open(student)` runs them from there."""

    files: tuple[str, ...]
    write: Callable[[Student, Path], None]
    open: Callable[[Student], Run]
    needs: tuple[str, ...] = ()


def _write_onnx(student: Student, folder: Path) -> None:
    (folder / ONNX).write_bytes(onnx_bytes(student))


def _write_torchscript(student: Student, folder: Path) -> None:
    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore")  # of its coming end; every torch that MONAI runs with still reads it
        torch.jit.save(torch.jit.trace(plain(student.network), probe(student), check_trace=False), folder / TORCHSCRIPT)


def _write_openvino(student: Student, folder: Path) -> None:
    import_openvino().save_model(OpenVino.model_of(student), folder / OPENVINO, compress_to_fp16=False)


def _write_pt2(student: Student, folder: Path) -> None:
    stride, dimensions = student.network.total_stride, student.preprocessing.dimensions
    sizes = {2 + n: stride * torch.export.Dim("ijk"[n], min=2, max=1 << 12) for n in range(dimensions)}
    shapes = ({0: torch.export.Dim("batch", min=1, max=1 << 12), **sizes},)
    example = torch.cat([probe(student)] * 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(plain(student.network), (example,), dynamic_shapes=shapes), folder / PT2)


def _write_monai(student: Student, folder: Path) -> None:
    _write_torchscript(student, folder)
    write_json(folder / bundle.INFERENCE, {**monai_inference(student), **monai_workflow(student)})


def _open_pt2(student: Student) -> Run:
    return torch.no_grad()(torch.export.load(student.folder / PT2).module())


EXPORTERS = {
    "onnx": Exporter((ONNX,), _write_onnx, lambda s: open_backend(s, "onnxruntime"), ("onnx", "onnxruntime")),
    "torchscript": Exporter((TORCHSCRIPT,), _write_torchscript, lambda s: open_backend(s, "torchscript")),
    "pt2": Exporter((PT2,), _write_pt2, _open_pt2),
    "openvino": Exporter(
        (OPENVINO, "models/model.bin"), _write_openvino, lambda s: open_backend(s, "openvino"), ("openvino",)
    ),
    "monai": Exporter((TORCHSCRIPT, bundle.INFERENCE), _write_monai, lambda s: open_backend(s, "torchscript")),
}


def exporter_named(name: str) -> Exporter:
    """The entry of EXPORTERS.

    Raises:
        ValueError: there is none of that name, or what it needs is not installed; the message says what to do.
    """
    if name not in EXPORTERS:
        raise ValueError(f"there is no export {name!r}; choose from {', '.join(EXPORTERS)}")
    absent = [package for package in EXPORTERS[name].needs if importlib.util.find_spec(package) is None]
    if absent:
        raise ValueError(f"the export {name} needs packages that are not installed; pip install {' '.join(absent)}")
    return EXPORTERS[name]


def write_export(student: Student, name: str, folder: Path, volumes: list[Volume]) -> dict:
    """Add an export to the bundle in `folder`, with its checksums and a word in the model card.

    Args:
        volumes: what it is checked on; none takes random images.

    Returns:
        `files`, `images` (how many it was checked on) and `differing` (share of the voxels with another label).

    Raises:
        ValueError: it does not give the student's labels; the folder is then not fit for use.
    """
    exporter = exporter_named(name)
    exporter.write(student, folder)
    bundle.write_checksums(folder)
    images = [student.preprocessing.prepare(volume)[0] for volume in volumes] or _random_images(student)
    differing = _differing(student, exporter.open(replace(student, folder=folder)), images)
    if differing > MOST_DIFFERING:
        found = f"{differing:.3%} of the voxels get another label than from the student itself"
        raise ValueError(f"{student.name}: the export {name} failed its check: {found}; nothing was exported")
    found = {"files": list(exporter.files), "images": len(images), "differing": differing}
    student.card = {**student.card, "exports": {**student.card.get("exports", {}), name: found}}
    _update_card(student, folder)
    return found


def _differing(student: Student, run: Run, images: list[torch.Tensor]) -> float:
    """Share of the voxels whose class is not that of the network in plain torch."""
    different = count = 0
    network, stride = student.network.cpu().eval(), student.network.total_stride
    for image in images:
        batch = image[None] if student.preprocessing.dimensions == 3 else image.permute(3, 0, 1, 2)
        batch = batch[(..., *(slice(0, max(2, min(n // stride, 24)) * stride) for n in batch.shape[2:]))]
        padding = [p for n in reversed(batch.shape[2:]) for p in (0, max(-n % stride, 2 * stride - n))]
        batch = torch.nn.functional.pad(batch, padding, mode="replicate").contiguous()
        with torch.inference_mode():
            wanted = network(batch).argmax(1)
        different += int((run(batch).argmax(1) != wanted).sum())
        count += wanted.numel()
    return different / count


def _random_images(student: Student) -> list[torch.Tensor]:
    """Two images of different size with smooth regions, in prepared grey values."""
    stride, generator = student.network.total_stride, torch.Generator().manual_seed(0)
    sizes = [(3 * stride, 4 * stride, 5 * stride), (5 * stride, 3 * stride, 3 * stride)]
    smooth = [torch.randn(1, student.preprocessing.channels, *(n // 4 for n in s), generator=generator) for s in sizes]
    return [torch.nn.functional.interpolate(m, s, mode="trilinear")[0] for m, s in zip(smooth, sizes, strict=True)]


def _update_card(student: Student, folder: Path) -> None:
    metadata = bundle.read_metadata(folder)
    ours = {**metadata[bundle.OURS], "card": student.card}
    write_json(folder / bundle.METADATA, {**metadata, **monai_metadata(student), bundle.OURS: ours})
    write_text(folder / bundle.MODEL_CARD, model_card(student))
    bundle.write_checksums(folder)
