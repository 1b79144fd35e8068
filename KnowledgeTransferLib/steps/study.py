"""Study: many trainings that differ in some settings, each an ordinary run, compared on the same cases."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Queue

from .. import __version__
from ..learning.metrics import shared_with
from ..learning.predictor import pick_device
from ..learning.study_report import write_study
from ..learning.study_results import study_results
from ..records import bundle
from ..records.cohort import read_cohort
from ..records.jobs import state_of
from ..records.plans import Cell, cells_of, need_teacher, needs_annotations, plan_named
from ..records.progress import Cancelled, Listener, Progress
from ..records.run_directory import RunDirectory, json_text, read_json, write_json
from ..records.settings import FORMAT, checked

POLL_S = 0.2
GOOD = (0, 1)  # exit status: done, or done but some cases failed
STOPPED = 130
PACKAGE = __package__.partition(".")[0]
SHARED = ("annotations.json", "pseudo_annotations", "probabilities")  # of the teacher, by every cell that needs them


@dataclass(frozen=True)
class Cases:
    """The cases of a cohort, as the command line names them."""

    path: Path | str | None
    split: str | None = None
    labels: Path | str | None = None

    @property
    def options(self) -> list[str]:
        named = (("--cohort", self.path), ("--split", self.split), ("--labels", self.labels))
        return [str(part) for option, value in named if value for part in (option, value)]


@dataclass(frozen=True)
class _Job:
    run: RunDirectory
    request: dict
    progress: Progress
    places: Queue  # environment variables of each training that may run at a time: its GPU, or its share of the cores
    children: list[subprocess.Popen]


def study(  # noqa: PLR0913
    run: RunDirectory | Path | str,
    cases: tuple[Cases, Cases] | None = None,
    plan: str | None = None,
    *,
    teacher: Path | str | None = None,
    seeds: int | None = None,
    at_once: int | None = None,
    listener: Listener | None = None,
    **asked,
) -> dict:
    """Train every cell of a plan with every seed, measure each student, and compare each cell with its baseline.

    A cell that fails is a problem, and the others go on. The same call goes on with a study that was stopped.

    Args:
        cases: what students learn from, and what they are measured on; None: those that the study was begun with.
        plan: what `plan_named` knows (default: scales).
        teacher: bundle that teaches, made by KnowledgeTransfer: it annotates where cells learn pseudo-annotations, and
            runs beside the student where losses need it. All cells have its preprocessing.
        seeds: trainings of each cell (default: 3).
        at_once: trainings at the same time (default: one on each GPU, else one). On a CPU they share its cores; another
            number of cores sums in another order, so that weights differ in their last bits.
        asked: fields of DistilSettings that all cells have.

    Returns:
        What study.json holds: `cells` with their results, and `problems`.

    Raises:
        ValueError, OSError: nothing can be trained, or the study was begun with other settings.
        Cancelled: the user asked for it; what is done is kept.
    """
    if at_once is not None and at_once < 1:
        raise ValueError(f"--at-once {at_once}: at least one training runs at a time")
    run = run if isinstance(run, RunDirectory) else RunDirectory(run)
    with run.locked("study"), Progress("study", listener, run.events, run.cancel_requested) as progress:
        request = _request(run, cases, plan, teacher, {"seeds": seeds, "settings": asked})
        progress.event("start", run=str(run.path), plan=request["plan"])
        cells = _cells(request)
        _refuse_overlap(request)
        _begin(run, request, cells)
        with _job(run, _places(request, at_once), request, progress) as job:
            if any(map(needs_annotations, cells)):
                _annotate(job)
            _carry_out_all(job, cells)
        content = {**read_json(run.study), **study_results(cells, run), "problems": progress.problems}
        content = json.loads(json_text(content))  # NaN is no JSON; None takes its place
        write_json(run.study, content)
        write_study(run, content)
        progress.event("done", report=str(run.study_report), problems=progress.problems)
    return content


def _request(run: RunDirectory, cases, plan: str | None, teacher, more: dict) -> dict:
    """What was asked for, on top of what the study was begun with; paths are absolute."""
    stored = read_json(run.study)["request"] if run.study.is_file() else {"plan": "scales", "seeds": 3, "settings": {}}
    if cases is not None and cases[0].path is not None:
        stored["cases"], stored["test"] = ({k: _absolute(k, v) for k, v in asdict(part).items()} for part in cases)
    if "cases" not in stored:
        raise ValueError(f"{run.path}: has no cohort yet; name one (--cohort PATH)")
    if plan is not None:
        stored["plan"] = plan
        stored["cells"] = plan_named(plan)
    stored.setdefault("cells", plan_named(stored["plan"]))
    if teacher is not None:
        stored["teacher"] = str(bundle.bundle_in(Path(teacher).absolute()))
    stored["teacher_sha256"] = _checksum(stored.setdefault("teacher", ""))
    stored["seeds"] = more["seeds"] or stored["seeds"]
    stored["settings"] |= {name: value for name, value in more["settings"].items() if value is not None}
    checked(stored["settings"], "distil", "options")
    return stored


def _absolute(name: str, value):
    return str(Path(value).absolute()) if value and name in ("path", "labels") else value


def _checksum(folder: str) -> str:
    if not folder:
        return ""
    if not bundle.is_bundle(Path(folder)) or not bundle.made_here(Path(folder)):
        raise ValueError(f"{folder}: is no bundle made by KnowledgeTransfer; a study's teacher is one")
    return bundle.sha256(Path(folder) / bundle.WEIGHTS)


def _cells(request: dict) -> list[Cell]:
    common = {**request["settings"], **({"live_teacher": request["teacher"]} if request["teacher"] else {})}
    cells = cells_of(request["cells"], common, request["seeds"])
    if need_teacher(cells) and not request["teacher"]:
        raise ValueError(f"the plan {request['plan']} has cells that learn from a teacher; name it (--teacher PATH)")
    return cells


def _refuse_overlap(request: dict) -> None:
    """A student must not be measured on what it, or the choice of its best epoch, has seen."""
    learnt, test = (
        read_cohort(part["path"], part["split"], part["labels"]).cases for part in (request["cases"], request["test"])
    )
    same, kin = shared_with(learnt, test)
    if same or kin:
        raise ValueError(
            f"{same} of {len(test)} test cases are also learnt from, and the patients of {kin} more; students are "
            "measured on other patients (--split, --test-split, --test-cohort)"
        )


def _begin(run: RunDirectory, request: dict, cells: list[Cell]) -> None:
    """Write the cells down. A study may get more cells and seeds later, but no cell other settings."""
    known = read_json(run.study) if run.study.is_file() else {"request": request, "trainings": {}}
    trainings = {cell.folder: json.loads(json_text(cell.settings)) for cell in cells}
    changed = [name for name in ("cases", "test", "teacher_sha256") if known["request"][name] != request[name]]
    changed += [name for name in trainings if known["trainings"].get(name, trainings[name]) != trainings[name]]
    if changed:
        raise ValueError(
            f"{run.path}: was begun with other settings ({', '.join(changed[:5])}); name another run directory"
        )
    write_json(
        run.study,
        {
            "format_version": FORMAT, "library_version": __version__, "request": request,
            "trainings": {**known["trainings"], **trainings},
        },
    )  # fmt: skip


@contextmanager
def _job(run: RunDirectory, places: list[dict[str, str]], request: dict, progress: Progress) -> Iterator[_Job]:
    """The study at work; no child outlives it."""
    free: Queue = Queue()
    for place in places:
        free.put(place)
    job = _Job(run, request, progress, free, [])
    try:
        yield job
    finally:
        for child in job.children:
            child.kill()


def _places(request: dict, at_once: int | None) -> list[dict[str, str]]:
    """Environment variables of each training that may run at a time."""
    gpus = _gpus(request["settings"].get("device", "auto"))
    if gpus:
        return [{"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} for number in range(at_once or len(gpus))]
    cores = os.cpu_count() or 1
    return [{"OMP_NUM_THREADS": str(max(1, cores // at_once))} for _ in range(at_once)] if at_once else [{}]


def _gpus(asked: str) -> list[str]:
    """What CUDA_VISIBLE_DEVICES may be to see one of the GPUs; none without CUDA."""
    if pick_device(asked) != "cuda":
        return []
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]


def _annotate(job: _Job) -> None:
    """Let the teacher annotate the cohort, once for all cells."""
    job.progress.message(f"the teacher annotates {job.request['cases']['path']}")
    options = [*Cases(**job.request["cases"]).options, "--teacher", f"{job.request['teacher']}=1"]
    failed = _run_step(job, RunDirectory(job.run.annotated), ["annotate", job.run.annotated, *options], {})
    if failed:
        raise ValueError(f"the teacher cannot annotate the cohort: {failed}")


def _carry_out_all(job: _Job, cells: list[Cell]) -> None:
    done = [cell for cell in cells if _run_of(job, cell).evaluation.is_file()]
    left = [cell for cell in cells if cell not in done]
    stage = job.progress.stage("trainings", len(cells), len(done))
    with ThreadPoolExecutor(max_workers=job.places.qsize()) as threads:
        futures = {threads.submit(_carry_out, job, cell): cell for cell in left}
        waiting = set(futures)
        while waiting:
            finished, waiting = wait(waiting, POLL_S, FIRST_COMPLETED)
            for future in finished:
                _tell(job, futures[future], future)
                stage.advance(text=futures[future].folder, check=False)
            if job.progress.stop_asked():
                job.progress.stop = True  # seen by the threads: they cancel their children and start no others
    job.progress.check()


def _tell(job: _Job, cell: Cell, future: Future) -> None:
    try:
        failed = future.result()
    except (OSError, ValueError) as error:
        failed = str(error)
    except Cancelled:
        return
    if failed:
        job.progress.problem(cell.folder, failed)


def _carry_out(job: _Job, cell: Cell) -> str:
    """Train and measure one cell; what went wrong, or nothing.

    Raises:
        Cancelled: the user asked the study to stop.
    """
    job.progress.check()
    run, place = _run_of(job, cell), job.places.get()
    try:
        _prepare(job, cell, run)
        method = ["--method", f"student={run.student}"]
        device_of_students = ["--device", job.request["settings"].get("device", "auto")]
        return _run_step(job, run, ["distil", run.path, *Cases(**job.request["cases"]).options], place) or _run_step(
            job,
            run,
            ["evaluate", run.path, *Cases(**job.request["test"]).options, *method, *device_of_students],
            place,
        )
    finally:
        job.places.put(place)


def _run_of(job: _Job, cell: Cell) -> RunDirectory:
    return RunDirectory(job.run.cells / cell.folder)


def _prepare(job: _Job, cell: Cell, run: RunDirectory) -> None:
    """Settings, and what the teacher made, for a run that was not begun yet."""
    if run.settings.is_file():
        return
    run.create()
    if needs_annotations(cell):
        for name in SHARED:
            _linked(job.run.annotated / name, run.path / name)
    settings = {**cell.settings, "seed": cell.seed}
    write_json(run.settings, {"format_version": FORMAT, "library_version": __version__, "distil": settings})


def _linked(source: Path, target: Path) -> None:
    """The same files in another folder, without copies where the disk can do that."""
    if source.is_dir():
        for part in source.iterdir():
            _linked(part, target / part.name)
    elif source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)


def _run_step(job: _Job, run: RunDirectory, arguments: list, place: dict[str, str]) -> str:
    """Run one step in a process of its own; what went wrong, or nothing. A child is asked to stop, never killed."""
    while run.held() and not job.progress.stop_asked():
        time.sleep(POLL_S)  # a study that was killed left it at work
    child = _started(arguments, place)
    job.children.append(child)
    while child.poll() is None:
        if job.progress.stop_asked():
            run.create().cancel.touch()
        time.sleep(POLL_S)
    job.children.remove(child)
    if child.returncode == STOPPED:
        raise Cancelled("the study was stopped")
    if child.returncode in GOOD:
        return ""
    state = state_of(run.path)
    return (state.text if state else "") or f"{arguments[0]} ended with status {child.returncode}"


def _started(arguments: list, place: dict[str, str]) -> subprocess.Popen:
    """A step of this library in a process of its own, which Ctrl-C in the terminal does not reach."""
    home = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, **place}
    apart = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP} if os.name == "nt" else {"start_new_session": True}
    return subprocess.Popen(
        [sys.executable, "-m", PACKAGE, *map(str, arguments)], env=environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **apart,
    )  # fmt: skip
