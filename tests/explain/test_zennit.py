"""Our rules in the place of Zennit's, wherever Zennit puts its own: layers, composites, canonizers, attributors.

The kinds of layers, parameters and relevance are those that Zennit's own tests go through; what is expected is what
stock Zennit computes. `test_rules` has both against their equations.
"""

import copy
import importlib
from collections import OrderedDict
from itertools import product

import pytest
import torch
from torch import nn

from datxai.explain import rules as fast
from datxai.explain._zennit import BasicHook, canonizers, layer
from datxai.explain._zennit import rules as stock

# Not by an import statement, which would stand before that of datxai: that lets Zennit be imported at all.
attribution, composites = (importlib.import_module(f"zennit.{name}") for name in ("attribution", "composites"))

SAME = 1e-9  # relative L2, float64
BOTH = (None, "bias")
RULES = {  # the parameters of each
    "Epsilon": [{"epsilon": epsilon, "zero_params": zero} for epsilon, zero in product((1e-6, 1.0), BOTH)],
    "ZPlus": [{"zero_params": zero} for zero in BOTH],
    "AlphaBeta": [
        {"alpha": alpha, "beta": alpha - 1, "zero_params": zero} for alpha, zero in product((1.0, 2.0, 3.5), BOTH)
    ],
    "Gamma": [{"gamma": gamma, "zero_params": zero} for gamma, zero in product((0.1, 0.25, 0.5), BOTH)],
    "ZBox": [{"low": low, "high": 3.0, "zero_params": zero} for low, zero in product((-3.0, 0.0), BOTH)],
    "WSquare": [{"zero_params": zero} for zero in BOTH],
    "Flat": [{}],
}
STABILISED = [
    ("ZPlus", {}), ("AlphaBeta", {"alpha": 2.0, "beta": 1.0}), ("Gamma", {"gamma": 0.25}),
    ("ZBox", {"low": -3.0, "high": 3.0}), ("WSquare", {}), ("Flat", {}),
]  # fmt: skip
CONVOLUTIONS = [
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
]  # fmt: skip
GEOMETRIES = [
    {"stride": 2}, {"padding": 1}, {"dilation": 2}, {"stride": 2, "padding": 1}, {"groups": 3}, {"padding": "same"},
    {"padding": 1, "padding_mode": "reflect"},
]  # fmt: skip
ACTIVATIONS = [nn.ReLU(), nn.Softmax(dim=1), nn.Tanh(), nn.Sigmoid(), nn.Softplus(beta=1), nn.GELU(), nn.Dropout()]
SHAPES = [(16,), (4,), (4, 4), (4, 4, 4)]


def largest_alone(output):
    """Zero but for the largest output of each case."""
    flat = output.flatten(1)
    return (torch.nn.functional.one_hot(flat.argmax(1), flat.shape[1]) * flat).reshape(output.shape)


UPPER = [lambda output: output, largest_alone, torch.ones_like]  # relevance at the output, of the output


def layers_of(kind):
    """Layers of a kind, with the shape of a case: all numbers of channels, kernels, with a bias and without."""
    if kind is nn.Linear:
        return [(nn.Linear(16, 15, bias=bias), (16,)) for bias in (True, False)]
    axes = int(kind.__name__[-2])
    return [
        (kind(into, out, kernel, bias=bias), (into, *[4] * axes))
        for into, out, kernel, bias in product((1, 3), (1, 3), (2, 3), (True, False))
    ]


def relevance_by(hook, module, x):
    """What a hook makes of each relevance of `UPPER` at the output of one layer."""
    x = x.clone().requires_grad_()
    handle = hook.register(module)
    try:
        output = module(x)
        uppers = [upper(output.detach()) for upper in UPPER]
        return [torch.autograd.grad(output, x, upper, retain_graph=True)[0] for upper in uppers]
    finally:
        handle.remove()


def require_same(module, shape, rule, parameters):
    generator = torch.Generator().manual_seed(3)
    module = module.double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    x = torch.randn(4, *shape, generator=generator, dtype=torch.float64)
    pair = (relevance_by(getattr(kind, rule)(**parameters), module, x) for kind in (fast, stock))
    for ours, zennits in zip(*pair, strict=True):
        assert (ours - zennits).norm() <= SAME * zennits.norm(), (module, parameters)
    assert not module._forward_hooks and not module._forward_pre_hooks and "forward" not in vars(module)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", [nn.Linear, *CONVOLUTIONS], ids=lambda kind: kind.__name__)
def test_rules_of_layers_with_weights(kind, rule):
    for (module, shape), parameters in product(layers_of(kind), RULES[rule]):
        require_same(module, shape, rule, parameters)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_other_geometries(geometry, rule):
    for kind, parameters in product(CONVOLUTIONS[:3], RULES[rule]):
        shape = (3, *[5] * int(kind.__name__[-2]))
        require_same(kind(3, 6, 3, **geometry), shape, rule, parameters)


@pytest.mark.parametrize("stabilizer", [1e-9, 0.1])
def test_stabilisers(stabilizer):
    for (rule, parameters), kind in product(STABILISED, (nn.Linear, nn.Conv2d)):
        for module, shape in layers_of(kind):
            require_same(module, shape, rule, {**parameters, "stabilizer": stabilizer})


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda module: type(module).__name__)
def test_pass(activation):
    for shape in SHAPES:
        require_same(activation, shape, "Pass", {})


@pytest.mark.parametrize("parameters", [{"alpha": -1.0}, {"beta": -1.0}, {"alpha": 1.0, "beta": 1.0}], ids=str)
@pytest.mark.parametrize("kind", [fast, stock], ids=["fast", "zennit"])
def test_the_same_parameters_are_refused(kind, parameters):
    with pytest.raises(ValueError, match=r"(?i)alpha|beta"):
        kind.AlphaBeta(**parameters)


def test_every_rule_of_ours_has_a_row():
    ours = {name for name, kind in vars(fast).items() if isinstance(kind, type) and issubclass(kind, fast.Rule)}
    assert {name for name in ours if not name.startswith("_")} - {"Rule"} == {*RULES, "Pass"}


# --- where Zennit puts rules ----------------------------------------------------------------------------------------


class Residual(nn.Module):
    """A sum that is a layer, as the rule Norm wants it."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = (nn.Conv2d(n, 3, 3, padding=1) for n in (1, 3, 3))
        self.relu, self.add, self.out = nn.ReLU(), layer.Sum(), nn.Linear(108, 4)

    def forward(self, x):
        y = self.relu(self.stem(x))
        z = self.b(self.relu(self.a(y)))
        return self.out(self.relu(self.add(torch.stack([y, z], dim=-1))).flatten(1))


def make_networks():
    """Small ones of the kinds that Zennit tests its composites on."""
    return {
        "dense": (nn.Sequential(nn.Flatten(), nn.Linear(36, 9), nn.ReLU(), nn.Linear(9, 4)), (1, 6, 6)),
        "pooled": (
            nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(4, 5, 2),
                          nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(5, 4)),
            (1, 6, 6),
        ),
        "normed": (
            nn.Sequential(OrderedDict(conv=nn.Conv2d(1, 4, 3), bn=nn.BatchNorm2d(4), relu=nn.ReLU(),
                                      pool=nn.AvgPool2d(2), flat=nn.Flatten(), out=nn.Linear(16, 4))),
            (1, 6, 6),
        ),
        "residual": (Residual(), (1, 6, 6)),
        "volume": (
            nn.Sequential(nn.Conv3d(1, 3, 3), nn.ReLU(), nn.Conv3d(3, 2, 2), nn.ReLU(), nn.Flatten(),
                          nn.Linear(54, 4)),
            (1, 6, 6, 6),
        ),
        "signal": (
            nn.Sequential(nn.Conv1d(1, 3, 3), nn.Tanh(), nn.ConvTranspose1d(3, 2, 3), nn.ReLU(), nn.Flatten(),
                          nn.Linear(12, 4)),
            (1, 6),
        ),
    }  # fmt: skip


NETWORKS = tuple(make_networks())
SWAPPED = [name for name in (*RULES, "Pass") if hasattr(composites, name)]
OPTIONS = {"epsilon_gamma_box": {"low": -3.0, "high": 3.0}}


def network(name):
    torch.manual_seed(5)
    model, shape = make_networks()[name]
    model = model.double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.running_mean, module.weight.data, module.bias.data):
                values.normal_()
            module.running_var.uniform_(0.5, 2)
    return model, torch.randn(3, *shape, dtype=torch.float64)


@pytest.fixture
def both(monkeypatch):
    """Makes a composite of Zennit's twice: with Zennit's rules, and with ours in their place."""

    def make(name, **options):
        made = [composites.COMPOSITES[name](**OPTIONS.get(name, {}), **options)]
        with monkeypatch.context() as swapped:
            for rule in SWAPPED:
                swapped.setattr(composites, rule, getattr(fast, rule))
            made.append(composites.COMPOSITES[name](**OPTIONS.get(name, {}), **options))
        return made

    return make


def state_of(model):
    hooks = ("_forward_hooks", "_forward_pre_hooks")
    return [(set(vars(module)), *(len(getattr(module, name)) for name in hooks)) for module in model.modules()]


def relevances(composite, make_attributor, model, x, upper):
    """Output and relevance by an attributor of Zennit's; the network is left as it was.

    Not so where batch norms are merged: Zennit 1.0 leaves the merged weights. `attribute` sets them back
    (test_composite).
    """
    model = copy.deepcopy(model)
    before, weights = state_of(model), {key: value.clone() for key, value in model.state_dict().items()}
    with make_attributor(model, composite) as attributor:
        torch.manual_seed(6)
        output, relevance = attributor(x, upper)
    if not composite.canonizers:
        assert state_of(model) == before
        assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    return output.detach(), relevance.detach()


def require_same_maps(pair, make_attributor, model, x, upper=torch.ones_like):
    (output, expected), (again, found) = (relevances(each, make_attributor, model, x, upper) for each in pair)
    assert (again - output).norm() <= SAME * output.norm()
    assert expected.any()
    assert (found - expected).norm() <= SAME * expected.norm()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("composite", composites.COMPOSITES)
def test_composites(both, composite, name):
    model, x = network(name)
    for upper in UPPER:
        require_same_maps(both(composite), attribution.Gradient, model, x, upper)


def test_ours_are_in_them(both):
    """The swap is one: our rules are registered, and Zennit's where there is none of ours."""
    model, _ = network("pooled")
    _, ours = both("epsilon_gamma_box")
    ours.register(model)
    hooks = [handle.hook if hasattr(handle, "hook") else handle for handle in ours.handles]
    assert len(hooks) >= 6
    assert sum("forward" in vars(module) for module in model.modules()) >= 5
    ours.remove()
    assert not any("forward" in vars(module) for module in model.modules())
    assert {"Epsilon", "Gamma", "ZBox", "ZPlus", "AlphaBeta", "Flat", "Pass"} <= {*SWAPPED}
    assert not issubclass(fast.Epsilon, BasicHook)


MERGERS = {
    "sequential": canonizers.SequentialMergeBatchNorm,
    "named": lambda: canonizers.NamedMergeBatchNorm([(["conv"], "bn")]),
}


@pytest.mark.parametrize("canonizer", MERGERS)
@pytest.mark.parametrize("composite", ["epsilon_gamma_box", "epsilon_plus", "epsilon_alpha2_beta1_flat"])
def test_canonizers(both, composite, canonizer):
    model, x = network("normed")
    require_same_maps(both(composite, canonizers=[MERGERS[canonizer]()]), attribution.Gradient, model, x)


ATTRIBUTORS = {
    "SmoothGrad": lambda model, composite: attribution.SmoothGrad(model, composite, noise_level=0.2, n_iter=3),
    "IntegratedGradients": lambda model, composite: attribution.IntegratedGradients(model, composite, n_iter=3),
    "Occlusion": lambda model, composite: attribution.Occlusion(model, composite, window=3, stride=3),
}


@pytest.mark.parametrize("name", ["dense", "pooled", "residual"])
@pytest.mark.parametrize("attributor", ATTRIBUTORS)
def test_attributors(both, attributor, name):
    model, x = network(name)
    for composite in ("epsilon_plus", "epsilon_alpha2_beta1_flat"):
        require_same_maps(both(composite), ATTRIBUTORS[attributor], model, x)


def test_composites_by_name_and_mixed():
    """Rules by the names of layers, and before those by type."""
    model, x = network("pooled")
    pair = []
    for kind in (stock, fast):
        names = [(["0"], kind.ZBox(-3.0, 3.0)), (["3", "8"], kind.AlphaBeta(3, 2))]
        named = composites.NameMapComposite(name_map=names)
        by_type = composites.LayerMapComposite(layer_map=[(nn.Linear, kind.Epsilon(0.1)), (nn.ReLU, kind.Pass())])
        pair.append(composites.MixedComposite([named, by_type]))
    require_same_maps(pair, attribution.Gradient, model, x)
