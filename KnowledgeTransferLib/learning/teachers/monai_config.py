"""MONAI configuration: what a bundle's configuration says of its network and images, read as data, never executed."""

from __future__ import annotations

import json
from dataclasses import dataclass

from ...records.labels import Labels, Structure
from .foreign import Window
from .preparation import OUTPUT_STEPS, UnknownStep, is_plain, plain_target, steps_of

REFERENCES = 20  # that may lead from one to the next
MOST_PARTS = 10_000  # that a part of a configuration may consist of, with all that it refers to
IMAGE_KEYS = ("image", "img", "input")
PATCH = (96, 96, 96)  # where the configuration names no window


@dataclass(frozen=True)
class BundleConfig:
    """Configuration of a bundle: `config` (inference.json) and `metadata`."""

    config: dict
    metadata: dict

    @property
    def format(self) -> tuple[dict, dict]:
        """The metadata of the network's input and of its output."""
        data = self.metadata.get("network_data_format", {})
        try:
            return next(iter(data["inputs"].values())), next(iter(data["outputs"].values()))
        except (KeyError, AttributeError, StopIteration, TypeError):
            raise ValueError("its metadata.json tells no network_data_format with inputs and outputs") from None

    @property
    def classes(self) -> list[str]:
        """Names of the output's channels."""
        names = self.format[1].get("channel_def")
        if not isinstance(names, dict) or not all(str(n).isdigit() for n in names):
            raise ValueError("its metadata.json names no structures (channel_def of its output)")
        ordered = [str(names[n]) for n in sorted(names, key=int)]
        return [f"{name} {n}" if ordered.count(name) > 1 else name for n, name in enumerate(ordered)]

    @property
    def background(self) -> bool:
        """Whether channel 0 is the background."""
        return self.classes[0].lower() in ("background", "bg", "unlabelled", "unlabeled")

    @property
    def labels(self) -> Labels:
        names = self.classes[1:] if self.background else self.classes
        return Labels(tuple(Structure.named(name, value) for value, name in enumerate(names, 1)))

    @property
    def channels(self) -> int:
        return int(self.format[0].get("num_channels", 1))

    @property
    def modality(self) -> str:
        """CT or MR where the input says so."""
        found = str(self.format[0].get("modality", "")).upper()
        return {"CT": "CT", "MR": "MR", "MRI": "MR"}.get(found, "")

    @property
    def network(self) -> dict:
        found = self.resolved(self.config.get("network_def", self.config.get("network")))
        if not isinstance(found, dict):
            raise UnknownStep("its configuration has no network_def")
        return found

    @property
    def dimensions(self) -> int:
        network = self.config.get("network_def")
        found = network.get("spatial_dims", network.get("dimensions")) if isinstance(network, dict) else None
        found = self.resolved(found)
        if found is None:
            shape = self.format[0].get("spatial_shape", PATCH)
            found = len(shape) if isinstance(shape, (list, tuple)) else 3
        if found not in (2, 3):
            raise ValueError(f"its network has {found!r} dimensions; 2 or 3 is possible")
        return int(found)

    def steps(self) -> list:
        """Its pre-processing, made from our table."""
        return steps_of(self.transforms("preprocessing"), self.image_key(), self.dimensions)

    def image_key(self) -> str:
        used = [key for item in self.transforms("preprocessing") for key in _as_list(item.get("keys"))]
        return next((key for key in IMAGE_KEYS if key in used), IMAGE_KEYS[0])

    def transforms(self, part: str) -> list[dict]:
        """The items of `preprocessing` or `postprocessing`."""
        found = self.resolved(self.config.get(part, []))
        if isinstance(found, dict):
            found = found.get("transforms") if plain_target(found) == "Compose" else found
        if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
            raise UnknownStep(f"its {part} is no list of steps")
        return found

    @property
    def activation(self) -> str:
        """From the post-processing: an activation, else whether the largest or every channel counts."""
        try:
            items = self.transforms("postprocessing")
        except UnknownStep:  # an expression; it is about files that are not written here
            items = []
        for item in items:
            for activation in ("softmax", "sigmoid"):
                if plain_target(item) == "Activations" and item.get(activation) is True:
                    return activation
        if any(plain_target(item) == "AsDiscrete" and item.get("threshold") for item in items):
            return "sigmoid"
        return "softmax" if self.background else "sigmoid"

    @property
    def left_out(self) -> list[str]:
        """Steps of the post-processing that change a segmentation and that probabilities go without."""
        known = [name for name in OUTPUT_STEPS if name != "KeepLargestConnectedComponent"]
        items = self.transforms("postprocessing")
        return [str(item.get("_target_")) for item in items if plain_target(item) not in (*known, "EnsureType")]

    @property
    def window(self) -> Window:
        inferer = self.resolved(self.config.get("inferer", {}))
        name = plain_target(inferer) if isinstance(inferer, dict) else ""
        if name == "SimpleInferer":
            return Window(None)
        if inferer != {} and name not in ("SlidingWindowInferer", "SlidingWindowInfererAdapt"):
            raise UnknownStep(f"its inferer {inferer!r} is not known")
        size, overlap = inferer.get("roi_size", PATCH[: self.dimensions]), inferer.get("overlap", 0.25)
        if not is_plain(size) or not is_plain(overlap):
            raise UnknownStep(f"its inferer computes its window by an expression ({size!r}, {overlap!r})")
        size = [size] * self.dimensions if isinstance(size, int) else size
        return Window(tuple(int(n) for n in size), float(overlap))

    def resolved(self, value, left: int = REFERENCES, parts: list | None = None):
        """A part of the configuration with its plain references (`@name`, `@a::b`) replaced by what they name."""
        parts = [] if parts is None else parts
        parts.append(left)
        if left == 0 or len(parts) > MOST_PARTS:
            raise UnknownStep("its configuration's references lead in a circle, or to too much")
        if isinstance(value, dict):
            # What an Invert of the post-processing refers to is done by us, and may refer to anything.
            kept = {k: v for k, v in value.items() if plain_target(value) != "Invert" or k == "_target_"}
            return {k: self.resolved(v, left - 1, parts) for k, v in kept.items()}
        if isinstance(value, list):
            return [self.resolved(v, left - 1, parts) for v in value]
        if isinstance(value, str) and value.startswith("@"):
            return self.resolved(self._named(value[1:]), left - 1, parts)
        return value

    def _named(self, reference: str):
        found = self.config
        for part in reference.replace("#", "::").split("::"):
            try:
                found = found[int(part)] if isinstance(found, list) else found[part]
            except (KeyError, IndexError, ValueError, TypeError):
                raise UnknownStep(f"its configuration refers to @{reference}, which is not there") from None
        return found


def parsed(name: str, data: bytes) -> dict:
    """A configuration file in JSON, or in YAML where that package is there.

    Raises:
        ValueError: neither, or no object.
    """
    try:
        content = json.loads(data) if name.endswith(".json") else _yaml(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is damaged ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{name} holds no object")
    return content


def _yaml(data: bytes):
    try:
        import yaml
    except ImportError:
        raise RuntimeError("its configuration is in YAML, which needs the package pyyaml; install it") from None
    try:
        return yaml.safe_load(data)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _as_list(keys) -> list:
    return [keys] if isinstance(keys, str) else [k for k in keys or [] if isinstance(k, str)]
