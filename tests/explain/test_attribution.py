"""Explanations of whole networks: the equations, targets and starts, the ledger, and that nothing is left behind."""

import copy
import subprocess
import sys
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from datxai.errors import InputError
from datxai.explain import METHODS, attribute
from datxai.explain._zennit import zennit
from datxai.model import checkpoint, network

DOUBLE, SINGLE = 1e-8, 1e-3  # relative L2 of the whole CNN's relevance to the oracle's
NEIGHBOURS = {torch.float64: 1e-12, torch.float32: 1e-6}  # relevance of the linear layers sums in another order
BF16 = 2e-2  # relative L2 with eight bits of mantissa in the convolutions
PAPER = {name: ("flat", {}) for name in ("conv1", "conv2")} | {
    name: ("alpha_beta", {"alpha": 2, "beta": 1}) for name in ("conv3", "conv4")
} | {name: ("epsilon", {"epsilon": 1e-4}) for name in ("fc1", "fc2", "output")}


@pytest.fixture
def paper(composites):
    return composites["nazari2021"]["layers"]


def relative(found, expected):
    return float(np.linalg.norm(np.subtract(found, expected)) / np.linalg.norm(expected))


# --- the equations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rules", ["fast", "zennit"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, DOUBLE), (torch.float32, SINGLE)])
def test_the_papers_map_is_the_equations(oracle, paper, cnn, scans, rules, dtype, tolerance):
    assert all((cnn[: 2 * layer](scans) == 0).any() for layer in (1, 2, 3, 4)), "exact zeros after every ReLU"
    found = attribute(cnn.to(dtype), scans.to(dtype), composite=paper, target="reduced", rules=rules)
    cnn.double()
    for case, x in enumerate(scans):
        expected, logits, ledger = oracle.explain(cnn, x, PAPER, lambda z: z * [0, 1])
        assert relative(found.logits[case].numpy(), logits) < tolerance
        assert relative(found.relevance[case].numpy(), expected) < tolerance
        assert [row["layer"] for row in found.ledgers[case]] == list(ledger)
        for row in found.ledgers[case]:
            noted = [row["relevance_in"], row["relevance_out"], row["by_bias"]]
            assert relative(noted, ledger[row["layer"]]) < tolerance


def test_bf16_is_the_equations_with_fewer_digits(oracle, paper, cnn, scans):
    found = attribute(cnn.float(), scans.float(), composite=paper, target="reduced", precision="bf16")
    exact = attribute(cnn, scans.float(), composite=paper, target="reduced")
    assert found.relevance.dtype == found.logits.dtype == torch.float32
    cnn.double()
    for case, x in enumerate(scans):
        expected, logits, ledger = oracle.explain(cnn, x, PAPER, lambda z: z * [0, 1])
        assert relative(found.logits[case].numpy(), logits) < BF16
        assert 1e-4 < relative(found.relevance[case].numpy(), expected) < BF16
        noted = [row["relevance_out"] for row in found.ledgers[case]]
        assert relative(noted, [ledger[row["layer"]][1] for row in found.ledgers[case]]) < BF16
    assert relative(exact.relevance.numpy(), found.relevance.numpy()) > 1e-4, "another precision, another map"


@pytest.mark.parametrize("rules", ["fast", "zennit"])
def test_a_network_in_bf16(oracle, paper, cnn, scans, rules):
    model = copy.deepcopy(cnn).bfloat16()
    found = attribute(model, scans.bfloat16(), composite=paper, target="reduced", rules=rules)
    assert found.relevance.dtype == torch.bfloat16
    for case, x in enumerate(scans):
        expected, _, _ = oracle.explain(cnn, x, PAPER, lambda z: z * [0, 1])
        assert relative(found.relevance[case].float().numpy(), expected) < BF16


def test_relevance_is_conserved_with_biases_zeroed(paper, cnn, scans):
    with torch.no_grad():
        for name, parameter in cnn.named_parameters():
            parameter.mul_(0 if name.endswith("bias") else 1)
    lines = [{**line, "parameters": {"epsilon": 1e-12}} if line["rule"] == "epsilon" else line for line in paper]
    found = attribute(cnn, scans, composite=lines, start="one")
    torch.testing.assert_close(found.relevance.sum(dim=(1, 2, 3, 4)), torch.ones(2).double(), rtol=1e-5, atol=0)


def test_gradients(cnn, scans):
    x = scans.clone().requires_grad_()
    (expected,) = torch.autograd.grad(cnn.eval()(x)[:, 1].sum(), x)
    gradient = attribute(cnn, scans, method="gradient", target="reduced", start="one")
    product = attribute(cnn, scans, method="input_x_gradient", target="reduced", start="one")
    torch.testing.assert_close(gradient.relevance, expected)
    torch.testing.assert_close(product.relevance, expected * scans)
    assert gradient.ledgers == [[], []]


# --- targets and starts ---------------------------------------------------------------------------------------------


def test_targets(paper, cnn, scans):
    logits = cnn.eval()(scans).detach()
    predicted = logits.argmax(dim=1)
    seeds = {
        target: attribute(cnn, scans, composite=paper, target=target, labels=[1, 0], ledger=False).seed
        for target in ("predicted", "normal", "reduced", 0, 1, "label", "difference", "decision")
    }
    eye = torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(seeds["predicted"], eye[predicted] * logits)
    torch.testing.assert_close(seeds["normal"], logits * eye[0])
    torch.testing.assert_close(seeds["reduced"], logits * eye[1])
    torch.testing.assert_close(seeds["label"], logits * eye[[1, 0]])
    torch.testing.assert_close(seeds["difference"], logits * torch.tensor([-1.0, 1.0]))
    sign = torch.where(predicted == 1, 1.0, -1.0)[:, None]
    torch.testing.assert_close(seeds["decision"], sign * seeds["difference"])
    assert (seeds["decision"].sum(dim=1) > 0).all(), "what speaks for the decision"
    assert torch.equal(seeds["normal"], seeds[0])
    assert torch.equal(seeds["reduced"], seeds[1])


@pytest.mark.parametrize("target", [np.int64(1), torch.tensor(1), [1, 1], np.array([1, 1]), torch.tensor([1, 1])])
def test_outputs_by_number_of_any_kind(cnn, scans, target):
    found, expected = (attribute(cnn, scans, "gradient", target=chosen) for chosen in (target, 1))
    assert torch.equal(found.relevance, expected.relevance)


@pytest.mark.parametrize("method", ["lrp", "occlusion"])
@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_an_output_for_each_case(paper, cnn, scans, kind, method):
    x, outputs = torch.cat([scans, scans]), [1, 0, 0, 1]
    chosen = {"composite": paper, "at_once": 3, "options": {"block": 11} if method == "occlusion" else {}}
    found = attribute(cnn, x, method, target=kind(outputs), **chosen)
    assert torch.equal(found.seed != 0, torch.eye(2)[outputs] != 0)
    by_label = attribute(cnn, x, method, target="label", labels=outputs, **chosen)
    assert torch.equal(found.relevance, by_label.relevance)


def test_lrp_starts_with_the_logit_and_other_methods_with_one(paper, cnn, scans):
    """So that a negative logit does not turn the sign of what is a gradient."""
    with torch.no_grad():
        cnn[-1].bias[1] -= 100
    for method in METHODS:
        options = {"n_samples": 200} if method in ("lime", "kernel_shap") else {}
        found = attribute(cnn, scans, method, composite=paper, target="reduced", options=options)
        assert (found.logits[:, 1] < 0).all()
        assert torch.equal(found.seed[:, 1], found.logits[:, 1] if method == "lrp" else torch.ones(2).double())
    x = scans.clone().requires_grad_()
    (expected,) = torch.autograd.grad(cnn.eval()(x)[:, 1].sum(), x)
    torch.testing.assert_close(attribute(cnn, scans, "gradient", target="reduced").relevance, expected)


def test_maps_are_linear_in_the_seed(paper, cnn, scans):
    def relevance(**choice):
        found = attribute(cnn, scans, composite=paper, ledger=False, **choice)
        return found.relevance, found.logits[:, :, None, None, None, None]

    normal, logits = relevance(target="normal", start="one")
    reduced, _ = relevance(target="reduced", start="one")
    scaled, _ = relevance(target="reduced", start="logit")
    difference, _ = relevance(target="difference", start="logit")
    plain, _ = relevance(target="difference", start="one")
    torch.testing.assert_close(scaled, logits[:, 1] * reduced)
    torch.testing.assert_close(difference, logits[:, 1] * reduced - logits[:, 0] * normal)
    torch.testing.assert_close(plain, reduced - normal)


def test_seeds_are_what_the_record_needs(paper, cnn, scans):
    found = attribute(cnn, scans, composite=paper, target="normal", start="one")
    assert found.seeds == [[1.0, 0.0], [1.0, 0.0]]


@pytest.mark.parametrize(
    ("target", "labels", "expected"),
    [("reduced", None, [1, 1]), ("normal", None, [-1, -1]), ("difference", None, [1, 1]), ("label", [1, 0], [1, -1]),
     ("decision", None, None)],
)  # fmt: skip
def test_a_single_logit_is_the_log_odds_of_reduced(target, labels, expected):
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 1))
    x = torch.rand(2, 1, 2, 2, 2)
    found = attribute(model, x, method="gradient", target=target, labels=labels, start="one")
    assert found.seed[:, 0].tolist() == (found.logits[:, 0].sign().tolist() if target == "decision" else expected)
    predicted = attribute(model, x, method="gradient", target="predicted", start="logit")
    assert (predicted.seed > 0).all()


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"target": "abnormal"}, "target=abnormal: expected one of predicted, normal"),
        ({"target": 2}, "there is no class 2, the network has 2"),
        ({"target": "label"}, "labels of the cases are not known"),
        ({"target": "label", "labels": [1]}, "labels of the cases are not known"),
        ({"target": True}, "target=True: expected one of predicted"),
        ({"target": 1.0}, "target=1.0: expected one of predicted, .* number of an output, or one for each"),
        ({"target": [0, 1, 1]}, "target has 3 outputs for 2 cases, expected one for each"),
        ({"target": torch.tensor([1])}, "target has 1 outputs for 2 cases"),
        ({"target": [0, 2]}, "there is no class 2, the network has 2"),
        ({"target": -1}, "there is no class -1"),
        ({"target": [[0], [1]]}, "or one for each case"),
        ({"at_once": -1}, "at_once=-1: expected one or more"),
        ({"start": "two"}, "attribution.start=two: expected logit or one"),
        ({"method": "saliency"}, "attribution.method=saliency: expected one of lrp, gradient"),
        ({"precision": "float16"}, "precision=float16: expected one of float32, bf16"),
        ({"precision": "bf16", "rules": "zennit"}, "precision=bf16 and rules=zennit: .* choose rules=fast"),
        ({"precision": "bf16", "method": "gradient"}, "precision=bf16: expected float32 for attribution.method=gradi"),
    ],
)
def test_mistakes_are_named(paper, cnn, scans, choice, said):
    with pytest.raises(InputError, match=said):
        attribute(cnn, scans, **{"composite": paper} | choice)


class Answering(nn.Module):
    """A network that answers with something made of its logits."""

    def __init__(self, model, answer):
        super().__init__()
        self.model, self.answer = model, answer

    def forward(self, x):
        return self.answer(self.model(x))


@pytest.mark.parametrize("method", ["lrp", "gradient", "integrated_gradients"])
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda logits: (logits, logits), "answers with a tuple, expected one tensor of logits"),
        (lambda logits: {"logits": logits}, "answers with a dict, expected one tensor of logits"),
        (lambda logits: logits.sum(), r"answers with shape \(\) to 2 cases"),
        (lambda logits: logits.T[:1], r"answers with shape \(1, 2\) to 2 cases"),
    ],
)
def test_networks_that_do_not_answer_with_logits(paper, cnn, scans, method, answer, said):
    with pytest.raises(InputError, match=said):
        attribute(Answering(cnn, answer), scans, method, composite=paper)


@pytest.mark.parametrize("method", ["lrp", "gradient", "occlusion"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x[:0], r"of shape \(0, 1, 11, 12, 11\), holds no case"),
        (lambda x: x[0], r"cannot take an input of shape \(1, 11, 12, 11\) .*, as in x\[None\]"),
        (lambda x: x[0, 0, 0, 0], r"of shape \(11,\), expected a tensor of floating point numbers \[batch, ...\]"),
        (lambda x: x.long(), "is a torch.int64 tensor"),
        (lambda x: x.numpy(), "is a ndarray"),
    ],
    ids=["empty", "unbatched", "line", "whole numbers", "array"],
)
def test_inputs_that_are_no_batch(paper, cnn, scans, method, change, said):
    with pytest.raises(InputError, match=said):
        attribute(cnn, change(scans), method, composite=paper, target=1)


def test_compiled_networks_are_refused(paper, cnn, scans):
    """Before anything is compiled: their layers take no rules."""
    outer = torch.compile(cnn, backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.trace(cnn.eval(), scans)
    cnn_inside = nn.Sequential(copy.deepcopy(cnn))
    cnn_inside[0].compile(backend="eager")
    for model in (outer, cnn_inside, scripted):
        with pytest.raises(InputError, match=r"is compiled \(torch.compile or torch.jit\)"):
            attribute(model, scans, composite=paper)


# --- the ledger -----------------------------------------------------------------------------------------------------


def test_the_ledger_adds_up(paper, cnn, scans):
    found = attribute(cnn, scans, composite=paper)
    for case, rows in enumerate(found.ledgers):
        assert [row["layer"] for row in rows] == ["output", "fc2", "fc1", "conv4", "conv3", "conv2", "conv1"], (
            "nothing between layers"
        )
        assert rows[0]["relevance_in"] == pytest.approx(found.seed[case].sum().item())
        assert rows[-1]["relevance_out"] == pytest.approx(found.relevance[case].sum().item())
        for above, below in pairwise(rows):
            assert above["relevance_out"] == pytest.approx(below["relevance_in"]), "ReLU and reshaping hand on all"
        for row in rows:
            assert row["relevance_in"] == pytest.approx(row["relevance_out"] + row["absorbed"])
            assert row["absorbed"] == pytest.approx(row["by_bias"] + row["by_stabiliser"])
        absorbed = sum(row["absorbed"] for row in rows)
        assert found.relevance[case].sum().item() == pytest.approx(found.seed[case].sum().item() - absorbed)


def test_an_activation_left_to_its_gradient_loses_relevance(cnn, scans, paper):
    """Mapped to its gradient, ReLU drops what Flat gives to silent units, and the ledger shows it."""
    lines = [{**line, "rule": "gradient"} if line["rule"] == "pass" else line for line in paper]
    rows = {row["layer"]: row for row in attribute(cnn, scans, composite=lines, target="reduced").ledgers[0]}
    assert rows["conv2"]["relevance_out"] != pytest.approx(rows["conv1"]["relevance_in"], rel=1e-3)


def test_ledger_off(paper, cnn, scans):
    with_ledger, without = (attribute(cnn, scans, composite=paper, ledger=ledger) for ledger in (True, False))
    assert without.ledgers == [[], []]
    assert torch.equal(with_ledger.relevance, without.relevance)


# --- cases, models and settings are left alone ----------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), NEIGHBOURS.items())
@pytest.mark.parametrize("name", ["nazari2021", "epsilon_gamma_box"])
def test_a_case_does_not_depend_on_its_neighbours(composites, cnn, scans, name, dtype, tolerance):
    cnn, lines = cnn.to(dtype), composites[name]["layers"]
    batch = torch.cat([scans, 100 * scans[:1]]).to(dtype)
    together = attribute(cnn, batch, composite=lines)
    for case in range(len(batch)):
        alone = attribute(cnn, batch[case : case + 1], composite=lines)
        assert relative(alone.relevance[0].numpy(), together.relevance[case].numpy()) < tolerance
        for ours, among in zip(alone.ledgers[0], together.ledgers[case], strict=True):
            assert ours["relevance_out"] == pytest.approx(among["relevance_out"], rel=100 * tolerance)


@pytest.mark.parametrize("name", ["nazari2021", "epsilon_gamma_box"])
def test_a_case_does_not_depend_on_the_size_of_the_batch(composites, cnn, scans, name):
    x = torch.cat([scale * scans for scale in (1, 0.5, 2, 0.1, 3, 1.5, 20, 0.7)]).float()
    lines, labels = composites[name]["layers"], [0, 1, 1, 0] * 4
    ones, fours, all_at_once = (
        attribute(cnn.float(), x, composite=lines, target="label", labels=labels, at_once=n) for n in (1, 4, 16)
    )
    for found in (fours, all_at_once):
        assert torch.equal(found.logits, ones.logits), "forward passes on a CPU are the same number for number"
        assert torch.equal(found.seed, ones.seed)
        for case in range(len(x)):
            assert relative(found.relevance[case].numpy(), ones.relevance[case].numpy()) < NEIGHBOURS[torch.float32]
            assert [row["layer"] for row in found.ledgers[case]] == [row["layer"] for row in ones.ledgers[case]]


def state_of(model):
    return [
        (set(vars(m)), m.training, len(m._forward_hooks), len(m._forward_pre_hooks), dict(m._parameters))
        for m in model.modules()
    ]


def same_state(before, after):
    return all(
        a[:4] == b[:4] and all(a[4][key] is b[4][key] for key in a[4].keys() | b[4].keys())
        for a, b in zip(before, after, strict=True)
    )


class Interrupting(nn.Module):
    """Stops in the forward pass, or in the backward pass."""

    def __init__(self, where):
        super().__init__()
        self.where = where

    def forward(self, x):
        if self.where == "forward":
            raise KeyboardInterrupt
        x = x * 1.0
        x.register_hook(self.stop)
        return x

    def stop(self, gradient):
        raise KeyboardInterrupt


@pytest.mark.parametrize("mode", [{}, {"rules": "zennit"}, {"precision": "bf16"}], ids=["fast", "zennit", "bf16"])
@pytest.mark.parametrize("interrupted", [None, "forward", "backward"])
def test_the_model_is_left_as_it_was(composites, other_network, scans, interrupted, mode):
    model = other_network.train()
    model[0].weight.requires_grad_(False)
    model[4].weight.grad = torch.ones_like(model[4].weight)
    before, content = state_of(model), copy.deepcopy(model.state_dict())
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    explained = nn.Sequential(model, Interrupting(interrupted)) if interrupted else model
    choice = {"canonizers": ["sequential_merge_batch_norm"], **mode}
    if interrupted:
        with pytest.raises(KeyboardInterrupt):
            attribute(explained, scans, composite=composites["nazari2021"]["layers"], **choice)
    else:
        attribute(explained, scans, composite=composites["nazari2021"]["layers"], **choice)
    assert same_state(before, state_of(model))
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in content.items())
    assert torch.equal(model[4].weight.grad, torch.ones_like(model[4].weight))
    assert model[0].weight.grad is None


def test_surroundings_do_not_matter_and_are_left_alone(paper, cnn, scans):
    cnn, scans = cnn.float(), scans.float()
    expected = attribute(cnn, scans, composite=paper).relevance
    assert expected.dtype == torch.float32
    assert not expected.requires_grad
    allowed = torch.backends.cudnn.allow_tf32
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        assert torch.equal(attribute(cnn, scans, composite=paper).relevance, expected)
    with torch.inference_mode():
        assert torch.equal(attribute(cnn, scans.clone(), composite=paper).relevance, expected)
    assert torch.backends.cudnn.allow_tf32 == allowed
    assert not scans.requires_grad


# --- importing Zennit -----------------------------------------------------------------------------------------------


def run_python(code, **environment):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)


def test_zennit_imports_also_after_a_failed_import():
    code = "try:\n import zennit\nexcept RuntimeError: pass\nimport datxai.explain, zennit.composites"
    found = run_python(code)
    assert found.returncode == 0, found.stderr


TORCHVISION_IS_NEEDED = "import torchvision" in Path(zennit.types.__file__).read_text()  # by Zennit 1.0.0


def test_torchvision_is_imported_only_for_its_networks():
    """It takes as long to import as torch. Zennit 1.0.0 imports it for its types, which cannot be put off."""
    code = "import sys, datxai.explain.attribution; {}print('torchvision' in sys.modules)"
    for asked_of_every_module in ("", "[hasattr(m, '__file__') for m in [*sys.modules.values()]]; "):
        assert run_python(code.format(asked_of_every_module)).stdout.strip() == str(TORCHVISION_IS_NEEDED)
    code = "from datxai.explain.canonizers import CANONIZERS; print(type(CANONIZERS['resnet']()).__name__)"
    assert run_python(code).stdout.strip() == "ResNetCanonizer"


@pytest.mark.skipif(TORCHVISION_IS_NEEDED, reason="torchvision imports it")
def test_sympy_is_not_imported_for_a_map(tmp_path):
    """PyTorch imports it, which takes a second, for a gradient with a seed and for weights on the meta device."""
    chosen = {"shape": [9, 9, 9], "channels": [2], "hidden": [3]}
    checkpoint.save_weights(network.build(**chosen).state_dict(), tmp_path / checkpoint.WEIGHTS)
    checkpoint.save_network({"network": chosen}, tmp_path / checkpoint.CONFIG)
    found = run_python(
        "import sys, torch\n"
        "from datxai.explain import attribute\n"
        "from datxai.model.checkpoint import load\n"
        f"model, _ = load({str(tmp_path)!r})\n"
        "lines = [{'match': ['conv*', 'fc*', 'output'], 'rule': 'epsilon'}, {'match': ['relu*'], 'rule': 'pass'}]\n"
        "attribute(model, torch.rand(1, 1, 9, 9, 9), composite=lines)\n"
        "print('sympy' in sys.modules)"
    )
    assert found.stdout.strip() == "False", found.stderr


def test_another_failure_of_torchvision_is_not_hidden(tmp_path):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('something else')")
    code = "from datxai.explain.canonizers import CANONIZERS; CANONIZERS['resnet']()"
    found = run_python(code, PYTHONPATH=str(tmp_path))
    assert "RuntimeError: something else" in found.stderr
