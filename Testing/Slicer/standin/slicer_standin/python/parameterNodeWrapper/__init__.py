"""slicer.parameterNodeWrapper, written for the stand-in: typed fields on a vtkMRMLScriptedModuleNode.

Fields are kept in the node under the names that Slicer uses, so that scenes fit both ways.
"""

from .connectors import Decimals, SingleStep
from .validators import Choice, Default, Exclude, IsInstance, Maximum, Minimum, NotNone, Validator, WithinRange
from .wrapper import isParameterNodeWrapper, parameterNodeWrapper

__all__ = [
    "Choice",
    "Decimals",
    "Default",
    "Exclude",
    "IsInstance",
    "Maximum",
    "Minimum",
    "NotNone",
    "SingleStep",
    "Validator",
    "WithinRange",
    "isParameterNodeWrapper",
    "parameterNodeWrapper",
]
