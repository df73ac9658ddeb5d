"""The room's door to Zennit: every module here imports Zennit's names from this file.

Zennit imports torchvision, of which datxai needs nothing. Where torch is a CPU build and torchvision is not, that
import fails because the compiled operators of torchvision are missing; declaring the one that it asks for is enough.
"""

import sys

import torch

_DETECTION_OPERATORS = ("nms", "qnms")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_MISSING = "operator torchvision::nms does not exist"

try:
    import zennit.torchvision
except RuntimeError as error:
    if _MISSING not in str(error):
        raise
    for name in [name for name in sys.modules if name.partition(".")[0] in {"torchvision", "zennit"}]:
        del sys.modules[name]
    _library = torch.library.Library("torchvision", "FRAGMENT")  # undone when collected, so kept by its name
    for name in _DETECTION_OPERATORS:
        _library.define(name + _SCHEMA)
    import zennit.torchvision

from zennit import canonizers, layer, rules, types
from zennit.core import BasicHook, Composite, Hook, RemovableHandle, RemovableHandleList, zero_wrap

ResNetCanonizer = zennit.torchvision.ResNetCanonizer

__all__ = [
    "BasicHook",
    "Composite",
    "Hook",
    "RemovableHandle",
    "RemovableHandleList",
    "ResNetCanonizer",
    "canonizers",
    "layer",
    "rules",
    "types",
    "zero_wrap",
]
