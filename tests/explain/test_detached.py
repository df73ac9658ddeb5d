"""Networks that detach a value beside a live path: said where it changes the gradient, silent where it does not."""

import warnings

import pytest
import torch
from torch import nn

from datxai.explain import attribute

LINES = [{"match": ["type:Affine"], "rule": "epsilon"}]
LOST = "is detached somewhere in the network"


def no_grad(a, b, kept):
    with torch.no_grad():
        other = 2 * b
    return a + other


def logged(a, b, kept):
    kept.append(float(b.detach().mean()))
    return a + b


def shifted(a, b, kept):
    """The largest is taken away before the exponential: a shift that softmax does not see."""
    total = a + b
    weights = (total - total.detach().amax(dim=(1, 2, 3), keepdim=True)).exp()
    return weights / weights.sum(dim=(1, 2, 3), keepdim=True)


LOSING = {
    "detach": lambda a, b, kept: a + b.detach(),
    "torch.detach": lambda a, b, kept: a + torch.detach(b),
    "data": lambda a, b, kept: a + b.data,
    "no_grad": no_grad,
    "scale": lambda a, b, kept: a / (1 + b.detach().square().sum(dim=(1, 2, 3), keepdim=True)),
    "straight through": lambda a, b, kept: a + b + (torch.round(10 * b) / 10 - b).detach(),
    "item": lambda a, b, kept: a * b.mean().item(),
    "tolist": lambda a, b, kept: a + torch.tensor(b.tolist(), dtype=b.dtype),
    "detached item": lambda a, b, kept: a * b.detach().mean().item(),
    "NumPy": lambda a, b, kept: a + torch.from_numpy(b.detach().numpy() * 2),
}
KEEPING = {
    "plain": lambda a, b, kept: a + b,
    "logged": logged,
    "logged item": lambda a, b, kept: (kept.append(b.mean().item()), a + b)[1],
    "shifted": shifted,
    "compared": lambda a, b, kept: torch.where(b.detach() > 0.1, a + b, a),
    "shape": lambda a, b, kept: a.reshape(b.detach().shape) + b,
}


class Branches(nn.Module):
    """Two convolutions whose maps meet as ``mix`` says."""

    def __init__(self, mix):
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(1, 3, 3, padding=1)
        self.activation, self.out = nn.Sigmoid(), nn.Linear(3 * 25, 2)
        self.mix, self.kept = mix, []

    def forward(self, x):
        return self.out(self.mix(self.activation(self.a(x)), self.activation(self.b(x)), self.kept).flatten(1))


def explain(mix, method="gradient", dtype=torch.float64, rules="fast"):
    x = torch.rand(2, 1, 5, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)
    lines = [*LINES, {"match": ["type:Activation"], "rule": "pass"}] if method == "lrp" else ()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = attribute(Branches(mix).to(dtype).eval(), x, method, lines, rules=rules, at_once=1)
    return found.relevance, [str(warning.message) for warning in said]


@pytest.mark.parametrize("rules", ["fast", "zennit"])
@pytest.mark.parametrize("mix", LOSING)
def test_lrp_says_what_it_lacks(mix, rules):
    _, said = explain(LOSING[mix], "lrp", rules=rules)
    assert [LOST in sentence for sentence in said] == [True]


@pytest.mark.parametrize("mix", ["detach", "no_grad"])
@pytest.mark.parametrize("method", ["gradient", "input_x_gradient", "integrated_gradients", "smoothgrad"])
def test_so_do_gradients_in_either_precision(method, mix):
    for dtype in (torch.float32, torch.float64):
        _, said = explain(LOSING[mix], method, dtype)
        assert [LOST in sentence for sentence in said] == [True]


@pytest.mark.parametrize("method", ["lrp", "gradient"])
@pytest.mark.parametrize("mix", KEEPING)
def test_what_changes_no_gradient_is_not_spoken_of(mix, method):
    assert explain(KEEPING[mix], method)[1] == []


def test_the_gradient_is_that_of_the_live_path_alone():
    """Beside the warning the map is what PyTorch hands back: the other branch stands still."""
    found, _ = explain(LOSING["detach"])
    model = Branches(LOSING["detach"]).double()
    x = torch.rand(2, 1, 5, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64).requires_grad_()
    logits = model(x)
    (expected,) = torch.autograd.grad(logits.gather(1, logits.argmax(1, keepdim=True)).sum(), x)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("method", ["occlusion", "lime"])
def test_methods_without_a_gradient_lack_nothing(method):
    assert explain(LOSING["detach"], method)[1] == []
