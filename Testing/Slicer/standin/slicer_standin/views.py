"""Slicer's own displayable managers, rendered offscreen with plain VTK: the four views, and pictures of them."""

import numpy as np
import slicer
import vtk
import vtkmodules.vtkInteractionStyle
import vtkmodules.vtkRenderingFreeType
import vtkmodules.vtkRenderingOpenGL2  # noqa: F401 - the three register what VTK needs to draw
from PySide6.QtGui import QColor, QImage, QPainter
from vtk.util.numpy_support import vtk_to_numpy

SLICE_MANAGERS = [
    "vtkMRMLModelSliceDisplayableManager",
    "vtkMRMLVolumeGlyphSliceDisplayableManager",
    "vtkMRMLCrosshairDisplayableManager",
    "vtkMRMLOrientationMarkerDisplayableManager",
    "vtkMRMLRulerDisplayableManager",
    "vtkMRMLScalarBarDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager2D",
    "vtkMRMLMarkupsDisplayableManager",
]
THREED_MANAGERS = [
    "vtkMRMLCameraDisplayableManager",
    "vtkMRMLViewDisplayableManager",
    "vtkMRMLModelDisplayableManager",
    "vtkMRMLThreeDReformatDisplayableManager",
    "vtkMRMLOrientationMarkerDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager3D",
    "vtkMRMLVolumeRenderingDisplayableManager",
    "vtkMRMLMarkupsDisplayableManager",
]
ORIENTATIONS = {"Red": "Axial", "Yellow": "Sagittal", "Green": "Coronal"}


class View:
    """A render window that is never on a screen; also stands for the widget that holds it."""

    def __init__(self, size_px: tuple[int, int]):
        self.renderer, self.window = vtk.vtkRenderer(), vtk.vtkRenderWindow()
        self.window.ShowWindowOff()
        self.window.SetOffScreenRendering(1)
        self.window.SetMultiSamples(0)
        self.window.SetSize(*size_px)
        self.window.AddRenderer(self.renderer)
        self.interactor = vtk.vtkRenderWindowInteractor()
        self.interactor.SetRenderWindow(self.window)
        self.interactor.Initialize()
        self.group = slicer.vtkMRMLDisplayableManagerGroup()
        self.group.SetRenderer(self.renderer)

    def _start(self, factory, managers: list[str]) -> None:
        factory.SetMRMLApplicationLogic(slicer.app.applicationLogic())
        for manager in managers:
            if not factory.IsDisplayableManagerRegistered(manager):
                factory.RegisterDisplayableManager(manager)
        self.group.Initialize(factory, self.renderer)

    def pixels(self) -> np.ndarray:
        """What is drawn now: `(height, width, 3)`, uint8."""
        self.window.Render()
        reader = vtk.vtkWindowToImageFilter()
        reader.SetInput(self.window)
        reader.ReadFrontBufferOff()
        reader.Update()
        image = reader.GetOutput()
        width, height, _ = image.GetDimensions()
        array = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(height, width, -1)
        return np.ascontiguousarray(array[::-1, :, :3])

    def renderWindow(self):
        return self.window

    def forceRender(self):
        self.window.Render()

    scheduleRender = forceRender


class SliceView(View):
    """A slice view; stands for its widget, view and controller."""

    def __init__(self, name: str, size_px: tuple[int, int]):
        super().__init__(size_px)
        self.renderer.GetActiveCamera().ParallelProjectionOn()
        self._add_image()
        self._start(slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance(), SLICE_MANAGERS)
        application = slicer.app.applicationLogic()
        self.logic = slicer.vtkMRMLSliceLogic()
        self.logic.SetMRMLApplicationLogic(application)
        application.GetSliceLogics().AddItem(self.logic)
        self.logic.SetMRMLScene(slicer.mrmlScene)
        self.node = self.logic.AddSliceNode(name)
        self.node.SetOrientation(ORIENTATIONS[name])
        self.group.SetMRMLDisplayableNode(self.node)
        self.logic.ResizeSliceNode(*size_px)
        self.logic.AddObserver(vtk.vtkCommand.ModifiedEvent, self._update)
        self._update()

    def _add_image(self) -> None:
        """Before all else in the renderer: drawn later, the image would hide what segmentations blend with it."""
        self.mapper, self.actor = vtk.vtkImageMapper(), vtk.vtkActor2D()
        self.mapper.SetColorWindow(255)
        self.mapper.SetColorLevel(127.5)
        self.actor.SetMapper(self.mapper)
        self.actor.GetProperty().SetDisplayLocationToBackground()
        self.actor.SetVisibility(False)
        self.renderer.AddViewProp(self.actor)

    def _update(self, *_args) -> None:
        image = self.logic.GetImageDataConnection()
        has_input = self.mapper.GetNumberOfInputConnections(0) > 0
        if image is not (self.mapper.GetInputConnection(0, 0) if has_input else None):
            self.mapper.SetInputConnection(image)
        self.actor.SetVisibility(image is not None)

    def fit(self) -> None:
        self.logic.ResizeSliceNode(*self.window.GetSize())
        self.logic.FitSliceToBackground()
        self._update()

    def sliceLogic(self):
        return self.logic

    def mrmlSliceNode(self):
        return self.node

    def sliceView(self):
        return self

    sliceController = sliceView

    def setSliceOffsetValue(self, offset_mm):
        self.logic.SetSliceOffset(offset_mm)

    fitSliceToBackground = fit


class ThreeDView(View):
    """The 3-D view; stands for its widget, view and controller."""

    def __init__(self, name: str, size_px: tuple[int, int]):
        super().__init__(size_px)
        self._start(slicer.vtkMRMLThreeDViewDisplayableManagerFactory.GetInstance(), THREED_MANAGERS)
        application = slicer.app.applicationLogic()
        self.logic = slicer.vtkMRMLViewLogic()
        self.logic.SetMRMLApplicationLogic(application)
        application.GetViewLogics().AddItem(self.logic)
        self.logic.SetMRMLScene(slicer.mrmlScene)
        self.node = self.logic.AddViewNode(name)
        self.group.SetMRMLDisplayableNode(self.node)

    def resetFocalPoint(self):
        """Shows all there is, without the box around it, which a closed scene brings back."""
        self.node.SetBoxVisible(0)
        self.node.SetAxisLabelsVisible(0)
        self.window.Render()
        self.renderer.ResetCamera()
        self.renderer.ResetCameraClippingRange()

    resetCamera = fit = resetFocalPoint

    def mrmlViewNode(self):
        return self.node

    def threeDView(self):
        return self

    threeDController = threeDView


class LayoutManager:
    """slicer.app.layoutManager(): three slice views and one 3-D view."""

    tableViewCount = plotViewCount = 0
    threeDViewCount = 1

    def __init__(self, size_px: tuple[int, int]):
        self._slices = {name: SliceView(name, size_px) for name in ORIENTATIONS}
        self._threed = ThreeDView("1", size_px)
        self.layout = slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView

    def setLayout(self, layout):
        self.layout = layout

    def sliceViewNames(self):
        return tuple(self._slices)

    def mrmlSliceLogics(self):
        return slicer.app.applicationLogic().GetSliceLogics()

    def sliceWidget(self, name):
        return self._slices[name]

    def threeDWidget(self, index):
        return self._threed

    def resetSliceViews(self):
        for view in self._slices.values():
            view.fit()

    def resetThreeDViews(self):
        self._threed.fit()

    def png(self, path, panel=None) -> str:
        """Writes the four views, and beside them the panel (a widget) if there is one."""
        red, yellow, green = (view.pixels() for view in self._slices.values())
        self._threed.fit()
        views = np.vstack([np.hstack([red, self._threed.pixels()]), np.hstack([green, yellow])])
        height, width, _ = views.shape
        picture = QImage(np.ascontiguousarray(views).data, width, height, 3 * width, QImage.Format.Format_RGB888)
        if panel is not None:
            picture = _beside(panel.grab().toImage(), picture)
        if not picture.save(str(path)):
            raise OSError(f"cannot write the picture {path}")
        return str(path)


def _beside(left: QImage, right: QImage) -> QImage:
    height = max(left.height(), right.height())
    both = QImage(left.width() + right.width(), height, QImage.Format.Format_RGB888)
    both.fill(QColor(240, 240, 240))
    painter = QPainter(both)
    painter.drawImage(0, 0, left)
    painter.drawImage(left.width(), 0, right)
    painter.end()
    return both
