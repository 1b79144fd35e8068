"""Run directory: files written whole or not at all, one process at a time, nothing stale left."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from KnowledgeTransferLib.records.run_directory import (
    RunDirectory,
    check_writable,
    read_json,
    write_json,
    write_text,
    written_whole,
)

REPOSITORY = Path(__file__).parents[2]
HOLD_THE_LOCK = """
import sys, time
from KnowledgeTransferLib.records.run_directory import RunDirectory
with RunDirectory(sys.argv[1]).locked():
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def a_process_in_the_run(tmp_path):
    """Another process that holds the lock of tmp_path / "run"."""
    command = [sys.executable, "-c", HOLD_THE_LOCK, str(tmp_path / "run")]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, encoding="utf-8")
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_process_is_told_who_works_in_the_run(tmp_path, a_process_in_the_run):
    message = rf"is in use by the process {a_process_in_the_run.pid}; wait for it"
    with pytest.raises(RuntimeError, match=message), RunDirectory(tmp_path / "run").locked():
        pass


def test_a_run_is_free_again_after_its_process_was_killed(tmp_path, a_process_in_the_run):
    a_process_in_the_run.send_signal(signal.SIGKILL)
    a_process_in_the_run.wait()
    with RunDirectory(tmp_path / "run").locked() as run:
        assert run.lock_file.read_text() == str(os.getpid())
    assert run.lock_file.read_text() == ""


def test_a_run_is_free_again_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), RunDirectory(tmp_path).locked():
        raise ZeroDivisionError
    with RunDirectory(tmp_path).locked():
        pass


def test_half_written_files_of_a_killed_process_are_removed(tmp_path):
    run = RunDirectory(tmp_path).create()
    run.pseudo_annotations.mkdir()
    leftovers = [tmp_path / ".partial-1-settings.json", run.pseudo_annotations / ".partial-1-a.seg.nrrd"]
    for leftover in leftovers:
        leftover.write_text("half")
    (tmp_path / ".partial-1-student").mkdir()
    with run.locked():
        assert not any(leftover.exists() for leftover in leftovers)
        assert not (tmp_path / ".partial-1-student").exists()


def test_a_folder_whose_new_one_cannot_take_its_place_stays(tmp_path, monkeypatch):
    """As on Windows, where a file of the old one is open."""
    old = tmp_path / "student"
    old.mkdir()
    (old / "weights").write_text("old")
    rename = os.replace

    def busy(source, target):
        if Path(source).name.startswith(".partial-") and Path(target) == old:
            raise PermissionError("is open")
        rename(source, target)

    monkeypatch.setattr(os, "replace", busy)
    with pytest.raises(PermissionError, match="is open"), written_whole(old) as temporary:
        temporary.mkdir()
        (temporary / "weights").write_text("new")
    assert (old / "weights").read_text() == "old"
    assert list(tmp_path.iterdir()) == [old]
    monkeypatch.undo()
    with written_whole(old) as temporary:
        temporary.mkdir()
        (temporary / "weights").write_text("new")
    assert (old / "weights").read_text() == "new"
    assert list(tmp_path.iterdir()) == [old]


def test_a_folder_that_was_moved_aside_when_the_process_was_killed_comes_back(tmp_path):
    run = RunDirectory(tmp_path).create()
    (tmp_path / ".partial-1-my-old-scan.nii.gz").write_text("half")
    aside = tmp_path / ".aside-student"
    aside.mkdir()
    (aside / "weights").write_text("old")
    with run.locked():
        assert (run.student / "weights").read_text() == "old"
    assert not aside.exists()
    assert not list(tmp_path.glob("*scan.nii.gz")), "half of a file is nothing that comes back"


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def missing(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("KnowledgeTransferLib.records.run_directory._locks_at_once", missing)
    with pytest.raises(OSError, match="cannot lock files .*on a local disk"), RunDirectory(tmp_path).locked():
        pass


def test_a_file_of_a_long_name_is_written(tmp_path):
    path = tmp_path / ("a" * 240 + ".seg.nrrd")
    with written_whole(path) as temporary:
        assert temporary.name.endswith(".seg.nrrd")
        temporary.write_text("whole")
    assert path.read_text() == "whole"


def test_an_old_wish_to_cancel_is_forgotten_and_a_new_one_kept(tmp_path):
    run = RunDirectory(tmp_path).create()
    run.cancel.touch()
    with run.locked():
        assert run.cancel_requested()
    assert not run.cancel_requested()  # answered
    run.cancel.touch()
    an_hour_ago = time.time() - 3600
    os.utime(run.cancel, (an_hour_ago, an_hour_ago))
    with run.locked():
        assert not run.cancel_requested()


def test_a_file_where_the_run_should_be_is_refused_and_kept(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(NotADirectoryError, match="is a file; name a folder for the run"):
        RunDirectory(tmp_path / "run").create()
    assert (tmp_path / "run").read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_found_out_before_the_work(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="cannot write into the folder .*file/run"):
        check_writable(tmp_path / "file" / "run")


def test_checking_a_folder_leaves_nothing_in_it(tmp_path):
    check_writable(tmp_path / "new" / "run")
    assert list((tmp_path / "new" / "run").iterdir()) == []


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_in_the_middle_leaves_the_old_file(tmp_path, error):
    file = tmp_path / "settings.json"
    write_text(file, "old")
    with pytest.raises(type(error)), written_whole(file) as temporary:
        temporary.write_text("new, but only ha")
        raise error
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_that_fails_in_the_middle_leaves_the_old_one(tmp_path):
    (tmp_path / "student").mkdir()
    (tmp_path / "student/model").write_text("old")
    with pytest.raises(OSError, match="No space"), written_whole(tmp_path / "student") as temporary:
        temporary.mkdir()
        (temporary / "model").write_text("new")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert (tmp_path / "student/model").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    (tmp_path / "student").mkdir()
    (tmp_path / "student/old").write_text("old")
    with written_whole(tmp_path / "student") as temporary:
        temporary.mkdir()
        (temporary / "new").write_text("new")
    assert [path.name for path in (tmp_path / "student").iterdir()] == ["new"]


def test_json_survives_with_blanks_and_letters_of_any_language_in_the_path(tmp_path):
    file = tmp_path / "Müller, Jörg – 研究" / "a b.json"
    write_json(file, {"Größe": [1, 2.5, None]})
    assert read_json(file) == {"Größe": [1, 2.5, None]}
    assert "Größe" in file.read_text(encoding="utf-8")


def test_a_missing_and_a_damaged_file_are_told_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cohort\.json is missing"):
        read_json(tmp_path / "cohort.json")
    (tmp_path / "cohort.json").write_text('{"cases": [')
    with pytest.raises(ValueError, match=r"cohort\.json is damaged"):
        read_json(tmp_path / "cohort.json")


def test_the_files_of_a_case_lie_in_the_run(tmp_path):
    run = RunDirectory(tmp_path)
    assert run.pseudo_annotation("é 1") == tmp_path / "pseudo_annotations/é 1.seg.nrrd"
    assert run.probability_maps("é 1").parent == run.probabilities
