"""Change between two scans: by its formula, in any unit, and against repeated scans of people who do not change."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datxai.analysis.change import VARIABILITY, VARIABILITY_OF_PARTS, limits_of, measure_change


@pytest.mark.parametrize(("region", "variability"), [("striatum_left", 7.5), ("putamen_posterior_right", 12.2)])
def test_of_repeated_scans_without_a_change_five_in_a_hundred_exceed_the_limits(region, variability):
    """Differences that are normal, and whose mean size is the published one."""
    rng, n = np.random.default_rng(1), 200_000
    differences = rng.normal(0, 1, n)
    differences *= variability / np.abs(differences).mean()  # in per cent of the mean of both
    first, second = 2 - differences / 100, 2 + differences / 100
    low, high = limits_of(region)
    percent = 100 * (second / first - 1)
    assert np.mean(percent < low) == pytest.approx(0.025, abs=0.002)
    assert np.mean(percent > high) == pytest.approx(0.025, abs=0.002)
    assert VARIABILITY.get(region.split("_")[0], VARIABILITY_OF_PARTS) == variability


def test_change_in_per_cent_and_a_year():
    now = {"putamen_left": 0.9, "putamen_right": 1.5, "striatum_left": 1.5, "putamen_anterior_left": None}
    before = {"putamen_left": 1.5, "putamen_right": 1.5, "striatum_left": 1.2, "putamen_anterior_left": 1.0, "x": -0.1}
    found = measure_change({**now, "x": 0.2}, before, 2.5)
    assert found.keys() == {"putamen_left", "putamen_right", "striatum_left", "x"}
    assert found["putamen_left"]["percent"] == pytest.approx(-40)
    assert found["putamen_left"]["percent_per_year"] == pytest.approx(-16)
    assert [change["exceeds"] for change in found.values()] == [True, False, True, None]
    assert (found["x"]["percent"], found["x"]["percent_per_year"]) == (None, None)
    undated = measure_change(now, before, None)["putamen_left"]
    assert (undated["percent"], undated["percent_per_year"]) == (pytest.approx(-40), None)


@given(st.floats(0.1, 5), st.floats(0.1, 5), st.floats(0.01, 100))
def test_change_is_the_same_in_any_unit(first, second, gain):
    here = measure_change({"striatum_left": second}, {"striatum_left": first}, 1.0)["striatum_left"]
    there = measure_change({"striatum_left": gain * second}, {"striatum_left": gain * first}, 1.0)["striatum_left"]
    assert there["percent"] == pytest.approx(here["percent"], rel=1e-6, abs=1e-6)
