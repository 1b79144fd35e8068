"""Backends: what runs a student's network. A backend is a class listed in BACKENDS; all give the same labels."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import nn

from ..records import bundle
from .archive import torchscript_risk
from .networks import for_inference, plain
from .openvino_graph import import_openvino, openvino_model

if TYPE_CHECKING:
    from .student import Student

PRECISIONS = ("f32", "bf16")
PROBE_VOXELS = 2  # multiples of the total stride: the edge of the image with which a backend is tried


class Backend(Protocol):
    """Runs a network: `(B, C, *size)` float32 on the CPU to logits `(B, classes, *size)` float32 on the CPU.

    `NEEDS` are the packages without which it cannot run, as one installs them; `about` is what the log says of it.
    """

    NEEDS: tuple[str, ...]
    about: str

    def __init__(self, student: Student, precision: str): ...

    def __call__(self, batch: torch.Tensor) -> torch.Tensor: ...


class Torch:
    """Always there, on every device."""

    NEEDS = ()

    def __init__(self, student: Student, precision: str):
        self.device, self.precision = student.device, precision
        self.network = for_inference(copy.deepcopy(student.network), student.device)
        self.about = f"torch {torch.__version__} on {student.device}, {precision}"

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        half = torch.autocast(self.device, torch.bfloat16) if self.precision == "bf16" else contextlib.nullcontext()
        with torch.inference_mode(), half:
            return self.network(batch.to(self.device)).float().cpu()


class OpenVino:
    """Intel's runtime, on CPUs of any maker: the file of `export --to openvino` where there is one."""

    NEEDS = ("openvino",)

    def __init__(self, student: Student, precision: str):
        ov, core = import_openvino(), import_openvino().Core()
        file = exported(student, OPENVINO)
        model = core.read_model(file) if file else self.model_of(student)
        options = {
            "INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }  # fmt: skip
        self.request = core.compile_model(model, "CPU", options).create_infer_request()
        self.tensor, self.classes = ov.Tensor, student.labels.channels
        self.about = f"OpenVINO {ov.__version__.split('-')[0]} on cpu, {precision}" + _from(file)

    @staticmethod
    def model_of(student: Student):
        """The student's network as an openvino.Model."""
        return openvino_model(plain(student.network), student.preprocessing.dimensions, student.preprocessing.channels)

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        image = np.ascontiguousarray(batch.numpy(), np.float32)
        logits = np.empty((len(image), self.classes, *image.shape[2:]), np.float32)
        self.request.set_output_tensor(0, self.tensor(logits, shared_memory=True))  # else it would have to be copied
        self.request.infer({0: self.tensor(image, shared_memory=True)}, share_outputs=True)
        return torch.from_numpy(logits)


class OnnxRuntime:
    """ONNX Runtime: the file of `export --to onnx` where there is one."""

    NEEDS = ("onnx", "onnxruntime")

    def __init__(self, student: Student, precision: str):
        import onnxruntime

        if precision != "f32":
            raise ValueError(f"the backend onnxruntime runs in f32 alone; {precision} was asked for")
        with contextlib.suppress(AttributeError):
            onnxruntime.disable_telemetry_events()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        file = exported(student, ONNX)
        wanted = {"cuda": ["TensorrtExecutionProvider", "CUDAExecutionProvider"], "mps": ["CoreMLExecutionProvider"]}
        there = onnxruntime.get_available_providers()
        providers = [p for p in wanted.get(student.device, []) if p in there] + ["CPUExecutionProvider"]
        model = str(file) if file else onnx_bytes(student)
        self.session = onnxruntime.InferenceSession(model, options, providers=providers)
        first = self.session.get_providers()[0].removesuffix("ExecutionProvider")
        self.about = f"ONNX Runtime {onnxruntime.__version__} on {first}, f32" + _from(file)

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.session.run(None, {"image": np.ascontiguousarray(batch.numpy(), np.float32)})[0])


class TorchScript:
    """The file of `export --to torchscript`, in torch."""

    NEEDS = ()

    def __init__(self, student: Student, precision: str):
        file = exported(student, TORCHSCRIPT)
        if file is None:
            raise ValueError(f"{student.folder}: holds no {TORCHSCRIPT}; make it with `export --to torchscript`")
        if precision != "f32":
            raise ValueError(f"the backend torchscript runs in f32 alone; {precision} was asked for")
        if risk := torchscript_risk(file):  # the bundle's checksums tell damage, not who made it
            raise ValueError(f"{file}: {risk}; `export --to torchscript` makes it anew from the weights")
        self.device = student.device
        self.network = torch.jit.load(str(file), map_location=student.device).eval()
        self.about = f"TorchScript in torch {torch.__version__} on {student.device}, f32" + _from(file)

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return self.network(batch.to(self.device)).float().cpu()


BACKENDS = {"torch": Torch, "openvino": OpenVino, "onnxruntime": OnnxRuntime, "torchscript": TorchScript}
ONNX, OPENVINO, TORCHSCRIPT = "models/model.onnx", "models/model.xml", "models/model.ts"


class Runner:
    """A network that a backend runs, with what the predictor must know of it."""

    def __init__(self, backend: Backend, network: nn.Module):
        self.backend, self.about = backend, backend.about
        self.total_stride, self.margin = network.total_stride, network.margin

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        return self.backend(batch)


def open_backend(student: Student, asked: str = "auto", precision: str = "f32") -> Runner:
    """Open a backend and try it on a small image.

    "auto" takes OpenVINO on a CPU where it is installed, and torch elsewhere: a fixed rule, so that results repeat. In
    docs/benchmarks.md it is the faster one for four of six designs and within a quarter of torch for the others.

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
    try:
        runner = Runner(BACKENDS[name](student, precision), student.network)
    except NotImplementedError:
        if asked != "auto":
            raise
        runner = Runner(Torch(student, precision), student.network)
    _try(runner, student, name)
    return runner


def is_there(name: str) -> bool:
    """Whether the packages that a backend needs are installed."""
    return all(importlib.util.find_spec(package) is not None for package in BACKENDS[name].NEEDS)


def exported(student: Student, name: str) -> Path | None:
    """An exported file of the student's bundle: only one that the bundle's checksums vouch for."""
    if student.folder is None or not (student.folder / name).is_file():
        return None
    if name not in bundle.checked_files(student.folder):
        raise ValueError(f"{student.folder}: {name} is not among the bundle's checksums; export it again")
    return student.folder / name


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


def _try(runner: Runner, student: Student, name: str) -> None:
    image = probe(student)
    try:
        shape = tuple(runner(image).shape)
    except Exception as error:  # every runtime has its own kinds of complaint
        raise ValueError(f"the backend {name} cannot run this student ({error})") from error
    wanted = (1, student.labels.channels, *image.shape[2:])
    if shape != wanted:
        found = f"gives {shape} for {wanted[1]} classes"
        raise ValueError(f"{student.folder}: the exported network {found}; it is not that of the model card")


def _from(file: Path | None) -> str:
    return f", from {file.name}" if file else ""
