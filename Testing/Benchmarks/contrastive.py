"""Contrastive: the experiments of multi-task multi-scale contrastive distillation (arXiv:2406.03173) on real data.

A teacher learns from all expert annotations of split `teacher`, its student from those of half of the patients. What
helps is chosen on split `transferal`; `test` tells how good what was chosen is. Every cell is an ordinary run.
"""

from __future__ import annotations

import csv
from dataclasses import replace
from functools import partial
from itertools import combinations, product
from pathlib import Path

from runs import DATA, HALF_SIZE, ROOT, RUNS, Run, carry_out
from transfer import SEEDS, dice_of_patients, interval, signed

from KnowledgeTransferLib.learning.metrics import holm
from KnowledgeTransferLib.learning.seeds import Trainings, against, by_seed, mean_of_seeds
from KnowledgeTransferLib.records.cohort import read_cohort, write_names
from KnowledgeTransferLib.records.losses import USUAL_WEIGHTS
from KnowledgeTransferLib.records.run_directory import read_json, write_json

HEART = DATA / "scd_lv_myocardium"
SCALES = ("encoder", "bottleneck", "decoder")
KINDS = ("contrastive", "feature-mse")
BASE = "no distillation"
CHOSEN = "feature-mse decoder"  # what `scales` found best on `transferal`; what is measured on `test` builds on it
HALF = ("--annotations", "expert", "--labelled-share", "0.5")
QUICK = ("--batch-size", "8", "--precision", "bf16-mixed")
# Of a student that learns from half of the labels: 400, 1200 and, since the wider s2 takes its time, 800 iterations.
EPOCHS = {"heart": 50, "lesions, s1": 84, "lesions, s2": 56}
TEACHER_EPOCHS = {"heart": 47, "lesions": 64}
MANY_SEEDS = range(8)  # of the few trainings that are compared on the test split of the heart
LENGTHS = {"medium": (16, 64), "s1": (28, 84, 168)}  # epochs that were tried on the lesions
PUBLISHED = tuple(
    [
        "--loss",
        "dice-ce=0.4",
        "--loss",
        "contrastive=0.4",
        "--loss",
        "response=0.2",
        "--scales",
        "encoder,bottleneck=2,decoder",
    ]
)


def scales() -> str:
    """S1 on the heart: every sum of scales, with and without response, contrastive and mean squared difference."""
    study = scale_study()
    must([teacher("heart"), study])
    title = "What helps a small student: scales and losses (heart, S1, half of the labels)"
    return described(title, study, f"Best on `transferal`: **{best_cell()}**.")


def published() -> str:
    """The published training step beside ours, and what was chosen beside no distillation, on the test split."""
    arms = {
        BASE: ("ours", ()),
        f"chosen: {CHOSEN}": ("ours", _options(_plan()["cells"][CHOSEN])),
        "the published step, with its faults": ("published", PUBLISHED),
        "our step, with the published weights": ("ours", PUBLISHED),
    }
    runs = {
        title: [_step(f"arm {number} of heart, seed {seed}", way, options, seed) for seed in MANY_SEEDS]
        for number, (title, (way, options)) in enumerate(arms.items())
    }
    trained = [run for part in runs.values() for run in part]
    methods = [word for n, run in enumerate(trained) for word in ("--method", f"run{n}={run.student}")]
    test = Run(
        "scales/test",
        (("evaluate", "--cohort", str(HEART), "--split", "test", *methods),),
        tuple(run.name for run in trained),
    )
    must([teacher("heart"), *trained, test])
    evaluation = read_json(test.folder / "evaluation.json")
    dice = dice_of_patients([(evaluation, f"run{n}") for n in range(len(trained))])
    found = {title: [dice[trained.index(run)] for run in part] for title, part in runs.items()}
    listing = "\n".join(part[0].text() for part in runs.values())
    return (
        "## The published training step beside ours (heart, S1, half of the labels, split `test`)\n\n"
        "Same networks, data, length and seeds. The published step projects the teacher's features by weights that are "
        "drawn anew in each batch and never trained, and takes a softmax over one channel, so that its prediction-map "
        f"loss is constant (Testing/Benchmarks/published_step.py).\n\n```bash\n{listing}\n```\n\n{comparisons(found)}"
    )  # fmt: skip


def lengths() -> str:
    """How long a teacher, and a student without distillation, ought to learn: breast lesions, Dice on `transferal`."""
    runs = {("medium", "all", epochs): [teacher("lesions", epochs)] for epochs in LENGTHS["medium"]}
    runs |= {("s1", "half", epochs): [_alone(epochs, seed) for seed in SEEDS] for epochs in LENGTHS["s1"]}
    trained = [run for part in runs.values() for run in part]
    methods = [word for n, run in enumerate(trained) for word in ("--method", f"run{n}={run.student}")]
    test = Run(
        "scales/lengths",
        (("evaluate", "--cohort", str(_lesions()), "--split", "transferal", *methods),),
        tuple(run.name for run in trained),
    )
    must([*trained, test])
    evaluation = read_json(test.folder / "evaluation.json")
    lines = ["| network | labels | epochs | Dice by patient | seed by seed |", "|---|---|---|---|---|"]
    dice = dice_of_patients([(evaluation, f"run{n}") for n in range(len(trained))])
    for key, part in runs.items():
        values = by_seed([dice[trained.index(run)] for run in part])[1]
        seeds = ", ".join(f"{mean:.3f}" for mean in values.mean(1))
        lines.append(f"| {' | '.join(map(str, key))} | {interval(mean_of_seeds(values))} | {seeds} |")
    listing = "\n".join(part[0].text() for part in runs.values())
    title = "How long to train (breast lesions in ultrasound, split `transferal`)"
    return "\n\n".join([f"## {title}", f"```bash\n{listing}\n```", "\n".join(lines)])


def lesions(student: str) -> str:
    """S1 or S2 on breast lesions: features, pseudo-annotations, both together, and all labels without a teacher."""
    features = _plan()["cells"][CHOSEN]
    epochs = EPOCHS[f"lesions, {student}"] // 2
    both = {"annotations": "both", "epochs": epochs}  # twice the images: the same number of iterations
    cells = {
        BASE: {},
        "features": features,
        "pseudo-annotations": both,
        "pseudo-annotations + features": {**both, **features},
        "all expert labels, no distillation": {"labelled_share": 1.0, "epochs": epochs},
    }
    plan = {"cells": cells, "grid": {"student": [student]}}
    cases = ("--cohort", str(_lesions()), "--split", "teacher", "--test-split", "test", *HALF_SIZE)
    study = _study(f"lesions, {student}", plan, cases)
    must([teacher("lesions"), study])
    title = f"Features, pseudo-annotations and both together (breast lesions in ultrasound, {student.upper()}, half of the labels, split `test`)"
    said = f"*Features*: {CHOSEN}, as chosen on the heart. Pseudo-annotations: of the other half of the images, by the same teacher."
    return described(title, study, f"{said}\n\n{_together(study)}")


PARTS = {
    "scales": scales,
    "published": published,
    "lengths": lengths,
    "lesions": partial(lesions, "s1"),
    "lesions-s2": partial(lesions, "s2"),
}


def must(runs: list[Run]) -> None:
    """Carry out runs, each study with as many trainings at once as there are cores; a failure ends it."""
    failed = carry_out(runs, at_once=1 if any(run.commands[0][0] == "study" for run in runs) else None)
    if failed:
        raise SystemExit("\n".join(f"{name}: {why}" for name, why in failed.items()))


def teacher(data: str, epochs: int = 0) -> Run:
    """About 2 million parameters, on all expert annotations of split `teacher`."""
    cohort, size = {"heart": (HEART, ()), "lesions": (_lesions(), HALF_SIZE)}[data]
    epochs = epochs or TEACHER_EPOCHS[data]
    name = f"teacher of {data}" + ("" if epochs == TEACHER_EPOCHS[data] else f", {epochs} epochs")
    learn = ("--cohort", str(cohort), "--split", "teacher", "--annotations", "expert", "--student", "medium", *size)
    return Run(f"scales/{name}", (("distil", *learn, "--epochs", str(epochs), *QUICK, "--seed", "0"),))


def _alone(epochs: int, seed: int) -> Run:
    """S1 on half of the labels of the lesions, without distillation."""
    learn = ("--cohort", str(_lesions()), "--split", "teacher", "--student", "s1", *HALF_SIZE, *HALF)
    length = ("--epochs", str(epochs), "--validate-every-epochs", str(epochs // 7))
    name = f"scales/s1 of lesions {epochs} epochs {seed}"
    return Run(name, (("distil", *learn, *length, *QUICK, "--seed", str(seed)),))


def scale_study() -> Run:
    return _study(
        "heart",
        _plan(),
        ("--cohort", str(HEART), "--split", "teacher", "--test-split", "transferal", "--student", "s1"),
    )


def _study(name: str, plan: dict, cases: tuple[str, ...]) -> Run:
    """A study on the heart, or on the lesions with one student."""
    data = name.partition(", ")[0]
    file = RUNS / "scales" / f"plan of {name}.json"
    write_json(file, plan)
    taught = ("--teacher", teacher(data).student, "--plan", str(file), "--seeds", str(len(SEEDS)), "--at-once", "2")
    length = ("--epochs", str(EPOCHS[name]), "--validate-every-epochs", str(EPOCHS[name] // 7))
    return Run(f"scales/study of {name}", (("study", *cases, *taught, *HALF, *length, *QUICK),), (teacher(data).name,))


def _plan() -> dict:
    """Nothing, response alone, and both kinds of losses at all sums of scales, each without and with response."""
    response = {"response": USUAL_WEIGHTS["response"]}
    cells = {BASE: {}, "response": {"losses": response}}
    sums = [chosen for count in (1, 2, 3) for chosen in combinations(SCALES, count)]
    for kind, with_response, chosen in product(KINDS, (False, True), sums):
        name = f"{kind} {' + '.join(chosen)}{', response' if with_response else ''}"
        cells[name] = {
            "losses": {kind: USUAL_WEIGHTS[kind], **(response if with_response else {})},
            "scales": list(chosen),
        }
    return {"cells": cells}


def best_cell() -> str:
    """The cell with the best Dice on `transferal` among those that look at features."""
    cells = [cell for cell in _results(scale_study()) if cell["name"] not in (BASE, "response")]
    return max(cells, key=lambda cell: cell["dice"]["mean"])["name"]


def _results(study: Run) -> list[dict]:
    return read_json(study.folder / "study.json")["cells"]


def _options(cell: dict) -> tuple[str, ...]:
    """The settings of a cell as a command line has them."""
    losses = [word for name, weight in cell["losses"].items() for word in ("--loss", f"{name}={weight}")]
    return (*losses, "--scales", ",".join(cell["scales"]))


def _step(name: str, way: str, options: tuple[str, ...], seed: int) -> Run:
    """A training of S1 on half of the labels of the heart, by our step or by the published one."""
    learn = ("--cohort", str(HEART), "--split", "teacher", "--student", "s1", *HALF)
    taught = ("--live-teacher", teacher("heart").student, *options) if options else ()
    length = ("--epochs", str(EPOCHS["heart"]), "--validate-every-epochs", str(EPOCHS["heart"] // 7))
    run = Run(
        f"scales/{name}",
        (("distil", *learn, *taught, *length, *QUICK, "--seed", str(seed)),),
        (teacher("heart").name,),
    )
    step = str(ROOT / "Testing" / "Benchmarks" / "published_step.py")
    return replace(run, program=(step,)) if way == "published" else run


def _lesions() -> Path:
    """The images of busi that show a lesion, as a cohort of their own."""
    folder = RUNS / "scales" / "lesions"
    file = folder / "cohort.csv"
    if not file.is_file():
        whole = read_cohort(DATA / "busi")
        folder.mkdir(parents=True, exist_ok=True)
        write_names(folder, whole.labels)
        with file.open("w", newline="", encoding="utf-8") as table:
            rows = csv.writer(table)
            rows.writerow(("id", "group", "split", "image", "label"))
            rows.writerows((c.id, c.group, c.split, c.images[0], c.label) for c in whole.cases if "normal" not in c.id)
    return file


def described(title: str, study: Run, more: str) -> str:
    return f"## {title}\n\n```bash\n{study.text()}\n```\n\n{_table(study)}\n\n{more}"


def _table(study: Run) -> str:
    """The study's own figures: every cell against the first one of its student."""
    cells, words = _results(study), study.commands[0]
    only = words[words.index("--student") + 1] if "--student" in words else ""
    head = ("student", "trained with", "Dice", "gain", "seed by seed", "p", "p (Holm)", "effect (d_z)", "ms per step")
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for cell in cells:
        tests = cell["against"]
        signs = [
            f"{tests['gain_percent']:+.1f}%", signed(tests["seeds"]), f"{tests['p']:.2g}", f"{tests['p_holm']:.2g}",
            f"{tests['effect']:.2f}",
        ] if tests else [""] * 5  # fmt: skip
        row = [cell["point"] or only, cell["name"], interval(cell["dice"]), *signs, f"{cell['cost']['step_ms']:.0f}"]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def _together(study: Run) -> str:
    """The combination against each method alone and against all labels, student by student."""
    dice = {}
    for cell in _results(study):
        evaluations = [read_json(study.folder / "cells" / folder / "evaluation.json") for folder in cell["folders"]]
        found = dice_of_patients([(evaluation, "student") for evaluation in evaluations])
        dice.setdefault(cell["point"], {})[cell["name"]] = found
    combined = "pseudo-annotations + features"
    parts = []
    for student, found in dice.items():
        ordered = {combined: found[combined], **found}
        parts.append(f"{student}: `{combined}` against the others.\n\n{comparisons(ordered)}")
    return "\n\n".join(parts)


def comparisons(dice: dict[str, Trainings]) -> str:
    """A table of what each method gives, beside the first; Holm's correction over the table."""
    (base_name, base), *others = dice.items()
    compared = {name: against(found, base) for name, found in others}
    corrected = dict(zip(compared, holm([tests["p"] for tests in compared.values()]), strict=True))
    lines = [f"| | Dice | difference to {base_name} | seed by seed | p | p (Holm) |", "|---" * 6 + "|"]
    for name, found in dice.items():
        row, tests = [name, interval(mean_of_seeds(by_seed(found)[1]))], compared.get(name)
        row += (
            [interval(tests["difference"]), signed(tests["seeds"]), f"{tests['p']:.2g}", f"{corrected[name]:.2g}"]
            if tests
            else [""] * 4
        )
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)
