"""Import Zennit: the modules of this package import its names from here.

Zennit imports torchvision, which takes as long as torch itself and is only needed by canonizers for torchvision's
networks. With Zennit 0.5 that import is delayed until one of them is used (1.0 imports it for its types as well).
"""

import sys
from importlib.machinery import PathFinder, SourceFileLoader

import datxai.torchvision  # noqa: F401  # before Zennit


class _LazyLoader(SourceFileLoader):
    """Runs a module's code when a public name is first accessed, but not for special names that tools look up.

    Python's own LazyLoader runs it for those as well, in the middle of whatever import the tool was called from.
    """

    def exec_module(self, module):
        def load_attribute(name):
            if name.startswith("__"):
                raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
            vars(module).pop("__getattr__", None)
            super(_LazyLoader, self).exec_module(module)
            return getattr(module, name)

        module.__getattr__ = load_attribute


class _TorchvisionFinder:
    """Finds ``zennit.torchvision`` before Python's own finders, to load it lazily."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "zennit.torchvision":
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is not None and spec.origin is not None:
            spec.loader = _LazyLoader(name, spec.origin)
        return spec


sys.meta_path.insert(0, _TorchvisionFinder)

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
