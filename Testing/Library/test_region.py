"""Region first: the box holds all that was found coarsely, and inside it every label is that of the whole image."""

import numpy as np
import pytest
import torch

from KnowledgeTransferLib.learning.networks import build_named_network
from KnowledgeTransferLib.learning.predictor import class_maps
from KnowledgeTransferLib.learning.preprocessing import Normalisation, Preprocessing
from KnowledgeTransferLib.learning.region import AROUND_VOXELS, region_of_structures
from KnowledgeTransferLib.learning.student import How, Student
from KnowledgeTransferLib.learning.volume import Volume
from KnowledgeTransferLib.records.labels import Labels
from KnowledgeTransferLib.records.students import design_named

ENOUGH = 10**9


class Bright:
    """What is brighter than 1 is the structure; counts the voxels that it was shown."""

    total_stride, margin, beside = 4, 4, None

    def __init__(self):
        self.voxels = 0

    def __call__(self, batch):
        self.voxels += batch[:, 0].numel()
        return torch.cat([torch.ones_like(batch), batch], 1)


def a_student(design: str = "tiny", dimensions: int = 3) -> Student:
    torch.manual_seed(0)
    network = build_named_network(design, dimensions, 1, 2).eval()
    preprocessing = Preprocessing(dimensions, (1.0, 1.0, 1.0), (Normalisation("ct", -9, 9, 0, 1),))
    return Student(network, design_named(design), Labels.from_names({1: "lesion"}), preprocessing)


def a_volume(bright: float = 3.0) -> Volume:
    """A small bright block in a dark volume of voxels of 0.8 x 0.8 x 1.6 mm."""
    array = np.random.default_rng(0).normal(0, 0.1, (1, 90, 80, 41)).astype(np.float32)
    array[0, 50:62, 20:33, 8:16] += bright
    return Volume(array, np.diag([0.8, -0.8, 1.6, 1]), "scan")


@pytest.mark.parametrize("limit", [ENOUGH, 40**3], ids=["one pass", "blocks"])
@pytest.mark.parametrize(("name", "dimensions"), [("tiny", 3), ("s1", 3), ("tiny", 2)])
def test_inside_the_box_the_classes_are_those_of_the_whole_image(name, dimensions, limit):
    torch.manual_seed(0)
    network = build_named_network(name, dimensions, 1, 3).eval()
    image = torch.randn(1, 70, 64, 60 if dimensions == 3 else 5)
    box = ((11, 30), (0, 17), (33, 60) if dimensions == 3 else (1, 3))
    (_, _, whole), done = next(class_maps(network, image, dimensions, ENOUGH)), np.zeros(image.shape[1:], bool)
    for start, stop, maps in class_maps(network, image, dimensions, limit, (), box):
        part = tuple(slice(a, a + n) for a, n in zip(start, maps.shape[1:], strict=True))
        torch.testing.assert_close(maps, whole[(slice(None), *part)], rtol=1e-4, atol=1e-4)
        done[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = True
    assert done[tuple(slice(*ends) for ends in box)].all() and done.mean() < 0.5


@pytest.mark.parametrize("limit", [ENOUGH, 24**3], ids=["one pass", "blocks"])
def test_the_box_holds_what_was_found_and_a_margin(limit):
    image = torch.zeros(1, 64, 48, 41)
    image[0, 30:40, 2:9, 33:41] = 5
    box = region_of_structures(Bright(), image, 3, limit)
    assert box == ((30 - AROUND_VOXELS, 40 + AROUND_VOXELS), (0, 10 + AROUND_VOXELS), (32 - AROUND_VOXELS, 41))
    assert region_of_structures(Bright(), image * 0, 3, limit) is None


def test_region_first_gives_the_same_labels_from_fewer_voxels():
    student, labels, voxels = a_student(), {}, {}
    for region_first in (False, True):
        student.__dict__["runner"] = runner = Bright()
        student.how = How(region_first=region_first)
        labels[region_first] = student.segment(a_volume())
        voxels[region_first] = runner.voxels
    np.testing.assert_array_equal(labels[True], labels[False])
    assert labels[True].sum() > 1000 and voxels[True] < 0.6 * voxels[False]


def test_where_nothing_is_found_coarsely_the_whole_volume_is_looked_at():
    student = a_student()
    student.__dict__["runner"] = runner = Bright()
    volume = a_volume(bright=0)
    volume.array[0, 40, 40, 20] = 4  # a single voxel, which is lost when eight become one
    student.how = How(region_first=True)
    assert student.segment(volume).any()
    assert runner.voxels > np.prod(student.prepare(volume).image.shape)


def test_a_student_that_looks_at_the_whole_image_refuses(tmp_path):
    with pytest.raises(ValueError, match="its design large looks at the whole image, .* leave out --region-first"):
        a_student("large").run_as(How(region_first=True))


def test_region_first_is_an_option_of_segment(command, a_teacher, a_phantom_cohort, tmp_path):
    scan = sorted((a_phantom_cohort / "images").iterdir())[0]
    assert command("segment", a_teacher, scan, tmp_path / "a.nii.gz", "--region-first").status == 0
    assert (tmp_path / "a.nii.gz").is_file()
