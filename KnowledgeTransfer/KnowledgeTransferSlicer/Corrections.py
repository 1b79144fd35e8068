"""Corrections: a run's cases loaded for review, and what a person corrected kept in the run as a training reads it."""

import shutil
from datetime import datetime
from pathlib import Path

import numpy as np
import slicer
from slicer.i18n import tr as _

from KnowledgeTransferLib.records import cohort, reviews
from KnowledgeTransferLib.records.labels import Labels
from KnowledgeTransferLib.records.run_directory import read_json
from KnowledgeTransferLib.records.structure_names import plain_name

from . import Edits, SceneIO
from .SceneRuns import PSEUDO, REVIEWED, link, placeInRun

EARLIER = "earlier"  # folder beside the corrections; keeps those that were replaced or discarded


def load(run, case):
    """Load a case's scan and annotation; returns the two nodes."""
    state = next(state for state in reviews.case_states(run) if state.id == case)
    if state.annotation is None:
        raise ValueError(_("{case}: has no annotation yet").format(case=case))
    image = state.images[0]
    # Slicer would take numbered files beside a slice for one stack.
    volume = slicer.util.loadVolume(str(_fileOf(image)), {"singleFile": not image.is_dir()})
    volume.SetName(slicer.mrmlScene.GenerateUniqueName(case))
    volume.SetAttribute(REVIEWED, volume.GetID())
    segmentation = SceneIO.loadSegmentation(state.annotation, volume, f"{volume.GetName()} {PSEUDO}")
    link(segmentation, run, case, SceneIO.placeOf(volume))
    return volume, segmentation


def save(run, case, segmentation, volume):
    """Write a correction, which then counts; returns a sentence on segments that overlap, empty where none do."""
    target = run.corrected_annotation(case)
    temporary = target.with_name(f".partial-{target.name}")
    known = Labels.from_json(read_json(run.annotations)["structures"]).names

    def fit(flat):
        _refuseUnknown(flat, known, segmentation.GetName())
        _layAsInFile(flat, volume, placeInRun(segmentation))

    try:
        hint = SceneIO.exportSegmentation(segmentation, volume, temporary, fit)
        if target.is_file():
            _keepAside(target)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    if not hint:  # else what the file does not hold is in the scene alone
        Edits.setAsInFile(segmentation)
    if reviews.read_reviews(run).get(case) == "rejected":
        reviews.write_review(run, case, None)
    return hint


def discard(run, case):
    """Let the pseudo-annotation count again; returns the file that keeps the correction."""
    corrected = run.corrected_annotation(case)
    kept = _keepAside(corrected)
    corrected.unlink()
    return kept


def _refuseUnknown(flat, known, name):
    """A training refuses segments that the teachers do not name; here they can still be renamed."""
    plain = {plain_name(structure) for structure in known}
    unknown = [segment for segment in SceneIO.segmentNames(flat) if plain_name(segment) not in plain]
    if unknown:
        text = _(
            "{name}: this run does not know {unknown}, so that no student could learn it; its structures are {known}. "
            "Rename or remove what is unknown and save again"
        )
        raise ValueError(text.format(name=name, unknown=", ".join(unknown), known=", ".join(known)))


def _layAsInFile(flat, volume, place):
    """Undo for the file how `volume` was moved, by a transform for one, since it was loaded: its scan was not."""
    if place is None:  # of a scene that an earlier version saved
        return
    then, size = place
    if tuple(size) != volume.GetImageData().GetDimensions():
        text = _("{name}: has other voxels than the scan of this run; remove it and press Load for review again")
        raise ValueError(text.format(name=volume.GetName()))
    own = SceneIO.ownMatrix(volume)
    flat.SetAndObserveTransformNodeID(None)
    if not np.allclose(then, own, atol=1e-6):
        flat.ApplyTransformMatrix(slicer.util.vtkMatrixFromArray(then @ np.linalg.inv(own)))


def _keepAside(correction):
    """Copy a correction to where the library does not read it; a person can copy it back."""
    kept = correction.parent / EARLIER / f"{datetime.now():%Y-%m-%d %H.%M.%S.%f}" / correction.name
    kept.parent.mkdir(parents=True)
    return Path(shutil.copy2(correction, kept))


def _fileOf(image):
    """A file that Slicer can load: of a DICOM series the first one stands for all."""
    if not image.is_dir():
        return image
    first = next((file for file in sorted(image.iterdir()) if cohort.is_dicom(file)), None)
    if first is None:
        raise ValueError(_("{path}: holds no DICOM image").format(path=image))
    return first
