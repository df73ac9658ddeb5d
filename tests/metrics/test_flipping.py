"""Region flipping against a loop that flips region by region, and against what a linear network must give."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from datxai.errors import InputError
from datxai.metrics import METRICS
from datxai.metrics.flipping import STEPS, blur, brain_mean, cut_patches, flip

PATCHES = 1 + np.arange(120).reshape(6, 5, 4)  # every voxel a region


def curve_by_loop(case, labels, order, steps):
    """The score after each step, one region after the other, in numpy."""
    weight = case.model[1].weight[1].reshape(labels.shape).numpy()
    x, fill = case.x[0, 0].numpy().copy(), case.fill.numpy()
    volume, found = (labels > 0).sum(), []
    flipped, left = 0, list(order)
    for step in range(steps + 1):
        while flipped < (step / steps) ** 2 * volume - 1e-6:
            region = labels == left.pop(0)
            x[region] = fill[region]
            flipped += region.sum()
        found.append(float((weight * x).sum() + 0.5))
    assert not left
    return np.array(found)


def by_mean(case, labels):
    numbers = [number for number in np.unique(labels) if number]
    return sorted(numbers, key=lambda number: -case.relevance.numpy()[labels == number].mean())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("steps", [3, 10])
def test_curves_are_those_of_flipping_one_region_after_the_other(make_case, seed, steps):
    case = make_case(np.random.default_rng(seed + 10).normal(size=(6, 5, 4)), seed)
    order = by_mean(case, case.parcels)
    curves = flip(case, case.parcels, steps, orders=2)
    np.testing.assert_allclose(curves.most, curve_by_loop(case, case.parcels, order, steps), rtol=1e-12)
    np.testing.assert_allclose(curves.least, curve_by_loop(case, case.parcels, order[::-1], steps), rtol=1e-12)
    np.testing.assert_allclose(curves.fractions, [(step / steps) ** 2 for step in range(steps + 1)])
    assert curves.random.shape == (2, steps + 1)
    assert not np.allclose(*curves.random)
    np.testing.assert_allclose(curves.random[:, [0, -1]], np.tile(curves.most[[0, -1]], (2, 1)), rtol=1e-12)


def test_summary_is_the_mean_over_the_steps(make_case):
    case = make_case(seed=4)
    labels = cut_patches((6, 5, 4), case.spacing, 4.0)
    curves, found = flip(case, labels), METRICS["parcel_flipping"](make_case(seed=4, parcels=labels))
    start = float(case.score(case.x))
    assert found["aopc_most"] == pytest.approx(sum(start - y for y in curves.most) / (STEPS + 1), abs=1e-12)
    assert found["aopc_least"] == pytest.approx(sum(start - y for y in curves.least) / (STEPS + 1), abs=1e-12)
    assert found["abpc"] == pytest.approx((curves.least - curves.most).mean(), abs=1e-12)
    assert found["over_random"] == pytest.approx((curves.random.mean(axis=0) - curves.most).mean(), abs=1e-12)


@given(st.integers(0, 1000))
def test_no_map_beats_the_true_contributions_of_a_linear_network(make_case, seed):
    """Regions of equal size, each a voxel: their true contributions are weight x (input - fill)."""
    labels = 1 + np.arange(120).reshape(6, 5, 4)
    truth = make_case(seed=seed, parcels=labels)
    other = make_case(np.random.default_rng(seed).normal(size=(6, 5, 4)), seed, parcels=labels)
    best, worse = (METRICS["parcel_flipping"](case) for case in (truth, other))
    assert best["aopc_most"] >= worse["aopc_most"] - 1e-9
    assert best["abpc"] > 0 and best["abpc"] >= worse["abpc"] - 1e-9
    turned = METRICS["parcel_flipping"](make_case(-truth.relevance.numpy(), seed, parcels=labels))
    assert turned["abpc"] == pytest.approx(-best["abpc"], abs=1e-9)


def test_patches_cover_the_whole_grid_and_labels_of_zero_are_never_flipped(make_case):
    case = make_case(np.random.default_rng(0).normal(size=(6, 5, 4)))
    with torch.no_grad():
        filled = float(case.score(case.fill[None, None]))
        mixed = torch.where(torch.from_numpy(case.parcels > 0), case.fill, case.x)
        kept = float(case.score(mixed))
    patches = flip(case, cut_patches((6, 5, 4), case.spacing, 6.0))
    assert patches.most[-1] == pytest.approx(filled, abs=1e-12)
    assert flip(case, case.parcels).least[-1] == pytest.approx(kept, abs=1e-12)


def test_patches_are_cubes_of_the_given_size_in_mm():
    labels = cut_patches((6, 5, 4), (2.0, 3.0, 4.0), 6.0)
    assert labels.shape == (6, 5, 4) and set(labels.ravel()) == set(range(1, 2 * 3 * 2 + 1))
    assert (labels == labels[0, 0, 0]).sum() == 3 * 2 * 2
    first = np.argwhere(labels == labels[0, 0, 0])
    assert first.max(axis=0).tolist() == [2, 1, 1]
    assert len(np.unique(cut_patches((6, 5, 4), (20.0, 20.0, 20.0), 6.0))) == 120


def test_no_input_is_scored_twice(make_case):
    """Ends of curves are alike, and so are random orders and orders on which maps agree; the numbers are the same."""
    calls, memo, model = [], {}, make_case().model

    @dataclass(frozen=True)
    class Trial:
        target: int

    def measure(seed, memo):
        case = make_case(np.random.default_rng(seed).normal(size=(6, 5, 4)), parcels=PATCHES, memo=memo)
        trial = Trial(1)  # equal each time, as `datxai benchmark` hands it to its processes

        def counted(x):
            calls.append(len(x))
            return model(x)[:, trial.target]

        return flip(replace(case, score=counted), case.parcels, 5, orders=4)

    first, asked = measure(1, memo), sum(calls)
    assert asked == (2 + 4) * 4 + 2
    second = measure(2, memo)
    assert sum(calls) - asked == 2 * 4 + 1, "the untouched input is to show that the network is the same"
    np.testing.assert_array_equal(first.random, second.random)
    assert not np.allclose(first.most, second.most)
    asked = sum(calls)
    again = measure(1, memo)
    assert sum(calls) == asked + 1
    for curves, alone in ((again, first), (second, measure(2, {}))):
        for name in ("most", "least", "random"):
            np.testing.assert_allclose(getattr(curves, name), getattr(alone, name), rtol=1e-12)


def test_what_is_kept_is_of_this_input_fill_score_and_network(make_case):
    """Oracle: the same case with nothing kept. All share one memo; what is replaced comes back in the end."""
    case = make_case(np.random.default_rng(1).normal(size=(6, 5, 4)))

    class Score:
        def __init__(self, factor):
            self.factor = factor

        def __call__(self, x):
            return self.factor * case.score(x)

    def wrapped(score):
        return lambda x: score(x)

    def doubled(x):  # but for the untouched input
        return 2 * case.score(x) - case.score(case.x)

    others = [
        case, replace(case, fill=blur(case.x, case.spacing)), replace(case, x=case.fill[None, None]),
        replace(case, score=lambda x: -case.score(x)), replace(case, score=Score(2)), replace(case, score=Score(3)),
        replace(case, score=wrapped(case.score)), replace(case, score=wrapped(doubled)), case,
    ]  # fmt: skip
    found = [flip(other, case.parcels).summarise() for other in others]
    for other, summary in zip(others, found):
        assert summary == pytest.approx(flip(replace(other, memo={}), case.parcels).summarise(), abs=1e-12)
    with torch.no_grad():
        case.model[1].weight[1] *= 2
    changed = flip(case, case.parcels).summarise()
    assert changed == pytest.approx({name: 2 * value for name, value in found[0].items()}, abs=1e-12)


def test_regions_that_tie_come_in_both_orders(make_case):
    """Oracle: the loop over both orders of the two that tie."""
    labels = 1 + np.indices((6, 5, 4))[0] % 4
    relevance = np.array([3.0, 0.1, -2.0, 0.1])[labels - 1]
    relevance[labels == 4] += np.tile([0.05, -0.05], (labels == 4).sum() // 2)  # the mean is the same but for rounding
    found = flip(make_case(relevance), labels)
    for curve, orders in ((found.most, ([1, 2, 4, 3], [1, 4, 2, 3])), (found.least, ([3, 4, 2, 1], [3, 2, 4, 1]))):
        expected = np.mean([curve_by_loop(make_case(relevance), labels, order, STEPS) for order in orders], axis=0)
        np.testing.assert_allclose(curve, expected, rtol=1e-12)


def test_ties_are_fair_whatever_the_numbers_of_the_regions(make_case):
    """A map of one voxel: the mean of many draws is that of all orders of the rest, and numbering plays no part."""
    relevance = np.zeros((6, 5, 4))
    relevance[2, 2, 2] = 1.0
    found = {}
    for name, labels in (("up", PATCHES), ("down", 121 - PATCHES)):
        # every voxel counts as much as it has, which falls from place to place: an order by place would show
        x = torch.from_numpy(np.linspace(2, 0, 120).reshape(1, 1, 6, 5, 4))
        case = make_case(relevance, x=x, fill=torch.zeros(6, 5, 4), score=lambda x: x.sum((1, 2, 3, 4)))
        found[name] = np.array([flip(replace(case, seed=seed), labels).summarise()["abpc"] for seed in range(40)])
    hot = float(x[0, 0, 2, 2, 2])
    rest, counts = 120 - hot, [int(np.ceil((step / STEPS) ** 2 * 120 - 1e-9)) for step in range(1, STEPS + 1)]
    most = sum(hot + rest * (k - 1) / 119 for k in counts)
    least = sum(120 if k == 120 else rest * k / 119 for k in counts)
    expected = (most - least) / (STEPS + 1)
    for values in found.values():
        assert values.mean() == pytest.approx(expected, abs=4 * values.std() / np.sqrt(40) + 1e-9)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 3, 7)])
def test_means_that_are_one_but_for_rounding_rank_nothing(make_case, sizes):
    labels = np.zeros(120, int)
    labels[: sum(sizes)] = np.repeat([1, 2, 3], sizes)
    relevance = np.where(labels > 0, 0.1, 5.0).reshape(6, 5, 4)
    found = flip(make_case(relevance), labels.reshape(6, 5, 4)).summarise()
    assert np.isnan(list(found.values())).all()


def test_a_network_that_is_not_linear_is_asked_for_the_very_inputs(make_case):
    """The score of a convolutional network, flipped by hand in the untouched copy of the input."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv3d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 4 * 3 * 2, 2)).double().eval()
    case = make_case(model=model, score=lambda x: model(x)[:, 0])
    before = case.x.clone()
    labels = np.where(np.indices((6, 5, 4))[0] < 3, 1, 2)
    curves = flip(case, labels, steps=1)
    assert torch.equal(case.x, before)
    with torch.no_grad():
        assert curves.most.tolist() == pytest.approx(
            [float(model(case.x)[0, 0]), float(model(case.fill[None, None])[0, 0])]
        )


def test_fills():
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 1, 8, 7, 6)))
    brain = np.zeros((8, 7, 6), bool)
    brain[2:5, 2:5, 2:4] = True
    with pytest.raises(InputError, match="the brain is empty"):
        brain_mean(x, np.zeros_like(brain))
    filled = brain_mean(x, brain)
    assert filled.shape == (8, 7, 6) and filled.dtype == x.dtype
    np.testing.assert_allclose(filled, np.mean([x[0, 0][tuple(i)] for i in np.argwhere(brain)]))
    point = torch.zeros(1, 1, 33, 33, 33, dtype=torch.double)
    point[0, 0, 16, 16, 16] = 1
    blurred = blur(point, (2.0, 3.0, 4.0), fwhm_mm=12.0).numpy()
    profiles = blurred[16:, 16, 16], blurred[16, 16:, 16], blurred[16, 16, 16:]
    for mm, profile in zip((2.0, 3.0, 4.0), profiles):  # half the peak half the width away: straight over the square
        squares = (mm * np.arange(4)) ** 2
        assert np.interp(6.0**2, squares, np.log(profile[:4] / profile[0])) == pytest.approx(np.log(0.5), rel=1e-3)
    assert blurred.sum() == pytest.approx(1, abs=1e-3)
