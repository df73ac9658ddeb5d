"""Regions and parcels of the brain in MNI space, on any grid, mirror images of themselves about x = 0.

The packaged anatomy comes from `datxai.mni`. Everything is computed once on the 1 mm lattice `LATTICE` and averaged
onto the requested grid; a voxel belongs to a region that fills at least half of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from scipy import ndimage

from datxai import mni
from datxai.errors import InputError
from datxai.files import hash_content
from datxai.imaging.labels import REQUIRED, read_names, symmetrise_labels
from datxai.imaging.lattice import LATTICE, MIDLINE, average, bound, fill, grow, symmetrise, vote
from datxai.volume import Grid, Volume, load, resample

WHOLE = ("brain", "reference_region")  # regions without sides
ROI_REACH_MM = 6.0  # the large ROIs of the hottest-voxels analysis reach this far beyond the anatomy
STRIATUM_MARGIN_MM = 12.0  # the FWHM of a clinical scan: striatal counts spill over this far
MARGIN_MM = 4.0  # between the reference region and thalamus, brain stem and ventricles
RIM_MM = 2.0  # thickness of the brain's surface that the reference region leaves out
VENTRICLE_DEPTH_MM = 20.0  # cerebrospinal fluid deeper than this below the surface counts as ventricle
View = Literal["all", "striatum", "extrastriatal"]


@dataclass(frozen=True, eq=False)
class LabelAtlas:
    """Anatomy on `LATTICE`, symmetric about x = 0.

    ``labels`` holds whole numbers, ``names`` says which region each is (``caudate_left``, ``brainstem``),
    ``tissue`` is the fraction of grey and white matter. ``masks`` has the regions of `make_regions` as
    boolean arrays; of paired regions, only the left one.
    """

    labels: Volume
    names: Mapping[int, str]
    tissue: Volume
    masks: Mapping[str, np.ndarray] = field(repr=False)


def load_atlas(labels: Path | None = None, names: Path | None = None) -> LabelAtlas:
    """The packaged Desikan-Killiany atlas, or a user's own.

    Parameters
    ----------
    labels : path, optional
        NIfTI label image in MNI space, any resolution. Labels that ``names`` does not list are ignored.
    names : path, optional
        Table with the columns ``index``, ``name`` and optionally ``hemisphere`` (L, R or B); without it,
        names end in ``_left`` or ``_right``. Caudate, putamen and thalamus are required on both sides.
    """
    if (labels is None) != (names is None):
        raise InputError("atlas: give both a label image and a table of its names, or neither.")
    return _load_atlas(labels, names, hash_content([None if file is None else Path(file) for file in (labels, names)]))


@lru_cache(maxsize=2)
def _load_atlas(labels: Path | None, names: Path | None, content: str) -> LabelAtlas:
    if labels is None or names is None:
        image, table = mni.load_labels()
    else:
        image, table = load(labels), read_names(Path(names))
    grey, white = (resample(matter, LATTICE).data for matter in mni.load_tissue().values())
    tissue = symmetrise(grey + white)
    symmetric = symmetrise_labels(image, table)
    present = np.unique(symmetric)
    missing = [name for index, name in table.items() if name.startswith(REQUIRED) and index not in present]
    if missing:
        raise InputError(
            f"{labels}: no voxel of {', '.join(missing)} lies in the MNI brain; check its affine."
        )
    masks = _make_masks(symmetric, table, tissue)
    return LabelAtlas(Volume(symmetric, LATTICE.affine), table, Volume(tissue, LATTICE.affine), masks)


def make_regions(grid: Grid, atlas: LabelAtlas) -> dict[str, np.ndarray]:
    """Boolean masks of shape ``grid.shape``.

    ``brain``; ``reference_region``: brain without striata, thalamus, brain stem and ventricles and without a margin
    around them (`STRIATUM_MARGIN_MM`, `MARGIN_MM`); anatomical ``caudate``, ``putamen`` and ``striatum`` (with
    accumbens); and the large ROIs of the hottest-voxels analysis, ``caudate_roi``, ``putamen_roi`` and
    ``striatum_roi``, which reach `ROI_REACH_MM` further. A voxel near both caudate and putamen goes to the nearer one.
    All names but the first two end in ``_left`` or ``_right``. Raises `InputError` if a region has no voxel on the
    grid.
    """
    regions = {}
    for name, mask in atlas.masks.items():
        if name in WHOLE:
            regions[name] = fill(mask, grid)
        else:
            regions[f"{name}_left"] = fill(mask, grid)
            regions[f"{name}_right"] = fill(mask[::-1], grid)
    empty = [name for name, mask in regions.items() if not mask.any()]
    if empty:
        raise InputError(
            f"grid {grid.name or grid.shape}: holds no voxel of {', '.join(empty)}; "
            f"expected a grid in MNI space that covers the striata with voxels of at most 12 mm."
        )
    return regions


def make_view(grid: Grid, atlas: LabelAtlas, see: View) -> np.ndarray:
    """Boolean mask of the voxels that a network sees: ``all``; ``striatum``, the hottest-voxels ROIs of both sides; or
    ``extrastriatal``, beyond the reach of striatal spill-over (`STRIATUM_MARGIN_MM`)."""
    if see == "all":
        return np.ones(grid.shape, bool)
    left = atlas.masks["striatum_roi" if see == "striatum" else "striatum"]
    striatum = fill(left | left[::-1], grid)
    if see == "striatum":
        return striatum
    return np.asarray(ndimage.distance_transform_edt(~striatum, grid.spacing)) > STRIATUM_MARGIN_MM


def make_parcellation(grid: Grid, atlas: LabelAtlas) -> tuple[np.ndarray, dict[int, str]]:
    """Every region of the atlas on a grid: int16 labels of shape ``grid.shape`` (0: none) and their names.

    A voxel gets the label that fills the largest part of it, or 0 if unlabelled space fills more.
    """
    labels = atlas.labels.data.astype(np.int16)
    parts = ((index, *average(labels == index, grid)) for index in np.unique(labels[labels > 0]))
    parcellation = vote(parts, grid.shape)
    present = np.unique(parcellation[parcellation > 0])
    return parcellation, {int(index): atlas.names[index] for index in present}


def _make_masks(labels: np.ndarray, names: Mapping[int, str], tissue: np.ndarray) -> dict[str, np.ndarray]:
    """The masks of a `LabelAtlas`. Distances are measured in the left half only, since the head is symmetric."""
    left = labels[: MIDLINE + 1]

    def structure(*wanted: str) -> np.ndarray:
        return np.isin(left, [index for index, name in names.items() if name.removesuffix("_left") in wanted])

    brain = np.asarray(ndimage.binary_fill_holes(ndimage.binary_closing(tissue >= 0.5, iterations=4)))
    depth = np.asarray(ndimage.distance_transform_edt(brain[: MIDLINE + 1]))
    ventricles = (depth > VENTRICLE_DEPTH_MM) & (tissue[: MIDLINE + 1] < 0.5)
    caudate, putamen, accumbens = structure("caudate"), structure("putamen"), structure("accumbens")
    striatum = caudate | putamen | accumbens
    to_caudate, to_putamen = _distance(caudate, ROI_REACH_MM), _distance(putamen, ROI_REACH_MM)
    to_striatum = _distance(striatum, STRIATUM_MARGIN_MM)
    to_others = _distance(structure("thalamus", "brainstem", "pallidum") | ventricles, MARGIN_MM)
    reference = (depth > RIM_MM) & np.isinf(to_striatum) & np.isinf(to_others)
    lateral = np.ones_like(left, bool)
    lateral[MIDLINE:] = False  # the plane x = 0 belongs to neither side
    halves = {
        "caudate": caudate,
        "putamen": putamen,
        "striatum": striatum,
        "caudate_roi": (to_caudate < to_putamen) & lateral,
        "putamen_roi": np.isfinite(to_putamen) & (to_putamen <= to_caudate) & lateral,
        "striatum_roi": (to_striatum <= ROI_REACH_MM) & lateral,
    }
    masks = {"brain": brain, "reference_region": np.concatenate([reference, reference[-2::-1]])}
    for name, half in halves.items():
        masks[name] = np.concatenate([half, np.zeros_like(half[1:])])
    return masks


def _distance(mask: np.ndarray, reach: float) -> np.ndarray:
    """Distance in mm (of 1 mm voxels) to a mask, infinite beyond ``reach``."""
    distance = np.full(mask.shape, np.inf, np.float32)
    if mask.any():
        box = grow(bound(mask), int(np.ceil(reach)), mask.shape)
        distance[box] = ndimage.distance_transform_edt(~mask[box])
        distance[distance > reach] = np.inf
    return distance
