"""Anatomy: FP-CIT uptake in the average head, and how individual heads differ from it.

The average head is a table of region fractions on a 2 mm MNI grid, so that one sparse product turns any regional
uptake into an image. An individual is that image after a pose, a head size, two striatal sizes and a smooth warp.

The striatum is that of the atlas without its rim, plus bridges between caudate and putamen and a longer tail
(`datxai.mni.find_binding`); without these, no regional binding reproduces the profiles of real scans.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, reduce

import numpy as np
from scipy import ndimage, sparse

from datxai import mni
from datxai.volume import Grid, Volume, resample

HEAD_GRID = Grid.axis_aligned((112, 134, 134), (2, 2, 2), (-111, -145, -149), "MNI head 2 mm")
_VOXEL_MM = 2.0
_ORIGIN = HEAD_GRID.affine[:3, 3].reshape(3, 1, 1, 1)
HEAD_CENTRE = np.array([0.0, -18.0, -10.0])  # MNI point at the scan's origin if the head is not moved
STRIATUM_CENTRE = np.array([22.0, 4.0, 4.0])  # of the right side, MNI
STRIATUM_REACH_MM = 18.0  # standard deviation of the neighbourhood that scales with a striatum
WARP_SPACING_MM = 40.0
WATER_PER_CM, BONE_PER_CM = 0.148, 0.21  # narrow-beam attenuation at 159 keV; bone with its marrow
PUTAMEN_PARTS = ("putamen_posterior", "putamen_middle", "putamen_anterior")
DORSAL_MM = 8.0  # MNI z above which the caudate has a separate binding
# Regions with specific binding, drawn for each person.
BINDING = ("caudate", "caudate_dorsal", "bridges", "accumbens", *PUTAMEN_PARTS[::-1], "pallidum")

# Uptake per volume, 1 in the reference region: apparent values of a normal FP-CIT average, sharpened to compensate for
# later blur and attenuation. The regions with specific `BINDING` are not included.
UPTAKE = {
    "thalamus": 1.31,
    "midbrain": 1.49,
    "brainstem": 1.49,
    "hippocampus": 1.44,
    "amygdala": 1.38,
    "insula": 0.781,
    "frontal": 0.576,
    "orbitofrontal": 0.832,
    "cingulate": 0.946,
    "parietal": 1.07,
    "precuneus": 1.13,
    "temporal": 0.824,
    "occipital": 0.673,
    "cerebellum": 1.02,
    "white": 1.06,
    "csf": 0.35,
    "skull": 0.30,
    "scalp": 0.65,
    "soft": 0.42,
    "parotid": 2.3,
    "submandibular": 2.0,
    "nasal": 1.2,
}
# Variation between people: standard deviation of the log.
UPTAKE_SPREAD = {
    "thalamus": 0.08,
    "midbrain": 0.08,
    "brainstem": 0.06,
    "insula": 0.05,
    "frontal": 0.04,
    "cingulate": 0.04,
    "parietal": 0.04,
    "temporal": 0.04,
    "occipital": 0.05,
    "cerebellum": 0.05,
    "white": 0.04,
    "scalp": 0.25,
    "soft": 0.2,
    "parotid": 0.4,
    "submandibular": 0.4,
    "nasal": 0.3,
}
_LOBES = {
    "orbitofrontal": "lateralorbitofrontal medialorbitofrontal frontalpole",
    "frontal": "superiorfrontal rostralmiddlefrontal caudalmiddlefrontal parsopercularis parsorbitalis "
    "parstriangularis precentral paracentral",
    "cingulate": "caudalanteriorcingulate rostralanteriorcingulate posteriorcingulate isthmuscingulate",
    "parietal": "postcentral superiorparietal inferiorparietal supramarginal",
    "temporal": "bankssts entorhinal fusiform inferiortemporal middletemporal parahippocampal superiortemporal "
    "temporalpole transversetemporal",
    "occipital": "cuneus lateraloccipital lingual pericalcarine",
}
_LOBE_OF = {name: lobe for lobe, names in _LOBES.items() for name in names.split()}
_CORTEX = {*_LOBES, "insula", "precuneus"}
_RINGS = tuple(f"periventricular_{i}" for i in range(4))  # white matter that widening ventricles replace
_RING_MM = 2.0
_MIDBRAIN_FLOOR_MM = -24.0  # MNI z between pons and midbrain

# Centre and semi-axes (MNI mm) of structures in front of and below the brain, on both sides if x is not 0.
_FACE = ((0, 38, -68), (62, 56, 62))
_NECK = ((0, -32), (58, 62), -55)  # a cylinder: x and y, and its upper end in z
_GLANDS = {
    "parotid": ((57, -14, -74), (11, 16, 24)),
    "submandibular": ((33, 14, -114), (10, 14, 11)),
    "nasal": ((0, 70, -48), (13, 16, 20)),
}
_SUBARACHNOID_MM, _SKULL_MM, _SCALP_MM = 3.0, 9.0, 15.0  # distance of the outer surfaces from the brain's surface


@dataclass(frozen=True)
class Head:
    """Differences between an individual and the average head, and its position in the camera.

    ``zooms``: size relative to the MNI head along x, y, z. ``rotation_deg``: pitch, roll, yaw (about x, y, z).
    ``shift_mm``: from the camera's centre to the head's. ``striata``: relative linear size of the left and right
    striatum. ``ventricle_mm``: how far the ventricles have widened. ``warp_mm``: standard deviation of the smooth
    random displacement, drawn with ``warp_seed``.
    """

    zooms: tuple[float, float, float] = (1.0, 1.0, 1.0)
    rotation_deg: tuple[float, float, float] = (0.0, 0.0, 0.0)
    shift_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    striata: tuple[float, float] = (1.0, 1.0)
    ventricle_mm: float = 0.0
    warp_mm: float = 0.0
    warp_seed: int = 0

    @property
    def mni_to_scan(self) -> np.ndarray:
        """The affine part, 4 x 4: MNI mm to scan mm, as `datxai.volume.resample` expects it."""
        matrix = np.eye(4)
        matrix[:3, :3] = _rotation(self.rotation_deg) @ np.diag(self.zooms)
        matrix[:3, 3] = np.asarray(self.shift_mm) - matrix[:3, :3] @ HEAD_CENTRE
        return matrix


def place(head: Head, uptake: Mapping[str, float], grid: Grid) -> tuple[Volume, Volume]:
    """Activity (per volume, 1 in the reference region) and attenuation (per cm) of a head on a scan grid.

    ``uptake`` holds the regions `BINDING`, each with `_left` and `_right`, and overrides `UPTAKE` for other regions.
    ``grid`` has axes along x, y, z and cubic voxels.
    """
    fractions, names = average_head()
    values = widen_ventricles({**UPTAKE, **uptake}, head.ventricle_mm)
    image = fractions @ np.array([values[name] for name in names], np.float32)
    attenuation = fractions @ np.array([BONE_PER_CM if n == "skull" else WATER_PER_CM for n in names], np.float32)
    activity, attenuation = render(head, (image, attenuation), grid)
    return Volume(activity, grid.affine), Volume(attenuation, grid.affine)


def widen_ventricles(uptake: Mapping[str, float], ventricle_mm: float) -> dict[str, float]:
    """The uptake, extended by the white matter around the ventricles, which turns to csf as they widen."""
    values = dict(uptake)
    for i, ring in enumerate(_RINGS):
        taken = min(max(ventricle_mm / _RING_MM - i, 0.0), 1.0)
        values[ring] = taken * values["csf"] + (1.0 - taken) * values["white"]
    return values


def render(head: Head, images: Iterable[np.ndarray], grid: Grid) -> list[np.ndarray]:
    """Images of the average head (flat values on `HEAD_GRID`), deformed to an individual head on a scan grid."""
    index = (np.moveaxis(mni_positions(head, grid), -1, 0) - _ORIGIN) / _VOXEL_MM
    # A target voxel averages over its volume: the larger it is, the more the image is smoothed beforehand.
    sigma = np.sqrt(max(grid.spacing[0] ** 2 - _VOXEL_MM**2, 0.0) / 12.0) / _VOXEL_MM
    return [
        ndimage.map_coordinates(ndimage.gaussian_filter(_image(values), sigma, truncate=3.0), index, order=1)
        for values in images
    ]


def mni_positions(head: Head, grid: Grid) -> np.ndarray:
    """Position of each voxel of a scan grid in the average head: MNI mm, shape (X, Y, Z, 3)."""
    scan = grid.world_coordinates()
    back = np.linalg.inv(head.mni_to_scan)
    position = (scan + _warp(head, grid)) @ back[:3, :3].T + back[:3, 3]
    pull = np.zeros_like(position)
    for side, size in zip((-1.0, 1.0), head.striata):
        offset = position - STRIATUM_CENTRE * (side, 1.0, 1.0)
        weight = np.exp(-(offset**2).sum(axis=-1, keepdims=True) / (2.0 * STRIATUM_REACH_MM**2))
        pull += (1.0 / size - 1.0) * weight * offset
    return position + pull


def _warp(head: Head, grid: Grid) -> np.ndarray:
    """Smooth random displacement in mm, shape (X, Y, Z, 3): Gaussians on a lattice fixed to the scan's origin."""
    nodes = WARP_SPACING_MM * np.arange(-4, 5)
    weights = np.random.default_rng(head.warp_seed).standard_normal((3, *3 * [nodes.size]))
    bells = []
    for axis in range(3):
        position = grid.affine[axis, 3] + grid.affine[axis, axis] * np.arange(grid.shape[axis])
        bell = np.exp(-((position[:, None] - nodes) ** 2) / (2.0 * (0.6 * WARP_SPACING_MM) ** 2))
        bells.append(bell / np.linalg.norm(bell, axis=1, keepdims=True))  # the same variance everywhere
    return head.warp_mm * np.einsum("dijk,xi,yj,zk->xyzd", weights, *bells, optimize=True)


def _rotation(degrees: tuple[float, float, float]) -> np.ndarray:
    """Rotation about x, then y, then z; angles in degrees."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[[i, j], [i, j]] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


@cache
def average_head() -> tuple[sparse.csr_array, tuple[str, ...]]:
    """Volume fractions of the average head (voxels of `HEAD_GRID` x regions, float32), and the names of the regions."""
    fractions, names = _labelled()
    covered = fractions.sum(axis=1)
    tissue = mni.load_tissue()
    grey, white = (resample(tissue[name], HEAD_GRID).data.ravel() for name in ("grey", "white"))
    brain = np.asarray(ndimage.binary_fill_holes(ndimage.binary_closing(_image(grey + white > 0.5), iterations=3)))
    outside = _distance(~brain)
    depth = _distance(brain)
    brain = brain.ravel()
    rest = np.where(brain, np.clip(1.0 - covered, 0.0, 1.0), 0.0)
    _, y, z = HEAD_GRID.world_coordinates().reshape(-1, 3).T

    # Unlabelled grey matter goes to the nearest cortex; behind and below, grey and white matter are cerebellum.
    cortical = [i for i, name in enumerate(names) if name in _CORTEX]
    cortex = fractions[:, cortical]
    nearest_cortex = ndimage.distance_transform_edt(_image(cortex.sum(axis=1) < 0.5), return_indices=True)
    assert isinstance(nearest_cortex, tuple)
    distance, nearest = nearest_cortex
    nearest = np.ravel_multi_index(nearest.reshape(3, -1), HEAD_GRID.shape)
    lobe = np.asarray(cortical)[cortex.toarray().argmax(axis=1)][nearest]
    cerebellum = (distance.ravel() * _VOXEL_MM > 4.0) & (y < -32.0) & (z < -8.0)
    grey, white = rest * grey, rest * white
    names = [*names, *_RINGS]
    cells = [_cells(fractions)]

    def fill(region: str | np.ndarray, where: np.ndarray, weight: np.ndarray | float) -> None:
        """Assign ``weight`` of the voxels in ``where`` to a region, or to one region per voxel."""
        voxels = np.flatnonzero(where & (np.broadcast_to(weight, where.shape) > 0.01))
        if isinstance(region, str):
            if region not in names:
                names.append(region)
            region = np.full(where.shape, names.index(region))
        cells.append((voxels, region[voxels], np.broadcast_to(weight, where.shape)[voxels]))

    fill(lobe, ~cerebellum, grey)
    fill("cerebellum", cerebellum, grey + white)
    fill("csf", brain, rest - grey - white)
    ventricle = (rest - grey - white > 0.5) & (depth > 16.0) & (z > -20.0)
    ring = _distance(_image(~ventricle))
    ring = np.ceil(ring / _RING_MM).astype(int) - 1
    for i, name in enumerate(_RINGS):
        fill(name, ~cerebellum & (ring == i), white)
    fill("white", ~cerebellum & (ring >= len(_RINGS)), white)

    free, rest = ~brain, 1.0 - covered
    for name, region in _outer_layers(outside):
        fill(name, free & region, rest)
        free &= ~region
    rows, columns, weights = (np.concatenate(parts) for parts in zip(*cells))
    shape = (brain.size, len(names))
    return sparse.csr_array((weights.astype(np.float32), (rows, columns)), shape=shape), tuple(names)


def _outer_layers(outside: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """The head outside the brain, from the inside out; ``outside`` is the distance from the brain in mm.

    Where several regions are, the first fills the voxel.
    """
    x, y, z = HEAD_GRID.world_coordinates().reshape(-1, 3).T
    glands = {
        name: _ellipsoid(np.abs(x) if centre[0] else x, y, z, centre, axes) for name, (centre, axes) in _GLANDS.items()
    }
    neck = (np.hypot((x - _NECK[0][0]) / _NECK[1][0], (y - _NECK[0][1]) / _NECK[1][1]) < 1.0) & (z < _NECK[2])
    head = (outside < _SCALP_MM) | _ellipsoid(x, y, z, *_FACE) | neck
    skin = _distance(_image(head)) < _SCALP_MM - _SKULL_MM
    layers = [
        ("csf", outside <= _SUBARACHNOID_MM),
        ("skull", outside <= _SKULL_MM),
        *glands.items(),
        ("scalp", skin & (z > -100.0)),
        ("soft", head),
    ]
    return [(name, head & region) for name, region in layers]


def _labelled() -> tuple[sparse.csr_array, list[str]]:
    """Fractions of the regions labelled in the atlas, counted in its 1 mm voxels."""
    labels, label_names = mni.load_labels()
    names = {_region(name) for name in label_names.values()} | {"midbrain"}
    added = (*PUTAMEN_PARTS, "caudate_dorsal", "bridges")
    names = sorted(names | {f"{part}_{side}" for part in added for side in ("left", "right")})
    column_of = np.full(max(label_names) + 1, -1)
    column_of[list(label_names)] = [names.index(_region(name)) for name in label_names.values()]
    column = column_of[labels.data.astype(int)]
    for side, lateral in (("left", -1), ("right", 1)):
        _shape_striatum(column, names, side, lateral, labels.affine[:3, 3])
    index = np.argwhere(column >= 0)
    column = column[tuple(index.T)]
    position = index + labels.affine[:3, 3]
    column[(column == names.index("brainstem")) & (position[:, 2] > _MIDBRAIN_FLOOR_MM)] = names.index("midbrain")
    voxel = np.rint((position - _ORIGIN.ravel()) / _VOXEL_MM).astype(int)
    row = np.ravel_multi_index(tuple(voxel.T), HEAD_GRID.shape)
    weight = np.full(row.size, _VOXEL_MM**-3, np.float32)
    shape = (int(np.prod(HEAD_GRID.shape)), len(names))
    return sparse.csr_array((weight, (row, column)), shape=shape), names


def _shape_striatum(column: np.ndarray, names: list[str], side: str, lateral: int, origin: np.ndarray) -> None:
    """Shape the binding tissue on one side: divide putamen (from back to front) and caudate (by height), add bridges.

    ``column`` (X, Y, Z) holds the region of each 1 mm voxel, -1 for none, and is changed in place; its first voxel is
    at ``origin``.
    """
    putamen, caudate = (column == names.index(f"{name}_{side}") for name in ("putamen_middle", "caudate"))
    binding_putamen, binding_caudate, bridges = mni.find_binding(putamen, caudate, column < 0, lateral, origin)
    column[bridges] = names.index(f"bridges_{side}")
    column[(putamen & ~binding_putamen) | (caudate & ~binding_caudate)] = -1
    dorsal = binding_caudate & (np.arange(column.shape[2]) + origin[2] > DORSAL_MM)
    column[dorsal] = names.index(f"caudate_dorsal_{side}")
    binding_putamen = np.argwhere(binding_putamen)
    third = np.searchsorted(np.quantile(binding_putamen[:, 1], [1 / 3, 2 / 3]), binding_putamen[:, 1])
    column[tuple(binding_putamen.T)] = np.array([names.index(f"{part}_{side}") for part in PUTAMEN_PARTS])[third]


def _region(label: str) -> str:
    """Region of an atlas label: binding regions keep their side (putamen as its middle part), cortex goes by lobe."""
    stem = label.removesuffix("_left").removesuffix("_right")
    if stem in ("putamen", *BINDING):
        return label.replace("putamen", "putamen_middle")
    return _LOBE_OF.get(stem, stem)


def _cells(matrix: sparse.csr_array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    entries = matrix.tocoo()
    voxels, regions = entries.coords
    return voxels, regions, entries.data


def _distance(within: np.ndarray) -> np.ndarray:
    """Distance in mm from each voxel of a mask to the nearest voxel outside it, flat."""
    return np.asarray(ndimage.distance_transform_edt(within)).ravel() * _VOXEL_MM


def _image(values: np.ndarray) -> np.ndarray:
    return values.reshape(HEAD_GRID.shape)


def _ellipsoid(x, y, z, centre: tuple, axes: tuple) -> np.ndarray:
    return reduce(np.add, (((p - c) / a) ** 2 for p, c, a in zip((x, y, z), centre, axes))) < 1.0
