"""Stand-in for qMRMLPlotWidget: draws the chart of its view node with QPainter, so that pictures show the curves."""

import math
from dataclasses import dataclass

import shiboken6
import vtk
from PySide6.QtCore import QPointF, QRectF, QSize, Qt, Signal
from PySide6.QtGui import QColor, QPainter, QPen, QPolygonF
from PySide6.QtWidgets import QVBoxLayout, QWidget

from slicer_standin.node_widgets import qMRMLWidget
from slicer_standin.ui_loader import register

MARGINS_PX = (58, 26, 12, 40)  # left, top, right, bottom


@dataclass(frozen=True)
class Curve:
    """A series as it is drawn."""

    name: str
    color: QColor
    points: list[tuple[float, float]]


def curves_of(chart) -> list[Curve]:
    """The drawable series of a chart node."""
    series = [chart.GetNthPlotSeriesNode(n) for n in range(chart.GetNumberOfPlotSeriesNodes())]
    return [_curve(s) for s in series if s is not None and s.GetTableNode() is not None]


def _curve(series) -> Curve:
    table = series.GetTableNode().GetTable()
    y = table.GetColumnByName(series.GetYColumnName())
    x = table.GetColumnByName(series.GetXColumnName())
    count = y.GetNumberOfTuples() if y is not None else 0
    points = [(x.GetTuple1(n) if x is not None else float(n), y.GetTuple1(n)) for n in range(count)]
    points = [point for point in points if all(map(math.isfinite, point))]
    return Curve(series.GetName(), QColor.fromRgbF(*series.GetColor()), points)


def _range(values: list[float], fixed: tuple[float, float] | None) -> tuple[float, float]:
    low, high = fixed or (min(values, default=0.0), max(values, default=1.0))
    return (low, high) if high > low else (low - 0.5, low + 0.5)


@register
class qMRMLPlotView(QWidget):
    """The canvas."""

    mrmlSceneChanged = Signal(object)
    dataSelected = Signal(object, object)
    _scene = _view_node = None

    def __init__(self, parent=None):
        super().__init__(parent)
        self._observed, self._node_observer = [], None

    def mrmlScene(self):
        return self._scene

    def setMRMLScene(self, scene):
        self._scene = scene
        self.mrmlSceneChanged.emit(scene)

    def mrmlPlotViewNode(self):
        return self._view_node

    def setMRMLPlotViewNode(self, node):
        if self._view_node is not None:
            self._view_node.RemoveObserver(self._node_observer)
        self._view_node = node
        if node is not None:
            self._node_observer = node.AddObserver(vtk.vtkCommand.ModifiedEvent, self._changed)
        self._changed()

    def chart(self):
        """The chart node that is shown; None also before the scene was set, as in Slicer."""
        if self._scene is None or self._view_node is None or self._view_node.GetScene() is None:
            return None
        return self._view_node.GetPlotChartNode()

    def fitToContent(self):
        self._changed()

    def sizeHint(self):
        return QSize(400, 180)

    def _changed(self, *_args):
        """Follows the chart, its series and their tables, as they are now."""
        if not shiboken6.isValid(self):
            return
        for node, tag in self._observed:
            node.RemoveObserver(tag)
        self._observed = [(n, n.AddObserver(vtk.vtkCommand.ModifiedEvent, self._changed)) for n in self._sources()]
        self.update()

    def _sources(self) -> list:
        chart = self.chart()
        if chart is None:
            return []
        series = [chart.GetNthPlotSeriesNode(n) for n in range(chart.GetNumberOfPlotSeriesNodes())]
        tables = [s.GetTableNode() for s in series if s is not None]
        return [node for node in (chart, *series, *tables) if node is not None]

    def paintEvent(self, event):
        painter, chart = QPainter(self), self.chart()
        painter.fillRect(self.rect, QColor("white"))
        if chart is not None:
            painter.setRenderHint(QPainter.RenderHint.Antialiasing)
            _Drawing(painter, QRectF(self.rect), chart).draw()
        painter.end()


class _Drawing:
    """One picture of a chart."""

    def __init__(self, painter, area: QRectF, chart):
        left, top, right, bottom = MARGINS_PX
        self.painter, self.chart, self.curves = painter, chart, curves_of(chart)
        self.plot = area.adjusted(left, top, -right, -bottom)
        points = [point for curve in self.curves for point in curve.points]
        fixed_x = chart.GetXAxisRange() if not chart.GetXAxisRangeAuto() else None
        fixed_y = chart.GetYAxisRange() if not chart.GetYAxisRangeAuto() else None
        self.x, self.y = _range([p[0] for p in points], fixed_x), _range([p[1] for p in points], fixed_y)

    def draw(self) -> None:
        self._axes()
        self._titles()
        for number, curve in enumerate(self.curves):
            self._curve(curve)
            if self.chart.GetLegendVisibility():
                self._legend(number, curve)

    def _at(self, x: float, y: float) -> QPointF:
        right = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return QPointF(self.plot.left() + right * self.plot.width(), self.plot.bottom() - up * self.plot.height())

    def _axes(self) -> None:
        self.painter.setPen(QPen(QColor("gray")))
        self.painter.drawRect(self.plot)
        for part in (0, 0.25, 0.5, 0.75, 1):
            x = self.x[0] + part * (self.x[1] - self.x[0])
            y = self.y[0] + part * (self.y[1] - self.y[0])
            below, left = self._at(x, self.y[0]), self._at(self.x[0], y)
            self._text(QRectF(below.x() - 30, below.y() + 2, 60, 14), Qt.AlignmentFlag.AlignHCenter, f"{x:.3g}")
            self._text(QRectF(left.x() - 56, left.y() - 7, 52, 14), Qt.AlignmentFlag.AlignRight, f"{y:.3g}")

    def _titles(self) -> None:
        center, plot = Qt.AlignmentFlag.AlignHCenter, self.plot
        if self.chart.GetTitleVisibility():
            self._text(QRectF(plot.left(), 4, plot.width(), 18), center, self.chart.GetTitle() or "")
        bottom = QRectF(plot.left(), plot.bottom() + 18, plot.width(), 18)
        self._text(bottom, center, self.chart.GetXAxisTitle() or "")
        self.painter.save()
        self.painter.translate(2, plot.bottom())
        self.painter.rotate(-90)
        self._text(QRectF(0, 0, plot.height(), 16), center, self.chart.GetYAxisTitle() or "")
        self.painter.restore()

    def _text(self, area: QRectF, alignment, text: str) -> None:
        self.painter.save()
        self.painter.setPen(QColor("black"))
        self.painter.drawText(area, alignment, text)
        self.painter.restore()

    def _curve(self, curve: Curve) -> None:
        self.painter.setPen(QPen(curve.color, 2))
        line = QPolygonF([self._at(x, y) for x, y in curve.points])
        if len(curve.points) > 1:
            self.painter.drawPolyline(line)
        for point in line if len(curve.points) < 3 else ():
            self.painter.drawEllipse(point, 2, 2)

    def _legend(self, number: int, curve: Curve) -> None:
        right, top = self.plot.right() - 8, self.plot.top() + 6 + 16 * number
        self.painter.setPen(QPen(curve.color, 2))
        self.painter.drawLine(QPointF(right - 20, top + 7), QPointF(right, top + 7))
        self._text(QRectF(right - 224, top, 200, 14), Qt.AlignmentFlag.AlignRight, curve.name)


@register
class qMRMLPlotWidget(qMRMLWidget):
    """The canvas with its (here empty) controller bar."""

    def __init__(self, parent=None):
        super().__init__(parent)
        self._view, self._controller = qMRMLPlotView(), QWidget()
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._controller)
        layout.addWidget(self._view, 1)

    def setMRMLScene(self, scene):
        super().setMRMLScene(scene)
        self._view.setMRMLScene(scene)

    def plotView(self):
        return self._view

    def viewWidget(self):
        return self._view

    def plotController(self):
        return self._controller

    controllerWidget = plotController

    def mrmlPlotViewNode(self):
        return self._view.mrmlPlotViewNode()

    mrmlAbstractViewNode = mrmlPlotViewNode

    def setMRMLPlotViewNode(self, node):
        self._view.setMRMLPlotViewNode(node)
