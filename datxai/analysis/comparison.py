"""Agreement of relevance maps of several networks or explanations, case by case, and which of two scores higher."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

HOTTEST = 0.01  # share of the voxels of highest absolute relevance whose overlap is measured


def compare_maps(maps: Sequence[np.ndarray], share: float = HOTTEST) -> tuple[np.ndarray, np.ndarray]:
    """Pairwise agreement of the maps of one case.

    Parameters
    ----------
    maps : arrays (voxels,), one per network or explanation, on one grid and within one mask
    share : of the voxels, taken by absolute relevance

    Returns
    -------
    Pearson correlation, and the share of hottest voxels that two maps have in common (1: all; by chance ``share``).
    Arrays (pairs,) in the order of `itertools.combinations`; NaN where one of the maps is constant.
    """
    stack = np.stack(maps).astype(float)
    n = max(1, round(share * stack.shape[1]))
    hottest = np.zeros(stack.shape)
    np.put_along_axis(hottest, np.abs(stack).argpartition(-n, axis=1)[:, -n:], 1.0, axis=1)
    varies = np.ptp(stack, axis=1) > 0
    stack -= stack.mean(axis=1, keepdims=True)
    lengths = np.where(varies, np.linalg.norm(stack, axis=1), np.nan)
    pairs = np.triu_indices(len(stack), 1)
    overlap = np.where(np.outer(varies, varies), hottest @ hottest.T / n, np.nan)
    return (stack @ stack.T / np.outer(lengths, lengths))[pairs], overlap[pairs]


def count_leads(a: Sequence[float | None], b: Sequence[float | None]) -> dict:
    """Count the cases in which ``a`` or ``b`` has the higher score; pairs with None are left out.

    Returns
    -------
    dict with the counts ``a``, ``b``, ``tied``, and ``p`` of the exact two-sided sign test, whose null hypothesis is
    that neither leads; for scores of 0 and 1 this is McNemar's exact test.
    """
    from scipy.stats import binomtest

    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    leads, trails = sum(x > y for x, y in pairs), sum(x < y for x, y in pairs)
    p = float(binomtest(leads, leads + trails).pvalue) if leads + trails else 1.0
    return {"a": leads, "b": trails, "tied": len(pairs) - leads - trails, "p": p}


def summarise_agreement(values: np.ndarray) -> dict:
    """``mean`` and ``sd`` over cases and pairs, None with too few values, and ``n``, the number of finite values."""
    finite = values[np.isfinite(values)]
    return {
        "mean": float(finite.mean()) if finite.size else None,
        "sd": float(finite.std(ddof=1)) if finite.size > 1 else None,
        "n": int(finite.size),
    }
