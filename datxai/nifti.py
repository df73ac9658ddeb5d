"""Reading of NIfTI and Analyze files: the array and its affine in mm, if the header is consistent."""

from __future__ import annotations

import gzip
import math
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel import filebasedimages, imageglobals, spatialimages

from datxai.errors import InputError
from datxai.forms import GZIP, NIFTI, PAIR, READ, header_of, tell_form

UNREADABLE = (
    filebasedimages.ImageFileError,
    spatialimages.HeaderDataError,
    spatialimages.HeaderTypeError,
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    zlib.error,
)
LARGEST_VOXELS = 2**26  # of one file: 512 x 512 x 256
SPACING_RANGE_MM = (0.1, 50.0)  # of voxels of a scan of the head
LARGEST_EXTENT_MM = 1000.0  # of a field of view
LARGEST_TRAILER, CHUNK = 2**24, 2**20  # bytes that may follow the values
UNITS_MM = {1: 1000.0, 2: 1.0, 3: 0.001}  # of xyzt_units: metre, millimetre, micrometre; 0: unknown
UNIT_NAMES = {1: "metres", 2: "millimetres", 3: "micrometres"}
ANGLE_TOLERANCE_DEG = 5.0  # between two descriptions of one axis
LENGTH_TOLERANCE = 0.05  # between two descriptions of one voxel, as a fraction


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Values (X, Y, Z, ...) in the file's type, and the affine to RAS+ mm.

    Reads NIfTI-1 and NIfTI-2, in one file or two, gzipped or not regardless of the name, and Analyze with SPM's .mat,
    which has the orientation. Raises `InputError` for unreadable files, for sizes that no scan has (before memory is
    allocated), and for headers without an orientation or with contradictions.
    """
    with _reading(path), _quiet(), _open(path) as image:
        _require_size(image.shape, path)
        affine = _find_affine(image, path)
        require_lattice(image.shape, affine, path)
        return np.asanyarray(image.dataobj), affine


def require_lattice(shape: tuple[int, ...], affine: np.ndarray, name: object) -> None:
    """Raise `InputError` unless the affine is invertible, and size and number of voxels are plausible for a head."""
    spacing = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    if (
        not np.isfinite(affine).all()
        or (spacing <= 0).any()
        or (abs(np.linalg.det(affine[:3, :3])) < 1e-3 * spacing.prod())
    ):
        raise InputError(
            f"{name}: the affine in the header cannot be inverted, expected three independent voxel axes; "
            f"repair the header (sform/qform) or convert the scan again."
        )
    (low, high), extent = SPACING_RANGE_MM, spacing * shape[:3]
    if (spacing < low).any() or (spacing > high).any() or (extent > LARGEST_EXTENT_MM).any():
        raise InputError(
            f"{name}: voxels are {_in_mm(spacing)}, the field of view {_in_mm(extent)}, expected voxels of "
            f"{low:g} to {high:g} mm and at most {LARGEST_EXTENT_MM:g} mm in all; check the "
            f"spacing in the header and its unit."
        )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Blame any read failure on the file, as an `InputError`."""
    try:
        yield
    except InputError:
        raise
    except UNREADABLE as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{path}: cannot be read as NIfTI ({reason}); the file is truncated or of another format, export it again."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what nibabel says of odd headers: readable ones are common, and for others there is an `InputError`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        imageglobals.logger.disabled = True
        try:
            yield
        finally:
            imageglobals.logger.disabled = False


@contextmanager
def _open(path: Path) -> Iterator[spatialimages.SpatialImage]:
    form = tell_form(path)
    if form == PAIR:
        header = header_of(path)
        image = nib.load(header if header != path or path.suffix != ".img" else path)
        assert isinstance(image, spatialimages.SpatialImage)  # like all with a separate header
        yield image
        return
    if form != NIFTI:
        reason = f"is {form}" if form else "has no header of NIfTI"
        raise InputError(f"{path}: cannot be read as NIfTI, it {reason}; {READ}: export it again as one of these.")
    with path.open("rb") as stream:
        packed = stream.read(2) == GZIP
        stream.seek(0)
        source = gzip.GzipFile(fileobj=stream) if packed else stream
        size = int.from_bytes(source.read(4), "little")
        source.seek(0)
        cls = nib.Nifti2Image if size in (540, int.from_bytes((540).to_bytes(4, "big"), "little")) else nib.Nifti1Image
        holder = nib.FileHolder(fileobj=source)
        yield cls.from_file_map({"header": holder, "image": holder})
        if packed:  # the checksum follows the last byte
            for _ in range(LARGEST_TRAILER // CHUNK):
                if not source.read(CHUNK):
                    break


def _find_affine(image: spatialimages.SpatialImage, path: Path) -> np.ndarray:
    """The affine to RAS+ mm, if all that the header says about it is consistent."""
    if not isinstance(image, (nib.Nifti1Pair, nib.Nifti2Pair)):
        if not header_of(path).with_suffix(".mat").is_file():
            raise InputError(
                f"{path}: is an Analyze file, which does not say which side is left, expected the .mat of SPM beside "
                f"it; export the scan as NIfTI, with its orientation."
            )
        return np.asarray(image.affine, float)
    header = image.header
    codes = {name: int(header[f"{name}_code"]) for name in ("sform", "qform")}
    if not any(codes.values()):
        raise InputError(
            f"{path}: its header does not say how the scan lies (sform_code and qform_code are 0, expected one of them "
            f"set), so left and right are unknown; export it again, with its orientation."
        )
    unit = int(header["xyzt_units"]) & 7
    scale = np.diag([*3 * [UNITS_MM.get(unit, 1.0)], 1.0])
    affine = scale @ np.asarray(image.affine, float)
    try:
        require_lattice(image.shape, affine, path)
    except InputError as error:
        if unit in (1, 3):
            raise InputError(f"{str(error)[:-1]}, which is {UNIT_NAMES[unit]} (xyzt_units).") from error
        raise
    if codes["sform"]:
        spacing = UNITS_MM.get(unit, 1.0) * np.array(header["pixdim"][1:4], float)
        qform = scale @ header.get_qform() if codes["qform"] else None
        _require_agreement(affine, qform, spacing, codes, path)
    return affine


def _require_agreement(
    sform: np.ndarray, qform: np.ndarray | None, spacing: np.ndarray, codes: dict[str, int], path: Path
) -> None:
    """Raise `InputError` if sform, qform and pixdim cannot all be true.

    An sform of another space than the qform's (another code) may rotate and scale, but not mirror.
    """
    if qform is not None and np.linalg.det(sform[:3, :3]) * np.linalg.det(qform[:3, :3]) < 0:
        raise InputError(
            f"{path}: qform and sform are mirror images of one another, so left and right are unknown, expected them "
            f"to agree; export it again, or remove the wrong one (its code 0)."
        )
    lengths = np.sqrt((sform[:3, :3] ** 2).sum(axis=0))
    same_space = codes["sform"] == (1 if qform is None else codes["qform"])
    is_set = np.isfinite(spacing).all() and (spacing > 0).all() and not (spacing == 1.0).all()  # as in empty headers
    if same_space and is_set and np.abs(lengths / spacing - 1).max() > LENGTH_TOLERANCE:
        raise InputError(
            f"{path}: voxels are {_in_mm(lengths)} by its sform and {_in_mm(spacing)} by its pixdim, expected one "
            f"size; export it again."
        )
    if same_space and qform is not None:
        cosines = ((sform[:3, :3] / lengths) * (qform[:3, :3] / np.linalg.norm(qform[:3, :3], axis=0))).sum(axis=0)
        angle = np.degrees(np.arccos(np.clip(cosines, -1, 1))).max()
        if angle > ANGLE_TOLERANCE_DEG:
            raise InputError(
                f"{path}: the axes of its qform and sform are {angle:.0f} degrees apart, expected them to agree, for "
                f"both are of one space (code {codes['sform']}); export it again, or remove the wrong one (its code 0)."
            )


def _require_size(shape: tuple[int, ...], path: Path) -> None:
    """Raise `InputError` for more voxels than any scan of a head has, before memory is allocated for them."""
    if not 0 < math.prod(shape) <= LARGEST_VOXELS:
        raise InputError(
            f"{path}: its header promises {' x '.join(map(str, shape))} voxels, expected 1 to {LARGEST_VOXELS} as "
            f"scans have; the file is damaged or of something else."
        )


def _in_mm(lengths: np.ndarray) -> str:
    return " x ".join(f"{length:.4g}" for length in lengths) + " mm"
