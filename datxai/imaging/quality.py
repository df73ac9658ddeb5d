"""Quality control of a scan in MNI space: can its registration, and the measures based on it, be trusted?

``green``: used. ``amber``: used, and listed for inspection. ``red``: not used. The limits were set on phantom scans and
on deliberately wrong registrations (docs/registration.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from datxai.errors import InputError
from datxai.imaging.registration import compare
from datxai.volume import Volume

GREEN, AMBER, RED = "green", "amber", "red"


class QualityLimits(NamedTuple):
    """Limits of a measure: outside the inner pair it is amber, outside the outer pair red."""

    inner: tuple[float, float]
    outer: tuple[float, float]
    words: str  # description of the measure
    advice: str = "check that the scan is a head and its header right"  # what to do about a red verdict


EXPORT = "export the scan again, in floating-point numbers"
LIMITS = {
    "wrapped_cm2": QualityLimits((0.0, 0.75), (0.0, 5.0), "area in cm2 across which values exceed their type", EXPORT),
    "plateau_ml": QualityLimits((0.0, 0.5), (0.0, 3.0), "volume in ml cut off at the largest value", EXPORT),
    "levels": QualityLimits((10.0, np.inf), (4.0, np.inf), "number of levels up to that of the brain", EXPORT),
    "similarity": QualityLimits((0.87, 1.0), (0.65, 1.0), "correlation with the template"),
    "overlap": QualityLimits((0.87, 1.0), (0.7, 1.0), "overlap of the head with the template's"),
    "drift_mm": QualityLimits((0.0, 4.0), (0.0, 10.0), "distance in mm by which a further fit moves the striatum"),
    "determinant": QualityLimits((0.5, 1.8), (0.35, 2.2), "volume of the head over the template's"),
    "zoom_min": QualityLimits((0.73, 1.27), (0.65, 1.4), "smallest zoom of the head"),
    "zoom_max": QualityLimits((0.73, 1.27), (0.65, 1.4), "largest zoom of the head"),
    "rotation_deg": QualityLimits((0.0, 35.0), (0.0, 60.0), "rotation of the head in degrees"),
    "shear": QualityLimits((0.0, 0.08), (0.0, 0.2), "shear of the head"),
    "coverage": QualityLimits((0.8, 1.0), (0.5, 1.0), "part of the expected brain in the field of view"),
    "reference": QualityLimits((0.9, 1.5), (0.7, 1.8), "reference value over the mean of the brain"),
    "contrast": QualityLimits((0.25, np.inf), (0.1, np.inf), "largest binding ratio of the striatum"),
}


def measure_fit(scan: Volume, affine: np.ndarray, bases: Mapping[str, Volume]) -> dict[str, float | None]:
    """How well a scan and the template agree, and what the affine map (template to scan) does to a head.

    ``similarity``, ``overlap`` and ``drift_mm`` as in `datxai.imaging.registration.compare` (None: a slab is too thin
    to show a drift); ``determinant`` of the map's linear part; ``zoom_min`` and ``zoom_max``, its singular values;
    ``rotation_deg``, the angle of its rotation; ``shear``, the largest element off the diagonal of its stretch (the
    symmetric part of its polar decomposition).
    """
    similarity, overlap, drift = compare(scan, bases, affine)
    left, zooms, right = np.linalg.svd(affine[:3, :3])
    rotation, stretch = left @ right, right.T @ np.diag(zooms) @ right
    angle = np.degrees(np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1)))
    return {
        "similarity": similarity,
        "overlap": overlap,
        "drift_mm": drift,
        "determinant": float(np.linalg.det(affine[:3, :3])),
        "zoom_min": float(zooms[-1]),
        "zoom_max": float(zooms[0]),
        "rotation_deg": float(angle),
        "shear": float(np.abs(stretch[np.triu_indices(3, 1)]).max()),
    }


def measure_uptake(volume: Volume, brain: np.ndarray, covered: np.ndarray) -> dict[str, float]:
    """Measures of whether the reference value is plausible, for a volume in MNI space that was scaled by it.

    ``coverage``: the part of the brain within the field of view. ``reference``: the reference value over the mean of
    that part; a wrong registration lowers it. ``brain`` (the part that the scan is expected to show) and ``covered``
    (the voxels in the field of view) are boolean masks on the volume's grid.
    """
    seen = volume.data[brain & covered].astype(np.float64)
    mean = seen.mean() if seen.size else 0.0
    return {
        "coverage": float(seen.size / np.count_nonzero(brain)),
        "reference": float(1 / mean) if mean > 0 else float("inf"),
    }


def judge(measures: Mapping[str, float | None]) -> dict:
    """The measures, preceded by their ``verdict`` and the ``reason`` if it is not green.

    Measures that are None (not measured) are skipped. Raises `InputError` for red.
    """
    verdict, reason = GREEN, ""
    for name, value in measures.items():
        if value is None:
            continue
        limits = LIMITS[name]
        for colour, (low, high) in ((RED, limits.outer), (AMBER, limits.inner)):
            if low <= value <= high:
                continue
            limit = f"at least {low:g}" if value < low else f"at most {high:g}"
            sentence = f"{limits.words} {value:.2f}, expected {limit}"
            if colour == RED:
                raise InputError(f"quality control: {sentence}; {limits.advice}.")
            verdict, reason = AMBER, f"{reason}; {sentence}" if reason else sentence
            break
    return {"verdict": verdict, "reason": reason, **measures}
