"""Exporters: a student's network as files that other tools run. An export is one entry of EXPORTERS.

Nothing counts as exported before it gave the student's own labels on images; what is less exact by its nature (8-bit
integers) tells what it costs in Dice.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..records import bundle, trust
from ..records.run_directory import write_json, write_text
from .backends import OpenVino, onnx_bytes, open_backend, probe
from .evidence import Evidence, batches_of
from .exported_files import ONNX, OPENVINO, OPENVINO_INT8, PT2, TORCHSCRIPT
from .model_card import model_card, monai_inference, monai_metadata
from .monai_workflow import monai_workflow
from .networks import plain
from .openvino_graph import has_bf16, import_openvino
from .precision_cost import in_words, precision_cost
from .quantisation import input_ranges
from .student import Student

MOST_DIFFERING = 1e-4  # share of the voxels whose label may differ, through rounding
LEAST_DICE = 0.9  # with the student's labels, of an export that is not exact; with less it is another student
Run = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Exporter:
    """`write(student, folder, evidence)` writes `files` into a bundle's folder; `open(student)` runs them from there.

    exact: whether it must give the student's own labels; else its cost in Dice is measured and limited.
    precisions: those in which OpenVINO runs these files, less exact than f32.
    """

    files: tuple[str, ...]
    write: Callable[[Student, Path, Evidence], None]
    open: Callable[[Student], Run]
    needs: tuple[str, ...] = ()
    exact: bool = True
    precisions: tuple[str, ...] = ()


def _write_onnx(student: Student, folder: Path, _: Evidence) -> None:
    (folder / ONNX).write_bytes(onnx_bytes(student))


def _write_torchscript(student: Student, folder: Path, _: Evidence) -> None:
    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore")  # of its coming end; every torch that MONAI runs with still reads it
        torch.jit.save(torch.jit.trace(plain(student.network), probe(student), check_trace=False), folder / TORCHSCRIPT)


def _write_openvino(student: Student, folder: Path, _: Evidence) -> None:
    import_openvino().save_model(OpenVino.model_of(student), folder / OPENVINO, compress_to_fp16=False)


def _write_openvino_int8(student: Student, folder: Path, evidence: Evidence) -> None:
    if not evidence.cases:
        raise ValueError("8-bit integers are calibrated on real images, and none are there; name some (--check PATH)")
    ranges = input_ranges(plain(student.network), batches_of(student, evidence.calibrating))
    import_openvino().save_model(OpenVino.model_of(student, ranges), folder / OPENVINO_INT8, compress_to_fp16=False)


def _write_pt2(student: Student, folder: Path, _: Evidence) -> None:
    if getattr(student.network, "no_export", "") == "pt2":
        found = f"torch.export does not know {student.design.name} students of any size"
        raise ValueError(f"{student.name}: {found}; export it to onnx, openvino or torchscript")
    stride, dimensions = student.network.total_stride, student.preprocessing.dimensions
    sizes = {2 + n: stride * torch.export.Dim("ijk"[n], min=1, max=1 << 12) for n in range(dimensions)}
    shapes = ({0: torch.export.Dim("batch", min=1, max=1 << 12), **sizes},)
    example = torch.cat([probe(student)] * 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(plain(student.network), (example,), dynamic_shapes=shapes), folder / PT2)
    trust.remember(student.folder / PT2, bundle.sha256(folder / PT2))  # who made it is known: this very process


def _write_monai(student: Student, folder: Path, evidence: Evidence) -> None:
    _write_torchscript(student, folder, evidence)
    write_json(folder / bundle.INFERENCE, {**monai_inference(student), **monai_workflow(student)})


EXPORTERS = {
    "onnx": Exporter((ONNX,), _write_onnx, lambda s: open_backend(s, "onnxruntime"), ("onnx", "onnxruntime")),
    "torchscript": Exporter((TORCHSCRIPT,), _write_torchscript, lambda s: open_backend(s, "torchscript")),
    "pt2": Exporter((PT2,), _write_pt2, lambda s: open_backend(s, "pt2")),
    "openvino": Exporter(
        (OPENVINO, "models/model.bin"), _write_openvino, lambda s: open_backend(s, "openvino"), ("openvino",),
        precisions=("bf16",),
    ),
    "openvino-int8": Exporter(
        (OPENVINO_INT8, "models/model_int8.bin"), _write_openvino_int8,
        lambda s: open_backend(s, "openvino", "int8"), ("openvino",), exact=False, precisions=("int8",),
    ),
    "monai": Exporter((TORCHSCRIPT, bundle.INFERENCE), _write_monai, lambda s: open_backend(s, "torchscript")),
}  # fmt: skip


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


def write_export(student: Student, name: str, folder: Path, evidence: Evidence) -> dict:
    """Add an export to the bundle in `folder`, with its checksums and a word in the model card.

    Returns:
        `files`, `images` (how many it was checked on), `source` (where these are from), `differing` (share of the
        voxels with another label) and, where there are real images, `precisions` (what each costs, `precision_cost`).

    Raises:
        ValueError: it does not give the student's labels; the folder is then not fit for use.
    """
    exporter = exporter_named(name)
    exporter.write(student, folder, evidence)
    bundle.write_checksums(folder)
    changed, batches = replace(student, folder=folder), evidence.batches(student)
    differing = _differing(student, exporter.open(changed), batches)
    if exporter.exact and differing > MOST_DIFFERING:
        raise _refusal(student, name, f"{differing:.3%} of the voxels get another label than from the student itself")
    able = [p for p in exporter.precisions if p != "bf16" or has_bf16()]
    costs = {p: precision_cost(changed, p, evidence) for p in able if evidence.cases}
    if not exporter.exact:
        _check_costs(student, name, costs)
    found = {"files": list(exporter.files), "images": len(batches), "source": evidence.source, "differing": differing}
    exports = {**student.card.get("exports", {}), name: found}
    student.card = {**student.card, "exports": exports, "precisions": {**student.card.get("precisions", {}), **costs}}
    _update_card(student, folder)
    return found | {"precisions": costs}


def _check_costs(student: Student, name: str, costs: dict[str, dict]) -> None:
    for precision, cost in costs.items():
        if cost["dice_with_f32"] is None:
            raise _refusal(student, name, f"it finds none of its structures on {cost['images']} image(s); name others")
        if cost["dice_with_f32"] < LEAST_DICE:
            raise _refusal(student, name, f"{in_words(precision, cost)}; at least {LEAST_DICE} is needed")


def _refusal(student: Student, name: str, found: str) -> ValueError:
    return ValueError(f"{student.name}: the export {name} failed its check: {found}; nothing was exported")


@torch.inference_mode()
def _differing(student: Student, run: Run, batches: list[torch.Tensor]) -> float:
    """Share of the voxels whose class is not that of the network in plain torch."""
    network = student.network.cpu().eval()
    different = sum(int((run(batch).argmax(1) != network(batch).argmax(1)).sum()) for batch in batches)
    return different / sum(batch[:, 0].numel() for batch in batches)


def _update_card(student: Student, folder: Path) -> None:
    metadata = bundle.read_metadata(folder)
    ours = {**metadata[bundle.OURS], "card": student.card}
    write_json(folder / bundle.METADATA, {**metadata, **monai_metadata(student), bundle.OURS: ours})
    write_text(folder / bundle.MODEL_CARD, model_card(student))
    bundle.write_checksums(folder)
