"""Scans of an unpacked PPMI download, matched to participants by its collection table."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from datxai.cohort.sources import NOT_SCANS, CohortScan, explain_odd, form_of, is_named_nifti, name_cases
from datxai.cohort.table import Participant, make_participant, refuse, require_classes
from datxai.errors import InputError
from datxai.files import read_header, read_table
from datxai.forms import NIFTI, walk

PPMI_GROUPS = {"Control": 0, "PD": 1}
PPMI_SERIES = ("Reconstructed DaTSCAN",)
PPMI_COLUMNS = ("Image Data ID", "Subject", "Group", "Sex", "Age", "Visit", "Description", "Acq Date")


def find_ppmi(
    root: str | os.PathLike,
    collection: str | os.PathLike | None = None,
    groups: Mapping[str, int] = PPMI_GROUPS,
    skip: bool = False,
    columns: Mapping[str, str | None] | None = None,
    descriptions: Sequence[str] = PPMI_SERIES,
    require_label: bool = True,
) -> tuple[list[CohortScan], list[tuple[str, str]]]:
    """Reconstructed scans of an unpacked PPMI download, and what was skipped as (name, reason).

    The tree is ``<subject>/Reconstructed_DaTSCAN/<date>/<image>/*.dcm`` anywhere below ``root``, or has NIfTI files
    converted from these. The collection table gives group, sex and age; scans are matched to it by image identifier,
    or by subject and date if the last folder has no identifier. Visits of a subject become sessions.

    Parameters
    ----------
    collection : path, optional
        The table, relative to ``root`` or absolute. By default the one .csv in or beside ``root`` whose
        header is that of a collection.
    groups : mapping
        Label of each included group. Scans of other groups (Prodromal, SWEDD...) are skipped.
    skip : bool
        Whether to skip scans that are listed but missing, present but not listed, or ambiguous, instead of raising
        `InputError`.
    columns : mapping, optional
        The table's column names by those in `PPMI_COLUMNS`, where they differ.
    descriptions : sequence of str
        Descriptions of the wanted series, as in the table and, with ``_`` for spaces, in the tree.
    require_label : bool
        Whether both labels must occur and other groups are skipped; if not, scans of other groups have no label.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; set data.root to the folder that holds the PPMI download.")
    names = _map_columns(columns)
    table = root / collection if collection else _find_collection(root, names)
    rows = _select_series(_read_collection(table, names), descriptions, table)
    if require_label:
        _require_groups(rows, groups, f"{table}: no {descriptions[0]} scan")
    folders = defaultdict(list)
    for folder, files, form in _find_folders(root, {_normalise(description) for description in descriptions}):
        folders[_folder_key(folder, files)].append((folder, files, form))
    if not folders:
        raise InputError(
            f"{root}: no DICOM files in the tree <subject>/{descriptions[0].replace(' ', '_')}/<date>/<image>/*.dcm, "
            f"and no NIfTI files; set data.root to the unpacked download."
        )

    skipped: list[tuple[str, str]] = []
    collect = skipped if skip else None
    entries, used = [], set()
    for row in rows:
        image = row["Image Data ID"]
        key = next((key for key in (image.removeprefix("I"), _row_key(row)) if key in folders), None)
        used.add(key)
        if row["Group"] not in groups and require_label:
            skipped.append((image, f"group {row['Group']!r} is not included"))
            continue
        if key is None or len(folders[key]) > 1:
            refuse(image, _explain_folders(row, root, table, folders.get(key, [])), collect)
            continue
        try:
            person = _make_participant(row, groups, table)
        except InputError as error:
            refuse(image, str(error), collect)
            continue
        entries.append((person, re.sub(r"[^0-9A-Za-z]", "", row["Visit"]), *folders[key][0][1:]))
    for key in [key for key in folders if key not in used]:
        for folder, *_ in folders[key]:
            refuse(folder.name, f"{folder}: {table} has no row for this scan; add the row or remove it.", collect)
    scans = name_cases(entries, collect)
    if require_label:
        require_classes((scan.participant.label for scan in scans), root)
    return scans, skipped


def _map_columns(columns: Mapping[str, str | None] | None) -> dict[str, str]:
    """The table's column name for each of `PPMI_COLUMNS`."""
    named = {name: column for name, column in (columns or {}).items() if column is not None}
    if unknown := named.keys() - {*PPMI_COLUMNS}:
        raise InputError(f"data.columns: unknown column {min(unknown)!r}, expected {', '.join(PPMI_COLUMNS)}.")
    return {name: named.get(name, name) for name in PPMI_COLUMNS}


def _find_collection(root: Path, names: Mapping[str, str]) -> Path:
    """The one table in or beside ``root`` with the header of a collection; others are ignored."""
    paths = sorted({*root.glob("*.[ct]sv"), *root.absolute().parent.glob("*.[ct]sv")})
    tables = [path for path in paths if {*read_header(path)}.issuperset(names.values())]
    if len(tables) != 1:
        raise InputError(
            f"{root}: {len(tables)} collection tables (.csv with {', '.join(names.values())}) in or beside it, "
            f"expected one; set data.collection, or data.columns if the columns have other names."
        )
    return tables[0]


def _read_collection(table: Path, names: Mapping[str, str]) -> list[dict[str, str]]:
    rows = read_table(table)
    if missing := [column for column in names.values() if rows and column not in rows[0]]:
        raise InputError(
            f"{table}: has no column {missing[0]!r}, expected the collection table of the download; set data.columns "
            f"if the columns have other names."
        )
    return [{name: row[column] for name, column in names.items()} for row in rows]


def _select_series(
    listed_rows: Sequence[dict[str, str]], descriptions: Sequence[str], table: Path
) -> list[dict[str, str]]:
    wanted = {_normalise(description) for description in descriptions}
    rows = [row for row in listed_rows if _normalise(row["Description"]) in wanted]
    if not rows:
        texts = ", ".join(f"{text!r} ({n})" for text, n in Counter(row["Description"] for row in listed_rows).items())
        raise InputError(
            f"{table}: no series is called {' or '.join(map(repr, descriptions))}, found {texts or 'none'}; set "
            f"data.descriptions to those that are DAT scans."
        )
    return rows


def _make_participant(row: Mapping[str, str], groups: Mapping[str, int], table: Path) -> Participant:
    columns = {"participant_id": "Subject", "age": "Age", "sex": "Sex", "label": "Group"}
    texts = {name: row[column] for name, column in columns.items()}
    texts["label"] = texts["label"] if texts["label"] in groups else ""  # other groups have no label
    extra = {"image": row["Image Data ID"], "visit": row["Visit"], "group": row["Group"], "date": row["Acq Date"]}
    return make_participant(texts, groups, extra, table, require_label=False)


def _require_groups(rows: Iterable[Mapping[str, str]], groups: Iterable[str], what: str) -> None:
    present = Counter(row["Group"] for row in rows)
    for group in groups:
        if group not in present:
            listed = ", ".join(f"{name} ({n})" for name, n in sorted(present.items())) or "none"
            raise InputError(f"{what} of group {group!r}, groups found: {listed}; set data.groups.")


def _find_folders(root: Path, wanted: Collection[str]) -> Iterator[tuple[Path, tuple[Path, ...], str]]:
    """Folders of series with these descriptions, their files, and the files' form, 'dicom' or 'nifti'."""
    series = defaultdict(lambda: defaultdict(list))
    for path in walk(root.absolute(), NOT_SCANS):
        folder = path.parent
        if _normalise(folder.parent.parent.name) in wanted:
            if is_named_nifti(path) or form_of(path) == NIFTI:
                series[folder]["nifti"].append(path)
            elif not explain_odd(path):
                series[folder]["dicom"].append(path)
    for folder, forms in series.items():
        if forms["dicom"]:  # a NIfTI file beside it was converted from it
            yield folder, tuple(forms["dicom"]), "dicom"
        else:
            for path in forms["nifti"]:
                yield folder, (path,), "nifti"


def _folder_key(folder: Path, files: Iterable[Path]) -> str | tuple[str, str]:
    """Image identifier without 'I' from the name of the folder or a file, else (subject, date as YYYY-MM-DD)."""
    if re.fullmatch(r"I\d+", folder.name):
        return folder.name[1:]
    for path in files:
        if match := re.search(r"_I(\d+)\.(?:dcm|nii|nii\.gz|dcm\.gz)$", path.name, flags=re.IGNORECASE):
            return match[1]
    return folder.parents[2].name, folder.parent.name[:10]


def _row_key(row: Mapping[str, str]) -> tuple[str, str]:
    date = row["Acq Date"]
    for layout in ("%m/%d/%Y", "%Y-%m-%d"):
        try:
            date = datetime.strptime(date, layout).date().isoformat()
            break
        except ValueError:
            continue
    return row["Subject"], date


def _explain_folders(row: Mapping[str, str], root: Path, table: Path, folders: list) -> str:
    image = f"scan {row['Image Data ID']} of subject {row['Subject']}"
    if not folders:
        return f"{root}: {image} is listed in {table.name} but missing; download it or remove the row."
    places = ", ".join(str(folder) for folder, *_ in folders)
    return f"{root}: {image} lies in {len(folders)} folders ({places}), expected one; remove the others."


def _normalise(description: str) -> str:
    return description.strip().replace(" ", "_").lower()
