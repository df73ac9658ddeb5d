"""Relevance maps at group level: peaks, means, and whether a map looks like those of its class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from datxai.volume import Grid


def find_peak(relevance: np.ndarray, grid: Grid, striatum: np.ndarray) -> dict:
    """Find the voxel of highest absolute relevance and its distance from the striatum.

    Parameters
    ----------
    relevance : array (X, Y, Z)
    grid : Grid
        Its shape and affine.
    striatum : bool array (X, Y, Z)

    Returns
    -------
    dict with ``x, y, z`` (mm), ``value`` (signed), ``distance_mm`` to the centre of the nearest striatal
    voxel (0 inside) and ``inside``. Position and distance are None for a map of zeros.
    """
    assert relevance.shape == striatum.shape == tuple(grid.shape), (relevance.shape, striatum.shape)
    assert striatum.any(), "empty striatum"
    index = np.unravel_index(np.abs(relevance).argmax(), relevance.shape)
    value = float(relevance[index])
    if value == 0:
        return {"x": None, "y": None, "z": None, "value": 0.0, "distance_mm": None, "inside": False}
    position = grid.index_to_mm(index)
    distances = np.linalg.norm(grid.index_to_mm(np.argwhere(striatum)) - position, axis=1)
    where = dict(zip("xyz", position.tolist()))
    return {**where, "value": value, "distance_mm": float(distances.min()), "inside": bool(striatum[index])}


def measure_distance(a: Sequence[float | None], b: Sequence[float | None]) -> float | None:
    """Distance of two positions (x, y, z in mm), in mm; None if one is unknown."""
    if None in (*a, *b):
        return None
    return float(np.linalg.norm(np.subtract(np.array(a, float), np.array(b, float))))


def summarise_peaks(peaks: Sequence[Mapping], near_mm: float = 4.0) -> dict:
    """Count the peaks (of `find_peak`) inside the striatum and within ``near_mm`` of it."""
    distances = [peak["distance_mm"] for peak in peaks if peak["distance_mm"] is not None]
    return {
        "n": len(peaks),
        "inside": sum(peak["inside"] for peak in peaks),
        "near": sum(distance <= near_mm for distance in distances),
        "near_mm": near_mm,
        "median_distance_mm": float(np.median(distances)) if distances else None,
    }


class MeanMap:
    """Mean of maps added one at a time, float64; memory does not grow with their number.

    ``mean`` has the shape of the maps; it is None before the first.
    """

    def __init__(self):
        self.n = 0
        self.mean: np.ndarray | None = None

    def add(self, data: np.ndarray) -> None:
        """Add a map to the mean."""
        if self.mean is None:
            self.mean = np.zeros(data.shape)
        assert data.shape == self.mean.shape, (data.shape, self.mean.shape)
        self.n += 1
        self.mean += (data - self.mean) / self.n

    def without(self, data: np.ndarray) -> np.ndarray | None:
        """The mean of all maps except ``data``, which was added before; None if there is no other."""
        return None if self.n < 2 or self.mean is None else self.mean + (self.mean - data) / (self.n - 1)


def make_heat_map(true_positive: np.ndarray, true_negative: np.ndarray) -> np.ndarray:
    """Mean relevance of the true positive minus that of the true negative cases.

    The sign follows the caption of Fig. 3 in Nazari et al. 2022 (doi:10.1007/s00259-021-05569-9); the text there has
    the opposite sign.
    """
    return true_positive - true_negative


def check_consistency(
    relevance: np.ndarray,
    predicted: int,
    mean_normal: np.ndarray,
    mean_reduced: np.ndarray,
    mask: np.ndarray | None = None,
) -> dict:
    """Check whether the relevance map of a case looks like the mean map of its predicted class.

    Correlates the map with the mean maps of the true negative and the true positive cases, over ``mask`` or over all
    voxels. Neither mean may include the map itself (`MeanMap.without`), which with few cases would make the map look
    like its own class.

    Returns
    -------
    dict with ``r_normal, r_reduced`` (Pearson) and ``consistent``: whether the map is more like the mean map of its
    predicted class than like the other. None if a map is constant.
    """
    where = slice(None) if mask is None else mask
    r_normal, r_reduced = (_correlate(relevance[where], mean[where]) for mean in (mean_normal, mean_reduced))
    consistent = None
    if r_normal is not None and r_reduced is not None:
        consistent = (r_reduced > r_normal) == bool(predicted)
    return {"r_normal": r_normal, "r_reduced": r_reduced, "consistent": consistent}


def _correlate(a: np.ndarray, b: np.ndarray) -> float | None:
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    a, b = (np.asarray(x, float).ravel() - np.mean(x, dtype=float) for x in (a, b))
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
