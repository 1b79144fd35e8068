"""The README's commands do what it says, on a phantom with the names that it uses."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from KnowledgeTransferLib.__main__ import main
from KnowledgeTransferLib.learning.phantom import write_phantom
from KnowledgeTransferLib.records.run_directory import write_json
from KnowledgeTransferLib.steps.distil import distil

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHORT = {"epochs": 1, "spacing_mm": [10.0, 10.0, 10.0], "batch_size": 2}


def commands() -> list[list[str]]:
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("knowledge-transfer ")]
    return [shlex.split(line)[1:] for line in lines]


@pytest.fixture
def a_clinic(tmp_path, monkeypatch):
    """A folder with scans, a teacher and annotated scans, named as in the README; trainings are cut short."""
    write_phantom(tmp_path / "annotated_scans", 4, "A", size_voxels=(32, 32, 20))
    shutil.copytree(tmp_path / "annotated_scans" / "images", tmp_path / "my_scans")
    shutil.copy(tmp_path / "my_scans" / "A_001.nii.gz", tmp_path / "new_scan.nii.gz")
    teacher = tmp_path / "first_teacher"
    distil(teacher, tmp_path / "annotated_scans", annotations="expert", **SHORT | {"spacing_mm": (10.0, 10.0, 10.0)})
    shutil.copytree(teacher / "student", tmp_path / "their_model")
    for run in ("my_run", "my_teacher", "joint_run"):
        write_json(tmp_path / run / "settings.json", {"distil": SHORT})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_readme_names_every_step():
    assert {"annotate", "distil", "segment", "evaluate"} <= {command[0] for command in commands()}


@pytest.mark.slow
def test_the_readmes_commands_run_in_its_order(a_clinic):
    for command in commands():
        assert main(command) == 0, command
    for made in ("my_run/student/docs/README.md", "my_run/report.html", "new_scan.seg.nrrd", "my_teacher/student"):
        assert (a_clinic / made).exists(), made
    for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        if "import slicer" not in code:  # Testing/Slicer runs that one
            exec(compile(code, "README.md", "exec"), {})


def test_the_readmes_links_and_pictures_exist():
    for target in re.findall(r"\]\(((?!http)[^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_readmes_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`?make (\w+)`?", README):
        if target not in ("python3",):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
