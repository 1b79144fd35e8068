"""Curves: loss and Dice of a training as a Slicer plot, drawn while it runs."""

import slicer
import vtk

NAME = "KnowledgeTransfer training"
COLORS = {"loss": (0.85, 0.35, 0.2), "Dice": (0.15, 0.5, 0.75)}


class Curves:
    """A table, two series and a chart in the scene, shown in the panel's plot. They are not saved with the scene."""

    def __init__(self, plotWidget):
        self.plotWidget = plotWidget
        self.chart = self.view = None
        self.tables = {}

    def clear(self):
        self.show([])

    def show(self, history):
        """Show the curves of a finished training; rows have `epoch`, `loss` and now and then `validation_dice`."""
        self._make()
        for table in self.tables.values():
            table.GetTable().SetNumberOfRows(0)
        for row in history:
            self._append(row)
        self._changed()

    def add(self, row):
        self._make()
        self._append(row)
        self._changed()

    def sceneCloses(self):
        self.chart = self.view = None
        self.tables = {}

    def _append(self, row):
        for name, value in (("loss", row.get("loss")), ("Dice", row.get("validation_dice"))):
            if value is not None and row.get("epoch") is not None:
                table = self.tables[name].GetTable()
                number = table.InsertNextBlankRow()
                table.GetColumn(0).SetValue(number, float(row["epoch"]))
                table.GetColumn(1).SetValue(number, float(value))

    def _changed(self):
        for table in self.tables.values():
            table.GetTable().Modified()
            table.Modified()

    def _make(self):
        """Make the nodes, anew when the scene was closed meanwhile."""
        if self.chart is not None and slicer.mrmlScene.IsNodePresent(self.chart):
            self.view.SetPlotChartNodeID(self.chart.GetID())  # another module may have put its own there
            return
        self.chart = self._node("vtkMRMLPlotChartNode", NAME)
        self.chart.SetXAxisTitle("epoch")
        self.chart.SetTitleVisibility(False)
        self.tables = {name: self._series(name) for name in ("loss", "Dice")}
        there = slicer.mrmlScene.GetSingletonNode("KnowledgeTransfer", "vtkMRMLPlotViewNode")
        view = there or slicer.vtkMRMLPlotViewNode()
        view.SetSingletonTag("KnowledgeTransfer")
        view.SetName(NAME)  # all of it is set anew: closing a scene resets a singleton
        view.SetSaveWithScene(False)
        view.SetDoPropagatePlotChartSelection(False)  # other modules' charts stay out of this panel
        view.SetAndObserveParentLayoutNodeID(self.chart.GetID())  # not a view of Slicer's layout
        self.view = there or slicer.mrmlScene.AddNode(view)
        self.view.SetPlotChartNodeID(self.chart.GetID())
        self.plotWidget.setMRMLScene(slicer.mrmlScene)
        self.plotWidget.setMRMLPlotViewNode(self.view)

    def _series(self, name):
        """One curve; a table of its own each, since Dice is looked at less often than the loss."""
        table = self._node("vtkMRMLTableNode", f"{NAME} {name}")
        for column in ("epoch", name):
            values = vtk.vtkDoubleArray()
            values.SetName(column)
            table.AddColumn(values)
        series = self._node("vtkMRMLPlotSeriesNode", name)
        series.SetAndObserveTableNodeID(table.GetID())
        series.SetXColumnName("epoch")
        series.SetYColumnName(name)
        series.SetPlotType(slicer.vtkMRMLPlotSeriesNode.PlotTypeScatter)
        series.SetLineStyle(slicer.vtkMRMLPlotSeriesNode.LineStyleSolid)
        series.SetMarkerStyle(slicer.vtkMRMLPlotSeriesNode.MarkerStyleNone)
        series.SetColor(*COLORS[name])
        self.chart.AddAndObservePlotSeriesNodeID(series.GetID())
        return table

    def _node(self, className, name):
        node = slicer.mrmlScene.AddNewNodeByClass(className, name)
        node.SetSaveWithScene(False)
        return node
