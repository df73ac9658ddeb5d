"""Assign rules to the layers of a network by the lines of a configuration file.

A composite is a sequence of lines ``{match: [PATTERN, ...], rule: NAME, parameters: {...}}``; the first line that
matches a layer wins. Layers are the modules without children, in the order of ``named_modules``; modules that have both
children and parameters of their own count as well, but only take the rule ``gradient``.

| pattern                  | matches                                                                                |
|--------------------------|----------------------------------------------------------------------------------------|
| ``conv1``                | the layer of that name                                                                 |
| ``conv*``, ``block?.fc`` | layers by name, ``*`` any text, ``?`` any character                                    |
| ``type:Linear``          | layers by type: a class of `torch.nn` (or its base class), or a family of `LAYER_TYPES` |
| ``type:Convolution[0]``  | the first of the layers that the pattern matches; ``[-1]`` the last                    |
| ``type:Convolution[:2]`` | the first two; any Python slice of two numbers                                         |

A name that is not in the network is an error; a type may be absent, so that one file works for many networks.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from datxai.errors import InputError
from datxai.explain import rules as fast
from datxai.explain._zennit import Hook, layer, types
from datxai.explain._zennit import rules as stock

RULES: dict[str, type[Hook] | None] = {  # Zennit's; None: the layer's own gradient
    "epsilon": stock.Epsilon,
    "alpha_beta": stock.AlphaBeta,
    "zplus": stock.ZPlus,
    "gamma": stock.Gamma,
    "flat": stock.Flat,
    "wsquare": stock.WSquare,
    "zbox": fast.ZBox.stock,
    "norm": stock.Norm,
    "pass": stock.Pass,
    "guided_backprop": stock.ReLUGuidedBackprop,  # for activations: a gradient, not relevance
    "gradient": None,
}
FAST_RULES: dict[str, type[fast.Rule]] = {
    "epsilon": fast.Epsilon,
    "alpha_beta": fast.AlphaBeta,
    "zplus": fast.ZPlus,
    "gamma": fast.Gamma,
    "flat": fast.Flat,
    "wsquare": fast.WSquare,
    "zbox": fast.ZBox,
    "pass": fast.Pass,
}
LAYER_TYPES = {
    "Activation": (*(kind for kind in types.Activation.__subclass__ if kind is not nn.MultiheadAttention), nn.Mish),
    "Affine": types.Linear,  # convolutions and linear layers
    "AvgPool": types.AvgPool,
    "BatchNorm": types.BatchNorm,
    "Convolution": types.Convolution,
    "Linear": nn.Linear,
    "MaxPool": types.MaxPool,
    "Sum": layer.Sum,  # residual additions, made visible by a canonizer
}
_PATTERN = re.compile(r"(?P<layers>[^\[\]]+)(\[(?P<index>-?\d+)\]|\[(?P<start>-?\d*):(?P<stop>-?\d*)\])?")
_NEED_RULE = (types.AvgPool, layer.Sum)  # and all layers that have parameters or are defined in these modules
_NEED_RULE_IN = {f"torch.nn.modules.{home}" for home in ("activation", "batchnorm", "instancenorm", "normalization")}
_KEYS = ("match", "rule", "parameters")


@dataclass
class RuledLayer:
    """A layer and its rule, Zennit's template of a hook: Zennit registers what `copy` returns and keeps in ``hook``."""

    name: str
    module: nn.Module
    rule: str
    parameters: dict
    hook_type: type[Hook]
    precision: torch.dtype | None = None
    hook: Hook | None = None

    def copy(self) -> Hook:
        """A new hook of this rule for this layer."""
        self.hook = self.hook_type(**self.parameters)
        if isinstance(self.hook, fast.Rule):
            self.hook.precision = self.precision
        return self.hook


def known_rules(own_rules: Mapping[str, type[Hook]] | None) -> dict[str, type[Hook] | None]:
    """Every rule that a line may name: `RULES` and the user's own, whose names must differ from those."""
    own_rules = own_rules or {}
    taken = [name for name in own_rules if name in RULES]
    if taken:
        raise InputError(f"own rules: {listed(taken)} is already the name of a rule; choose another.")
    for name, hook_type in own_rules.items():
        if not (isinstance(hook_type, type) and issubclass(hook_type, Hook)):
            raise InputError(f"own rules: {name} is {hook_type!r}, expected a class derived from zennit.core.Hook.")
    return RULES | dict(own_rules)


def assign_rules(lines: Sequence[Mapping], model: nn.Module) -> list[tuple[str, nn.Module, Mapping | None]]:
    """Name, module and line of every layer of ``model``; no line where relevance follows the layer's own gradient."""
    layers = [
        (name, module)
        for name, module in model.named_modules()
        if not list(module.children()) or any(True for _ in module.parameters(recurse=False))
    ]
    lines_of: dict[str, Mapping] = {}
    for number, line in enumerate(lines):
        for pattern in line["match"]:
            for name in _matching(pattern, layers, f"composite.layers[{number}].match"):
                lines_of.setdefault(name, line)
    unruled = [shown(name, module) for name, module in layers if name not in lines_of and _needs_rule(module)]
    if unruled:
        raise InputError(
            f"composite.layers gives no rule to {listed(unruled)}; add a line for them, "
            f"such as {{match: ['type:Activation'], rule: pass}}, or rule: gradient if that is meant."
        )
    return [(name, module, lines_of.get(name)) for name, module in layers]


def parameters_of(hook_type: type[Hook] | None) -> dict:
    """A rule's parameters with their defaults."""
    if hook_type is None:
        return {}
    signature = inspect.signature(hook_type)
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {key: parameter.default for key, parameter in signature.parameters.items() if parameter.kind in kinds}


def complete_parameters(rule: str, parameters: Mapping) -> dict:
    """A line's parameters completed by its rule, which raises ValueError for invalid ones."""
    if rule in RULES:
        return FAST_RULES.get(rule, fast.Rule).complete(parameters)
    return dict(parameters)


def require_valid(lines: object, rules: Mapping[str, type[Hook] | None], has_bounds: bool) -> None:
    """Raise InputError for lines invalid for any network; ``has_bounds``: whether the range of the input is known."""
    if isinstance(lines, (str, Mapping)) or not isinstance(lines, Sequence):
        raise InputError(f"composite is {lines!r}, expected a list of lines {{match: [PATTERN], rule: NAME}}.")
    for number, line in enumerate(lines):
        where = f"composite.layers[{number}]"
        _require_form(line, where, rules)
        _require_parameters(line["rule"], line.get("parameters") or {}, where, rules, has_bounds)


def _require_form(line: object, where: str, rules: Mapping[str, type[Hook] | None]) -> None:
    if not isinstance(line, Mapping) or not {"match", "rule"} <= set(line) <= set(_KEYS):
        raise InputError(f"{where} is {line!r}, expected the keys match and rule and, if wanted, parameters.")
    match, rule, parameters = line["match"], line["rule"], line.get("parameters") or {}
    if isinstance(match, str) or not isinstance(match, Sequence) or not all(isinstance(part, str) for part in match):
        raise InputError(f"{where}.match is {match!r}, expected a list of patterns, such as ['type:Affine'].")
    if not isinstance(parameters, Mapping):
        raise InputError(f"{where}.parameters is {parameters!r}, expected names with numbers, as in {{epsilon: 0.01}}.")
    if not isinstance(rule, str) or rule not in rules:
        raise InputError(
            f"{where}.rule is {rule!r}, expected one of {listed(rules)}, or a rule of your own (composite.rules_from)."
        )


def _require_parameters(
    rule: str, parameters: Mapping, where: str, rules: Mapping[str, type[Hook] | None], has_bounds: bool
) -> None:
    defaults = parameters_of(rules[rule])
    for key, value in parameters.items():
        if key not in defaults:
            expected = f"expected some of {listed(defaults)}" if defaults else "it has none"
            raise InputError(f"{where}: rule {rule} has no parameter {key!r}, {expected}.")
        if key == "zero_params":
            if not set([value] if isinstance(value, str) else value or []) <= {"weight", "bias"}:
                raise InputError(f"{where}: zero_params is {value!r}, expected some of weight, bias.")
        elif isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise InputError(f"{where}: {key} is {value!r}, expected a number (such as 1.0e-6).")
    missing = [key for key, default in defaults.items() if default is inspect.Parameter.empty and key not in parameters]
    if missing and rule == "zbox" and not has_bounds:
        raise InputError(f"{where}: rule zbox needs the parameters low and high, the bounds of the input.")
    if missing and rule not in RULES:
        raise InputError(f"{where}: rule {rule} needs the parameters {listed(missing)}.")
    try:
        complete_parameters(rule, parameters)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error


def _matching(pattern: str, layers: Sequence[tuple[str, nn.Module]], where: str) -> Sequence[str]:
    """Names of the layers that ``pattern`` matches."""
    parsed = _PATTERN.fullmatch(pattern)
    if parsed is None:
        raise InputError(
            f"{where}: {pattern!r} is not a pattern, expected a layer's name (* and ? allowed) or type:NAME, "
            f"followed by at most one position such as [0] or [:2]."
        )
    selector = parsed["layers"]
    by_type = selector.startswith("type:")
    if by_type:
        selector = selector.removeprefix("type:")
        names = [name for name, module in layers if _is_of_type(module, selector)]
        if not names and selector not in LAYER_TYPES and not hasattr(nn, selector):
            raise InputError(
                f"{where}: there is no layer type {selector!r}, expected one of {listed(LAYER_TYPES)} "
                f"or a class of torch.nn."
            )
    else:
        names = [name for name, _ in layers if fnmatchcase(name, selector)]
    if parsed["index"]:
        names = names[int(parsed["index"]) :][:1]
    elif parsed["start"] is not None:
        names = names[slice(*(int(part) if part else None for part in (parsed["start"], parsed["stop"])))]
    if not by_type and not names:
        layer_names = listed(f"{name} ({type(module).__name__})" for name, module in layers)
        raise InputError(f"{where} names {pattern!r}, which the network does not have; its layers are {layer_names}.")
    return names


def _needs_rule(module: nn.Module) -> bool:
    """Whether a layer does more than move values, judging by its parameters and its torch.nn class."""
    return (
        isinstance(module, _NEED_RULE)
        or any(base.__module__ in _NEED_RULE_IN for base in type(module).__mro__)
        or any(True for _ in module.parameters())
    )


def _is_of_type(module: nn.Module, layer_type: str) -> bool:
    if layer_type in LAYER_TYPES:
        return isinstance(module, LAYER_TYPES[layer_type])
    return any(base.__name__ == layer_type for base in type(module).__mro__)


def shown(name: str, module: nn.Module) -> str:
    """A layer as shown in messages; the network itself has no name, so its type is shown."""
    return f"{name} ({type(module).__name__})" if name else f"the network itself (type:{type(module).__name__})"


def listed(names: Iterable[str]) -> str:
    """Names as shown in messages."""
    return ", ".join(names)
