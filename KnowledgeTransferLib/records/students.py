"""Student designs: a table. A new design is one more entry; learning/networks builds what `network` names."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Design:
    """A network in numbers, and the training that suits it.

    `arguments`, `patch_voxels` and `batch_voxels` have an entry for 2 and one for 3 dimensions.
    """

    name: str
    network: str  # a key of learning.networks.NETWORKS
    arguments: dict[int, dict] = field(hash=False)
    learning_rate: float
    iterations: int  # of a training that nobody gave a length
    patch_voxels: dict[int, int] = field(hash=False)  # largest patch on a CPU; eight times that on a GPU
    batch_voxels: dict[int, int] = field(hash=False)
    volume_voxels: int  # the cohort's median volume is coarsened to this size at most
    sentence: str  # shown where a person chooses
    tasks: tuple[str, ...] = ("segmentation",)  # that it is trained for, unless others are asked for


FAST = {"patch_voxels": {2: 2**17, 3: 2**19}, "batch_voxels": {2: 2**20, 3: 2**20}, "volume_voxels": 2**23}
SLOW = {"patch_voxels": {2: 2**16, 3: 2**17}, "batch_voxels": {2: 2**19, 3: 2**19}, "volume_voxels": 2**24}
SUB_PIXEL = {"stem": 2, "join": "add"}
PLAIN = {"convolutions": 1, "stem": 1, "down": "max-pool"}


def _both(**arguments) -> dict[int, dict]:
    """The same arguments in 2-D and in 3-D."""
    return {2: arguments, 3: arguments}


STUDENTS = {
    design.name: design
    for design in (
        Design(
            "tiny", "unet", {2: {"channels": (24, 40, 48), **SUB_PIXEL}, 3: {"channels": (16, 24, 32), **SUB_PIXEL}},
            2e-2, 5000, **FAST,
            sentence="Under 60 000 parameters: a scan in a fraction of a second on any computer. The usual choice.",
        ),
        Design(
            "small", "unet", {2: {"channels": (48, 80, 128), **SUB_PIXEL}, 3: {"channels": (32, 48, 64), **SUB_PIXEL}},
            1e-2, 2500, **FAST,
            sentence="About 0.25 million parameters: a little slower than tiny, for many or intricate structures.",
        ),
        Design(
            "medium", "unet",
            {
                2: {"channels": (96, 160, 256), "convolutions": 2, **SUB_PIXEL},
                3: {"channels": (48, 96, 160), "convolutions": 2, **SUB_PIXEL},
            },
            3e-3, 2000, **FAST,
            sentence="About 2 million parameters: a quick teacher, or a student for a GPU.",
        ),
        Design(
            "large", "dynunet",
            {
                2: {"channels": (32, 64, 128, 256, 320)},
                3: {"channels": (24, 48, 96, 192)},
            },
            3e-3, 1000, **SLOW,
            sentence="3 to 6 million parameters at full resolution: a good teacher.",
        ),
        Design(
            "s1", "unet", _both(channels=(16, 32, 64), **PLAIN), 1e-2, 2000, **SLOW,
            sentence="U-Net 16-32-64 of arXiv:2406.03173, for comparison (0.057 million parameters in 2-D).",
        ),
        Design(
            "s2", "unet", _both(channels=(32, 64, 128), **PLAIN), 1e-2, 2000, **SLOW,
            sentence="U-Net 32-64-128 of arXiv:2406.03173, for comparison (0.227 million parameters in 2-D).",
        ),
    )
}  # fmt: skip


def design_named(name: str) -> Design:
    """The design of that name.

    Raises:
        ValueError: no such design; the message lists those that there are.
    """
    if name not in STUDENTS:
        raise ValueError(f"there is no student design {name!r}; choose one of {', '.join(STUDENTS)}")
    return STUDENTS[name]
