"""Memory: what annotate and segment hold does not grow with the number of cases."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from KnowledgeTransferLib.learning.volume import write_image

REPOSITORY = Path(__file__).parents[2]
SHAPE = (96, 96, 64)
VOLUME_MIB = np.prod(SHAPE) * 4 / 2**20  # 2.25; with class probabilities five times that more
FEW, MANY = 3, 30
PEAK_OF_A_COMMAND = """
import re, sys
from pathlib import Path
from KnowledgeTransferLib.__main__ import main
status = main(sys.argv[1:])
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]
sys.stderr.write(f"status {status} peak {peak}")
"""  # not ru_maxrss: Linux lets a child begin with that of its parent


@pytest.fixture(scope="session")
def cohorts(tmp_path_factory) -> dict[int, Path]:
    """Tables that name one and the same large scan a few and many times."""
    folder = tmp_path_factory.mktemp("many scans")
    array = np.random.default_rng(0).normal(0, 300, SHAPE).astype(np.float32)
    array[20:60, 20:60, 10:40] += 500
    write_image(folder / "scan.mha", array, np.diag([3.0, 3.0, 3.0, 1.0]))
    tables = {}
    for count in (FEW, MANY):
        tables[count] = folder / f"{count}.csv"
        rows = "".join(f"case_{number},scan.mha\n" for number in range(count))
        tables[count].write_text("id,image\n" + rows, encoding="utf-8")
    return tables


def peak_mib(*arguments) -> float:
    done = subprocess.run(
        [sys.executable, "-c", PEAK_OF_A_COMMAND, *map(str, arguments)],
        cwd=REPOSITORY, capture_output=True, encoding="utf-8", check=True, timeout=300,
    )  # fmt: skip
    _, status, _, peak = done.stderr.rsplit(maxsplit=3)
    assert status == "0", done.stdout
    return int(peak) / 1024


def assert_it_does_not_grow(few: float, many: float) -> None:
    held = (MANY - FEW) * VOLUME_MIB  # if only the images were kept
    assert many - few < 0.5 * held, f"{few:.0f} MiB with {FEW} cases, {many:.0f} MiB with {MANY}"
    assert many < 1.1 * few, f"{few:.0f} MiB with {FEW} cases, {many:.0f} MiB with {MANY}"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_annotate_needs_no_more_memory_for_more_cases(cohorts, a_teacher, tmp_path):
    few, many = (
        peak_mib("annotate", tmp_path / str(n), "--cohort", cohorts[n], "--teacher", a_teacher) for n in (FEW, MANY)
    )
    assert len(list((tmp_path / str(MANY) / "probabilities").iterdir())) == MANY
    assert_it_does_not_grow(few, many)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_segment_needs_no_more_memory_for_more_cases(cohorts, a_teacher, tmp_path):
    few, many = (peak_mib("segment", a_teacher, cohorts[n], tmp_path / str(n)) for n in (FEW, MANY))
    assert len(list((tmp_path / str(MANY)).glob("*.mha"))) == MANY
    assert_it_does_not_grow(few, many)
