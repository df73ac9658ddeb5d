"""A linear network on a small grid, of which every metric is a formula."""

import numpy as np
import pytest
import torch
from torch import nn

from datxai.metrics import Case

SHAPE, SPACING = (6, 5, 4), (2.0, 3.0, 4.0)


def linear(weight: np.ndarray) -> nn.Module:
    """Logits (-w.x, w.x + 0.5) of inputs [n, 1, X, Y, Z]."""
    layer = nn.Linear(weight.size, 2).double().requires_grad_(False)
    layer.weight.copy_(torch.from_numpy(np.stack([-weight.ravel(), weight.ravel()])))
    layer.bias.copy_(torch.tensor([0.0, 0.5]))
    return nn.Sequential(nn.Flatten(), layer).eval()


def weight_of(model: nn.Module, output: int) -> torch.Tensor:
    return model[1].weight[output].reshape(SHAPE)


@pytest.fixture(scope="session")
def make_case():
    """A case of output 1 of the linear network, all in float64; the map, if none is given, weight x (x - fill)."""

    def make(relevance=None, seed=0, **more):
        rng = np.random.default_rng(seed)
        weight, x, fill = rng.normal(size=(3, *SHAPE))
        model = linear(weight)
        z = np.indices(SHAPE)[2]
        regions = {"brain": np.ones(SHAPE, bool), "striatum": z == 1}
        given = {
            "model": model,
            "x": torch.from_numpy(x)[None, None],
            "relevance": torch.from_numpy(weight * (x - fill) if relevance is None else np.asarray(relevance)),
            "score": lambda x: model(x)[:, 1],
            "explain": lambda model, x: weight_of(model, 1) * x[:, 0],
            "explain_other": lambda model, x: weight_of(model, 0) * x[:, 0],
            "fill": torch.from_numpy(fill),
            "parcels": rng.integers(0, 8, SHAPE),
            "regions": regions,
            "spacing": SPACING,
        }
        return Case(**{**given, **more})

    return make
