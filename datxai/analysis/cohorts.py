"""Performance of a classifier in two independent cohorts: differences with their intervals, and tests.

`a` is the internal test cohort, `b` the external one; differences are b - a. The input consists of numbers over the
cases of each cohort (`describe_share`, `describe_calls`, `describe_calibration`), which can be shared without revealing
a single case.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from datxai.analysis.calibration import measure_reliability, probability
from datxai.analysis.classification import (
    Z95,
    count_calls,
    find_auc_interval,
    measure_auc,
    summarise_counts,
    wilson_interval,
)

UNKNOWN = {"difference": None, "difference_ci95": None, "p": None}
PROPORTIONS = {"accuracy": ("tn", "tp", "fp", "fn"), "sensitivity": ("tp", "fn"), "specificity": ("tn", "fp")}
COUNTS, HITS = ("tn", "fp", "fn", "tp"), ("tn", "tp")
Estimate = tuple[float | None, Sequence[float] | None, int]  # value, 95 % interval, number of cases


def compare_proportions(hits_a: int, n_a: int, hits_b: int, n_b: int) -> dict:
    """Difference of two independent proportions: ``difference``, ``difference_ci95`` and ``p``.

    The interval is Newcombe's, from two Wilson intervals (method 10, Statistics in Medicine 1998;17:873,
    doi:10.1002/(SICI)1097-0258(19980430)17:8<873::AID-SIM779>3.0.CO;2-I); the test is Fisher's exact test, two-sided.
    None if a cohort has no case.
    """
    from scipy.stats import fisher_exact

    if not n_a or not n_b:
        return dict(UNKNOWN)
    p: Any = fisher_exact([[hits_a, n_a - hits_a], [hits_b, n_b - hits_b]])[1]
    estimates = ((hits / n, wilson_interval(hits, n), n) for hits, n in ((hits_a, n_a), (hits_b, n_b)))
    return _subtract(*estimates) | {"p": float(p)}


def describe_share(holds: Sequence[bool]) -> dict:
    """The number of cases, ``n``, and of those for which a statement holds, ``hits``."""
    return {"hits": int(np.sum(holds)), "n": len(holds)}


def describe_calls(labels: ArrayLike, predicted: ArrayLike, scores: ArrayLike) -> dict:
    """The input of `compare_calls` for one cohort: ``tn, fp, fn, tp``, ``auc`` and ``auc_variance``.

    ``labels`` and ``predicted`` are 0 or 1; the higher the ``scores``, the more likely reduced; one per case. The
    variance is that of DeLong et al. 1988 (doi:10.2307/2531595); 0, if a label has fewer than two cases.
    """
    labels, scores = np.asarray(labels, int), np.asarray(scores, float)
    auc, _ = measure_auc(labels, scores, interval=False)
    counts = dict(zip(COUNTS, count_calls(labels, predicted)))
    return {**counts, "auc": auc, "auc_variance": _find_variance(labels, scores)}


def describe_calibration(labels: ArrayLike, margins: ArrayLike, temperature: float | None) -> dict[str, dict]:
    """The input of `compare_calibration` for one cohort: for probabilities as predicted (``raw``) and, if there is a
    temperature, ``scaled`` by it, ``brier`` and ``log_loss`` (nats), each with ``n``, ``mean`` and ``variance`` over
    the cases, and ``ece`` (None without cases)."""
    labels, margins, measures = np.asarray(labels), np.asarray(margins, float), {}
    for name, divisor in (("raw", 1.0), *([("scaled", temperature)] if temperature is not None else [])):
        scaled = margins / divisor
        measures[name] = {measure: _describe_mean(values) for measure, values in _score_each(scaled, labels).items()}
        measures[name]["ece"] = measure_reliability(probability(scaled), labels)["ece"] if len(labels) else None
    return measures


def compare_auc(a: Estimate | None, b: Estimate | None, variance_a: float, variance_b: float) -> dict:
    """Difference of the areas under two independent ROC curves, in the form of `compare_proportions`.

    Variances add since the cohorts share no case; the test is a z test. If a variance is 0, because it is unknown or
    the curve is perfect, there is no test, and the distances to the limits of the intervals add in quadrature.
    """
    from scipy.stats import norm

    compared = _subtract(a, b)
    if compared["difference"] is None or not (variance_a and variance_b):
        return compared
    difference, error = compared["difference"], math.sqrt(variance_a + variance_b)
    interval = [difference - Z95 * error, difference + Z95 * error]
    return {"difference": difference, "difference_ci95": interval, "p": float(2 * norm.sf(abs(difference) / error))}


def compare_means(a: Mapping, b: Mapping) -> dict:
    """Difference of the means of two independent samples, in the form of `compare_proportions`, by Welch's t test
    (Biometrika 1947;34:28). Each has ``n``, ``mean`` and ``variance``. None if a sample has fewer than two values, or
    if neither varies."""
    from scipy.stats import t

    if min(a["n"], b["n"]) < 2 or not (a["variance"] or b["variance"]):
        return dict(UNKNOWN)
    variances = [side["variance"] / side["n"] for side in (a, b)]
    freedom = sum(variances) ** 2 / sum(v**2 / (side["n"] - 1) for v, side in zip(variances, (a, b)))
    difference, error = b["mean"] - a["mean"], math.sqrt(sum(variances))
    reach = error * float(t.ppf(0.975, freedom))
    return {
        "difference": difference,
        "difference_ci95": [difference - reach, difference + reach],
        "p": float(2 * t.sf(abs(difference) / error, freedom)),
    }


def compare_calls(a: Mapping | None, b: Mapping) -> list[dict]:
    """Compare a classifier in both cohorts (`describe_calls`), one row per measure; ``a`` is None if unknown.

    Returns
    -------
    rows with ``measure``; ``internal`` and ``external``, each with ``_low``, ``_high`` (95 %, see
    `datxai.analysis.classification.summarise`) and ``_n``, its number of cases; ``difference``, ``difference_low``,
    ``difference_high``, ``p`` and ``test``. None: undefined or unknown.
    """
    rows = [
        compare_shares(measure, _count(a, counted), _count(b, counted)) for measure, counted in PROPORTIONS.items()
    ]
    balanced, areas = ([find(a), find(b)] for find in (_find_balanced_accuracy, _find_area))
    rows.insert(1, _row("balanced_accuracy", balanced, _subtract(*balanced), None))
    compared = UNKNOWN if a is None else compare_auc(areas[0], areas[1], a["auc_variance"], b["auc_variance"])
    return [*rows, _row("auc", areas, compared, "DeLong")]


def compare_calibration(a: Mapping | None, b: Mapping) -> list[dict]:
    """Compare the calibration of a network in both cohorts (`describe_calibration`); ``a`` is None if unknown.

    Rows as in `compare_calls`: Brier score and log loss (nats), with t intervals and Welch's test, and expected
    calibration error, for which there is neither.
    """
    rows = []
    for name, external in b.items():
        internal = (a or {}).get(name)
        for measure in ("brier", "log_loss"):
            first, second = None if internal is None else internal[measure], external[measure]
            compared = UNKNOWN if first is None else compare_means(first, second)
            rows.append(_row(f"{measure}_{name}", [_find_mean(first), _find_mean(second)], compared, "Welch"))
        eces = [None if side is None else (side["ece"], None, side["brier"]["n"]) for side in (internal, external)]
        rows.append(_row(f"ece_{name}", eces, UNKNOWN, None))
    return rows


def compare_shares(measure: str, a: Mapping | None, b: Mapping | None) -> dict:
    """A row as in `compare_calls` for a share of cases (`describe_share`)."""
    compared = UNKNOWN if a is None or b is None else compare_proportions(a["hits"], a["n"], b["hits"], b["n"])
    return _row(measure, [_find_share(a), _find_share(b)], compared, "Fisher")


def _row(measure: str, estimates: Sequence[Estimate | None], compared: Mapping, test: str | None) -> dict:
    row: dict[str, Any] = {"measure": measure}
    for side, estimate in zip(("internal", "external"), estimates):
        value, interval, n = estimate or (None, None, None)
        low, high = interval or (None, None)
        row |= {side: value, f"{side}_low": low, f"{side}_high": high, f"{side}_n": n}
    low, high = compared["difference_ci95"] or (None, None)
    row |= {"difference": compared["difference"], "difference_low": low, "difference_high": high, "p": compared["p"]}
    return row | {"test": test if compared["p"] is not None else None}


def _count(side: Mapping | None, counted: Sequence[str]) -> dict | None:
    """The share of correct calls, in the form of `describe_share`."""
    if side is None:
        return None
    return {"hits": sum(side[key] for key in counted if key in HITS), "n": sum(side[key] for key in counted)}


def _find_share(side: Mapping | None) -> Estimate | None:
    if side is None:
        return None
    hits, n = side["hits"], side["n"]
    return hits / n if n else None, wilson_interval(hits, n), n


def _find_balanced_accuracy(side: Mapping | None) -> Estimate | None:
    if side is None:
        return None
    summary = summarise_counts(*(side[name] for name in COUNTS))
    return summary["balanced_accuracy"], summary["balanced_accuracy_ci95"], summary["n"]


def _find_area(side: Mapping | None) -> Estimate | None:
    if side is None:
        return None
    tn, fp, fn, tp = (side[name] for name in COUNTS)
    interval = None if side["auc"] is None else find_auc_interval(side["auc"], tp + fn, tn + fp)
    return side["auc"], interval, tn + fp + fn + tp


def _find_mean(sample: Mapping | None) -> Estimate | None:
    """A mean, its 95 % t interval, cut off at 0, and the number of values."""
    from scipy.stats import t

    if sample is None:
        return None
    n, mean, variance = sample["n"], sample["mean"], sample["variance"]
    if not variance:
        return mean, None, n
    reach = math.sqrt(variance / n) * float(t.ppf(0.975, n - 1))
    return mean, [max(0.0, mean - reach), mean + reach], n


def _find_variance(labels: np.ndarray, scores: np.ndarray) -> float:
    """DeLong's variance of an AUC, from the placements of each label among the other's scores; 0 if it is unknown."""
    positive, negative = scores[labels == 1], scores[labels == 0]
    if min(len(positive), len(negative)) < 2:
        return 0.0
    placements = (_place_among(positive, negative), _place_among(negative, positive))
    return float(sum(values.var(ddof=1) / len(values) for values in placements))


def _place_among(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The share of the others below each value; ties count half."""
    others = np.sort(others)
    return (np.searchsorted(others, values, "left") + np.searchsorted(others, values, "right")) / (2 * len(others))


def _subtract(a: Estimate | None, b: Estimate | None) -> dict:
    """Difference of two independent estimates given with intervals; distances to the limits add in quadrature."""
    if a is None or b is None or a[0] is None or b[0] is None:
        return dict(UNKNOWN)
    assert a[1] is not None and b[1] is not None
    value_a, value_b, (low_a, high_a), (low_b, high_b) = a[0], b[0], a[1], b[1]
    difference = value_b - value_a
    low = difference - math.hypot(value_b - low_b, high_a - value_a)
    high = difference + math.hypot(high_b - value_b, value_a - low_a)
    return {"difference": difference, "difference_ci95": [low, high], "p": None}


def _score_each(margins: np.ndarray, labels: ArrayLike) -> dict[str, np.ndarray]:
    """Squared error of the probability and negative log likelihood of each case."""
    labels = np.asarray(labels)
    return {
        "brier": (probability(margins) - labels) ** 2,
        "log_loss": np.logaddexp(0, np.where(labels == 1, -margins, margins)),
    }


def _describe_mean(values: np.ndarray) -> dict:
    """``n``, ``mean`` (None without values) and ``variance`` (0 if there is one value, or all are equal)."""
    varies = len(values) > 1 and bool(np.ptp(values))
    variance = float(values.var(ddof=1)) if varies else 0.0
    return {"n": len(values), "mean": float(values.mean()) if len(values) else None, "variance": variance}
