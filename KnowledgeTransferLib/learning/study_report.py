"""Study report: the table of a study as HTML with curves, as CSV and as LaTeX."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from ..records.run_directory import RunDirectory, write_text
from .report import METHOD_COLORS, TEXT, clean, count, interval, number, p_value, svg, write_table

TEMPLATE = "study.html.jinja"
LINES = ("-", "--", ":", "-.")  # when the colours are used up
SPECIAL = {character: "\\" + character for character in "_%&#${}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip
COLUMNS = (
    "point", "cell", "patients", "seeds", "dice", "dice_low", "dice_high", "seed_dice", "difference", "difference_low",
    "difference_high", "seed_difference", "gain_percent", "p", "p_holm", "effect", "parameters", "training_s",
    "step_ms",
)  # fmt: skip


def write_study(run: RunDirectory, content: dict) -> None:
    """Write study.html, study.csv and study.tex from what study.json holds."""
    cells = content["cells"]
    write_table(run.study_table, [_row(cell) for cell in cells], COLUMNS)
    write_text(run.study_latex, latex(cells))
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"number": number, "interval": interval, "p_value": p_value, "count": count}
    page = environment.get_template(TEMPLATE).render(
        study=content, points=_points(cells), curves={point: curves(part) for point, part in _points(cells).items()}
    )
    write_text(run.study_report, page)


def _points(cells: list[dict]) -> dict[str, list[dict]]:
    points: dict[str, list[dict]] = {}
    for cell in cells:
        points.setdefault(cell["point"], []).append(cell)
    return points


def _row(cell: dict) -> dict:
    """A line of study.csv."""
    dice, against = cell["dice"], cell["against"] or {}
    difference = against.get("difference") or {}
    return {
        "point": cell["point"], "cell": cell["name"], "patients": dice["groups"], "seeds": len(cell["seeds"]),
        "dice": dice["mean"], "dice_low": dice["low"], "dice_high": dice["high"],
        "seed_dice": " ".join("" if seed is None else f"{seed:.4f}" for seed in cell["seeds"]),
        "difference": difference.get("mean"),
        "difference_low": difference.get("low"), "difference_high": difference.get("high"),
        "seed_difference": " ".join(f"{seed:+.4f}" for seed in against.get("seeds", ())),
        **{name: against.get(name) for name in ("gain_percent", "p", "p_holm", "effect")}, **cell["cost"],
    }  # fmt: skip


def latex(cells: list[dict]) -> str:
    """A table for booktabs."""
    lines = [
        r"\begin{tabular}{llrrrrr}", r"\toprule",
        r" & & Dice [95\,\% interval] & difference & gain (\%) & $p$ (Holm) & $d_z$ \\", r"\midrule",
    ]  # fmt: skip
    for cell in cells:
        against = cell["against"] or {}
        values = [
            interval(cell["dice"]), number((against.get("difference") or {}).get("mean"), 3, sign=True),
            number(against.get("gain_percent"), 1, sign=True), p_value(against.get("p_holm")),
            number(against.get("effect"), 2, sign=True),
        ]  # fmt: skip
        lines.append(" & ".join([_escaped(cell["point"]), _escaped(cell["name"]), *map(_in_latex, values)]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _escaped(text: str) -> str:
    return re.sub(r"[\\_%&#${}~^]", lambda found: SPECIAL[found[0]], text)


def _in_latex(text: str) -> str:
    return text.replace("\u2212", "$-$").replace("–", "--").replace("< ", "$<$")


def curves(cells: list[dict]) -> str:
    """Validation Dice over the epochs, a line for each cell, as an SVG data address."""
    with matplotlib.rc_context(TEXT):
        figure = Figure(figsize=(8.6, 3.4), layout="constrained")
        axes = figure.subplots()
        for index, cell in enumerate(cells):
            style = LINES[index // len(METHOD_COLORS) % len(LINES)]
            points = zip(*cell["curve"], strict=True) if cell["curve"] else ([], [])
            axes.plot(*points, style, color=METHOD_COLORS[index % len(METHOD_COLORS)], label=cell["name"])
        axes.set_xlabel("Epoch")
        axes.set_ylabel("Validation Dice")
        axes.grid(color="0.9")
        clean(axes)
        figure.legend(loc="outside right upper", frameon=False)
        return svg(figure)
