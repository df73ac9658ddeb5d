"""Detect, while the network runs, what makes the rule of a layer invalid."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from datxai.errors import InputError
from datxai.explain import rules as fast
from datxai.explain._zennit import BasicHook, RemovableHandleList
from datxai.explain._zennit import rules as stock
from datxai.explain.assignment import RuledLayer
from datxai.explain.layers import made_weights, tensors_in

_KEEPS_NOTHING = (fast.Rule, stock.Pass, stock.ReLUGuidedBackprop)  # between forward and backward, or for each call
_KEEP_SHAPE = ("pass", "guided_backprop")


class Watch:
    """Checks each forward pass of a network after `open`, and raises `InputError`.

    For layers with a rule that never run, run again although Zennit's hook keeps only the last input, get their input
    by keyword or more than one input that depends on the image, output anything but one tensor, or change its shape
    although their rule passes relevance on unchanged; and for weights that a hook of Zennit cannot modify. Further
    arguments of a layer, such as ``output_size``, also apply when Zennit's hook runs it.
    """

    def __init__(self):
        self.running = False
        self.ran: set[str] = set()

    def open(self, model: nn.Module, ruled_layers: Iterable[RuledLayer]) -> RemovableHandleList:
        """Start checking; the handles end it."""
        self.ruled_layers = list(ruled_layers)
        handles = RemovableHandleList()
        for ruled in self.ruled_layers:
            handles += self._watch(ruled)
        if self.ruled_layers:
            handles.append(model.register_forward_pre_hook(self._begin, prepend=True))
            handles.append(model.register_forward_hook(self._end))
        return handles

    def _watch(self, ruled: RuledLayer) -> list:
        name, module, rule = ruled.name, ruled.module, ruled.rule
        hook = getattr(ruled.hook, "fallback", None) or ruled.hook
        where = f"layer {name} ({type(module).__name__})"
        _require_modifiable(where, module, rule, hook)
        keeps_nothing = isinstance(hook, _KEEPS_NOTHING)
        other_rule = "epsilon with rules=fast" if keeps_nothing or fast.Epsilon().fits(module) else "gradient"
        bound = None if isinstance(hook, fast.Rule) else _BoundForward(module)

        def before(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
            if not args or not isinstance(args[0], Tensor):
                raise InputError(
                    f"{where} with rule {rule} is not called with a tensor as its first argument; call it as layer(x), "
                    f"not layer(input=x), or give it the rule gradient."
                )
            if self.running and name in self.ran and not keeps_nothing:
                raise InputError(
                    f"{where} is used more than once, and Zennit's hook for rule {rule} keeps only the last input; "
                    f"use a separate module for each place, or give it the rule {other_rule}."
                )
            if any(tensor.requires_grad for tensor in tensors_in((args[1:], kwargs))):
                raise InputError(
                    f"{where} is called with more than one tensor that depends on the input, and rule {rule} supports "
                    f"only one; give it the rule gradient, or for a sum pass them to zennit.layer.Sum as one stack."
                )
            self.ran.add(name)
            if bound is None:
                return None
            bound.args, bound.kwargs = args[1:], kwargs
            return args[:1], {}

        def after(module: nn.Module, args: tuple, output: object) -> None:
            if not isinstance(output, Tensor):
                raise InputError(
                    f"{where} outputs a {type(output).__name__}, and rule {rule} is for layers that output one "
                    f"tensor; give it the rule gradient."
                )
            if rule in _KEEP_SHAPE and output.shape != args[0].shape:
                raise InputError(
                    f"{where} makes {list(output.shape)} of {list(args[0].shape)}, and rule {rule} is for layers that "
                    f"keep the shape; give it the rule gradient, or norm if it averages or adds."
                )

        return [
            *([] if bound is None else [bound]),
            module.register_forward_pre_hook(before, prepend=True, with_kwargs=True),
            module.register_forward_hook(after, prepend=True),
        ]

    def _begin(self, model: nn.Module, args: tuple) -> None:
        self.running, self.ran = True, set()
        for ruled in self.ruled_layers:
            if isinstance(ruled.hook, fast.Rule):
                ruled.hook.ran = False

    def _end(self, model: nn.Module, args: tuple, output: object) -> None:
        self.running = False
        idle = [
            f"{ruled.name} ({type(ruled.module).__name__})"
            for ruled in self.ruled_layers
            if ruled.name not in self.ran and not getattr(ruled.hook, "ran", False)
        ]
        if idle:
            raise InputError(
                f"composite.layers gives a rule to {', '.join(idle)}, which did not run as a layer, so that no rule "
                f"applies to what the network does with it; if that is intended, give it the rule gradient."
            )


class _BoundForward:
    """Binds further arguments of a layer to its ``forward``, as Zennit's hook calls it with one tensor only.

    ``args`` and ``kwargs`` are those that the layer was last called with.
    """

    def __init__(self, module: nn.Module):
        self.module, self.instance_forward = module, vars(module).get("forward")
        self.args, self.kwargs = (), {}
        forward = module.forward
        module.forward = lambda x: forward(x, *self.args, **self.kwargs)

    def remove(self) -> None:
        vars(self.module).pop("forward", None)
        if self.instance_forward is not None:
            self.module.forward = self.instance_forward


def _require_modifiable(where: str, module: nn.Module, rule: str, hook: Any) -> None:
    """Raise InputError if a rule modifies weights that are not parameters of the layer."""
    modifiers = (isinstance(hook, BasicHook) and hook.param_modifiers) or ()
    computed = made_weights(module) if any(not isinstance(modifier, stock.NoMod) for modifier in modifiers) else []
    if computed:
        raise InputError(
            f"the {' and '.join(computed)} of {where} is not a parameter but computed from others (weight norm, "
            f"spectral norm, pruning) or a buffer, which Zennit's hook for rule {rule} cannot modify; make it one, by "
            f"torch.nn.utils.remove_weight_norm or prune.remove, or give it the rule epsilon."
        )
