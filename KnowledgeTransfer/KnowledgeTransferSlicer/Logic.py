"""Logic: annotate, distil and segment from a script in Slicer's Python console, or from the panel."""

import contextlib
import shutil
import tempfile
import time
from pathlib import Path

from slicer.i18n import tr as _
from slicer.ScriptedLoadableModule import ScriptedLoadableModuleLogic

from KnowledgeTransferLib.records.cohort import SEGMENTATION
from KnowledgeTransferLib.records.jobs import state_of
from KnowledgeTransferLib.records.run_directory import RunDirectory
from KnowledgeTransferLib.records.settings import NONE, read_settings

from . import Corrections, Requirements, SceneIO
from .Exporting import silently
from .LibraryProcess import Library
from .ParameterNode import KnowledgeTransferParameterNode
from .SceneRuns import SCANS, SCENE, exported, namesOf, showAnnotation, showSegmentation, withScene

TEMPORARY = "KnowledgeTransfer-temporary-"
TASK = "totalsegmentator:"  # in place of a teacher's path
STALE_S = 24 * 3600
GO_ON = ("annotate", "distil")  # steps that go on with a run directory alone


class KnowledgeTransferLogic(ScriptedLoadableModuleLogic):
    """What the module can do, without a widget.

    Each method starts a job and returns it at once. `job.onEvent` and `job.onFinished` are lists of functions that
    Slicer's event loop calls, with an event and with the job. `job.wait()` returns when the job is done, and raises
    RuntimeError when it failed. `job.nodes` are the nodes that came into the scene, `job.problems` the cases that
    failed, `job.hints` what is good to know; `job.cancel()` stops it.
    """

    def __init__(self, library=None, requirements=Requirements, exporting=silently):
        ScriptedLoadableModuleLogic.__init__(self)
        self.moduleName = "KnowledgeTransfer"
        self.library = library or Library()
        self.requirements = requirements
        self.exporting = exporting

    def getParameterNode(self):
        return KnowledgeTransferParameterNode(super().getParameterNode())

    def annotate(self, volumeNodes, teachers, runDirectory=None, **settings):
        """Let teachers annotate loaded volumes; each result becomes a node "<volume> pseudo-annotation".

        Args:
            teachers: path -> weight, or weight of each structure; or a list of paths. "scene:" stands for the
                segmentations in the scene.
            runDirectory: folder that keeps scans and pseudo-annotations, to distil from; further volumes add to it.
                None: a temporary one.
            settings: those of `knowledge-transfer annotate --help`: uncertainty=True loads an uncertainty map too,
                probabilities=False, device="cuda".

        Raises:
            ValueError: a volume cannot be used, or no teacher was given. RuntimeError: the folder is in use.
        """
        volumes, weights = _checked(volumeNodes), _weights(teachers)
        with self._working(runDirectory, packagesFor(weights)) as run, exported(volumes, run, self.exporting) as cases:
            weights, hints = withScene(weights, run, cases, self.exporting)
            arguments = [run.path, "--cohort", run.path / SCANS, *_teacherArguments(weights), *_options(settings)]
            job = self._start("annotate", run, arguments)
        job.names = namesOf(cases, run)
        job.places = {volume.GetID(): SceneIO.placeOf(volume) for volume in volumes}
        job.hints = [*filter(None, map(SceneIO.hintOf, volumes)), *hints]
        uncertainty, shown = settings.get("uncertainty", False), set()
        job.onEvent.append(lambda event: showAnnotation(job, cases, shown, event, uncertainty))
        return job

    def annotateCohort(self, cohort, teachers, runDirectory, **settings):
        """Let teachers annotate the cases of a folder or table on disk; settings as those of `annotate`."""
        weights, cohort = _weights(teachers), _existing(cohort)
        if SCENE in weights:
            raise ValueError(
                _("Segmentations in the scene can only teach loaded volumes; remove them from the teachers")
            )
        with self._working(runDirectory, packagesFor(weights)) as run:
            arguments = [run.path, "--cohort", cohort, *_teacherArguments(weights), *_options(settings)]
            return self._start("annotate", run, arguments)

    def distil(self, runDirectory, cohort=None, restart=False, **settings):
        """Train a student in a run directory; a training that was stopped goes on where it was.

        Args:
            cohort: folder or table with expert annotations; None: what the run annotated.
            restart: forget an earlier training of this run.
            settings: those of `knowledge-transfer distil --help`, such as student="tiny", epochs=100, minutes=30,
                annotations="both", start_from="folder of a student", device="cuda", seed=0. "none" for minutes, epochs
                or start_from takes back what an earlier start asked for.
        """
        if settings.get("start_from", NONE) != NONE:
            settings["start_from"] = _existing(settings["start_from"])
        cohort = ["--cohort", _existing(cohort)] if cohort else []
        with self._working(runDirectory) as run:
            arguments = [run.path, *_options(settings), *cohort, *(["--restart"] * bool(restart))]
            return self._start("distil", run, arguments)

    def goOn(self, runDirectory):
        """Go on with what was stopped in a run, annotating or distilling, with the settings it was begun with."""
        state = state_of(runDirectory)
        if state is None or state.step not in GO_ON:
            raise ValueError(_("{run}: nothing was begun here that can go on").format(run=runDirectory))
        asked = read_settings(RunDirectory(runDirectory), "annotate") if state.step == "annotate" else {}
        with self._working(runDirectory, packagesFor(t["path"] for t in asked.get("teachers", ()))) as run:
            return self._start(state.step, run, _argumentsToGoOn(run, state))

    def segment(self, volumeNodes, bundle, **settings):
        """Segment loaded volumes with a student; each result becomes a node "<volume> segmentation"."""
        volumes, bundle = _checked(volumeNodes), _existing(bundle)
        with self._working(None) as run, exported(volumes, run, self.exporting) as cases:
            arguments = [bundle, run.path / SCANS, run.path / "results", "--format", ".seg.nrrd", "--overwrite"]
            job = self._start("segment", run, [*arguments, "--run", run.path, *_options(settings)], warm=True)
        job.names = namesOf(cases, run)
        job.places = {volume.GetID(): SceneIO.placeOf(volume) for volume in volumes}
        job.hints = [*filter(None, map(SceneIO.hintOf, volumes))]
        job.onEvent.append(lambda event: showSegmentation(job, cases, event))
        return job

    def segmentFiles(self, inputPath, bundle, output, runDirectory=None, overwrite=False, **settings):  # noqa: PLR0913
        """Segment an image, or all of a folder, on disk into the folder `output`; goes on when Slicer is closed.

        Args:
            runDirectory: folder for the progress, by which the job is found again; None: a temporary one.
            settings: those of `knowledge-transfer segment --help`; format=".nii.gz" writes label maps instead of
                .seg.nrrd, which hold names and colours and may lie among the scans.
        """
        settings = {"format": SEGMENTATION, **settings}
        files = [_existing(bundle), _existing(inputPath), Path(output).absolute()]
        with self._working(runDirectory) as run:
            arguments = [*files, "--run", run.path, *_options(settings), *(["--overwrite"] * bool(overwrite))]
            job = self._start("segment", run, arguments)
        job.folder = files[-1]
        return job

    def compare(self, segmentationNode, referenceNode, volumeNode):
        """Dice and HD95 of each structure; `job.result["structures"]` holds them."""
        SceneIO.checkVolume(volumeNode)
        with self._working(None) as run:
            files = [run.path / "segmentation.seg.nrrd", run.path / "reference.seg.nrrd"]
            nodes = (segmentationNode, referenceNode)
            hints = [SceneIO.exportSegmentation(n, volumeNode, f) for n, f in zip(nodes, files, strict=True)]
            job = self._start("compare", run, files, warm=True)
        job.names = {str(file): node.GetName() for file, node in zip(files, nodes, strict=True)}
        job.hints = [*filter(None, hints)]
        return job

    def describe(self, path, trust=False, template=False):
        """What a teacher or student is: `job.result` holds `kind`, `structures`, `card`, `hint`, `risk`.

        Of "totalsegmentator:" alone it holds `tasks`, the names that may stand behind it.

        Args:
            trust: a teacher that brings code of its own may run it from now on, until its files change.
            template: write the teacher.json that a bare network needs, to be filled in; `job.result["template"]`.
        """
        path = _teacher(path)
        options = [*(["--trust"] * bool(trust)), *(["--template"] * bool(template))]
        with self._working(None) as run:
            return self._start("describe", run, [path, *options], warm=True)

    def phantom(self, folder, site, cases):
        """Make a small synthetic cohort to try the module with; it has expert annotations."""
        with self._working(None) as run:
            return self._start("phantom", run, [folder, "--site", site, "--cases", cases])

    def attach(self, runDirectory):
        """Follow a run that works already, whoever started it."""
        return self.library.attach(runDirectory)

    def loadForReview(self, runDirectory, caseId):
        """Load a case's scan and annotation; returns the two nodes."""
        return Corrections.load(RunDirectory(runDirectory), caseId)

    def saveCorrection(self, runDirectory, caseId, segmentationNode, volumeNode):
        """Keep an edited segmentation as the case's corrected annotation; the pseudo-annotation stays beside it.

        An earlier correction of the case is kept in the folder "earlier" beside it. A rejected case is no longer so.

        Returns:
            a sentence on segments that overlap; empty where none do.

        Raises:
            ValueError: a segment that the run does not know, or a scan that has other voxels by now.
        """
        return Corrections.save(RunDirectory(runDirectory), caseId, segmentationNode, volumeNode)

    def discardCorrection(self, runDirectory, caseId):
        """Let the pseudo-annotation count again; returns the file that keeps the correction."""
        return Corrections.discard(RunDirectory(runDirectory), caseId)

    def close(self, stopRuns=False):
        """End the warm process; runs in processes of their own go on unless they are to be stopped."""
        self.library.close(stopRuns)

    @contextlib.contextmanager
    def _working(self, path, also=()):
        """A run directory that can be written, to start a job in; None makes a temporary one, gone with the job.

        What is not installed is installed after asking; `also`: packages beside the library's own list.

        Raises:
            OSError: it cannot be written. RuntimeError: somebody works in it.
        """
        self.requirements.ensure(also=also)
        run = RunDirectory(path or tempfile.mkdtemp(prefix=TEMPORARY)).create()
        run.temporary = not path
        try:
            if self.library.jobIn(run.path) or run.held():
                text = _("{run}: a job works in this folder already; wait for it or cancel it")
                raise RuntimeError(text.format(run=run.path))
            yield run
        except BaseException:
            if not path:
                shutil.rmtree(run.path, ignore_errors=True)
            raise

    def _start(self, step, run, arguments, warm=False):
        job = (self.library.ask if warm else self.library.start)(step, run, arguments)
        job.temporary = run.temporary
        return job


def packagesFor(teachers):
    """What some kinds of teachers need beside the library's own list."""
    packages = []
    for path in map(str, teachers):
        if path.startswith(TASK):
            packages.append(Requirements.TOTAL_SEGMENTATOR)
        elif path.lower().endswith(".onnx"):
            packages.append(Requirements.ONNX_RUNTIME)
        elif (Path(path) / "plans.json").is_file():
            packages.append(Requirements.NN_UNET)
        elif any((Path(path) / "configs").glob("inference.y*ml")):
            packages.append(Requirements.YAML)
    return list(dict.fromkeys(packages))


def removeStaleFolders():
    """Temporary folders that a Slicer which crashed, or jobs that went on without it, left behind: they hold scans."""
    for folder in Path(tempfile.gettempdir()).glob(f"{TEMPORARY}*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > STALE_S and not RunDirectory(folder).held():
                shutil.rmtree(folder)


def _checked(volumeNodes):
    nodes = list(volumeNodes) if isinstance(volumeNodes, (list, tuple)) else [volumeNodes]
    nodes = [node for node in nodes if node is not None]  # a parameter node keeps the place of a deleted volume
    for node in nodes or [None]:
        SceneIO.checkVolume(node)
    return nodes


def _argumentsToGoOn(run, state):
    """The run directory alone; or the same command again, when it was stopped before the run kept its settings."""
    kept = (run.checkpoint, run.training) if state.step == "distil" else (run.cohort,)
    kept = [file.stat().st_mtime for file in kept if file.is_file()]
    refused = state.state == "failed" and "--restart" not in state.arguments  # other settings than those it has
    if not state.arguments or kept and (refused or max(kept) >= run.job.stat().st_mtime):
        return [run.path]
    return state.arguments[1:]


def _existing(path):
    if not str(path) or not Path(path).exists():
        raise FileNotFoundError(_("{path}: there is no such file or folder").format(path=path or _("nothing chosen")))
    return Path(path).absolute()  # the child process works elsewhere


def _weights(teachers):
    weights = dict(teachers) if isinstance(teachers, dict) else dict.fromkeys(teachers, 1.0)
    if not weights:
        raise ValueError(_("No teacher is chosen; add at least one"))
    return {path if path == SCENE else str(_teacher(path)): weight for path, weight in weights.items()}


def _teacher(path):
    """A path, or the name of a TotalSegmentator task."""
    return path if str(path).startswith(TASK) else _existing(path)


def _teacherArguments(weights):
    return [part for path, weight in weights.items() for part in ("--teacher", f"{path}={_weight(weight)}")]


def _weight(weight):
    """2 or, by structure, spleen:2,liver:0."""
    if isinstance(weight, dict):
        return ",".join(f"{structure}:{number:g}" for structure, number in weight.items())
    return f"{weight:g}"


def _options(settings):
    """Settings as the command line takes them: minutes=5 is --minutes 5, soft=False is --no-soft.

    losses={"contrastive": 0.2} is --loss contrastive=0.2, scales=("encoder", "bottleneck") is --scales
    encoder,bottleneck, and synonyms={"kidney_left": "left kidney"} is --synonym "left kidney=kidney_left".
    """
    options = []
    for name, value in settings.items():
        option = "from" if name == "start_from" else name.replace("_", "-")
        if isinstance(value, bool):
            options.append(f"--{option}" if value else f"--no-{option}")
        elif name == "synonyms":
            options += [part for other, meant in value.items() for part in ("--synonym", f"{meant}={other}")]
        elif isinstance(value, dict):
            options += [part for key, weight in value.items() for part in ("--loss", f"{key}={weight:g}")]
        elif isinstance(value, (list, tuple)) and all(isinstance(part, str) for part in value):
            options += [f"--{option}", ",".join(value)]
        else:
            options += [f"--{option}", *map(str, value if isinstance(value, (list, tuple)) else [value])]
    return options
