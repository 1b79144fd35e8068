"""Backends: what runs a student's network. A backend is a class listed in BACKENDS; all give the same labels."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import warnings
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import nn

from .ahead import MOST_AT_ONCE
from .exported_files import ONNX, OPENVINO, OPENVINO_INT8, TorchExport, TorchScript, exported
from .networks import for_inference, plain
from .openvino_graph import Compiled, converted_model, features_of, has_bf16, import_openvino, in_halves, openvino_model
from .precision_cost import in_words
from .predictor import Halves
from .quantisation import Ranges
from .resources import bf16_is_wrong, emulates_bf16

if TYPE_CHECKING:
    from .student import Student

DIRECTML = "DmlExecutionProvider"
NOT_MEASURED = "{}: what it costs in Dice was not measured for this student; `export --to openvino` does"
MOST_APART = {"f32": 0.01, "bf16": 0.1, "int8": 0.5}  # of the largest score, between a file and the weights
PROBE_VOXELS = 2  # multiples of the total stride: the edge of the image with which a backend is tried


class Backend(Protocol):
    """Runs a network: `(B, C, *size)` float32 on the CPU to logits `(B, classes, *size)` float32 on the CPU.

    `NEEDS` are the packages without which it cannot run, as one installs them; `PRECISIONS` are those it can run in;
    `about` is what the log says of it; `file` is the exported file that it runs, or None. One that can has two more:
    `halves`, body and head of the network apart, and `beside`, itself for images that go through beside each other.
    """

    NEEDS: tuple[str, ...]
    PRECISIONS: tuple[str, ...]
    about: str
    file: Path | None

    def __init__(self, student: Student, precision: str): ...

    def __call__(self, batch: torch.Tensor) -> torch.Tensor: ...


class Torch:
    """Always there, on every device."""

    NEEDS = ()
    PRECISIONS = ("f32", "bf16")
    file = None

    def __init__(self, student: Student, precision: str):
        self.device, self.precision = student.device, precision
        self.network = for_inference(copy.deepcopy(student.network), student.device)
        imitated = precision == "bf16" and emulates_bf16(student.device)
        slow = " (imitated, slowly: this processor has none)" if imitated else ""
        self.about = f"torch {torch.__version__} on {student.device}, {precision}{slow}"

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        half = contextlib.nullcontext()
        if self.precision == "bf16" and not bf16_is_wrong(self.device, batch.shape, self.network.total_stride):
            half = torch.autocast(self.device, torch.bfloat16)
        with torch.inference_mode(), half:
            return self.network(batch.to(self.device)).float().cpu()


class OpenVino:
    """Intel's runtime, on CPUs of any maker: the file of `export --to openvino` where there is one; int8 needs one."""

    NEEDS = ("openvino",)
    PRECISIONS = ("f32", "bf16", "int8")

    def __init__(self, student: Student, precision: str):
        ov, core = import_openvino(), import_openvino().Core()
        self.file = exported(student, OPENVINO_INT8 if precision == "int8" else OPENVINO)
        if precision == "int8" and self.file is None:
            made = "is made from images: `export --to openvino-int8`"
            raise ValueError(f"{student.folder}: holds no {OPENVINO_INT8}, which int8 needs; it {made}")
        model = core.read_model(self.file) if self.file else self.model_of(student)
        self.options = {
            "INFERENCE_PRECISION_HINT": precision if precision != "int8" else "f32",  # int8 layers say so themselves
            "PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }  # fmt: skip
        self.model = model
        if precision != "int8" and features_of(model):
            self.factor = student.network.stem
            body, head = (lambda batch, n=n: self.two[n](batch) for n in range(2))
            self.halves = Halves(body, head, self.factor, student.labels.channels)
        exact = " (in f32: this processor has none)" if precision == "bf16" and not has_bf16() else ""
        self.about = f"OpenVINO {ov.__version__.split('-')[0]} on cpu, {precision}{exact}"

    @staticmethod
    def model_of(student: Student, ranges: Ranges | None = None):
        """The student's network as an openvino.Model, with 8-bit integers where ranges are given.

        Raises:
            ValueError: 8-bit integers for a network that we do not know layer by layer.
        """
        network = plain(student.network)
        try:
            return openvino_model(network, probe(student), ranges)
        except NotImplementedError as error:
            if ranges is None:
                return converted_model(network, probe(student))
            found = f"8-bit integers are not known for {student.design.name} students ({error})"
            raise ValueError(f"{found}; take openvino, which runs them in f32 and bf16") from error

    @cached_property
    def whole(self) -> Compiled:
        """Compiled when the first image comes that is not small."""
        return Compiled(self.model, self.options)

    @cached_property
    def beside(self) -> OpenVino | None:
        """The same for images that go through beside each other, each on one core; None where there is but one."""
        streams = min(self.options["INFERENCE_NUM_THREADS"], MOST_AT_ONCE)
        if streams == 1:
            return None
        other, options = copy.copy(self), {**self.options, "PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": streams}
        other.whole, other.halves, other.beside = Compiled(self.model, options), None, None
        return other

    @cached_property
    def two(self) -> tuple[Compiled, Compiled]:
        """Body and head; compiled when the first large image comes."""
        body, head = in_halves(self.model)
        return Compiled(body, self.options, Fraction(1, self.factor)), Compiled(head, self.options, self.factor)

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        return self.whole(batch)

    def release(self) -> None:
        for compiled in (self.__dict__.get("whole"), *self.__dict__.get("two", ())):
            if compiled:
                compiled.release()


class QuickOpenVino(OpenVino):
    """What "auto" takes: OpenVINO where it opens at once, from a file or because we know the network's layers."""

    @staticmethod
    def model_of(student: Student, ranges: Ranges | None = None):
        return openvino_model(plain(student.network), probe(student), ranges)


class OnnxRuntime:
    """ONNX Runtime: the file of `export --to onnx` where there is one."""

    NEEDS = ("onnx", "onnxruntime")
    PRECISIONS = ("f32",)
    PROVIDERS = {  # of each device, the fastest first; "cpu": a graphics card that torch does not know, on Windows
        "cuda": ("TensorrtExecutionProvider", "CUDAExecutionProvider"),
        "mps": ("CoreMLExecutionProvider",),
        "cpu": (DIRECTML,),
    }

    def __init__(self, student: Student, precision: str):
        import onnxruntime

        with contextlib.suppress(AttributeError):
            onnxruntime.disable_telemetry_events()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self.file, there = exported(student, ONNX), onnxruntime.get_available_providers()
        providers = [name for name in self.PROVIDERS[student.device] if name in there] + ["CPUExecutionProvider"]
        if student.device != "cpu" and len(providers) == 1:
            found = f"ONNX Runtime has no provider for the device {student.device} (found: {', '.join(there)})"
            raise ValueError(f"{found}; pip install onnxruntime-gpu in place of onnxruntime, or give --device cpu")
        options.enable_mem_pattern = DIRECTML not in providers  # which does not know it
        model = str(self.file) if self.file else onnx_bytes(student)
        self.session = onnxruntime.InferenceSession(model, options, providers=providers)
        first = self.session.get_providers()[0].removesuffix("ExecutionProvider")
        self.about = f"ONNX Runtime {onnxruntime.__version__} on {first}, f32"

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.session.run(None, {"image": np.ascontiguousarray(batch.numpy(), np.float32)})[0])


PRECISIONS = ("f32", "bf16", "int8")
BACKENDS = {
    "torch": Torch, "openvino": OpenVino, "onnxruntime": OnnxRuntime, "torchscript": TorchScript, "pt2": TorchExport,
}  # fmt: skip


class Runner:
    """A network that a backend runs, with what the predictor must know of it. `cost` tells what less exact arithmetic
    was found to cost."""

    def __init__(self, backend: Backend, network: nn.Module, cost: str = ""):
        self.backend, self.network, self.cost = backend, network, cost
        self.about = backend.about + (f", from {backend.file.name}" if backend.file else "")
        self.total_stride, self.margin = network.total_stride, network.margin
        self.halves: Halves | None = getattr(backend, "halves", None)

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        return self.backend(batch)

    @cached_property
    def beside(self) -> Runner | None:
        """The same for images that go through beside each other, each on one core; None where the backend cannot."""
        backend = getattr(self.backend, "beside", None)
        return Runner(backend, self.network, self.cost) if backend else None

    def release(self) -> None:
        """Give back the memory that a backend keeps for its next pass, where it can."""
        if isinstance(self.backend, OpenVino):
            self.backend.release()
        if self.beside:
            self.beside.release()


def open_backend(student: Student, asked: str = "auto", precision: str = "f32") -> Runner:
    """Open a backend and try it on a small image.

    "auto" takes OpenVINO on a CPU where it is installed and opens at once (`QuickOpenVino`), and torch elsewhere: a
    fixed rule, so that results repeat. In docs/benchmarks.md it is the faster one for four of six designs and within a
    quarter of torch for the others.

    Raises:
        ValueError: a backend that is not known or not installed (the message says what to install), or a file whose
            network is not that of the student.
    """
    name = asked if asked != "auto" else "openvino" if student.device == "cpu" and is_there("openvino") else "torch"
    if name not in BACKENDS:
        raise ValueError(f"there is no backend {name!r}; choose one of auto, {', '.join(BACKENDS)}")
    if not is_there(name):
        raise ValueError(f"the backend {name} is not installed; pip install {' '.join(BACKENDS[name].NEEDS)}")
    if name == "openvino" and student.device != "cpu":
        raise ValueError(f"the backend openvino runs on the CPU; the device {student.device} was asked for")
    if precision not in BACKENDS[name].PRECISIONS:
        able = ", ".join(key for key, kind in BACKENDS.items() if precision in kind.PRECISIONS)
        known = " and ".join(BACKENDS[name].PRECISIONS)
        raise ValueError(f"the backend {name} runs in {known} alone; {precision} runs with {able or 'none'}")
    kind = QuickOpenVino if asked == "auto" and name == "openvino" else BACKENDS[name]
    try:
        runner = Runner(kind(student, precision), student.network, _cost(student, precision))
    except NotImplementedError:
        if asked != "auto":
            raise
        runner = Runner(Torch(student, precision), student.network, _cost(student, precision))
    _try(runner.beside or runner, student, name, precision)
    return runner


def is_there(name: str) -> bool:
    """Whether the packages that a backend needs are installed."""
    return all(importlib.util.find_spec(package) is not None for package in BACKENDS[name].NEEDS)


def onnx_bytes(student: Student) -> bytes:
    """The network as ONNX, for batches and images of any size."""
    from torch import onnx

    axes = {0: "batch", **{2 + n: "ijk"[n] for n in range(student.preprocessing.dimensions)}}
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it will be replaced one day, it says; until then it needs one package less
        onnx.export(
            plain(student.network), (probe(student),), stream, dynamo=False, opset_version=17,
            input_names=["image"], output_names=["logits"], dynamic_axes={"image": axes, "logits": axes},
        )  # fmt: skip
    return stream.getvalue()


def probe(student: Student) -> torch.Tensor:
    """A small random image `(1, C, *size)`, the same at each call."""
    edge = PROBE_VOXELS * student.network.total_stride
    shape = (1, student.preprocessing.channels, *[edge] * student.preprocessing.dimensions)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def _try(runner: Runner, student: Student, name: str, precision: str) -> None:
    image = probe(student)
    try:
        found = runner(image)
    except Exception as error:  # every runtime has its own kinds of complaint
        raise ValueError(f"the backend {name} cannot run this student ({error})") from error
    if runner.backend.file is None:
        return
    wanted, file = student.network(image), f"{student.folder}: {runner.backend.file.name}"
    if found.shape != wanted.shape:
        shape = f"gives {tuple(found.shape)} for {student.labels.channels} classes"
        raise ValueError(f"{file} {shape}; it is not the network of the model card")
    if (found - wanted).abs().max() > MOST_APART[precision] * wanted.abs().max():
        raise ValueError(f"{file} gives other classes than the bundle's weights; export it again")


def _cost(student: Student, precision: str) -> str:
    if precision == "f32":
        return ""
    known = student.card.get("precisions", {}).get(precision)
    return in_words(precision, known) if known else NOT_MEASURED.format(precision)
