"""Projections: the views of a tomographic acquisition, read from DICOM NM TOMO.

The angle of a detector (DICOM PS3.3 C.8.4.12, Start Angle) is 0 degrees at the patient's back and, seen from the
patient's feet, increases counter-clockwise: to the left side (90), the front (180), the right side (270). Rotation
Direction CC means increasing, CW decreasing. Reconstruction expects the same angles, so nothing is converted.
Frames are views from the detector: rows from the head downwards, columns to the viewer's right.
Image Orientation of a detector is ignored: files often leave it empty or give it for one view only.
Center of Rotation Offset (C.8.4.11.1.5) is how far, in mm, the axis of rotation projects to the right of the image's
middle. Frames marked as corrected for it (Corrected Image contains COR) have the axis in their middle.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datxai.errors import InputError
from datxai.imaging.dicom.dataset import (
    PHOTOPEAK_KEV,
    Files,
    Series,
    decode,
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
from datxai.imaging.values import require_counts
from datxai.nifti import LARGEST_EXTENT_MM

PHOTOPEAK_NAME = re.compile(r"123|iod|159", re.IGNORECASE)
SCATTER_NAME = re.compile(r"(?<![a-z])sc|lower|upper", re.IGNORECASE)
DIRECTIONS = {"CC": 1.0, "CCW": 1.0, "CW": -1.0}
PARALLEL = {"PARA", "UNKN", ""}  # collimator types
VECTORS = {
    "window": "EnergyWindowVector",
    "detector": "DetectorVector",
    "rotation": "RotationVector",
    "view": "AngularViewVector",
}
FLIPS = ("rotation", "bins", "rows")
MAX_BINS, MAX_VIEWS = 256, 360  # of all detectors; reconstruction of more would not fit in memory
SAME_ANGLE_DEG = 0.01
ARC_TOLERANCE_DEG = 2.0  # largest difference between Scan Arc and the sum of the steps
LARGEST_OFFSET_MM = 50.0  # of the centre of rotation; with a larger one the head would not be in the field of view


@dataclass(frozen=True, eq=False)
class Projections:
    """The counts of a camera and the geometry of its views.

    ``counts`` is float32 of shape (views, rows, bins). Per view, ``angles_deg`` is the detector's position (see the
    module docstring) and ``radius_mm``, if known, its distance from the axis. ``pixel_mm`` is the size of a bin,
    ``row_spacing_mm`` the distance between rows. ``centre_bin`` is the bin, counted from 0, onto which the axis
    projects in each view, if the file gives it. ``history`` is that of a `Volume`, without the patient's identity.
    """

    counts: np.ndarray
    angles_deg: np.ndarray
    pixel_mm: float
    row_spacing_mm: float
    radius_mm: np.ndarray | None = None
    centre_bin: np.ndarray | None = None
    history: tuple[Mapping, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "counts", np.asarray(self.counts, np.float32))
        object.__setattr__(self, "angles_deg", np.asarray(self.angles_deg, float))
        assert self.counts.ndim == 3, self.counts.shape
        assert self.angles_deg.shape == self.counts.shape[:1], self.angles_deg.shape
        if self.radius_mm is not None:
            radius = np.broadcast_to(np.asarray(self.radius_mm, float), self.angles_deg.shape)
            object.__setattr__(self, "radius_mm", radius)


@dataclass(frozen=True)
class _Detector:
    """The views of one detector in the energy window of I-123."""

    counts: np.ndarray  # (views, rows, bins)
    start_deg: float | None  # angle of its first view, if the file gives one
    turned_deg: np.ndarray  # angle of each view minus that of the first, (views,)
    radius_mm: list[float] | None
    offset_mm: float  # of the centre of rotation, to the right


@dataclass(frozen=True)
class _Part:
    """The part of an acquisition in one file."""

    patient: str
    series: str
    spacing: tuple[float, float]  # between rows and between columns, mm
    limits_kev: list[float] | None
    detectors: list[_Detector]


class _NoPhotopeak(InputError):
    """No energy window of a file could be that of I-123."""


def read_projections(
    files: Files | Series,
    start_angle_deg: float | Sequence[float] | None = None,
    flip: Collection[str] = (),
) -> Projections:
    """Read the projections of one acquisition, of any number of detectors, in the energy window of I-123.

    The angle of a view is the start angle of its detector (or of its rotation, if the detector has none) plus or minus
    the angular step times the number of steps. The window is the one that includes 159 keV, or is named accordingly.

    Parameters
    ----------
    files : path or paths
        One NM TOMO file, or a folder that holds it; or the files of one series with one detector or energy window each.
    start_angle_deg : float or floats, optional
        For files with non-standard angles: the start angle of the first detector (the others follow as recorded), or
        one angle per detector.
    flip : collection of str
        For files with non-standard directions: 'rotation' reverses the direction of rotation from the first angle (the
        volume is mirrored), 'bins' and 'rows' mirror the frames.

    Raises
    ------
    InputError
        If the files are not a single NM TOMO acquisition; angles, rotation or pixel spacing are missing; detectors
        start at the same angle; the number of frames is not windows times detectors times views; no window or several
        could be that of I-123; or every count is zero.
    """
    if unknown := set(flip) - {*FLIPS}:
        raise InputError(
            f"reconstruction.flip: {min(unknown)!r} is not known, expected some of {', '.join(FLIPS)}; choose of them."
        )
    paths = list_files(files)
    name = paths[0] if len(paths) == 1 else paths[0].parent
    parts = _read_parts(paths)
    _require_single_acquisition(parts, name)
    detectors = [detector for part in parts for detector in part.detectors]
    counts = np.concatenate([detector.counts for detector in detectors])
    if not counts.any():
        raise InputError(f"{name}: every count is zero, expected an acquisition; export it again.")
    if len(counts) > MAX_VIEWS:
        raise InputError(f"{name}: has {len(counts)} views, expected at most {MAX_VIEWS}; keep one acquisition.")
    require_counts(counts, name)
    sense = -1.0 if "rotation" in flip else 1.0
    starts = _choose_starts([detector.start_deg for detector in detectors], start_angle_deg, sense, len(parts), name)
    angles = [start + sense * detector.turned_deg for start, detector in zip(starts, detectors)]
    counts = counts[:, :: -1 if "rows" in flip else 1, :: -1 if "bins" in flip else 1]
    row_spacing_mm, pixel_mm = parts[0].spacing
    offsets = [-d.offset_mm if "bins" in flip else d.offset_mm for d in detectors]
    views = [len(d.counts) for d in detectors]
    record = {
        "step": "load",
        "format": "DICOM",
        "modality": "NM",
        "files": len(parts),
        "views": len(counts),
        "detectors": len(detectors),
        "energy_window_kev": parts[0].limits_kev,
        "first_angles_deg": [start % 360.0 for start in starts],
        "centre_offset_mm": offsets,
        "start_angle_deg": start_angle_deg,
        "flip": sorted(flip),
    }
    radii = [detector.radius_mm for detector in detectors if detector.radius_mm]
    return Projections(
        np.ascontiguousarray(counts),
        np.concatenate(angles) % 360.0,
        pixel_mm,
        row_spacing_mm,
        np.concatenate(radii) if len(radii) == len(detectors) else None,
        (counts.shape[2] - 1) / 2.0 + np.repeat(offsets, views) / pixel_mm if any(offsets) else None,
        (record,),
    )


def _read_parts(paths: list[Path]) -> list[_Part]:
    """The I-123 data in the files. Files with other energy windows only are left out, unless there are no others."""
    parts, left_out = [], []
    for path in paths:
        try:
            parts.append(_read_file(path))
        except _NoPhotopeak as error:
            left_out.append(error)
    if not parts:
        raise left_out[0]
    return parts


def _read_file(path: Path) -> _Part:
    with reading(path) as dataset:
        if kind_of(dataset, path) == "volume":
            raise InputError(
                f"{path}: holds no projections, expected Image Type TOMO; give the acquisition's raw data."
            )
        require_pixels(dataset, path)
        _require_matrix(dataset, path)
        pixels = decode(dataset, path)
        frames = _index_frames(dataset, len(pixels), path)
        window, limits = _choose_window(dataset, int(frames["window"].max()), path)
        spacing = pixel_spacing(dataset, path)
        detectors = [
            _read_detector(dataset, number, frames, window, pixels, path) for number in np.unique(frames["detector"])
        ]
        patient, series = (str(dataset.get(keyword, "")) for keyword in ("PatientID", "SeriesInstanceUID"))
        return _Part(patient, series, tuple(spacing.tolist()), limits, detectors)


def _require_matrix(dataset, path: Path) -> None:
    """Raise `InputError` for more bins than a camera has, before memory is allocated for a volume."""
    bins = int(dataset.get("Columns") or 1)
    width_mm = bins * pixel_spacing(dataset, path)[1]
    if bins > MAX_BINS or width_mm > LARGEST_EXTENT_MM:
        raise InputError(
            f"{path}: has {bins} bins, {width_mm:g} mm wide, expected at most {MAX_BINS} and {LARGEST_EXTENT_MM:g} "
            f"mm; export the acquisition's raw data."
        )


def _require_single_acquisition(parts: list[_Part], name: object) -> None:
    """Raise `InputError` unless the parts are of one series, patient and matrix. Identities are never shown."""
    if len({part.patient for part in parts}) > 1:
        raise InputError(f"{name}: the files are of more than one patient, expected one acquisition; separate them.")
    if len({part.series for part in parts}) > 1:
        raise InputError(
            f"{name}: holds {len(parts)} acquisitions in the window of I-123, expected one, in one file or series; "
            f"keep one."
        )
    if len({(part.spacing, detector.counts.shape[1:]) for part in parts for detector in part.detectors}) > 1:
        raise InputError(f"{name}: the files differ in matrix or pixel spacing, expected one acquisition; keep one.")


def _index_frames(dataset, count: int, path: Path) -> dict[str, np.ndarray]:
    """Window, detector, rotation and view of each frame, counted from 1 (DICOM PS3.3 C.8.4.8)."""
    frames = {}
    for name, keyword in VECTORS.items():
        value = dataset.get(keyword)
        if value is None or value == "":
            value = range(1, count + 1) if name == "view" else [1] * count
        frames[name] = np.atleast_1d(np.array(value, int))
        if len(frames[name]) != count:
            raise InputError(
                f"{path}: has {count} frames and {len(frames[name])} entries in {keyword}, expected as many; "
                f"export it again."
            )
        if frames[name].min() < 1:
            raise InputError(f"{path}: {keyword} has entries below 1, expected numbers from 1 on; export it again.")
    pair = np.stack([frames["window"], frames["detector"]])
    pairs, in_each = np.unique(pair, axis=1, return_counts=True)
    if np.unique(np.vstack([pair, frames["rotation"]]), axis=1).shape[1] > pairs.shape[1]:
        raise InputError(
            f"{path}: a detector makes several rotations, expected one; export each rotation as a file of its own."
        )
    windows = max(int(dataset.get("NumberOfEnergyWindows") or 1), int(frames["window"].max()))
    detectors = max(int(dataset.get("NumberOfDetectors") or 1), int(frames["detector"].max()))
    views = int(in_each.max())
    different = np.unique(np.vstack([pair, frames["view"]]), axis=1).shape[1]
    if not different == count == windows * detectors * views:
        raise InputError(
            f"{path}: has {count} frames ({different} different ones), expected {windows * detectors * views} "
            f"({windows} energy windows x {detectors} detectors x {views} views); export it again."
        )
    return frames


def _choose_window(dataset, count: int, path: Path) -> tuple[int, list[float] | None]:
    """Number of the energy window of I-123, counted from 1, and its limits in keV (None if the file gives none)."""
    items = [*(dataset.get("EnergyWindowInformationSequence") or ())][:count]
    names = [str(item.get("EnergyWindowName") or "") for item in items]
    limits = [window_limits(item) for item in items]
    holding = [k for k, bounds in enumerate(limits) if bounds and bounds[0] <= PHOTOPEAK_KEV <= bounds[1]]
    named = [
        k
        for k, name in enumerate(names)
        if PHOTOPEAK_NAME.search(name) and not SCATTER_NAME.search(name) and (k in holding or not limits[k])
    ]
    if count == 1 and not any(limits) and not any(map(SCATTER_NAME.search, names)):
        holding = [0]  # there is one window, and the file does not describe it
    candidates = holding if len(holding) == 1 else named
    if len(candidates) != 1:
        listed = ", ".join(
            f"{name!r}" + (f" {bounds[0]:g}-{bounds[1]:g} keV" if bounds else "") for name, bounds in zip(names, limits)
        )
        raise (InputError if named or holding else _NoPhotopeak)(
            f"{path}: {len(named or holding) or 'none'} of the energy windows ({listed or 'not described'}) could be "
            f"that of I-123, expected one that holds {PHOTOPEAK_KEV:g} keV; export that one alone."
        )
    return candidates[0] + 1, limits[candidates[0]] if limits else None


def _read_detector(
    dataset, number: int, frames: dict[str, np.ndarray], window: int, pixels: np.ndarray, path: Path
) -> _Detector:
    """The views of one detector in the window of I-123, ordered by angle."""
    selected = np.flatnonzero((frames["window"] == window) & (frames["detector"] == number))
    selected = selected[np.argsort(frames["view"][selected])]
    views = frames["view"][selected]
    rotations = dataset.get("RotationInformationSequence") or ()
    items = dataset.get("DetectorInformationSequence") or ()
    turn = int(frames["rotation"][selected[0]])
    if turn > len(rotations):
        raise InputError(
            f"{path}: lacks the rotation information of its frames (0054,0052), expected start angle, step and "
            f"direction; export the acquisition's raw data."
        )
    rotation = rotations[turn - 1]
    detector = items[number - 1] if number <= len(items) else {}
    if str(detector.get("CollimatorType") or "") not in PARALLEL:
        raise InputError(
            f"{path}: has a collimator of type {printable(detector.get('CollimatorType'))}, expected parallel holes "
            f"(PARA); give the reconstructed volume."
        )
    step = _step(rotation, len(views), path)
    start = None
    if _is_given(detector, "StartAngle"):
        start = float(numbers(detector, "StartAngle", 1, path)[0])
    elif _is_given(rotation, "StartAngle"):
        start = float(numbers(rotation, "StartAngle", 1, path)[0]) + step * (views[0] - 1)
    return _Detector(
        rescale(pixels[selected], dataset, path),
        start,
        step * (views - views[0]),
        _radius(detector, len(views)) or _radius(rotation, len(views)),
        _offset(dataset, detector, path),
    )


def _choose_starts(
    declared: list[float | None], setting: float | Sequence[float] | None, sense: float, files: int, name: object
) -> list[float]:
    """Angle of the first view of each detector, in degrees, from the files and the user's ``setting``."""
    try:
        wanted = None if setting is None else np.atleast_1d(np.array(setting, float)).tolist()
    except (TypeError, ValueError):
        wanted = []
    n, recorded = len(declared), [start for start in declared if start is not None]
    if wanted is not None and (len(wanted) not in (1, n) or not np.isfinite(wanted).all()):
        raise InputError(
            f"{name}: reconstruction.start_angle_deg is {setting}, expected a number of degrees or a list of {n}, one "
            f"per detector; correct it."
        )
    advice = "set reconstruction.start_angle_deg" + (f" to a list of {n} angles, one per detector" if n > 1 else "")
    if wanted and len(wanted) == n:
        starts = wanted
    elif len(recorded) < n:
        raise InputError(
            f"{name}: StartAngle is missing, of a detector and of its rotation (0054,0200); export the acquisition's "
            f"raw data, or {advice}."
        )
    else:
        first = wanted[0] if wanted else recorded[0]
        starts = [first + sense * (start - recorded[0]) for start in recorded]
    angles = np.sort(np.mod(starts, 360.0))
    if (np.diff(angles, append=angles[0] + 360.0) < SAME_ANGLE_DEG).any():
        whole = "" if files == 1 else f" of {files} files"
        repeated = "" if files == 1 else "keep one file if they repeat one another, or "
        raise InputError(
            f"{name}: {n} detectors{whole} start at one angle ({', '.join(f'{x % 360.0:g}' for x in starts)} degrees), "
            f"expected a start angle of each (0054,0200); {repeated}{advice}."
        )
    return starts


def _is_given(item, keyword: str) -> bool:
    return item.get(keyword) not in (None, "")


def _step(rotation, views: int, path: Path) -> float:
    """Degrees from view to view, negative where the angle decreases."""
    step = numbers(rotation, "AngularStep", 1, path)[0]
    direction = printable(rotation.get("RotationDirection") or "missing")
    if step <= 0 or direction not in DIRECTIONS:
        raise InputError(
            f"{path}: AngularStep is {step:g} and RotationDirection {direction}, expected more than 0 degrees and CC "
            f"or CW; export the acquisition's raw data."
        )
    declared = int(rotation.get("NumberOfFramesInRotation") or views)
    if declared % views:  # cameras count the views of one detector, or of all detectors and windows
        raise InputError(f"{path}: has {views} views of a detector, the rotation promises {declared}; export it again.")
    if (views - 1) * step > 360.0 + ARC_TOLERANCE_DEG:
        raise InputError(
            f"{path}: {views} views in steps of {step:g} degrees (Angular Step, 0018,1144) go round more than once, "
            f"expected at most one turn; export the acquisition's raw data."
        )
    arc = rotation.get("ScanArc")
    if arc not in (None, "") and (arc := float(numbers(rotation, "ScanArc", 1, path)[0])):
        counted = {n - k for n in (views, declared) for k in (0, 1)}  # views, or the steps between them
        if min(abs(n * step - abs(arc)) for n in counted) > max(step, ARC_TOLERANCE_DEG):
            raise InputError(
                f"{path}: Scan Arc (0018,1143) is {arc:g} degrees, but {views} views in steps of {step:g} (Angular "
                f"Step, 0018,1144) make {views * step:g}, expected them to agree; export the acquisition's raw data."
            )
    return DIRECTIONS[direction] * step


def _offset(dataset, detector, path: Path) -> float:
    """Distance from the image's middle to the projected axis, to the right, in mm."""
    corrections = dataset.get("CorrectedImage") or ()
    corrections = (corrections,) if isinstance(corrections, str) else corrections
    if "COR" in corrections or not _is_given(detector, "CenterOfRotationOffset"):
        return 0.0
    offset = float(numbers(detector, "CenterOfRotationOffset", 1, path)[0])
    if abs(offset) > LARGEST_OFFSET_MM:
        raise InputError(
            f"{path}: CenterOfRotationOffset is {offset:g} mm, expected at most {LARGEST_OFFSET_MM:g} (0018,1145); "
            f"export the acquisition corrected for it."
        )
    return offset


def _radius(item, views: int) -> list[float] | None:
    """Distance of the detector from the axis per view, in mm; None unless there is one value, or one per view."""
    value = item.get("RadialPosition")
    try:
        radii = np.atleast_1d(np.array(value, float)) if value not in (None, "") else np.array([])
    except (TypeError, ValueError):
        return None
    usable = radii.size in (1, views) and np.isfinite(radii).all() and (radii > 0).all()
    return np.broadcast_to(radii, views).tolist() if usable else None
