"""Teachers: the table of who annotates: adding, weighing, and finding out what each one segments."""

from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from KnowledgeTransferLib.records import bundle
from KnowledgeTransferLib.records.progress import explain

from . import Requirements
from .Controls import nameOf, setCell, stretch, structuresOf, without
from .Logic import TASK, packagesFor
from .SceneRuns import SCENE


class Teachers:
    """The group Teachers of the first tab; the parameter node holds their paths and weights."""

    def __init__(self, panel):
        self.panel, self.ui, self.logic = panel, panel.ui, panel.logic
        self.added = ""  # the teacher that the user added, or wanted looked at, last
        self.known = {}  # teacher path -> what it segments
        self.hints = {}  # teacher path -> what is good to know
        ui = self.ui
        ui.addTeacherFolderButton.connect("clicked()", self.onAddFolder)
        ui.addTeacherFileButton.connect("clicked()", self.onAddFile)
        ui.addTeacherTaskButton.connect("clicked()", self.onAddTask)
        ui.addTeacherSegmentationsButton.connect("clicked()", lambda: self.add(SCENE))
        ui.lookAgainButton.connect("clicked()", lambda: self.add(self.chosen()))
        ui.removeTeacherButton.connect("clicked()", self.onRemove)
        stretch(ui.teachersTable, 0, 1)

    def chosen(self):
        """The path of the teacher that is selected in the table."""
        row, paths = self.ui.teachersTable.currentRow(), self.panel.parameters.teacherPaths
        return paths[row] if 0 <= row < len(paths) else ""

    def onAddFolder(self):
        title = _("Teacher: a model's folder, or a folder of segmentations")
        self.add(qt.QFileDialog.getExistingDirectory(self.panel.parent, title, str(self.panel.workingFolder)))

    def onAddFile(self):
        title = _("Teacher: a model in one file")
        path = qt.QFileDialog.getOpenFileName(self.panel.parent, title, str(self.panel.workingFolder))
        self.add(path[0] if isinstance(path, tuple) else path)

    def onAddTask(self):
        """Which tasks there are, the package knows; the library asks it, since that takes a while."""
        with self.panel.messages():
            self.panel.install(packagesFor([TASK]))
            job = self.logic.describe(TASK)
            self.ui.addTeacherTaskButton.enabled = False
            self.panel.status.say(_("Asking TotalSegmentator for its tasks…"))
            job.onFinished.append(self._onTasks)

    def add(self, path):
        """Add a teacher; one that is in the table already is looked at again."""
        if not path:
            return
        parameters, weights = self.panel.parameters, list(self.panel.parameters.teacherWeights)
        self.known.pop(path, None)  # it may have changed
        self.added = path
        if path in parameters.teacherPaths:
            self.show(parameters)
        else:
            parameters.teacherPaths = [*parameters.teacherPaths, path]
            parameters.teacherWeights = [*weights, 1.0]

    def onRemove(self):
        row, parameters = self.ui.teachersTable.currentRow(), self.panel.parameters
        if 0 <= row < len(parameters.teacherPaths):
            parameters.teacherPaths = without(parameters.teacherPaths, row)
            parameters.teacherWeights = without(parameters.teacherWeights, row)

    def onWeight(self, row, value):
        weights = list(self.panel.parameters.teacherWeights)
        self.panel.change(teacherWeights=[*weights[:row], value, *weights[row + 1 :]])

    def takeTyped(self):
        """A weight that was typed without Enter; on macOS a press of a button does not take the focus from it."""
        for row in range(self.ui.teachersTable.rowCount):
            self.ui.teachersTable.cellWidget(row, 2).interpretText()

    def lookAgain(self):
        """At all of them: packages were installed."""
        self.known.clear()
        self.show(self.panel.parameters)

    def show(self, parameters):
        """Let the table follow the parameter node, if there is one."""
        if parameters is None:
            return
        table = self.ui.teachersTable
        table.setRowCount(len(parameters.teacherPaths))
        for row, path in enumerate(parameters.teacherPaths):
            setCell(table, row, 0, _nameOf(path), path)
            if path not in self.known:
                self._recognise(path)
            known, hint = self.known[path], self.hints.get(path, "")
            setCell(table, row, 1, known, f"{known}\n\n{hint}" if hint else known)
            weight = parameters.teacherWeights[row] if row < len(parameters.teacherWeights) else 1.0
            self._showWeight(row, weight)

    def _showWeight(self, row, weight):
        box = self.ui.teachersTable.cellWidget(row, 2)
        if box is None:
            box = qt.QDoubleSpinBox()
            box.setRange(0.01, 100)
            box.setSingleStep(0.5)
            box.setKeyboardTracking(False)
            box.toolTip = _("How much this teacher's opinion counts among several teachers")
            self.ui.teachersTable.setCellWidget(row, 2, box)
            box.connect("valueChanged(double)", lambda value, row=row: self.onWeight(row, value))
        blocked = box.blockSignals(True)
        if box.value != weight:  # else what is being typed would be written anew
            box.value = weight
        box.blockSignals(blocked)

    def _recognise(self, path):
        """Find out what a teacher segments: of a bundle at once, of other kinds the library tells."""
        self.known[path] = ""
        if path == SCENE:
            self.known[path] = _("what was drawn on the chosen volumes")
        elif not path.startswith(TASK) and bundle.is_bundle(bundle.bundle_in(path)):
            self.known[path] = structuresOf(path)
        elif Requirements.missing():
            self.known[path] = _("shown once the packages are installed")
        else:
            try:
                self.logic.describe(path).onFinished.append(lambda ended: self._onRecognised(path, ended))
                self.known[path] = _("looking…")
            except (OSError, RuntimeError) as error:  # such as a scene from another computer
                self.known[path] = explain(error)

    def _onRecognised(self, path, job):
        names = [structure["name"] for structure in job.result.get("structures", [])]
        self.hints[path] = job.result.get("hint", "")
        self.known[path] = ", ".join(names) if names else job.error
        risk, sidecar = job.result.get("risk"), job.failure.get("sidecar")
        if risk:
            self.known[path] = _("not trusted: {risk}").format(risk=risk)
            self._ask(path, lambda: self._askForTrust(path, risk))
        elif sidecar:
            self._onSidecar(path, Path(sidecar))
        self.show(self.panel.parameters)
        if job.error or (path == self.added and self.hints[path]):
            self.panel.status.say(self.known[path] if job.error else self.hints[path])

    def _ask(self, path, question):
        """Later, so that nothing waits for the answer; not about what a loaded scene brings."""
        if path == self.added:
            qt.QTimer.singleShot(0, question)

    def _askForTrust(self, path, risk):
        """Code of a teacher's author runs only after a yes to that very teacher."""
        question = _(
            "{path}:\n{risk}.\n\nOpening it could run whatever its author put there. Say yes only if you know where it "
            "comes from. The answer is remembered until its files change.\n\nTrust this teacher?"
        ).format(path=path, risk=risk)
        if slicer.util.confirmYesNoDisplay(question, windowTitle="KnowledgeTransfer"):
            with self.panel.messages():
                job = self.logic.describe(path, trust=True)
                job.onFinished.append(lambda ended: self._onRecognised(path, ended))

    def _onTasks(self, job):
        self.ui.addTeacherTaskButton.enabled = True
        if job.error:
            self.panel.showError(job)
        elif job.result:
            self.panel.status.say(_("Choose a task of TotalSegmentator"))
            qt.QTimer.singleShot(0, lambda: self._askForTask(job.result["tasks"]))

    def _askForTask(self, tasks):
        dialog = qt.QInputDialog(self.panel.parent)
        dialog.setWindowTitle(_("Teacher: a task of TotalSegmentator"))
        dialog.setLabelText(_("Choose a task or type its name. With :fast behind it, it is quicker and coarser."))
        dialog.setComboBoxItems(tasks)
        dialog.setComboBoxEditable(True)
        if dialog.exec_() and dialog.textValue().strip():
            self.add(TASK + dialog.textValue().strip().removeprefix(TASK))
        dialog.deleteLater()

    def _onSidecar(self, path, sidecar):
        """A bare network: a file beside it must say what it segments."""
        if not sidecar.is_file():
            what = _("does not tell its structures; press Look again to have {name} written beside it")
            self.known[path] = what.format(name=sidecar.name)
            self._ask(path, lambda: self._askForTemplate(path, sidecar))
        else:
            self._ask(path, lambda: self._askToOpen(sidecar, self.known[path]))

    def _askForTemplate(self, path, sidecar):
        question = _(
            "{path}:\nThis network does not tell its structures and what images it expects. A text file {name} beside "
            "it must say so.\n\nWrite one for you to fill in, and open it in your text editor?"
        ).format(path=path, name=sidecar.name)
        if slicer.util.confirmYesNoDisplay(question, windowTitle="KnowledgeTransfer"):
            with self.panel.messages():
                self.panel.install(packagesFor([path]))
                job = self.logic.describe(path, template=True)
                job.onFinished.append(lambda ended: self._onTemplate(path, ended))

    def _onTemplate(self, path, job):
        if job.error:
            self.panel.showError(job)
        else:
            self.known[path] = _("fill in {name}, then press Look again").format(name=Path(job.result["template"]).name)
            self.show(self.panel.parameters)
            self._open(job.result["template"])

    def _askToOpen(self, sidecar, wrong):
        question = _("{wrong}.\n\nOpen {name} in your text editor?").format(wrong=wrong, name=sidecar.name)
        if slicer.util.confirmYesNoDisplay(question, windowTitle="KnowledgeTransfer"):
            self._open(sidecar)

    def _open(self, sidecar):
        """Say what is to be filled in, wherever the file can be opened."""
        todo = _(
            "{file}: name the structures in the order of the network's output channels, correct voxel size, "
            "normalisation and patch, set filled_in to true and save it; then select the teacher and press Look again"
        ).format(file=sidecar)
        if not qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(sidecar))):
            todo = _("It could not be opened; please open it yourself. {todo}").format(todo=todo)
        self.panel.status.say(todo)


def _nameOf(path):
    if path.startswith(TASK):
        return f"TotalSegmentator {path.removeprefix(TASK)}"
    return _("Segmentations in the scene") if path == SCENE else nameOf(path)
