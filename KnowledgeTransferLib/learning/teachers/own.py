"""Own: a bundle that KnowledgeTransfer made, as a teacher. A student can teach the next one."""

from __future__ import annotations

from pathlib import Path

from ...records import bundle
from ...records.labels import Labels
from ..student import load_student
from .teacher import Teacher


class OwnBundle:
    """A bundle that KnowledgeTransfer made, or the run directory whose student it is."""

    NAME = "student"
    KIND = "bundle made by KnowledgeTransfer (a folder with configs/ and models/), or a run directory with a student/"

    @staticmethod
    def recognises(path: Path) -> bool:
        folder = bundle.bundle_in(path)
        return bundle.is_bundle(folder) and bundle.made_here(folder)

    @staticmethod
    def open(path: Path, device: str, labels: Labels | None) -> Teacher:
        return load_student(path, device)

    @staticmethod
    def describe(path: Path) -> dict:
        folder = bundle.bundle_in(path)
        ours = bundle.read_metadata(folder)[bundle.OURS]
        try:
            labels = Labels.from_json(ours["labels"])
            kinds = [normalisation["kind"] for normalisation in ours["preprocessing"]["normalisation"]]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{folder}: the bundle's metadata are damaged ({error!r})") from error
        card = folder / bundle.MODEL_CARD
        return {
            "labels": labels, "channels": len(kinds), "hint": "",
            "modality": "CT" if set(kinds) == {"ct"} else "",
            "card": card.read_text(encoding="utf-8") if card.is_file() else "",
        }  # fmt: skip

    @staticmethod
    def sha256(path: Path) -> str:
        return bundle.sha256(bundle.bundle_in(path) / bundle.WEIGHTS)
