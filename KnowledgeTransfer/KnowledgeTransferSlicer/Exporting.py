"""Exporting: nodes are written on Slicer's main thread; between two of them the panel shows how far it is, and Cancel.

Both functions are given how many nodes there are, and give a function to be called with the name of each.
"""

import contextlib

import slicer
from slicer.i18n import tr as _

SOON_MS = 1000  # what takes less needs no dialog


class ExportStopped(RuntimeError):
    """The user pressed Cancel."""


@contextlib.contextmanager
def silently(total):
    """For scripts."""
    yield lambda name: None


@contextlib.contextmanager
def inADialog(total):
    """While it is shown nothing else can be pressed: who closes the scene would take the volumes away.

    Raises:
        ExportStopped: by the function that it gives, once Cancel was pressed.
    """
    dialog = slicer.util.createProgressDialog(
        maximum=total, windowTitle="KnowledgeTransfer", minimumDuration=SOON_MS, modal=True
    )
    names = []

    def tell(name):
        dialog.labelText = _("Writing {name} for the library").format(name=name)
        dialog.value = len(names)  # from the time that passed since the last one, Qt knows whether to show it
        names.append(name)
        if dialog.visible:  # only then can nothing else be pressed
            slicer.app.processEvents()
        if dialog.wasCanceled:
            raise ExportStopped(_("Stopped before anything was begun"))

    try:
        yield tell
    finally:
        dialog.close()
        dialog.deleteLater()
