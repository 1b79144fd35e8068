"""Status: the area that is always there: what runs, how long it will take, what it said, and Cancel."""

import qt
from slicer.i18n import tr as _

from .Logic import endOf


class Status:
    """Shows one job at a time; another job goes on unseen and is found in the table of runs."""

    def __init__(self, ui):
        self.ui = ui
        self.job = None
        self._stage = ""
        ui.cancelButton.connect("clicked()", self.onCancel)
        ui.openRunFolderButton.connect("clicked()", self.onOpenFolder)
        self._showRunning(False)
        self.say(_("Ready."))

    def follow(self, job):
        self.job = job
        self._stage = ""
        self.ui.logText.plainText = ""
        self.ui.progressBar.maximum = 0  # busy, until the library says how much there is to do
        self.say(_("{step}: starting").format(step=job.step.capitalize()))
        for hint in getattr(job, "hints", []):
            self.log(hint)
        job.onEvent.append(lambda event: self._onEvent(job, event))
        job.onFinished.append(self._onFinished)
        self._showRunning(True)

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
            qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(self.job.run.path)))

    def _onEvent(self, job, event):
        if job is not self.job:
            return
        kind = event["event"]
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
        parts = [f"{self.job.step.capitalize()}: {event.get('name', '')}", event.get("text", "")]
        if event["event"] == "progress" and total:
            parts.append(_("{time} left").format(time=duration(event.get("time_left_s") or 0)))
        self.say(", ".join(part for part in parts if part))

    def _onFinished(self, job):
        if job is self.job:
            self._showRunning(False)
            self.say(endOf(job))
            self.log(endOf(job))

    def _showRunning(self, running):
        self.ui.cancelButton.enabled = running
        self.ui.progressBar.visible = running
        self.ui.openRunFolderButton.enabled = self.job is not None


def metricsText(event):
    dice = event.get("validation_dice")
    text = f"epoch {event.get('epoch')}: loss {event.get('loss') or 0:.4f}"
    return text if dice is None else f"{text}, Dice {dice:.4f}"


def duration(seconds):
    """3725 -> "1 h 2 min"; what a person wants to know of a waiting time."""
    seconds = int(seconds + 0.5)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"
