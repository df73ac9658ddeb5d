"""The head in a scan: where it lies and how bright it is, from a coarse version of the scan."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np
from scipy import ndimage

from datxai.errors import InputError
from datxai.volume import Grid, Volume, resample

HEAD_FWHM_MM = 16.0  # smoothing of the scan before the head is searched for
EDGE = 0.4  # a head or brain ends where the uptake falls below this fraction of the median inside
AROUND_MM = 110.0  # radius of the ball around the middle of the head in which its brightness is measured
HOTTEST = 0.99  # quantile at which brightness is capped before the head is searched for
MAX_BACKGROUND = 0.8  # largest fraction of the head's level that the background may have
HEAD_LITRES = (0.4, 12.0)  # volume of a head
MAX_ITERATIONS = 25  # of `measure_level`
TRUNCATE = 4.0  # length of smoothing kernels, in standard deviations


def find_head(volume: Volume) -> tuple[Volume, np.ndarray]:
    """The scan cropped to the head and sampled at 4 mm, and the head's centre of mass in mm."""
    coarse = blur(resample(volume, coarsen(volume.grid, 8.0)), HEAD_FWHM_MM)
    near = _find_near(coarse)
    level = measure_level(coarse.data[near])
    background = max(float(np.median(coarse.data[~near])), 0.0) if not near.all() else 0.0  # scatter, noise
    head = coarse.data > background + EDGE * (level - background)
    labelled = ndimage.label(head)
    assert isinstance(labelled, tuple)
    labels, count = labelled
    if not count or head[near].all() or background > MAX_BACKGROUND * level:
        raise InputError(
            "registration: no head stands out from the background of the scan, expected a whole head; "
            "check the scan."
        )
    head = labels == 1 + np.argmax(np.bincount(labels[near], minlength=count + 1)[1:])
    litres = head.sum() * coarse.grid.voxel_ml / 1000
    if not HEAD_LITRES[0] < litres < HEAD_LITRES[1]:
        raise InputError(
            f"registration: the bright region in the scan measures {litres:.2g} litres, expected a head of 2 to 8; "
            f"check the voxel size in its header, or set registration=none for slabs in MNI space."
        )
    centre = coarse.grid.index_to_mm(ndimage.center_of_mass(head))
    (box,) = ndimage.find_objects(head.view(np.uint8))
    margin = np.ceil(24.0 / coarse.grid.spacing)
    low = np.maximum([s.start for s in box] - margin, 0)
    high = np.minimum([s.stop for s in box] + margin, coarse.shape)
    affine = coarse.affine.copy()
    affine[:3, 3] = coarse.grid.index_to_mm(low)
    return resample(volume, coarsen(Grid(tuple((high - low).astype(int)), affine), 4.0)), centre


def _find_near(coarse: Volume) -> np.ndarray:
    """The ball of radius `AROUND_MM` around the point with the densest uptake; bool of the same shape."""
    spacing = coarse.grid.spacing
    # Brightness is capped so that a small hot spot cannot outweigh the head; outside the field of view it is zero.
    capped = np.clip(coarse.data, 0, max(np.quantile(coarse.data, HOTTEST), 0))
    density = ndimage.gaussian_filter(capped, AROUND_MM / 2 / spacing, mode="constant")
    middle = np.unravel_index(density.argmax(), density.shape)
    offsets = np.ogrid[tuple(slice(-m, n - m) for m, n in zip(middle, coarse.shape))]
    return reduce(np.add, ((offset * edge) ** 2 for offset, edge in zip(offsets, spacing))) <= AROUND_MM**2


def find_bright(data: np.ndarray) -> np.ndarray:
    """Voxels brighter than the fraction `EDGE` of the head's level."""
    return data > EDGE * measure_level(data)


def measure_level(data: np.ndarray) -> float:
    """The level of a head: the median of all voxels brighter than `EDGE` times this median.

    Hot spots change it little, air not at all.
    """
    level = max(float(data.mean()), 0.0) / EDGE
    ordered = np.sort(data[data > 0])  # once, for all medians
    for _ in range(MAX_ITERATIONS):
        bright = ordered[np.searchsorted(ordered, ordered.dtype.type(EDGE * level), side="right") :]
        middle = bright[(len(bright) - 1) // 2 : len(bright) // 2 + 1]
        before, level = level, float(middle.mean()) if bright.size else np.inf
        if level == before:
            break
    return level


def coarsen(grid: Grid, spacing: float, inset_mm: float = 0.0) -> Grid:
    """A lattice with the same axes, voxels of ``spacing`` mm, and an extent smaller by ``inset_mm`` on every side."""
    extent = np.asarray(grid.shape) * grid.spacing - 2 * inset_mm
    shape = np.maximum(1, np.floor(extent / spacing + 1e-6)).astype(int)
    affine = grid.affine.copy()
    affine[:3, :3] *= spacing / grid.spacing
    middle = grid.index_to_mm((np.asarray(grid.shape) - 1) / 2)
    affine[:3, 3] = middle - affine[:3, :3] @ ((shape - 1) / 2)
    return Grid(tuple(int(n) for n in shape), affine)


def blur(volume: Volume, fwhm_mm: float) -> Volume:
    """The volume smoothed by a Gaussian."""
    sigma = fwhm_mm / np.sqrt(8 * np.log(2)) / volume.grid.spacing
    data, reach = np.zeros_like(volume.data), np.rint(TRUNCATE * sigma).astype(int) + 1
    box = bound_filled(volume.data, reach)  # outside, the result is zero
    data[box] = ndimage.gaussian_filter(volume.data[box], sigma, mode="nearest", truncate=TRUNCATE)
    return Volume(data, volume.affine)


def bound_filled(data: np.ndarray, margin: Sequence[int] = (0, 0, 0)) -> tuple[slice, ...]:
    """The box that holds all nonzero voxels, with a margin in voxels."""
    filled, box = data != 0, []
    for axis, extra in enumerate(margin):
        (occupied,) = filled.any(axis=tuple({0, 1, 2} - {axis})).nonzero()
        low, high = (occupied[0], occupied[-1] + 1) if occupied.size else (0, 0)
        box.append(slice(max(low - extra, 0), high + extra))
    return tuple(box)
