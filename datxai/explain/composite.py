"""Build a Zennit composite for a network from lines of a configuration file.

`datxai.explain.assignment` defines lines and which layers they match. Lines refer to rules only by name: those in
`RULES` and the user's own (`load_rules`).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from datxai.errors import InputError
from datxai.explain._zennit import Composite, Hook, RemovableHandleList, canonizers, types
from datxai.explain.assignment import (
    FAST_RULES,
    RuledLayer,
    assign_rules,
    complete_parameters,
    known_rules,
    listed,
    parameters_of,
    require_valid,
    shown,
)
from datxai.explain.canonizers import CANONIZERS
from datxai.explain.layers import require_weights
from datxai.explain.untouched import State
from datxai.explain.watch import Watch

PRECISIONS = {"float32": None, "bf16": torch.bfloat16}  # of convolutions; None: that of the input
_RANGE_OF_EACH_CASE = ("lowest input", "highest input")  # what a table shows for the bounds of zbox
_KEEP_SHAPE = ("pass", "norm", "guided_backprop")
_GRADIENT_ONLY = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)


@dataclass
class _NamedCanonizer:
    """A canonizer whose errors include its name; ``changed``: whether it changed the network."""

    name: str
    canonizer: canonizers.Canonizer
    changed: bool = False

    def apply(self, model: nn.Module) -> list:
        """Apply the canonizer, and raise InputError if it fails."""
        try:
            applied = self.canonizer.apply(model)
        except Exception as error:
            reason = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
            raise InputError(
                f"canonizer {self.name} cannot rewrite this network ({reason}); leave it out of canonizers."
            ) from error
        self.changed = bool(applied)
        return applied


class RuleComposite(Composite):
    """A Zennit composite with its ``ruled_layers``, one per hook, while it is registered."""

    handles: RemovableHandleList

    def __init__(
        self,
        lines: Sequence[Mapping],
        canonizers: Sequence[_NamedCanonizer],
        x_bounds: tuple | None,
        hook_types: Mapping,
        precision: torch.dtype | None = None,
        bias: bool = True,
    ):
        super().__init__(module_map=self._ruled_layer, canonizers=list(canonizers))
        self.lines, self.x_bounds, self.hook_types, self.precision = lines, x_bounds, hook_types, precision
        self.bias = bias
        self.ruled_layers: dict[str, RuledLayer] = {}

    @property
    def is_canonized(self) -> bool:
        """Whether canonizers changed the network that this composite is registered to."""
        return any(canonizer.changed for canonizer in self.canonizers)

    def register(self, module: nn.Module) -> None:
        """Canonize the network and give its layers their rules; after an exception, the network is restored."""
        before = State(module)
        try:
            super().register(module)
            self.handles += Watch().open(module, self.ruled_layers.values())
        except BaseException:
            self.remove()
            before.restore()
            raise

    def remove(self) -> None:
        """Undo `register` in reverse order, since several canonizers may have changed the same layer."""
        self.handles.reverse()
        super().remove()

    def _ruled_layer(self, context: dict, name: str, module: nn.Module) -> RuledLayer | None:
        if name == "":  # the network itself comes first, already canonized
            self.ruled_layers = {}
            for layer, child, line in assign_rules(self.lines, module):
                hook_type = self.hook_types.get(line["rule"]) if line else None
                if line and hook_type:
                    parameters = self._parameters(line, hook_type)
                    ruled = RuledLayer(layer, child, line["rule"], parameters, hook_type, self.precision)
                    self.ruled_layers[layer] = ruled
        return self.ruled_layers.get(name)

    def _parameters(self, line: Mapping, hook_type: type[Hook]) -> dict:
        """Arguments of a line's rule: those in the line, those that follow from them, and defaults from the input."""
        parameters = complete_parameters(line["rule"], line.get("parameters") or {})
        if line["rule"] == "zbox" and self.x_bounds is not None:
            parameters = {"low": self.x_bounds[0], "high": self.x_bounds[1]} | parameters
        if not self.bias and "zero_params" in parameters_of(hook_type):
            parameters.setdefault("zero_params", "bias")
        return parameters


def build_composite(
    lines: Sequence[Mapping],
    model: nn.Module,
    canonizers: Sequence[str | canonizers.Canonizer] = (),
    x_bounds: tuple | None = None,
    rules: Literal["fast", "zennit"] = "fast",
    precision: Literal["float32", "bf16"] = "float32",
    bias: bool = True,
    own_rules: Mapping[str, type[Hook]] | None = None,
) -> RuleComposite:
    """A Zennit composite for ``model`` from the lines of a configuration file.

    Parameters
    ----------
    lines
        Rules by layer, see `datxai.explain.assignment`. Rules are named as in `RULES`, with Zennit's parameters, or as
        in ``own_rules``. The parameter beta of alpha_beta defaults to alpha - 1.
    canonizers
        Names in `CANONIZERS`, or Zennit canonizers, applied before the lines are matched.
    x_bounds
        Lowest and highest input, for lines with the rule ``zbox`` that give none: numbers, tensors that broadcast
        against the input, or `datxai.explain.rules.Extreme` of it.
    rules
        ``fast``: `datxai.explain.rules` where implemented; ``zennit``: only Zennit's own.
    precision
        ``float32``: that of the model and its input; ``bf16``: convolutions under a fast rule are computed in
        bfloat16, the rest as it is.
    bias
        Whether biases absorb their share of the relevance. If not, ``zero_params`` defaults to ``bias`` for every rule
        that has this parameter.
    own_rules
        The user's own rules by name: types of Zennit hooks, with the parameters of their constructors.

    Raises
    ------
    InputError
        For an unknown rule, parameter, canonizer, layer or layer type, for a parameter out of range, and for
        layers without a rule that have parameters, or are element-wise or averaging. During registration, if a
        canonizer fails; during the forward pass, see `datxai.explain.watch.Watch`.
    """
    if rules not in ("fast", "zennit"):
        raise InputError(f"rules={rules}: expected fast or zennit.")
    if precision not in PRECISIONS:
        raise InputError(f"precision={precision}: expected one of {listed(PRECISIONS)}.")
    if precision == "bf16" and rules == "zennit":
        raise InputError("precision=bf16 and rules=zennit: Zennit's rules have no such mode; choose rules=fast.")
    require_weights(model)
    available = known_rules(own_rules)
    require_valid(lines, available, x_bounds is not None)
    for name, module, line in assign_rules(lines, model):
        rule = line["rule"] if line else "gradient"
        if rule in _KEEP_SHAPE and isinstance(module, types.Linear):
            raise InputError(
                f"composite.layers gives rule {rule} to {name} ({type(module).__name__}), which has weights; "
                f"it is for activations. Choose another rule for it, such as epsilon."
            )
        if available[rule] is not None and (list(module.children()) or isinstance(module, _GRADIENT_ONLY)):
            match = [name or f"type:{type(module).__name__}"]
            match += [f"{name}.*"] if isinstance(module, nn.MultiheadAttention) else []
            raise InputError(
                f"composite.layers gives rule {rule} to {shown(name, module)}, which uses its weights in its "
                f"own way, so that only the rule gradient fits; put {{match: {match}, rule: gradient}} first."
            )
    hook_types = available | FAST_RULES if rules == "fast" else available
    return RuleComposite(lines, _name_canonizers(canonizers), x_bounds, hook_types, PRECISIONS[precision], bias)


def _name_canonizers(entries: Sequence[str | canonizers.Canonizer]) -> list[_NamedCanonizer]:
    """Canonizers with their names; entries that are names are instantiated."""
    unknown = [entry for entry in entries if not isinstance(entry, canonizers.Canonizer) and entry not in CANONIZERS]
    if isinstance(entries, str) or unknown:
        names = entries if isinstance(entries, str) else listed(map(str, unknown))
        raise InputError(
            f"composite.canonizers names {names}, expected a list of some of {listed(CANONIZERS)} "
            f"(from Python, or instances of zennit.canonizers.Canonizer)."
        )
    named = [(item, CANONIZERS[item]()) if isinstance(item, str) else (type(item).__name__, item) for item in entries]
    return [_NamedCanonizer(name, canonizer) for name, canonizer in named]


def load_rules(path: str | Path) -> dict[str, type[Hook]]:
    """Execute a user's Python file and return its ``RULES``, a mapping from names to types of Zennit hooks.

    Raises `InputError` if the file does not exist, fails, or defines no such ``RULES``.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"composite.rules_from={path}: no such file; expected a Python file that defines RULES.")
    spec = importlib.util.spec_from_file_location(f"datxai_rules_from_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"composite.rules_from={path}: expected a Python file, whose name ends in .py.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"composite.rules_from={path} cannot be executed: {type(error).__name__}: {error}.") from error
    own_rules = getattr(module, "RULES", None)
    if not isinstance(own_rules, Mapping) or not own_rules:
        raise InputError(f"composite.rules_from={path} defines no RULES = {{name: class of a Zennit hook}}.")
    known_rules(own_rules)
    return dict(own_rules)


def describe_composite(
    lines: Sequence[Mapping],
    model: nn.Module,
    canonizers: Sequence[str | canonizers.Canonizer] = (),
    bias: bool = True,
    own_rules: Mapping[str, type[Hook]] | None = None,
) -> list[dict[str, str]]:
    """One row per layer of the canonized ``model``, in the order of the network.

    Columns: ``layer``, ``type``, shape of its ``weights``, ``rule``, and the rule's ``parameters`` including defaults.
    Raises the errors of `build_composite`. The model is restored.
    """
    composite = build_composite(lines, model, canonizers, _RANGE_OF_EACH_CASE, "zennit", bias=bias, own_rules=own_rules)
    rows = []
    try:
        composite.register(model)
        for name, module, line in assign_rules(lines, model):
            rule, ruled = line["rule"] if line else "gradient", composite.ruled_layers.get(name)
            values = {} if ruled is None else parameters_of(ruled.hook_type) | ruled.parameters
            texts = [
                f"{key}={value:g}" if isinstance(value, (int, float)) else f"{key}={value}"
                for key, value in values.items()
                if value is not None
            ]
            weight = getattr(module, "weight", None)
            rows.append(
                {
                    "layer": name,
                    "type": type(module).__name__,
                    "weights": "" if weight is None else "x".join(map(str, weight.shape)),
                    "rule": rule,
                    "parameters": ", ".join(texts),
                }
            )
    finally:
        composite.remove()
    return rows
