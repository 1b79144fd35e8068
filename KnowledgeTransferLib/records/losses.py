"""Losses: the names and usual weights of all that a student can be trained to make small; learning/losses has them."""

from __future__ import annotations

USUAL_WEIGHTS = {
    "dice-ce": 1.0,  # what every training has, unless it is given the weight 0
    "response": 0.2,
    "contrastive": 0.2,
    "voxel-contrastive": 0.1,
    "structure-contrastive": 0.1,
    "feature-mse": 0.2,
    "attention-transfer": 1.0,
    "region-affinity": 0.5,
    "deep-supervision": 0.5,
    "reconstruction": 0.2,
}
OF_TEACHER = tuple(name for name in USUAL_WEIGHTS if name not in ("dice-ce", "deep-supervision", "reconstruction"))
TASKS = {"segmentation": "dice-ce", "reconstruction": "reconstruction"}  # what each adds


def weight_of(text: str) -> tuple[str, float]:
    """`NAME=WEIGHT`, or `NAME` for the usual weight.

    Raises:
        ValueError: no such loss, or no number; the message says what is allowed.
    """
    name, equals, weight = text.partition("=")
    check_losses({name: 1.0})
    if not equals:
        return name, USUAL_WEIGHTS[name]
    try:
        number = float(weight)
    except ValueError:
        raise ValueError(f"--loss {text}: {weight!r} is no number; write for example {name}=0.2") from None
    check_losses({name: number})
    return name, number


def check_losses(weights: dict[str, float]) -> None:
    """Refuse losses that do not exist, and weights that are no weights.

    Raises:
        ValueError: the message lists the losses that there are.
    """
    unknown = sorted(set(weights) - set(USUAL_WEIGHTS))
    if unknown or not weights:
        raise ValueError(f"losses {', '.join(unknown) or 'none'}: choose from {', '.join(USUAL_WEIGHTS)}")
    for name, weight in weights.items():
        if not isinstance(weight, (int, float)) or isinstance(weight, bool) or not 0 <= weight < float("inf"):
            raise ValueError(f"the loss {name} has the weight {weight!r}; a number of 0 or more is needed")
