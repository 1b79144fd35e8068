"""Benchmarks: speed and memory beside what a user would otherwise run; one process per side, ratios in the tables.

make bench                      all parts, into docs/benchmarks.md; about 12 minutes on 2 CPU cores
make bench PARTS="ct growth"    these parts alone; the other sections stay as they are
KT_DATA=/my/data make bench
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import tables
from document import Document, origin, parts_asked
from side import DATA, ROOT

PARTS = {  # part of the document -> what measures it and writes it as Markdown
    "training": tables.training,
    "networks": tables.networks,
    "ct": tables.whole_ct,
    "region": tables.region_first,
    "growth": tables.growth,
    "folder": tables.folder,
    "student": tables.student_and_teacher,
    "annotation": tables.annotation,
    "distillation": tables.distillation,
    "cases": tables.cases,
    "gpu": tables.gpu,
}
HEADING = (
    "# Benchmarks\n\nWritten by `make bench` (Testing/Benchmarks/run.py); do not edit by hand. Every side runs in a "
    "process of its own, one after the other. Figures hold for the machine; the ratios are what to look at. Data: "
    "hippocampus_mri (T1 MRI, scans of about 35 x 51 x 35 voxels), where nothing else is said its 60 scans of split "
    "`transferal`; seed 0."
)
DOCUMENT = Document(ROOT / "docs" / "benchmarks.md", HEADING, list(PARTS))


def main(wanted: list[str]) -> None:
    if not (DATA / "hippocampus_mri").is_dir():
        sys.exit(f"{DATA}: the public data sets are not there; set KT_DATA to the folder that holds them")
    with tempfile.TemporaryDirectory() as work:
        for part in wanted:
            text = PARTS[part](Path(work))
            DOCUMENT.write(part, f"{text}\n\n{origin(f'make bench PARTS={part}')}\n")
            print(text, flush=True)


if __name__ == "__main__":
    main(parts_asked(__doc__, list(PARTS)))
