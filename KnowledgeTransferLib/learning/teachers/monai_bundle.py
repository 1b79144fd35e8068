"""MONAI Bundle: a folder or zip archive from MONAI's Model Zoo or anybody, as a teacher.

Its configuration could execute code by design. Here it is read as data: a network and steps of MONAI that are known,
with plain arguments. A bundle that needs more is opened by MONAI's own parser, only after a person trusted it.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from pathlib import Path

from torch import nn

from ...records import bundle, trust
from ...records.labels import Labels
from ..archive import members, read_member
from .foreign import ForeignNetwork, Window
from .monai_config import BundleConfig, parsed
from .monai_network import load_weights, network_from, read_weights
from .preparation import DONE_BY_US, Preparation, UnknownStep, plain_target
from .teacher import Teacher

CONFIGS = ("configs/inference.json", "configs/inference.yaml", "configs/inference.yml")
WEIGHTS = ("models/model.safetensors", "models/model.pt", "models/model.pth", "models/model_best.pt")
LARGEST_CONFIG_BYTES = 1 << 24
CARDS = ("docs/README.md", "README.md")


class MonaiBundle:
    """A MONAI Bundle that somebody else made."""

    NAME = "monai-bundle"
    KIND = "MONAI Bundle (a folder or .zip with configs/metadata.json, configs/inference.json and models/)"

    @staticmethod
    def recognises(path: Path) -> bool:
        files = _files_of(path)
        if files is None or not any(name in files for name in CONFIGS):
            return False
        return not (path.is_dir() and bundle.made_here(path))

    @classmethod
    def open(cls, path: Path, device: str, labels: Labels | None) -> Teacher:
        with _told(path):
            config = _config(path)
            try:
                network, steps, window = _as_data(path, config)
            except UnknownStep as reason:
                trust.require(path, cls.sha256(path), str(reason))
                network, steps, window = _as_code(path, config)
            preparation = Preparation(steps, config.dimensions, config.channels)
            return ForeignNetwork(
                path.name, config.labels, network.to(device), preparation, window, config.activation,
                config.background, network, _hint(path, config), device,
            )  # fmt: skip

    @classmethod
    def risk(cls, path: Path) -> str:
        """What only its own code could do; found out without executing any of it."""
        with _told(path):
            try:
                _as_data(path, _config(path))
            except UnknownStep as reason:
                return str(reason)
        return ""

    @staticmethod
    def describe(path: Path) -> dict:
        with _told(path):
            files, config = _files_of(path), _config(path)
            card = next((files.read(name).decode("utf-8", "replace") for name in CARDS if name in files), "")
            return {
                "labels": config.labels, "channels": config.channels, "modality": config.modality,
                "hint": _hint(path, config), "card": card or str(config.metadata.get("description", "")),
            }  # fmt: skip

    @staticmethod
    def sha256(path: Path) -> str:
        """Of every file: a bundle's code may lie anywhere in it."""
        if path.is_file():
            return bundle.sha256(path)
        return trust.sha256_of_files((file for file in path.rglob("*") if file.is_file()), path)


@contextlib.contextmanager
def _told(path: Path):
    """Say of every complaint which bundle it is about."""
    try:
        yield
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        plain = isinstance(error, ValueError)
        raise ValueError(f"{path}: {error}" if plain else f"{path}: is damaged ({error!r})") from error


class _Folder:
    """The files of a bundle's folder."""

    def __init__(self, path: Path):
        self.path = path

    def __contains__(self, name: str) -> bool:
        return (self.path / name).is_file()

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()


class _Archive:
    """The files of a bundle's zip archive. Nothing is unpacked, so that no name in it can reach another folder."""

    def __init__(self, path: Path, top: str):
        self.path, self.top, self.names = path, top, set(members(path))

    def __contains__(self, name: str) -> bool:
        return self.top + name in self.names

    def read(self, name: str) -> bytes:
        return read_member(self.path, self.top + name, LARGEST_CONFIG_BYTES if name.startswith("configs/") else None)


def _files_of(path: Path) -> _Folder | _Archive | None:
    """The files of what may be a bundle; None without a metadata.json in its place."""
    if path.is_dir():
        return _Folder(path) if (path / bundle.METADATA).is_file() else None
    tops = [name.removesuffix(bundle.METADATA) for name in members(path) if name.endswith(bundle.METADATA)]
    return _Archive(path, min(tops, key=len)) if tops else None


def _config(path: Path) -> BundleConfig:
    files = _files_of(path)
    name = next(name for name in CONFIGS if name in files)
    return BundleConfig(parsed(name, files.read(name)), parsed(bundle.METADATA, files.read(bundle.METADATA)))


def _weights(files, trusted: bool = False) -> dict:
    name = next((name for name in WEIGHTS if name in files), None)
    if name is None:
        raise ValueError(f"holds no weights; looked for {', '.join(WEIGHTS)}. Were large files left out of a download?")
    return read_weights(files.read(name), name.endswith(".safetensors"), trusted)


def _hint(path: Path, config: BundleConfig) -> str:
    try:
        left_out = config.left_out
    except UnknownStep:
        left_out = []
    return f"{path}: of its post-processing, {', '.join(left_out)} is left out" if left_out else ""


def _as_data(path: Path, config: BundleConfig) -> tuple[nn.Module, list, Window]:
    """The network, the steps before it and its window, made from our tables.

    Raises:
        UnknownStep: they ask for more than data.
    """
    network, steps, window = network_from(config.network), config.steps(), config.window
    return load_weights(network, _weights(_files_of(path))), steps, window


def _as_code(path: Path, config: BundleConfig) -> tuple[nn.Module, list, Window]:
    """The same, made by MONAI's parser, which executes what the bundle says."""
    from monai.bundle import ConfigParser

    if not path.is_dir():
        raise ValueError("needs code of its own, which is looked for beside its configuration; unpack the archive")
    parser = ConfigParser()
    parser.read_config(str(path / next(name for name in CONFIGS if name in _Folder(path))))
    parser["bundle_root"] = str(path)
    parts = ("network_def" if "network_def" in config.config else "network", "preprocessing", "inferer")
    with _importable(path):
        try:
            found = [parser.get_parsed_content(part) if part in config.config else None for part in parts]
        except Exception as error:  # whatever the bundle's own code raises
            raise ValueError(f"its own code fails ({type(error).__name__}: {error})") from error
    network, steps, inferer = found
    wrapped = [
        _of_dictionary(step, _key_of(step)) for step in getattr(steps, "transforms", ()) if not _done_by_us(step)
    ]
    size = getattr(inferer, "roi_size", None)
    window = Window(tuple(size) if size else None, float(getattr(inferer, "overlap", 0.25)))
    return load_weights(network, _weights(_files_of(path), trusted=True)), wrapped, window


def _key_of(step) -> str:
    """The first key that a dictionary transform works on."""
    keys = getattr(step, "keys", "image")
    return keys if isinstance(keys, str) else next(iter(keys), "image") if isinstance(keys, (list, tuple)) else "image"


@contextlib.contextmanager
def _importable(folder: Path):
    """Modules of a folder can be imported; no compiled ones are left there, which would change its checksum."""
    writes = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        sys.dont_write_bytecode = writes


def _done_by_us(step) -> bool:
    return plain_target({"_target_": type(step).__name__}) in DONE_BY_US


def _of_dictionary(step, key: str):
    """A dictionary transform as a function of the image alone, which can be undone where the transform can."""
    from monai.transforms import InvertibleTransform

    if not isinstance(step, InvertibleTransform):
        return functools.partial(_through, step, key)
    return _invertible()(step, key)


def _through(step, key: str, image):
    return step({key: image})[key]


@functools.cache
def _invertible() -> type:
    from monai.transforms import InvertibleTransform

    class OfDictionary(InvertibleTransform):
        """A dictionary transform of one key as an array transform."""

        def __init__(self, step, key: str):
            self.step, self.key = step, key

        def __call__(self, image):
            return self.step({self.key: image})[self.key]

        def inverse(self, image):
            return self.step.inverse({self.key: image})[self.key]

    return OfDictionary
