"""The interval and z against the textbook's matrices, scipy, and what they promise: 5 % of further cases lie beyond."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from datxai.analysis.classification import FEATURES, tabulate_features
from datxai.analysis.normal_range import (
    MIN_CASES,
    NormalRange,
    derive_ratios,
    describe_range,
    fit_ranges,
    judge_measures,
    shift_of,
)

RNG = np.random.default_rng(3)
N = 40
AGES = RNG.uniform(40, 85, N)
SEXES = ["F", "M"] * (N // 2)
FEMALE = np.equal(SEXES, "F")
VALUES = 3.0 - 0.012 * AGES + 0.15 * FEMALE + RNG.normal(0, 0.2, N)
RANGE = NormalRange.fit(VALUES, AGES.tolist(), SEXES)


def predict(design, values, point):
    """Fit, standard error of prediction and degrees of freedom, by `numpy.linalg.lstsq`, with a QR of the design."""
    beta, (rss,), rank, _ = np.linalg.lstsq(design, values, rcond=None)
    leverage = np.linalg.norm(np.linalg.solve(np.linalg.qr(design).R.T, point)) ** 2
    freedom = len(values) - rank
    return point @ beta, np.sqrt(rss / freedom * (1 + leverage)), freedom


CASES = [  # age, sex, the columns of the design beside the constant, and the point there
    (25.0, "F", (AGES, FEMALE), (25.0, 1.0)),
    (71.5, "M", (AGES, FEMALE), (71.5, 0.0)),
    (60.0, None, (AGES,), (60.0,)),
    (60.0, "O", (AGES,), (60.0,)),
    (None, "F", (FEMALE,), (1.0,)),
    (None, None, (), ()),
]


@pytest.mark.parametrize(("age", "sex", "columns", "point"), CASES)
@pytest.mark.parametrize("value", [2.0, 2.31, 0.4])
def test_it_is_that_of_the_general_linear_model(age, sex, columns, point, value):
    design = np.column_stack([np.ones(N), *columns])
    centre, error, freedom = predict(design, VALUES, np.array([1.0, *point]))
    found = RANGE.expect(age, sex)
    assert (found.centre, found.scale) == pytest.approx((centre, error), rel=1e-9)
    assert found.median == found.centre
    limits = stats.t.interval(0.95, freedom, centre, error)
    assert found.limits == pytest.approx(limits, rel=1e-9)
    z, percentile = found.score(value)
    assert percentile == pytest.approx(100 * stats.t.cdf(value, freedom, centre, error), rel=1e-9)
    assert z == pytest.approx(stats.norm.ppf(stats.t.cdf(value, freedom, centre, error)), rel=1e-6)
    assert stats.norm.cdf(found.score(limits[0])[0]) == pytest.approx(0.025, rel=1e-9)
    assert found.n == N


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_of_a_logarithm_it_is_that_of_the_logarithm(shift):
    """Limits and median go back to the measure, z stays as it is."""
    plain = NormalRange.fit(np.log(VALUES + shift), AGES.tolist(), SEXES).expect(60.0, "F")
    found = NormalRange.fit(VALUES, AGES.tolist(), SEXES, shift).expect(60.0, "F")
    assert np.log(np.array([*found.limits, found.median]) + shift) == pytest.approx([*plain.limits, plain.median])
    assert found.score(0.7) == pytest.approx(plain.score(np.log(0.7 + shift)))
    assert found.score(-shift)[0] == found.score(-shift - 1)[0] < -30
    with_a_hole = NormalRange.fit([*VALUES, -shift], [*AGES, 60.0], [*SEXES, "F"], shift)
    assert with_a_hole.expect(60.0, "F") == found


@given(st.floats(0.01, 100))
def test_a_ratio_turned_over_is_as_far_off_on_the_other_side(gain):
    """As putamen / caudate is as well a ratio as caudate / putamen, whatever the unit of either."""
    here = NormalRange.fit(VALUES, AGES.tolist(), SEXES, 0.0).expect(60.0, "F").score(2.9)[0]
    there = NormalRange.fit(gain / VALUES, AGES.tolist(), SEXES, 0.0).expect(60.0, "F").score(gain / 2.9)[0]
    assert there == pytest.approx(-here, rel=1e-6)


def test_the_line_is_that_of_scipy():
    line = stats.linregress(AGES, VALUES)
    assert RANGE.expect(50.0, None).median == pytest.approx(line.intercept + line.slope * 50, rel=1e-9)


def test_values_far_off_have_a_finite_score_on_their_side():
    found = RANGE.expect(60.0, "F")
    low, high = found.score(-1e6), found.score(1e6)
    assert -40 < low[0] < -30 < 30 < high[0] < 40
    assert (low[1], high[1]) == pytest.approx((0, 100))
    flat = NormalRange.fit([2.0] * N, AGES.tolist(), SEXES).expect(None, None)
    assert flat.score(2.0)[0] == 0
    assert flat.score(1.0)[0] < -30
    json.dumps(found.describe(-1e6), allow_nan=False)


@pytest.mark.parametrize("n", [10, 26])
def test_beyond_196_lie_five_in_a_hundred_of_further_cases_however_few_the_range_rests_on(n):
    """With n = 10 a distance in standard deviations would be beyond in 9 %."""
    rng, beyond, rounds = np.random.default_rng(5), 0, 3000
    for _ in range(rounds):
        ages, sexes = rng.uniform(40, 85, n + 1), rng.permuted(["F", "M"] * n)[: n + 1]
        values = 3 - 0.012 * ages + 0.15 * (sexes == "F") + rng.normal(0, 0.2, n + 1)
        fitted = NormalRange.fit(values[1:], ages[1:].tolist(), sexes[1:].tolist())
        beyond += abs(fitted.expect(ages[0], sexes[0]).score(values[0])[0]) > 1.959964
    assert beyond / rounds == pytest.approx(0.05, abs=4 * np.sqrt(0.95 * 0.05 / rounds))


def test_cases_without_an_age_or_a_sex_count_where_none_is_asked_for():
    more = NormalRange.fit([9.0, *VALUES], [None, *AGES], [None, *SEXES])
    assert more.expect(60.0, "F") == RANGE.expect(60.0, "F")
    assert more.expect().median == pytest.approx(np.mean([9.0, *VALUES]))
    assert NormalRange.fit([None, *VALUES], [60.0, *AGES], ["F", *SEXES]).expect() == RANGE.expect()


def test_what_the_cases_do_not_determine_is_left_out():
    few = slice(MIN_CASES - 1)
    assert NormalRange.fit(VALUES[few], AGES[few].tolist(), SEXES[few]).expect() is None
    assert NormalRange.fit([], [], []).expect(60.0) is None
    one_age = NormalRange.fit(VALUES, [60.0] * N, SEXES)  # no line through it
    assert one_age.expect(60.0, None) == RANGE.expect()
    few_women = ["F"] * (MIN_CASES - 1) + ["M"] * (N - MIN_CASES + 1)
    assert NormalRange.fit(VALUES, AGES.tolist(), few_women).expect(60.0, "F") == RANGE.expect(60.0, None)
    ages = [*AGES[: MIN_CASES - 1], *[None] * (N - MIN_CASES + 1)]
    assert NormalRange.fit(VALUES, ages, SEXES).expect(60.0, "F") == RANGE.expect(None, "F")


def test_it_goes_through_json_and_names_no_single_case():
    text = json.dumps(RANGE.pack(), allow_nan=False)
    again = NormalRange.unpack(json.loads(text))
    assert again == RANGE
    assert again.expect(60.0, "F").describe(1.7) == RANGE.expect(60.0, "F").describe(1.7)
    assert not any(repr(float(value)) in text for value in [*AGES, *VALUES])


@given(st.floats(0.1, 10), st.floats(-5, 5), st.floats(20, 100), st.floats(-3, 8))
def test_z_is_the_same_in_any_unit(gain, offset, age, value):
    there = NormalRange.fit(gain * VALUES + offset, AGES.tolist(), SEXES).expect(age, "F")
    here = RANGE.expect(age, "F")
    assert there.score(gain * value + offset) == pytest.approx(here.score(value), rel=1e-6, abs=1e-6)
    assert there.limits == pytest.approx([gain * end + offset for end in here.limits], rel=1e-6, abs=1e-6)


def test_what_follows_from_binding_ratios_is_that_of_the_features():
    sbr = {"putamen_left": 1.2, "putamen_right": 1.8, "caudate_left": 1.5, "caudate_right": 2.0}
    (row,) = tabulate_features([sbr])
    features = dict(zip(FEATURES, row))
    found = derive_ratios(sbr)
    assert found["caudate_putamen_ratio_left"] == pytest.approx(features["caudate_putamen_ratio"])
    assert found["caudate_putamen_ratio_right"] == pytest.approx(2.0 / 1.8)
    assert found["putamen_asymmetry"] == pytest.approx(features["putamen_asymmetry"])
    turned = derive_ratios({**sbr, "putamen_left": 1.8, "putamen_right": 1.2})
    assert turned["putamen_asymmetry"] == pytest.approx(-found["putamen_asymmetry"])
    empty = derive_ratios({**sbr, "putamen_left": -0.1, "putamen_right": 0.1})
    assert (empty["caudate_putamen_ratio_left"], empty["putamen_asymmetry"]) == (None, None)
    assert [shift_of(name) for name in (*found, "putamen_anterior_left")] == [0.0, 0.0, None, 1.0]


NORMALS = [
    {"subject": i, "age": age, "sex": sex, "putamen": value, "caudate": 2 * value, "half": value if i > 4 else None}
    for i, (age, sex, value) in enumerate(zip([*AGES, None], [*SEXES, None], [*VALUES, 2.0]))
]


@pytest.mark.parametrize(
    ("age", "sex", "said"),
    [
        (67.0, "F", "40 normal cases of the run, for a woman of 67 years."),
        (67.0, None, "40 normal cases of the run, for a person of 67 years."),
        (None, None, "41 normal cases of the run, for a person of any age."),
        (91.0, "M", "for a man of 91 years. Their ages are 40 to 84 years, so that this is an extrapolation."),
    ],
)
def test_several_measures_and_the_sentence_about_them(age, sex, said):
    ranges = fit_ranges(NORMALS)
    found = judge_measures(ranges, {"putamen": 2.0, "caudate": 4.0, "half": None, "new": 1.0}, age, sex)
    sexes, shift = [case["sex"] for case in NORMALS], shift_of("putamen")
    own = NormalRange.fit([case["caudate"] for case in NORMALS], [case["age"] for case in NORMALS], sexes, shift)
    assert found["caudate"] == own.expect(age, sex).describe(4.0)
    assert found["half"]["n"] == found["putamen"]["n"] - 5
    assert (found["half"]["z"], found["new"]) == (None, None)
    assert describe_range(ranges, found, age, sex).endswith(said)
    assert describe_range({}, judge_measures({}, {"putamen": 2.0}, age, sex), age, sex) == ""


def test_curves_follow_the_interval_over_all_ages_and_to_that_of_the_scan():
    curve = RANGE.trace(95.0, "F")
    assert (curve["age"][0], curve["age"][-1], curve["sex"]) == (RANGE.ages[0], 95.0, "F")
    for i in (0, 20, 49):
        told = RANGE.expect(curve["age"][i], "F")
        assert (curve["low"][i], curve["high"][i], curve["median"][i]) == pytest.approx((*told.limits, told.median))
    assert RANGE.trace(None, "O")["sex"] is None
    assert NormalRange.fit(VALUES, [None] * N, SEXES).trace(60.0, "F") is None
