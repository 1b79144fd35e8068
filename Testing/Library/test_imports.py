"""Who may import whom, as the design says; files stay short; --help loads nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
LIBRARY = REPOSITORY / "KnowledgeTransferLib"
FILES = sorted(LIBRARY.rglob("*.py"))
SLICER = {"slicer", "qt", "ctk", "vtk", "mrml", "SegmentStatisticsLib"}
HEAVY = ("torch", "monai", "numpy", "nibabel", "SimpleITK", "matplotlib", "scipy", "lightning_fabric")


def imported(file: Path) -> set[str]:
    """Full names of the modules that a file imports, relative ones resolved, wherever in the file."""
    package = file.relative_to(REPOSITORY).with_suffix("").parts[:-1]
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = (
                ".".join((*package[: len(package) + 1 - node.level], node.module or "")) if node.level else node.module
            )
            names |= {f"{base.rstrip('.')}.{alias.name}" for alias in node.names} | {base.rstrip(".")}
    return names


def files_of(part: str) -> list:
    return [pytest.param(file, id=file.stem) for file in FILES if part in file.relative_to(LIBRARY).parts]


def starts(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


@pytest.mark.parametrize("file", files_of("records"))
def test_records_import_the_standard_library_alone(file):
    foreign = {name for name in imported(file) if name.split(".")[0] not in sys.stdlib_module_names}
    own = {"KnowledgeTransferLib", "KnowledgeTransferLib.__version__"}
    assert {name for name in foreign if not starts(name, "KnowledgeTransferLib.records")} <= own


@pytest.mark.parametrize("file", files_of("learning"))
def test_learning_never_imports_steps_or_the_command_line(file):
    above = {"KnowledgeTransferLib.steps", "KnowledgeTransferLib.__main__", "KnowledgeTransferLib.terminal"}
    assert not [name for name in imported(file) if starts(name, *above)]


@pytest.mark.parametrize("file", files_of("steps"))
def test_steps_never_import_each_other(file):
    others = [
        name for name in imported(file) if starts(name, "KnowledgeTransferLib.steps", "KnowledgeTransferLib.__main__")
    ]
    assert not others


@pytest.mark.parametrize("file", [pytest.param(f, id=str(f.relative_to(LIBRARY))) for f in FILES])
def test_the_library_never_imports_slicer(file):
    assert not {name for name in imported(file) if name.split(".")[0] in SLICER}


@pytest.mark.parametrize("file", [pytest.param(f, id=str(f.relative_to(LIBRARY))) for f in FILES])
def test_a_file_is_short_and_says_in_its_first_line_what_it_is(file):
    lines = file.read_text(encoding="utf-8").splitlines()
    assert len(lines) < 350
    assert lines[0].startswith('"""')


@pytest.mark.parametrize("file", [*files_of("records"), *files_of("learning"), *files_of("steps")])
def test_the_library_neither_prints_nor_exits(file):
    calls = [node.func for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    names = {ast.unparse(call) for call in calls}
    assert not names & {"print", "exit", "quit", "sys.exit", "os._exit"}


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_loads_nothing_heavy(argument):
    script = (
        f"import runpy, sys; sys.argv = ['knowledge-transfer', {argument!r}]\n"
        "try: runpy.run_module('KnowledgeTransferLib', run_name='__main__')\n"
        "except SystemExit as stop: code = stop.code\n"
        f"loaded = [name for name in {HEAVY} if name in sys.modules]\n"
        "sys.stderr.write(f'code {code} loaded {loaded}')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, encoding="utf-8", check=True
    )
    assert done.stderr.endswith("code 0 loaded []")
    assert done.stdout.strip()


def test_records_load_in_a_python_without_any_package():
    modules = [f"KnowledgeTransferLib.records.{file.stem}" for file in (LIBRARY / "records").glob("[a-z]*.py")]
    script = f"import importlib; [importlib.import_module(name) for name in {modules}]"
    subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); {script}"], check=True
    )


def test_annotating_distilling_and_segmenting_do_not_wait_for_monai():
    """Its import takes seconds and 200 MiB; the designs that are built of its blocks import it then."""
    steps = ", ".join(f"KnowledgeTransferLib.steps.{step}" for step in ("annotate", "distil", "segment", "export"))
    script = f"import {steps}, sys; sys.exit(str([n for n in ('monai', 'matplotlib', 'pandas') if n in sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, encoding="utf-8", check=False
    )
    assert done.stderr.strip() == "[]"
