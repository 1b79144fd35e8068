"""Loads scripted modules as Slicer does: module object, panel, setup, enter; and takes them away again."""

import importlib.util
import sys
from pathlib import Path

from PySide6.QtWidgets import QVBoxLayout

from slicer_standin.node_widgets import qSlicerWidget


class qSlicerScriptedLoadableModuleWidget(qSlicerWidget):
    """The frame that holds a scripted panel."""

    def __init__(self, parent=None):
        super().__init__(parent)
        self.isEntered, self._scripted, self.make_panel = False, None, None

    def self(self):
        return self._scripted

    def reload(self):
        """A new panel, from the module's code as it is now."""
        self._scripted = self.make_panel(self)

    def enter(self):
        self.isEntered = True
        getattr(self._scripted, "enter", lambda: None)()

    def exit(self):
        self.isEntered = False
        getattr(self._scripted, "exit", lambda: None)()


def install(slicer) -> None:
    """`slicer.qSlicerScriptedLoadableModuleWidget`."""
    slicer.qSlicerScriptedLoadableModuleWidget = qSlicerScriptedLoadableModuleWidget


def load_module(path):
    """The Python module of a scripted module's file, registered in slicer.modules."""
    import slicer

    from slicer_standin.application import Module
    from slicer_standin.startup import register_module

    path = Path(path).resolve()
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    code = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = code
    spec.loader.exec_module(code)
    module = Module(path.stem, path=str(path))
    register_module(module)
    setattr(slicer.modules, f"{path.stem}Instance", getattr(code, path.stem)(module))
    slicer.app.moduleManager().moduleLoaded.emit(path.stem)
    return code


def open_panel(name: str):
    """The scripted widget of a loaded module, set up and entered; its frame is `widget.parent`."""
    import slicer

    frame = qSlicerScriptedLoadableModuleWidget()
    frame.setLayout(QVBoxLayout())
    frame.setMRMLScene(slicer.mrmlScene)
    frame.make_panel = lambda parent: _make_panel(name, parent)
    getattr(slicer.modules, name.lower()).panel = frame
    frame.reload()
    frame.enter()
    return frame.self()


def _make_panel(name: str, parent):
    import slicer

    widget = getattr(sys.modules[name], f"{name}Widget")(parent)
    setattr(slicer.modules, f"{name}Widget", widget)
    widget.setup()
    return widget


def close_panel(name: str) -> None:
    """As when Slicer ends: exit, cleanup, and the frame is deleted."""
    import slicer

    frame = getattr(slicer.modules, name.lower()).panel
    frame.exit()
    slicer.app.moduleManager().moduleAboutToBeUnloaded.emit(name)
    getattr(slicer.modules, name.lower()).panel = None
    delattr(slicer.modules, f"{name}Widget")
    frame.close()
    frame.deleteLater()
    slicer.app.sendPostedEvents()
    slicer.app.processEvents()
