"""Two independent cohorts side by side: what a classifier does in each, the difference with its interval, and a test.

`a` is what the classifier is known from, the internal test; `b` what it meets, the external one. Differences are b - a.
What is compared are numbers over the cases of each (`describe_share`, `describe_calls`, `describe_calibration`), which
may be handed on without a case.
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
Estimate = tuple[float | None, Sequence[float] | None, int]  # a value, its 95 % interval, the cases it is of


def compare_proportions(hits_a: int, n_a: int, hits_b: int, n_b: int) -> dict:
    """Difference of two independent proportions: ``difference``, ``difference_ci95`` and ``p``.

    The interval is Newcombe's, of two Wilson intervals (method 10, Statistics in Medicine 1998;17:873,
    doi:10.1002/(SICI)1097-0258(19980430)17:8<873::AID-SIM779>3.0.CO;2-I); the test Fisher's exact one, two-sided. None
    where one of the cohorts has no case.
    """
    from scipy.stats import fisher_exact

    if not n_a or not n_b:
        return dict(UNKNOWN)
    p: Any = fisher_exact([[hits_a, n_a - hits_a], [hits_b, n_b - hits_b]])[1]
    estimates = ((hits / n, wilson_interval(hits, n), n) for hits, n in ((hits_a, n_a), (hits_b, n_b)))
    return _subtract(*estimates) | {"p": float(p)}


def describe_share(holds: Sequence[bool]) -> dict:
    """How many cases there are, ``n``, and for how many of them something holds, ``hits``."""
    return {"hits": int(np.sum(holds)), "n": len(holds)}


def describe_calls(labels: ArrayLike, predicted: ArrayLike, scores: ArrayLike) -> dict:
    """What `compare_calls` takes of a classifier: ``tn, fp, fn, tp``, ``auc`` and ``auc_variance``.

    ``labels`` and ``predicted`` are 0 or 1, ``scores`` the higher, the more likely reduced; one per case. The variance
    is that of DeLong et al. 1988 (doi:10.2307/2531595), 0 where it is not known, with fewer than two cases of a label.
    """
    labels, scores = np.asarray(labels, int), np.asarray(scores, float)
    auc, _ = measure_auc(labels, scores, interval=False)
    counts = dict(zip(COUNTS, count_calls(labels, predicted)))
    return {**counts, "auc": auc, "auc_variance": _find_variance(labels, scores)}


def describe_calibration(labels: ArrayLike, margins: ArrayLike, temperature: float | None) -> dict[str, dict]:
    """What `compare_calibration` takes of a network: as predicted (``raw``) and, where there is one, with the
    temperature (``scaled``), ``brier`` and ``log_loss`` (nats) with ``n``, ``mean`` and ``variance`` over the cases,
    and ``ece`` (None without a case)."""
    labels, margins, found = np.asarray(labels), np.asarray(margins, float), {}
    for name, divisor in (("raw", 1.0), *([("scaled", temperature)] if temperature is not None else [])):
        scaled = margins / divisor
        found[name] = {measure: _describe_mean(values) for measure, values in _score_each(scaled, labels).items()}
        found[name]["ece"] = measure_reliability(probability(scaled), labels)["ece"] if len(labels) else None
    return found


def compare_auc(a: Estimate | None, b: Estimate | None, variance_a: float, variance_b: float) -> dict:
    """Difference of the areas under two independent ROC curves, as `compare_proportions` gives it.

    Variances add since the cohorts share no case; the test is z. Where one of them is zero, not known or that of a
    perfect curve, there is no test, and the distances to the limits of the intervals add in square.
    """
    from scipy.stats import norm

    compared = _subtract(a, b)
    if compared["difference"] is None or not (variance_a and variance_b):
        return compared
    difference, error = compared["difference"], math.sqrt(variance_a + variance_b)
    interval = [difference - Z95 * error, difference + Z95 * error]
    return {"difference": difference, "difference_ci95": interval, "p": float(2 * norm.sf(abs(difference) / error))}


def compare_means(a: Mapping, b: Mapping) -> dict:
    """Difference of the means of two independent samples, as `compare_proportions` gives it, by Welch's t test
    (Biometrika 1947;34:28). Each has ``n``, ``mean`` and ``variance``. None with fewer than two values each, and where
    neither varies."""
    from scipy.stats import t

    if min(a["n"], b["n"]) < 2 or not (a["variance"] or b["variance"]):
        return dict(UNKNOWN)
    parts = [side["variance"] / side["n"] for side in (a, b)]
    freedom = sum(parts) ** 2 / sum(part**2 / (side["n"] - 1) for part, side in zip(parts, (a, b)))
    difference, error = b["mean"] - a["mean"], math.sqrt(sum(parts))
    reach = error * float(t.ppf(0.975, freedom))
    return {
        "difference": difference,
        "difference_ci95": [difference - reach, difference + reach],
        "p": float(2 * t.sf(abs(difference) / error, freedom)),
    }


def compare_calls(a: Mapping | None, b: Mapping) -> list[dict]:
    """What a classifier does in both cohorts, of `describe_calls`, a row a measure; ``a`` may not be known.

    Returns
    -------
    rows with ``measure``; ``internal`` and ``external``, each with ``_low``, ``_high`` (95 %, see
    `datxai.analysis.classification.summarise`) and ``_n``, the cases it is of; ``difference``, ``difference_low``,
    ``difference_high``, ``p`` and ``test``. None: not defined, or not known.
    """
    rows = [
        compare_shares(measure, _count(a, counted), _count(b, counted)) for measure, counted in PROPORTIONS.items()
    ]
    balanced, areas = ([find(a), find(b)] for find in (_find_balance, _find_area))
    rows.insert(1, _row("balanced_accuracy", balanced, _subtract(*balanced), None))
    compared = UNKNOWN if a is None else compare_auc(areas[0], areas[1], a["auc_variance"], b["auc_variance"])
    return [*rows, _row("auc", areas, compared, "DeLong")]


def compare_calibration(a: Mapping | None, b: Mapping) -> list[dict]:
    """How well calibrated a network is in both cohorts, of `describe_calibration`; ``a`` may not be known.

    Rows as in `compare_calls`: Brier score, log loss (nats), with t intervals and Welch's test, and expected
    calibration error, for which there is neither.
    """
    rows = []
    for name, external in b.items():
        internal = (a or {}).get(name)
        for measure in ("brier", "log_loss"):
            one, other = None if internal is None else internal[measure], external[measure]
            compared = UNKNOWN if one is None else compare_means(one, other)
            rows.append(_row(f"{measure}_{name}", [_find_mean(one), _find_mean(other)], compared, "Welch"))
        eces = [None if side is None else (side["ece"], None, side["brier"]["n"]) for side in (internal, external)]
        rows.append(_row(f"ece_{name}", eces, UNKNOWN, None))
    return rows


def compare_shares(measure: str, a: Mapping | None, b: Mapping | None) -> dict:
    """A row, as in `compare_calls`, on the share of cases for which something holds, of `describe_share`."""
    compared = UNKNOWN if a is None or b is None else compare_proportions(a["hits"], a["n"], b["hits"], b["n"])
    return _row(measure, [_find_share(a), _find_share(b)], compared, "Fisher")


def _row(measure: str, estimates: Sequence[Estimate | None], compared: Mapping, test: str | None) -> dict:
    row: dict[str, Any] = {"measure": measure}
    for side, estimate in zip(("internal", "external"), estimates):
        value, interval, n = estimate or (None, None, None)
        low, high = interval or (None, None)
        row |= {side: value, f"{side}_low": low, f"{side}_high": high, f"{side}_n": n}
    low, high = compared["difference_ci95"] or (None, None)
    told = {"difference": compared["difference"], "difference_low": low, "difference_high": high, "p": compared["p"]}
    return row | told | {"test": test if compared["p"] is not None else None}


def _count(side: Mapping | None, counted: Sequence[str]) -> dict | None:
    """`describe_share` of the cases that are called rightly."""
    if side is None:
        return None
    return {"hits": sum(side[key] for key in counted if key in HITS), "n": sum(side[key] for key in counted)}


def _find_share(side: Mapping | None) -> Estimate | None:
    if side is None:
        return None
    hits, n = side["hits"], side["n"]
    return hits / n if n else None, wilson_interval(hits, n), n


def _find_balance(side: Mapping | None) -> Estimate | None:
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
    """A mean, its 95 % t interval, which begins at 0 where it would be below, and the number of values."""
    from scipy.stats import t

    if sample is None:
        return None
    n, mean, variance = sample["n"], sample["mean"], sample["variance"]
    if not variance:
        return mean, None, n
    reach = math.sqrt(variance / n) * float(t.ppf(0.975, n - 1))
    return mean, [max(0.0, mean - reach), mean + reach], n


def _find_variance(labels: np.ndarray, scores: np.ndarray) -> float:
    """DeLong's variance of an AUC: of the placements of each label among the other's scores; 0 if it is not known."""
    positive, negative = scores[labels == 1], scores[labels == 0]
    if min(len(positive), len(negative)) < 2:
        return 0.0
    placements = (_place_among(positive, negative), _place_among(negative, positive))
    return float(sum(values.var(ddof=1) / len(values) for values in placements))


def _place_among(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """For each value the share of the others that are lower; ties count half."""
    others = np.sort(others)
    return (np.searchsorted(others, values, "left") + np.searchsorted(others, values, "right")) / (2 * len(others))


def _subtract(a: Estimate | None, b: Estimate | None) -> dict:
    """The difference of two independent estimates given with intervals; the distances to the limits add in square."""
    if a is None or b is None or a[0] is None or b[0] is None:
        return dict(UNKNOWN)
    assert a[1] is not None and b[1] is not None
    value_a, value_b, (low_a, high_a), (low_b, high_b) = a[0], b[0], a[1], b[1]
    difference = value_b - value_a
    low = difference - math.hypot(value_b - low_b, high_a - value_a)
    high = difference + math.hypot(high_b - value_b, value_a - low_a)
    return {"difference": difference, "difference_ci95": [low, high], "p": None}


def _score_each(margins: np.ndarray, labels: ArrayLike) -> dict[str, np.ndarray]:
    """Squared error of the probability, and negative log likelihood, of each case."""
    labels = np.asarray(labels)
    return {
        "brier": (probability(margins) - labels) ** 2,
        "log_loss": np.logaddexp(0, np.where(labels == 1, -margins, margins)),
    }


def _describe_mean(values: np.ndarray) -> dict:
    """``n``, ``mean`` (None without a value) and ``variance`` of values: 0 where they are all the same, or one."""
    varies = len(values) > 1 and bool(np.ptp(values))
    variance = float(values.var(ddof=1)) if varies else 0.0
    return {"n": len(values), "mean": float(values.mean()) if len(values) else None, "variance": variance}
