"""Sanity checks: a map must change when the network loses what it learned, or when another output is explained."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode

from datxai.errors import InputError
from datxai.metrics.inputs import Case, to_array
from datxai.metrics.similarity import compare

_QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.ao.nn.sparse.quantized")


def parameter_randomisation(case: Case) -> dict[str, float]:
    """Similarity of the map to those of ever more random networks: low for a method that depends on what was learned.

    Cascading randomisation (Adebayo et al. 2018, arXiv 1810.03292): see `cascade`. Means of `compare` within the brain
    over its steps, with ``spearman`` without its sign, and the values with all layers randomised (``..._all``).
    """
    steps = [_without_sign(similarity) for similarity in cascade(case).values()]
    means = {name: float(np.mean([step[name] for step in steps])) for name in steps[0]}
    return means | {f"{name}_all": value for name, value in steps[-1].items()}


def cascade(case: Case) -> dict[str, dict[str, float]]:
    """`compare` the map with that of the network after each step of `randomise`, by the layer randomised last."""
    mask, similarities, model = case.regions["brain"], {}, case.model
    for layer, model in randomise(case.model, case.seed):
        similarities[layer] = compare(case.map, _explain(case, case.explain, model), mask)
    with torch.no_grad(), _ParameterWatch(case.model) as watch:
        model(case.x)
    if watch.seen:
        raise InputError(
            "the network cannot be randomised: its copy still uses weights of the network itself, through a hook or a "
            "replaced forward that holds a reference to them; make it a subclass of the layer."
        )
    return similarities


class _ParameterWatch(TorchFunctionMode):
    """While active, notes in ``seen`` whether a parameter of ``model`` is used."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.seen, self.parameters = False, {id(parameter) for parameter in model.parameters()}

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Call the function."""
        self.seen |= any(id(argument) in self.parameters for argument in (*args, *(kwargs or {}).values()))
        return func(*args, **(kwargs or {}))


def random_logit(case: Case) -> dict[str, float]:
    """Similarity of the map to that of another output: low for a method that depends on which output is explained.

    Sixt et al. 2020 (arXiv 1912.09818). See `compare`; ``spearman`` keeps its sign, so that opposite maps of two
    outputs are distinguished.
    """
    return compare(case.map, _explain(case, case.explain_other, case.model), case.regions["brain"])


def randomise(model: nn.Module, seed: int) -> Iterator[tuple[str, nn.Module]]:
    """Randomise a copy of ``model`` layer by layer from the output down; yields the layer's name and the copy.

    Layers are modules with parameters of their own, in the reverse order of `Module.named_modules`. Each tensor of a
    layer is redrawn from a normal distribution with mean zero and the tensor's root mean square, so that activations
    keep their size. Buffers, such as the running means of batch norm, are kept. The same copy is yielded each time; it
    shares the tensors that are not yet random with ``model``. Neither ``model`` nor the global random state changes.
    Weights computed by weight norm, spectral norm or pruning become parameters of the copy before they are randomised.
    InputError for a network that cannot be copied, or has no parameters.
    """
    for name, module in model.named_modules():
        if type(module).__module__.startswith(_QUANTISED):
            raise InputError(
                f"layer {name} ({type(module).__name__}) is quantised and keeps no parameters; hand over the network "
                f"before quantisation."
            )
    if not any(True for _ in model.parameters()):
        raise InputError("the network has no parameters that could be randomised.")
    model = _copy(model)
    generator = torch.Generator("cpu").manual_seed(seed)
    for layer, module in reversed(list(model.named_modules())):
        parameters = list(module.named_parameters(recurse=False))
        for name, tensor in parameters:
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float32, device="cpu").to(tensor)
            noise *= tensor.detach().square().mean().sqrt()
            setattr(module, name, nn.Parameter(noise, tensor.requires_grad))
        if parameters:
            yield layer, model


def _copy(model: nn.Module) -> nn.Module:
    """A copy that shares its tensors with ``model``, except weights that are computed from other tensors."""
    if any(map(is_lazy, model.parameters())):
        raise InputError("the network has lazy layers; run it once on an input before randomising it.")
    shared = {}
    for module in model.modules():
        tensors = [value for value in vars(module).values() if isinstance(value, Tensor)]
        if not (_weight_hooks(module) or isinstance(module, parametrize.ParametrizationList)):
            tensors += [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        shared |= {id(tensor): tensor for tensor in tensors}
    try:
        model = copy.deepcopy(model, shared)
    except Exception as error:
        raise InputError(
            f"the network cannot be copied, which is necessary to randomise it ({type(error).__name__}: {error}); "
            f"pass one that keeps no results of a forward pass."
        ) from error
    for module in list(model.modules()):
        _settle_weights(module)
    return model


def _weight_hooks(module: nn.Module) -> list:
    """PyTorch's hooks that compute a weight each time a layer runs."""
    hook_types = (prune.BasePruningMethod, WeightNorm, SpectralNorm)
    return [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, hook_types)]


def _settle_weights(module: Any) -> None:
    """Turn the weights that weight norm, spectral norm and pruning compute into parameters.

    Their components cannot be redrawn: spectral norm would divide random weights by a number that is not their norm.
    """
    for hook in _weight_hooks(module):
        if isinstance(hook, WeightNorm):
            remove_weight_norm(module, hook.name)
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(module, hook.name)
        else:
            prune.remove(module, hook._tensor_name)
    if parametrize.is_parametrized(module):  # PyTorch's own removal would also change the class of the original
        weights = {name: getattr(module, name).detach().clone() for name in module.parametrizations}
        del module.parametrizations
        module.__class__ = type(module).__bases__[0]
        for name, tensor in weights.items():
            module.register_parameter(name, nn.Parameter(tensor))


def _explain(case: Case, explain, model: nn.Module) -> np.ndarray:
    return to_array(explain(model, case.x)[0])


def _without_sign(similarity: dict[str, float]) -> dict[str, float]:
    return {**similarity, "spearman": abs(similarity["spearman"])}
