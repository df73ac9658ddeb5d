"""The source of a result: patient, study and instances of the scan, without pixels, so that both share a study.

Only the elements named here are copied from a scan's headers; private elements, dates of birth in free text, and names
of operators and stations never enter a result.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date
from functools import cache

from datxai import __version__
from datxai.errors import InputError
from datxai.files import hash_content
from datxai.forms import is_nifti
from datxai.imaging.dicom.dataset import Files, Series, kind_of, printable
from datxai.imaging.dicom.objects import code

REQUIRED = (  # type 2 of the modules Patient and General Study (DICOM PS3.3 C.7.1.1, C.7.2.1): required, may be empty
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
OPTIONAL = ("IssuerOfPatientID", "PatientAge", "PatientSize", "PatientWeight", "StudyDescription")
SCAN_DATES = ("AcquisitionDate", "StudyDate", "SeriesDate")  # the last may be the date of a later reconstruction
IDENTITY = ("PatientID", "IssuerOfPatientID", "PatientName", "PatientSex")
PLACEHOLDERS = ("", "anon", "anonymous", "anonymized", "anonymised", "unknown", "none", "na", "patient", "test")
DAT_TRACERS = ("ioflupane", "datscan", "fpcit", "bcit", "iometopane", "trodat", "pe2i", "altropane")
MIN_AGE, MAX_AGE = 1, 110  # years; other ages are placeholders, such as 000Y or a birth on 1900-01-01
BASIC_PROFILE = ("113100", "DCM", "Basic Application Confidentiality Profile")


@dataclass(frozen=True)
class Source:
    """The scan from which a result was made.

    ``elements`` are those of the patient and the study by keyword, ``instances`` are (series, SOP class, SOP instance)
    of each file. ``frame_of_reference`` is the scan's own if the voxels lie in it (``in_frame``), else a new one.
    """

    elements: Mapping[str, object]
    instances: tuple[tuple[str, str, str], ...]
    frame_of_reference: str
    in_frame: bool
    deidentified: bool = False


def read_source(files: Files | Series) -> Source:
    """The source of a scan, from the headers of its files (or their folder).

    A volume reconstructed from projections gets a new frame of reference: it lies around the axis of rotation, whose
    position in the scanner is not recorded.

    Raises
    ------
    InputError
        If a file is not DICOM or lacks the unique identifiers of its study, series or instance, or if the files belong
        to several patients or studies.
    """
    from pydicom.uid import generate_uid

    series = Series.of(files)
    paths = series.paths
    name = paths[0] if len(paths) == 1 else paths[0].parent
    studies, instances, frames = {}, [], set()
    for path in paths:
        if path not in series.headers and is_nifti(path):
            raise InputError(
                f"{path}: is NIfTI, which names neither patient nor study, expected DICOM to file a DICOM result with; "
                f"give the original files, or leave dicom=true out."
            )
        with series.header(path).open() as dataset:
            uids = [str(dataset.get(f"{kind}UID") or "") for kind in ("SeriesInstance", "SOPClass", "SOPInstance")]
            elements = {keyword: _plain(dataset.get(keyword)) for keyword in ("StudyInstanceUID", *REQUIRED, *OPTIONAL)}
            if not all([elements["StudyInstanceUID"], *uids]):
                raise InputError(
                    f"{path}: lacks the unique identifiers of its study, series or instance, expected them for a "
                    f"result to be filed with; export it again."
                )
            frame = str(dataset.get("FrameOfReferenceUID") or "")
            frames.add(frame if kind_of(dataset, path) == "volume" else "")
        instances.append(tuple(uids))
        studies.setdefault((elements["PatientID"], elements["StudyInstanceUID"]), elements)
    if len(studies) > 1:
        raise InputError(f"{name}: the files are of more than one patient or study, expected one scan; separate them.")
    (elements,) = studies.values()
    present = {keyword: value for keyword, value in elements.items() if value or keyword not in OPTIONAL}
    in_frame = len(frames) == 1 and "" not in frames
    return Source(present, tuple(instances), frames.pop() if in_frame else generate_uid(prefix=None), in_frame)


def read_subject(files: Files | Series) -> dict:
    """Age, sex and tracer of a scan, from the header of its first file.

    ``age`` in years, ``sex`` (M, F or O) and the ``tracer`` as named there; None if missing. ``doubt`` is a sentence if
    the header's age is implausible. The age is Patient's Age, or else the full years from birth to scan.
    """
    series = Series.of(files)
    with series.header(series.paths[0]).open() as dataset:
        age, sex = _parse_age(dataset), str(dataset.get("PatientSex") or "")
        holders = [dataset, *(dataset.get("RadiopharmaceuticalInformationSequence") or ())]
        tracers = [str(item.get("Radiopharmaceutical") or "").strip() for item in holders]
        written = printable(dataset.get("PatientAge") or "")
    doubt = None
    if age is None and written:
        doubt = f"The header gives the age {written}, which is implausible; expected values are not adjusted for age."
    return {
        "age": age,
        "sex": sex if sex in ("M", "F", "O") else None,
        "tracer": next(filter(None, tracers), None),
        "doubt": doubt,
    }


def read_visit(files: Files | Series) -> tuple[str | None, date | None]:
    """A hash of the person and the date of a scan, from the header of the first file; each None if missing.

    The hash is of the identifier, its issuer, name and sex, which are not kept. Identifiers that many people share
    (`PLACEHOLDERS`) count as missing.
    """
    series = Series.of(files)
    with series.header(series.paths[0]).open() as dataset:
        identity = [str(dataset.get(keyword) or "").strip() for keyword in IDENTITY]
        day = next(filter(None, (_parse_date(dataset, keyword) for keyword in SCAN_DATES)), None)
    plain = re.sub(r"[^a-z0-9]", "", identity[0].lower()).strip("0")
    return (None if plain in PLACEHOLDERS else hash_content(identity)), day


def is_dat_tracer(name: str) -> bool:
    """Whether a name is that of a dopamine transporter tracer, or gives no more than the nuclide."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower().replace("β", "b").replace("beta", "b"))
    without_nuclide = re.sub(r"i(od(ine?)?)?123|123i(od(ine?)?)?|(tc|technetium)99m?|99m?(tc|technetium)", "", plain)
    return not without_nuclide or any(tracer in without_nuclide for tracer in DAT_TRACERS)


def deidentify(source: Source) -> Source:
    """The source without the patient's identity: DICOM PS3.15 Annex E, Basic Application Confidentiality Profile.

    Every element of patient and study is emptied or removed, except for a random Patient ID, so that an archive does
    not merge people. All unique identifiers are replaced by random ones, consistently; the originals are not kept.
    """
    from pydicom.uid import generate_uid

    @cache
    def renew(uid: str) -> str:
        return generate_uid(prefix=None)

    return replace(
        source,
        elements={
            "StudyInstanceUID": renew(source.elements["StudyInstanceUID"]),
            **dict.fromkeys(REQUIRED, ""),
            "PatientName": "ANONYMOUS^",
            "PatientID": f"ANON-{secrets.token_hex(6)}",
            "PatientIdentityRemoved": "YES",
            "DeidentificationMethod": f"datxai {__version__}, DICOM PS3.15 Annex E, basic profile",
            "DeidentificationMethodCodeSequence": [code(BASIC_PROFILE)],
            "LongitudinalTemporalInformationModified": "REMOVED",
        },
        instances=tuple((renew(series), kind, renew(instance)) for series, kind, instance in source.instances),
        frame_of_reference=renew(source.frame_of_reference),
        deidentified=True,
    )


def _parse_age(dataset) -> float | None:
    """Patient's Age, or the full years from birth to scan; None for placeholders such as 000Y and 999Y."""
    written = str(dataset.get("PatientAge") or "")
    years = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}.get(written[-1:])
    if years and written[:-1].isdecimal() and MIN_AGE <= (age := float(written[:-1]) * years) <= MAX_AGE:
        return age
    birth = _parse_date(dataset, "PatientBirthDate")
    scan = next(filter(None, (_parse_date(dataset, keyword) for keyword in SCAN_DATES)), None)
    if birth is None or scan is None:
        return None
    age = scan.year - birth.year - ((scan.month, scan.day) < (birth.month, birth.day))
    return float(age) if MIN_AGE <= age <= MAX_AGE else None


def _parse_date(dataset, keyword: str) -> date | None:
    """The date in an element, in the standard's format or with dots, as before 1993."""
    try:
        return date.fromisoformat(str(dataset.get(keyword) or "").replace(".", ""))
    except ValueError:
        return None


def _plain(value: object) -> str:
    """Text of an element, several values joined as in DICOM; empty if missing."""
    from pydicom.multival import MultiValue

    return "\\".join(map(str, value)) if isinstance(value, MultiValue) else str("" if value is None else value)
