"""How few voxels a map needs."""

from __future__ import annotations

import numpy as np

from datxai.metrics.case import Case


def sparseness(case: Case) -> dict[str, float]:
    """`gini` of the whole map."""
    return {"gini": gini(case.map)}


def gini(relevance: np.ndarray) -> float:
    """Gini index of the absolute relevance (Chalasani et al. 2020, arXiv 1810.06583).

    0 where all n voxels are equal, 1 - 1/n where one has everything. NaN for a map of zeros.
    """
    values = np.sort(np.abs(relevance).astype(float), axis=None)
    whole, n = values.sum(), values.size
    return float((2 * np.arange(1, n + 1) - n - 1) @ values / (n * whole)) if whole > 0 else float("nan")
