"""Losses: the standing tests of every loss, equality with slow plain formulas, mixed precision, and their memory."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.losses import DiceLoss

from KnowledgeTransferLib.learning.features import Outputs, Shapes, Target, outputs_of, shapes_of
from KnowledgeTransferLib.learning.losses import LOSSES, WeightedLosses, losses_of
from KnowledgeTransferLib.learning.losses import voxel_contrastive as voxel_module
from KnowledgeTransferLib.learning.losses.loss import Head, standardised
from KnowledgeTransferLib.learning.losses.segmentation import dice_loss
from KnowledgeTransferLib.records.losses import USUAL_WEIGHTS, check_losses, weight_of
from KnowledgeTransferLib.records.settings import DistilSettings

EVERY_LOSS = pytest.mark.parametrize("name", LOSSES)
CLASSES = 3  # and as many channels in every feature and in the image, so that heads can do nothing
GRIDS = {"encoder1": 8, "encoder2": 4, "bottleneck": 2, "decoder2": 4, "decoder1": 8}
SHAPES = {tap: (CLASSES, edge, edge) for tap, edge in GRIDS.items()}
SETTINGS = DistilSettings(contrastive_temperature=0.4, response_temperature=2.0)
BLOCKS = torch.tensor([[[0, 1], [2, 0]], [[1, 2], [0, 1]]])  # the class of each quarter of the two images


@pytest.fixture(autouse=True)
def few_voxels(monkeypatch):
    """Enough to be right, and quick."""
    for name, number in (("DRAWN", 8), ("REMEMBERED", 16), ("HARDEST", 16)):
        monkeypatch.setattr(voxel_module, name, number)


def randoms(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).float()


def outputs(seed: int, features: dict | None = None) -> Outputs:
    """Random outputs of a network for two images."""
    usual = {tap: randoms(seed + 7 * n, 2, *shape) for n, (tap, shape) in enumerate(SHAPES.items())}
    return Outputs(2 * randoms(seed, 2, CLASSES, 8, 8), features or usual)


def quarters(edge: int) -> torch.Tensor:
    """Probabilities `(2, CLASSES, edge, edge)`, in each quarter of an image those of one class alone."""
    classes = F.one_hot(BLOCKS, CLASSES).movedim(-1, 1).float()
    return F.interpolate(classes, size=(edge, edge), mode="nearest")


def perfect(name: str) -> tuple:
    """A loss whose heads do nothing, and a teacher and target for which the teacher's own outputs are the best."""
    loss, teacher = LOSSES[name](Shapes(SHAPES, SHAPES, (CLASSES, 8, 8), CLASSES), SETTINGS), outputs(0)
    target = Target(quarters(8), randoms(99, 2, CLASSES, 8, 8))
    for parameter in loss.parameters():
        torch.nn.init.dirac_(parameter) if parameter.ndim > 2 else torch.nn.init.zeros_(parameter)
    if name == "dice-ce":
        target = Target(teacher.logits.softmax(1), target.image)
    elif name == "contrastive":  # two images that are opposites: nothing is less alike
        teacher = outputs(0, {tap: torch.cat([f[:1], -f[:1]]) for tap, f in teacher.features.items()})
    elif "contrastive" in name:  # classes that are as unlike as three can be
        teacher = outputs(0, {tap: 3 * quarters(edge) - 1 for tap, edge in GRIDS.items()})
    elif name == "deep-supervision":
        coarse = randoms(3, 2, CLASSES, 2, 2)
        teacher = outputs(0, {tap: F.interpolate(coarse, size=(edge, edge)) for tap, edge in GRIDS.items()})
        target = Target(F.interpolate(coarse.softmax(1), size=(8, 8)), target.image)
    elif name == "reconstruction":
        loss.decoder.forward = lambda features: features[0]
        target = Target(target.probabilities, teacher.features["encoder1"])
    return loss, teacher, target


def moved(teacher: Outputs, size: float, seed: int) -> Outputs:
    """A student that differs from the teacher in everything."""
    other = outputs(seed)
    features = {tap: feature + size * other.features[tap] for tap, feature in teacher.features.items()}
    return Outputs(teacher.logits + size * other.logits, features)


def with_gradient(given: Outputs) -> Outputs:
    features = {tap: feature.clone().requires_grad_() for tap, feature in given.features.items()}
    return Outputs(given.logits.clone().requires_grad_(), features)


def read_by(loss, student: Outputs) -> list[torch.Tensor]:
    """What of a student's outputs the loss reads."""
    return [student.features[tap] for tap in loss.student_taps] or [student.logits]


@EVERY_LOSS
@pytest.mark.parametrize("size", [0.01, 0.1, 1.0, 5.0])
def test_no_student_near_the_teacher_is_better_than_the_teacher_itself(name, size):
    loss, teacher, target = perfect(name)
    with torch.no_grad():
        least = copy.deepcopy(loss)(teacher, teacher, target)
        for seed in range(1, 6):
            assert copy.deepcopy(loss)(moved(teacher, size, seed), teacher, target) > least + 1e-7


@EVERY_LOSS
def test_the_gradient_vanishes_where_the_student_equals_the_teacher_and_nowhere_near(name):
    for size, vanishes in ((0.0, True), (0.5, False)):
        loss, teacher, target = perfect(name)
        student = with_gradient(moved(teacher, size, 1))
        loss(student, teacher, target).backward()
        largest = max(float(g.abs().max()) for g in (t.grad for t in read_by(loss, student)) if g is not None)
        assert (largest < 1e-6) == vanishes


@EVERY_LOSS
def test_the_gradient_reaches_the_student_and_the_heads(name):
    wider = {tap: (5, 2 * shape[1], 2 * shape[2]) for tap, shape in SHAPES.items()}
    loss = LOSSES[name](Shapes(SHAPES, wider, (1, 16, 16), CLASSES), SETTINGS)
    teacher = Outputs(randoms(5, 2, CLASSES, 8, 8), {tap: randoms(6, 2, *shape) for tap, shape in wider.items()})
    student = with_gradient(outputs(1))
    image = randoms(8, 2, 1, 16, 16) if name == "reconstruction" else randoms(8, 2, 1, 8, 8)
    loss(student, teacher, Target(quarters(8), image)).backward()
    for tensor in read_by(loss, student):
        reached = (tensor.grad.abs().amax((0, 2, 3)) > 0).tolist()
        assert all(reached), f"channels reached: {reached}"
    for title, parameter in loss.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, title


@EVERY_LOSS
def test_a_patch_without_any_structure_does_no_harm(name):
    loss, teacher, target = perfect(name)
    background = torch.zeros_like(target.probabilities)
    background[:, 0] = 1
    student = with_gradient(moved(teacher, 0.5, 1))
    value = loss(student, teacher, Target(background, target.image))
    value.backward()
    gradients = [tensor.grad for tensor in read_by(loss, student) if tensor.grad is not None]
    assert value.isfinite() and gradients and all(gradient.isfinite().all() for gradient in gradients)


class SmallNetwork(torch.nn.Module):
    """Two levels with norms, as the designs have them."""

    def __init__(self, width: int):
        super().__init__()
        self.dimensions, self.classes, self.total_stride = 2, CLASSES, 2
        self.fine, self.coarse = self._level(1, width, 1), self._level(width, 2 * width, 2)
        self.up, self.decoder = torch.nn.ConvTranspose2d(2 * width, width, 2, 2), self._level(width, width, 1)
        self.head = torch.nn.Conv2d(width, CLASSES, 1)
        self.taps = {"encoder1": "fine", "bottleneck": "coarse", "decoder1": "decoder"}

    @staticmethod
    def _level(before: int, width: int, stride: int) -> torch.nn.Module:
        conv = torch.nn.Conv2d(before, width, 3, stride, 1)
        return torch.nn.Sequential(conv, torch.nn.BatchNorm2d(width), torch.nn.ReLU())

    def forward(self, x):
        return self.head(self.decoder(self.up(self.coarse(self.fine(x)))))


@EVERY_LOSS
def test_mixed_precision_gives_nearly_the_same_loss_and_good_gradients(name):
    torch.manual_seed(0)
    student, teacher, image = SmallNetwork(4), SmallNetwork(6).eval(), randoms(1, 4, 1, 16, 16)
    fine = F.interpolate(quarters(8), size=(16, 16)).repeat(2, 1, 1, 1)
    settings, values = dataclasses.replace(SETTINGS, scales=("encoder1", "bottleneck", "decoder1")), []
    loss = LOSSES[name](shapes_of(student, teacher, 1), settings)
    for mixed in (False, True):
        student.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            found = outputs_of(student, image, student.taps)
            with torch.no_grad():
                taught = outputs_of(teacher, image, teacher.taps)
        assert found.logits.dtype == (torch.bfloat16 if mixed else torch.float32)
        value = copy.deepcopy(loss)(found, taught, Target(fine, image))
        value.backward()
        values.append(float(value.detach()))
        gradients = [p.grad for p in student.parameters() if p.grad is not None]
        assert gradients and all(gradient.isfinite().all() for gradient in gradients)
    assert values[1] == pytest.approx(values[0], rel=0.03)


# Slow plain formulas


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.sqrt((vector**2).sum())


def standard(array: np.ndarray) -> np.ndarray:
    """Each channel `array[:, c]` with mean 0 and variance 1."""
    array = array.astype(float).copy()
    for c in range(array.shape[1]):
        array[:, c] = (array[:, c] - array[:, c].mean()) / math.sqrt(array[:, c].var() + 1e-5)
    return array


def projected(head: torch.nn.Module, features: torch.Tensor) -> np.ndarray:
    weight = getattr(head, "project", head).weight.detach().numpy()[:, :, 0, 0].astype(float)
    return np.einsum("oc,bcij->boij", weight, features.numpy().astype(float))


def a_pair(name: str) -> tuple:
    """A loss of one pair of taps that differ in channels and grid, with a student and a teacher."""
    own, other = {"encoder1": (3, 4, 4)}, {"encoder1": (5, 8, 8)}
    torch.manual_seed(1)
    loss = LOSSES[name](Shapes(own, other, (1, 8, 8), CLASSES), dataclasses.replace(SETTINGS, scales=("encoder",)))
    student, teacher = ({"encoder1": randoms(n, 3, *s["encoder1"])} for n, s in ((1, own), (2, other)))
    target = Target(randoms(3, 3, CLASSES, 8, 8).softmax(1), torch.zeros(3, 1, 8, 8))
    return loss, Outputs(randoms(4, 3, CLASSES, 8, 8), student), Outputs(torch.zeros(1), teacher), target


def places_of(classes: torch.Tensor) -> list[torch.Tensor]:
    """Where each class lies in `(B, *grid)`."""
    return [(classes.flatten() == name).nonzero()[:, 0] for name in range(CLASSES)]


def pooled(features: torch.Tensor) -> np.ndarray:
    """The mean of blocks of 2 x 2."""
    array = features.numpy().astype(float)
    return (array[..., ::2, ::2] + array[..., 1::2, ::2] + array[..., ::2, 1::2] + array[..., 1::2, 1::2]) / 4


def test_contrastive_equals_its_formula():
    loss, student, teacher, target = a_pair("contrastive")
    own = standard(projected(loss.heads[0], student.features["encoder1"]))
    other = standard(pooled(teacher.features["encoder1"]))
    expected = 0.0
    for i in range(3):
        scores = [math.exp(float(unit(own[i].ravel()) @ unit(other[j].ravel())) / 0.4) for j in range(3)]
        expected -= math.log(scores[i] / sum(scores)) / 3
    assert float(loss(student, teacher, target)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ["voxel-contrastive", "structure-contrastive"])
@pytest.mark.parametrize("hardest", [3, 1000])
def test_voxel_contrastive_equals_its_formula(name, hardest, monkeypatch):
    monkeypatch.setattr(voxel_module, "DRAWN", 2)
    monkeypatch.setattr(voxel_module, "REMEMBERED", 4)
    monkeypatch.setattr(voxel_module, "HARDEST", hardest)
    loss, student, teacher, target = a_pair(name)
    bank = randoms(9, CLASSES, 4, 5)
    bank[1, 2:] = 0  # not filled yet
    loss.bank0.copy_(bank)
    classes = pooled(target.probabilities).argmax(1)
    places, drawn = loss._draw(places_of(torch.from_numpy(classes)), 0)
    images, voxels = places // 16, places % 16
    own = projected(loss.heads[0], student.features["encoder1"]).reshape(3, 5, 16)[images, :, voxels]
    nearest = teacher.features["encoder1"][:, :, 1::2, 1::2].numpy().astype(float)
    other = nearest.reshape(3, 5, 16)[images, :, voxels]
    assert (classes.reshape(3, 16)[images, voxels] == drawn.numpy()).all()
    remembered = [(c, v) for c in range(CLASSES) for v in bank[c].numpy().astype(float) if v.any()]
    vectors = np.stack([*other, *(v for _, v in remembered)])
    own, vectors = ([unit(v) for v in standard(vectors)] for vectors in (own, vectors))
    names, other = [*drawn.tolist(), *(c for c, _ in remembered)], vectors[: len(own)]
    known = list(zip(names, vectors, strict=True))
    terms = []
    for anchor, place, mine in zip(own, other, drawn.tolist(), strict=True):
        negatives = sorted((math.exp(anchor @ v / 0.4) for c, v in known if c != mine), reverse=True)[:hardest]
        positives = [place] if name == "voxel-contrastive" else [v for c, v in known if c == mine]
        scores = [math.exp(anchor @ p / 0.4) for p in positives]
        terms.append(np.mean([-math.log(p / (p + sum(negatives))) for p in scores]))
    assert float(loss(student, teacher, target)) == pytest.approx(np.mean(terms), rel=1e-4)


@pytest.mark.parametrize("shape", [(20, 3), (2, 3, 4, 5), (2, 3, 4, 5, 2)], ids=["vectors", "2-D", "3-D"])
def test_standardised_features_and_their_gradient_are_those_of_batch_norm(shape):
    features, weights, found = 3 * randoms(1, *shape) + 5, randoms(2, *shape), []
    features[:, 1] = 7  # nothing to tell voxels apart by
    for formula in (standardised, lambda maps: F.batch_norm(maps, None, None, training=True)):
        given = features.clone().requires_grad_()
        values = formula(given)
        (values * weights).sum().backward()
        found.append((values.detach(), given.grad))
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)  # torch rounds where nothing varies


@pytest.mark.parametrize("name", ["contrastive", "voxel-contrastive", "structure-contrastive", "feature-mse"])
def test_a_student_whose_features_are_all_dead_has_finite_gradients(name):
    loss, student, teacher, target = a_pair(name)
    dead = with_gradient(Outputs(student.logits, {"encoder1": torch.zeros(3, 3, 4, 4)}))
    value = loss(dead, teacher, target)
    value.backward()
    assert value.isfinite() and dead.features["encoder1"].grad.isfinite().all()


def test_feature_mse_equals_its_formula():
    loss, student, teacher, target = a_pair("feature-mse")
    own = standard(projected(loss.heads[0], student.features["encoder1"]))
    expected = ((own - standard(pooled(teacher.features["encoder1"]))) ** 2).mean()
    assert float(loss(student, teacher, target)) == pytest.approx(expected, rel=1e-4)


def test_attention_transfer_equals_its_formula():
    loss, student, teacher, target = a_pair("attention-transfer")
    own = (student.features["encoder1"].double() ** 2).sum(1, keepdim=True).numpy()
    other = pooled((teacher.features["encoder1"] ** 2).sum(1, keepdim=True))
    expected = np.mean([((unit(a.ravel()) - unit(b.ravel())) ** 2).sum() for a, b in zip(own, other, strict=True)])
    assert float(loss(student, teacher, target)) == pytest.approx(expected, rel=1e-4)


def test_region_affinity_equals_its_formula():
    loss, student, teacher, target = a_pair("region-affinity")
    sums, pairs = 0.0, 0
    for image in range(3):
        cosines = []
        for features, shares in (
            (student.features["encoder1"].numpy(), pooled(target.probabilities)),
            (teacher.features["encoder1"].numpy(), target.probabilities.numpy()),
        ):
            means = [
                unit(
                    sum(
                        shares[image, c, i, j] * features[image, :, i, j].astype(float)
                        for i, j in np.ndindex(*features.shape[2:])
                    )
                )
                for c in range(CLASSES)
            ]
            cosines.append({(a, b): means[a] @ means[b] for a in range(CLASSES) for b in range(a + 1, CLASSES)})
        sums += sum((cosines[0][pair] - cosines[1][pair]) ** 2 for pair in cosines[0])
        pairs += len(cosines[0])
    assert float(loss(student, teacher, target)) == pytest.approx(sums / pairs, rel=1e-4)


def test_structures_that_an_image_lacks_have_no_affinity():
    loss, student, teacher, target = a_pair("region-affinity")
    alone = torch.zeros_like(target.probabilities)
    alone[:, 0] = 1
    assert float(loss(student, teacher, Target(alone, target.image))) == 0.0


@pytest.mark.parametrize("live", [True, False], ids=["live teacher", "stored probabilities"])
def test_response_equals_its_formula(live):
    student, teacher = randoms(1, 2, CLASSES, 3, 2), randoms(2, 2, CLASSES, 3, 2)
    found = response(student, teacher if live else None, None if live else teacher.softmax(1))
    assert found == pytest.approx(slow_response(student.numpy(), teacher.numpy()), rel=1e-4)


def response(student, teacher, probabilities=None, temperature=2.0) -> float:
    loss = LOSSES["response"](None, dataclasses.replace(SETTINGS, response_temperature=temperature))
    target = Target(student.softmax(1) if probabilities is None else probabilities, student)
    return float(loss(Outputs(student), None if teacher is None else Outputs(teacher), target))


def slow_response(student: np.ndarray, teacher: np.ndarray) -> float:
    """T^2 times the mean over voxels of sum_c p log(p / q), T = 2."""
    terms = []
    for b in range(len(student)):
        for i, j in np.ndindex(*student.shape[2:]):
            p, q = (np.exp(z[b, :, i, j].astype(float) / 2) for z in (teacher, student))
            p, q = p / p.sum(), q / q.sum()
            terms.append(4 * float((p * np.log(p / q)).sum()))
    return float(np.mean(terms))


def test_response_of_one_channel_is_that_of_the_sigmoid_and_not_zero():
    student, teacher = randoms(1, 2, 1, 4, 4), randoms(2, 2, 1, 4, 4)
    p, q = torch.sigmoid(teacher.double() / 2), torch.sigmoid(student.double() / 2)
    expected = 4 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    assert response(student, teacher) == pytest.approx(float(expected), rel=1e-4)
    assert response(student, teacher) > 0.01


def test_a_high_temperature_leaves_the_mean_squared_difference_of_centred_logits():
    """Hinton et al. 2015, equation 4; so the weight of the loss does not depend on the temperature."""
    student, teacher = randoms(1, 2, CLASSES, 4, 4), randoms(2, 2, CLASSES, 4, 4)
    difference = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    expected = float((difference**2).sum(1).mean() / (2 * CLASSES))
    assert response(student, teacher, temperature=300.0) == pytest.approx(expected, rel=0.02)


def test_deep_supervision_is_the_weighted_sum_over_the_coarser_levels():
    loss = LOSSES["deep-supervision"](Shapes(SHAPES, {}, (1, 8, 8), CLASSES), SETTINGS)
    assert loss.student_taps == ("decoder2", "bottleneck")
    student, target = outputs(1), randoms(3, 2, CLASSES, 8, 8).softmax(1)
    parts = []
    for tap, head, shares in zip(
        loss.student_taps, loss.heads, (pooled(target), pooled(torch.from_numpy(pooled(target)))), strict=True
    ):
        logits = projected(head, student.features[tap]) + head.bias.detach().numpy()[:, None, None]
        parts.append(slow_dice_cross_entropy(logits, shares))
    expected = (2 * parts[0] + parts[1]) / 3
    assert float(loss(student, None, Target(target, torch.zeros(1)))) == pytest.approx(expected, rel=1e-4)


def test_reconstruction_is_the_mean_squared_difference_and_can_be_learnt():
    loss = LOSSES["reconstruction"](Shapes(SHAPES, {}, (1, 16, 16), CLASSES), SETTINGS)
    student, image = outputs(1), F.interpolate(randoms(3, 2, 1, 4, 4), size=(16, 16), mode="bilinear")
    painted = loss.decoder([student.features[tap] for tap in loss.student_taps])
    assert painted.shape == image.shape
    expected = ((painted - image) ** 2).sum() / image.numel()
    assert float(loss(student, None, Target(torch.zeros(1), image))) == pytest.approx(float(expected), rel=1e-5)
    optimizer = torch.optim.Adam(loss.parameters(), 1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        value = loss(student, None, Target(torch.zeros(1), image))
        value.backward()
        optimizer.step()
    assert float(value) < 0.3 * float(expected)


def slow_dice_cross_entropy(student: np.ndarray, target: np.ndarray, weight: np.ndarray | None = None) -> float:
    """1 - mean over structures of 2 sum(w p t) / (sum w p^2 + sum w t^2), plus -sum(w sum_c t log p) / sum w."""
    tiny, batch, classes = 1e-5, *student.shape[:2]
    weight = np.ones_like(student[:, :1]) if weight is None else weight
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


def dice_cross_entropy(student: torch.Tensor, target: torch.Tensor, **partial) -> float:
    return float(LOSSES["dice-ce"](None, SETTINGS)(Outputs(student), None, Target(target, torch.zeros(1), **partial)))


@pytest.mark.parametrize("soft", [True, False], ids=["soft", "hard"])
def test_dice_cross_entropy_equals_its_formula(soft):
    student, other = 2 * randoms(0, 2, 3, 4, 3, 2), 2 * randoms(1, 2, 3, 4, 3, 2)
    target = other.softmax(1) if soft else F.one_hot(other.argmax(1), 3).movedim(-1, 1).float()
    expected = slow_dice_cross_entropy(student.numpy(), target.numpy())
    assert dice_cross_entropy(student, target) == pytest.approx(expected, rel=1e-5)
    weights = randoms(2, 2, 1, 4, 3, 2).sigmoid()
    expected = slow_dice_cross_entropy(student.numpy(), target.numpy(), weights.numpy())
    assert dice_cross_entropy(student, target, weights=weights) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("empty", [False, True], ids=["there", "a class that is nowhere"])
def test_dice_and_its_gradient_are_those_of_monai(empty):
    found, truth = (randoms(seed, 2, 3, 4, 3, 2).softmax(1) for seed in (0, 1))
    if empty:
        found, truth = (torch.cat([part[:, :2], torch.zeros(2, 1, 4, 3, 2)], 1) for part in (found, truth))
    ours, theirs = (found.clone().requires_grad_() for _ in range(2))
    losses = (dice_loss(ours, truth), DiceLoss(include_background=False, squared_pred=True, batch=True)(theirs, truth))
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_right_hard_answer_costs_less_than_a_wrong_one():
    target = quarters(8)
    assert dice_cross_entropy(20 * target, target) < 0.01
    assert dice_cross_entropy(20 * target.roll(1, 1), target) > 1


# Voxels that count less, and structures that nobody judged

OF_CLASSES = pytest.mark.parametrize("name", ["dice-ce", "response", "deep-supervision"])
OF_REGIONS = [
    "dice-ce",
    "response",
    "deep-supervision",
    "voxel-contrastive",
    "structure-contrastive",
    "region-affinity",
]


@pytest.mark.parametrize("name", OF_REGIONS)
def test_weights_of_1_and_structures_that_are_all_known_change_nothing(name):
    loss, teacher, target = perfect(name)
    student = moved(teacher, 0.5, 1)
    alike = dataclasses.replace(target, weights=torch.ones(2, 1, 8, 8), known=torch.ones(2, 3, dtype=torch.bool))
    values = [float(copy.deepcopy(loss)(student, teacher, one).detach()) for one in (target, alike)]
    assert values[1] == pytest.approx(values[0], rel=1e-5) and values[0] > 0


@pytest.mark.parametrize("name", OF_REGIONS)
def test_voxels_of_weight_0_give_no_loss(name):
    loss, teacher, target = perfect(name)
    weights = torch.ones(2, 1, 8, 8)
    weights[:, :, :, 4:] = 0
    student = with_gradient(moved(teacher, 0.5, 1))
    copy.deepcopy(loss)(student, teacher, dataclasses.replace(target, weights=weights)).backward()
    for tensor in read_by(loss, student):
        reached = tensor.grad.abs().sum((0, 1, 2)) > 0
        half = len(reached) // 2
        assert reached[:half].any() and not reached[half:].any()
    nothing = loss(student, teacher, dataclasses.replace(target, weights=torch.zeros(2, 1, 8, 8)))
    assert float(nothing.detach()) == pytest.approx(0, abs=1e-5)


@OF_CLASSES
def test_what_a_student_says_of_an_unknown_structure_instead_of_the_background_does_not_matter(name):
    loss, _, target = perfect(name)
    known, hard = torch.tensor([[True, True, False], [True, True, True]]), quarters(8)
    hard[0, 0] += hard[0, 2]
    hard[0, 2] = 0
    target = Target(hard, target.image, None, known)
    student = outputs(1)

    def merged(logits: torch.Tensor) -> torch.Tensor:
        logits = logits.clone()
        logits[0, 0] = logits[0, [0, 2]].logsumexp(0)
        logits[0, 2] = -1e4
        return logits

    same = Outputs(merged(student.logits), {tap: merged(feature) for tap, feature in student.features.items()})
    found, expected = (float(loss(one, None, target).detach()) for one in (student, same))
    assert found == pytest.approx(expected, rel=1e-5)
    student = with_gradient(student)
    loss(student, None, target).backward()
    assert all(tensor.grad.isfinite().all() for tensor in read_by(loss, student))


def test_background_that_may_be_an_unknown_structure_is_not_drawn():
    known = torch.tensor([[True, True, False], [True, True, True]])
    found = voxel_module._certain_classes(Target(quarters(8), torch.zeros(1), None, known), torch.Size((2, 2)))
    assert found.tolist() == [[[-1, 1], [2, -1]], [[1, 2], [0, 1]]]


# Heads


def test_a_wide_teacher_is_mixed_into_fewer_channels_which_keeps_angles():
    torch.manual_seed(0)
    head, features = Head((4, 8, 8), (300, 8, 8), 32), randoms(1, 2, 300, 8, 8)
    assert head.project.out_channels == 32
    torch.testing.assert_close(head.mixing @ head.mixing.T, torch.eye(32), atol=1e-5, rtol=0)
    pair = [features, features + 0.7 * randoms(2, 2, 300, 8, 8)]
    expected, found = (
        F.cosine_similarity(*(part.flatten(1) for part in parts)) for parts in (pair, map(head.mixed, pair))
    )
    torch.testing.assert_close(found, expected, atol=0.03, rtol=0)
    vectors = features[:, :, 3, 2]
    torch.testing.assert_close(head.mixed(vectors), head.mixed(features)[:, :, 3, 2])


def test_a_narrow_teacher_is_taken_as_it_is():
    features = randoms(1, 2, 5, 4, 4)
    assert torch.equal(Head((3, 4, 4), (5, 4, 4), 16).mixed(features), features)


# The memory bank


def test_the_bank_holds_the_latest_voxels_of_each_class_and_repeats_bit_for_bit(monkeypatch):
    monkeypatch.setattr(voxel_module, "DRAWN", 2)
    monkeypatch.setattr(voxel_module, "REMEMBERED", 5)
    loss, student, teacher, target = a_pair("voxel-contrastive")
    for step in range(1, 4):
        before = loss.bank0.clone()
        loss(student, teacher, target)
        assert int(loss.steps) == step
        assert torch.equal(loss.bank0[:, 2:], before[:, :3])
        assert loss.bank0.any(2).sum(1).tolist() == [min(2 * step, 5)] * CLASSES
    again = a_pair("voxel-contrastive")[0]
    again.load_state_dict(loss.state_dict())
    assert float(again(student, teacher, target)) == float(loss(student, teacher, target))
    assert torch.equal(again.bank0, loss.bank0)


def test_a_class_that_is_absent_stays_in_the_bank():
    loss, student, teacher, target = a_pair("voxel-contrastive")
    loss(student, teacher, target)
    before, without = loss.bank0.clone(), torch.zeros_like(target.probabilities)
    without[:, 0] = 1
    value = loss(student, teacher, Target(without, target.image))
    assert torch.equal(loss.bank0[1:], before[1:]) and not torch.equal(loss.bank0[0], before[0])
    assert float(value) > 0, "the bank has the negatives that the batch lacks"


def test_what_is_remembered_does_not_depend_on_what_else_the_batch_shows():
    loss, student, teacher, target = a_pair("voxel-contrastive")
    without = torch.zeros_like(target.probabilities)
    without[:, 0] = 1
    loss(student, teacher, Target(without, target.image))
    seen = teacher.features["encoder1"].permute(0, 2, 3, 1).reshape(-1, 5)
    remembered = loss.bank0[0][loss.bank0[0].any(1)]
    assert len(remembered) and all((seen == vector).all(1).any() for vector in remembered)


def test_many_classes_share_the_voxels_that_are_drawn():
    shapes = {"encoder1": (3, 4, 4)}
    loss = LOSSES["voxel-contrastive"](
        Shapes(shapes, shapes, (1, 4, 4), 1000), dataclasses.replace(SETTINGS, scales=("encoder",))
    )
    assert loss.drawn * 1000 <= voxel_module.MOST_DRAWN and loss.bank0.shape == (1000, 4 * loss.drawn, 3)


def test_each_step_draws_other_voxels_and_the_seed_decides_which():
    loss, other = a_pair("voxel-contrastive")[0], a_pair("voxel-contrastive")[0]
    places = places_of(BLOCKS.repeat_interleave(8, 1).repeat_interleave(8, 2))
    first = loss._draw(places, 0)
    assert all(torch.equal(a, b) for a, b in zip(first, other._draw(places, 0), strict=True))
    loss.steps += 1
    other.seed = 1
    for changed in (loss, other):
        assert not torch.equal(changed._draw(places, 0)[0], first[0])


def test_both_losses_of_voxels_look_for_the_classes_once(monkeypatch):
    grids, slow = [], voxel_module._certain_classes
    monkeypatch.setattr(voxel_module, "_certain_classes", lambda target, grid: grids.append(grid) or slow(target, grid))
    shapes, target = Shapes(SHAPES, SHAPES, (CLASSES, 8, 8), CLASSES), Target(quarters(8), torch.zeros(1))
    WeightedLosses({"voxel-contrastive": 1.0, "structure-contrastive": 1.0}, shapes, SETTINGS)(
        outputs(1), outputs(2), target
    )
    assert sorted(grids) == [(2, 2), (4, 4), (8, 8)]


# What a run names


def test_every_loss_has_a_usual_weight():
    assert list(LOSSES) == list(USUAL_WEIGHTS)


def test_weights_add_up():
    student, target = outputs(1), Target(quarters(8), torch.zeros(1))
    values = {name: LOSSES[name](None, SETTINGS)(student, None, target) for name in ("dice-ce", "response")}
    both = WeightedLosses({"dice-ce": 2.0, "response": 3.0}, None, SETTINGS)(student, None, target)
    assert float(both) == pytest.approx(2 * float(values["dice-ce"]) + 3 * float(values["response"]), rel=1e-5)


@pytest.mark.parametrize(
    ("weights", "message"),
    [({}, "choose from dice-ce"), ({"dise": 1.0}, "choose from dice-ce"), ({"dice-ce": -1}, "0 or more is needed")],
)
def test_wrong_losses_are_refused_with_what_is_allowed(weights, message):
    with pytest.raises(ValueError, match=message):
        check_losses(weights)


def test_a_loss_is_written_with_or_without_its_weight():
    assert weight_of("contrastive=0.5") == ("contrastive", 0.5)
    assert weight_of("contrastive") == ("contrastive", USUAL_WEIGHTS["contrastive"])
    for text, message in (("magic", "choose from"), ("contrastive=much", "no number"), ("response=-1", "0 or more")):
        with pytest.raises(ValueError, match=message):
            weight_of(text)


def test_a_further_task_adds_its_loss_and_a_weight_of_0_takes_a_loss_away():
    both = DistilSettings(tasks=("segmentation", "reconstruction"))
    assert losses_of(both) == {"dice-ce": 1.0, "reconstruction": 0.2}
    assert losses_of(dataclasses.replace(both, losses={"contrastive": 0.3})) == {
        "dice-ce": 1.0, "reconstruction": 0.2, "contrastive": 0.3,
    }  # fmt: skip
    assert losses_of(dataclasses.replace(both, losses={"dice-ce": 0.0})) == {"reconstruction": 0.2}


def test_contrastive_needs_two_images():
    with pytest.raises(ValueError, match="batch-size of 2 or more"):
        LOSSES["contrastive"](Shapes(SHAPES, SHAPES, (1, 8, 8), CLASSES), dataclasses.replace(SETTINGS, batch_size=1))
