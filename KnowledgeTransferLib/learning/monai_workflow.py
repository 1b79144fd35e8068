"""MONAI workflow: the part of configs/inference.json with which `python -m monai.bundle run` segments a folder.

It needs MONAI, torch and nibabel alone, not this package: the network comes from the bundle's TorchScript file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .exported_files import TORCHSCRIPT

if TYPE_CHECKING:
    from .preprocessing import Normalisation
    from .student import Student

PICTURES = (
    "$[{'image': f} for f in sorted(glob.glob(os.path.join(@dataset_dir, '*')))"
    " if f.lower().endswith(('.png', '.jpg', '.jpeg', '.bmp'))]"
)
NAME = "lambda meta, saver: {'subject': str(meta['filename_or_obj']).replace('_0000.nii', '.nii'), 'idx': None}"


def monai_workflow(student: Student) -> dict:
    """The workflow of a student, file to file, each image or slice in one pass.

    A student of slices goes over volumes slice by slice, and over pictures. Channels that lie in files of their own are
    `name_0000`, `name_0001` and so on, as in nnU-Net.

    Raises:
        ValueError: a student whose channels have CT windows of their own, for which MONAI has no stock transform.
    """
    if len({(n.kind, n.low, n.high, n.mean, n.deviation) for n in student.preprocessing.normalisation}) > 1:
        found = "; ".join(f"{n.kind} {n.low:g} to {n.high:g}" for n in student.preprocessing.normalisation)
        raise ValueError(f"a MONAI workflow normalises all channels alike; this student does not ({found})")
    flat = student.preprocessing.dimensions == 2
    slices = {"_target_": "SliceInferer", "roi_size": [-1, -1], "spatial_dim": 2, "sw_batch_size": 1}
    streams = {"": _stream(student, "", slices if flat else {"_target_": "SimpleInferer"})}
    if flat:
        streams["picture_"] = _stream(student, "picture_", {"_target_": "SimpleInferer"})
    return {
        "imports": ["$import glob", "$import os"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/segmentations'",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "network_def": {
            "_target_": "torch.jit.load", "f": f"$@bundle_root + '/{TORCHSCRIPT}'", "map_location": "@device",
        },
        **{key: value for stream in streams.values() for key, value in stream.items()},
        "run": [
            f"$[@{name}postprocessing({{**item, 'pred': @{name}segment(item)}}) for item in @{name}dataset]"
            for name in streams
        ],
    }  # fmt: skip


def _stream(student: Student, name: str, inferer: dict) -> dict:
    """From files to files: volumes (no name), or pictures."""
    return {
        f"{name}datalist": PICTURES if name else _volumes(student.preprocessing.channels),
        f"{name}preprocessing": {"_target_": "Compose", "transforms": _before(student, 2 if name else 3)},
        f"{name}dataset": {"_target_": "Dataset", "data": f"@{name}datalist", "transform": f"@{name}preprocessing"},
        f"{name}inferer": inferer,
        f"{name}postprocessing": {"_target_": "Compose", "transforms": _after(student, name)},
        f"{name}segment": f"$lambda item: @{name}inferer(item['image'][None].to(@device), @network_def)[0].cpu()",
    }


def _volumes(channels: int) -> str:
    if channels == 1:
        return "$[{'image': f} for f in sorted(glob.glob(os.path.join(@dataset_dir, '*.nii*')))]"
    files = f"[f.replace('_0000.nii', f'_{{n:04}}.nii') for n in range({channels})]"
    return f"$[{{'image': {files}}} for f in sorted(glob.glob(os.path.join(@dataset_dir, '*_0000.nii*')))]"


def _before(student: Student, axes: int) -> list[dict]:
    """Transforms of an image with so many spatial axes; a student of slices leaves the third as it is."""
    dimensions, stride = student.preprocessing.dimensions, student.network.total_stride
    spacing = [*student.preprocessing.spacing_mm[:dimensions], -1][:axes]
    orientation = {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"}
    return [
        {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True},
        {"_target_": "EnsureTyped", "keys": "image", "dtype": "$torch.float32"},
        *[orientation] * (axes == 3),
        *_normalised(student.preprocessing.normalisation[0]),
        {
            "_target_": "Spacingd", "keys": "image", "pixdim": spacing,
            "mode": "bilinear", "padding_mode": "border", "align_corners": False, "scale_extent": True,
        },
        {
            "_target_": "DivisiblePadd", "keys": "image", "k": [*[stride] * dimensions, 1][:axes],
            "method": "end", "mode": "edge",
        },
        {
            "_target_": "SpatialPadd", "keys": "image", "spatial_size": [*[2 * stride] * dimensions, -1][:axes],
            "method": "end", "mode": "edge",
        },
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
            "b_min": 0, "b_max": 1, "clip": True, "channel_wise": True,
        },
        {"_target_": "NormalizeIntensityd", "keys": "image", "channel_wise": True},
    ]  # fmt: skip


def _after(student: Student, name: str) -> list[dict]:
    values = list(student.labels.values)
    to_values = {"orig_labels": list(range(len(values))), "target_labels": values}
    return [
        {"_target_": "Activationsd", "keys": "pred", "softmax": True},
        {
            "_target_": "Invertd", "keys": "pred", "transform": f"@{name}preprocessing", "orig_keys": "image",
            "nearest_interp": False, "to_tensor": True,
        },
        {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
        {"_target_": "MapLabelValued", "keys": "pred", **to_values},
        {
            "_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "output_postfix": "",
            "separate_folder": False, "output_dtype": "$__import__('numpy').uint8", "print_log": False,
            "output_ext": ".png" if name else ".nii.gz",
            "output_name_formatter": f"${NAME}",
        },
    ]  # fmt: skip
