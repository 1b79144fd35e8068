"""Ahead: results come in order, at most so many wait, and errors come with their item."""

import threading
import time

import pytest

from KnowledgeTransferLib.learning.ahead import SMALL_BYTES, SMALL_VOXELS, ahead, at_once, in_threads
from KnowledgeTransferLib.records.cohort import Case


@pytest.mark.parametrize("count", [1, 3])
def test_results_come_in_order_with_their_items(count):
    def slow_first(n):
        time.sleep(0.02 if n == 0 else 0)
        return n * n

    assert [(item, future.result()) for item, future in ahead(slow_first, range(7), count)] == [
        (n, n * n) for n in range(7)
    ]


@pytest.mark.parametrize("count", [1, 2])
def test_no_more_items_are_begun_than_may_wait(count):
    begun = []
    for used, (_, future) in enumerate(ahead(begun.append, iter(range(20)), count)):
        future.result()
        time.sleep(0.005)
        assert len(begun) <= used + 1 + count
    assert begun == list(range(20))


def test_the_next_item_is_worked_on_while_the_current_one_is_used():
    next_begun = threading.Event()

    def function(n):
        if n == 1:
            next_begun.set()

    for item, future in ahead(function, range(2)):
        future.result()
        if item == 0:
            assert next_begun.wait(5)


def test_an_error_comes_with_its_item_and_the_others_go_on():
    results = []
    for item, future in ahead(lambda n: 12 // n, [3, 0, 4]):
        try:
            results.append((item, future.result()))
        except ZeroDivisionError:
            results.append((item, "failed"))
    assert results == [(3, 4), (0, "failed"), (4, 3)]


def test_who_stops_early_leaves_nothing_running():
    begun, before = [], set(threading.enumerate())
    for item, _ in ahead(begun.append, range(100), 2):
        if item == 3:
            break
    time.sleep(0.02)
    assert len(begun) <= 6
    assert not [thread for thread in threading.enumerate() if thread not in before and thread.is_alive()]


def test_no_items_give_no_results():
    assert list(ahead(str, [])) == []


@pytest.mark.parametrize("count", [0, 1, 2, 37])
def test_work_in_threads_comes_back_in_order(count):
    assert in_threads(lambda n: n * n, range(count), SMALL_VOXELS) == [n * n for n in range(count)]


def test_small_work_is_not_handed_out(monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    for voxels, is_handed_out in ((SMALL_VOXELS - 1, False), (SMALL_VOXELS, True)):
        threads = in_threads(lambda _: threading.get_ident(), range(8), voxels)
        assert (threading.get_ident() not in threads) == is_handed_out


def test_work_in_threads_tells_its_error():
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda n: 12 // n, [3, 0, 4, 5], SMALL_VOXELS)


def test_small_files_are_read_side_by_side_and_large_ones_one_after_another(monkeypatch, tmp_path):
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    series, large = tmp_path / "series", tmp_path / "large.nii"
    series.mkdir()
    for n in range(3):
        (series / f"{n}.dcm").write_bytes(bytes(SMALL_BYTES // 3))
    large.write_bytes(bytes(SMALL_BYTES + 1))

    def count(*files):
        return at_once([Case(id=file.name, images=(file,)) for file in files])

    assert count(series, tmp_path / "missing.nii") == 3
    assert count(series, large) == 1
    (tmp_path / "header.mhd").touch()
    assert count(tmp_path / "header.mhd") == 1, "its voxels lie in another file"
    (series / "3.dcm").write_bytes(bytes(SMALL_BYTES // 3))
    assert count(series) == 1
