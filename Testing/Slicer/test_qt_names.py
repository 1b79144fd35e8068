"""Names of Qt that the module uses, also in lines that no other test reaches: they exist."""

from functools import reduce
from pathlib import Path

import pytest
import source_rules

MODULE = Path(__file__).parents[2] / "KnowledgeTransfer"
SOURCES = [file.read_text(encoding="utf-8") for file in sorted(MODULE.rglob("*.py"))]


def unknown_names(names) -> list[str]:
    import ctk
    import qt

    def exists(name: str) -> bool:
        module, *path = name.split(".")
        try:
            reduce(getattr, path, {"qt": qt, "ctk": ctk}[module])
        except AttributeError:
            return False
        return True

    return sorted(name for name in names if not exists(name))


@pytest.fixture
def ui(a_scene):
    import slicer

    panel = slicer.util.loadUI(str(MODULE / "Resources" / "UI" / "KnowledgeTransfer.ui"))
    yield slicer.util.childWidgetVariables(panel)
    panel.delete()


def unknown_attributes(ui, used) -> list[str]:
    return sorted(f"{widget}.{name}" for widget, name in used if not hasattr(getattr(ui, widget), name))


def test_every_name_in_qt_and_ctk_exists(app):
    assert unknown_names(set().union(*map(source_rules.qt_names, SOURCES))) == []


def test_every_attribute_of_the_panels_widgets_exists(ui):
    """Qt for Python would take a misspelt one for a new attribute."""
    assert unknown_attributes(ui, set().union(*map(source_rules.widget_attributes, SOURCES))) == []


def test_misspelt_names_are_found(ui):
    source = "def f(self): self.ui.tabs.enabeld = qt.Qt.Checked, qt.Qt.Chekced, ctk.ctkPathLine"

    assert unknown_names(source_rules.qt_names(source)) == ["ctk.ctkPathLine", "qt.Qt.Chekced"]
    assert unknown_attributes(ui, source_rules.widget_attributes(source)) == ["tabs.enabeld"]
