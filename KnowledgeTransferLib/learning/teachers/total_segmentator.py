"""TotalSegmentator: one of its tasks as a teacher, through its Python interface; nothing is downloaded or sent.

Its own code fetches weights when they are missing and reports each use to its makers. Here both are switched off for
the time of a call: weights must be there already, and what a clinic does stays in the clinic.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
from pathlib import Path

import nibabel
import numpy as np

from ...records.labels import Labels
from ..volume import Volume, check_same_geometry
from .teacher import Teacher

PREFIX, FAST = "totalsegmentator:", ":fast"
DEVICES = {"cuda": "gpu"}  # its names of devices, where they are others
PACKAGE = "the package TotalSegmentator 2.18 or newer (pip install TotalSegmentator)"
NO_WEIGHTS = (
    "{folder}: TotalSegmentator's weights are not there, and nothing is downloaded by itself. "
    "Fetch them with its own command `totalseg_download_weights -t TASK`, then try again"
)


class TotalSegmentatorTask:
    """A task of TotalSegmentator."""

    NAME = "totalsegmentator"
    KIND = "TotalSegmentator task (written totalsegmentator:TASK, or totalsegmentator:TASK:fast)"

    @staticmethod
    def recognises(path: Path) -> bool:
        return str(path).startswith(PREFIX)

    @classmethod
    def open(cls, path: Path, device: str, labels: Labels | None) -> Teacher:
        task, fast = _task_of(path)
        known = _labels(path, task)
        with _offline(path) as interface:
            settings = interface.get_task_config(task, fast=fast, quiet=True)
            for number in _listed(settings["task_id"]):
                interface.download_pretrained_weights(number)  # ours, which refuses where they are missing
        return _Task(path, task, fast, known, DEVICES.get(device, device))

    @staticmethod
    def describe(path: Path) -> dict:
        task, fast = _task_of(path)
        return {
            "labels": _labels(path, task), "channels": 1, "hint": _hint(task, fast),
            "modality": "MR" if task.endswith("_mr") else "CT",
            "card": f"TotalSegmentator's task {task} (Wasserthal et al., doi.org/10.1148/ryai.230024). It gives "
            "decisions, no probabilities.",
        }  # fmt: skip

    @staticmethod
    def tasks(path: Path) -> list[str]:
        """For the prefix alone: the tasks that the installed package knows, each with its fast form behind it."""
        if str(path) != PREFIX:
            return []
        known = _known(path)
        return [name for task in _configs() if task in known for name in _forms(task)]

    @staticmethod
    def sha256(path: Path) -> str:
        """Of its name and version: its weights belong to both."""
        from importlib.metadata import PackageNotFoundError, version

        try:
            return hashlib.sha256(f"{path} {version('TotalSegmentator')}".encode()).hexdigest()
        except PackageNotFoundError:
            return ""


class _Task:
    """A teacher that calls TotalSegmentator for each scan."""

    network, hint = None, ""

    def __init__(self, path: Path, task: str, fast: bool, labels: Labels, device: str):
        self.path, self.task, self.fast, self.labels, self.device = path, task, fast, labels, device
        self.name = path.name

    def predict(self, volume: Volume) -> np.ndarray:
        """Its decision as `(C, I, J, K)` float32 of 0 and 1 in the geometry of the volume, background first."""
        if volume.channels != 1 or volume.is_picture:
            raise ValueError(f"{volume.name}: TotalSegmentator segments volumes of one channel")
        image = nibabel.Nifti1Image(np.asarray(volume.array[0], np.float32), volume.affine)
        with _offline(self.path) as interface:
            found = interface.totalsegmentator(
                image, None, ml=True, task=self.task, fast=self.fast, device=self.device, quiet=True,
                skip_saving=True, nr_thr_resamp=1, nr_thr_saving=1,
            )  # fmt: skip
        decision = Volume(np.asarray(found.dataobj)[None], np.asarray(found.affine, float))
        check_same_geometry(volume, decision, volume.name, self.name)
        return np.stack([decision.array[0] == value for value in self.labels.values]).astype(np.float32)


def _task_of(path: Path) -> tuple[str, bool]:
    """ "totalsegmentator:total:fast" -> "total", True."""
    task = str(path).removeprefix(PREFIX)
    return task.removesuffix(FAST), task.endswith(FAST)


def _labels(path: Path, task: str) -> Labels:
    known = _known(path)
    if task not in known:
        raise ValueError(f"{path}: TotalSegmentator knows no task {task!r}; known are {', '.join(known)}")
    return Labels.from_names({int(value): name.replace("_", " ") for value, name in known[task].items()})


def _known(path: Path) -> dict:
    """The structures of each task, and of some that only other tasks use."""
    try:
        from totalsegmentator.map_to_binary import class_map
    except ImportError as error:
        raise RuntimeError(f"{path}: needs {PACKAGE} ({error})") from error
    return class_map


def _configs() -> dict:
    from totalsegmentator import map_tasks_config

    return getattr(map_tasks_config, "TASK_CONFIGS", {})


def _forms(task: str) -> list[str]:
    """A task and its fast form, if there is one; none of a task whose weights have no place (its makers' tests)."""
    names = [task, f"{task}{FAST}"] if "fast" in _configs()[task].get("sub_modes", {}) else [task]
    try:
        _folders(task, fast=False)
    except ValueError:
        return []
    return names


def _folders(task: str, fast: bool) -> list[Path]:
    """Where the weights of a task are kept."""
    config = _configs().get(task, {})
    config = config.get("sub_modes", {}).get("fast" if fast else "default", config)
    return [_weights(number) for number in _listed(config.get("task_id", []))]


def _hint(task: str, fast: bool) -> str:
    """What a person needs before this task can be used: a licence, its weights."""
    missing = [folder for folder in _folders(task, fast) if not folder.exists()]
    commercial = _configs().get(task, {}).get("commercial")
    hints = ["This task needs a licence (totalseg_set_license)."] if commercial else []
    return " ".join(hints + [NO_WEIGHTS.format(folder=folder) for folder in missing[:1]])


@contextlib.contextmanager
def _offline(path: Path):
    """TotalSegmentator's Python interface without its downloads and reports; what it prints goes to stderr."""
    try:
        from totalsegmentator import python_api as interface
    except ImportError as error:
        raise RuntimeError(f"{path}: needs {PACKAGE} ({error})") from error
    ours = {"download_pretrained_weights": _weights_must_be_there, "send_usage_stats": _nothing}
    theirs = {name: getattr(interface, name, None) for name in (*ours, "get_task_config")}
    if None in theirs.values():
        raise RuntimeError(f"{path}: needs {PACKAGE}; another version is installed")
    try:
        for name, function in ours.items():
            setattr(interface, name, function)
        with contextlib.redirect_stdout(sys.stderr):
            yield interface
    except SystemExit as stop:  # its way to say that a task needs a licence
        raise ValueError(f"{path}: TotalSegmentator has no licence for this task; see totalseg_set_license") from stop
    finally:
        for name in ours:
            setattr(interface, name, theirs[name])


def _listed(numbers) -> list:
    return numbers if isinstance(numbers, list) else [numbers]


def _weights(number) -> Path:
    """The folder where TotalSegmentator keeps the weights of one of its networks."""
    from totalsegmentator.config import get_weights_dir
    from totalsegmentator.map_tasks_config import TASK_ID_WEIGHTS_CONFIGS

    place = TASK_ID_WEIGHTS_CONFIGS.get(number)
    if place is None:
        raise ValueError(f"TotalSegmentator {number}: this network has no weights that anybody could fetch")
    return Path(get_weights_dir()) / (place.get("rel_path") or "") / place["foldername"]


def _weights_must_be_there(number) -> None:
    if not _weights(number).exists():
        raise FileNotFoundError(NO_WEIGHTS.format(folder=_weights(number)))


def _nothing(*_, **__) -> None:
    """In the place of a report to TotalSegmentator's makers."""
