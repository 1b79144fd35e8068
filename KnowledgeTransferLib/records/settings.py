"""Settings: every number a run depends on, given as options or in settings.json and written there in full."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field, fields

from .. import __version__
from .run_directory import RunDirectory, read_json, write_json

FORMAT = 1
NONE = "none"  # asked for in place of a value: takes back what an earlier start asked for
SHARE = (0.0, 1.0)
AT_LEAST_ONE = (1, math.inf)
SEEDS = (0, 2**63 - 1)
DECISIONS = ("expected-dice", "most-probable")
NOT_NEGATIVE = (0, math.inf)
TEACHER = {"path": "str", "weight": "float | None", "structures": "dict | None", "sha256": "str | None"}


def _option(default, help_text: str, choices=(), limits=(-math.inf, math.inf), items: dict[str, str] | None = None):
    """`items`: key -> type, of what each object in a tuple of objects holds."""
    metadata = {"help": help_text, "choices": choices or None, "limits": limits, "items": items}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class AnnotateSettings:
    """Which teachers annotated, with what weight, and what was kept of their opinion."""

    teachers: tuple[dict, ...] = _option((), "path, weight and sha256 of each teacher", items=TEACHER)
    combine: str = _option(
        "mean", "how several teachers become one: mean of their probabilities, majority of their votes, or STAPLE",
        ("mean", "majority", "staple"),
    )  # fmt: skip
    synonyms: dict = _option({}, "other name of a structure -> its name, where teachers name one differently")
    probabilities: bool = _option(True, "keep class probabilities too, for soft-label distillation")
    uncertainty: bool = _option(False, "write a map of the teachers' uncertainty, 0 to 1, for each case")
    uncertainty_measure: str = _option(
        "entropy", "what that map holds: entropy of the class probabilities, or disagreement between teachers",
        ("entropy", "disagreement"),
    )  # fmt: skip
    mirror: bool = _option(
        False,
        "own bundles average over mirror images too, where they were trained with them; takes twice as long or more",
    )
    largest_component: bool = _option(False, "keep the largest part of each structure alone")
    fill_holes: bool = _option(False, "fill holes inside each structure")
    device: str = _option("auto", "where the teachers run", ("auto", "cuda", "mps", "cpu"))
    most_bytes: int | None = _option(None, "of memory for the process; own bundles keep to it", limits=AT_LEAST_ONE)


@dataclass(frozen=True)
class DistilSettings:
    """What a training depends on. None means: chosen from the cohort, the student and the device."""

    student: str = _option("tiny", "student design")
    annotations: str = _option(
        "pseudo", "what the student learns from; both: from the run's own cases and those of --cohort together",
        ("pseudo", "expert", "both"),
    )  # fmt: skip
    labelled_share: float = _option(
        1.0, "share of the patients with expert annotations whose annotations are used; the others count as unlabelled",
        limits=SHARE,
    )  # fmt: skip
    soft: bool = _option(True, "learn the teacher's class probabilities, not only its decision")
    expert_weight: float = _option(
        1.0,
        "how much a voxel that a person annotated counts, against 1 for a teacher's in the same batch",
        limits=(1e-6, 1e6),
    )
    voxel_weights: str = _option(
        "equal", "how much the voxels of a pseudo-annotation count: all alike, or by the teachers' certainty",
        ("equal", "certainty"),
    )  # fmt: skip
    least_certainty: float = _option(
        0.0, "voxels of a pseudo-annotation that the teachers are less certain of are left out", limits=SHARE
    )
    least_confidence: float = _option(
        0.0, "cases whose pseudo-annotation has a lower confidence are left out", limits=SHARE
    )
    least_foreground_voxels: int = _option(
        0, "cases whose pseudo-annotation has fewer voxels in structures are left out", limits=NOT_NEGATIVE
    )
    start_from: str = _option("", "bundle whose weights the training starts from (fine-tuning)")
    start_sha256: str = _option("", "weights of that bundle")
    dimensions: int | None = _option(None, "2: slice by slice, 3: volumes", choices=(2, 3))
    spacing_mm: tuple[float, ...] | None = _option(
        None, "voxel size the student works at, along right, anterior, superior", limits=(1e-6, 1e6)
    )
    normalisation: str | None = _option(
        None, "intensities: ct (one window for all) or z-score (per image)", ("ct", "z-score")
    )
    patch_size_voxels: tuple[int, ...] | None = _option(None, "size of a training patch", limits=AT_LEAST_ONE)
    batch_size: int | None = _option(None, "patches per training step", limits=AT_LEAST_ONE)
    epochs: int | None = _option(None, "passes over the training cases", limits=AT_LEAST_ONE)
    minutes: float | None = _option(None, "time budget of the training, instead of epochs", limits=(0.01, 1e6))
    learning_rate: float | None = _option(None, "highest rate of the one-cycle schedule", limits=(1e-9, 1e3))
    weight_decay: float = _option(1e-2, "weight decay of AdamW", limits=NOT_NEGATIVE)
    validation_share: float = _option(
        0.15, "share of the patients held out to choose among late students", limits=SHARE
    )
    validate_every_epochs: int | None = _option(
        None, "epochs between two looks at the held-out patients", limits=AT_LEAST_ONE
    )
    patience_epochs: int | None = _option(
        None, "stop early after so many epochs without a better student; 0: never", limits=NOT_NEGATIVE
    )
    foreground_share: float = _option(0.5, "share of the patches that are centred on a structure", limits=SHARE)
    rotation_degrees: float = _option(15.0, "augmentation: largest rotation about each axis", limits=(0.0, 180.0))
    scale_share: float = _option(0.15, "augmentation: largest change of size", limits=(0.0, 0.9))
    shift_share: float = _option(0.05, "augmentation: largest shift, as a share of the patch", limits=SHARE)
    mirror_axes: tuple[int, ...] | None = _option(
        None, "augmentation: axes along which patches are mirrored", limits=(0, 2)
    )
    contrast_share: float = _option(
        0.2, "augmentation: largest change of contrast and, in standard deviations, brightness", limits=(0.0, 0.9)
    )
    gamma_share: float = _option(0.2, "augmentation: largest change of the gamma exponent", limits=NOT_NEGATIVE)
    noise_deviation: float = _option(0.1, "augmentation: largest standard deviation of the noise", limits=NOT_NEGATIVE)
    losses: dict = _option({"dice-ce": 1.0}, "weight of each loss")
    tasks: tuple[str, ...] | None = _option(
        None, "what the student is trained for: segmentation, reconstruction", ("segmentation", "reconstruction")
    )
    live_teacher: str = _option("", "bundle that runs beside the student, for the losses that compare features")
    live_sha256: str = _option("", "weights of that bundle")
    scales: tuple[str, ...] = _option(
        ("encoder", "bottleneck", "decoder"), "feature taps that are compared: kinds, taps (encoder2) or pairs "
        "(encoder1:encoder3, the student's first); bottleneck=2 counts twice",
    )  # fmt: skip
    decision: str = _option(
        "expected-dice", "when the student draws a structure: where that gives the best Dice with what it learnt, "
        "or where the structure is the most probable class", DECISIONS,
    )  # fmt: skip
    response_temperature: float = _option(4.0, "temperature of the loss response", limits=(1e-3, 1e3))
    contrastive_temperature: float = _option(0.4, "temperature of the contrastive losses", limits=(1e-3, 1e3))
    seed: int = _option(0, "seed of everything random", limits=SEEDS)
    device: str = _option("auto", "where the training runs", ("auto", "cuda", "mps", "cpu"))
    precision: str | None = _option(None, "arithmetic of Lightning Fabric", ("32-true", "bf16-mixed"))
    reasons: dict = _option({}, "why each automatic choice was made")


@dataclass(frozen=True)
class EvaluateSettings:
    """What is compared, on which cases, and how."""

    methods: tuple[dict, ...] = _option((), "name and path of each method", items={"name": "str", "path": "str"})
    cohort: str = _option("", "where the cases with expert annotations are")
    labels: str = _option("", "file with the names of the cohort's structures")
    split: str | None = _option(None, "only the cases of this split")
    tolerance_mm: float = _option(1.0, "surfaces no farther apart agree for the surface Dice", limits=NOT_NEGATIVE)
    device: str = _option("auto", "where students run", ("auto", "cuda", "mps", "cpu"))
    seed: int = _option(0, "seed of the bootstrap", limits=SEEDS)


STEPS = {"annotate": AnnotateSettings, "distil": DistilSettings, "evaluate": EvaluateSettings}


def read_settings(run: RunDirectory, step: str) -> dict:
    """The settings of one step as they stand in settings.json: {} when there are none.

    Raises:
        ValueError: written by a newer version, or with a setting that does not exist.
    """
    if not run.settings.is_file():
        return {}
    content = read_json(run.settings)
    version = content.get("format_version", FORMAT) if isinstance(content, dict) else None
    if version != FORMAT:
        raise ValueError(
            f"{run.settings}: has the format version {version}; this is KnowledgeTransfer {__version__}, which reads "
            f"version {FORMAT}. Use the version that wrote it, or another run directory"
        )
    return checked(content.get(step) or {}, step, str(run.settings))


def write_settings(run: RunDirectory, step: str, settings) -> None:
    content = read_json(run.settings) if run.settings.is_file() else {}
    content |= {"format_version": FORMAT, "library_version": __version__, step: dataclasses.asdict(settings)}
    write_json(run.settings, content)


def checked(values: dict, step: str, source: str) -> dict:
    """Check names, types and choices of settings; lists become tuples.

    Raises:
        ValueError: the message names the setting, what was found and what is allowed.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{source}: {step} holds {values!r}; an object with settings is needed")
    known = {f.name: f for f in fields(STEPS[step])}
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"{source}: there is no setting {name!r} of {step}; known are {', '.join(known)}")
        if wrong := _wrong(value, known[name]):
            raise ValueError(f"{source}: {name} {wrong}")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _wrong(value, setting: dataclasses.Field) -> str:
    """What is wrong with a value, in words; empty where nothing is."""
    choices, (low, high), items = (setting.metadata[key] for key in ("choices", "limits", "items"))
    given = value if isinstance(value, (list, tuple)) else (value,)
    if choices and value is not None and not all(item in choices for item in given):
        return f"is {value!r}; allowed are {', '.join(map(str, choices))}"
    if not _fits(value, setting.type):
        return f"is {value!r}; expected {setting.type}"
    if any(_is_number(n) and not low <= n <= high for n in given):
        return f"is {value!r}; allowed is {low:g} to {high:g}"
    lacking = {key for item in given for key in items or () if not _fits(item.get(key), items[key])}
    return f"is {value!r}; each needs {' and '.join(sorted(lacking))}" if lacking else ""


def differences(step: str, stored: dict, asked: dict) -> list[str]:
    """Sentences on settings that were asked for and differ from those that a run of a step was begun with.

    What an earlier version did not know yet had its default.
    """
    begun = {field.name: field.default for field in fields(STEPS[step])} | stored
    return [
        f"{name} is {begun.get(name)!r}, asked for is {value!r}"
        for name, value in asked.items()
        if begun.get(name) != value
    ]


def _fits(value, annotation: str) -> bool:
    """Whether a value that JSON brought fits a type annotation such as `tuple[int, ...] | None`."""
    if value is None:
        return "None" in annotation
    if annotation.startswith("tuple["):
        inner = annotation[len("tuple[") :].split(",", maxsplit=1)[0]
        return isinstance(value, (list, tuple)) and all(_fits(v, inner) for v in value)
    base = annotation.split(" ", maxsplit=1)[0]
    if base == "float":
        return _is_number(value)
    kinds = {"str": str, "bool": bool, "dict": dict, "int": int}
    return isinstance(value, kinds[base]) and (base == "bool" or not isinstance(value, bool))


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
