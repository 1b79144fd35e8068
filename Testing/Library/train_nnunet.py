"""Trains a tiny nnU-Net for two iterations through its own code: `python train_nnunet.py FOLDER`. Two folds.

FOLDER holds images/ and labels/ of a phantom cohort with its dataset.json; the model's folder is printed at the end.
nnU-Net starts processes that import this file, so everything lies behind the last lines.
"""

import json
import os
import shutil
import sys
from pathlib import Path

NAME = "Dataset001_Phantom"


def main(folder: Path) -> None:
    for name in ("raw", "preprocessed", "results"):
        (folder / name).mkdir()
        os.environ[f"nnUNet_{name}"] = str(folder / name)
    os.environ |= {"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1", "nnUNet_compile": "f"}
    write_dataset(folder)
    plans = plan(folder / "preprocessed" / NAME)
    os.environ |= {"nnUNet_n_proc_DA": "0"}  # patches are made in this process
    for fold in (0, 1):
        model = train(plans, fold, json.loads((folder / "raw" / NAME / "dataset.json").read_text()))
    print(model)


def write_dataset(folder: Path) -> None:
    dataset = folder / "raw" / NAME
    images, labels = dataset / "imagesTr", dataset / "labelsTr"
    images.mkdir(parents=True)
    shutil.copytree(folder / "labels", labels)
    for file in (folder / "images").iterdir():
        shutil.copy(file, images / file.name.replace(".nii.gz", "_0000.nii.gz"))
    names = json.loads((folder / "dataset.json").read_text())["labels"]
    cases = len(list(images.iterdir()))
    content = {"channel_names": {"0": "CT"}, "labels": names, "numTraining": cases, "file_ending": ".nii.gz"}
    (dataset / "dataset.json").write_text(json.dumps(content))


def plan(folder: Path) -> dict:
    """nnU-Net's own plan, with a smaller network."""
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api

    api.extract_fingerprints([1], num_processes=1)
    api.plan_experiments([1])
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    arguments = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    arguments["features_per_stage"] = [4] * arguments["n_stages"]
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    api.preprocess([1], configurations=("3d_fullres",), num_processes=(1,))
    cases = sorted(file.name.removesuffix(".nii.gz") for file in (folder / "gt_segmentations").iterdir())
    splits = [{"train": cases[1:], "val": cases[:1]}, {"train": cases[:-1], "val": cases[-1:]}]
    (folder / "splits_final.json").write_text(json.dumps(splits))
    return plans


def train(plans: dict, fold: int, dataset: dict) -> str:
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    plans = {**plans, "continue_training": False}
    trainer = nnUNetTrainer(plans, "3d_fullres", fold, dataset, device=torch.device("cpu"))
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 1, 2, 1
    trainer.run_training()
    return trainer.output_folder_base


if __name__ == "__main__":
    main(Path(sys.argv[1]))
