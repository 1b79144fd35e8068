"""SceneIO: nodes to files and back; the geometry is compared in RAS, where people and Slicer mean the same."""

import numpy as np
import pytest

ROTATION = np.linalg.qr(np.array([[0.9, -0.3, 0.2], [0.3, 0.95, -0.1], [-0.15, 0.2, 0.97]]))[0]
ROTATION = ROTATION * np.sign(np.diag(ROTATION))  # near to the identity


def affine(rotation=None, spacing=(0.8, 1.1, 2.5), origin=(-20.0, 31.0, 7.0)) -> np.ndarray:
    result = np.eye(4)
    result[:3, :3] = (np.eye(3) if rotation is None else rotation) * np.asarray(spacing)
    result[:3, 3] = origin
    return result


GEOMETRIES = {
    "anisotropic": affine(),
    "oblique": affine(ROTATION),
    "LPS": affine(np.diag([-1.0, -1.0, 1.0])),
    "left-handed": affine(np.diag([-1.0, 1.0, 1.0])),
    "left-handed and oblique": affine(ROTATION @ np.diag([1.0, 1.0, -1.0])),
    "sagittal": affine(np.array([[0.0, 0, 1], [1, 0, 0], [0, -1, 0]])),
}
UNDER = {
    "no transform": None,
    "a rotation": affine(np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]), (1, 1, 1), (5, -9, 3)),
    "a tilt": affine(ROTATION.T, (1, 1, 1), (5, -9, 3)),
}


@pytest.fixture
def a_scan(a_volume):
    """Makes a volume of a bright box off the centre, in a geometry, under a transform."""
    import slicer

    def make(ijk_to_ras, to_world=None, name="CT"):
        array = np.zeros((9, 12, 14), np.int16)  # K, J, I
        array[2:6, 3:9, 1:8] = 100
        array[6, 9, 10] = 50
        volume = a_volume(array, ijk_to_ras, name)
        if to_world is not None:
            transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "alignment")
            transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(to_world))
            volume.SetAndObserveTransformNodeID(transform.GetID())
        return volume

    return make


def points_of(array_kji: np.ndarray, ijk_to_ras: np.ndarray) -> set:
    """The places in RAS (to 0.01 mm) of the voxels that are not 0."""
    k, j, i = np.nonzero(array_kji)
    ras = ijk_to_ras @ np.stack([i, j, k, np.ones_like(i)]).astype(float)
    return {tuple(point) for point in np.round(ras[:3].T, 2) + 0.0}


def near(a: set, b: set) -> bool:
    """Whether two sets of places are the same within 0.03 mm."""
    first, second = np.array(sorted(a)), np.array(sorted(b))
    if first.shape != second.shape:
        return False
    distance = np.abs(first[:, None] - second[None]).max(2)
    return bool((distance.min(1) < 0.03).all() and (distance.min(0) < 0.03).all())


def places_of_segment(segmentation, name) -> set:
    """Where a segment lies in the world, from the node's own binary labelmap and its parent transform."""
    import slicer
    import vtk

    source = segmentation.GetSegmentation()
    labelmap = slicer.vtkOrientedImageData()
    segmentation.GetBinaryLabelmapRepresentation(source.GetSegmentIdBySegmentName(name), labelmap)
    matrix = vtk.vtkMatrix4x4()
    labelmap.GetImageToWorldMatrix(matrix)
    extent = labelmap.GetExtent()
    array = vtk.util.numpy_support.vtk_to_numpy(labelmap.GetPointData().GetScalars())
    array = array.reshape(extent[5] - extent[4] + 1, extent[3] - extent[2] + 1, extent[1] - extent[0] + 1)
    shift = np.eye(4)
    shift[:3, 3] = extent[0], extent[2], extent[4]
    to_world = slicer.util.arrayFromVTKMatrix(matrix) @ shift
    if segmentation.GetParentTransformNode() is not None:
        parent = vtk.vtkMatrix4x4()
        segmentation.GetParentTransformNode().GetMatrixTransformToWorld(parent)
        to_world = slicer.util.arrayFromVTKMatrix(parent) @ to_world
    return points_of(array, to_world)


@pytest.mark.parametrize("under", UNDER)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_segmentation_made_of_the_exported_file_lies_on_the_volume(a_scan, tmp_path, geometry, under):
    from KnowledgeTransferLib.learning.volume import read_image, write_annotation
    from KnowledgeTransferLib.records.labels import Labels
    from KnowledgeTransferSlicer import SceneIO

    volume = a_scan(GEOMETRIES[geometry], UNDER[under])
    SceneIO.exportVolume(volume, tmp_path / "scan.nrrd")
    image = read_image(tmp_path / "scan.nrrd")
    assert image.shape == (14, 12, 9)
    found = (image.array[0] > 75).astype(np.uint8)  # the segmentation that is computed outside
    outside = points_of(found.transpose(2, 1, 0), image.affine)
    write_annotation(tmp_path / "scan.seg.nrrd", found * 3, image.affine, Labels.from_names({3: "box"}))

    node = SceneIO.loadSegmentation(tmp_path / "scan.seg.nrrd", volume, "CT segmentation")
    assert near(places_of_segment(node, "box"), outside)
    import slicer

    drawn = slicer.util.arrayFromVolume(volume) > 75
    assert near(outside, points_of(drawn, SceneIO.worldMatrix(volume)))
    inside = slicer.util.arrayFromSegmentBinaryLabelmap(node, node.GetSegmentation().GetNthSegmentID(0), volume)
    assert (inside.astype(bool) == drawn).all()
    assert node.GetParentTransformNode() is volume.GetParentTransformNode()


@pytest.mark.parametrize("under", UNDER)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_segmentation_drawn_on_a_volume_comes_back_as_it_was(a_scan, tmp_path, geometry, under):
    import slicer

    from KnowledgeTransferLib.learning.segments import labels_of_segmentation
    from KnowledgeTransferLib.learning.volume import read_annotation, read_image
    from KnowledgeTransferSlicer import SceneIO

    volume = a_scan(GEOMETRIES[geometry], UNDER[under])
    drawn = drawn_on(
        volume, {"liver": slicer.util.arrayFromVolume(volume) > 75, "spot": slicer.util.arrayFromVolume(volume) == 50}
    )
    SceneIO.exportVolume(volume, tmp_path / "scan.nrrd")
    SceneIO.exportSegmentation(drawn, volume, tmp_path / "drawn.seg.nrrd")

    labels = labels_of_segmentation(tmp_path / "drawn.seg.nrrd")
    assert labels.names == ("liver", "spot")
    assert labels.structures[0].color == (51, 102, 153)
    image = read_image(tmp_path / "scan.nrrd")
    annotation = read_annotation(tmp_path / "drawn.seg.nrrd", labels, image)
    assert ((annotation == 1) == (image.array[0] == 100)).all()
    assert ((annotation == 2) == (image.array[0] == 50)).all()
    assert slicer.util.getNodesByClass("vtkMRMLLabelMapVolumeNode") == []  # nothing is left in the scene
    assert len(slicer.util.getNodesByClass("vtkMRMLSegmentationNode")) == 1


def drawn_on(volume, masks: dict):
    """A segmentation node with these segments, as the Segment Editor makes it."""
    import slicer

    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "drawn")
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    node.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
    for name, mask in masks.items():
        segment = node.GetSegmentation().AddEmptySegment(name, name, (0.2, 0.4, 0.6))
        slicer.util.updateSegmentBinaryLabelmapFromArray(mask.astype(np.uint8), node, segment, volume)
    return node


def test_where_segments_overlap_the_later_one_is_kept(a_scan, tmp_path):
    from KnowledgeTransferLib.learning.volume import read_annotation
    from KnowledgeTransferSlicer import SceneIO

    volume = a_scan(affine())
    mask = np.zeros((9, 12, 14), bool)
    mask[2:6, 2:8, 2:8] = True
    smaller = np.zeros_like(mask)
    smaller[3:4, 3:5, 3:5] = True
    SceneIO.exportSegmentation(drawn_on(volume, {"organ": mask, "tumour": smaller}), volume, tmp_path / "a.seg.nrrd")
    annotation = read_annotation(tmp_path / "a.seg.nrrd").transpose(2, 1, 0)
    assert ((annotation == 2) == smaller).all() and ((annotation == 1) == (mask & ~smaller)).all()


def test_names_colours_and_terminology_reach_the_scene(a_scan, tmp_path):
    import vtk

    from KnowledgeTransferLib.learning.volume import read_image, write_annotation
    from KnowledgeTransferLib.records.labels import Labels
    from KnowledgeTransferSlicer import SceneIO

    volume = a_scan(affine())
    SceneIO.exportVolume(volume, tmp_path / "scan.nrrd")
    image = read_image(tmp_path / "scan.nrrd")
    labels = Labels.from_names({1: "liver", 5: "Milz größer"})
    array = np.zeros(image.shape, np.uint8)
    array[2:4], array[6:8] = 1, 5
    write_annotation(tmp_path / "scan.seg.nrrd", array, image.affine, labels)
    node = SceneIO.loadSegmentation(tmp_path / "scan.seg.nrrd", volume, "CT segmentation")
    assert node.GetName() == "CT segmentation"
    assert SceneIO.segmentNames(node) == ["liver", "Milz größer"]
    first = node.GetSegmentation().GetNthSegment(0)
    assert np.allclose(np.array(first.GetColor()) * 255, labels.structures[0].color, atol=1)
    tag = vtk.reference("")
    assert first.GetTag("TerminologyEntry", tag) and "10200004" in str(tag)  # SNOMED CT: liver
    assert SceneIO.referenceVolume(node) is volume
    again = SceneIO.loadSegmentation(tmp_path / "scan.seg.nrrd", volume, "CT segmentation")
    assert again.GetName() != node.GetName()  # an earlier result, perhaps edited, stays


def test_a_result_lies_beside_its_volume_in_the_subject_hierarchy(a_scan, tmp_path):
    import slicer

    from KnowledgeTransferLib.learning.volume import write_annotation
    from KnowledgeTransferLib.records.labels import Labels
    from KnowledgeTransferSlicer import SceneIO

    volume = a_scan(affine())
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    study = hierarchy.CreateStudyItem(hierarchy.GetSceneItemID(), "study")
    hierarchy.SetItemParent(hierarchy.GetItemByDataNode(volume), study)
    array = np.ones((14, 12, 9), np.uint8)
    write_annotation(tmp_path / "a.seg.nrrd", array, affine(), Labels.from_names({1: "all"}))
    node = SceneIO.loadSegmentation(tmp_path / "a.seg.nrrd", volume, "result")
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)) == study


def test_an_uncertainty_map_lies_over_its_volume(a_scan, tmp_path):
    import slicer

    from KnowledgeTransferLib.learning.volume import read_image, write_image
    from KnowledgeTransferSlicer import SceneIO

    volume = a_scan(GEOMETRIES["oblique"], UNDER["a tilt"])
    SceneIO.exportVolume(volume, tmp_path / "scan.nrrd")
    image = read_image(tmp_path / "scan.nrrd")
    write_image(tmp_path / "map.nii.gz", (image.array[0] == 50).astype(np.float32), image.affine)
    node = SceneIO.loadUncertainty(tmp_path / "map.nii.gz", volume, "CT uncertainty")
    own = points_of(slicer.util.arrayFromVolume(node) > 0.5, SceneIO.worldMatrix(node))
    assert near(own, points_of(slicer.util.arrayFromVolume(volume) == 50, SceneIO.worldMatrix(volume)))
    assert node.GetParentTransformNode() is volume.GetParentTransformNode()


def test_an_uncertainty_map_of_one_slice_is_no_stack_of_the_maps_beside_it(a_volume, tmp_path):
    import slicer

    from KnowledgeTransferLib.learning.volume import write_image
    from KnowledgeTransferSlicer import SceneIO

    for number in (1, 2, 3):
        write_image(tmp_path / f"slice_{number}.nii.gz", np.full((14, 12, 1), number / 10, np.float32), affine())
    node = SceneIO.loadUncertainty(tmp_path / "slice_2.nii.gz", a_volume((1, 12, 14), affine()), "map")
    assert slicer.util.arrayFromVolume(node).shape == (1, 12, 14)
    assert np.allclose(slicer.util.arrayFromVolume(node), 0.2)


def test_an_uncertainty_map_leaves_views_alone_that_show_something_else(a_scan, tmp_path):
    import slicer

    from KnowledgeTransferLib.learning.volume import write_image
    from KnowledgeTransferSlicer import SceneIO

    volume, other = a_scan(affine()), a_scan(affine())
    slicer.util.setSliceViewerLayers(background=other)
    write_image(tmp_path / "map.nii.gz", np.ones((14, 12, 9), np.float32), affine())
    SceneIO.loadUncertainty(tmp_path / "map.nii.gz", volume, "CT uncertainty")
    views = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
    assert views and all(view.GetBackgroundVolumeID() == other.GetID() for view in views)
    assert not any(view.GetForegroundVolumeID() for view in views)
    slicer.util.setSliceViewerLayers(background=volume)
    node = SceneIO.loadUncertainty(tmp_path / "map.nii.gz", volume, "CT uncertainty")
    assert all(view.GetForegroundVolumeID() == node.GetID() for view in views)
    assert SceneIO.uncertaintyOf(volume) is node and SceneIO.uncertaintyOf(other) is None


@pytest.mark.parametrize("hardened", [False, True])
def test_a_result_follows_a_volume_that_was_moved_while_it_was_made(a_scan, tmp_path, hardened):
    import slicer
    import vtk

    from KnowledgeTransferLib.learning.volume import read_image, write_annotation
    from KnowledgeTransferLib.records.labels import Labels
    from KnowledgeTransferSlicer import SceneIO

    volume = a_scan(GEOMETRIES["oblique"], UNDER["a tilt"])
    SceneIO.exportVolume(volume, tmp_path / "scan.nrrd")
    there, image = SceneIO.placeOf(volume), read_image(tmp_path / "scan.nrrd")
    array = (image.array[0] == 50).astype(np.uint8)
    write_annotation(tmp_path / "a.seg.nrrd", array, image.affine, Labels.from_names({1: "organ"}))
    shift = vtk.vtkMatrix4x4()
    for axis, mm in enumerate((30.0, -12.0, 7.0)):
        shift.SetElement(axis, 3, mm)
    if hardened:
        volume.HardenTransform()
        volume.ApplyTransformMatrix(shift)
    else:
        moved = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
        moved.SetMatrixTransformToParent(shift)
        volume.SetAndObserveTransformNodeID(moved.GetID())
    node = SceneIO.loadSegmentation(tmp_path / "a.seg.nrrd", volume, "result", there)
    wanted = points_of(slicer.util.arrayFromVolume(volume) == 50, SceneIO.worldMatrix(volume))
    assert near(places_of_segment(node, "organ"), wanted)


def test_volumes_are_counted_once_for_a_layer_and_forgotten_with_an_edit(a_scan):
    import gc

    import slicer

    from KnowledgeTransferSlicer import Edits, SceneIO

    volume = a_scan(affine())
    one, two = np.zeros((2, 9, 12, 14), bool)
    one[1:3, 2:5, 2:6], two[5:7, 6:9, 7:9] = True, True
    node = drawn_on(volume, {"one": one, "two": two})
    voxel_ml = abs(np.linalg.det(SceneIO.worldMatrix(volume)[:3, :3])) / 1000
    counted = Edits.volumesMl(node)
    assert counted == pytest.approx({"one": one.sum() * voxel_ml, "two": two.sum() * voxel_ml})
    Edits.setVolumesMl(node, {"one": 7.0, "two": 8.0})
    assert Edits.volumesMl(node) == {"one": 7.0, "two": 8.0}
    node.GetSegmentation().GetNthSegment(0).SetName("renamed")
    assert Edits.volumesMl(node).keys() == {"renamed", "two"}
    Edits.setVolumesMl(node, {"renamed": 7.0, "two": 8.0})
    deleted, seen = [], node.GetSegmentation()
    seen.AddObserver("DeleteEvent", lambda *_: deleted.append(True))
    del node, seen
    slicer.mrmlScene.Clear(0)
    gc.collect()
    assert deleted, "a closed scene leaves nothing in memory"


def test_an_edit_is_told_from_a_look_in_3d(a_scan):
    from KnowledgeTransferSlicer import Edits

    volume, mask = a_scan(affine()), np.ones((9, 12, 14), bool)
    for edit in (
        lambda node: node.GetSegmentation().GetNthSegment(0).SetName("renamed"),
        lambda node: node.GetSegmentation().GetNthSegment(0).SetColor(0.1, 0.1, 0.1),
        lambda node: node.GetSegmentation().AddEmptySegment("new"),
        lambda node: node.GetSegmentation().RemoveSegment("two"),
        lambda node: drawn_again(node, "two", volume),
    ):
        node = drawn_on(volume, {"one": mask, "two": mask})
        Edits.setAsInFile(node)
        Edits.setAsInFile(node)  # as when it is saved again
        node.CreateClosedSurfaceRepresentation()
        node.GetSegmentation().RemoveRepresentation("Closed surface")
        assert Edits.isAsInFile(node)
        edit(node)
        assert not Edits.isAsInFile(node)


def drawn_again(node, segment, volume):
    import slicer

    slicer.util.updateSegmentBinaryLabelmapFromArray(np.zeros((9, 12, 14), np.uint8), node, segment, volume)


def test_volumes_that_came_with_a_scene_are_forgotten_when_edits_may_have_gone_unseen(a_scan):
    from KnowledgeTransferSlicer import Edits

    volume = a_scan(affine())
    mask = np.ones((9, 12, 14), bool)
    node = drawn_on(volume, {"one": mask})
    node.SetAttribute(Edits.VOLUMES, '{"one": 7.0}')  # as a scene brings it
    Edits.watchImported(trusted=True)
    assert Edits.volumesMl(node) == {"one": 7.0}
    node.GetSegmentation().GetNthSegment(0).SetName("renamed")
    assert Edits.volumesMl(node).keys() == {"renamed"}
    node.SetAttribute(Edits.VOLUMES, '{"one": 7.0}')
    Edits.watchImported(trusted=False)
    assert Edits.volumesMl(node).keys() == {"renamed"}


def test_file_names_are_made_of_node_names_without_clashes(a_scan):
    from KnowledgeTransferSlicer import SceneIO

    names = ["CT", "ct", "a/b: c", "   ", "Größe"]
    volumes = [a_scan(affine(), name=name) for name in names]
    for volume, name in zip(volumes, names, strict=True):
        volume.SetName(name)
    assert SceneIO.caseIds(volumes) == ["CT", "ct 2", "a_b_ c", "scan", "Größe"]


def test_no_file_is_named_like_a_channel_or_a_segmentation(a_scan, tmp_path):
    """The library would take scan_0000 and scan_0001 for one case, and scan.seg for no image."""
    from KnowledgeTransferLib.records.cohort import images_in
    from KnowledgeTransferSlicer import SceneIO

    names = ["liver_0000", "p_0000", "p_0001", "p 0001", "CT.seg", "CT.SEG.", "_0000", ".seg", "a_00001"]
    volumes = [a_scan(affine()) for _ in names]
    for volume, name in zip(volumes, names, strict=True):
        volume.SetName(name)
    ids = SceneIO.caseIds(volumes)
    assert ids == ["liver 0000", "p 0000", "p 0001", "p 0001 2", "CT seg", "CT SEG 2", "0000", "seg", "a_00001"]
    for name in ids:
        (tmp_path / f"{name}.nrrd").write_bytes(b"")
    assert sorted(images_in(tmp_path)) == sorted(ids)


def test_what_cannot_be_segmented_is_refused_with_what_to_do(a_scan, a_volume):
    import slicer

    from KnowledgeTransferSlicer import SceneIO

    with pytest.raises(SceneIO.VolumeError, match="No volume is chosen"):
        SceneIO.checkVolume(None)
    with pytest.raises(SceneIO.VolumeError, match="holds no image"):
        SceneIO.checkVolume(slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty"))
    labelmap = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "labels")
    with pytest.raises(SceneIO.VolumeError, match="a scalar volume is needed"):
        SceneIO.checkVolume(labelmap)
    colour = a_volume(np.zeros((4, 5, 6, 3), np.uint8), name="photo", node_class="vtkMRMLVectorVolumeNode")
    with pytest.raises(SceneIO.VolumeError, match="vector volume of 3 components; convert it"):
        SceneIO.checkVolume(colour)
    bent = a_scan(affine())
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLBSplineTransformNode", "warp")
    bent.SetAndObserveTransformNodeID(transform.GetID())
    with pytest.raises(SceneIO.VolumeError, match="non-linear transform warp; harden it"):
        SceneIO.checkVolume(bent)
    shear = np.eye(4)
    shear[0, 1] = 0.3
    with pytest.raises(SceneIO.VolumeError, match="shears it"):
        SceneIO.checkVolume(a_scan(affine(), shear))


def test_a_volume_is_not_taken_for_another_with_the_same_id_in_the_next_scene(a_scan):
    import slicer

    from KnowledgeTransferSlicer import SceneIO

    volume = a_scan(affine())
    assert SceneIO.isInScene(volume) and not SceneIO.isInScene(None)
    slicer.mrmlScene.Clear(0)
    other = a_scan(affine())
    assert other.GetID() == volume.GetID() or volume.GetID() is None
    assert not SceneIO.isInScene(volume) and SceneIO.isInScene(other)
