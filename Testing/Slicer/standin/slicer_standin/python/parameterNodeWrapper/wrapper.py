"""The class decorator @parameterNodeWrapper."""

import typing

import slicer.util
import vtk

from .connectors import make_connector
from .fields import MISSING, Field

PROPERTY = "SlicerParameterName"


def parameterNodeWrapper(classtype=None):
    """Gives a class of annotated fields the methods of a parameter node."""
    return _wrap if classtype is None else _wrap(classtype)


def isParameterNodeWrapper(thing):
    return getattr(thing, "_is_parameter_node_wrapper", False)


def _wrap(cls):
    hints = typing.get_type_hints(cls, include_extras=True)
    cls.allParameters = {n: Field(n, hint, getattr(cls, n, MISSING)) for n, hint in hints.items()}
    for name, field in cls.allParameters.items():
        setattr(cls, name, _property(field))
    for name, member in vars(_Wrapper).items():
        if not name.startswith("__") or name == "__init__":
            setattr(cls, name, member)
    cls._is_parameter_node_wrapper = True
    return cls


def _property(field: Field) -> property:
    return property(
        lambda self: field.read(self.parameterNode),
        lambda self, value: field.write(self.parameterNode, value),
    )


class _Wrapper:
    """What the decorated class gets."""

    def __init__(self, parameterNode):
        self.parameterNode, self._guis, self._updating = parameterNode, {}, False
        for field in self.allParameters.values():
            field.read(parameterNode)  # writes the default where there is none

    def getValue(self, name):
        return self._field(name).read(self.parameterNode)

    def setValue(self, name, value):
        self._field(name).write(self.parameterNode, value)

    def default(self, name):
        return self._field(name).default

    def dataType(self, name):
        return self._field(name).annotation

    def isCached(self, name):
        return False

    def _field(self, name):
        if name not in self.allParameters:
            raise ValueError(f"no field {name} among {', '.join(self.allParameters)}")
        return self.allParameters[name]

    # ---- the parameter node itself

    def AddObserver(self, event, callback, priority=0.0):
        return self.parameterNode.AddObserver(event, callback, priority)

    def RemoveObserver(self, tag):
        self.parameterNode.RemoveObserver(tag)

    def StartModify(self):
        return self.parameterNode.StartModify()

    def EndModify(self, wasModifying):
        return self.parameterNode.EndModify(wasModifying)

    def Modified(self):
        self.parameterNode.Modified()

    # ---- the panel

    def connectGui(self, gui):
        """Connects each widget that has the property SlicerParameterName; returns the tag for disconnectGui."""
        widgets = slicer.util.findChildren(gui) if hasattr(gui, "isWidgetType") else vars(gui).values()
        named = {w.property(PROPERTY): w for w in widgets if hasattr(w, "property") and w.property(PROPERTY)}
        return self.connectParametersToGui(named)

    def connectParametersToGui(self, widgets):
        connectors = {n: make_connector(widget, self._field(n)) for n, widget in widgets.items()}
        tag = len(self._guis)
        for name, connector in connectors.items():
            connector.write(self.getValue(name))
            connector.connect(lambda n=name, c=connector: self._widget_changed(n, c))
        observer = self.AddObserver(vtk.vtkCommand.ModifiedEvent, self._node_changed)
        self._guis[tag] = connectors, observer
        return tag

    def disconnectGui(self, tag):
        connectors, observer = self._guis[tag] or ({}, None)
        for connector in connectors.values():
            connector.disconnect()
        if observer is not None:
            self.RemoveObserver(observer)
        self._guis[tag] = None

    def _widget_changed(self, name, connector):
        if not self._updating:
            self.setValue(name, connector.read())

    def _node_changed(self, *_args):
        if self._updating:
            return
        self._updating = True
        try:
            for connectors, _observer in filter(None, self._guis.values()):
                for name, connector in connectors.items():
                    connector.write(self.getValue(name))
        finally:
            self._updating = False
