"""How many cases are explained at once."""

import pytest
import torch
from torch import nn

from datxai.explain import batches


def test_activation_bytes_are_those_of_the_layers():
    model = nn.Sequential(nn.Conv3d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 3 * 4 * 5, 2))
    activations = 3 * 4 * (3 * 4 * 5) + 2  # convolution, ReLU, flattened; logits
    assert batches.activation_bytes(model, (1, 5, 6, 7)) == 4 * activations
    assert batches.activation_bytes(model.double(), (1, 5, 6, 7)) == 8 * activations
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("gibibytes", "rules", "expected"),
    [(0, "fast", 1), (0.5, "fast", 1), (2, "fast", 2), (2, "zennit", 1), (50, "fast", 4), (50, "zennit", 4)],
)
def test_memory_sets_the_batch(monkeypatch, gibibytes, rules, expected):
    monkeypatch.setattr(batches, "available_bytes", lambda device: gibibytes * 2**30)
    monkeypatch.setattr(batches, "activation_bytes", lambda model, shape: 300 * 2**20)
    assert batches.choose_batch_size(nn.Identity(), (1, 91, 109, 63), "cpu", rules) == expected


def test_available_memory_is_found_here():
    assert 2**20 < batches.available_bytes("cpu") < 2**50
    if torch.cuda.is_available():
        assert 0 < batches.available_bytes("cuda") < 2**50
