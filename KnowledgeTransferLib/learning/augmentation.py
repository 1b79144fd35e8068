"""Augmentation: random changes of place and grey value, of a whole batch at once on the device it lies on."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from ..records.settings import DistilSettings


def augment(
    image: torch.Tensor,
    target: torch.Tensor,
    settings: DistilSettings,
    generator: torch.Generator,
    *others: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    """Change a batch at random.

    Args:
        image: `(B, C, i, j, k)`; k = 1 for 2-D students.
        target: class probabilities `(B, classes, i, j, k)`; moved together with the image.
        generator: of the CPU; the same state gives the same change on every device.
        others: `(B, n, i, j, k)`, such as weights of the voxels; moved in the same way.

    Returns:
        image, target and the others.
    """
    structures = target[:, 1:]  # the background follows from the rest
    moved = _mirror((image, structures, *others), settings, generator)
    image, structures, *others = _move(moved, settings, generator)
    target = torch.cat([1 - structures.sum(1, keepdim=True), structures], dim=1)
    return _recolour(image, settings, generator), target, *others


def _uniform(shape: tuple[int, ...], largest: float, generator: torch.Generator) -> torch.Tensor:
    return (torch.rand(shape, generator=generator) * 2 - 1) * largest


def _mirror(tensors, settings, generator):
    for axis in settings.mirror_axes or ():
        chosen = torch.rand(len(tensors[0]), generator=generator) < 0.5  # noqa: PLR2004
        chosen = chosen.reshape(-1, 1, 1, 1, 1).to(tensors[0].device)
        tensors = [torch.where(chosen, tensor.flip(2 + axis), tensor) for tensor in tensors]
    return tensors


def _move(tensors, settings, generator):
    """Rotate, scale and shift by one affine map per sample (linear interpolation, edges continued)."""
    flat = tensors[0].shape[4] == 1
    theta = _affine_maps(tensors[0].shape, settings, generator).to(tensors[0].device)
    together = torch.cat(list(tensors), dim=1)
    together = together[..., 0] if flat else together
    grid = F.affine_grid(theta, list(together.shape), align_corners=False)
    together = F.grid_sample(together, grid, mode="bilinear", padding_mode="border", align_corners=False)
    together = together[..., None] if flat else together
    return together.split([tensor.shape[1] for tensor in tensors], dim=1)


def _affine_maps(shape, settings: DistilSettings, generator: torch.Generator) -> torch.Tensor:
    """Maps `(B, n, n + 1)` in the normalised, reversed axes of `affine_grid`; rotations are rigid in mm."""
    count, n = shape[0], 2 if shape[4] == 1 else 3
    spacing_mm = settings.spacing_mm or (1.0,) * n
    size = torch.tensor([s * mm for s, mm in zip(shape[2 : 2 + n], spacing_mm, strict=False)][::-1])
    linear = torch.eye(n).repeat(count, 1, 1)
    for a, b in ((0, 1), (0, 2), (1, 2))[: 1 if n == 2 else 3]:  # noqa: PLR2004
        angle = _uniform((count,), math.radians(settings.rotation_degrees), generator)
        turn = torch.eye(n).repeat(count, 1, 1)
        turn[:, a, a] = turn[:, b, b] = angle.cos()
        turn[:, a, b], turn[:, b, a] = -angle.sin(), angle.sin()
        linear = linear @ turn
    linear = linear * (1 + _uniform((count, 1, 1), settings.scale_share, generator))
    linear = linear * size[None, None, :] / size[None, :, None]
    shift = _uniform((count, n, 1), 2 * settings.shift_share, generator)  # the axis runs from -1 to 1
    return torch.cat([linear, shift], dim=2)


def _recolour(image: torch.Tensor, settings: DistilSettings, generator: torch.Generator) -> torch.Tensor:
    """Change contrast, brightness and gamma per sample and channel, then add noise."""
    each = (*image.shape[:2], 1, 1, 1)
    gain = (1 + _uniform(each, settings.contrast_share, generator)).to(image.device)
    offset = _uniform(each, settings.contrast_share, generator).to(image.device)
    image = image * gain + offset
    if settings.gamma_share:
        exponent = torch.exp2(_uniform(each, settings.gamma_share, generator)).to(image.device)
        low, high = image.amin((2, 3, 4), keepdim=True), image.amax((2, 3, 4), keepdim=True)
        width = (high - low).clamp_min(1e-6)
        image = ((image - low) / width) ** exponent * width + low
    if settings.noise_deviation:
        level = torch.rand(each, generator=generator) * settings.noise_deviation
        image = image + (torch.randn(image.shape, generator=generator) * level).to(image.device)
    return image
