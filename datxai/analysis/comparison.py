"""How far the relevance maps of several networks agree, case by case."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

HOTTEST = 0.01  # share of the voxels of highest absolute relevance whose overlap is measured


def compare_maps(maps: Sequence[np.ndarray], share: float = HOTTEST) -> tuple[np.ndarray, np.ndarray]:
    """Agreement of every two maps of one case.

    Parameters
    ----------
    maps : arrays (voxels,), one per network, on one grid and within one mask
    share : of the voxels, taken by absolute relevance

    Returns
    -------
    Pearson correlation, and share of their hottest voxels that two maps have in common (1: all; by chance ``share``).
    Arrays (pairs,) in the order of `itertools.combinations`; NaN where one of the maps is constant.
    """
    maps = np.stack(maps).astype(float)
    n = max(1, round(share * maps.shape[1]))
    hottest = np.zeros(maps.shape)
    np.put_along_axis(hottest, np.abs(maps).argpartition(-n, axis=1)[:, -n:], 1.0, axis=1)
    known = np.ptp(maps, axis=1) > 0
    maps -= maps.mean(axis=1, keepdims=True)
    lengths = np.where(known, np.linalg.norm(maps, axis=1), np.nan)
    pairs = np.triu_indices(len(maps), 1)
    overlap = np.where(np.outer(known, known), hottest @ hottest.T / n, np.nan)
    return (maps @ maps.T / np.outer(lengths, lengths))[pairs], overlap[pairs]


def summarise_agreement(values: np.ndarray) -> dict:
    """``mean`` and ``sd`` over all cases and pairs, and ``n``, the values known; None where there are too few."""
    known = values[np.isfinite(values)]
    return {
        "mean": float(known.mean()) if known.size else None,
        "sd": float(known.std(ddof=1)) if known.size > 1 else None,
        "n": int(known.size),
    }
