"""Memory: how large a piece of an image may go through a student's network at once."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from .predictor import PIECE_VALUES, blocks_of, halves_of
from .resources import FREE_SHARE, free_bytes, held_bytes
from .way_back import TOGETHER

if TYPE_CHECKING:
    from .student import Prepared, Student
    from .volume import Volume

WAY_BACK_BYTES = 24  # for each voxel of a block: winners, cells, where its row of the class maps is
OVERHEAD_BYTES = 100 << 20  # the corners of what is interpolated together, and the runtime's own
PASS_BYTES = 360 << 20  # more at once takes memory and saves no time, for little of it stays in the processor's cache
MOST_REPEATED = 1.5  # voxels that go through the network for each one of the image; what saves memory costs no more
LARGEST_TENSOR = (1 << 31) - 1  # elements; some kernels count them in 32 bits
COPIES = 4  # of the logits of a piece while they are made (measured: three to four)


def fitting_voxels(student: Student, prepared: Prepared) -> int:
    """Voxels of the largest piece of a prepared image that fits into the memory.

    Raises:
        ValueError: not even the smallest piece fits; the message says what would.
    """
    network, size = student.network, prepared.image.shape[1:]
    each, fixed = _demand(student, math.prod(size))
    fixed += OVERHEAD_BYTES + 4 * TOGETHER * student.labels.channels  # of the way back
    fixed += math.prod(prepared.grid.shape) + 4 * prepared.image.numel()
    free = free_bytes(student.how.most_bytes)
    most = LARGEST_TENSOR // student.labels.channels
    if network.margin is None:
        fixed += 8 * student.labels.channels * math.prod(size)  # the sum of all windows, and their weights
        most, smallest = min(most, student.limit_voxels), (2 * network.total_stride) ** network.dimensions
    else:
        smallest = math.prod(
            min(n + network.total_stride, 2 * network.margin + network.total_stride) for n in size[: network.dimensions]
        )
    fitting = min(most, (free - fixed) // each)
    if student.device == "cuda":
        fitting = min(most, int(torch.cuda.mem_get_info()[0] * FREE_SHARE) // each)
    if fitting < smallest:
        advice = what_would_fit(fixed + smallest * each, student.how.most_bytes)
        raise ValueError(f"{prepared.name}: segmenting it {advice}, or take a student of coarser spacing")
    return _comfortable(network, size, fitting, PASS_BYTES // each)


def _demand(student: Student, voxels: int) -> tuple[int, int]:
    """Bytes that a pass takes for each voxel that goes through, and those that it takes for the image as a whole."""
    channels = student.labels.channels
    way_back = WAY_BACK_BYTES + 4 * channels  # where every voxel lies at a border
    if not halves_of(student.runner, student.preprocessing.dimensions, student.how.mirror):
        return bytes_per_voxel(student) + way_back, 0
    body = int(4 * (1.5 * student.network.body_values_per_voxel + 2 * student.preprocessing.channels))
    return body, min(PIECE_VALUES // channels, voxels) * (4 * COPIES * channels + way_back)


def check_probabilities_fit(volume: Volume, classes: int, most_bytes: int | None = None) -> None:
    """Refuse a volume whose class probabilities do not fit into the memory, before they are made.

    Raises:
        ValueError: the message says what would be needed.
    """
    needed, free = 4.0 * classes * math.prod(volume.shape), free_bytes(most_bytes)
    if needed > free:
        advice = what_would_fit(needed, most_bytes)
        raise ValueError(f"{volume.name}: holding its {classes} class probabilities {advice}; `segment` needs none")


def what_would_fit(needed: float, most_bytes: int | None) -> str:
    """What a refusal tells: how many bytes are needed, how many may be taken, and with which limit it would fit."""
    gib, free, held = 1 / 2**30, free_bytes(), held_bytes()
    within = free if most_bytes is None else min(free, most_bytes - held)
    found = f"needs {needed * gib:.2f} GiB of memory beside what is in use"
    found = f"{found}, and {max(0, within) * gib:.2f} GiB may be taken"
    if within == free:
        return f"{found}; close other programs"
    return f"{found}; --max-memory {math.ceil((held + needed) * gib * 100) / 100:.2f} would do"


def _comfortable(network, size, fitting: int, voxels: int) -> int:
    """Fewer voxels than fit, where the blocks' margins then repeat little of the work."""
    if network.margin is None:
        return fitting
    while voxels < fitting:
        regions = [region for *_, region in blocks_of(network, network.dimensions, tuple(size), voxels)]
        if sum(math.prod(b - a for a, b in region) for region in regions) <= MOST_REPEATED * math.prod(size):
            return voxels
        voxels += voxels // 4
    return fitting


def bytes_per_voxel(student: Student) -> int:
    """What a network takes for each voxel of a piece: the values that are alive at once, the image and the classes.

    Measured with torch and OpenVINO on all designs in 3-D, and with 50 classes: the estimate is 0 to 55 % above, most
    often 20 %; only segresnet in torch takes a fifth more.
    """
    outside = 4 * student.preprocessing.channels + student.labels.channels
    return int(4 * (1.6 * student.values_per_voxel + outside))
