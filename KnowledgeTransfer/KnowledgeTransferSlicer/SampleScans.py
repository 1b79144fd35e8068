"""SampleScans: the phantom cohort in Slicer's Sample Data module; computed on this machine, nothing is downloaded."""

from pathlib import Path

import slicer
from slicer.i18n import tr as _

CATEGORY = "KnowledgeTransfer"
CASES = 6


def register():
    """Add the phantom to the Sample Data module."""
    import SampleData

    logic = SampleData.SampleDataLogic
    if hasattr(logic, "registerCustomSampleDataCategory"):  # Slicer 5.12
        logic.registerCustomSampleDataCategory(CATEGORY, title=_("KnowledgeTransfer"))
    icon = Path(__file__).parents[1] / "Resources" / "Icons" / "KnowledgeTransfer.png"
    logic.registerCustomSampleDataSource(
        category=CATEGORY, sampleName="KnowledgeTransferPhantom", thumbnailFileName=str(icon),
        uris="", fileNames="phantom", customDownloader=load,
    )  # fmt: skip


def load(source=None):
    """Make the scans of two hospitals in the working folder, with expert annotations, and load one of hospital B.

    Returns:
        the loaded volume node.
    """
    from .Logic import KnowledgeTransferLogic
    from .Widget import WORKING_FOLDER

    folder = Path(slicer.app.settings().value(WORKING_FOLDER) or Path.home() / "KnowledgeTransfer")
    logic = KnowledgeTransferLogic()
    with slicer.util.tryWithErrorDisplay(_("The sample scans could not be made.")):
        return _made(logic, folder)
    return None


def _made(logic, folder):
    for site, name in (("A", "phantom hospital A"), ("B", "phantom hospital B")):
        if not (folder / name / "dataset.json").is_file():  # written last
            logic.phantom(folder / name, site, CASES).wait()
    scan = sorted((folder / "phantom hospital B" / "images").iterdir())[0]
    return slicer.util.loadVolume(str(scan))
