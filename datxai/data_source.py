"""What the settings of `data` name: which scans there are, and the camera that the phantom is taken with."""

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
TRUTHS = {"True": ("True", "TRUE", "true"), "False": ("False", "FALSE", "false")}  # YAML has one value for each


def find_scans(settings: Config, run: Run) -> tuple[list[sources.CohortScan], list[tuple[str, str]]]:
    """The cohort's scans, and those left out with the reason. Only for a run that is applied to them may labels, or in
    a folder the whole table, be missing; age and sex are then those of the DICOM header."""
    known = settings.applied is None
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
            scans, skipped = sources.find_dicom(data.root, data.participants, data.columns, labels, known, skip)
            is_listed = Path(data.root, data.participants).is_file()
            return scans if is_listed else [*map(_ask_header, scans)], skipped
        assert isinstance(data, Folder)
        return sources.find_folder(data.root, data.participants, data.columns, labels, data.pattern, known, skip)
    if data.kind == "ppmi":
        assert isinstance(data, Ppmi)
        groups = _parse_labels(data.groups, "data.groups") or ppmi.PPMI_GROUPS
        return ppmi.find_ppmi(data.root, data.collection, groups, skip, data.columns, data.descriptions, known)
    raise InputError(f"data.kind={data.kind}: expected phantom, folder, dicom or ppmi.")


def _ask_header(scan: sources.CohortScan) -> sources.CohortScan:
    """A scan of which no table says anything, with age and sex as far as the header of its first file tells them; each
    visit has its own."""
    told: Mapping = {}
    with suppress(InputError):  # whoever reads the scan says what is wrong with it
        told = Scan(scan.files[:1], scan.format).subject
    sex = told.get("sex") if told.get("sex") in ("F", "M") else None
    return replace(scan, participant=replace(scan.participant, age=told.get("age"), sex=sex))


def _parse_labels(mapping: object, name: str) -> dict[str, int] | None:
    """A setting that gives labels to texts, checked."""
    if mapping is None:
        return None
    if not isinstance(mapping, dict) or not mapping or any(label not in (0, 1) for label in mapping.values()):
        raise InputError(
            f"{name}={mapping}: expected a mapping to 0 (normal) or 1 (reduced), such as {{HC: 0, PD: 1}}."
        )
    return {word: label for text, label in mapping.items() for word in TRUTHS.get(str(text), (str(text),))}


def makes_projections(data: Phantom) -> bool:
    """Whether the phantom's scans are projections; else they are volumes."""
    return data.raw and data.reconstruction is None


def set_camera(given: Mapping[str, float]) -> dict[str, float]:
    """The settings of the phantom's camera, checked; whole numbers where the camera counts."""
    from datxai.phantom.camera import Camera

    known = {field.name: field.default for field in fields(Camera) if isinstance(field.default, (int, float))}
    for name, value in given.items():
        if name not in known:
            raise InputError(f"data.camera has no {name}, expected some of {', '.join(known)}.")
        enough = value > 0 or (value == 0 and name in MAY_BE_ZERO)
        if not (enough and value < math.inf) or (isinstance(known[name], int) and value != int(value)):
            raise InputError(
                f"data.camera.{name}={value:g}: expected a positive number, whole for views, rows, bins; only "
                f"{' and '.join(MAY_BE_ZERO)} may be 0."
            )
    return {name: type(known[name])(value) for name, value in given.items()}
