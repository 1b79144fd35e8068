"""Auto3DSeg: a SegResNet that MONAI's Auto3DSeg trained, as the extension MONAIAuto3DSeg stores it, as a teacher.

A folder with model.pt (weights and configuration together) and, from the extension, labels.csv. The checkpoint is read
with `weights_only=True`, and the network is made from our table.
"""

from __future__ import annotations

import csv
import functools
import io
from collections.abc import Callable
from pathlib import Path

import torch

from ...records import trust
from ...records.labels import Labels, Structure
from ..archive import SMALL_BYTES, members, read_member
from .foreign import ForeignNetwork, Window
from .monai_network import load_weights, network_from
from .preparation import Preparation, known_step
from .teacher import Teacher

WEIGHTS, LABELS = "model.pt", "labels.csv"
OVERLAP = 0.625  # of MONAI's and the extension's own inference
PAINTED = (2, 1, 3)  # label values of the brain tumour models' three overlapping channels, as the extension paints them
NORMALISATIONS = ("none", "range", "ct", "meanstd", "mri", "meanstdtanh", "pet")


class Auto3DSeg:
    """A SegResNet of MONAI's Auto3DSeg."""

    NAME = "auto3dseg"
    KIND = "Auto3DSeg SegResNet (a folder with model.pt and labels.csv, as MONAIAuto3DSeg stores it, or its model.pt)"

    @staticmethod
    def recognises(path: Path) -> bool:
        file = _checkpoint(path)
        return file.suffix.lower() == ".pt" and _names_a_config(file)

    @staticmethod
    def open(path: Path, device: str, labels: Labels | None) -> Teacher:
        config, weights = _read(path)
        try:
            network = load_weights(network_from(_network_of(config)), weights)
            preparation = Preparation(steps_of_config(config), 3, _channels(config))
            window = Window(tuple(int(n) for n in config["roi_size"]), OVERLAP)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path}: its configuration is incomplete ({error!r})") from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        sigmoid = bool(config.get("sigmoid", False))
        return ForeignNetwork(
            path.name, _labels(path, config), network.to(device), preparation, window,
            "sigmoid" if sigmoid else "softmax", not sigmoid, network, device=device,
        )  # fmt: skip

    @staticmethod
    def describe(path: Path) -> dict:
        config, _ = _read(path)
        return {
            "labels": _labels(path, config), "channels": _channels(config), "hint": "",
            "modality": {"CT": "CT", "MRI": "MR", "MR": "MR"}.get(str(config.get("modality", "")).upper(), ""),
            "card": "A SegResNet that MONAI's Auto3DSeg trained.",
        }  # fmt: skip

    @staticmethod
    def sha256(path: Path) -> str:
        file = _checkpoint(path)
        return trust.sha256_of_files([f for f in (file, file.with_name(LABELS)) if f.is_file()], file.parent)


def steps_of_config(config: dict) -> list:
    """Its pre-processing, in the order of its training: orientation, crop, spacing, then intensities.

    Raises:
        ValueError: a normalisation that is not known.
    """
    steps = [known_step("Orientation", {"axcodes": "RAS"})] if config.get("orientation_ras", False) else []
    if config.get("crop_foreground", True):
        steps.append(known_step("CropForeground", {"margin": 10, "allow_smaller": True}))
    if config.get("resample_resolution") is not None:
        pixdim = [float(s) for s in config["resample_resolution"]]
        nearly = {"min_pixdim": [0.75 * s for s in pixdim], "max_pixdim": [1.25 * s for s in pixdim]}
        steps.append(known_step("Spacing", {"pixdim": pixdim, "mode": "bilinear", **nearly}))
    modes = [config.get("normalize_mode", "none"), *dict(config.get("extra_modalities") or {}).values()]
    by_channel = [_normalisation(mode, config.get("intensity_bounds")) for mode in modes]
    return [*steps, functools.partial(_normalised, by_channel)]


def _normalised(by_channel: list[list[Callable]], image: torch.Tensor) -> torch.Tensor:
    """Each channel of an image `(C, i, j, k)` by its own steps; by the first's where there is one for all."""
    for channel in range(len(image)):
        part = image.as_tensor()[channel : channel + 1]
        for step in by_channel[channel if len(by_channel) > 1 else 0]:
            part = step(part)
        image[channel : channel + 1] = part
    return image


def _normalisation(mode: str, bounds) -> list[Callable]:
    """The steps of a `normalize_mode`, as MONAI's Auto3DSeg does them."""
    if mode not in NORMALISATIONS:
        raise ValueError(f"its normalisation {mode!r} is not known; known are {', '.join(NORMALISATIONS)}")
    if mode in ("range", "ct"):
        limits = {"a_min": float(bounds[0]), "a_max": float(bounds[1]), "b_min": -1, "b_max": 1, "clip": False}
        return [known_step("ScaleIntensityRange", limits), torch.sigmoid]
    if mode in ("none", "pet"):
        return [lambda x: torch.sigmoid((x - x.min()) / x.std())] * (mode == "pet")
    steps = [known_step("NormalizeIntensity", {"nonzero": True, "channel_wise": True})]
    return steps + [lambda x: 3 * torch.tanh(x / 3)] * (mode == "meanstdtanh")


def _checkpoint(path: Path) -> Path:
    return path / WEIGHTS if path.is_dir() else path


def _names_a_config(file: Path) -> bool:
    """Whether a checkpoint holds a network's configuration beside its weights. Looks at bytes; unpickles nothing."""
    names = members(file)
    pickled = next((name for name in names if name.endswith("/data.pkl")), None)
    if pickled is None or any("/code/" in name for name in names):
        return False
    try:
        content = read_member(file, pickled, SMALL_BYTES)
    except ValueError:
        return False
    return all(word in content for word in (b"state_dict", b"config", b"network", b"SegResNet"))


def _read(path: Path) -> tuple[dict, dict]:
    """Configuration and weights of a checkpoint.

    Raises:
        ValueError: it holds objects that are neither, or lacks one.
    """
    file = _checkpoint(path)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        config, weights = content["config"], content["state_dict"]
        _network_of(config)
    except Exception as error:  # pickle, zip and torch have a dozen kinds between them
        raise ValueError(
            f"{file}: is no Auto3DSeg checkpoint of plain weights and settings ({_line(error)})"
        ) from error
    return config, weights


def _network_of(config: dict) -> dict:
    """Its network; NVIDIA's fast instance norm, which few have, is the ordinary one with the same weights."""
    network = dict(config["network"])
    if str(network.get("norm", "")).upper() == "INSTANCE_NVFUSER":
        network["norm"] = ["INSTANCE", {"affine": True}]
    return network


def _channels(config: dict) -> int:
    return int(config["network"].get("in_channels", 1))


def _labels(path: Path, config: dict) -> Labels:
    """Names from labels.csv, else from the configuration, else numbers; in the order of the network's outputs."""
    outputs, sigmoid = int(config["network"].get("out_channels", 2)), bool(config.get("sigmoid", False))
    file = _checkpoint(path).with_name(LABELS)
    names = _names_in(file) if file.is_file() else _names_of(config)
    values = list(range(1, outputs + 1 if sigmoid else outputs))
    if sigmoid and len(values) == len(PAINTED) and file.is_file():
        values = list(PAINTED)
    return Labels(tuple(Structure.named(names.get(value, f"structure {value}"), value) for value in values))


def _names_in(file: Path) -> dict[int, str]:
    """Label value -> name, of labels.csv.

    Raises:
        ValueError: it has no columns LabelValue and Name.
    """
    rows = csv.DictReader(io.StringIO(file.read_text(encoding="utf-8-sig")))
    try:
        return {int(row["LabelValue"]): row["Name"].strip().replace("_", " ") for row in rows}
    except (KeyError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{file}: has no columns LabelValue and Name with a number and a name in each row") from error


def _names_of(config: dict) -> dict[int, str]:
    names = config.get("class_names")
    if not isinstance(names, (list, tuple)):
        return {}
    return {n: str(name.get("name") if isinstance(name, dict) else name) for n, name in enumerate(names, 1)}


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
