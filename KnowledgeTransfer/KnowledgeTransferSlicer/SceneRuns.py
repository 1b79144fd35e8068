"""SceneRuns: volumes and segmentations of the scene into a run directory, and a run's results back into the scene."""

import contextlib
import filecmp
import itertools
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import slicer
from slicer.i18n import tr as _

from . import Edits, SceneIO
from .Exporting import silently

SCENE = "scene:"  # in place of a teacher's path: the segmentation nodes of the scene
PSEUDO = "pseudo-annotation"
SCANS = "scans"  # folder in a run that keeps loaded volumes
DRAWN = "segmentations_of_the_scene"  # folder in a run that keeps what was drawn on them
RUN = "KnowledgeTransfer.Run"  # attributes of a segmentation node: which case of which run it annotates
CASE = "KnowledgeTransfer.Case"
PLACE = "KnowledgeTransfer.Place"  # where the scan of that case lies in its file
REVIEWED = "KnowledgeTransfer.LoadedForReview"  # attribute of a volume node: its id, which a clone does not have


@contextlib.contextmanager
def exported(volumes, run, exporting=silently):
    """Write the volumes into the run; gives case id -> volume. When the job then cannot start, they are removed."""
    cases, made, folder = {}, [], run.path / SCANS
    new = folder / ".partial-scan.nrrd"
    try:
        with exporting(len(volumes)) as tell:
            for name, volume in zip(SceneIO.caseIds(volumes), volumes, strict=True):
                tell(volume.GetName())
                SceneIO.exportVolume(volume, new)
                case = _caseFor(new, name, folder)
                scan = folder / f"{case}.nrrd"
                made += [] if scan.exists() else [scan]
                os.replace(new, scan)
                cases[case] = volume
        yield cases
    except BaseException:
        for scan in made:
            scan.unlink(missing_ok=True)
        raise
    finally:
        new.unlink(missing_ok=True)


def namesOf(cases, run):
    """File that `exported` wrote -> name of its volume."""
    return {str(run.path / SCANS / f"{case}.nrrd"): volume.GetName() for case, volume in cases.items()}


def _caseFor(new, name, folder):
    """The id under which the same scan is there already, else one that no other scan has."""
    for number in itertools.count(1):
        case = name if number == 1 else f"{name} {number}"
        there = folder / f"{case}.nrrd"
        if not there.exists() or filecmp.cmp(new, there, shallow=False):
            return case


def withScene(weights, run, cases, exporting=silently):
    """Teachers with paths, and hints: the segmentations of the scene are written to a folder first."""
    if SCENE not in weights:
        return weights, []
    folder, hints = run.path / DRAWN, []
    drawn = {case: node for case, volume in cases.items() if (node := segmentationOf(volume)) is not None}
    if not drawn:
        raise ValueError(_("No segmentation in the scene belongs to the chosen volumes; remove it from the teachers"))
    with exporting(len(drawn)) as tell:
        for case, segmentation in drawn.items():
            tell(segmentation.GetName())
            hints.append(SceneIO.exportSegmentation(segmentation, cases[case], folder / f"{case}.seg.nrrd"))
            hints.append(_hintOfSeveral(cases[case]))
    weights = {str(folder) if path == SCENE else path: weight for path, weight in weights.items()}
    return weights, [*filter(None, hints)]


def segmentationOf(volume):
    """The segmentation node that was drawn on a volume, the newest one; None where there is none."""
    own = _drawnOn(volume)
    return own[-1] if own else None


def _drawnOn(volume):
    nodes = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    role = slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole()
    return [n for n in nodes if n.GetNodeReferenceID(role) == volume.GetID() and PSEUDO not in n.GetName()]


def _hintOfSeveral(volume):
    own = _drawnOn(volume)
    if len(own) < 2:
        return ""
    text = _("{number} segmentations lie on {volume}; only {name} is used")
    return text.format(number=len(own), volume=volume.GetName(), name=own[-1].GetName())


def _noteUnknown(job, cases, event):
    """A result under a name that no scan of the run has would be lost in silence."""
    case = event.get("case")
    if event["event"] == "case" and case not in cases and not (job.run.path / SCANS / f"{case}.nrrd").is_file():
        text = _("is the name of no scan that was given; its result is not shown")
        job.problems.append({"case": case, "message": text})


def showSegmentation(job, cases, event):
    _noteUnknown(job, cases, event)
    volume = cases.get(event.get("case"))
    if event["event"] == "case" and volume is not None:
        node = _show(job, volume, event["file"], "segmentation", SceneIO.loadSegmentation)
        if node is not None:
            Edits.setVolumesMl(node, event.get("volumes_ml", {}))


def showAnnotation(job, cases, shown, event, uncertainty):
    """Load what was made; `shown` holds the cases whose results were, which may be without a node by now."""
    _noteUnknown(job, cases, event)
    volume = cases.get(event.get("case"))  # the run may hold scans of an earlier start, too
    if event["event"] == "case" and volume is not None:
        shown.add(event["case"])
        _showCase(job, event["case"], volume, event.get("volumes_ml", {}), uncertainty)
    elif event["event"] == "done":
        for case, volume in cases.items():  # those that an earlier start has annotated
            if case not in shown and openedOf(job.run, case) is None and job.run.pseudo_annotation(case).is_file():
                _showCase(job, case, volume, {}, uncertainty)


def _showCase(job, case, volume, volumesMl, uncertainty):
    opened = openedOf(job.run, case)
    if opened is None or Edits.isAsInFile(opened[1]):  # else what a person edited stays the case's annotation
        _showSegmentation(job, case, volume, volumesMl)
    if uncertainty:
        _show(job, volume, job.run.uncertainty_map(case), "uncertainty", SceneIO.loadUncertainty)


def _showSegmentation(job, case, volume, volumesMl):
    """The pseudo-annotation; where a person corrected it, the correction."""
    corrected = job.run.corrected_annotation(case)
    file = corrected if corrected.is_file() else job.run.pseudo_annotation(case)
    node = _show(job, volume, file, PSEUDO, SceneIO.loadSegmentation)
    if node is not None:
        if volumesMl and file != corrected:
            Edits.setVolumesMl(node, volumesMl)
        link(node, job.run, case, job.places.get(volume.GetID()))


def link(segmentation, run, case, place):
    """Remember in the scene, and so with it when it is saved, which case a node annotates that was just loaded."""
    unlink(run, case)  # one alone is saved as the case's correction
    segmentation.SetAttribute(RUN, str(run.path))
    segmentation.SetAttribute(CASE, case)
    if place is not None:
        matrix, size = place
        segmentation.SetAttribute(PLACE, json.dumps([matrix.tolist(), size]))
    Edits.setAsInFile(segmentation)


def placeInRun(segmentation):
    """`SceneIO.placeOf` the scan that a linked node annotates, as the run has it; None where nobody noted it."""
    place = json.loads(segmentation.GetAttribute(PLACE) or "null")
    return (np.array(place[0]), tuple(place[1])) if place else None


def unlink(run, case=None):
    """The nodes of a case, or of all cases of the run, stay in the scene as the user's own."""
    for node in _linked(run, case):
        node.RemoveAttribute(RUN)
        node.RemoveAttribute(CASE)


def _linked(run, case):
    nodes = [n for n in slicer.util.getNodesByClass("vtkMRMLSegmentationNode") if n.GetAttribute(RUN) is not None]
    return [n for n in nodes if Path(n.GetAttribute(RUN)) == run.path and case in (None, n.GetAttribute(CASE))]


def openedOf(run, case):
    """The scan and the annotation of a case that are in the scene, or None."""
    pairs = [(SceneIO.referenceVolume(node), node) for node in _linked(run, case)]
    return next((pair for pair in pairs if pair[0] is not None), None)


def _show(job, volume, file, name, load):
    """Bring a result into the scene; when its volume is gone, keep the file where the user finds it (None)."""
    if SceneIO.isInScene(volume):
        job.nodes.append(load(file, volume, f"{volume.GetName()} {name}", job.places.get(volume.GetID())))
        return job.nodes[-1]
    kept = Path(file)
    if job.temporary:
        kept = Path.home() / "KnowledgeTransfer" / "results" / f"{time.strftime('%Y-%m-%d %H.%M.%S')} {kept.name}"
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, kept)
    text = _("The scan of {name} is no longer in the scene; its result is {file}")
    job.lost.append(text.format(name=Path(file).name, file=kept))
    return None


def closeReviewed(used=()):
    """Take out of the scene what was loaded for review; not what was edited since it was loaded or saved, nor scans
    that something else was drawn on or that are `used`."""
    nodes = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    pairs = [(SceneIO.referenceVolume(node), node) for node in nodes]
    for volume, segmentation in pairs:
        drawnOn = [pair for pair in pairs if pair[0] is volume]
        if volume is not None and volume not in used and len(drawnOn) == 1 and _isAsLoaded(volume, segmentation):
            SceneIO.removeNode(segmentation)
            SceneIO.removeNode(volume)


def _isAsLoaded(volume, segmentation):
    ours = volume.GetAttribute(REVIEWED) == volume.GetID() and segmentation.GetAttribute(CASE) is not None
    moved = volume.GetParentTransformNode() or segmentation.GetParentTransformNode()
    return ours and not moved and not volume.GetModifiedSinceRead() and Edits.isAsInFile(segmentation)
