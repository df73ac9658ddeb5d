"""Signs that a converter stored the values of a scan in a data type too small for them.

Counts beyond the largest number of a type come out small or negative (wrapped), or as that number (cut off); counts
scaled to too few levels lose the values between them. A camera blurs, so neighbours in a head never differ by the whole
range, no two voxels share the maximum, and no value is rare. The field of view and its padding have no influence.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from datxai.errors import InputError
from datxai.imaging.head import measure_level
from datxai.volume import Volume

JUMP = 0.8  # if neighbours differ by more than this fraction of the maximum, one of them has wrapped around
HOLLOW = 0.5  # and the lower one lies below its surroundings by more than this fraction of the maximum
TOP = 0.998  # values above this fraction of the maximum belong to a plateau
SAMPLE = 100_000  # number of voxels in which levels are counted
LARGEST_EXACT = 100  # counts per pixel; below, projections are not checked for jumps, since no type ends there
FEW_LEVELS = 16  # of projections; with more, the noise of the counts compensates for the rounding
MIN_NOISE = 0.4  # variance of counts over their mean: 1 for Poisson noise, less if views were interpolated
MAX_JUMPS, MAX_TOPS = 2, 20  # pairs of neighbours in an acquisition stored as counted


def measure_values(volume: Volume) -> dict[str, float]:
    """Measures of the values of a scan.

    ``wrapped_cm2``: area of the faces across which values jump as if wrapped around. ``plateau_ml``: volume of the
    voxels at the maximum. ``levels``: number of distinct values between a quarter of the brain's level and that level.
    """
    data, spacing = volume.data, volume.grid.spacing
    faces_cm2 = spacing.prod() / spacing / 100.0
    level = measure_level(data)
    brain = data[(data > level / 4.0) & (data <= level)]
    brain = brain[:: 1 + len(brain) // SAMPLE]  # from everywhere, since a wide rim may have a single value
    return {
        "wrapped_cm2": float(count_jumps(data, (0, 1, 2)) @ faces_cm2),
        "plateau_ml": float(np.count_nonzero(data > TOP * data.max()) - 1) * volume.grid.voxel_ml,
        "levels": float(len(np.unique(brain))),
    }


def count_jumps(data: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """How many neighbours along each of ``axes`` differ by more than `JUMP` of the maximum, the lower one in a hollow,
    with larger values on both sides of it along all axes. Float of shape (axes,)."""
    top = float(data.max())
    if top <= 0:
        return np.zeros(len(axes))
    jumps = {axis: np.abs(np.diff(data, axis=axis)) > JUMP * top for axis in axes}
    if not any(jump.any() for jump in jumps.values()):
        return np.zeros(len(axes))
    surroundings = np.full(data.shape, np.inf, np.float32)
    for axis in axes:
        back = np.flip(np.maximum.accumulate(np.flip(data, axis), axis=axis), axis)
        np.minimum(surroundings, np.minimum(np.maximum.accumulate(data, axis=axis), back), out=surroundings)
    hollow = surroundings - data > HOLLOW * top
    counts = []
    for axis in axes:
        first, second = (np.moveaxis(hollow, axis, 0)[part] for part in (slice(-1), slice(1, None)))
        counts.append(np.count_nonzero(np.moveaxis(jumps[axis], axis, 0) & (first | second)))
    return np.array(counts, float)


def require_counts(counts: np.ndarray, name: object) -> None:
    """Raise `InputError` if projections (views, rows, bins) are not counts, or were cut off at a type's limit, wrapped,
    or scaled to few levels. Their unit does not matter."""
    if np.median(counts) < 0:
        raise InputError(
            f"{name}: more than half of the counts are below 0, expected counts; check Rescale Intercept (0028,1052), "
            f"or export the acquisition again."
        )
    top, levels = counts.max(), np.unique(counts)
    if len(levels) == 1:
        return
    unit = np.diff(levels).min()
    if len(levels) <= FEW_LEVELS:
        _require_noise(counts / unit, len(levels), name)
    if top < LARGEST_EXACT * unit:
        return
    at_top = counts == top
    equal, jumps = int(np.count_nonzero(at_top[:, :, 1:] & at_top[:, :, :-1])), int(count_jumps(counts, (1, 2)).sum())
    if equal > MAX_TOPS:
        raise InputError(
            f"{name}: the largest count, {top:g}, occurs in {equal} pairs of neighbours, expected in few: counts "
            f"were cut off there; export the acquisition with more bits per pixel."
        )
    if jumps > MAX_JUMPS or counts.min() < -top / 2:
        raise InputError(
            f"{name}: neighbouring counts differ by {JUMP:.0%} of the largest, {top:g}, in {jumps} places: they "
            f"overflowed the type in which they are stored; export the acquisition with more bits per pixel."
        )


def _require_noise(counts: np.ndarray, levels: int, name: object) -> None:
    """Raise `InputError` if whole numbers vary less than counts, whose variance equals their mean: they were scaled
    down to few levels and rounded.

    A bin minus the mean of its two neighbours has 1.5 times the variance of a bin, and more where uptake is curved.
    """
    residual = counts[:, :, 1:-1] - (counts[:, :, :-2] + counts[:, :, 2:]) / 2.0
    mean = float(counts.mean())
    if not residual.size or mean <= 0:
        return
    variance = float((residual**2).mean()) / 1.5
    if variance < MIN_NOISE * mean:
        raise InputError(
            f"{name}: counts have {levels} levels and {variance / mean:.0%} of the variance of counts, expected about "
            f"100%: they were scaled down and rounded; export the acquisition as it was counted."
        )
