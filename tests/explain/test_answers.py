"""Answers that are kept are those of the network, and no input goes twice through the same layers."""

from itertools import chain

import numpy as np
import pytest
import torch
from torch import nn

from datxai.explain import attribute
from datxai.explain.answers import Answers
from datxai.explain.parcels import make_blocks
from datxai.metrics.randomisation import randomise

FEW = {
    "lime": {"n_samples": 12},
    "kernel_shap": {"n_samples": 40},
    "occlusion": {},
    "integrated_gradients": {"n_steps": 3},
}


@pytest.fixture
def counted(cnn):
    """How many inputs have gone through the first layer."""
    seen = []
    cnn.eval()[0].register_forward_hook(lambda module, args, output: seen.append(len(output)))
    return seen


def test_answers_are_those_of_the_network_and_asked_for_once(cnn, scans, counted):
    answers = Answers()
    batch = torch.cat([scans, scans[:1], 2 * scans])
    for _ in range(2):
        np.testing.assert_allclose(answers(cnn, batch), cnn(batch).detach(), rtol=1e-12, atol=1e-12)
    assert sum(counted) == 4 + 2 * 5
    assert not answers(cnn, batch).requires_grad


@pytest.mark.parametrize("method", sorted(FEW))
def test_maps_are_the_same_with_and_without(cnn, scans, counted, method):
    """Of another output, and of every network of a cascade: oracle is the plain way."""
    answers = Answers()
    passes = []
    for model, target in chain([(cnn, 0), (cnn, 1)], ((model, 1) for _, model in randomise(cnn, 0))):
        chosen = {"method": method, "options": FEW[method], "target": target, "start": "one"}
        chosen |= {"parcels": make_blocks(scans.shape[2:], 6)}
        before = sum(counted)
        found = attribute(model, scans, answers=answers, **chosen).relevance
        passes.append(sum(counted) - before)
        plain = attribute(model, scans, **chosen).relevance
        np.testing.assert_allclose(found, plain, rtol=1e-9, atol=1e-12 * float(plain.abs().max()))
    if method in ("lime", "kernel_shap"):  # the other output, a random output layer, a random fc2: but for the logits
        assert passes[1:4] == [2, 2, 2] and min(passes[0], *passes[4:]) >= 2 * 12


def test_weights_that_were_written_over_are_other_weights(scans):
    model = nn.Sequential(nn.Flatten(), nn.Linear(scans[0].numel(), 2)).double()
    answers = Answers()
    before = answers(model, scans)
    with torch.no_grad():
        model[1].weight.mul_(2)
    np.testing.assert_allclose(answers(model, scans), model(scans).detach())
    assert not torch.allclose(answers(model, scans), before)


def test_a_network_of_any_form_is_kept_by_its_outputs(other_network, scans):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = other_network

        def forward(self, x):
            return self.inner(x)

    answers, model = Answers(), Wrapped()
    for _ in range(2):
        np.testing.assert_allclose(answers(model, scans), model(scans).detach())


class Turned(nn.Module):
    """The outputs of a network, times a factor."""

    def __init__(self, inner, factor):
        super().__init__()
        self.inner, self.factor = inner, factor

    def forward(self, x):
        return self.factor * self.inner(x)


class Negated(Turned):
    def forward(self, x):
        return -self.inner(x)


def with_another(model, place, layer):
    """The same layers, by identity, but for one."""
    return nn.Sequential(*model[:place], layer, *model[place + 1 :]).eval()


def test_networks_that_share_weights_and_compute_something_else_are_told_apart(cnn, scans):
    """Oracle: the map without answers."""
    cnn.eval()
    hooked = nn.Sequential(*cnn).eval()
    hooked.register_forward_hook(lambda module, args, output: -output)
    models = [
        cnn, Turned(cnn, 1), Turned(cnn, -1), Negated(cnn, 1), hooked, with_another(cnn, 1, nn.Softplus()),
        with_another(cnn, 1, nn.LeakyReLU(0.1)), with_another(cnn, 1, nn.LeakyReLU(0.4)),
        with_another(cnn, 1, Turned(nn.ReLU(), 2)), with_another(cnn, 1, Turned(nn.ReLU(), 3)),
    ]  # fmt: skip
    answers, maps = Answers(), []
    for model in models:
        chosen = {"method": "kernel_shap", "options": FEW["kernel_shap"], "target": 1, "start": "one"}
        chosen |= {"parcels": make_blocks(scans.shape[2:], 6)}
        maps.append(attribute(model, scans, answers=answers, **chosen).relevance)
        plain = attribute(model, scans, **chosen).relevance
        np.testing.assert_allclose(maps[-1], plain, rtol=1e-9, atol=1e-12 * float(plain.abs().max()))
    np.testing.assert_allclose(maps[1], -maps[2])


def test_a_setting_that_is_changed_is_another_network(cnn, scans):
    model, answers = Turned(cnn.eval(), 1), Answers()
    before = answers(model, scans)
    model.factor = -1
    np.testing.assert_allclose(answers(model, scans), -before)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_weights_of_a_scripted_network_that_were_written_over_are_other_weights(other_network, scans):
    model = torch.jit.trace(other_network, scans)
    answers = Answers()
    before = answers(model, scans)
    with torch.no_grad():
        next(model.parameters()).mul_(-2)
        np.testing.assert_allclose(answers(model, scans), model(scans))
    assert not torch.allclose(answers(model, scans), before)


def test_inputs_of_the_same_bytes_are_told_apart_by_their_shape():
    answers, model = Answers(), nn.AdaptiveAvgPool3d((1, 1, 2))
    x = torch.arange(24.0).reshape(1, 1, 2, 3, 4)
    for shaped in (x, x.reshape(1, 1, 4, 3, 2)):
        np.testing.assert_allclose(answers(model, shaped), model(shaped))
