"""A composite for any network, by what its layers are: the lines and canonizers of ``composite=auto``."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from datxai.explain._zennit import types

_NORMS = ("GroupNorm", "LayerNorm", "LocalResponseNorm", "InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d")
_ATTENTION = ("attention", "sablock")  # in the name of a class


def choose_rules(model: nn.Module) -> tuple[list[dict], list[str]]:
    """Lines of a composite for ``model``, and names of canonizers.

    Flat on the first convolution, epsilon on linear layers. On the other convolutions alpha 2, beta 1, as in the paper,
    if the network is plain; where it has batch norms, which is where networks are deep, alpha 1, beta 0: alpha 2 may
    double the relevance at every layer. Relevance passes activations and normalisations as it is, after a batch norm
    that follows a layer was merged into it, and is shared by averages and residual additions in proportion, in forward
    code as well (`datxai.explain.functional`). What no
    rule is proven for (`find_uncovered`) keeps its gradient.
    """
    plain = not any(isinstance(module, types.BatchNorm) for module in model.modules())
    convolutions = {"rule": "alpha_beta", "parameters": {"alpha": 2, "beta": 1}} if plain else {"rule": "zplus"}
    left = [name for outer in find_uncovered(model) for name in _layers_within(model, outer)]
    own = [name for name, module in model.named_modules() if _has_own_weights(module) and name not in left]
    types_of_own = [f"type:{type(model).__name__}" if name == "" else name for name in own]
    gradient = [{"match": names, "rule": "gradient"} for names in [left + types_of_own] if names]
    lines = [
        *gradient,
        {"match": ["type:Convolution[0]"], "rule": "flat"},
        {"match": ["type:Convolution"], **convolutions},
        {"match": ["type:Linear"], "rule": "epsilon", "parameters": {"epsilon": 1e-6}},
        {"match": ["type:Activation", "type:BatchNorm", *(f"type:{name}" for name in _NORMS)], "rule": "pass"},
        {"match": ["type:AvgPool", "type:Sum"], "rule": "norm"},
    ]
    return lines, ["batch_norm", "functional"]


def find_uncovered(model: nn.Module) -> list[str]:
    """Names of the modules that attend: no rule is proven for products of what both depend on the image."""
    found: list[str] = []
    for name, module in model.named_modules():
        kind = type(module).__name__.lower()
        attends = isinstance(module, nn.MultiheadAttention) or any(part in kind for part in _ATTENTION)
        if name and attends and not any(name.startswith(f"{outer}.") for outer in found):
            found.append(name)
    return found


def _layers_within(model: nn.Module, outer: str) -> Iterator[str]:
    """Names that lines can match: a module without children, or with weights of its own."""
    for name, module in model.named_modules():
        inside = name == outer or name.startswith(f"{outer}.")
        if inside and (not list(module.children()) or _has_own_weights(module)):
            yield name


def _has_own_weights(module: nn.Module) -> bool:
    """Whether a module has weights beside those of the layers in it."""
    return bool(list(module.children())) and any(True for _ in module.parameters(recurse=False))
