"""Picture: the README's picture, from what `make demo` left in a folder.

python Testing/Benchmarks/picture.py demo_run Resources/Screenshots/demo.png
"""

from __future__ import annotations

import base64
import io
import sys
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread

from KnowledgeTransferLib.learning.report import overlay
from KnowledgeTransferLib.learning.volume import read_annotation, read_image
from KnowledgeTransferLib.records.cohort import Cohort, read_cohort
from KnowledgeTransferLib.records.run_directory import RunDirectory, read_json


def main(demo: Path, target: Path) -> None:
    run = RunDirectory(demo / "run")
    cohort = read_cohort(demo / "site_B", "test")
    case_id = median_case(read_json(run.evaluation))
    target.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure(run, cohort, case_id)).print_png(str(target))


def median_case(evaluation: dict) -> str:
    """The case in the middle of the student's mean Dice, so that the picture shows no chosen success."""
    scores: dict[str, list[float]] = {}
    for row in evaluation["cases"]:
        if row["method"] == "student" and row["dice"] is not None:
            scores.setdefault(row["case"], []).append(row["dice"])
    ranked = sorted(scores, key=lambda case: sum(scores[case]) / len(scores[case]))
    return ranked[len(ranked) // 2]


def figure(run: RunDirectory, cohort: Cohort, case_id: str) -> Figure:
    case = next(case for case in cohort.cases if case.id == case_id)
    image = read_image(case.images, case.id)
    expert = read_annotation(case.label, cohort.labels, image)
    drawing = Figure(figsize=(9, 4.4), dpi=110)
    for number, name in enumerate(("teacher", "student")):
        said = read_annotation(run.predictions / name / f"{case_id}.seg.nrrd", cohort.labels, image)
        axes = drawing.add_subplot(1, 2, number + 1, xticks=[], yticks=[], frameon=False)
        axes.imshow(picture(overlay(image, expert, said, cohort.labels)))
        axes.set_title(f"{name} (dashed) and expert (solid)", fontsize=11)
    names = [axes.plot([], [], color=[c / 255 for c in s.color], label=s.name)[0] for s in cohort.labels.structures]
    drawing.legend(handles=names, loc="lower center", ncols=len(names), frameon=False, fontsize=10)
    drawing.subplots_adjust(0.01, 0.08, 0.99, 0.93, 0.03)
    return drawing


def picture(address: str):
    return imread(io.BytesIO(base64.b64decode(address.partition(",")[2])), format="png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
