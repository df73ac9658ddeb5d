"""The input of the last fully connected layer, seen while a network runs."""

import threading

import numpy as np
import torch
from torch import nn

from datxai.model.features import MOST, watching_features


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 2))


def test_what_is_seen_is_what_the_last_layer_is_given():
    model, x = network(), torch.randn(3, 1, 2, 2, 2)
    weight, bias = (p.detach().double().numpy() for p in (model[1].weight, model[1].bias))
    expected = np.maximum(x.reshape(3, 8).double().numpy() @ weight.T + bias, 0)
    with watching_features(model) as features:
        answer = model(x)
        model(2 * x)
    assert len(features) == 2 and features[0].dtype == np.float32
    np.testing.assert_allclose(features[0], expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(answer, model(x))
    assert len(features) == 2 and not model[3]._forward_pre_hooks


def test_the_layer_may_be_anywhere_within():
    model = nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(8, 2)))
    with watching_features(model) as features:
        model(torch.ones(1, 8))
    np.testing.assert_array_equal(features[0], np.ones((1, 8)))


def test_a_network_without_such_a_layer_has_none():
    for model, x in (
        (nn.Conv3d(1, 2, 2), torch.randn(1, 1, 2, 2, 2)),
        (nn.Linear(4, 2), torch.randn(2, 3, 4)),
        (nn.Linear(MOST + 1, 2), torch.randn(1, MOST + 1)),
    ):
        with watching_features(model) as features:
            model(x)
        assert features == []


def test_another_thread_that_uses_the_network_is_not_seen():
    model = network()
    with watching_features(model) as features:
        other = threading.Thread(target=model, args=(torch.randn(1, 8),))
        other.start()
        other.join()
    assert features == []


def test_the_hook_is_gone_after_an_exception():
    model = network()
    try:
        with watching_features(model):
            raise RuntimeError
    except RuntimeError:
        pass
    assert not model[3]._forward_pre_hooks
