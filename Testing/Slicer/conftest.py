"""Fixtures that the tests of the Slicer extension share: a scene, volumes, the panel; all without the application."""

import os
import sys
import time
from pathlib import Path

import pytest

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
REPOSITORY = Path(__file__).parents[2]
MODULE = REPOSITORY / "KnowledgeTransfer" / "KnowledgeTransfer.py"
PATIENCE = 4  # times as long as a quiet machine may need: a busy one is no reason to fail
NEEDS_NO_SLICER = {"test_module_source.py", "test_packaging.py"}
sys.path[:0] = [str(Path(__file__).parent / "standin"), str(MODULE.parent)]


def _what_is_missing() -> str:
    """Why the extension cannot be tested here, or an empty text."""
    try:
        import slicer_standin

        slicer_standin.prepare()
    except ImportError as error:  # a package, or a system library that one of them needs
        return f"the tests of the Slicer extension need slicer-core, PySide6 and their system libraries: {error}"
    return ""


class _FileWithoutSlicer(pytest.Module):
    """A test file that cannot be imported for a reason that is known."""

    reason = ""

    def collect(self):
        if os.environ.get("KT_CI"):
            raise self.CollectError(self.reason)
        pytest.skip(self.reason, allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent):
    """Without slicer-core the tests skip on a developer's machine, and fail in CI (KT_CI)."""
    if module_path.name in NEEDS_NO_SLICER:
        return None
    reason = _what_is_missing()
    if not reason:
        return None
    file = _FileWithoutSlicer.from_parent(parent, path=module_path)
    file.reason = reason
    return file


@pytest.fixture(scope="session")
def app():
    """The stand-in for slicer.app, with its event loop."""
    import slicer_standin

    return slicer_standin.boot()


@pytest.fixture(scope="session")
def _warm_processes():
    """The warm process that tests share, so that not each of them imports torch again."""
    shared = []
    yield shared
    for process in shared:
        type(process).close(process)


@pytest.fixture
def _one_warm_process(request, monkeypatch, _warm_processes):
    """Tests marked `own_warm_process` start their own, as Slicer does."""
    from KnowledgeTransferSlicer import LibraryProcess

    real = LibraryProcess.WarmProcess

    def shared():
        if not _warm_processes or _warm_processes[-1].exitStatus() is not None:
            _warm_processes.append(real())
            _warm_processes[-1].close = lambda: None
        return _warm_processes[-1]

    if request.node.get_closest_marker("own_warm_process") is None:
        monkeypatch.setattr(LibraryProcess, "WarmProcess", shared)


@pytest.fixture
def slot_errors(app) -> list:
    """Exceptions that left a slot; a test that expects some clears the list."""
    import slicer_standin

    slicer_standin.collect_errors()
    slicer_standin.errors.clear()
    return slicer_standin.errors


@pytest.fixture
def dialogs(app):
    """`dialogs.shown`: what was on the screen. `dialogs.answer(value)`: what the next dialog returns."""
    from slicer_standin import dialogs

    dialogs.forget()
    yield dialogs
    dialogs.forget()


@pytest.fixture
def a_scene(app, dialogs, slot_errors, _one_warm_process, monkeypatch, tmp_path_factory):
    """The empty scene, with empty application settings and home; an exception in a slot fails the test."""
    import slicer

    home = tmp_path_factory.mktemp("home")
    monkeypatch.setattr(Path, "home", lambda: home)
    _clear(slicer.mrmlScene)
    slicer.app.settings().clear()
    slot_errors.clear()
    yield slicer.mrmlScene
    app.processEvents()
    _clear(slicer.mrmlScene)
    assert not slot_errors, f"an exception left a slot or an observer: {slot_errors!r}"


def _clear(scene) -> None:
    """Closes the scene as Slicer does, which keeps the nodes of the application; parameter nodes go too."""
    scene.Clear(0)
    for node in [scene.GetNthNode(n) for n in range(scene.GetNumberOfNodes())]:
        if node.IsA("vtkMRMLScriptedModuleNode"):
            scene.RemoveNode(node)


@pytest.fixture
def a_volume(a_scene):
    """Makes volume nodes: `a_volume(array_kji, ijk_to_ras=None, name="CT")`, with an array or a shape of zeros."""
    import numpy as np
    import slicer

    def make(values=(12, 10, 8), ijk_to_ras=None, name="CT", node_class="vtkMRMLScalarVolumeNode"):
        array = np.zeros(values, np.int16) if isinstance(values, tuple) else np.asarray(values)
        affine = np.eye(4) if ijk_to_ras is None else np.asarray(ijk_to_ras, float)
        return slicer.util.addVolumeFromArray(array, affine, name, node_class)

    return make


@pytest.fixture
def a_scan(a_scene, a_foreign_cohort):
    """The first scan of site B, loaded."""
    import slicer

    return slicer.util.loadVolume(str(sorted((a_foreign_cohort / "images").iterdir())[0]))


@pytest.fixture
def scans(a_scene, a_foreign_cohort) -> list:
    """Two scans of site B, loaded."""
    import slicer

    files = sorted((a_foreign_cohort / "images").iterdir())[:2]
    return [slicer.util.loadVolume(str(file)) for file in files]


@pytest.fixture
def logic(a_scene):
    """The module's logic, as a script makes it; the test's end stops what still runs."""
    from KnowledgeTransferSlicer.Logic import KnowledgeTransferLogic

    logic = KnowledgeTransferLogic()
    yield logic
    logic.close(stopRuns=True)


@pytest.fixture
def the_panel(a_scene):
    """The module's panel, loaded and set up as Slicer does; closed at the end."""
    import slicer_standin

    slicer_standin.load_module(MODULE)
    yield slicer_standin.open_panel(MODULE.stem)
    slicer_standin.close_panel(MODULE.stem)


@pytest.fixture
def tab(the_panel, tmp_path):
    """The panel's first tab, with a working folder; the test's end stops what still runs."""
    the_panel.ui.workingFolderPath.currentPath = str(tmp_path / "work")
    the_panel.parameters.device = "cpu"
    yield the_panel.annotateTab
    for job in the_panel.logic.library.jobs:
        job.cancel()
        job.stopProcesses(gently=True)


@pytest.fixture
def wait_until(app):
    """`wait_until(condition, seconds=20)` runs the event loop until the condition holds."""

    def wait(condition, seconds: float = 20.0):
        end = time.monotonic() + PATIENCE * seconds
        while not (result := condition()):
            assert time.monotonic() < end, f"waited {PATIENCE * seconds} s for {condition}"
            app.processEvents()
            time.sleep(0.005)
        return result

    return wait
