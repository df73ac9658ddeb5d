"""What is asked of a layer itself, because its class does not tell: its code, its hooks, the origin of its weights."""

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

PRE_FORWARD = "_forward_pre_hooks"
AROUND = ("_forward_hooks", "_backward_hooks", "_backward_pre_hooks")  # may change what a layer hands on, or back
ELEMENTWISE = (*(kind for kind in types.Activation.__subclass__ if kind is not nn.MultiheadAttention), nn.Mish)
_CASE_BY_CASE = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *types.BatchNorm.__subclass__, *types.MaxPool.__subclass__,
    *types.AvgPool.__subclass__, *ELEMENTWISE, nn.Flatten, nn.Identity, nn.Dropout, nn.Dropout2d, nn.Dropout3d,
)  # fmt: skip


def computes_as_defined(module: nn.Module) -> bool:
    """Whether a layer of torch.nn runs PyTorch's code, and not a subclass's own or what replaced it."""
    defined = next((base for base in type(module).__mro__ if base.__module__.startswith("torch.nn.modules")), None)
    parts = [part for part in ("forward", "_conv_forward") if hasattr(defined, part)]
    return defined is not None and all(
        getattr(type(module), part) is getattr(defined, part) and part not in vars(module) for part in parts
    )


def has_hooks(module: nn.Module, kinds: Sequence[str] = AROUND) -> bool:
    """Whether hooks are at work when this layer runs, its own or those for all modules."""
    return any(getattr(module, kind) or getattr(_module, f"_global{kind}") for kind in kinds)


def is_plain(module: nn.Module, *types: type[nn.Module]) -> bool:
    """Whether a module is of one of these very classes, and does what they define and nothing else."""
    return type(module) in types and computes_as_defined(module) and not has_hooks(module, (PRE_FORWARD, *AROUND))


def keeps_cases_apart(model: nn.Module) -> bool:
    """Whether the layers alone show that a network processes each case of a batch independently.

    A layer of another class says so by a class attribute ``case_by_case``.
    """
    return (
        isinstance(model, nn.Sequential)
        and is_plain(model, nn.Sequential)
        and all(_is_case_by_case(layer) for layer in model)
    )


def _is_case_by_case(layer: nn.Module) -> bool:
    if vars(type(layer)).get("case_by_case", False):  # not inherited: a subclass may compute something else
        return "forward" not in vars(layer) and not has_hooks(layer, (PRE_FORWARD, *AROUND))
    return is_plain(layer, *_CASE_BY_CASE) and getattr(layer, "start_dim", 1) == 1


def made_weights(module: nn.Module) -> list[str]:
    """Which of weight and bias are no parameters, but made of some (by a hook, a property) or kept as a buffer."""
    names = [name for name in ("weight", "bias") if isinstance(getattr(module, name, None), Tensor)]
    return [name for name in names if name not in module._parameters]


def by_case(values: Tensor, cases: int, reduce: Callable = torch.sum) -> Tensor:
    """Values [rows] of a layer by case, [cases]: a row is a case, or all rows belong to the only one."""
    if len(values) != cases > 1:
        raise FoldedBatch
    return values if cases > 1 else reduce(values, dim=0, keepdim=True)


class FoldedBatch(Exception):
    """A layer's first axis is not that of the cases: only one by one is it known what belongs to which."""


def tensors_in(value: object) -> Iterator[Tensor]:
    """Every tensor in arguments or outputs, however nested."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list, dict)):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(entry)


def require_weights(model: nn.Module) -> None:
    """Refuse layers whose weights are still to come."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            raise InputError(
                f"{name} has no shape yet, its layer being lazy; run the network on an input once before explaining it."
            )


class OutsideLayers(TorchFunctionMode):
    """Looks at what a network calls outside of layers of torch.nn: while it is within one, ``inside`` is not 0."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = 0

    def follow(self, model: nn.Module) -> list[RemovableHandle]:
        """Be told from now on when the network is inside a layer; the handles end it."""
        layers = [
            module
            for module in model.modules()
            if type(module).__module__.startswith("torch.nn")
            and (not list(module.children()) or isinstance(module, nn.MultiheadAttention))
        ]
        return [
            *(layer.register_forward_pre_hook(lambda *_: self._go(1), prepend=True) for layer in layers),
            *(layer.register_forward_hook(lambda *_: self._go(-1)) for layer in layers),
        ]

    def _go(self, steps: int) -> None:
        self.inside += steps
