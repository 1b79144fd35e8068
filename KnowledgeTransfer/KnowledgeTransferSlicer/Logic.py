"""Logic: annotate, distil and segment from a script in Slicer's Python console, or from the panel."""

import filecmp
import itertools
import os
import shutil
import tempfile
import time
from pathlib import Path

import slicer
from slicer.ScriptedLoadableModule import ScriptedLoadableModuleLogic

from KnowledgeTransferLib.records import reviews
from KnowledgeTransferLib.records.run_directory import RunDirectory

from . import Requirements, SceneIO
from .LibraryProcess import STOPPED, Library
from .ParameterNode import KnowledgeTransferParameterNode

SCENE = "scene:"  # in place of a teacher's path: the segmentation nodes of the scene
PSEUDO = "pseudo-annotation"
TEMPORARY = "KnowledgeTransfer-"
SCANS = "scans"  # folder in a run that keeps loaded volumes


class KnowledgeTransferLogic(ScriptedLoadableModuleLogic):
    """What the module can do, without a widget.

    Each method starts a job and returns it at once. `job.onEvent` and `job.onFinished` are lists of functions that
    Slicer's event loop calls, with an event and with the job. `job.wait()` returns when the job is done, and raises
    RuntimeError when it failed. `job.nodes` are the nodes that came into the scene, `job.problems` the cases that
    failed, `job.hints` what is good to know; `job.cancel()` stops it.
    """

    def __init__(self, library=None, requirements=Requirements):
        ScriptedLoadableModuleLogic.__init__(self)
        self.moduleName = "KnowledgeTransfer"
        self.library = library or Library()
        self.requirements = requirements

    def getParameterNode(self):
        return KnowledgeTransferParameterNode(super().getParameterNode())

    def annotate(self, volumeNodes, teachers, runDirectory=None, **settings):
        """Let teachers annotate loaded volumes; each result becomes a node "<volume> pseudo-annotation".

        Args:
            teachers: path -> weight, or a list of paths; "scene:" stands for the segmentations in the scene.
            runDirectory: folder that keeps scans and pseudo-annotations, to distil from; None: a temporary one.
            settings: those of `knowledge-transfer annotate --help`: uncertainty=True loads an uncertainty map too,
                probabilities=False, device="cuda".

        Raises:
            ValueError: a volume cannot be used, or no teacher was given. RuntimeError: the folder is in use.
        """
        volumes = _checked(volumeNodes)
        weights = _weights(teachers)
        run = self._runDirectory(runDirectory)
        cases = _exported(volumes, run)
        weights = _withScene(weights, run, cases)
        arguments = [run.path, "--cohort", run.path / SCANS, *_teacherArguments(weights), *_options(settings)]
        job = self._start("annotate", run, arguments, temporary=not runDirectory)
        job.hints = [hint for hint in map(SceneIO.hintOf, volumes) if hint]
        job.onEvent.append(lambda event: _showAnnotation(job, cases, event, settings.get("uncertainty", False)))
        return job

    def annotateCohort(self, cohort, teachers, runDirectory, **settings):
        """Let teachers annotate the cases of a folder or table on disk; settings as those of `annotate`."""
        weights = _weights(teachers)
        if SCENE in weights:
            raise ValueError("Segmentations in the scene can only teach loaded volumes; remove them from the teachers")
        run = self._runDirectory(runDirectory)
        arguments = [run.path, "--cohort", _existing(cohort), *_teacherArguments(weights), *_options(settings)]
        return self._start("annotate", run, arguments)

    def distil(self, runDirectory, cohort=None, restart=False, **settings):
        """Train a student in a run directory; a training that was stopped goes on where it was.

        Args:
            cohort: folder or table with expert annotations; None: what the run annotated.
            restart: forget an earlier training of this run.
            settings: those of `knowledge-transfer distil --help`, such as student="tiny", epochs=100, minutes=30,
                annotations="both", start_from="folder of a student", device="cuda", seed=0.
        """
        if settings.get("start_from"):
            settings["start_from"] = _existing(settings["start_from"])
        run = self._runDirectory(runDirectory)
        arguments = [run.path, *_options(settings)]
        arguments += ["--cohort", _existing(cohort)] if cohort else []
        return self._start("distil", run, arguments + ["--restart"] * bool(restart))

    def segment(self, volumeNodes, bundle, **settings):
        """Segment loaded volumes with a student; each result becomes a node "<volume> segmentation"."""
        volumes = _checked(volumeNodes)
        bundle = _existing(bundle)
        run = self._runDirectory(None)
        cases = _exported(volumes, run)
        arguments = [bundle, run.path / SCANS, run.path / "results", "--format", ".seg.nrrd"]
        arguments += ["--overwrite", "--run", run.path, *_options(settings)]
        job = self._start("segment", run, arguments, temporary=True, warm=True)
        job.hints = [hint for hint in map(SceneIO.hintOf, volumes) if hint]
        job.onEvent.append(lambda event: _showSegmentation(job, cases, event))
        return job

    def segmentFiles(self, inputPath, bundle, output, overwrite=False, **settings):
        """Segment an image, or all of a folder, on disk into the folder `output`."""
        run = self._runDirectory(None)
        arguments = [
            _existing(bundle),
            _existing(inputPath),
            Path(output).absolute(),
            "--run",
            run.path,
            *_options(settings),
        ]
        return self._start("segment", run, arguments + ["--overwrite"] * bool(overwrite), temporary=True, warm=True)

    def compare(self, segmentationNode, referenceNode, volumeNode):
        """Dice and HD95 of each structure; `job.result["structures"]` holds them."""
        SceneIO.checkVolume(volumeNode)
        run = self._runDirectory(None)
        files = [run.path / "segmentation.seg.nrrd", run.path / "reference.seg.nrrd"]
        for node, file in zip((segmentationNode, referenceNode), files, strict=True):
            SceneIO.exportSegmentation(node, volumeNode, file)
        return self._start("compare", run, files, temporary=True, warm=True)

    def describe(self, path):
        """What a teacher or student is: `job.result` holds `kind`, `structures`, `card`."""
        return self._start("describe", self._runDirectory(None), [_existing(path)], temporary=True, warm=True)

    def phantom(self, folder, site, cases):
        """Make a small synthetic cohort to try the module with; site A has expert annotations."""
        run = self._runDirectory(None)
        return self._start("phantom", run, [folder, "--site", site, "--cases", cases], temporary=True)

    def attach(self, runDirectory):
        """Follow a run that works already, whoever started it."""
        return self.library.attach(runDirectory)

    def loadForReview(self, runDirectory, caseId):
        """Load a case's scan and annotation; returns the two nodes."""
        state = next(state for state in reviews.case_states(RunDirectory(runDirectory)) if state.id == caseId)
        if state.annotation is None:
            raise ValueError(f"{caseId}: has no annotation yet")
        volume = slicer.util.loadVolume(str(state.images[0]))
        volume.SetName(slicer.mrmlScene.GenerateUniqueName(caseId))
        return volume, SceneIO.loadSegmentation(state.annotation, volume, f"{volume.GetName()} {PSEUDO}")

    def saveCorrection(self, runDirectory, caseId, segmentationNode, volumeNode):
        """Keep an edited segmentation as the case's corrected annotation; the pseudo-annotation stays beside it."""
        run = RunDirectory(runDirectory)
        target = run.corrected_annotation(caseId)
        temporary = target.with_name(f".partial-{target.name}")
        try:
            SceneIO.exportSegmentation(segmentationNode, volumeNode, temporary)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    def discardCorrection(self, runDirectory, caseId):
        RunDirectory(runDirectory).corrected_annotation(caseId).unlink(missing_ok=True)

    def close(self, stopRuns=False):
        """End the warm process; runs in processes of their own go on unless they are to be stopped."""
        self.library.close(stopRuns)

    def _runDirectory(self, path):
        """A run directory that can be written; None makes a temporary one.

        Raises:
            OSError: it cannot be written. RuntimeError: a job of this Slicer works in it.
        """
        self.requirements.ensure()
        run = RunDirectory(path or tempfile.mkdtemp(prefix=TEMPORARY)).create()
        if self.library.jobIn(run.path):
            raise RuntimeError(f"{run.path}: a job works in this folder already; wait for it or cancel it")
        return run

    def _start(self, step, run, arguments, temporary=False, warm=False):
        job = (self.library.ask if warm else self.library.start)(step, run, arguments)
        job.nodes, job.lost, job.hints, job.pairs, job.shown = [], [], [], {}, set()
        if temporary:
            job.onFinished.append(_removeFolder)
        return job


def segmentationOf(volume):
    """The segmentation node that was drawn on a volume, the newest one; None where there is none."""
    nodes = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    role = slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole()
    own = [n for n in nodes if n.GetNodeReferenceID(role) == volume.GetID() and PSEUDO not in n.GetName()]
    return own[-1] if own else None


def endOf(job):
    """How a job ended, in a sentence for the status area."""
    if job.status == STOPPED:
        return f"{job.step.capitalize()}: stopped; what was done is kept, and the same settings go on from there"
    if job.status not in (0, 1):
        return f"{job.step.capitalize()}: {job.error}"
    notes = "".join(f". {note}" for note in [*getattr(job, "hints", []), *getattr(job, "lost", [])])
    if job.problems:
        first = "{case}: {message}".format(**job.problems[0])
        return f"{job.step.capitalize()}: done, but {len(job.problems)} failed ({first}){notes}"
    return f"{job.step.capitalize()}: done{notes}"


def _checked(volumeNodes):
    nodes = list(volumeNodes) if isinstance(volumeNodes, (list, tuple)) else [volumeNodes]
    for node in nodes or [None]:
        SceneIO.checkVolume(node)
    return nodes


def _existing(path):
    if not str(path) or not Path(path).exists():
        raise FileNotFoundError(f"{path or 'nothing chosen'}: there is no such file or folder")
    return Path(path).absolute()  # the child process works elsewhere


def _weights(teachers):
    weights = dict(teachers) if isinstance(teachers, dict) else dict.fromkeys(teachers, 1.0)
    if not weights:
        raise ValueError("No teacher is chosen; add at least one")
    return {path if path == SCENE else str(_existing(path)): weight for path, weight in weights.items()}


def _withScene(weights, run, cases):
    """Teachers with paths: the segmentations of the scene are written to a folder first."""
    if SCENE not in weights:
        return weights
    folder = run.path / "segmentations_of_the_scene"
    drawn = {case: segmentationOf(volume) for case, volume in cases.items()}
    if not any(drawn.values()):
        raise ValueError("No segmentation in the scene belongs to the chosen volumes; remove it from the teachers")
    for case, segmentation in drawn.items():
        if segmentation is not None:
            SceneIO.exportSegmentation(segmentation, cases[case], folder / f"{case}.seg.nrrd")
    return {str(folder) if path == SCENE else path: weight for path, weight in weights.items()}


def _teacherArguments(weights):
    return [part for path, weight in weights.items() for part in ("--teacher", f"{path}={weight:g}")]


def _options(settings):
    """Settings as the command line takes them: minutes=5 is --minutes 5, soft=False is --no-soft."""
    options = []
    for name, value in settings.items():
        option = "from" if name == "start_from" else name.replace("_", "-")
        if isinstance(value, bool):
            options.append(f"--{option}" if value else f"--no-{option}")
        else:
            options += [f"--{option}", *map(str, value if isinstance(value, (list, tuple)) else [value])]
    return options


def _exported(volumes, run):
    """Write the volumes into the run; returns case id -> volume. A scan of that name that is there already stays."""
    cases, folder = {}, run.path / SCANS
    new = folder / ".partial-scan.nrrd"
    try:
        for name, volume in zip(SceneIO.caseIds(volumes), volumes, strict=True):
            SceneIO.exportVolume(volume, new)
            case = _caseFor(new, name, folder)
            os.replace(new, folder / f"{case}.nrrd")
            cases[case] = volume
    finally:
        new.unlink(missing_ok=True)
    return cases


def _caseFor(new, name, folder):
    """The id under which the same scan is there already, else one that no other scan has."""
    for number in itertools.count(1):
        case = name if number == 1 else f"{name} {number}"
        there = folder / f"{case}.nrrd"
        if not there.exists() or filecmp.cmp(new, there, shallow=False):
            return case


def _showSegmentation(job, cases, event):
    volume = cases.get(event.get("case"))
    if event["event"] == "case" and volume is not None:
        node = _show(job, volume, event["file"], "segmentation", SceneIO.loadSegmentation)
        if node is not None:
            SceneIO.setVolumesMl(node, event.get("volumes_ml", {}))


def _showAnnotation(job, cases, event, uncertainty):
    volume = cases.get(event.get("case"))  # the run may hold scans of an earlier start, too
    if event["event"] == "case" and volume is not None:
        _showCase(job, event["case"], volume, event.get("volumes_ml", {}), uncertainty)
    elif event["event"] == "done":
        for case, volume in cases.items():  # those that an earlier start has annotated
            if case not in job.shown and job.run.pseudo_annotation(case).is_file():
                _showCase(job, case, volume, {}, uncertainty)


def _showCase(job, case, volume, volumesMl, uncertainty):
    job.shown.add(case)
    node = _show(job, volume, job.run.pseudo_annotation(case), PSEUDO, SceneIO.loadSegmentation)
    if node is not None:
        SceneIO.setVolumesMl(node, volumesMl)
        job.pairs[case] = (volume, node)
    if uncertainty:
        _show(job, volume, job.run.uncertainty_map(case), "uncertainty", SceneIO.loadUncertainty)


def _show(job, volume, file, name, load):
    """Bring a result into the scene; when its volume is gone, keep the file where the user finds it (None)."""
    if SceneIO.isInScene(volume):
        job.nodes.append(load(file, volume, f"{volume.GetName()} {name}"))
        return job.nodes[-1]
    kept = Path(file)
    if job.run.path.name.startswith(TEMPORARY):
        kept = Path.home() / "KnowledgeTransfer" / "results" / f"{time.strftime('%Y-%m-%d %H.%M.%S')} {kept.name}"
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, kept)
    job.lost.append(f"The scan of {Path(file).name} is no longer in the scene; its result is {kept}")
    return None


def _removeFolder(job):
    shutil.rmtree(job.run.path, ignore_errors=True)
