"""Teachers: whatever gives class probabilities for a volume. A kind is a class listed in TEACHER_KINDS.

A kind has a NAME and a sentence KIND for people; it recognises its files, opens them, tells their checksum, describes
them without opening a network, and tells what of them would be executed as code (`risk`), which is done only after a
person trusted it (records/trust.py).
"""

from __future__ import annotations

from pathlib import Path

from ...records import trust
from .annotations import AnnotationsOnDisk
from .auto3dseg import Auto3DSeg
from .certainty import confidence_of, uncertainty_of
from .ensemble import Ensemble, Opinion
from .exported import Onnx, TorchExport, TorchScript
from .monai_bundle import MonaiBundle
from .nnunet import NnUnet
from .own import OwnBundle
from .teacher import Teacher
from .total_segmentator import TotalSegmentatorTask

__all__ = [
    "TEACHER_KINDS", "AnnotationsOnDisk", "Auto3DSeg", "Ensemble", "MonaiBundle", "NnUnet", "Onnx",
    "Opinion", "OwnBundle", "Teacher", "TorchExport", "TorchScript", "TotalSegmentatorTask", "absolute",
    "confidence_of", "kind_of", "remember_trust", "risk_of", "uncertainty_of",
]  # fmt: skip

TEACHER_KINDS = (
    OwnBundle, MonaiBundle, Auto3DSeg, NnUnet, TorchScript, TorchExport, Onnx, TotalSegmentatorTask, AnnotationsOnDisk,
)  # fmt: skip


def kind_of(path: Path):
    """The kind of teacher that a path is.

    Raises:
        FileNotFoundError, ValueError: nothing there, or no known kind; the message lists the kinds.
    """
    for kind in TEACHER_KINDS:
        if kind.recognises(path):
            return kind
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such teacher")
    kinds = "; ".join(kind.KIND for kind in TEACHER_KINDS)
    raise ValueError(f"{path}: is no kind of teacher that is known. Known are: {kinds}")


def risk_of(path: Path) -> str:
    """What of a teacher would be executed as code and is not trusted yet: a sentence, or "" where nothing is."""
    kind = kind_of(path)
    risk = kind.risk(path) if hasattr(kind, "risk") else ""
    return risk if risk and not trust.is_trusted(kind.sha256(path)) else ""


def remember_trust(path: Path) -> bool:
    """Trust a teacher from now on, as long as its files stay as they are; returns whether that was needed."""
    if not risk_of(path):
        return False
    trust.remember(path, kind_of(path).sha256(path))
    return True


def absolute(path: Path) -> Path:
    """The absolute path of a teacher; a task of TotalSegmentator is no path and stays as it is."""
    return path if TotalSegmentatorTask.recognises(path) else path.absolute()
