"""Reconstructed volumes from DICOM: NM, PET, CT and MR, one slice or all slices per file.

DICOM's patient axes are LPS+ (left, back, head); they are converted to RAS+ here. The patient's identity is kept
neither in a volume's history nor in a message.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from datxai.errors import InputError
from datxai.imaging.dicom.dataset import (
    PHOTOPEAK_KEV,
    Files,
    Series,
    decode,
    is_spacing,
    kind_of,
    list_files,
    numbers,
    pixel_spacing,
    printable,
    reading,
    require_pixels,
    rescale,
    window_limits,
)
from datxai.nifti import SPACING_RANGE_MM, require_lattice
from datxai.volume import Volume, require_signal, to_ras

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
COSINE_TOLERANCE = 1e-3  # of directions: agreement between slices
ROUNDED_COSINES = 0.02  # of unit lengths and right angles: error of cosines rounded to two decimals; corrected
SPACING_TOLERANCE = 0.05  # of slice positions, as a fraction of the distance between slices


@dataclass(frozen=True)
class _Slice:
    """A slice as it lies in the patient, in LPS+ mm."""

    pixels: np.ndarray  # (rows, columns)
    position: np.ndarray  # centre of the first pixel
    axes: np.ndarray  # (3, 2): step from column to column, step from row to row
    normal: np.ndarray  # row direction x column direction
    gap: float = 0.0  # to the next slice, if the header gives it


@dataclass(frozen=True)
class _File:
    """The content of one file; ``promised`` is the declared number of slices of the volume, 0 if missing."""

    patient: str
    series: str
    description: str
    modality: str
    promised: int
    slices: list[_Slice]


def read_series(files: Files | Series) -> Volume:
    """Read one reconstructed series as a `Volume`, in RAS+.

    A multi-frame file of nuclear medicine is stacked along the cross product of its row and column
    directions, on the side given by the sign of Spacing Between Slices (0018,0088; DICOM PS3.3 C.8.4.15);
    everything else by the position of each slice. Stored values are rescaled (slope, intercept).

    Parameters
    ----------
    files : path or paths
        The files of one series in any order, one file, or a folder whose DICOM files are one series.

    Raises
    ------
    InputError
        If the files are unreadable, truncated or not images; of several patients or series; projections or planar
        images; not of I-123; or if slices are missing, duplicated, or not on one lattice.
    """
    paths = list_files(files)
    parts = [_read_file(path) for path in paths]
    name = paths[0] if len(paths) == 1 else paths[0].parent
    _require_single_series(parts, name)
    slices = [slice_ for part in parts for slice_ in part.slices]
    _require_count(len(slices), parts[0].promised, name)
    data, affine = _stack(slices, name)
    require_lattice(data.shape, affine, name)
    data = require_signal(data, name)
    record = {
        "step": "load",
        "format": "DICOM",
        "modality": parts[0].modality,
        "files": len(paths),
        "slices": len(slices),
    }
    return replace(to_ras(data, affine), history=(record,))


def _read_file(path: Path) -> _File:
    with reading(path) as dataset:
        if kind_of(dataset, path) == "projections":
            raise InputError(
                f"{path}: holds raw projections (Image Type TOMO), expected a "
                f"reconstructed volume; reconstruct them first."
            )
        _require_tracer(dataset, path)
        require_pixels(dataset, path)
        return _File(
            str(dataset.get("PatientID", "")),
            str(dataset.get("SeriesInstanceUID", "")),
            str(dataset.get("SeriesDescription", "")),
            str(dataset.get("Modality", "")),
            int(dataset.get("NumberOfSlices") or 0),
            _cut(dataset, decode(dataset, path), path),
        )


def _require_tracer(dataset, path: Path) -> None:
    """Raise `InputError` if energy windows are given and none could have seen I-123."""
    limits = [window_limits(item) for item in dataset.get("EnergyWindowInformationSequence") or ()]
    if limits and all(bounds and not bounds[0] <= PHOTOPEAK_KEV <= bounds[1] for bounds in limits):
        kev = ", ".join(f"{low:g}-{high:g}" for low, high in filter(None, limits))
        raise InputError(
            f"{path}: was counted at {kev} keV, expected an energy window that holds {PHOTOPEAK_KEV:g} keV (I-123); "
            f"it is a scan with another tracer, remove it."
        )


def _require_single_series(parts: list[_File], name: object) -> None:
    """Raise `InputError` unless the files are of one patient and one series. Identities are never shown."""
    if len({part.patient for part in parts}) > 1:
        raise InputError(f"{name}: the files are of more than one patient, expected one series; separate them.")
    series = {part.series: part.description for part in parts}
    if len(series) > 1:
        listed = ", ".join(sorted(f"'{printable(text)}'" for text in series.values()))
        raise InputError(f"{name}: the files are of {len(series)} series ({listed}), expected one; separate them.")


def _require_count(count: int, promised: int, name: object) -> None:
    """Raise `InputError` unless there are as many slices as the header declares, if it does."""
    if promised and promised != count:
        advice = "export the whole series again" if count < promised else "give one volume at a time"
        raise InputError(f"{name}: has {count} slices, the header promises {promised}; {advice}.")


def _cut(dataset, pixels: np.ndarray, path: Path) -> list[_Slice]:
    """The slices of one file."""
    if "PerFrameFunctionalGroupsSequence" in dataset:
        return _cut_enhanced(dataset, pixels, path)
    directions = _find_geometry(dataset, "ImageOrientationPatient", 6, path)
    position = _find_geometry(dataset, "ImagePositionPatient", 3, path)
    spacing = pixel_spacing(dataset, path)
    first = _place(pixels[0], position, directions, spacing, dataset, dataset, path)
    if len(pixels) == 1:
        return [first]
    keyword = "SpacingBetweenSlices" if dataset.get("SpacingBetweenSlices") else "SliceThickness"
    step = first.normal * numbers(dataset, keyword, 1, path)  # behind the first slice, or in front of it
    ranks = dataset.get("SliceVector") or range(1, len(pixels) + 1)
    if len(ranks) != len(pixels):
        raise InputError(
            f"{path}: has {len(pixels)} frames and {len(ranks)} entries in its slice vector, expected as "
            f"many; export it again."
        )
    return [
        replace(first, pixels=rescale(frame, dataset, path), position=position + (int(rank) - 1) * step)
        for frame, rank in zip(pixels, ranks)
    ]


def _find_geometry(dataset, keyword: str, count: int, path: Path) -> np.ndarray:
    """An element of the geometry, from the detectors or the top level, wherever it is present.

    Directions of several detectors and of the top level must agree. Positions may differ, since registration finds the
    head anyway.
    """
    holders = [item for item in (*(dataset.get("DetectorInformationSequence") or ()), dataset) if item.get(keyword)]
    values = [numbers(holder, keyword, count, path) for holder in holders] or [numbers(dataset, keyword, count, path)]
    farthest = max(values, key=lambda value: np.abs(value - values[0]).max())
    if count == 6 and np.abs(farthest - values[0]).max() > ROUNDED_COSINES:
        raise InputError(
            f"{path}: Image Orientation is {values[0].tolist()} in one place and {farthest.tolist()} in another "
            f"(detectors, top level), expected one; export it again."
        )
    return values[0]


def _cut_enhanced(dataset, pixels: np.ndarray, path: Path) -> list[_Slice]:
    """The slices of an enhanced multi-frame file (DICOM PS3.3 C.7.6.16): each frame has its own position."""
    groups = dataset.PerFrameFunctionalGroupsSequence
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [None])[0]
    if len(groups) != len(pixels):
        raise InputError(f"{path}: has {len(pixels)} frames and {len(groups)} descriptions of frames; export it again.")

    def find(group, sequence, keyword):
        """The item with the element: of the frame, of all frames, or the top level."""
        for holder in (group, shared):
            if holder is not None and holder.get(sequence) and holder[sequence][0].get(keyword) not in (None, ""):
                return holder[sequence][0]
        return dataset

    return [
        _place(
            frame,
            numbers(find(group, "PlanePositionSequence", at := "ImagePositionPatient"), at, 3, path),
            numbers(find(group, "PlaneOrientationSequence", at := "ImageOrientationPatient"), at, 6, path),
            pixel_spacing(find(group, "PixelMeasuresSequence", "PixelSpacing"), path),
            find(group, "PixelValueTransformationSequence", "RescaleSlope"),
            find(group, "PixelMeasuresSequence", "SpacingBetweenSlices"),
            path,
        )
        for frame, group in zip(pixels, groups)
    ]


def _place(pixels, position, directions, spacing, scaling, measures, path) -> _Slice:
    left, lengths, right = np.linalg.svd(directions.reshape(2, 3), full_matrices=False)
    if np.abs(lengths - 1).max() > ROUNDED_COSINES:
        raise InputError(f"{path}: Image Orientation {directions.tolist()} are not at right angles; export it again.")
    along_columns, along_rows = left @ right  # the nearest orthonormal axes
    axes = np.stack([along_columns * spacing[1], along_rows * spacing[0]], axis=1)
    return _Slice(rescale(pixels, scaling, path), position, axes, np.cross(along_columns, along_rows), _gap(measures))


def _gap(holder) -> float:
    """Absolute value of Spacing Between Slices; 0 if missing."""
    try:
        return abs(float(holder.get("SpacingBetweenSlices") or 0))
    except (TypeError, ValueError):
        return 0.0


def _stack(slices: list[_Slice], name: object) -> tuple[np.ndarray, np.ndarray]:
    """(data of shape (columns, rows, slices), affine to RAS+ mm) of slices in any order."""
    first = slices[0]
    for slice_ in slices:
        if slice_.pixels.shape != first.pixels.shape or np.abs(slice_.axes - first.axes).max() > COSINE_TOLERANCE:
            raise InputError(
                f"{name}: the slices differ in matrix, pixel spacing or orientation, expected one lattice; "
                "give one series."
            )
    if len(slices) < 2:
        raise InputError(f"{name}: holds one slice, expected a volume; give all files of the series.")
    slices = sorted(slices, key=lambda slice_: slice_.position @ first.normal)
    positions = np.array([slice_.position for slice_ in slices])
    gaps = np.diff(positions @ first.normal)
    gap = np.sort(gaps)[(len(gaps) - 1) // 2]  # lower median: of two gaps, the one without a hole
    tolerance = SPACING_TOLERANCE * gap
    if (double := int((gaps <= tolerance).sum())) > 0:
        raise InputError(
            f"{name}: {double} of {len(slices)} slices lie where another one does, expected one in each "
            f"place; give one volume (one time, one energy window)."
        )
    if (lost := int(np.rint(gaps / gap - 1).sum())) > 0:
        raise InputError(
            f"{name}: lacks {lost} of {len(slices) + lost} slices (a gap of {gaps.max():.2f} mm where slices "
            f"are {gap:.2f} mm apart); export the whole series again."
        )
    if not is_spacing(gap):
        raise InputError(
            f"{name}: slices are {gap:g} mm apart, expected {SPACING_RANGE_MM[0]:g} to {SPACING_RANGE_MM[1]:g} mm; "
            f"export the scan again."
        )
    declared = max(slice_.gap for slice_ in slices)
    if declared and abs(declared / gap - 1) > SPACING_TOLERANCE:
        raise InputError(
            f"{name}: slices are {gap:g} mm apart by their positions and {declared:g} mm by Spacing Between Slices, "
            f"expected one distance; export the whole series again."
        )
    step = (positions[-1] - positions[0]) / (len(slices) - 1)
    if np.abs(positions - positions[0] - np.arange(len(slices))[:, None] * step).max() > tolerance:
        raise InputError(f"{name}: the slices are not evenly spaced, expected one lattice; export it again.")
    affine = np.eye(4)
    affine[:3] = np.column_stack([first.axes, step, positions[0]])
    return np.stack([slice_.pixels.T for slice_ in slices], axis=-1), LPS_TO_RAS @ affine
