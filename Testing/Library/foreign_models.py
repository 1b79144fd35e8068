"""Foreign models: tiny real ones of the kinds that KnowledgeTransfer did not make, for the tests of teachers."""

from __future__ import annotations

import json
import sys
import warnings
import zipfile
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import nibabel
import numpy as np
import torch
from torch import nn

HAS_ONNX = all(find_spec(name) for name in ("onnx", "onnxruntime"))
STRUCTURES = [{"name": "liver", "value": 4}, {"name": "spleen", "value": 2}]
SIDECAR = {
    "structures": STRUCTURES, "activation": "softmax", "dimensions": 3, "channels": 1, "orientation": "RAS",
    "spacing_mm": [1.0, 2.0, 3.0], "normalisation": {"kind": "z-score"}, "patch_size_voxels": [8, 8, 8],
}  # fmt: skip


def a_network(dimensions: int = 3, outputs: int = 3) -> nn.Module:
    """Two convolutions whose scores depend on place and grey value; the same weights every time."""
    kind = nn.Conv3d if dimensions == 3 else nn.Conv2d
    torch.manual_seed(0)
    network = nn.Sequential(kind(1, 4, 3, padding=1), nn.ReLU(), kind(4, outputs, 1)).eval()
    return network.requires_grad_(False)


def an_example(dimensions: int = 3) -> torch.Tensor:
    return torch.zeros(1, 1, *[8] * dimensions)


def write_sidecar(folder: Path, **changes) -> Path:
    (folder / "teacher.json").write_text(json.dumps({**SIDECAR, **changes}), encoding="utf-8")
    return folder


def write_torchscript(folder: Path, network: nn.Module | None = None, name: str = "model.ts", **changes) -> Path:
    folder.mkdir(parents=True)
    torch.jit.trace(network or a_network(), an_example()).save(folder / name)
    write_sidecar(folder, **changes)
    return folder / name


def write_torch_export(folder: Path) -> Path:
    folder.mkdir(parents=True)
    torch.export.save(torch.export.export(a_network(), (an_example(),)), folder / "model.pt2")
    write_sidecar(folder)
    return folder / "model.pt2"


def write_onnx(folder: Path, name: str = "model.onnx") -> Path:
    """Where the packages of ONNX are missing, an empty file, which can only be recognised."""
    folder.mkdir(parents=True)
    if not HAS_ONNX:
        (folder / name).write_bytes(b"")
        return folder / name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter that needs no further package is the old one
        torch.onnx.export(
            a_network(), (an_example(),), folder / name, dynamo=False,
            dynamic_axes={"image": {0: "B", 2: "i", 3: "j", 4: "k"}}, input_names=["image"],
        )  # fmt: skip
    write_sidecar(folder)
    return folder / name


BUNDLE_NETWORK = {
    "_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 3, "channels": [4, 8], "strides": [2],
    "num_res_units": 1, "norm": "batch",
}  # fmt: skip
BUNDLE_STEPS = [
    {"_target_": "LoadImaged", "keys": "image"},
    {"_target_": "EnsureChannelFirstd", "keys": "image"},
    {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
    {"_target_": "Spacingd", "keys": ["image"], "pixdim": "@pixdim", "mode": ["bilinear"]},
    {"_target_": "ScaleIntensityRanged", "keys": "@image_key", "a_min": -3, "a_max": 3, "b_min": 0, "b_max": 1,
     "clip": True},
    {"_target_": "EnsureTyped", "keys": "image"},
]  # fmt: skip


def bundle_config(**changes) -> dict:
    return {
        "imports": ["$import glob"],
        "bundle_root": ".",
        "image_key": "image",
        "pixdim": [1.0, 2.0, 3.0],
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": BUNDLE_NETWORK,
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": BUNDLE_STEPS},
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [8, 8, 8], "sw_batch_size": 4, "overlap": 0.5},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "Activationsd", "keys": "pred", "softmax": True},
                {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image"},
                {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
                {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir"},
            ],
        },
        "output_dir": "$@bundle_root + '/eval'",
        **changes,
    }


def bundle_metadata(names: tuple[str, ...] = ("background", "liver", "spleen")) -> dict:
    image = {"type": "image", "num_channels": 1, "spatial_shape": [8, 8, 8], "modality": "CT"}
    prediction = {"num_channels": len(names), "channel_def": {str(n): name for n, name in enumerate(names)}}
    return {
        "version": "0.1.0", "description": "A tiny network.",
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": prediction}},
    }  # fmt: skip


def bundle_network() -> nn.Module:
    from monai.networks.nets import UNet

    torch.manual_seed(0)
    return UNet(**{k: v for k, v in BUNDLE_NETWORK.items() if k != "_target_"}).eval()


def write_monai_bundle(folder: Path, state=None, names=("background", "liver", "spleen"), **changes) -> Path:
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "configs" / "inference.json").write_text(json.dumps(bundle_config(**changes)))
    (folder / "configs" / "metadata.json").write_text(json.dumps(bundle_metadata(names)))
    torch.save(bundle_network().state_dict() if state is None else state, folder / "models" / "model.pt")
    return folder


def zipped(folder: Path, file: Path, **more: bytes) -> Path:
    """A folder as a zip archive with one folder at its top, and other members with any name."""
    with zipfile.ZipFile(file, "w") as archive:
        for part in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.write(part, f"{folder.name}/{part.relative_to(folder).as_posix()}")
        for name, data in more.items():
            archive.writestr(name, data)
    return file


class Payload:
    """Pickled, it writes a file when somebody unpickles it."""

    def __init__(self, written: Path):
        self.written = written

    def __reduce__(self):
        return (_write_file, (str(self.written),))


def _write_file(path: str) -> None:
    Path(path).write_text("executed")


SEGRESNET = {
    "_target_": "SegResNetDS", "init_filters": 4, "blocks_down": [1, 1], "norm": "INSTANCE_NVFUSER", "in_channels": 1,
    "out_channels": 3, "dsdepth": 2,
}  # fmt: skip
AUTO3DSEG = {
    "network": SEGRESNET, "roi_size": [8, 8, 8], "normalize_mode": "meanstd", "intensity_bounds": [-3.0, 3.0],
    "orientation_ras": True, "crop_foreground": False, "resample_resolution": [1.0, 2.0, 3.0], "sigmoid": False,
    "modality": "mri", "class_names": ["liver", "spleen"],
}  # fmt: skip


def segresnet(**changes) -> nn.Module:
    from monai.networks.nets import SegResNetDS

    torch.manual_seed(0)
    arguments = {**SEGRESNET, "norm": ["INSTANCE", {"affine": True}], **changes}
    return SegResNetDS(**{k: v for k, v in arguments.items() if k != "_target_"}).eval()


def write_auto3dseg(folder: Path, labels: dict | None = None, network: dict | None = None, **changes) -> Path:
    """A checkpoint as MONAI's Auto3DSeg saves it; `labels` as the extension's labels.csv."""
    folder.mkdir(parents=True)
    network = network or {}
    config = {**AUTO3DSEG, "network": {**SEGRESNET, **network}, **changes}
    state = segresnet(**network).state_dict()
    torch.save({"epoch": 3, "best_metric": 0.9, "config": config, "state_dict": state}, folder / "model.pt")
    if labels:
        rows = "".join(f"{value},{name}\n" for value, name in labels.items())
        (folder / "labels.csv").write_text("LabelValue,Name\n" + rows)
    return folder


NNUNET_LAYERS = {
    "n_stages": 2, "features_per_stage": [4, 4], "conv_op": "torch.nn.modules.conv.Conv3d",
    "kernel_sizes": [[3, 3, 3]] * 2, "strides": [[1, 1, 1], [2, 2, 2]], "n_conv_per_stage": [1, 1],
    "n_conv_per_stage_decoder": [1], "conv_bias": True, "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
    "norm_op_kwargs": {"eps": 1e-05, "affine": True}, "dropout_op": None, "dropout_op_kwargs": None,
    "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True},
}  # fmt: skip
NNUNET_ARCHITECTURE = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "arch_kwargs": NNUNET_LAYERS, "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
}  # fmt: skip
NNUNET_LABELS = {"background": 0, "liver": 1, "spleen": 2}


def nnunet_plans(architecture: dict | None = None, reader: str = "SimpleITKIO") -> dict:
    """plans.json as nnU-Net's planner writes it, with a smaller network."""
    resampling = "resample_data_or_seg_to_shape"
    data = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2,
        "patch_size": [8, 8, 8], "median_image_size_in_voxels": [8.0, 8.0, 8.0], "spacing": [3.0, 2.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"], "use_mask_for_norm": [False],
        "resampling_fn_data": resampling, "resampling_fn_seg": resampling, "resampling_fn_data_kwargs": data,
        "resampling_fn_seg_kwargs": {**data, "is_seg": True, "order": 1}, "resampling_fn_probabilities": resampling,
        "resampling_fn_probabilities_kwargs": {**data, "order": 1}, "batch_dice": False,
        "architecture": architecture or NNUNET_ARCHITECTURE,
    }  # fmt: skip
    return {
        "dataset_name": "Dataset001_Tiny", "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [3.0, 2.0, 1.0], "original_median_shape_after_transp": [8, 8, 8],
        "image_reader_writer": reader, "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration}, "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager", "foreground_intensity_properties_per_channel": {"0": {}},
    }  # fmt: skip


def nnunet_network(outputs: int = 3) -> nn.Module | None:
    """Its network; None where nnU-Net is not installed."""
    try:
        from dynamic_network_architectures.architectures.unet import PlainConvUNet
    except ImportError:
        return None
    layers = {"conv_op": nn.Conv3d, "norm_op": nn.InstanceNorm3d, "nonlin": nn.LeakyReLU}
    return PlainConvUNet(1, num_classes=outputs, **{**NNUNET_LAYERS, **layers}).eval()


def write_nnunet(folder: Path, folds: int = 1, labels: dict | None = None, more: dict | None = None, **dataset) -> Path:
    """A trained model's folder with random weights, in nnU-Net's own format; another network in each fold."""
    folder.mkdir(parents=True)
    names = labels or NNUNET_LABELS
    content = {"channel_names": {"0": "MRI"}, "labels": names, "numTraining": 2, "file_ending": ".nii.gz", **dataset}
    (folder / "dataset.json").write_text(json.dumps(content))
    (folder / "plans.json").write_text(json.dumps(nnunet_plans()))
    for fold in range(folds):
        torch.manual_seed(fold)
        network = nnunet_network(outputs=len(names) if not dataset.get("regions_class_order") else len(names) - 1)
        checkpoint = {
            "network_weights": network.state_dict() if network else {}, "optimizer_state": {}, "current_epoch": 1,
            "logging": {"mean_fg_dice": [np.float64(0.5)], "ema": np.float32(0.4)}, "trainer_name": "nnUNetTrainer",
            "init_args": {"configuration": "3d_fullres", "fold": fold, "device": torch.device("cpu")},
            "inference_allowed_mirroring_axes": (0, 1, 2), **(more or {}),
        }  # fmt: skip
        (folder / f"fold_{fold}").mkdir()
        torch.save(checkpoint, folder / f"fold_{fold}" / "checkpoint_final.pth")
    return folder


def a_totalsegmentator_task(monkeypatch, weights: Path | None = None) -> Path:
    """A task of a TotalSegmentator that stands in for the real one: bright voxels are liver, dark ones spleen.

    `weights`: where its weights lie; None: where they are found.
    """
    names = ("totalsegmentator", "python_api", "map_to_binary", "config", "map_tasks_config")
    modules = {n: ModuleType(n if n == "totalsegmentator" else f"totalsegmentator.{n}") for n in names}
    modules["map_to_binary"].class_map = {"total": {1: "liver", 2: "spleen"}, "face": {1: "face"}, "part": {1: "rib"}}
    modules["config"].get_weights_dir = lambda: weights or Path(__file__).parent
    modules["map_tasks_config"].TASK_ID_WEIGHTS_CONFIGS = {297: {"foldername": Path(__file__).name}}
    modes = {"fast": {"task_id": 297}, "default": {"task_id": [297]}}
    modules["map_tasks_config"].TASK_CONFIGS = {
        "total": {"sub_modes": modes}, "face": {"task_id": 297, "commercial": True}, "test": {"task_id": 517},
    }  # fmt: skip
    interface = modules["python_api"]
    interface.called = []

    def totalsegmentator(image, output, **options):
        interface.called.append(options)
        interface.download_pretrained_weights(297)
        interface.send_usage_stats({}, {})
        array = image.get_fdata()
        found = (array > 0.5) + 2 * (array < -0.5)
        return nibabel.Nifti1Image(found.astype(np.uint8), image.affine)

    def reaches_out(*_):
        raise AssertionError("reached out into the internet")

    interface.get_task_config = lambda task, fast, quiet: {"task_id": [297]}
    interface.totalsegmentator = totalsegmentator
    interface.download_pretrained_weights = interface.send_usage_stats = reaches_out
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, module.__name__, module)
        if name != "totalsegmentator":
            setattr(modules["totalsegmentator"], name, module)
    return Path("totalsegmentator:total")
