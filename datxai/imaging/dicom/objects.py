"""Writing of DICOM objects: elements by keyword, coded terms, files."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

from datxai.files import replacing

BRAIN = ("12738006", "SCT", "Brain")  # SNOMED CT, as in DICOM PS3.16


def write_object(path: str | os.PathLike, sop_class: str, sop_instance: str, elements: Mapping[str, object]) -> None:
    """Write one object as a file, atomically; explicit VR, little endian.

    ``elements`` by keyword: mappings are items, lists of them sequences, floats are rounded to the 16 characters of a
    decimal string if they become one.
    """
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    meta: Any = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = sop_instance
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    nowhere: Any = None  # not read from a file
    dataset = FileDataset(nowhere, {}, preamble=b"\0" * 128, file_meta=meta)
    with warnings.catch_warnings(), replacing(path) as temporary:
        warnings.simplefilter("ignore")  # odd values in patient and study elements are copied unchanged
        for keyword, value in {"SOPClassUID": sop_class, "SOPInstanceUID": sop_instance, **elements}.items():
            setattr(dataset, keyword, _element(value))
        dataset.save_as(temporary, enforce_file_format=True)


def code(term: tuple[str, str, str]) -> dict[str, str]:
    """The item of a coded term (value, scheme, meaning)."""
    return dict(zip(("CodeValue", "CodingSchemeDesignator", "CodeMeaning"), term))


def _element(value: object) -> object:
    """A value in the form that pydicom expects."""
    from pydicom import Dataset
    from pydicom.valuerep import DSfloat

    if isinstance(value, Mapping):
        item = Dataset()
        for keyword, part in value.items():
            setattr(item, keyword, _element(part))
        return item
    if isinstance(value, list):
        return [_element(part) for part in value]
    return DSfloat(value, auto_format=True) if isinstance(value, float) else value
