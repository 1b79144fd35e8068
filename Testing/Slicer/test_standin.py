"""The stand-in itself: what the other tests rely on behaves as in Slicer."""

import numpy as np
import pytest


def test_an_exception_in_a_slot_is_collected(a_scene, slot_errors):
    import qt

    button = qt.QPushButton("boom")
    button.connect("clicked()", lambda: 1 / 0)
    button.click()

    assert [type(error) for error in slot_errors] == [ZeroDivisionError]
    slot_errors.clear()


def test_an_exception_in_an_observer_is_collected(a_scene, a_volume, slot_errors):
    import vtk

    volume = a_volume()
    volume.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: 1 / 0)
    volume.Modified()

    assert slot_errors
    slot_errors.clear()


def test_signals_are_connected_by_signature_with_the_arguments_that_a_slot_takes(a_scene):
    import qt

    button, heard = qt.QPushButton("go"), []
    button.connect("clicked(bool)", lambda: heard.append("none"))
    button.connect("clicked(bool)", heard.append)
    button.click()
    button.disconnect("clicked(bool)", heard.append)
    button.click()

    assert heard == ["none", False, "none"]
    with pytest.raises(ValueError, match="no signal"):
        button.connect("clicked(int)", heard.append)


def test_what_pythonqt_lacks_is_refused(a_scene):
    import qt

    with pytest.raises(TypeError, match="keyword"):
        qt.QPushButton(text="go")
    assert not any(hasattr(qt, name) for name in ("Signal", "Slot", "Property"))


@pytest.fixture
def checkable(a_scene):
    import slicer

    combo = slicer.qMRMLCheckableNodeComboBox()
    combo.nodeTypes, combo.showChildNodeTypes = ["vtkMRMLScalarVolumeNode"], False
    combo.setMRMLScene(a_scene)
    yield combo
    combo.delete()


def test_nodes_are_checked_and_unchecked(checkable, a_volume):
    import qt

    one, two, heard = a_volume(name="one"), a_volume(name="two"), []
    a_volume(name="labels", node_class="vtkMRMLLabelMapVolumeNode")
    checkable.connect("checkedNodesChanged()", lambda: heard.append(1))
    assert checkable.nodeCount() == 2 and checkable.noneChecked()

    checkable.setCheckState(two, qt.Qt.Checked)
    checkable.check(one)
    checkable.uncheck(one)
    checkable.uncheck(one)

    assert checkable.checkedNodes() == (two,) and checkable.uncheckedNodes() == (one,) and len(heard) == 3
    assert checkable.checkState(two) == qt.Qt.Checked


def test_check_marks_survive_other_nodes_and_go_with_their_own(checkable, a_volume, a_scene):
    one = a_volume(name="one")
    checkable.check(one)
    two = a_volume(name="two")
    assert checkable.checkedNodes() == (one,)

    a_scene.RemoveNode(one)

    assert checkable.checkedNodes() == () and checkable.uncheckedNodes() == (two,)


def test_a_node_combo_box_lists_its_classes_and_forgets_what_is_gone(a_scene, a_volume):
    import slicer

    combo, heard = slicer.qMRMLNodeComboBox(), []
    combo.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    combo.setMRMLScene(a_scene)
    combo.connect("currentNodeChanged(vtkMRMLNode*)", heard.append)
    one = a_volume(name="one")
    assert combo.currentNode() is None

    combo.setCurrentNode(one)
    slicer.mrmlScene.RemoveNode(one)

    assert heard == [one, None] and combo.nodeCount() == 0
    combo.delete()


def test_the_plot_widget_draws_the_curves_of_its_chart(a_scene):
    import slicer

    table = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode")
    slicer.util.updateTableFromArray(table, np.array([[0, 1], [1, 3], [2, 2.0]]), ["epoch", "loss"])
    series = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLPlotSeriesNode", "loss")
    series.SetAndObserveTableNodeID(table.GetID())
    series.SetXColumnName("epoch")
    series.SetYColumnName("loss")
    series.SetColor(1, 0, 0)
    chart = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLPlotChartNode")
    view = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLPlotViewNode")
    widget = slicer.qMRMLPlotWidget()
    widget.setMRMLScene(a_scene)
    widget.setMRMLPlotViewNode(view)
    widget.resize(400, 200)
    view.SetPlotChartNodeID(chart.GetID())
    assert _red_pixels(widget) == 0

    chart.AddAndObservePlotSeriesNodeID(series.GetID())
    drawn = _red_pixels(widget)
    assert drawn > 300

    slicer.util.updateTableFromArray(table, np.array([[0, 1], [1, 1.0]]), ["epoch", "loss"])
    assert 0 < _red_pixels(widget) != drawn
    widget.delete()


def _red_pixels(widget) -> int:
    import qt

    image = widget.grab().toImage().convertToFormat(qt.QImage.Format_RGB888)
    pixels = np.frombuffer(image.constBits(), np.uint8).reshape(image.height(), image.bytesPerLine())
    pixels = pixels[:, : 3 * image.width()].reshape(image.height(), image.width(), 3).astype(int)
    return int(((pixels[..., 0] > 200) & (pixels[..., 1:] < 80).all(axis=-1)).sum())


def test_a_path_line_remembers_its_history(a_scene):
    import ctk

    line, another = ctk.ctkPathLineEdit(), ctk.ctkPathLineEdit()
    line.settingKey = "KnowledgeTransfer/runs"
    for path in ("/a", "/b", "/a"):
        line.currentPath = path
        line.addCurrentPathToHistory()

    another.settingKey = "KnowledgeTransfer/runs"

    assert another.currentPath == "/a" and another.comboBox().count == 2


def test_dialogs_are_noted_and_answered(dialogs, a_scene):
    import qt
    import slicer

    dialogs.answer(False, "/chosen")
    assert slicer.util.confirmOkCancelDisplay("Sure?") is False
    assert qt.QFileDialog.getExistingDirectory(None, "Folder", "/") == "/chosen"
    assert qt.QFileDialog.getOpenFileName(None, "File") == ""
    with pytest.raises(OSError, match="disk"), slicer.util.tryWithErrorDisplay("It failed."):
        raise OSError("disk full")
    qt.QDesktopServices.openUrl(qt.QUrl("file:///a"))

    assert [d.kind for d in dialogs.shown] == ["confirmOkCancel", "getExistingDirectory", "getOpenFileName", "error"]
    assert "disk full" in dialogs.shown[-1].text and dialogs.opened == ["file:///a"]


def test_volumes_are_exported_under_their_transform_and_read_again(a_volume, tmp_path):
    import slicer
    import vtk

    volume = a_volume(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.diag([2, 3, 4, 1]))
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    moved = vtk.vtkMatrix4x4()
    moved.SetElement(0, 3, 10)
    transform.SetMatrixTransformToParent(moved)
    volume.SetAndObserveTransformNodeID(transform.GetID())

    slicer.util.exportNode(volume, str(tmp_path / "ä b.nii.gz"), {}, world=True)
    loaded = slicer.util.loadVolume(str(tmp_path / "ä b.nii.gz"), {"show": False})

    assert loaded.GetName() == "ä b" and loaded.GetOrigin()[0] == pytest.approx(10)
    assert np.array_equal(slicer.util.arrayFromVolume(loaded), slicer.util.arrayFromVolume(volume))
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 2


def test_the_four_views_show_a_volume_with_its_segmentation(a_volume, tmp_path):
    import qt
    import slicer

    scan = np.zeros((20, 24, 28), np.int16)
    scan[5:15, 6:18, 7:21] = 200
    volume = a_volume(scan)
    segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    segmentation.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    segment_id = segmentation.GetSegmentation().AddEmptySegment("box", "box", [1, 0, 0])
    mask = (scan > 0).astype(np.uint8)
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, segmentation, segment_id, volume)
    segmentation.CreateDefaultDisplayNodes()
    button = slicer.qMRMLSegmentationShow3DButton()
    button.setSegmentationNode(segmentation)
    button.click()
    slicer.util.setSliceViewerLayers(background=volume, fit=True)

    image = qt.QImage(slicer.app.layoutManager().png(tmp_path / "views.png"))

    assert segmentation.GetSegmentation().ContainsRepresentation("Closed surface") and button.checked
    for x, y in ((1, 1), (3, 1), (1, 3), (3, 3)):  # the middle of each view
        color = qt.QColor(image.pixel(image.width() * x // 4, image.height() * y // 4))
        assert color.red() > color.blue() + 30, (x, y, color.getRgb())


def test_a_module_is_loaded_opened_reloaded_and_closed(a_scene, tmp_path):
    import slicer

    import slicer_standin

    (tmp_path / "Resources").mkdir()
    (tmp_path / "Small.py").write_text(
        "from slicer.ScriptedLoadableModule import *\n"
        "told = []\n"
        "class Small(ScriptedLoadableModule):\n"
        "    def __init__(self, parent): super().__init__(parent); parent.title = 'A small one'\n"
        "class SmallWidget(ScriptedLoadableModuleWidget):\n"
        "    def setup(self): super().setup(); told.append('setup')\n"
        "    def enter(self): told.append('enter')\n"
        "    def exit(self): told.append('exit')\n"
        "    def cleanup(self): told.append('cleanup')\n"
    )
    code = slicer_standin.load_module(tmp_path / "Small.py")
    widget = slicer_standin.open_panel("Small")
    assert widget.resourcePath("UI/x.ui") == str(tmp_path / "Resources" / "UI" / "x.ui")
    assert slicer.modules.small.title == "A small one" and widget.layout is not None

    widget.onReload()
    assert slicer.modules.SmallWidget is not widget
    slicer_standin.close_panel("Small")

    assert code.told == ["setup", "enter", "cleanup"]
    import Small

    assert Small.told == ["setup", "exit", "cleanup"]
