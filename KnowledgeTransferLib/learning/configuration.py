"""Configuration: from what the cohort looks like to the numbers of a training, each with its reason."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass

import numpy as np
import torch

from ..records.labels import Labels
from ..records.settings import DistilSettings
from ..records.students import Design
from .networks import build_network
from .preprocessing import PERCENTILES, Normalisation, Preprocessing, grid_of
from .volume import Volume

GREY_VALUES_PER_CASE = 10_000
AIR_IN_HOUNSFIELD = -500  # a volume whose smallest whole number lies below is taken for a CT
THIN_VOLUME_SLICES = 8  # with fewer slices the student works slice by slice
LOOKS = 20  # at the held-out patients, in a training
FINE_TUNING_SHARE = 0.1  # of the usual learning rate, so that what was learnt is kept
GPU_FACTOR = 8  # a GPU takes patches of so many times the voxels of a CPU's


@dataclass(frozen=True)
class Fingerprint:
    """What one case tells about the cohort: oriented shape and spacing, and grey values of its structures."""

    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    whole_numbers: bool
    minimum: float
    grey_values: np.ndarray  # (C, n), of the structures, or of everything where there are none


@dataclass(frozen=True)
class Surroundings:
    """What the choices depend on besides the images."""

    modality: str
    labels: Labels
    device: str
    training_cases: int
    stride: int = 1  # the patch is a multiple of it: that of a live teacher


def fingerprint(volume: Volume, annotation: np.ndarray | None) -> Fingerprint:
    grid = grid_of(volume)
    flat = volume.array.reshape(volume.channels, -1)
    inside = flat[:, annotation.ravel() > 0] if annotation is not None and annotation.any() else flat
    grey_values = inside[:, :: max(1, inside.shape[1] // GREY_VALUES_PER_CASE)].astype(np.float32)
    return Fingerprint(
        grid.oriented_shape,
        tuple(volume.spacing_mm[a] for a in grid.axes),
        volume.array.dtype.kind in "iu" or np.array_equal(grey_values, np.rint(grey_values)),
        float(volume.array.min()),
        grey_values,
    )


def configure(
    asked: DistilSettings, design: Design, cases: list[Fingerprint], around: Surroundings
) -> tuple[DistilSettings, Preprocessing]:
    """Choose what was not asked for.

    Returns:
        settings without gaps, their `reasons` filled, and the preprocessing.
    """
    chosen, reasons = {}, {}

    def choose(name: str, value, reason: str) -> None:
        if getattr(asked, name) is None:
            chosen[name], reasons[name] = value, reason

    choose("dimensions", *_dimensions(cases))
    dimensions = chosen.get("dimensions", asked.dimensions)
    choose("spacing_mm", *_spacing(cases, design, dimensions))
    choose("normalisation", *_normalisation(cases, around.modality, dimensions))
    settings = dataclasses.replace(asked, **chosen)
    _check_spacing(settings.spacing_mm)
    preprocessing = Preprocessing(dimensions, settings.spacing_mm, _normalisations(cases, settings.normalisation))
    choose("tasks", design.tasks, f"usual tasks of the design {design.name}")
    choose("mirror_axes", *_mirror_axes(cases, around.labels))
    complete_training(settings, design, _prepared_shapes(cases, preprocessing), around, choose)
    return dataclasses.replace(asked, **chosen, reasons=reasons), preprocessing


def complete_training(
    settings: DistilSettings, design: Design, shapes: np.ndarray, around: Surroundings, choose
) -> None:
    """Choose patch, batch, length and rate of the training; `choose(name, value, reason)` takes each."""
    stride = build_network(design, settings.dimensions, 1, around.labels.channels).total_stride
    stride = math.lcm(stride, around.stride)
    factor = 1 if around.device == "cpu" else GPU_FACTOR
    budget = design.patch_voxels[settings.dimensions] * factor
    patch = _patch(np.median(shapes, axis=0), budget, stride, settings.dimensions)
    choose("patch_size_voxels", patch, f"median prepared image, at most {budget} voxels, in steps of {stride}")
    patch = settings.patch_size_voxels or patch
    _check_patch(patch, stride, settings.dimensions)
    fits = design.batch_voxels[settings.dimensions] * factor // int(np.prod(patch))
    batch = int(np.clip(fits, 2, 8 if settings.dimensions == 3 else 16))
    batch = max(2, min(batch, around.training_cases))
    choose("batch_size", batch, f"what fits into {design.batch_voxels[settings.dimensions] * factor} voxels, 2 to 16")
    steps = max(1, -(-around.training_cases // (settings.batch_size or batch)))
    epochs = max(1, round(design.iterations / steps))
    if settings.minutes is None:
        choose("epochs", epochs, f"about {design.iterations} training steps, the design's usual length")
    epochs = settings.epochs or epochs
    choose("validate_every_epochs", -(-epochs // LOOKS), f"{LOOKS} looks in a training")
    choose("patience_epochs", 0, "never: a one-cycle training gains most at its end")
    choose("learning_rate", *_learning_rate(settings, design))
    choose("precision", usual_precision(around.device), f"usual on {around.device}")


def _learning_rate(settings: DistilSettings, design: Design) -> tuple[float, str]:
    if settings.start_from:
        return design.learning_rate * FINE_TUNING_SHARE, f"a tenth of the design {design.name}'s, for fine-tuning"
    return design.learning_rate, f"usual rate of the design {design.name}"


def usual_precision(device: str) -> str:
    knows_bf16 = device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16-mixed" if knows_bf16 else "32-true"


def _dimensions(cases: list[Fingerprint]) -> tuple[int, str]:
    slices = int(np.median([case.shape[2] for case in cases]))
    if slices < THIN_VOLUME_SLICES:
        return 2, f"the median image has {slices} slices"
    return 3, f"the median volume has {slices} slices"


def _spacing(cases: list[Fingerprint], design: Design, dimensions: int) -> tuple[tuple[float, ...], str]:
    """Median spacing; coarser along the finest axes where the median volume would have too many voxels."""
    spacing = np.median([case.spacing_mm for case in cases], axis=0)
    extent = np.median([np.multiply(case.shape, case.spacing_mm) for case in cases], axis=0)
    axes = slice(0, dimensions)
    limit = design.volume_voxels if dimensions == 3 else design.volume_voxels // 8
    finest, reason = 0.0, "median of the cohort"
    while np.prod(extent[axes] / np.maximum(spacing, finest)[axes]) > limit:
        finest = max(finest, spacing[axes].min()) * 1.05
        reason = f"median of the cohort, coarsened so that the median image has at most {limit} voxels"
    coarse = np.maximum(spacing, finest)
    coarse[dimensions:] = spacing[dimensions:]
    return tuple(float(f"{s:.5g}") for s in coarse), reason


def _normalisation(cases: list[Fingerprint], modality: str, dimensions: int) -> tuple[str, str]:
    if _has_word(modality, "ct"):
        return "ct", f"the cohort's modality is {modality!r}"
    if modality:
        return "z-score", f"the cohort's modality is {modality!r}, not CT"
    air = np.median([case.minimum for case in cases]) <= AIR_IN_HOUNSFIELD
    if dimensions == 3 and air and all(case.whole_numbers for case in cases):
        return "ct", f"whole numbers below {AIR_IN_HOUNSFIELD}: looks like Hounsfield units"
    return "z-score", "grey values do not look like Hounsfield units"


def _normalisations(cases: list[Fingerprint], kind: str) -> tuple[Normalisation, ...]:
    channels = range(len(cases[0].grey_values))
    if kind == "z-score":
        return tuple(Normalisation("z-score") for _ in channels)
    return tuple(_window(np.concatenate([case.grey_values[c] for case in cases])) for c in channels)


def _window(grey_values: np.ndarray) -> Normalisation:
    low, high = (float(p) for p in np.percentile(grey_values, PERCENTILES))
    clipped = np.clip(grey_values, low, high)
    return Normalisation("ct", low, high, float(clipped.mean()), max(float(clipped.std()), 1e-6))


def _prepared_shapes(cases: list[Fingerprint], preprocessing: Preprocessing) -> np.ndarray:
    shapes = np.array([case.shape for case in cases], float)
    ratio = np.array([case.spacing_mm for case in cases]) / np.array(preprocessing.spacing_mm)
    shapes[:, : preprocessing.dimensions] *= ratio[:, : preprocessing.dimensions]
    return np.maximum(1, np.rint(shapes))


def _patch(shape: np.ndarray, budget: int, stride: int, dimensions: int) -> tuple[int, ...]:
    """The median image in steps of the network's stride, its longest axis cut until the budget holds."""
    size = np.ceil(shape[:dimensions] / stride).astype(int) * stride
    size = np.maximum(size, 2 * stride)
    while size.prod() > budget and size.max() > 2 * stride:
        size[size.argmax()] -= stride
    return tuple(int(s) for s in size) + (1,) * (3 - dimensions)


def _check_patch(patch: tuple[int, ...], stride: int, dimensions: int) -> None:
    """Refuse a patch that was asked for and that the network cannot take."""
    inner = patch[:dimensions]
    if len(patch) != 3 or any(n < 2 * stride or n % stride for n in inner) or set(patch[dimensions:]) - {1}:
        needed = "three multiples" if dimensions == 3 else "two multiples"
        end = "" if dimensions == 3 else ", then 1"
        raise ValueError(
            f"patch_size_voxels is {patch}; the network needs {needed} of {stride}, each at least {2 * stride}{end}"
        )


def _check_spacing(spacing_mm: tuple[float, ...]) -> None:
    if len(spacing_mm) != 3 or min(spacing_mm) <= 0:
        raise ValueError(f"spacing_mm is {spacing_mm}; three numbers above 0 are needed (pictures: 1 at the end)")


def _mirror_axes(cases: list[Fingerprint], labels: Labels) -> tuple[tuple[int, ...], str]:
    sided = [name for name in labels.names if _has_word(name, "left|right")]
    if sided:
        return (), f"{sided[0]!r} has a side"
    if any(case.shape[2] > 1 for case in cases):
        return (), "volumes: organs lie on their side of the body"
    return (0,), "pictures of structures without a side"


def _has_word(text: str, words: str) -> bool:
    """Whether a name holds one of `a|b|...` as a word of its own; underscores and digits divide words too."""
    return re.search(rf"(?<![a-z])({words})(?![a-z])", text, re.IGNORECASE) is not None
