"""Relevance by region of an atlas: which regions inside and outside the striatum the network relied on.

Nazari et al. 2021 (doi:10.1038/s41598-021-02385-x) asked which signal outside the striatum helps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from datxai.volume import distance_from

STRIATUM = ("caudate", "putamen", "accumbens")
REST = "rest of the brain"
COLUMNS = (
    "region", "striatal", "distance_mm", "volume_ml", "share", "share_low", "share_high", "density", "density_low",
    "density_high", "TN", "TN_low", "TN_high", "TP", "TP_low", "TP_high", "difference", "difference_low",
    "difference_high",
)  # fmt: skip


def label_regions(
    parcellation: np.ndarray,
    names: Mapping[int, str],
    brain: np.ndarray,
    striatum: np.ndarray,
    spacing: Sequence[float] | np.ndarray,
) -> list[dict]:
    """The regions to be measured: ``region``, ``striatal``, ``mask``, ``volume_ml``, ``distance_mm``.

    ``parcellation`` holds labels (X, Y, Z), 0 for none; names end in ``_left`` (ipsilateral, after mirroring) or
    ``_right``. Brain without a label is `REST`. The distance is the median of a region's voxels from the striatum, 0
    inside: maps are no sharper than their rules, so that regions near the striatum share its relevance.
    """
    distance = distance_from(striatum, spacing)
    sides = {"left": "ipsilateral", "right": "contralateral"}
    regions = []
    for label, name in [*names.items(), (0, REST)]:
        mask = (parcellation == label) & (brain if label == 0 else True)
        if mask.any():
            structure, _, side = name.rpartition("_")
            regions.append(
                {
                    "region": f"{structure}_{sides[side]}" if side in sides else name,
                    "striatal": structure in STRIATUM,
                    "mask": mask,
                    "volume_ml": float(mask.sum() * np.prod(spacing) / 1000),
                    "distance_mm": float(np.median(distance[mask])),
                }
            )
    return regions


def measure_regions(relevance: np.ndarray, regions: Sequence[Mapping], brain: np.ndarray) -> list[dict]:
    """Measure each region in one map: ``share`` of the brain's absolute relevance, ``density`` (share over share of the
    brain's volume) and ``mean`` (signed, in units of the brain's mean absolute relevance). None for a map of zeros.
    """
    total = float(np.abs(relevance[brain]).sum(dtype=float))
    if total == 0:
        return [{"share": None, "density": None, "mean": None} for _ in regions]
    unit = total / brain.sum()
    rows = []
    for region in regions:
        inside = relevance[region["mask"]].astype(float)
        share = float(np.abs(inside).sum() / total)
        rows.append({
            "share": share,
            "density": share * float(brain.sum()) / len(inside),
            "mean": float(inside.mean() / unit),
        })  # fmt: skip
    return rows


def summarise_regions(
    regions: Sequence[Mapping], measured: Sequence[Sequence[Mapping]], groups: Sequence[str]
) -> list[dict]:
    """Means over cases with 95 % t intervals, a row per region (`COLUMNS`), the densest first.

    ``measured`` holds the `measure_regions` of each case, ``groups`` its TN, TP, FN or FP. Share and density are over
    all cases; TN and TP are the mean relevance of these groups. The difference TP - TN has Welch's interval.
    """
    rows = []
    for i, region in enumerate(regions):
        row = {name: region[name] for name in ("region", "striatal", "distance_mm", "volume_ml")}
        values = {
            name: np.array([case[i][name] for case in measured if case[i][name] is not None])
            for name in ("share", "density")
        }
        for group in ("TN", "TP"):
            means = [case[i]["mean"] for case, case_group in zip(measured, groups) if case_group == group]
            values[group] = np.array([mean for mean in means if mean is not None])
        for name, means in values.items():
            row |= _name_columns(name, _average(means))
        row |= _name_columns("difference", _subtract(values["TP"], values["TN"]))
        rows.append(row)
    return sorted(rows, key=lambda row: -(row["density"] or 0))


def _name_columns(name: str, interval: tuple[float | None, ...]) -> dict:
    return dict(zip((name, f"{name}_low", f"{name}_high"), interval))


def _average(values: np.ndarray) -> tuple[float | None, ...]:
    """Mean and its 95 % t interval."""
    mean = float(values.mean()) if len(values) else None
    if len(values) < 2:
        return mean, None, None
    if not np.ptp(values):
        return mean, mean, mean
    low, high = stats.t.interval(0.95, len(values) - 1, mean, stats.sem(values))
    return mean, float(low), float(high)


def _subtract(a: np.ndarray, b: np.ndarray) -> tuple[float | None, ...]:
    """Difference of two means and Welch's 95 % interval (Biometrika 1947;34:28)."""
    if not len(a) or not len(b):
        return None, None, None
    difference = float(a.mean() - b.mean())
    if min(len(a), len(b)) < 2:
        return difference, None, None
    if not np.ptp(a) and not np.ptp(b):
        return difference, difference, difference
    low, high = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    return difference, float(low), float(high)
