"""Dialogs that never block: each is noted in `shown`, and answered with what the test queued by `answer`."""

from dataclasses import dataclass
from pathlib import Path

from PySide6 import QtGui, QtWidgets


@dataclass(frozen=True)
class Shown:
    """A dialog that would have been on the screen."""

    kind: str
    text: str


shown: list[Shown] = []
opened: list[str] = []  # addresses given to QDesktopServices
_answers: list = []


def answer(*values) -> None:
    """What the next dialogs return; without it OK, Yes, or no file ("")."""
    _answers.extend(values)


def forget() -> None:
    """As if there had been no dialog."""
    for notes in (shown, opened, _answers):
        notes.clear()


def note(kind: str, text, default=None):
    """A dialog appears; returns its answer."""
    shown.append(Shown(kind, str(text)))
    return _answers.pop(0) if _answers else default


def install() -> None:
    """The dialogs of Qt."""
    box, files = QtWidgets.QMessageBox, QtWidgets.QFileDialog
    for kind, default in (("question", "Yes"), ("information", "Ok"), ("warning", "Ok"), ("critical", "Ok")):
        setattr(box, kind, staticmethod(_message(kind, getattr(box.StandardButton, default))))
    for kind in ("getExistingDirectory", "getOpenFileName", "getSaveFileName"):
        setattr(files, kind, staticmethod(_chooser(kind, str, "")))
    files.getOpenFileNames = staticmethod(_chooser("getOpenFileNames", tuple, ()))
    QtWidgets.QDialog.exec = QtWidgets.QDialog.exec_ = _run
    box.exec = box.exec_ = _run
    QtGui.QDesktopServices.openUrl = staticmethod(_open)


def install_in_slicer(util) -> None:
    """The dialogs of slicer.util, which then never ask Qt."""
    for kind, default in (("info", None), ("warning", None), ("error", None)):
        setattr(util, f"{kind}Display", _display(kind, default))
    for kind, default in (("OkCancel", True), ("YesNo", True), ("RetryClose", False)):
        setattr(util, f"confirm{kind}Display", _display(f"confirm{kind}", default))
    util.messageBox = _display("message", QtWidgets.QMessageBox.StandardButton.Ok)
    util.delayDisplay = _display("delay", None)


def _display(kind: str, default):
    def display(text, *args, **keywords):
        details = keywords.get("detailedText")
        return note(kind, f"{text}\n{details}" if details else text, default)

    return display


def _message(kind: str, default):
    return lambda parent, title, text, *args: note(kind, text, default)


def _chooser(kind: str, result: type, default):
    """PythonQt returns the path alone, where PySide6 returns it with the filter."""

    def choose(parent=None, title="", *args):
        value = note(kind, title, default)
        return str(value) if isinstance(value, Path) else result(value)

    return choose


def _run(self, *args):
    """QDialog.exec: accepted, unless the test says otherwise; for an input dialog it may say the text."""
    if isinstance(self, QtWidgets.QInputDialog):
        return _ask(self)
    text = self.text if isinstance(self, QtWidgets.QMessageBox) else self.windowTitle
    accepted = QtWidgets.QMessageBox.StandardButton.Ok
    default = accepted if isinstance(self, QtWidgets.QMessageBox) else QtWidgets.QDialog.DialogCode.Accepted
    return note(type(self).__name__, text, default)


def _ask(dialog) -> bool:
    parts = (dialog.windowTitle, dialog.labelText(), *dialog.comboBoxItems())
    value = note("QInputDialog", "\n".join(parts), True)
    if isinstance(value, str):
        dialog.setTextValue(value)
    return value is not False


def _open(url) -> bool:
    opened.append(url.toString() if hasattr(url, "toString") else str(url))
    return True
