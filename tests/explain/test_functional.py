"""Rules of forward code, held to closed forms and to stock Zennit on the same network written with layers."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.overrides import _get_current_function_mode_stack

from datxai.errors import InputError
from datxai.explain import attribute
from datxai.explain._zennit import layer, rules, types, zennit
from datxai.explain.composite import build_composite

SAME = 1e-9  # relative L2, float64
LINES = [
    {"match": ["type:Convolution"], "rule": "zplus"},
    {"match": ["type:Linear"], "rule": "epsilon", "parameters": {"epsilon": 1e-9}},
    {"match": ["type:Activation"], "rule": "pass"},
    {"match": ["type:AvgPool", "type:Sum"], "rule": "norm"},
]


class Block(nn.Module):
    """A residual block, an average and activations, in one of several ways of writing them."""

    def __init__(self, way="functional"):
        super().__init__()
        self.way = way
        self.stem, self.branch = nn.Conv3d(1, 3, 3, padding=1), nn.Conv3d(3, 3, 3, padding=1)
        self.out = nn.Linear(3, 2)
        if way == "layers":
            self.act, self.sum, self.average = nn.ReLU(), layer.Sum(), nn.AdaptiveAvgPool3d(1)

    def forward(self, x):
        if self.way == "layers":
            x = self.act(self.stem(x))
            x = self.act(self.sum(torch.stack([self.branch(x), x], dim=-1)))
            return self.out(self.average(x).flatten(1))
        x = functional.relu(self.stem(x))
        y = self.branch(x)
        if self.way == "in place":
            y += x
            functional.relu(y, inplace=True)
        elif self.way == "method":
            y.add_(x).relu_()
        else:
            y = torch.relu(x + y)
        return self.out(y.mean((2, 3, 4)) if self.way == "mean" else functional.adaptive_avg_pool3d(y, 1).flatten(1))


def made(way):
    torch.manual_seed(3)
    return Block(way).double().eval()


@pytest.fixture
def x():
    return torch.rand(2, 1, 5, 4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("engine", ["fast", "zennit"])
@pytest.mark.parametrize("way", ["functional", "in place", "method", "mean"])
def test_forward_code_is_explained_as_layers_are_by_stock_zennit(x, way, engine):
    model = made(way)
    found = attribute(model, x, "lrp", LINES, ["functional"], target=1, rules=engine)
    composite = zennit.composites.LayerMapComposite(
        [(types.Activation, rules.Pass()), (types.Convolution, rules.ZPlus()), (nn.Linear, rules.Epsilon(epsilon=1e-9)),
         (layer.Sum, rules.Norm(stabilizer=1e-9)), (types.AvgPool, rules.Norm(stabilizer=1e-9))]
    )  # fmt: skip
    layers = made("layers")
    with zennit.attribution.Gradient(layers, composite) as attributor:
        _, expected = attributor(x.clone().requires_grad_(), lambda y: y.detach() * torch.tensor([0.0, 1.0]).to(y))
    torch.testing.assert_close(found.logits, layers(x).detach())
    assert (found.relevance - expected).norm() <= SAME * expected.norm()
    assert all(row["layer"] != "between layers" for rows in found.ledgers for row in rows)
    assert "forward" not in vars(model) and not _get_current_function_mode_stack()


class OneStep(nn.Module):
    """Two linear layers without biases, and a step of arithmetic between them."""

    def __init__(self, step):
        super().__init__()
        self.step = step
        self.first, self.last = nn.Linear(4, 6, bias=False), nn.Linear(6, 2, bias=False)

    def forward(self, x):
        return self.last(self.step(self.first(x)))


def relevance_after_first(step, x, canonizers=("functional",)):
    """Relevance at the input, if the first layer hands on what reaches its output in proportion to a_j w_jk."""
    torch.manual_seed(0)
    model = OneStep(step).double().eval()
    found = attribute(model, x, "lrp", LINES, list(canonizers), target=1)
    with torch.no_grad():
        z = x @ model.first.weight.T
        reached = model.step(z) * model.last.weight[1]  # epsilon on the last layer
        share = x[:, None] * model.first.weight / z[..., None]
    return found.relevance, reached, share


CONSTANT = torch.tensor([0.5, -2.0, 0.0, 3.0, 1.0, -1.0], dtype=torch.float64)
SIGNALS = {
    "times a constant": (lambda z: z * CONSTANT, 1),
    "a constant times": (lambda z: CONSTANT * z, 1),
    "over a constant": (lambda z: z / 4, 1),
    "activation": (lambda z: functional.silu(z), 1),
    "gate of a sigmoid": (lambda z: z * torch.sigmoid(z.flip(-1)), 1),
    "gate first": (lambda z: torch.sigmoid(z.flip(-1)) * z, 1),
    "broadcast gate": (lambda z: z * z.sum(-1, keepdim=True), 1),
}


@pytest.mark.parametrize("name", SIGNALS)
def test_all_relevance_goes_to_the_signal(name):
    x = torch.rand(3, 4, dtype=torch.float64) + 0.5
    found, reached, share = relevance_after_first(SIGNALS[name][0], x)
    torch.testing.assert_close(found, (reached[..., None] * share).sum(1), rtol=1e-4, atol=1e-6)


def test_a_sum_is_shared_in_proportion_and_a_difference_too():
    x = torch.rand(3, 4, dtype=torch.float64) + 0.5
    for sign, step in ((1, lambda z: z + z.flip(-1) ** 2), (-1, lambda z: z - z.flip(-1) ** 2)):
        found, *_ = relevance_after_first(step, x)
        model = OneStep(step).double()
        torch.manual_seed(0)
        model = OneStep(step).double()
        z = x @ model.first.weight.T
        total = z + sign * z.flip(-1) ** 2
        relevance = total * model.last.weight[1]
        # the square has no rule of its own: what goes to it comes back by its gradient
        to_square = relevance * sign * z.flip(-1) ** 2 / total
        at_z = relevance * z / total + (to_square * 2 * z.flip(-1)).flip(-1)
        expected = (at_z[..., None] * x[:, None] * model.first.weight / z[..., None]).sum(1)
        torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-5)


def test_without_the_canonizer_the_gradient_counts_twice(x):
    model = made("functional")
    plain = attribute(model, x, "lrp", LINES, target=1)
    assert any(row["layer"] == "between layers" for rows in plain.ledgers for row in rows)


def test_a_failing_network_leaves_no_rule_behind(x):
    model = OneStep(lambda z: z.no_such_thing).double()
    before = copy.deepcopy({name: set(vars(module)) for name, module in model.named_modules()})
    with pytest.raises(InputError):
        attribute(model, x[:, 0, 0, :, 0], "lrp", LINES, ["functional"], target=0)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before
    assert not _get_current_function_mode_stack()


def test_the_fast_rules_are_at_work_beside_it(x):
    model = made("functional")
    composite = build_composite(LINES, model, canonizers=["functional"])
    with composite.context(model):
        ruled = {name: layer.hook for name, layer in composite.ruled_layers.items()}
        assert ruled and not any(getattr(hook, "fallback", None) for hook in ruled.values())


@pytest.mark.parametrize("way", ["functional", "in place", "mean"])
def test_rules_are_not_taken_for_the_network_detaching_values(x, way, monkeypatch):
    """Else every map would cost two gradients more, to find what is lost."""
    monkeypatch.setattr("datxai.explain.network._find_lost", lambda *_: pytest.fail("looked for what is lost"))
    attribute(made(way), x, composite=LINES, canonizers=["functional"], ledger=False)
