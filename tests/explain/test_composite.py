"""Composites from lines of a configuration file: matching, checking, and equality with Zennit's own."""

import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import datxai
from datxai.errors import InputError
from datxai.explain import attribute, build_composite, describe_composite, network
from datxai.explain._zennit import canonizers
from datxai.explain.assignment import FAST_RULES, LAYER_TYPES, RULES, assign_rules
from datxai.explain.canonizers import SequentialMergeBatchNorm
from datxai.explain.composite import load_rules

NAMES = {
    "nazari2021", "epsilon", "epsilon_alpha2_beta1_flat", "epsilon_gamma_box", "deep_taylor", "gradient", "gamma",
    "w_square", "z_box", "flat_alpha_beta_epsilon",
}  # fmt: skip
SAME = {"rtol": 1e-9, "atol": 1e-12}  # float64, the same sums in another order


def chosen(lines, model):
    return {name: line and line["rule"] for name, _, line in assign_rules(lines, model)}


def line(*match, rule="gradient", **parameters):
    return {"match": list(match), "rule": rule, "parameters": parameters}


REST = line("*")


def test_composites_are_there(composites):
    assert set(composites) >= NAMES
    assert all(content["name"] == name and content["reference"] for name, content in composites.items())


@pytest.mark.parametrize("rules", ["fast", "zennit"])
@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_composite_serves_both_networks(composites, cnn, scans, other_network, name, rules):
    for model, x in ((cnn, scans), (other_network, scans)):
        found = attribute(
            model, x, composite=composites[name]["layers"], canonizers=composites[name]["canonizers"], rules=rules
        )
        assert found.relevance.shape == x.shape
        assert torch.isfinite(found.relevance).all()
        assert found.relevance.flatten(1).any(dim=1).all()


@pytest.mark.parametrize("name", sorted(NAMES))
def test_fast_rules_are_zennits(composites, cnn, scans, other_network, name):
    content = composites[name]
    for model in (cnn, other_network):
        fast, stock = (
            attribute(model, scans, composite=content["layers"], canonizers=content["canonizers"], rules=rules)
            for rules in ("fast", "zennit")
        )
        torch.testing.assert_close(fast.relevance, stock.relevance, **SAME)
        for ours, zennits in zip(fast.ledgers[1], stock.ledgers[1], strict=True):
            assert list(ours.values())[:3] == list(zennits.values())[:3]
            assert list(ours.values())[3:] == pytest.approx(list(zennits.values())[3:], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", ["epsilon_alpha2_beta1_flat", "epsilon_gamma_box"])
def test_zennits_own_composites(composites, cnn, scans, other_network, name):
    from zennit.attribution import Gradient
    from zennit.composites import COMPOSITES

    bounds = {"low": scans.amin(dim=(1, 2, 3, 4), keepdim=True), "high": scans.amax(dim=(1, 2, 3, 4), keepdim=True)}
    zennits = COMPOSITES[name](**(bounds if name.endswith("box") else {}))
    for model in (cnn, other_network):
        outputs = model(scans).shape[1]
        with Gradient(model=copy.deepcopy(model).eval(), composite=zennits) as attributor:
            _, expected = attributor(scans, torch.eye(outputs, dtype=torch.float64)[[1, 1]])
        found = attribute(model, scans, composite=composites[name]["layers"], target=1, start="one")
        torch.testing.assert_close(found.relevance, expected, **SAME)


def test_the_papers_layers_get_the_papers_rules(composites, cnn):
    rows = {row["layer"]: row for row in describe_composite(composites["nazari2021"]["layers"], cnn)}
    assert list(rows) == [name for name, _ in cnn.named_children()]
    rules = {name: row["rule"] for name, row in rows.items()}
    assert rules["conv1"] == rules["conv2"] == "flat"
    assert rules["conv3"] == rules["conv4"] == "alpha_beta"
    assert rules["fc1"] == rules["fc2"] == rules["output"] == "epsilon"
    assert all(rule == "pass" for name, rule in rules.items() if name.startswith("relu"))
    assert rows["conv3"]["parameters"] == "alpha=2, beta=1, stabilizer=1e-06"
    assert rows["fc1"]["parameters"] == "epsilon=0.0001"
    assert rows["flatten"] == {
        "layer": "flatten", "type": "Flatten", "weights": "", "rule": "gradient", "parameters": ""
    }  # fmt: skip
    assert rows["conv3"]["weights"] == "16x16x3x3x3"


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("conv2", ["conv2"]),
        ("conv?", ["conv1", "conv2", "conv3", "conv4"]),
        ("*c*[0]", ["conv1"]),
        ("*c*[-1]", ["fc2"]),
        ("conv*[1:3]", ["conv2", "conv3"]),
        ("conv*[:-3]", ["conv1"]),
        ("type:Linear", ["fc1", "fc2", "output"]),
        ("type:Linear[-1]", ["output"]),
        ("type:Affine[3:5]", ["conv4", "fc1"]),
        ("type:Conv3d[2:]", ["conv3", "conv4"]),
        ("type:Convolution[:2]", ["conv1", "conv2"]),
        ("type:BatchNorm", []),
        ("type:Convolution[7]", []),
    ],
)
def test_patterns(cnn, pattern, expected):
    found = chosen([line(pattern, rule="epsilon"), REST], cnn)
    assert [name for name, rule in found.items() if rule == "epsilon"] == expected


def test_first_match_wins(cnn):
    lines = [line("conv1", rule="flat"), line("conv*", "fc1", rule="zplus"), REST]
    found = chosen(lines, cnn)
    assert [found[name] for name in ("conv1", "conv2", "fc1", "fc2")] == ["flat", "zplus", "zplus", "gradient"]


def test_layers_inside_blocks():
    model = nn.ModuleDict({"block": nn.Sequential(nn.Linear(2, 2), nn.ReLU()), "head": nn.Linear(2, 1)})
    found = chosen([line("block.*", rule="epsilon"), REST], model)
    assert found == {"block.0": "epsilon", "block.1": "epsilon", "head": "gradient"}


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([line("conv9")], ["composite.layers[0].match", "'conv9'", "conv1 (Conv3d), relu1 (ReLU)"]),
        ([REST, line("conv?[9]")], ["composite.layers[1].match", "'conv?[9]'"]),
        ([line("type:Convolutoin")], ["'Convolutoin'", "Affine", "Convolution"]),
        ([line("conv[1][2]")], ["not a pattern"]),
        ([line("*", rule="lrp")], ["composite.layers[0].rule", "'lrp'", "alpha_beta", "zbox"]),
        ([line("*", rule="epsilon", eps=1)], ["'eps'", "epsilon, zero_params"]),
        ([line("*", rule="pass", epsilon=1)], ["'epsilon'", "it has none"]),
        ([line("*", rule="epsilon", epsilon="1e-4")], ["epsilon is '1e-4'", "number"]),
        ([line("*", rule="epsilon", epsilon=float("nan"))], ["epsilon is nan"]),
        ([line("*", rule="gamma", gamma=-1)], ["gamma is -1", "zero or more"]),
        ([line("*", rule="alpha_beta", alpha=2)], None),
        ([line("type:Affine", rule="alpha_beta", alpha=3), REST], None),
        ([line("*", rule="alpha_beta", alpha=3, beta=1)], ["alpha=3 and beta=1", "alpha - beta = 1"]),
        ([line("*", rule="alpha_beta", alpha=0.5)], ["alpha=0.5 and beta=-0.5", "beta 0 or more"]),
        ([line("*", rule="pass")], ["rule pass to conv1 (Conv3d)", "for activations"]),
        ([line("*", rule="flat", zero_params=["wieght"])], ["zero_params is ['wieght']"]),
        ([line("*", rule="zbox", low=0)], ["zbox needs the parameters low and high"]),
        ([line("conv?", rule="flat"), line("type:ReLU", rule="pass")], ["no rule to fc1 (Linear), fc2", "output"]),
        ([line("type:Affine", rule="epsilon")], ["no rule to relu1 (ReLU)", "rule: pass"]),
        ([{"match": ["*"], "rule": "epsilon", "parameter": {}}], ["composite.layers[0] is", "match and rule"]),
        ([REST, {"match": ["*"]}], ["composite.layers[1] is", "match and rule and, if wanted, parameters"]),
        ([{"rule": "epsilon"}], ["composite.layers[0] is {'rule': 'epsilon'}"]),
        (["epsilon"], ["composite.layers[0] is 'epsilon'"]),
        ("epsilon", ["composite is 'epsilon'", "list of lines"]),
        (REST, ["composite is {", "list of lines"]),
        ([{"match": "type:Affine", "rule": "epsilon"}], ["match is 'type:Affine'", "list of patterns"]),
        ([{"match": [3], "rule": "epsilon"}], ["match is [3]", "list of patterns"]),
        ([{"match": ["*"], "rule": "epsilon", "parameters": [1]}], ["parameters is [1]", "names with numbers"]),
        ([{"match": ["*"], "rule": None}], ["composite.layers[0].rule is None", "alpha_beta"]),
    ],
)
def test_mistakes_are_named(cnn, lines, said):
    if said is None:
        build_composite(lines, cnn)
        return
    with pytest.raises(InputError) as caught:
        build_composite(lines, cnn)
    assert all(part in str(caught.value) for part in said), str(caught.value)


def test_unknown_canonizer_and_kind_of_rules(cnn):
    with pytest.raises(InputError, match="canonizers names vgg, expected a list of some of sequential_merge"):
        build_composite([REST], cnn, canonizers=["vgg"])
    with pytest.raises(InputError, match="rules=slow: expected fast or zennit"):
        build_composite([REST], cnn, rules="slow")


def test_every_name_in_the_registries_is_usable(cnn, scans):
    bounds = {"zbox": {"low": 0, "high": 3}}
    for rule in RULES:
        layers = "type:Activation" if rule in ("norm", "pass", "guided_backprop") else "type:Linear"
        found = attribute(cnn, scans[:1], composite=[line(layers, rule=rule, **bounds.get(rule, {})), REST])
        assert found.relevance.any()
    for family in LAYER_TYPES:
        build_composite([line(f"type:{family}"), REST], cnn)
    assert set(FAST_RULES) < set(RULES)


def test_published_values_make_the_papers_composite(composites, cnn, scans):
    ours, papers = (
        attribute(cnn, scans, composite=composites[name]["layers"]).relevance
        for name in ("flat_alpha_beta_epsilon", "nazari2021")
    )
    assert torch.equal(ours, papers)


@pytest.mark.parametrize(
    ("name", "rules"),
    [
        ("gamma", [("gamma", {"gamma": 0.25})] * 7),
        ("w_square", [("wsquare", {})] + [("zplus", {})] * 6),
        ("z_box", [("zbox", {"low": 0.0, "high": 3.5})] + [("zplus", {})] * 6),
    ],
)
def test_composites_are_their_equations(oracle, composites, cnn, scans, name, rules):
    layers = [child for child, _ in cnn.named_children() if child.startswith(("conv", "fc", "output"))]
    lines = copy.deepcopy(composites[name]["layers"])
    lines[0]["parameters"] = rules[0][1]
    expected, _, _ = oracle.explain(cnn, scans[0], dict(zip(layers, rules)), lambda logits: np.eye(2)[1])
    found = attribute(cnn, scans[:1], composite=lines, target="reduced", start="one").relevance[0]
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("alpha", [1, 1.3, 2.2, 5])
def test_any_alpha(oracle, cnn, scans, alpha):
    names = [child for child, _ in cnn.named_children() if child.startswith(("conv", "fc", "output"))]
    rules = {name: ("alpha_beta", {"alpha": alpha, "beta": alpha - 1}) for name in names}
    expected, _, _ = oracle.explain(cnn, scans[0], rules, lambda logits: np.eye(2)[1])
    lines = [line("type:Affine", rule="alpha_beta", alpha=alpha), line("type:Activation", rule="pass")]
    for given in (lines, [line("type:Affine", rule="alpha_beta", alpha=alpha, beta=round(alpha - 1, 9)), lines[1]]):
        for kind in ("fast", "zennit"):
            found = attribute(cnn, scans[:1], composite=given, target="reduced", start="one", rules=kind).relevance[0]
            torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("kind", ["fast", "zennit"])
def test_biases_left_out(cnn, scans, kind):
    """Nothing is absorbed by them then, and a line that says otherwise keeps its own."""
    lines = [line("conv1", rule="epsilon", zero_params=[]), line("type:Affine", rule="epsilon"), REST]
    lines.insert(0, line("type:Activation", rule="pass"))
    given, left_out = (
        {row["layer"]: row for row in attribute(cnn, scans[:1], composite=lines, bias=bias, rules=kind).ledgers[0]}
        for bias in (True, False)
    )
    assert all(abs(row["by_bias"]) > 1e-9 for row in given.values())
    assert abs(left_out.pop("conv1")["by_bias"]) > 1e-9
    for row in left_out.values():
        assert row["by_bias"] == 0
        assert row["relevance_in"] == pytest.approx(row["relevance_out"], rel=1e-3)


# --- rules of one's own ---------------------------------------------------------------------------------------------

OWN_RULE = """
from zennit.rules import Epsilon

class Halving(Epsilon):
    def __init__(self, share=0.5, epsilon=1e-6, zero_params=None):
        super().__init__(epsilon, zero_params)
        self.share = share

    def backward(self, module, grad_input, grad_output):
        return super().backward(module, grad_input, tuple(self.share * part for part in grad_output))

RULES = {"halving": Halving}
"""


@pytest.fixture
def own_rules(tmp_path):
    (tmp_path / "mine.py").write_text(OWN_RULE)
    return load_rules(tmp_path / "mine.py")


def test_a_rule_of_ones_own(own_rules, cnn, scans):
    """LRP is linear: a layer that hands on a share of what epsilon does scales the map by it."""
    whole, scaled = (
        attribute(cnn, scans, composite=[first, line("type:Affine", rule="epsilon"), REST], own_rules=own_rules)
        for first in (line("fc2", rule="epsilon"), line("fc2", rule="halving", share=0.25, epsilon=1e-6))
    )
    torch.testing.assert_close(scaled.relevance, 0.25 * whole.relevance)
    assert {row["layer"]: row["rule"] for row in scaled.ledgers[0]}["fc2"] == "halving"
    rows = describe_composite([line("fc2", rule="halving"), REST], cnn, own_rules=own_rules)
    shown = next(row for row in rows if row["layer"] == "fc2")
    assert shown["rule"] == "halving" and shown["parameters"] == "share=0.5, epsilon=1e-06"


def test_a_rule_of_ones_own_is_checked_as_others_are(own_rules, cnn):
    for lines, said in (
        ([line("*", rule="halving")], "'halving', expected one of .* or a rule of your own"),
        ([line("*", rule="halving", part=1)], "no parameter 'part', expected some of share, epsilon, zero_params"),
        ([line("*", rule="halving", share="half")], "share is 'half', expected a number"),
    ):
        with pytest.raises(InputError, match=said):
            build_composite(lines, cnn, own_rules=None if "own" in said else own_rules)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "no such file"),
        ("RULES = {", "cannot be executed: SyntaxError"),
        ("import nothing_of_that_name", "cannot be executed: ModuleNotFoundError"),
        ("rules = {}", "defines no RULES"),
        ("RULES = {'mine': 3}", "mine is 3, expected a class derived from zennit.core.Hook"),
        ("from zennit.rules import Pass\nRULES = {'pass': Pass}", "pass is already the name of a rule"),
    ],
)
def test_files_of_rules_that_cannot_be_used(tmp_path, text, said):
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=said):
        load_rules(path)


# --- layers that take no rule, and layers that need one ---------------------------------------------------------------


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.output = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 2)

    def forward(self, x):
        return self.output(self.attention(x, x, x)[0].mean(dim=1))


class WithToken(nn.Module):
    def __init__(self):
        super().__init__()
        self.token, self.output = nn.Parameter(torch.ones(8)), nn.Linear(8, 2)

    def forward(self, x):
        return self.output(x.mean(dim=1) * self.token)


EPSILON, PASS = line("type:Linear", rule="epsilon"), line("type:Activation", rule="pass")


@pytest.mark.parametrize(
    ("model", "lines", "said"),
    [
        (Attending(), [EPSILON, PASS], r"no rule to attention \(MultiheadAttention\)"),
        (Attending(), [line("attention", rule="pass"), EPSILON], r"put {match: \['attention', 'attention.\*'\]"),
        (Attending(), [line("attention"), EPSILON], r"a rule to attention.out_proj \(Non.*\), which did not run"),
        (WithToken(), [EPSILON], r"no rule to the network itself \(type:WithToken\)"),
        (WithToken(), [line("*", rule="epsilon")], r"put {match: \['type:WithToken'\], rule: gradient}"),
        (nn.LSTM(8, 2), [line("*", rule="epsilon")], r"rule epsilon to .*\(type:LSTM\).* only the rule gradient"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(8, 2)), [line("*", rule="epsilon")], "only the rule gradient"),
    ],
)
def test_weights_that_no_rule_reaches_are_not_passed_over(model, lines, said):
    with pytest.raises(InputError, match=said):
        attribute(model, torch.rand(2, 5, 8), composite=lines, target=1)


def test_what_no_rule_reaches_may_be_left_to_its_gradient():
    x = torch.rand(2, 5, 8)
    for model, first in ((Attending(), line("attention", "attention.*")), (WithToken(), line("type:WithToken"))):
        found = attribute(model, x, composite=[first, line("output")], target=1, start="one").relevance
        given = x.clone().requires_grad_()
        (expected,) = torch.autograd.grad(model.eval()(given)[:, 1].sum(), given)
        torch.testing.assert_close(found, expected)
        assert attribute(model, x, composite=[first, EPSILON], target=1).relevance.any()


@pytest.mark.parametrize(
    "layer", [nn.Mish(), nn.Softmax(dim=1), nn.GLU(), nn.InstanceNorm1d(8), nn.LayerNorm(8, elementwise_affine=False)]
)
def test_what_computes_needs_a_rule_with_or_without_weights(layer):
    model = nn.Sequential(layer, nn.Linear(8, 2))
    with pytest.raises(InputError, match=rf"no rule to 0 \({type(layer).__name__}\)"):
        build_composite([EPSILON], model)
    assert chosen([EPSILON, PASS, REST], model)["0"] == ("pass" if isinstance(layer, nn.Mish) else "gradient")


# --- canonizers -----------------------------------------------------------------------------------------------------


def test_the_table_shows_what_canonizers_add():
    model = residual_networks()["resnet3d"][0]
    before = {name: id(module) for name, module in model.named_modules()}
    lines = [line("type:Affine", rule="epsilon"), line("type:Sum", rule="norm"), REST]
    rows = {row["layer"]: row for row in describe_composite(lines, model, canonizers=["resnet3d"])}
    assert rows["0.canonizer_sum"]["rule"] == "norm" and rows["0.canonizer_sum"]["type"] == "Sum"
    assert before == {name: id(module) for name, module in model.named_modules()}


def residual_networks():
    from torchvision.models.resnet import BasicBlock
    from torchvision.models.video import resnet as video

    widen = nn.Sequential(nn.Conv3d(2, 8, 1, bias=False), nn.BatchNorm3d(8))
    return {
        "resnet": (nn.Sequential(BasicBlock(2, 2), nn.Flatten(), nn.Linear(50, 2)), (2, 5, 5)),
        "resnet3d": (
            nn.Sequential(
                video.BasicBlock(2, 2, video.Conv3DSimple),
                video.Bottleneck(2, 2, video.Conv3DSimple, downsample=widen),
                nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 2),
            ),
            (2, 4, 5, 4),
        ),
    }  # fmt: skip


@pytest.mark.parametrize("rules", ["fast", "zennit"])
@pytest.mark.parametrize("canonizer", ["resnet", "resnet3d"])
def test_residual_sums_are_layers_through_the_canonizer(canonizer, rules):
    """Relevance is conserved only where the addition has a rule; batch norms and in-place layers are in the way."""
    torch.manual_seed(7)
    model, shape = residual_networks()[canonizer]
    model = model.double().eval()
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
            module.running_var.uniform_(0.5, 2)
    x = torch.rand(1, *shape, dtype=torch.float64)
    logits = model(x).detach()
    lines = [
        line("type:Affine", rule="epsilon", epsilon=1e-12, zero_params="bias"),
        line("type:Activation", "type:BatchNorm", rule="pass"),
        line("type:Sum", "type:AvgPool", rule="norm", stabilizer=1e-12),
    ]
    found = attribute(model, x, composite=lines, canonizers=[canonizer], start="one", target=0, rules=rules)
    torch.testing.assert_close(found.logits, logits, rtol=1e-4, atol=1e-4)  # batch norm's own epsilon
    assert found.relevance.sum().item() == pytest.approx(1, rel=1e-6)
    assert "0.canonizer_sum" in [row["layer"] for row in found.ledgers[0]]
    assert not hasattr(model[0], "canonizer_sum")


def test_the_how_to_runs(capsys):
    """The example in docs/zennit.md: a three-dimensional ResNet of torchvision."""
    page = (Path(datxai.__file__).parents[1] / "docs" / "zennit.md").read_text()
    names: dict = {}
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], names)
    assert names["found"].relevance.shape == names["video"].shape
    assert names["found"].ledgers[0][-1]["layer"] == "stem.0"


def with_statistics(model):
    torch.manual_seed(8)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_var is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.2, 3)
            if module.affine:
                module.weight.data.uniform_(-2, 2)
                module.bias.data.normal_()
    return model.double().eval()


RULES_2D = [line("type:Affine", rule="epsilon"), line("type:Activation", "type:BatchNorm", rule="pass")]
MERGE = ["sequential_merge_batch_norm"]


def plain_block(**second):
    return with_statistics(nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, **second), nn.ReLU(),
        nn.Flatten(), nn.Linear(64, 2),
    ))  # fmt: skip


@pytest.fixture
def images():
    return torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def test_a_canonizer_that_fails_is_named_and_undone(images):
    model = plain_block(track_running_stats=False)
    before = copy.deepcopy(model.state_dict())
    for explain in (
        lambda: attribute(model, images, composite=RULES_2D, canonizers=MERGE),
        lambda: describe_composite(RULES_2D, model, canonizers=MERGE),
        lambda: build_composite(RULES_2D, model, canonizers=MERGE).register(model),
    ):
        with pytest.raises(InputError, match=r"sequential_merge_batch_norm .*track_running_stats=False.* leave it out"):
            explain()
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class Failing(SequentialMergeBatchNorm):
    """Merges, and has then no handle to undo it."""

    def apply(self, model):
        super().apply(model)
        raise AttributeError("no such thing")


def test_a_canonizer_of_ones_own_that_fails_is_named_and_undone(images):
    model = plain_block()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match=r"canonizer Failing cannot rewrite .* \(AttributeError: no such thing"):
        attribute(model, images, composite=RULES_2D, canonizers=[Failing()])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def folded(model):
    """The network with every batch norm merged into the convolution before it, by PyTorch."""
    layers = list(copy.deepcopy(model))
    for place, layer in enumerate(layers):
        if isinstance(layer, nn.BatchNorm2d):
            layers[place - 1] = torch.nn.utils.fuse_conv_bn_eval(layers[place - 1], layer)
            layers[place] = nn.Identity()
    return nn.Sequential(*layers)


@pytest.mark.parametrize("second", [{}, {"affine": False}, {"eps": 0.1}])
def test_batch_norms_are_merged_exactly(images, second):
    model = plain_block(**second)
    found = attribute(model, images, composite=RULES_2D, canonizers=MERGE, target=1)
    expected = attribute(folded(model), images, composite=RULES_2D, target=1)
    torch.testing.assert_close(found.logits, model(images).detach(), **SAME)
    torch.testing.assert_close(found.relevance, expected.relevance, rtol=1e-7, atol=1e-9)
    assert model[4].eps == second.get("eps", 1e-5) and model[4].affine == (model[4].weight is not None)


def test_zennits_own_canonizers_from_python(images):
    model = plain_block()
    before, attributes = copy.deepcopy(model.state_dict()), [set(vars(layer)) for layer in model]
    found, ours = (
        attribute(model, images, composite=RULES_2D, canonizers=given, target=1)
        for given in ([canonizers.SequentialMergeBatchNorm()], MERGE)
    )
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [set(vars(layer)) for layer in model] == attributes
    torch.testing.assert_close(found.relevance, ours.relevance, rtol=1e-2, atol=1e-3)
    named = canonizers.NamedMergeBatchNorm([(["c1"], "b1"), (["c2"], "b2")])
    model = with_statistics(OutOfOrder())
    logits = attribute(model, images, composite=RULES_2D, canonizers=[named], target=1).logits
    torch.testing.assert_close(logits, model(images).detach(), rtol=1e-3, atol=1e-3)
    with pytest.raises(InputError, match="canonizers names resnet, expected a list"):
        attribute(model, images, composite=RULES_2D, canonizers="resnet")


def test_several_canonizers_of_the_same_layers_are_undone(images):
    model = plain_block()
    composite = build_composite(RULES_2D, model, canonizers=[*MERGE, *MERGE])
    before = copy.deepcopy(model.state_dict())
    with composite.context(model):
        assert not torch.equal(model[0].weight, before["0.weight"])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class OutOfOrder(nn.Module):
    def __init__(self):
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)
        self.b1, self.b2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.relu, self.output = nn.ReLU(), nn.Linear(64, 2)

    def forward(self, x):
        x = self.relu(self.b1(self.c1(x)))
        return self.output(self.relu(self.b2(self.c2(x))).flatten(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_canonizer_that_makes_another_network_is_refused(images, dtype):
    model = with_statistics(OutOfOrder()).to(dtype)
    with pytest.raises(InputError, match=r"canonizers sequential_merge_batch_norm: .* gives other logits"):
        attribute(model, images.to(dtype), composite=RULES_2D, canonizers=MERGE, target=1)
    assert attribute(model, images.to(dtype), composite=RULES_2D, target=1).relevance.any()


@pytest.mark.parametrize("share", [1.0, 0.1, 0.01])
def test_so_is_one_of_small_logits(images, share):
    model = with_statistics(OutOfOrder()).double()
    with torch.no_grad():
        model.output.weight.mul_(share)
        model.output.bias.mul_(share)
    with pytest.raises(InputError, match="gives other logits"):
        attribute(model, images, composite=RULES_2D, canonizers=MERGE, target=1)


def test_the_network_runs_once_more_only_where_it_was_rewritten_or_may_mix_cases(images, monkeypatch):
    calls, plain = [], network.run
    monkeypatch.setattr(network, "run", lambda model, x: (calls.append(1), plain(model, x))[1])
    layers = nn.Conv2d(1, 2, 8), nn.ReLU(), nn.Flatten()
    for model, runs in ((plain_block(), 2), (nn.Sequential(*layers), 1), (nn.Sequential(nn.Sequential(*layers)), 2)):
        calls.clear()
        attribute(model.double(), images, composite=RULES_2D, canonizers=MERGE)
        assert len(calls) == runs
