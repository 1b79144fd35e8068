"""Stand-ins for the CTK widgets that scripted modules use; `import ctk` in a module finds this file."""

import qt  # noqa: F401 - dresses PySide6 first
from PySide6.QtCore import Property, QEvent, QObject, QSize, Qt, Signal
from PySide6.QtWidgets import (
    QAbstractButton,
    QCheckBox,
    QComboBox,
    QDoubleSpinBox,
    QHBoxLayout,
    QMessageBox,
    QPushButton,
    QSizePolicy,
    QSlider,
    QStyle,
    QStyleOptionButton,
    QStylePainter,
    QWidget,
)

from slicer_standin.path_line import ctkPathLineEdit  # noqa: F401
from slicer_standin.pythonqt import stored_property as plain
from slicer_standin.ui_loader import register

HEADER_HEIGHT_PX = 24


@register
class ctkCollapsibleButton(QAbstractButton):
    """A headline that shows or hides what lies below it."""

    contentsCollapsed = Signal(bool)

    def __init__(self, *args):
        text = args[0] if args and isinstance(args[0], str) else ""
        super().__init__(*(a for a in args if not isinstance(a, str)))
        self._collapsed = False
        self.setText(text)
        self.setCheckable(True)
        self.setChecked(True)
        self.setContentsMargins(0, HEADER_HEIGHT_PX, 0, 0)
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Preferred)
        self.toggled.connect(lambda shown: self.setCollapsed(not shown))

    def setCollapsed(self, collapsed):
        if collapsed == self._collapsed:
            return
        self._collapsed = collapsed
        self.setChecked(not collapsed)
        self._show_or_hide()
        self.updateGeometry()
        self.contentsCollapsed.emit(collapsed)

    collapsed = Property(bool, lambda self: self._collapsed, setCollapsed)
    flat = plain(bool, False)
    contentsFrameShape = plain(int, 0)
    contentsFrameShadow = plain(int, 0)
    collapsedHeight = plain(int, 0)

    def _show_or_hide(self):
        for child in self.findChildren(QWidget, options=Qt.FindChildOption.FindDirectChildrenOnly):
            child.setVisible(not self._collapsed)

    def event(self, event):
        if self._collapsed and event.type() in (QEvent.Type.Polish, QEvent.Type.Show):
            self._show_or_hide()
        return super().event(event)

    def sizeHint(self):
        if self._collapsed or not self.layout():
            return QSize(120, HEADER_HEIGHT_PX)
        hint = self.layout().sizeHint()
        return QSize(max(hint.width(), 120), hint.height() + HEADER_HEIGHT_PX + 2)

    minimumSizeHint = sizeHint

    def hitButton(self, position):
        return position.y() < HEADER_HEIGHT_PX

    def paintEvent(self, event):
        painter, option = QStylePainter(self), QStyleOptionButton()
        option.initFrom(self)
        option.rect = self.rect.adjusted(0, 0, 0, HEADER_HEIGHT_PX - 2 - QObject.property(self, "height"))
        option.text = ("▸ " if self._collapsed else "▾ ") + self.text
        painter.drawControl(QStyle.ControlElement.CE_PushButton, option)


@register
class ctkSliderWidget(QWidget):
    """A slider with a spin box beside it."""

    valueChanged = Signal(float)
    valueIsChanging = Signal(float)
    STEPS = 1000

    def __init__(self, parent=None):
        super().__init__(parent)
        self._slider, self._box, self._following = QSlider(Qt.Orientation.Horizontal), QDoubleSpinBox(), False
        self._slider.setRange(0, self.STEPS)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._slider)
        layout.addWidget(self._box)
        self._box.valueChanged.connect(self._follow)
        self._slider.valueChanged.connect(self._lead)

    def _follow(self, value):
        low, high = self._box.minimum, self._box.maximum
        self._following = True
        self._slider.setValue(round((value - low) / (high - low) * self.STEPS) if high > low else 0)
        self._following = False
        self.valueChanged.emit(value)

    def _lead(self, step):
        if not self._following:
            low, high = self._box.minimum, self._box.maximum
            self._box.setValue(low + (high - low) * step / self.STEPS)

    def setValue(self, value):
        self._box.setValue(value)

    def setMinimum(self, value):
        self._box.setMinimum(value)

    def setMaximum(self, value):
        self._box.setMaximum(value)

    def setRange(self, minimum, maximum):
        self._box.setRange(minimum, maximum)

    value = Property(float, lambda self: self._box.value, setValue)
    minimum = Property(float, lambda self: self._box.minimum, setMinimum)
    maximum = Property(float, lambda self: self._box.maximum, setMaximum)
    singleStep = Property(float, lambda self: self._box.singleStep, lambda self, v: self._box.setSingleStep(v))
    decimals = Property(int, lambda self: self._box.decimals, lambda self, v: self._box.setDecimals(v))
    suffix = Property(str, lambda self: self._box.suffix, lambda self, v: self._box.setSuffix(v))
    prefix = Property(str, lambda self: self._box.prefix, lambda self, v: self._box.setPrefix(v))
    pageStep = plain(float, 10.0)
    tracking = plain(bool, True)


@register
class ctkDoubleSlider(ctkSliderWidget):
    """Here with its spin box; enough for tests."""


@register
class ctkDoubleSpinBox(QDoubleSpinBox):
    """A plain spin box here."""


@register
class ctkRangeWidget(QWidget):
    """Two spin boxes for the ends of a range."""

    valuesChanged = Signal(float, float)
    minimumValueChanged = Signal(float)
    maximumValueChanged = Signal(float)

    def __init__(self, parent=None):
        super().__init__(parent)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self._boxes = QDoubleSpinBox(), QDoubleSpinBox()
        for box, changed in zip(self._boxes, (self.minimumValueChanged, self.maximumValueChanged), strict=True):
            layout.addWidget(box)
            box.valueChanged.connect(changed)
            box.valueChanged.connect(self._changed)

    def _changed(self, _value=None):
        self.valuesChanged.emit(*(box.value for box in self._boxes))

    def setValues(self, minimum, maximum):
        was_blocked = self.blockSignals(True)
        for box, value in zip(self._boxes, (minimum, maximum), strict=True):
            box.setValue(value)
        self.blockSignals(was_blocked)
        self._changed()

    def setRange(self, minimum, maximum):
        for box in self._boxes:
            box.setRange(minimum, maximum)

    def _set_both(name):  # noqa: N805
        return lambda self, value: [setattr(box, name, value) for box in self._boxes] and None

    minimumValue = Property(float, lambda self: self._boxes[0].value, lambda self, v: self._boxes[0].setValue(v))
    maximumValue = Property(float, lambda self: self._boxes[1].value, lambda self, v: self._boxes[1].setValue(v))
    minimum = Property(float, lambda self: self._boxes[0].minimum, _set_both("minimum"))
    maximum = Property(float, lambda self: self._boxes[0].maximum, _set_both("maximum"))
    singleStep = Property(float, lambda self: self._boxes[0].singleStep, _set_both("singleStep"))
    decimals = Property(int, lambda self: self._boxes[0].decimals, _set_both("decimals"))


@register
class ctkDoubleRangeSlider(ctkRangeWidget):
    """Spin boxes here."""


@register
class ctkDirectoryButton(QPushButton):
    """A button that shows a directory."""

    directoryChanged = Signal(str)
    _directory = "."

    def setDirectory(self, directory):
        if directory != self._directory:
            self._directory = directory
            self.setText(directory)
            self.directoryChanged.emit(directory)

    directory = Property(str, lambda self: self._directory, setDirectory)


@register
class ctkCheckBox(QCheckBox):
    """A plain check box here."""


@register
class ctkPushButton(QPushButton):
    """A plain button here."""


@register
class ctkMenuButton(QPushButton):
    """A plain button here."""


@register
class ctkCheckablePushButton(QPushButton):
    """A plain button here."""

    checkBoxControlsButtonToggleState = plain(bool, True)


@register
class ctkComboBox(QComboBox):
    """A plain combo box here."""

    defaultText = plain(str, "")


@register
class ctkColorPickerButton(QPushButton):
    """A plain button here."""

    colorChanged = Signal("QColor")


class ctkMessageBox(QMessageBox):
    """A plain message box here."""
