"""AnnotateTab: choose scans and teachers, annotate, and review what came out."""

import itertools
import os
import time
from dataclasses import replace
from pathlib import Path

import slicer
from slicer.i18n import tr as _

from KnowledgeTransferLib.records import reviews
from KnowledgeTransferLib.records.progress import explain
from KnowledgeTransferLib.records.run_directory import RunDirectory, read_json
from KnowledgeTransferLib.records.settings import read_settings

from . import Edits, SceneIO
from .Controls import allOrNone, check, onPath, setCell, setPath, stretch
from .SceneRuns import DRAWN, SCANS, SCENE, closeReviewed, openedOf, unlink
from .Teachers import Teachers
from .Words import inWordsOfThePanel

UNREADABLE = (ValueError, OSError, KeyError, TypeError)  # what reading a damaged file of a run raises


class AnnotateTab:
    """The first tab. Which case a segmentation in the scene annotates, its attributes tell (`SceneRuns.link`)."""

    def __init__(self, panel):
        self.panel, self.ui, self.logic = panel, panel.ui, panel.logic
        self.shown = None  # the run whose cases the table shows
        self.rows = []  # states of the cases, as the table shows them
        self.teachers = Teachers(panel)
        ui = self.ui
        self.aboutSaving = ui.saveCorrectionButton.toolTip
        ui.annotateSceneRadio.connect("toggled(bool)", self.onFrom)
        ui.annotateVolumesSelector.connect("checkedNodesChanged()", self.onVolumes)
        ui.annotateAllButton.connect(
            "clicked()", lambda: panel.change(annotateVolumes=allOrNone(ui.annotateVolumesSelector))
        )
        onPath(ui.annotateCohortPath, lambda path: panel.change(annotateCohort=path))
        ui.teachersTable.connect("itemSelectionChanged()", self.updateButtons)
        ui.annotateButton.connect("clicked()", self.onAnnotate)
        ui.casesTable.connect("itemSelectionChanged()", self.updateButtons)
        ui.casesTable.connect("cellDoubleClicked(int,int)", lambda row, column: self.onReview())
        ui.reviewButton.connect("clicked()", self.onReview)
        ui.acceptButton.connect("clicked()", lambda: self.onVerdict("accepted"))
        ui.rejectButton.connect("clicked()", lambda: self.onVerdict("rejected"))
        ui.saveCorrectionButton.connect("clicked()", self.onSaveCorrection)
        ui.discardCorrectionButton.connect("clicked()", self.onDiscardCorrection)
        stretch(ui.casesTable, 0)

    def connected(self):
        """The widgets were connected with a parameter node."""

    def sceneCloses(self):
        """What is open for review is known by the scene alone."""

    def update(self, parameters):
        """Let the widgets follow the parameter node."""
        scene = parameters.annotateFrom == "scene"
        self.ui.annotateSceneRadio.checked = scene
        self.ui.annotateCohortRadio.checked = not scene
        self.ui.annotateVolumesSelector.enabled = self.ui.annotateAllButton.enabled = scene
        for name in ("annotateCohortPath", "annotateFolderButton", "annotateFileButton"):
            getattr(self.ui, name).enabled = not scene
        check(self.ui.annotateVolumesSelector, parameters.annotateVolumes)
        setPath(self.ui.annotateCohortPath, parameters.annotateCohort)
        self.teachers.show(parameters)
        if self.run() != self.shown:
            self.showCases()
        self.updateButtons()

    def updateButtons(self):
        parameters, ui = self.panel.parameters, self.ui
        if parameters is None:
            return
        given = parameters.annotateVolumes if parameters.annotateFrom == "scene" else parameters.annotateCohort
        busy = self.panel.jobOf("annotate") is not None
        ui.annotateButton.enabled = bool(given) and bool(parameters.teacherPaths) and not busy
        ui.annotateButton.toolTip = self._whatIsMissing(bool(given), bool(parameters.teacherPaths), busy)
        ui.removeTeacherButton.enabled = ui.lookAgainButton.enabled = ui.teachersTable.currentRow() >= 0
        self._updateReview(ui, self.chosen())

    def _updateReview(self, ui, case):
        there = case is not None and self.rows[self._rowOf(case)].annotation is not None
        ui.reviewButton.enabled = ui.acceptButton.enabled = ui.rejectButton.enabled = there
        opened = there and self._opened(case) is not None
        ui.saveCorrectionButton.enabled = opened
        first = _("Choose a case and press Load for review first; then edit its segmentation with Segment Editor")
        ui.saveCorrectionButton.toolTip = self.aboutSaving if opened else first
        corrected = case is not None and RunDirectory(self.shown).corrected_annotation(case).is_file()
        ui.discardCorrectionButton.enabled = corrected

    def run(self):
        """The run directory that this tab works in; None before it has a name."""
        name = self._runName() if self.panel.parameters else ""
        return self.panel.workingFolder / name if name else None

    def _runName(self):
        """As typed, without what no folder's name may hold; a run that is there, of a shell, keeps what it holds."""
        name = self.panel.parameters.annotateRunName.strip()
        return name if name in {run.name for run in self.panel.distilTab.runs} else SceneIO.fileName(name)

    def chosen(self):
        """The id of the case that is selected in the table."""
        row = self.ui.casesTable.currentRow()
        return self.rows[row].id if 0 <= row < len(self.rows) else None

    def onFrom(self, scene):
        self.panel.change(annotateFrom="scene" if scene else "disk")

    def onVolumes(self):
        self.panel.change(annotateVolumes=list(self.ui.annotateVolumesSelector.checkedNodes()))

    def addTeacher(self, path):
        self.teachers.add(path)

    def onAnnotate(self):
        self.teachers.takeTyped()
        parameters = self.panel.parameters
        teachers = dict(zip(parameters.teacherPaths, parameters.teacherWeights, strict=False))
        options = {
            "uncertainty": parameters.uncertainty, "probabilities": parameters.probabilities,
            "device": parameters.device,
        }  # fmt: skip
        with self.panel.messages():
            parameters.annotateRunName = self._runNameFor(self._runName(), teachers)
            if not RunDirectory(self.run()).annotations.is_file():
                unlink(RunDirectory(self.run()))  # of an earlier run of this name that is gone
            if parameters.annotateFrom == "scene":
                job = self.logic.annotate(list(parameters.annotateVolumes), teachers, self.run(), **options)
            else:
                job = self.logic.annotateCohort(parameters.annotateCohort, teachers, self.run(), **options)
            self.watch(job)
            self.panel.follow(job)
            parameters.distilRun = str(self.run())
            self.showCases()

    def watch(self, job):
        """Show in the table of cases what becomes of them."""
        job.onEvent.append(self._onEvent)
        job.onFinished.append(self._onFinished)

    def _runNameFor(self, name, teachers):
        """A run keeps its teachers and its cohort: with others, the next free name; without a name, day and time."""
        if not name:
            return time.strftime("run %Y-%m-%d %H.%M")
        for number in itertools.count(1):
            tried = name if number == 1 else f"{name} {number}"
            run = RunDirectory(self.panel.workingFolder / tried)
            known = {t["path"]: t["weight"] for t in read_settings(run, "annotate").get("teachers", ())}
            wanted = {str(run.path / DRAWN if path == SCENE else path): weight for path, weight in teachers.items()}
            if not run.annotations.is_file() or (known == wanted and self._isOfThisCohort(run)):
                return tried

    def _isOfThisCohort(self, run):
        """In another folder a file of the same name is another patient's; what was decided here is not for it."""
        parameters = self.panel.parameters
        chosen = run.path / SCANS if parameters.annotateFrom == "scene" else parameters.annotateCohort
        known = read_json(run.cohort).get("source", "") if run.cohort.is_file() else ""
        return Path(known) == Path(os.path.abspath(chosen))

    def onReview(self):
        case = self.chosen()
        if case is None:
            return
        with self.panel.messages():
            volume, segmentation = self._opened(case) or self._loaded(case)
            uncertainty = SceneIO.uncertaintyOf(volume)
            slicer.util.setSliceViewerLayers(
                background=volume, foreground=uncertainty, foregroundOpacity=SceneIO.OVERLAY, fit=True
            )
            for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"):
                node.SetDisplayVisibility(node is segmentation)
        self.updateButtons()

    def _loaded(self, case):
        """One case after the other would fill the memory."""
        parameters = self.panel.parameters
        closeReviewed([*parameters.annotateVolumes, *parameters.segmentVolumes])
        return self.logic.loadForReview(self.shown, case)

    def onVerdict(self, verdict):
        case = self.chosen()
        with self.panel.messages():
            takenBack = reviews.read_reviews(RunDirectory(self.shown)).get(case) == verdict
            if verdict == "accepted" and not takenBack and self._wantsEditsSaved(case):
                self.onSaveCorrection()
                return
            reviews.write_review(RunDirectory(self.shown), case, None if takenBack else verdict)
        self.showCases(case)

    def _wantsEditsSaved(self, case):
        """Edits that stay in the scene alone are not learnt, which who accepts the case may not expect."""
        opened = self._opened(case)
        if opened is None or Edits.isAsInFile(opened[1]):
            return False
        question = _(
            "{case}: you edited its segmentation. Save your changes as the correction? With No, the annotation is "
            "accepted as it was before, and your changes stay in the scene alone."
        ).format(case=case)
        return slicer.util.confirmYesNoDisplay(question, windowTitle="KnowledgeTransfer")

    def onSaveCorrection(self):
        case = self.chosen()
        with self.panel.messages():
            opened = self._opened(case)
            if opened is None:  # it left the scene meanwhile
                raise ValueError(_("{case}: press Load for review first").format(case=case))
            volume, segmentation = opened
            hint = self.logic.saveCorrection(self.shown, case, segmentation, volume)
            saved = _("{case}: correction saved; the student learns it").format(case=case)
            self.panel.status.say(f"{saved}. {hint}" if hint else saved)
        self.showCases(case)

    def onDiscardCorrection(self):
        run, case = RunDirectory(self.shown), self.chosen()
        question = _(
            "Discard your correction of {case}? The student then learns the teachers' annotation instead. "
            "The file of the correction is kept in the run's folder."
        ).format(case=case)
        if not slicer.util.confirmYesNoDisplay(question, windowTitle="KnowledgeTransfer"):
            return
        with self.panel.messages():
            kept = self.logic.discardCorrection(run.path, case)
            unlink(run, case)
            self.panel.status.say(_("{case}: correction discarded; it is kept as {kept}").format(case=case, kept=kept))
        self.showCases(case)

    def showCases(self, chosen=None):
        """Fill the table of cases anew: the least sure ones first, since they need a look most."""
        self.shown = self.run()
        states = sorted(self._states(), key=lambda state: (state.confidence is None, state.confidence))
        self.rows = states
        self.ui.casesTable.setRowCount(len(states))
        for row, state in enumerate(states):
            self._showCase(row, state)
        row = self._rowOf(chosen)
        if row is not None:
            self.ui.casesTable.selectRow(row)
        self.updateButtons()

    def _states(self):
        try:
            there = self.shown is not None and self.shown.is_dir()
            states = reviews.case_states(RunDirectory(self.shown)) if there else []
        except UNREADABLE as error:
            text = _("{run}: its cases cannot be shown: {reason}")
            self.panel.status.say(text.format(run=self.shown.name, reason=explain(error)))
            return []
        return [replace(state, message=inWordsOfThePanel(state.message)) for state in states]

    def _rowOf(self, case):
        return next((row for row, state in enumerate(self.rows) if state.id == case), None)

    def _showCase(self, row, state):
        confidence = "" if state.confidence is None else f"{state.confidence:.2f}"
        for column, text in enumerate((state.id, state.state, confidence)):
            setCell(self.ui.casesTable, row, column, text, state.message or text)

    def _opened(self, case):
        """The scan and the segmentation of a case that are in the scene, or None."""
        return openedOf(RunDirectory(self.shown), case)

    def _onEvent(self, event):
        row = self._rowOf(event.get("case"))
        if event["event"] == "stage":
            self.showCases(self.chosen())  # the run's cases are known now
        elif row is not None and event["event"] == "case":
            news = {"state": "annotated", "confidence": event.get("confidence"), "annotation": Path(event["file"])}
            self._showNews(row, news)
        elif row is not None and event["event"] == "problem":
            self._showNews(row, {"state": "failed", "message": event.get("text", "")})

    def _showNews(self, row, news):
        self.rows[row] = replace(self.rows[row], **news)
        self._showCase(row, self.rows[row])

    def _onFinished(self, job):
        self.showCases(self.chosen())
        self.panel.distilTab.showRuns()
        self.panel.showError(job)

    def _whatIsMissing(self, given, taught, busy):
        if busy:
            return _("The teachers are at work")
        if not given:
            return _("Choose the scans first")
        return _("Let the teachers annotate the scans") if taught else _("Add a teacher first")
