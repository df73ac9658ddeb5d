"""Fast rules and Zennit's against the equations, over the geometries of convolutions."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from datxai.explain import products
from datxai.explain import rules as fast
from datxai.explain._zennit import Composite
from datxai.explain._zennit import rules as stock

EXACT = 1e-9  # relative L2 in float64
SINGLE = 2e-5  # in float32; a few units nearly cancel
BF16 = 0.01  # with the products in bf16, eight bits of mantissa
LONG_SUM = 1e-6  # in float32, relative, sums over tens of thousands of inputs

RULES = {
    "epsilon": {"epsilon": 1e-2},
    "alpha_beta": {"alpha": 2, "beta": 1},
    "zplus": {},
    "gamma": {"gamma": 0.5},
    "flat": {},
    "wsquare": {},
    "zbox": {"low": -1.5, "high": 2.5},
}
CLASSES = {
    "epsilon": "Epsilon",
    "alpha_beta": "AlphaBeta",
    "zplus": "ZPlus",
    "gamma": "Gamma",
    "flat": "Flat",
    "wsquare": "WSquare",
    "zbox": "ZBox",
}
LAYERS = {
    "linear": (lambda: nn.Linear(30, 7), (30,)),
    "linear without bias": (lambda: nn.Linear(30, 7, bias=False), (30,)),
    "conv1d": (lambda: nn.Conv1d(2, 3, 3), (2, 9)),
    "conv2d padded": (lambda: nn.Conv2d(2, 4, 3, padding=(1, 2)), (2, 6, 5)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 3), (2, 5, 6, 5)),
    "conv3d strided, dilated": (
        lambda: nn.Conv3d(2, 3, (3, 2, 3), stride=(2, 1, 3), padding=(1, 0, 2), dilation=(1, 2, 2)), (2, 6, 5, 8)
    ),
    "conv3d grouped": (lambda: nn.Conv3d(4, 6, 3, groups=2, padding=1), (4, 4, 5, 4)),
}


def relative(found, expected):
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def hook_of(module, hook):
    return Composite(module_map=lambda context, name, child: hook if child is module else None)


def relevance_by(hook, module, x, upper):
    """What a hook makes of relevance ``upper`` at the output of one layer."""
    x = x.clone().requires_grad_()
    with hook_of(module, hook).context(module):
        return torch.autograd.grad(module(x), x, upper)[0]


def case(layer, signed, dtype=torch.float64):
    make, shape = LAYERS[layer]
    torch.manual_seed(1)
    module = make().to(dtype)
    x = torch.randn(2, *shape, dtype=dtype)
    x = x if signed else x.relu()  # exact zeros, as after an activation
    return module, x, torch.randn_like(module(x).detach())


def expected_by(oracle, rule, module, x, upper, **parameters):
    weights, _ = oracle.matrix(module, x.shape[1:])
    x, upper = x.double(), upper.double()
    cases = [(a.numpy().ravel(), r.numpy().ravel()) for a, r in zip(x, upper)]
    rows = [oracle.propagate(rule, weights, a, r, **parameters) for a, r in cases]
    return np.stack([row[:-1] for row in rows]).reshape(x.shape), np.array([row[-1] for row in rows])


@pytest.mark.parametrize("kind", [fast, stock], ids=["fast", "zennit"])
@pytest.mark.parametrize("signed", [False, True], ids=["nonnegative", "signed"])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("rule", RULES)
def test_rule_is_its_equation(oracle, rule, layer, signed, kind):
    module, x, upper = case(layer, signed)
    found = relevance_by(getattr(kind, CLASSES[rule])(**RULES[rule]), module, x, upper)
    expected, _ = expected_by(oracle, rule, module, x, upper, **RULES[rule])
    assert relative(found.numpy(), expected) < EXACT


@pytest.mark.parametrize("layer", ["linear", "conv3d strided, dilated"])
@pytest.mark.parametrize("rule", RULES)
def test_share_of_the_bias(oracle, rule, layer):
    module, x, upper = case(layer, signed=True)
    hook = getattr(fast, CLASSES[rule])(**RULES[rule])
    booked = []
    hook.copy, hook.on_bias = lambda: hook, booked.append  # so that the one registered is at hand
    relevance_by(hook, module, x, upper)
    _, expected = expected_by(oracle, rule, module, x, upper, **RULES[rule])
    np.testing.assert_allclose(np.stack(booked), expected[None], rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("layer", ["linear", "conv3d"])
@pytest.mark.parametrize("rule", RULES)
def test_relevance_is_conserved_with_the_bias_zeroed(rule, layer):
    module, x, upper = case(layer, signed=True)
    parameters = RULES[rule] | ({"epsilon": 0.0} if rule == "epsilon" else {"stabilizer": 0.0})
    ours, zennits = (
        relevance_by(getattr(kind, CLASSES[rule])(zero_params="bias", **parameters), module, x, upper)
        for kind in (fast, stock)
    )
    torch.testing.assert_close(ours.flatten(1).sum(1), upper.flatten(1).sum(1), rtol=EXACT, atol=EXACT)
    assert relative(ours.numpy(), zennits.numpy()) < EXACT


@pytest.mark.parametrize("rule", RULES)
def test_zeroed_bias_leaves_the_output_alone(rule):
    module, x, _ = case("conv3d", signed=False)
    expected = module(x).detach()
    with hook_of(module, getattr(fast, CLASSES[rule])(zero_params=["bias"], **RULES[rule])).context(module):
        torch.testing.assert_close(module(x.requires_grad_()).detach(), expected)


@pytest.mark.parametrize("rule", RULES)
def test_float32(oracle, rule):
    module, x, upper = case("conv3d", signed=False, dtype=torch.float32)
    found = relevance_by(getattr(fast, CLASSES[rule])(**RULES[rule]), module, x, upper)
    assert found.dtype == torch.float32
    expected, _ = expected_by(oracle, rule, module, x, upper, **RULES[rule])
    assert relative(found.numpy(), expected) < SINGLE


@pytest.mark.parametrize("layer", ["conv1d", "conv2d padded", "conv3d strided, dilated", "conv3d grouped", "linear"])
@pytest.mark.parametrize("rule", RULES)
def test_products_in_bf16(oracle, rule, layer):
    module, x, _ = case(layer, signed=False, dtype=torch.float32)
    upper = module(x).detach().relu() ** 2  # as a ReLU above leaves it, and little where contributions cancel
    hook = getattr(fast, CLASSES[rule])(**RULES[rule])
    hook.copy, hook.precision = lambda: hook, torch.bfloat16
    found = relevance_by(hook, module, x, upper)
    expected, _ = expected_by(oracle, rule, module, x, upper, **RULES[rule])
    assert found.dtype == torch.float32
    assert relative(found.numpy(), expected) < (BF16 if hook.fallback is None and layer != "linear" else SINGLE)


@pytest.mark.parametrize("signed", [False, True], ids=["nonnegative", "signed"])
def test_small_positive_sums_keep_their_digits_in_float32(oracle, signed):
    """Where p << n, p from z + n is wrong; relevance there asks for the sum itself."""
    torch.manual_seed(8)
    module = nn.Conv3d(4, 3, 3, padding=1)
    with torch.no_grad():
        module.weight.abs_().neg_()
        module.weight[:, 0, 0].mul_(-1e-5)  # few and small
    x = torch.rand(2, 4, 5, 6, 5) * (torch.randint(0, 2, (2, 4, 5, 6, 5)) * 2 - 1 if signed else 1)
    upper = torch.randn(2, 3, 5, 6, 5)
    found = relevance_by(fast.AlphaBeta(), module, x, upper)
    expected, _ = expected_by(oracle, "alpha_beta", module, x, upper)
    assert relative(found.numpy(), expected) < LONG_SUM


def test_outputs_without_positive_contributions(oracle):
    """z = -n swallows the stabiliser of p in float32; where nothing is handed back, 0 / 0 must not come of it."""
    torch.manual_seed(9)
    module, x = nn.Conv3d(3, 4, 3), 100 * torch.rand(1, 3, 5, 5, 5)
    with torch.no_grad():
        module.weight[:2] = -module.weight[:2].abs()
        module.bias[:2] = -module.bias[:2].abs()
    upper = module(x).detach().relu()
    found = relevance_by(fast.AlphaBeta(), module, x, upper)
    expected, _ = expected_by(oracle, "alpha_beta", module, x, upper)
    assert relative(found.numpy(), expected) < SINGLE


def test_no_copy_of_a_big_weight():
    """Nothing as large as a sixth of the weight is allocated, forward or back."""

    class Largest(TorchDispatchMode):
        found = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() != weight.data_ptr():
                    self.found = max(self.found, tensor.untyped_storage().nbytes())
            return result

    module, x = nn.Linear(1 << 18, 12), torch.rand(2, 1 << 18)
    module.requires_grad_(False)
    weight = module.weight.untyped_storage()
    with Largest() as largest:
        relevance_by(fast.Epsilon(), module, x, torch.randn(2, 12))
    assert 0 < largest.found <= weight.nbytes() // 6


@pytest.mark.parametrize("rule", RULES)
def test_relevance_may_be_asked_for_again(rule):
    """The graph is kept: then the rule must not write into what it has kept."""
    module, x, upper = case("conv3d", signed=True)
    x = x.requires_grad_()
    with hook_of(module, getattr(fast, CLASSES[rule])(**RULES[rule])).context(module):
        output = module(x)
        first, second = (torch.autograd.grad(output, x, upper, retain_graph=True)[0] for _ in range(2))
        (last,) = torch.autograd.grad(output, x, upper)
        with pytest.raises(RuntimeError, match="second time"):
            torch.autograd.grad(output, x, upper)
    assert torch.equal(first, second)
    assert torch.equal(first, last)


def test_epsilon_on_a_long_layer(oracle, monkeypatch):
    """Blocks, a remainder, and outputs without relevance in any case."""
    monkeypatch.setattr(products, "_LARGE", 1)
    monkeypatch.setattr(products, "_COLUMNS", 1 << 14)
    torch.manual_seed(2)
    module = nn.Linear(20 * products._SUM + 77, 5)
    module.weight.data.abs_()  # no cancellation: what is measured is the rounding of long sums
    x, upper = torch.rand(3, module.in_features), torch.randn(3, 5)
    upper[:, [0, 3]] = 0
    found = relevance_by(fast.Epsilon(1e-4), module, x, upper)
    expected, _ = expected_by(oracle, "epsilon", module, x, upper, epsilon=1e-4)
    assert relative(found.numpy(), expected) < LONG_SUM
    with hook_of(module, fast.Epsilon()).context(module):
        output = module(x.requires_grad_()).detach()
    double = nn.functional.linear(x.detach().double(), module.weight.double(), module.bias.double())
    torch.testing.assert_close(output.double(), double, rtol=LONG_SUM, atol=0)
    for case, among in zip(x.detach(), output, strict=True):
        alone = products.product(module, case[None], module.weight, module.bias)
        torch.testing.assert_close(alone[0], among, rtol=LONG_SUM, atol=0)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.ConvTranspose3d(2, 3, 3, stride=2), (2, 2, 3, 2, 3)),
        (nn.Conv3d(2, 3, 3, padding=1, padding_mode="circular"), (2, 2, 4, 4, 4)),
        (nn.Conv3d(2, 3, 3, padding="same"), (2, 2, 4, 4, 4)),
    ],
    ids=["transposed", "circular", "same"],
)
@pytest.mark.parametrize("rule", RULES)
def test_other_geometries_get_zennits_hook(rule, module, shape):
    torch.manual_seed(3)
    module, x = module.double(), torch.randn(shape, dtype=torch.float64)
    upper = torch.randn_like(module(x).detach())
    ours, zennits = (
        relevance_by(getattr(kind, CLASSES[rule])(**RULES[rule]), module, x, upper) for kind in (fast, stock)
    )
    torch.testing.assert_close(ours, zennits, rtol=0, atol=0)


def test_callable_stabiliser_gets_zennits_hook():
    from zennit.core import Stabilizer

    module, x, upper = case("linear", signed=True)
    stabilizer = Stabilizer(1e-3, clip=True)
    ours, zennits = (relevance_by(kind.Epsilon(stabilizer), module, x, upper) for kind in (fast, stock))
    torch.testing.assert_close(ours, zennits, rtol=0, atol=0)


def test_pass_keeps_relevance_of_silent_units():
    x, upper = torch.tensor([[-1.0, 2.0]]), torch.tensor([[5.0, 7.0]])
    for activation in (nn.ReLU(), nn.ReLU(inplace=True)):
        assert torch.equal(relevance_by(fast.Pass(), activation, x, upper), upper)
    assert torch.equal(relevance_by(stock.Pass(), nn.ReLU(), x, upper), upper)


def test_layers_that_write_in_place():
    """An in-place activation behind a rule, with the gradient as its own rule, changes what the rule would read."""
    torch.manual_seed(4)
    conv, upper = nn.Conv1d(2, 3, 3), torch.randn(1, 3, 5)
    x = torch.randn(1, 2, 7)
    for rule, parameters in RULES.items():
        hook = getattr(fast, CLASSES[rule])(**parameters)
        ours, plain = (
            relevance_by_network(nn.Sequential(conv, nn.ReLU(inplace=inplace)), conv, hook, x, upper)
            for inplace in (True, False)
        )
        assert torch.equal(ours, plain)


def relevance_by_network(model, module, hook, x, upper):
    x = x.clone().requires_grad_()
    with hook_of(module, hook).context(model):
        return torch.autograd.grad(model(x), x, upper)[0]


def test_a_layer_used_twice():
    torch.manual_seed(5)
    layer = nn.Linear(4, 4).double()
    x, upper = torch.rand(2, 4, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    first = layer(x).detach()
    expected = relevance_by(fast.Epsilon(), layer, x, relevance_by(fast.Epsilon(), layer, first, upper))
    found = relevance_by_network(nn.Sequential(layer, layer), layer, fast.Epsilon(), x, upper)
    torch.testing.assert_close(found, expected)


def test_differentiating_twice_raises():
    module, x, upper = case("linear", signed=False)
    x, upper = x.requires_grad_(), upper.requires_grad_()
    with hook_of(module, fast.Epsilon()).context(module):
        (relevance,) = torch.autograd.grad(module(x), x, upper, create_graph=True)
    with pytest.raises(RuntimeError, match="not have been used in the graph"):
        torch.autograd.grad(relevance.sum(), x, retain_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        relevance.sum().backward()


def test_forward_is_restored_also_over_another():
    module, _, _ = case("linear", signed=False)
    module.forward = lambda input: input[..., :7] * 2
    inner = module.forward
    with hook_of(module, fast.Pass()).context(module):
        assert module.forward is not inner
    assert module.forward is inner
    del module.forward
    with hook_of(module, fast.Epsilon()).context(module):
        assert "forward" in vars(module)
    assert "forward" not in vars(module)
