"""One incoming scan: its files, their headers, and its voxels.

    scan = Scan.find(Path("scan.dcm"))
    scan.form, scan.subject["age"], scan.hash
    volume = scan.read(settings.reconstruction)
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from datxai.config import Reconstruction
from datxai.errors import InputError
from datxai.files import hash_content, hash_file
from datxai.forms import DICOM, NIFTI, PAIR, header_of, is_nifti, tell_form_of_part, walk
from datxai.volume import Volume, load

if TYPE_CHECKING:
    from datxai.imaging.dicom import Series, Source

log = logging.getLogger("datxai")


@dataclass(frozen=True, eq=False)
class Scan:
    """The files of one scan, ``form`` 'nifti' or 'dicom'. Headers are read once, voxels on demand.

    ``place`` is the file or folder after which the scan is named.
    """

    files: tuple[Path, ...]
    form: str
    opened: Series | None = None  # of DICOM files with headers that have been read already
    given: Path | None = None

    @property
    def place(self) -> Path:
        return self.given or (self.files[0] if len(self.files) == 1 else Path(os.path.commonpath(self.files)))

    @classmethod
    def find(cls, path: Path) -> Scan:
        """The scan at a path, recognised by content: a NIfTI file, a DICOM file, or a folder with one DICOM series.

        Other files in the folder are skipped and logged. Raises `InputError` if there is no scan.
        """
        if not path.exists():
            raise InputError(f"scan={path}: no such file or folder.")
        if path.is_file() and is_nifti(path):
            return cls((path,), "nifti", given=path)
        from datxai.imaging.dicom import Series

        series = Series.of(path)
        scan = cls(series.paths, "dicom", series, path)
        scan._log_others()
        return scan

    @classmethod
    def find_all(cls, path: Path, skipped: list[tuple[Path, str]] | None = None) -> list[Scan]:
        """The scans at a path: one, or the DICOM series and NIfTI files of a folder at any depth.

        NIfTI files beside those of a DICOM series are skipped, since they are conversions of it. If ``skipped`` is
        given, files that cannot be opened are added to it with the reason, instead of raising `InputError`.
        """
        from datxai.imaging.dicom import part_series

        if not path.is_dir():
            return [cls.find(path)]
        forms = {file: tell_form_of_part(file) for file in walk(path)}
        beside = {file.parent for file, form in forms.items() if form == DICOM}
        niftis = [
            Scan((file,), "nifti", given=file)
            for file, form in forms.items()
            if form in (NIFTI, PAIR) and header_of(file) == file and file.parent not in beside
        ]
        if not beside and niftis:
            return niftis
        series = part_series(path, skipped)
        single = len(series) + len(niftis) == 1
        scans = [Scan(part.paths, "dicom", part, path if single else None) for part in series]
        separate = {scan.files[0] for scan in niftis}
        for scan in scans:
            scan._log_others(separate)
        return scans + niftis

    def _log_others(self, separate: Collection[Path] = ()) -> None:
        for other, reason in self.others:
            if other not in separate:
                log.info("%s: %s, passed over", other, reason)

    @cached_property
    def series(self) -> Series:
        """The files as a DICOM series."""
        from datxai.imaging.dicom import Series

        return self.opened or Series.of(self.files)

    @property
    def others(self) -> tuple[tuple[Path, str], ...]:
        """Files beside the scan that do not belong to it, and why they are skipped."""
        return () if self.form == "nifti" else self.series.others

    @cached_property
    def hash(self) -> str:
        """A hash of the files' content, independent of their names."""
        return hash_content(sorted(map(hash_file, self.files)))

    @property
    def subject(self) -> dict:
        """``age``, ``sex``, ``tracer`` and ``doubt`` from the DICOM header, None if missing; see
        `datxai.imaging.dicom.read_subject`."""
        if self.form == "nifti":
            return {"age": None, "sex": None, "tracer": None, "doubt": None}
        from datxai.imaging.dicom import read_subject

        return read_subject(self.series)

    @property
    def visit(self) -> tuple[str | None, date | None]:
        """An identifier of the person, the same for all of their scans, and the date of the scan; each None if unknown.

        A NIfTI file has an identifier if it is named as in BIDS, ``sub-ID_ses-...``, and no date."""
        if self.form == "nifti":
            named = re.match(r"(sub-[0-9A-Za-z]+)_ses-", self.files[0].name)
            return (named and named[1]), None
        from datxai.imaging.dicom import read_visit

        return read_visit(self.series)

    @property
    def source(self) -> Source:
        """Patient and study of the scan, for DICOM results; raises `InputError` for NIfTI, which has neither."""
        from datxai.imaging.dicom import read_source

        return read_source(self.series)

    def read(self, reconstruction: Reconstruction) -> Volume:
        """The voxels; raw projections are reconstructed. Raises `InputError` for an unusable scan."""
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
