"""Sanity checks: a map must not stay the same when the network forgets what it learned, or explains something else."""

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
    """Likeness of the map to those of ever more random networks: low for a method that depends on what was learned.

    Cascading randomisation (Adebayo et al. 2018, arXiv 1810.03292): see `cascade`. Means over its steps of `compare`
    within the brain, ``spearman`` without its sign, and the same with all layers randomised (``..._all``).
    """
    steps = [_without_sign(likeness) for likeness in cascade(case).values()]
    means = {name: float(np.mean([step[name] for step in steps])) for name in steps[0]}
    return means | {f"{name}_all": value for name, value in steps[-1].items()}


def cascade(case: Case) -> dict[str, dict[str, float]]:
    """`compare` of the map with that of the network after each step of `randomise`, by the layer randomised last."""
    mask, found, model = case.regions["brain"], {}, case.model
    for layer, model in randomise(case.model, case.seed):
        found[layer] = compare(case.map, _explain(case, case.explain, model), mask)
    with torch.no_grad(), _Lookout(case.model) as lookout:
        model(case.x)
    if lookout.seen:
        raise InputError(
            "the network cannot be randomised: its copy goes on with weights of the network itself, which a forward or "
            "a hook that was put in holds on to; make it a subclass of the layer."
        )
    return found


class _Lookout(TorchFunctionMode):
    """While it is on, notes in ``seen`` whether a parameter of ``model`` is used."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.seen, self.own = False, {id(parameter) for parameter in model.parameters()}

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Call the function."""
        self.seen |= any(id(given) in self.own for given in (*args, *(kwargs or {}).values()))
        return func(*args, **(kwargs or {}))


def random_logit(case: Case) -> dict[str, float]:
    """Likeness of the map to that of another output: low for a method that depends on what it is asked.

    Sixt et al. 2020 (arXiv 1912.09818). See `compare`; ``spearman`` with its sign: maps of two outputs that say the
    opposite are told apart.
    """
    return compare(case.map, _explain(case, case.explain_other, case.model), case.regions["brain"])


def randomise(model: nn.Module, seed: int) -> Iterator[tuple[str, nn.Module]]:
    """Randomise a copy of ``model`` layer by layer from the output down; yields the layer's name and the copy.

    Layers are modules with parameters of their own, in the reverse order of `Module.named_modules`. Each of a layer's
    tensors is drawn anew from a normal distribution with mean zero and the tensor's own root mean square, so that
    activations stay of the size that they had. Buffers, such as the running means of batch norm, are kept. The copy
    yielded is the same each time. What is not random yet it has in common with ``model``, tensor by tensor; that and
    the global random state stay as they are. Weights that weight norm, spectral norm or pruning make are randomised
    as they are, and are parameters in the copy. InputError for a network that cannot be copied, or has no parameters.
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
        own = list(module.named_parameters(recurse=False))
        for name, tensor in own:
            fresh = torch.randn(tensor.shape, generator=generator, dtype=torch.float32, device="cpu").to(tensor)
            fresh *= tensor.detach().square().mean().sqrt()
            setattr(module, name, nn.Parameter(fresh, tensor.requires_grad))
        if own:
            yield layer, model


def _copy(model: nn.Module) -> nn.Module:
    """A copy that has its tensors in common with ``model``, but for weights that are made of others."""
    if any(map(is_lazy, model.parameters())):
        raise InputError("the network has lazy layers; run it on an input once before it is randomised.")
    learned = {}
    for module in model.modules():
        own = [value for value in vars(module).values() if isinstance(value, Tensor)]
        if not (_makers(module) or isinstance(module, parametrize.ParametrizationList)):
            own += [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        learned |= {id(tensor): tensor for tensor in own}
    try:
        model = copy.deepcopy(model, learned)
    except Exception as error:
        raise InputError(
            f"the network cannot be copied, as it has to be to randomise it ({type(error).__name__}: {error}); hand "
            f"over one that keeps nothing that belongs to a forward pass."
        ) from error
    for module in list(model.modules()):
        _settle_weights(module)
    return model


def _makers(module: nn.Module) -> list:
    """Hooks of PyTorch that make a weight each time a layer runs."""
    kinds = (prune.BasePruningMethod, WeightNorm, SpectralNorm)
    return [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, kinds)]


def _settle_weights(module: Any) -> None:
    """Make parameters of the weights that weight norm, spectral norm and pruning make.

    What these are made of cannot be drawn anew: a spectral norm divides random weights by what is no norm of theirs.
    """
    for hook in _makers(module):
        if isinstance(hook, WeightNorm):
            remove_weight_norm(module, hook.name)
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(module, hook.name)
        else:
            prune.remove(module, hook._tensor_name)
    if parametrize.is_parametrized(module):  # PyTorch's own removal would take the class from the original as well
        made = {name: getattr(module, name).detach().clone() for name in module.parametrizations}
        del module.parametrizations
        module.__class__ = type(module).__bases__[0]
        for name, tensor in made.items():
            module.register_parameter(name, nn.Parameter(tensor))


def _explain(case: Case, explain, model: nn.Module) -> np.ndarray:
    return to_array(explain(model, case.x)[0])


def _without_sign(similarity: dict[str, float]) -> dict[str, float]:
    return {**similarity, "spearman": abs(similarity["spearman"])}
