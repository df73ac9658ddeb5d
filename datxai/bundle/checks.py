"""Validation of the test results in an untrusted bundle: classifiers, and statistics over the test cases."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from datxai.analysis.classification import FEATURES
from datxai.analysis.cohorts import COUNTS

MAX_CASES = 10**9
SHARES = ("called_reduced", "uncertain", "unlike_training", "accuracy_of_the_rest")


def check_classifiers(classifiers: Any) -> Mapping[str, Any]:
    """Validate the cutoff and the tree of binding ratios. Raises `ValueError`, also for a tree whose nodes lead back,
    which would never end."""
    _require(isinstance(classifiers, dict) and {*classifiers} <= {"sbr", "cart"}, "classifiers")
    if "sbr" in classifiers:
        _number(classifiers["sbr"]["cutoff"])
    if "cart" in classifiers:
        _require(isinstance(classifiers["cart"]["tree"], str), "tree")
        _check_nodes(classifiers["cart"]["nodes"])
    return classifiers


def _check_nodes(nodes: Any) -> None:
    _require(isinstance(nodes, list) and len(nodes) > 0, "nodes")
    for index, node in enumerate(nodes):
        _require(_count(node["normal"]) + _count(node["reduced"]) > 0, "a node without a case")
        if node["feature"] is not None:
            _require(node["feature"] in FEATURES, "feature")
            _number(node["threshold"])
            _require(all(index < _count(node[side]) < len(nodes) for side in ("left", "right")), "a node's place")


def check_tested(tested: Any) -> Mapping[str, Any]:
    """Validate the statistics of `datxai.tested.Tested.describe`. Raises `ValueError` for impossible values."""
    _require(isinstance(tested, dict), "tested")
    shares, calls, calibration, groups = (tested[name] for name in ("shares", "calls", "calibration", "groups"))
    _require(all(isinstance(section, dict) for section in (shares, calls, calibration, groups)), "tested")
    _require({"called_reduced", "uncertain"} <= {*shares} <= {*SHARES}, "shares")
    for share in shares.values():
        _require(_count(share["hits"]) <= _count(share["n"]), "a share")
    for counts in (*calls.values(), *groups.values()):
        tn, fp, fn, tp = (_count(counts[name]) for name in COUNTS)
        _require((counts["auc"] is None) == (not (tn + fp) or not (fn + tp)), "auc")
        _require(counts["auc"] is None or 0 <= _number(counts["auc"]) <= 1, "auc")
        _require(_number(counts["auc_variance"]) >= 0, "variance")
    _require({*calibration} <= {"raw", "scaled"}, "calibration")
    for fit in calibration.values():
        _check_fit(fit)
    return tested


def _check_fit(fit: Mapping) -> None:
    for measure in ("brier", "log_loss"):
        n, mean, variance = (fit[measure][name] for name in ("n", "mean", "variance"))
        _require(_count(n) > 0 and _number(mean) >= 0 and _number(variance) >= 0, measure)
        _require(n > 1 or variance == 0, measure)
    _require(0 <= _number(fit["ece"]) <= 1, "ece")


def _count(value: Any) -> int:
    _require(type(value) is int and 0 <= value <= MAX_CASES, "a count")
    return value


def _number(value: Any) -> float:
    _require(type(value) in (int, float) and math.isfinite(value), "a number")
    return value


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)
