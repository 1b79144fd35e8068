"""Preparation: what a foreign network needs done to a volume before it looks at it, and back; in MONAI's transforms.

MONAI's own transforms are taken, so that a network sees what it saw in its training. Only those of the table KNOWN are
made, with plain arguments: what a configuration file says is looked up, never executed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch

from ..preprocessing import Normalisation
from ..volume import Volume

KNOWN = {  # MONAI's name without the d of dictionary transforms -> arguments that are taken over
    "Orientation": ("axcodes", "as_closest_canonical"),
    "Spacing": ("pixdim", "mode", "diagonal", "padding_mode", "align_corners", "scale_extent", "recompute_affine",
                "min_pixdim", "max_pixdim"),
    "Resize": ("spatial_size", "mode", "align_corners", "size_mode"),
    "CropForeground": ("margin", "allow_smaller", "k_divisible"),
    "SpatialPad": ("spatial_size", "method", "mode"),
    "DivisiblePad": ("k", "mode"),
    "ScaleIntensity": ("minv", "maxv", "factor", "channel_wise"),
    "ScaleIntensityRange": ("a_min", "a_max", "b_min", "b_max", "clip"),
    "ScaleIntensityRangePercentiles": ("lower", "upper", "b_min", "b_max", "clip", "relative", "channel_wise"),
    "ClipIntensityPercentiles": ("lower", "upper", "sharpness_factor", "channel_wise"),
    "NormalizeIntensity": ("subtrahend", "divisor", "nonzero", "channel_wise"),
    "ThresholdIntensity": ("threshold", "above", "cval"),
}  # fmt: skip
DONE_BY_US = ("LoadImage", "EnsureChannelFirst", "EnsureType", "ToTensor", "CastToType", "ToDevice", "Identity")
PASSED_OVER = ("keys", "source_key", "allow_missing_keys", "lazy", "dtype", "device", "data_type", "track_meta",
               "start_coord_key", "end_coord_key", "meta_key_postfix", "meta_keys", "select_fn")  # fmt: skip
ONE_FOR_EACH_KEY = ("mode", "padding_mode", "align_corners")
Step = Callable[[torch.Tensor], torch.Tensor]


class UnknownStep(ValueError):
    """A configuration asks for something that is not in the table, so that only its own code could do it."""


class Preparation:
    """Steps from a volume to what a network sees. Those that move voxels are undone for its probabilities.

    Args:
        steps: MONAI's array transforms, or any function of a tensor `(C, i, j, k)`.
        dimensions: 2 runs slice by slice over k.
        channels: of the image; None allows any number.
    """

    def __init__(self, steps: Sequence[Step], dimensions: int, channels: int | None):
        self.steps, self.dimensions, self.channels = tuple(steps), dimensions, channels

    def prepare(self, volume: Volume) -> torch.Tensor:
        """A MetaTensor `(C, i, j, k)` float32 that remembers what was done to it.

        Raises:
            ValueError: other number of channels, or a single slice for a network of volumes.
        """
        from monai.data import MetaTensor

        self._check(volume)
        array = np.ascontiguousarray(volume.array, dtype=np.float32)
        image = MetaTensor(torch.from_numpy(array.copy()), affine=torch.from_numpy(volume.affine.astype(np.float64)))
        for step in self._steps_for(volume):
            image = step(image)
        return image

    def to_volume(self, probabilities: torch.Tensor, image: torch.Tensor, volume: Volume) -> np.ndarray:
        """Class probabilities `(C, i, j, k)` beside a prepared image as `(C, I, J, K)` float32 of the volume.

        Voxels that a crop left out are background.
        """
        from monai.data import MetaTensor
        from monai.transforms import InvertibleTransform

        operations = copy.deepcopy(image.applied_operations)
        result = MetaTensor(probabilities, affine=image.affine, applied_operations=operations)
        for step in reversed(self._steps_for(volume)):
            if isinstance(step, InvertibleTransform):
                result = step.inverse(result)
        result = result.as_tensor().float().clamp_(0, 1)
        result[0] += (1 - result.sum(0)).clamp_min_(0)
        return (result / result.sum(0, keepdim=True)).numpy()

    def _check(self, volume: Volume) -> None:
        if self.channels is not None and volume.channels != self.channels:
            raise ValueError(f"{volume.name}: has {volume.channels} channels; the teacher needs {self.channels}")
        if self.dimensions == 3 and volume.is_picture:
            raise ValueError(f"{volume.name}: is a single slice; the teacher annotates volumes (3-D)")

    def _steps_for(self, volume: Volume) -> tuple[Step, ...]:
        """Of a picture, which lies nowhere in a patient, the axes stay as they are."""
        if not volume.is_picture:
            return self.steps
        return tuple(step for step in self.steps if type(step).__name__ != "Orientation")


def normalising(kind: str, numbers: dict) -> list[Step]:
    """Steps for a normalisation that a person names in teacher.json.

    none; z-score and ct as in preprocessing.py; range: `low..high` to `to[0]..to[1]`, clipped; mean-deviation: of all
    voxels of the image, or with `nonzero` of those that are not 0.
    """
    if kind == "none":
        return []
    if kind in ("z-score", "ct"):
        return [_each_channel(Normalisation(kind, **numbers))]
    if kind == "range":
        low, high = numbers.get("to", (0.0, 1.0))
        bounds = {"a_min": numbers["low"], "a_max": numbers["high"], "b_min": low, "b_max": high}
        return [known_step("ScaleIntensityRange", {**bounds, "clip": True})]
    return [known_step("NormalizeIntensity", {"nonzero": bool(numbers.get("nonzero", False)), "channel_wise": True})]


def known_step(name: str, arguments: dict) -> Step:
    """A MONAI array transform of the table."""
    from monai import transforms

    return getattr(transforms, name)(**arguments)


def spacing_step(spacing_mm: Sequence[float], dimensions: int) -> Step:
    """Resampling to a voxel size; slices of 2-D networks keep their distance."""
    pixdim = [*spacing_mm[:2], -1.0] if dimensions == 2 else list(spacing_mm)
    return known_step("Spacing", {"pixdim": pixdim, "mode": "bilinear"})


def steps_of(transforms: list[dict], key: str, dimensions: int) -> list[Step]:
    """The steps that a MONAI configuration names for one key, made from the table.

    Args:
        transforms: configuration items, references already resolved; each `{"_target_": ..., ...}`.

    Raises:
        UnknownStep: one is not in the table, or has an argument that is not a plain value.
    """
    steps = []
    for item in transforms:
        name = plain_target(item)
        if not isinstance(item.get("_disabled_", False), bool):
            raise UnknownStep(f"the step {name} is left out by an expression ({item['_disabled_']!r})")
        if item.get("_disabled_") is True or name in DONE_BY_US or key not in _keys(item):
            continue
        if name not in KNOWN:
            raise UnknownStep(f"the step {item.get('_target_')!r} is not known")
        arguments = _arguments(name, item)
        steps.append(known_step(name, _of_slices(arguments) if dimensions == 2 else arguments))
    return steps


def plain_target(item: dict) -> str:
    """ "monai.transforms.Spacingd" -> "Spacing"; an empty text for what names no class of MONAI."""
    target = item.get("_target_") if isinstance(item, dict) else None
    if not isinstance(target, str) or ("." in target and not target.startswith("monai.")):
        return ""
    name = target.rpartition(".")[2]
    for ending in ("Dict", "d", "D"):
        bare = name.removesuffix(ending)
        if bare != name and (bare in KNOWN or bare in DONE_BY_US or bare in OUTPUT_STEPS):
            return bare
    return name


OUTPUT_STEPS = ("Activations", "AsDiscrete", "Invert", "SaveImage", "KeepLargestConnectedComponent")


def is_plain(value) -> bool:
    """Whether a value of a configuration is only data: no expression, reference or object to make."""
    if isinstance(value, dict):
        return "_target_" not in value and all(is_plain(v) for v in value.values())
    if isinstance(value, (list, tuple)):
        return all(is_plain(v) for v in value)
    return not isinstance(value, str) or not value.startswith(("$", "@", "%"))


def _keys(item: dict) -> list:
    keys = item.get("keys", ["image"])
    return [keys] if isinstance(keys, str) else list(keys) if isinstance(keys, (list, tuple)) else []


def _arguments(name: str, item: dict) -> dict:
    found = {k: v for k, v in item.items() if k not in PASSED_OVER and not (k.startswith("_") and k.endswith("_"))}
    for argument, value in found.items():
        if argument not in KNOWN[name]:
            raise UnknownStep(f"the step {name} has an argument {argument!r} that is not known")
        if not is_plain(value):
            raise UnknownStep(f"the step {name} computes its {argument} by an expression ({value!r})")
        if argument in ONE_FOR_EACH_KEY and isinstance(value, list):
            found[argument] = value[0]
    return found


def _of_slices(arguments: dict) -> dict:
    """Arguments for slices `(i, j)` as those for a stack of slices `(i, j, k)`, which stays as it is along k."""
    any_size = float("nan")
    keep = {
        "pixdim": -1.0,
        "min_pixdim": any_size,
        "max_pixdim": any_size,
        "spatial_size": -1,
        "k": 1,
        "k_divisible": 1,
    }
    found = dict(arguments)
    for name in keep.keys() & found.keys():
        sizes = np.atleast_1d(found[name]).tolist()
        found[name] = [*(sizes * 2 if len(sizes) == 1 else sizes[:2]), keep[name]]
    if "spatial_size" in found and found.get("mode") in ("bilinear", "bicubic"):
        found["mode"] = "trilinear"
    return found


def _each_channel(normalisation: Normalisation) -> Step:
    """A student's normalisation, with the numbers of each image and channel."""

    def apply(image: torch.Tensor) -> torch.Tensor:
        for channel, values in enumerate(image.as_tensor().numpy().copy()):
            image[channel] = torch.from_numpy(normalisation.of_image(values).apply(values))
        return image

    return apply
