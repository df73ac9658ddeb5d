"""Divide a volume into parcels that perturbation methods remove as a whole."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from datxai.errors import InputError


def make_blocks(shape: Sequence[int], size: int) -> np.ndarray:
    """Blocks with an edge of ``size`` voxels, smaller at the far end: int labels from 1, of shape ``shape``."""
    counts = [-(-length // size) for length in shape]
    indices = [np.arange(length) // size for length in shape]
    return 1 + np.ravel_multi_index(np.meshgrid(*indices, indexing="ij"), counts)


def make_supervoxels(volume: np.ndarray, n: int, compactness: float = 0.02) -> np.ndarray:
    """About ``n`` supervoxels, compact regions of similar intensity: int labels like ``volume`` from 1, background 0.

    Simple linear iterative clustering (SLIC; Achanta et al. 2012, doi 10.1109/TPAMI.2012.120) of the foreground,
    the voxels above the volume's mean. ``compactness`` weighs distance against intensity, which is scaled to [0, 1].
    ``volume`` has three axes (X, Y, Z) or fewer, else `InputError`.
    """
    from skimage.segmentation import slic

    if volume.ndim > 3:
        raise InputError(f"supervoxels: the input has {volume.ndim} axes, expected three at most; give parcels.")
    if not np.isfinite(volume).all():
        raise InputError("supervoxels: the volume has numbers that are not finite; give parcels.")
    foreground = volume > volume.mean()
    if not foreground.any():
        raise InputError("supervoxels: the volume is constant, there is nothing to divide.")
    shape = (1, *volume.shape) if volume.ndim == 1 else volume.shape  # SLIC does not accept one axis
    image, foreground = volume.astype(np.float64).reshape(shape), foreground.reshape(shape)
    return slic(image, n, compactness, mask=foreground, start_label=1, channel_axis=None).reshape(volume.shape)
