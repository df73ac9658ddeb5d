"""One network explained by several threads: every map is its own, and nothing stays behind."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from datxai.errors import InputError
from datxai.explain import attribute

LINES = [{"match": ["type:Affine"], "rule": "alpha_beta"}, {"match": ["type:Activation"], "rule": "pass"}]
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
METHODS = ("lrp", "gradient", "guided_backprop", "deep_lift", "grad_cam", "occlusion", "smoothgrad", "lime")


def explain(model, x, number):
    """Another method, target and kind of rule for each number."""
    method = METHODS[number % len(METHODS)]
    rules = "zennit" if number // 8 % 2 else "fast"
    options = {"n_samples": 10} if method in ("smoothgrad", "lime") else {}
    parcels = torch.arange(64).reshape(8, 8) // 16 if method in ("lime", "occlusion") else None
    chosen = {"target": number % 2, "options": options, "parcels": parcels, "rules": rules}
    return attribute(model, x[number % len(x)][None], method, LINES if method == "lrp" else (), **chosen)


@pytest.fixture
def model():
    torch.manual_seed(1)
    layers = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2)
    return nn.Sequential(*layers).double().train()


def state_of(model):
    return [
        (set(vars(module)), module.training, *(len(getattr(module, name)) for name in HOOKS))
        for module in model.modules()
    ]


def test_eight_threads_and_two_hundred_maps(model):
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    before = state_of(model)
    expected = [explain(model, x, number) for number in range(200)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda number: explain(model, x, number), range(200)))
    for ours, alone in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.relevance, alone.relevance, rtol=1e-12, atol=1e-15)
        assert ours.ledgers == alone.ledgers
    assert state_of(model) == before
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_threads_that_share_layers_and_fail(model):
    """Another network with the same layers; every other map fails where hooks are at work."""

    class Failing(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return self.inner(x) @ torch.ones(3, 3).double()

    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    before, expected = state_of(model), [explain(model, x, number).relevance for number in range(40)]

    def work(number):
        if number % 2:
            with pytest.raises(InputError, match="cannot take an input"):
                explain(Failing(), x, number)
            return None
        return explain(model, x, number).relevance

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, range(40)))
    for number in range(0, 40, 2):
        torch.testing.assert_close(found[number], expected[number], rtol=1e-12, atol=1e-15)
    assert state_of(model) == before


def test_hooks_of_others_that_fail_stay_and_ours_go(model):
    """A hook of the user's that raises, whatever hooks there are beside it."""
    x, calls = torch.rand(1, 1, 8, 8, dtype=torch.float64), []

    def fail(*_):
        calls.append(0)
        raise ValueError("no more")

    handle = model[2].register_forward_hook(fail)
    before = state_of(model)
    for number in range(16):
        with pytest.raises(InputError, match=r"ValueError: no more|captum cannot follow"):
            explain(model, x, number)
        assert state_of(model) == before
    handle.remove()
    assert calls and explain(model, x, 0).relevance.any()
