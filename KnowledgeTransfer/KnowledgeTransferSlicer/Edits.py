"""Edits: what is known of a segmentation until somebody edits it: its volumes, and that a run holds the same."""

import json

import numpy as np
import slicer
from vtk.util import numpy_support

VOLUMES = "KnowledgeTransfer.VolumesMl"  # attribute of a segmentation node
AS_IN_FILE = "KnowledgeTransfer.AsInFile"  # of one that nobody edited since it was read from a run or saved there
LOOKED = "KnowledgeTransfer.Looked"  # how it looked when that was noted
MOST_VOXELS_COUNTED = 20_000_000
BINARY = "Binary labelmap"


def setVolumesMl(segmentation, volumesMl):
    """Keep the volume of each structure with the node, so that it is saved with the scene."""
    segmentation.SetAttribute(VOLUMES, json.dumps(volumesMl))
    _watchEdits(segmentation)


def setAsInFile(segmentation):
    """Remember, until the next edit, that a file of a run holds the same; a clone has another id and does not count."""
    segmentation.SetAttribute(AS_IN_FILE, segmentation.GetID())
    _watchEdits(segmentation)


def isAsInFile(segmentation):
    return segmentation.GetAttribute(AS_IN_FILE) == segmentation.GetID()


def _watchEdits(segmentation):
    """An observer that held the node would keep it in memory when the scene is closed: it knows the id alone."""
    nodeId = segmentation.GetID()
    segmentation.SetAttribute(LOOKED, _lookOf(segmentation))

    def forget(caller, event):
        node = slicer.mrmlScene.GetNodeByID(nodeId)
        if node is not None and node.GetSegmentation() is caller and node.GetAttribute(LOOKED) != _lookOf(node):
            _forgetOnEdit(node)

    kinds = slicer.vtkSegmentation
    for event in (kinds.SourceRepresentationModified, kinds.SegmentModified, kinds.SegmentAdded, kinds.SegmentRemoved):
        segmentation.GetSegmentation().AddObserver(event, forget)


def _lookOf(segmentation):
    """What an edit changes; to show a segmentation in 3D tells the same events, and is no edit."""
    source = segmentation.GetSegmentation()
    segments = [source.GetNthSegment(number) for number in range(source.GetNumberOfSegments())]
    return repr((drawnAt(segmentation), [(segment.GetName(), segment.GetColor()) for segment in segments]))


def _forgetOnEdit(node):
    node.RemoveAttribute(VOLUMES)
    node.RemoveAttribute(AS_IN_FILE)


def watchImported(trusted):
    """Watch the segmentations that came with a scene; where edits may have gone unseen, they count as edited."""
    for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"):
        if node.GetAttribute(VOLUMES) is not None or node.GetAttribute(AS_IN_FILE) is not None:
            _watchEdits(node) if trusted else _forgetOnEdit(node)


def volumesMl(segmentation):
    """Structure name -> ml: as the library measured it, or counted anew after an edit and for other segmentations."""
    try:
        values = json.loads(segmentation.GetAttribute(VOLUMES) or "null")
    except ValueError:  # a scene that somebody else wrote
        values = None
    return values if isinstance(values, dict) else _countedMl(segmentation)


def drawnAt(segmentation):
    """When its voxels were changed last, by VTK's clock."""
    source = segmentation.GetSegmentation()
    drawn = [source.GetNthSegment(number).GetRepresentation(BINARY) for number in range(source.GetNumberOfSegments())]
    return max((layer.GetMTime() for layer in drawn if layer is not None), default=0)


def _countedMl(segmentation):
    """Structure name -> ml, from the voxels; None instead of ml where there are too many to count in a blink."""
    source = segmentation.GetSegmentation()
    segments = [source.GetNthSegment(number) for number in range(source.GetNumberOfSegments())]
    drawn = [segment.GetRepresentation(BINARY) for segment in segments]
    layers = {layer.GetAddressAsString(""): layer for layer in drawn if layer is not None}  # segments share them
    few = sum(layer.GetNumberOfPoints() for layer in layers.values()) <= MOST_VOXELS_COUNTED
    counts = {address: _counted(layer) for address, layer in layers.items()} if few else {}
    found = {}
    for segment, layer in zip(segments, drawn, strict=True):
        counted = counts.get(layer.GetAddressAsString("")) if layer is not None else None
        found[segment.GetName()] = None if counted is None else counted.get(segment.GetLabelValue(), 0.0)
    return found


def _counted(layer):
    """Value -> ml in a label map of whole numbers."""
    scalars = layer.GetPointData().GetScalars()
    voxelMl = float(np.prod(layer.GetSpacing())) / 1000
    voxels = np.zeros(0, np.uint8) if scalars is None else numpy_support.vtk_to_numpy(scalars)
    counts = np.bincount(voxels) if voxels.dtype.kind == "u" else np.bincount(voxels.astype(np.int64).clip(0))
    return {value: count * voxelMl for value, count in enumerate(counts.tolist())}
