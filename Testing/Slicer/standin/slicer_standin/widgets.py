"""All stand-in widgets, put where Slicer has them: in the module `slicer`."""

import ctk
from PySide6.QtCore import Signal
from PySide6.QtWidgets import QDoubleSpinBox

from slicer_standin import node_widgets, plot_widget, segment_widgets
from slicer_standin.ui_loader import register


class _KnowsScene:
    _scene = None

    def mrmlScene(self):
        return self._scene

    def setMRMLScene(self, scene):
        self._scene = scene


@register
class qMRMLSliderWidget(_KnowsScene, ctk.ctkSliderWidget):
    """A plain slider here."""


@register
class qMRMLRangeWidget(_KnowsScene, ctk.ctkRangeWidget):
    """A plain range here."""


@register
class qMRMLSpinBox(_KnowsScene, QDoubleSpinBox):
    """A plain spin box here."""


@register
class qMRMLCollapsibleButton(ctk.ctkCollapsibleButton):
    """A plain one here."""


@register
class qMRMLSubjectHierarchyComboBox(node_widgets.qMRMLWidget):
    """Loads, and shows nothing."""

    currentItemChanged = Signal(int)


@register
class qMRMLSubjectHierarchyTreeView(node_widgets.qMRMLWidget):
    """Loads, and shows nothing."""


@register
class qMRMLSegmentSelectorWidget(node_widgets.qMRMLWidget):
    """Loads, and shows nothing."""


def install(slicer) -> None:
    """`slicer.qMRMLNodeComboBox` and so on."""
    for source in (vars(node_widgets), vars(plot_widget), vars(segment_widgets), globals()):
        for name in [n for n in source if n.startswith(("qMRML", "qSlicer"))]:
            setattr(slicer, name, source[name])
