"""Every backend gives the classes of the plain network; one that is absent says what to install."""

import importlib.util
import itertools
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
import torch
from torch import nn

from KnowledgeTransferLib.learning import backends
from KnowledgeTransferLib.learning.backends import BACKENDS, onnx_bytes, open_backend
from KnowledgeTransferLib.learning.networks import build_network, plain
from KnowledgeTransferLib.learning.preprocessing import Normalisation, Preprocessing
from KnowledgeTransferLib.learning.resources import give_back_freed_memory
from KnowledgeTransferLib.learning.student import Student, load_student, save_student
from KnowledgeTransferLib.records.labels import Labels
from KnowledgeTransferLib.records.students import STUDENTS, design_named
from KnowledgeTransferLib.steps.export import export

LABELS = Labels.from_names({1: "liver", 2: "spleen"})
DESIGNS = pytest.mark.parametrize("design", list(STUDENTS))
SLOW_TO_CONVERT = ("mednext-s", "swin-unetr")  # 10 s in 3-D; in 2-D it is the same code
NEED_A_FILE = ("torchscript", "pt2")  # tested with the exports
DIMENSIONS = pytest.mark.parametrize("dimensions", [2, 3])


def a_student(design: str = "tiny", dimensions: int = 3, channels: int = 1) -> Student:
    """With made-up statistics of its batch norms and different biases in the head."""
    torch.manual_seed(0)
    network = build_network(design_named(design), dimensions, channels, LABELS.channels)
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    preprocessing = Preprocessing(dimensions, (1.0, 1.0, 1.0), (Normalisation("z-score"),) * channels)
    return Student(network.eval(), design_named(design), LABELS, preprocessing)


def an_image(student: Student, batch: int = 1, units: int = 3) -> torch.Tensor:
    n, stride = student.preprocessing.dimensions, student.network.total_stride
    size = [stride * (units + axis) for axis in range(n)]
    return torch.randn(batch, student.preprocessing.channels, *size, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def expected(student: Student, image: torch.Tensor) -> torch.Tensor:
    return student.network(image)


def skip_where_absent(name: str) -> None:
    if not backends.is_there(name):
        pytest.skip(f"{name} is not installed")


@DESIGNS
@DIMENSIONS
def test_the_plain_network_computes_the_same(design, dimensions):
    student = a_student(design, dimensions, channels=2)
    image = an_image(student, batch=2, units=1)
    with torch.inference_mode():
        found = plain(student.network)(image)
    torch.testing.assert_close(found, expected(student, image), rtol=0, atol=1e-5)


def test_the_plain_network_is_a_copy_of_standard_layers():
    student = a_student("tiny")
    before = {name: value.clone() for name, value in student.network.state_dict().items()}
    kinds = {type(module).__name__ for module in plain(student.network).modules()}
    assert kinds <= {"UNet", "ModuleList", "Sequential", "Conv3d", "ReLU", "Upsample", "ConvTranspose3d"}
    after = student.network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize(
    ("name", "design", "dimensions"),
    [
        (name, design, dimensions)
        for name, design, dimensions in itertools.product(BACKENDS, STUDENTS, (2, 3))
        if name not in NEED_A_FILE and (name != "openvino" or dimensions == 2 or design not in SLOW_TO_CONVERT)
    ],
)
def test_a_backend_gives_the_same_labels(name, design, dimensions):
    skip_where_absent(name)
    student = a_student(design, dimensions)
    runner = open_backend(student, name)
    first = an_image(student, 2 if dimensions == 2 else 1, units=4 - dimensions)
    for image in (first, first.transpose(2, 3).contiguous()):
        found, wanted = runner(image), expected(student, image)
        assert found.dtype == torch.float32 and found.shape == wanted.shape
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
        assert (found.argmax(1) != wanted.argmax(1)).float().mean() <= 1e-4


@pytest.mark.parametrize("name", ["torch", "openvino"])
def test_bfloat16_is_close(name):
    skip_where_absent(name)
    student = a_student("small")
    image = an_image(student)
    found, wanted = open_backend(student, name, "bf16")(image), expected(student, image)
    assert found.dtype == torch.float32
    assert (found.argmax(1) != wanted.argmax(1)).float().mean() < 0.05


def test_what_a_backend_is_asked_for_twice_is_not_overwritten():
    student = a_student()
    runner = open_backend(student)
    first = runner(an_image(student))
    kept = first.clone()
    runner(an_image(student) + 1)
    assert torch.equal(first, kept)


@pytest.mark.parametrize("design", ["tiny", "medium", "unet"])
def test_openvino_has_a_unet_in_halves(design):
    skip_where_absent("openvino")
    student = a_student(design)
    image, halves = an_image(student), open_backend(student, "openvino").halves
    features = halves.body(image)
    assert features.shape[2:] == tuple(n // halves.factor for n in image.shape[2:])
    wanted = expected(student, image)
    torch.testing.assert_close(halves.head(features), wanted, rtol=1e-3, atol=1e-3)
    low = halves.head(features[..., :1])  # alone, without what lies around it
    torch.testing.assert_close(low, wanted[..., : halves.factor], rtol=1e-3, atol=1e-3)


def test_a_network_whose_head_looks_around_has_no_halves():
    skip_where_absent("openvino")
    assert open_backend(a_student("deeplabv3plus", 2), "openvino").halves is None
    assert open_backend(a_student(), "torch").halves is None


def test_an_exported_file_has_the_halves_too(tmp_path):
    skip_where_absent("openvino")
    save_student(a_student(), tmp_path / "student")
    export(tmp_path / "student", ["openvino"])
    student = load_student(tmp_path / "student")
    image, runner = an_image(student), open_backend(student, "openvino")
    assert runner.backend.file is not None
    torch.testing.assert_close(runner.halves.head(runner.halves.body(image)), runner(image), rtol=1e-4, atol=1e-4)


def test_auto_takes_openvino_on_a_cpu_where_it_is_installed(monkeypatch):
    skip_where_absent("openvino")
    assert open_backend(a_student()).about.startswith("OpenVINO 20")
    monkeypatch.setattr(backends, "is_there", lambda name: name != "openvino")
    assert open_backend(a_student()).about.startswith("torch 2.")


def test_auto_takes_torch_where_openvino_takes_seconds_to_open_and_its_file_where_there_is_one(tmp_path):
    skip_where_absent("openvino")
    student = a_student("attention-unet", 2)
    assert open_backend(student).about.startswith("torch 2.")
    save_student(student, tmp_path / "student")
    export(tmp_path / "student", ["openvino"])
    assert open_backend(load_student(tmp_path / "student")).about.startswith("OpenVINO 20")


def test_auto_takes_torch_where_openvino_does_not_know_a_layer(monkeypatch):
    skip_where_absent("openvino")

    def unknown(*_):
        raise NotImplementedError("a layer of type Mystery is not known")

    monkeypatch.setattr(backends, "openvino_model", unknown)
    assert open_backend(a_student()).about.startswith("torch 2.")


def test_an_absent_backend_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="the backend onnxruntime is not installed; pip install onnx onnxruntime"):
        open_backend(a_student(), "onnxruntime")


@pytest.mark.parametrize(
    ("asked", "precision", "device", "message"),
    [
        ("tensorflow", "f32", "cpu", "there is no backend 'tensorflow'; choose one of auto, torch, openvino"),
        ("openvino", "f32", "cuda", "openvino runs on the CPU; the device cuda was asked for"),
        ("onnxruntime", "bf16", "cpu", "onnxruntime runs in f32 alone"),
        ("torchscript", "f32", "cpu", "holds no models/model.ts; make it with `export --to torchscript`"),
        ("pt2", "f32", "cpu", "holds no models/model.pt2; make it with `export --to pt2`"),
    ],
)
def test_what_cannot_be_is_refused(asked, precision, device, message):
    if asked in BACKENDS:
        skip_where_absent(asked)
    student = a_student()
    student.device = device
    with pytest.raises(ValueError, match=message):
        open_backend(student, asked, precision)


def test_onnx_takes_any_batch_and_size(tmp_path):
    onnx = pytest.importorskip("onnx")
    model = onnx.load_from_string(onnx_bytes(a_student()))
    onnx.checker.check_model(model, full_check=True)
    dimensions = model.graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dimensions] == ["batch", 1, "i", "j", "k"]


def test_predictions_are_the_same_with_every_backend():
    volume_values = np.random.default_rng(0).normal(size=(1, 21, 26, 19)).astype(np.float32)
    from KnowledgeTransferLib.learning.student import How
    from KnowledgeTransferLib.learning.volume import Volume

    found = {}
    for name in ("torch", "openvino", "onnxruntime"):
        if backends.is_there(name):
            student = a_student()
            student.how = How(name)
            found[name] = student.segment(Volume(volume_values, np.diag([0.8, 0.9, 1.3, 1])))
    for labels in found.values():
        assert (labels != found["torch"]).mean() <= 1e-4


CUDA_WHEEL = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


@pytest.mark.parametrize(
    ("device", "there", "taken"),
    [
        ("cuda", CUDA_WHEEL, CUDA_WHEEL),
        ("cuda", CUDA_WHEEL[1:], CUDA_WHEEL[1:]),
        ("cpu", CUDA_WHEEL, ["CPUExecutionProvider"]),
        (
            "mps",
            ["CoreMLExecutionProvider", "CPUExecutionProvider"],
            ["CoreMLExecutionProvider", "CPUExecutionProvider"],
        ),
        ("cpu", ["CoreMLExecutionProvider", "CPUExecutionProvider"], ["CPUExecutionProvider"]),
        ("cpu", ["DmlExecutionProvider", "CPUExecutionProvider"], ["DmlExecutionProvider", "CPUExecutionProvider"]),
        ("cpu", ["AzureExecutionProvider", "CPUExecutionProvider"], ["CPUExecutionProvider"]),
    ],
)
def test_onnx_runtime_takes_the_provider_of_the_device_and_names_it(device, there, taken, monkeypatch):
    runtime, seen, student = a_fake_runtime(monkeypatch, there), {}, a_student()
    monkeypatch.setattr(runtime, "InferenceSession", a_fake_session(seen))
    student.device = device
    about = open_backend(student, "onnxruntime").about
    assert seen["providers"] == taken
    assert about == f"ONNX Runtime {runtime.__version__} on {taken[0].removesuffix('ExecutionProvider')}, f32"
    assert seen["options"].enable_mem_pattern is ("DmlExecutionProvider" not in taken)


def test_onnx_runtime_without_a_provider_of_the_device_says_what_to_install(monkeypatch):
    a_fake_runtime(monkeypatch, ["CPUExecutionProvider"])
    student = a_student()
    student.device = "cuda"
    with pytest.raises(
        ValueError, match="no provider for the device cuda .* pip install onnxruntime-gpu .* --device cpu"
    ):
        open_backend(student, "onnxruntime")


def a_fake_runtime(monkeypatch, there: list[str]):
    """ONNX Runtime as it is installed here, which says that it has other providers."""
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    monkeypatch.setattr(runtime, "get_available_providers", lambda: there)
    return runtime


def a_fake_session(seen: dict):
    """Takes what a session is opened with, and runs on the CPU."""
    import onnxruntime

    real = onnxruntime.InferenceSession

    class Session:
        def __init__(self, model, options, providers):
            seen.update(options=options, providers=providers)
            self.run = real(model, providers=["CPUExecutionProvider"]).run

        def get_providers(self):
            return seen["providers"]

    return Session


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory from /proc")
def test_what_openvino_keeps_for_its_next_pass_is_given_back():
    pytest.importorskip("openvino")
    runner, image = open_backend(a_student(), "openvino"), torch.zeros(1, 1, 128, 128, 128)

    def held_mib() -> float:
        give_back_freed_memory()
        return psutil.Process().memory_info().rss / 2**20

    before = runner(image)
    kept = held_mib()
    runner.release()
    assert held_mib() < kept - 30  # measured: 60
    torch.testing.assert_close(runner(image), before)


@pytest.fixture
def two_cores(monkeypatch):
    """As on a machine with two cores, though tests share them."""
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_images_that_go_side_by_side_on_one_core_each_get_the_same_as_alone(two_cores, precision):
    pytest.importorskip("openvino")
    student = a_student("small")
    runner = open_backend(student, "openvino", precision)
    images = [an_image(student, units=3) * (1 + n) for n in range(6)]
    alone = [runner.beside(image) for image in images]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(runner.beside, images))
    for found, wanted, image in zip(together, alone, images, strict=True):
        assert torch.equal(found, wanted)
        assert (found.argmax(1) != runner(image).argmax(1)).float().mean() <= (1e-4 if precision == "f32" else 1e-2)


def test_with_one_core_or_torch_nothing_goes_side_by_side(two_cores, monkeypatch):
    assert open_backend(a_student(), "torch").beside is None
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    assert open_backend(a_student(), "openvino").beside is None


def test_bf16_of_a_thin_image_is_no_chance():
    """Where one voxel is left along the last axis, torch's bfloat16 would read memory that nobody wrote."""
    student = a_student("large", 2)
    stride = student.network.total_stride
    thin, wide = torch.randn(1, 1, 4 * stride, stride), torch.randn(1, 1, 4 * stride, 2 * stride)
    in_bf16, in_f32 = (open_backend(student, "torch", precision) for precision in ("bf16", "f32"))
    assert torch.equal(in_bf16(thin), in_f32(thin))
    assert in_bf16(wide).isfinite().all()
