"""Two independent cohorts side by side: what a classifier does in each, the difference with its interval, and a test.

`a` is what the classifier is known from, the internal test; `b` what it meets, the external one. Differences are b - a.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from datxai.analysis.calibration import measure_reliability, probability
from datxai.analysis.classification import Z95, measure_auc, summarise, wilson_interval

UNKNOWN = {"difference": None, "difference_ci95": None, "p": None}
PROPORTIONS = {"accuracy": ("tn", "tp", "fp", "fn"), "sensitivity": ("tp", "fn"), "specificity": ("tn", "fp")}
HITS = ("tn", "tp")


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
    estimates = ((hits / n, wilson_interval(hits, n)) for hits, n in ((hits_a, n_a), (hits_b, n_b)))
    return _subtract(*estimates) | {"p": float(p)}


def compare_auc(labels_a: ArrayLike, scores_a: ArrayLike, labels_b: ArrayLike, scores_b: ArrayLike) -> dict:
    """Difference of the areas under two independent ROC curves, as `compare_proportions` gives it.

    Variances are those of DeLong et al. 1988 (doi:10.2307/2531595), which add since the cohorts share no case; the
    test is z. Where one of them is not known, with fewer than two cases of a label, or is zero, as that of a perfect
    curve, there is no test, and the distances to the limits of the score intervals add in square.
    """
    from scipy.stats import norm

    sides = [(np.asarray(y), np.asarray(s, float)) for y, s in ((labels_a, scores_a), (labels_b, scores_b))]
    variances = [_find_variance(*side) for side in sides]
    estimates = [measure_auc(*side) for side in sides]
    compared = _subtract(*estimates)
    if compared["difference"] is None or not all(variances):
        return compared
    difference, error = compared["difference"], math.sqrt(sum(variances))
    interval = [difference - Z95 * error, difference + Z95 * error]
    return {"difference": difference, "difference_ci95": interval, "p": float(2 * norm.sf(abs(difference) / error))}


def compare_means(a: ArrayLike, b: ArrayLike) -> dict:
    """Difference of the means of two independent samples, as `compare_proportions` gives it, by Welch's t test
    (Biometrika 1947;34:28). None with fewer than two values each, and where neither varies."""
    from scipy.stats import ttest_ind

    a, b = np.asarray(a, float), np.asarray(b, float)
    if min(len(a), len(b)) < 2 or not (np.ptp(a) or np.ptp(b)):
        return dict(UNKNOWN)
    found: Any = ttest_ind(b, a, equal_var=False)
    return {
        "difference": float(b.mean() - a.mean()),
        "difference_ci95": [*map(float, found.confidence_interval(0.95))],
        "p": float(found.pvalue),
    }


def compare_calls(a: Mapping, b: Mapping) -> list[dict]:
    """What a classifier does in both cohorts, a row a measure.

    Parameters
    ----------
    a, b : with ``labels`` and ``predicted`` (0 or 1) and ``scores`` (the higher, the more likely reduced), a value per
        case

    Returns
    -------
    rows with ``measure``; ``internal`` and ``external``, each with ``_low``, ``_high`` (95 %, see
    `datxai.analysis.classification.summarise`) and ``_n``, the cases it is of; ``difference``, ``difference_low``,
    ``difference_high``, ``p`` and ``test``. None: not defined.
    """
    sides = [summarise(side["labels"], side["predicted"], side["scores"]) for side in (a, b)]
    rows = []
    for measure, counted in PROPORTIONS.items():
        counts = [
            (sum(side[key] for key in counted if key in HITS), sum(side[key] for key in counted)) for side in sides
        ]
        estimates = [(side[measure], side[f"{measure}_ci95"], n) for side, (_, n) in zip(sides, counts)]
        rows.append(_row(measure, estimates, compare_proportions(*counts[0], *counts[1]), "Fisher"))
    estimates = [(side["balanced_accuracy"], side["balanced_accuracy_ci95"], side["n"]) for side in sides]
    rows.insert(1, _row("balanced_accuracy", estimates, _subtract(*(pair[:2] for pair in estimates)), None))
    areas = compare_auc(a["labels"], a["scores"], b["labels"], b["scores"])
    rows.append(_row("auc", [(side["auc"], side["auc_ci95"], side["n"]) for side in sides], areas, "DeLong"))
    return rows


def compare_calibration(a: Mapping, b: Mapping, temperature: float | None) -> list[dict]:
    """How well calibrated a network is in both cohorts, as predicted (``raw``) and, where there is one, with the
    temperature (``scaled``).

    ``a`` and ``b`` hold ``labels`` and ``margins``. Rows as in `compare_calls`: Brier score, log loss (nats), with t
    intervals and Welch's test, and expected calibration error, for which there is neither.
    """
    rows = []
    for name, divisor in (("raw", 1.0), *([("scaled", temperature)] if temperature is not None else [])):
        samples = [_score_each(np.asarray(side["margins"], float) / divisor, side["labels"]) for side in (a, b)]
        for measure in ("brier", "log_loss"):
            values = [sample[measure] for sample in samples]
            estimates = [(*_average(of_side), len(of_side)) for of_side in values]
            rows.append(_row(f"{measure}_{name}", estimates, compare_means(*values), "Welch"))
        eces = [
            (measure_reliability(probability(np.asarray(side["margins"], float) / divisor), side["labels"])["ece"]
             if len(side["labels"]) else None, None, len(side["labels"]))
            for side in (a, b)
        ]  # fmt: skip
        rows.append(_row(f"ece_{name}", eces, UNKNOWN, None))
    return rows


def compare_shares(measure: str, a: Sequence[bool], b: Sequence[bool]) -> dict:
    """A row, as in `compare_calls`, on the share of cases for which something holds."""
    counts = [(int(np.sum(side)), len(side)) for side in (a, b)]
    estimates = [(hits / n if n else None, wilson_interval(hits, n), n) for hits, n in counts]
    return _row(measure, estimates, compare_proportions(*counts[0], *counts[1]), "Fisher")


def _row(measure: str, estimates: Sequence[tuple], compared: Mapping, test: str | None) -> dict:
    row: dict[str, Any] = {"measure": measure}
    for side, (value, interval, n) in zip(("internal", "external"), estimates):
        low, high = interval or (None, None)
        row |= {side: value, f"{side}_low": low, f"{side}_high": high, f"{side}_n": n}
    low, high = compared["difference_ci95"] or (None, None)
    told = {"difference": compared["difference"], "difference_low": low, "difference_high": high, "p": compared["p"]}
    return row | told | {"test": test if compared["p"] is not None else None}


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


def _subtract(a: tuple, b: tuple) -> dict:
    """The difference of two independent estimates given with intervals; the distances to the limits add in square."""
    if a[0] is None or b[0] is None:
        return dict(UNKNOWN)
    (value_a, (low_a, high_a)), (value_b, (low_b, high_b)) = a, b
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


def _average(values: np.ndarray) -> tuple[float | None, list[float] | None]:
    """Mean and its 95 % t interval, which begins at 0 where it would be below."""
    from scipy.stats import sem, t

    if not len(values):
        return None, None
    mean = float(values.mean())
    if len(values) < 2 or not np.ptp(values):
        return mean, None
    low, high = t.interval(0.95, len(values) - 1, mean, sem(values))
    return mean, [max(0.0, float(low)), float(high)]
