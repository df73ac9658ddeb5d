"""composite=auto on networks with batch norms, residual and dense connections, held to stock Zennit in float64.

Zennit is given the same network made by hand into one that needs no canonizer: batch norms folded by their formula,
additions as layers.
"""

import copy
import itertools
import re

import pytest
import torch
from torch import nn

from datxai.explain import attribute
from datxai.explain._zennit import layer, rules, types, zennit
from datxai.explain.automatic import choose_rules, find_uncovered
from datxai.explain.composite import describe_composite
from datxai.model.architectures import build

SHAPE = (16, 18, 15)
SAME = 1e-9  # relative L2, float64
CLOSED = 1e-5  # of the seed, float32
NETWORKS = {
    "vgg": ("vgg3d", {"channels": [[4], [6, 6]], "hidden": [5]}),
    "resnet-18": ("resnet3d", {"block": "basic", "layers": [2, 2, 2, 2], "block_inplanes": [4, 4, 6, 6],
                               "conv1_t_size": 3, "conv1_t_stride": 1}),
    "resnet-50": ("resnet3d", {"block": "bottleneck", "layers": [1, 1, 1, 1], "block_inplanes": [2, 2, 3, 3],
                               "conv1_t_size": 3, "conv1_t_stride": 1}),
    "densenet": ("densenet3d", {"init_features": 6, "growth_rate": 3, "block_config": [2, 3]}),
}  # fmt: skip


def network(name):
    """With statistics as training leaves them, of which none is trivial."""
    torch.manual_seed(sum(map(ord, name)))
    model = build(SHAPE, *NETWORKS[name], seed=4).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model


def made_plain(model):
    """Batch norms that follow a convolution folded into it by their formula, and additions as layers."""
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        names = [name for name, _ in parent.named_children()]
        for first, second in itertools.pairwise(names):
            convolution, norm = getattr(parent, first), getattr(parent, second)
            if isinstance(convolution, nn.Conv3d) and isinstance(norm, nn.BatchNorm3d):
                scale = norm.weight / (norm.running_var + norm.eps).sqrt()
                bias = 0 if convolution.bias is None else convolution.bias
                convolution.bias = nn.Parameter((bias - norm.running_mean) * scale + norm.bias)
                convolution.weight = nn.Parameter(convolution.weight * scale[:, None, None, None, None])
                setattr(parent, second, nn.Identity())
        for name, child in list(parent.named_children()):
            if type(child).__name__ in ("ResNetBlock", "ResNetBottleneck"):
                setattr(parent, name, Residual(child))
    return model


class Residual(nn.Module):
    def __init__(self, block):
        super().__init__()
        parts = [block.conv1, nn.ReLU(), block.conv2]
        parts += [nn.ReLU(), block.conv3] if hasattr(block, "conv3") else []
        self.branch, self.shortcut = nn.Sequential(*parts), block.downsample or nn.Sequential()
        self.sum, self.last = layer.Sum(), nn.ReLU()

    def forward(self, x):
        return self.last(self.sum(torch.stack([self.shortcut(x), self.branch(x)], dim=-1)))


def by_stock_zennit(model, x):
    composite = zennit.composites.SpecialFirstLayerMapComposite(
        layer_map=[
            (types.Activation, rules.Pass()), (types.BatchNorm, rules.Pass()), (layer.Sum, rules.Norm(stabilizer=1e-9)),
            (types.AvgPool, rules.Norm()), (types.Convolution, rules.ZPlus()), (nn.Linear, rules.Epsilon()),
        ],
        first_map=[(types.Convolution, rules.Flat())],
    )  # fmt: skip
    with zennit.attribution.Gradient(model, composite) as attributor:
        _, relevance = attributor(x.clone().requires_grad_(), lambda y: y.detach() * torch.tensor([0.0, 1.0]).to(y))
    return relevance.detach()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_map_is_that_of_stock_zennit_and_the_ledger_closes(name):
    model = network(name)
    lines, canonizers = choose_rules(model)
    x = torch.rand(1, 1, *SHAPE)
    plain = made_plain(copy.deepcopy(model).double())
    torch.testing.assert_close(plain(x.double()), copy.deepcopy(model).double()(x.double()))
    expected = by_stock_zennit(plain, x.double())
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    found = attribute(copy.deepcopy(model).double(), x.double(), "lrp", lines, canonizers, target=1)
    assert (found.relevance - expected).norm() <= SAME * expected.norm()
    stock = attribute(copy.deepcopy(model).double(), x.double(), "lrp", lines, canonizers, target=1, rules="zennit")
    assert (stock.relevance - expected).norm() <= SAME * expected.norm()
    single = attribute(model, x, "lrp", lines, canonizers, target=1)
    (rows,), seed = single.ledgers, single.seed.sum().item()
    assert rows[-1]["layer"] != "between layers"
    closed = seed - sum(row["absorbed"] for row in rows) - single.relevance.sum(dtype=torch.float64).item()
    assert abs(closed) <= CLOSED * abs(seed)
    assert model.state_dict().keys() == state.keys(), "the network is as it was"
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())


def test_a_plain_network_gets_the_rules_of_the_paper_but_for_the_second_convolution():
    model = build((12, 13, 11), channels=[2, 2, 2], hidden=[4])
    rows = describe_composite(*choose_rules(model)[:1], model, choose_rules(model)[1])
    found = {row["layer"]: (row["rule"], *re.findall("alpha=[0-9]|beta=[0-9]", row["parameters"])) for row in rows}
    assert found["conv1"] == ("flat",)
    assert found["conv2"] == found["conv3"] == ("alpha_beta", "alpha=2", "beta=1")
    assert found["fc1"] == found["output"] == ("epsilon",)
    assert found["relu1"] == ("pass",)


class Token(nn.Module):
    """A transformer with a class token, normalisation and attention."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv3d(1, 8, 5, 5)
        self.token = nn.Parameter(torch.rand(1, 1, 8))
        self.norm, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = self.norm(torch.cat([self.token.expand(len(x), -1, -1), tokens], dim=1))
        return self.head(self.attention(tokens, tokens, tokens)[0][:, 0])


def test_attention_is_named_and_keeps_its_gradient():
    model = Token().eval()
    assert find_uncovered(model) == ["attention"]
    assert find_uncovered(network("vgg")) == []
    lines, canonizers = choose_rules(model)
    found = attribute(model, torch.rand(1, 1, 10, 10, 10), "lrp", lines, canonizers)
    assert found.relevance.any()
    rules_of = {row["layer"]: row["rule"] for row in describe_composite(lines, model, canonizers)}
    assert rules_of["attention.out_proj"] == rules_of["attention"] == "gradient"
    assert (rules_of["patches"], rules_of["head"], rules_of["norm"]) == ("flat", "epsilon", "pass")
