"""Repeatable: the same seed gives the same weights, also for a training that was killed and went on."""

import contextlib
import hashlib
import json
import random
import shutil
import time

import numpy as np
import pytest

from KnowledgeTransferLib.records.bundle import WEIGHTS, sha256
from KnowledgeTransferLib.records.run_directory import RunDirectory, read_json
from KnowledgeTransferLib.steps.distil import distil

EPOCHS = 10  # of 2 steps: half of the steps end in the middle of an epoch
ASKED = {"epochs": EPOCHS, "batch_size": 2, "spacing_mm": (18.0, 18.0, 22.0)}


class Killed(BaseException):
    """Ends a step at once, as a kill would: nothing is saved on the way."""


@pytest.fixture(scope="session")
def the_digest(the_annotated_run, tmp_path_factory) -> str:
    """sha256 of the weights of a training that nobody disturbed."""
    run = RunDirectory(shutil.copytree(the_annotated_run, tmp_path_factory.mktemp("undisturbed") / "run"))
    distil(run, **ASKED)
    return sha256(run.student / WEIGHTS)


@pytest.fixture
def run(an_annotated_run) -> RunDirectory:
    return RunDirectory(an_annotated_run)


@pytest.fixture
def chance() -> random.Random:
    """Another one in each test run; its seed is printed, so that a failure can be repeated."""
    seed = time.time_ns()
    print(f"chance has the seed {seed}")
    return random.Random(seed)


def digest_of(run: RunDirectory) -> str:
    return sha256(run.student / WEIGHTS)


def killed_at(number: int):
    """A listener that kills the step at an event."""
    left = [number]

    def listen(_) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Killed

    return listen


def without_times(history: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if not k.endswith("_s")} for row in history]


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(run, the_digest):
    distil(run, **ASKED)
    assert digest_of(run) == the_digest
    distil(run, **ASKED, seed=1, restart=True)
    assert digest_of(run) != the_digest


def test_the_order_of_the_files_of_a_run_does_not_matter(run, the_digest):
    maps = run.probability_maps("B_001").read_bytes()
    run.probability_maps("B_001").unlink()
    run.probability_maps("B_001").write_bytes(maps)
    distil(run, **ASKED)
    assert digest_of(run) == the_digest


@pytest.mark.parametrize("attempt", range(3))
def test_a_training_that_was_killed_at_any_event_ends_with_the_same_weights(run, the_digest, chance, attempt):
    for _ in range(3):
        moment = chance.randrange(40)
        print(f"killed at event {moment}")
        with contextlib.suppress(Killed):
            distil(run, **ASKED, listener=killed_at(moment))
    summary = distil(run, **ASKED)
    assert digest_of(run) == the_digest
    assert [row["epoch"] for row in summary["history"]] == list(range(1, EPOCHS + 1))


@pytest.mark.parametrize("moment", [1, 5, EPOCHS, "decide"])
def test_the_history_of_a_resumed_training_is_that_of_an_uninterrupted_one(an_annotated_run, tmp_path, moment):
    whole = distil(shutil.copytree(an_annotated_run, tmp_path / "whole"), **ASKED)

    def kill(event) -> None:
        if moment in (event.get("epoch"), event.get("name")):
            raise Killed

    with pytest.raises(Killed):
        distil(an_annotated_run, **ASKED, listener=kill)
    resumed = distil(an_annotated_run, **ASKED)
    assert without_times(resumed["history"]) == without_times(whole["history"])
    assert resumed["validation_dice"] == whole["validation_dice"]


def test_a_resumed_training_does_not_begin_anew(run):
    def kill(event) -> None:
        if event["event"] == "metrics" and event["epoch"] == EPOCHS - 1:
            raise Killed

    with pytest.raises(Killed):
        distil(run, **ASKED, listener=kill)
    events = []
    distil(run, **ASKED, listener=events.append)
    stage, last = (event for event in events if event["event"] == "stage")  # neither look nor prepare
    assert (stage["name"], stage["total"], last["name"]) == ("train", 2 * EPOCHS, "decide")
    assert stage["done"] >= 2 * (EPOCHS - 2)


def test_pseudo_annotations_are_the_same_bytes_each_time(the_annotated_run, a_teacher, a_foreign_cohort, tmp_path):
    from KnowledgeTransferLib.steps.annotate import annotate

    again = RunDirectory(tmp_path / "again")
    annotate(again, a_foreign_cohort, {str(a_teacher): 1.0})
    first = RunDirectory(the_annotated_run)
    for id_ in read_json(first.annotations)["cases"]:
        assert again.pseudo_annotation(id_).read_bytes() == first.pseudo_annotation(id_).read_bytes()


@pytest.mark.slow
def test_a_process_killed_at_random_moments_ends_with_the_same_weights(
    the_annotated_run, start_process, chance, tmp_path
):
    line = ["--epochs", 60, "--batch-size", 2, "--spacing-mm", 18, 18, 22]
    runs = [RunDirectory(shutil.copytree(the_annotated_run, tmp_path / name)) for name in ("whole", "killed")]
    whole, killed = runs
    distil(whole, **{**ASKED, "epochs": 60})
    train_s = _seconds_of_training(whole)
    for number in range(2):
        process = start_process("distil", killed.path, *line)
        for text in process.stdout:  # the first kill may fall into the preparation, the second into the training
            event = json.loads(text)
            if event["event"] == "start" if number == 0 else event.get("name") == "train":
                break
        moment = chance.uniform(0, train_s / 2)
        time.sleep(moment)
        process.kill()
        assert process.wait() != 0
        print(f"killed {moment:.3f} s after {'the start' if number == 0 else 'the training began'}")
        assert not killed.training.exists()
    process = start_process("distil", killed.path, *line)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert digest_of(killed) == digest_of(whole)
    assert not killed.prepared.exists() and not killed.checkpoint.exists()
    for text in killed.events.read_text(encoding="utf-8").splitlines():
        json.loads(text)


def _seconds_of_training(run: RunDirectory) -> float:
    return read_json(run.training)["duration_s"]


@pytest.mark.slow
def test_a_process_killed_while_it_annotates_goes_on_and_ends_with_the_same(
    the_annotated_run, a_teacher, a_foreign_cohort, start_process, chance, tmp_path
):
    run, expected = RunDirectory(tmp_path / "run"), RunDirectory(the_annotated_run)
    line = ["annotate", run.path, "--cohort", a_foreign_cohort, "--teacher", a_teacher]
    process = start_process(*line)
    for text in process.stdout:
        if json.loads(text)["event"] == "stage":
            break
    time.sleep(chance.uniform(0, 0.3))
    process.kill()
    process.wait()
    assert start_process(*line).wait(timeout=200) == 0
    assert _checksums(run.pseudo_annotations) == _checksums(expected.pseudo_annotations)
    assert _checksums(run.probabilities) == _checksums(expected.probabilities)


def _checksums(folder) -> dict[str, str]:
    return {file.name: hashlib.sha256(_voxels(file)).hexdigest() for file in folder.iterdir()}


def _voxels(file) -> bytes:
    import nibabel

    if file.suffix == ".gz":  # gzip's header may hold a time
        return np.ascontiguousarray(nibabel.load(file).dataobj).tobytes()
    return file.read_bytes()
