"""Regions and the FP-CIT template in MNI space, on any grid, mirror images of themselves about x = 0.

Source of the packaged anatomy: `datxai.mni`. Everything is worked out once on a 1 mm lattice and averaged
onto the grid that is asked for; a voxel belongs to a region that fills at least half of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from datxai import mni
from datxai.errors import InputError
from datxai.files import hash_content, read_table
from datxai.volume import Grid, Volume, average_transmission, load, resample

LATTICE = Grid.axis_aligned((153, 193, 165), (1, 1, 1), (-76, -112, -76), "atlas")
HEAD = Grid.axis_aligned((103, 125, 117), (2, 2, 2), (-102, -142, -120), "head")
TIE = 1e-5  # shares of a voxel that differ by less are equal, so that rounding treats both sides alike
MIDLINE = LATTICE.shape[0] // 2  # index of x = 0

WHOLE = ("brain", "reference_region")  # regions without sides
REQUIRED = ("caudate", "putamen", "thalamus")  # on both sides; any other region may be missing
ROI_REACH_MM = 6.0  # the large ROIs of the hottest-voxels analysis reach this far beyond the anatomy
STRIATUM_MARGIN_MM = 12.0  # one FWHM of a clinical scan: nearer by, striatal counts spill into the reference
MARGIN_MM = 4.0  # between the reference region and thalamus, brain stem and ventricles
RIM_MM = 2.0  # of the brain's surface that the reference region leaves out
VENTRICLE_DEPTH_MM = 20.0  # cerebrospinal fluid deeper than this below the surface counts as ventricle

TEMPLATE_FWHM_MM = 12.0
CSF_UPTAKE = 0.4
# Uptake relative to the reference region before blurring, outside caudate and putamen: what an average of
# normal FP-CIT scans shows.
UPTAKE = {
    "pallidum": 2.0, "accumbens": 2.5, "thalamus": 1.4, "amygdala": 1.2, "insula": 1.1, "hippocampus": 1.1,
    "brainstem": 1.1, "cuneus": 0.9, "superiortemporal": 0.9, "medialorbitofrontal": 0.85,
    "lateraloccipital": 0.8, "superiorfrontal": 0.8,
}  # fmt: skip
STRIATUM = tuple(
    f"{part}_{side}" for part in ("caudate", "putamen_anterior", "putamen_posterior") for side in ("left", "right")
)
# Weights that make the template of the bases; caudate and putamen as in a healthy subject.
BASES = {"brain": 1.0, "dimming": 0.0, **dict.fromkeys(STRIATUM, 4.5), "scalp": 0.8, "glands": 2.5}
WATER_PER_MM = 0.0148  # attenuation of 159 keV
SPILL = 0.05  # share of the striatum in a place above which a user's template does not show brain alone
MIN_TEMPLATE_FIT = 0.8  # correlation of a user's template with the packaged one, over the brain
SCALP_MM = (7.0, 14.0)  # distance of the scalp from the brain's surface
GLANDS_MM = (  # centre (x to either side, y, z) and semi-axes: parotid, submandibular, nasal mucosa
    ((56, -22, -52), (9, 15, 20)),
    ((28, 12, -84), (8, 14, 9)),
    ((0, 58, -46), (12, 16, 14)),
)


@dataclass(frozen=True, eq=False)
class Atlas:
    """Anatomy on `LATTICE`, symmetric about x = 0.

    ``labels`` holds whole numbers, ``names`` says which region each is (``caudate_left``, ``brainstem``),
    ``tissue`` is the fraction of grey and white matter. ``masks`` has the regions of `make_regions` as
    boolean arrays; of those that come in pairs, only the left one.
    """

    labels: Volume
    names: Mapping[int, str]
    tissue: Volume
    masks: Mapping[str, np.ndarray] = field(repr=False)


def load_atlas(labels: Path | None = None, names: Path | None = None) -> Atlas:
    """The packaged Desikan-Killiany atlas, or a user's own.

    Parameters
    ----------
    labels : path, optional
        NIfTI label image in MNI space, any resolution. Labels that ``names`` does not list are ignored.
    names : path, optional
        Table with the columns ``index``, ``name`` and optionally ``hemisphere`` (L, R or B); without it,
        names end in ``_left`` or ``_right``. Caudate, putamen and thalamus must be there on both sides.
    """
    if (labels is None) != (names is None):
        raise InputError("atlas: give both a label image and a table of its names, or neither.")
    return _load_atlas(labels, names, hash_content([None if file is None else Path(file) for file in (labels, names)]))


@lru_cache(maxsize=2)
def _load_atlas(labels: Path | None, names: Path | None, content: str) -> Atlas:
    if labels is None:
        image, table = mni.load_labels()
    else:
        image, table = load(labels), _read_names(Path(names))
    matter = mni.load_tissue()
    tissue = _symmetrise(sum(resample(matter[name], LATTICE).data for name in ("grey", "white")))
    symmetric = _symmetrise_labels(image, table)
    present = np.unique(symmetric)
    missing = [name for index, name in table.items() if name.startswith(REQUIRED) and index not in present]
    if missing:
        raise InputError(
            f"{labels}: no voxel of {', '.join(missing)} lies in the MNI brain; check its affine."
        )
    masks = _make_masks(symmetric, table, tissue)
    return Atlas(Volume(symmetric, LATTICE.affine), table, Volume(tissue, LATTICE.affine), masks)


def make_regions(grid: Grid, atlas: Atlas) -> dict[str, np.ndarray]:
    """Boolean masks of shape ``grid.shape``.

    ``brain``; ``reference_region``: brain without striata, thalamus, brain stem and ventricles and without
    what lies near them (`STRIATUM_MARGIN_MM`, `MARGIN_MM`); anatomical ``caudate``, ``putamen`` and
    ``striatum`` (with accumbens); and the large ROIs of the hottest-voxels analysis, ``caudate_roi``,
    ``putamen_roi`` and ``striatum_roi``, which reach `ROI_REACH_MM` further; what is near both caudate and
    putamen goes to the nearer. All but the first two end in ``_left`` or ``_right``. Raises `InputError` if
    the grid misses one of them.
    """
    regions = {}
    for name, mask in atlas.masks.items():
        if name in WHOLE:
            regions[name] = _fill(mask, grid)
        else:
            regions[f"{name}_left"] = _fill(mask, grid)
            regions[f"{name}_right"] = _fill(mask[::-1], grid)
    empty = [name for name, mask in regions.items() if not mask.any()]
    if empty:
        raise InputError(
            f"grid {grid.name or grid.shape}: holds no voxel of {', '.join(empty)}; "
            f"expected a grid in MNI space that covers the striata with voxels of at most 12 mm."
        )
    return regions


def make_view(grid: Grid, atlas: Atlas, see: str) -> np.ndarray:
    """Boolean mask of what a network sees: ``all``; the ``striatum``, the hottest-voxels ROIs of both sides; or what is
    ``extrastriatal``: farther from the striatum than its counts spill (`STRIATUM_MARGIN_MM`)."""
    if see == "all":
        return np.ones(grid.shape, bool)
    left = atlas.masks["striatum_roi" if see == "striatum" else "striatum"]
    striatum = _fill(left | left[::-1], grid)
    if see == "striatum":
        return striatum
    return ndimage.distance_transform_edt(~striatum, grid.spacing) > STRIATUM_MARGIN_MM


def make_parcellation(grid: Grid, atlas: Atlas) -> tuple[np.ndarray, dict[int, str]]:
    """Every region of the atlas on a grid: int16 labels of shape ``grid.shape`` (0: none) and their names.

    A voxel gets the label that fills most of it, or 0 if what has no label fills more.
    """
    labels = atlas.labels.data.astype(np.int16)
    parts = ((index, *_average(labels == index, grid)) for index in np.unique(labels[labels > 0]))
    parcellation = _vote(parts, grid.shape)
    present = np.unique(parcellation[parcellation > 0])
    return parcellation, {int(index): atlas.names[index] for index in present}


def make_template(grid: Grid, atlas: Atlas) -> Volume:
    """FP-CIT uptake of an average healthy subject on ``grid``, relative to the reference region.

    The resolution is `TEMPLATE_FWHM_MM`.
    """
    bases = make_template_bases(atlas)
    data = _symmetrise(sum(weight * bases[name].data for name, weight in BASES.items()))
    return resample(Volume(data, HEAD.affine, ({"step": "template", "fwhm_mm": TEMPLATE_FWHM_MM},)), grid)


def make_template_bases(atlas: Atlas, template: Volume | None = None) -> dict[str, Volume]:
    """The template's ingredients on `HEAD`, blurred: brain, dimming, each part of the striatum, scalp, glands.

    The template is their sum with the weights `BASES`; a registration fits weights of its own to each scan.
    ``dimming`` is by how much the brain is weaker in the depth of the head where attenuation is not corrected for;
    the putamen is halved, because its rear goes dark first. Another ``template`` in MNI space, such as the mean of
    a site's own normal scans, takes the place of the brain, less what of it is striatum. Raises `InputError` if it
    does not look like FP-CIT in MNI space.
    """
    return _make_bases(atlas, None if template is None else _Known(template))


class _Known:
    """A volume that equals any other with its content."""

    def __init__(self, volume: Volume):
        self.volume = volume
        self.content = hashlib.sha256(volume.affine.tobytes() + volume.data.tobytes()).digest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Known) and self.content == other.content

    def __hash__(self) -> int:
        return hash(self.content)


@lru_cache(maxsize=2)
def _make_bases(atlas: Atlas, template: _Known | None) -> dict[str, Volume]:
    labels = atlas.labels.data.astype(np.int16)
    front = LATTICE.world_coordinates()[..., 1]
    factor = np.ones(max(atlas.names) + 1, np.float32)
    maps = {"brain": np.where(atlas.masks["brain"], CSF_UPTAKE + (1 - CSF_UPTAKE) * atlas.tissue.data, 0)}
    for index, name in atlas.names.items():
        structure, _, side = name.rpartition("_")
        factor[index] = UPTAKE.get(structure if side in ("left", "right") else name, 1.0)
        if structure in ("caudate", "putamen"):
            factor[index] = 0.0
            here = labels == index
            if structure == "caudate":
                maps[name] = here
            else:
                middle = np.median(front[here])
                maps[f"putamen_anterior_{side}"] = here & (front > middle)
                maps[f"putamen_posterior_{side}"] = here & (front <= middle)
    maps["brain"] *= factor[labels]
    bases = {name: _paste(*_average(data, HEAD), HEAD.shape) for name, data in maps.items()}
    bases |= _make_extracranial(_fill(atlas.masks["brain"], HEAD))
    sigma = TEMPLATE_FWHM_MM / np.sqrt(8 * np.log(2)) / HEAD.spacing
    bases = {name: ndimage.gaussian_filter(data, sigma) for name, data in bases.items()}
    if template is not None:
        bases["brain"] = _take_brain(resample(template.volume, HEAD).data, bases)
    bases["dimming"] = bases["brain"] * _dim(_fill(atlas.masks["brain"], HEAD))
    return {name: Volume(bases[name], HEAD.affine) for name in BASES}


def _take_brain(template: np.ndarray, bases: Mapping[str, np.ndarray]) -> np.ndarray:
    """A user's template on `HEAD` as a basis of the brain: without striatum, scalp and glands, which are fitted apart.

    Near the striatum, where its counts spill over, the packaged brain stays.
    """
    brain = bases["brain"]
    inside = brain > 0.05
    names = ("brain", *STRIATUM, "scalp", "glands")
    columns = np.column_stack([bases[name][inside] for name in names])
    weights = np.linalg.lstsq(columns, template[inside], rcond=None)[0]
    fit = np.corrcoef(columns @ weights, template[inside])[0, 1] if template[inside].any() else 0.0
    if weights[0] <= 0 or fit < MIN_TEMPLATE_FIT:
        raise InputError(
            f"registration.template: correlates with the packaged template by {fit:.2f} over the brain, expected at "
            f"least {MIN_TEMPLATE_FIT}; give an FP-CIT image in MNI space, or leave it out."
        )
    near = np.clip(sum(bases[name] for name in STRIATUM) / SPILL, 0, 1)
    own = template - weights[-2] * bases["scalp"] - weights[-1] * bases["glands"]
    own = own / weights[0] * np.clip(brain / 0.3, 0, 1)
    return (near * brain + (1 - near) * own).astype(np.float32)


def _dim(brain: np.ndarray) -> np.ndarray:
    """How much more or less of the photons leaves a head of water than on average over the brain, on `HEAD`.

    The mean over transaxial directions, from the mask of the brain.
    """
    step, pad = 4, 8  # work on every fourth voxel, with room for the head to be turned in
    head = ndimage.distance_transform_edt(~brain, HEAD.spacing) <= SCALP_MM[1]
    thickness = head[::step, ::step, ::step] * np.float32(WATER_PER_MM * step * HEAD.spacing[0])
    thickness = np.pad(thickness, ((pad, pad), (pad, pad), (0, 0)))
    index = np.stack(np.meshgrid(*(np.arange(n) / step for n in HEAD.shape), indexing="ij"))
    index[:2] += pad
    passed = _symmetrise(ndimage.map_coordinates(average_transmission(thickness), index, order=1, mode="nearest"))
    return passed / passed[brain].mean() - 1


def _make_extracranial(brain: np.ndarray) -> dict[str, np.ndarray]:
    """Scalp and glands on `HEAD`, 0 to 1, from the mask of the brain."""
    inner, outer = SCALP_MM
    distance = ndimage.distance_transform_edt(~brain, HEAD.spacing)
    scalp = (distance > inner) & (distance <= outer)
    position = HEAD.world_coordinates()
    position[..., 0] = abs(position[..., 0])
    glands = [(((position - centre) / axes) ** 2).sum(axis=-1) <= 1 for centre, axes in GLANDS_MM]
    return {"scalp": scalp.astype(np.float32), "glands": np.logical_or.reduce(glands).astype(np.float32)}


def _make_masks(labels: np.ndarray, names: Mapping[int, str], tissue: np.ndarray) -> dict[str, np.ndarray]:
    """The masks of an `Atlas`. In a symmetric head the distances within one half are those within the whole."""
    left = labels[: MIDLINE + 1]

    def structure(*wanted: str) -> np.ndarray:
        return np.isin(left, [index for index, name in names.items() if name.removesuffix("_left") in wanted])

    brain = ndimage.binary_fill_holes(ndimage.binary_closing(tissue >= 0.5, iterations=4))
    depth = ndimage.distance_transform_edt(brain[: MIDLINE + 1])
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
        box = _grow(_box(mask), int(np.ceil(reach)), mask.shape)
        distance[box] = ndimage.distance_transform_edt(~mask[box])
        distance[distance > reach] = np.inf
    return distance


def _symmetrise(data: np.ndarray) -> np.ndarray:
    return (data + data[::-1]) / 2


def _symmetrise_labels(image: Volume, names: Mapping[int, str]) -> np.ndarray:
    """A label image on `LATTICE` as mirror images: the mean share of both sides, blurred by 1 mm, decides."""
    labels = np.rint(image.data).astype(np.int32)
    index = {name: number for number, name in names.items()}
    other = np.arange(max(names) + 1)
    for name, number in index.items():
        if name.endswith("_left"):
            right = index[name.removesuffix("_left") + "_right"]
            other[[number, right]] = right, number
    boxes = dict(enumerate(ndimage.find_objects(labels), start=1))
    half = Grid((MIDLINE + 1, *LATTICE.shape[1:]), LATTICE.affine)

    def find_share(number: int, mirror: np.ndarray) -> tuple:
        box = _grow(boxes[number], 1, labels.shape)
        return _average(labels[box] == number, half, mirror @ _shifted(image.affine, [s.start for s in box]))

    def parts() -> Iterator[tuple]:
        for number, name in names.items():
            if name.endswith("_right"):
                continue
            sides = ((number, np.eye(4)), (other[number], np.diag([-1.0, 1.0, 1.0, 1.0])))
            found = [find_share(*side) for side in sides if boxes.get(side[0])]
            if found:
                box = _grow(_enclose([inner for inner, _ in found]), 4, half.shape)
                mean = np.zeros([s.stop - s.start for s in box], np.float32)
                for inner, share in found:
                    mean[tuple(slice(i.start - o.start, i.stop - o.start) for i, o in zip(inner, box))] += share / 2
                yield number, box, ndimage.gaussian_filter(mean, 1.0)

    left = _vote(parts(), half.shape)
    paired = other != np.arange(len(other))
    left[MIDLINE][paired[left[MIDLINE]]] = 0  # the plane x = 0 belongs to neither side
    return np.concatenate([left, other[left][-2::-1].astype(np.int16)])


def _vote(parts: Iterable[tuple], shape: tuple[int, ...]) -> np.ndarray:
    """Label of the largest share in each voxel, int16; 0 where labels tie or the rest is larger.

    ``parts``: (label, box of slices, share of the label in the voxels of the box), labels above 0.
    """
    labels = np.zeros(shape, np.int16)
    largest = np.zeros(shape, np.float32)
    rest = np.ones(shape, np.float32)
    for label, box, share in parts:
        rest[box] -= share
        lead = share - largest[box]
        labels[box][abs(lead) <= TIE] = 0
        labels[box][lead > TIE] = label
        np.maximum(largest[box], share, out=largest[box])
    labels[rest > largest + TIE] = 0
    return labels


def _fill(mask: np.ndarray, grid: Grid) -> np.ndarray:
    """Voxels of ``grid`` of which a mask on `LATTICE` fills at least half."""
    box, share = _average(mask, grid)
    return _paste(box, share >= 0.5 - TIE, grid.shape)


def _average(
    data: np.ndarray, grid: Grid, affine: np.ndarray = LATTICE.affine
) -> tuple[tuple[slice, ...], np.ndarray]:
    """Mean of data (on `LATTICE`) in the voxels of ``grid``: the box that holds it all, and the means in the box."""
    source = _grow(_box(data > 0), 1, data.shape)
    crop = Volume(data[source], _shifted(affine, [s.start for s in source]))
    corners = np.array(list(product(*((s.start - 1, s.stop) for s in source))))
    index = nib.affines.apply_affine(np.linalg.inv(grid.affine) @ affine, corners)
    low = np.clip(np.floor(index.min(axis=0)), 0, grid.shape).astype(int)
    high = np.clip(np.ceil(index.max(axis=0)) + 1, low, grid.shape).astype(int)
    box = tuple(map(slice, low, high))
    if (low == high).any():
        return box, np.zeros(high - low, np.float32)
    return box, resample(crop, Grid(tuple(high - low), _shifted(grid.affine, low))).data


def _paste(box: tuple[slice, ...], values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    whole = np.zeros(shape, values.dtype)
    whole[box] = values
    return whole


def _shifted(affine: np.ndarray, start: Iterable[int]) -> np.ndarray:
    """The affine of a crop that begins at voxel ``start``."""
    shifted = affine.copy()
    shifted[:3, 3] += affine[:3, :3] @ np.asarray(start, float)
    return shifted


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    return ndimage.find_objects(mask.view(np.uint8))[0]


def _enclose(boxes: Iterable[tuple[slice, ...]]) -> tuple[slice, ...]:
    return tuple(slice(min(s.start for s in along), max(s.stop for s in along)) for along in zip(*boxes))


def _grow(box: Iterable[slice], by: int, shape: Iterable[int]) -> tuple[slice, ...]:
    return tuple(slice(max(s.start - by, 0), min(s.stop + by, n)) for s, n in zip(box, shape))


def _read_names(path: Path) -> dict[int, str]:
    """Names of the labels from a user's table, each with its side."""
    rows = read_table(path)
    if not {"index", "name"} <= rows[0].keys():
        raise InputError(
            f"{path}: has the columns {', '.join(rows[0])}, expected index and name; rename them."
        )
    names: dict[int, str] = {}
    for row in rows:
        name = row["name"].lower()
        side = {"L": "_left", "R": "_right"}.get(row.get("hemisphere", "").upper(), "")
        if not row["index"].isdecimal() or not 0 < int(row["index"]) < 2**15 or int(row["index"]) in names:
            raise InputError(
                f"{path}: index {row['index']!r} is not from 1 to 32767 or is there twice; correct it."
            )
        names[int(row["index"])] = name if name.endswith(side) else name + side
    listed = set(names.values())
    expected = {f"{name}{side}" for name in REQUIRED for side in ("_left", "_right")}
    for here, there in (("_left", "_right"), ("_right", "_left")):
        expected |= {name.removesuffix(here) + there for name in listed if name.endswith(here)}
    if expected - listed:
        raise InputError(f"{path}: lacks {', '.join(sorted(expected - listed))}; add them to the table.")
    if len(listed) < len(names):
        raise InputError(f"{path}: several indices have the same name; give each region one index.")
    return names
