"""MONAI workflow: stock MONAI runs what `export --to monai` wrote, on volumes and pictures, and agrees with us."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from test_backends import a_student

from KnowledgeTransferLib.learning.evidence import Evidence
from KnowledgeTransferLib.learning.exporters import EXPORTERS
from KnowledgeTransferLib.learning.monai_workflow import monai_workflow
from KnowledgeTransferLib.learning.preprocessing import Normalisation
from KnowledgeTransferLib.learning.student import How, Student
from KnowledgeTransferLib.learning.volume import read_annotation, write_image
from KnowledgeTransferLib.steps.segment import segment

WEIGHTS = torch.tensor([[0.0, 0.0, 0.0], [1.0, -0.5, 0.3], [-1.0, 0.7, -0.5]])  # classes x channels
TURNED = np.array([[-1.2, 0, 0, 5], [0, 1.1, 0, 3], [0, 0, 2.5, 1], [0, 0, 0, 1.0]])
pytestmark = pytest.mark.filterwarnings("ignore")  # MONAI's own


def a_plain_student(dimensions: int, channels: int, spacing_mm=(1.0, 1.0, 1.0)) -> Student:
    """Its classes are smooth regions: a weighted sum of the channels decides each voxel."""
    student = a_student("tiny", dimensions, channels)
    network = (torch.nn.Conv2d if dimensions == 2 else torch.nn.Conv3d)(channels, 3, 1).eval()
    network.weight.data[:] = WEIGHTS[:, :channels].reshape(network.weight.shape)
    network.bias.data[:] = torch.tensor([0.3, 0.0, 0.0])
    network.total_stride, network.margin, network.dimensions = 8, 0, dimensions
    student.network, student.preprocessing = network, replace(student.preprocessing, spacing_mm=spacing_mm)
    return student


def smooth(shape: tuple[int, ...], seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=[max(1, n // 6) for n in shape])
    return ndimage.zoom(noise, [n / m for n, m in zip(shape, noise.shape, strict=True)], order=1).astype(np.float32)


def run_in_monai(student: Student, root: Path) -> None:
    """Export the student, and let stock MONAI segment `root/scans` into `root/theirs`."""
    pytest.importorskip("fire")
    import monai.bundle

    for folder in ("models", "configs"):
        (root / "student" / folder).mkdir(parents=True)
    EXPORTERS["monai"].write(student, root / "student", Evidence())
    monai.bundle.run(
        "run", config_file=str(root / "student" / "configs" / "inference.json"), bundle_root=str(root / "student"),
        dataset_dir=str(root / "scans"), output_dir=str(root / "theirs"),
    )  # fmt: skip


def agreement(student: Student, root: Path, suffix: str) -> float:
    """The smallest share of equal voxels of all segmentations of `segment`, which MONAI must have made too."""
    segment("", [root / "scans"], root / "ours", format=suffix, open_student=lambda *_: student, how=How("torch"))
    files = sorted(file for file in (root / "ours").iterdir() if file.name.endswith(suffix))
    assert [file.name for file in files] == sorted(file.name for file in (root / "theirs").iterdir())
    pairs = [(read_annotation(file), read_annotation(root / "theirs" / file.name)) for file in files]
    assert all(set(np.unique(ours)) == {0, 1, 2} for ours, _ in pairs)
    return min((ours == theirs).mean() for ours, theirs in pairs)


@pytest.mark.parametrize(
    ("dimensions", "channels", "spacing_mm"),
    [(3, 1, (1.5, 1.5, 1.5)), (3, 2, (1.2, 1.1, 2.5)), (2, 1, (1.5, 1.5, 2.5)), (2, 2, (1.2, 1.1, 2.5))],
)
def test_volumes_of_one_channel_or_several(dimensions, channels, spacing_mm, tmp_path):
    for case in range(2):
        for channel in range(channels):
            name = f"case{case}_{channel:04}.nii.gz" if channels > 1 else f"case{case}.nii.gz"
            write_image(tmp_path / "scans" / name, smooth((40, 44, 13), 10 * case + channel), TURNED)
    student = a_plain_student(dimensions, channels, spacing_mm)
    run_in_monai(student, tmp_path)
    assert agreement(student, tmp_path, ".nii.gz") > 0.98


@pytest.mark.parametrize(("channels", "spacing_mm"), [(1, (1.0, 1.0, 1.0)), (3, (1.3, 1.3, 1.0))])
def test_grey_and_coloured_pictures(channels, spacing_mm, tmp_path):
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "scans").mkdir()
    grey = np.stack([smooth((50, 42), seed) for seed in range(channels)], -1)
    grey = ((grey - grey.min()) / np.ptp(grey) * 255).astype(np.uint8)
    image.fromarray(np.swapaxes(grey, 0, 1).squeeze()).save(tmp_path / "scans" / "picture.png")
    student = a_plain_student(2, channels, spacing_mm)
    run_in_monai(student, tmp_path)
    assert agreement(student, tmp_path, ".png") > 0.98


def test_ct_windows_that_differ_between_channels_are_refused():
    student = a_plain_student(3, 2)
    windows = Normalisation("ct", -1000, 400, 0, 300), Normalisation("ct", 0, 80, 40, 20)
    student.preprocessing = replace(student.preprocessing, normalisation=windows)
    with pytest.raises(ValueError, match=r"normalises all channels alike; .*\(ct -1000 to 400; ct 0 to 80"):
        monai_workflow(student)
