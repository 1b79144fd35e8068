"""Stand-in for slicer.app: a real QApplication with the parts of qSlicerApplication that scripted modules use."""

import os
import tempfile

from PySide6.QtCore import QCoreApplication, QObject, QProcessEnvironment, QSettings, Signal
from PySide6.QtWidgets import QApplication

from slicer_standin.files import FileManager

DOCUMENTATION = "https://slicer.readthedocs.io/en/latest/"


class Module:
    """slicer.modules.<name>: what the module says of itself, its logic and its panel."""

    def __init__(self, name: str, logic=None, path: str = ""):
        self.name, self.path, self._logic, self.panel = name, path, logic, None
        self.title = name
        self.categories, self.dependencies, self.contributors = [], [], []
        self.helpText = self.acknowledgementText = self.defaultDocumentationLink = ""
        self.icon = None
        self.hidden = False

    def logic(self):
        return self._logic

    def widgetRepresentation(self):
        return self.panel


class ModuleManager(QObject):
    """slicer.app.moduleManager()."""

    moduleAboutToBeUnloaded = Signal(str)
    moduleLoaded = Signal(str)

    def __init__(self, parent):
        super().__init__(parent)
        self.modules: dict[str, Module] = {}

    def module(self, name):
        return self.modules.get(name)

    def modulesNames(self):
        return tuple(self.modules)

    loadedModuleNames = modulesNames

    def factoryManager(self):
        return self


class SlicerApplication(QApplication):
    """slicer.app, with settings and temporary files in a folder of its own."""

    startupCompleted = Signal()
    mrmlSceneChanged = Signal(object)

    def __init__(self, logic, scene):
        super().__init__(["Slicer"])
        self._logic, self._scene, self._views = logic, scene, None
        self._files, self._modules = FileManager(), ModuleManager(self)
        self.setOrganizationName("NA-MIC")
        self.setApplicationName("Slicer stand-in")
        self.temporaryPath = self.slicerHome = tempfile.mkdtemp(prefix="slicer-standin-")
        QSettings.setDefaultFormat(QSettings.Format.IniFormat)
        QSettings.setPath(QSettings.Format.IniFormat, QSettings.Scope.UserScope, self.temporaryPath)
        self.majorVersion, self.minorVersion, self.revision = 5, 12, "standin"
        self.applicationVersion = "5.12.0-standin"
        self.documentationBaseUrl = DOCUMENTATION
        self.testing = False  # as for a user: errors are displayed, here into slicer_standin.dialogs
        for folder in ("settings", "data"):
            os.makedirs(os.path.join(self.temporaryPath, folder), exist_ok=True)

    def applicationLogic(self):
        return self._logic

    def mrmlScene(self):
        return self._scene

    def ioManager(self):
        return self._files

    coreIOManager = ioManager

    def moduleManager(self):
        return self._modules

    def settings(self):
        return QSettings()

    userSettings = revisionUserSettings = settings

    def testingEnabled(self):
        return self.testing

    def layoutManager(self):
        """The slice and 3-D views."""
        return self._views

    def show_views(self, size_px: tuple[int, int]):
        """Makes the views; needs `slicer.app`."""
        from slicer_standin.views import LayoutManager

        self._views = LayoutManager(size_px)

    def setRenderPaused(self, paused):
        """Nothing to pause."""

    def pauseRender(self):
        """Nothing to pause."""

    def resumeRender(self):
        """Nothing was paused."""

    def restart(self):
        raise RuntimeError("the module restarts Slicer")

    def moduleDocumentationUrl(self, name):
        return self.documentationBaseUrl + name

    def startupEnvironment(self):
        return QProcessEnvironment.systemEnvironment()

    environment = startupEnvironment

    def translate(self, context, text):
        return QCoreApplication.translate(context, text)
