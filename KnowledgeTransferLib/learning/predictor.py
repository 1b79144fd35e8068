"""Predictor: a network over a whole prepared image; in windows where it would not fit into the memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.inferers import sliding_window_inference
from torch import nn

WHOLE_ACTIVATIONS = 1 << 26  # largest tensor of a network's first level (256 MiB in 32 bits)
WINDOW_OVERLAP = 0.25


def whole_image_limit(channels: int, stem: int, dimensions: int) -> int:
    """Voxels of the largest image that goes through a network in one pass. Fixed, so that results repeat."""
    return WHOLE_ACTIVATIONS * stem**dimensions // channels


@torch.inference_mode()
def predict(network: nn.Module, image: torch.Tensor, dimensions: int, limit_voxels: int) -> torch.Tensor:
    """Class probabilities of a prepared image.

    Args:
        image: `(C, i, j, k)` on the CPU.
        dimensions: 2 runs slice by slice over k.
        limit_voxels: images with more voxels go through in overlapping windows with Gaussian weights.

    Returns:
        `(classes, i, j, k)` float32 on the CPU.
    """
    if dimensions == 3:
        return _predict_batch(network, image[None], limit_voxels)[0]
    slices = image.permute(3, 0, 1, 2)
    count = max(1, limit_voxels // slices[0, 0].numel())
    parts = [_predict_batch(network, part, limit_voxels) for part in slices.split(count)]
    return torch.cat(parts).permute(1, 2, 3, 0)


def _predict_batch(network: nn.Module, batch: torch.Tensor, limit_voxels: int) -> torch.Tensor:
    """Probabilities of `(B, C, *size)`, padded to what the network needs and cut back."""
    size, stride = batch.shape[2:], network.total_stride
    padded = [max(-(-n // stride), 2) * stride for n in size]
    padding = [p for n, m in zip(reversed(size), reversed(padded), strict=True) for p in (0, m - n)]
    batch = F.pad(batch, padding, mode="replicate")
    device = next(network.parameters()).device
    if batch[0, 0].numel() <= limit_voxels:
        logits = network(batch.to(device))
    else:
        logits = _in_windows(network, batch, limit_voxels, device)
    cut = tuple(slice(0, n) for n in size)
    return logits.float().softmax(1)[(slice(None), slice(None), *cut)].cpu()


def _in_windows(network: nn.Module, batch: torch.Tensor, limit_voxels: int, device: torch.device) -> torch.Tensor:
    stride, dimensions = network.total_stride, batch.dim() - 2
    edge = max(2, int(limit_voxels ** (1 / dimensions) + 1e-6) // stride) * stride
    window = [min(edge, n) for n in batch.shape[2:]]
    return sliding_window_inference(
        batch, window, 1, network, overlap=WINDOW_OVERLAP, mode="gaussian", sw_device=device, device="cpu"
    )


def pick_device(asked: str) -> str:
    """The device to work on: what was asked for, or with "auto" the fastest that is there.

    Raises:
        ValueError: the device is not there; the message says what to do.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if asked == "auto":
        return next(device for device, is_there in there.items() if is_there)
    if not there.get(asked, False):
        found = ", ".join(device for device, is_there in there.items() if is_there)
        raise ValueError(f"the device {asked!r} is not there; found: {found}. Choose one of these, or auto")
    return asked
