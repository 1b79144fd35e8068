"""slicer.packaging, written for the stand-in: notes what would be installed, and installs nothing."""

from pathlib import Path

from packaging.requirements import Requirement

asked: list[tuple[str, ...]] = []


def load_requirements(path):
    """The requirements that a file lists."""
    lines = (line.partition("#")[0].strip() for line in Path(path).read_text(encoding="utf-8").splitlines())
    return [Requirement(line) for line in lines if line]


def pip_ensure(requirements, *args, **keywords):
    pip_install(requirements)


def pip_install(requirements, *args, **keywords):
    asked.append((requirements,) if isinstance(requirements, str) else tuple(map(str, requirements)))


def pip_uninstall(requirements, *args, **keywords):
    raise RuntimeError(f"a module uninstalls {requirements}")
