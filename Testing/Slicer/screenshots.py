"""Screenshots: the pictures of README and docs/slicer.md, made by really using the panel on the phantom.

`make screenshots`, or `python Testing/Slicer/screenshots.py [FOLDER]`: a teacher is trained on hospital A, then the
panel annotates scans of hospital B, distils a student and segments a scan that nobody has annotated. Some minutes. With
FOLDER the scans and the teacher are kept there for the next time.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "Resources" / "Screenshots"
PANEL_PX, VIEW_PX = (450, 890), (480, 434)
CASES = {"A": 12, "B": 10}
TEACHER_EPOCHS, STUDENT_EPOCHS, SHOWN_AT_EPOCH = 100, 100, 60
ORGANS_MM = (55.0, -28.0, 10.0)  # a point (RAS) through which all three slices show organs
BAR_PX, GAP_PX = 8, 3
BARS = {"Red": "#f34a33", "Yellow": "#edd54c", "Green": "#6eb04b", "3D": "#7582c9"}

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent / "standin"))

import slicer_standin  # noqa: E402 - it makes the others importable as in Slicer, so these come in functions


def main(folder: Path) -> None:
    began = time.monotonic()
    teacher = prepare(folder)
    panel = open_panel(folder)
    annotate(panel, folder, teacher)
    distil(panel)
    segment(panel, folder)
    slicer_standin.close_panel("KnowledgeTransfer")
    if slicer_standin.errors:
        raise SystemExit(f"errors while the pictures were made: {slicer_standin.errors}")
    print(f"{PICTURES}: annotate.png, distil.png, segment.png, in {time.monotonic() - began:.0f} s")


def prepare(folder: Path) -> Path:
    """The phantom's two hospitals, and a teacher trained on the first one's expert annotations."""
    for site, cases in CASES.items():
        if not (folder / f"site_{site}" / "cohort.csv").is_file():
            library("phantom", folder / f"site_{site}", "--site", site, "--cases", cases, "--seed", ord(site))
    teacher = folder / "hospital A's teacher"
    if not (teacher / "student").is_dir():
        print(f"{teacher.name}: {TEACHER_EPOCHS} epochs on {CASES['A']} scans with expert annotations")
        library(
            "distil", teacher, "--cohort", folder / "site_A", "--annotations", "expert", "--epochs", TEACHER_EPOCHS,
            "--validate-every-epochs", 10, "--device", "cpu",
        )  # fmt: skip
    return teacher


def library(*arguments) -> None:
    command = [sys.executable, "-m", "KnowledgeTransferLib", *map(str, arguments)]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def open_panel(folder: Path):
    """The module's panel beside four views of a sensible size, with an empty working folder."""
    app = slicer_standin.boot(view_size_px=VIEW_PX)
    app.setStyle("Fusion")
    import vtk

    vtk.vtkLogger.SetStderrVerbosity(vtk.vtkLogger.VERBOSITY_OFF)
    slicer_standin.load_module(ROOT / "KnowledgeTransfer" / "KnowledgeTransfer.py")
    panel = slicer_standin.open_panel("KnowledgeTransfer")
    panel.parent.resize(*PANEL_PX)
    panel.parent.show()
    runs = folder / "runs"
    shutil.rmtree(runs, ignore_errors=True)
    runs.mkdir()
    panel.ui.workingFolderPath.currentPath = str(runs)
    return panel


def annotate(panel, folder: Path, teacher: Path) -> None:
    """Eight scans on disk; the one that the teacher was least sure of is loaded for review."""
    ui = panel.ui
    ui.annotateCohortRadio.click()
    ui.annotateCohortPath.currentPath = str(transferal_set(folder))
    panel.annotateTab.addTeacher(str(teacher))
    ui.annotateRunName.text = "hospital B"
    press(panel, ui.annotateButton, "annotate")
    ui.casesTable.selectRow(1)
    ui.acceptButton.click()
    ui.casesTable.selectRow(0)
    ui.reviewButton.click()
    show_structures()
    picture(panel, "annotate")


def distil(panel) -> None:
    """The picture is taken while the student learns."""
    ui = panel.ui
    ui.tabs.setCurrentWidget(ui.distilTab)
    ui.lengthSelector.setCurrentIndex(2)
    ui.epochsSpinBox.value = STUDENT_EPOCHS
    print(f"its student: {STUDENT_EPOCHS} epochs on what the teacher annotated")
    epochs = []
    ui.distilButton.click()
    job = panel.jobOf("distil")
    job.onEvent.append(lambda event: epochs.append(event["epoch"]) if event["event"] == "metrics" else None)
    wait(lambda: not job.running or (epochs and epochs[-1] >= SHOWN_AT_EPOCH))
    wait_a_moment()
    picture(panel, "distil")
    wait(lambda: not job.running)


def segment(panel, folder: Path) -> None:
    """A scan that neither teacher nor student has seen, and how far the result is from the expert."""
    import slicer

    ui = panel.ui
    slicer.mrmlScene.Clear(0)
    ui.tabs.setCurrentWidget(ui.distilTab)
    ui.runsTable.selectRow(0)
    ui.useStudentButton.click()
    ui.tabs.setCurrentWidget(ui.segmentTab)
    volume, expert = unseen_scan(folder)
    ui.segmentVolumesSelector.check(volume)
    press(panel, ui.segmentButton, "segment")
    expert.SetDisplayVisibility(False)
    ui.compareSelector.setCurrentNode(expert)
    press(panel, ui.compareButton, "compare")
    slicer.util.setSliceViewerLayers(background=volume, fit=True)
    ui.show3DButton.click()
    show_structures()
    picture(panel, "segment")


def transferal_set(folder: Path) -> Path:
    """Hospital B's scans as a clinic has them: images alone. The last two stay unseen."""
    scans = folder / "hospital B"
    scans.mkdir(exist_ok=True)
    for image in sorted((folder / "site_B" / "images").iterdir())[:-2]:
        if not (scans / image.name).exists():
            os.link(image, scans / image.name)
    return scans


def unseen_scan(folder: Path):
    import slicer

    image = sorted((folder / "site_B" / "images").iterdir())[-1]
    label = sorted((folder / "site_B" / "labels").iterdir())[-1]
    volume = slicer.util.loadVolume(str(image), {"name": "new scan"})
    expert = slicer.util.loadSegmentation(str(label), {"name": "expert"})
    names = json.loads((folder / "site_B" / "dataset.json").read_text(encoding="utf-8"))["labels"]
    for name, value in names.items():
        if value:
            expert.GetSegmentation().GetNthSegment(value - 1).SetName(name)
    return volume, expert


def show_structures() -> None:
    """Move the slices through the organs and surfaces into sight."""
    import slicer

    for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"):
        if node.GetDisplayVisibility():
            node.CreateClosedSurfaceRepresentation()
    for name in ("Red", "Yellow", "Green"):
        widget = slicer.app.layoutManager().sliceWidget(name)
        widget.fit()
        widget.mrmlSliceNode().JumpSliceByOffsetting(*ORGANS_MM)
    slicer.app.layoutManager().resetThreeDViews()


def press(panel, button, step: str) -> None:
    """Press a button and wait until its job has ended."""
    wait(lambda: button.enabled)
    button.click()
    job = panel.jobOf(step)
    wait(lambda: not job.running)
    if job.status != 0:
        raise SystemExit(f"{step}: {job.error or job.problems}")
    wait_a_moment()


def wait(condition, limit_s: float = 300) -> None:
    import slicer

    end = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(
                "waited too long; the panel says: " + slicer.modules.KnowledgeTransferWidget.status.ui.statusLabel.text
            )
        slicer.app.processEvents()
        time.sleep(0.01)


def wait_a_moment(seconds: float = 0.5) -> None:
    end = time.monotonic() + seconds
    wait(lambda: time.monotonic() > end)


def picture(panel, name: str) -> None:
    """The panel and, beside it, the four views under bars of Slicer's colours."""
    import slicer
    from PySide6.QtGui import QColor, QImage, QPainter

    panel.distilTab.showRuns()
    if slicer.app.focusWidget():
        slicer.app.focusWidget().clearFocus()
    wait_a_moment()
    panel_image = panel.parent.grab().toImage()
    (width, height), left = VIEW_PX, panel_image.width() + GAP_PX
    image = QImage(left + 2 * (width + GAP_PX), panel_image.height(), QImage.Format.Format_RGB888)
    image.fill(QColor("#303030"))
    painter = QPainter(image)
    painter.drawImage(0, 0, panel_image)
    for number, (view, pixels) in enumerate(views().items()):
        x, y = left + (number % 2) * (width + GAP_PX), (number // 2) * (height + BAR_PX + GAP_PX)
        painter.fillRect(x, y, width, BAR_PX, QColor(BARS[view]))
        painter.drawImage(x, y + BAR_PX, QImage(pixels.data, width, height, 3 * width, QImage.Format.Format_RGB888))
    painter.end()
    PICTURES.mkdir(parents=True, exist_ok=True)
    image.save(str(PICTURES / f"{name}.png"))


def views() -> dict:
    """Pixels of the views, in the order of Slicer's Four-Up layout."""
    import slicer

    layout = slicer.app.layoutManager()
    slices = {name: layout.sliceWidget(name).pixels() for name in ("Red", "Green", "Yellow")}
    threed = layout.threeDWidget(0).pixels()
    return {"Red": slices["Red"], "3D": threed, "Green": slices["Green"], "Yellow": slices["Yellow"]}


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]).resolve())
    else:
        with tempfile.TemporaryDirectory(prefix="phantom-") as temporary:
            main(Path(temporary))
