"""Decision: the shift of the background's logit, what measures it, and who must not see it."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from test_training import PROGRESS, SETTINGS

from KnowledgeTransferLib.learning.batches import PreparedCase
from KnowledgeTransferLib.learning.decision import SHIFTS, _overlaps, settle_decision
from KnowledgeTransferLib.learning.networks import build_named_network, build_network, lower_background
from KnowledgeTransferLib.learning.student import as_it_learnt, load_student, save_student
from KnowledgeTransferLib.learning.teachers import Ensemble
from KnowledgeTransferLib.learning.teachers.ensemble import Opinion
from KnowledgeTransferLib.learning.training import Training, held_out_dice, new_fabric, new_training
from KnowledgeTransferLib.learning.volume import read_image
from KnowledgeTransferLib.records.cohort import read_cohort
from KnowledgeTransferLib.records.progress import Cancelled, Progress
from KnowledgeTransferLib.records.students import STUDENTS, design_named


class Fixed(torch.nn.Module):
    """A network whose logits are its image: one channel for each structure, against a background of 0."""

    total_stride, margin, last_bias, taps, dimensions = 1, None, "bias", {}, 2

    def __init__(self, structures: int = 1):
        super().__init__()
        self.classes = structures + 1
        self.bias = torch.nn.Parameter(torch.zeros(self.classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = torch.cat([torch.zeros_like(x[:, :1]), x], dim=1)
        return logits + self.bias.reshape(1, -1, 1, 1)


def a_case(number: int, logits: np.ndarray, target: np.ndarray, **facts) -> PreparedCase:
    nowhere = np.zeros((0, 3), np.int32)
    return PreparedCase(str(number), str(number), logits.astype(np.float16), target, nowhere, **facts)


def a_training(cases: list[PreparedCase], structures: int = 1) -> Training:
    fabric = new_fabric("cpu", "32-true")
    settings = dataclasses.replace(SETTINGS, patch_size_voxels=(*cases[0].image.shape[1:3], 1))
    return new_training(fabric, Fixed(structures), (cases[1:], cases[:1]), settings, 10**6)


def logit(probability):
    return np.log(probability / (1 - probability))


def doubtful_cases(share: float, count: int = 40) -> list[PreparedCase]:
    """A square in half of the image that is there in a share of the cases, and looks the same in all."""
    logits = np.full((1, 16, 16, 1), -8.0)
    logits[0, :8] = logit(share)
    there = np.zeros((1, 16, 16, 1), np.uint8)
    there[0, :8] = 1
    return [a_case(n, logits, there * np.uint8(n < share * count)) for n in range(count)]


@pytest.mark.parametrize("share", [0.2, 0.35, 0.7])
def test_what_is_there_in_a_third_of_the_cases_is_drawn(share):
    """Drawn in all cases its Dice is 2 share / (1 + share); not drawn, 0. From the middle on no shift is needed."""
    training = a_training(doubtful_cases(share))
    before, shift = held_out_dice(training), settle_decision(training, PROGRESS)
    assert (before > 0) == (share > 0.5)
    assert shift == (0 if share > 0.5 else pytest.approx(-logit(share), abs=0.06))
    assert held_out_dice(training) > 0.99, "the first case holds the structure"
    assert training.network.module.bias.tolist() == pytest.approx([-shift, 0])


def test_taught_probabilities_count_as_such():
    """A teacher that says 0.3 everywhere in a region is worth as much as 3 of 10 experts."""
    logits = np.full((1, 16, 16, 1), -8.0)
    logits[0, :8] = logit(0.3)
    taught = np.zeros((2, 16, 16, 1), np.uint8)
    taught[1, :8] = round(0.3 * 255)
    taught[0] = 255 - taught[1]
    messages = []
    progress = Progress("distil", messages.append)
    shift = settle_decision(a_training([a_case(n, logits, taught) for n in range(3)]), progress)
    assert shift == pytest.approx(-logit(0.3), abs=0.06)
    told = next(event["text"] for event in messages if event["event"] == "message")
    assert f"from {1 / (1 + math.exp(shift)):.2f} on" in told
    assert f"is {2 * (76 / 255) / (1 + 76 / 255):.3f} so, instead of 0.000" in told


def test_too_much_is_drawn_less():
    logits, there = np.full((1, 16, 16, 1), 0.5), np.zeros((1, 16, 16, 1), np.uint8)
    there[0, :4] = 1
    logits[0, :4] = 2
    training = a_training([a_case(n, logits, there) for n in range(3)])
    assert settle_decision(training, PROGRESS) < -0.5 + 0.06
    assert held_out_dice(training) == 1


def test_where_nothing_is_known_or_nothing_is_gained_nothing_is_shifted():
    logits, nothing = np.full((1, 16, 16, 1), -8.0), np.zeros((1, 16, 16, 1), np.uint8)
    assert settle_decision(a_training([a_case(n, logits, nothing) for n in range(3)]), PROGRESS) == 0
    sure = nothing.copy()
    sure[0, :8] = 1
    training = a_training([a_case(n, logits + 16 * sure, sure) for n in range(3)])
    assert settle_decision(training, PROGRESS) == 0 and held_out_dice(training) == 1


def test_the_overlaps_are_those_of_a_slow_loop():
    """With three structures, weights, and one structure that nobody judged."""
    random = np.random.default_rng(0)
    logits, target = random.normal(-0.5, 1, (3, 6, 5, 1)), random.dirichlet(np.ones(4), (6, 5, 1))
    target = np.round(255 * target.transpose(3, 0, 1, 2)).astype(np.uint8)
    case = a_case(0, logits, target, weights=random.integers(0, 256, (1, 6, 5, 1)).astype(np.uint8), unknown=(2,))
    training = a_training([case, case], structures=3)
    both, drawn, taught = _overlaps(training, case)
    for place in (0, 20, 40, 57, 80):
        slow = np.zeros((3, 3))
        for i in range(6):
            for j in range(5):
                scores = [-SHIFTS[place], *case.image[:, i, j, 0].astype(float)]
                channel, weight = int(np.argmax(scores)), case.weights[0, i, j, 0] / 255
                for c in (1, 3):
                    slow[2, c - 1] += weight * target[c, i, j, 0] / 255
                if channel in (1, 3):
                    slow[0, channel - 1] += 2 * weight * target[channel, i, j, 0] / 255
                    slow[1, channel - 1] += weight
        np.testing.assert_allclose([both[:, place], drawn[:, place], taught[:, place]], slow, atol=1e-6)


def test_many_cases_are_sampled_and_a_wish_to_stop_leaves_the_network_as_it_was():
    cases, seen = doubtful_cases(0.2, 240), []
    progress = Progress("distil", seen.append, cancel_requested=lambda: len(seen) > 1)
    training = a_training(cases)
    with pytest.raises(Cancelled):
        settle_decision(training, progress)
    assert training.network.module.bias.tolist() == [0, 0]
    assert seen[0]["total"] == 80, "every third of 240"


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("name", STUDENTS)
def test_in_every_design_the_background_alone_is_lowered(name, dimensions):
    torch.manual_seed(0)
    network = build_network(design_named(name), dimensions, 1, 3).eval()
    image = torch.randn(1, 1, *[2 * network.total_stride] * dimensions)
    with torch.no_grad():
        before = network(image)
        lower_background(network, 0.75)
        after = network(image)
    difference = (before - after).flatten(2)[0]
    expected = torch.tensor([0.75, 0, 0])[:, None].expand_as(difference)
    torch.testing.assert_close(difference, expected, atol=1e-4, rtol=0)


def test_an_opinion_is_decided_as_its_teachers_decide():
    probabilities = np.array([[0.7, 0.5, 0.4, 1.0], [0.2, 0.5, 0.35, 0.0], [0.1, 0.0, 0.25, 0.0]], np.float32)
    probabilities = probabilities.reshape(3, 4, 1, 1)
    assert Opinion(probabilities).decided().ravel().tolist() == [0, 0, 0, 0]
    assert Opinion(probabilities, lowered=0.5).decided().ravel().tolist() == [0, 1, 1, 0]
    assert Opinion(probabilities, lowered=2.0).decided().ravel().tolist() == [1, 1, 1, 0]
    assert build_named_network("tiny", 2, 1, 3).last_bias == "head.bias"


def test_a_student_draws_more_and_teaches_the_same(a_teacher, a_foreign_cohort, tmp_path):
    """What it says as a teacher, and what a training starts from, is what it learnt."""
    before, lowered = as_it_learnt(load_student(a_teacher)), as_it_learnt(load_student(a_teacher))
    lower_background(lowered.network, 2)
    lowered.lowered = 2.0
    save_student(lowered, tmp_path / "student")
    student, volume = load_student(tmp_path / "student"), read_image(read_cohort(a_foreign_cohort).cases[0].images)
    assert student.lowered == 2
    np.testing.assert_allclose(student.predict(volume), before.predict(volume), atol=1e-5)
    drawn, drawn_before = student.segment(volume), before.segment(volume)
    assert np.count_nonzero(drawn) > 1.02 * np.count_nonzero(drawn_before)
    assert drawn[drawn_before > 0].all(), "it draws less somewhere"
    alone = Ensemble([student], [1.0]).judge(volume)
    pseudo = np.array(student.labels.values)[alone.decided()]
    assert (pseudo == drawn).mean() > 0.97 > (drawn_before == drawn).mean(), "more than resampling is between them"
    assert alone.lowered == 2 and Ensemble([student, before], [1.0, 3.0]).judge(volume).lowered == 0.5
    assert Ensemble([student, before], [1.0, 1.0], "majority").judge(volume).lowered == 0
    again = as_it_learnt(load_student(tmp_path / "student"))
    assert again.lowered == 0
    np.testing.assert_allclose(again.predict(volume), before.predict(volume), atol=1e-5)
