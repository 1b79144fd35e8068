"""Runs: ordinary runs by the command line, several at a time, each carried out once, as the results on real data need.

What a run measured is kept in the folder measured/ beside this file, case by case. So every table can be computed
again, and an experiment goes on where it was on another machine too, whose RUNS is empty.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from document import machine

from KnowledgeTransferLib.records.run_directory import read_json, write_json

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("KT_DATA", ROOT.parent / "shared" / "data")).resolve()
RUNS = Path(os.environ.get("KT_RUNS", ROOT / "real_runs")).resolve()
MEASURED = Path(__file__).parent / "measured"
HALF_SIZE = ("--spacing-mm", "2", "2", "1")  # pictures of 256 pixels as 128, for the sake of 2 CPU cores
COLUMNS = (
    "method",
    "case",
    "group",
    "structure",
    "dice",
    "expert_volume_ml",
)  # of an evaluation, as far as they are kept


@dataclass(frozen=True)
class Run:
    """A run directory below RUNS, and the commands that fill it.

    `commands` are a step and its options, without the run directory; `after` names runs that must be finished before.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    after: tuple[str, ...] = ()
    program: tuple[str, ...] = ("-m", "KnowledgeTransferLib")  # for Python: what takes the commands

    @property
    def folder(self) -> Path:
        return RUNS / self.name

    @property
    def student(self) -> str:
        return str(self.folder / "student")

    def words(self) -> list[list[str]]:
        return [[step, str(self.folder), *map(str, options)] for step, *options in self.commands]

    @property
    def record(self) -> Path:
        """The file that keeps what it measured."""
        return MEASURED / f"{self.name}.json"

    @property
    def measures(self) -> bool:
        """Whether it trains a student and evaluates it."""
        return {"distil", "evaluate"} <= {step for step, *_ in self.commands}

    def text(self) -> str:
        """The commands as somebody would type them."""
        name = "knowledge-transfer" if "-m" in self.program else f"python {shorten(*self.program)}"
        return "\n".join(f"{name} {shlex.join(map(shorten, words))}" for words in self.words())


def carry_out(runs: list[Run], at_once: int | None = None) -> dict[str, str]:
    """Carry out all runs, those that others need first; what was done before is not done again.

    Args:
        at_once: runs at the same time, each with one thread; None: as many as there are cores.

    Returns:
        name of a run -> why it failed, or was not begun since one that it needs failed.
    """
    waiting, failed, done = {run.name: run for run in runs}, {}, set()
    missing = {name for run in runs for name in run.after} - waiting.keys()
    if missing:
        raise ValueError(f"runs that others need are not among those to carry out: {', '.join(sorted(missing))}")
    at_once = at_once or os.cpu_count() or 1
    with ThreadPoolExecutor(at_once) as threads:
        working = {}
        while waiting or working:
            for name, run in list(waiting.items()):
                broken = [other for other in run.after if other in failed]
                if broken:
                    failed[name] = f"{broken[0]} failed"
                    del waiting[name]
                elif done.issuperset(run.after) and len(working) < at_once:
                    working[threads.submit(_carry_out, waiting.pop(name), at_once)] = name
            finished, _ = wait(working, return_when=FIRST_COMPLETED)
            for future in finished:
                name, reason = working.pop(future), future.result()
                done.add(name)
                if reason:
                    failed[name] = reason
                print(f"{name}: {reason or 'done'}; {len(waiting) + len(working)} of {len(runs)} to go", flush=True)
    return failed


def to_do(runs: list[Run]) -> list[Run]:
    """Those among runs that measure what is not kept yet, and those that these need."""
    named = {run.name: run for run in runs}
    needed = [run for run in runs if run.measures and not measured(run)]
    for run in needed:  # it grows meanwhile
        needed += [named[name] for name in run.after if named[name] not in needed]
    return [run for run in runs if run in needed]


def not_measured(runs: list[Run]) -> dict[str, str]:
    """Name of a run that is still to be carried out -> in words."""
    return {run.name: "not yet" for run in to_do(runs) if run.measures}


def keep(run: Run) -> None:
    """Write the record of a run that is finished."""
    names = ("evaluation", "training", "begun", "carried_out")
    evaluation, training, begun, took = (read_json(run.folder / f"{name}.json") for name in names)
    record = {
        "commands": run.text().splitlines(), **begun, "seconds": round(_seconds(took, training["duration_s"])),
        "epoch": training["epoch"], "epochs": training["history"][-1]["epoch"],
        "methods": {name: facts.get("sha256") for name, facts in evaluation["methods"].items()},
    }  # fmt: skip
    cases = ",\n".join(json.dumps([_short(row[column]) for column in COLUMNS]) for row in evaluation["cases"])
    run.record.parent.mkdir(parents=True, exist_ok=True)
    text = f'{json.dumps(record, indent=1)[:-2]},\n "cases": [\n{cases}\n]}}\n'
    run.record.write_text(text, encoding="utf-8")


def _short(value):
    return round(value, 6) if isinstance(value, float) else value


def measured(run: Run) -> dict | None:
    """The record of a run, with a row for each method, case and structure; None: not measured by these commands."""
    if not run.record.is_file():
        return None
    record = json.loads(run.record.read_text(encoding="utf-8"))
    if record["commands"] != run.text().splitlines():
        return None
    return {**record, "cases": [dict(zip(COLUMNS, row, strict=True)) for row in record["cases"]]}


def _code() -> str:
    """The commit of what is run; with a + where files were changed since."""
    asked = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def _carry_out(run: Run, at_once: int) -> str:
    """Why it failed; empty where it did not."""
    record = run.folder / "carried_out.json"
    known = read_json(record) if record.is_file() else {}
    begun = {"code": _code(), "machine": machine(), "date": str(date.today())}
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", **({"OMP_NUM_THREADS": "1"} if at_once > 1 else {})}
    for words in run.words():
        command = shlex.join(words)
        if command in known:
            continue
        began = time.monotonic()
        ended = subprocess.run(
            [sys.executable, *run.program, *words], cwd=ROOT, env=environment, capture_output=True,
            text=True, encoding="utf-8", check=False,
        )  # fmt: skip
        if ended.returncode:
            return f"{command}: {_reason(ended)}"
        known[command] = round(time.monotonic() - began, 1)
        if not (run.folder / "begun.json").is_file():
            write_json(run.folder / "begun.json", begun)
        write_json(record, known)
    if run.measures:
        keep(run)
    return ""


def _reason(ended: subprocess.CompletedProcess) -> str:
    """The error that a step told as an event, or the last that it wrote before it fell."""
    events = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    told = [event["text"] for event in events if event["event"] == "error"] or ended.stderr.strip().splitlines()
    return told[-1] if told else f"exit status {ended.returncode}"


def _seconds(took: dict[str, float], training_s: float) -> float:
    """What a run's commands took; its training as a whole, where only the part since it went on was timed."""
    timed = sum(seconds for command, seconds in took.items() if command.startswith("distil"))
    return sum(took.values()) - timed + max(timed, training_s)


def shorten(word: str) -> str:
    places = {f"{DATA}/": "../shared/data/", f"{RUNS}/": "real_runs/", f"{ROOT}/": ""}
    for place, name in places.items():
        word = word.replace(place, name)
    return word
