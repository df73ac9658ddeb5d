"""The level of a head is the median of what is brighter than a fraction of it."""

import numpy as np
import pytest

from datxai.imaging.head import EDGE, find_bright, measure_level


@pytest.mark.parametrize("n", [999, 1000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_level_is_the_median_of_what_is_brighter_than_a_fraction_of_it(n, dtype):
    rng = np.random.default_rng(n)
    air, head = rng.normal(0, 0.01, 3 * n), rng.normal(1, 0.1, n)
    data = rng.permutation(np.concatenate([air, head])).astype(dtype)
    level = measure_level(data)
    assert level == float(np.median(data[data > EDGE * level]))
    assert level == pytest.approx(np.median(head), abs=0.02)
    assert find_bright(data).sum() == pytest.approx(n, rel=0.01)


def test_hot_spots_change_the_level_little():
    data = np.concatenate([np.zeros(5000), np.random.default_rng(0).normal(1, 0.1, 5000)]).astype(np.float32)
    hot = data.copy()
    hot[-50:] = 100.0
    assert measure_level(hot) == pytest.approx(measure_level(data), rel=0.01)


def test_nothing_bright_has_no_level():
    assert measure_level(np.zeros((4, 4, 4), np.float32)) == np.inf
