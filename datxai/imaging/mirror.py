"""Mirroring at the midsagittal plane, so that the hemisphere with lower binding is always on the left."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from datxai.errors import InputError
from datxai.volume import AFFINE_TOLERANCE_MM, Volume


def mirror(volume: Volume) -> Volume:
    """Swap left and right at x = 0, without interpolation; mirroring twice restores the volume.

    Raises `InputError` if the grid is not symmetric about x = 0.
    """
    reverse = np.diag([-1.0, 1.0, 1.0, 1.0])
    reverse[0, 3] = volume.shape[0] - 1  # voxel i goes to n - 1 - i
    reflected = np.diag([-1.0, 1.0, 1.0, 1.0]) @ volume.affine @ reverse
    if not np.allclose(reflected, volume.affine, rtol=0, atol=AFFINE_TOLERANCE_MM):
        first, last = volume.affine[0, 3], volume.grid.index_to_mm(reverse[:3, 3])[0]
        raise InputError(
            f"grid: voxel centres lie from x = {first:g} to {last:g} mm, expected a grid along the axes of MNI space "
            f"and symmetric about x = 0; change its shape or origin."
        )
    return volume.after("mirror", np.ascontiguousarray(volume.data[::-1]))


def mirror_to_lower_left(volume: Volume, sbr: Mapping[str, float]) -> tuple[Volume, bool]:
    """Mirror the volume if its right putamen has the lower specific binding ratio; also return whether it did."""
    mirrored = sbr["putamen_right"] < sbr["putamen_left"]
    return (mirror(volume) if mirrored else volume), mirrored


def unmirror(volume: Volume, mirrored: bool) -> Volume:
    """Return a volume in the mirrored frame, such as a relevance map, to the patient's own sides."""
    return mirror(volume) if mirrored else volume
