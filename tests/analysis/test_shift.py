"""Scans unlike the training cases: distances against SciPy's, limits against the share they promise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import mahalanobis

from datxai.analysis import shift
from datxai.analysis.shift import Ellipsoid, Shift, Subspace, conformal_limit, fit_shift
from datxai.errors import InputError

SIZES = {
    "noise": 1, "sharpness": 5, "field of view": 1, "reference region": 2, "binding ratios": 6, "uptake": 60,
    "activations": 8,
}  # fmt: skip


def draw(rng, n, scale=1.0):
    """Features of n cases of one kind, correlated within each feature; all of them show the whole brain."""
    mixing = {name: np.random.default_rng(size).standard_normal((size, size)) for name, size in SIZES.items()}
    drawn = {name: scale * rng.standard_normal((n, size)) @ mixing[name] for name, size in SIZES.items()}
    return {**drawn, "field of view": np.ones((n, 1))}


@pytest.fixture(scope="module")
def fitted():
    rng = np.random.default_rng(1)
    return fit_shift(draw(rng, 150), draw(rng, 25))


def test_a_distance_is_that_of_mahalanobis():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4000, 4)) @ (np.eye(4) + 0.3 * rng.standard_normal((4, 4))) + [3, -1, 0, 100]
    case = x.mean(axis=0) + np.array([1.0, 2.0, -1.0, 0.5])
    expected = mahalanobis(case, x.mean(axis=0), np.linalg.inv(np.cov(x.T)))
    found = shift.fit_ellipsoid(x).measure(case[None])
    assert found == pytest.approx([expected], rel=0.01)  # shrinkage is slight with so many cases


def test_the_covariance_is_that_of_ledoit_and_wolf():
    """Their formula, written out: shrunk towards a multiple of the identity."""
    rng = np.random.default_rng(2)
    x = rng.standard_normal((40, 6)) @ rng.standard_normal((6, 6))
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    sample = z.T @ z / len(z)
    target = np.trace(sample) / 6 * np.eye(6)
    noise = sum(((row[:, None] * row - sample) ** 2).sum() for row in z) / len(z) ** 2
    weight = min(1.0, noise / ((sample - target) ** 2).sum())
    precision = np.linalg.inv(weight * target + (1 - weight) * sample)
    case = rng.standard_normal(6)
    expected = mahalanobis((x.mean(axis=0) + case) / x.std(axis=0), x.mean(axis=0) / x.std(axis=0), precision)
    found = shift.fit_ellipsoid(x).measure((x.mean(axis=0) + case)[None])
    assert found == pytest.approx([expected], rel=1e-6)


def test_distances_of_a_gaussian_are_chi():
    rng = np.random.default_rng(4)
    squared = shift.fit_ellipsoid(rng.standard_normal((5000, 3))).measure(rng.standard_normal((20000, 3))) ** 2
    for level in (0.5, 0.9, 0.99):
        assert (squared <= stats.chi2.ppf(level, 3)).mean() == pytest.approx(level, abs=0.02)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(1e-3, 1e3), min_size=4, max_size=4),
    st.lists(st.floats(-100, 100), min_size=4, max_size=4),
    st.booleans(),
)
def test_units_of_a_feature_change_no_distance(factors, offsets, turned):
    """Scaled, shifted, and of the other sign: nothing that is compared changes."""
    rng = np.random.default_rng(6)
    x, cases = rng.standard_normal((50, 4)) @ rng.standard_normal((4, 4)), rng.standard_normal((5, 4))
    factors = np.array(factors) * (-1 if turned else 1)
    expected = shift.fit_ellipsoid(x).measure(cases)
    found = shift.fit_ellipsoid(x * factors + offsets).measure(cases * factors + offsets)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.floats(1e-2, 1e2), st.floats(-50, 50), st.integers(0, 1000))
def test_a_common_unit_and_a_turn_of_the_axes_change_no_pattern(factor, offset, seed):
    rng = np.random.default_rng(7)
    x, cases = rng.standard_normal((60, 20)) * np.arange(1, 21), 5 * rng.standard_normal((4, 20))
    turn = stats.ortho_group.rvs(20, random_state=seed)
    expected = shift.fit_pattern(x).measure(cases)
    found = shift.fit_pattern(factor * x @ turn + offset).measure(factor * cases @ turn + offset)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(
        shift.fit_subspace(factor * x + offset).measure(factor * cases + offset),
        shift.fit_subspace(x).measure(cases), rtol=1e-5,
    )  # fmt: skip


def test_what_components_leave_is_a_residual_of_least_squares():
    rng = np.random.default_rng(8)
    x = rng.standard_normal((80, 30)) * np.linspace(5, 0.5, 30)
    case = 3 * rng.standard_normal(30)
    fit = shift.fit_subspace(x)
    assert fit.axes.shape == (shift.AXES, 30)
    weights, *_ = np.linalg.lstsq(fit.axes.T, case - x.mean(axis=0), rcond=None)
    left = np.abs(case - x.mean(axis=0) - fit.axes.T @ weights) / fit.spread
    assert fit.measure(case[None]) == pytest.approx([left.max()])


def test_a_feature_that_never_varies_is_left_out_unless_a_spread_is_given():
    rng = np.random.default_rng(9)
    x = np.column_stack([rng.standard_normal(50), np.full(50, 7.0)])
    at = np.array([[x[:, 0].mean(), 100.0]])
    assert shift.fit_ellipsoid(x).measure(at) == pytest.approx([0.0])
    assert shift.fit_ellipsoid(np.full((50, 1), 1.0)).measure(np.array([[0.5]])) == pytest.approx([0.0])
    found = shift.fit_ellipsoid(np.ones((50, 1)), 0.01).measure(np.array([[0.97]]))
    assert found[0] > 3  # the variance of nothing is none, shrunk or not


@pytest.mark.parametrize(("n", "level", "rank"), [(19, 0.05, 19), (99, 0.05, 95), (100, 0.05, 96), (9, 0.1, 9)])
def test_the_conformal_limit_is_a_score(n, level, rank):
    assert conformal_limit(np.arange(1.0, n + 1)[::-1], level) == rank


def test_with_too_few_scores_there_is_no_limit():
    assert conformal_limit(np.arange(18.0)) == np.inf


def test_of_cases_like_the_training_cases_no_more_are_marked_than_promised():
    """200 fresh cases of each of 12 cohorts: 2400 in all, of which 5 % are promised; 6.5 % is three standard errors."""
    marked = []
    for seed in range(12):
        rng = np.random.default_rng(100 + seed)
        fit = fit_shift(draw(rng, 120), draw(rng, 25))
        marked += [row["marked"] for row in fit.tabulate(draw(rng, 200))]
    assert 0.015 < np.mean(marked) < 0.065


def test_each_measure_sees_what_is_its_own(fitted):
    rng = np.random.default_rng(11)
    axes = fitted.measures["local uptake"].axes
    aside = np.eye(SIZES["uptake"])[0] - axes[:, 0] @ axes  # what no component holds
    for name, (feature, _) in shift.MEASURES.items():
        case = {key: x[0] for key, x in draw(rng, 1, 0.1).items()}
        assert not fitted.judge(case)["marked"]
        away = {"pattern of uptake": axes[0], "local uptake": aside}.get(name, np.eye(len(case[feature]))[0])
        found = fitted.judge({**case, feature: case[feature] - 1000 * away})
        assert found["marked"] and [key for key, row in found["measures"].items() if row["marked"]] == [name]
        assert found["measures"][name]["percentile"] == 100


def test_what_is_no_number_is_like_nothing(fitted):
    case = {key: x[0] for key, x in draw(np.random.default_rng(12), 1, 0.1).items()} | {"noise": np.array([np.nan])}
    assert fitted.judge(case)["marked"] and fitted.judge(case)["measures"]["noise"]["marked"]
    assert fitted.tabulate({key: x[None] for key, x in case.items()})[0]["marked"]


def test_a_case_that_has_no_activations_is_judged_by_the_rest(fitted):
    case = {key: x[0] for key, x in draw(np.random.default_rng(12), 1).items() if key != "activations"}
    assert "activations" not in fitted.judge(case)["measures"]


def test_a_feature_of_another_length_is_refused(fitted):
    with pytest.raises(InputError, match="noise has 3 values in the scan and 1 in the run"):
        fitted.judge({"noise": np.zeros(3)})


def test_activations_that_fit_the_training_cases_alone_do_not_mark_all_others():
    """A network that has learnt its training cases by heart: others lie three times as far out."""
    rng = np.random.default_rng(13)
    training, validation, fresh = draw(rng, 150), draw(rng, 40), draw(rng, 300)
    for own in (validation, fresh):
        own["activations"] = 3 * own["activations"]
    rate = np.mean([row["marked"] for row in fit_shift(training, validation).tabulate(fresh)])
    assert rate < 0.1
    none = {name: x[:0] for name, x in validation.items()}
    assert np.mean([row["marked"] for row in fit_shift(training, none).tabulate(fresh)]) > 0.5


def test_scans_of_one_person_are_held_out_together():
    folds = shift._draw_folds(np.array(["a", "b", "a", "c", "d", "e", "f", "b"]))
    assert folds[0] == folds[2] and folds[1] == folds[7] and len(np.unique(folds)) == shift.FOLDS


def test_what_is_packed_comes_back(fitted):
    tested = fitted.tabulate(draw(np.random.default_rng(14), 60))
    whole = fitted.with_tested(tested)
    arrays, about = whole.pack()
    assert all(array.dtype == np.float32 for array in arrays.values())
    again = Shift.unpack(arrays, about)
    case = {key: x[0] for key, x in draw(np.random.default_rng(15), 1).items()}
    before, after = whole.judge(case), again.judge(case)
    assert before["own"] == after["own"] and before["marked"] == after["marked"]
    for name, row in before["measures"].items():
        assert after["measures"][name]["value"] == pytest.approx(row["value"], rel=1e-3, abs=1e-4)
    interval = stats.binomtest(sum(row["marked"] for row in tested), 60).proportion_ci(method="wilson")
    assert after["own"]["ci95"] == pytest.approx([*interval])
    summary = again.summarise(tested)
    assert summary["judged"] and summary["n"] == 60
    for name, row in summary["measures"].items():
        assert row["marked"] == sum(case[name] > again.limits[name] for case in tested)


def test_an_earlier_version_has_measured_texture_otherwise(fitted):
    """In the periods of MNI space: its noise and sharpness are not held against a scan's, the rest is."""
    arrays, about = fitted.pack()
    del about["periods"]
    before = Shift.unpack(arrays, about)
    assert {*fitted.measures} - {*before.measures} == {"noise", "sharpness"} == {*fitted.limits} - {*before.limits}
    case = {key: x[0] for key, x in draw(np.random.default_rng(15), 1).items()}
    assert before.judge(case)["measures"].keys() == before.measures.keys()


def test_no_scan_of_the_training_set_is_in_what_is_kept(fitted):
    """Arrays grow with the number of features, not with that of cases."""
    rng = np.random.default_rng(16)
    more, _ = fit_shift(draw(rng, 300), draw(rng, 25)).pack()
    arrays, _ = fitted.pack()
    assert {name: array.shape for name, array in arrays.items()} == {name: array.shape for name, array in more.items()}


@pytest.mark.parametrize("fault", ["shape", "missing", "name", "about"])
def test_what_is_no_shift_is_refused(fitted, fault):
    arrays, about = fitted.pack()
    if fault == "shape":
        arrays["noise/whitening"] = np.zeros((2, 7), np.float32)
    elif fault == "missing":
        del arrays["sharpness/mean"]
    elif fault == "name":
        about["limits"]["weather"] = 1.0
    else:
        about = None
    with pytest.raises((KeyError, TypeError, ValueError, AttributeError)):
        Shift.unpack(arrays, about)


def test_a_run_without_a_judgement_says_nothing():
    empty = Shift.unpack(*Shift({}, {}, {}, "too few").pack())
    assert empty.judge({"noise": np.zeros(1)}) is None
    assert empty.summarise([]) == {"judged": False, "note": "too few", "level": shift.LEVEL, "measures": {}}


def test_the_two_kinds_of_measure():
    plane = Subspace(np.zeros(3), np.eye(3)[:2], np.array([1.0, 1.0, 0.5]))
    assert plane.measure(np.array([[9.0, -9.0, 2.0]])) == pytest.approx([4.0])
    ball = Ellipsoid(np.ones(2), np.diag([1.0, 0.5]))
    assert ball.measure(np.array([[4.0, 9.0]])) == pytest.approx([5.0])
