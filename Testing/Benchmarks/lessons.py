"""Lessons: Dice of teachers and of the pseudo-annotations that they give together, on split `transferal`.

It says what a student of several teachers can learn; their settings in transfer.py were chosen by it.
"""

from __future__ import annotations

from contrastive import must
from runs import DATA, Run
from transfer import SETS, SEVERAL, TEACHERS, TWO, USUAL, Way, asked, interval, several_teachers

from KnowledgeTransferLib.records.run_directory import read_json

TITLE = "What several teachers say together (Dice on split `transferal`)"
TOGETHER = {  # name -> designs, whether another site's teacher is among them, way
    "two": (TWO, False, Way(0)),
    "four": (TEACHERS, False, Way(0)),
    "four, mirror images": (TEACHERS, False, Way(0, mirror=True)),
    "two and another site": (TWO, True, Way(0)),
    "four and another site, mirror images": (TEACHERS, True, Way(0, mirror=True)),
    "the same, another site counts a quarter": (TEACHERS, True, USUAL),
}


def lessons() -> str:
    rows = [row for data in SEVERAL for row in _of(data)]
    return "\n".join([f"## {TITLE}", "", "| data | who | Dice |", "|---|---|---|", *rows])


def _of(data: str) -> list[str]:
    """The rows of a data set: each teacher alone, and together in the ways that make a difference there."""
    teachers = several_teachers(data, TEACHERS)
    together = {who: _annotation(data, who, *how) for who, how in TOGETHER.items() if _differs(data, *how[1:])}
    methods = {run.name.removeprefix("teachers/"): run.student for run in teachers}
    methods |= {who: str(run.folder / "pseudo_annotations") for who, run in together.items()}
    named = [word for number, path in enumerate(methods.values()) for word in ("--method", f"m{number}={path}")]
    command = ("evaluate", "--cohort", str(DATA / data), "--split", "transferal", *named)
    evaluation = Run(f"lessons/{data}", (command,), tuple(run.name for run in together.values()))
    must([*teachers, *together.values(), evaluation])
    found = read_json(evaluation.folder / "evaluation.json")["summary"]
    return [
        f"| {data} | {who} | {interval(found[f'm{number}']['all']['dice'], 4)} |" for number, who in enumerate(methods)
    ]


def _differs(data: str, other_site: bool, way: Way) -> bool:
    """Whether a data set has what sets this way apart: another site, pictures that may be mirrored."""
    mirrored, far = SETS[data].modality != "MRI", SETS[data].other_site
    return (not other_site or bool(far)) and (not way.mirror or mirrored)


def _annotation(data: str, who: str, designs: tuple[str, ...], other_site: bool, way: Way) -> Run:
    teachers = several_teachers(data, designs)[: None if other_site else len(designs)]
    options = ("--cohort", str(DATA / data), "--split", "transferal", *asked(data, teachers, way), "--no-probabilities")
    return Run(f"lessons/{data}, {who}", (("annotate", *options),), tuple(run.name for run in teachers))


PARTS = {"lessons": lessons}
