"""Loads .ui files with the stand-in widgets; refuses widget classes that it does not know."""

from xml.etree import ElementTree

from PySide6 import QtCore, QtUiTools

_widgets: dict[str, type] = {}


def register(cls: type) -> type:
    """Class decorator: this widget may appear in a .ui file."""
    _widgets[cls.__name__] = cls
    return cls


class UiLoader(QtUiTools.QUiLoader):
    """QUiLoader that connects and sets what Qt cannot: signals and enumerations of CTK and qMRML classes."""

    def __init__(self, parent=None):
        super().__init__(parent)
        for cls in _widgets.values():
            self.registerCustomWidget(cls)

    def load(self, device, parent=None):
        root = ElementTree.fromstring(bytes(device.readAll()))
        self._refuse_unknown(root)
        connections, settings = _take_connections(root), _take_enumerations(root)
        buffer = QtCore.QBuffer()
        buffer.setData(ElementTree.tostring(root))
        buffer.open(QtCore.QIODevice.OpenModeFlag.ReadOnly)
        widget = super().load(buffer, parent)
        for name, key, value in settings:
            setattr(_find(widget, name), key, value)
        for sender, signal, receiver, slot in connections:
            _find(widget, sender).connect(signal, getattr(_find(widget, receiver), slot))
        return widget

    def _refuse_unknown(self, root) -> None:
        unknown = {w.get("class") for w in root.iter("widget")} - set(self.availableWidgets()) - set(_widgets)
        if unknown:
            raise RuntimeError(f"no stand-in for the widgets {', '.join(sorted(unknown))}")


def _find(root, name: str):
    found = root if root.objectName == name else root.findChild(QtCore.QObject, name)
    if found is None:
        raise RuntimeError(f"the .ui file connects {name}, which it does not contain")
    return found


def _take_connections(root) -> list[tuple[str, ...]]:
    """(sender, signal with its arguments, receiver, name of the slot)."""
    taken = []
    for connections in root.findall("connections"):
        for connection in connections:
            sender, signal, receiver, slot = (connection.findtext(k) for k in ("sender", "signal", "receiver", "slot"))
            taken.append((sender, signal, receiver, slot.partition("(")[0]))
        root.remove(connections)
    return taken


def _take_enumerations(root) -> list[tuple[str, str, int]]:
    """(widget, property, value) of the enumerations that belong to stand-in classes."""
    taken = []
    for widget in root.iter("widget"):
        for entry in widget.findall("property"):
            text = (entry[0].text or "") if len(entry) and entry[0].tag in ("set", "enum") else ""
            if text.startswith(("ctk", "qMRML", "qSlicer")):
                taken.append((widget.get("name"), entry.get("name"), _value(text)))
                widget.remove(entry)
    return taken


def _value(text: str) -> int:
    """3 for "ctkPathLineEdit::Dirs|ctkPathLineEdit::Files"."""
    value = 0
    for part in text.split("|"):
        names = part.split("::")
        value |= int(getattr(_widgets[names[0]], names[-1]))
    return value
