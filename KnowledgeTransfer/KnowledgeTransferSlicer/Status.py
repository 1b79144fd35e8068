"""Status: the area that is always there: what runs, how long it will take, what it said, and Cancel."""

import qt
from slicer.i18n import tr as _

from KnowledgeTransferLib.records.progress import STAGES

from .Jobs import DONE, STOPPED


class Status:
    """Shows one job at a time: the latest one; when it ends, the newest of those that still run."""

    def __init__(self, ui):
        self.ui = ui
        self.job = None
        self._known = {}  # jobs that tell this area their events -> the latest one that said how far they are
        ui.cancelButton.connect("clicked()", self.onCancel)
        ui.openRunFolderButton.connect("clicked()", self.onOpenFolder)
        self._showRunning(False)
        self.say(_("Ready."))

    def follow(self, job):
        self.job = job
        self.ui.logText.plainText = ""
        self.ui.progressBar.maximum = 0  # busy, until the library says how much there is to do
        self.say(_("{step}: starting").format(step=job.step.capitalize()))
        for hint in job.hints:
            self.log(hint)
        if job not in self._known:  # the user may come back to it
            self._known = {known: news for known, news in self._known.items() if known.running} | {job: None}
            job.onEvent.append(lambda event: self._onEvent(job, event))
            job.onFinished.append(self._onFinished)
        elif self._known[job]:
            self._showProgress(self._known[job])
        self._showRunning(job.running)

    def say(self, text):
        self.ui.statusLabel.text = text

    def log(self, text):
        self.ui.logText.appendPlainText(text)

    def onCancel(self):
        if self.job is not None and self.job.running:
            self.job.cancel()
            self.say(_("{step}: stopping; what is done is kept").format(step=self.job.step.capitalize()))
            self.ui.cancelButton.enabled = False

    def onOpenFolder(self):
        if self.job is not None:
            qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(self.job.folder)))

    def _onEvent(self, job, event):
        kind = event["event"]
        if kind in ("stage", "progress"):
            self._known[job] = event
        if job is not self.job:
            return
        if kind in ("stage", "progress") and job.cancelAsked is None:
            self._showProgress(event)
        elif kind in ("message", "warning", "error", "log"):
            self.log(event.get("text", ""))
        elif kind == "problem":
            self.log(f"{event.get('case', '')}: {event.get('text', '')}")
        elif kind == "metrics":
            self.log(metricsText(event))

    def _showProgress(self, event):
        done, total = event.get("done", 0), event.get("total", 0)
        self.ui.progressBar.maximum = total
        self.ui.progressBar.value = done
        name = event.get("name", "")
        parts = [f"{self.job.step.capitalize()}: {STAGES.get(name, name)}", event.get("text", "")]
        if event["event"] == "progress" and total:
            parts.append(_("{time} left").format(time=duration(event.get("time_left_s") or 0)))
        self.say(", ".join(part for part in parts if part))

    def _onFinished(self, job):
        if job is self.job:
            self._showRunning(False)
            self.say(endOf(job))
            self.log(endOf(job))
            self._followAnother(job)

    def _followAnother(self, ended):
        """A training that went on beside a short job is shown again, with how that one ended."""
        running = [known for known in self._known if known.running]
        if running:
            self.follow(running[-1])
            self.log(endOf(ended))
            step = self.job.step.capitalize()
            self.say(_("{end}. {step} goes on").format(end=endOf(ended), step=step))

    def _showRunning(self, running):
        self.ui.cancelButton.enabled = running and self.job.cancelAsked is None
        self.ui.progressBar.visible = running
        self.ui.openRunFolderButton.enabled = self.job is not None and self.job.folder.is_dir()


def metricsText(event):
    dice = event.get("validation_dice")
    text = _("epoch {epoch}: loss {loss}").format(epoch=event.get("epoch"), loss=f"{event.get('loss') or 0:.4f}")
    return text if dice is None else f"{text}, Dice {dice:.4f}"


def duration(seconds):
    """3725 -> "1 h 2 min"; what a person wants to know of a waiting time."""
    seconds = int(seconds + 0.5)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def endOf(job):
    """How a job ended, in a sentence for the status area."""
    step = job.step.capitalize()
    notes = "".join(f". {note}" for note in [*job.hints, *job.lost])
    if job.status == STOPPED and job.temporary:
        return _("{step}: stopped").format(step=step)
    if job.status == STOPPED:
        return _("{step}: stopped; press {step} again to go on from here").format(step=step)
    if job.status not in DONE:
        return f"{step}: {job.error}"
    if job.problems:
        first = "{case}: {message}".format(**job.problems[0])
        text = _("{step}: done, but {number} failed ({first})")
        return text.format(step=step, number=len(job.problems), first=first) + notes
    return _("{step}: done").format(step=step) + notes
