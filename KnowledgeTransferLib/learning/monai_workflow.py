"""MONAI workflow: the part of configs/inference.json with which `python -m monai.bundle run` segments a folder.

It needs MONAI, torch and nibabel alone, not this package: the network comes from the bundle's TorchScript file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .backends import TORCHSCRIPT

if TYPE_CHECKING:
    from .preprocessing import Normalisation
    from .student import Student


def monai_workflow(student: Student) -> dict:
    """The workflow of a student of volumes with one channel: file to file, whole image in one pass.

    Raises:
        ValueError: a student of slices or of several channels, for which stock transforms do not suffice.
    """
    preprocessing = student.preprocessing
    if preprocessing.dimensions != 3 or preprocessing.channels != 1:
        raise ValueError("a MONAI workflow is written for students of volumes with one channel; export another kind")
    return {
        "imports": ["$import glob", "$import os"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/segmentations'",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "datalist": "$[{'image': f} for f in sorted(glob.glob(os.path.join(@dataset_dir, '*.nii*')))]",
        "network_def": {
            "_target_": "torch.jit.load", "f": f"$@bundle_root + '/{TORCHSCRIPT}'", "map_location": "@device",
        },
        "preprocessing": {"_target_": "Compose", "transforms": _before(student, preprocessing.normalisation[0])},
        "dataset": {"_target_": "Dataset", "data": "@datalist", "transform": "@preprocessing"},
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": {"_target_": "Compose", "transforms": _after(student)},
        "segment": "$lambda item: @inferer(item['image'][None].to(@device), @network_def)[0].cpu()",
        "run": ["$[@postprocessing({**item, 'pred': @segment(item)}) for item in @dataset]"],
    }  # fmt: skip


def _before(student: Student, grey: Normalisation) -> list[dict]:
    stride = student.network.total_stride
    return [
        {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True},
        {"_target_": "EnsureTyped", "keys": "image", "dtype": "$torch.float32"},
        {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
        *_normalised(grey),
        {
            "_target_": "Spacingd", "keys": "image", "pixdim": list(student.preprocessing.spacing_mm),
            "mode": "bilinear", "padding_mode": "border", "align_corners": False, "scale_extent": True,
        },
        {"_target_": "DivisiblePadd", "keys": "image", "k": stride, "method": "end", "mode": "edge"},
        {"_target_": "SpatialPadd", "keys": "image", "spatial_size": [2 * stride] * 3, "method": "end", "mode": "edge"},
    ]  # fmt: skip


def _normalised(grey: Normalisation) -> list[dict]:
    if grey.kind == "ct":
        low, high = ((bound - grey.mean) / grey.deviation for bound in (grey.low, grey.high))
        return [
            {
                "_target_": "ScaleIntensityRanged", "keys": "image", "a_min": grey.low, "a_max": grey.high,
                "b_min": low, "b_max": high, "clip": True,
            }
        ]  # fmt: skip
    return [
        {
            "_target_": "ScaleIntensityRangePercentilesd", "keys": "image", "lower": 0.5, "upper": 99.5,
            "b_min": 0, "b_max": 1, "clip": True,
        },
        {"_target_": "NormalizeIntensityd", "keys": "image"},
    ]  # fmt: skip


def _after(student: Student) -> list[dict]:
    values = list(student.labels.values)
    to_values = {"orig_labels": list(range(len(values))), "target_labels": values}
    return [
        {"_target_": "Activationsd", "keys": "pred", "softmax": True},
        {
            "_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image",
            "nearest_interp": False, "to_tensor": True,
        },
        {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
        {"_target_": "MapLabelValued", "keys": "pred", **to_values},
        {
            "_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "output_postfix": "",
            "separate_folder": False, "output_dtype": "$__import__('numpy').uint8", "print_log": False,
        },
    ]  # fmt: skip
