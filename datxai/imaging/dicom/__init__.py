"""DICOM in and out: reconstructed volumes, and the projections of a tomographic acquisition.

`identify` says which of the two a scan is, `read_series` and `read_projections` read them, and
`write_projections` makes a complete NM TOMO object.
"""

from datxai.imaging.dicom.dataset import identify
from datxai.imaging.dicom.export import write_projections
from datxai.imaging.dicom.projections import Projections, read_projections
from datxai.imaging.dicom.volumes import read_series

__all__ = ["Projections", "identify", "read_projections", "read_series", "write_projections"]
