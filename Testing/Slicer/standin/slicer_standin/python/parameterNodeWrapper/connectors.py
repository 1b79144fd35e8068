"""Which widget can show which field, and how: the table that connectGui uses."""

from dataclasses import dataclass
from pathlib import PurePath

import ctk
import qt
import slicer

from .validators import Choice, Maximum, Minimum, WithinRange


@dataclass
class Decimals:
    """Annotation: decimals of the spin box."""

    value: int


@dataclass
class SingleStep:
    """Annotation: step of the spin box."""

    value: float


class Connector:
    """A widget whose attribute `value_of` is the field's value; the signal `signal` tells that it changed."""

    signal = value_of = ""

    def __init__(self, widget, field):
        self.widget, self.field, self._slot = widget, field, None

    def read(self):
        return getattr(self.widget, self.value_of)

    def write(self, value) -> None:
        setattr(self.widget, self.value_of, value)

    def connect(self, slot) -> None:
        self._slot = lambda *_args: slot()
        getattr(self.widget, self.signal).connect(self._slot)

    def disconnect(self) -> None:
        getattr(self.widget, self.signal).disconnect(self._slot)


class Check(Connector):
    signal, value_of = "toggled", "checked"


class Line(Connector):
    signal, value_of = "textChanged", "text"

    def write(self, value):
        if value != self.widget.text:  # else the cursor would jump to the end
            self.widget.text = value


class Number(Connector):
    """As in Slicer, the field's range becomes the widget's; a field without one takes the widest."""

    signal, value_of = "valueChanged", "value"
    INTEGER, FLOAT = (-(2**31), 2**31 - 1), (float("-inf"), float("inf"))

    def __init__(self, widget, field):
        super().__init__(widget, field)
        low, high = self.INTEGER if field.kept.kind is int else self.FLOAT
        for annotation in field.annotations:
            low = annotation.minimum if isinstance(annotation, (Minimum, WithinRange)) else low
            high = annotation.maximum if isinstance(annotation, (Maximum, WithinRange)) else high
            for kind, name in ((Decimals, "decimals"), (SingleStep, "singleStep")):
                if isinstance(annotation, kind):
                    setattr(widget, name, annotation.value)
        if isinstance(widget, ctk.ctkSliderWidget) and float("inf") in (high, -low):
            raise RuntimeError(f"the field {field.name} on a slider needs a range")
        widget.minimum, widget.maximum = low, high

    def read(self):
        return self.field.kept.kind(self.widget.value)


class Choose(Connector):
    """Fills the items with the choices, as Slicer does."""

    signal = "currentIndexChanged"

    def __init__(self, widget, field):
        super().__init__(widget, field)
        found = [a for a in field.annotations if isinstance(a, Choice)]
        if not found:
            raise RuntimeError(f"the field {field.name} on a combo box needs the annotation Choice")
        self.choices = found[0].choices
        widget.clear()
        for choice in self.choices:
            widget.addItem(str(choice))

    def read(self):
        return self.choices[self.widget.currentIndex]

    def write(self, value):
        self.widget.currentIndex = list(self.choices).index(value)


class Folder(Connector):
    signal, value_of = "currentPathChanged", "currentPath"

    def read(self):
        return self.field.kept.kind(self.widget.currentPath)

    def write(self, value):
        self.widget.currentPath = str(value)


class NodeBox(Connector):
    signal = "currentNodeChanged"

    def __init__(self, widget, field):
        super().__init__(widget, field)
        widget.nodeTypes = [field.kept.kind.__name__]

    def read(self):
        return self.widget.currentNode()

    def write(self, value):
        self.widget.setCurrentNode(value)


def make_connector(widget, field) -> Connector:
    """Exact widget classes, as in Slicer; what Slicer cannot connect is refused here too."""
    kind = getattr(field.kept, "kind", None)
    for widgets, kinds, connector in _table():
        if type(widget) in widgets and isinstance(kind, type) and issubclass(kind, kinds):
            return connector(widget, field)
    raise RuntimeError(f"Slicer cannot connect the field {field.name} ({field.annotation}) with a {type(widget)}")


def _table():
    boxes = (qt.QComboBox, ctk.ctkComboBox)
    floats = (qt.QDoubleSpinBox, ctk.ctkSliderWidget, ctk.ctkDoubleSpinBox, slicer.qMRMLSliderWidget)
    return (
        ((qt.QCheckBox, ctk.ctkCheckBox), bool, Check),
        ((qt.QPushButton,), bool, Check),
        (boxes, (int, float, str), Choose),
        ((qt.QSpinBox, qt.QSlider), int, Number),
        (floats, (float, int), Number),
        ((qt.QLineEdit,), str, Line),
        ((ctk.ctkPathLineEdit,), PurePath, Folder),
        ((slicer.qMRMLNodeComboBox,), slicer.vtkMRMLNode, NodeBox),
    )
