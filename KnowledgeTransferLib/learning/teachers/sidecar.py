"""Sidecar: teacher.json beside a bare network, which tells what the file itself does not: structures, spacing, patch.

`describe --template` writes one to be filled in. It holds data alone; nothing in it is executed.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from pathlib import Path

from ...records.labels import Labels
from ...records.run_directory import read_json, write_json
from .foreign import ACTIVATIONS, Window
from .preparation import Preparation, known_step, normalising, spacing_step

FORMAT = 1
NAME = "teacher.json"
NORMALISATIONS = {  # kind -> the numbers that it needs, and those that it may have
    "none": ((), ()),
    "z-score": ((), ()),
    "ct": (("low", "high", "mean", "deviation"), ()),
    "range": (("low", "high"), ("to",)),
    "mean-deviation": ((), ("nonzero",)),
}
FIELDS = (
    "format_version", "filled_in", "explanation", "structures", "background", "activation", "dimensions", "channels",
    "modality", "orientation", "spacing_mm", "normalisation", "patch_size_voxels", "overlap",
)  # fmt: skip
EXPLANATION = {
    "filled_in": "set it to true when everything below is right for this network",
    "structures": "in the order of the network's output channels, after the background; value: in label maps, 1 to 255",
    "background": "true: output channel 0 is the background; false: each channel is a structure by itself",
    "activation": f"what makes the outputs probabilities: {', '.join(ACTIVATIONS)}",
    "dimensions": "3: volumes; 2: slice by slice",
    "channels": "of the image",
    "modality": "CT, MR or empty",
    "orientation": "how axes run before the network sees them, such as RAS; empty, and single slices: as in the file",
    "spacing_mm": "voxel size to which images are resampled; null: as in the file",
    "normalisation": "one of "
    '{"kind": "none"}, {"kind": "z-score"} (clip to percentiles 0.5 and 99.5, mean 0, deviation 1), '
    '{"kind": "ct", "low": -160, "high": 240, "mean": 40, "deviation": 80} (clip, then subtract and divide), '
    '{"kind": "range", "low": -175, "high": 250, "to": [0, 1]}, {"kind": "mean-deviation", "nonzero": false}',
    "patch_size_voxels": "size of the windows that the network sees; null: the whole image at once",
    "overlap": "share by which windows overlap",
}


@dataclass(frozen=True)
class Sidecar:
    """What teacher.json tells of a network."""

    labels: Labels
    background: bool
    activation: str
    dimensions: int
    channels: int
    modality: str
    orientation: str
    spacing_mm: tuple[float, ...] | None
    normalisation: dict
    window: Window

    def preparation(self) -> Preparation:
        """Orientation, spacing, then intensities, as students do it too."""
        steps = [known_step("Orientation", {"axcodes": self.orientation})] if self.orientation else []
        if self.spacing_mm:
            steps.append(spacing_step(self.spacing_mm, self.dimensions))
        numbers = {k: v for k, v in self.normalisation.items() if k != "kind"}
        steps += normalising(self.normalisation["kind"], numbers)
        return Preparation(steps, self.dimensions, self.channels)


def sidecar_of(model: Path) -> Path:
    """`<model>.teacher.json`, where several networks lie in one folder, else `teacher.json`."""
    own = model.with_name(f"{model.stem}.{NAME}")
    return own if own.is_file() else model.with_name(NAME)


def read_sidecar(model: Path) -> Sidecar:
    """Read the sidecar of a network.

    Raises:
        FileNotFoundError, ValueError: missing, not filled in, or wrong; the message says what and what to do.
    """
    file = sidecar_of(model)
    if not file.is_file():
        raise FileNotFoundError(
            f"{model}: nothing tells its structures and what images it expects. "
            f"`describe --template {model}` writes {NAME} beside it, to be filled in"
        )
    content = read_json(file)
    try:
        return _from_json(content)
    except KeyError as error:
        raise ValueError(f"{file}: lacks {error.args[0]!r}; needed are {', '.join(FIELDS[3:])}") from error
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def write_template(model: Path, outputs: int | None = None, channels: int | None = None, dimensions: int = 3) -> Path:
    """Write a sidecar to be filled in.

    Args:
        outputs: channels of the network's output, where the file tells them.

    Raises:
        FileExistsError: there is one already. OSError: it cannot be written there.
    """
    file = sidecar_of(model)
    if file.is_file():
        raise FileExistsError(f"{file}: is there already; edit it, or remove it for a new template")
    structures = [{"name": f"name of structure {n}", "value": n} for n in range(1, outputs or 2)]
    content = {
        "format_version": FORMAT, "filled_in": False, "explanation": EXPLANATION,
        "structures": structures, "background": True, "activation": "softmax",
        "dimensions": dimensions, "channels": channels or 1, "modality": "", "orientation": "RAS",
        "spacing_mm": [1.0] * dimensions, "normalisation": {"kind": "z-score"},
        "patch_size_voxels": [96] * dimensions, "overlap": 0.25,
    }  # fmt: skip
    try:
        write_json(file, content)
    except OSError as error:
        raise OSError(
            f"{file}: cannot be written ({error.strerror or error}). "
            "Copy the network to a folder that you may write to, and take it from there"
        ) from error
    return file


def _from_json(content: dict) -> Sidecar:
    if not isinstance(content, dict):
        raise ValueError(f"an object with {', '.join(FIELDS[3:])} is needed")
    unknown = [name for name in content if name not in FIELDS]
    if unknown:
        raise ValueError(f"{', '.join(unknown)} is not known; known are {', '.join(FIELDS)}")
    if content.get("format_version", FORMAT) != FORMAT:
        raise ValueError(f"has the format version {content['format_version']!r}; this version reads {FORMAT}")
    if not _one_of("filled_in", content.get("filled_in", True), (True, False)):
        raise ValueError('is a template still; fill in what it asks for, then set "filled_in" to true')
    labels = Labels.from_json(content["structures"])
    if not labels.structures:
        raise ValueError("names no structure")
    dimensions = _one_of("dimensions", content["dimensions"], (2, 3))
    patch = content["patch_size_voxels"]
    return Sidecar(
        labels,
        _one_of("background", content.get("background", True), (True, False)),
        _one_of("activation", content["activation"], ACTIVATIONS),
        dimensions,
        _whole("channels", content.get("channels", 1)),
        str(content.get("modality") or ""),
        _orientation(content.get("orientation", "")),
        _sizes("spacing_mm", content["spacing_mm"], dimensions),
        _normalisation(content["normalisation"]),
        Window(_patch(patch, dimensions), _share("overlap", content.get("overlap", 0.25))),
    )


def _one_of(name: str, value, allowed: tuple):
    if not any(type(value) is type(a) and value == a for a in allowed):
        raise ValueError(f"{name} is {value!r}; allowed are {', '.join(map(str, allowed))}")
    return value


def _whole(name: str, value) -> int:
    if type(value) is not int or not 1 <= value <= 1 << 16:
        raise ValueError(f"{name} is {value!r}; a whole number from 1 is needed")
    return value


def _share(name: str, value) -> float:
    if not _is_number(value) or not 0 <= value < 1:
        raise ValueError(f"{name} is {value!r}; a number from 0 to below 1 is needed")
    return float(value)


def _sizes(name: str, value, dimensions: int) -> tuple[float, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != dimensions or not all(_is_number(v) and v > 0 for v in value):
        raise ValueError(f"{name} is {value!r}; {dimensions} numbers above 0 are needed, or null")
    return tuple(map(float, value))


def _patch(value, dimensions: int) -> tuple[int, ...] | None:
    sizes = _sizes("patch_size_voxels", value, dimensions)
    return None if sizes is None else tuple(_whole("patch_size_voxels", int(s) if s == int(s) else s) for s in sizes)


def _orientation(value) -> str:
    axes = [axis for letter in str(value) for axis, letters in enumerate(("LR", "PA", "IS")) if letter in letters]
    if value and (len(str(value)) != 3 or sorted(axes) != [0, 1, 2]):
        raise ValueError(f"orientation is {value!r}; three letters such as RAS or LPS are needed, or an empty text")
    return str(value or "")


def _normalisation(value) -> dict:
    kind = value.get("kind") if isinstance(value, dict) else None
    if kind not in NORMALISATIONS:
        raise ValueError(f"normalisation is {value!r}; known kinds are {', '.join(NORMALISATIONS)}")
    needed, optional = NORMALISATIONS[kind]
    numbers = {k: v for k, v in value.items() if k not in ("kind", "to", "nonzero")}
    wrong = [k for k in value if k not in ("kind", *needed, *optional)]
    if wrong or not set(needed) <= set(value) or not all(map(_is_number, numbers.values())):
        raise ValueError(f"normalisation is {value!r}; {kind} needs the numbers {', '.join(needed) or 'none'}")
    to = value.get("to", [0, 1])
    if not isinstance(to, list) or len(to) != 2 or not all(map(_is_number, to)):
        raise ValueError(f"normalisation is {value!r}; `to` is two numbers such as [0, 1]")
    return value


def _is_number(value) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and abs(value) < float("inf")
