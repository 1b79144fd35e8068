"""Several processes: torchrun starts them, they train one student together and leave one good bundle."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from KnowledgeTransferLib.learning.student import load_student
from KnowledgeTransferLib.records.bundle import WEIGHTS, sha256
from KnowledgeTransferLib.records.run_directory import RunDirectory, read_json

REPOSITORY = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.skipif(sys.platform == "win32", reason="process groups of POSIX"),
]
LATE = """
import os, sys, time
import torch
import KnowledgeTransferLib.steps.distil as distil
from KnowledgeTransferLib.__main__ import main
usual = distil.train
def late(*arguments):
    time.sleep(float(os.environ["RANK"]))  # the second process comes late, and sees what the first has written
    usual(*arguments)
    if "LOSSES_TO" in os.environ:
        torch.save(arguments[0].loss.state_dict(), f"{os.environ['LOSSES_TO']}/{os.environ['RANK']}.pt")
distil.train = late
sys.exit(main())
"""
LINE = ["--batch-size", "1", "--device", "cpu", "--spacing-mm", "18", "18", "22"]


@pytest.fixture
def run(an_annotated_run) -> RunDirectory:
    return RunDirectory(an_annotated_run)


@pytest.fixture
def torchrun(tmp_path):
    """Starts a command line of the library in two processes, of which the second is late."""
    started = []
    (tmp_path / "late.py").write_text(LATE, encoding="utf-8")

    def start(*arguments, **environment: str) -> subprocess.Popen:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
        process = subprocess.Popen(
            [*launcher, str(tmp_path / "late.py"), *map(str, arguments)], cwd=REPOSITORY, encoding="utf-8",
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), **environment},
            start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        process.stdout.close()
        process.stderr.close()


def test_two_processes_train_one_student_and_go_on_after_a_stop(run, torchrun, tmp_path):
    whole = RunDirectory(shutil.copytree(run.path, tmp_path / "whole"))
    process = torchrun("distil", whole.path, "--epochs", "6", *LINE)
    out, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    events = [json.loads(line) for line in out.splitlines()]
    assert [e["processes"] for e in events if e["event"] == "start"] == [2]  # one of them speaks
    assert [e["event"] for e in events].count("done") == 1
    assert [row["iteration"] for row in read_json(whole.training)["history"]] == [2, 4, 6, 8, 10, 12]  # 3 cases by two
    assert load_student(whole.student).design.name == "tiny"
    assert not whole.prepared.exists() and not whole.checkpoint.exists()

    process = torchrun("distil", run.path, "--epochs", "6", *LINE)
    for line in process.stdout:
        if json.loads(line)["event"] == "metrics":
            run.cancel.touch()
            break
    _, errors = process.communicate(timeout=180)
    assert process.returncode != 0 and run.checkpoint.is_file(), errors
    process = torchrun("distil", run.path, "--epochs", "6", *LINE)
    assert process.wait(timeout=180) == 0
    assert sha256(run.student / WEIGHTS) == sha256(whole.student / WEIGHTS)


def test_two_processes_keep_to_a_time_budget(run, torchrun):
    process = torchrun("distil", run.path, "--minutes", "0.05", *LINE)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    assert len(read_json(run.training)["history"]) >= 1


def test_heads_and_memory_banks_are_the_same_in_both_processes(run, torchrun, tmp_path):
    """Were they not, a training that goes on from the first one's checkpoint would end in other weights."""
    line = ["--epochs", "3", *LINE[2:4], "--batch-size", "2", "--student", "s1"]
    for name in ("contrastive", "structure-contrastive", "reconstruction"):
        line += ["--loss", name]
    process = torchrun("distil", run.path, *line, LOSSES_TO=str(tmp_path))
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert len(one) > 10 and one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(name.endswith("bank0") and tensor.any() for name, tensor in one.items())
