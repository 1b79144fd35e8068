"""Training: the loop that makes a student, in plain sight. Killed at any moment, it goes on bit for bit."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn

from ..records.progress import Progress
from ..records.run_directory import RunDirectory, written_whole
from ..records.settings import DistilSettings
from .augmentation import augment
from .batches import Batch, PreparedCase, Sampler, to_probabilities
from .configuration import LOOKS
from .decision import MOST_IN_BUDGET
from .features import Target, outputs_of, shapes_of
from .losses import WeightedLosses, losses_of
from .precursors import LiveTeacher
from .predictor import predict

CHECKPOINT_EVERY_S = 60
WARM_UP_SHARE = 0.2  # of the one-cycle schedule (Smith & Topin 2018, arXiv:1708.07120)
LATE_SHARE = 0.75  # of the training: from here on the rate is low, and one network differs little from the next
OVERRUN = 1.1  # a time budget may be exceeded by a tenth before the training is ended early


@dataclass
class State:
    """What a checkpoint holds: everything the rest of the training depends on."""

    step: int = 0
    best_dice: float = -1.0
    best_epoch: int = 0
    best_network: dict = field(default_factory=dict)
    history: list[dict] = field(default_factory=list)
    seconds: float = 0.0
    loss_sum: float = 0.0
    preparing_s: float = 0.0


@dataclass
class Training:
    """A network, what it learns from, and how far it has come."""

    fabric: Fabric
    network: nn.Module
    optimizer: torch.optim.Optimizer
    loss: nn.Module
    sampler: Sampler
    held_out: list[PreparedCase]
    settings: DistilSettings
    state: State
    limit_voxels: int
    teacher: LiveTeacher | None = None

    @property
    def total_steps(self) -> int:
        return self.settings.epochs * self.sampler.steps_per_epoch


def new_fabric(device: str, precision: str) -> Fabric:
    """Fabric on one device, or on as many as torchrun or Slurm started processes for."""
    nodes = int(os.environ.get("SLURM_NNODES") or os.environ.get("GROUP_WORLD_SIZE") or 1)
    ranks = int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1)
    fabric = Fabric(accelerator=device, devices=max(1, ranks // nodes), num_nodes=nodes, precision=precision)
    if ranks > 1:
        fabric.launch()
    return fabric


def new_training(  # noqa: PLR0913 (what a training is made of)
    fabric: Fabric, network: nn.Module, cases: tuple[list, list], settings: DistilSettings, limit_voxels: int,
    teacher: LiveTeacher | None = None,
) -> Training:  # fmt: skip
    """A training at its beginning; `cases` are those to learn from and those held out."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # NaN into all new memory: costs time, changes nothing
    loss = _new_losses(network, len(cases[0][0].image), settings, teacher)
    network.to(memory_format=_memory_format(network))
    parameters = [*network.parameters(), *loss.parameters()]
    optimizer = torch.optim.AdamW(parameters, settings.learning_rate, weight_decay=settings.weight_decay)
    sampler = Sampler(cases[0], network.classes, settings, fabric.global_rank, fabric.world_size)
    network, optimizer = fabric.setup(network, optimizer)
    loss = fabric.to_device(loss)
    return Training(fabric, network, optimizer, loss, sampler, cases[1], settings, State(), limit_voxels, teacher)


def _memory_format(network: nn.Module) -> torch.memory_format:
    """Channels last where convolutions run faster so: pictures, unless norms other than batch norm want them first.

    Measured on a CPU with bf16, one step beside one with channels first: s1 and s2 0.75, attention-unet, sdu-net and
    unet 0.8 to 0.9, other U-Nets and ResNets 0.96 to 1.1; dynunet 1.2, segresnet 1.3, and with three axes up to 1.1.
    """
    other_norms = (nn.InstanceNorm2d, nn.GroupNorm, nn.LayerNorm)
    plain = network.dimensions == 2 and not any(isinstance(module, other_norms) for module in network.modules())  # noqa: PLR2004
    return torch.channels_last if plain else torch.preserve_format


def _new_losses(network: nn.Module, channels: int, settings: DistilSettings, teacher: LiveTeacher | None):
    """The losses, whose heads fit both networks; the same seed gives the same heads."""
    shapes = shapes_of(network, teacher.network if teacher else None, channels)
    torch.manual_seed(settings.seed)
    return WeightedLosses(losses_of(settings), shapes, settings)


def train(training: Training, run: RunDirectory, progress: Progress) -> None:
    """Train to the end, from where a checkpoint left off; the network to keep is in `training.state.best_network`.

    Raises:
        Cancelled: the user asked for it; the checkpoint holds everything so far.
    """
    if training.fabric.broadcast(run.checkpoint.is_file()):  # one process looks: another may already see what it saved
        restore(training, run)
    else:
        if training.settings.start_from:
            _look_at_start(training, progress)
        save(training, run)  # from here on, nothing needs to be prepared again
    state, sampler = training.state, training.sampler
    stage = progress.stage("train", training.total_steps, state.step)
    saved = time.monotonic()
    with ThreadPoolExecutor(max_workers=1) as threads:
        coming = threads.submit(sampler, state.step)
        while state.step < training.total_steps and not _ended_early(training, progress):
            began = time.monotonic()
            batch = coming.result()
            coming = threads.submit(sampler, state.step + 1)
            train_step(training, batch, began)
            state.step += 1
            looked = end_epoch(training, progress) if state.step % sampler.steps_per_epoch == 0 else False
            state.seconds += time.monotonic() - began
            stop = progress.stop = training.fabric.broadcast(progress.stop_asked())  # all processes stop together
            if looked or stop or time.monotonic() - saved > CHECKPOINT_EVERY_S:
                save(training, run)
                saved = time.monotonic()
            text = f"epoch {1 + (state.step - 1) // sampler.steps_per_epoch} of {training.settings.epochs}"
            stage.advance(text=text, check=stop)


def train_step(training: Training, batch: Batch, began: float) -> None:
    """One step of gradient descent on a batch as the sampler gives it."""
    state, fabric = training.state, training.fabric
    target = augmented_target(training, batch)
    state.preparing_s += time.monotonic() - began
    for group in training.optimizer.param_groups:
        group["lr"] = learning_rate(state.step / training.total_steps, training.settings.learning_rate)
    training.network.train()
    taught = training.teacher.outputs(target.image, training.loss.teacher_taps) if training.teacher else None
    loss = training.loss(outputs_of(training.network, target.image, training.loss.student_taps), taught, target)
    training.optimizer.zero_grad(set_to_none=True)
    fabric.backward(loss)
    _average_gradients(training)
    parts = [list(module.parameters()) for module in (training.network, training.loss)]
    norms = [nn.utils.clip_grad_norm_(part, 1.0) for part in parts if part]  # each alone: Fabric clips them together
    value = float(loss.detach())
    if not all(map(math.isfinite, (value, *map(float, norms)))):
        raise ValueError(
            f"the loss is no number any more at step {state.step}; try a lower --learning-rate, or 32-true"
        )
    training.optimizer.step()
    state.loss_sum += value


def augmented_target(training: Training, batch: Batch) -> Target:
    """What the network sees of a batch and shall say of it, changed at random; without a third axis in 2-D."""
    random = torch.Generator().manual_seed(_seed_of_step(training))
    image, target, weights, known = (
        tensor if tensor is None else training.fabric.to_device(tensor) for tensor in batch
    )
    target = to_probabilities(target, training.sampler.classes)
    others = () if weights is None else (weights,)
    moved = augment(image, target, training.settings, random, *others)
    flat = training.network.dimensions == 2  # noqa: PLR2004
    image, target, *others = (tensor[..., 0] if flat else tensor for tensor in moved)
    return Target(target, image, others[0] if others else None, known)


def _average_gradients(training: Training) -> None:
    """Of the losses' heads, over all processes; those of the network Fabric has averaged."""
    if training.fabric.world_size > 1:
        for parameter in training.loss.parameters():  # all of them: each process waits for the others
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = training.fabric.all_reduce(gradient, reduce_op="mean")


def end_epoch(training: Training, progress: Progress) -> bool:
    """Write an epoch's line in the history; now and then look at the held-out patients and keep the network.

    Returns:
        whether it looked.
    """
    state, steps = training.state, training.sampler.steps_per_epoch
    epoch = state.step // steps
    row = {
        "epoch": epoch,
        "iteration": state.step,
        "loss": state.loss_sum / steps,
        "validation_dice": None,
        "learning_rate": training.optimizer.param_groups[0]["lr"],
        "duration_s": round(state.seconds, 3),
        "preparing_s": round(state.preparing_s, 3),
    }
    state.loss_sum = 0.0
    if epoch % training.settings.validate_every_epochs == 0 or state.step >= training.total_steps:
        row["validation_dice"] = dice = training.fabric.broadcast(held_out_dice(training))
        if _is_better(training, dice, epoch):
            _keep(training, dice, epoch)
    state.history.append(row)
    progress.event("metrics", **row)
    return row["validation_dice"] is not None


def _is_better(training: Training, dice: float, epoch: int) -> bool:
    """Whether the network of this epoch takes the place of the one that is kept.

    The best of those late in the training is kept: the held-out patients are few, and an earlier one may do well on
    them by chance. Should the training end before, it is the latest; with patience, which may end it at any time, the
    best of all.
    """
    state, settings = training.state, training.settings
    late = 1 if settings.patience_epochs else LATE_SHARE * settings.epochs
    only_early = not state.best_network or 0 < state.best_epoch < late  # epoch 0: what is fine-tuned
    return only_early or (epoch >= late and dice > state.best_dice)


def _look_at_start(training: Training, progress: Progress) -> None:
    """What is fine-tuned is kept as long as the held-out patients show no better network."""
    dice = training.fabric.broadcast(held_out_dice(training))
    _keep(training, dice, 0)
    progress.message(f"before fine-tuning, the Dice of the held-out patients is {dice:.3f}")


def _keep(training: Training, dice: float, epoch: int) -> None:
    state = training.state
    state.best_dice, state.best_epoch = dice, epoch
    state.best_network = {k: v.detach().cpu().clone() for k, v in training.network.module.state_dict().items()}


def held_out_dice(training: Training) -> float:
    """Dice of each known structure with what it was annotated with, the mean over the structures.

    The voxels of all held-out cases are counted together (as in nnU-Net, Isensee et al. 2021): they are few, and where
    a structure is small or missing the Dice of a single case says little.
    """
    network = training.network.module.eval()
    both, drawn = np.zeros((2, training.sampler.classes), int)
    for case in training.held_out:
        image = torch.from_numpy(np.asarray(case.image, np.float32))
        decision = predict(network, image, network.dimensions, training.limit_voxels).max(0).indices.numpy()
        truth = np.asarray(case.target[0] if len(case.target) == 1 else case.target.argmax(0))
        for channel in sorted({*range(1, training.sampler.classes)} - {*case.unknown}):
            a, b = decision == channel, truth == channel
            both[channel] += np.count_nonzero(a & b)
            drawn[channel] += np.count_nonzero(a) + np.count_nonzero(b)
    there = drawn > 0
    return float(np.mean(2 * both[there] / drawn[there])) if there.any() else 0.0


def learning_rate(share: float, highest: float) -> float:
    """One-cycle rate after a share (0..1) of the training: a cosine up from 1/25, then down to nearly nothing."""
    if share < WARM_UP_SHARE:
        return highest * (0.04 + 0.96 * (0.5 - 0.5 * math.cos(math.pi * share / WARM_UP_SHARE)))
    return highest * (1e-4 + 0.9999 * (0.5 + 0.5 * math.cos(math.pi * (share - WARM_UP_SHARE) / (1 - WARM_UP_SHARE))))


def save(training: Training, run: RunDirectory) -> None:
    """Write the checkpoint whole or not at all; only the first process does."""
    if training.fabric.is_global_zero:
        content = {
            "state": vars(training.state),
            "network": training.network.module.state_dict(),
            "optimizer": training.optimizer.state_dict(),
            "loss": training.loss.state_dict(),
        }
        with written_whole(run.checkpoint) as temporary:
            torch.save(content, temporary)
    training.fabric.barrier()


def restore(training: Training, run: RunDirectory) -> None:
    """Take up the checkpoint.

    Raises:
        ValueError: the checkpoint is damaged or of another training; the message says what to do.
    """
    try:
        content = torch.load(run.checkpoint, map_location="cpu", weights_only=True)
        training.state = State(**content["state"])
        training.network.module.load_state_dict(content["network"])
        training.optimizer.load_state_dict(content["optimizer"])
        training.loss.load_state_dict(content["loss"])
    except Exception as error:
        reason = "it is damaged, or of another training"  # torch's own words advise to load it unsafely
        raise ValueError(f"{run.checkpoint}: cannot be taken up ({reason}); begin anew with --restart") from error


def length_for(minutes: float, training: Training) -> tuple[int, int]:
    """What fits into a time budget: epochs, and epochs between two looks at the held-out patients.

    A few steps and a look are timed and undone. Left are a twentieth and what decision.py takes; looks take up a third.
    """
    parts = (training.network.module, training.optimizer, training.loss)
    before = copy.deepcopy([part.state_dict() for part in parts])
    trial = dataclasses.replace(training, state=State(), settings=dataclasses.replace(training.settings, epochs=1))
    step_s = float(np.median([_seconds(lambda: train_step(trial, training.sampler(0), 0.0)) for _ in range(6)]))
    case_s = _seconds(lambda: held_out_dice(dataclasses.replace(training, held_out=training.held_out[:1])))
    for part, content in zip(parts, before, strict=True):
        part.load_state_dict(content)
    budget_s, look_s = minutes * 60 * 0.95 - case_s * MOST_IN_BUDGET, case_s * len(training.held_out)
    looks = int(np.clip(budget_s / 3 / look_s, 1, LOOKS))
    epochs = max(1, int((budget_s - looks * look_s) / (step_s * training.sampler.steps_per_epoch)))
    return epochs, -(-epochs // looks)


def _seconds(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def _seed_of_step(training: Training) -> int:
    parts = (training.settings.seed, 3, training.state.step, training.fabric.global_rank)
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


def _ended_early(training: Training, progress: Progress) -> bool:
    """Whether the training ends after a look at the held-out patients: patience spent, or far over the time budget."""
    state, settings = training.state, training.settings
    between = state.step % training.sampler.steps_per_epoch
    if between or not state.history or state.history[-1]["validation_dice"] is None:
        return False
    epoch = state.step // training.sampler.steps_per_epoch
    if settings.patience_epochs and epoch - state.best_epoch >= settings.patience_epochs:
        progress.message(f"no better student for {settings.patience_epochs} epochs: ended early at epoch {epoch}")
        return True
    over = settings.minutes is not None and state.seconds > settings.minutes * 60 * OVERRUN
    if training.fabric.broadcast(over):
        progress.warning(f"the time budget of {settings.minutes} minutes is spent: ended early at epoch {epoch}")
        return True
    return False
