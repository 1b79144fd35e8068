"""PySide6 made to behave like PythonQt.

- Qt properties are plain attributes (`w.text`, `w.enabled = True`); the setters (`w.setText`) stay.
- `w.connect("clicked(bool)", f)`, `w.disconnect(...)` and `w.clicked.connect(f)` all work.
- Enumerations have short and scoped names (`qt.Qt.Checked`, `qt.QProcess.Running`) and behave as integers.
- `w.name` is the object's name; `w.className()`, `w.delete()` and `dialog.exec_()` exist.
- Constructors refuse keyword arguments.
"""

import inspect
import os
import types
import weakref

os.environ.setdefault("PYSIDE6_OPTION_PYTHON_ENUM", "0x0e")  # IntEnum, short names; read when PySide6 is imported
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

import shiboken6  # noqa: E402
from PySide6 import QtCore, QtGui, QtNetwork, QtSvg, QtWidgets  # noqa: E402

QObject = QtCore.QObject
# Not in PythonQt, or replaced by a class of ours
_LEFT_OUT = {"Signal", "Slot", "Property", "ClassInfo", "QUiLoader"}
# C++ calls the readers of these, and Shiboken would find our attribute in place of the method; of a timer's singleShot
# the static method is wanted
_VIRTUAL = {"sizeHint", "minimumSizeHint", "spacing", "singleShot"}
_patched: list[type] = []
_connections: dict[tuple[int, str], list] = {}


def namespace() -> dict:
    """What `import qt` gives: all classes of the Qt modules, dressed as PythonQt does."""
    names = {}
    for module in (QtCore, QtGui, QtWidgets, QtNetwork, QtSvg):  # PySide6 makes a class when it is first asked for it
        names |= {n: getattr(module, n) for n in dir(module) if not n.startswith("_") and n not in _LEFT_OUT}
    if not _patched:
        _dress()
    return names


def _dress() -> None:
    _dress_class(QObject)
    _dress_subclasses(QObject)
    QObject.name = _attribute("objectName")
    QObject.className = lambda self: self.metaObject().className()
    QObject.delete = lambda self: shiboken6.delete(self) if shiboken6.isValid(self) else None
    for cls in (QtWidgets.QDialog, QtWidgets.QMenu, QtWidgets.QApplication, QtCore.QEventLoop):
        if not hasattr(cls, "exec_"):
            cls.exec_ = lambda self, *args: self.exec(*args)
    for cls in _patched:
        if cls is QObject or "__getattribute__" in vars(cls):
            _intercept_connect(cls)


def _dress_subclasses(cls: type) -> None:
    for subclass in cls.__subclasses__():
        if subclass.__module__.startswith("PySide6") and subclass not in _patched:
            _dress_class(subclass)
            _dress_subclasses(subclass)


def _dress_class(cls: type) -> None:
    """Properties as attributes, no keywords."""
    meta = getattr(cls, "staticMetaObject", None)
    if meta is None:
        return
    _patched.append(cls)
    for index in range(meta.propertyOffset(), meta.propertyCount()):
        found = meta.property(index)
        if found.isReadable() and found.name() not in _VIRTUAL:
            setattr(cls, found.name(), _attribute(found.name()))
    if "__init__" in vars(cls):
        _refuse_keywords(cls)


def _attribute(name: str) -> property:
    def read(self):
        value = QObject.property(self, name)
        return tuple(value) if type(value) is list else value  # PythonQt gives tuples

    def write(self, value):
        QObject.setProperty(self, name, list(value) if isinstance(value, tuple) else value)

    return property(read, write)


def _refuse_keywords(cls: type) -> None:
    original = cls.__init__

    def __init__(self, *args, **keywords):  # noqa: N807
        if keywords:
            raise TypeError(f"PythonQt knows no keyword arguments: {type(self).__name__}({', '.join(keywords)})")
        original(self, *args)

    cls.__init__ = __init__


def stored_property(kind, default, changed=lambda widget: None):
    """A Qt property that is only stored; `changed` is called after it was set."""
    values = weakref.WeakKeyDictionary()

    def write(self, value):
        values[self] = value
        changed(self)

    return QtCore.Property(kind, lambda self: values.get(self, default), write)


# ---- connecting by the signal's C++ signature ----------------------------------------------------------------------


def _intercept_connect(cls: type) -> None:
    """`connect` as we want it; Shiboken looks it up in a way of its own, so that an attribute would be ignored."""
    original = cls.__getattribute__

    def __getattribute__(self, name):  # noqa: N807
        if name == "connect":
            return types.MethodType(_connect, self)
        if name == "disconnect":
            return types.MethodType(_disconnect, self)
        return original(self, name)

    cls.__getattribute__ = __getattribute__


def _connect(self, *args):
    match args:
        case (str() as signature, slot) if callable(slot):
            signal, adapted = _signal(self, signature), _adapted(signature, slot)
            signal.connect(adapted)
            _connections.setdefault((id(self), _name(signature)), []).append((slot, signal, adapted))
            return True
        case (str() as signature, receiver, str() as slot):
            return _connect(self, signature, getattr(receiver, _name(slot)))
    return QObject.connect(self, *args)


def _disconnect(self, *args):
    if len(args) != 2 or not isinstance(args[0], str):
        return QObject.disconnect(self, *args)
    made = _connections.get((id(self), _name(args[0])), [])
    for connection in made:
        slot, signal, adapted = connection
        if slot == args[1]:
            signal.disconnect(adapted)
            made.remove(connection)
            return True
    return False


def _name(signature: str) -> str:
    return signature.strip().partition("(")[0]


def _signal(sender, signature: str):
    """The bound signal; PythonQt refuses a signature that the C++ class does not have, so this does too."""
    name, arguments = _name(signature), signature.partition("(")[2].rstrip(") ").replace(" ", "")
    signal = getattr(sender, name, None)
    if signal is None or not hasattr(signal, "connect"):
        raise ValueError(f"{sender.className()} has no signal {signature}")
    if f"{name}({arguments})" in getattr(type(sender), "cpp_signals", ()):
        return signal
    known = _signatures(sender, name)
    normalized = QtCore.QMetaObject.normalizedSignature(f"{name}({arguments})")
    if bytes(normalized).decode() not in known:
        raise ValueError(f"{sender.className()} has no signal {signature}, but {', '.join(known)}")
    try:
        return signal[arguments] if arguments else signal
    except (KeyError, IndexError, TypeError):
        return signal


def _signatures(sender, name: str) -> list[str]:
    meta = sender.metaObject()
    methods = [meta.method(index) for index in range(meta.methodCount())]
    return [bytes(m.methodSignature()).decode() for m in methods if bytes(m.name()).decode() == name]


def _adapted(signature: str, slot):
    """Calls `slot` with as many of the signal's arguments as the signature names and the slot takes."""
    if signature.strip().endswith("()"):
        return lambda *args: slot()
    try:
        parameters = inspect.signature(slot).parameters.values()
    except (TypeError, ValueError):
        return slot
    if any(p.kind == p.VAR_POSITIONAL for p in parameters):
        return lambda *args: slot(*args)  # noqa: PLW0108 - PySide6 would ask a bound method for its arity
    count = sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
    return lambda *args: slot(*args[:count])
