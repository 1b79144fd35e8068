"""Controls: what the tabs do with tables, path fields and selectors."""

from pathlib import Path

import qt
import slicer

from KnowledgeTransferLib.records import bundle
from KnowledgeTransferLib.records.labels import Labels

from . import SceneIO


def structuresOf(path):
    """What a bundle segments, or why it cannot be opened."""
    try:
        metadata = bundle.read_metadata(bundle.bundle_in(path), check=False)  # who uses it checks it
        return ", ".join(Labels.from_json(metadata[bundle.OURS]["labels"]).names)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return str(error)


def stretch(table, *columns):
    """Let the named columns take the room that the others leave."""
    header = table.horizontalHeader()
    header.setStretchLastSection(False)
    for column in range(table.columnCount):
        mode = qt.QHeaderView.Stretch if column in columns else qt.QHeaderView.ResizeToContents
        header.setSectionResizeMode(column, mode)


def setCell(table, row, column, text, toolTip=""):
    item = table.item(row, column)
    if item is None:
        item = qt.QTableWidgetItem(text)
        table.setItem(row, column, item)
    if item.text() != text:
        item.setText(text)
    item.setToolTip(toolTip)


def check(selector, nodes):
    """Check these nodes, and no others, in a selector of several nodes."""
    wanted = {node.GetID() for node in nodes if node is not None}
    now = {node.GetID() for node in selector.checkedNodes()}
    for nodeId in wanted ^ now:
        node = slicer.mrmlScene.GetNodeByID(nodeId)
        if node is not None:
            (selector.check if nodeId in wanted else selector.uncheck)(node)


def allOrNone(selector):
    """The volumes that a press of `All` checks: all scans, or none when they are checked already."""
    listed = [*selector.checkedNodes(), *selector.uncheckedNodes()]
    scans = [node for node in listed if not SceneIO.isUncertainty(node)]
    return [] if scans and len(selector.checkedNodes()) >= len(scans) else scans


def nameOf(path):
    """A model's name as people know it: that of the run that made it."""
    folder = Path(path)
    return folder.parent.name if folder.name == "student" else folder.name


def setPath(widget, path):
    if widget.currentPath != path:
        widget.currentPath = path


def without(values, index):
    return [value for number, value in enumerate(values) if number != index]


def onPath(widget, changed):
    """Call `changed` with the path whenever it changes, also to an empty one, which CTK tells in its own way."""
    widget.connect("currentPathChanged(QString)", changed)
    widget.connect("validInputChanged(bool)", lambda valid: None if valid else changed(widget.currentPath))


def setTexts(selector, texts):
    """Plain words in place of a choice's values; Slicer's connector reads a choice by its index."""
    for index, text in enumerate(texts):
        selector.setItemText(index, text)
