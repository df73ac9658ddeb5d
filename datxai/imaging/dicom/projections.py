"""Projections: the views of a tomographic acquisition, read from DICOM NM TOMO.

Where a detector stands (DICOM PS3.3 C.8.4.12, Start Angle): 0 degrees is at the patient's back, and seen from the
patient's feet the angle grows counter-clockwise, to the left side (90), the front (180), the right side (270).
Rotation Direction CC is growing, CW falling. These are the angles that reconstruction takes, so nothing is converted.
Frames show what is seen from the detector: rows from the head downwards, columns to the onlooker's right.
Image Orientation of a detector is not looked at: files often leave it empty or give it for one view only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datxai.errors import InputError
from datxai.imaging.dicom.dataset import decode, kind_of, list_files, numbers, reading, require_pixels, rescale

PHOTOPEAK_KEV = 159.0  # of I-123
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
SAME_ANGLE_DEG = 0.01


@dataclass(frozen=True, eq=False)
class Projections:
    """What the camera counted.

    ``counts`` is float32 of shape (views, rows, bins), ``angles_deg`` says where the detector stood (see the
    module), ``radius_mm`` how far from the axis, per view, if that is known; ``pixel_mm`` is the size of a bin,
    ``row_spacing_mm`` the distance between rows. ``history`` is that of a `Volume`, without the patient's identity.
    """

    counts: np.ndarray
    angles_deg: np.ndarray
    pixel_mm: float
    row_spacing_mm: float
    radius_mm: np.ndarray | None = None
    history: tuple[Mapping, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "counts", np.asarray(self.counts, np.float32))
        object.__setattr__(self, "angles_deg", np.asarray(self.angles_deg, float))
        assert self.counts.ndim == 3, self.counts.shape
        assert self.angles_deg.shape == self.counts.shape[:1], self.angles_deg.shape
        if self.radius_mm is not None:
            radius = np.broadcast_to(np.asarray(self.radius_mm, float), self.angles_deg.shape)
            object.__setattr__(self, "radius_mm", radius)


def read_projections(
    files: str | os.PathLike | Iterable[str | os.PathLike],
    start_angle_deg: float | None = None,
    flip: Collection[str] = (),
) -> Projections:
    """Read the projections of one acquisition, of any number of detectors, in the energy window of I-123.

    The angle of a view is the start angle of its detector (where that has none: of its rotation) plus or minus the
    angular step times the number of steps made. The window is the one that holds 159 keV, or whose name says so.

    Parameters
    ----------
    files : path or paths
        One NM TOMO file, or a folder with it.
    start_angle_deg : float, optional
        For files that record it otherwise: where the first detector stood first. The others follow.
    flip : collection of str
        For files that record it otherwise: 'rotation' counts all angles from the first in the other sense (the
        volume is mirrored), 'bins' and 'rows' mirror the frames.

    Raises
    ------
    InputError
        If it is no one NM TOMO file; angles, rotation or pixel spacing are missing; frames are not windows times
        detectors times views; no window or several could be that of I-123; every count is zero.
    """
    if unknown := set(flip) - {*FLIPS}:
        raise InputError(f"flip: {min(unknown)!r} is not known, expected some of {', '.join(FLIPS)}; choose of them.")
    paths = list_files(files)
    path = paths[0]
    if len(paths) > 1:
        raise InputError(f"{path.parent}: holds {len(paths)} files, expected one with all projections; keep that one.")
    with reading(path) as dataset:
        if kind_of(dataset, path) == "volume":
            raise InputError(
                f"{path}: holds no projections, expected Image Type TOMO; give the acquisition's raw data."
            )
        require_pixels(dataset, path)
        pixels = decode(dataset, path)
        frames = _index_frames(dataset, len(pixels), path)
        window, limits = _choose_window(dataset, int(frames["window"].max()), path)
        order = np.lexsort((frames["view"], frames["detector"]))
        order = order[frames["window"][order] == window]
        frames = {name: vector[order] for name, vector in frames.items()}
        angles, radius = _locate(dataset, frames, start_angle_deg is not None, path)
        counts = rescale(pixels[order], dataset)
        spacing = numbers(dataset, "PixelSpacing", 2, path)
    if (spacing <= 0).any():
        raise InputError(f"{path}: PixelSpacing is {spacing.tolist()}, expected lengths in mm; export the scan again.")
    if not counts.any():
        raise InputError(f"{path}: every count is zero, expected an acquisition; export it again.")
    sense = -1.0 if "rotation" in flip else 1.0
    first = angles[0] if start_angle_deg is None else start_angle_deg
    angles = (first + sense * (angles - angles[0])) % 360.0
    counts = counts[:, :: -1 if "rows" in flip else 1, :: -1 if "bins" in flip else 1]
    record = {
        "step": "load",
        "format": "DICOM",
        "modality": "NM",
        "files": 1,
        "views": len(counts),
        "detectors": len(np.unique(frames["detector"])),
        "energy_window_kev": limits,
        "first_angle_deg": float(angles[0]),
        "start_angle_deg": start_angle_deg,
        "flip": sorted(flip),
    }
    pixel_mm, row_spacing_mm = float(spacing[1]), float(spacing[0])
    return Projections(np.ascontiguousarray(counts), angles, pixel_mm, row_spacing_mm, radius, (record,))


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
    head = np.stack([frames["window"], frames["detector"]])
    heads, in_each = np.unique(head, axis=1, return_counts=True)
    if np.unique(np.vstack([head, frames["rotation"]]), axis=1).shape[1] > heads.shape[1]:
        raise InputError(
            f"{path}: a detector makes several rotations, expected one; export each rotation as a file of its own."
        )
    windows = max(int(dataset.get("NumberOfEnergyWindows") or 1), int(frames["window"].max()))
    detectors = max(int(dataset.get("NumberOfDetectors") or 1), int(frames["detector"].max()))
    views = int(in_each.max())
    different = np.unique(np.vstack([head, frames["view"]]), axis=1).shape[1]
    if not different == count == windows * detectors * views:
        raise InputError(
            f"{path}: has {count} frames ({different} different ones), expected {windows * detectors * views} "
            f"({windows} energy windows x {detectors} detectors x {views} views); export it again."
        )
    return frames


def _choose_window(dataset, count: int, path: Path) -> tuple[int, list[float] | None]:
    """Number of the energy window of I-123, counted from 1, and its limits in keV (None where they are not told)."""
    items = [*(dataset.get("EnergyWindowInformationSequence") or ())][:count]
    names = [str(item.get("EnergyWindowName") or "") for item in items]
    limits = [_window_limits(item) for item in items]
    holding = [k for k, bounds in enumerate(limits) if bounds and bounds[0] <= PHOTOPEAK_KEV <= bounds[1]]
    named = [
        k
        for k, name in enumerate(names)
        if PHOTOPEAK_NAME.search(name) and not SCATTER_NAME.search(name) and (k in holding or not limits[k])
    ]
    if count == 1 and not any(limits):
        holding = [0]  # nothing is told of the one window there is
    chosen = holding if len(holding) == 1 else named
    if len(chosen) != 1:
        told = ", ".join(
            f"{name!r}" + (f" {bounds[0]:g}-{bounds[1]:g} keV" if bounds else "") for name, bounds in zip(names, limits)
        )
        raise InputError(
            f"{path}: {len(named or holding) or 'none'} of the energy windows ({told or 'not described'}) could be "
            f"that of I-123, expected one that holds {PHOTOPEAK_KEV:g} keV; export that one alone."
        )
    return chosen[0] + 1, limits[chosen[0]] if limits else None


def _window_limits(item) -> list[float] | None:
    """Lowest and highest limit in keV of a window, which may be made of several ranges."""
    keywords = ("EnergyWindowLowerLimit", "EnergyWindowUpperLimit")
    bounds = [
        [float(part[keyword].value) for keyword in keywords]
        for part in item.get("EnergyWindowRangeSequence") or ()
        if all(part.get(keyword) for keyword in keywords)
    ]
    return [min(low for low, _ in bounds), max(high for _, high in bounds)] if bounds else None


def _locate(
    dataset, frames: dict[str, np.ndarray], start_is_given: bool, path: Path
) -> tuple[np.ndarray, np.ndarray | None]:
    """Angle in degrees of each frame, and radius in mm where it is known. Frames are sorted by detector and view."""
    rotations = dataset.get("RotationInformationSequence") or ()
    items = dataset.get("DetectorInformationSequence") or ()
    detectors = np.unique(frames["detector"])
    angles, radius, first = [], [], []
    for number in detectors:
        views = frames["view"][frames["detector"] == number]
        turn = int(frames["rotation"][frames["detector"] == number][0])
        if turn > len(rotations):
            raise InputError(
                f"{path}: lacks the rotation information of its frames (0054,0052), expected start angle, step and "
                f"direction; export the acquisition's raw data."
            )
        rotation = rotations[turn - 1]
        detector = items[number - 1] if number <= len(items) else {}
        if str(detector.get("CollimatorType") or "") not in PARALLEL:
            raise InputError(
                f"{path}: has a collimator of type {detector.get('CollimatorType')}, expected parallel holes (PARA); "
                f"give the reconstructed volume."
            )
        own = detector.get("StartAngle") not in (None, "")
        steps = views - (views[0] if own else 1)
        if start_is_given and len(detectors) == 1:
            start = 0.0
        else:
            start = numbers(detector if own else rotation, "StartAngle", 1, path)[0]
        angles.append(start + _step(rotation, len(views), len(detectors), path) * steps)
        radius.append(_radius(detector, len(views)) or _radius(rotation, len(views)))
        first.append(angles[-1][0] % 360.0)
    if (np.diff(np.sort(first)) < SAME_ANGLE_DEG).any():
        raise InputError(
            f"{path}: {len(detectors)} detectors start at one angle, expected a start angle of each (0054,0200); "
            f"export the acquisition's raw data."
        )
    return np.concatenate(angles), np.concatenate(radius) if all(radius) else None


def _step(rotation, views: int, detectors: int, path: Path) -> float:
    """Degrees from view to view, negative where the angle falls."""
    step = numbers(rotation, "AngularStep", 1, path)[0]
    direction = str(rotation.get("RotationDirection") or "missing")
    if step <= 0 or direction not in DIRECTIONS:
        raise InputError(
            f"{path}: AngularStep is {step:g} and RotationDirection {direction}, expected more than 0 degrees and CC "
            f"or CW; export the acquisition's raw data."
        )
    promised = int(rotation.get("NumberOfFramesInRotation") or views)
    if promised % views:  # some count the views of one detector, some those of all detectors and windows
        raise InputError(f"{path}: has {views} views of a detector, the rotation promises {promised}; export it again.")
    return DIRECTIONS[direction] * step


def _radius(holder, views: int) -> list[float] | None:
    """Distance of the detector from the axis per view, in mm: one value for all, or one each."""
    value = holder.get("RadialPosition")
    found = np.atleast_1d(np.array(value, float)) if value not in (None, "") else np.array([])
    usable = found.size in (1, views) and np.isfinite(found).all() and (found > 0).all()
    return np.broadcast_to(found, views).tolist() if usable else None
