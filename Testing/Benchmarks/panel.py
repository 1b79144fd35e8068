"""Benchmark of the Slicer module: from `Segment` pressed to the node in the scene, and how long the event loop stands.

.venv/bin/python Testing/Benchmarks/panel.py    writes docs/benchmarks_slicer.md; about 2 minutes on 2 CPU cores
"""

from __future__ import annotations

import csv
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("KT_DATA", ROOT.parent / "shared" / "data")).resolve() / "hippocampus_mri"
sys.path[:0] = [str(ROOT / "Testing" / "Slicer" / "standin"), str(ROOT / "KnowledgeTransfer")]
PRESSES = 15
TICK_MS = 2


class Ticks:
    """A timer that notes how long the event loop stood still, and how much of that Slicer read or wrote nodes."""

    def __init__(self):
        import qt
        import slicer

        self.gaps = []
        self.own = []  # the same without the time in Slicer's readers and writers
        self._io_s = 0.0
        for name in ("exportNode", "loadSegmentation", "loadVolume"):
            setattr(slicer.util, name, self._timed(getattr(slicer.util, name)))
        self._last = time.perf_counter()
        self._timer = qt.QTimer()
        self._timer.connect("timeout()", self._tick)
        self._timer.start(TICK_MS)

    def begin(self):
        self.gaps, self.own, self._io_s, self._last = [], [], 0.0, time.perf_counter()

    def longest_ms(self) -> tuple[float, float]:
        return max(self.gaps) * 1000, max(self.own) * 1000

    def _tick(self):
        now = time.perf_counter()
        self.gaps.append(now - self._last)
        self.own.append(now - self._last - self._io_s)
        self._last, self._io_s = now, 0.0

    def _timed(self, function):
        def call(*arguments, **keywords):
            began = time.perf_counter()
            try:
                return function(*arguments, **keywords)
            finally:
                self._io_s += time.perf_counter() - began

        return call


def main() -> None:
    if not DATA.is_dir():
        sys.exit(f"{DATA}: the public data sets are not there; set KT_DATA to the folder that holds them")
    import slicer_standin

    app = slicer_standin.boot()
    slicer_standin.load_module(ROOT / "KnowledgeTransfer" / "KnowledgeTransfer.py")
    with tempfile.TemporaryDirectory() as folder:
        panel = slicer_standin.open_panel("KnowledgeTransfer")
        panel.ui.workingFolderPath.currentPath = folder
        panel.parameters.device = "cpu"
        text = report(panel, app, Path(folder))
        slicer_standin.close_panel("KnowledgeTransfer")
    if slicer_standin.errors:
        sys.exit(f"errors in slots: {slicer_standin.errors}")
    (ROOT / "docs" / "benchmarks_slicer.md").write_text(text, encoding="utf-8")
    print(text)


def report(panel, app, work: Path) -> str:
    student = make_student(work)
    with open(DATA / "cohort.csv", newline="", encoding="utf-8") as table:
        row = next(row for row in csv.DictReader(table) if row["split"] == "transferal")
    scan = DATA / row["image"]
    ticks = Ticks()
    cold_s, warm, segmenting = measure_segment(panel, app, ticks, student, scan)
    library = measure_library(student, scan, work)
    standing = {"segment": segmenting, **measure_standing(panel, app, ticks, student)}
    warm_s, library_s = statistics.median(warm), statistics.median(library)
    rows = "\n".join(f"| {name} | {whole:.0f} | {own:.0f} |" for name, (whole, own) in standing.items())
    return f"""# Benchmarks of the Slicer module

Written by `make bench` (Testing/Benchmarks/panel.py); do not edit by hand. Measured on slicer-core with stand-in
widgets, not in the Slicer application; {os.cpu_count()} CPU cores ({platform.machine()}), no GPU, `tiny` student, seed 0,
a scan of hippocampus_mri ({row["id"]}).

## From `Segment` pressed to the segmentation node in the scene

| | seconds |
|---|---|
| the same work inside one warm Python process (read, segment, write; median of {PRESSES}) | {library_s:.3f} |
| `Segment` pressed, warm process there (median of {PRESSES}) | {warm_s:.3f} |
| `Segment` pressed the first time: the process starts and imports torch | {cold_s:.2f} |

Warm, Slicer adds **{warm_s - library_s:.3f} s** (aim: at most 1 s); cold, {cold_s - library_s:.2f} s.

## Longest time that the event loop stood still

| while | longest gap (ms) | without the time in Slicer's own readers and writers (ms) |
|---|---|---|
{rows}

A timer of {TICK_MS} ms ticks meanwhile; the aim is at most 100 ms that are not Slicer reading or writing a node.
"""


def make_student(work: Path) -> Path:
    """A student of two epochs: its speed is that of a good one."""
    from KnowledgeTransferLib.steps.distil import distil

    return Path(distil(work / "student run", DATA, annotations="expert", epochs=2, device="cpu")["student"])


def measure_segment(panel, app, ticks, student: Path, scan: Path):
    import slicer

    volume = slicer.util.loadVolume(str(scan))
    panel.parameters.segmentVolumes = [volume]
    panel.segmentTab.choose(str(student))
    ticks.begin()
    cold_s = press(panel, app, panel.ui.segmentButton)
    warm = [press(panel, app, panel.ui.segmentButton) for _ in range(PRESSES)]
    return cold_s, warm, ticks.longest_ms()


def press(panel, app, button) -> float:
    """Press a button and wait for its job; returns the seconds until the result is there."""
    began = time.perf_counter()
    button.click()
    job = panel.status.job
    while job.running:
        app.processEvents()
        time.sleep(0.0005)
    if job.status != 0:
        sys.exit(f"{job.step}: {job.error}")
    return time.perf_counter() - began


def measure_library(student: Path, scan: Path, work: Path) -> list[float]:
    """Read, segment, write: what the child process does for one scan, here in this process."""
    from KnowledgeTransferLib.learning.student import load_student
    from KnowledgeTransferLib.learning.volume import read_image, write_annotation

    model, times = load_student(student), []
    for _ in range(PRESSES + 3):
        began = time.perf_counter()
        image = read_image(scan)
        write_annotation(work / "warm.seg.nrrd", model.segment(image), image.affine, model.labels)
        times.append(time.perf_counter() - began)
    return times[3:]


def measure_standing(panel, app, ticks, student: Path) -> dict:
    """The longest gaps while volumes are annotated and a student learns."""
    parameters = panel.parameters
    parameters.annotateVolumes = list(parameters.segmentVolumes) * 1
    parameters.annotateRunName = "loaded volume"
    panel.annotateTab.addTeacher(str(student))
    ticks.begin()
    press(panel, app, panel.ui.annotateButton)
    found = {"annotate (a loaded volume)": ticks.longest_ms()}
    parameters.annotateFrom, parameters.annotateCohort = "disk", str(DATA)
    parameters.annotateRunName = "cohort on disk"
    ticks.begin()
    press(panel, app, panel.ui.annotateButton)
    found["annotate (the whole cohort on disk)"] = ticks.longest_ms()
    parameters.lengthBy, parameters.epochs = "epochs", 6
    ticks.begin()
    press(panel, app, panel.ui.distilButton)
    found["distil (6 epochs, curves drawn live)"] = ticks.longest_ms()
    return found


if __name__ == "__main__":
    main()
