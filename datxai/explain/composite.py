"""Composites as data: which rule each layer of a network gets, from the lines of a configuration file.

A composite is a sequence of lines ``{match: [PATTERN, ...], rule: NAME, parameters: {...}}``; the first line that
matches a layer wins. Layers are the modules without children, in the order in which the network lists them; modules
with children and parameters of their own beside them are listed as well, and take no rule but ``gradient``.

========================== =======================================================================================
pattern                    matches
========================== =======================================================================================
``conv1``                  the layer of that name
``conv*``, ``block?.fc``   layers by name, ``*`` any text, ``?`` any character
``type:Linear``            layers by type: a class of `torch.nn` (or its base class), or a family of `LAYER_TYPES`
``type:Convolution[0]``    the first of the layers that the pattern matches; ``[-1]`` the last
``type:Convolution[:2]``   the first two; any Python slice of two numbers
========================== =======================================================================================

A name that the network has not is a mistake; a type may be absent, so that one file serves many networks. Rules are
chosen by name, from `RULES` and from what the user hands over beside them (`load_rules`): a line names no code.
"""

from __future__ import annotations

import importlib.util
import inspect
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor, nn

from datxai.errors import InputError
from datxai.explain import rules as fast
from datxai.explain._zennit import Composite, Hook, canonizers, layer, types
from datxai.explain._zennit import rules as stock
from datxai.explain.canonizers import CANONIZERS
from datxai.explain.untouched import State
from datxai.explain.watch import Watch

RULES: dict[str, type[Hook] | None] = {  # Zennit's; None is the layer's own gradient
    "epsilon": stock.Epsilon,
    "alpha_beta": stock.AlphaBeta,
    "zplus": stock.ZPlus,
    "gamma": stock.Gamma,
    "flat": stock.Flat,
    "wsquare": stock.WSquare,
    "zbox": stock.ZBox,
    "norm": stock.Norm,
    "pass": stock.Pass,
    "guided_backprop": stock.ReLUGuidedBackprop,  # of activations: a gradient, not relevance
    "gradient": None,
}
FAST_RULES: dict[str, type[Hook]] = {
    "epsilon": fast.Epsilon,
    "alpha_beta": fast.AlphaBeta,
    "zplus": fast.ZPlus,
    "gamma": fast.Gamma,
    "flat": fast.Flat,
    "wsquare": fast.WSquare,
    "zbox": fast.ZBox,
    "pass": fast.Pass,
}
PRECISIONS = {"float32": None, "bf16": torch.bfloat16}  # of convolutions; None: that of the input
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
_PATTERN = re.compile(r"(?P<layers>[^\[\]]+)(\[(?P<first>-?\d+)\]|\[(?P<start>-?\d*):(?P<stop>-?\d*)\])?")
_RANGE_OF_EACH_CASE = ("lowest input", "highest input")  # what a table shows for the bounds of zbox
_KEEP_SHAPE = ("pass", "norm", "guided_backprop")
_NEED_RULE = (types.AvgPool, layer.Sum)  # beside all layers with parameters, and those that are defined in
_NEED_RULE_IN = {f"torch.nn.modules.{home}" for home in ("activation", "batchnorm", "instancenorm", "normalization")}
_GRADIENT_ALONE = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
_KEYS = ("match", "rule", "parameters")


@dataclass
class LayerRule:
    """The rule of one layer. Zennit takes it for a hook: what `copy` returns is registered, and stays in ``hook``."""

    name: str
    module: nn.Module
    rule: str
    parameters: dict
    hook_type: type[Hook]
    precision: torch.dtype | None = None
    hook: Hook | None = None

    def copy(self) -> Hook:
        self.hook = self.hook_type(**self.parameters)
        if isinstance(self.hook, fast.Rule):
            self.hook.precision = self.precision
        return self.hook


@dataclass
class _NamedCanonizer:
    """A canonizer whose failure says which one it was; ``changed``: whether it found something to do."""

    name: str
    canonizer: canonizers.Canonizer
    changed: bool = False

    def apply(self, model: nn.Module) -> list:
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
    """A Zennit composite whose ``layer_rules``, one per hook, are known while it is registered."""

    def __init__(
        self,
        lines: Sequence[Mapping],
        canonizers: Sequence[_NamedCanonizer],
        x_bounds: tuple | None,
        hook_types: Mapping,
        precision: torch.dtype | None = None,
        bias: bool = True,
    ):
        super().__init__(module_map=self._layer_rule, canonizers=list(canonizers))
        self.lines, self.x_bounds, self.hook_types, self.precision = lines, x_bounds, hook_types, precision
        self.bias = bias
        self.layer_rules: dict[str, LayerRule] = {}

    @property
    def is_canonized(self) -> bool:
        """Whether canonizers have changed something in the network that this is registered to."""
        return any(canonizer.changed for canonizer in self.canonizers)

    def register(self, module: nn.Module) -> None:
        """Rewrite the network and give its layers their rules. After an exception, it is what it was before."""
        before = State(module)
        try:
            super().register(module)
            self.handles += Watch().open(module, self.layer_rules.values())
        except BaseException:
            self.remove()
            before.restore()
            raise

    def remove(self) -> None:
        """Undo `register`, in the opposite order: several canonizers may have changed the same layer."""
        self.handles.reverse()
        super().remove()

    def _layer_rule(self, context: dict, name: str, module: nn.Module) -> LayerRule | None:
        if name == "":  # the network itself comes first, and by now with what canonizers put into it
            self.layer_rules = {}
            for found, child, line in assign_rules(self.lines, module):
                hook_type = self.hook_types.get(line["rule"]) if line else None
                if hook_type is not None:
                    parameters = self._parameters(line, hook_type)
                    self.layer_rules[found] = LayerRule(
                        found, child, line["rule"], parameters, hook_type, self.precision
                    )
        return self.layer_rules.get(name)

    def _parameters(self, line: Mapping, hook_type: type[Hook]) -> dict:
        """What the rule of a line is made with: what the line says, and what follows from that and from the input."""
        parameters, known = dict(line.get("parameters") or {}), _parameters_of(hook_type)
        if line["rule"] == "zbox" and self.x_bounds is not None:
            parameters = {"low": self.x_bounds[0], "high": self.x_bounds[1]} | parameters
        if line["rule"] == "alpha_beta" and "alpha" in parameters:
            parameters["beta"] = parameters["alpha"] - 1  # exactly, as Zennit asks
        if not self.bias and "zero_params" in known:
            parameters.setdefault("zero_params", "bias")
        return parameters


def build_composite(
    lines: Sequence[Mapping],
    model: nn.Module,
    canonizers: Sequence[str | canonizers.Canonizer] = (),
    x_bounds: tuple[Tensor, Tensor] | None = None,
    rules: str = "fast",
    precision: str = "float32",
    bias: bool = True,
    own_rules: Mapping[str, type[Hook]] | None = None,
) -> RuleComposite:
    """A Zennit composite for ``model`` from the lines of a configuration file.

    Parameters
    ----------
    lines
        What each layer gets, see the head of this file. Rules are the names in `RULES`, with Zennit's parameters, and
        those in ``own_rules``. Of alpha_beta's parameters alpha is enough: beta is alpha - 1.
    canonizers
        Names in `CANONIZERS`, or Zennit canonizers, applied before the lines are matched.
    x_bounds
        Lowest and highest input for the rule ``zbox``, numbers or tensors that broadcast against the input, where
        its line gives none.
    rules
        ``fast``: `datxai.explain.rules` where there is one; ``zennit``: Zennit's own throughout.
    precision
        ``float32``: that of the model and its input; ``bf16``: convolutions under a fast rule are computed in
        bfloat16, the rest as it is.
    bias
        Whether biases take their share of the relevance; if not, every rule that knows ``zero_params`` leaves them out
        where its line does not say otherwise.
    own_rules
        Rules of the user's own by name: types of Zennit hooks, whose parameters are those of their constructor.

    Raises
    ------
    InputError
        For an unknown rule, parameter, canonizer, layer or layer type, for a parameter out of range, and for
        layers that have parameters, or are element-wise or averaging, and get no rule. For a canonizer that fails,
        when the composite is registered; and in the forward pass, see `datxai.explain.watch.Watch`.
    """
    if rules not in ("fast", "zennit"):
        raise InputError(f"rules={rules}: expected fast or zennit.")
    if precision not in PRECISIONS:
        raise InputError(f"precision={precision}: expected one of {_listed(PRECISIONS)}.")
    if precision == "bf16" and rules == "zennit":
        raise InputError("precision=bf16 and rules=zennit: Zennit's rules have no such mode; choose rules=fast.")
    known = known_rules(own_rules)
    if isinstance(lines, (str, Mapping)) or not isinstance(lines, Sequence):
        raise InputError(f"composite is {lines!r}, expected a list of lines {{match: [PATTERN], rule: NAME}}.")
    for number, line in enumerate(lines):
        _require_valid(line, number, x_bounds, known)
    for name, module, line in assign_rules(lines, model):
        rule = line["rule"] if line else "gradient"
        if rule in _KEEP_SHAPE and isinstance(module, types.Linear):
            raise InputError(
                f"composite.layers gives rule {rule} to {name} ({type(module).__name__}), which has weights; "
                f"it is for activations. Choose another rule for it, such as epsilon."
            )
        if known[rule] is not None and (list(module.children()) or isinstance(module, _GRADIENT_ALONE)):
            match = [name or f"type:{type(module).__name__}"]
            match += [f"{name}.*"] if isinstance(module, nn.MultiheadAttention) else []
            raise InputError(
                f"composite.layers gives rule {rule} to {_shown(name, module)}, which uses its weights in a way of its "
                f"own, so that no rule fits but gradient; put {{match: {match}, rule: gradient}} first."
            )
    hook_types = known | FAST_RULES if rules == "fast" else known
    return RuleComposite(lines, _named(canonizers), x_bounds, hook_types, PRECISIONS[precision], bias)


def _named(chosen: Sequence[str | canonizers.Canonizer]) -> list[_NamedCanonizer]:
    unknown = [each for each in chosen if not isinstance(each, canonizers.Canonizer) and each not in CANONIZERS]
    if isinstance(chosen, str) or unknown:
        names = chosen if isinstance(chosen, str) else _listed(map(str, unknown))
        raise InputError(
            f"composite.canonizers names {names}, expected a list of some of {_listed(CANONIZERS)} "
            f"(from Python, or instances of zennit.canonizers.Canonizer)."
        )
    named = [(each, CANONIZERS[each]()) if isinstance(each, str) else (type(each).__name__, each) for each in chosen]
    return [_NamedCanonizer(*each) for each in named]


def known_rules(own_rules: Mapping[str, type[Hook]] | None) -> dict[str, type[Hook] | None]:
    """Every rule that a line may name: `RULES` and the user's own, which must not go by the same names."""
    own_rules = own_rules or {}
    taken = [name for name in own_rules if name in RULES]
    if taken:
        raise InputError(f"own rules: {_listed(taken)} is the name of a rule that there is already; choose another.")
    for name, hook_type in own_rules.items():
        if not (isinstance(hook_type, type) and issubclass(hook_type, Hook)):
            raise InputError(f"own rules: {name} is {hook_type!r}, expected a class derived from zennit.core.Hook.")
    return RULES | dict(own_rules)


def load_rules(path: str | Path) -> dict[str, type[Hook]]:
    """The rules of a user's own Python file, which is executed: its ``RULES``, names to types of Zennit hooks.

    Raises `InputError` if the file is not there, fails, or has no such ``RULES``.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"composite.rules_from={path}: no such file; expected a Python file that defines RULES.")
    spec = importlib.util.spec_from_file_location(f"datxai_rules_from_{path.stem}", path)
    if spec is None:
        raise InputError(f"composite.rules_from={path}: expected a Python file, whose name ends in .py.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"composite.rules_from={path} cannot be executed: {type(error).__name__}: {error}.") from error
    found = getattr(module, "RULES", None)
    if not isinstance(found, Mapping) or not found:
        raise InputError(f"composite.rules_from={path} defines no RULES = {{name: class of a Zennit hook}}.")
    known_rules(found)
    return dict(found)


def assign_rules(lines: Sequence[Mapping], model: nn.Module) -> list[tuple[str, nn.Module, Mapping | None]]:
    """Name, module and line of every layer of ``model``; no line where the gradient hands relevance on by itself."""
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
    without = [_shown(name, module) for name, module in layers if name not in lines_of and _needs_rule(module)]
    if without:
        raise InputError(
            f"composite.layers gives no rule to {_listed(without)}; add a line for them, "
            f"such as {{match: ['type:Activation'], rule: pass}}, or rule: gradient if that is meant."
        )
    return [(name, module, lines_of.get(name)) for name, module in layers]


def describe_composite(
    lines: Sequence[Mapping],
    model: nn.Module,
    canonizers: Sequence[str | canonizers.Canonizer] = (),
    bias: bool = True,
    own_rules: Mapping[str, type[Hook]] | None = None,
) -> list[dict[str, str]]:
    """One row per layer of ``model``, as it is while canonizers are at work, in the order of the network.

    Columns: ``layer``, ``type``, shape of its ``weights``, ``rule``, and the rule's ``parameters`` with its defaults.
    Raises what `build_composite` raises. The model is left as it was.
    """
    composite = build_composite(lines, model, canonizers, _RANGE_OF_EACH_CASE, "zennit", bias=bias, own_rules=own_rules)
    rows = []
    try:
        composite.register(model)
        for name, module, line in assign_rules(lines, model):
            rule, applied = line["rule"] if line else "gradient", composite.layer_rules.get(name)
            values = {} if applied is None else _parameters_of(applied.hook_type) | applied.parameters
            shown = [
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
                    "parameters": ", ".join(shown),
                }
            )
    finally:
        composite.remove()
    return rows


def _matching(pattern: str, layers: Sequence[tuple[str, nn.Module]], where: str) -> Iterator[str]:
    parsed = _PATTERN.fullmatch(pattern)
    if parsed is None:
        raise InputError(
            f"{where}: {pattern!r} is no pattern, expected a layer's name (* and ? allowed) or type:NAME, "
            f"and behind it at most one position such as [0] or [:2]."
        )
    wanted = parsed["layers"]
    if wanted.startswith("type:"):
        wanted = wanted.removeprefix("type:")
        found = [name for name, module in layers if _is_of_type(module, wanted)]
        if not found and wanted not in LAYER_TYPES and not hasattr(nn, wanted):
            raise InputError(
                f"{where}: there is no layer type {wanted!r}, expected one of {_listed(LAYER_TYPES)} "
                f"or a class of torch.nn."
            )
        by_name = False
    else:
        found, by_name = [name for name, _ in layers if fnmatchcase(name, wanted)], True
    if parsed["first"]:
        found = found[int(parsed["first"]) :][:1]
    elif parsed["start"] is not None:
        found = found[slice(*(int(part) if part else None for part in (parsed["start"], parsed["stop"])))]
    if by_name and not found:
        names = _listed(f"{name} ({type(module).__name__})" for name, module in layers)
        raise InputError(f"{where} names {pattern!r}, which the network has not; its layers are {names}.")
    return found


def _needs_rule(module: nn.Module) -> bool:
    """Whether a layer does more than to move values, as far as its parameters or torch.nn tell."""
    return (
        isinstance(module, _NEED_RULE)
        or any(base.__module__ in _NEED_RULE_IN for base in type(module).__mro__)
        or any(True for _ in module.parameters())
    )


def _shown(name: str, module: nn.Module) -> str:
    """A layer in a message; the network itself has no name, but can be matched by its type."""
    return f"{name} ({type(module).__name__})" if name else f"the network itself (type:{type(module).__name__})"


def _is_of_type(module: nn.Module, wanted: str) -> bool:
    if wanted in LAYER_TYPES:
        return isinstance(module, LAYER_TYPES[wanted])
    return any(base.__name__ == wanted for base in type(module).__mro__)


def _parameters_of(hook_type: type[Hook] | None) -> dict:
    """A rule's parameters with their defaults."""
    if hook_type is None:
        return {}
    signature = inspect.signature(hook_type)
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {key: parameter.default for key, parameter in signature.parameters.items() if parameter.kind in kinds}


def _require_valid(line: Mapping, number: int, x_bounds: tuple | None, rules: Mapping[str, type[Hook] | None]) -> None:
    where = f"composite.layers[{number}]"
    if not isinstance(line, Mapping) or not {"match", "rule"} <= set(line) <= set(_KEYS):
        raise InputError(f"{where} is {line!r}, expected the keys match and rule and, if wanted, parameters.")
    match, rule, parameters = line["match"], line["rule"], line.get("parameters") or {}
    if isinstance(match, str) or not isinstance(match, Sequence) or not all(isinstance(part, str) for part in match):
        raise InputError(f"{where}.match is {match!r}, expected a list of patterns, such as ['type:Affine'].")
    if not isinstance(parameters, Mapping):
        raise InputError(f"{where}.parameters is {parameters!r}, expected names with numbers, as in {{epsilon: 0.01}}.")
    if not isinstance(rule, str) or rule not in rules:
        raise InputError(
            f"{where}.rule is {rule!r}, expected one of {_listed(rules)}, or a rule of your own (composite.rules_from)."
        )
    known = _parameters_of(rules[rule])
    for key, value in parameters.items():
        if key not in known:
            expected = f"expected some of {_listed(known)}" if known else "it has none"
            raise InputError(f"{where}: rule {rule} has no parameter {key!r}, {expected}.")
        if key == "zero_params":
            if not set([value] if isinstance(value, str) else value or []) <= {"weight", "bias"}:
                raise InputError(f"{where}: zero_params is {value!r}, expected some of weight, bias.")
        elif isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise InputError(f"{where}: {key} is {value!r}, expected a number (such as 1.0e-6).")
        elif rule in RULES and value < 0 and key not in ("low", "high"):
            raise InputError(f"{where}: {key} is {value!r}, expected zero or more.")
    missing = [key for key, default in known.items() if default is inspect.Parameter.empty and key not in parameters]
    if rule == "zbox" and x_bounds is None and missing:
        raise InputError(f"{where}: rule zbox needs the parameters low and high, the bounds of the input.")
    if rule not in RULES and missing:
        raise InputError(f"{where}: rule {rule} needs the parameters {_listed(missing)}.")
    if rule == "alpha_beta":
        alpha = parameters.get("alpha", known["alpha"])
        beta = parameters.get("beta", alpha - 1)
        if beta < 0 or not math.isclose(alpha - beta, 1):
            raise InputError(f"{where}: alpha={alpha:g} and beta={beta:g}, expected alpha - beta = 1, beta 0 or more.")


def _listed(names) -> str:
    return ", ".join(names)
