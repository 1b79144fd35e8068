"""Model card: what a bundle tells people and MONAI about the student in it. Never anything about a patient."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np
import torch

from .. import __version__
from .precision_cost import in_words

if TYPE_CHECKING:
    from .student import Student


def monai_metadata(student: Student) -> dict:
    """The part of metadata.json that the MONAI Bundle specification asks for."""
    preprocessing = student.preprocessing
    classes = {str(i): name for i, name in enumerate(("background", *student.labels.names))}
    size = [f"{2 * student.network.total_stride}*n"] * preprocessing.dimensions
    common = {"format": "image", "num_channels": preprocessing.channels, "spatial_shape": size, "dtype": "float32"}
    return {
        "version": __version__,
        "monai_version": version("monai"),
        "pytorch_version": torch.__version__.split("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {"safetensors": "0.4", "nibabel": "5"},
        "name": f"KnowledgeTransfer student {student.design.name}",
        "task": "Segmentation of " + ", ".join(student.labels.names),
        "description": student.design.sentence,
        "authors": "",
        "copyright": "",
        "network_data_format": {
            "inputs": {"image": {"type": "image", **common, "value_range": [], "is_patch_data": False}},
            "outputs": {
                "pred": {
                    **common, "type": "image", "format": "segmentation", "num_channels": student.labels.channels,
                    "value_range": [0, 1], "is_patch_data": False, "channel_def": classes,
                }
            },
        },
    }  # fmt: skip


def monai_inference(student: Student) -> dict:
    """configs/inference.json: how MONAI's ConfigParser builds the network (with this package installed)."""
    return {
        "imports": [],
        "network_def": {
            "_target_": "KnowledgeTransferLib.learning.networks.build_named_network",
            "name": student.design.name,
            "dimensions": student.preprocessing.dimensions,
            "in_channels": student.preprocessing.channels,
            "classes": student.labels.channels,
        },
    }


def model_card(student: Student) -> str:
    """docs/README.md of the bundle, in Markdown."""
    card, preprocessing = student.card, student.preprocessing
    structures = "\n".join(f"| {s.value} | {s.name} |" for s in student.labels.structures)
    figures = "\n".join(f"- {name}: {value}" for name, value in card.get("figures", {}).items())
    kind = "Volumes" if preprocessing.dimensions == 3 else "Images, or volumes slice by slice,"
    spacing = " x ".join(f"{s:g}" for s in preprocessing.spacing_mm)
    return f"""# Student `{student.design.name}`

Segments {", ".join(student.labels.names)}. Made with KnowledgeTransfer {__version__}.

| value | structure |
|---|---|
{structures}

## What taught it
{card.get("taught_by", "Not recorded.")}

## How well
{figures or "Not measured."}

A structure is drawn from {student.drawn_from:.2f} on of its probability and the background's together.
The figures above compare it with what it was taught on held-out patients, not with the truth. Measure it on expert
annotations of your own (`knowledge-transfer evaluate`) before you rely on it.

## What it expects
{kind} with {preprocessing.channels} channel(s). It resamples them to {spacing} mm by itself.
Intensities: {preprocessing.normalisation[0].kind}. {student.parameters} parameters.

{_exports(card)}## What it must not be used for
It is no medical device and was not validated for diagnosis or treatment. Do not use it without a person who looks at
each result, nor on other kinds of scans, other structures or other patients than those that it was taught on.
"""


def _exports(card: dict) -> str:
    rows = "\n".join(
        f"- {name} ({', '.join(found['files'])}): other labels than the student's own in {found['differing']:.4%} of "
        f"the voxels of {found['images']} image(s) ({found.get('source', 'which is not recorded')})"
        for name, found in card.get("exports", {}).items()
    )
    costs = "\n".join(f"- {in_words(precision, cost)}" for precision, cost in card.get("precisions", {}).items())
    told = [("Files for other tools", rows), ("Less exact, faster (`segment --precision`)", costs)]
    return "".join(f"## {title}\n{lines}\n\n" for title, lines in told if lines)
