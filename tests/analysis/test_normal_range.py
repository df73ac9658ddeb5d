"""The interval against the textbook's matrices, scipy, and what it promises: 95 % of further cases lie within."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from datxai.analysis.normal_range import (
    MIN_CASES,
    describe_range,
    expect_ratios,
    fit_line,
    fit_normal_range,
    fit_ranges,
)

RNG = np.random.default_rng(3)
AGES = RNG.uniform(40, 85, 30)
VALUES = 3.0 - 0.012 * AGES + RNG.normal(0, 0.2, 30)


@pytest.mark.parametrize("age", [25.0, 62.0, 85.0])
def test_it_is_the_interval_of_the_general_linear_model(age):
    """y0 ± t sqrt(s² (1 + x0' (X'X)^-1 x0)), worked out with the design matrix instead of sums."""
    design = np.column_stack([np.ones(30), AGES])
    inverse = np.linalg.inv(design.T @ design)
    beta = inverse @ design.T @ VALUES
    variance = ((VALUES - design @ beta) ** 2).sum() / 28
    point = np.array([1.0, age])
    reach = stats.t.ppf(0.975, 28) * np.sqrt(variance * (1 + point @ inverse @ point))
    found = fit_normal_range(VALUES, AGES, age)
    assert found["median"] == pytest.approx(point @ beta, rel=1e-10)
    assert [found["low"], found["high"]] == pytest.approx([point @ beta - reach, point @ beta + reach], rel=1e-10)
    line = stats.linregress(AGES, VALUES)
    assert found["median"] == pytest.approx(line.intercept + line.slope * age, rel=1e-10)


def test_without_an_age_it_is_that_of_the_mean():
    found = fit_normal_range(VALUES, AGES)
    limits = stats.t.interval(0.95, 29, VALUES.mean(), VALUES.std(ddof=1) * np.sqrt(1 + 1 / 30))
    assert [found["low"], found["high"]] == pytest.approx(limits, rel=1e-10)
    assert fit_normal_range(VALUES, [60.0] * 30, 60.0) == pytest.approx(found)  # one age: no line through it


def test_it_holds_one_more_case_in_nineteen_of_twenty():
    rng, held, rounds = np.random.default_rng(5), 0, 2000
    for _ in range(rounds):
        ages = rng.uniform(40, 85, 12)
        values = 3 - 0.012 * ages + rng.normal(0, 0.2, 12)
        found = fit_normal_range(values, ages, 80.0)
        held += found["low"] <= 3 - 0.012 * 80 + rng.normal(0, 0.2) <= found["high"]
    assert held / rounds == pytest.approx(0.95, abs=4 * np.sqrt(0.95 * 0.05 / rounds))


def test_cases_without_an_age_count_where_none_is_asked_for():
    ages = [None, *AGES]
    with_one_more = fit_normal_range([9.0, *VALUES], ages, 60.0)
    assert with_one_more == fit_normal_range(VALUES, AGES, 60.0)
    assert fit_normal_range([9.0, *VALUES], ages)["median"] == pytest.approx(np.mean([9.0, *VALUES]))


def test_too_few_cases_have_no_range():
    assert fit_normal_range(VALUES[: MIN_CASES - 1], AGES[: MIN_CASES - 1], 60.0) is None
    assert fit_normal_range([], []) is None
    assert fit_normal_range(VALUES[:MIN_CASES], AGES[:MIN_CASES], 60.0) is not None


@pytest.mark.parametrize(
    ("age", "said"),
    [(67.0, "30 normal cases of the run at 67 years."), (None, "31 normal cases of the run regardless")],
)
def test_several_ratios_and_the_sentence_about_them(age, said):
    normals = [{"age": a, "putamen": v, "caudate": 2 * v} for a, v in zip([*AGES, None], [*VALUES, 2.0])]
    found = expect_ratios(fit_ranges(normals, ["putamen", "caudate"]), age)
    assert found["putamen"] == fit_normal_range([*VALUES, 2.0], [*AGES, None], age)
    assert found["caudate"]["high"] == pytest.approx(2 * found["putamen"]["high"])
    assert said in describe_range(found, age)
    assert describe_range(expect_ratios(fit_ranges([], ["putamen"]), age), age) == ""
    beyond, within = ({"putamen": fit_line([1.0] * 3, ages)} for ages in ([70.0, None, 90.0], [60.0, 80.0, 70.0]))
    assert ("is an extrapolation" in describe_range(found, age, beyond)) == (age is not None)
    assert "extrapolation" not in describe_range(found, age, within)


@given(st.floats(0.1, 10), st.floats(-5, 5), st.floats(20, 100))
def test_it_follows_the_scale_of_the_values(gain, offset, age):
    here, there = fit_normal_range(VALUES, AGES, age), fit_normal_range(gain * VALUES + offset, AGES, age)
    for name in ("low", "median", "high"):
        assert there[name] == pytest.approx(gain * here[name] + offset, rel=1e-6, abs=1e-6)
