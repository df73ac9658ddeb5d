"""The data named by the settings: the scans of a cohort, and the camera of the phantom."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path

from datxai.cohort import ppmi, sources
from datxai.config import Config, Dicom, Folder, Phantom, Ppmi
from datxai.errors import InputError
from datxai.run import Run
from datxai.scan import Scan

MAY_BE_ZERO = ("motion_mm", "start_angle_deg")
TRUTHS = {"True": ("True", "TRUE", "true"), "False": ("False", "FALSE", "false")}  # all of them are one value in YAML


def find_scans(settings: Config, run: Run) -> tuple[list[sources.CohortScan], list[tuple[str, str]]]:
    """The cohort's scans, and those left out with the reason.

    Labels, or for a folder the whole table, may be missing only if a run is applied to the cohort; age and sex are then
    those of the DICOM header."""
    require_label = settings.applied is None
    data, skip = settings.data, settings.on_error == "skip"
    if settings.on_error not in ("raise", "skip"):
        raise InputError(f"on_error={settings.on_error}: expected raise or skip.")
    if data.kind == "phantom":
        assert isinstance(data, Phantom)
        find = sources.find_dicom if makes_projections(data) else sources.find_folder
        return find(run.simulated, skip=skip)
    if data.kind in ("folder", "dicom"):
        assert isinstance(data, Dicom)
        labels = _parse_labels(data.label_values, "data.label_values")
        if data.kind == "dicom":
            scans, skipped = sources.find_dicom(data.root, data.participants, data.columns, labels, require_label, skip)
            is_listed = Path(data.root, data.participants).is_file()
            return scans if is_listed else [*map(_add_header_subject, scans)], skipped
        assert isinstance(data, Folder)
        table = (data.participants, data.columns, labels)
        return sources.find_folder(data.root, *table, data.pattern, require_label, skip)
    if data.kind == "ppmi":
        assert isinstance(data, Ppmi)
        groups = _parse_labels(data.groups, "data.groups") or ppmi.PPMI_GROUPS
        return ppmi.find_ppmi(data.root, data.collection, groups, skip, data.columns, data.descriptions, require_label)
    raise InputError(f"data.kind={data.kind}: expected phantom, folder, dicom or ppmi.")


def _add_header_subject(scan: sources.CohortScan) -> sources.CohortScan:
    """A scan without a row in a table, with age and sex from the header of its first file; they may differ by visit."""
    subject: Mapping = {}
    with suppress(InputError):  # the error is raised when the scan is read
        subject = Scan(scan.files[:1], scan.format).subject
    sex = subject.get("sex") if subject.get("sex") in ("F", "M") else None
    return replace(scan, participant=replace(scan.participant, age=subject.get("age"), sex=sex))


def _parse_labels(mapping: object, name: str) -> dict[str, int] | None:
    """Labels by text, from a setting that is checked."""
    if mapping is None:
        return None
    if not isinstance(mapping, dict) or not mapping or any(label not in (0, 1) for label in mapping.values()):
        raise InputError(
            f"{name}={mapping}: expected a mapping to 0 (normal) or 1 (reduced), such as {{HC: 0, PD: 1}}."
        )
    return {word: label for text, label in mapping.items() for word in TRUTHS.get(str(text), (str(text),))}


def makes_projections(data: Phantom) -> bool:
    """Whether the phantom's scans are projections rather than volumes."""
    return data.raw and data.reconstruction is None


def set_camera(given: Mapping[str, float]) -> dict[str, float]:
    """The settings of the phantom's camera, checked; views, rows and bins become integers."""
    from datxai.phantom.camera import Camera

    defaults = {field.name: field.default for field in fields(Camera) if isinstance(field.default, (int, float))}
    for name, value in given.items():
        if name not in defaults:
            raise InputError(f"data.camera has no {name}, expected some of {', '.join(defaults)}.")
        in_range = value > 0 or (value == 0 and name in MAY_BE_ZERO)
        if not (in_range and value < math.inf) or (isinstance(defaults[name], int) and value != int(value)):
            raise InputError(
                f"data.camera.{name}={value:g}: expected a positive number, whole for views, rows, bins; only "
                f"{' and '.join(MAY_BE_ZERO)} may be 0."
            )
    return {name: type(defaults[name])(value) for name, value in given.items()}
