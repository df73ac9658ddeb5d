"""Intensity scaling: voxel values as multiples of the uptake in the reference region."""

from __future__ import annotations

import numpy as np

from datxai.errors import InputError
from datxai.volume import Volume

MAX_OUTSIDE = 0.5  # of the reference region may lie outside the field of view


def scale(volume: Volume, reference_mask: np.ndarray, percentile: float = 75.0) -> Volume:
    """Divide by a percentile of the reference region (Kupitz et al. 2014, doi 10.3413/Nukmed-0659-14-04).

    ``reference_mask`` is boolean of the volume's shape. Voxels that are exactly zero lie outside the field
    of view and do not count. The value divided by is recorded in the history as ``reference_value``. Raises
    `InputError` if it is not positive, or if more than `MAX_OUTSIDE` of the region lies outside the field
    of view.
    """
    assert reference_mask.shape == volume.shape, (reference_mask.shape, volume.shape)
    values = volume.data[reference_mask]
    values = values[values != 0]
    seen = len(values) / max(np.count_nonzero(reference_mask), 1)
    if seen < 1 - MAX_OUTSIDE:
        raise InputError(
            f"intensity scaling: only {seen:.0%} of the reference region lies in the scan's field of view, "
            f"expected at least {1 - MAX_OUTSIDE:.0%}; check the registration or exclude the scan."
        )
    reference_value = float(np.percentile(values.astype(np.float64), percentile))
    if reference_value <= 0:
        raise InputError(
            f"intensity scaling: the {percentile:g}th percentile of the reference region is "
            f"{reference_value:.4g}, expected a positive value; check the registration and that the scan holds counts."
        )
    scaled = volume.data / np.float32(reference_value)
    return volume.after("scale", scaled, percentile=percentile, reference_value=reference_value)
