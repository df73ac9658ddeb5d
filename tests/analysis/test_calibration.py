import numpy as np
import pytest
from scipy.special import expit, log_softmax

from datxai.analysis.calibration import (
    calibrate,
    choose_uncertain,
    fit_temperature,
    measure_reliability,
    measure_uncertain,
    probability,
    score,
)
from datxai.analysis.classification import wilson_interval
from datxai.pages.charts import plot_reliability

ROUNDING = 1e-12


def draw(n, temperature, seed=0):
    """Margins that are calibrated once divided by ``temperature``, and labels."""
    rng = np.random.default_rng(seed)
    margins = rng.normal(0, 3, n)
    labels = (rng.random(n) < expit(margins / temperature)).astype(int)
    return margins, labels


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5, 8.0])
def test_a_known_temperature_is_found(temperature):
    margins, labels = draw(200_000, temperature)
    found = fit_temperature(margins, labels)
    assert found["determined"]
    assert found["temperature"] == pytest.approx(temperature, rel=0.03)


def test_the_temperature_is_where_the_likelihood_of_a_logistic_regression_is_highest():
    from sklearn.linear_model import LogisticRegression

    margins, labels = draw(60, 2.0, seed=3)
    model = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10)  # its slope is 1 / temperature
    slope = model.fit(margins[:, None], labels).coef_.item()
    assert fit_temperature(margins, labels)["temperature"] == pytest.approx(1 / slope, rel=1e-4)


def test_temperature_scales_inversely_with_the_margins():
    margins, labels = draw(80, 1.0, seed=1)
    one, ten = (fit_temperature(scale * margins, labels)["temperature"] for scale in (1, 10))
    assert ten == pytest.approx(10 * one, rel=1e-6)


@pytest.mark.parametrize(
    ("margins", "labels", "word"),
    [([-1, -2, 3, 4], [0, 0, 1, 1], "decided correctly"), ([-1, 2, 3], [1, 1, 1], "one class"), ([], [], "one class")],
)
def test_without_a_highest_likelihood_probabilities_stay(margins, labels, word):
    found = fit_temperature(margins, labels)
    assert found["temperature"] == 1
    assert not found["determined"]
    assert word in found["note"]


def test_a_network_that_is_worse_than_chance_ends_at_the_bound_and_is_named():
    found = fit_temperature([-3, -2, 2, 3, 1], [1, 1, 0, 0, 1])
    assert found["temperature"] == pytest.approx(20, rel=1e-2)
    assert "beyond" in found["note"]
    assert found["errors"] == 4


def test_likelihood_and_brier_score_agree_with_sklearn_and_with_the_softmax():
    from sklearn.metrics import brier_score_loss, log_loss

    logits = np.random.default_rng(0).normal(0, 4, (50, 2))
    labels = np.random.default_rng(1).integers(0, 2, 50)
    margins = logits[:, 1] - logits[:, 0]
    found = score(margins, labels)
    assert found["nll"] == pytest.approx(log_loss(labels, probability(margins)), abs=ROUNDING)
    assert found["nll"] == pytest.approx(-log_softmax(logits, axis=1)[range(50), labels].mean(), abs=ROUNDING)
    assert found["brier"] == pytest.approx(brier_score_loss(labels, probability(margins)), abs=ROUNDING)


def test_a_certain_error_costs_its_margin_not_infinity():
    assert score([2000.0], [0])["nll"] == 2000


def test_calibration_error_by_hand():
    found = measure_reliability([0.12, 0.18, 0.91, 0.95, 0.99, 1.0], [0, 1, 1, 1, 0, 1])
    first, last = found["bins"]
    assert (first["low"], first["n"], last["high"], last["n"]) == (0.1, 2, 1.0, 4)
    assert first["probability"] == pytest.approx(0.15)
    assert (first["reduced"], last["reduced"]) == (0.5, 0.75)
    assert last["reduced_ci95"] == wilson_interval(3, 4)
    assert found["ece"] == pytest.approx(2 / 6 * 0.35 + 4 / 6 * (0.9625 - 0.75), abs=ROUNDING)


def test_bins_agree_with_sklearn():
    from sklearn.calibration import calibration_curve

    margins, labels = draw(400, 0.5)
    p = probability(margins)
    bins = measure_reliability(p, labels, 7)["bins"]
    shares, means = calibration_curve(labels, p, n_bins=7)
    assert [row["reduced"] for row in bins] == pytest.approx(shares)
    assert [row["probability"] for row in bins] == pytest.approx(means)
    assert sum(row["n"] for row in bins) == 400


def test_the_error_to_expect_of_a_calibrated_classifier_is_that_of_drawn_labels():
    margins, _ = draw(60, 1.0)
    p = probability(margins)
    rng = np.random.default_rng(5)
    drawn = [measure_reliability(p, rng.random(60) < p)["ece"] for _ in range(40)]
    assert measure_reliability(p, np.ones(60))["ece_if_calibrated"] == pytest.approx(
        np.mean(drawn), abs=3 * np.std(drawn) / np.sqrt(40)
    )


def test_scaling_improves_what_it_was_fitted_for_and_moves_no_decision():
    validation, test = draw(2000, 3.0, seed=1), draw(2000, 3.0, seed=2)
    found = calibrate(fit_temperature(*validation), *test)
    for name in ("nll", "brier", "ece"):
        assert found["scaled"][name] < found["raw"][name]
    before, after = (sum(row["n"] for row in found[name]["bins"] if row["low"] >= 0.5) for name in ("raw", "scaled"))
    assert before == after == (test[0] > 0).sum()


@pytest.mark.parametrize("n", [1, 7, 20, 60])
def test_the_uncertain_interval_holds_its_share(n):
    p = np.random.default_rng(n).random(n)
    half = choose_uncertain(p, 0.05)
    inside = (np.abs(p - 0.5) <= half).sum()
    assert inside == -(-n * 5 // 100)


def test_uncertain_cases_by_hand():
    uncertain = [True, True, False, False, False, False]
    wrong = [True, False, True, False, False, False]
    found = measure_uncertain(uncertain, wrong)
    assert (found["rate"], found["caught"], found["accuracy"]) == (2 / 6, 1 / 2, 3 / 4)
    assert found["rate_of"] == [2, 6]
    assert found["caught_ci95"] == wilson_interval(1, 2)
    none = measure_uncertain([True], [False])
    assert (none["caught"], none["accuracy"]) == (None, None)


@pytest.mark.parametrize("validation", [([-1.0, 2.0], [0, 1]), ([-1.0, 2.0, -1.0], [0, 1, 1])])
def test_the_reliability_figure_shows_every_bin_and_its_cases(validation):
    found = calibrate(fit_temperature(*validation), *draw(150, 1.0))
    figure = plot_reliability(found)
    figure.draw_without_rendering()
    shown = ["raw", "scaled"] if found["determined"] else ["raw"]
    above, below = figure.axes[: len(shown)], figure.axes[len(shown) :]
    for name, points, bars in zip(shown, above, below, strict=True):
        rows = found[name]["bins"]
        assert points.lines[1].get_xydata().tolist() == [[row["probability"], row["reduced"]] for row in rows]
        assert [bar.get_height() for bar in bars.patches] == [row["n"] for row in rows]
        assert [text.get_text() for text in bars.texts] == [str(row["n"]) for row in rows]
