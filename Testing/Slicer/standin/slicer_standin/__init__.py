"""Runs a scripted module of 3D Slicer without the Slicer application.

Real: MRML scene, storage, segmentation logic and VTK (PyPI slicer-core), Qt (PySide6). Stand-ins: `slicer.app`,
PythonQt, CTK and qMRML widgets. Slicer's own ScriptedLoadableModule, parameterNodeWrapper and i18n are used when the
environment variable SLICER_SRC names a checkout of its source, and small ones of ours otherwise.
"""

import sys
import traceback

errors: list[
    BaseException
] = []  # that left a slot or an observer: Slicer prints them and goes on, a test must look here


def collect_errors() -> None:
    """From now on nothing that a slot raises gets lost."""
    sys.excepthook = _collect


def _collect(kind, value, trace) -> None:
    errors.append(value)
    traceback.print_exception(kind, value, trace)


def boot(view_size_px: tuple[int, int] = (320, 300)):
    """The application, with an empty scene and four views."""
    from slicer_standin.startup import boot as start

    return start(view_size_px)


def prepare() -> None:
    """Makes `slicer.ScriptedLoadableModule` and the widgets importable; boots nothing."""
    from slicer_standin.startup import prepare as ready

    ready()


def load_module(path):
    from slicer_standin.modules import load_module as load

    return load(path)


def open_panel(name: str):
    from slicer_standin.modules import open_panel as panel

    return panel(name)


def close_panel(name: str) -> None:
    from slicer_standin.modules import close_panel as close

    close(name)
