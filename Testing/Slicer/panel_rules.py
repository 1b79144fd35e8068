"""Rules for the panel's .ui file and the code that uses it: each finds what does not fit, by name."""

import ast
from collections.abc import Iterable
from dataclasses import dataclass
from xml.etree import ElementTree

from source_rules import dotted, widget_of

FIELD_TYPES = {
    "QCheckBox": "bool",
    "QSpinBox": "int",
    "QDoubleSpinBox": "float",
    "QLineEdit": "str",
    "QComboBox": "str",
    "ctkPathLineEdit": "Path",
    "qMRMLNodeComboBox": "vtkMRML",
}  # what Slicer's connectGui can connect with what
CONTROLS = {
    *FIELD_TYPES, "QPushButton", "QToolButton", "QRadioButton", "QTableWidget", "qMRMLCheckableNodeComboBox",
    "qMRMLSegmentationShow3DButton", "ctkCollapsibleButton",
}  # fmt: skip
NEEDS_SCENE = ("qMRMLNodeComboBox", "qMRMLCheckableNodeComboBox", "qMRMLPlotWidget", "qMRMLSegmentsTableView")
ONLY_LAYOUT = {"QWidget", "QLabel", "QFrame", "QGroupBox", "QTabWidget", "QScrollArea", "qMRMLWidget", "Line"}
ONLY_LAYOUT |= {"ctkCollapsibleButton", "QStackedWidget", "QSplitter"}


@dataclass(frozen=True)
class Connection:
    """A line of the .ui file's signals and slots."""

    sender: str
    signal: str
    receiver: str
    slot: str


class Panel:
    """What a .ui file says."""

    def __init__(self, xml: str):
        root = ElementTree.fromstring(xml)
        elements = {w.get("name"): w for w in root.iter("widget")}
        self.classes = {name: element.get("class") for name, element in elements.items()}
        self.root = root.find("widget").get("name")
        properties = {
            n: {p.get("name"): "".join(p.itertext()).strip() for p in e.findall("property")}
            for n, e in elements.items()
        }
        self.fields = {n: p["SlicerParameterName"] for n, p in properties.items() if "SlicerParameterName" in p}
        self.tool_tips = {n: p["toolTip"] for n, p in properties.items() if p.get("toolTip")}
        parts = ("sender", "signal", "receiver", "slot")
        self.connections = [Connection(*(c.findtext(p) for p in parts)) for c in root.iter("connection")]
        self.declared = {c.findtext("class") for c in root.iter("customwidget")}


def widgets_in(sources: Iterable[str]) -> set[str]:
    """The names X of `ui.X` and `self.ui.X`."""
    return {widget_of(node) for source in sources for node in ast.walk(ast.parse(source))} - {""}


def texts_in(sources: Iterable[str]) -> set[str]:
    """All text constants: widgets are also named in tables."""
    nodes = (node for source in sources for node in ast.walk(ast.parse(source)))
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def fields_in(source: str) -> dict[str, str]:
    """Name and type of the fields of the class that parameterNodeWrapper decorates."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef) and any(dotted(d) == "parameterNodeWrapper" for d in node.decorator_list):
            return {s.target.id: ast.unparse(s.annotation) for s in node.body if isinstance(s, ast.AnnAssign)}
    return {}


def unknown_widgets(panel: Panel, sources: Iterable[str]) -> list[str]:
    """Widgets that the code uses and the .ui file lacks."""
    return sorted(widgets_in(sources) - set(panel.classes))


def unused_widgets(panel: Panel, sources: list[str]) -> list[str]:
    """Widgets that neither the code nor a field nor a connection uses."""
    used = widgets_in(sources) | texts_in(sources) | set(panel.fields)
    used |= {name for c in panel.connections for name in (c.sender, c.receiver)}
    return sorted(n for n, kind in panel.classes.items() if n not in used and kind not in ONLY_LAYOUT)


def unknown_fields(panel: Panel, fields: dict[str, str]) -> list[str]:
    """Widgets that are bound to a field that the parameter node lacks."""
    return sorted(f"{widget}: {name}" for widget, name in panel.fields.items() if name not in fields)


def unfit_fields(panel: Panel, fields: dict[str, str]) -> list[str]:
    """Fields that Slicer's connectGui cannot connect with their widget."""
    unfit = []
    for widget, name in panel.fields.items():
        kind, wanted = fields.get(name, ""), FIELD_TYPES.get(panel.classes[widget], "nothing")
        bare = kind.removeprefix("Annotated[").removeprefix("slicer.").removeprefix("pathlib.")
        choice_is_missing = panel.classes[widget] == "QComboBox" and "Choice(" not in kind
        if not bare.startswith(wanted) or choice_is_missing:
            unfit.append(f"{widget}: {panel.classes[widget]} cannot show {name}: {kind}")
    return sorted(unfit)


def controls_without_tool_tip(panel: Panel) -> list[str]:
    return sorted(n for n, kind in panel.classes.items() if kind in CONTROLS and n not in panel.tool_tips)


def widgets_without_scene(panel: Panel) -> list[str]:
    """qMRML widgets that are not told the scene."""
    told = {c.receiver for c in panel.connections if c.slot.startswith("setMRMLScene") and c.sender == panel.root}
    return sorted(n for n, kind in panel.classes.items() if kind in NEEDS_SCENE and n not in told)


def loose_connections(panel: Panel) -> list[str]:
    """Connections from or to a widget that is not there."""
    ends = ((c, name) for c in panel.connections for name in (c.sender, c.receiver))
    return sorted(f"{c.signal}: {name}" for c, name in ends if name not in panel.classes)


def undeclared_classes(panel: Panel) -> list[str]:
    """CTK and qMRML classes without an entry in <customwidgets>, without which Designer cannot open the file."""
    return sorted({k for k in panel.classes.values() if not k.startswith("Q") and k != "Line"} - panel.declared)
