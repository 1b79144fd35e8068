"""The stand-in's parameter node: the same with our small parameterNodeWrapper and with Slicer's own (SLICER_SRC)."""

from pathlib import Path
from typing import Annotated

import pytest

UI = """<?xml version="1.0" encoding="UTF-8"?>
<ui version="4.0"><class>Panel</class><widget class="qMRMLWidget" name="Panel"><layout class="QVBoxLayout" name="box">
{widgets}</layout></widget><connections><connection>
<sender>Panel</sender><signal>mrmlSceneChanged(vtkMRMLScene*)</signal>
<receiver>node</receiver><slot>setMRMLScene(vtkMRMLScene*)</slot></connection></connections></ui>"""
FIELDS = {
    "check": "QCheckBox", "count": "QSpinBox", "size": "QDoubleSpinBox", "text": "QLineEdit", "choice": "QComboBox",
    "path": "ctkPathLineEdit", "node": "qMRMLNodeComboBox",
}  # fmt: skip


@pytest.fixture
def fields(a_scene):
    """A parameter node with a field of each kind."""
    import slicer
    from slicer.parameterNodeWrapper import Choice, Default, WithinRange, parameterNodeWrapper
    from slicer.ScriptedLoadableModule import ScriptedLoadableModuleLogic

    class Kinds:
        check: bool = False
        count: Annotated[int, WithinRange(0, 500), Default(7)]
        size: Annotated[float, WithinRange(0, 9.5), Default(2.5)]
        text: str = "as it was"
        choice: Annotated[str, Choice(["fast", "good"]), Default("good")]
        path: Path
        node: slicer.vtkMRMLScalarVolumeNode
        texts: list[str]
        numbers: list[float]
        nodes: list[slicer.vtkMRMLScalarVolumeNode]

    class KindsLogic(ScriptedLoadableModuleLogic):
        pass

    wrapped = parameterNodeWrapper(Kinds)
    return lambda: wrapped(KindsLogic().getParameterNode())


@pytest.fixture
def ui(a_scene, tmp_path):
    """A panel with a widget for each field, from a .ui file."""
    import slicer

    marked = '<property name="SlicerParameterName" stdset="0"><string>{0}</string></property>'
    widget = '<item><widget class="{1}" name="{0}">' + marked + "</widget></item>"
    widgets = "".join(widget.format(name, kind) for name, kind in FIELDS.items())
    (tmp_path / "Panel.ui").write_text(UI.format(widgets=widgets))
    panel = slicer.util.loadUI(str(tmp_path / "Panel.ui"))
    panel.setMRMLScene(slicer.mrmlScene)
    yield slicer.util.childWidgetVariables(panel)
    panel.delete()


def test_fields_begin_with_their_defaults(fields):
    node = fields()

    assert (node.count, node.size, node.text, node.choice, node.path) == (7, 2.5, "as it was", "good", Path())
    assert node.node is None and list(node.texts) == []


def test_fields_refuse_wrong_values(fields):
    node = fields()

    for name, value in (("choice", "slow"), ("count", 501), ("text", 3), ("check", "yes")):
        with pytest.raises((ValueError, TypeError)):
            setattr(node, name, value)


def test_widgets_follow_the_parameter_node_and_the_other_way_round(fields, ui, a_volume):
    node, volume = fields(), a_volume()
    tag = node.connectGui(ui)
    assert ui.choice.currentText == "good" and ui.choice.count == 2 and ui.count.maximum == 500

    node.check, node.text, node.choice, node.path, node.node = True, "new", "fast", Path("/a b/ü"), volume
    assert ui.check.checked and ui.text.text == "new" and ui.choice.currentIndex == 0
    assert ui.path.currentPath == "/a b/ü" and ui.node.currentNode() is volume

    ui.check.checked, ui.count.value, ui.size.value, ui.choice.currentIndex = False, 11, 3.5, 1
    ui.path.currentPath = "/c"
    ui.node.setCurrentNode(a_volume(name="other"))
    assert (node.check, node.count, node.size, node.choice, node.path) == (False, 11, 3.5, "good", Path("/c"))
    assert node.node.GetName() == "other"
    node.disconnectGui(tag)


def test_disconnected_widgets_are_left_alone(fields, ui):
    node = fields()
    node.disconnectGui(node.connectGui(ui))

    node.text = "new"
    ui.count.value = 3

    assert ui.text.text == "as it was" and node.count == 7


def test_a_combo_box_cannot_show_a_text_without_choices_nor_a_path_line_a_text(a_scene, ui):
    import slicer
    from slicer.parameterNodeWrapper import parameterNodeWrapper

    class Wrong:
        text: str

    node = parameterNodeWrapper(Wrong)(slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScriptedModuleNode"))
    for widget in (ui.choice, ui.path):
        with pytest.raises(RuntimeError):
            node.connectParametersToGui({"text": widget})


def test_observers_hear_of_a_change(fields):
    import vtk

    node, heard = fields(), []
    node.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: heard.append(node.text))

    node.text = "new"

    assert heard == ["new"]


def test_a_saved_scene_brings_the_parameter_node_back(fields, a_volume, a_scene, tmp_path):
    import slicer

    node = fields()
    node.count, node.path, node.texts, node.numbers = 12, Path("/a"), ["x", "y z"], [1.5]
    node.nodes = [a_volume(name="one"), a_volume(name="two")]
    node.node = node.nodes[1]
    assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    a_scene.Clear(0)
    assert fields().count == 7 and list(fields().texts) == []

    slicer.util.loadScene(str(tmp_path / "scene.mrb"))

    found = fields()
    assert (found.count, found.path, list(found.texts), list(found.numbers)) == (12, Path("/a"), ["x", "y z"], [1.5])
    assert [n.GetName() for n in found.nodes] == ["one", "two"] and found.node is found.nodes[1]


def test_lists_write_what_is_appended_and_removed(fields):
    node = fields()
    node.texts.append("a")
    node.texts.append("b")
    node.texts.remove("a")

    assert list(fields().texts) == ["b"]
