"""Intensity scaling: voxel values as multiples of the uptake in the reference region."""

from __future__ import annotations

import numpy as np

from datxai.errors import InputError
from datxai.volume import Volume


def scale(volume: Volume, reference_mask: np.ndarray, percentile: float = 75.0) -> Volume:
    """Divide by a percentile of the reference region (Kupitz et al. 2014, doi 10.3413/Nukmed-0659-14-04).

    ``reference_mask`` is boolean of the volume's shape: the part of the region within the field of view. The history
    records the divisor as ``reference_value`` and the volume of the mask as ``reference_ml``. Raises `InputError` if
    the divisor is not positive.
    """
    assert reference_mask.shape == volume.shape, (reference_mask.shape, volume.shape)
    assert reference_mask.any()
    values = volume.data[reference_mask]
    reference_value = float(np.percentile(values.astype(np.float64), percentile))
    if reference_value <= 0:
        raise InputError(
            f"intensity scaling: the {percentile:g}th percentile of the reference region is "
            f"{reference_value:.4g}, expected a positive value; check the registration and that the scan holds counts."
        )
    scaled = volume.data / np.float32(reference_value)
    reference_ml = values.size * volume.grid.voxel_ml
    return volume.after(
        "scale", scaled, percentile=percentile, reference_value=reference_value, reference_ml=reference_ml
    )
