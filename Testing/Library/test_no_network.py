"""No step opens a network connection: in a process where sockets are forbidden, every step does its work."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

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
from KnowledgeTransferLib.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def offline(*arguments) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORBIDDEN, *map(str, arguments)],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "a socket was asked for" not in done.stderr


def test_the_watch_notices_a_connection():
    script = FORBIDDEN.split("from KnowledgeTransferLib", maxsplit=1)[0] + "socket.socket().connect(('127.0.0.1', 9))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode and "a socket was asked for" in done.stderr


@pytest.mark.slow
def test_no_step_opens_a_connection(a_teacher, a_foreign_cohort, a_phantom_cohort, tmp_path):
    scan = sorted((a_foreign_cohort / "images").iterdir())[0]
    short = ("--epochs", 1, "--spacing-mm", 10, 10, 10, "--batch-size", 2)
    offline("annotate", tmp_path / "run", "--cohort", a_foreign_cohort, "--teacher", a_teacher)
    offline("distil", tmp_path / "run", *short)
    offline("evaluate", tmp_path / "run", "--cohort", a_phantom_cohort, "--method", f"student={tmp_path / 'run'}")
    there = [name for name, exporter in EXPORTERS.items() if all(map(find_spec, exporter.needs))]
    offline("export", tmp_path / "run", "--to", *there)
    offline("describe", a_teacher)
    offline("phantom", tmp_path / "phantom", "--cases", 1)
    for backend in filter(is_there, BACKENDS):
        offline("segment", tmp_path / "run", scan, tmp_path / f"{backend}.nii.gz", "--backend", backend)
    offline("segment", tmp_path / "run", scan, tmp_path / "a.seg.nrrd")
    offline("compare", tmp_path / "a.seg.nrrd", tmp_path / "a.seg.nrrd")


def test_openvino_does_not_find_its_telemetry():
    pytest.importorskip("openvino")
    script = (
        "from KnowledgeTransferLib.learning.openvino_graph import import_openvino; import sys; import_openvino();"
        "sys.exit(bool(sys.modules.get('openvino_telemetry')))"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, check=False).returncode == 0
