"""The Gini index against its closed forms and its definition by pairs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from datxai.metrics import METRICS
from datxai.metrics.sparseness import gini

MAPS = arrays.arrays(float, (3, 2, 2), elements=st.floats(-100, 100)).filter(
    lambda a: np.abs(a).sum() > 1e-3 and np.ptp(a) > 0
)


@pytest.mark.parametrize("k", [1, 3, 60, 120])
def test_k_equal_voxels_of_n(make_case, k):
    data = np.zeros(120)
    data[:k] = (-1.0) ** np.arange(k)
    assert METRICS["sparseness"](make_case(data.reshape(6, 5, 4)))["gini"] == pytest.approx(1 - k / 120)


@given(MAPS)
def test_mean_difference_of_all_pairs(data):
    values = np.abs(data).ravel()
    pairs = np.abs(values[:, None] - values).mean()
    assert gini(data) == pytest.approx(pairs / (2 * values.mean()), abs=1e-9)
    assert gini(-5 * data) == pytest.approx(gini(data), abs=1e-9)


@pytest.mark.parametrize("value", [0.0, 0.1, -3.0, np.nan, np.inf])
def test_a_map_that_says_nothing_has_none(value):
    assert np.isnan(gini(np.full((2, 2, 2), value)))
    if not np.isfinite(value):
        assert np.isnan(gini(np.array([1.0, 2.0, value])))
