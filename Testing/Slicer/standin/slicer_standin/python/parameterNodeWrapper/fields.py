"""How the values of each type are kept in the parameter node."""

import typing
from collections.abc import MutableSequence
from pathlib import Path, PurePath

import slicer
import slicer.util

from .validators import Default, IsInstance, NotNone, Validator

MISSING = object()


class Text:
    """str, int, float, bool and Path: one parameter each."""

    EMPTY = {str: "", int: 0, float: 0, bool: False}

    def __init__(self, kind: type):
        self.kind = kind
        allowed = (int, float) if kind is float else Path if issubclass(kind, PurePath) else kind
        self.validators = [NotNone(), IsInstance(allowed)]

    def empty(self):
        return self.EMPTY.get(self.kind, self.kind())

    def has(self, node, name: str) -> bool:
        return bool(node.HasParameter(name))

    def read(self, node, name: str):
        text = node.GetParameter(name)
        return text == "True" if self.kind is bool else self.kind(text)

    def write(self, node, name: str, value) -> None:
        node.SetParameter(name, str(bool(value)) if self.kind is bool else str(value))

    def remove(self, node, name: str) -> None:
        node.UnsetParameter(name)


class Node:
    """A MRML node: a node reference; the empty parameter beside it tells None from never set."""

    def __init__(self, kind: type):
        self.kind = kind
        self.validators = [IsInstance(kind)]

    def empty(self):
        return None

    def has(self, node, name: str) -> bool:
        return bool(node.HasParameter(name))

    def read(self, node, name: str):
        return node.GetNodeReference(name)

    def write(self, node, name: str, value) -> None:
        node.SetParameter(name, "")
        node.SetNodeReferenceID(name, value.GetID() if value is not None else None)

    def remove(self, node, name: str) -> None:
        node.UnsetParameter(name)
        node.RemoveNodeReferenceIDs(name)


class List:
    """A list: NAME.len and NAME.0, NAME.1 and so on."""

    def __init__(self, element):
        self.element = element
        self.validators = []

    def empty(self):
        return []

    def has(self, node, name: str) -> bool:
        return bool(node.HasParameter(f"{name}.len"))

    def _length(self, node, name: str) -> int:
        return int(node.GetParameter(f"{name}.len")) if self.has(node, name) else 0

    def read(self, node, name: str):
        values = [self.element.read(node, f"{name}.{n}") for n in range(self._length(node, name))]
        return StoredList(self, node, name, values)

    def write(self, node, name: str, values) -> None:
        values, before = list(values), self._length(node, name)
        for value in values:
            for validator in self.element.validators:
                validator.validate(value)
        with slicer.util.NodeModify(node):
            for number, value in enumerate(values):
                self.element.write(node, f"{name}.{number}", value)
            node.SetParameter(f"{name}.len", str(len(values)))
            for number in range(len(values), before):
                self.element.remove(node, f"{name}.{number}")

    def remove(self, node, name: str) -> None:
        self.write(node, name, [])
        node.UnsetParameter(f"{name}.len")


class StoredList(MutableSequence):
    """A list that writes each change to the node."""

    def __init__(self, kept: List, node, name: str, values: list):
        self._kept, self._node, self._name, self._values = kept, node, name, values

    def _save(self) -> None:
        self._kept.write(self._node, self._name, self._values)

    def __repr__(self):
        return f"ObservedList({self._values})"

    def __eq__(self, other):
        return self._values == (other._values if isinstance(other, StoredList) else other)

    __hash__ = None

    def __len__(self):
        return len(self._values)

    def __getitem__(self, index):
        return self._values[index]

    def __setitem__(self, index, value):
        self._values[index] = value
        self._save()

    def __delitem__(self, index):
        del self._values[index]
        self._save()

    def insert(self, index, value):
        self._values.insert(index, value)
        self._save()


class Field:
    """A name, how its values are kept, what they must fulfil, and the first one."""

    def __init__(self, name: str, annotation, value=MISSING):
        kind, self.annotations = split(annotation)
        self.name, self.kept, self.annotation = name, keeper(kind, annotation), annotation
        self.validators = self.kept.validators + [a for a in self.annotations if isinstance(a, Validator)]
        defaults = [a for a in self.annotations if isinstance(a, Default)] or [Default(self.kept.empty())]
        self.default = defaults[0] if value is MISSING else Default(value)

    def read(self, node):
        if not self.kept.has(node, self.name):
            self.write(node, self.default.value)
        return self.kept.read(node, self.name)

    def write(self, node, value) -> None:
        for validator in self.validators:
            validator.validate(value)
        with slicer.util.NodeModify(node):
            self.kept.write(node, self.name, value)


def split(annotation) -> tuple:
    """(type, [what Annotated adds])."""
    return (
        (annotation.__origin__, list(annotation.__metadata__))
        if hasattr(annotation, "__metadata__")
        else (annotation, [])
    )


def keeper(kind, annotation):
    """Text, Node or List for a type."""
    if typing.get_origin(kind) is list:
        (element,) = typing.get_args(kind)
        return List(keeper(split(element)[0], element))
    if isinstance(kind, type) and issubclass(kind, slicer.vtkMRMLNode):
        return Node(kind)
    if kind in Text.EMPTY or isinstance(kind, type) and issubclass(kind, PurePath):
        return Text(kind)
    raise TypeError(f"the stand-in's parameter nodes cannot keep {annotation}")
