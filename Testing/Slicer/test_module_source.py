"""The module's source, without running it: only what works in Slicer's own Python and Qt."""

import ast
from pathlib import Path

import panel_rules
import pytest
import source_rules

MODULE = Path(__file__).parents[2] / "KnowledgeTransfer"
FILES = sorted(MODULE.rglob("*.py"))
SOURCES = [file.read_text(encoding="utf-8") for file in FILES]
UI = MODULE / "Resources" / "UI" / "KnowledgeTransfer.ui"
PARAMETER_NODE = MODULE / "KnowledgeTransferSlicer" / "ParameterNode.py"

BAD = {
    "keywords_for_qt": [
        "def f(): return qt.QPushButton(text='Go')",
        "def f(): return slicer.qMRMLNodeComboBox(parent=None)",
        "def f(): return qt.QFileDialog.getOpenFileName(None, caption='File')",
        "def f(self): self.ui.table.setItem(row=1)",
    ],
    "signals_made_in_python": ["class A:\n    done = qt.Signal(str)", "@qt.Slot()\ndef f(): pass"],
    "isinstance_of_qt": [
        "def f(x): return isinstance(x, qt.QWidget)",
        "def f(x): return isinstance(x, (str, slicer.qMRMLWidget))",
    ],
    "another_qt": ["from PySide6 import QtCore", "def f(): import PyQt5.QtWidgets"],
    "exec_without_underscore": ["def f(): qt.QMessageBox().exec()"],
    "properties_called": ["def f(self): return self.ui.name.text()", "def f(ui): return ui.table.rowCount()"],
    "imports_of_the_child": [
        "def f(): import torch",
        "def f(): from monai.networks import nets",
        "from KnowledgeTransferLib.learning import volume",
        "from KnowledgeTransferLib import steps",
        "def f(): return importlib.import_module('nibabel')",
    ],
    "third_party_at_file_scope": [
        "import requests",
        "try:\n    from PIL import Image\nexcept ImportError:\n    Image = None",
    ],
    "modules_that_are_gone": ["def f(): import imp"],
    "writes_to_the_environment": [
        "def f(): os.environ['A'] = 'b'",
        "def f(): del os.environ['A']",
        "def f(): os.environ.update(a='b')",
        "def f(): os.putenv('A', 'b')",
    ],
    "commands_by_a_shell": ["def f(c): subprocess.run(c, shell=True)", "def f(c): os.system(c)"],
    "messages_without_translation": [
        "def f(): raise ValueError('nothing is chosen')",
        "def f(x): raise RuntimeError(f'{x}: cannot be read')",
    ],
    "work_at_file_scope": ["print('hello')", "for i in range(3):\n    pass", "LOGIC = Logic()", "if True:\n    A = 1"],
}
GOOD = """
import importlib.util
import os
import re

import numpy as np
import qt
from KnowledgeTransferLib.records.jobs import runs_in

from . import Requirements

NUMBER = re.compile("[0-9]+")
_ = str

if importlib.util.find_spec("KnowledgeTransferLib") is None:
    sys.path.append("..")


class A:
    def f(self, value):
        self.ui.name.text = "a"
        self.ui.table.setItem(1, 2, qt.QTableWidgetItem("b"))
        answer = self.ui.table.item(0, 0).text()
        subprocess.Popen(["a"], env={**os.environ, "B": "c"}, shell=False)
        if answer == "c":
            raise ValueError(_("{answer}: is not known").format(answer=answer))
        return isinstance(value, str) or qt.QMessageBox().exec_() == qt.QMessageBox.Ok or answer
"""


@pytest.mark.parametrize("file", FILES, ids=[file.name for file in FILES])
def test_the_source_keeps_the_rules(file):
    assert source_rules.problems(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(("rule", "source"), [(rule, source) for rule, sources in BAD.items() for source in sources])
def test_a_rule_finds_what_breaks_it(rule, source):
    assert list(source_rules.RULES[rule](ast.parse(source)))


def test_every_rule_is_shown_to_find_something_and_leaves_good_source_alone():
    assert set(BAD) == set(source_rules.RULES)
    assert source_rules.problems(GOOD) == []


# ---- the panel and its code

PANEL = """<ui version="4.0"><widget class="qMRMLWidget" name="Panel">
<widget class="QCheckBox" name="check"><property name="toolTip"><string>tip</string></property>
<property name="SlicerParameterName" stdset="0"><string>soft</string></property></widget>
<widget class="QLabel" name="label"/>
<widget class="qMRMLNodeComboBox" name="node"><property name="toolTip"><string>tip</string></property></widget>
</widget><customwidgets><customwidget><class>qMRMLWidget</class></customwidget>
<customwidget><class>qMRMLNodeComboBox</class></customwidget></customwidgets>
<connections><connection><sender>Panel</sender><signal>mrmlSceneChanged(vtkMRMLScene*)</signal>
<receiver>node</receiver><slot>setMRMLScene(vtkMRMLScene*)</slot></connection></connections></ui>"""
CODE = ["class A:\n    def f(self, ui):\n        ui.check.checked = True\n        self.ui.node.setCurrentNode(None)"]
FIELDS = {"soft": "bool"}


def all_problems(xml: str, sources: list[str], fields: dict[str, str]) -> dict[str, list[str]]:
    panel = panel_rules.Panel(xml)
    found = {
        "used, but not in the .ui": panel_rules.unknown_widgets(panel, sources),
        "in the .ui, but not used": panel_rules.unused_widgets(panel, sources),
        "no field of the parameter node": panel_rules.unknown_fields(panel, fields),
        "cannot be connected": panel_rules.unfit_fields(panel, fields),
        "no tool tip": panel_rules.controls_without_tool_tip(panel),
        "not told the scene": panel_rules.widgets_without_scene(panel),
        "connected, but not there": panel_rules.loose_connections(panel),
        "class not declared": panel_rules.undeclared_classes(panel),
    }
    return {problem: names for problem, names in found.items() if names}


def test_the_panel_and_its_code_fit():
    fields = panel_rules.fields_in(PARAMETER_NODE.read_text(encoding="utf-8"))

    assert fields and all_problems(UI.read_text(encoding="utf-8"), SOURCES, fields) == {}


def test_a_good_panel_has_no_problems():
    assert all_problems(PANEL, CODE, FIELDS) == {}


@pytest.mark.parametrize(
    ("problem", "xml", "code", "fields"),
    [
        ("used, but not in the .ui", PANEL, CODE[0] + "\n        self.ui.gone.enabled = False", FIELDS),
        ("in the .ui, but not used", PANEL.replace('"QLabel" name', '"QPushButton" name'), CODE[0], FIELDS),
        ("no field of the parameter node", PANEL.replace(">soft<", ">hard<"), CODE[0], FIELDS),
        ("cannot be connected", PANEL, CODE[0], {"soft": "str"}),
        ("cannot be connected", PANEL.replace("QCheckBox", "QComboBox"), CODE[0], {"soft": "str"}),
        ("cannot be connected", PANEL.replace("QCheckBox", "ctkPathLineEdit"), CODE[0], {"soft": "str"}),
        ("no tool tip", PANEL.replace('<property name="toolTip"><string>tip</string></property>', ""), CODE[0], FIELDS),
        ("not told the scene", PANEL.replace("<receiver>node", "<receiver>check"), CODE[0], FIELDS),
        ("connected, but not there", PANEL.replace("<receiver>node", "<receiver>gone"), CODE[0], FIELDS),
        ("class not declared", PANEL.replace("<class>qMRMLNodeComboBox", "<class>qMRMLOther"), CODE[0], FIELDS),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_found(problem, xml, code, fields):
    assert problem in all_problems(xml, [code], fields)


def test_fields_are_found_in_the_source():
    source = "@parameterNodeWrapper\nclass A:\n    soft: bool = True\n    nodes: list[vtkMRMLNode]"

    assert panel_rules.fields_in(source) == {"soft": "bool", "nodes": "list[vtkMRMLNode]"}
