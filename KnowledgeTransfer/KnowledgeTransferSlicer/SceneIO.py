"""SceneIO: MRML nodes to files and back, with geometry, names, colours and terminology."""

import contextlib
import re
from pathlib import Path

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _

UNCERTAINTY_COLORS = "vtkMRMLColorTableNodeFileHotToColdRainbow.txt"
UNCERTAINTY = "KnowledgeTransfer.UncertaintyOf"  # attribute of a volume node
OVERLAY = 0.5  # opacity of an uncertainty map
UNCERTAINTY_FROM = 0.1  # what is surer than this is not shown


class VolumeError(ValueError):
    """A volume that cannot be given to the library; the message says why and what to do."""


def checkVolume(volume):
    """Whether the library can work on a node of the scene.

    Raises:
        VolumeError: no image, several components, or a transform that bends or shears it.
    """
    if volume is None:
        raise VolumeError(_("No volume is chosen; load a scan and choose it"))
    name = volume.GetName()
    if not volume.IsA("vtkMRMLScalarVolumeNode") or volume.IsA("vtkMRMLLabelMapVolumeNode"):
        text = _("{name}: is a {kind}; a scalar volume is needed")
        raise VolumeError(text.format(name=name, kind=volume.GetNodeTagName()))
    image = volume.GetImageData()
    if image is None or image.GetNumberOfPoints() == 0:
        raise VolumeError(_("{name}: holds no image; load it again or choose another volume").format(name=name))
    if image.GetNumberOfScalarComponents() != 1:
        text = _(
            "{name}: is a vector volume of {number} components; convert it to a scalar volume first (module Vector To "
            "Scalar Volume)"
        )
        raise VolumeError(text.format(name=name, number=image.GetNumberOfScalarComponents()))
    transform = volume.GetParentTransformNode()
    if transform is not None and not transform.IsTransformToWorldLinear():
        text = _("{name}: lies under the non-linear transform {transform}; harden it (module Transforms) first")
        raise VolumeError(text.format(name=name, transform=transform.GetName()))
    axes = worldMatrix(volume)[:3, :3]
    axes = axes / np.linalg.norm(axes, axis=0)
    if not np.allclose(axes.T @ axes, np.eye(3), atol=1e-3):
        text = _("{name}: its transform shears it; harden the transform and resample the volume first")
        raise VolumeError(text.format(name=name))


def hintOf(volume):
    """A sentence that the user should read before `volume` is used; empty where there is none."""
    sequences = getattr(slicer.modules, "sequences", None)
    browser = sequences.logic().GetFirstBrowserNodeForProxyNode(volume) if sequences and sequences.logic() else None
    if browser is None:
        return ""
    return _("{name} is a sequence; the frame that is shown now is taken").format(name=volume.GetName())


def ownMatrix(volume):
    """Voxel to RAS, (4, 4), without the parent transform."""
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


def worldMatrix(volume):
    """Voxel to RAS in the world, (4, 4), with the parent transform."""
    toWorld = vtk.vtkMatrix4x4()
    if volume.GetParentTransformNode() is not None:
        volume.GetParentTransformNode().GetMatrixTransformToWorld(toWorld)
    return slicer.util.arrayFromVTKMatrix(toWorld) @ ownMatrix(volume)


def fileName(text):
    """A text without what file systems refuse in a name; may be empty."""
    return re.sub(r'[/\\:*?"<>|\x00-\x1f]', "_", text).strip(" .")


def caseIds(volumes):
    """A file name for each volume: its node's name without what file systems refuse, and no two alike.

    Nor one that the library reads otherwise: scan_0000 and scan_0001 are channels of one case, scan.seg is no image.
    """
    ids, taken = [], set()
    for volume in volumes:
        name = re.sub(r"_(?=\d{4}$)|\.(?=seg$)", " ", fileName(volume.GetName()), flags=re.IGNORECASE)
        plain = name.strip() or "scan"
        name, number = plain, 1
        while name.casefold() in taken:
            number += 1
            name = f"{plain} {number}"
        taken.add(name.casefold())
        ids.append(name)
    return ids


def exportVolume(volume, path):
    """Write a volume where it lies in the world (its parent transform applied).

    Raises:
        VolumeError: it cannot be used, or Slicer could not write the file.
    """
    checkVolume(volume)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    # Uncompressed: the file is read once, on this machine.
    if not slicer.util.exportNode(volume, str(path), {"useCompression": 0}, world=True):
        text = _("{name}: Slicer could not write {path}; is the disk full or read-only?")
        raise VolumeError(text.format(name=volume.GetName(), path=path))


def exportSegmentation(segmentation, volume, path, fit=lambda flat: None):
    """Write a segmentation as .seg.nrrd on the voxels of `volume`; where segments overlap the later one wins.

    `fit` may look at what is about to be written, a node of segments that do not overlap, and change it.

    Returns:
        a sentence on segments that overlap; empty where none do.

    Raises:
        VolumeError: there is no segment, or Slicer could not write the file.
    """
    source = segmentation.GetSegmentation()
    if source.GetNumberOfSegments() == 0:
        raise VolumeError(_("{name}: holds no segments").format(name=segmentation.GetName()))
    with (
        _temporary("vtkMRMLLabelMapVolumeNode", volume) as labelmap,
        _temporary("vtkMRMLSegmentationNode", volume) as flat,
    ):
        ids = [source.GetNthSegmentID(number) for number in range(source.GetNumberOfSegments())]
        _exportSegments(segmentation, ids, labelmap, volume)
        flat.SetReferenceImageGeometryParameterFromVolumeNode(volume)
        _importLabelmap(labelmap, flat, source, volume)
        fit(flat)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        if not slicer.util.exportNode(flat, str(path), {}, world=True):
            text = _("{name}: Slicer could not write {path}")
            raise VolumeError(text.format(name=segmentation.GetName(), path=path))
        return _overlap(segmentation, labelmap, volume)


@contextlib.contextmanager
def _temporary(className, volume):
    """A node beside `volume`. At the end it leaves the scene with all that Slicer made meanwhile: colours, displays."""
    scene = slicer.mrmlScene
    before = {node.GetID() for node in slicer.util.getNodesByClass("vtkMRMLNode")}
    node = scene.AddNewNodeByClass(className)
    node.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
    try:
        yield node
    finally:
        scene.RemoveNode(node)
        for made in slicer.util.getNodesByClass("vtkMRMLNode"):
            if made.GetID() not in before and made.IsA("vtkMRMLDisplayNode") | made.IsA("vtkMRMLColorTableNode"):
                scene.RemoveNode(made)


def _exportSegments(segmentation, ids, labelmap, volume):
    """Draw segments into a label map with the voxels of `volume`: the nth of `ids` has the value n + 1."""
    array = vtk.vtkStringArray()
    for segmentId in ids:
        array.InsertNextValue(segmentId)
    extent = slicer.vtkSegmentation.EXTENT_REFERENCE_GEOMETRY
    logic = slicer.modules.segmentations.logic()
    if not logic.ExportSegmentsToLabelmapNode(segmentation, array, labelmap, volume, extent):
        text = _("{name}: Slicer could not bring it to the voxels of {volume}")
        raise VolumeError(text.format(name=segmentation.GetName(), volume=volume.GetName()))


def _importLabelmap(labelmap, flat, source, volume):
    """Make segments of a label map whose value n is the nth segment of `source`, with its name, colour and tags."""
    array = slicer.util.arrayFromVolume(labelmap)
    values = [int(value) for value in np.unique(array) if value]
    slicer.modules.segmentations.logic().ImportLabelmapToSegmentationNode(labelmap, flat)
    if not values:  # everything was erased: one segment of no voxel keeps the geometry in the file
        values = [1]
        empty = flat.GetSegmentation().AddEmptySegment()
        slicer.util.updateSegmentBinaryLabelmapFromArray(np.zeros(array.shape, np.uint8), flat, empty, volume)
    for number, value in enumerate(values):
        made, original = flat.GetSegmentation().GetNthSegment(number), source.GetNthSegment(value - 1)
        made.SetName(original.GetName())
        made.SetColor(original.GetColor())
        tag = vtk.reference("")
        if original.GetTag("TerminologyEntry", tag):
            made.SetTag("TerminologyEntry", str(tag))


def _overlap(segmentation, labelmap, volume):
    """Which segments lost voxels to a later one in `labelmap`, as a sentence; only layers can overlap."""
    source = segmentation.GetSegmentation()
    if source.GetNumberOfLayers() < 2:
        return ""
    flat, hidden = slicer.util.arrayFromVolume(labelmap), []
    with _temporary("vtkMRMLLabelMapVolumeNode", volume) as alone:
        for number in range(source.GetNumberOfSegments()):
            _exportSegments(segmentation, [source.GetNthSegmentID(number)], alone, volume)
            if ((slicer.util.arrayFromVolume(alone) > 0) & (flat != number + 1)).any():
                hidden.append(source.GetNthSegment(number).GetName())
    if not hidden:
        return ""
    text = _("{name}: segments overlap; {hidden} count only where no later segment lies")
    return text.format(name=segmentation.GetName(), hidden=", ".join(hidden))


def loadSegmentation(path, volume, name, exportedAt=None):
    """Load a .seg.nrrd that was made of `volume` as it lies in the world: a new node with the volume's geometry,
    transform and place in the subject hierarchy.

    `exportedAt` is the volume's place (`placeOf`) when it was written; it may have been moved meanwhile.
    """
    node = slicer.util.loadSegmentation(str(path))
    _forgetFile(node)
    node.SetName(slicer.mrmlScene.GenerateUniqueName(name))
    _putBesides(node, volume, exportedAt)
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    node.CreateDefaultDisplayNodes()
    return node


def loadUncertainty(path, volume, name, exportedAt=None):
    """Load an uncertainty map as a colour overlay of `volume`, in the views that show it; `exportedAt` as above."""
    node = slicer.util.loadVolume(str(path), {"show": False, "singleFile": True})
    _forgetFile(node)
    node.SetName(slicer.mrmlScene.GenerateUniqueName(name))
    _putBesides(node, volume, exportedAt)
    node.SetAttribute(UNCERTAINTY, volume.GetID())
    display = node.GetDisplayNode()
    if slicer.mrmlScene.GetNodeByID(UNCERTAINTY_COLORS):
        display.SetAndObserveColorNodeID(UNCERTAINTY_COLORS)
    display.AutoWindowLevelOff()
    display.SetWindowLevelMinMax(0, 1)
    display.AutoThresholdOff()
    display.SetThreshold(UNCERTAINTY_FROM, 1)
    display.ApplyThresholdOn()
    for view in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):  # others show what the user works on
        if view.GetBackgroundVolumeID() == volume.GetID():
            view.SetForegroundVolumeID(node.GetID())
            view.SetForegroundOpacity(OVERLAY)
    return node


def uncertaintyOf(volume):
    """The newest uncertainty map of a volume, or None."""
    nodes = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
    own = [node for node in nodes if node.GetAttribute(UNCERTAINTY) == volume.GetID()]
    return own[-1] if own else None


def _forgetFile(node):
    """Saving the scene writes the node where the scene lies, not back to a file of the run or of a temporary folder."""
    storage = node.GetStorageNode()
    if storage is not None:
        slicer.mrmlScene.RemoveNode(storage)
    node.StorableModified()


def isUncertainty(node):
    return node.GetAttribute(UNCERTAINTY) is not None


def placeOf(volume):
    """Where a volume lies in the world, and how many voxels it has."""
    return worldMatrix(volume), volume.GetImageData().GetDimensions()


def _putBesides(node, volume, exportedAt):
    """Give a node that lies in the world the parent transform and the subject-hierarchy place of `volume`."""
    if exportedAt is not None:
        _follow(node, volume, exportedAt)
    transform = volume.GetParentTransformNode()
    if transform is not None:
        fromWorld = vtk.vtkMatrix4x4()
        transform.GetMatrixTransformFromWorld(fromWorld)
        node.ApplyTransformMatrix(fromWorld)
        node.SetAndObserveTransformNodeID(transform.GetID())
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    own, others = hierarchy.GetItemByDataNode(node), hierarchy.GetItemByDataNode(volume)
    if own and others:
        hierarchy.SetItemParent(own, hierarchy.GetItemParent(others))


def _follow(node, volume, exportedAt):
    """Move a node as its volume was moved since it was written; where that was cropped meanwhile, the node stays."""
    (then, size), (now, sizeNow) = exportedAt, placeOf(volume)
    moved = now @ np.linalg.inv(then)
    if size == sizeNow and not np.allclose(moved, np.eye(4), atol=1e-6):
        matrix = vtk.vtkMatrix4x4()
        matrix.DeepCopy(moved.ravel().tolist())
        node.ApplyTransformMatrix(matrix)


def isInScene(node):
    """Whether a node that was remembered is still there; ids are given anew in the next scene, so they do not tell."""
    return node is not None and bool(slicer.mrmlScene.IsNodePresent(node))


def removeNode(node):
    """Take a node out of the scene, with what Slicer made for it: displays and the record of its file."""
    own = [node.GetNthDisplayNode(number) for number in range(node.GetNumberOfDisplayNodes())]
    for part in [node, *own, node.GetStorageNode()]:
        if part is not None:
            slicer.mrmlScene.RemoveNode(part)


def segmentNames(segmentation):
    source = segmentation.GetSegmentation()
    return [source.GetNthSegment(n).GetName() for n in range(source.GetNumberOfSegments())]


def referenceVolume(segmentation):
    """The volume that a segmentation was made of, or None."""
    return segmentation.GetNodeReference(slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole())
