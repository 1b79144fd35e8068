"""Training: the rate's schedule, the time budget, ending early, checkpoints; each function by itself."""

import dataclasses

import numpy as np
import pytest
import torch

from KnowledgeTransferLib.learning import training as module
from KnowledgeTransferLib.learning.batches import PreparedCase
from KnowledgeTransferLib.learning.networks import build_named_network
from KnowledgeTransferLib.learning.precursors import LiveTeacher
from KnowledgeTransferLib.learning.training import (
    WARM_UP_SHARE,
    Training,
    end_epoch,
    held_out_dice,
    learning_rate,
    length_for,
    new_fabric,
    new_training,
    restore,
    save,
    train,
)
from KnowledgeTransferLib.records.losses import USUAL_WEIGHTS
from KnowledgeTransferLib.records.progress import Progress
from KnowledgeTransferLib.records.run_directory import RunDirectory
from KnowledgeTransferLib.records.settings import DistilSettings

SETTINGS = DistilSettings(
    patch_size_voxels=(16, 16, 1), batch_size=2, epochs=4, learning_rate=1e-2, mirror_axes=(), validate_every_epochs=1,
    patience_epochs=0,
)  # fmt: skip
PROGRESS = Progress("distil")


def a_case(number: int, size: int = 16) -> PreparedCase:
    random = np.random.default_rng(number)
    target = np.zeros((1, size, size, 1), np.uint8)
    i, j = random.integers(2, 6, 2)
    target[0, i : i + 8, j : j + 7] = 1
    image = (target * 2 + random.normal(0, 0.3, target.shape)).astype(np.float16)
    return PreparedCase(str(number), str(number), image, target, np.argwhere(target[0]).astype(np.int32))


def a_training(teacher: LiveTeacher | None = None, **changes) -> Training:
    settings = dataclasses.replace(SETTINGS, **changes)
    torch.manual_seed(settings.seed)
    network = build_named_network("tiny", 2, 1, 2)
    cases = [a_case(n) for n in range(5)]
    return new_training(new_fabric("cpu", "32-true"), network, (cases[:4], cases[4:]), settings, 10**6, teacher)


def a_live_teacher() -> LiveTeacher:
    """An untrained network with other widths than the student's."""
    torch.manual_seed(9)
    network = build_named_network("small", 2, 1, 2).eval().requires_grad_(False)
    return LiveTeacher(network, ((0,), (1,)), new_fabric("cpu", "32-true"))


def weights(training: Training) -> list[torch.Tensor]:
    return [t.clone() for t in training.network.module.state_dict().values()]


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_the_rate_rises_once_and_falls_to_nearly_nothing():
    rates, top = np.array([learning_rate(share, 2.0) for share in np.linspace(0, 1, 401)]), round(400 * WARM_UP_SHARE)
    assert rates[0] == pytest.approx(2 / 25)
    assert rates.argmax() == top and rates[top] == pytest.approx(2.0)
    assert rates[-1] == pytest.approx(2e-4)
    assert (np.diff(rates[: top + 1]) > 0).all() and (np.diff(rates[top:]) < 0).all()
    assert np.abs(np.diff(rates)).max() < 0.05, "it jumps"


def test_training_learns_and_keeps_the_best_network(tmp_path):
    training = a_training(epochs=20)
    train(training, RunDirectory(tmp_path), PROGRESS)
    state = training.state
    dices = [row["validation_dice"] for row in state.history]
    assert state.best_dice == max(dices[14:]) > 0.8
    assert state.best_epoch == 15 + int(np.argmax(dices[14:]))
    assert state.history[-1]["loss"] < 0.5 * state.history[0]["loss"]
    assert [row["iteration"] for row in state.history] == list(range(2, 42, 2))
    training.network.module.load_state_dict(state.best_network)
    assert held_out_dice(training) == pytest.approx(state.best_dice)


@pytest.mark.parametrize(
    ("dices", "kept"),
    [
        ([0.9, 0.1, 0.2, 0.3], 4),  # the early ones do not count
        ([0.9, 0.1, 0.3, 0.2], 3),
        ([0.9, 0.1, 0.2, 0.2], 3),
        ([0.0, 0.0, 0.0, 0.0], 3),
    ],
)
def test_of_the_looks_those_late_in_the_training_count(tmp_path, monkeypatch, dices, kept):
    dice_is(monkeypatch, dices)
    training = a_training(epochs=4)
    train(training, RunDirectory(tmp_path), PROGRESS)
    assert (training.state.best_epoch, training.state.best_dice) == (kept, dices[kept - 1])


def test_a_training_that_is_ended_early_keeps_its_latest_network(tmp_path, monkeypatch):
    dice_is(monkeypatch, [0.9, 0.1])
    training = a_training(epochs=9, minutes=1e-9)
    monkeypatch.setattr(module, "_ended_early", lambda training, _: training.state.step == 4)
    train(training, RunDirectory(tmp_path), PROGRESS)
    assert training.state.best_epoch == 2
    assert equal(weights(training), list(training.state.best_network.values()))


def test_looks_at_the_held_out_patients_come_as_often_as_asked_and_at_the_end(tmp_path):
    training = a_training(epochs=5, validate_every_epochs=2)
    train(training, RunDirectory(tmp_path), PROGRESS)
    looked = [row["epoch"] for row in training.state.history if row["validation_dice"] is not None]
    assert looked == [2, 4, 5]


def test_the_held_out_dice_equals_a_plain_formula(monkeypatch):
    training = a_training()
    answer = torch.zeros(2, 16, 16, 1)
    answer[1, 3:12, 2:9] = 1
    monkeypatch.setattr(module, "predict", lambda *_: answer)
    truth, found = training.held_out[0].target[0] == 1, answer[1].numpy() > 0
    overlap = sum(bool(t and f) for t, f in zip(truth.ravel(), found.ravel(), strict=True))
    assert held_out_dice(training) == pytest.approx(2 * overlap / (truth.sum() + found.sum()))
    soft = np.concatenate([255 - 200 * truth[None], 200 * truth[None]]).astype(np.uint8)
    training.held_out = [dataclasses.replace(training.held_out[0], target=soft)]
    assert held_out_dice(training) == pytest.approx(2 * overlap / (truth.sum() + found.sum()))


def test_the_voxels_of_all_held_out_cases_are_counted_together(monkeypatch):
    """A case without the structure costs what is drawn there, and nothing where nothing is drawn."""
    training = a_training()
    case = training.held_out[0]
    empty = dataclasses.replace(case, target=np.zeros_like(case.target))
    truth = case.target[0] == 1
    answer = torch.zeros(2, *truth.shape)
    answer[1] = torch.from_numpy(truth)
    monkeypatch.setattr(module, "predict", lambda *_: answer)
    training.held_out = [case]
    assert held_out_dice(training) == 1
    training.held_out = [case, empty]
    assert held_out_dice(training) == pytest.approx(2 / 3)  # twice the voxels are drawn
    training.held_out = [empty]
    assert held_out_dice(training) == 0
    monkeypatch.setattr(module, "predict", lambda *_: torch.zeros(2, *truth.shape))
    assert held_out_dice(training) == 0, "nothing is there to be told"


def test_structures_that_nobody_judged_are_not_looked_at_in_held_out_patients():
    training = a_training()
    assert held_out_dice(training) > 0
    training.held_out = [dataclasses.replace(training.held_out[0], unknown=(1,))]
    assert held_out_dice(training) == 0


def test_weights_and_known_structures_reach_the_loss_in_the_dimensions_of_the_student(tmp_path):
    training, seen = a_training(epochs=1), []
    ramp = np.linspace(0, 255, 256).reshape(1, 16, 16, 1).astype(np.uint8)
    training.sampler = dataclasses.replace(
        training.sampler,
        cases=[dataclasses.replace(case, weights=ramp, unknown=(1,)) for case in training.sampler.cases],
    )
    training.loss.register_forward_hook(lambda module, inputs, output: seen.append(inputs[2]))
    train(training, RunDirectory(tmp_path), PROGRESS)
    assert seen[0].image.shape == seen[0].weights.shape == (2, 1, 16, 16)
    assert 0 <= seen[0].weights.min() < 0.2 and 0.8 < seen[0].weights.max() <= 1
    assert seen[0].known.tolist() == [[True, False]] * 2


def test_a_budget_of_twice_the_minutes_holds_twice_the_epochs(monkeypatch):
    seconds = iter(np.arange(0, 1000, 0.5))
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(seconds)))
    few, many = (length_for(minutes, a_training(epochs=None))[0] for minutes in (2, 4))
    assert many == pytest.approx(2 * few, abs=20)  # looking at the held-out patients takes a third at most
    assert 0 < few < 2 * 60 * 0.95


def test_the_shortest_budget_is_one_epoch():
    assert length_for(1e-9, a_training(epochs=None)) == (1, 1)


def test_timing_a_few_steps_changes_nothing_of_the_training(tmp_path):
    timed, plain = a_training(epochs=2), a_training(epochs=2)
    before = weights(timed)
    length_for(1, timed)
    assert equal(weights(timed), before)
    for training, folder in ((timed, "a"), (plain, "b")):
        train(training, RunDirectory(tmp_path / folder), PROGRESS)
    assert equal(weights(timed), weights(plain))
    assert not equal(weights(timed), before)


def dice_is(monkeypatch, values) -> None:
    values = iter(values)
    monkeypatch.setattr(module, "held_out_dice", lambda _: next(values))


def test_training_ends_when_patience_is_spent(tmp_path, monkeypatch):
    dice_is(monkeypatch, [0.1, 0.5, 0.4, 0.5, 0.3, 0.9, 0.9, 0.9])
    training = a_training(epochs=8, patience_epochs=3)
    train(training, RunDirectory(tmp_path), PROGRESS)
    assert (len(training.state.history), training.state.best_epoch, training.state.best_dice) == (5, 2, 0.5)


def test_patience_shorter_than_the_time_between_two_looks_waits_for_a_look(tmp_path, monkeypatch):
    dice_is(monkeypatch, [0.5, 0.4, 0.9])
    training = a_training(epochs=9, patience_epochs=1, validate_every_epochs=3)
    train(training, RunDirectory(tmp_path), PROGRESS)
    assert (len(training.state.history), training.state.best_epoch) == (6, 3)
    assert training.state.best_network


def test_no_patience_means_never(tmp_path, monkeypatch):
    dice_is(monkeypatch, [0.5] + [0.1] * 7)
    training = a_training(epochs=8, patience_epochs=0)
    train(training, RunDirectory(tmp_path), PROGRESS)
    assert len(training.state.history) == 8


def test_a_spent_time_budget_ends_the_training_with_a_student_in_hand(tmp_path):
    training = a_training(epochs=9, minutes=1e-9, validate_every_epochs=2)
    events = []
    train(training, RunDirectory(tmp_path), Progress("distil", events.append))
    assert len(training.state.history) == 2
    assert training.state.best_network
    assert any(e["event"] == "warning" and "time budget" in e["text"] for e in events)


def test_a_training_taken_up_from_a_checkpoint_ends_with_the_same_weights(tmp_path):
    whole, first, second = a_training(), a_training(), a_training()
    train(whole, RunDirectory(tmp_path / "whole"), PROGRESS)
    run = RunDirectory(tmp_path / "halves")
    stop = Progress("distil", cancel_requested=lambda: first.state.step >= 3)
    with pytest.raises(Exception, match="the same command goes on"):
        train(first, run, stop)
    assert first.state.step == 3, "in the middle of an epoch"
    train(second, run, PROGRESS)
    assert equal(weights(second), weights(whole))
    rows = [[(r["epoch"], r["loss"], r["validation_dice"]) for r in t.state.history] for t in (whole, second)]
    assert rows[0] == rows[1]


@pytest.mark.parametrize(
    ("design", "dimensions", "last"),
    [("s1", 2, True), ("unet", 2, True), ("dynunet", 2, False), ("segresnet", 2, False), ("s1", 3, False)],
)
def test_pictures_train_in_channels_last_where_no_norm_is_slower_so(design, dimensions, last):
    cases = [a_case(n) for n in range(5)]
    network = build_named_network(design, dimensions, 1, 2)
    training = new_training(new_fabric("cpu", "32-true"), network, (cases[:4], cases[4:]), SETTINGS, 10**6)
    inner = next(t for t in training.network.parameters() if t.ndim == dimensions + 2 and min(t.shape[:3]) > 1)
    assert inner.is_contiguous() != last
    assert dimensions == 3 or inner.is_contiguous(memory_format=torch.channels_last) == last


@pytest.mark.parametrize("damage", ["empty", "cut", "rubbish", "another network"])
def test_a_damaged_checkpoint_is_refused_with_what_to_do(tmp_path, damage):
    run, training = RunDirectory(tmp_path), a_training()
    save(training, run)
    content = run.checkpoint.read_bytes()
    if damage == "another network":
        saved = torch.load(run.checkpoint, weights_only=True)
        saved["network"].popitem()
        torch.save(saved, run.checkpoint)
    else:
        run.checkpoint.write_bytes({"empty": b"", "cut": content[:-2000], "rubbish": b"x" * 999}[damage])
    with pytest.raises(ValueError, match=r"checkpoint\.pt: cannot be taken up .*--restart"):
        restore(a_training(), run)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").write_text, ("x",))

    run = RunDirectory(tmp_path)
    torch.save({"state": Evil()}, run.checkpoint)
    with pytest.raises(ValueError, match="cannot be taken up"):
        restore(a_training(), run)
    assert not (tmp_path / "ran").exists()


def test_a_loss_that_is_no_number_ends_the_training_with_advice(tmp_path):
    training = a_training()
    with torch.no_grad():
        training.network.module.head.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="no number any more at step 0; try a lower --learning-rate"):
        train(training, RunDirectory(tmp_path), PROGRESS)


def test_an_epoch_is_told_with_its_mean_loss():
    training, events = a_training(), []
    training.state.step, training.state.loss_sum = 2, 3.0
    end_epoch(training, Progress("distil", events.append))
    assert events[-1]["event"] == "metrics"
    assert (events[-1]["epoch"], events[-1]["loss"]) == (1, 1.5)
    assert training.state.loss_sum == 0


def test_the_heads_of_the_losses_are_in_the_optimiser_and_are_trained(tmp_path):
    training = a_training(a_live_teacher(), losses=USUAL_WEIGHTS, epochs=1)
    heads = dict(training.loss.named_parameters())
    assert len(heads) > 10
    known = {id(parameter) for group in training.optimizer.param_groups for parameter in group["params"]}
    assert all(id(parameter) in known for parameter in heads.values())
    before = {name: parameter.detach().clone() for name, parameter in heads.items()}
    train(training, RunDirectory(tmp_path), PROGRESS)
    after = dict(training.loss.named_parameters())
    assert all(after[name] is heads[name] and not torch.equal(after[name], before[name]) for name in heads)


def test_a_live_teacher_does_not_change(tmp_path):
    teacher = a_live_teacher()
    before = [tensor.clone() for tensor in teacher.network.state_dict().values()]
    train(a_training(teacher, losses=USUAL_WEIGHTS, epochs=1), RunDirectory(tmp_path), PROGRESS)
    assert equal(list(teacher.network.state_dict().values()), before)
    assert not teacher.network.training


def test_structures_that_the_student_does_not_learn_are_background_to_it():
    torch.manual_seed(0)
    network = build_named_network("small", 2, 1, 4).eval()
    teacher = LiveTeacher(network, ((0, 1, 3), (2,)), new_fabric("cpu", "32-true"))
    image = torch.randn(1, 1, 16, 16)
    found = teacher.outputs(image, ()).logits.softmax(1)
    expected = network(image).softmax(1)
    torch.testing.assert_close(found, torch.stack([1 - expected[:, 2], expected[:, 2]], dim=1))


def test_all_losses_together_survive_a_stop_bit_for_bit(tmp_path):
    whole, first, second = (a_training(a_live_teacher(), losses=USUAL_WEIGHTS) for _ in range(3))
    train(whole, RunDirectory(tmp_path / "whole"), PROGRESS)
    run = RunDirectory(tmp_path / "halves")
    with pytest.raises(Exception, match="the same command goes on"):
        train(first, run, Progress("distil", cancel_requested=lambda: first.state.step >= 3))
    train(second, run, PROGRESS)
    assert equal(weights(second), weights(whole))
    parts = [list(training.loss.state_dict().values()) for training in (second, whole)]
    assert equal(*parts) and len(parts[0]) > 10


def test_timing_a_few_steps_changes_nothing_of_the_heads_and_banks():
    training = a_training(a_live_teacher(), losses=USUAL_WEIGHTS, epochs=None)
    before = [tensor.clone() for tensor in training.loss.state_dict().values()]
    length_for(0.01, training)
    assert equal(list(training.loss.state_dict().values()), before)
