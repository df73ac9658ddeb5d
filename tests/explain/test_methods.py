"""Methods beside the composites: closed forms, completeness, captum, and that nothing else matters or changes."""

import copy
import sys
from itertools import combinations
from math import comb
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

import datxai
from datxai.errors import InputError
from datxai.explain import METHODS, attribute
from datxai.explain.methods import METHODS as BY_CASE
from datxai.explain.methods import Decision, _trace_layers, options_of, takes_parcels
from datxai.explain.parcels import make_blocks, make_supervoxels

CONF = Path(datxai.__file__).parents[1] / "conf"
SAME = {"rtol": 1e-9, "atol": 1e-12}  # float64, other sums
SHAPE = (6, 5, 4)
FEW = {  # options that keep tests short
    "integrated_gradients": {"n_steps": 4},
    "smoothgrad": {"n_samples": 3},
    "lime": {"n_samples": 20},
    "kernel_shap": {"n_samples": 20},
    "occlusion": {"block": 6},
}


def parcels_of(shape, n=5):
    """Labels with gaps between them, and voxels that belong to none."""
    return np.random.default_rng(2).integers(0, n + 1, shape) * 3


def few(method, shape):
    parcels = parcels_of(shape) if takes_parcels(method) else None
    return {"method": method, "options": FEW.get(method, {}), "parcels": parcels}


def sums(relevance, parcels):
    return [relevance[0, 0][torch.as_tensor(parcels == label)].sum().item() for label in np.unique(parcels)]


@pytest.fixture
def linear():
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(SHAPE)), 2)).double()


@pytest.fixture
def x():
    return torch.rand(1, 1, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 3


@pytest.fixture
def small():
    """A network with padding, batch norm, in-place activation and pooling, float64."""
    torch.manual_seed(8)
    model = nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(inplace=True), nn.MaxPool3d(2),
        nn.Conv3d(4, 5, 2), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 2 * 1 * 1, 2),
    ).double().eval()  # fmt: skip
    with torch.no_grad():
        model[1].running_mean.normal_()
        model[1].running_var.uniform_(0.5, 2)
    return model


# --- closed forms on a linear network -------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["one", "logit"])
@pytest.mark.parametrize("target", ["normal", "difference"])
@pytest.mark.parametrize("method", sorted(set(METHODS) - {"lrp", "grad_cam", "guided_backprop"}))
def test_a_linear_network(linear, x, method, target, start):
    baseline, parcels = 0.5, parcels_of(SHAPE)
    logits = linear(x)[0].detach()
    weights = torch.tensor([1.0, 0.0] if target == "normal" else [-1.0, 1.0]).double()
    seed = weights * (logits if start == "logit" else 1)
    w = (seed @ linear[1].weight.detach()).view(x.shape)
    options = {"baseline": baseline} if "baseline" in options_of(method) else {}
    options |= {"ridge": 1e-10} if method == "lime" else {}
    options |= {"n_samples": 60} if "n_samples" in options_of(method) else {}
    found = attribute(linear, x, method, target=target, start=start, parcels=parcels, options=options)
    torch.testing.assert_close(found.seed[0], seed)
    torch.testing.assert_close(found.logits[0], logits)
    if method in ("gradient", "smoothgrad"):
        torch.testing.assert_close(found.relevance, w, **SAME)
    elif method == "input_x_gradient":
        torch.testing.assert_close(found.relevance, w * x, **SAME)
    elif method in ("integrated_gradients", "deep_lift"):
        torch.testing.assert_close(found.relevance, w * (x - baseline), **SAME)
    else:
        expected = sums(w * (x - baseline), parcels)
        assert sums(found.relevance, parcels) == pytest.approx([0, *expected[1:]], rel=1e-6, abs=1e-9)
        for label in np.unique(parcels):
            inside = found.relevance[0, 0][torch.as_tensor(parcels == label)]
            assert inside.unique().numel() == 1, "a parcel's voxels share its value evenly"


@pytest.mark.parametrize("n_samples", [14, 62, 500])
def test_shapley_values_of_few_parcels_are_exact(small, x, n_samples):
    """Against the definition: the mean over all orders of what a parcel adds. Five parcels have 30 true subsets."""
    parcels, n = parcels_of(SHAPE, 5 if n_samples > 14 else 3), 5 if n_samples > 14 else 3
    labels = [label for label in np.unique(parcels) if label > 0]

    def value(kept):
        inside = torch.as_tensor(np.isin(parcels, [0, *kept]))
        return small(torch.where(inside, x, 0.2))[0, 1].item()

    expected = [
        sum(
            (value([*some, label]) - value(some)) / (n * comb(n - 1, len(some)))
            for size in range(n)
            for some in combinations([other for other in labels if other != label], size)
        )
        for label in labels
    ]
    options = {"baseline": 0.2, "n_samples": n_samples}
    found = attribute(small, x, "kernel_shap", target=1, start="one", parcels=parcels, options=options)
    assert sums(found.relevance, parcels)[1:] == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_shapley_values_from_drawn_subsets(small, x):
    """Close to the exact ones, and complete whatever is drawn."""
    parcels = np.arange(np.prod(SHAPE)).reshape(SHAPE) // 12  # nine parcels, 510 true subsets
    exact, drawn, other = (
        np.array(sums(attribute(small, x, "kernel_shap", target=1, parcels=parcels, options=drawn).relevance, parcels))
        for drawn in ({"n_samples": 510}, {"n_samples": 400}, {"n_samples": 400, "seed": 1})
    )
    assert not np.allclose(drawn, other, rtol=1e-6)
    for estimate in (drawn, other):
        assert np.linalg.norm(estimate - exact) < 0.1 * np.linalg.norm(exact)
        assert estimate.sum() == pytest.approx(exact.sum(), rel=1e-9)


def test_lime_is_a_weighted_ridge_regression(small, x):
    """Against normal equations, with the intercept unpenalised, over the subsets that the seed draws."""
    parcels = parcels_of(SHAPE)
    options = {"n_samples": 50, "ridge": 0.3, "kernel_width": 0.4, "baseline": 0.1, "seed": 7}
    found = attribute(small, x, "lime", target=1, start="one", parcels=parcels, options=options)
    kept = (torch.rand(50, 5, generator=torch.Generator().manual_seed(7)) < 0.5).numpy()
    kept[0] = True
    inside = [torch.as_tensor(np.isin(parcels, [0, *(3 * (1 + np.flatnonzero(row)))])) for row in kept]
    scores = [small(torch.where(mask, x, 0.1))[0, 1].item() for mask in inside]
    cosine = [row.sum() / (np.sqrt(max(row.sum(), 1e-30)) * np.sqrt(5)) for row in kept]
    weights = np.diag(np.sqrt(np.exp(-((1 - np.array(cosine)) ** 2) / 0.4**2)))
    design = np.column_stack([kept, np.ones(50)])
    penalty = 0.3 * np.diag([1] * 5 + [0])
    expected = np.linalg.solve(design.T @ weights @ design + penalty, design.T @ weights @ scores)[:5]
    assert sums(found.relevance, parcels)[1:] == pytest.approx(expected, rel=1e-6)


def test_smoothgrad_is_the_mean_gradient_under_noise(x):
    """The gradient of sum x^3 under noise of variance s^2 is 3 (x^2 + s^2) on average."""

    class Cubes(nn.Module):
        def forward(self, x):
            return (x**3).flatten(1).sum(dim=1, keepdim=True)

    noise = 0.2
    options = {"n_samples": 2000, "noise": noise}
    found = attribute(Cubes(), x, "smoothgrad", target="reduced", start="one", options=options, at_once=500).relevance
    deviation = noise * (x.max() - x.min())
    expected, error = 3 * (x**2 + deviation**2), 3 * 2 * x.max() * deviation / 2000**0.5
    assert (found - expected).abs().max() < 4.5 * error
    assert (found - 3 * x**2).mean() == pytest.approx(3 * deviation.item() ** 2, rel=0.2)


@pytest.mark.parametrize("method", ["integrated_gradients", "deep_lift", "kernel_shap"])
def test_completeness(cnn, scans, method):
    options = {"baseline": 0.3} | ({"n_steps": 300} if method == "integrated_gradients" else {})
    chosen = few(method, scans.shape[2:]) | {"options": options}
    found = attribute(cnn.eval(), scans, **chosen, target="difference", start="one").relevance.sum(dim=(1, 2, 3, 4))
    logits = cnn(torch.cat([scans, torch.full_like(scans[:1], 0.3)])).detach()
    if method == "kernel_shap":  # what belongs to no parcel stays
        inside = torch.as_tensor(parcels_of(scans.shape[2:]) > 0)
        logits = cnn(torch.cat([scans, torch.where(inside, 0.3, scans)])).detach()
    margins = logits[:, 1] - logits[:, 0]
    without = margins[2:] if method == "kernel_shap" else margins[2]
    tolerance = 1e-2 if method == "integrated_gradients" else 1e-8  # the way crosses many kinks
    torch.testing.assert_close(found, margins[:2] - without, rtol=tolerance, atol=tolerance)


# --- captum ---------------------------------------------------------------------------------------------------------


def captums(method, model, x, parcels):
    from captum import attr

    mask = torch.as_tensor(np.unique(parcels, return_inverse=True)[1].reshape(1, 1, *parcels.shape))
    match method:
        case "integrated_gradients":
            return attr.IntegratedGradients(model).attribute(x, 0.1, target=1, n_steps=20)
        case "deep_lift":
            return attr.DeepLift(model).attribute(x, torch.full_like(x, 0.1), target=1)
        case "guided_backprop":
            return attr.GuidedBackprop(model).attribute(x, target=1)
        case "occlusion":
            found = attr.FeatureAblation(model).attribute(x, 0.1, target=1, feature_mask=mask)
            return torch.where(mask > 0, found / torch.bincount(mask.flatten())[mask], 0)
        case "grad_cam":
            return attr.LayerGradCam(model, model[1]).attribute(x, target=1, relu_attributions=True)


@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks", "ignore:Setting backward hooks")
@pytest.mark.parametrize("method", ["integrated_gradients", "deep_lift", "guided_backprop", "occlusion", "grad_cam"])
def test_captum_finds_the_same(x, method):
    torch.manual_seed(4)
    model = nn.Sequential(
        nn.Conv3d(1, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 120, 8), nn.ReLU(), nn.Linear(8, 2)
    ).double()
    parcels = parcels_of(SHAPE)
    options = {"integrated_gradients": {"n_steps": 20}}.get(method, {})
    options |= {"baseline": 0.1} if "baseline" in options_of(method) else {}
    found = attribute(model, x, method, target=1, start="one", parcels=parcels, options=options)
    expected = captums(method, model, x.clone().requires_grad_(), parcels).detach()
    assert expected.any()
    torch.testing.assert_close(found.relevance, expected, rtol=1e-6, atol=1e-9)  # captum's steps are float32


# --- Grad-CAM's place -----------------------------------------------------------------------------------------------


def test_a_feature_is_shown_where_it_is():
    """Three unpadded convolutions that do nothing: the map is the bright voxel itself, not moved nor stretched."""
    model = nn.Sequential(*(nn.Conv3d(1, 1, 3, bias=False) for _ in range(3)), nn.Flatten(), nn.Linear(6 * 5 * 4, 1))
    with torch.no_grad():
        for conv in model[:3]:
            conv.weight.zero_()
            conv.weight[0, 0, 1, 1, 1] = 1
        model[4].weight.fill_(0.5)
    x = torch.zeros(1, 1, 12, 11, 10)
    x[0, 0, 4, 6, 5] = 2.0
    found = attribute(model, x, "grad_cam", target="reduced", start="one").relevance
    torch.testing.assert_close(found, 0.5 * x)


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Conv3d(1, 1, 3)],
        [nn.Conv3d(1, 1, 4, stride=2, padding=1), nn.ReLU(), nn.Conv3d(1, 1, 3, dilation=2, padding=1)],
        [nn.Conv3d(1, 1, 3, padding="same"), nn.MaxPool3d(2), nn.Conv3d(1, 1, 3, padding="same", dilation=2)],
        [nn.Conv3d(1, 1, 3, padding=1), nn.AvgPool3d(3, stride=2), nn.Conv3d(1, 1, 3, padding="valid")],
        [nn.AdaptiveAvgPool3d(8), nn.Conv3d(1, 1, (3, 1, 1))],
    ],
    ids=["plain", "strided, dilated", "same", "pooled", "adaptive"],
)
def test_units_lie_at_the_centres_of_their_receptive_fields(layers):
    """Against the voxels that the gradient of a unit reaches, all weights being positive."""
    model = nn.Sequential(*layers).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    x = torch.linspace(1, 2, 16**3, dtype=torch.float64).view(1, 1, 16, 16, 16).requires_grad_()
    decision = Decision(nn.Sequential(model, nn.Flatten(), nn.AdaptiveAvgPool1d(1)).double(), torch.ones(1).double())
    _, found = _trace_layers(decision, x)
    features = found[f"0.{len(layers) - 1}"]
    places = [features.place_of(axis) for axis in (2, 3, 4)]
    middle = [n // 2 for n in features.output.shape[2:]]
    for unit in (middle, [number - 1 for number in middle]):
        (gradient,) = torch.autograd.grad(features.output[(0, 0, *unit)], x, retain_graph=True)
        reached = gradient[0, 0].nonzero().double()
        centre = (reached.amin(dim=0) + reached.amax(dim=0)) / 2
        if any(isinstance(layer, nn.MaxPool3d) for layer in layers):
            centre -= 0.5  # the larger of two voxels is the second: x rises
        expected = [place.start + place.step * number for place, number in zip(places, unit)]
        assert centre.tolist() == pytest.approx(expected)


def test_grad_cam_of_a_residual_network():
    """The shortcut is as strided as the branch, and moves nothing once more."""
    from torchvision.models.video.resnet import BasicBlock, Conv3DSimple

    torch.manual_seed(5)
    shortcut = nn.Sequential(nn.Conv3d(2, 3, 1, stride=2, bias=False), nn.BatchNorm3d(3))
    model = nn.Sequential(
        nn.Conv3d(1, 2, 3, padding=1), BasicBlock(2, 3, Conv3DSimple, stride=2, downsample=shortcut), nn.Flatten(),
        nn.Linear(3 * 4**3, 2),
    ).eval()  # fmt: skip
    x = torch.rand(1, 1, 8, 8, 8)
    _, found = _trace_layers(Decision(model, torch.ones(2)), x.clone().requires_grad_())
    for axis in (2, 3, 4):
        place = found["1.relu"].place_of(axis)
        assert place.step == 2 and place.start == 0
    relevance, named = (
        attribute(model, x, "grad_cam", target=0, options={"layer": layer}).relevance for layer in (None, "1.relu")
    )
    assert relevance.any() and torch.equal(relevance, named)


def test_grad_cam_of_a_layer_by_name(cnn, scans):
    last, named, other = (
        attribute(cnn, scans, "grad_cam", target="reduced", options=options).relevance
        for options in ({}, {"layer": "relu4"}, {"layer": "conv2"})
    )
    assert torch.equal(last, named)
    assert not torch.allclose(last, other)


# --- nothing else matters, nothing changes --------------------------------------------------------------------------


@pytest.mark.parametrize("method", sorted(BY_CASE))
def test_neighbours_and_the_size_of_batches_do_not_matter(cnn, scans, method):
    batch = torch.cat([scans, 100 * scans[:1]])
    chosen = few(method, scans.shape[2:]) | {"target": "label", "labels": [0, 1, 1]}
    alone = [attribute(cnn, batch[i : i + 1], **chosen | {"labels": [label]}) for i, label in enumerate([0, 1, 1])]
    for at_once in (1, 2, 16):
        together = attribute(cnn, batch, at_once=at_once, **chosen)
        for found, relevance in zip(alone, together.relevance, strict=True):
            torch.testing.assert_close(found.relevance[0], relevance, **SAME)
        assert together.ledgers == [[], [], []]


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"lrp", "grad_cam", "guided_backprop"}))
def test_a_single_logit_is_the_log_odds_of_reduced(x, method):
    """The map of normal is that of reduced with the other sign, where methods are linear in what they explain."""
    torch.manual_seed(6)
    model = nn.Sequential(nn.Conv3d(1, 3, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(3 * 120, 1)).double()
    chosen = few(method, SHAPE) | {"start": "one"}
    normal, reduced, difference = (
        attribute(model, x, target=target, **chosen).relevance for target in ("normal", "reduced", "difference")
    )
    assert reduced.any()
    torch.testing.assert_close(normal, -reduced, **SAME)
    torch.testing.assert_close(difference, reduced, **SAME)


@pytest.mark.parametrize("method", sorted(BY_CASE))
@pytest.mark.parametrize("fails", [False, True])
def test_model_and_random_state_are_left_as_they_were(small, x, method, fails):
    model = nn.Sequential(small.train(), Failing() if fails else nn.Identity())
    before = [(dict(vars(m)), list(m._forward_hooks), list(m._backward_hooks)) for m in model.modules()]
    content, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    chosen = few(method, SHAPE) | {"target": 0, "start": "one"}
    if fails:
        with pytest.raises(KeyboardInterrupt):
            attribute(model, x, **chosen)
    else:
        first, second = (attribute(model, x, **chosen).relevance for _ in range(2))
        assert torch.equal(first, second) and first.any()
        assert not first.requires_grad
    assert before == [(dict(vars(m)), list(m._forward_hooks), list(m._backward_hooks)) for m in model.modules()]
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in content.items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert torch.equal(state, torch.random.get_rng_state())


class Failing(nn.Module):
    """Stops the second time."""

    def __init__(self):
        super().__init__()
        self.seen = []  # one list, so that the module's attributes stay the same

    def forward(self, x):
        self.seen.append(0)
        if len(self.seen) > 1:
            raise KeyboardInterrupt
        return x


@pytest.mark.parametrize("method", ["smoothgrad", "lime", "kernel_shap"])
def test_seeds(small, x, method):
    parcels = np.arange(np.prod(SHAPE)).reshape(SHAPE) // 8
    one, same, other = (
        attribute(small, x, method, parcels=parcels, options={"n_samples": 40, "seed": seed}).relevance
        for seed in (3, 3, 4)
    )
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)


def test_float32_maps_are_those_of_float64(cnn, scans):
    for method in BY_CASE:
        chosen = few(method, scans.shape[2:]) | {"target": "reduced", "start": "one"}
        expected = attribute(cnn.double(), scans, **chosen).relevance
        found = attribute(cnn.float(), scans.float(), **chosen).relevance
        assert found.dtype == torch.float32
        if method != "smoothgrad":  # whose noise is other noise
            assert (found.double() - expected).norm() < 2e-3 * expected.norm(), method


# --- parcels --------------------------------------------------------------------------------------------------------


def test_every_case_may_have_parcels_of_its_own(small, x):
    batch, each = torch.cat([x, x]), np.stack([parcels_of(SHAPE), parcels_of(SHAPE)[::-1]])
    together = attribute(small, batch, "occlusion", parcels=each).relevance
    for number, parcels in enumerate(each):
        alone = attribute(small, x, "occlusion", parcels=parcels).relevance
        torch.testing.assert_close(together[number], alone[0], **SAME)
        assert not alone[0, 0][torch.as_tensor(parcels == 0)].any()


def test_blocks():
    blocks = make_blocks((5, 4, 3), 2)
    assert blocks.min() == 1 and blocks.max() == len(np.unique(blocks)) == 3 * 2 * 2
    assert (blocks[:2, :2, :2] == 1).all() and (blocks[4, 2:, 2] == blocks.max()).all()


def test_occlusion_without_parcels_takes_blocks(small, x):
    own, given = (
        attribute(small, x, "occlusion", parcels=parcels, options={"block": 2}).relevance
        for parcels in (None, make_blocks(SHAPE, 2))
    )
    assert torch.equal(own, given)


def test_supervoxels_follow_intensity():
    """Two bright bodies in a dim head: the bodies are parcels of their own, what is outside belongs to none."""
    volume = np.zeros((20, 20, 20), np.float32)
    volume[3:17, 3:17, 3:17] = 1
    volume[5:8, 8:12, 8:12] = volume[12:15, 8:12, 8:12] = 4
    volume += np.random.default_rng(3).uniform(0, 0.05, volume.shape).astype(np.float32)
    labels = make_supervoxels(volume, 40)
    assert ((labels == 0) == (volume < 0.5)).all()
    assert 20 <= labels.max() <= 60
    bright = volume > 3
    for label in np.unique(labels[bright]):
        assert bright[labels == label].all()
    assert np.array_equal(labels, make_supervoxels(volume, 40))


def test_lime_takes_supervoxels(small, x):
    x[..., 3:, :, :] *= 4
    labels = make_supervoxels(x[0, 0].numpy(), 6)
    own, given = (
        attribute(small, x, "lime", parcels=parcels, options={"n_samples": 30, "n_supervoxels": 6}).relevance
        for parcels in (None, labels)
    )
    assert own.any() and torch.equal(own, given)


# --- baselines that are inputs, and inputs of few axes ----------------------------------------------------------------

WITH_BASELINE = [method for method in BY_CASE if "baseline" in options_of(method)]


@pytest.mark.parametrize("method", WITH_BASELINE)
def test_a_baseline_may_be_an_input(small, x, method):
    """The same as the baseline zero, once the input is less by the baseline and the network adds it."""
    mean = torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(8), dtype=torch.float64)

    class Moved(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = small

        def forward(self, x):
            return self.inner(x + mean)

    if method == "deep_lift":
        small[3] = nn.AvgPool3d(2)  # captum's multipliers of max pooling do not add up here
    batch, chosen = torch.cat([x, 2 * x]), few(method, SHAPE) | {"target": 1}
    options = chosen.pop("options")
    expected = attribute(Moved(), batch - mean, options=options, **chosen).relevance
    each = torch.stack([mean, mean + 1])
    for at_once in (1, 4):
        found = attribute(small, batch, options=options | {"baseline": mean}, at_once=at_once, **chosen).relevance
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-10)
        own = attribute(small, batch, options=options | {"baseline": each}, at_once=at_once, **chosen).relevance
        torch.testing.assert_close(own[0], expected[0], rtol=1e-7, atol=1e-10)
        assert not torch.allclose(own[1], expected[1])
    number, filled = (
        attribute(small, batch, options=options | {"baseline": value}, **chosen).relevance
        for value in (1.5, torch.full((1, 1, *SHAPE), 1.5))
    )
    torch.testing.assert_close(number, filled, **SAME)


@pytest.mark.parametrize("method", ["occlusion", "lime", "kernel_shap"])
def test_signals(method):
    torch.manual_seed(9)
    model = nn.Sequential(nn.Conv1d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(60, 2))
    signal = torch.rand(2, 1, 32)
    options = {} if method == "occlusion" else {"n_samples": 40, "n_supervoxels": 6}
    found = attribute(model, signal, method, target=1, options=options).relevance
    assert found.shape == signal.shape and found.flatten(1).any(dim=1).all()


def test_supervoxels_of_a_signal_are_those_of_an_image_of_one_row():
    signal = np.random.default_rng(3).random(40)
    labels = make_supervoxels(signal, 5)
    assert np.array_equal(labels, make_supervoxels(signal[None], 5)[0])
    assert labels.max() >= 2 and ((labels > 0) == (signal > signal.mean())).all()


@pytest.mark.parametrize("method", ["occlusion", "lime", "kernel_shap", "grad_cam"])
def test_tables_have_nothing_that_could_be_taken_away_as_a_whole(method):
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(InputError, match=f"{method} is for inputs with axes behind their channels"):
        attribute(model, torch.rand(2, 6), method, target=1)


# --- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "choice", "said"),
    [
        ("gradient", {"options": {"n_steps": 3}}, "options.n_steps=3: attribution.method=gradient takes no options"),
        ("smoothgrad", {"options": {"n_steps": 3}}, "smoothgrad takes some of n_samples, noise, seed"),
        ("smoothgrad", {"options": {"noise": "much"}}, "options.noise=much: expected a number"),
        ("smoothgrad", {"options": {"noise": 0}}, "options.noise=0: expected more than zero"),
        ("smoothgrad", {"options": {"seed": -1}}, "options.seed=-1: expected more than zero, or zero"),
        ("smoothgrad", {"options": {"n_samples": 2.5}}, "options.n_samples=2.5: expected a whole number"),
        ("deep_lift", {"options": {"baseline": float("nan")}}, "options.baseline=nan: expected a number"),
        ("occlusion", {"options": {"baseline": torch.ones(3)}}, r"baseline is of shape \(3,\), expected a number"),
        ("occlusion", {"options": {"baseline": torch.tensor(float("inf"))}}, "baseline: expected finite numbers"),
        ("lime", {"options": {"seed": torch.ones(1)}}, "expected a whole number"),
        ("grad_cam", {"options": {"layer": 3}}, "options.layer=3: expected a layer's name"),
        ("grad_cam", {"options": {"layer": "6"}}, "options.layer=6: it is unknown where .* such as 0, 1, 2"),
        ("occlusion", {"parcels": np.ones((2, 2, 2))}, r"parcels are of shape \(2, 2, 2\), expected that of a case"),
        ("occlusion", {"parcels": np.zeros(SHAPE)}, "at least one parcel"),
        ("occlusion", {"parcels": -np.ones(SHAPE)}, "0 for no parcel"),
        ("kernel_shap", {"parcels": np.ones(SHAPE)}, "two or more parcels"),
        ("kernel_shap", {"parcels": parcels_of(SHAPE), "options": {"n_samples": 9}}, "5 parcels and n_samples=9"),
        ("lime", {"precision": "bf16"}, "expected float32 for attribution.method=lime"),
    ],
)
def test_mistakes_are_named(small, x, method, choice, said):
    with pytest.raises(InputError, match=said):
        attribute(small, x, method, **choice)


def test_a_volume_without_contrast_has_no_supervoxels(small):
    with pytest.raises(InputError, match="the volume is constant"):
        attribute(small, torch.ones(1, 1, *SHAPE).double(), "lime")


def test_a_network_without_feature_maps(linear, x):
    with pytest.raises(InputError, match="no convolution is the last"):
        attribute(linear, x, "grad_cam")


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(7)
        self.first, self.second, self.relu = nn.Linear(120, 9), nn.Linear(9, 9), nn.ReLU()

    def forward(self, x):
        return self.second(torch.tanh(3 * self.first(x.flatten(1))))[:, :2]


class Reusing(Functional):
    def forward(self, x):
        return self.relu(self.second(self.relu(self.first(x.flatten(1)))))[:, :2]


class Smooth(Functional):
    def __init__(self):
        super().__init__()
        self.relu = nn.GELU()

    def forward(self, x):
        return self.second(self.relu(3 * self.first(x.flatten(1))))[:, :2]


@pytest.mark.parametrize("network", [Functional, Reusing, Smooth])
def test_deep_lift_refuses_what_it_cannot_see(x, network):
    with pytest.raises(InputError, match=r"GELU.* choose another method, such as integrated_gradients"):
        attribute(network().double(), x, "deep_lift", target=0)


def test_a_missing_library_is_named(monkeypatch, small, x):
    for name in [name for name in sys.modules if name.partition(".")[0] == "captum"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "captum", None)
    with pytest.raises(InputError, match=r"needs captum, .* pip install 'datxai\[methods\]'"):
        attribute(small, x, "deep_lift")


@pytest.mark.parametrize("path", sorted((CONF / "attribution").glob("*.yaml")), ids=lambda path: path.stem)
def test_files_hold_the_methods_own_options(path):
    """Each option once, with the default that the function has, so that the command and Python give the same map."""
    tree = OmegaConf.create({"seed": 0, "attribution": OmegaConf.load(path)})
    content = OmegaConf.to_container(tree, resolve=True)["attribution"]
    assert content["method"] == path.stem and content["method"] in METHODS
    given, known = content.get("options", {}), options_of(content["method"])
    assert given.keys() == known.keys()
    assert {key: value for key, value in given.items() if key != "baseline"} == {
        key: value for key, value in known.items() if key != "baseline"
    }
    assert ("parcels" in content) == takes_parcels(content["method"])
