"""Segments: what a .seg.nrrd says of its structures."""

import numpy as np
import pytest

from KnowledgeTransferLib.learning.volume import read_annotation, write_annotation
from KnowledgeTransferLib.records.labels import Labels

WANTED = Labels.from_names({1: "liver", 2: "spleen"})


def written(path, names: dict[int, str]):
    array = np.zeros((4, 3, 2), np.uint8)
    array[0], array[1] = sorted(names)[:2]
    write_annotation(path, array, np.eye(4), Labels.from_names(names))
    return array


def test_a_file_that_numbers_its_segments_differently_is_matched_by_name(tmp_path):
    written(tmp_path / "a.seg.nrrd", {1: "Spleen", 2: "Liver"})
    array = read_annotation(tmp_path / "a.seg.nrrd", WANTED)
    assert (array[0] == 2).all() and (array[1] == 1).all() and not array[2:].any()


def test_a_file_with_the_same_numbers_is_read_as_it_is(tmp_path):
    array = written(tmp_path / "a.seg.nrrd", {1: "liver", 2: "spleen"})
    assert (read_annotation(tmp_path / "a.seg.nrrd", WANTED) == array).all()


def test_segments_without_known_names_keep_their_values(tmp_path):
    array = written(tmp_path / "a.seg.nrrd", {1: "Segment_1", 2: "Segment_2"})
    assert (read_annotation(tmp_path / "a.seg.nrrd", WANTED) == array).all()


def test_a_drawn_segment_with_an_unknown_name_is_refused(tmp_path):
    written(tmp_path / "a.seg.nrrd", {1: "liver", 2: "tumour"})
    with pytest.raises(ValueError, match="unknown structure 'tumour'; known are liver, spleen"):
        read_annotation(tmp_path / "a.seg.nrrd", WANTED)


def test_a_segment_that_is_not_drawn_may_have_any_name(tmp_path):
    names = Labels.from_names({1: "liver", 2: "tumour"})
    array = np.ones((4, 3, 2), np.uint8)
    write_annotation(tmp_path / "a.seg.nrrd", array, np.eye(4), names)
    assert (read_annotation(tmp_path / "a.seg.nrrd", WANTED) == 1).all()
