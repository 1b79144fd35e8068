"""DistilTab: settings of a distillation, its curves while it runs, and the runs of the working folder."""

from pathlib import Path

from slicer.i18n import tr as _

from KnowledgeTransferLib.records.jobs import runs_in
from KnowledgeTransferLib.records.run_directory import RunDirectory, read_json
from KnowledgeTransferLib.records.settings import NONE
from KnowledgeTransferLib.records.students import STUDENTS

from .ChildProcess import eventOf
from .Controls import onPath, setCell, setPath, setTexts, stretch
from .Curves import Curves
from .Jobs import DONE, AttachedJob
from .Logic import GO_ON
from .Status import duration
from .Words import inWordsOfThePanel

STOPPED_STATES = ("interrupted", "cancelled", "failed")


class DistilTab:
    """The second tab."""

    def __init__(self, panel):
        self.panel, self.ui, self.logic = panel, panel.ui, panel.logic
        self.curves = Curves(self.ui.plotWidget)
        self.runs = []
        self.watched = []  # jobs that tell this tab their events
        self.drawn = None  # the job whose curves are shown
        ui = self.ui
        onPath(ui.distilRunPath, lambda path: panel.change(distilRun=path))
        onPath(ui.expertCohortPath, lambda path: panel.change(expertCohort=path))
        onPath(ui.startFromPath, lambda path: panel.change(startFrom=path))
        ui.distilButton.connect("clicked()", self.onDistil)
        ui.runsTable.connect("itemSelectionChanged()", self.updateButtons)
        ui.runsTable.connect("cellDoubleClicked(int,int)", lambda row, column: self.onFollow())
        ui.followRunButton.connect("clicked()", self.onFollow)
        ui.continueRunButton.connect("clicked()", self.onContinue)
        ui.stopRunButton.connect("clicked()", self.onStop)
        ui.reviewRunButton.connect("clicked()", self.onReviewRun)
        ui.useStudentButton.connect("clicked()", self.onUseStudent)
        stretch(ui.runsTable, 0)

    def connected(self):
        setTexts(self.ui.learnFromSelector, (_("Teachers' annotations"), _("Expert annotations"), _("Both")))
        setTexts(self.ui.lengthSelector, (_("Automatic"), _("Time budget"), _("Epochs")))
        setTexts(self.ui.decisionSelector, (_("Where the best Dice is expected"), _("Where it is most probable")))

    def sceneCloses(self):
        self.curves.sceneCloses()

    def update(self, parameters):
        """Let the widgets follow the parameter node."""
        ui, expert = self.ui, parameters.learnFrom != "pseudo"
        setPath(ui.distilRunPath, parameters.distilRun)
        setPath(ui.expertCohortPath, parameters.expertCohort)
        setPath(ui.startFromPath, parameters.startFrom)
        ui.studentSentence.text = STUDENTS[parameters.student].sentence
        ui.minutesSpinBox.visible = parameters.lengthBy == "minutes"
        ui.epochsSpinBox.visible = parameters.lengthBy == "epochs"
        for widget in (ui.expertCohortPath, ui.expertFolderButton, ui.expertFileButton):
            widget.enabled = expert
        self.updateButtons()

    def updateButtons(self):
        parameters, ui = self.panel.parameters, self.ui
        if parameters is None:
            return
        busy = self._busy(parameters.distilRun)
        ui.distilButton.enabled = bool(parameters.distilRun) and not busy
        ui.distilButton.toolTip = (
            _("A job works in this run; it can be followed below") if busy
            else _("Train the student; a training that was stopped goes on where it was") if parameters.distilRun
            else _("Choose a run first: the one that you annotated, or an empty folder for expert annotations")
        )  # fmt: skip
        run = self.chosen()
        ui.followRunButton.enabled = run is not None
        at_work = run is not None and self._busy(run.path)
        ui.continueRunButton.enabled = canGoOn(run) and not at_work
        ui.continueRunButton.toolTip = whatContinueDoes(run, at_work)
        ui.stopRunButton.enabled = run is not None and run.state == "running"
        ui.reviewRunButton.enabled = run is not None and run.has_annotations
        ui.useStudentButton.enabled = run is not None and run.has_student

    def chosen(self):
        row = self.ui.runsTable.currentRow()
        return self.runs[row] if 0 <= row < len(self.runs) else None

    def settings(self):
        """The settings of the training that the user chose; the library chooses the others from the cohort."""
        p = self.panel.parameters
        chosen = {"student": p.student, "annotations": p.learnFrom, "soft": p.soft, "seed": p.seed, "device": p.device}
        chosen["decision"] = p.decision
        chosen["start_from"] = p.startFrom or NONE
        if p.startFrom:
            del chosen["student"]  # it is that of the bundle
        if p.lengthBy == "minutes":
            return {**chosen, "minutes": p.minutes}
        if p.lengthBy == "epochs":
            return {**chosen, "epochs": p.epochs}
        return {**chosen, "minutes": NONE, "epochs": NONE}

    def onDistil(self):
        p = self.panel.parameters
        with self.panel.messages():
            if RunDirectory(p.distilRun).training.is_file() and not self.ui.restartCheckBox.checked:
                raise ValueError(_("This run has its student; check Begin anew (under Advanced) or choose another run"))
            cohort = p.expertCohort if p.learnFrom != "pseudo" and p.expertCohort else None
            job = self.logic.distil(p.distilRun, cohort, self.ui.restartCheckBox.checked, **self.settings())
            self.ui.restartCheckBox.checked = False
            self._watch(job)

    def followRun(self, path):
        """Show a run: live while it goes on, else the curves that it left."""
        run = RunDirectory(path)
        state = next((state for state in self.runs if state.path == run.path), None)
        if state is not None and state.state == "running":
            self._watch(self.logic.attach(path))
            return
        self.drawn = None
        self.curves.show(historyOf(run, state))
        if state is not None:
            words = "; ".join(filter(None, (state.state, textOf(state))))
            self.panel.status.say(f"{run.path.name}: {words}")

    def onFollow(self):
        if self.chosen() is not None:
            with self.panel.messages():
                self.followRun(self.chosen().path)

    def onContinue(self):
        """Go on with a run that was stopped, whoever began it; its own settings count, not those shown above."""
        run = self.chosen()
        if canGoOn(run):
            with self.panel.messages():
                job = self.logic.goOn(run.path)
                self.panel.change(distilRun=str(run.path))
                if job.step == "annotate":
                    self.panel.change(annotateRunName=run.name)
                self._watch(job)

    def onStop(self):
        """Stop a run, whoever started it; what is done is kept."""
        if self.chosen() is not None:
            with self.panel.messages():
                self.logic.attach(self.chosen().path).cancel()

    def onReviewRun(self):
        """Show a run's cases in the first tab, to go on with their review."""
        if self.chosen() is not None:
            self.panel.change(annotateRunName=self.chosen().name, distilRun=str(self.chosen().path))
            self.ui.tabs.setCurrentIndex(0)

    def onUseStudent(self):
        if self.chosen() is not None:
            self.panel.segmentTab.choose(str(RunDirectory(self.chosen().path).student))
            self.ui.tabs.setCurrentIndex(2)

    def showRuns(self):
        """Fill the table with the runs of the working folder, also those of another Slicer or a shell."""
        chosen = self.chosen()
        self.runs = runs_in(self.panel.workingFolder)
        table = self.ui.runsTable
        if table.rowCount != len(self.runs):
            table.setRowCount(len(self.runs))
        for row, run in enumerate(self.runs):
            progress = f"{100 * run.done // run.total} %" if run.total else ""
            left = duration(run.time_left_s) if run.state == "running" and run.time_left_s is not None else ""
            for column, text in enumerate((run.name, run.step, run.state, progress, left)):
                setCell(table, row, column, text, textOf(run) or str(run.path))
            if chosen is not None and run.path == chosen.path and table.currentRow() != row:
                table.selectRow(row)
        self.updateButtons()

    def _busy(self, path):
        if not path:
            return False
        own = self.logic.library.jobIn(path)
        return own is not None or any(r.state == "running" and r.path == Path(path) for r in self.runs)

    def _watch(self, job):
        """Follow a job in the status area and in the plot; a job is connected once."""
        state = next((state for state in self.runs if state.path == job.run.path), None)
        self.drawn = job
        self.curves.show(historyOf(job.run, state) if isinstance(job, AttachedJob) or job in self.watched else [])
        if job not in self.watched:
            self.watched = [known for known in self.watched if known.running] + [job]
            job.onEvent.append(lambda event: self._onEvent(job, event))
            job.onFinished.append(self._onFinished)
            if job.step == "annotate" and job.run.path == self.panel.annotateTab.shown:
                self.panel.annotateTab.watch(job)
        self.panel.follow(job)
        self.showRuns()

    def _onEvent(self, job, event):
        if job is self.drawn and event["event"] == "metrics":
            self.curves.add(event)

    def _onFinished(self, job):
        self.showRuns()
        if job.step == "distil" and job.status in DONE:
            self.panel.segmentTab.choose(str(job.run.student))
        self.panel.showError(job)


def canGoOn(run):
    """Whether a run's latest step was stopped where it can go on."""
    return run is not None and run.step in GO_ON and run.state in STOPPED_STATES


def whatContinueDoes(run, at_work=False):
    """The tooltip of Continue: what it does, or why it cannot be pressed."""
    if run is None:
        return _("Select a run first")
    if at_work:
        return _("This run is at work; Follow shows it")
    if run.state not in STOPPED_STATES:
        return _("This run is done; nothing is left to go on with")
    if run.step not in GO_ON:
        return _("Only annotating and distilling can go on from here; begin {step} again").format(step=run.step)
    return _("Go on where this run was stopped, with the settings that it was begun with")


def textOf(run):
    """Why a run ended, or what it is at, in the panel's words."""
    text = inWordsOfThePanel(run.text)
    if not canGoOn(run) or run.state == "failed":  # there the reason says what to do
        return text
    text = _("the process ended without a word") if run.state == "interrupted" else text
    return "; ".join(filter(None, (text, _("press Continue to go on where it was"))))


def historyOf(run, state):
    """The rows of a training's curves: of a finished one its own list, else what it has told so far."""
    if run.training.is_file() and (state is None or state.state != "running"):
        return read_json(run.training).get("history", [])
    if state is None or not run.events.is_file():
        return []
    with open(run.events, "rb") as file:
        file.seek(state.events_begin)
        return [event for line in file if b'"metrics"' in line and (event := eventOf(line))["event"] == "metrics"]
