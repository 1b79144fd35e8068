"""Stand-ins for the segmentation widgets, on real vtkMRMLSegmentationNodes."""

import shiboken6
import slicer
import vtk
from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QColor
from PySide6.QtWidgets import QPushButton, QTableWidget, QTableWidgetItem, QVBoxLayout

from slicer_standin.node_widgets import qMRMLWidget
from slicer_standin.ui_loader import register

SURFACE = slicer.vtkSegmentationConverter.GetClosedSurfaceRepresentationName()
VISIBLE, COLOR, NAME = range(3)


class _FollowsSegmentation:
    """Mixin: `_update` is called whenever the segmentation, its segments or its display changes."""

    _node = None
    _observers = ()

    def segmentationNode(self):
        return self._node

    def setSegmentationNode(self, node):
        if node is self._node:
            return
        for observed, tag in self._observers:
            observed.RemoveObserver(tag)
        self._node, self._observers = node, []
        if node is not None:
            self._observe(node)
        self._update()

    def _observe(self, node):
        segmentation, display = node.GetSegmentation(), node.GetDisplayNode()
        events = [(node, vtk.vtkCommand.ModifiedEvent), (display, vtk.vtkCommand.ModifiedEvent)]
        kinds = ("SegmentAdded", "SegmentRemoved", "SegmentModified", "ContainedRepresentationNamesModified")
        events += [(segmentation, getattr(segmentation, kind)) for kind in kinds]
        self._observers = [(o, o.AddObserver(event, self._changed)) for o, event in events if o is not None]

    def _changed(self, *_args):
        if shiboken6.isValid(self):
            self._update()


@register
class qMRMLSegmentsTableView(_FollowsSegmentation, qMRMLWidget):
    """Visibility, colour and name of each segment; the first and the last can be edited."""

    selectionChanged = Signal(object, object)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._filling, self._table = False, QTableWidget(0, 3)
        self._table.setHorizontalHeaderLabels(["", "Colour", "Name"])
        self._table.horizontalHeader().setStretchLastSection(True)
        self._table.itemChanged.connect(self._edited)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._table)

    def _update(self):
        self._filling = True
        segmentation = self._node.GetSegmentation() if self._node else None
        self._table.setRowCount(segmentation.GetNumberOfSegments() if segmentation else 0)
        for row in range(self._table.rowCount):
            segment = segmentation.GetNthSegment(row)
            for column, item in enumerate(self._items(segmentation.GetNthSegmentID(row), segment)):
                self._table.setItem(row, column, item)
        self._filling = False

    def _items(self, segment_id, segment):
        display = self._node.GetDisplayNode()
        shown = display is None or display.GetSegmentVisibility(segment_id)
        visible, color = QTableWidgetItem(), QTableWidgetItem()
        visible.setCheckState(Qt.CheckState.Checked if shown else Qt.CheckState.Unchecked)
        color.setBackground(QColor.fromRgbF(*segment.GetColor()))
        return visible, color, QTableWidgetItem(segment.GetName())

    def _edited(self, item):
        if self._filling or not self._node:
            return
        segment_id, display = self._node.GetSegmentation().GetNthSegmentID(item.row()), self._node.GetDisplayNode()
        if item.column() == NAME:
            self._node.GetSegmentation().GetSegment(segment_id).SetName(item.text())
        elif item.column() == VISIBLE and display:
            display.SetSegmentVisibility(segment_id, item.checkState() == Qt.CheckState.Checked)

    def selectedSegmentIDs(self):
        rows = self._table.selectionModel().selectedRows()
        return tuple(self._node.GetSegmentation().GetNthSegmentID(row.row()) for row in rows)


@register
class qMRMLSegmentationShow3DButton(_FollowsSegmentation, QPushButton):
    """Makes or removes the closed surfaces; enabled while there is a segment to show."""

    def __init__(self, parent=None):
        super().__init__(parent)
        self.setText("Show 3D")
        self.setCheckable(True)
        self.setEnabled(False)
        self.toggled.connect(self._show)

    def _update(self):
        segmentation = self._node.GetSegmentation() if self._node else None
        self.setEnabled(bool(segmentation and segmentation.GetNumberOfSegments()))
        was_blocked = self.blockSignals(True)
        self.setChecked(bool(segmentation and segmentation.ContainsRepresentation(SURFACE)))
        self.blockSignals(was_blocked)

    def _show(self, on):
        if self._node and on:
            self._node.CreateClosedSurfaceRepresentation()
            if self._node.GetDisplayNode():
                self._node.GetDisplayNode().SetPreferredDisplayRepresentationName3D(SURFACE)
        elif self._node:
            self._node.RemoveClosedSurfaceRepresentation()
