"""nnU-Net v2: a trained model's folder as a teacher, run by nnunetv2 itself: its own preprocessing, windows and folds.

nnunetv2 unpickles its checkpoints and looks up classes by the names in plans.json. Here the checkpoints are read as
weights and plain values, and the names must be those of nnU-Net's own networks; a model that needs more is opened only
after a person trusted it.
"""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
import re
import sys
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ...records import trust
from ...records.labels import Labels, Structure
from ...records.run_directory import read_json
from ..preprocessing import grid_of
from ..volume import Volume
from .foreign import exclusive
from .teacher import Teacher

CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth")
# Of the names that nnU-Net looks up and calls: classes of its networks, and layers of torch.
KNOWN_NAMES = re.compile(
    r"dynamic_network_architectures\.architectures\.\w+\.[A-Z]\w*|torch\.nn\.(?:modules\.\w+\.)?[A-Z]\w*"
)
MISSING = "needs the package nnunetv2; install it (pip install nnunetv2)"
BETWEEN_SLICES_MM = 999.0  # nnU-Net's own word for the missing third dimension of pictures


class NnUnet:
    """The folder of a model that nnU-Net v2 trained."""

    NAME = "nnunet"
    KIND = "nnU-Net v2 trained model (a folder with dataset.json, plans.json and fold_*/checkpoint_final.pth)"

    @staticmethod
    def recognises(path: Path) -> bool:
        there = (path / "dataset.json").is_file() and (path / "plans.json").is_file()
        return there and bool(checkpoints_in(path))

    @classmethod
    def open(cls, path: Path, device: str, labels: Labels | None) -> Teacher:
        risk = cls.risk(path)
        trust.require(path, cls.sha256(path), risk)
        with _own_words(path):
            return TrainedModel(path, _predictor(path, device, trusted=bool(risk)))

    @staticmethod
    def risk(path: Path) -> str:
        """What of it is more than weights and names of nnU-Net's own networks."""
        with _understood(path / "plans.json") as plans:
            called = list(_called_names(plans))
        for name in called:
            if not isinstance(name, str) or not KNOWN_NAMES.fullmatch(name):
                return f"its plans.json names {name!r} as a part of the network, which is no network of nnU-Net"
        for file in checkpoints_in(path):
            try:
                read_checkpoint(file)
            except ValueError as error:
                return str(error)
        return ""

    @staticmethod
    def describe(path: Path) -> dict:
        with _understood(path / "dataset.json") as dataset:
            channels = dataset.get("channel_names") or dataset.get("modality") or {}
            ct = bool(channels) and all(str(name).lower() == "ct" for name in channels.values())
        folds = len(checkpoints_in(path))
        return {
            "labels": labels_of(dataset, path), "channels": len(channels) or None, "modality": "CT" if ct else "",
            "hint": "", "card": f"A model that nnU-Net v2 trained, of {folds} fold{'s' * (folds > 1)}.",
        }  # fmt: skip

    @staticmethod
    def sha256(path: Path) -> str:
        return trust.sha256_of_files([path / "dataset.json", path / "plans.json", *checkpoints_in(path)], path)


class TrainedModel:
    """A teacher around nnU-Net's predictor."""

    hint = ""

    def __init__(self, path: Path, predictor):
        self.path, self.predictor, self.name = path, predictor, path.name
        self.labels = labels_of(predictor.dataset_json, path)

    @property
    def network(self) -> nn.Module:
        return self.predictor.network

    @cached_property
    def channels(self) -> int:
        return len(self.predictor.dataset_json.get("channel_names") or self.predictor.dataset_json["modality"])

    @property
    def reorients(self) -> bool:
        """Whether it was trained on images whose axes were turned to right, anterior, superior."""
        return self.predictor.plans_manager.plans.get("image_reader_writer") == "NibabelIOWithReorient"

    def predict(self, volume: Volume) -> np.ndarray:
        """Class probabilities `(C, I, J, K)` float32 in the geometry of the volume, background first."""
        if volume.is_picture and len(self.predictor.configuration_manager.patch_size) == 3:  # noqa: PLR2004
            raise ValueError(f"{volume.name}: is a single slice; {self.name} annotates volumes (3-D)")
        if volume.channels != self.channels:
            raise ValueError(f"{volume.name}: has {volume.channels} channels; the teacher needs {self.channels}")
        grid = grid_of(volume) if self.reorients else None
        array, spacing = volume.array, volume.spacing_mm
        if grid is not None:
            array, spacing = grid.from_volume(array), tuple(spacing[a] for a in grid.axes)
        spacing = tuple(float(f"{size:.6g}") for size in spacing)  # of an affine's float32; nnU-Net rounds sizes by it
        if volume.is_picture:
            spacing = (*spacing[:2], BETWEEN_SLICES_MM * max(spacing[:2]))
        image = np.ascontiguousarray(array.transpose(0, 3, 2, 1), dtype=np.float32)  # nnU-Net's order is k, j, i
        with _own_words(self.path):
            _, found = self.predictor.predict_single_npy_array(
                image, {"spacing": list(spacing[::-1])}, save_or_return_probabilities=True
            )
        probabilities = self._in_channel_order(np.asarray(found, np.float32)).transpose(0, 3, 2, 1)
        return np.ascontiguousarray(probabilities if grid is None else grid.to_volume(probabilities), np.float32)

    def _in_channel_order(self, found: np.ndarray) -> np.ndarray:
        """Background first; regions, which overlap, are painted one over the other in the order of dataset.json."""
        regions = self.predictor.label_manager.has_regions
        return exclusive(torch.from_numpy(found), background=not regions).numpy()


def labels_of(dataset: dict, path: Path) -> Labels:
    """The structures of a dataset.json in the order of the network's outputs.

    Of regions (lists of values), each has the value with which it is painted.
    """
    entries = dataset.get("labels")
    if not isinstance(entries, dict):
        raise ValueError(f"{path / 'dataset.json'}: names no structures (labels)")
    named = {name: value for name, value in entries.items() if name not in ("background", "ignore")}
    try:
        if any(isinstance(value, (list, tuple)) for value in named.values()):
            pairs = list(zip(dataset["regions_class_order"], named, strict=True))
        else:
            pairs = sorted((int(value), name) for name, value in named.items())
        return Labels(tuple(Structure.named(name, int(value)) for value, name in pairs))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path / 'dataset.json'}: its labels are not understood ({error})") from error


def checkpoints_in(path: Path) -> list[Path]:
    """The checkpoint of each fold; the one of all data where there are no others."""
    for name in CHECKPOINTS:
        found = sorted(path.glob(f"fold_*/{name}"))
        if found:
            folds = [file for file in found if file.parent.name != "fold_all"]
            return folds or found
    return []


def read_checkpoint(file: Path, trusted: bool = False) -> dict:
    """A checkpoint: `network_weights`, and what nnU-Net noted about the training.

    Raises:
        ValueError: it holds objects that are neither weights nor plain values, and is not trusted.
    """
    try:
        with torch.serialization.safe_globals(_numbers_of_numpy()):
            content = torch.load(file, map_location="cpu", weights_only=not trusted, mmap=True)
        return {key: content[key] for key in ("network_weights", "trainer_name", "init_args")} | {
            "axes": content.get("inference_allowed_mirroring_axes")
        }
    except Exception as error:  # pickle, zip and torch have a dozen kinds between them
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{file.parent.name}/{file.name} holds more than weights, or is damaged ({reason})") from error


def _numbers_of_numpy() -> list:
    """What pickled numbers of numpy are made of; nnU-Net's log of the training holds some."""
    scalar = np.float64(0).__reduce__()[0]
    kinds = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)]
    return [scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, *kinds]


def _called_names(plans: dict) -> Iterator:
    """The names in plans.json that nnU-Net looks up and calls to make a network."""
    for configuration in plans.get("configurations", {}).values():
        architecture = configuration.get("architecture")
        if isinstance(architecture, dict):
            yield architecture.get("network_class_name")
            arguments = architecture.get("arch_kwargs") or {}
            called = (arguments.get(key) for key in architecture.get("_kw_requires_import") or ())
            yield from (name for name in called if name is not None)


def _predictor(path: Path, device: str, trusted: bool):
    """nnU-Net's predictor, as its own initialize_from_trained_model_folder makes it, but without unpickling."""
    try:
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
        from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
    except ImportError as error:
        raise RuntimeError(f"{path}: {MISSING} ({error})") from error
    folds = [read_checkpoint(file, trusted) for file in checkpoints_in(path)]
    dataset, plans = read_json(path / "dataset.json"), PlansManager(read_json(path / "plans.json"))
    configuration = plans.get_configuration(folds[0]["init_args"]["configuration"])
    if configuration.previous_stage_name is not None:
        raise ValueError(f"{path}: is the second stage of a cascade; name the folder of a model that stands alone")
    network = _trainer(folds[0]["trainer_name"]).build_network_architecture(
        plans, configuration, determine_num_input_channels(plans, configuration, dataset),
        plans.get_label_manager(dataset).num_segmentation_heads, enable_deep_supervision=False,
    )  # fmt: skip
    weights = [fold["network_weights"] for fold in folds]
    network.load_state_dict(weights[0])
    predictor = nnUNetPredictor(
        device=torch.device(device), perform_everything_on_device=device == "cuda", allow_tqdm=False
    )
    predictor.manual_initialization(
        network, plans, configuration, weights, dataset, folds[0]["trainer_name"], folds[0]["axes"]
    )
    return predictor


def _trainer(name: str) -> type:
    """The class of nnU-Net's own trainers with this name; it knows how to make the network.

    nnU-Net's own search stops at the first of its files that cannot be imported, for example without torchvision.
    """
    from nnunetv2.training import nnUNetTrainer as trainers
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    for module in pkgutil.walk_packages(trainers.__path__, f"{trainers.__name__}.", onerror=lambda _: None):
        with contextlib.suppress(ImportError, RuntimeError):
            found = getattr(importlib.import_module(module.name), name, None)
            if isinstance(found, type):
                return found
    return recursive_find_trainer_class_by_name(name)  # where the user keeps others (nnUNet_extTrainer)


@contextlib.contextmanager
def _understood(file: Path) -> Iterator:
    """The content of a file of nnU-Net's, where it is as nnU-Net writes it."""
    try:
        yield read_json(file)
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{file}: is not as nnU-Net writes it; copy the model's folder anew") from error


@contextlib.contextmanager
def _own_words(path: Path):
    """What nnU-Net prints goes to stderr: stdout is the channel of the progress. Its complaints name the model."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except (KeyError, AssertionError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: nnU-Net cannot run this model ({type(error).__name__}: {error})") from error
