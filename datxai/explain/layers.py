"""Properties of a layer that its class does not tell: replaced code, hooks, the origin of its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _module
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from datxai.errors import InputError
from datxai.explain._zennit import types

_PRE_FORWARD = "_forward_pre_hooks"
_OUTPUT_HOOKS = ("_forward_hooks", "_backward_hooks", "_backward_pre_hooks")  # may change outputs or gradients
_ALL_HOOKS = (_PRE_FORWARD, *_OUTPUT_HOOKS)
ELEMENTWISE = (*(kind for kind in types.Activation.__subclass__ if kind is not nn.MultiheadAttention), nn.Mish)
_CASE_BY_CASE = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *types.BatchNorm.__subclass__, *types.MaxPool.__subclass__,
    *types.AvgPool.__subclass__, *ELEMENTWISE, nn.Flatten, nn.Identity, nn.Dropout, nn.Dropout2d, nn.Dropout3d,
)  # fmt: skip


def computes_as_defined(module: nn.Module) -> bool:
    """Whether a layer of torch.nn runs PyTorch's code, not that of a subclass or a replacement."""
    defined = next((base for base in type(module).__mro__ if base.__module__.startswith("torch.nn.modules")), None)
    methods = [name for name in ("forward", "_conv_forward") if hasattr(defined, name)]
    return defined is not None and all(
        getattr(type(module), name) is getattr(defined, name) and name not in vars(module) for name in methods
    )


def has_hooks(module: nn.Module, kinds: Sequence[str] = _OUTPUT_HOOKS) -> bool:
    """Whether hooks act on this layer, its own or global ones."""
    return any(getattr(module, kind) or getattr(_module, f"_global{kind}") for kind in kinds)


def is_plain(module: nn.Module, *types: type[nn.Module]) -> bool:
    """Whether a module is an instance of one of these very classes, with its original code and without hooks."""
    return type(module) in types and computes_as_defined(module) and not has_hooks(module, _ALL_HOOKS)


def keeps_cases_apart(model: nn.Module) -> bool:
    """Whether the layers alone show that a network processes each case of a batch independently.

    Other classes of layers can declare this by a class attribute ``case_by_case``.
    """
    return (
        isinstance(model, nn.Sequential)
        and is_plain(model, nn.Sequential)
        and all(_is_case_by_case(layer) for layer in model)
    )


def _is_case_by_case(layer: nn.Module) -> bool:
    if vars(type(layer)).get("case_by_case", False):  # not inherited: a subclass may compute something else
        return "forward" not in vars(layer) and not has_hooks(layer, _ALL_HOOKS)
    return is_plain(layer, *_CASE_BY_CASE) and getattr(layer, "start_dim", 1) == 1


def made_weights(module: nn.Module) -> list[str]:
    """Which of weight and bias are not parameters, but computed from some (by a hook or a property) or buffers."""
    names = [name for name in ("weight", "bias") if isinstance(getattr(module, name, None), Tensor)]
    return [name for name in names if name not in module._parameters]


def by_case(values: Tensor, cases: int, reduce: Callable = torch.sum) -> Tensor:
    """Values [rows] of a layer by case, [cases]: either each row is a case, or all rows belong to the only case."""
    if len(values) != cases > 1:
        raise FoldedBatch
    return values if cases > 1 else reduce(values, dim=0, keepdim=True)


class FoldedBatch(Exception):
    """Raised if the first axis of a layer is not the cases, so that they must be explained one by one."""


def tensors_in(value: object) -> Iterator[Tensor]:
    """Every tensor in arguments or outputs, however nested."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list, dict)):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(entry)


def require_weights(model: nn.Module) -> None:
    """Raise InputError for lazy layers without weights."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            raise InputError(
                f"{name} has no shape yet, because its layer is lazy; run the network once before explaining it."
            )


class OutsideLayers(TorchFunctionMode):
    """Base class of modes that handle calls outside the layers of torch.nn; ``inside`` is not 0 within a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = 0

    def follow(self, model: nn.Module) -> list[RemovableHandle]:
        """Track when the network is inside a layer; the handles end it."""
        layers = [
            module
            for module in model.modules()
            if type(module).__module__.startswith("torch.nn")
            and (not list(module.children()) or isinstance(module, nn.MultiheadAttention))
        ]
        return [
            *(layer.register_forward_pre_hook(lambda *_: self._step(1), prepend=True) for layer in layers),
            *(layer.register_forward_hook(lambda *_: self._step(-1)) for layer in layers),
        ]

    def _step(self, change: int) -> None:
        self.inside += change
