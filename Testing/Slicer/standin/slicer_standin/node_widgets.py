"""Stand-ins for qMRMLWidget and the node combo boxes, on the real MRML scene."""

import shiboken6
from PySide6.QtCore import Property, Qt, Signal
from PySide6.QtGui import QStandardItem
from PySide6.QtWidgets import QComboBox, QHBoxLayout, QStyle, QStyleOptionComboBox, QStylePainter, QWidget

from slicer_standin.pythonqt import stored_property
from slicer_standin.ui_loader import register

NODE_ROLE = Qt.ItemDataRole.UserRole


@register
class qMRMLWidget(QWidget):
    """A widget that knows the scene and tells its children of it."""

    mrmlSceneChanged = Signal(object)
    cpp_signals = frozenset({"mrmlSceneChanged(vtkMRMLScene*)"})
    _scene = None

    def mrmlScene(self):
        return self._scene

    def setMRMLScene(self, scene):
        if scene is not self._scene:
            self._scene = scene
            self.mrmlSceneChanged.emit(scene)


@register
class qSlicerWidget(qMRMLWidget):
    """Nothing more here."""


def option(kind, default):
    """A Qt property that decides which nodes the combo box lists."""
    return stored_property(kind, default, changed=lambda box: box._list_nodes())


@register
class qMRMLNodeComboBox(QWidget):
    """Lists the nodes of some classes."""

    currentNodeChanged = Signal(object)
    currentNodeIDChanged = Signal(str)
    nodeAdded = Signal(object)
    nodeAddedByUser = Signal(object)
    nodeActivated = Signal(object)
    cpp_signals = frozenset(
        {
            "currentNodeChanged(vtkMRMLNode*)",
            "nodeAdded(vtkMRMLNode*)",
            "nodeAddedByUser(vtkMRMLNode*)",
            "nodeActivated(vtkMRMLNode*)",
        }
    )

    nodeTypes = option("QStringList", [])
    hideChildNodeTypes = option("QStringList", [])
    showHidden = option(bool, False)
    showChildNodeTypes = option(bool, True)
    noneEnabled = option(bool, False)
    noneDisplay = option(str, "None")
    addEnabled = option(bool, True)
    removeEnabled = option(bool, True)
    editEnabled = option(bool, False)
    renameEnabled = option(bool, False)
    selectNodeUponCreation = option(bool, True)
    baseName = option(str, "")
    sizeAdjustPolicy = option(int, 0)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._attributes, self._observers = [], []
        self._scene = self._current = None
        self._listing = False
        self._combo = self._make_combo()
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._combo)
        self._combo.currentIndexChanged.connect(self._picked)

    def _make_combo(self) -> QComboBox:
        return QComboBox()

    # ---- the scene

    def mrmlScene(self):
        return self._scene

    def setMRMLScene(self, scene):
        if scene is self._scene:
            return
        for tag in self._observers:
            self._scene.RemoveObserver(tag)
        self._scene = scene
        events = () if scene is None else (
            scene.NodeAddedEvent, scene.NodeRemovedEvent, scene.EndCloseEvent, scene.EndImportEvent,
            scene.EndBatchProcessEvent,
        )  # fmt: skip
        self._observers = [scene.AddObserver(event, self._scene_changed) for event in events]
        self._list_nodes()

    def _scene_changed(self, _scene, event):
        if shiboken6.isValid(self) and (event == "EndBatchProcessEvent" or not self._scene.IsBatchProcessing()):
            self._list_nodes()

    def addAttribute(self, node_type, name, value=None):
        self._attributes.append((node_type, name, value))
        self._list_nodes()

    def _accepts(self, node) -> bool:
        if node.GetHideFromEditors() and not self.showHidden:
            return False
        for node_type, name, value in self._attributes:
            has = node.GetAttribute(name)
            if node.IsA(node_type) and (has is None or value is not None and has != value):
                return False
        if any(node.IsA(t) for t in self.hideChildNodeTypes):
            return False
        return any(node.IsA(t) if self.showChildNodeTypes else node.GetClassName() == t for t in self.nodeTypes)

    def _nodes(self):
        if self._scene is None:
            return []
        every = (self._scene.GetNthNode(index) for index in range(self._scene.GetNumberOfNodes()))
        return [node for node in every if self._accepts(node)]

    def nodeCount(self):
        return len(self._nodes())

    def _list_nodes(self):
        """Qt's own combo box would choose the first node; the real widget, like this one, chooses none."""
        nodes, wanted = self._nodes(), self._current
        self._listing = True
        self._combo.clear()
        if self.noneEnabled:
            self._combo.addItem(self.noneDisplay, "")
        for node in nodes:
            self._combo.model().appendRow(self._item(node))
        kept = wanted if any(node is wanted for node in nodes) else None
        self._combo.setCurrentIndex(self._index(kept))
        self._listing = False
        self._change(kept)

    def _item(self, node) -> QStandardItem:
        item = QStandardItem(node.GetName() or "")
        item.setData(node.GetID(), NODE_ROLE)
        return item

    def _index(self, node) -> int:
        return self._combo.findData(node.GetID() if node else "", NODE_ROLE)

    def _picked(self, index):
        if not self._listing and index >= 0:
            node_id = self._combo.itemData(index, NODE_ROLE)
            self._change(self._scene.GetNodeByID(node_id) if node_id else None)

    def _change(self, node):
        if node is not self._current:
            self._current = node
            self.currentNodeChanged.emit(node)
            self.currentNodeIDChanged.emit(node.GetID() if node else "")

    # ---- the current node

    def currentNode(self):
        return self._current

    def setCurrentNode(self, node):
        if isinstance(node, str):
            node = self._scene.GetNodeByID(node) if node and self._scene else None
        index = self._index(node)
        if node is not None and index < 0:
            return
        self._listing = True
        self._combo.setCurrentIndex(index)
        self._listing = False
        self._change(node)

    def setCurrentNodeID(self, node_id):
        self.setCurrentNode(node_id or None)

    def setCurrentNodeIndex(self, index):
        nodes = self._nodes()
        self.setCurrentNode(nodes[index] if 0 <= index < len(nodes) else None)

    currentNodeID = Property(str, lambda self: self._current.GetID() if self._current else "", setCurrentNodeID)

    def addNode(self, node_type=None):
        node_type = node_type or self.nodeTypes[0]
        base = self.baseName or node_type.removeprefix("vtkMRML").removesuffix("Node")
        node = self._scene.AddNewNodeByClass(node_type, self._scene.GenerateUniqueName(base))
        if self.selectNodeUponCreation:
            self.setCurrentNode(node)
        self.nodeAddedByUser.emit(node)
        return node


class _CheckableCombo(QComboBox):
    """Shows the names of what is checked, as ctkCheckableComboBox does."""

    def checked_text(self) -> str:
        items = [self.model().item(row) for row in range(self.count)]
        names = [item.text() for item in items if item.checkState() == Qt.CheckState.Checked]
        if not names:
            return "None"
        return "All" if len(names) == len(items) else ", ".join(names)

    def paintEvent(self, event):
        painter, box = QStylePainter(self), QStyleOptionComboBox()
        self.initStyleOption(box)
        box.currentText = self.checked_text()
        painter.drawComplexControl(QStyle.ComplexControl.CC_ComboBox, box)
        painter.drawControl(QStyle.ControlElement.CE_ComboBoxLabel, box)


@register
class qMRMLCheckableNodeComboBox(qMRMLNodeComboBox):
    """A node combo box whose nodes have check marks; unchecked at first.

    As in Slicer, a checked node that leaves the scene is no longer checked, but no signal tells so.
    """

    checkedNodesChanged = Signal()

    def __init__(self, parent=None):
        super().__init__(parent)
        self._combo.model().itemChanged.connect(self._item_changed)

    def _make_combo(self) -> QComboBox:
        self._states, self._fixed = {}, set()
        return _CheckableCombo()

    def _item(self, node) -> QStandardItem:
        item = super()._item(node)
        item.setCheckable(node.GetID() not in self._fixed)
        item.setCheckState(self._states.get(node.GetID(), Qt.CheckState.Unchecked))
        return item

    def _list_nodes(self):
        listed = {node.GetID() for node in self._nodes()}
        self._states = {node_id: state for node_id, state in self._states.items() if node_id in listed}
        super()._list_nodes()

    def _item_changed(self, item):
        node_id = item.data(NODE_ROLE)
        if not self._listing and self._states.get(node_id, Qt.CheckState.Unchecked) != item.checkState():
            self._states[node_id] = item.checkState()
            self.checkedNodesChanged.emit()

    def checkState(self, node):
        return self._states.get(node.GetID(), Qt.CheckState.Unchecked) if node else Qt.CheckState.Unchecked

    def setCheckState(self, node, state):
        index = self._index(node) if node else -1
        if index >= 0:
            self._combo.model().item(index).setCheckState(Qt.CheckState(state))

    def check(self, node):
        self.setCheckState(node, Qt.CheckState.Checked)

    def uncheck(self, node):
        self.setCheckState(node, Qt.CheckState.Unchecked)

    def setUserCheckable(self, node, checkable):
        (self._fixed.discard if checkable else self._fixed.add)(node.GetID())
        self._list_nodes()

    def checkedNodes(self):
        return tuple(node for node in self._nodes() if self.checkState(node) == Qt.CheckState.Checked)

    def uncheckedNodes(self):
        return tuple(node for node in self._nodes() if self.checkState(node) == Qt.CheckState.Unchecked)

    def allChecked(self):
        return not self.uncheckedNodes()

    def noneChecked(self):
        return not self.checkedNodes()
