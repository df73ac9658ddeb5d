"""The FP-CIT template in MNI space, from anatomy and known uptakes, or from a site's own normal scans.

Registration uses not the template itself but its components, the bases, and fits their weights to each scan.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from functools import lru_cache, reduce

import numpy as np
from scipy import ndimage

from datxai import mni
from datxai.errors import InputError
from datxai.imaging.atlas import LabelAtlas, make_regions
from datxai.imaging.intensity import scale
from datxai.imaging.lattice import LATTICE, average, fill, paste, symmetrise
from datxai.photons import average_transmission
from datxai.volume import Grid, Volume, field_of_view, find_covered, resample

HEAD = Grid.axis_aligned((103, 125, 117), (2, 2, 2), (-102, -142, -120), "head")
TEMPLATE_FWHM_MM = 12.0
CSF_UPTAKE = 0.4
# Uptake relative to the reference region before blurring, outside caudate and putamen, chosen so that the template has
# the same measures as an average of real normal FP-CIT scans (docs/phantom.md).
UPTAKE = {
    "pallidum": 2.8, "accumbens": 2.0, "thalamus": 1.15, "amygdala": 1.3, "insula": 0.95, "hippocampus": 1.15,
    "brainstem": 1.3, "cuneus": 0.9, "superiortemporal": 1.2, "lateraloccipital": 1.1, "medialorbitofrontal": 0.8,
    "lateralorbitofrontal": 0.8, "frontalpole": 0.8, "superiorfrontal": 0.75, "rostralmiddlefrontal": 0.8,
    "caudalmiddlefrontal": 0.8, "parsopercularis": 0.8, "parsorbitalis": 0.8, "parstriangularis": 0.8,
    "precentral": 0.8, "paracentral": 0.8,
}  # fmt: skip
STRIATUM = tuple(
    f"{part}_{side}" for part in ("caudate", "putamen_anterior", "putamen_posterior") for side in ("left", "right")
)
# Weights that sum the bases to the template; caudate and putamen as in a healthy subject.
BASES = {
    "brain": 1.0,
    "dimming": 0.0,
    **{name: 2.9 if name.startswith("caudate") else 4.3 for name in STRIATUM},
    "scalp": 0.8,
    "glands": 2.5,
}
WATER_PER_MM = 0.0148  # attenuation at 159 keV
SPILL = 0.05  # at this fraction of striatum in a voxel, the packaged brain fully replaces a user's template
MIN_TEMPLATE_FIT = 0.8  # correlation of a user's template with the packaged one, over the brain
SCALP_MM = (7.0, 14.0)  # distance of the scalp from the brain's surface
GLANDS_MM = (  # centre (x to either side, y, z) and semi-axes: parotid, submandibular, nasal mucosa
    ((56, -22, -52), (9, 15, 20)),
    ((28, 12, -84), (8, 14, 9)),
    ((0, 58, -46), (12, 16, 14)),
)
SMOOTH_MM = 4.0  # FWHM; reduces the noise in a mean of few scans at little cost in sharpness
MIN_SEEN = 0.5  # the mean is zero where a smaller fraction of the scans covers a voxel


def make_template(grid: Grid, atlas: LabelAtlas) -> Volume:
    """FP-CIT uptake of an average healthy subject on ``grid``, relative to the reference region.

    The resolution is `TEMPLATE_FWHM_MM`.
    """
    bases = make_template_bases(atlas)
    data = symmetrise(reduce(np.add, (weight * bases[name].data for name, weight in BASES.items())))
    return resample(Volume(data, HEAD.affine, ({"step": "template", "fwhm_mm": TEMPLATE_FWHM_MM},)), grid)


def make_template_bases(atlas: LabelAtlas, template: Volume | None = None) -> dict[str, Volume]:
    """The template's components on `HEAD`, blurred: brain, dimming, each part of the striatum, scalp, glands.

    The template is their sum with the weights `BASES`; registration fits separate weights to each scan.
    ``dimming`` is the loss of brightness towards the middle of the head in scans without attenuation correction. The
    putamen has two bases, front and rear, because the rear loses its uptake first. Another ``template`` in MNI space,
    such as the mean of a site's own normal scans, replaces the brain except near the striatum. Raises `InputError` if
    it does not look like FP-CIT in MNI space.
    """
    return _make_bases(atlas, None if template is None else _VolumeKey(template))


class _VolumeKey:
    """A volume as a cache key: equal to any other with the same content."""

    def __init__(self, volume: Volume):
        self.volume = volume
        self.content = hashlib.sha256(volume.affine.tobytes() + volume.data.tobytes()).digest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _VolumeKey) and self.content == other.content

    def __hash__(self) -> int:
        return hash(self.content)


@lru_cache(maxsize=2)
def _make_bases(atlas: LabelAtlas, template: _VolumeKey | None) -> dict[str, Volume]:
    labels = atlas.labels.data.astype(np.int16)
    factor = np.ones(max(atlas.names) + 1, np.float32)
    maps = {"brain": np.where(atlas.masks["brain"], CSF_UPTAKE + (1 - CSF_UPTAKE) * atlas.tissue.data, 0)}
    for index, name in atlas.names.items():
        structure, _, side = name.rpartition("_")
        factor[index] = UPTAKE.get(structure if side in ("left", "right") else name, 1.0)
        if structure == "putamen":  # the rim of the putamen counts as insula
            factor[index] = UPTAKE["insula"]
    striatum = _make_striatum(labels, atlas.names)
    maps["brain"] *= factor[labels] * ~np.logical_or.reduce(list(striatum.values()))
    maps |= striatum
    bases = {name: paste(*average(data, HEAD), HEAD.shape) for name, data in maps.items()}
    bases |= _make_extracranial(fill(atlas.masks["brain"], HEAD))
    sigma = TEMPLATE_FWHM_MM / np.sqrt(8 * np.log(2)) / HEAD.spacing
    bases = {name: ndimage.gaussian_filter(data, sigma) for name, data in bases.items()}
    if template is not None:
        bases["brain"] = _take_brain(resample(template.volume, HEAD).data, bases)
    bases["dimming"] = bases["brain"] * _dim(fill(atlas.masks["brain"], HEAD))
    return {name: Volume(bases[name], HEAD.affine) for name in BASES}


def _make_striatum(labels: np.ndarray, names: Mapping[int, str]) -> dict[str, np.ndarray]:
    """The binding tissue as masks on `LATTICE`, named as in `STRIATUM`; the bridges belong to the anterior putamen."""
    front, maps = LATTICE.world_coordinates()[..., 1], {}
    for side, lateral in (("left", -1), ("right", 1)):
        caudate, putamen = (
            np.isin(labels, [index for index, name in names.items() if name == f"{structure}_{side}"])
            for structure in ("caudate", "putamen")
        )
        inner, head, bridges = mni.find_binding(putamen, caudate, labels == 0, lateral, LATTICE.affine[:3, 3])
        middle = np.median(front[inner])
        maps |= {
            f"caudate_{side}": head,
            f"putamen_anterior_{side}": inner & (front > middle) | bridges,
            f"putamen_posterior_{side}": inner & (front <= middle),
        }
    return maps


def _take_brain(template: np.ndarray, bases: Mapping[str, np.ndarray]) -> np.ndarray:
    """The brain of a user's template on `HEAD`, without striatum, scalp and glands, which are fitted separately.

    Near the striatum, where striatal counts spill over, the packaged brain is kept.
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
    spill = np.clip(sum(bases[name] for name in STRIATUM) / SPILL, 0, 1)
    user_brain = template - weights[-2] * bases["scalp"] - weights[-1] * bases["glands"]
    user_brain = user_brain / weights[0] * np.clip(brain / 0.3, 0, 1)
    return (spill * brain + (1 - spill) * user_brain).astype(np.float32)


def _dim(brain: np.ndarray) -> np.ndarray:
    """Fraction of photons that leave a head of water, relative to the mean over the brain, minus 1, on `HEAD`.

    ``brain`` is the mask of the brain; the fraction is averaged over all transaxial directions.
    """
    step, pad = 4, 8  # every fourth voxel is enough; the padding leaves room to rotate the head
    head = np.asarray(ndimage.distance_transform_edt(~brain, HEAD.spacing)) <= SCALP_MM[1]
    thickness = head[::step, ::step, ::step] * np.float32(WATER_PER_MM * step * HEAD.spacing[0])
    thickness = np.pad(thickness, ((pad, pad), (pad, pad), (0, 0)))
    index = np.stack(np.meshgrid(*(np.arange(n) / step for n in HEAD.shape), indexing="ij"))
    index[:2] += pad
    passed = symmetrise(ndimage.map_coordinates(average_transmission(thickness), index, order=1, mode="nearest"))
    return passed / passed[brain].mean() - 1


def _make_extracranial(brain: np.ndarray) -> dict[str, np.ndarray]:
    """Scalp and glands on `HEAD`, 0 to 1, from the mask of the brain."""
    inner, outer = SCALP_MM
    distance = np.asarray(ndimage.distance_transform_edt(~brain, HEAD.spacing))
    scalp = (distance > inner) & (distance <= outer)
    position = HEAD.world_coordinates()
    position[..., 0] = abs(position[..., 0])
    glands = [(((position - centre) / axes) ** 2).sum(axis=-1) <= 1 for centre, axes in GLANDS_MM]
    return {"scalp": scalp.astype(np.float32), "glands": np.logical_or.reduce(glands).astype(np.float32)}


def average_scans(scans: Iterable[tuple[Volume, np.ndarray]], atlas: LabelAtlas) -> Volume:
    """Mean of scans on `HEAD`, each scaled by its reference region, symmetric about x = 0, lightly smoothed.

    ``scans``: volumes, each with its affine map from MNI space (mm) to the scan, as found by registration.
    """
    reference = make_regions(HEAD, atlas)["reference_region"]
    total, seen, count = np.zeros(HEAD.shape), np.zeros(HEAD.shape, int), 0
    for scan, affine in scans:
        covered = find_covered(field_of_view(scan), HEAD, affine)
        total += scale(resample(scan, HEAD, affine), reference & covered).data
        seen += covered
        count += 1
    if not count:
        raise InputError("template: no scan to average, expected at least one.")
    total, seen = total + total[::-1], seen + seen[::-1]
    mean = np.where(seen >= 2 * count * MIN_SEEN, total / np.maximum(seen, 1), 0)
    sigma = SMOOTH_MM / np.sqrt(8 * np.log(2)) / HEAD.spacing
    record = {"step": "average", "scans": count, "smooth_fwhm_mm": SMOOTH_MM}
    return Volume(ndimage.gaussian_filter(mean, sigma), HEAD.affine, (record,))
