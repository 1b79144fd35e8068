"""Part cohorts: parts of a data set's split `teacher` as cohorts of their own, written beside the runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from KnowledgeTransferLib.learning.volume import read_annotation, read_image, write_annotation
from KnowledgeTransferLib.records.cohort import read_cohort, write_names
from KnowledgeTransferLib.records.labels import Labels


def only(cohort: Path, name: str, folder: Path) -> Path:
    """The cases of split `teacher` with the expert annotation of one structure, as a cohort of its own."""
    whole = read_cohort(cohort, "teacher")
    kept = Labels(tuple(s for s in whole.labels.structures if s.name == name))
    rows = ["id,image,label,group"]
    for case in whole.cases:
        file, image = folder / "labels" / f"{case.id}.nii.gz", read_image(case.images)
        expert = read_annotation(case.label, whole.labels, image)
        write_annotation(file, np.where(np.isin(expert, kept.values), expert, 0), image.affine, kept)
        rows.append(f"{case.id},{case.images[0]},{file},{case.group}")
    write_names(folder, kept)
    (folder / "cohort.csv").write_text("\n".join(rows), encoding="utf-8")
    return folder / "cohort.csv"


def sites(cohort: Path, number: int, folder: Path) -> list[Path]:
    """The cases of split `teacher` as cohorts of their own, every so many patients one's."""
    whole = read_cohort(cohort, "teacher")
    patients = sorted({case.group for case in whole.cases})
    found = []
    for site in range(number):
        own = set(patients[site::number])
        file = folder / f"{cohort.name} site {site + 1}" / "cohort.csv"
        rows = [f"{case.id},{case.images[0]},{case.label},{case.group}" for case in whole.cases if case.group in own]
        write_names(file.parent, whole.labels)
        file.write_text("\n".join(["id,image,label,group", *rows]), encoding="utf-8")
        found.append(file)
    return found
