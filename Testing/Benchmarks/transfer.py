"""Transfer: the experiments of network-agnostic knowledge transfer (arXiv:2101.09560) on eight real data sets.

Teachers learn from split `teacher`, students from what teachers say of split `transferal`; `test` is only evaluated.
Every cell is an ordinary run, sized to 2 CPU cores; `make real PARTS="single several"` carries some of them out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
from part_cohorts import sites
from runs import DATA, RUNS, Run, measured

from KnowledgeTransferLib.learning.metrics import group_means, holm
from KnowledgeTransferLib.learning.seeds import against, by_seed, mean_of_seeds
from KnowledgeTransferLib.learning.training_cases import split_by_group
from KnowledgeTransferLib.records.cohort import read_cohort
from KnowledgeTransferLib.records.settings import DistilSettings

QUARTER_SIZE = ("--spacing-mm", "4", "4", "1")  # pictures of 256 pixels as 64
PATCHES = ("--spacing-mm", "2", "2", "1", "--patch-size-voxels", "128", "128", "1")
STUDENTS = ("unet", "attention-unet", "sdu-net", "deeplabv3plus", "panoptic-fpn")  # the five of the paper
TWO = ("segresnet", "dynunet")  # the networks of Auto3DSeg and nnU-Net
TEACHERS = (*TWO, "unet", "attention-unet")
SEEDS = (0, 1, 2)  # of students
# More than usual, since students learn from fewer patients than their teachers did; chosen on the heart with the expert
# annotations of split `teacher`, which no student saw: Dice 0.764 against 0.759.
AUGMENTED = (
    "--rotation-degrees", "30", "--scale-share", "0.3", "--shift-share", "0.1",
    "--gamma-share", "0.4", "--contrast-share", "0.4",
)  # fmt: skip
BESIDE = ("begun", "together")  # methods that are shown, and not compared with
MOST_NAMED = 6  # of the runs that a table lacks
SHARES = ("0.1", "0.25", "0.5", "1")


@dataclass(frozen=True)
class Way:
    """How a student learns from its teachers."""

    iterations: int
    options: tuple[str, ...] = ()
    name: str = ""  # of its runs
    mirror: bool = False  # whether teachers are asked about mirror images too, where they know such
    weight_of_other_site: str = ""


# With the experts of split `teacher`, which no student saw, a student of two teachers had on the heart Dice 0.735
# (SMALL), 0.742 (SMALL, fewer held out), 0.763 (segresnet as in USUAL) and 0.767 (dynunet), on the hippocampus 0.847
# (SMALL) and 0.855 (segresnet). With those of `transferal`, the mean of the teachers' opinions was better by 0.0004 to
# 0.0012 with mirror images, and by 0.006 to 0.024 if the teacher of another site counted a quarter instead of 1.
MOST_PROBABLE = ("--decision", "most-probable")  # as all students drew before there was a choice
SMALL = Way(2500, MOST_PROBABLE)
FORMER = Way(1000, ("--validation-share", "0.05", *MOST_PROBABLE), mirror=True, weight_of_other_site="0.25")
USUAL = Way(1000, ("--validation-share", "0.05"), "expected Dice ", mirror=True, weight_of_other_site="0.25")
# What of `single` was measured when all students drew the most probable class.
SINGLE_BEFORE = (*(("hippocampus_mri", "dynunet", "segresnet", seed) for seed in SEEDS), ("busi", "dynunet", "unet", 0))
TUNED = Way(1000)  # of `small`, before it is fine-tuned, then again, and from scratch


@dataclass(frozen=True)
class Set:
    """A data set, and what makes it small enough for two CPU cores."""

    modality: str
    iterations: int
    batch_size: int
    options: tuple[str, ...] = ()
    other_site: str = ""  # a data set of the same structure from elsewhere
    student: str = "unet"  # the one that stands for all: of teachers' size, and quick


SETS = {
    "scd_lv_myocardium": Set("MRI", 500, 16),
    "hippocampus_mri": Set("MRI", 300, 2, student="segresnet"),
    "la_heart_lge_mri": Set("MRI", 300, 2, ("--spacing-mm", "2.5", "2.5", "2.5"), student="segresnet"),
    "busi": Set("ultrasound", 500, 8, QUARTER_SIZE, "bus_uclm"),
    "bus_uclm": Set("ultrasound", 500, 8, QUARTER_SIZE, "busi"),
    "hc18_fetal_head": Set("ultrasound", 500, 8, QUARTER_SIZE),
    "drive_vessels": Set("fundus photographs", 400, 4, PATCHES, "chase_vessels"),
    "chase_vessels": Set("fundus photographs", 400, 4, PATCHES, "drive_vessels"),
}
ONE_PER_MODALITY = ("scd_lv_myocardium", "busi", "drive_vessels")
SEVERAL = ("scd_lv_myocardium", "hippocampus_mri", "busi", "hc18_fetal_head", "drive_vessels")

Experiment = tuple[str, list[Run], Callable[[dict[str, str]], str]]  # title, runs, and table: failed runs -> text


def single() -> Experiment:
    """One teacher: on one set per modality every student of two teachers, on the others one student, three seeds."""
    cells = [
        (data, TWO[1], SETS[data].student, seed) for data in SETS if data not in ONE_PER_MODALITY for seed in SEEDS
    ]
    cells += [(data, t, s, 0) for data, t, s in product(ONE_PER_MODALITY, TWO, STUDENTS)]
    students = {
        (*cell, way): single_student(*cell, way)
        for way, some in ((FORMER, SINGLE_BEFORE), (USUAL, cells))
        for cell in some
    }
    rows: dict[tuple[str, ...], list[Run]] = {}
    for (data, *designs, _, way), run in students.items():
        rows.setdefault((data, *designs, draws(way)), []).append(run)
    runs = {run.name: run for (data, t, *_), student in students.items() for run in (teacher(data, t), student)}
    columns = ("data", "teacher", "student", "draws")
    title = "One teacher, one student: any network to any other"
    return title, list(runs.values()), lambda failed: table(columns, rows, failed)


def several() -> Experiment:
    """Several teachers, of other networks and where there is one of another site: one student, three seeds."""
    rows, teachers = {}, {}
    for data, (designs, way) in product(SEVERAL, ((TWO, SMALL), (TEACHERS, FORMER), (TEACHERS, USUAL))):
        some, far = several_teachers(data, designs), SETS[data].other_site
        teachers |= {run.name: run for run in some}
        taught = "small" if way is SMALL else SETS[data].student
        names = " + ".join([*designs, *([f"{designs[0]} of {far}"] if far else [])])
        rows[data, names, taught, draws(way)] = [
            student(f"several/{data} {taught} {way.name}{seed}", data, some, taught, seed, way) for seed in SEEDS
        ]
    runs = [*teachers.values(), *(run for runs in rows.values() for run in runs)]
    title = "Several teachers, one student"
    return title, runs, lambda failed: table(("data", "teachers", "student", "draws"), rows, failed)


def tuned() -> Experiment:
    """Transfer and then fine-tuning, against training from scratch, on shares of the expert labels."""
    runs, rows = {}, {}
    for data, share in product(ONE_PER_MODALITY, SHARES):
        site, guide, labelled = _guide_and_labelled(data)
        begun = student(f"tuned/{data} begun", data, [guide], "small", 0, TUNED)
        scratch, finetuned = (Run(f"tuned/{data} {share} {way}", ()) for way in ("scratch", "transfer"))
        count = float(share) * len(read_cohort(labelled[1]).only("teacher" if "--split" in labelled else None).cases)
        size = (*length_of(data, count, TUNED.iterations), *AUGMENTED, "--seed", "0")
        learning = ("distil", *labelled, "--annotations", "expert", "--labelled-share", share, *size)
        scratch = replace(scratch, commands=((*learning, "--student", "small"),))
        methods = {"scratch": scratch, "begun": begun, "student": finetuned}
        commands = (
            (*learning, "--from", begun.student),
            evaluation(data, *(f"{name}={run.student}" for name, run in methods.items())),
        )
        finetuned = replace(finetuned, commands=commands, after=(scratch.name, begun.name))
        runs |= {run.name: run for run in (guide, begun, scratch, finetuned)}
        rows[data, site, share, "small"] = [finetuned]
    columns = ("data", "teacher from", "share of the expert labels", "student")
    title = "Transfer and fine-tuning against training from scratch"
    return title, list(runs.values()), lambda failed: table(columns, rows, failed, against="from scratch")


def _guide_and_labelled(data: str) -> tuple[str, Run, tuple[str, ...]]:
    """Where a teacher is from that saw none of the patients whose labels are used, itself, and the options for these."""
    site = SETS[data].other_site
    if site:
        return site, teacher(site, TWO[0]), ("--cohort", str(DATA / data), "--split", "teacher")
    halves = [str(file) for file in sites(DATA / data, 2, RUNS / "halves")]
    size = length_of(data, len(read_cohort(halves[0]).cases))
    taught = ("distil", "--cohort", halves[0], "--annotations", "expert", "--student", TWO[0], *size, "--seed", "0")
    return f"one half of {data}", Run(f"tuned/{data} teacher of one half", (taught,)), ("--cohort", halves[1])


EXPERIMENTS = {"single": single, "tuned": tuned, "several": several}
NOTES = {
    "single": "Students learn for about 1000 steps (880 to 1040) and with more augmentation, from fewer patients than "
    "their teachers, which learnt for 266 to 429 steps. The aim is 99 % of the teacher's Dice. *Draws*: the most probable "
    "class, or where the *best Dice* is to be expected (docs/distilling.md), teachers too.\n\n",
    "several": "Student `small` (0.25 million parameters) learnt for 2500 steps from teachers that count alike. The others, "
    "of the teachers' own size, learnt for 1000 steps from teachers that were asked about mirror images too (pictures), "
    "where the one of another site counts a quarter; that was chosen on `teacher` and `transferal`, but after the figures "
    "of `small` on `test` had been seen. *Draws*: the most probable class, or where the *best Dice* is to be expected "
    "(docs/distilling.md), teachers too. Before that a student `segresnet` of 400 steps had been measured on `test` and "
    "was withdrawn as undertrained: 95 % of the best teacher on the heart (three seeds), 97 % on the hippocampus (two). "
    "Students learn with more augmentation and for more steps than their teachers did (266 to 429). The best teacher is "
    "the best on `test`.\n\n",
    "tuned": "The share of the labels is what fine-tuning and training from scratch learnt from. The student that is "
    "fine-tuned learnt from a teacher of other patients: of another site where there is one, else of one half of split "
    "`teacher`, and tuning takes its share of the other half. *Epoch kept* 0: on the held-out patients no epoch was better "
    "than the start, and the student is the one that the teacher left, untuned; with a tenth of the labels one to four "
    "patients are held out. *Begun*: that student, untuned, on `test`.\n\n",
}


def teacher(data: str, design: str) -> Run:
    learning = ("distil", "--cohort", str(DATA / data), "--split", "teacher", "--student", design)
    command = (*learning, *length(data, "teacher"), "--annotations", "expert", "--seed", "0")
    return Run(f"teachers/{data} {design}", (command,))


def several_teachers(data: str, designs: tuple[str, ...]) -> list[Run]:
    """Of each network one, and where there is another site one of there."""
    far = SETS[data].other_site
    return [teacher(data, design) for design in designs] + ([teacher(far, designs[0])] if far else [])


def single_student(data: str, teacher_design: str, design: str, seed: int, way: Way = USUAL) -> Run:
    before = "most probable " if way is FORMER else ""
    name = f"single/{before}{data} {teacher_design} {design} {seed}"
    return student(name, data, [teacher(data, teacher_design)], design, seed, way)


def draws(way: Way) -> str:
    """When students and teachers draw a structure, as a table says it."""
    return "most probable" if "most-probable" in way.options else "best Dice"


def student(name: str, data: str, teachers: list[Run], design: str, seed: int, way: Way = USUAL) -> Run:
    """A student of teachers; all of them are evaluated on the test split."""
    methods = [f"teacher{number}={run.student}" for number, run in enumerate(teachers, 1)]
    size = length(data, "transferal", iterations=way.iterations)
    commands = (
        ("annotate", "--cohort", str(DATA / data), "--split", "transferal", *asked(data, teachers, way)),
        ("distil", "--student", design, *size, *way.options, *AUGMENTED, "--seed", str(seed)),
        evaluation(data, *methods, f"student={Run(name, ()).student}"),
    )
    return Run(name, commands, tuple(run.name for run in teachers))


def asked(data: str, teachers: list[Run], way: Way) -> list[str]:
    """The options of `annotate` for teachers."""
    far = SETS[data].other_site and teacher(SETS[data].other_site, TWO[0]).name
    weighed = [
        f"{run.student}={way.weight_of_other_site}" if way.weight_of_other_site and run.name == far else run.student
        for run in teachers
    ]
    knows_mirror_images = SETS[data].modality != "MRI"
    named = [word for teacher in weighed for word in ("--teacher", teacher)]
    return [*named, *(["--mirror"] if way.mirror and knows_mirror_images else [])]


def evaluation(data: str, *methods: str) -> tuple[str, ...]:
    named = [word for method in methods for word in ("--method", method)]
    return ("evaluate", "--cohort", str(DATA / data), "--split", "test", *named)


def length(data: str, split: str, iterations: int = 0) -> tuple[str, ...]:
    """Size and length of a training on the cases of a split: so many iterations, eight looks in between."""
    return length_of(data, cases(data, split), iterations)


def length_of(data: str, count: float, iterations: int = 0) -> tuple[str, ...]:
    """The same, of so many cases."""
    size = SETS[data]
    epochs = math.ceil((iterations or size.iterations) * size.batch_size / count)
    looks = ("--validate-every-epochs", str(max(1, epochs // 8)))
    return (*size.options, "--epochs", str(epochs), *looks, "--batch-size", str(size.batch_size))


def steps_per_epoch(data: str, cohort: Path) -> int:
    """Of a training on a cohort, without the patients that it holds out."""
    learnt, _ = split_by_group(list(read_cohort(cohort).cases), DistilSettings())
    return math.ceil(len(learnt) / SETS[data].batch_size)


@cache
def cases(data: str, split: str) -> int:
    return len(read_cohort(DATA / data).only(split).cases)


def table(columns: tuple[str, ...], rows: dict[tuple, list[Run]], failed: dict, against: str = "best teacher") -> str:
    """Each row's student, averaged over its runs (seeds), against the best of what it is compared with, by patient."""
    head = [
        *columns, "seeds", "epoch kept", f"Dice, {against}", "Dice, student", "ratio", "difference", "seed by seed", "p",
        "p (Holm)", *(f"Dice, {name}" for name in BESIDE), "false alarms", "minutes",
    ]  # fmt: skip
    good = {key: [run for run in runs if run.name not in failed] for key, runs in rows.items()}
    compared = {key: comparison([measured(run) for run in runs]) for key, runs in good.items() if runs}
    corrected = holm([figures["p"] for figures in compared.values()])
    cells = [
        [
            *key,
            figures["seeds"],
            figures["epochs"],
            *figures["text"],
            f"{figures['p']:.2g}",
            f"{p:.2g}",
            *figures["more"],
        ]
        for (key, figures), p in zip(compared.items(), corrected, strict=True)
    ]
    kept = [n for n in range(len(head)) if any(row[n] != "" for row in cells)]
    lines = ["| " + " | ".join(str(row[n]) for n in kept) + " |" for row in (head, *cells)]
    lines.insert(1, "|---" * len(kept) + "|")
    notes = [_origins([run for runs in good.values() for run in runs]), _left_out(failed, _names(rows))]
    return "\n\n".join(["\n".join(lines), *filter(None, [_copies(good), *notes])])


def _left_out(failed: dict[str, str], names: set[str]) -> str:
    """What the table lacks: by name, or by number where it is much."""
    missing = {name: why for name, why in failed.items() if name in names}
    named = "; ".join(f"{name} ({why})" for name, why in missing.items())
    if len(missing) > MOST_NAMED:
        named = f"{len(missing)} of {len(names)} students ({', '.join(sorted({*missing.values()}))})"
    return named and f"Not carried out: {named}."


def comparison(evaluations: list[dict]) -> dict:
    """What one row of the table says of runs that differ by their seed alone."""
    dice = {
        name: [dice_of_patients(evaluation, name) for evaluation in evaluations] for name in evaluations[0]["methods"]
    }
    compared_with = [name for name in dice if name not in (*BESIDE, "student")]
    name = max(
        compared_with, key=lambda name: np.mean([value for patients in dice[name] for value in patients.values()])
    )
    best, found = dice[name], dice["student"]
    compared = against(found, best)
    values = by_seed([*best, *found])[1]
    means = [mean_of_seeds(values[: len(best)]), mean_of_seeds(values[len(best) :])]
    texts = [*map(interval, means), f"{means[1]['mean'] / means[0]['mean']:.1%}"]
    beside = [interval(mean_of_seeds(by_seed(dice[name])[1])) if name in dice else "" for name in BESIDE]
    alarms = {who: false_alarms(evaluations, method) for who, method in (("teacher", name), ("student", "student"))}
    minutes = round(sum(evaluation["seconds"] for evaluation in evaluations) / 60, 1)
    return {
        "seeds": len(evaluations), "epochs": ", ".join(f"{e['epoch']} of {e['epochs']}" for e in evaluations),
        "text": [*texts, interval(compared["difference"], sign="+"), signed(compared["seeds"])],
        "p": compared["p"], "more": [*beside, "; ".join(f"{who} {found}" for who, found in alarms.items() if found), minutes],
    }  # fmt: skip


def false_alarms(evaluations: list[dict], method: str) -> str:
    """In how many of the cases (and seeds) that lack the structure a method drew it; "" where none lacks it."""
    rows = [row for evaluation in evaluations for row in evaluation["cases"] if row["method"] == method]
    lacking = [row for row in rows if not row["expert_volume_ml"]]
    return f"{sum(row['dice'] is not None for row in lacking)} of {len(lacking)}" if lacking else ""


def _copies(rows: dict[tuple, list[Run]]) -> str:
    """Which rows have seeds whose teachers are not the same: trained anew on another kind of processor."""
    mixed = [key for key, runs in rows.items() if len({_teachers_dice(measured(run)) for run in runs}) > 1]
    named = "; ".join(", ".join(map(str, key)) for key in mixed)
    return mixed and (
        f"Trained anew on another kind of processor, teachers are not the same bit for bit. So the seeds of these rows "
        f"have learnt from different copies of them, and each is compared with its own: {named}."
    )


def _teachers_dice(evaluation: dict) -> tuple:
    rows = [row for row in evaluation["cases"] if row["method"].startswith("teacher")]
    return tuple((row["method"], row["case"], row["dice"]) for row in rows)


def _origins(runs: list[Run]) -> str:
    """The machines that measured, each with the number of its runs."""
    if not runs:
        return ""
    count = Counter(measured(run)["machine"] for run in runs)
    return "Measured on: " + "; ".join(f"{machine} ({number} runs)" for machine, number in count.items()) + "."


def interval(figure: dict, digits: int = 3, sign: str = "") -> str:
    """A mean with its 95 % interval."""
    return "{0:{form}} [{1:{form}}, {2:{form}}]".format(
        *(figure[name] for name in ("mean", "low", "high")), form=f"{sign}.{digits}f"
    )


def signed(differences: list[float]) -> str:
    return ", ".join(f"{difference:+.3f}" for difference in differences)


def dice_of_patients(evaluation: dict, method: str) -> dict[str, float]:
    """Patient -> mean Dice of the cases in which the expert drew the structure."""
    rows = [row for row in evaluation["cases"] if row["method"] == method]
    return group_means([{**row, "dice": np.nan if row["dice"] is None else row["dice"]} for row in rows], "dice")


def _names(rows: dict[tuple, list[Run]]) -> set[str]:
    return {run.name for runs in rows.values() for run in runs}
