"""Spearman by scipy's own function, SSIM by its formula in plain loops."""

import itertools

import numpy as np
import pytest
from scipy import stats

from datxai.metrics.similarity import compare

RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(2, 9, 10, 8))
MASK = RNG.random((9, 10, 8)) < 0.4


def ssim_by_loop(a, b, window):
    """Wang et al. 2004, uniform window, unbiased variances, mirrored edges; values from 0 to 1."""
    half, c1, c2 = window // 2, 0.01**2, 0.03**2
    padded = [np.pad(data, half, mode="symmetric") for data in (a, b)]
    found = np.empty(a.shape)
    for place in itertools.product(*map(range, a.shape)):
        cut = tuple(slice(i, i + window) for i in place)
        x, y = (data[cut].ravel() for data in padded)
        covariance = np.cov(x, y)
        found[place] = ((2 * x.mean() * y.mean() + c1) * (2 * covariance[0, 1] + c2)) / (
            (x.mean() ** 2 + y.mean() ** 2 + c1) * (covariance[0, 0] + covariance[1, 1] + c2)
        )
    return found


def test_against_scipy_and_the_formula():
    found = compare(A, B, MASK)
    assert found["spearman"] == pytest.approx(stats.spearmanr(A[MASK], B[MASK]).statistic, abs=1e-12)
    absolute = [np.abs(data) / np.abs(data[MASK]).max() for data in (A, B)]
    expected = stats.spearmanr(*(data[MASK] for data in absolute)).statistic
    assert found["spearman_abs"] == pytest.approx(expected, abs=1e-12)
    assert found["ssim"] == pytest.approx(ssim_by_loop(*absolute, 7)[MASK].mean(), abs=1e-9)


def test_the_same_map_at_another_scale_is_the_same_map():
    assert compare(A, 3e-6 * A, MASK) == pytest.approx({"spearman": 1, "spearman_abs": 1, "ssim": 1}, abs=1e-9)
    assert compare(A, -A, MASK) == pytest.approx({"spearman": -1, "spearman_abs": 1, "ssim": 1}, abs=1e-9)


@pytest.mark.parametrize("shape", [(12, 11, 1), (1, 9, 8), (6, 5, 4), (3, 3, 3), (5, 1, 1)])
def test_thin_grids(shape):
    a, b = RNG.normal(size=(2, *shape))
    found = compare(a, b, np.ones(shape, bool))
    assert np.isfinite(list(found.values())).all() and found["ssim"] < 1


@pytest.mark.parametrize("value", [0.0, 2.5, np.nan, np.inf])
def test_a_map_that_says_nothing_within_the_mask_is_like_no_other(value):
    silent = np.where(MASK, value, A)
    for pair in ((A, silent), (silent, A), (silent, silent)):
        assert np.isnan(list(compare(*pair, MASK).values())).all()


def test_a_voxel_that_is_not_finite_counts_beyond_the_mask_too():
    """SSIM's windows carry it inside, or not, by where it lies."""
    broken = A.copy()
    broken[tuple(np.argwhere(~MASK)[0])] = np.nan
    assert np.isnan(list(compare(A, broken, MASK).values())).all()


def test_a_map_of_one_size_and_both_signs_has_ranks_but_no_sizes_to_compare():
    found = compare(np.sign(A), B, MASK)
    assert found["spearman"] == pytest.approx(stats.spearmanr(np.sign(A[MASK]), B[MASK]).statistic, abs=1e-12)
    assert np.isnan(found["spearman_abs"]) and np.isnan(found["ssim"])


def test_an_empty_mask_has_nothing_to_compare():
    assert np.isnan(list(compare(A, B, np.zeros_like(MASK)).values())).all()
