"""Transmission of photons through a head, shared by the simulated camera and the template."""

from __future__ import annotations

import numpy as np
from scipy import ndimage


def average_transmission(thickness: np.ndarray, views: int = 12) -> np.ndarray:
    """Fraction of the photons from each voxel that leave the head, averaged over transaxial directions, (X, Y, Z).

    ``thickness`` (X, Y, Z) is attenuation times the voxel's edge; X and Y edges are equal.
    """
    passed = np.zeros_like(thickness)
    for angle in np.arange(views) * 360.0 / views:
        turned = ndimage.rotate(thickness, angle, reshape=False, order=1)
        leaving = np.exp(0.5 * turned - np.cumsum(turned, axis=0))
        passed += ndimage.rotate(leaving, -angle, reshape=False, order=1, mode="nearest")
    return passed / views
