"""Makes torchvision importable with a torch of another build.

If torch is a CPU build and torchvision is not, torchvision cannot be imported, because its compiled operators are
missing; declaring the ones that it needs is enough. Import this module before torchvision.
"""

import sys

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_library = torch.library.Library("torchvision", "FRAGMENT")  # undone when garbage-collected, hence the reference


class _OperatorHook:
    """Import hook that Python calls for every module before its own search."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "torchvision._meta_registrations":  # the compiled operators are loaded by now, if there are any
            for operator in ("nms", "qnms"):
                if not hasattr(torch.ops.torchvision, operator):
                    _library.define(operator + _SCHEMA)
        return None


sys.meta_path.insert(0, _OperatorHook)
