"""Classification performance, and two conventional classifiers to compare the network with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from datxai.errors import InputError

Z95 = 1.959963984540054  # 97.5th percentile of the standard normal distribution
MIN_SBR = 0.1  # floor of denominators: an empty putamen gives a large ratio, not one of the wrong sign
FEATURES = (
    "putamen_ipsilateral",
    "putamen_contralateral",
    "caudate_ipsilateral",
    "caudate_contralateral",
    "putamen_asymmetry",
    "caudate_asymmetry",
    "caudate_putamen_ratio",
)


def summarise(labels: ArrayLike, predicted: ArrayLike, scores: ArrayLike | None = None) -> dict:
    """Classification performance with 95 % intervals.

    Parameters
    ----------
    labels, predicted : 0 (normal) or 1 (reduced), one per case
    scores : optional; the higher, the more likely reduced. Adds ``auc``.

    Returns
    -------
    dict with the counts ``n, tn, fp, fn, tp``; ``accuracy, balanced_accuracy, sensitivity, specificity,
    ppv, npv`` (and ``auc``) as fractions, each with ``<name>_ci95`` = [low, high]; and ``accuracy_margin``,
    the margin 1.96 sqrt(acc (1 - acc) / n) of Nazari et al. 2022 (doi:10.1007/s00259-021-05569-9). What is
    not defined, such as the sensitivity without a positive case, is None.

    Intervals: Wilson 1927 for proportions; square-and-add of Wilson intervals (Newcombe 1998,
    doi:10.1002/(SICI)1097-0258(19980430)17:8<873::AID-SIM779>3.0.CO;2-I) for the balanced accuracy; the score
    interval with the variance of Hanley and McNeil 1982 (doi:10.1148/radiology.143.1.7063747) for the AUC.
    """
    labels, predicted = _binary(labels), _binary(predicted)
    assert labels.shape == predicted.shape, (labels.shape, predicted.shape)
    result = summarise_counts(*count_calls(labels, predicted))
    if scores is not None:
        result["auc"], result["auc_ci95"] = measure_auc(labels, np.asarray(scores, float))
    return result


def count_calls(labels: ArrayLike, predicted: ArrayLike) -> list[int]:
    """How many cases are tn, fp, fn and tp."""
    return np.bincount(2 * _binary(labels) + _binary(predicted), minlength=4).tolist()


def summarise_counts(tn: int, fp: int, fn: int, tp: int) -> dict:
    """What `summarise` gives without scores."""
    n = tn + fp + fn + tp
    result: dict[str, Any] = {"n": n, "tn": tn, "fp": fp, "fn": fn, "tp": tp}
    for name, hits, total in (
        ("accuracy", tn + tp, n),
        ("sensitivity", tp, tp + fn),
        ("specificity", tn, tn + fp),
        ("ppv", tp, tp + fp),
        ("npv", tn, tn + fn),
    ):
        result[name] = hits / total if total else None
        result[f"{name}_ci95"] = wilson_interval(hits, total)
    accuracy = result["accuracy"]
    result["accuracy_margin"] = 1.96 * math.sqrt(accuracy * (1 - accuracy) / n) if n else None
    result["balanced_accuracy"], result["balanced_accuracy_ci95"] = _average(
        *((result[name], result[f"{name}_ci95"]) for name in ("sensitivity", "specificity"))
    )
    return result


def wilson_interval(hits: int, total: int) -> list[float] | None:
    """Wilson's 95 % score interval [low, high] of ``hits / total``; None without a case."""
    from scipy.stats import binomtest

    return [*map(float, binomtest(hits, total).proportion_ci(method="wilson"))] if total else None


def choose_cutoff(values: ArrayLike, labels: ArrayLike) -> float:
    """The cutoff below which a case is called reduced, with the largest Youden index on these cases.

    Candidates lie midway between neighbouring values; of equally good ones the widest gap is taken.
    """
    values, labels = np.asarray(values, float), _binary(labels)
    _require_trainable(values, labels, "a cutoff")
    distinct = np.unique(values)
    if len(distinct) < 2:
        raise InputError("All training cases have the same value, so no cutoff can be chosen; check the measurement.")
    gaps, middles = np.diff(distinct), (distinct[1:] + distinct[:-1]) / 2
    reduced, normal = np.sort(values[labels == 1]), np.sort(values[labels == 0])
    youden = np.searchsorted(reduced, middles) / len(reduced) - np.searchsorted(normal, middles) / len(normal)
    best = np.flatnonzero(np.isclose(youden, youden.max(), rtol=0, atol=1e-12))
    return float(middles[best[gaps[best].argmax()]])


def tabulate_features(sbr: Sequence[Mapping[str, float]]) -> np.ndarray:
    """Semi-quantitative features of each case, shape (n, 7), columns `FEATURES`.

    Each mapping holds ``putamen_left, putamen_right, caudate_left, caudate_right`` (specific binding
    ratios). Ipsilateral is the side with the lower putamen. Asymmetry is 200 |left - right| / (left +
    right), in percent.
    """
    return np.array([_features(row) for row in sbr], float).reshape(-1, len(FEATURES))


@dataclass(frozen=True)
class Cart:
    """A fitted classification tree.

    ``predict`` maps features (n, p) to labels (n,), ``score`` to the share of reduced training cases in the
    leaf (n,); ``text`` shows the tree. ``nodes`` holds its nodes, the root first: ``feature`` and ``threshold``
    (None in a leaf), ``left`` (not above the threshold) and ``right`` (numbers of nodes), and how many training
    cases are ``normal`` and ``reduced``.
    """

    predict: Callable[[np.ndarray], np.ndarray]
    score: Callable[[np.ndarray], np.ndarray]
    text: str
    nodes: list[dict]


def fit_cart(
    features: np.ndarray,
    labels: ArrayLike,
    names: Sequence[str] = FEATURES,
    max_depth: int = 3,
    min_leaf: int = 5,
) -> Cart:
    """Fit a small classification and regression tree (Breiman et al. 1984) to features of shape (n, p)."""
    from sklearn.tree import DecisionTreeClassifier, export_text

    features, labels = np.asarray(features, float), _binary(labels)
    _require_trainable(features, labels, "a classification tree")
    tree = DecisionTreeClassifier(max_depth=max_depth, min_samples_leaf=min_leaf, random_state=0)
    tree.fit(features, labels)
    return Cart(
        predict=lambda x: tree.predict(x).astype(int),
        score=lambda x: np.asarray(tree.predict_proba(x))[:, 1],
        text=export_text(tree, feature_names=list(names), class_names=["normal", "reduced"]),
        nodes=_list_nodes(tree.tree_, names),
    )


def follow_tree(nodes: Sequence[Mapping], features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Apply a tree given by its ``nodes`` (`Cart`) to features (n, p); returns its labels and scores, (n,) each.

    Columns are `FEATURES`. As in scikit-learn, features are rounded to float32 before comparison.
    """
    shares = []
    for row in np.asarray(features, np.float32):
        node = nodes[0]
        while node["feature"] is not None:
            below = row[FEATURES.index(node["feature"])] <= node["threshold"]
            node = nodes[node["left"] if below else node["right"]]
        shares.append(node["reduced"] / (node["normal"] + node["reduced"]))
    scores = np.array(shares, float)
    return (scores > 0.5).astype(int), scores


def measure_auc(
    labels: np.ndarray, scores: np.ndarray, interval: bool = True
) -> tuple[float | None, list[float] | None]:
    """Area under the ROC curve (ties count half) and its 95 % score interval; None without cases of both labels."""
    assert scores.shape == labels.shape, (scores.shape, labels.shape)
    assert np.isfinite(scores).all()
    positive, negative = scores[labels == 1], np.sort(scores[labels == 0])
    m, n = len(positive), len(negative)
    if not m or not n:
        return None, None
    wins = np.searchsorted(negative, positive, "left") + np.searchsorted(negative, positive, "right")
    auc = float(wins.sum() / (2 * m * n))
    return auc, find_auc_interval(auc, m, n) if interval else None


def find_auc_interval(auc: float, m: int, n: int) -> list[float]:
    """The 95 % score interval of an area under the ROC curve of ``m`` reduced and ``n`` normal cases."""

    def inside(area: float) -> bool:
        q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
        spread = area * (1 - area) + (m - 1) * (q1 - area**2) + (n - 1) * (q2 - area**2)
        return (auc - area) ** 2 <= Z95**2 * spread / (m * n)

    return [_bisect(inside, auc, end) for end in (0.0, 1.0)]


def _list_nodes(tree, names: Sequence[str]) -> list[dict]:
    """Nodes (`Cart`) of a fitted scikit-learn tree (its ``tree_``)."""
    leaf = tree.children_left < 0
    counts = np.rint(tree.value[:, 0] / tree.value[:, 0].sum(axis=1, keepdims=True) * tree.n_node_samples[:, None])
    return [
        {
            "feature": None if leaf[i] else names[tree.feature[i]],
            "threshold": None if leaf[i] else float(tree.threshold[i]),
            "left": None if leaf[i] else int(tree.children_left[i]),
            "right": None if leaf[i] else int(tree.children_right[i]),
            "normal": int(counts[i, 0]),
            "reduced": int(counts[i, 1]),
        }
        for i in range(tree.node_count)
    ]


def _features(row: Mapping[str, float]) -> tuple[float, ...]:
    sides = sorted(("left", "right"), key=lambda side: float(row[f"putamen_{side}"]))
    putamen, caudate = ([float(row[f"{name}_{side}"]) for side in sides] for name in ("putamen", "caudate"))
    ratio = caudate[0] / max(putamen[0], MIN_SBR)
    return (*putamen, *caudate, _asymmetry(*putamen), _asymmetry(*caudate), ratio)


def _asymmetry(a: float, b: float) -> float:
    return 200.0 * abs(a - b) / max(a + b, 2 * MIN_SBR)


def _binary(values: ArrayLike) -> np.ndarray:
    binary = np.asarray(values, dtype=int)
    assert np.isin(binary, (0, 1)).all(), np.unique(binary)
    return binary


def _require_trainable(values: np.ndarray, labels: np.ndarray, what: str) -> None:
    assert len(values) == len(labels), (len(values), len(labels))
    if not np.isfinite(values).all():
        raise InputError(f"The training cases hold missing or infinite values; {what} needs one number per case.")
    if len(np.unique(labels)) < 2:
        raise InputError(f"The training cases are all of one class; {what} needs normal and reduced cases.")


def _average(*estimates: tuple[float | None, list[float] | None]) -> tuple[float | None, list[float] | None]:
    """Mean of independent proportions given with intervals; distances to the limits add in quadrature."""
    defined = [(value, interval) for value, interval in estimates if value is not None and interval is not None]
    if len(defined) < len(estimates):
        return None, None
    mean = sum(value for value, _ in defined) / len(defined)
    low, high = (
        math.sqrt(sum((value - interval[end]) ** 2 for value, interval in defined)) / len(defined) for end in (0, 1)
    )
    return mean, [mean - low, mean + high]


def _bisect(inside: Callable[[float], bool], start: float, end: float) -> float:
    """The boundary between ``start``, which is inside, and ``end``, which is outside or on the boundary."""
    if start == end:
        return end
    for _ in range(60):
        middle = (start + end) / 2
        start, end = (middle, end) if inside(middle) else (start, middle)
    return start
