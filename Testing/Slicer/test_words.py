"""Words: messages of the library in the words of the panel, and by the names of the nodes that the user knows."""

import numpy as np
import pytest


@pytest.fixture
def a_segmentation(a_scan):
    """Makes segmentations of the scan with one segment: `a_segmentation("expert", "liver")`."""
    import slicer

    def make(name, structure):
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
        node.SetReferenceImageGeometryParameterFromVolumeNode(a_scan)
        segment = node.GetSegmentation().AddEmptySegment(structure, structure)
        drawn = np.zeros(slicer.util.arrayFromVolume(a_scan).shape, np.uint8)
        drawn[5:8, 5:8, 5:8] = 1
        slicer.util.updateSegmentBinaryLabelmapFromArray(drawn, node, segment, a_scan)
        return node

    return make


def test_a_scan_that_fails_is_told_by_the_name_of_its_volume_and_once(logic, a_volume, a_teacher):
    empty = "every voxel has the value 0; there is nothing to segment"
    for name, case in (("nothing in it", "nothing in it"), ("nothing_0000", "nothing 0000")):
        job = logic.segment([a_volume((8, 30, 30), name=name)], a_teacher, device="cpu")
        with pytest.raises(RuntimeError) as failure:
            job.wait()
        assert str(failure.value) == f"{case}: {empty}" and job.problems == [{"case": case, "message": empty}]


def test_a_scan_that_the_student_cannot_use_is_named_once(logic, a_volume, a_teacher):
    voxels = np.random.default_rng(0).integers(0, 9, (4, 4, 4)).astype(np.int16)
    job = logic.segment([a_volume(voxels, np.diag([1e6, 1e6, 1e6, 1]), "huge")], a_teacher, device="cpu")
    with pytest.raises(RuntimeError, match=r"^huge: at the student's spacing"):
        job.wait()


def test_segmentations_without_a_common_structure_are_told_by_their_names(logic, a_scan, a_segmentation):
    job = logic.compare(a_segmentation("ours", "liver"), a_segmentation("expert's", "spleen"), a_scan)
    with pytest.raises(RuntimeError, match="no structure has the same name: ours holds liver, but expert's spleen"):
        job.wait()


def test_a_run_whose_list_of_cases_is_missing_is_told_without_options(app):
    from KnowledgeTransferLib.records.cohort import Cohort
    from KnowledgeTransferLib.records.run_directory import RunDirectory
    from KnowledgeTransferLib.records.training_cohort import has_other_cases, training_cohort
    from KnowledgeTransferSlicer.Words import inWordsOfThePanel

    run = RunDirectory("nowhere")
    for ask in (lambda: has_other_cases(run, Cohort(()), "expert"), lambda: training_cohort(run, None, "expert")):
        with pytest.raises(ValueError) as failure:
            ask()
        assert "--" in str(failure.value) and "--" not in inWordsOfThePanel(str(failure.value))
