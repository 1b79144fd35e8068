"""KnowledgeTransfer: the four classes that Slicer looks for in a scripted module; two packages do the work."""

import importlib.util
import os
import sys

import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import ScriptedLoadableModule, ScriptedLoadableModuleTest

if importlib.util.find_spec("KnowledgeTransferLib") is None:  # a source checkout: the library lies beside the module
    sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from KnowledgeTransferSlicer.Logic import KnowledgeTransferLogic  # noqa: E402
from KnowledgeTransferSlicer.Widget import KnowledgeTransferWidget  # noqa: E402

__all__ = ["KnowledgeTransfer", "KnowledgeTransferLogic", "KnowledgeTransferTest", "KnowledgeTransferWidget"]


class KnowledgeTransfer(ScriptedLoadableModule):
    """What the module is, for Slicer's menus."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = _("KnowledgeTransfer")
        parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        parent.dependencies = []
        parent.contributors = ["The KnowledgeTransfer contributors"]
        parent.helpText = _(
            "Lets segmentation models that others trained annotate your scans, and distils them into a small fast "
            "network that segments new scans in seconds. Teachers are models of KnowledgeTransfer, MONAI, nnU-Net or "
            "TotalSegmentator, networks in one file, or segmentations. Nothing leaves this computer. "
            '<a href="https://github.com/KnowledgeTransfer/SlicerKnowledgeTransfer">Documentation</a>'
        )
        parent.acknowledgementText = _(
            "Joins the methods of Wang et al., Network-Agnostic Knowledge Transfer for Medical Image Segmentation "
            "(arXiv:2101.09560), and Biswas, Multi-Task Multi-Scale Contrastive Knowledge Distillation for Efficient "
            "Medical Image Segmentation (arXiv:2406.03173). It is no medical device."
        )
        slicer.app.connect("startupCompleted()", registerSampleData)


def registerSampleData():
    """Offer the phantom cohort in the Sample Data module; it is computed on this machine, nothing is downloaded."""
    from KnowledgeTransferSlicer.SampleScans import register

    register()


class KnowledgeTransferTest(ScriptedLoadableModuleTest):
    """Self-test of the installed module: what it needs is there, and a panel can be made and closed with the scene."""

    def setUp(self):
        slicer.mrmlScene.Clear(False)

    def runTest(self):
        self.setUp()
        self.test_settings_are_kept_in_the_scene()

    def test_settings_are_kept_in_the_scene(self):
        logic = KnowledgeTransferLogic()
        logic.getParameterNode().annotateRunName = "self-test"
        self.assertEqual(logic.getParameterNode().annotateRunName, "self-test")
        self.assertEqual(logic.library.jobs, [])
