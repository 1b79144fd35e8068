"""PySide6 dressed as PythonQt's `qt` module, for scripted modules; how, says slicer_standin/pythonqt.py.

There is no `qt.Signal`, `qt.Slot` or `qt.Property`: PythonQt has none either.
"""

from slicer_standin import pythonqt

globals().update(pythonqt.namespace())

from slicer_standin.dialogs import install as _install_dialogs  # noqa: E402
from slicer_standin.ui_loader import UiLoader as QUiLoader  # noqa: E402, F401, N814

_install_dialogs()
