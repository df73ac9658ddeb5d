"""Specific binding ratios by hottest-voxels analysis (Nazari et al. 2022, doi 10.1007/s00259-021-05569-9)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from datxai.volume import Volume


def average_hottest(data: np.ndarray, mask: np.ndarray, volume_ml: float, voxel_ml: float) -> float:
    """Mean of the hottest voxels of ``mask`` that make up ``volume_ml`` together.

    The last voxel counts by the fraction that is still needed. A mask smaller than ``volume_ml`` is
    averaged whole.
    """
    assert mask.any()
    assert volume_ml > 0
    values = data[mask].astype(np.float64)
    wanted = volume_ml / voxel_ml
    if wanted >= len(values):
        return float(values.mean())
    hottest = np.sort(values)[::-1][: int(np.ceil(wanted))]
    weights = np.ones_like(hottest)
    weights[-1] -= len(hottest) - wanted
    return float(hottest @ weights / wanted)


def measure_sbr(
    volume: Volume,
    regions: Mapping[str, np.ndarray],
    putamen_ml: float = 10.0,
    caudate_ml: float = 5.0,
    striatum_ml: float = 15.0,
    covered: np.ndarray | None = None,
) -> dict[str, float]:
    """Specific binding ratio of putamen, caudate and striatum on both sides: hottest voxels / reference - 1.

    ``volume`` is scaled by the reference region, so the reference is 1. ``regions`` holds the large
    unilateral ROIs (``putamen_roi_left``, ...) as boolean masks on the volume's grid. ``covered`` marks the voxels in
    the field of view, all if left out. If a slab shows a third of an ROI, the mean is taken over a third of the usual
    amount: 3.3 ml of the putamen in place of 10 ml.
    """
    amounts = {"putamen": putamen_ml, "caudate": caudate_ml, "striatum": striatum_ml}
    voxel_ml, sbr = volume.grid.voxel_ml, {}
    for name, ml in amounts.items():
        for side in ("left", "right"):
            roi = whole = regions[f"{name}_roi_{side}"]
            if covered is not None:
                roi = whole & covered
            fraction = np.count_nonzero(roi) / np.count_nonzero(whole)
            sbr[f"{name}_{side}"] = average_hottest(volume.data, roi, ml * fraction, voxel_ml) - 1.0
    return sbr
