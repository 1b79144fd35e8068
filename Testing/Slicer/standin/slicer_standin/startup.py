"""Makes `import slicer` (PyPI slicer-core) a running Slicer: scene, module logics, application."""

import ctypes
import os
import sys
import tempfile
import types
from contextlib import contextmanager
from pathlib import Path

OWN_PYTHON = Path(__file__).parent / "python"
LOGICS = {
    "Colors": "vtkSlicerColorLogic",
    "Volumes": "vtkSlicerVolumesLogic",
    "Terminologies": "vtkSlicerTerminologiesModuleLogic",
    "Segmentations": "vtkSlicerSegmentationsModuleLogic",
    "SubjectHierarchy": "vtkSlicerSubjectHierarchyModuleLogic",
    "Models": "vtkSlicerModelsLogic",
    "Markups": "vtkSlicerMarkupsLogic",
    "Tables": "vtkSlicerTablesLogic",
    "Transforms": "vtkSlicerTransformLogic",
    "Units": "vtkSlicerUnitsLogic",
    "Cameras": "vtkSlicerCamerasModuleLogic",
    "CropVolume": "vtkSlicerCropVolumeLogic",
    "VolumeRendering": "vtkSlicerVolumeRenderingLogic",
    "Sequences": "vtkSlicerSequencesLogic",
    "Plots": "vtkSlicerPlotsLogic",
}
IN_HIERARCHY = ("vtkMRMLDisplayableNode", "vtkMRMLTableNode", "vtkMRMLTextNode")
_kept: list = []  # what must live as long as the process


def slicer_source() -> Path | None:
    """The checkout of Slicer's source that SLICER_SRC names."""
    return Path(os.environ["SLICER_SRC"]) if os.environ.get("SLICER_SRC") else None


def prepare() -> None:
    """Makes Slicer's Python files and widgets importable; neither a scene nor an application yet."""
    import qt  # noqa: F401 - PySide6 must be dressed before widgets derive from it
    import slicer
    import slicer.util

    source = slicer_source()
    folder = str(source / "Base/Python/slicer" if source else OWN_PYTHON)
    if folder in slicer.__path__:
        return
    slicer.__path__.append(folder)
    for name, module in list(sys.modules.items()):  # the names that the wrapped libraries have in Slicer
        if name.startswith("slicer_core.") and name.count(".") == 1:
            sys.modules.setdefault(name.split(".")[1] + "Python", module)
    from slicer_standin import modules, widgets

    widgets.install(slicer)
    modules.install(slicer)


def boot(view_size_px: tuple[int, int] = (320, 300)):
    """The application; the same one at each call."""
    import slicer

    if hasattr(slicer, "app"):
        return slicer.app
    prepare()
    _make_none_last()
    slicer.mrmlScene = scene = slicer.vtkMRMLScene()
    logic = _application_logic(scene)
    share = _share_folder()
    logic.SetHomeDirectory(str(share))
    logic.SetShareDirectory(".")
    from slicer_standin.application import SlicerApplication

    slicer.app = SlicerApplication(logic, scene)
    with _quiet():
        _start_modules(scene, logic, share)
        _finish_scene(scene, logic)
        slicer.app.show_views(view_size_px)
    _report_errors_and_dialogs()
    return slicer.app


def _make_none_last() -> None:
    """PySide6 6.12 gives back one reference to None too many in each `processEvents()`; Python 3.11 ends at the last.

    Newer Pythons never count them (PEP 683).
    """
    if sys.version_info < (3, 12):
        ctypes.c_ssize_t.from_address(id(None)).value += 1 << 40


@contextmanager
def _quiet():
    """Without the warnings of VTK that there is no screen, and, without SLICER_SRC, no terminology."""
    import vtk

    vtk.vtkObject.GlobalWarningDisplayOff()
    yield
    vtk.vtkObject.GlobalWarningDisplayOn()


def _application_logic(scene):
    import slicer
    import vtk

    crosshair = slicer.vtkMRMLCrosshairNode()
    crosshair.SetCrosshairName("default")
    scene.AddNode(crosshair)
    logic = slicer.vtkSlicerApplicationLogic()
    logic.SetTemporaryPath(tempfile.gettempdir())
    logic.SetMRMLScene(scene)
    logic.SetSliceLogics(vtk.vtkCollection())
    logic.SetViewLogics(vtk.vtkCollection())
    for kind in ("ThreeDView", "SliceView"):
        factory = getattr(slicer, f"vtkMRML{kind}DisplayableManagerFactory").GetInstance()
        factory.SetMRMLApplicationLogic(logic)
    return logic


def _share_folder() -> Path:
    """Colour tables and terminologies of SLICER_SRC under the names that an installed Slicer gives them."""
    folder, source = Path(tempfile.mkdtemp(prefix="slicer-share-")), slicer_source()
    if source is not None:
        for file in (source / "Modules/Loadable/Terminologies/Resources").glob("*.json"):
            (folder / file.name.replace(".json", ".term.json")).symlink_to(file)
        (folder / "ColorFiles").symlink_to(source / "Base/Logic/Resources/ColorFiles")
    return folder


def _start_modules(scene, application_logic, share: Path) -> None:
    import slicer

    from slicer_standin.application import Module

    for name, class_name in LOGICS.items():
        logic = getattr(slicer, class_name)()
        if hasattr(logic, "SetModuleShareDirectory"):
            logic.SetModuleShareDirectory(str(share))
        if hasattr(logic, "SetMRMLApplicationLogic"):
            logic.SetMRMLApplicationLogic(application_logic)
        logic.SetMRMLScene(scene)
        application_logic.SetModuleLogic(name, logic)
        if name == "Colors":
            application_logic.SetColorLogic(logic)
        register_module(Module(name, logic))


def register_module(module) -> None:
    """slicer.modules.<name>, slicer.moduleNames.<Name>."""
    import slicer

    for kind in ("modules", "moduleNames"):
        if not hasattr(slicer, kind):
            setattr(slicer, kind, types.ModuleType(f"slicer.{kind}"))
            sys.modules[f"slicer.{kind}"] = getattr(slicer, kind)
    setattr(slicer.modules, module.name.lower(), module)
    setattr(slicer.moduleNames, module.name, module.name)
    slicer.app.moduleManager().modules[module.name] = module


def _finish_scene(scene, application_logic) -> None:
    import slicer
    import vtk

    slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene, True)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def add_to_hierarchy(_scene, _event, node):
        """In Slicer the plug-ins of the subject hierarchy do this."""
        shown = node is not None and not node.GetHideFromEditors() and any(node.IsA(c) for c in IN_HIERARCHY)
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
        if shown and hierarchy and not scene.IsImporting() and not hierarchy.GetItemByDataNode(node):
            hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)

    scene.AddObserver(scene.NodeAddedEvent, add_to_hierarchy)
    remote = slicer.vtkMRMLRemoteIOLogic()
    remote.SetMRMLScene(scene)
    remote.SetMRMLApplicationLogic(application_logic)
    remote.GetCacheManager().SetRemoteCacheDirectory(tempfile.mkdtemp(prefix="slicer-cache-"))
    data = slicer.vtkDataIOManagerLogic()
    data.SetMRMLScene(scene)
    data.SetMRMLApplicationLogic(application_logic)
    data.SetAndObserveDataIOManager(remote.GetDataIOManager())
    remote.AddDataIOToScene()
    _kept.extend((remote, data))


def _report_errors_and_dialogs() -> None:
    import slicer.i18n
    import slicer.util

    from slicer_standin import collect_errors, dialogs

    dialogs.install_in_slicer(slicer.util)
    collect_errors()
