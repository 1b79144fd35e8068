"""Requirements: what is missing is found without importing it, asked for once, and installed in Slicer's way."""

import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest


@pytest.fixture
def requirements(a_scene):
    from KnowledgeTransferSlicer import Requirements

    return Requirements


@pytest.fixture
def nothing_installed(monkeypatch, requirements):
    """As in a fresh Slicer: numpy and SimpleITK are there, torch and MONAI are not. Installing adds to the set."""
    there = {"numpy", "SimpleITK", "scipy", "requests"}
    real = metadata.version

    def version(name):
        if name not in there:
            raise metadata.PackageNotFoundError(name)
        return real(name) if name != "requests" else "2.31"

    monkeypatch.setattr(requirements.metadata, "version", version)
    return there


@pytest.fixture
def installers(monkeypatch, requirements, nothing_installed):
    """Stand-ins for PyTorchUtils and pip that note what they were asked for."""
    asked = {}

    class Torch:
        def installTorch(self, askConfirmation, torchVersionRequirement):  # noqa: N802 (Slicer's name)
            asked["torch"] = torchVersionRequirement
            nothing_installed.add("torch")
            return object()

    module = ModuleType("PyTorchUtils")
    module.PyTorchUtilsLogic = Torch
    monkeypatch.setitem(sys.modules, "PyTorchUtils", module)

    def pip_ensure(packages, constraints, **options):
        asked["pip"] = list(packages)
        asked["constraints"] = constraints.read_text(encoding="utf-8").split()
        nothing_installed.update(package.split(">=")[0] for package in packages)

    monkeypatch.setitem(sys.modules, "slicer.packaging", SimpleNamespace(pip_ensure=pip_ensure))
    monkeypatch.setattr(
        requirements,
        "find_spec",
        lambda name, real=requirements.find_spec: True if name == "slicer.packaging" else real(name),
    )
    return asked


def test_nothing_is_missing_here(requirements, dialogs):
    assert requirements.missing() == []
    requirements.ensure()
    assert dialogs.shown == []


def test_the_list_is_the_librarys_own(requirements):
    names = [name for name, lowest in requirements.requirements()]
    assert {"torch", "monai", "nibabel"} <= set(names)
    assert all(lowest for name, lowest in requirements.requirements())


def test_what_is_too_old_is_missing(requirements, monkeypatch):
    real = metadata.version
    monkeypatch.setattr(requirements.metadata, "version", lambda name: "1.5.2" if name == "monai" else real(name))
    assert requirements.missing() == ["monai>=1.6"]


@pytest.mark.parametrize(
    "version, numbers", [("2.13.0+cpu", [2, 13, 0]), ("1.6rc1", [1, 6]), ("5.4.2.post1", [5, 4, 2])]
)
def test_versions_are_compared_as_numbers(requirements, version, numbers):
    assert requirements._numbers(version) == numbers


def test_one_question_and_then_torch_through_its_extension_and_the_rest_by_pip(requirements, installers, dialogs):
    requirements.ensure()
    assert [shown.kind for shown in dialogs.shown] == ["confirmOkCancel"]
    assert "monai" in dialogs.shown[0].text and "downloaded from pypi.org" in dialogs.shown[0].text
    assert installers["torch"] == ">=2.8"
    assert "monai>=1.6" in installers["pip"] and not any(
        p.startswith(("torch", "numpy", "SimpleITK")) for p in installers["pip"]
    )
    assert any(line.startswith("numpy==") for line in installers["constraints"])  # Slicer's own numpy stays
    assert any(line.startswith("torch==") for line in installers["constraints"])


def test_what_only_some_teachers_need_is_asked_for_when_such_a_teacher_is_used(requirements, installers, dialogs):
    from KnowledgeTransferSlicer.Logic import packagesFor

    assert packagesFor(["/a/student", "scene:"]) == []
    wanted = packagesFor(["totalsegmentator:total", "/a/NET.ONNX"])
    assert wanted == ["TotalSegmentator>=2.18", "onnxruntime"]
    requirements.ensure(also=wanted)
    assert "TotalSegmentator>=2.18" in dialogs.shown[0].text and set(wanted) < set(installers["pip"])
    assert requirements.missing() == []


def test_folders_of_nn_unet_and_of_yaml_bundles_need_packages_of_their_own(requirements, tmp_path):
    from KnowledgeTransferSlicer.Logic import packagesFor

    for file in ("nnunet/plans.json", "yaml/configs/inference.yaml", "json/configs/inference.json"):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).touch()
    folders = [tmp_path / name for name in ("nnunet", "yaml", "json", "nnunet")]
    assert packagesFor(folders) == [requirements.NN_UNET, requirements.YAML]


def test_what_teachers_need_is_what_the_package_itself_names(requirements):
    extras = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    needed = (requirements.TOTAL_SEGMENTATOR, requirements.NN_UNET, requirements.ONNX_RUNTIME, requirements.YAML)
    assert all(f'"{package}"' in extras for package in needed)


def test_a_second_press_while_packages_are_installed_installs_nothing(requirements, installers, monkeypatch):
    """The installers let Slicer's event loop go on."""
    told = []

    def press(packages):
        with pytest.raises(requirements.RequirementsError, match="are being installed; wait"):
            requirements.ensure(ask=False)
        told.append(packages)

    monkeypatch.setattr(requirements, "_pipInstall", press)
    with pytest.raises(requirements.RequirementsError, match="Could not be installed"):
        requirements.ensure(ask=False)
    assert len(told) == 1
    with pytest.raises(requirements.RequirementsError, match="Could not be installed"):
        requirements.ensure(ask=False)  # it may be tried again


def test_on_a_slicer_for_intel_macs_it_is_said_what_is_not_there(requirements, installers, monkeypatch, dialogs):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(requirements.platform, "machine", lambda: "x86_64")
    with pytest.raises(requirements.RequirementsError, match="PyTorch has not been made for these"):
        requirements.ensure()
    assert installers == {} and dialogs.shown == []
    monkeypatch.setattr(requirements.platform, "machine", lambda: "arm64")
    assert requirements.impossible() == ""


def test_who_declines_gets_no_package(requirements, installers, dialogs):
    dialogs.answer(False)
    with pytest.raises(requirements.RequirementsError, match="Not installed: torch"):
        requirements.ensure()
    assert installers == {}


def test_without_the_pytorch_extension_it_is_said_what_to_install(requirements, nothing_installed, monkeypatch):
    monkeypatch.setitem(sys.modules, "PyTorchUtils", None)
    with pytest.raises(requirements.RequirementsError, match="extension PyTorch is missing; install it"):
        requirements.ensure()


def test_the_panel_opens_without_the_packages_and_says_what_is_missing(nothing_installed, the_panel, dialogs):
    assert the_panel.ui.requirementsFrame.visible or not the_panel.ui.requirementsFrame.isHidden()
    assert "torch>=2.8" in the_panel.ui.requirementsLabel.text
    assert dialogs.shown == []  # nothing is asked before it is needed
