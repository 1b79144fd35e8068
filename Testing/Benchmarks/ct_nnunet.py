"""CT with nnU-Net: nnU-Net v2's own predictor on the same CT, from file to file, with networks of the student's size."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path

import ct
import torch
from side import peak_mib

PATCH_VOXELS = (128, 128, 128)  # what nnU-Net plans for volumes of this size
PLAIN = {  # nnU-Net's own U-Net with the student's widths, one convolution per level
    "n_stages": 3, "features_per_stage": [16, 24, 32], "conv_op": "torch.nn.modules.conv.Conv3d",
    "kernel_sizes": [[3, 3, 3]] * 3, "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]], "n_conv_per_stage": [1] * 3,
    "n_conv_per_stage_decoder": [1] * 2, "conv_bias": True, "norm_op": "torch.nn.modules.batchnorm.BatchNorm3d",
    "norm_op_kwargs": {}, "dropout_op": None, "dropout_op_kwargs": None, "nonlin": "torch.nn.ReLU",
    "nonlin_kwargs": {"inplace": True},
}  # fmt: skip
ARCHITECTURES = {
    "plain": {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": PLAIN, "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    },
    "same": {"network_class_name": "ct_nnunet.the_students", "arch_kwargs": {}, "_kw_requires_import": []},
}  # fmt: skip


def the_students(input_channels: int, num_classes: int, deep_supervision: bool = False) -> torch.nn.Module:
    """The student's network, as nnU-Net makes one from its plans."""
    from KnowledgeTransferLib.learning.networks import build_named_network

    return build_named_network("tiny", 3, input_channels, num_classes)


def predict(data: Path, work: Path, network: str) -> dict:
    """nnUNetPredictor as a user runs it (windows that overlap by half), without mirror images, once.

    Args:
        network: a key of ARCHITECTURES; "same" has the student's weights too, "plain" random ones.
    """
    os.environ.update({f"nnUNet_{name}": str(work) for name in ("raw", "preprocessed", "results")})
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    model, output = write_model(work / "ct" / f"nnunet_{network}", work, network), work / "ct" / f"by_nnunet_{network}"
    output.mkdir(exist_ok=True)
    predictor = nnUNetPredictor(device=torch.device("cpu"), use_mirroring=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), None)
    began = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        predictor.predict_from_files_sequential([[str(work / "ct" / "ct.nii.gz")]], [str(output / "ct")])
    seconds = time.perf_counter() - began
    parameters = sum(p.numel() for p in predictor.network.parameters())
    return {"s": seconds, "peak_mib": peak_mib(), "parameters": parameters}


def write_model(folder: Path, work: Path, network: str) -> Path:
    """The folder of a trained model, in nnU-Net's own format."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    from KnowledgeTransferLib.learning.student import load_student

    student, architecture = load_student(work / "ct" / "student"), ARCHITECTURES[network]
    torch.manual_seed(0)
    weights = get_network_from_plans(*architecture.values(), 1, ct.STRUCTURES + 1, deep_supervision=False).state_dict()
    weights = student.network.state_dict() if network == "same" else weights
    (folder / "fold_0").mkdir(parents=True, exist_ok=True)
    labels = {"background": 0, **{s.name: s.value for s in student.labels.structures}}
    dataset = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(dataset), encoding="utf-8")
    (folder / "plans.json").write_text(
        json.dumps(plans(architecture, student.preprocessing.normalisation[0])), encoding="utf-8"
    )
    checkpoint = {
        "network_weights": weights, "trainer_name": "nnUNetTrainer", "inference_allowed_mirroring_axes": None,
        "init_args": {"configuration": "3d_fullres", "fold": 0},
    }  # fmt: skip
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    return folder


def plans(architecture: dict, grey) -> dict:
    """plans.json as nnU-Net's planner writes it, with the student's spacing and window of grey values."""
    resampling = "resample_data_or_seg_to_shape"
    data = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2,
        "patch_size": PATCH_VOXELS, "median_image_size_in_voxels": [215, 164, 164], "spacing": ct.OWN_SPACING_MM,
        "normalization_schemes": ["CTNormalization"], "use_mask_for_norm": [False],
        "resampling_fn_data": resampling, "resampling_fn_seg": resampling, "resampling_fn_data_kwargs": data,
        "resampling_fn_seg_kwargs": {**data, "is_seg": True, "order": 1}, "resampling_fn_probabilities": resampling,
        "resampling_fn_probabilities_kwargs": {**data, "order": 1}, "batch_dice": False, "architecture": architecture,
    }  # fmt: skip
    grey = {"mean": grey.mean, "std": grey.deviation, "percentile_00_5": grey.low, "percentile_99_5": grey.high}
    return {
        "dataset_name": "Dataset001_CT", "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [2.5, 0.8, 0.8], "original_median_shape_after_transp": [215, 512, 512],
        "image_reader_writer": "SimpleITKIO", "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration}, "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager", "foreground_intensity_properties_per_channel": {"0": grey},
    }  # fmt: skip
