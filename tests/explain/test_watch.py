"""What shows only while a network runs: layers used twice, called by keyword, or with a forward of their own."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from datxai.errors import InputError
from datxai.explain import attribute, build_composite
from datxai.explain._zennit import layer

SAME = {"rtol": 1e-9, "atol": 1e-12}  # float64


def lines(rule="epsilon", pool="norm"):
    return [
        {"match": ["type:Affine"], "rule": rule},
        {"match": ["type:Activation"], "rule": "pass"},
        {"match": ["type:AvgPool", "type:Sum"], "rule": pool},
    ]


@pytest.fixture
def x():
    return torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


# --- a forward of its own -------------------------------------------------------------------------------------------


class Standardised(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight / self.weight.std(), self.bias, self.stride, self.padding)


class StandardisedInside(nn.Conv2d):
    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input, weight / weight.std(), bias)


class Adapted(nn.Linear):
    """Low-rank adaptation, as a subclass."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.down, self.up = nn.Parameter(torch.randn(2, inputs)), nn.Parameter(torch.randn(outputs, 2))

    def forward(self, x):
        return super().forward(x) + x @ self.down.T @ self.up.T


def replaced():
    module = nn.Conv2d(1, 3, 3)
    module.forward = lambda x: F.conv2d(x, module.weight / module.weight.std(), module.bias)
    return module


@pytest.mark.parametrize("make", [lambda: Standardised(1, 3, 3), lambda: StandardisedInside(1, 3, 3), replaced])
def test_a_convolution_with_a_forward_of_its_own(x, make):
    torch.manual_seed(2)
    model = nn.Sequential(make(), nn.ReLU(), nn.Flatten(), Adapted(108, 2)).double()
    plain = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 2)).double()
    with torch.no_grad():
        plain[0].weight.copy_(model[0].weight / model[0].weight.std())
        plain[3].weight.copy_(model[3].weight + model[3].up @ model[3].down)
        for place in (0, 3):
            plain[place].bias.copy_(model[place].bias)
    found, expected = (attribute(each, x, composite=lines(), target=1) for each in (model, plain))
    torch.testing.assert_close(found.logits, expected.logits, **SAME)
    torch.testing.assert_close(found.relevance, expected.relevance, **SAME)


# --- used more than once --------------------------------------------------------------------------------------------


class Twice(nn.Module):
    """A layer in two places, or one for each of them."""

    def __init__(self, layer, shared):
        super().__init__()
        torch.manual_seed(3)
        self.first, self.relu = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU()
        self.a = layer
        self.b = layer if shared else copy.deepcopy(layer)
        self.output = nn.Linear(256, 2)

    def forward(self, x):
        return self.output(self.b(self.relu(self.a(self.relu(self.first(x))))).flatten(1))


def convolution(groups=1):
    torch.manual_seed(3)
    return nn.Conv2d(4, 4, 3, padding=1, groups=groups)


@pytest.mark.parametrize(
    ("inner", "rule", "rules", "remedy"),
    [
        (nn.AvgPool2d(3, 1, padding=1), "epsilon", "fast", "gradient"),
        (convolution(groups=2), "alpha_beta", "fast", "epsilon with rules=fast"),
        (convolution(), "epsilon", "zennit", "epsilon with rules=fast"),
    ],
    ids=["pooling", "grouped", "zennit"],
)
def test_zennits_hooks_are_for_layers_used_once(x, inner, rule, rules, remedy):
    chosen = {"composite": lines(rule), "target": 1, "rules": rules}
    with pytest.raises(InputError, match=rf"layer a \({type(inner).__name__}\) is used more than once.*{remedy}"):
        attribute(Twice(inner, shared=True).double(), x, **chosen)
    assert attribute(Twice(inner, shared=False).double(), x, **chosen).relevance.any()


@pytest.mark.parametrize("rule", ["epsilon", "alpha_beta", "gamma", "flat", "wsquare"])
def test_fast_rules_are_right_for_layers_used_twice(x, rule):
    """The rectifier is used twice as well, under Zennit's rules too."""
    inner = convolution()
    shared, apart = (Twice(inner, shared).double() for shared in (True, False))
    found, expected, stock = (
        attribute(model, x, composite=lines(rule), target=1, rules=rules).relevance
        for model, rules in ((shared, "fast"), (apart, "fast"), (apart, "zennit"))
    )
    torch.testing.assert_close(found, expected, **SAME)
    torch.testing.assert_close(stock, expected, rtol=1e-7, atol=1e-9)


def test_several_forward_passes_under_one_composite(x):
    model = Twice(convolution(groups=2), shared=False).double().eval()
    with build_composite(lines("alpha_beta"), model).context(model):
        for _ in range(2):
            model(x.requires_grad_())


class Recomputing(Twice):
    """Forgets what its inner layers hand on, and runs them again when relevance comes back."""

    def forward(self, x):
        inner = checkpoint(lambda x: self.b(self.relu(self.a(x))), self.relu(self.first(x)), use_reentrant=False)
        return self.output(inner.flatten(1))


def test_layers_that_run_again_for_the_backward_pass(x):
    torch.manual_seed(6)
    inner = convolution(groups=2)
    found, expected = (
        attribute(model(inner, shared=False).double(), x, composite=lines("alpha_beta"), target=1).relevance
        for model in (Recomputing, Twice)
    )
    torch.testing.assert_close(found, expected, **SAME)


# --- layers that do not run as layers -------------------------------------------------------------------------------


class Skipping(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.aside, self.output = nn.Linear(64, 8), nn.Linear(64, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.output(F.linear(x.flatten(1), self.first.weight, self.first.bias))


def test_layers_with_a_rule_that_never_run(x):
    model = Skipping().double()
    with pytest.raises(InputError, match=r"a rule to first \(Linear\), aside \(Linear\), which did not run as a layer"):
        attribute(model, x, composite=lines(), target=1)
    left = [{"match": ["first", "aside"], "rule": "gradient"}, *lines()]
    assert attribute(model, x, composite=left, target=1).relevance.any()


def test_guided_backpropagation_has_no_line_to_change(x):
    model = nn.Sequential(Skipping(), nn.ReLU())
    model[0].idle = nn.ReLU()
    assert attribute(model.double(), x, "guided_backprop", target=1).relevance.shape == x.shape


class Direct(Skipping):
    def forward(self, x):
        x = x.flatten(1)
        return self.output.forward(self.first.forward(x) + self.aside.forward(x))


def test_layers_whose_forward_is_called_directly(x):
    """Fast rules stand in for it, so that they run; here the input is shared by two layers, each with flat."""
    flat = [{"match": ["first", "aside"], "rule": "flat"}, *lines()]
    found = attribute(Direct().double(), x, composite=flat, target=1, start="one").relevance
    torch.testing.assert_close(found, found.mean(dim=(1, 2, 3), keepdim=True).expand_as(found), **SAME)


class Keywords(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.relu, self.output = nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Linear(72, 2)

    def forward(self, x):
        return self.output(self.relu(input=self.first(input=x)).flatten(1))


@pytest.mark.parametrize("rules", ["fast", "zennit"])
@pytest.mark.parametrize("ledger", [True, False])
def test_layers_called_by_keyword(x, rules, ledger):
    with pytest.raises(InputError, match=r"layer first \(Conv2d\) with rule epsilon is not called with a tensor"):
        attribute(Keywords().double(), x, composite=lines(), target=1, rules=rules, ledger=ledger)


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x * self.weight, x


class First(nn.Module):
    def __init__(self):
        super().__init__()
        self.pair, self.output = Pair(), nn.Linear(64, 2)

    def forward(self, x):
        return self.output(self.pair(x)[0].flatten(1))


@pytest.mark.parametrize("rules", ["fast", "zennit"])
@pytest.mark.parametrize("rule", ["epsilon", "pass"])
def test_layers_that_hand_on_several_tensors(x, rule, rules):
    chosen = [{"match": ["pair"], "rule": rule}, *lines()]
    with pytest.raises(InputError, match=rf"layer pair \(Pair\) outputs a tuple, and rule {rule} is for .* one"):
        attribute(First().double(), x, composite=chosen, target=1, rules=rules)


@pytest.mark.parametrize("rules", ["fast", "zennit"])
@pytest.mark.parametrize("inner", [nn.AvgPool2d(2), nn.Flatten()])
def test_relevance_is_not_passed_on_to_another_shape(x, inner, rules):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), inner, nn.Flatten(), nn.LazyLinear(2)).double()
    model(x)
    chosen = [{"match": ["1"], "rule": "pass"}, *lines()]
    with pytest.raises(InputError, match=rf"layer 1 \({type(inner).__name__}\) makes .* keep the shape"):
        attribute(model, x, composite=chosen, target=1, rules=rules)


# --- between the layers ---------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """x + f(x), by a function or by a layer."""

    def __init__(self, add=None):
        super().__init__()
        torch.manual_seed(4)
        self.branch, self.output = nn.Linear(64, 64), nn.Linear(64, 2)
        self.add = add

    def forward(self, x):
        x = x.flatten(1)
        branch = self.branch(x)
        return self.output(x + branch if self.add is None else self.add(torch.stack([x, branch], dim=-1)))


@pytest.mark.parametrize("rules", ["fast", "zennit"])
def test_the_ledger_shows_what_comes_or_goes_between_layers(x, rules):
    by_function = attribute(Residual().double(), x, composite=lines(), target=1, rules=rules)
    by_layer = attribute(Residual(layer.Sum()).double(), x, composite=lines(), target=1, rules=rules)
    for case, rows in enumerate(by_function.ledgers):
        *layers, between = rows
        assert [row["layer"] for row in layers] == ["output", "branch"] and between["layer"] == "between layers"
        doubled = -layers[0]["relevance_out"]  # an addition hands its relevance to both of its inputs
        assert between["absorbed"] == pytest.approx(doubled)
        assert between["absorbed"] == between["relevance_in"] - between["relevance_out"]
        absorbed = sum(row["absorbed"] for row in rows)
        assert by_function.relevance[case].sum().item() == pytest.approx(by_function.seed[case].sum().item() - absorbed)
        assert {row["layer"] for row in by_layer.ledgers[case]} == {"output", "add", "branch"}


def test_functional_activations_are_seen_between_layers(x):
    class Functional(nn.Sequential):
        def forward(self, x):
            return self[1](torch.relu(self[0](x.flatten(1))))

    torch.manual_seed(5)
    model = Functional(nn.Linear(64, 8), nn.Linear(8, 2)).double()
    rows = attribute(model, x, composite=[{"match": ["*"], "rule": "flat"}], target=1, start="one").ledgers[0]
    silent = (model[0](x[:1].flatten(1)) < 0).double().mean().item()
    assert rows[-1]["absorbed"] == pytest.approx(silent, rel=1e-5), "flat gives to silent units, ReLU drops it"


@pytest.mark.parametrize("rules", ["fast", "zennit"])
def test_the_ledger_is_for_layers_that_leave_their_input_alone(x, rules):
    """Where a hook writes into it, relevance comes back past the ledger."""

    def explain(double, **chosen):
        torch.manual_seed(6)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)).double()
        model[3].register_forward_pre_hook(lambda module, args: (double(args[0]),))
        return attribute(model, x, composite=lines(), target=1, rules=rules, **chosen)

    with pytest.raises(InputError, match=r"layer 3 \(Linear\), or a hook on it, writes into its input"):
        explain(lambda a: a.mul_(2))
    if rules == "fast":  # PyTorch refuses Zennit's backward pass through what was written over
        in_place, apart = explain(lambda a: a.mul_(2), ledger=False), explain(lambda a: 2 * a)
        torch.testing.assert_close(in_place.relevance, apart.relevance, **SAME)


def test_a_layer_that_hands_relevance_on_past_its_input_has_a_row(x):
    class Hidden(nn.Linear):
        def forward(self, given):
            return super().forward(given.detach()) + self.beside

    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(7)
            self.first, self.out = nn.Linear(64, 2), Hidden(64, 2)

        def forward(self, x):
            self.out.beside = self.first(x.flatten(1))
            return self.out(x.flatten(1))

    with pytest.warns(UserWarning, match="is detached somewhere"):
        found = attribute(Around().double(), x, composite=lines(), target=1)
    for case, rows in enumerate(found.ledgers):
        assert [(row["layer"], row["relevance_out"] != 0) for row in rows[:2]] == [("out", False), ("first", True)]
        absorbed = sum(row["absorbed"] for row in rows)
        assert found.relevance[case].sum().item() == pytest.approx(found.seed[case].sum().item() - absorbed)
