"""Export of projections as a complete NM TOMO object (DICOM PS3.3 A.5, C.8.4), as a camera would write for I-123.

The same projections and names give the same bytes: unique identifiers are hashes, and no dates are written.
"""

from __future__ import annotations

import os

import numpy as np

from datxai import __version__
from datxai.errors import InputError
from datxai.imaging.dicom.dataset import PHOTOPEAK_KEV
from datxai.imaging.dicom.objects import BRAIN, code, write_object
from datxai.imaging.dicom.projections import Projections

WINDOW_HALF_WIDTH = 0.1  # of the photopeak
FRAME_SECONDS = 30
LARGEST_COUNT = 2**16 - 1
ANGLE_TOLERANCE_DEG = 1e-3

# SNOMED CT codes of DICOM PS3.16, CID 18 to 25
IODINE_123 = ("21572004", "SCT", "^123^Iodine")
IOFLUPANE = ("429296007", "SCT", "Ioflupane I^123^")
RECUMBENT = ("102538003", "SCT", "recumbent")
SUPINE = ("40199007", "SCT", "supine")
HEAD_FIRST = ("102540008", "SCT", "headfirst")
INTRAVENOUS = ("47625008", "SCT", "Intravenous route")


def write_projections(
    path: str | os.PathLike,
    projections: Projections,
    name: str,
    detectors: int = 1,
    patient_id: str = "PHANTOM",
    patient_name: str = "PHANTOM^DIGITAL",
    patient_sex: str = "",
    patient_age: float | None = None,
) -> None:
    """Write one acquisition, atomically; `datxai.imaging.dicom.read_projections` reads it back.

    Parameters
    ----------
    projections : Projections
        Counts are rounded to integers; angles must be evenly spaced within each detector.
    name : str
        Distinguishes this acquisition from all others: all unique identifiers are derived from it.
    detectors : int
        The number of detectors over which the views are divided, in blocks of equal length.

    Raises
    ------
    InputError
        If counts do not fit 16 bits, or angles are not evenly spaced.
    """
    from pydicom.uid import NuclearMedicineImageStorage, generate_uid

    counts = np.rint(projections.counts)
    if not (np.isfinite(counts).all() and counts.min() >= 0 and counts.max() <= LARGEST_COUNT):
        raise InputError(
            f"{path}: counts run from {counts.min():g} to {counts.max():g}, expected 0 to {LARGEST_COUNT} per pixel; "
            f"lower the number of counts."
        )
    views = len(counts) // detectors
    assert views * detectors == len(counts), (len(counts), detectors)
    starts, step = _find_steps(projections.angles_deg.reshape(detectors, views), path)

    elements = (
        {f"{kind}InstanceUID": generate_uid(entropy_srcs=[name, kind.lower()]) for kind in ("Study", "Series")}
        | {"FrameOfReferenceUID": generate_uid(entropy_srcs=[name, "frame"])}
        | _describe_study(patient_id, patient_name, patient_sex, patient_age)
        | _describe_frames(counts, projections, detectors)
        | _describe_tracer()
        | {
            "DetectorInformationSequence": [
                _describe_detector(projections, start, number * views, detectors > 1)
                for number, start in enumerate(starts)
            ],
            "RotationInformationSequence": [_describe_rotation(projections, starts[0], step, views, detectors)],
        }
    )
    instance = generate_uid(entropy_srcs=[name, "instance"])
    write_object(path, NuclearMedicineImageStorage, instance, elements)


def _describe_study(patient_id: str, patient_name: str, sex: str, age: float | None) -> dict:
    return {
        "Modality": "NM",
        "Manufacturer": "datxai",
        "ManufacturerModelName": "simulated camera",
        "SoftwareVersions": __version__,
        "PatientID": patient_id,
        "PatientName": patient_name,
        "PatientSex": sex,
        "PatientBirthDate": "",
        **({} if age is None else {"PatientAge": f"{int(age):03d}Y"}),
        "StudyDate": "",
        "StudyTime": "",
        "StudyID": "1",
        "AccessionNumber": "",
        "ReferringPhysicianName": "",
        "SeriesNumber": 1,
        "SeriesDescription": "DAT-SPECT TOMO",
        "InstanceNumber": 1,
        "BodyPartExamined": "BRAIN",
        "AnatomicRegionSequence": [code(BRAIN)],
        "PositionReferenceIndicator": "",
        "PatientOrientationCodeSequence": [
            {**code(RECUMBENT), "PatientOrientationModifierCodeSequence": [code(SUPINE)]}
        ],
        "PatientGantryRelationshipCodeSequence": [code(HEAD_FIRST)],
    }


def _describe_frames(counts: np.ndarray, projections: Projections, detectors: int) -> dict:
    from pydicom.datadict import tag_for_keyword

    frames, rows, bins = counts.shape
    vectors = {
        "EnergyWindowVector": [1] * frames,
        "DetectorVector": np.repeat(range(1, detectors + 1), frames // detectors).tolist(),
        "RotationVector": [1] * frames,
        "AngularViewVector": [*range(1, frames // detectors + 1)] * detectors,
    }
    return {
        "ImageType": ["ORIGINAL", "PRIMARY", "TOMO", "EMISSION"],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": rows,
        "Columns": bins,
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 0,
        "PixelSpacing": [projections.row_spacing_mm, projections.pixel_mm],
        "NumberOfFrames": frames,
        "FrameIncrementPointer": [tag_for_keyword(keyword) for keyword in vectors],
        **vectors,
        "NumberOfEnergyWindows": 1,
        "NumberOfDetectors": detectors,
        "NumberOfRotations": 1,
        "TypeOfDetectorMotion": "STEP AND SHOOT",
        "CountsAccumulated": int(counts.sum(dtype=np.float64)),
        "PixelData": counts.astype("<u2").tobytes(),
    }


def _describe_tracer() -> dict:
    low, high = (PHOTOPEAK_KEV * (1.0 + sign * WINDOW_HALF_WIDTH) for sign in (-1, 1))
    return {
        "EnergyWindowInformationSequence": [
            {
                "EnergyWindowName": "I-123",
                "EnergyWindowRangeSequence": [{"EnergyWindowLowerLimit": low, "EnergyWindowUpperLimit": high}],
            }
        ],
        "RadiopharmaceuticalInformationSequence": [
            {
                "Radiopharmaceutical": "Ioflupane I-123",
                "RadiopharmaceuticalCodeSequence": [code(IOFLUPANE)],
                "RadionuclideCodeSequence": [code(IODINE_123)],
                "RadiopharmaceuticalRoute": "INTRAVENOUS",
                "AdministrationRouteCodeSequence": [code(INTRAVENOUS)],
            }
        ],
    }


def _describe_detector(projections: Projections, start: float, view: int, own_start: bool) -> dict:
    """A detector and the position of its first frame in LPS+ mm, at the ``start`` angle."""
    _, rows, bins = projections.counts.shape
    field = [rows * projections.row_spacing_mm, bins * projections.pixel_mm]
    sine, cosine = np.sin(np.deg2rad(start)), np.cos(np.deg2rad(start))
    along_bins, along_rows = np.array([-cosine, sine, 0.0]), np.array([0.0, 0.0, -1.0])
    radius = 0.0 if projections.radius_mm is None else projections.radius_mm[view]
    first = (
        radius * np.array([sine, cosine, 0.0])
        - (field[1] - projections.pixel_mm) / 2.0 * along_bins
        - (field[0] - projections.row_spacing_mm) / 2.0 * along_rows
    )
    return {
        "CollimatorGridName": "LEHR",
        "CollimatorType": "PARA",
        "FieldOfViewShape": "RECTANGLE",
        "FieldOfViewDimensions": np.rint(field).astype(int).tolist(),
        "FocalDistance": 0,
        "ImagePositionPatient": first.tolist(),
        "ImageOrientationPatient": [*along_bins, *along_rows],
        **({"StartAngle": start} if own_start else {}),
    }


def _describe_rotation(projections: Projections, start: float, step: float, views: int, detectors: int) -> dict:
    radius = projections.radius_mm
    if radius is not None:
        constant = np.ptp(radius) == 0 or detectors > 1
        radius = float(radius.mean()) if constant else radius.tolist()
    return {
        "StartAngle": start,
        "AngularStep": abs(step),
        "RotationDirection": "CC" if step > 0 else "CW",
        "ScanArc": abs(step) * views,
        "ActualFrameDuration": FRAME_SECONDS * 1000,
        "NumberOfFramesInRotation": views,
        "TableTraverse": 0,
        "TableHeight": 0,
        **({} if radius is None else {"RadialPosition": radius}),
    }


def _find_steps(angles: np.ndarray, path: object) -> tuple[list[float], float]:
    """First angle of each detector, in [0, 360), and their common signed step."""
    steps = (np.diff(angles, axis=1) + 180.0) % 360.0 - 180.0
    step = float(np.median(steps)) if steps.size else 360.0
    if not abs(step) > ANGLE_TOLERANCE_DEG or (np.abs(steps - step) > ANGLE_TOLERANCE_DEG).any():
        raise InputError(f"{path}: the angles are not evenly spaced, expected one step; write them in order.")
    return (angles[:, 0] % 360.0).tolist(), step
