"""SegmentTab: choose a student, segment loaded volumes or a folder, look at the result and compare it."""

import os
import re
import time

import qt
import slicer
from slicer.i18n import tr as _

from KnowledgeTransferLib.records import bundle
from KnowledgeTransferLib.records.labels import Labels

from . import Edits, SceneIO
from .Controls import allOrNone, check, nameOf, onPath, setCell, setPath, stretch

RECENT = "KnowledgeTransfer/RecentStudents"  # in Slicer's application settings
MOST_RECENT = 10


class SegmentTab:
    """The third tab."""

    def __init__(self, panel):
        self.panel, self.ui, self.logic = panel, panel.ui, panel.logic
        self.recent = self._readRecent()
        self.card = None  # the student whose card is shown, and the date of its files
        self.compared = {}  # structure -> what `compare` found, for the segmentation that is shown
        self.comparedAt = 0  # the date of that segmentation then
        ui = self.ui
        ui.bundleSelector.connect("currentIndexChanged(int)", self.onBundle)
        ui.bundleBrowseButton.connect("clicked()", self.onBrowse)
        ui.segmentSceneRadio.connect("toggled(bool)", self.onFrom)
        ui.segmentVolumesSelector.connect("checkedNodesChanged()", self.onVolumes)
        ui.segmentAllButton.connect(
            "clicked()", lambda: panel.change(segmentVolumes=allOrNone(ui.segmentVolumesSelector))
        )
        onPath(ui.segmentFolderPath, lambda path: panel.change(segmentInput=path))
        onPath(ui.segmentOutputPath, lambda path: panel.change(segmentOutput=path))
        ui.segmentButton.connect("clicked()", self.onSegment)
        ui.resultSelector.connect("currentNodeChanged(vtkMRMLNode*)", self.onResult)
        ui.compareSelector.connect("currentNodeChanged(vtkMRMLNode*)", lambda node: self.updateButtons())
        ui.compareButton.connect("clicked()", self.onCompare)
        stretch(ui.volumesTable, 0)

    def connected(self):
        """The widgets were connected with a parameter node."""

    def sceneCloses(self):
        self.compared = {}

    def update(self, parameters):
        """Let the widgets follow the parameter node."""
        ui, scene = self.ui, parameters.segmentFrom == "scene"
        ui.segmentSceneRadio.checked = scene
        ui.segmentFolderRadio.checked = not scene
        ui.segmentVolumesSelector.enabled = ui.segmentAllButton.enabled = scene
        for name in ("segmentFolderPath", "segmentFolderButton", "segmentFileButton", "segmentOutputPath"):
            getattr(ui, name).enabled = not scene
        ui.overwriteCheckBox.enabled = not scene
        check(ui.segmentVolumesSelector, parameters.segmentVolumes)
        setPath(ui.segmentFolderPath, parameters.segmentInput)
        setPath(ui.segmentOutputPath, parameters.segmentOutput)
        self._showBundle(parameters.bundle)
        self.updateButtons()

    def updateButtons(self):
        p, ui = self.panel.parameters, self.ui
        if p is None:
            return
        given = p.segmentVolumes if p.segmentFrom == "scene" else p.segmentInput and p.segmentOutput
        busy = self.panel.jobOf("segment") is not None
        ui.segmentButton.enabled = bool(p.bundle) and bool(given) and not busy
        ui.segmentButton.toolTip = (
            _("The student is at work") if busy else _("Choose a student first") if not p.bundle
            else _("Segment with the student") if given
            else _("Choose the volumes first, or a folder and where to write to")
        )  # fmt: skip
        result, other = ui.resultSelector.currentNode(), ui.compareSelector.currentNode()
        ui.compareButton.enabled = None not in (result, other) and result is not other
        ui.show3DButton.enabled = result is not None

    def choose(self, path):
        """Choose a student; it becomes the first of the recent ones."""
        self.recent = [path, *(p for p in self.recent if p != path)][:MOST_RECENT]
        slicer.app.settings().setValue(RECENT, self.recent)
        self.panel.change(bundle=path)
        if self.panel.parameters is not None:
            self._showBundle(path)

    def onBundle(self, index):
        if 0 <= index < len(self.recent):
            self.panel.change(bundle=self.recent[index])

    def onBrowse(self):
        title = _("Student: its folder, or the run that made it")
        path = qt.QFileDialog.getExistingDirectory(self.panel.parent, title, str(self.panel.workingFolder))
        if path:
            self.choose(path)

    def onFrom(self, scene):
        self.panel.change(segmentFrom="scene" if scene else "disk")

    def onVolumes(self):
        self.panel.change(segmentVolumes=list(self.ui.segmentVolumesSelector.checkedNodes()))

    def onSegment(self):
        p = self.panel.parameters
        with self.panel.messages():
            if p.segmentFrom == "scene":
                job = self.logic.segment(list(p.segmentVolumes), p.bundle, device=p.device)
            else:
                run = self.panel.workingFolder / time.strftime("segment %Y-%m-%d %H.%M.%S")
                job = self.logic.segmentFiles(
                    p.segmentInput, p.bundle, p.segmentOutput, run, p.overwrite, device=p.device
                )
            self.choose(p.bundle)
            job.onFinished.append(self._onFinished)
            self.panel.follow(job)

    def onResult(self, node=None):
        node = self.ui.resultSelector.currentNode()
        self.compared = {}
        self.ui.show3DButton.setSegmentationNode(node)
        self._showTable(node)
        self.updateButtons()

    def lookAgain(self):
        """The user comes back, and may have edited the segmentation meanwhile."""
        node = self.ui.resultSelector.currentNode()
        if self.compared and (node is None or Edits.drawnAt(node) != self.comparedAt):
            self.compared = {}
        self._showTable(node)

    def onCompare(self):
        result, other = self.ui.resultSelector.currentNode(), self.ui.compareSelector.currentNode()
        with self.panel.messages():
            volume = SceneIO.referenceVolume(result)
            if volume is None:
                raise ValueError(_("{name}: the volume that it was made of is gone").format(name=result.GetName()))
            job = self.logic.compare(result, other, volume)
            job.onFinished.append(lambda ended: self._onCompared(result, ended))
            self.panel.follow(job)

    def _onFinished(self, job):
        if job.nodes and SceneIO.isInScene(job.nodes[-1]) and self.panel.parameters is not None:
            self.panel.parameters.result = job.nodes[-1]
        self.panel.showError(job)

    def _onCompared(self, result, job):
        if job.status == 0 and self.ui.resultSelector.currentNode() is result:
            self.compared = {row["name"]: row for row in job.result.get("structures", [])}
            self.comparedAt = Edits.drawnAt(result)
            self._showTable(result)
        self.panel.showError(job)

    def _showTable(self, node):
        table = self.ui.volumesTable
        volumes = Edits.volumesMl(node) if node is not None else {}
        names = list(dict.fromkeys([*volumes, *self.compared]))
        table.setRowCount(len(names))
        for row, name in enumerate(names):
            found = self.compared.get(name, {})
            volume = found.get("volume_ml", volumes.get(name))
            texts = (name, number(volume, 2), number(found.get("dice"), 3), number(found.get("hd95_mm"), 2))
            for column, text in enumerate(texts):
                setCell(table, row, column, text, text)

    def _showBundle(self, path):
        """List the recent students and show the card of the chosen one."""
        selector, card = self.ui.bundleSelector, self.ui.modelCardText
        if path and path not in self.recent:
            self.recent = [path, *self.recent][:MOST_RECENT]
        blocked = selector.blockSignals(True)
        selector.clear()
        selector.addItems([nameOf(p) for p in self.recent])
        selector.setCurrentIndex(self.recent.index(path) if path else -1)
        selector.blockSignals(blocked)
        selector.toolTip = path or _("The students that were used lately")
        metadata = bundle.bundle_in(path) / bundle.METADATA if path else None
        stamp = (path, metadata.stat().st_mtime_ns if metadata is not None and metadata.exists() else 0)
        if stamp != self.card:
            self.card = stamp
            card.setMarkdown(cardOf(path)) if path else card.setPlainText(_("No student chosen yet."))

    @staticmethod
    def _readRecent():
        paths = slicer.app.settings().value(RECENT) or []
        paths = [paths] if isinstance(paths, str) else list(paths)
        return [path for path in paths if os.path.isdir(path)]  # where it may not be looked at, it is none


def cardOf(path):
    """What the student segments, what taught it and how well, then its whole model card; or why it cannot be used."""
    folder = bundle.bundle_in(path)
    try:
        ours = bundle.read_metadata(folder, check=False)[bundle.OURS]  # who uses it checks it
        card, names = ours["card"], ", ".join(Labels.from_json(ours["labels"]).names)
        figures = [f"{name}: **{value}**" for name, value in card.get("figures", {}).items()]
        parts = [f"**Segments** {names}.", card.get("taught_by", ""), *figures]
        card = (folder / bundle.MODEL_CARD).read_text(encoding="utf-8")
        return "\n\n".join([*filter(None, parts), re.sub("^#+", "####", card, flags=re.MULTILINE)])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return _("**Cannot be used:** {reason}").format(reason=error)


def number(value, digits):
    return "" if value is None else f"{value:.{digits}f}"
