"""One scan as it comes in: its files, what they say of themselves, and its voxels.

    scan = Scan.find(Path("scan.dcm"))
    scan.form, scan.subject["age"], scan.hash
    volume = scan.read(settings.reconstruction)
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from datxai.config import Reconstruction
from datxai.errors import InputError
from datxai.files import hash_content, hash_file
from datxai.forms import is_nifti
from datxai.volume import Volume, load

if TYPE_CHECKING:
    from datxai.imaging.dicom import Series, Source

log = logging.getLogger("datxai")


@dataclass(frozen=True, eq=False)
class Scan:
    """The files of one scan, ``form`` 'nifti' or 'dicom'. Headers are read once, voxels when they are asked for."""

    files: tuple[Path, ...]
    form: str
    opened: Series | None = None  # of DICOM files whose headers have been read already

    @classmethod
    def find(cls, path: Path) -> Scan:
        """The scan that a path leads to, by content: a NIfTI file, a DICOM file, or a folder with one DICOM series.

        What lies beside a scan in a folder is passed over, and named on the screen. Raises `InputError` where there is
        no scan.
        """
        if not path.exists():
            raise InputError(f"scan={path}: no such file or folder.")
        if path.is_file() and is_nifti(path):
            return cls((path,), "nifti")
        from datxai.imaging.dicom import Series

        series = Series.of(path)
        scan = cls(series.paths, "dicom", series)
        for other, reason in scan.others:
            log.info("%s: %s, passed over", other, reason)
        return scan

    @cached_property
    def series(self) -> Series:
        """The files as a DICOM series."""
        from datxai.imaging.dicom import Series

        return self.opened or Series.of(self.files)

    @property
    def others(self) -> tuple[tuple[Path, str], ...]:
        """Files given with the scan that are no part of it, and why they are passed over."""
        return () if self.form == "nifti" else self.series.others

    @cached_property
    def hash(self) -> str:
        """A hash of what the files hold, whatever they are called."""
        return hash_content(sorted(map(hash_file, self.files)))

    @property
    def subject(self) -> dict:
        """``age``, ``sex``, ``tracer`` and ``doubt``, as far as a DICOM header tells them; see
        `datxai.imaging.dicom.read_subject`."""
        if self.form == "nifti":
            return {"age": None, "sex": None, "tracer": None, "doubt": None}
        from datxai.imaging.dicom import read_subject

        return read_subject(self.series)

    @property
    def source(self) -> Source:
        """Whose scan it is, for results to be filed as DICOM; NIfTI, which does not tell, is an `InputError`."""
        from datxai.imaging.dicom import read_source

        return read_source(self.series)

    def read(self, reconstruction: Reconstruction) -> Volume:
        """The voxels; raw projections are reconstructed. What cannot be used is an `InputError`."""
        if self.form == "nifti":
            return load(self.files[0])
        from datxai.imaging import dicom

        if dicom.identify(self.series) == "volume":
            return dicom.read_series(self.series)
        from datxai.imaging.reconstruction import reconstruct

        options = asdict(reconstruction)
        projections = dicom.read_projections(self.series, options.pop("start_angle_deg"), options.pop("flip"))
        if options["centre"] is None:
            options["centre"] = projections.centre_bin
        try:
            volume = reconstruct(
                projections.counts, projections.angles_deg, projections.pixel_mm, projections.row_spacing_mm, **options
            )
        except InputError as error:
            raise InputError(f"{self.files[0]}: {error}") from error
        return replace(volume, history=(*projections.history, *volume.history))
