"""Fixtures that the library's tests share."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def a_picture_cohort(tmp_path_factory) -> Path:
    """Six grey pictures (.png) of a bright disc with expert annotations; do not change it."""
    import numpy as np

    from KnowledgeTransferLib.learning.volume import write_annotation, write_image
    from KnowledgeTransferLib.records.cohort import write_names
    from KnowledgeTransferLib.records.labels import Labels

    folder, labels = tmp_path_factory.mktemp("cohort") / "pictures", Labels.from_names({7: "lesion"})
    i, j = np.mgrid[:40, :36]
    for number in range(6):
        disc = ((i - 15 - number) ** 2 + (j - 18) ** 2 < 64)[..., None].astype(np.uint8)
        noise = np.random.default_rng(number).integers(0, 60, disc.shape)
        write_image(folder / "images" / f"p{number}.png", (disc * 150 + noise).astype(np.uint8), np.eye(4))
        write_annotation(folder / "labels" / f"p{number}.png", disc * 7, np.eye(4), labels)
    write_names(folder, labels)
    return folder


@pytest.fixture(scope="session")
def a_picture_student(tmp_path_factory, a_picture_cohort) -> Path:
    """A 2-D bundle that learnt to find the discs; do not change it."""
    from KnowledgeTransferLib.steps.distil import distil

    run = tmp_path_factory.mktemp("picture teacher")
    return Path(distil(run, a_picture_cohort, annotations="expert", epochs=20)["student"])


@pytest.fixture(params=[1, 2], ids=["one core", "two cores"])
def cores(request, monkeypatch) -> int:
    """As on a machine with so many cores, though tests share them: with two, small cases are looked at side by side."""
    monkeypatch.setattr("torch.get_num_threads", lambda: request.param)
    return request.param


@dataclass(frozen=True)
class Outcome:
    """What a command line did: its exit status, its events and all that it wrote."""

    status: int
    events: list[dict]
    text: str

    @property
    def messages(self) -> str:
        """What it said of errors and bad cases."""
        told = [e for e in self.events if e["event"] in ("error", "problem")]
        return "\n".join(f"{e.get('case', '')}: {e['text']}" for e in told)


@pytest.fixture
def command(capsys):
    """Runs a command line of the library in this process: `command("segment", bundle, image, output)`."""
    from KnowledgeTransferLib.__main__ import main
    from KnowledgeTransferLib.records.progress import stop_signal

    names = [name for name in ("SIGINT", "SIGTERM") if hasattr(signal, name)]
    handlers = {name: signal.getsignal(getattr(signal, name)) for name in names}

    def run(*arguments) -> Outcome:
        capsys.readouterr()
        try:
            status = main([str(a) for a in arguments])
        except SystemExit as stop:  # argparse
            status = stop.code
        stop_signal().clear()
        out, err = capsys.readouterr()
        lines = out.splitlines() if status in (0, 1, 2, 130) and out.startswith("{") else []
        return Outcome(status, [json.loads(line) for line in lines], out + err)

    yield run
    for name, handler in handlers.items():
        signal.signal(getattr(signal, name), handler)


@pytest.fixture
def start_process(tmp_path):
    """Starts a command line of the library in a process of its own, killed at the end of the test at the latest."""
    processes = []

    def start(*arguments, stdin=None, **environment: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-m", "KnowledgeTransferLib", *map(str, arguments)],
            cwd=REPOSITORY, env={**os.environ, **environment}, text=True, encoding="utf-8",
            stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The public data sets; tests that use it carry the marker `realdata`."""
    folder = Path(os.environ.get("KT_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no public data in {folder}; name their folder in KT_DATA")
    return folder
