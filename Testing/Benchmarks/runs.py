"""Runs: ordinary runs by the command line, several at a time, each carried out once, as the results on real data need."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from KnowledgeTransferLib.records.run_directory import read_json, write_json

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("KT_DATA", ROOT.parent / "shared" / "data")).resolve()
RUNS = Path(os.environ.get("KT_RUNS", ROOT / "real_runs")).resolve()


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


def _carry_out(run: Run, at_once: int) -> str:
    """Why it failed; empty where it did not."""
    record = run.folder / "carried_out.json"
    known = read_json(record) if record.is_file() else {}
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
        write_json(record, known)
    return ""


def _reason(ended: subprocess.CompletedProcess) -> str:
    """The error that a step told as an event, or the last that it wrote before it fell."""
    events = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    told = [event["text"] for event in events if event["event"] == "error"] or ended.stderr.strip().splitlines()
    return told[-1] if told else f"exit status {ended.returncode}"


def seconds_of(run: Run) -> float:
    """What all commands of a run took together."""
    return sum(read_json(run.folder / "carried_out.json").values())


def shorten(word: str) -> str:
    places = {f"{DATA}/": "../shared/data/", f"{RUNS}/": "real_runs/", f"{ROOT}/": ""}
    for place, name in places.items():
        word = word.replace(place, name)
    return word
