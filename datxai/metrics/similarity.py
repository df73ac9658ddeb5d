"""How similar two maps on the same grid are."""

from __future__ import annotations

import numpy as np

from datxai.metrics.inputs import says_nothing

WINDOW = 7  # edge of the SSIM window, in voxels


def compare(a: np.ndarray, b: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Similarity of maps [X, Y, Z] within a bool mask; 1 for the same map, whatever its scale.

    Returns
    -------
    dict with ``spearman``, the rank correlation; ``spearman_abs``, that of the absolute values, which does not depend
    on sign; and ``ssim``, the structural similarity of the absolute values, each map divided by its maximum (Adebayo
    et al. 2018, arXiv 1810.03292), in windows of 7 voxels (less on a thinner grid), averaged over ``mask``. NaN where
    the compared values are constant within the mask, where the mask is empty, and for maps that are not finite.
    """
    from scipy.stats import rankdata
    from skimage.metrics import structural_similarity

    def correlate(a: np.ndarray, b: np.ndarray) -> float:
        if says_nothing(a) or says_nothing(b):
            return float("nan")
        return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])

    a, b = (np.asarray(data, float) for data in (a, b))
    if not (np.isfinite(a).all() and np.isfinite(b).all()):  # SSIM's windows reach beyond the mask
        return dict.fromkeys(("spearman", "spearman_abs", "ssim"), float("nan"))
    absolute = [np.abs(data) / (np.abs(data[mask]).max(initial=0) or 1.0) for data in (a, b)]
    inside = [data[mask] for data in absolute]
    thick_axes = tuple(0 if n < 3 else slice(None) for n in a.shape) if max(a.shape) >= 3 else ...
    cropped = [data[thick_axes] for data in absolute]
    window = min(WINDOW, *(n - 1 + n % 2 for n in cropped[0].shape))
    local: np.ndarray = structural_similarity(*cropped, win_size=window, data_range=1.0, full=True)[1]
    return {
        "spearman": correlate(a[mask], b[mask]),
        "spearman_abs": correlate(*inside),
        "ssim": float("nan") if any(map(says_nothing, inside)) else float(local[mask[thick_axes]].mean()),
    }
