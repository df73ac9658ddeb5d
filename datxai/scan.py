"""One scan as it comes in: its files, what they say of themselves, and its voxels.

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
    """The files of one scan, ``form`` 'nifti' or 'dicom'. Headers are read once, voxels when they are asked for.

    ``place`` is the file or folder that it is called after.
    """

    files: tuple[Path, ...]
    form: str
    opened: Series | None = None  # of DICOM files whose headers have been read already
    given: Path | None = None

    @property
    def place(self) -> Path:
        return self.given or (self.files[0] if len(self.files) == 1 else Path(os.path.commonpath(self.files)))

    @classmethod
    def find(cls, path: Path) -> Scan:
        """The scan that a path leads to, by content: a NIfTI file, a DICOM file, or a folder with one DICOM series.

        What lies beside a scan in a folder is passed over, and named on the screen. Raises `InputError` where there is
        no scan.
        """
        if not path.exists():
            raise InputError(f"scan={path}: no such file or folder.")
        if path.is_file() and is_nifti(path):
            return cls((path,), "nifti", given=path)
        from datxai.imaging.dicom import Series

        series = Series.of(path)
        scan = cls(series.paths, "dicom", series, path)
        scan._tell_others()
        return scan

    @classmethod
    def find_all(cls, path: Path, skipped: list[tuple[Path, str]] | None = None) -> list[Scan]:
        """The scans that a path leads to: one, or those of a folder, at any depth: DICOM series and NIfTI files.

        NIfTI that lies beside the files of a DICOM series is passed over: it is one made of them. Where ``skipped`` is
        given, what cannot be opened goes there with the reason, in place of an `InputError`.
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
        scans = [Scan(one.paths, "dicom", one, path if single else None) for one in series]
        apart = {scan.files[0] for scan in niftis}
        for scan in scans:
            scan._tell_others(apart)
        return scans + niftis

    def _tell_others(self, apart: Collection[Path] = ()) -> None:
        for other, reason in self.others:
            if other not in apart:
                log.info("%s: %s, passed over", other, reason)

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
    def visit(self) -> tuple[str | None, date | None]:
        """Of whom the scan is, as a word that is the same for each scan of a person, and of which day; None where it
        does not tell. A NIfTI file tells whom it is of if it is named as BIDS does, ``sub-ID_ses-...``, and no day."""
        if self.form == "nifti":
            named = re.match(r"(sub-[0-9A-Za-z]+)_ses-", self.files[0].name)
            return (named and named[1]), None
        from datxai.imaging.dicom import read_visit

        return read_visit(self.series)

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
