"""Parameter node: everything that the user set in the panel, kept in the scene."""

from typing import Annotated

from slicer import vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode
from slicer.parameterNodeWrapper import Choice, Default, WithinRange, parameterNodeWrapper

from KnowledgeTransferLib.records.settings import DECISIONS
from KnowledgeTransferLib.records.students import STUDENTS

DEVICES = ["auto", "cuda", "mps", "cpu"]


@parameterNodeWrapper
class KnowledgeTransferParameterNode:
    """What the three tabs work on, and how. `Teacher` paths may also be `scene:` (segmentation nodes of the scene)."""

    device: Annotated[str, Choice(DEVICES), Default("auto")]

    annotateFrom: str = "scene"  # or "disk"
    annotateVolumes: list[vtkMRMLScalarVolumeNode]
    annotateCohort: str = ""
    teacherPaths: list[str]
    teacherWeights: list[float]
    annotateRunName: str = ""
    uncertainty: bool = False
    probabilities: bool = True

    distilRun: str = ""
    learnFrom: Annotated[str, Choice(["pseudo", "expert", "both"]), Default("pseudo")]
    expertCohort: str = ""
    student: Annotated[str, Choice(list(STUDENTS)), Default("tiny")]
    lengthBy: Annotated[str, Choice(["automatic", "minutes", "epochs"]), Default("automatic")]
    minutes: Annotated[float, WithinRange(0.1, 10080.0), Default(60.0)]
    epochs: Annotated[int, WithinRange(1, 100000), Default(100)]
    startFrom: str = ""
    soft: bool = True
    decision: Annotated[str, Choice(list(DECISIONS)), Default("expected-dice")]
    seed: Annotated[int, WithinRange(0, 2147483647), Default(0)]

    bundle: str = ""
    segmentFrom: str = "scene"  # or "disk"
    segmentVolumes: list[vtkMRMLScalarVolumeNode]
    segmentInput: str = ""
    segmentOutput: str = ""
    overwrite: bool = False
    result: vtkMRMLSegmentationNode
    compareWith: vtkMRMLSegmentationNode
