import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datxai.errors import InputError
from datxai.explain import attribute
from datxai.model.network import Input, build

PAPER_GRID = (91, 109, 63)
NAMES = "conv1 relu1 conv2 relu2 conv3 relu3 conv4 relu4 flatten fc1 relu5 dropout fc2 relu6 output"


def on_meta(shape, **arguments):
    with torch.device("meta"):
        return build(shape, **arguments)


def names(model):
    return " ".join(name for name, _ in model.named_children())


def test_the_papers_network_has_its_number_of_parameters():
    model = on_meta(PAPER_GRID, padding=0)
    convolutions = (27 + 1) * 16 + 3 * (27 * 16 + 1) * 16
    flat = 16 * (91 - 8) * (109 - 8) * (63 - 8)
    linear = (flat + 1) * 32 + (32 + 1) * 16 + (16 + 1) * 2
    assert sum(p.numel() for p in model.parameters()) == convolutions + linear == 236_087_106
    assert names(model) == NAMES
    assert model.dropout.p == 0.2


def test_auto_pads_thin_axes_only():
    assert on_meta(PAPER_GRID).conv1.padding == (0, 0, 0)
    slab = on_meta((91, 109, 1))
    assert [slab.get_submodule(f"conv{i}").padding for i in (1, 2, 3, 4)] == [(0, 0, 1)] * 4
    assert slab.fc1.in_features == 16 * 83 * 101


@settings(deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 12)] * 3),
    kernel_size=st.sampled_from([1, 3, 5]),
    padding=st.sampled_from(["auto", 0, 1, "2"]),
    depth=st.integers(1, 4),
)
def test_a_network_runs_or_is_refused_because_nothing_is_left(shape, kernel_size, padding, depth):
    arguments = {"channels": [2] * depth, "kernel_size": kernel_size, "padding": padding}
    thinnest = min(shape)
    for _ in range(0 if padding == "auto" else depth):
        thinnest = max(0, thinnest + 2 * int(padding) - (kernel_size - 1))
    if thinnest:
        assert build(shape, **arguments)(torch.zeros(2, 1, *shape)).shape == (2, 2)
    else:
        with pytest.raises(InputError, match="too small"):
            build(shape, **arguments)


@pytest.mark.parametrize(
    ("shape", "padding", "words"),
    [
        ((91, 109, 1), 0, "91x109x1 voxels is too small for 4 .* at least 9 voxels.*padding=auto"),
        ((9, 9, 9), "same", "padding is same, expected auto or a number"),
        ((9, 9, 9), -1, "padding is -1, expected auto or a number"),
    ],
)
def test_what_cannot_be_built_is_said(shape, padding, words):
    with pytest.raises(InputError, match=words):
        build(shape, padding=padding)


def test_the_seed_makes_the_weights_and_nothing_else():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first, again, other = (build((9, 9, 9), seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(first[name], again[name]) for name in first)
    for name in first:
        if name.endswith("bias"):
            assert not first[name].any()
        else:
            assert not torch.equal(first[name], other[name])


def test_initial_weights_are_glorots():
    weight = build((9, 9, 9), channels=(16, 16), seed=3).conv2.weight
    bound = (6 / (27 * 16 + 27 * 16)) ** 0.5
    assert 0.99 * bound < weight.abs().max() <= bound
    assert weight.mean().abs() < 4 * bound / (3 * weight.numel()) ** 0.5  # four standard errors


@pytest.mark.parametrize(("channels", "hidden"), [((4, 6, 2), (8, 4)), ((2,), ()), ((16, 16, 16, 16), (32, 16))])
def test_a_network_that_looks_linear_is_linear_until_trained(channels, hidden):
    model = build((10, 9, 11), channels, hidden=hidden, initialisation="looks_linear", seed=3).double().eval()
    a, b = torch.randn(2, 3, 1, 10, 9, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(2 * a - 3 * b), 2 * model(a) - 3 * model(b))
    torch.testing.assert_close(model(a)[:, 0], -model(a)[:, 1])
    assert model(a).abs().min() > 0
    glorot = build((10, 9, 11), channels, hidden=hidden, seed=3).double().eval()
    assert not torch.allclose(glorot(-a), -glorot(a)), "unpaired, it is not"


def test_of_an_odd_number_of_units_the_last_is_not_paired():
    settings = {"shape": (7, 7, 7), "channels": (3, 5), "hidden": (3,), "seed": 3}
    paired, plain = build(**settings, initialisation="looks_linear"), build(**settings)
    assert torch.equal(paired.conv1.weight[1], -paired.conv1.weight[0])
    assert torch.equal(paired.conv1.weight[2], plain.conv1.weight[2])
    assert torch.equal(paired.conv2.weight[4, 2], plain.conv2.weight[4, 2])
    assert torch.equal(paired.conv2.weight[:4, 1], -paired.conv2.weight[:4, 0])
    fc1 = paired.fc1.weight.view(3, 5, -1)
    assert torch.equal(fc1[:, 2:4], -fc1[:, :2])
    assert torch.equal(fc1[2, 4], plain.fc1.weight.view(3, 5, -1)[2, 4])


def test_an_unknown_initialisation_is_refused():
    with pytest.raises(InputError, match=r"network\.initialisation=zeros: expected glorot or looks_linear"):
        build((9, 9, 9), initialisation="zeros")


def test_layers_and_classes_are_free():
    model = build((12, 10, 9), channels=(4, 3), hidden=(), n_classes=3)
    assert names(model) == "conv1 relu1 conv2 relu2 flatten output"
    assert model(torch.zeros(5, 1, 12, 10, 9)).shape == (5, 3)


def test_an_input_of_its_own_comes_first_where_not_all_is_seen_as_it_is():
    shape = (9, 10, 9)
    plain, model = build(shape, seed=3), build(shape, see="striatum", centre=True, seed=3).eval()
    assert names(plain) == NAMES
    assert names(model) == f"input {NAMES}"
    x = torch.rand(2, 1, *shape)
    assert torch.equal(model(x), plain.eval()(x)), "it changes nothing before it is filled"
    torch.nn.init.uniform_(model.input.mean)
    model.input.mask[:4] = 0
    seen = (x - model.input.mean) * (torch.arange(9) >= 4)[:, None, None]
    assert torch.equal(model(x), plain(seen))
    assert {"input.mean", "input.mask"} <= model.state_dict().keys()
    with pytest.raises(InputError, match=r"network\.see=half: expected one of all, striatum, extrastriatal"):
        build(shape, see="half")


def test_a_batch_is_explained_with_one_forward_pass(monkeypatch):
    batches, forward = [], Input.forward
    monkeypatch.setattr(Input, "forward", lambda self, x: (batches.append(len(x)), forward(self, x))[1])
    model = build((9, 9, 9), channels=(2, 2, 2, 2), hidden=(3, 2), centre=True).eval()
    composite = [
        {"match": ["type:Linear", "type:Convolution"], "rule": "epsilon"},
        {"match": ["type:Activation"], "rule": "pass"},
    ]
    attribute(model, torch.rand(3, 1, 9, 9, 9), composite=composite)
    assert batches == [3]
    handle = model.fc1.register_forward_hook(lambda _, args, output: output - output.mean(0))
    with pytest.warns(UserWarning, match="other inputs of its batch"):
        attribute(model, torch.rand(3, 1, 9, 9, 9), composite=composite)
    handle.remove()
