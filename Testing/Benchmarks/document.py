"""Document: a Markdown file of sections, each written by the part that measured it; the others stay as they are."""

from __future__ import annotations

import argparse
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch

from KnowledgeTransferLib import __version__
from KnowledgeTransferLib.records.run_directory import write_text


@dataclass(frozen=True)
class Document:
    """`parts` name the sections in their order; a comment `<!-- part -->` stands before each."""

    file: Path
    heading: str
    parts: Sequence[str]

    def write(self, part: str, text: str) -> None:
        """Put a section in its place."""
        old = self.file.read_text(encoding="utf-8") if self.file.exists() else ""
        found = re.split(r"<!-- ([\w-]+) -->\n", old)
        sections = {**dict(zip(found[1::2], found[2::2], strict=True)), part: text}
        order = [*self.parts, *(name for name in sections if name not in self.parts)]  # also what a later version wrote
        body = "\n".join(f"<!-- {name} -->\n{sections[name].strip()}\n" for name in order if name in sections)
        write_text(self.file, f"{self.heading}\n\n{body}")


def parts_asked(description: str, parts: Sequence[str]) -> list[str]:
    """The parts that the command line names; all where it names none."""
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(parts)} (default: all)")
    asked = parser.parse_args().parts or list(parts)
    if unknown := [part for part in asked if part not in parts]:
        parser.error(f"there is no part {unknown[0]!r}; choose among {', '.join(parts)}")
    return asked


def origin(command: str) -> str:
    """The line below a section: when, by which command, with what and on which machine it was measured."""
    versions = f"KnowledgeTransfer {__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    return f"*{date.today()}, `{command}`: {versions}; {machine()}.*"


def machine() -> str:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    kind = torch.backends.cpu.get_cpu_capability()
    return f"{_processor()} ({kind}), {os.cpu_count()} cores, {gpu}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
