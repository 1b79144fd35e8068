"""What the Extension Manager needs: the build's lists name the files on disk, and the descriptions agree."""

import json
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PACKAGES = ("KnowledgeTransfer", "KnowledgeTransferLib")
HOMEPAGE = "https://github.com/KnowledgeTransfer/SlicerKnowledgeTransfer"
TOP = REPOSITORY / "CMakeLists.txt"
ENTRY = REPOSITORY / "Resources" / "KnowledgeTransfer.json"


def listed(cmake: str, name: str) -> set[str]:
    """The entries of `set(NAME ...)`."""
    found = re.search(rf"set\({name}\s([^)]*)\)", cmake)
    return set(found.group(1).split()) if found else set()


def on_disk(folder: Path, scripts: bool) -> set[str]:
    files = (
        f for f in folder.rglob("*") if f.is_file() and "__pycache__" not in f.parts and f.name != "CMakeLists.txt"
    )
    return {f.relative_to(folder).as_posix() for f in files if (f.suffix == ".py") == scripts}


def differences(folder: Path) -> list[str]:
    """Files that the build forgets ("+") and files that it names and that are not there ("-")."""
    cmake = (folder / "CMakeLists.txt").read_text(encoding="utf-8")
    found = []
    for name, scripts in (("MODULE_PYTHON_SCRIPTS", True), ("MODULE_PYTHON_RESOURCES", False)):
        in_build, there = listed(cmake, name), on_disk(folder, scripts)
        found += [f"+{f}" for f in sorted(there - in_build)] + [f"-{f}" for f in sorted(in_build - there)]
    return found


def value(name: str) -> str:
    """What the top CMakeLists.txt sets NAME to."""
    return re.search(rf'set\({name} "([^"]*)"\)', TOP.read_text(encoding="utf-8")).group(1)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_build_lists_every_file(package):
    assert differences(REPOSITORY / package) == []


def test_forgotten_and_missing_files_are_found(tmp_path):
    (tmp_path / "steps").mkdir()
    for file in ("__init__.py", "steps/new.py", "page.html"):
        (tmp_path / file).write_text("")
    lists = "set(MODULE_PYTHON_SCRIPTS\n  __init__.py\n  old.py\n  )\nset(MODULE_PYTHON_RESOURCES\n  page.css\n  )"
    (tmp_path / "CMakeLists.txt").write_text(lists)

    assert differences(tmp_path) == ["+steps/new.py", "-old.py", "+page.html", "-page.css"]


def test_both_packages_are_built_and_installed_where_they_belong():
    top = TOP.read_text(encoding="utf-8")
    assert all(f"add_subdirectory({package})" in top for package in PACKAGES)
    for package, option in zip(PACKAGES, ("WITH_GENERIC_TESTS", "WITH_SUBDIR"), strict=True):
        cmake = (REPOSITORY / package / "CMakeLists.txt").read_text(encoding="utf-8")
        assert f"set(MODULE_NAME {package})" in cmake and option in cmake and "../" not in cmake
    assert (
        "slicer_add_python_unittest(SCRIPT ${MODULE_NAME}.py)"
        in (REPOSITORY / "KnowledgeTransfer/CMakeLists.txt").read_text()
    )


def test_slicer_finds_one_module_and_no_stray_scripts():
    """Slicer takes every .py that lies directly in a module path for a module."""
    assert [file.name for file in (REPOSITORY / "KnowledgeTransfer").glob("*.py")] == ["KnowledgeTransfer.py"]
    assert list(REPOSITORY.glob("*.py")) == []


def test_the_index_entry_is_what_the_schema_asks_for():
    entry = json.loads(ENTRY.read_text(encoding="utf-8"))
    known = {"$schema", "category", "scm_url", "scm_revision", "scm_type", "build_dependencies"}
    known |= {"build_subdirectory", "enabled", "tier"}

    assert {"$schema", "category", "scm_url"} <= set(entry) <= known
    assert entry["build_dependencies"] == ["PyTorch"] and value("EXTENSION_DEPENDS") == "PyTorch"
    assert entry["scm_url"] == f"{HOMEPAGE}.git" and 1 <= entry["tier"] <= 5


def test_names_and_addresses_agree():
    assert f"project({ENTRY.stem})" in TOP.read_text(encoding="utf-8")
    assert value("EXTENSION_HOMEPAGE") == HOMEPAGE
    for file in ("KnowledgeTransfer/KnowledgeTransfer.py", "CITATION.cff", "pyproject.toml", "README.md"):
        text = (REPOSITORY / file).read_text(encoding="utf-8")
        named = set(re.findall(r"https://github\.com/[\w-]+/Slicer[\w-]+", text))
        assert named <= {HOMEPAGE}, file


def test_icon_and_screenshots_exist():
    raw = HOMEPAGE.replace("github.com", "raw.githubusercontent.com") + "/main/"
    addresses = [value("EXTENSION_ICONURL"), *value("EXTENSION_SCREENSHOTURLS").split()]

    for address in addresses:
        assert address.startswith(raw) and (REPOSITORY / address.removeprefix(raw)).is_file(), address
