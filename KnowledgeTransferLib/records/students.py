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
RESNET = {
    2: {"channels": (24, 48, 96, 192), "blocks": (2, 2, 2, 2)},
    3: {"channels": (16, 32, 64, 128), "blocks": (1, 1, 1, 1)},
}


def _four_levels(**more) -> dict[int, dict]:
    """Four levels, wider in 2-D than in 3-D, and the same further arguments."""
    return {2: {"channels": (24, 48, 96, 192), **more}, 3: {"channels": (16, 32, 64, 128), **more}}


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
        Design(
            "unet", "unet", _four_levels(convolutions=2, down="max-pool"), 3e-3, 1500, **SLOW,
            sentence="The U-Net of arXiv:1505.04597 in a student's size: 1 to 1.5 million parameters.",
        ),
        Design(
            "attention-unet", "attention-unet", _four_levels(), 3e-3, 1500, **SLOW,
            sentence="A U-Net with attention gates in its skips (arXiv:1804.03999): 1 to 1.5 million parameters.",
        ),
        Design(
            "sdu-net", "sdu-net", {2: {"channels": (32, 64, 128, 256)}, 3: {"channels": (16, 32, 64, 128)}},
            3e-3, 1500, **SLOW,
            sentence="A U-Net of stacked dilated convolutions (arXiv:2004.03466): 0.5 to 0.75 million parameters.",
        ),
        Design(
            "deeplabv3plus", "deeplabv3plus",
            {
                2: {**RESNET[2], "width": 96, "rates": (1, 2, 4, 6)},
                3: {**RESNET[3], "width": 64, "rates": (1, 2, 4, 6)},
            },
            3e-3, 1500, **SLOW,
            sentence="DeepLabv3+ on a small ResNet (arXiv:1802.02611): 1.3 to 2 million parameters.",
        ),
        Design(
            "panoptic-fpn", "panoptic-fpn", {2: {**RESNET[2], "width": 64}, 3: {**RESNET[3], "width": 32}},
            3e-3, 1500, **SLOW,
            sentence="Panoptic-FPN's semantic part on a small ResNet (arXiv:1901.02446): 1.2 to 2 million parameters.",
        ),
        Design(
            "dynunet", "dynunet", _four_levels(), 3e-3, 1500, **SLOW,
            sentence="nnU-Net's architecture, like large, in a student's size: 1 to 1.5 million parameters.",
        ),
        Design(
            "segresnet", "segresnet",
            {
                2: {"width": 16, "down": (1, 2, 2, 4), "up": (1, 1, 1)},
                3: {"width": 8, "down": (1, 2, 2, 4), "up": (1, 1, 1)},
            },
            3e-3, 1500, **SLOW,
            sentence="SegResNet, residual blocks with group norms (arXiv:1810.11654): 1.2 to 1.6 million parameters.",
        ),
        Design(
            "mednext-s", "mednext", _both(variant="S"), 1e-3, 1000, **SLOW,
            sentence="MedNeXt-S as published (arXiv:2303.09975): 5.6 million parameters; slow without a graphics card.",
        ),
        Design(
            "swin-unetr", "swin-unetr",
            {2: {"width": 24, "stages": 3, "window": 8}, 3: {"width": 12, "stages": 3, "window": 4}},
            1e-3, 1500, **SLOW,
            sentence="Swin UNETR, a transformer over shifted windows (arXiv:2201.01266), with a stage less than "
            "published: 1.1 to 1.8 million parameters.",
        ),
        Design(
            "transunet", "transunet",
            {
                2: {"channels": (16, 32, 64, 96, 160), "blocks": 4, "heads": 4},
                3: {"channels": (16, 32, 48, 64, 128), "blocks": 4, "heads": 4},
            },
            2e-3, 1500, **SLOW,
            sentence="TransUNet, a U-Net around a transformer (arXiv:2102.04306), with a small encoder instead of a "
            "ResNet-50: 1.7 to 1.9 million parameters.",
        ),
        Design(
            "t1", "unet",
            {
                2: {**PLAIN, "channels": (64, 128, 256, 512, 1024), "convolutions": 2},
                3: {**PLAIN, "channels": (16, 32, 64, 128, 256), "convolutions": 2},
            },
            1e-3, 2000, **SLOW, tasks=("segmentation", "reconstruction"),
            sentence="U-Net 64-128-256-512-1024 of arXiv:2406.03173, a teacher of two tasks: 31 million parameters in "
            "2-D, 6 in 3-D.",
        ),
        Design(
            "t2", "transunet",
            {
                2: {"channels": (64, 128, 256, 512, 512), "blocks": 4, "heads": 8},
                3: {"channels": (16, 32, 64, 128, 256), "blocks": 4, "heads": 8},
            },
            5e-4, 2000, **SLOW, tasks=("segmentation", "reconstruction"),
            sentence="TransUNet as a teacher of two tasks, smaller than in arXiv:2406.03173: 26 million parameters in "
            "2-D, 6 in 3-D.",
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
