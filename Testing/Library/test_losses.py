"""Losses: the three standing tests of every loss, and equality with a slow plain formula."""

import math

import numpy as np
import pytest
import torch

from KnowledgeTransferLib.learning.features import Outputs, Target
from KnowledgeTransferLib.learning.losses import LOSSES, WeightedLosses

EVERY_LOSS = pytest.mark.parametrize("name", LOSSES)
SHAPE = (2, 3, 4, 3, 2)


def logits(seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).float()


def hard_target(seed: int = 0) -> torch.Tensor:
    return torch.nn.functional.one_hot(logits(seed).argmax(1), SHAPE[1]).movedim(-1, 1).float()


@EVERY_LOSS
@pytest.mark.parametrize("size", [0.01, 0.1, 1.0, 5.0])
def test_no_student_near_the_teacher_is_better_than_the_teacher_itself(name, size):
    loss, teacher = LOSSES[name](), logits()
    target = teacher.softmax(1)
    least = float(value_of(loss, teacher.clone(), teacher, target))
    for seed in range(20):
        other = teacher + size * logits(seed + 1)
        assert float(value_of(loss, other, teacher, target)) > least + 1e-7


@EVERY_LOSS
def test_the_gradient_vanishes_where_the_student_equals_the_teacher_and_nowhere_near(name):
    loss, teacher = LOSSES[name](), logits()
    for student, vanishes in ((teacher.clone(), True), (teacher + 0.5 * logits(1), False)):
        student.requires_grad_()
        value_of(loss, student, teacher, teacher.softmax(1)).backward()
        assert (float(student.grad.abs().max()) < 1e-6) == vanishes


@EVERY_LOSS
def test_the_gradient_reaches_the_student_and_the_heads(name):
    loss, student = LOSSES[name](), logits(1).requires_grad_()
    value_of(loss, student, logits(), logits().softmax(1)).backward()
    reached = (student.grad.abs().amax((0, 2, 3, 4)) > 0).tolist()
    assert all(reached), f"classes reached: {reached}"
    for parameter in loss.parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0


@EVERY_LOSS
def test_a_right_hard_answer_costs_less_than_a_wrong_one(name):
    loss, target = LOSSES[name](), hard_target()
    right, wrong = 20 * target, 20 * target.roll(1, 1)
    assert float(value_of(loss, right, right, target)) < 0.01
    assert float(value_of(loss, wrong, right, target)) > 1


@EVERY_LOSS
def test_a_patch_without_any_structure_does_no_harm(name):
    target = torch.zeros(SHAPE)
    target[:, 0] = 1
    student = (10 * target).requires_grad_()
    value = value_of(LOSSES[name](), student, student.detach(), target)
    value.backward()
    assert value.isfinite() and student.grad.isfinite().all()


def value_of(loss, student, teacher, target: torch.Tensor, **partial) -> torch.Tensor:
    """A loss of plain logits; `partial` are weights and known structures."""
    seen = Target(target, torch.zeros(SHAPE), **partial)
    return loss(Outputs(student), None if teacher is None else Outputs(teacher), seen)


def weights(seed: int = 0) -> torch.Tensor:
    return torch.rand(2, 1, *SHAPE[2:], generator=torch.Generator().manual_seed(seed))


@EVERY_LOSS
def test_weights_of_1_and_structures_that_are_all_known_change_nothing(name):
    loss, student, target = LOSSES[name](), logits(), logits(1).softmax(1)
    alike = {"weights": torch.ones(2, 1, *SHAPE[2:]), "known": torch.ones(2, 3, dtype=torch.bool)}
    plain = float(value_of(loss, student, logits(1), target))
    assert float(value_of(loss, student, logits(1), target, **alike)) == pytest.approx(plain, rel=1e-5)


@EVERY_LOSS
def test_voxels_of_weight_0_give_no_loss(name):
    loss, student, target = LOSSES[name](), logits().requires_grad_(), hard_target(1)
    counted = (weights() > 0.5).float()
    value_of(loss, student, target, target, weights=counted).backward()
    reached = student.grad.abs().amax(1, keepdim=True) > 0
    assert torch.equal(reached, counted > 0)
    nothing = value_of(loss, student, target, target, weights=torch.zeros_like(counted))
    assert float(nothing.detach()) == pytest.approx(0, abs=1e-5)


@EVERY_LOSS
def test_what_a_student_says_of_an_unknown_structure_instead_of_the_background_does_not_matter(name):
    loss, known = LOSSES[name](), torch.tensor([[True, True, False], [True, True, True]])
    student, target = logits(), hard_target(1)
    target[0, 0] += target[0, 2]
    target[0, 2] = 0
    merged = student.clone()
    merged[0, 0] = student[0, [0, 2]].logsumexp(0)
    merged[0, 2] = -1e4
    found = float(value_of(loss, student, target, target, known=known))
    assert found == pytest.approx(float(value_of(loss, merged, target, target)), rel=1e-5)
    student.requires_grad_()
    value_of(loss, student, target, target, known=known).backward()
    assert student.grad.isfinite().all()


def slow_dice_cross_entropy(student: np.ndarray, target: np.ndarray, weight: np.ndarray) -> float:
    """1 - mean over structures of 2 sum(w p t) / (sum w p^2 + sum w t^2), plus -sum(w sum_c t log p) / sum w."""
    tiny, batch, classes = 1e-5, *student.shape[:2]
    overlap, sizes = np.zeros(classes), np.zeros(classes)
    entropy = 0.0
    for b in range(batch):
        for place in np.ndindex(*student.shape[2:]):
            z = [float(student[(b, c, *place)]) for c in range(classes)]
            top = max(z)
            normaliser = top + math.log(sum(math.exp(value - top) for value in z))
            for c in range(classes):
                t, log_p, w = float(target[(b, c, *place)]), z[c] - normaliser, float(weight[(b, 0, *place)])
                overlap[c] += w * t * math.exp(log_p)
                sizes[c] += w * (t**2 + math.exp(2 * log_p))
                entropy -= w * t * log_p
    dice = np.mean([1 - (2 * overlap[c] + tiny) / (sizes[c] + tiny) for c in range(1, classes)])
    return dice + entropy / weight.sum()


@pytest.mark.parametrize("target", [logits(1).softmax(1), hard_target(1)], ids=["soft", "hard"])
def test_dice_cross_entropy_equals_its_formula(target):
    student = logits()
    expected = slow_dice_cross_entropy(student.numpy(), target.numpy(), np.ones((2, 1, *SHAPE[2:])))
    assert float(value_of(LOSSES["dice-ce"](), student, None, target)) == pytest.approx(expected, rel=1e-5)
    expected = slow_dice_cross_entropy(student.numpy(), target.numpy(), weights().numpy())
    found = float(value_of(LOSSES["dice-ce"](), student, None, target, weights=weights()))
    assert found == pytest.approx(expected, rel=1e-5)


def test_dice_cross_entropy_takes_logits_of_half_precision():
    student, target = logits(), hard_target(1)
    exact = float(value_of(LOSSES["dice-ce"](), student.bfloat16().float(), None, target))
    assert float(value_of(LOSSES["dice-ce"](), student.bfloat16(), None, target)) == pytest.approx(exact, rel=1e-6)


def test_weights_add_up(monkeypatch):
    class Half(torch.nn.Module):
        def forward(self, student, teacher, target):
            return student.logits.new_tensor(0.5)

    monkeypatch.setitem(LOSSES, "half", Half)
    one = float(value_of(LOSSES["dice-ce"](), logits(), None, hard_target(1)))
    both = value_of(WeightedLosses({"dice-ce": 2.0, "half": 3.0}), logits(), None, hard_target(1))
    assert float(both) == pytest.approx(2 * one + 1.5)


@pytest.mark.parametrize("weights", [{}, {"dice-ce": 1.0, "dise": 1.0}])
def test_an_unknown_loss_is_refused_with_those_that_there_are(weights):
    with pytest.raises(ValueError, match="choose from dice-ce"):
        WeightedLosses(weights)
