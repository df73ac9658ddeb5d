"""How few voxels hold the relevance of a map."""

from __future__ import annotations

import numpy as np

from datxai.metrics.inputs import Case, says_nothing


def sparseness(case: Case) -> dict[str, float]:
    """`gini` of the whole map."""
    return {"gini": gini(case.map)}


def gini(relevance: np.ndarray) -> float:
    """Gini index of the absolute relevance (Chalasani et al. 2020, arXiv 1810.06583).

    0 if all n voxels are equal but for their signs, 1 - 1/n if one holds everything. NaN for a map that is constant
    or not finite.
    """
    if says_nothing(relevance):
        return float("nan")
    values = np.sort(np.abs(relevance).astype(float), axis=None)
    n = values.size
    return float((2 * np.arange(1, n + 1) - n - 1) @ values / (n * values.sum()))
