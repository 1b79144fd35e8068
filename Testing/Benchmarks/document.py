"""Document: a Markdown file of sections, each written by the part that measured it; the others stay as they are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
        found = re.split(r"<!-- (\w+) -->\n", old)
        sections = {**dict(zip(found[1::2], found[2::2], strict=True)), part: text}
        body = "\n".join(f"<!-- {name} -->\n{sections[name].strip()}\n" for name in self.parts if name in sections)
        write_text(self.file, f"{self.heading}\n\n{body}")
