"""No step opens a network connection: in a process where sockets are forbidden, every step does its work."""

import json
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
import socket, sys

def refuse(*arguments, **options):
    sys.stderr.write(f"a socket was asked for: {arguments}\\n")
    raise OSError("sockets are forbidden here")

def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        refuse(event, arguments)

sys.addaudithook(watch)
socket.getaddrinfo = socket.create_connection = refuse
import json
from KnowledgeTransferLib.__main__ import main
from KnowledgeTransferLib.steps import demo

demo.CASES, demo.TEACHER_EPOCHS, demo.STUDENT_EPOCHS = {"A": 4, "B": 4}, 1, 1
for line in json.loads(sys.argv[1]):
    if status := main(line):
        sys.exit(f"{line[0]} ended with {status}")
"""


def offline(*lines: list) -> set[str]:
    """Carry out command lines in one process where sockets are forbidden; returns the steps."""
    texts = [[str(part) for part in line] for line in lines]
    done = subprocess.run(
        [sys.executable, "-c", FORBIDDEN, json.dumps(texts)],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "a socket was asked for" not in done.stderr
    return {line[0] for line in texts}


def test_the_watch_notices_a_connection():
    script = FORBIDDEN.split("import json", maxsplit=1)[0] + "socket.socket().connect(('127.0.0.1', 9))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode and "a socket was asked for" in done.stderr


@pytest.mark.slow
def test_no_step_opens_a_connection(a_teacher, a_foreign_cohort, a_phantom_cohort, tmp_path):
    run, scan = tmp_path / "run", sorted((a_foreign_cohort / "images").iterdir())[0]
    kinds = [name for name, exporter in EXPORTERS.items() if all(map(find_spec, exporter.needs))]
    segmented = [
        ["segment", a_teacher, scan, tmp_path / f"{backend}.nii.gz", "--backend", backend]
        for backend in filter(is_there, BACKENDS) if backend != "torchscript"
    ]  # fmt: skip
    done = offline(
        ["annotate", run, "--cohort", a_foreign_cohort, "--teacher", a_teacher],
        ["distil", run, "--epochs", 1, "--spacing-mm", 10, 10, 10, "--batch-size", 2],
        ["evaluate", run, "--cohort", a_phantom_cohort, "--method", f"student={run}"],
        ["export", run, "--to", *(kind for kind in kinds if EXPORTERS[kind].exact)],
        ["segment", run, scan, tmp_path / "torchscript.nii.gz", "--backend", "torchscript"],
        ["describe", a_teacher],
        ["phantom", tmp_path / "phantom", "--cases", 1],
        *segmented,
        ["compare", tmp_path / "torch.nii.gz", tmp_path / "torch.nii.gz"],
        ["demo", tmp_path / "demo"],
    )
    done |= served_offline(tmp_path / "warm", ["segment", run, scan, tmp_path / "served.nii.gz"])
    assert done == set(STEPS)


@pytest.mark.slow
def test_int8_opens_no_connection(a_teacher, a_foreign_cohort, tmp_path):
    pytest.importorskip("openvino")
    scan, folder = sorted((a_foreign_cohort / "images").iterdir())[0], shutil.copytree(a_teacher, tmp_path / "student")
    offline(
        ["export", folder, "--to", "openvino-int8", "--check", a_foreign_cohort],
        ["segment", folder, scan, tmp_path / "a.nii.gz", "--precision", "int8"],
    )


def served_offline(folder: Path, request: list) -> set[str]:
    """Let `serve` carry out one request; its stream is closed when that is done."""
    process = subprocess.Popen(
        [sys.executable, "-c", FORBIDDEN, json.dumps([["serve", str(folder)]])],
        cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        process.stdin.write(json.dumps({"id": 1, "arguments": [str(part) for part in request]}) + "\n")
        process.stdin.flush()
        while process.poll() is None and '"status": 0' not in _text(folder / "served.jsonl"):
            time.sleep(0.1)
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0 and "a socket was asked for" not in told, told[-2000:]
    assert Path(request[-1]).is_file()
    return {"serve"}


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.is_file() else ""


@pytest.mark.slow
def test_openvinos_converter_opens_no_connection():
    """It takes the designs whose layers we do not know one by one."""
    pytest.importorskip("openvino")
    script = (
        FORBIDDEN.split("import json", maxsplit=1)[0] + "sys.path.insert(0, 'Testing/Library')\n"
        "from test_backends import a_student\n"
        "from KnowledgeTransferLib.learning.backends import open_backend\n"
        "assert open_backend(a_student('attention-unet', 2), 'openvino').about.startswith('OpenVINO')"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "a socket was asked for" not in done.stderr, done.stderr[-2000:]


def test_openvino_does_not_find_its_telemetry():
    pytest.importorskip("openvino")
    script = (
        "from KnowledgeTransferLib.learning.openvino_graph import import_openvino; import sys; import_openvino();"
        "sys.exit(bool(sys.modules.get('openvino_telemetry')))"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, check=False).returncode == 0
