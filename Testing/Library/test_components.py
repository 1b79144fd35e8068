"""Components: the largest part of each structure, and no holes in it."""

import numpy as np
import pytest

from KnowledgeTransferLib.learning.components import largest_components, without_holes


def a_shell(depth: int) -> np.ndarray:
    """A structure with a hole of background, beside a second one inside a ring of the first."""
    labels = np.zeros((12, 12, depth), np.uint8)
    labels[1:6, 1:6] = 1
    labels[7:12, 7:12] = 3
    labels[8:11, 8:11] = 2
    if depth > 1:
        labels[:, :, [0, -1]] = 0
        labels[1:6, 1:6, [1, -2]] = 1
    labels[3, 3, depth // 2] = 0
    return labels


@pytest.mark.parametrize("depth", [1, 5], ids=["picture", "volume"])
def test_holes_become_part_of_the_structure_around_them_and_other_structures_stay(depth):
    labels = a_shell(depth)
    filled = without_holes(labels)
    assert filled[3, 3, depth // 2] == 1
    assert np.argwhere(filled != labels).tolist() == [[3, 3, depth // 2]]
    assert labels[3, 3, depth // 2] == 0, "what was handed in is left alone"


def test_a_cavity_that_is_open_to_the_edge_is_no_hole():
    labels = a_shell(1)
    labels[3, :4] = 0
    np.testing.assert_array_equal(without_holes(labels), labels)


def test_the_largest_part_stays():
    labels = np.zeros((9, 3, 3), np.uint8)
    labels[0:2], labels[3:6], labels[8] = 5, 5, 2
    expected = np.where(np.arange(9)[:, None, None] < 3, 0, labels)
    np.testing.assert_array_equal(largest_components(labels), expected)
