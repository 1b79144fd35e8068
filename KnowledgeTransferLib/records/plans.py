"""Plans: which trainings a study compares. A cell is a name with settings; the first one is the baseline."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path

from .losses import OF_TEACHER, USUAL_WEIGHTS
from .run_directory import read_json
from .settings import checked

SHARES = (0.125, 0.25, 0.5, 1.0)
SCALES = {"E-E": "encoder", "B-B": "bottleneck", "D-D": "decoder"}


@dataclass(frozen=True)
class Cell:
    """One training of a study.

    `point` names the place in the grid (empty without one), whose first cell is the baseline of the others there.
    """

    point: str
    name: str
    seed: int
    settings: dict

    @property
    def folder(self) -> str:
        """The name of its run directory."""
        title = " ".join(filter(None, (self.point, self.name, f"seed {self.seed}")))
        return re.sub(r"[^\w.+=-]+", "_", title)


def plan_named(name: str) -> dict:
    """A plan: `cells` (name -> settings of distil) and, if it has one, `grid` (setting -> values).

    Args:
        name: scales, losses, fractions, or a JSON file that holds a plan.

    Raises:
        ValueError, OSError: no such plan, or a damaged one; the message says what is expected.
    """
    if name in PLANS:
        return PLANS[name]()
    if not Path(name).is_file():
        raise ValueError(f"there is no plan {name!r}; choose {', '.join(PLANS)}, or name a JSON file")
    plan = read_json(Path(name))
    if not isinstance(plan, dict) or set(plan) - {"cells", "grid"} or not isinstance(plan.get("cells"), dict):
        raise ValueError(f'{name}: a plan is {{"cells": {{"baseline": {{}}, "another": {{"batch_size": 4}}}}}}')
    if len(plan["cells"]) < 2:
        raise ValueError(f"{name}: has {len(plan['cells'])} cells; at least 2 are needed to compare")
    for cell, settings in plan["cells"].items():
        checked(settings, "distil", f"{name}, cell {cell}")
    _check_grid(plan.get("grid", {}), name)
    return plan


def _check_grid(grid: dict, name: str) -> None:
    if not isinstance(grid, dict) or not all(isinstance(values, list) and values for values in grid.values()):
        raise ValueError(f'{name}: a grid names the values of each setting in a list: {{"student": ["s1", "s2"]}}')
    for setting, values in grid.items():
        for value in values:
            checked({setting: value}, "distil", f"{name}, grid")


def cells_of(plan: dict, common: dict, seeds: int) -> list[Cell]:
    """Every cell at every point of the plan's grid with every seed, seed by seed: a first answer comes early.

    Args:
        common: settings of all cells; those of the plan stand above them, and losses add up.

    Raises:
        ValueError: two cells would have the same run directory.
    """
    grid = plan.get("grid", {})
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    cells = [
        Cell(_title(point), name, seed, _together(common, point, settings))
        for seed in range(seeds)
        for point in points
        for name, settings in plan["cells"].items()
    ]
    folders = [cell.folder.casefold() for cell in cells]
    twice = sorted({folder for folder in folders if folders.count(folder) > 1})
    if twice:
        raise ValueError(f"two cells of the plan have the same folder {twice[0]}; give them other names")
    return cells


def _title(point: dict) -> str:
    return " ".join(f"{name}={value}" if not isinstance(value, str) else value for name, value in point.items())


def _together(common: dict, point: dict, settings: dict) -> dict:
    losses = {**common.get("losses", {}), **point.get("losses", {}), **settings.get("losses", {})}
    together = {**common, **point, **settings}
    return {**together, "losses": losses} if losses else together


def _losses(*names: str) -> dict:
    return {"losses": {name: USUAL_WEIGHTS[name] for name in names}}


def _scales() -> dict:
    """Contrastive at each scale and at all their sums, each without and with response."""
    cells = {"baseline": {}}
    for response in (False, True):
        for count in range(len(SCALES) + 1):
            for chosen in itertools.combinations(SCALES, count):
                names = (*(["contrastive"] if chosen else []), *(["response"] if response else []))
                scales = {"scales": [SCALES[title] for title in chosen]} if chosen else {}
                title = " + ".join((*chosen, *(["response"] if response else [])))
                cells |= {title: {**_losses(*names), **scales}} if title else {}
    return {"cells": cells}


def _losses_alone() -> dict:
    return {"cells": {"baseline": {}} | {name: _losses(name) for name in USUAL_WEIGHTS if name != "dice-ce"}}


def _fractions() -> dict:
    """What a share of the labels, the teacher's pseudo-annotations of the rest, and its features are worth."""
    features = _losses("contrastive", "response")
    cells = {
        "experts": {"annotations": "expert"},
        "experts + features": {"annotations": "expert", **features},
        "experts + pseudo-annotations": {"annotations": "both"},
        "experts + pseudo-annotations + features": {"annotations": "both", **features},
    }
    return {"cells": cells, "grid": {"labelled_share": list(SHARES)}}


PLANS = {"scales": _scales, "losses": _losses_alone, "fractions": _fractions}


def need_teacher(cells: list[Cell]) -> bool:
    """Whether a cell learns from a teacher: its features, its response or its pseudo-annotations."""
    return any(needs_annotations(cell) or set(cell.settings.get("losses", ())) & set(OF_TEACHER) for cell in cells)


def needs_annotations(cell: Cell) -> bool:
    return cell.settings.get("annotations") != "expert"
