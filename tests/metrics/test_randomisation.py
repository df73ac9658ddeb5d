"""Sanity checks: methods that must pass and methods that must fail, and the network untouched."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import utils
from torch.nn.utils import parametrizations, prune

from datxai.errors import InputError
from datxai.metrics import METRICS
from datxai.metrics.randomisation import cascade, randomise

SHAPE = (6, 5, 4)


def network():
    torch.manual_seed(1)
    layers = nn.Conv3d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 4 * 3 * 2, 5), nn.ReLU(), nn.Linear(5, 2)
    return nn.Sequential(*layers).double().eval()


def gradient(output):
    def explain(model, x):
        x = x.clone().requires_grad_()
        return torch.autograd.grad(model(x)[:, output].sum(), x)[0][:, 0]

    return explain


@pytest.fixture
def case(make_case):
    model, x = network(), torch.from_numpy(np.random.default_rng(0).normal(size=(1, 1, *SHAPE)))

    def make(explain, explain_other):
        relevance = explain(model, x)[0]
        return make_case(relevance.detach().numpy(), model=model, x=x, explain=explain, explain_other=explain_other)

    return make


def test_cascade_goes_from_the_output_down_and_keeps_what_is_below():
    model = network()
    before = [tensor.clone() for tensor in model.parameters()]
    states = [(name, [tensor.clone() for tensor in found.parameters()]) for name, found in randomise(model, 0)]
    assert [name for name, _ in states] == ["5", "3", "0"]
    for kept, (_, tensors) in zip((4, 2, 0), states):
        changed = [not torch.equal(a, b) for a, b in zip(before, tensors)]
        assert changed == [False] * kept + [True] * (6 - kept)
    _, copy = next(iter(randomise(model, 0)))
    shared = [a is b for a, b in zip(model.parameters(), copy.parameters())]
    assert shared == [True] * 4 + [False] * 2, "what is not random is held once"
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters())), "the model itself is as it was"


def test_random_weights_have_the_size_of_those_learned_and_come_from_the_seed_alone():
    model = nn.Sequential(nn.Linear(200, 300)).double()
    with torch.no_grad():
        model[0].weight.mul_(7.0).add_(1.0)
        model[0].bias.zero_()
    state = torch.random.get_rng_state()
    (_, first), (_, again), (_, other) = (next(iter(randomise(model, seed))) for seed in (0, 0, 1))
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(first[0].weight, again[0].weight) and not torch.equal(first[0].weight, other[0].weight)
    rms = float(model[0].weight.detach().square().mean().sqrt())
    assert float(first[0].weight.detach().std()) == pytest.approx(rms, rel=0.02)
    assert float(first[0].weight.detach().mean()) == pytest.approx(0, abs=0.02 * rms)
    assert not first[0].bias.any()


def weights_made(wrap):
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of PyTorch, of its older weight norm
        model = nn.Sequential(wrap(nn.Linear(30, 40)), nn.ReLU(), nn.Linear(40, 2)).double().eval()
    return model, torch.rand(5, 30, dtype=torch.float64)


@pytest.mark.parametrize(
    "wrap",
    [
        utils.weight_norm, utils.spectral_norm, parametrizations.weight_norm, parametrizations.spectral_norm,
        lambda layer: prune.random_unstructured(layer, "weight", 0.5),
    ],
    ids=["weight_norm", "spectral_norm", "parametrised weight_norm", "parametrised spectral_norm", "pruned"],
)  # fmt: skip
def test_weights_that_are_made_are_randomised_as_they_are(wrap):
    """Also once the network has run, which leaves weights that belong to its graph; it answers as before."""
    model, x = weights_made(wrap)
    before, content = model(x).detach(), {name: value.clone() for name, value in model.state_dict().items()}
    weight = model[0].weight.detach().clone()
    *_, (name, last) = randomise(model, 0)
    assert name == "0"
    drawn = last[0].weight.detach()
    assert drawn.square().mean() == pytest.approx(float(weight.square().mean()), rel=0.1)
    assert abs(np.corrcoef(drawn.flatten(), weight.flatten())[0, 1]) < 0.2
    hidden = nn.functional.linear(x, drawn, last[0].bias).relu()
    torch.testing.assert_close(last(x), nn.functional.linear(hidden, last[2].weight, last[2].bias))
    assert torch.equal(model(x).detach(), before)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in content.items())


def test_a_network_that_cannot_be_copied_is_refused():
    model, x = weights_made(lambda layer: layer)
    model.seen = [model(x)]
    with pytest.raises(InputError, match="cannot be copied"):
        next(iter(randomise(model, 0)))
    with pytest.raises(InputError, match="lazy layers"):
        next(iter(randomise(nn.Sequential(nn.LazyLinear(2)), 0)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per_tensor")
def test_networks_without_parameters_are_refused():
    with pytest.raises(InputError, match="no parameters"):
        next(iter(randomise(nn.Sequential(nn.Flatten()), 0)))
    quantised = torch.ao.quantization.quantize_dynamic(network().float(), {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(InputError, match=r"layer 3 \(Linear\) is quantised"):
        next(iter(randomise(quantised, 0)))


def replace_forward(layer):
    plain = layer.forward
    layer.forward = lambda x: 2 * plain(x)


def add_hook(layer):
    layer.other = nn.Conv3d(1, 3, 3).double()
    other = layer.other
    layer.register_forward_hook(lambda module, args, output: output + other(args[0]))


@pytest.mark.parametrize("change", [replace_forward, add_hook])
def test_a_copy_that_holds_on_to_weights_of_the_network_is_refused(case, change):
    """A function that took the place of a layer's forward, or is a hook, is not copied with what it refers to."""
    chosen = case(gradient(1), gradient(0))
    change(chosen.model[0])
    with pytest.raises(InputError, match="still uses weights of the network itself"):
        cascade(chosen)


def test_a_method_that_ignores_the_network_fails_and_the_gradient_does_not(case):
    edges = case(lambda model, x: x[:, 0] ** 3, lambda model, x: x[:, 0] ** 3)
    found = METRICS["parameter_randomisation"](edges) | METRICS["random_logit"](edges)
    assert found and all(value == pytest.approx(1) for value in found.values())
    honest = METRICS["parameter_randomisation"](case(gradient(1), gradient(0)))
    assert honest["spearman_abs_all"] < 0.5 and honest["spearman_all"] < 0.5


def test_a_map_that_only_turns_its_sign_is_seen_through(case):
    sign = {"now": 1.0}

    def flickering(model, x):
        sign["now"] *= -1.0
        return sign["now"] * x[:, 0]

    found = METRICS["parameter_randomisation"](case(flickering, flickering))
    assert found["spearman"] == pytest.approx(1) and found["spearman_abs"] == pytest.approx(1)


def test_summary_is_the_mean_over_the_cascade(case):
    chosen = case(gradient(1), gradient(0))
    steps, found = cascade(chosen), METRICS["parameter_randomisation"](chosen)
    assert list(steps) == ["5", "3", "0"]
    for name in ("spearman_abs", "ssim"):
        assert found[name] == pytest.approx(sum(step[name] for step in steps.values()) / 3)
        assert found[f"{name}_all"] == steps["0"][name]


def test_random_logit_of_outputs_that_say_the_opposite(case):
    model_map = gradient(1)
    found = METRICS["random_logit"](case(model_map, lambda model, x: -model_map(model, x)))
    assert found["spearman"] == pytest.approx(-1)
    assert found["spearman_abs"] == pytest.approx(1) and found["ssim"] == pytest.approx(1)


def test_the_network_is_as_it_was_after_every_metric(case):
    chosen = case(gradient(1), gradient(0))
    before = {name: tensor.clone() for name, tensor in chosen.model.state_dict().items()}
    x = chosen.x.clone()
    for metric in METRICS.values():
        metric(chosen)
    after = chosen.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items()) and torch.equal(chosen.x, x)
    assert not chosen.model.training and all(tensor.grad is None for tensor in chosen.model.parameters())
