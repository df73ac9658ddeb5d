"""Mass, rank and pointing against counting by hand and against random tie-breaking."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datxai.metrics import METRICS
from datxai.metrics.localisation import mass, point, rank

MASK = np.zeros((4, 3, 2), bool)
MASK[:2, 0] = True  # four voxels


def volume(**voxels):
    data = np.zeros((4, 3, 2))
    for name, value in voxels.items():
        data[tuple(int(digit) for digit in name[1:])] = value
    return data


def test_mass_is_the_share_of_what_is_positive():
    data = volume(v000=3.0, v100=-5.0, v321=1.0, v320=-7.0)
    assert mass(data, MASK) == pytest.approx(3 / 4)
    assert mass(data, ~MASK) == pytest.approx(1 / 4)
    assert np.isnan(mass(-np.abs(data), MASK)) and np.isnan(mass(data, np.zeros_like(MASK)))


def test_rank_counts_the_hottest_voxels():
    data = np.arange(24.0).reshape(4, 3, 2)
    assert rank(data, MASK) == 0 and rank(-data, MASK) == pytest.approx(2 / 4)  # 0 to 3, of which 2 and 3 are not in it
    assert rank(MASK.astype(float), MASK) == 1
    assert np.isnan(rank(np.ones((4, 3, 2)), MASK)) and np.isnan(rank(data, np.zeros_like(MASK)))


@given(st.lists(st.integers(0, 3), min_size=24, max_size=24).filter(lambda v: len(set(v)) > 1), st.integers(1, 23))
def test_ties_count_with_the_chance_of_a_random_choice(values, k):
    data, mask = np.array(values, float), np.arange(24) < k
    rng = np.random.default_rng(0)
    drawn = [mask[np.lexsort((rng.random(24), -data))[:k]].mean() for _ in range(400)]
    assert rank(data, mask) == pytest.approx(np.mean(drawn), abs=4 * np.std(drawn) / 20 + 1e-9)


def test_pointing_allows_the_tolerance_in_mm_and_no_more():
    spacing = (2.0, 3.0, 4.0)
    assert point(volume(v000=1.0), MASK, spacing, 0.0) == 1
    assert point(volume(v210=1.0), MASK, spacing, np.sqrt(13.0)) == 1  # one step along x and one along y
    assert point(volume(v210=1.0), MASK, spacing, 3.6) == 0
    assert point(volume(v320=-9.0, v000=1.0), MASK, spacing, 0.0) == 1, "the sign counts"
    assert point(volume(v000=1.0, v320=1.0, v321=1.0), MASK, spacing, 0.0) == pytest.approx(1 / 3)
    assert np.isnan(point(np.zeros((4, 3, 2)), MASK, spacing))


def test_a_case_is_measured_in_every_region_and_in_the_truth(make_case):
    truth = np.zeros((6, 5, 4), bool)
    truth[0, 0, 0] = True
    relevance = truth + 0.0
    for name in ("relevance_mass", "relevance_rank", "pointing_game"):
        found = METRICS[name](make_case(relevance, truth=truth))
        assert found.keys() == {"brain", "striatum", "truth"} and found["truth"] == 1
        assert METRICS[name](make_case(relevance)).keys() == {"brain", "striatum"}
    assert METRICS["relevance_mass"](make_case(relevance))["striatum"] == 0
    assert METRICS["pointing_game"](make_case(relevance))["striatum"] == 1, "one voxel of 4 mm away"
