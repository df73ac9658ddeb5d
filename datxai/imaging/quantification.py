"""Specific binding ratios by hottest-voxels analysis (Nazari et al. 2022, doi 10.1007/s00259-021-05569-9)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from datxai.volume import Volume

SIDES = ("left", "right")


def average_hottest(data: np.ndarray, mask: np.ndarray, volume_ml: float, voxel_ml: float) -> float:
    """Mean of the hottest voxels of ``mask`` that together make up ``volume_ml``.

    The last voxel is weighted by the fraction still needed. A mask smaller than ``volume_ml`` is averaged as a whole.
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
    amount: 3.3 ml of the putamen instead of 10 ml.
    """
    amounts = {"putamen": putamen_ml, "caudate": caudate_ml, "striatum": striatum_ml}
    sbr = {}
    for name, ml in amounts.items():
        for side in SIDES:
            roi = whole = regions[f"{name}_roi_{side}"]
            if covered is not None:
                roi = whole & covered
            sbr[f"{name}_{side}"] = _measure_ratio(volume, roi, whole, ml)
    return sbr


def measure_halves(
    volume: Volume, regions: Mapping[str, np.ndarray], putamen_ml: float = 10.0, covered: np.ndarray | None = None
) -> dict[str, float | None]:
    """Specific binding ratio of the front and the rear half of each putamen, as `measure_sbr` measures the whole.

    ``putamen_anterior`` and ``putamen_posterior``: the mean of the hottest voxels, half of ``putamen_ml``, in that half
    of the large ROI. Parkinson's disease begins in the rear. None where nothing is covered.
    """
    sbr: dict[str, float | None] = {}
    for name, whole in split_putamen(regions).items():
        roi = whole if covered is None else whole & covered
        sbr[name] = _measure_ratio(volume, roi, whole, putamen_ml / 2) if roi.any() else None
    return sbr


def split_putamen(regions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The large ROI of each putamen, split at the plane between two voxels that best halves the anatomical putamen.

    Boolean masks; their second axis runs to the front."""
    halves = {}
    for side in SIDES:
        behind = np.cumsum(np.count_nonzero(regions[f"putamen_{side}"], axis=(0, 2)))
        first_in_front = 1 + int(np.abs(behind - behind[-1] / 2).argmin())
        roi = regions[f"putamen_roi_{side}"]
        front = (np.arange(roi.shape[1]) >= first_in_front)[:, None]
        halves |= {f"putamen_anterior_{side}": roi & front, f"putamen_posterior_{side}": roi & ~front}
    return halves


def _measure_ratio(volume: Volume, roi: np.ndarray, whole: np.ndarray, ml: float) -> float:
    """Binding ratio of the hottest voxels of an ROI; ``ml`` is reduced by the fraction that ``roi`` covers of it."""
    fraction = np.count_nonzero(roi) / np.count_nonzero(whole)
    return average_hottest(volume.data, roi, ml * fraction, volume.grid.voxel_ml) - 1.0
