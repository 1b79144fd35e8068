"""Widget: the panel. It connects the .ui to the three tabs, and shows in the status area what the library does."""

import contextlib
import sys
import time
from pathlib import Path

import qt
import slicer
import vtk
from slicer.i18n import tr as _
from slicer.ScriptedLoadableModule import ScriptedLoadableModuleWidget
from slicer.util import VTKObservationMixin

from KnowledgeTransferLib.records.progress import explain

from . import Edits, Requirements
from .AnnotateTab import AnnotateTab
from .Controls import onPath, setTexts
from .DistilTab import DistilTab
from .Exporting import ExportStopped, inADialog
from .Jobs import DONE, STOPPED
from .Logic import KnowledgeTransferLogic, removeStaleFolders
from .ParameterNode import DEVICES
from .SegmentTab import SegmentTab
from .Status import Status, endOf
from .Words import inWordsOfThePanel

WORKING_FOLDER = "KnowledgeTransfer/WorkingFolder"  # in Slicer's application settings
DEVICE = "KnowledgeTransfer/Device"
STOP_WITH_SLICER = "KnowledgeTransfer/StopRunsWithSlicer"
REFRESH_MS = 2000
LONGEST_REFRESH_MS = 60_000
REFRESH_SHARE = 0.05  # of Slicer's time: from looks of 100 ms on, they become rarer


class KnowledgeTransferWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """What Slicer shows of the module."""

    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self.ui = None
        self.tabs = []
        self.parameters = None
        self._guiTag = None
        self._updating = False

    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        panel = slicer.util.loadUI(self.resourcePath("UI/KnowledgeTransfer.ui"))
        self.layout.addWidget(panel)
        self.ui = slicer.util.childWidgetVariables(panel)
        panel.setMRMLScene(slicer.mrmlScene)
        self.logic = KnowledgeTransferLogic(exporting=inADialog)
        self.status = Status(self.ui)
        self.annotateTab, self.distilTab, self.segmentTab = AnnotateTab(self), DistilTab(self), SegmentTab(self)
        self.tabs = [self.annotateTab, self.distilTab, self.segmentTab]
        self._restoreSettings()
        onPath(self.ui.workingFolderPath, self.onWorkingFolder)
        self.ui.deviceSelector.connect("activated(int)", self.onDevice)  # by the user alone
        self.ui.stopWithSlicerCheckBox.connect("toggled(bool)", self.onStopWithSlicer)
        self.ui.installButton.connect("clicked()", self.onInstall)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndImportEvent, self.onSceneEndImport)
        self._refreshTimer = qt.QTimer()
        self._refreshTimer.setInterval(REFRESH_MS)
        self._refreshTimer.connect("timeout()", self.refresh)
        Edits.watchImported(trusted=False)
        self.initializeParameterNode()
        self.showRequirements()
        removeStaleFolders()

    def cleanup(self):
        """Slicer ends, or the module is loaded anew: runs go on unless the user chose otherwise."""
        self._refreshTimer.stop()
        stop = self.ui.stopWithSlicerCheckBox.checked
        self.setParameterNode(None)
        self.removeObservers()
        self.logic.close(stop)

    def onReload(self):
        """Developers load the module anew: its packages, too."""
        for name in [n for n in sys.modules if n.split(".")[0] in ("KnowledgeTransferSlicer", "KnowledgeTransferLib")]:
            del sys.modules[name]
        ScriptedLoadableModuleWidget.onReload(self)

    def enter(self):
        """The user opens the module: show where things stand, also of runs that another Slicer started."""
        self.initializeParameterNode()
        self.showRequirements()
        self._refreshTimer.start()
        self.distilTab.showRuns()
        self.annotateTab.showCases()
        self.segmentTab.lookAgain()
        self._followWhatRuns()

    def exit(self):
        self._refreshTimer.stop()

    def refresh(self):
        """Look at the runs again; less often where that takes long, as with many runs on a network drive."""
        began = time.monotonic()
        self.distilTab.showRuns()
        self._refreshTimer.setInterval(refreshAfterMs(time.monotonic() - began))

    def onSceneStartClose(self, caller=None, event=None):
        self.setParameterNode(None)
        for tab in self.tabs:
            tab.sceneCloses()

    def onSceneEndClose(self, caller=None, event=None):
        if self.parent.isEntered:
            self.initializeParameterNode()

    def onSceneEndImport(self, caller=None, event=None):
        Edits.watchImported(trusted=True)
        self.onSceneEndClose()

    def initializeParameterNode(self):
        self.setParameterNode(self.logic.getParameterNode())
        device = slicer.app.settings().value(DEVICE)
        if device and self.parameters.device == "auto":
            self.parameters.device = str(device)

    def setParameterNode(self, parameters):
        """Connect the widgets with the scene's parameter node; None when there is none."""
        if self.parameters:
            self.parameters.disconnectGui(self._guiTag)
            self.removeObserver(self.parameters, vtk.vtkCommand.ModifiedEvent, self.onParameters)
        self.parameters = parameters
        if parameters:
            self._guiTag = parameters.connectGui(self.ui)
            graphics = (_("NVIDIA graphics card (cuda)"), _("Apple graphics (mps)"))
            setTexts(self.ui.deviceSelector, (_("Automatic"), *graphics, _("Processor (cpu)")))
            for tab in self.tabs:
                tab.connected()
            self.addObserver(parameters, vtk.vtkCommand.ModifiedEvent, self.onParameters)
            self.onParameters()

    def onParameters(self, caller=None, event=None):
        """Something was set, by the user or by a script: let the widgets that Slicer does not connect follow."""
        if self.parameters is None or self._updating:
            return
        self._updating = True
        try:
            for tab in self.tabs:
                tab.update(self.parameters)
        finally:
            self._updating = False

    def change(self, **values):
        """Set parameters on the user's behalf, unless the widgets are just being set from the parameters."""
        if self.parameters is not None and not self._updating:
            for name, value in values.items():
                setattr(self.parameters, name, value)

    @property
    def workingFolder(self):
        path = self.ui.workingFolderPath.currentPath
        return Path(path) if path else Path.home() / "KnowledgeTransfer"

    @contextlib.contextmanager
    def messages(self):
        """Show what is in the way of the user's wish in a dialog, instead of a traceback."""
        try:
            yield
        except ExportStopped as stop:
            self.status.say(str(stop))
        except (ValueError, OSError, RuntimeError) as error:
            text = inWordsOfThePanel(explain(error))
            self.status.say(text)
            slicer.util.errorDisplay(text, windowTitle="KnowledgeTransfer")

    def showError(self, job):
        """Tell in a dialog why a job failed; later, so that nothing waits for the user's OK."""
        if job.status not in (*DONE, STOPPED):
            text = endOf(job)
            qt.QTimer.singleShot(0, lambda: slicer.util.errorDisplay(text, windowTitle="KnowledgeTransfer"))

    def follow(self, job):
        """Show a job in the status area and let the tabs know of its events."""
        self.status.follow(job)
        if self.updateButtons not in job.onFinished:
            job.onFinished.append(self.updateButtons)
        self.updateButtons()

    def updateButtons(self, job=None):
        if self.parameters is not None:
            for tab in self.tabs:
                tab.updateButtons()

    def jobOf(self, step):
        """The job of that step which this Slicer follows, or None."""
        return next((job for job in self.logic.library.jobs if job.step == step), None)

    def onWorkingFolder(self, path):
        slicer.app.settings().setValue(WORKING_FOLDER, path)
        self.distilTab.showRuns()
        self.annotateTab.showCases()

    def onDevice(self, index):
        slicer.app.settings().setValue(DEVICE, DEVICES[index])

    def onStopWithSlicer(self, stop):
        slicer.app.settings().setValue(STOP_WITH_SLICER, "true" if stop else "false")

    def onInstall(self):
        self.ui.installButton.enabled = False
        with self.messages():
            self.install()
        self.ui.installButton.enabled = True

    def install(self, also=()):
        """Install what is missing, after asking; `also`: what only some teachers need. Raises RequirementsError."""
        if not Requirements.missing(also):
            return
        self.status.say(_("Packages are being installed; Slicer may stand still for some minutes"))
        try:
            Requirements.ensure(also=also)
            self.status.say(_("The packages are installed"))
        finally:
            self.showRequirements()
            self.annotateTab.teachers.lookAgain()

    def showRequirements(self):
        packages, reason = Requirements.missing(), Requirements.impossible()
        self.ui.requirementsFrame.visible = bool(packages)
        self.ui.installButton.visible = not reason
        self.ui.requirementsLabel.text = reason or _(
            "Needed and not installed yet: {packages}. Runs can be looked at and reviewed without; to annotate, distil "
            "or segment, install them (once, needs the internet)."
        ).format(packages=", ".join(packages))

    def _restoreSettings(self):
        folder = slicer.app.settings().value(WORKING_FOLDER) or str(Path.home() / "KnowledgeTransfer")
        self.ui.workingFolderPath.currentPath = str(folder)
        self.ui.stopWithSlicerCheckBox.checked = str(slicer.app.settings().value(STOP_WITH_SLICER)).lower() == "true"

    def _followWhatRuns(self):
        """Take up the newest run of the working folder that is going on, so that reopening Slicer finds it."""
        if self.status.job is not None and self.status.job.running:
            return
        running = next((state for state in self.distilTab.runs if state.state == "running"), None)
        if running is not None:
            self.distilTab.followRun(running.path)


def refreshAfterMs(lookS):
    """How long to wait after a look at the runs that took so many seconds."""
    return int(min(max(REFRESH_MS, 1000 * lookS / REFRESH_SHARE), LONGEST_REFRESH_MS))
