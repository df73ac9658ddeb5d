"""DICOM in and out: reconstructed volumes, the projections of a tomographic acquisition, and results.

A `Series` holds the files of one scan; each header is read once. `identify` tells volumes from projections,
`read_series` and `read_projections` read them, and `write_projections` writes a complete NM TOMO object. `read_source`
and `read_subject` return the patient and study, `deidentify` removes the identity, and `write_dicom_results` adds a
relevance map to the study.
"""

from datxai.imaging.dicom.dataset import Series, identify, keep_scans, part_series, survey
from datxai.imaging.dicom.export import write_projections
from datxai.imaging.dicom.projections import Projections, read_projections
from datxai.imaging.dicom.result import write_dicom_results, write_parametric_map, write_secondary_capture
from datxai.imaging.dicom.source import Source, deidentify, is_dat_tracer, read_source, read_subject, read_visit
from datxai.imaging.dicom.volumes import read_series

__all__ = [
    "Projections",
    "Series",
    "Source",
    "deidentify",
    "identify",
    "is_dat_tracer",
    "keep_scans",
    "part_series",
    "read_projections",
    "read_series",
    "read_source",
    "read_subject",
    "read_visit",
    "survey",
    "write_dicom_results",
    "write_parametric_map",
    "write_projections",
    "write_secondary_capture",
]
