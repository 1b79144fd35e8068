"""Decision: students that draw where their Dice is the best to be expected, beside themselves drawing what is most probable.

The students are those of part `sites` that were trained on this machine; nothing is trained here.
"""

from __future__ import annotations

from pathlib import Path

from contrastive import must
from runs import DATA, RUNS, Run
from site_teachers import SETS_OF_SITES, site_teachers
from transfer import dice_of_patients, false_alarms, interval, signed

from KnowledgeTransferLib.learning.seeds import against, by_seed, mean_of_seeds
from KnowledgeTransferLib.learning.student import as_it_learnt, load_student, save_student
from KnowledgeTransferLib.records.run_directory import read_json

TITLE = "When a structure is drawn: the best Dice to be expected, or the most probable class"
COLUMNS = (
    "data", "students", "drawn from", "Dice, most probable", "Dice, best expected", "difference", "seed by seed", "p",
    "HD95 (mm)", "false alarms",
)  # fmt: skip
METHODS = ("probable", "expected")


def decision() -> str:
    students = [run for run in site_teachers()[1] if run.measures and Path(run.student).is_dir()]
    rows = [_row(data, [run for run in students if run.name.startswith(f"sites/{data} ")]) for data in SETS_OF_SITES]
    lines = ["| " + " | ".join(row) + " |" for row in (COLUMNS, *filter(None, rows))]
    lines.insert(1, "|---" * len(COLUMNS) + "|")
    return "\n".join([f"## {TITLE}", "", *lines, "", NOTE])


NOTE = (
    "Split `test`; the students are those of *Teachers of three sites, one student*, and the same weights each time but "
    "for one bias. *Drawn from*: its probability, where there is one structure. HD95 and false alarms (images without "
    "the structure in which it was drawn): most probable, then best expected."
)


def _row(data: str, students: list[Run]) -> list[str]:
    """One row of the table; empty where no student was trained."""
    evaluations = [_evaluation(data, run) for run in students]
    if not evaluations:
        return []
    before, after = ([dice_of_patients(found, method) for found in evaluations] for method in METHODS)
    compared, values = against(after, before), by_seed([*before, *after])[1]
    means = [mean_of_seeds(values[: len(before)]), mean_of_seeds(values[len(before) :])]
    return [
        data, str(len(students)), ", ".join(f"{load_student(Path(run.student)).drawn_from:.2f}" for run in students),
        *map(interval, means), interval(compared["difference"], sign="+"), signed(compared["seeds"]),
        f"{compared['p']:.2g}", _both(_hd95, evaluations), _both(false_alarms, evaluations),
    ]  # fmt: skip


def _evaluation(data: str, run: Run) -> dict:
    """Of one student as it is, and as it would be with the most probable class."""
    folder = RUNS / "decision" / run.name.replace("/", " ")
    if not (folder / "probable").is_dir():
        save_student(as_it_learnt(load_student(Path(run.student))), folder / "probable")
    named = ("--method", f"probable={folder / 'probable'}", "--method", f"expected={run.student}")
    evaluation = Run(
        f"decision/{folder.name}/run", (("evaluate", "--cohort", str(DATA / data), "--split", "test", *named),)
    )
    must([evaluation])
    return read_json(evaluation.folder / "evaluation.json")


def _both(figure, evaluations: list[dict]) -> str:
    return ", ".join(filter(None, (figure(evaluations, method) for method in METHODS)))


def _hd95(evaluations: list[dict], method: str) -> str:
    means = [found["summary"][method]["all"]["hd95_mm"]["mean"] for found in evaluations]
    return f"{sum(means) / len(means):.1f}"


PARTS = {"decision": decision}
