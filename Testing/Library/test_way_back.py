"""The way back decides every voxel as the dense computation does, in any geometry, whole or in blocks."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from KnowledgeTransferLib.learning import way_back
from KnowledgeTransferLib.learning.preprocessing import Grid
from KnowledgeTransferLib.learning.way_back import WayBack

CASES = [  # shape of the volume, size of the student's grid, classes
    ((31, 29, 17), (13, 11, 9), 3),
    ((40, 24, 18), (13, 8, 18), 14),
    ((9, 30, 11), (9, 10, 4), 2),
    ((12, 10, 8), (25, 23, 19), 5),
    ((21, 7, 5), (4, 13, 5), 20),
    ((16, 16, 1), (5, 7, 1), 4),
    ((5, 4, 3), (1, 1, 1), 2),
    ((23, 19, 13), (23, 19, 13), 6),
]
EVERY_CASE = pytest.mark.parametrize(("shape", "size", "classes"), CASES, ids=str)


def smooth_logits(classes: int, size, seed: int = 0) -> torch.Tensor:
    """Class maps with regions: most cells have one winner."""
    coarse = torch.randn(1, classes, *(max(1, n // 4) for n in size), generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size, mode="trilinear")[0] * 6


def rough_logits(classes: int, size, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(classes, *size, generator=torch.Generator().manual_seed(seed))


def ties(classes: int, size, seed: int = 0) -> torch.Tensor:
    """Few different values, so that classes are often exactly as likely."""
    return torch.randint(0, 3, (classes, *size), generator=torch.Generator().manual_seed(seed)).float()


def decided(maps: torch.Tensor, shape, margin=way_back.MARGIN, axes=(0, 1, 2), flipped=(), logits=True) -> np.ndarray:
    size = tuple(maps.shape[1:])
    back = WayBack(shape, axes, flipped, size, tuple(range(len(maps))), margin)
    back.put(maps, (0, 0, 0), size, logits)
    return back.decision


def dense(maps: torch.Tensor, shape) -> torch.Tensor:
    """torch's own interpolation at full size, in 64 bits."""
    probabilities = maps.double().softmax(0)
    return F.interpolate(probabilities[None], shape, mode="trilinear", align_corners=False)[0]


@EVERY_CASE
@pytest.mark.parametrize("kind", [smooth_logits, rough_logits, ties])
def test_every_voxel_is_as_if_all_were_interpolated(shape, size, classes, kind):
    for seed in range(3):
        maps = kind(classes, size, seed)
        np.testing.assert_array_equal(decided(maps, shape), decided(maps, shape, np.inf))


@EVERY_CASE
@pytest.mark.parametrize("kind", [smooth_logits, rough_logits])
def test_the_winner_is_that_of_torchs_dense_interpolation(shape, size, classes, kind):
    maps = kind(classes, size)
    full = dense(maps, shape)
    first, second = full.topk(2, 0).values
    clear = ((first - second) > 1e-6).numpy()
    found = decided(maps, shape)
    assert found.shape == shape and found.dtype == np.uint8
    np.testing.assert_array_equal(found[clear], full.argmax(0).numpy()[clear])
    assert clear.mean() > 0.999


def test_equally_likely_classes_go_to_the_first_of_them():
    maps = torch.zeros(3, 4, 4, 4)
    maps[0] = -5
    assert (decided(maps, (9, 9, 9)) == 1).all()
    steps = torch.tensor([0.5, 0.25, 0.125, 0.125])  # exact in floats on a doubled grid
    probabilities = torch.stack([steps[(torch.arange(64).reshape(4, 4, 4) + c) % 4] for c in range(4)])
    expected = F.interpolate(probabilities[None], (8, 8, 8), mode="trilinear")[0].argmax(0).numpy()
    np.testing.assert_array_equal(decided(probabilities, (8, 8, 8), logits=False), expected)


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("flipped", [(), (1,), (0, 2), (0, 1, 2)])
def test_the_orientation_is_undone(axes, flipped):
    maps, oriented = smooth_logits(4, (6, 9, 7)), (14, 20, 11)
    shape = tuple(oriented[a] for a in np.argsort(axes))
    grid = Grid(shape, axes, flipped)
    found = decided(maps, shape, axes=axes, flipped=flipped)
    np.testing.assert_array_equal(found, grid.to_volume(decided(maps, oriented)))


@EVERY_CASE
@pytest.mark.parametrize("step", [(3, 4, 2), (100, 2, 100)])
def test_blocks_together_decide_what_one_pass_decides(shape, size, classes, step):
    maps = smooth_logits(classes, size)
    axes, flipped = (2, 0, 1), (0, 2)
    stored = tuple(shape[a] for a in np.argsort(axes))
    back = WayBack(stored, axes, flipped, size, range(classes))
    for start in itertools.product(*(range(0, n, s) for n, s in zip(size, step, strict=True))):
        stop = tuple(min(a + s, n) for a, s, n in zip(start, step, size, strict=True))
        block = maps[(slice(None), *(slice(a, b + 1) for a, b in zip(start, stop, strict=True)))]
        back.put(block, start, stop, logits=True)
    np.testing.assert_array_equal(back.decision, decided(maps, stored, axes=axes, flipped=flipped))


def test_maps_in_any_memory_order_are_decided_alike():
    maps = smooth_logits(5, (9, 8, 7))
    cut = smooth_logits(5, (9, 8, 7)).permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)
    assert not cut.is_contiguous()
    np.testing.assert_array_equal(decided(cut, (20, 21, 22)), decided(maps, (20, 21, 22)))
    padded = F.pad(maps, (0, 3, 0, 1, 0, 2))[:, :9, :8, :7]
    np.testing.assert_array_equal(decided(padded, (20, 21, 22)), decided(maps, (20, 21, 22)))


@pytest.mark.parametrize("values", [(0, 3, 7), (0, 255, 1), tuple(range(256))], ids=["some", "largest", "all"])
def test_classes_become_label_values(values):
    maps = smooth_logits(len(values), (6, 6, 6))
    back = WayBack((13, 12, 11), (0, 1, 2), (), (6, 6, 6), values)
    back.put(maps, (0, 0, 0), (6, 6, 6), logits=True)
    expected = np.array(values)[dense(maps, (13, 12, 11)).argmax(0).numpy()]
    assert (back.decision == expected).mean() > 0.999 and back.decision.dtype == np.uint8


def test_only_cells_at_a_border_are_interpolated(monkeypatch):
    """A smooth picture of few regions: the costly part touches a small share of the voxels."""
    seen, interpolate = [], F.embedding_bag

    def counting(index, *arguments, **options):
        seen.append(len(index))
        return interpolate(index, *arguments, **options)

    monkeypatch.setattr(way_back.F, "embedding_bag", counting)
    i, j, k = np.mgrid[:40, :40, :40] - 19.5
    ball = torch.from_numpy(np.sqrt(i**2 + j**2 + k**2).astype(np.float32))
    decided(torch.stack([ball, 30 - ball]), (120, 120, 40))
    assert 0 < sum(seen) < 0.12 * 120 * 120 * 40


def test_the_memory_is_bounded_by_the_student_grid(monkeypatch):
    """No class maps at full size: 20 classes of 160^3 voxels would take 328 MB."""
    import tracemalloc

    maps = smooth_logits(20, (16, 16, 16))
    tracemalloc.start()
    decided(maps, (160, 160, 160))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * 160**3 * 4 / 2
