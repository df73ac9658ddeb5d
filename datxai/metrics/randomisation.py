"""Sanity checks: a map must not stay the same when the network forgets what it learned, or explains something else."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from datxai.metrics.case import Case
from datxai.metrics.similarity import compare


def parameter_randomisation(case: Case) -> dict[str, float]:
    """Likeness of the map to those of ever more random networks: low for a method that depends on what was learned.

    Cascading randomisation (Adebayo et al. 2018, arXiv 1810.03292): see `cascade`. Means over its steps of `compare`
    within the brain, ``spearman`` without its sign, and the same with all layers randomised (``..._all``).
    """
    steps = [_without_sign(found) for found in cascade(case).values()]
    means = {name: float(np.mean([step[name] for step in steps])) for name in steps[0]}
    return means | {f"{name}_all": value for name, value in steps[-1].items()}


def cascade(case: Case) -> dict[str, dict[str, float]]:
    """`compare` of the map with that of the network after each step of `randomise`, by the layer randomised last."""
    mask = case.regions["brain"]
    return {
        layer: compare(case.map, _explain(case, case.explain, model), mask)
        for layer, model in randomise(case.model, case.seed)
    }


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
    the global random state stay as they are.
    """
    learned = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    model = copy.deepcopy(model, learned)
    generator = torch.Generator().manual_seed(seed)
    for layer, module in reversed(list(model.named_modules())):
        own = list(module.named_parameters(recurse=False))
        for name, tensor in own:
            fresh = torch.randn(tensor.shape, generator=generator, dtype=torch.float32).to(tensor)
            fresh *= tensor.detach().square().mean().sqrt()
            setattr(module, name, nn.Parameter(fresh, tensor.requires_grad))
        if own:
            yield layer, model


def _explain(case: Case, explain, model: nn.Module) -> np.ndarray:
    return explain(model, case.x)[0].detach().cpu().numpy()


def _without_sign(found: dict[str, float]) -> dict[str, float]:
    return {**found, "spearman": abs(found["spearman"])}
