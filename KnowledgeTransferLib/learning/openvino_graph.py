"""OpenVINO graph: a plain network in OpenVINO's operations; needs no ONNX.

The layers of the usual student designs are built one by one; for the others there is OpenVINO's own converter, which
takes some seconds.

Convolutions whose input ranges are given are computed with 8-bit integers: OpenVINO does so by itself where image and
weights go through 256 levels (its "low precision transformations"); its tool NNCF would add a large dependency.
"""

from __future__ import annotations

import operator
import sys
import threading
import warnings
from fractions import Fraction

import numpy as np
import torch
from torch import fx, nn

from .quantisation import LEVELS, Ranges, in_levels, quantised

CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose2d, nn.ConvTranspose3d)
INSTANCE_NORMS = (nn.InstanceNorm2d, nn.InstanceNorm3d)
POOLS = (nn.MaxPool2d, nn.MaxPool3d)
NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.Dropout3d)
FEATURES = "features"  # the tensor that a U-Net's head turns into classes, each voxel by itself


def import_openvino():
    """OpenVINO without its telemetry: the package that would open a connection is not found by it."""
    sys.modules.setdefault("openvino_telemetry", None)
    import openvino

    return openvino


def has_bf16() -> bool:
    """Whether OpenVINO computes in bfloat16 on this processor; where it does not, it takes f32 without a word."""
    return "BF16" in import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def openvino_model(network: nn.Module, example: torch.Tensor, ranges: Ranges | None = None):
    """An openvino.Model of any size, from images `(B, C, *size)` such as the example to logits; in a tenth of a second.

    Args:
        ranges: of the inputs of those convolutions, by name, that are computed with 8-bit integers; None: none is.

    Raises:
        NotImplementedError: the network has a layer that is not among ours.
    """
    ov = import_openvino()
    image = ov.opset13.parameter(_any_size(example), np.float32, name="image")
    result = ov.opset13.result(_Builder(network, ov.opset13, ranges or {}).build(image), name="logits")
    return _named(ov.Model([result], [image], "student"))


def converted_model(network: nn.Module, example: torch.Tensor):
    """The same by OpenVINO's converter, which knows more layers and takes seconds.

    Raises:
        NotImplementedError: it does not know the network either.
    """
    ov = import_openvino()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is constant while tracing; the networks compute it from the shape
            model = ov.convert_model(network, example_input=example)
        model.reshape(_any_size(example))
    except Exception as error:  # it complains in every way there is
        raise NotImplementedError(f"OpenVINO cannot convert the network ({error})") from error
    return _named(model)


def features_of(model):
    """The output within an openvino.Model that a U-Net's head turns into logits; None where it has none."""
    outputs = (output for operation in model.get_ops() for output in operation.outputs())
    return next((output for output in outputs if FEATURES in output.get_names()), None)


def in_halves(model):
    """The body and the head of an openvino.Model with such an output: images to features, and features to logits."""
    ov, model = import_openvino(), model.clone()
    features = features_of(model)
    channels, *size = features.get_partial_shape()[1:]
    seen = ov.opset13.parameter(ov.PartialShape([-1, channels, *[-1] * len(size)]), np.float32)
    for place in features.get_target_inputs():
        place.replace_source_output(seen.output(0))
    body = ov.Model([ov.opset13.result(features)], model.get_parameters(), "body")
    return body, ov.Model(model.get_results(), [seen], "head")


class Compiled:
    """A model that is ready to run: images `(B, C, *size)` to images `grows` times the size, all float32 on the CPU."""

    def __init__(self, model, options: dict, grows: Fraction | int = 1):
        ov = import_openvino()
        self.model, self.tensor = ov.Core().compile_model(model, "CPU", options), ov.Tensor
        self.grows, self.channels = grows, model.output(0).get_partial_shape()[1].get_length()
        self.of_thread = threading.local()

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        image = np.ascontiguousarray(batch.numpy(), np.float32)
        found = np.empty((len(image), self.channels, *(int(n * self.grows) for n in image.shape[2:])), np.float32)
        if not hasattr(self.of_thread, "request"):
            self.of_thread.request = self.model.create_infer_request()
        request = self.of_thread.request
        request.set_output_tensor(0, self.tensor(found, shared_memory=True))  # else it would have to be copied
        request.infer({0: self.tensor(image, shared_memory=True)}, share_outputs=True)
        return torch.from_numpy(found)

    def release(self) -> None:
        self.of_thread = threading.local()  # the old requests hold their last image and what they found
        self.model.release_memory()


def _named(model):
    for port, name in ((model.inputs[0], "image"), (model.outputs[0], "logits")):
        port.get_tensor().set_names({name})
    return model


def _any_size(example: torch.Tensor):
    return import_openvino().PartialShape([-1, example.shape[1], *[-1] * (example.dim() - 2)])


class _Builder:
    """Walks through what torch.fx records of a network."""

    def __init__(self, network: nn.Module, opset, ranges: Ranges):
        self.network, self.o = network, opset
        self.ranges = {network.get_submodule(name): range_ for name, range_ in ranges.items()}
        self.layers = dict(network.named_modules())

    def build(self, image):
        found = {}
        for node in self.nodes():
            if node.op == "placeholder":
                found[node] = image
            elif node.op == "output":
                return found[node.args[0]]
            elif node.op == "call_module":
                x = found[node.args[0]]
                if node.target in ("head", "head.0") and getattr(self.network, "head_is_pointwise", False):
                    x.output(0).get_tensor().set_names({FEATURES})
                found[node] = self.layer(self.layers[node.target], x)
            else:
                found[node] = self.function(node, found)
        raise NotImplementedError("the network has no output")

    def nodes(self):
        try:
            return fx.symbolic_trace(self.network).graph.nodes
        except Exception as error:  # torch.fx complains in every way there is
            raise NotImplementedError(f"the network cannot be followed layer by layer ({error})") from error

    def layer(self, layer: nn.Module, x):
        for kinds, make in (
            (CONVOLUTIONS, self.convolution), (TRANSPOSED, self.transposed), (INSTANCE_NORMS, self.instance_norm),
            (POOLS, self.max_pool), (nn.Upsample, self.upsample), (NOTHING, lambda layer, x: x),
            (nn.ReLU, lambda layer, x: self.o.relu(x)),
            (nn.LeakyReLU, lambda layer, x: self.o.prelu(x, np.float32(layer.negative_slope))),
        ):  # fmt: skip
            if isinstance(layer, kinds):
                return make(layer, x)
        raise NotImplementedError(f"a layer of type {type(layer).__name__} is not known")

    def function(self, node: fx.Node, found: dict):
        if node.target in (operator.add, torch.add):
            return self.o.add(*(found[n] for n in node.args))
        if node.target is torch.cat:
            axis = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
            return self.o.concat([found[n] for n in node.args[0]], axis)
        raise NotImplementedError(f"the operation {node.target} is not known")

    def convolution(self, layer, x):
        if layer.groups > 1:
            raise NotImplementedError("a convolution in groups is not known")
        padding = list(layer.padding)
        x, weight = self.operands(layer, x, 0)
        y = self.o.convolution(x, weight, list(layer.stride), padding, padding, list(layer.dilation))
        return self._with_bias(y, layer.bias)

    def transposed(self, layer, x):
        padding = list(layer.padding)
        x, weight = self.operands(layer, x, 1)
        y = self.o.convolution_backprop_data(
            x, weight, list(layer.stride), None, padding, padding, list(layer.dilation),
            output_padding=list(layer.output_padding),
        )  # fmt: skip
        return self._with_bias(y, layer.bias)

    def operands(self, layer, x, output_axis: int):
        """Input and weight of a convolution, in 256 levels where its range is known."""
        if layer not in self.ranges:
            return x, self.constant(layer.weight)
        low, high = in_levels(*self.ranges[layer])
        weight, scale = quantised(_values(layer.weight), output_axis)
        in_floats = self.o.convert(self.o.constant(weight), np.float32)
        return self.o.fake_quantize(x, low, high, low, high, LEVELS), self.o.multiply(in_floats, scale)

    def instance_norm(self, layer, x):
        axes = np.arange(2, layer.weight.dim() + 3 if isinstance(layer, nn.InstanceNorm2d) else 5, dtype=np.int64)
        y = self.o.mvn(x, axes, True, layer.eps, "INSIDE_SQRT")
        shape = (1, -1, *[1] * len(axes))
        return self.o.add(self.o.multiply(y, self.constant(layer.weight, shape)), self.constant(layer.bias, shape))

    def max_pool(self, layer, x):
        n = 2 if isinstance(layer, nn.MaxPool2d) else 3
        return self.o.max_pool(x, [2] * n, [1] * n, [0] * n, [0] * n, [2] * n).output(0)

    def upsample(self, layer, x):
        axes = np.arange(2, x.get_output_partial_shape(0).rank.get_length(), dtype=np.int64)
        scales = np.full(len(axes), layer.scale_factor, np.float32)
        return self.o.interpolate(
            x, scales, "nearest", "scales", axes=axes, coordinate_transformation_mode="asymmetric", nearest_mode="floor"
        )

    def _with_bias(self, y, bias):
        if bias is None:
            return y
        n = y.get_output_partial_shape(0).rank.get_length() - 2
        return self.o.add(y, self.constant(bias, (1, -1, *[1] * n)))

    def constant(self, parameter: torch.Tensor, shape: tuple[int, ...] | None = None):
        """Made here: of an array that an operation gets, OpenVINO would turn each number into one of Python's first."""
        values = _values(parameter)
        return self.o.constant(values if shape is None else values.reshape(shape))


def _values(parameter: torch.Tensor) -> np.ndarray:
    return parameter.detach().numpy()
