"""What makes the rule of a layer wrong and shows only while the network runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from datxai.errors import InputError
from datxai.explain import rules as fast
from datxai.explain._zennit import RemovableHandleList
from datxai.explain._zennit import rules as stock

if TYPE_CHECKING:
    from datxai.explain.composite import LayerRule

_KEEPS_NOTHING = (fast.Rule, stock.Pass, stock.ReLUGuidedBackprop)  # between forward and backward, or for each call
_KEEP_SHAPE = ("pass", "guided_backprop")


class Watch:
    """Follows a network's forward pass from `open` on, and raises `InputError`.

    For layers with a rule that never run, run again although Zennit's hook keeps but the last input, get their input
    by keyword, hand on something else than one tensor, or change its shape although their rule hands relevance on as
    it is.
    """

    def __init__(self):
        self.running = False
        self.ran: set[str] = set()

    def open(self, model: nn.Module, layer_rules: Sequence[LayerRule]) -> RemovableHandleList:
        """Begin to watch; the handles end it."""
        self.layer_rules = list(layer_rules)
        handles = RemovableHandleList()
        for layer_rule in self.layer_rules:
            handles += self._watch(layer_rule)
        if self.layer_rules:
            handles.append(model.register_forward_pre_hook(self._begin, prepend=True))
            handles.append(model.register_forward_hook(self._end))
        return handles

    def _watch(self, layer_rule: LayerRule) -> list:
        name, module, rule = layer_rule.name, layer_rule.module, layer_rule.rule
        hook = getattr(layer_rule.hook, "fallback", None) or layer_rule.hook
        where = f"layer {name} ({type(module).__name__})"

        def before(module: nn.Module, args: tuple) -> None:
            if not args or not isinstance(args[0], Tensor):
                raise InputError(
                    f"{where} with rule {rule} is not called with a tensor as its first argument; call it as layer(x), "
                    f"not layer(input=x), or give it the rule gradient."
                )
            if self.running and name in self.ran and not isinstance(hook, _KEEPS_NOTHING):
                other = "epsilon with rules=fast" if fast.Epsilon().fits(module) else "gradient"
                raise InputError(
                    f"{where} is used more than once, and Zennit's hook for rule {rule} keeps but the last input; "
                    f"use a module of its own for each place, or give it the rule {other}."
                )
            self.ran.add(name)

        def after(module: nn.Module, args: tuple, output: object) -> None:
            if not isinstance(output, Tensor):
                raise InputError(
                    f"{where} hands on a {type(output).__name__}, and rule {rule} is for layers that hand on one "
                    f"tensor; give it the rule gradient."
                )
            if rule in _KEEP_SHAPE and output.shape != args[0].shape:
                raise InputError(
                    f"{where} makes {list(output.shape)} of {list(args[0].shape)}, and rule {rule} is for layers that "
                    f"keep the shape; give it the rule gradient, or norm if it averages or adds."
                )

        return [
            module.register_forward_pre_hook(before, prepend=True),
            module.register_forward_hook(after, prepend=True),
        ]

    def _begin(self, model: nn.Module, args: tuple) -> None:
        self.running, self.ran = True, set()
        for layer_rule in self.layer_rules:
            if isinstance(layer_rule.hook, fast.Rule):
                layer_rule.hook.ran = False

    def _end(self, model: nn.Module, args: tuple, output: object) -> None:
        self.running = False
        idle = [
            f"{layer_rule.name} ({type(layer_rule.module).__name__})"
            for layer_rule in self.layer_rules
            if layer_rule.name not in self.ran and not getattr(layer_rule.hook, "ran", False)
            if layer_rule.rule != "guided_backprop"  # a method's own line, which nobody can change
        ]
        if idle:
            raise InputError(
                f"composite.layers gives a rule to {', '.join(idle)}, which did not run as a layer, so that no rule "
                f"reaches what the network does with it; if that is meant, give it the rule gradient."
            )
