"""The 1 mm lattice on which anatomy is computed, and averages of its images on other grids.

Everything on the lattice is symmetric about x = 0. A box is a tuple of three slices: small structures are processed
within their box only.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

import numpy as np
from nibabel.affines import apply_affine
from scipy import ndimage

from datxai.volume import Grid, Volume, resample

LATTICE = Grid.axis_aligned((153, 193, 165), (1, 1, 1), (-76, -112, -76), "atlas")
MIDLINE = LATTICE.shape[0] // 2  # index of x = 0
TIE = 1e-5  # fractions of a voxel that differ by less count as equal, so that rounding cannot make the sides differ

Box = tuple[slice, ...]


def symmetrise(data: np.ndarray) -> np.ndarray:
    """The mean of an image and its mirror image."""
    return (data + data[::-1]) / 2


def fill(mask: np.ndarray, grid: Grid) -> np.ndarray:
    """Voxels of ``grid`` of which a mask on `LATTICE` fills at least half."""
    box, fraction = average(mask, grid)
    return paste(box, fraction >= 0.5 - TIE, grid.shape)


def average(data: np.ndarray, grid: Grid, affine: np.ndarray = LATTICE.affine) -> tuple[Box, np.ndarray]:
    """Mean of data (on `LATTICE`) in the voxels of ``grid``: the box of nonzero means, and the means within it."""
    source = grow(bound(data > 0), 1, data.shape)
    crop = Volume(data[source], shifted(affine, [s.start for s in source]))
    corners = np.array(list(product(*((s.start - 1, s.stop) for s in source))))
    index = apply_affine(np.linalg.inv(grid.affine) @ affine, corners)
    low = np.clip(np.floor(index.min(axis=0)), 0, grid.shape).astype(int)
    high = np.clip(np.ceil(index.max(axis=0)) + 1, low, grid.shape).astype(int)
    box = tuple(map(slice, low, high))
    if (low == high).any():
        return box, np.zeros(high - low, np.float32)
    return box, resample(crop, Grid(tuple(high - low), shifted(grid.affine, low))).data


def paste(box: Box, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """An image of zeros with ``values`` in the box."""
    whole = np.zeros(shape, values.dtype)
    whole[box] = values
    return whole


def shifted(affine: np.ndarray, start: Iterable[int]) -> np.ndarray:
    """The affine of a crop that begins at voxel ``start``."""
    crop = affine.copy()
    crop[:3, 3] += affine[:3, :3] @ np.asarray(start, float)
    return crop


def bound(mask: np.ndarray) -> Box:
    """The smallest box that holds a mask, which must not be empty."""
    return ndimage.find_objects(mask.view(np.uint8))[0]


def enclose(boxes: Iterable[Box]) -> Box:
    """The smallest box that holds several."""
    return tuple(slice(min(s.start for s in along), max(s.stop for s in along)) for along in zip(*boxes))


def grow(box: Box, by: int, shape: Iterable[int]) -> Box:
    """A box with a margin of ``by`` voxels, within an image of this shape."""
    return tuple(slice(max(s.start - by, 0), min(s.stop + by, n)) for s, n in zip(box, shape))


def vote(parts: Iterable[tuple[int, Box, np.ndarray]], shape: tuple[int, ...]) -> np.ndarray:
    """Label of the largest fraction of each voxel, int16; 0 where labels tie or the rest is larger.

    ``parts``: (label, box, fraction of the label in the voxels of the box), labels above 0.
    """
    labels = np.zeros(shape, np.int16)
    largest = np.zeros(shape, np.float32)
    rest = np.ones(shape, np.float32)
    for label, box, fraction in parts:
        rest[box] -= fraction
        lead = fraction - largest[box]
        labels[box][abs(lead) <= TIE] = 0
        labels[box][lead > TIE] = label
        np.maximum(largest[box], fraction, out=largest[box])
    labels[rest > largest + TIE] = 0
    return labels
