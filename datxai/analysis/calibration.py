"""Calibration of probabilities: temperature scaling, reliability, scores, and an "uncertain" class.

A margin is the logit of reduced minus that of normal (natural logarithm). Its logistic function is the probability of
reduced, which equals the softmax of the two logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from datxai.analysis.classification import wilson_interval

TEMPERATURES = 0.05, 20.0  # bounds of the search
BINS = 10  # of equal width, for reliability and expected calibration error
DRAWS = 1000  # of labels, for the error to expect of a calibrated classifier
UNCERTAIN_SHARE = 0.05  # of the validation cases; human readers call about as many inconclusive


def fit_temperature(margins: ArrayLike, labels: ArrayLike) -> dict:
    """Fit the temperature that minimises the negative log likelihood (Guo et al. 2017, arXiv:1706.04599).

    Parameters
    ----------
    margins, labels : one per validation case; labels 0 (normal) or 1 (reduced)

    Returns
    -------
    dict with ``temperature``, the divisor of margins; ``determined``: whether the cases determine one; ``n`` and
    ``errors``: how many cases there are, and how many lie on the wrong side of zero; ``note``, a sentence, if there is
    a problem.

    If all cases belong to one class, or all are on the correct side, the likelihood has no maximum: it grows as the
    temperature goes to zero. The temperature is then 1, which leaves probabilities unchanged.
    """
    from scipy.optimize import minimize_scalar

    margins, labels = np.asarray(margins, float), np.asarray(labels)
    errors = int(((margins > 0) != (labels == 1)).sum())
    fit: dict[str, Any] = {"temperature": 1.0, "determined": False, "n": len(labels), "errors": errors}
    if len(np.unique(labels)) < 2:
        return fit | {"note": "No temperature was fitted, since the validation cases are of one class."}
    if errors == 0:
        return fit | {"note": "No temperature was fitted, since every validation case is decided correctly."}
    lowest, highest = np.log(TEMPERATURES)
    best: Any = minimize_scalar(
        lambda log_t: score(margins / np.exp(log_t), labels)["nll"],
        bounds=(lowest, highest),
        method="bounded",
        options={"xatol": 1e-9},
    )
    fit |= {"temperature": float(np.exp(best.x)), "determined": True}
    if min(best.x - lowest, highest - best.x) < 1e-3:
        fit["note"] = f"The best temperature lies beyond those tried, {TEMPERATURES[0]:g} to {TEMPERATURES[1]:g}."
    return fit


def margin_of(case: Mapping) -> float:
    """The margin of a case with ``logit_normal`` and ``logit_reduced``."""
    return case["logit_reduced"] - case["logit_normal"]


def probability(margins: ArrayLike, temperature: float = 1.0) -> np.ndarray:
    """The probability of reduced, shape of ``margins``."""
    from scipy.special import expit

    return expit(np.asarray(margins, float) / temperature)


def score(margins: ArrayLike, labels: ArrayLike) -> dict:
    """``nll``, mean negative log likelihood (nats), and ``brier``, mean squared error of the probability of reduced."""
    margins, labels = np.asarray(margins, float), np.asarray(labels)
    return {
        "nll": float(np.logaddexp(0, np.where(labels == 1, -margins, margins)).mean()),
        "brier": float(((probability(margins) - labels) ** 2).mean()),
    }


def measure_reliability(probabilities: ArrayLike, labels: ArrayLike, bins: int = BINS) -> dict:
    """Compare predicted probabilities with observed frequencies of reduced cases.

    Parameters
    ----------
    probabilities : of reduced, one per case
    labels : 0 or 1
    bins : number of bins of equal width from 0 to 1

    Returns
    -------
    dict with ``ece``, the expected calibration error: mean over cases of |mean probability - share of reduced cases|
    of their bin (Guo et al. 2017, arXiv:1706.04599, for the probability of one class); ``ece_if_calibrated``,
    its mean for labels drawn with these very probabilities, above zero in small samples (Broecker and Smith 2007,
    doi:10.1175/WAF993.1); and ``bins``, a row for each bin with cases: ``low, high, n, probability`` (mean),
    ``reduced`` (share) and ``reduced_ci95`` (Wilson).
    """
    probabilities, labels = np.asarray(probabilities, float), np.asarray(labels)
    index = np.minimum((probabilities * bins).astype(int), bins - 1)
    sizes, means = np.bincount(index, minlength=bins), np.bincount(index, probabilities, bins)

    def error(labels: np.ndarray) -> float:
        return float(np.abs(means - np.bincount(index, labels, bins)).sum() / len(labels))

    hits = np.bincount(index, labels, bins).astype(int)
    rng = np.random.default_rng(0)
    drawn = [error(rng.random(len(labels)) < probabilities) for _ in range(DRAWS)]
    return {
        "ece": error(labels),
        "ece_if_calibrated": float(np.mean(drawn)),
        "bins": [
            {
                "low": b / bins,
                "high": (b + 1) / bins,
                "n": int(sizes[b]),
                "probability": float(means[b] / sizes[b]),
                "reduced": float(hits[b] / sizes[b]),
                "reduced_ci95": wilson_interval(int(hits[b]), int(sizes[b])),
            }
            for b in np.flatnonzero(sizes)
        ],
    }


def calibrate(fit: Mapping, margins: ArrayLike, labels: ArrayLike) -> dict:
    """Measure the calibration of (test) cases without and with a temperature that was fitted to other cases.

    Returns the ``fit`` of `fit_temperature` with ``raw`` and ``scaled``: what `score` and `measure_reliability`
    return. Without cases it is the fit alone.
    """
    margins = np.asarray(margins, float)
    calibrated: dict[str, Any] = {**fit}
    for name, values in (("raw", margins), ("scaled", margins / fit["temperature"])) if len(margins) else ():
        calibrated[name] = score(values, labels) | measure_reliability(probability(values), labels)
    return calibrated


def choose_uncertain(probabilities: ArrayLike, fraction: float = UNCERTAIN_SHARE) -> float:
    """Half the width of the interval about 0.5 that holds ``fraction`` of these (validation) cases, rounded up.

    A case is uncertain if its probability is no farther than this from 0.5.
    """
    distances = np.sort(np.abs(np.asarray(probabilities, float) - 0.5))
    return float(distances[int(np.ceil(fraction * len(distances))) - 1])


def measure_uncertain(uncertain: ArrayLike, wrong: ArrayLike) -> dict:
    """Evaluate an "uncertain" class: its ``rate``, the share of errors ``caught``, the ``accuracy`` of the other cases.

    Each comes with its Wilson interval ``<name>_ci95`` and its counts ``<name>_of`` = [cases, of how many]; None if
    there is no case to count.
    """
    uncertain, wrong = np.asarray(uncertain, bool), np.asarray(wrong, bool)
    counts = {
        "rate": (uncertain.sum(), len(uncertain)),
        "caught": ((uncertain & wrong).sum(), wrong.sum()),
        "accuracy": ((~uncertain & ~wrong).sum(), (~uncertain).sum()),
    }
    result = {}
    for name, (hits, total) in counts.items():
        result[name] = float(hits / total) if total else None
        result[f"{name}_ci95"] = wilson_interval(int(hits), int(total))
        result[f"{name}_of"] = [int(hits), int(total)]
    return result
