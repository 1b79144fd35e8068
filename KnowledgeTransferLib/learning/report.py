"""Report: one self-contained HTML page about an evaluation: tables, box plots, training curves, pictures."""

from __future__ import annotations

import base64
import contextlib
import csv
import io
import warnings
from datetime import date
from pathlib import Path

import matplotlib
import nibabel
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from ..records.labels import Labels
from ..records.progress import Progress
from ..records.run_directory import RunDirectory, read_json, write_text
from .metrics import case_means
from .volume import Volume

TEMPLATE = "report.html.jinja"
NOTHING = "–"
METHOD_COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999999", "#b8a800")
MOST_POINTS = 1500  # more would hide the boxes and swell the file
TEXT = {"text.parse_math": False, "svg.fonttype": "path", "font.size": 9, "font.family": "DejaVu Sans"}
HU_OF_AIR = -500
HU_HALF_WINDOW = 200
# Rows of the summary: measure, title, digits, whether a method is marked as best by the largest (1) or smallest (-1).
SUMMARY_ROWS = (
    ("dice", "Dice", 3, 1), ("surface_dice", "Surface Dice", 3, 1), ("hd95_mm", "HD95 (mm)", 2, -1),
    ("volume_error_ml", "Volume error (ml)", 2, 0), ("iou", "IoU", 3, 0), ("precision", "Precision", 3, 0),
    ("recall", "Recall", 3, 0),
)  # fmt: skip


def write_report(path: Path, evaluation: dict, training: dict | None, pictures: list[dict]) -> None:
    """Write report.html, whole or not at all.

    Args:
        evaluation: what evaluation.json holds.
        training: what training.json holds, or None.
        pictures: `method`, `case`, `rank`, `dice` and `image` (from `overlay`) of each.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"number": number, "interval": interval, "size": size, "p_value": p_value, "count": count}
    history = (training or {}).get("history") or []
    text = environment.get_template(TEMPLATE).render(
        evaluation=evaluation,
        summary_rows=[(*row[:3], _best(evaluation["summary"], row[0], row[3])) for row in SUMMARY_ROWS],
        cases=_case_table(evaluation["cases"]),
        boxes=box_plots(evaluation),
        curves=training_curves(history) if history else None,
        normal_cases=any(part["all"]["expert_empty"] for part in evaluation["summary"].values()),
        pictures=pictures,
        today=date.today().isoformat(),
    )
    write_text(path, text)


def write_table(path: Path, rows: list[dict], columns: tuple[str, ...]) -> None:
    """Write evaluation.csv; a number that is not defined is an empty cell."""
    table = io.StringIO()
    writer = csv.DictWriter(table, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, table.getvalue())


def earlier_problems(run: RunDirectory) -> list[dict]:
    """Cases that the run's own annotate and distil left out; the report lists them too."""
    problems = []
    for path in (run.annotations, run.training):
        with contextlib.suppress(OSError, ValueError):  # a damaged record costs only this list
            record = read_json(path)
            problems += record.get("problems", []) + record.get("left_out", [])
    return problems


def training_of(run: RunDirectory, progress: Progress) -> dict | None:
    """What training.json holds, for the curves; None where there is none."""
    try:
        return read_json(run.training)
    except FileNotFoundError:
        return None  # nothing was trained in this run
    except ValueError as error:
        progress.warning(f"the report is without training curves: {error}")
        return None


def number(value: float | None, digits: int = 3, sign: bool = False) -> str:
    return NOTHING if value is None else f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "\u2212")


def interval(mean: dict | None, digits: int = 3, sign: bool = False) -> str:
    """A mean with its confidence interval where there is one: `0.901 [0.880, 0.921]`."""
    if mean is None or mean["mean"] is None:
        return NOTHING
    text = number(mean["mean"], digits, sign)
    low, high = (number(mean[end], digits, sign) for end in ("low", "high"))
    return text if mean["low"] is None else f"{text} [{low}, {high}]"


def count(value: int | None) -> str:
    return NOTHING if value is None else f"{value:,}".replace(",", "\u202f")


def size(value_bytes: int | None) -> str:
    if value_bytes is None:
        return NOTHING
    return f"{value_bytes / 1e6:.1f} MB" if value_bytes >= 1e6 else f"{value_bytes / 1e3:.0f} kB"


def p_value(value: float | None) -> str:
    return NOTHING if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _best(summary: dict, measure: str, direction: int) -> list[str]:
    """The methods with the best mean; none where there is nothing to choose from."""
    means = {name: part["all"][measure]["mean"] for name, part in summary.items()}
    means = {name: round(mean, 4) * direction for name, mean in means.items() if mean is not None}
    if direction == 0 or len(means) < 2:
        return []
    return [name for name, mean in means.items() if mean == max(means.values())]


def _case_table(rows: list[dict]) -> list[dict]:
    """One line per case: `case`, `group`, `dice` (method -> mean over the structures that the expert drew, or None)."""
    lines: dict[str, dict] = {}
    for row in rows:
        line = lines.setdefault(row["case"], {"case": row["case"], "group": row["group"], "dice": {}})
        line["dice"].setdefault(row["method"], []).append(row["dice"] if row["expert_volume_ml"] > 0 else None)
    for line in lines.values():
        known = {name: [v for v in values if v is not None] for name, values in line["dice"].items()}
        line["dice"] = {name: sum(values) / len(values) if values else None for name, values in known.items()}
    return list(lines.values())


def best_median_worst(rows: list[dict]) -> list[dict]:
    """`case`, `rank` and `dice` of the cases that are worth a picture; fewer than three where there are fewer cases.

    Of those that have a Dice: in which the expert drew something.
    """
    dice = {case: mean for (_, case), mean in case_means(rows, "dice").items()}
    ranked = sorted(dice, key=lambda case: -dice[case])
    ranks = {ranked[i]: rank for rank, i in (("median", len(ranked) // 2), ("worst", -1), ("best", 0)) if ranked}
    return [{"case": case, "rank": ranks[case], "dice": dice[case]} for case in ranked if case in ranks]


def box_plots(evaluation: dict) -> str:
    """Dice of the cases for each structure and method, as an SVG data address."""
    methods = list(evaluation["methods"])
    structures = [s["name"] for s in evaluation["structures"]]
    height = 0.8 + (0.26 * len(methods) + 0.16) * len(structures)
    with matplotlib.rc_context(TEXT):
        figure = Figure(figsize=(8.6, height), layout="constrained")
        axes = figure.subplots()
        for index, method in enumerate(methods):
            _boxes(axes, evaluation, method, index)
        axes.set_yticks([_row(s, (len(methods) - 1) / 2, len(methods)) for s in range(len(structures))], structures)
        axes.set_ylim(_row(len(structures) - 1, len(methods) - 0.2, len(methods)), -0.8)
        axes.set_xlabel("Dice")
        axes.grid(axis="x", color="0.9")
        clean(axes)
        figure.legend(handles=_swatches(axes, methods), loc="outside upper left", ncols=4, frameon=False)
        return svg(figure)


def _row(structure: int, method: float, methods: int) -> float:
    return structure * (methods + 0.7) + method


def _boxes(axes, evaluation: dict, method: str, index: int) -> None:
    """One method's box and points in each structure's row."""
    color = METHOD_COLORS[index % len(METHOD_COLORS)]
    few, methods = len(evaluation["cases"]) <= MOST_POINTS, len(evaluation["methods"])
    jitter = np.random.default_rng(0)
    for s, structure in enumerate(evaluation["structures"]):
        rows = [r for r in evaluation["cases"] if r["method"] == method and r["structure"] == structure["name"]]
        values = [row["dice"] for row in rows if row["expert_volume_ml"] > 0]
        if not values:
            continue
        y = _row(s, index, methods)
        axes.boxplot(
            values, positions=[y], widths=0.62, orientation="horizontal", patch_artist=True, showfliers=not few,
            boxprops={"facecolor": color + "44", "edgecolor": color}, medianprops={"color": color, "linewidth": 2},
            whiskerprops={"color": color}, capprops={"color": color}, manage_ticks=False,
            flierprops={"markeredgecolor": color, "markersize": 3},
        )  # fmt: skip
        if few:
            spread = jitter.uniform(-0.18, 0.18, len(values)) if len(values) > 1 else [0]
            axes.plot(values, y + np.asarray(spread), ".", color=color, markersize=4, alpha=0.6, markeredgewidth=0)


def _swatches(axes, methods: list[str]) -> list:
    colors = [METHOD_COLORS[i % len(METHOD_COLORS)] for i in range(len(methods))]
    return [
        axes.plot([], [], "s", color=c, label=name if not name.startswith("_") else " " + name)[0]  # "_" hides a label
        for name, c in zip(methods, colors, strict=True)
    ]


def training_curves(history: list[dict]) -> str:
    """Loss, validation Dice and learning rate over the epochs, as an SVG data address."""
    panels = (("loss", "Training loss"), ("validation_dice", "Validation Dice"), ("learning_rate", "Learning rate"))
    with matplotlib.rc_context(TEXT):
        figure = Figure(figsize=(8.6, 2.5), layout="constrained")
        for axes, (key, title) in zip(figure.subplots(1, 3), panels, strict=True):
            points = [(row["epoch"], row[key]) for row in history if row.get(key) is not None]
            marker = "o-" if len(points) < 40 else "-"
            axes.plot(
                *(zip(*points, strict=True) if points else ([], [])), marker, color=METHOD_COLORS[0], markersize=3
            )
            axes.set_title(title, fontsize=9, loc="left")
            axes.set_xlabel("Epoch")
            axes.grid(color="0.9")
            clean(axes)
        return svg(figure)


def clean(axes) -> None:
    """Axes without what says nothing."""
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=0)


def svg(figure: Figure) -> str:
    """A figure as a data address."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a script that the font lacks is drawn as boxes
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def overlay(image: Volume, expert: np.ndarray, prediction: np.ndarray, labels: Labels) -> str:
    """Draw the slice where the expert drew most, expert solid and prediction dashed, as a PNG data address.

    Radiological convention: the patient's right is on the left, anterior is up. Pictures are drawn as they are.

    Args:
        expert, prediction: `(I, J, K)`, in the values of `labels`.
    """
    spacing_mm, axis, k = _view(image, expert if expert.any() else prediction)
    planes = [_plane(image, array, axis, k) for array in (*image.array, expert, prediction)]
    window = _window((planes[-1] > 0) | (planes[-2] > 0))
    *channels, expert, prediction = (plane[window] for plane in planes)
    height, width = channels[0].shape
    figure = Figure(
        figsize=(3.2, float(np.clip(3.2 * height * spacing_mm[1] / (width * spacing_mm[0]), 1, 6))), dpi=160
    )
    axes = figure.add_axes((0, 0, 1, 1), frameon=False, xticks=[], yticks=[])
    axes.imshow(_shades(channels, expert), cmap="gray", vmin=0, vmax=1, aspect="auto")
    for structure in labels.structures:
        color = tuple(c / 255 for c in structure.color)
        _outline(axes, expert == structure.value, color, "solid")
        _outline(axes, prediction == structure.value, color, (0, (2.5, 1.5)))
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _view(image: Volume, annotation: np.ndarray) -> tuple[tuple[float, float], int, int]:
    """Size of a pixel in mm along x and y, axis (left, posterior, superior) that is cut, and index of the slice."""
    axes = np.argsort(nibabel.io_orientation(image.affine)[:, 0])
    axis = int(np.flatnonzero(axes == 2)[0]) if image.is_picture else 2
    area = np.count_nonzero(_to_lps(image, annotation), axis=tuple({0, 1, 2} - {axis}))
    k = int(area.argmax()) if area.any() else len(area) // 2
    x, y = (image.spacing_mm[axes[a]] for a in range(3) if a != axis)
    return (x, y), axis, k


def _to_lps(image: Volume, array: np.ndarray) -> np.ndarray:
    orientation = nibabel.io_orientation(image.affine)
    transform = nibabel.orientations.ornt_transform(orientation, nibabel.orientations.axcodes2ornt("LPS"))
    return nibabel.orientations.apply_orientation(array, transform)


def _plane(image: Volume, array: np.ndarray, axis: int, k: int) -> np.ndarray:
    """A slice of `(I, J, K)` as rows and columns of a picture; superior is up where it is not axial."""
    plane = np.take(_to_lps(image, array), k, axis=axis)
    return (plane if axis == 2 else plane[:, ::-1]).T


def _window(mask: np.ndarray) -> tuple[slice, slice]:
    """The part of a slice around what was drawn, wide enough to see where it is."""
    if not mask.any():
        return slice(None), slice(None)
    window = []
    for axis in (0, 1):
        drawn = np.flatnonzero(mask.any(axis=1 - axis))
        margin = int(max(0.75 * (drawn[-1] - drawn[0]), mask.shape[axis] / 4))
        window.append(slice(max(0, drawn[0] - margin), drawn[-1] + 1 + margin))
    return tuple(window)


def _shades(channels: list[np.ndarray], expert: np.ndarray) -> np.ndarray:
    """0..1 for display: the first channel, or the three of a colour picture."""
    if len(channels) == 3 and channels[0].dtype == np.uint8:
        return np.stack(channels, -1) / 255
    grey = channels[0].astype(float)
    low, high = np.percentile(grey, (1, 99))
    if grey.min() < HU_OF_AIR:  # Hounsfield units: a window around what the expert drew, or around soft tissue
        middle = np.median(grey[expert > 0]) if expert.any() else 40
        low, high = middle - HU_HALF_WINDOW, middle + HU_HALF_WINDOW
    return np.clip((grey - low) / max(high - low, 1e-6), 0, 1)


def _outline(axes, mask: np.ndarray, color: tuple, style) -> None:
    if mask.any() and not mask.all() and min(mask.shape) > 1:
        axes.contour(mask.astype(float), levels=[0.5], colors=[color], linewidths=1.3, linestyles=[style])
