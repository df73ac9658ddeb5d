"""The room's door to Zennit: every module here imports Zennit's names from this file.

Zennit imports torchvision, which takes as long as torch itself and which only canonizers for torchvision's networks
need: with Zennit 0.5 it is put off until one is asked for (1.0 imports it for its types as well).
"""

import sys
from importlib.machinery import PathFinder, SourceFileLoader

import datxai.torchvision  # noqa: F401  # before it


class _OnDemand(SourceFileLoader):
    """Runs a module's code when a name is first taken from it; what tools ask of every module does not count.

    Python's own LazyLoader runs it for those as well, in the middle of whatever import the tool was called from.
    """

    def exec_module(self, module):
        def take(name):
            if name.startswith("__"):
                raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
            vars(module).pop("__getattr__", None)
            super(_OnDemand, self).exec_module(module)
            return getattr(module, name)

        module.__getattr__ = take


class _Door:
    """Asked by Python's import for every module, before it looks for it itself."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "zennit.torchvision":
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is not None and spec.origin is not None:
            spec.loader = _OnDemand(name, spec.origin)
        return spec


sys.meta_path.insert(0, _Door)

import zennit
from zennit import canonizers, layer, rules, types
from zennit.core import BasicHook, Composite, Hook, RemovableHandle, RemovableHandleList, zero_wrap

__all__ = [
    "BasicHook",
    "Composite",
    "Hook",
    "RemovableHandle",
    "RemovableHandleList",
    "canonizers",
    "layer",
    "rules",
    "types",
    "zennit",
    "zero_wrap",
]
