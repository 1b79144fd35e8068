"""No step opens a network connection: in a process where sockets are forbidden, every step does its work."""

import json
import os
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from KnowledgeTransferLib.__main__ import STEPS
from KnowledgeTransferLib.learning.backends import BACKENDS, is_there
from KnowledgeTransferLib.learning.exporters import EXPORTERS

REPOSITORY = Path(__file__).parents[2]
FORBIDDEN = """
import os, socket, sys

def refuse(*arguments, **options):
    with open(os.environ["KT_SOCKETS"], "a") as file:
        file.write(f"{arguments}\\n")
    raise OSError("sockets are forbidden here")

def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        refuse(event, arguments)

sys.addaudithook(watch)
socket.getaddrinfo = socket.create_connection = refuse
"""
COMMANDS = """
import json, sys
from KnowledgeTransferLib.__main__ import main
from KnowledgeTransferLib.steps import demo

demo.CASES, demo.TEACHER_EPOCHS, demo.STUDENT_EPOCHS = {"A": 4, "B": 4}, 1, 1
for line in json.loads(sys.argv[1]):
    if status := main(line):
        sys.exit(f"{line[0]} ended with {status}")
"""


@pytest.fixture
def forbidden(tmp_path) -> dict[str, str]:
    """An environment in which every Python process, children too, may open no socket and writes down who tried."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(FORBIDDEN, encoding="utf-8")  # Python runs it at its start
    path = os.pathsep.join([str(tmp_path / "site"), str(REPOSITORY)])
    return {**os.environ, "PYTHONPATH": path, "KT_SOCKETS": str(tmp_path / "sockets")}


def assert_nobody_tried(forbidden: dict[str, str]) -> None:
    tried = Path(forbidden["KT_SOCKETS"])
    assert not tried.exists(), tried.read_text(encoding="utf-8")


def python(forbidden: dict[str, str], *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments], cwd=REPOSITORY, env=forbidden, capture_output=True, encoding="utf-8", check=False
    )


def offline(forbidden: dict[str, str], *lines: list) -> set[str]:
    """Carry out command lines in one process where sockets are forbidden; returns the steps."""
    texts = [[str(part) for part in line] for line in lines]
    done = python(forbidden, "-c", COMMANDS, json.dumps(texts))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert_nobody_tried(forbidden)
    return {line[0] for line in texts}


def test_the_watch_notices_a_connection_of_a_child_too(forbidden):
    connects = "import socket; socket.socket().connect(('127.0.0.1', 9))"
    starts = f"import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', {connects!r}]).returncode)"
    for script in (connects, starts):
        assert python(forbidden, "-c", script).returncode
        with pytest.raises(AssertionError, match=r"socket.connect"):
            assert_nobody_tried(forbidden)
        Path(forbidden["KT_SOCKETS"]).unlink()


@pytest.mark.slow
def test_no_step_opens_a_connection(forbidden, a_phantom_cohort, tmp_path):
    run, scan = tmp_path / "demo" / "run", a_phantom_cohort / "images" / "A_001.nii.gz"
    short = ("--epochs", 1, "--spacing-mm", 10, 10, 10, "--batch-size", 2)
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"cells": {"baseline": {}, "slow": {"learning_rate": 1e-5}}}), encoding="utf-8")
    splits = ("--cohort", a_phantom_cohort, "--split", "teacher", "--test-split", "test")
    kinds = [name for name, exporter in EXPORTERS.items() if all(map(find_spec, exporter.needs))]
    segmented = [
        ["segment", run, scan, tmp_path / f"{backend}.nii.gz", "--backend", backend]
        for backend in filter(is_there, BACKENDS)
    ]  # fmt: skip
    done = offline(
        forbidden,
        ["demo", tmp_path / "demo"],
        ["export", run, "--to", *(kind for kind in kinds if EXPORTERS[kind].exact)],
        ["describe", run],
        ["phantom", tmp_path / "phantom", "--cases", 1],
        *segmented,
        ["compare", tmp_path / "torch.nii.gz", tmp_path / "torch.nii.gz"],
        ["study", tmp_path / "study", "--plan", plan, "--annotations", "expert", "--seeds", 1, *splits, *short],
    )
    done |= served_offline(forbidden, tmp_path / "warm", ["segment", run, scan, tmp_path / "served.nii.gz"])
    assert done | {"annotate", "distil", "evaluate"} == set(STEPS)  # which are the commands of the demo


@pytest.mark.slow
def test_int8_opens_no_connection(forbidden, a_teacher, a_foreign_cohort, tmp_path):
    pytest.importorskip("openvino")
    scan, folder = sorted((a_foreign_cohort / "images").iterdir())[0], shutil.copytree(a_teacher, tmp_path / "student")
    offline(
        forbidden,
        ["export", folder, "--to", "openvino-int8", "--check", a_foreign_cohort],
        ["segment", folder, scan, tmp_path / "a.nii.gz", "--precision", "int8"],
    )


def served_offline(forbidden: dict[str, str], folder: Path, request: list) -> set[str]:
    """Let `serve` carry out one request; its stream is closed when that is done."""
    process = subprocess.Popen(
        [sys.executable, "-m", "KnowledgeTransferLib", "serve", str(folder)], cwd=REPOSITORY, env=forbidden,
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8",
    )  # fmt: skip
    try:
        process.stdin.write(json.dumps({"id": 1, "arguments": [str(part) for part in request]}) + "\n")
        process.stdin.flush()
        while process.poll() is None and '"event": "served"' not in _text(folder / "served.jsonl"):
            time.sleep(0.1)
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0 and Path(request[-1]).is_file(), told[-2000:] + _text(folder / "served.jsonl")
    assert_nobody_tried(forbidden)
    return {"serve"}


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.is_file() else ""


@pytest.mark.slow
def test_openvinos_converter_opens_no_connection(forbidden):
    """It takes the designs whose layers we do not know one by one."""
    pytest.importorskip("openvino")
    script = (
        "import sys; sys.path.insert(0, 'Testing/Library')\n"
        "from test_backends import a_student\n"
        "from KnowledgeTransferLib.learning.backends import open_backend\n"
        "assert open_backend(a_student('attention-unet', 2), 'openvino').about.startswith('OpenVINO')"
    )
    done = python(forbidden, "-c", script)
    assert done.returncode == 0, done.stderr[-2000:]
    assert_nobody_tried(forbidden)


def test_openvino_does_not_find_its_telemetry():
    pytest.importorskip("openvino")
    script = (
        "from KnowledgeTransferLib.learning.openvino_graph import import_openvino; import sys; import_openvino();"
        "sys.exit(bool(sys.modules.get('openvino_telemetry')))"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, check=False).returncode == 0
