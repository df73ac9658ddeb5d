"""Choose a composite for any network by the types of its layers: the setting ``composite=auto``."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from datxai.explain._zennit import types

_NORMS = ("GroupNorm", "LayerNorm", "LocalResponseNorm", "InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d")
_ATTENTION = ("attention", "sablock")  # in the name of a class


def choose_rules(model: nn.Module) -> tuple[list[dict], list[str]]:
    """Lines of a composite for ``model``, and names of canonizers.

    The first convolution gets flat, linear layers get epsilon. Other convolutions get alpha 2, beta 1, as in the paper,
    in networks without batch norms. Networks with batch norms are usually deep and get alpha 1, beta 0, since alpha 2
    may double the relevance at every layer. A batch norm after a layer is merged into it. Relevance passes activations
    and normalisations unchanged, and is shared in proportion in averages and residual additions, in forward code as
    well (`datxai.explain.functional`). Modules without a proven rule (`find_uncovered`) keep their gradient.
    """
    plain = not any(isinstance(module, types.BatchNorm) for module in model.modules())
    convolutions = {"rule": "alpha_beta", "parameters": {"alpha": 2, "beta": 1}} if plain else {"rule": "zplus"}
    uncovered = [name for outer in find_uncovered(model) for name in _layers_within(model, outer)]
    others = [name for name, module in model.named_modules() if _has_own_weights(module) and name not in uncovered]
    patterns = uncovered + [f"type:{type(model).__name__}" if name == "" else name for name in others]
    lines = [
        *([{"match": patterns, "rule": "gradient"}] if patterns else []),
        {"match": ["type:Convolution[0]"], "rule": "flat"},
        {"match": ["type:Convolution"], **convolutions},
        {"match": ["type:Linear"], "rule": "epsilon", "parameters": {"epsilon": 1e-6}},
        {"match": ["type:Activation", "type:BatchNorm", *(f"type:{name}" for name in _NORMS)], "rule": "pass"},
        {"match": ["type:AvgPool", "type:Sum"], "rule": "norm"},
    ]
    return lines, ["batch_norm", "functional"]


def find_uncovered(model: nn.Module) -> list[str]:
    """Names of the attention modules: no rule is proven for products of factors that both depend on the image."""
    names: list[str] = []
    for name, module in model.named_modules():
        class_name = type(module).__name__.lower()
        attends = isinstance(module, nn.MultiheadAttention) or any(part in class_name for part in _ATTENTION)
        if name and attends and not any(name.startswith(f"{outer}.") for outer in names):
            names.append(name)
    return names


def _layers_within(model: nn.Module, outer: str) -> Iterator[str]:
    """Names of the modules in ``outer`` that lines can match: without children, or with weights of their own."""
    for name, module in model.named_modules():
        inside = name == outer or name.startswith(f"{outer}.")
        if inside and (not list(module.children()) or _has_own_weights(module)):
            yield name


def _has_own_weights(module: nn.Module) -> bool:
    """Whether a module with children also has weights of its own."""
    return bool(list(module.children())) and any(True for _ in module.parameters(recurse=False))
