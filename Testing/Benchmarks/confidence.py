"""Confidence: how well the teachers' confidence in a pseudo-annotation foretells its Dice, on split `transferal`.

The expert annotations of that split serve for this and for lessons.py alone; no training sees them.
"""

from __future__ import annotations

from contrastive import must
from runs import DATA, Run
from transfer import SEVERAL, TWO, interval, several_teachers

from KnowledgeTransferLib.records.run_directory import read_json

TITLE = "Confidence of pseudo-annotations against their Dice (split `transferal`)"
NOTE = (
    "The teachers are the two or three of student `small` in *Several teachers, one student*; rho: Spearman's rank correlation between the confidence "
    "and the Dice of the cases; p: that it is none, as if every case were another patient's."
)


def confidence() -> str:
    taught = {data: several_teachers(data, TWO) for data in SEVERAL}
    runs = {data: _run(data, teachers) for data, teachers in taught.items()}
    needed = {teacher.name: teacher for teachers in taught.values() for teacher in teachers}
    must([*needed.values(), *runs.values()])
    lines = ["| data | cases | confidence | Dice | rho | p |", "|---|---|---|---|---|---|"]
    lines += [_row(data, run) for data, run in runs.items()]
    return "\n".join([f"## {TITLE}", "", *lines, "", NOTE, "", "```bash", list(runs.values())[-1].text(), "```"])


def _run(data: str, teachers: list[Run]) -> Run:
    name = f"confidence/{data}"
    named = [word for teacher in teachers for word in ("--teacher", teacher.student)]
    cases = ("--cohort", str(DATA / data), "--split", "transferal")
    method = f"teachers={Run(name, ()).folder / 'pseudo_annotations'}"
    commands = (("annotate", *cases, *named, "--no-probabilities"), ("evaluate", *cases, "--method", method))
    return Run(name, commands, tuple(teacher.name for teacher in teachers))


def _row(data: str, run: Run) -> str:
    evaluation, annotated = read_json(run.folder / "evaluation.json"), read_json(run.folder / "annotations.json")
    found = evaluation["methods"]["teachers"]["confidence"]
    drawn = {row["case"] for row in evaluation["cases"] if row["dice"] is not None}  # by teachers or expert
    values = [case["confidence"] for name, case in annotated["cases"].items() if name in drawn]
    mean = sum(values) / len(values)
    dice = interval(evaluation["summary"]["teachers"]["all"]["dice"])
    return f"| {data} | {found['cases']} | {mean:.3f} | {dice} | {found['spearman']:.2f} | {found['p']:.2g} |"


PARTS = {"confidence": confidence}
