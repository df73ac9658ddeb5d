"""Detection of misclassified cases: scores of doubt, and how well they find the errors.

Nazari et al. 2022 (doi:10.1007/s00259-021-05569-9) saw relevance maps of misclassified cases that looked like those
of the other class ("inconsistent"), and left open whether that finds errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from datxai.analysis.calibration import margin_of
from datxai.analysis.classification import measure_auc

MIN_SUBJECTS = 5  # misclassified ones, for a meaningful bootstrap
DOUBTS = {
    "map": "Inconsistent relevance map",
    "margin": "Small margin of the softmax outputs",
    "sbr_near": "SBR near its cutoff",
    "sbr_against": "SBR on the other side of its cutoff",
    "members": "Disagreement of the ensemble",
}


def score_doubt(case: Mapping, cutoff: float | None) -> dict[str, float | None]:
    """Scores of a case; the higher, the more they suggest a misclassification. None if unknown.

    Parameters
    ----------
    case : mapping
        ``predicted`` (0 or 1), ``logit_normal``, ``logit_reduced``; ``r_normal``, ``r_reduced``, likeness of its map
        to the mean maps of both classes (`datxai.analysis.relevance.check_consistency`); ``sbr`` of the lower putamen.
    cutoff : float, optional
        SBR below which a scan is called reduced; None: unknown.

    Returns
    -------
    dict with ``map``: likeness to the mean map of the other class minus that of the predicted class; ``margin``: minus
    the distance of the logits, which ranks cases as that of the softmax outputs does; ``sbr_near``: minus the distance
    of the SBR from its cutoff; ``sbr_against``: how far the SBR lies on the side of the other class.
    """
    sign = 1 if case["predicted"] else -1
    r_normal, r_reduced = case["r_normal"], case["r_reduced"]
    return {
        "map": None if r_normal is None or r_reduced is None else sign * (r_normal - r_reduced),
        "margin": -abs(margin_of(case)),
        "sbr_near": None if cutoff is None else -abs(case["sbr"] - cutoff),
        "sbr_against": None if cutoff is None else sign * (case["sbr"] - cutoff),
    }


def trace_roc(errors: Sequence[bool], scores: Sequence[float | None]) -> dict:
    """ROC of a score as a detector of errors; cases without a score are left out.

    Returns
    -------
    dict with ``n``, ``errors``, ``auc`` and ``auc_ci95`` (Hanley and McNeil's variance, see
    `datxai.analysis.classification.summarise`; None without an error), and the curve: ``false_alarms`` and ``found``,
    shares of the correct and of the misclassified cases at or above a threshold, for each score as threshold.
    """
    wrong, values = _drop_unknown(errors, scores)
    auc, interval = measure_auc(wrong, values)
    thresholds = np.unique(values)[::-1]
    flagged = values[None] >= thresholds[:, None]
    rates = {
        name: [0.0, *(flagged[:, subset].mean(axis=1).tolist() if subset.any() else [])]
        for name, subset in (("false_alarms", wrong == 0), ("found", wrong == 1))
    }
    return {"n": len(wrong), "errors": int(wrong.sum()), "auc": auc, "auc_ci95": interval, **rates}


def trace_all(cases: Sequence[Mapping]) -> dict[str, dict]:
    """`trace_roc` of every score of `DOUBTS` in rows that hold ``misclassified`` and the scores."""
    wrong = [case["misclassified"] for case in cases]
    return {name: trace_roc(wrong, [case[name] for case in cases]) for name in DOUBTS if name in cases[0]}


def pool_repeats(
    subjects: Sequence[Sequence[str]],
    errors: Sequence[Sequence[bool]],
    scores: Sequence[Sequence[float | None]],
    draws: int = 2000,
    seed: int = 0,
) -> dict:
    """ROC of a score over several networks on the same test cases; a single network makes too few errors for one.

    Each argument holds a sequence per network. Scores are replaced by their ranks within the network (0 to 1). The
    interval is a bootstrap over subjects, each with all its networks, since the errors of networks are not independent.
    With fewer than `MIN_SUBJECTS` misclassified subjects it would be far too narrow, and is None.
    """
    cases = [
        (name, wrong, rank)
        for network in zip(subjects, errors, map(_rank, scores), strict=True)
        for name, wrong, rank in zip(*network, strict=True)
        if rank is not None
    ]
    names, wrong, ranks = [name for name, *_ in cases], [case[1] for case in cases], [case[2] for case in cases]
    result = trace_roc(wrong, ranks)
    if len({name for name, error in zip(names, wrong) if error}) < MIN_SUBJECTS or result["auc"] is None:
        return {**result, "auc_ci95": None}
    wrong, ranks = np.array(wrong, int), np.array(ranks)
    people = [np.flatnonzero(np.array(names) == name) for name in dict.fromkeys(names)]
    rng, areas = np.random.default_rng(seed), []
    for _ in range(draws):
        sample = np.concatenate([people[i] for i in rng.integers(0, len(people), len(people))])
        areas.append(measure_auc(wrong[sample], ranks[sample], interval=False)[0])
    areas = [area for area in areas if area is not None]  # a draw may hold no error
    return {**result, "auc_ci95": np.percentile(areas, [2.5, 97.5]).tolist()}


def _drop_unknown(errors: Sequence[bool], scores: Sequence[float | None]) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(int(wrong), score) for wrong, score in zip(errors, scores, strict=True) if score is not None]
    wrong, values = np.array(pairs, float).reshape(-1, 2).T
    return wrong.astype(int), values


def _rank(scores: Sequence[float | None]) -> list[float | None]:
    """Mid-ranks of scores, from 0 to 1; None stays None."""
    ordered = np.sort([score for score in scores if score is not None])
    ranks = {
        score: (np.searchsorted(ordered, score, "left") + np.searchsorted(ordered, score, "right")) / (2 * len(ordered))
        for score in ordered
    }
    return [None if score is None else float(ranks[score]) for score in scores]
