"""Volumes: float32 arrays in RAS+ millimetre space, with a history of processing steps.

Inside datxai there is one kind of image. Array axes are (X, Y, Z), increasing to the patient's right, front
and top as closely as the scanner's axes allow; the affine maps voxel indices to world millimetres.
Conversion from other conventions happens only here, when a file is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage, sparse

from datxai import nifti
from datxai.errors import InputError
from datxai.files import hash_file, hash_json, read_json, replacing, write_json

UPTAKE, RELEVANCE = "uptake ratio", "relevance"  # what volumes show: NIfTI intent names, of at most 15 letters
MNI_CODE, SCANNER_CODE = 4, 1  # NIfTI-1 xform codes
AFFINE_TOLERANCE_MM = 1e-3  # two grids are the same if no affine element differs by more than this


@dataclass(frozen=True, eq=False)
class Grid:
    """A regular lattice of voxels: shape (X, Y, Z) and affine (4 x 4, voxel index to RAS+ mm)."""

    shape: tuple[int, ...]
    affine: np.ndarray
    name: str = ""

    @classmethod
    def axis_aligned(
        cls, shape: Sequence[int], spacing: Sequence[float], origin: Sequence[float], name: str = ""
    ) -> Grid:
        """Grid with axes along RAS+; ``origin`` is the centre of voxel (0, 0, 0) and all lengths are in mm."""
        affine = np.diag([*map(float, spacing), 1.0])
        affine[:3, 3] = origin
        return cls(tuple(int(n) for n in shape), affine, name)

    @cached_property
    def spacing(self) -> np.ndarray:
        """Voxel edge lengths in mm, shape (3,)."""
        return np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0))

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return float(abs(np.linalg.det(self.affine[:3, :3])) / 1000.0)

    def same_as(self, other: Grid) -> bool:
        """Whether shape and affine agree (to `AFFINE_TOLERANCE_MM`)."""
        return self.shape == other.shape and np.allclose(self.affine, other.affine, rtol=0, atol=AFFINE_TOLERANCE_MM)

    def world_coordinates(self) -> np.ndarray:
        """World coordinates of all voxel centres in mm, shape (X, Y, Z, 3), float64."""
        index = np.stack(np.meshgrid(*map(np.arange, self.shape), indexing="ij"), axis=-1)
        return index @ self.affine[:3, :3].T + self.affine[:3, 3]

    def index_to_mm(self, index: ArrayLike) -> np.ndarray:
        """World coordinates in mm of a voxel index (or of an array of indices, last axis 3)."""
        return np.asarray(index, float) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def mm_to_index(self, position: ArrayLike) -> np.ndarray:
        """Fractional voxel index of a world position in mm."""
        return np.linalg.solve(self.affine[:3, :3], np.asarray(position, float) - self.affine[:3, 3])


@dataclass(frozen=True, eq=False)
class Volume:
    """A scan, a template, a mask or a relevance map.

    ``data`` is float32 of shape (X, Y, Z), ``affine`` maps indices to RAS+ mm, ``history`` lists processing steps,
    oldest first: one JSON-like mapping per step with its ``step`` name and its parameters.
    """

    data: np.ndarray
    affine: np.ndarray
    history: tuple[Mapping, ...] = field(default=())

    def __post_init__(self):
        object.__setattr__(self, "data", np.asarray(self.data, dtype=np.float32))
        object.__setattr__(self, "affine", np.asarray(self.affine, dtype=np.float64))
        assert self.data.ndim == 3, self.data.shape
        assert self.affine.shape == (4, 4), self.affine.shape

    @property
    def shape(self) -> tuple[int, ...]:
        """(X, Y, Z)."""
        return self.data.shape

    @property
    def grid(self) -> Grid:
        """The volume's lattice, without a name."""
        return Grid(self.data.shape, self.affine)

    def after(self, step: str, data: np.ndarray, affine: np.ndarray | None = None, **parameters) -> Volume:
        """The result of ``step`` on this volume; the step and its parameters are added to the history."""
        return replace(
            self,
            data=data,
            affine=self.affine if affine is None else affine,
            history=(*self.history, {"step": step, **parameters}),
        )

    def recorded(self, step: str) -> Mapping | None:
        """The latest record of ``step`` in the history, or None."""
        return next((record for record in reversed(self.history) if record["step"] == step), None)


def load(path: str | os.PathLike, blank: bool = False) -> Volume:
    """Read a NIfTI file as a `Volume`, axes permuted and flipped to the closest RAS+ order.

    NaN outside the scan becomes zero. Raises `InputError` for files that `datxai.nifti.read` refuses, several frames,
    infinite values, NaN within the scan, and, unless ``blank`` is allowed, an image that is zero everywhere.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a NIfTI volume (.nii or .nii.gz).")
    data, affine = nifti.read(path)
    if data.dtype.kind not in "iuf":
        kind = "colours" if data.dtype.names else f"values of type {data.dtype}"
        raise InputError(f"{path}: holds {kind}, expected one real number per voxel; export the intensities alone.")
    if data.ndim > 3 and all(n == 1 for n in data.shape[3:]):
        data = data.reshape(data.shape[:3])
    if data.ndim != 3:
        raise InputError(
            f"{path}: has shape {data.shape}, expected one 3-D volume; extract or average the frames first."
        )
    with np.errstate(over="ignore"):  # values beyond float32 become infinite, and are refused as such
        data = data.astype(np.float32)
    data = require_signal(data, path, blank)
    volume = to_ras(data, affine)
    return replace(volume, history=({"step": "load", "file": path.name},))


def save(
    volume: Volume, path: str | os.PathLike, sidecar: Mapping | None = None, mni: bool = True, shows: str = ""
) -> None:
    """Write NIfTI-1 float32 atomically, and beside it a JSON with ``history`` and the entries of ``sidecar``.

    The JSON is written last: where it exists, the volume is complete. ``mni`` sets the space in the header (MNI 152,
    else scanner space), and ``shows`` the kind of values (`UPTAKE`, `RELEVANCE`) and the display range for other
    viewers.
    """
    path = Path(path)
    image = nib.Nifti1Image(volume.data, volume.affine)
    code = MNI_CODE if mni else SCANNER_CODE
    image.set_sform(volume.affine, code)
    image.set_qform(volume.affine, code)
    image.header.set_xyzt_units("mm")
    if shows:
        high = float(np.abs(volume.data).max(initial=0))
        image.header["descrip"] = f"datxai: {shows}"
        image.header.set_intent("estimate", name=shows)
        image.header["cal_min"], image.header["cal_max"] = -high if shows == RELEVANCE else 0.0, high
    sidecar_path(path).unlink(missing_ok=True)
    with replacing(path) as temporary:
        nib.save(image, temporary)
    write_sidecar(path, {**(sidecar or {}), "history": list(volume.history)})


def write_sidecar(path: str | os.PathLike, content: Mapping) -> None:
    """Write the JSON beside an existing volume, with a ``checksum`` of its ``content`` and of the volume."""
    entries = {key: value for key, value in content.items() if key != "checksum"}
    write_json(sidecar_path(path), {**entries, "checksum": hash_json([entries, hash_file(path)])})


def is_whole(path: str | os.PathLike) -> bool:
    """Whether a volume and the JSON beside it exist and are intact; older ones without a checksum only have to
    exist."""
    path = Path(path)
    try:
        content = read_json(sidecar_path(path)) if path.is_file() else None
        if content is None:
            return False
        checksum = content.pop("checksum", None)
        return checksum is None or checksum == hash_json([content, hash_file(path)])
    except (OSError, InputError):
        return False


def sidecar_path(path: str | os.PathLike) -> Path:
    """The path of the JSON beside a NIfTI file."""
    path = Path(path)
    return path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".json")


def to_ras(data: np.ndarray, affine: np.ndarray) -> Volume:
    """Permute and flip array axes to the closest RAS+ order; the affine is adapted to keep world positions."""
    orientation = nib.io_orientation(affine)
    affine = affine @ nib.orientations.inv_ornt_aff(orientation, data.shape)
    return Volume(np.ascontiguousarray(nib.apply_orientation(data, orientation), dtype=np.float32), affine)


def require_signal(data: np.ndarray, name: object, blank: bool = False) -> np.ndarray:
    """The data with NaN replaced by zero where it marks missing data, outside the field of view or around a head.

    Raises `InputError` for infinite values, NaN within the scan (values on both sides along all axes, or a whole slice
    between others), and, unless ``blank`` is allowed, if there are only zeros.
    """
    unknown = np.isnan(data)
    if unknown.any():
        within = _surrounded(np.logical_not(unknown))
        for axis in range(3):
            seen = ~np.asarray(unknown.all(axis=tuple({0, 1, 2} - {axis})))
            np.moveaxis(within, axis, 0)[_surrounded(seen) & ~seen] = True
        if bad := int((within & unknown).sum()):
            raise InputError(
                f"{name}: {bad} voxels within the scan are NaN, expected values; export the scan again or replace them."
            )
        data = np.where(unknown, np.float32(0), data)
    if not np.isfinite(data).all():
        raise InputError(
            f"{name}: {int((~np.isfinite(data)).sum())} voxels are infinite, expected finite values only; "
            f"export the scan again or replace them."
        )
    if not blank and not data.any():
        raise InputError(f"{name}: every voxel is zero, expected a scan; export it again.")
    return data


def _surrounded(filled: np.ndarray) -> np.ndarray:
    """Voxels with filled ones on both sides along all axes."""
    enclosed = np.ones(filled.shape, bool)
    for axis in range(filled.ndim):
        back = np.flip(np.maximum.accumulate(np.flip(filled, axis), axis=axis), axis)
        enclosed &= np.maximum.accumulate(filled, axis=axis) & back
    return enclosed


def resample(volume: Volume, grid: Grid, transform: np.ndarray | None = None, step: str = "resample") -> Volume:
    """Resample a volume to another grid, averaging where the grid is coarser than the volume.

    Interpolation is trilinear, with zero outside the volume, which extends to the edges of its voxels. A voxel of
    ``grid`` that is larger than the source's along an axis is the mean of evenly spaced points within it, so that no
    source voxel is missed.

    Parameters
    ----------
    volume : Volume
    grid : Grid
        The target lattice.
    transform : array (4, 4), optional
        Maps world mm of ``grid`` to world mm of ``volume``, as found by registration. Identity if left out.
    """
    transform = np.eye(4) if transform is None else np.asarray(transform, float)
    index_map = np.linalg.inv(volume.affine) @ transform @ grid.affine  # target index -> source index
    record = _resample_record(grid, transform)
    offset = _integer_offset(index_map, grid.shape, volume.shape)
    if offset is not None:  # a crop: values are copied
        data = volume.data[tuple(slice(o, o + n) for o, n in zip(offset, grid.shape))]
        return volume.after(step, np.ascontiguousarray(data), grid.affine, **record)
    box = _reach(index_map, grid.shape, volume.shape)
    shape = tuple(s.stop - s.start for s in box)
    data = np.zeros(grid.shape, np.float32)
    if all(shape):
        box_map = index_map.copy()
        box_map[:3, 3] += index_map[:3, :3] @ [s.start for s in box]
        data[box] = _sample(volume.data, box_map, shape)
    return volume.after(step, data, grid.affine, **record)


def field_of_view(volume: Volume) -> Grid:
    """The part of a volume's lattice with data: the box outside which there are only zeros.

    Files are often padded with zeros to a standard size; a zero within the box has been measured.
    """
    filled = volume.data != 0
    axes = [filled.any(axis=tuple({0, 1, 2} - {axis})).nonzero()[0] for axis in range(3)]
    if not axes[0].size:
        return volume.grid
    affine = volume.affine.copy()
    affine[:3, 3] = volume.grid.index_to_mm([where[0] for where in axes])
    return Grid(tuple(int(where[-1] - where[0]) + 1 for where in axes), affine)


def find_covered(field: Grid, grid: Grid, transform: np.ndarray | None = None) -> np.ndarray:
    """Voxels of ``grid`` whose centres lie inside the box of a field of view, boolean (X, Y, Z).

    ``transform`` maps world mm of ``grid`` to those of ``field``; identity if left out.
    """
    transform = np.eye(4) if transform is None else transform
    index_map = np.linalg.inv(field.affine) @ transform @ grid.affine
    inside = np.ones(grid.shape, bool)
    for index, n in zip(_indices(index_map, grid.shape), field.shape):
        inside &= (index > -0.5 - 1e-6) & (index < n - 0.5 + 1e-6)
    return inside


def distance_from(mask: np.ndarray, spacing: ArrayLike | None = None) -> np.ndarray:
    """Distance of every voxel's centre from the nearest one in a mask, in units of ``spacing``; 0 within the mask."""
    distance = ndimage.distance_transform_edt(~mask, spacing)
    assert isinstance(distance, np.ndarray)  # no indices were asked for
    return distance


def _indices(index_map: np.ndarray, shape: Sequence[int]) -> Iterator[np.ndarray]:
    """Source index along each source axis of every voxel of a lattice, one axis at a time, (X, Y, Z)."""
    voxels = np.ogrid[tuple(map(slice, shape))]
    for *steps, start in index_map[:3]:
        yield sum((step * voxel for step, voxel in zip(steps, voxels)), start=np.full(shape, start, np.float32))


def _integer_offset(index_map: np.ndarray, shape: Sequence[int], source: Sequence[int]) -> tuple | None:
    """Offset if the target is a crop of the source lattice, else None."""
    offset = np.rint(index_map[:3, 3])
    shift = np.eye(4)
    shift[:3, 3] = offset
    if not np.allclose(index_map, shift, rtol=0, atol=1e-5):
        return None
    offset = offset.astype(int)
    if (offset < 0).any() or (offset + np.asarray(shape) > np.asarray(source)).any():
        return None
    return tuple(offset)


def _reach(index_map: np.ndarray, shape: Sequence[int], source: Sequence[int]) -> tuple[slice, ...]:
    """The box of a target lattice outside which no voxel touches the source, so that all values there are zero."""
    ends = np.array(list(product(*((-0.5, n - 0.5) for n in source))))
    corners = (ends - index_map[:3, 3]) @ np.linalg.inv(index_map[:3, :3]).T  # in target voxels
    low = np.clip(np.floor(corners.min(axis=0)) - 1, 0, shape).astype(int)
    high = np.clip(np.ceil(corners.max(axis=0)) + 2, low, shape).astype(int)
    return tuple(map(slice, low.tolist(), high.tolist()))


def _sample(source: np.ndarray, index_map: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Trilinear samples, or means over sub-voxels, on a lattice of ``shape``; ``index_map`` maps its indices to those
    of ``source``."""
    steps = np.linalg.norm(index_map[:3, :3], axis=0)  # source voxels per target voxel, along target axes
    factors = np.maximum(1, np.ceil(steps - 1e-3).astype(int))
    if not (index_map[:3, :3] - np.diag(index_map.diagonal()[:3])).any():  # axis by axis, which is much faster
        data = source
        for step, start, n, factor in zip(index_map.diagonal(), index_map[:3, 3], shape, factors):
            mixed = _weigh_samples(data.shape[0], step, start, n, factor) @ data.reshape(data.shape[0], -1)
            data = np.moveaxis(mixed.reshape(n, *data.shape[1:]), 0, -1)  # after three turns, in the original order
        return data
    sub_voxels = np.diag([*(1.0 / factors), 1.0])
    sub_voxels[:3, 3] = (1.0 / factors - 1.0) / 2.0  # centres of the sub-voxels of target voxel 0
    fine_map = index_map @ sub_voxels
    fine_shape = tuple(int(n) for n in np.asarray(shape) * factors)
    offset: Any = fine_map[:3, 3]  # one number per axis; SciPy's stub has one for all
    data = ndimage.affine_transform(
        source, fine_map[:3, :3], offset, fine_shape, order=1, mode="nearest", prefilter=False
    )
    for index, n in zip(_indices(fine_map, fine_shape), source.shape):
        data[(index < -0.5) | (index > n - 0.5)] = 0
    if (factors > 1).any():
        x, y, z = shape
        data = data.reshape(x, factors[0], y, factors[1], z, factors[2]).mean(axis=(1, 3, 5), dtype=np.float64)
    return data


def _weigh_samples(source: int, step: float, start: float, target: int, factor: int) -> sparse.csr_array:
    """The interpolation of `_sample` along one axis of ``source`` voxels, as a matrix (target, source)."""
    index = start + step * ((np.arange(target * factor) + 0.5) / factor - 0.5)
    inside = (index >= -0.5) & (index <= source - 0.5)
    index = np.clip(index, 0, source - 1)
    low = np.minimum(index.astype(int), max(source - 2, 0))
    upper = index - low
    weights = np.stack([1 - upper, upper]) * inside / factor
    voxels = np.stack([low, np.minimum(low + 1, source - 1)])
    rows = np.broadcast_to(np.arange(target).repeat(factor), voxels.shape)
    entries = weights.ravel().astype(np.float32), (rows.ravel(), voxels.ravel())
    return sparse.coo_array(entries, shape=(target, source)).tocsr()


def _resample_record(grid: Grid, transform: np.ndarray) -> dict:
    record = {"grid": grid.name, "shape": list(grid.shape), "spacing_mm": grid.spacing.tolist()}
    if not np.array_equal(transform, np.eye(4)):
        record["transform"] = transform.tolist()
    return record
