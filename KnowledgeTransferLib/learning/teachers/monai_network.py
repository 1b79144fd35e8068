"""MONAI network: a network that a configuration names, made from MONAI's own table with plain arguments."""

from __future__ import annotations

import io

import torch
from torch import nn

from .preparation import UnknownStep, is_plain

KNOWN_NETWORKS = (
    "AHNet", "AttentionUnet", "BasicUNet", "BasicUNetPlusPlus", "BasicUnet", "BasicUnetPlusPlus", "DynUNet", "DynUnet",
    "FlexUNet", "FlexibleUNet", "HighResNet", "MedNeXt", "MedNeXtB", "MedNeXtL", "MedNeXtM", "MedNeXtS", "SegResNet",
    "SegResNetDS", "SegResNetDS2", "SegResNetVAE", "SwinUNETR", "UNETR", "UNet", "Unet", "VNet",
)  # fmt: skip
STATES = ("state_dict", "model", "network", "net", "network_weights")  # under which trainers save a network's weights


def network_from(definition: dict) -> nn.Module:
    """The network of a `network_def`; what it says is looked up in the table, never executed.

    Raises:
        UnknownStep: another class, or an argument that is not a plain value.
        ValueError: MONAI cannot make it with these arguments.
    """
    from monai.networks import nets

    target = definition.get("_target_") if isinstance(definition, dict) else None
    name = str(target).rpartition(".")[2]
    known = target == name or str(target).startswith("monai.networks.nets.")
    if name not in KNOWN_NETWORKS or not known or not hasattr(nets, name):
        raise UnknownStep(f"its network {target!r} is not one of MONAI's that are known ({', '.join(KNOWN_NETWORKS)})")
    arguments = {k: v for k, v in definition.items() if k not in ("_target_", "_desc_", "_mode_")}
    for argument, value in arguments.items():
        if not is_plain(value) or argument.startswith("_"):
            raise UnknownStep(f"its network's argument {argument} is not a plain value ({value!r})")
    if "pretrained" in arguments:
        arguments["pretrained"] = False  # its own weights come; MONAI would fetch others from the internet
    try:
        return getattr(nets, name)(**arguments)
    except Exception as error:  # MONAI's networks complain in every way there is
        raise ValueError(f"MONAI cannot make its network {name} ({error})") from error


def read_weights(data: bytes, safetensors: bool, trusted: bool = False) -> dict:
    """Weights by name; of a checkpoint, those of the network.

    Raises:
        UnknownStep: the file holds objects that are not weights, and is not trusted.
        ValueError: damaged.
    """
    content = _tensors(data, safetensors, trusted)
    for key in STATES:
        inner = content.get(key) if isinstance(content, dict) else None
        if isinstance(inner, dict) and any(isinstance(v, torch.Tensor) for v in inner.values()):
            content = inner
    if isinstance(content, nn.Module):
        content = content.state_dict()
    if not isinstance(content, dict) or not any(isinstance(v, torch.Tensor) for v in content.values()):
        raise ValueError("its file of weights holds no weights")
    weights = {k: v for k, v in content.items() if isinstance(v, torch.Tensor)}
    return {k.removeprefix("module."): v for k, v in weights.items()}


def load_weights(network: nn.Module, weights: dict) -> nn.Module:
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"its network and its weights do not fit together ({_few_lines(error)})") from error
    return network.eval().requires_grad_(False)


def _tensors(data: bytes, safetensors: bool, trusted: bool):
    if safetensors:
        from safetensors.torch import load

        try:
            return load(data)
        except Exception as error:
            raise ValueError(f"its weights are damaged ({error})") from error
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=not trusted)
    except Exception as error:  # pickle, zip and torch have a dozen kinds between them
        if data[:2] not in (b"PK", b"\x80\x02") and not data.startswith(b"\x80"):
            raise ValueError("its file of weights is damaged, or no file of torch") from error
        raise UnknownStep("its file of weights holds objects that are not weights") from error


def _few_lines(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
