"""Phantom: quick, repeatable, valid cohorts of two sites that differ."""

import dataclasses
import hashlib
import json
import time

import numpy as np
import pytest

from KnowledgeTransferLib.learning import phantom
from KnowledgeTransferLib.learning.phantom import LABELS, SITES, phantom_case, write_phantom
from KnowledgeTransferLib.learning.volume import read_annotation, read_image
from KnowledgeTransferLib.records.cohort import read_cohort

SMALL = (32, 32, 20)


def checksums(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.parametrize("site", SITES)
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path, site):
    first, again, other = (
        checksums(write_phantom(tmp_path / name, 2, site, seed, SMALL)) for name, seed in (("1", 7), ("2", 7), ("3", 8))
    )
    assert first == again
    assert len(first) == 2 + 2 + 2
    assert all(first[name] != other[name] for name in first if name.startswith(("images", "labels")))


@pytest.mark.parametrize("site", SITES)
def test_a_written_cohort_reads_back_whole(tmp_path, site):
    cohort = read_cohort(write_phantom(tmp_path, 4, site, size_voxels=SMALL))
    assert [case.split for case in cohort.cases] == [SITES[site].splits[0]] * 3 + ["test"]
    for case in cohort.cases:
        volume = read_image(case.images)
        assert volume.array.dtype == np.int16
        assert read_annotation(case.label, cohort.labels, volume).max() == len(LABELS.structures)


@pytest.mark.parametrize("site", SITES)
def test_every_patient_has_every_organ_at_its_own_side(site):
    for seed in range(8):
        volume, annotation = phantom_case(seed, site, SMALL)
        centers = {}
        for structure in LABELS.structures:
            voxels = np.argwhere(annotation == structure.value)
            assert len(voxels) * np.prod(volume.spacing_mm) > 30_000, structure.name  # 30 ml
            centers[structure.name] = volume.affine[:3, :3] @ voxels.mean(0) + volume.affine[:3, 3]
        assert centers["liver"][0] > 0 > centers["spleen"][0]
        assert centers["right kidney"][0] > 0 > centers["left kidney"][0]
        assert centers["liver"][1] > centers["right kidney"][1]


def test_patients_differ_in_shape_and_place():
    volumes_ml = [np.bincount(phantom_case(seed, "A", SMALL)[1].ravel(), minlength=5)[1:] for seed in range(6)]
    spread = np.std(volumes_ml, axis=0) / np.mean(volumes_ml, axis=0)
    assert (spread > 0.05).all()


def test_a_threshold_does_not_find_the_organs():
    volume, annotation = phantom_case(0, "A")
    low, high = np.percentile(volume.array[0][annotation == 2], (10, 90))
    inside = (volume.array[0] >= low) & (volume.array[0] <= high)
    spleen = annotation == 2
    assert 2 * (inside & spleen).sum() / (inside.sum() + spleen.sum()) < 0.3


def test_the_sites_differ_in_intensity_spacing_and_orientation():
    a, a_annotation = phantom_case(0, "A")
    b, b_annotation = phantom_case(0, "B")
    kidneys_a, kidneys_b = (
        np.mean([v[label > 2].mean() for v, label in pairs])
        for pairs in (
            [(v.array[0], label) for v, label in (phantom_case(n, site, SMALL) for n in range(6))] for site in "AB"
        )
    )
    assert kidneys_b > kidneys_a + 15
    assert a.spacing_mm == pytest.approx((5, 5, 5))
    assert b.spacing_mm == pytest.approx((4.5, 4.5, 6))
    assert np.sign(np.diag(a.affine)[:3]).tolist() == [1, 1, 1]
    assert np.sign(np.diag(b.affine)[:3]).tolist() == [-1, -1, 1]
    assert a_annotation.shape == a.shape
    assert b_annotation.shape == b.shape


def test_the_size_changes_the_voxels_and_not_the_field_of_view():
    small, large = phantom_case(0, "A", (16, 16, 10))[0], phantom_case(0, "A", (32, 32, 20))[0]
    for volume in (small, large):
        assert np.multiply(volume.shape, volume.spacing_mm) == pytest.approx((320, 320, 200))


def test_a_case_takes_a_fraction_of_a_second():
    began = time.process_time()
    phantom_case(0, "A")
    assert time.process_time() - began < 1


def test_the_written_names_carry_colors_and_terminology(tmp_path):
    dataset = json.loads((write_phantom(tmp_path, 1, "A", size_voxels=(8, 8, 8)) / "dataset.json").read_text())
    assert dataset["modality"] == "CT"
    assert dataset["labels"]["right kidney"] == 4
    assert "24028007^Right" in dataset["structures"][3]["terminology"]


def test_an_unknown_site_is_refused():
    with pytest.raises(ValueError, match="site 'C' is not known; choose one of A, B"):
        phantom_case(0, "C")


def test_the_step_writes_a_cohort_that_can_be_read(command, tmp_path, monkeypatch):
    small = dataclasses.replace(phantom.SITES["B"], size_voxels=(24, 24, 12))
    monkeypatch.setitem(phantom.SITES, "B", small)
    outcome = command("phantom", tmp_path / "new", "--cases", 4, "--site", "B", "--seed", 3)
    assert outcome.status == 0
    assert [case.id for case in read_cohort(tmp_path / "new").cases] == ["B_001", "B_002", "B_003", "B_004"]
    done = outcome.events[-1]
    assert (done["event"], done["folder"], done["cases"]) == ("done", str(tmp_path / "new"), 4)
    assert any(event["event"] == "progress" and event["done"] == 4 for event in outcome.events)
    again = command("phantom", tmp_path / "new")
    assert again.status == 2 and "holds something already; name a new folder" in again.messages


def test_the_step_refuses_a_cohort_without_cases(command, tmp_path):
    outcome = command("phantom", tmp_path / "new", "--cases", 0)
    assert outcome.status == 2 and "at least 1 is needed" in outcome.messages
    assert not (tmp_path / "new").exists()
