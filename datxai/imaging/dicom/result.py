"""Results for the archive: the relevance map as numbers (Parametric Map) and as colour pictures.

Both become new series of the scan's study and refer to their source instances. Frames carry their position in the
patient (DICOM PS3.3 C.7.6.16). Existing files are never overwritten.
"""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

import numpy as np

from datxai import __version__
from datxai.errors import InputError
from datxai.imaging.dicom.objects import code, write_object
from datxai.imaging.dicom.overlay import blend, lay_out
from datxai.imaging.dicom.source import Source
from datxai.volume import Volume

RIGHT_ANGLE_TOLERANCE = 1e-3  # of the cosine between rows and columns
SERIES_NUMBERS = {"map": 9501, "colour": 9502}  # larger than those that scanners assign
NO_DATE, NO_TIME = "19000101", "000000"  # where an element must not be empty

# Coded terms of DICOM PS3.16, SNOMED CT and UCUM; relevance has no public code
SOURCE_IMAGE = ("121322", "DCM", "Source image for image processing operation")
DERIVATION = ("112187", "DCM", "Unspecified method of calculation")
QUANTITY = ("246205007", "SCT", "Quantity")
RELEVANCE = ("RELEVANCE", "99DATXAI", "Relevance for the decision of a network")
NO_UNITS = ("1", "UCUM", "no units")


def write_dicom_results(
    folder: str | os.PathLike, source: Source, relevance: Volume, scan: Volume, colours: np.ndarray, description: str
) -> list[Path]:
    """Write the relevance map of a scan as a Parametric Map and as colour pictures; returns both paths.

    Parameters
    ----------
    folder : path
        Files are named after their new unique identifiers, so none is ever overwritten.
    source : Source
        From `read_source` or `deidentify`.
    relevance, scan : Volume
        In the scan's own space, on one grid.
    colours : uint8 array (256, 3)
        RGB from the most negative relevance to the most positive.
    description : str
        How the map was made, at most 64 characters.
    """
    from pydicom.uid import generate_uid

    uids = [generate_uid(prefix=None) for _ in range(2)]
    paths = [Path(folder) / f"{kind}_{uid}.dcm" for kind, uid in zip(("relevance-map", "relevance-colour"), uids)]
    write_parametric_map(paths[0], relevance, source, description, uids[0])
    write_secondary_capture(paths[1], *blend(scan, relevance, colours), source, description, uids[1])
    return paths


def write_parametric_map(
    path: str | os.PathLike, relevance: Volume, source: Source, description: str, uid: str | None = None
) -> None:
    """Write relevance as a Parametric Map (DICOM PS3.3 A.75) with float32 pixels, exactly the volume's values.

    Raises `InputError` if the file exists, or the volume's axes are not at right angles within its slices.
    """
    from pydicom.uid import ParametricMapStorage

    frames, affine = lay_out(relevance.data, relevance.affine)
    largest = float(np.abs(frames).max())
    kind = ["DERIVED", "PRIMARY", "VOLUME", "QUANTITY"]
    shape, shared, places = _place_frames(path, frames, affine)
    dimension, numbers = _number_frames(len(frames))
    elements = {
        **_describe_result(source, "map", description),
        **shape,
        **dimension,
        "ImageType": kind,
        "ContentLabel": "RELEVANCE",
        "ContentDescription": description,
        "ContentCreatorName": "",
        "ContentQualification": "RESEARCH",
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 32,
        "PresentationLUTShape": "IDENTITY",
        "AcquisitionContextSequence": [],
        "CodingSchemeIdentificationSequence": [
            {"CodingSchemeDesignator": RELEVANCE[1], "CodingSchemeName": "Terms of datxai"}
        ],
        "PerFrameFunctionalGroupsSequence": [number | place for number, place in zip(numbers, places)],
        "FloatPixelData": frames.astype("<f4").tobytes(),
    }
    shared |= {"ParametricMapFrameTypeSequence": [{"FrameType": kind}], **_describe_values(largest)}
    shared["DerivationImageSequence"] = [
        {
            "DerivationDescription": description,
            "DerivationCodeSequence": [code(DERIVATION)],
            "SourceImageSequence": _refer(source),
        }
    ]
    _write_new(path, ParametricMapStorage, uid, elements | {"SharedFunctionalGroupsSequence": [shared]})


def _describe_values(largest: float) -> dict:
    """The functional group that describes pixel values: relevance from -``largest`` to ``largest``, without a unit."""
    return {
        "PixelValueTransformationSequence": [{"RescaleIntercept": 0, "RescaleSlope": 1, "RescaleType": "US"}],
        "FrameVOILUTSequence": [
            {"WindowCenter": 0, "WindowWidth": 2.0 * (largest or 1.0), "VOILUTFunction": "LINEAR_EXACT"}
        ],
        "RealWorldValueMappingSequence": [
            {
                "LUTExplanation": RELEVANCE[2],
                "LUTLabel": "RELEVANCE",
                "DoubleFloatRealWorldValueFirstValueMapped": -largest,
                "DoubleFloatRealWorldValueLastValueMapped": largest,
                "RealWorldValueIntercept": 0.0,
                "RealWorldValueSlope": 1.0,
                "MeasurementUnitsCodeSequence": [code(NO_UNITS)],
                "QuantityDefinitionSequence": [
                    {
                        "ValueType": "CODE",
                        "ConceptNameCodeSequence": [code(QUANTITY)],
                        "ConceptCodeSequence": [code(RELEVANCE)],
                    }
                ],
            }
        ],
    }


def write_secondary_capture(
    path: str | os.PathLike,
    frames: np.ndarray,
    affine: np.ndarray,
    source: Source,
    description: str,
    uid: str | None = None,
) -> None:
    """Write colour pictures as a multi-frame true-colour Secondary Capture (DICOM PS3.3 A.8.5).

    Parameters
    ----------
    frames : uint8 array (slices, rows, columns, 3)
    affine : array (4, 4)
        From (column, row, slice) to LPS+ mm, as `datxai.imaging.dicom.overlay.blend` returns it.

    Raises `InputError` as `write_parametric_map` does.
    """
    from pydicom.datadict import tag_for_keyword
    from pydicom.uid import MultiFrameTrueColorSecondaryCaptureImageStorage

    shape, shared, places = _place_frames(path, frames, affine)
    step = shared["PixelMeasuresSequence"][0]["SpacingBetweenSlices"]
    elements = {
        **_describe_result(source, "colour", description),
        **shape,
        "ConversionType": "WSD",
        "ImageType": ["DERIVED", "SECONDARY"],
        "PatientOrientation": ["L", "P"],
        "DerivationDescription": description,
        "DerivationCodeSequence": [code(DERIVATION)],
        "SourceImageSequence": _refer(source),
        "FrameIncrementPointer": tag_for_keyword("SliceLocationVector"),
        "SliceLocationVector": [step * number for number in range(len(frames))],
        "SharedFunctionalGroupsSequence": [shared],
        "PerFrameFunctionalGroupsSequence": places,
        "SamplesPerPixel": 3,
        "PhotometricInterpretation": "RGB",
        "PlanarConfiguration": 0,
        "BitsAllocated": 8,
        "BitsStored": 8,
        "HighBit": 7,
        "PixelRepresentation": 0,
        "PixelData": frames.tobytes(),
    }
    _write_new(path, MultiFrameTrueColorSecondaryCaptureImageStorage, uid, elements)


def _describe_result(source: Source, kind: str, description: str) -> dict:
    """The elements of patient, study, series, equipment and sources, shared by both objects."""
    from pydicom.uid import generate_uid

    now = datetime.now()
    date, time = (NO_DATE, NO_TIME) if source.deidentified else (f"{now:%Y%m%d}", f"{now:%H%M%S}")
    series = {}
    for number, class_, instance in source.instances:
        series.setdefault(number, []).append({"ReferencedSOPClassUID": class_, "ReferencedSOPInstanceUID": instance})
    return {
        "SpecificCharacterSet": "ISO_IR 192",
        **source.elements,
        "SeriesInstanceUID": generate_uid(prefix=None),
        "SeriesNumber": SERIES_NUMBERS[kind],
        "SeriesDescription": description,
        "Modality": "OT",
        "BodyPartExamined": "BRAIN",
        "FrameOfReferenceUID": source.frame_of_reference,
        "PositionReferenceIndicator": "",
        "Manufacturer": "datxai",
        "ManufacturerModelName": "datxai",
        "DeviceSerialNumber": "none",
        "SoftwareVersions": __version__,
        "InstanceNumber": 1,
        "ContentDate": date,
        "ContentTime": time,
        "BurnedInAnnotation": "NO",  # the text in the pictures does not identify the patient
        "RecognizableVisualFeatures": "NO",
        "LossyImageCompression": "00",
        "ReferencedSeriesSequence": [
            {"SeriesInstanceUID": uid, "ReferencedInstanceSequence": instances} for uid, instances in series.items()
        ],
    }


def _refer(source: Source) -> list[dict]:
    """References to the source instances, without frame numbers: the network sees the whole scan at once."""
    return [
        {
            "ReferencedSOPClassUID": class_,
            "ReferencedSOPInstanceUID": instance,
            "PurposeOfReferenceCodeSequence": [code(SOURCE_IMAGE)],
            "SpatialLocationsPreserved": "YES" if source.in_frame else "NO",
        }
        for _, class_, instance in source.instances
    ]


def _place_frames(path: str | os.PathLike, frames: np.ndarray, affine: np.ndarray) -> tuple[dict, dict, list[dict]]:
    """Position of frames (slices, rows, columns, ...) in the patient: elements, shared and per-frame groups."""
    columns, rows = affine[:3, 0], affine[:3, 1]
    spacing = np.linalg.norm([rows, columns], axis=1)
    cosines = np.concatenate([columns / spacing[1], rows / spacing[0]])
    if abs(cosines[:3] @ cosines[3:]) > RIGHT_ANGLE_TOLERANCE:
        raise InputError(
            f"{path}: rows and columns of the scan are not at right angles, expected DICOM's axes; "
            f"resample the scan to right-angled axes."
        )
    slice_spacing = float(abs(np.cross(cosines[:3], cosines[3:]) @ affine[:3, 2]))
    positions = affine[:3, 3] + np.arange(len(frames))[:, None] * affine[:3, 2]
    shared = {
        "PixelMeasuresSequence": [
            {"PixelSpacing": spacing.tolist(), "SliceThickness": slice_spacing, "SpacingBetweenSlices": slice_spacing}
        ],
        "PlaneOrientationSequence": [{"ImageOrientationPatient": cosines.tolist()}],
    }
    per_frame = [{"PlanePositionSequence": [{"ImagePositionPatient": position.tolist()}]} for position in positions]
    shape = {"NumberOfFrames": len(frames), "Rows": frames.shape[1], "Columns": frames.shape[2]}
    return shape, shared, per_frame


def _number_frames(count: int) -> tuple[dict, list[dict]]:
    """The dimension along which frames are numbered (DICOM PS3.3 C.7.6.17), and the number of each."""
    from pydicom.datadict import tag_for_keyword
    from pydicom.uid import generate_uid

    organisation = {"DimensionOrganizationUID": generate_uid(prefix=None)}
    index = {
        "DimensionIndexPointer": tag_for_keyword("InStackPositionNumber"),
        "FunctionalGroupPointer": tag_for_keyword("FrameContentSequence"),
        "DimensionDescriptionLabel": "slice",
    }
    return {
        "DimensionOrganizationType": "3D",
        "DimensionOrganizationSequence": [organisation],
        "DimensionIndexSequence": [organisation | index],
    }, [
        {"FrameContentSequence": [{"StackID": "1", "InStackPositionNumber": number, "DimensionIndexValues": number}]}
        for number in range(1, count + 1)
    ]


def _write_new(path: str | os.PathLike, sop_class: str, uid: str | None, elements: dict) -> None:
    from pydicom.uid import generate_uid

    if Path(path).exists():
        raise InputError(f"{path}: exists already, expected a new file; choose another name.")
    write_object(path, sop_class, uid or generate_uid(prefix=None), elements)
