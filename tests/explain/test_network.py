"""Networks that somebody else wrote: errors in one sentence, what is said of a map, and nothing that leaks in."""

import copy
import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from datxai.errors import InputError
from datxai.explain import METHODS, attribute

SAME = {"rtol": 1e-9, "atol": 1e-12}
LINES = [
    {"match": ["type:Affine"], "rule": "epsilon"},
    {"match": ["type:Activation", "type:BatchNorm"], "rule": "pass"},
]
BOX = [{"match": ["type:Affine[0]"], "rule": "zbox"}, *LINES]
PARCELS = np.arange(144).reshape(12, 12) // 24
FEW = {"lime": {"n_samples": 10}, "kernel_shap": {"n_samples": 20}, "smoothgrad": {"n_samples": 2},
       "integrated_gradients": {"n_steps": 2}}  # fmt: skip


def net(*norm):
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 4, 3), *norm, nn.ReLU(), nn.Flatten(), nn.Linear(400, 2))


def image(n=2, dtype=torch.float32):
    return torch.rand(n, 1, 12, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)


def explain(model, x, method, **more):
    chosen = {"target": 1, "options": FEW.get(method, {}), "composite": LINES if method == "lrp" else ()}
    chosen["parcels"] = PARCELS if method in ("occlusion", "lime", "kernel_shap") else None
    return attribute(model, x, method, **chosen | more)


class Around(nn.Module):
    """A network and what is done before and after."""

    def __init__(self, before=lambda x: x, after=lambda y: y, inner=None):
        super().__init__()
        self.before, self.after, self.inner = before, after, inner or net()

    def forward(self, x):
        return self.after(self.inner(self.before(x)))


# --- errors ---------------------------------------------------------------------------------------------------------


def inference():
    with torch.inference_mode():
        return net()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("make", "x", "said"),
    [
        (net, image(dtype=torch.float64), r"torch.float64 and its weights are torch.float32: give it x.to\("),
        (lambda: nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(2)), image(), "0.weight has no shape"),
        (lambda: net().to("meta"), image(), "its weights on meta"),
        (lambda: nn.Sequential(*net()[:3]), image(), None),
        (lambda: nn.Sequential(*net()[:2]), image(), r"shape \(\d, 4, 10, 10\), expected \[batch, outputs\]: .*mean"),
        (lambda: Around(after=lambda y: y.argmax(dim=1)), image(), "torch.int64 numbers, expected logits"),
        (lambda: Around(after=lambda y: {"logits": y}), image(), "answers with a dict"),
        (lambda: Around(before=lambda x: x["image"]), image(), r"cannot take an input of shape .* \(IndexError"),
        (lambda: net, image(), "the network is a function, expected a torch.nn.Module"),
        (net, image().to_sparse(), r"layout torch.sparse_coo .* x.to_dense\(\)"),
        (net, image().to("meta"), "on meta, expected numbers in memory"),
        (lambda: Around(after=lambda y: y[:, :0]), image(), r"shape \(\d, 0\) to \d cases"),
    ],
    ids=["float64", "lazy", "meta weights", "many outputs", "segmentation", "whole numbers", "dict", "KeyError",
         "function", "sparse", "meta", "no outputs"],
)  # fmt: skip
def test_everyday_mistakes_are_one_sentence(make, x, said, method):
    if said is None:  # four hundred outputs are no mistake
        assert explain(make(), x, method).relevance.shape == x.shape
        return
    with pytest.raises(InputError, match=said) as error:
        explain(make(), x, method)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_no_batch():
    with pytest.raises(InputError, match="expected numbers in memory"):
        explain(net(), torch.nested.nested_tensor(list(image())), "gradient")


@pytest.mark.parametrize("method", METHODS)
def test_weights_of_inference_mode(method):
    model, x = inference(), image()
    if method in ("occlusion", "lime", "kernel_shap"):  # as of other weights
        assert torch.equal(explain(model, x, method).relevance, explain(net(), x, method).relevance)
    else:
        with pytest.raises(InputError, match=r"0.weight was made in inference mode"):
            explain(model, x, method)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per_tensor")
@pytest.mark.filterwarnings("ignore:the network's answer to a case depends")  # its activations' scale is the batch's
@pytest.mark.parametrize("method", ["lrp", "gradient", "occlusion"])
def test_exported_and_quantised_networks(method):
    x = image()
    with pytest.raises(InputError, match=r"cannot be put into evaluation mode .* pass the network that"):
        explain(torch.export.export(net(), (x,)).module(), x, method)
    quantised = torch.ao.quantization.quantize_dynamic(net(), {nn.Linear}, dtype=torch.qint8)
    if method == "occlusion":
        found, expected = (explain(model, x, method).relevance for model in (quantised, net()))
        assert (found - expected).norm() < 0.05 * expected.norm()
    else:
        with pytest.raises(InputError, match=r"layer 3 \(Linear\) is quantised"):
            explain(quantised, x, method)


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"parcels": [[1, 2], [3]]}, "parcels: expected an array of whole numbers"),
        ({"parcels": np.full((12, 12), 0.5)}, "parcels: expected whole numbers"),
        ({"parcels": np.full((12, 12), "left")}, "parcels: expected whole numbers"),
        ({"target": "label", "labels": ["normal", "reduced"]}, "labels: expected the number of an output"),
        ({"options": [3]}, r"options=\[3\]: expected names with values"),
        ({"at_once": 1.5}, "at_once=1.5: expected one or more"),
        ({"options": {"baseline": torch.ones(12, 12) * 1j}}, "baseline: expected finite numbers"),
    ],
)
def test_mistakes_in_choices_are_one_sentence(choice, said):
    with pytest.raises(InputError, match=said):
        explain(net(), image(), "occlusion", **choice)


@pytest.mark.parametrize("method", ["lime", "kernel_shap", "occlusion"])
def test_answers_that_are_not_finite_are_no_scores(method):
    x = image()
    x[0, 0, 5, 5] = float("nan")
    with pytest.raises(InputError, match="answers without some parcels are not finite"):
        explain(net(), x, method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_maps_in_half_precision(method, dtype):
    target = 0 if method == "grad_cam" else 1  # the other's map is empty
    found = explain(net().to(dtype), image(dtype=dtype), method, target=target).relevance
    expected = explain(net(), image(), method, target=target).relevance
    assert expected.any()
    assert found.dtype == dtype and found.isfinite().all()
    if method not in ("lime", "kernel_shap", "smoothgrad"):  # differences of scores, other noise
        assert (found.float() - expected).norm() < 0.2 * expected.norm()


# --- what is said of a map ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: net(nn.BatchNorm2d(4, track_running_stats=False)), r"layer 1 \(BatchNorm2d\) normalises by the cases"),
        (lambda: net(Normalising()), "depends on the other inputs of its batch"),
        (lambda: net(Dropping()), r"layer 1 \(Dropping\) draws random numbers"),
        (lambda: Around(before=F.dropout), r"the network itself \(Around\) draws random numbers"),
    ],
    ids=["batch norm", "batch norm by a function", "dropout by a function", "dropout in the network"],
)
def test_what_a_network_does_to_a_map_is_said_once(make, said, method):
    """Also by methods that refuse it for another reason."""
    model = make()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            explain(model, image(6), method, at_once=2)
        except InputError:
            assert method == "deep_lift", "captum puts input and baseline into one batch"
            return
    assert len(heard) == 1 and heard[0].filename == __file__
    with pytest.warns(UserWarning, match=said):
        explain(model, image(), method)


@pytest.mark.parametrize("method", ["lrp", "gradient", "integrated_gradients", "smoothgrad", "grad_cam", "occlusion"])
@pytest.mark.parametrize("n", [1, 2])
def test_a_network_that_mixes_cases_is_said(method, n):
    """Of one case, where the method asks for several inputs at once."""
    model = Around(before=lambda x: x - 0.1 * x.mean(dim=0, keepdim=True))
    alone = n == 1 and method in ("lrp", "gradient", "grad_cam")
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        explain(model, image(n), method)
    assert ["depends on the other inputs" in str(warning.message) for warning in heard] == [True] * (not alone)


def test_a_network_that_goes_on_in_double_precision_mixes_nothing():
    for method in METHODS:
        explain(Around(after=lambda y: y.double()), image(), method)


@pytest.mark.parametrize(
    "draw", [lambda: np.random.rand(), lambda: random.random(), lambda: float(torch.rand(()) < 0.5)]
)
def test_whatever_a_network_draws_from_is_said(draw):
    with pytest.warns(UserWarning, match="draws random numbers"):
        explain(Around(before=lambda x: x + draw()), image(1), "gradient")


def test_maps_that_are_not_finite_are_said():
    with pytest.warns(UserWarning, match="the map of cases 0, 1 has numbers that are not finite"):
        explain(Around(after=lambda y: y / 0), image(), "gradient")


class Dropping(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5)


class Normalising(nn.Module):
    def forward(self, x):
        return F.batch_norm(x, None, None, training=True)


class Frozen(nn.Module):
    """A part of the network that hands nothing back, beside one that does; or only a place, which is no fault."""

    def __init__(self, constant):
        super().__init__()
        torch.manual_seed(3)
        self.constant, self.inner, self.aside = constant, net(), nn.Sequential(nn.Conv2d(1, 1, 3, padding=1))

    def forward(self, x):
        with torch.no_grad():
            aside = self.aside(0 * x if self.constant else x)
        return self.inner(x + aside)


@pytest.mark.parametrize("method", sorted({*METHODS} - {"occlusion", "lime", "kernel_shap", "lrp", "deep_lift"}))
def test_a_part_without_gradients_is_said(method):
    with pytest.warns(UserWarning, match="no gradient leads back through layer aside.0 "):
        explain(Frozen(False), image(), method)
    explain(Frozen(True), image(), method)


class Counting(nn.Module):
    """Counts and averages what it is asked, in training or not."""

    def __init__(self):
        super().__init__()
        self.register_buffer("asked", torch.zeros(()))
        self.inner = net()

    def forward(self, x):
        self.asked += 1
        return self.inner(x) + self.asked


@pytest.mark.filterwarnings("ignore:the network's answer to a case depends")
@pytest.mark.parametrize("method", ["lrp", "gradient", "grad_cam", "occlusion"])
def test_buffers_are_put_back(method):
    model = Counting()
    first, second = (explain(model, image(), method) for _ in range(2))
    assert model.asked == 0
    assert torch.equal(first.relevance, second.relevance) and torch.equal(first.logits, second.logits)


def test_numbers_that_are_not_finite_are_said():
    x = image(5)
    x[1, 0, 0, 0], x[3, 0, 0, 0] = float("nan"), float("inf")
    with pytest.warns(UserWarning, match="not finite, in cases 1, 3"):
        explain(net(), x, "gradient", at_once=2)


class Stubborn(nn.BatchNorm2d):
    """Stays in training, come what may."""

    def train(self, mode=True):
        return super().train(True)


@pytest.mark.parametrize("method", METHODS)
def test_evaluation_mode_is_for_every_layer(method):
    model, plain = net(Stubborn(4)), net(nn.BatchNorm2d(4))
    before = copy.deepcopy(model.state_dict())
    assert torch.equal(explain(model, image(), method).relevance, explain(plain, image(), method).relevance)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())
    assert model[1].training


# --- nothing leaks in -----------------------------------------------------------------------------------------------


@pytest.fixture
def defaults():
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, None], ids=str)
def test_defaults_of_the_process_change_nothing(defaults, method, dtype):
    model, x = net(), image()
    expected = explain(model, x, method).relevance
    if dtype is None:
        torch.set_default_device("meta")  # where there are no numbers at all
    else:
        torch.set_default_dtype(dtype)
    assert torch.equal(explain(model, x, method).relevance, expected)


@pytest.mark.parametrize("rule", ["flat", "zbox", "wsquare", "alpha_beta", "gamma", "zplus"])
def test_defaults_of_the_process_change_no_rule(defaults, rule):
    model, x, lines = net(), image(), [{"match": ["type:Affine"], "rule": rule}, *LINES[1:]]
    expected = attribute(model, x, composite=lines)
    torch.set_default_device("meta")
    torch.set_default_dtype(torch.float16)
    found = attribute(model, x, composite=lines)
    assert torch.equal(found.relevance, expected.relevance) and found.ledgers == expected.ledgers


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_precisions_of_the_process_are_set_aside_and_put_back(precision):
    seen = []
    model = Around(before=lambda x: (seen.append(torch.get_float32_matmul_precision()), x)[1])
    try:
        torch.set_float32_matmul_precision(precision)
        explain(model, image(), "gradient")
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision("highest")
    assert set(seen) <= {"highest", precision}


# --- cases, whatever lies between -----------------------------------------------------------------------------------


class Folding(nn.Module):
    """Slices of a volume as cases, or tokens that come first."""

    def __init__(self, tokens):
        super().__init__()
        torch.manual_seed(4)
        self.tokens = tokens
        self.first = nn.Linear(12, 5) if tokens else nn.Conv2d(1, 2, 3)
        self.relu, self.out = nn.ReLU(), nn.Linear(5 if tokens else 200, 2)

    def forward(self, x):
        if self.tokens:  # rows are tokens: [tokens, batch, features]
            return self.out(self.relu(self.first(x[:, 0].transpose(0, 1))).mean(dim=0))
        y = self.relu(self.first(x.transpose(1, 2).flatten(0, 1)))
        return self.out(y.flatten(1)).view(len(x), -1, 2).mean(dim=1)


@pytest.mark.parametrize("lines", [LINES, BOX], ids=["epsilon", "zbox"])
@pytest.mark.parametrize("rules", ["fast", "zennit"])
@pytest.mark.parametrize(
    ("tokens", "shape"),
    [(False, (3, 1, 2, 12, 12)), (False, (2, 1, 1, 12, 12)), (True, (3, 1, 5, 12)), (True, (4, 1, 4, 12))],
    ids=["slices", "one slice", "tokens", "as many tokens as cases"],
)
def test_ledger_and_box_are_those_of_each_case(tokens, shape, rules, lines):
    model = Folding(tokens).double()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    x *= torch.arange(1, len(x) + 1).view(-1, *[1] * (x.ndim - 1))  # other ranges
    found = attribute(model, x, composite=lines, target=1, rules=rules)
    for case in range(len(x)):
        alone = attribute(model, x[case : case + 1], composite=lines, target=1, rules=rules)
        torch.testing.assert_close(found.relevance[case], alone.relevance[0], **SAME)
        assert len(found.ledgers[case]) == len(alone.ledgers[0])
        for ours, expected in zip(found.ledgers[case], alone.ledgers[0], strict=True):
            assert ours.keys() == expected.keys()
            for key in ("relevance_in", "relevance_out", "absorbed", "by_bias", "by_stabiliser"):
                assert ours[key] == pytest.approx(expected[key], rel=1e-9, abs=1e-12)
        absorbed = sum(row["absorbed"] for row in found.ledgers[case])
        assert found.seed[case].sum().item() - absorbed == pytest.approx(found.relevance[case].sum().item())


@pytest.mark.parametrize("rules", ["fast", "zennit"])
def test_the_box_is_of_the_layers_own_input(rules):
    """Behind reshaping and a normalisation that is no layer; the oracle is the layer's input handed over as it is."""
    torch.manual_seed(6)
    layers = nn.Sequential(nn.Linear(144, 8), nn.ReLU(), nn.Linear(8, 2)).double()
    x = 10 + 3 * torch.randn(2, 1, 12, 12, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    model = Around(before=lambda x: ((x - 10) / 3).flatten(1), inner=layers)
    found = attribute(model, x, composite=BOX, target=1, rules=rules).relevance
    inner = attribute(layers, ((x - 10) / 3).flatten(1), composite=BOX, target=1, rules=rules).relevance
    torch.testing.assert_close(3 * found, inner.view_as(x), **SAME)
    own = (x - 10) / 3
    for case in range(2):
        low, high = float(own[case].min()), float(own[case].max())
        given = [{**BOX[0], "parameters": {"low": low, "high": high}}, *LINES]
        alone = attribute(layers, own[case : case + 1].flatten(1), composite=given, target=1).relevance
        torch.testing.assert_close(inner[case], alone[0], **SAME)


# --- hooks and settings of the user ---------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 1, 3])
@pytest.mark.parametrize("kind", ["forward", "all modules", "backward", "input"])
@pytest.mark.parametrize("rule", ["epsilon", "alpha_beta", "flat", "wsquare", "gamma"])
def test_fast_rules_treat_hooks_as_zennit_does(place, kind, rule):
    model = net().double()
    lines = [{"match": ["type:Affine"], "rule": rule}, *LINES[1:]]
    handle = {
        "forward": lambda: model[place].register_forward_hook(lambda module, args, output: 2 * output),
        "all modules": lambda: nn.modules.module.register_module_forward_hook(
            lambda module, args, output: 2 * output if module is model[place] else None
        ),
        "backward": lambda: model[place].register_full_backward_hook(lambda module, into, out: (3 * into[0],)),
        "input": lambda: model[place].register_forward_pre_hook(lambda module, args: (args[0] * 2,)),
    }[kind]()
    try:
        fast, stock = (
            attribute(model, image(dtype=torch.float64), composite=lines, target=1, rules=rules)
            for rules in ("fast", "zennit")
        )
    finally:
        handle.remove()
    assert fast.relevance.any()
    torch.testing.assert_close(fast.relevance, stock.relevance, rtol=1e-7, atol=1e-9)
    for ours, theirs in zip(fast.ledgers[0], stock.ledgers[0], strict=True):
        assert ours["relevance_in"] == pytest.approx(theirs["relevance_in"], rel=1e-6, abs=1e-9)


class Mixing(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.mix, self.how, self.inner = Weighing(), how, net()

    def forward(self, x):
        return self.inner(self.how(self.mix, x))


class Weighing(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7))

    def forward(self, x, *others, more=()):
        return self.weight * x + sum([*others, *more])


@pytest.mark.parametrize("rules", ["fast", "zennit"])
@pytest.mark.parametrize("rule", ["pass", "norm"])
@pytest.mark.parametrize(
    "how", [lambda mix, x: mix(x, x * 2), lambda mix, x: mix(x, more=[x * 2]), lambda mix, x: mix(x, more=(1.0, x))]
)
def test_layers_with_two_inputs_are_refused(how, rule, rules):
    lines = [{"match": ["mix"], "rule": rule}, *LINES]
    with pytest.raises(InputError, match=r"layer mix \(Weighing\) is called with more than one tensor that depends"):
        attribute(Mixing(how).double(), image(dtype=torch.float64), composite=lines, target=1, rules=rules)
    left = [{"match": ["mix"], "rule": "gradient"}, *LINES]
    assert attribute(Mixing(how).double(), image(dtype=torch.float64), composite=left, target=1).relevance.any()


@pytest.mark.parametrize("rules", ["fast", "zennit"])
def test_what_a_layer_is_called_with_beside_holds_for_its_rule(rules):
    """A constant is part of the layer: of 0.7 x + 1 norm hands 0.7 x / (0.7 x + 1) of the relevance to x."""
    for how in (lambda mix, x: mix(x, 1.0), lambda mix, x: mix(x, more=[torch.ones(()).to(x)])):
        model, x = Mixing(how).double(), image(dtype=torch.float64)
        lines = [{"match": ["mix"], "rule": "norm"}, *LINES]
        found = attribute(model, x, composite=lines, target=1, rules=rules).relevance
        inner = attribute(model.inner, 0.7 * x + 1, composite=LINES, target=1, rules=rules).relevance
        weight = model.mix.weight.item()
        torch.testing.assert_close(found, inner * weight * x / (weight * x + 1), rtol=1e-4, atol=1e-6)
        assert "forward" not in vars(model.mix)


# --- occlusion -----------------------------------------------------------------------------------------------------


class LookingAround(nn.ReLU):
    def forward(self, x):
        return super().forward(x - x.mean(dim=(2, 3), keepdim=True))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m, lambda m: nn.Sequential(m[0], LookingAround(), *m[2:]),
        lambda m: (m[0].register_forward_hook(lambda module, args, y: y - y.mean(dim=(2, 3), keepdim=True)), m)[1],
        lambda m: (m[1].register_forward_pre_hook(lambda module, args: (args[0].roll(3, -1),)), m)[1],
        lambda m: (m.register_forward_hook(lambda module, args, y: y**2), m)[1],
        lambda m: nn.Sequential(*m[:2], InPlace(), *m[2:]),
    ],
    ids=["plain", "looks around", "hook", "hook on the input", "hook on the network", "writes in place"],
)  # fmt: skip
def test_occlusion_is_what_the_network_loses(change):
    """Against the network itself, asked for each parcel."""
    model, x = change(net().double()), image(1, torch.float64)
    found = explain(model, x, "occlusion").relevance[0, 0]
    with torch.no_grad():
        whole = model(x.clone())[0, 1]
        for label in range(1, 6):
            inside = torch.from_numpy(label == PARCELS)
            lost = whole - model(torch.where(inside, 0, x))[0, 1]
            torch.testing.assert_close(found[inside].sum(), lost, **SAME)


class InPlace(nn.Module):
    def forward(self, x):
        return x.sub_(0.1).mul_(2)
