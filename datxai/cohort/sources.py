"""Where scans lie on disk: a folder of NIfTI files, one of DICOM files, or a PPMI download."""

from __future__ import annotations

import csv
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from datxai.cohort.table import (
    Participant,
    compose,
    make_participant,
    read_participants,
    refuse,
    require_classes,
    strip_prefix,
)
from datxai.errors import InputError
from datxai.files import has_preamble, read_table

SUFFIXES = ("spect", "pet")  # of BIDS-like names that are DAT scans
NOT_SCANS = ("derivatives", "sourcedata", "code")  # folders of a BIDS data set without original scans
PPMI_GROUPS = {"Control": 0, "PD": 1}
PPMI_SERIES = "Reconstructed_DaTSCAN"
PPMI_COLUMNS = ("Image Data ID", "Subject", "Group", "Sex", "Age", "Visit", "Description", "Acq Date")


@dataclass(frozen=True)
class Scan:
    """One scan of one participant.

    ``case_id`` is unique and can name files: the participant's, with ``_ses-<session>`` where there are
    several scans of that participant. ``format`` is 'nifti' (one file) or 'dicom' (the files of one series).
    """

    case_id: str
    participant: Participant
    files: tuple[Path, ...]
    format: str


def find_folder(
    root: str | os.PathLike,
    participants: str | os.PathLike = "participants.tsv",
    columns: Mapping[str, str | None] | None = None,
    label_values: Mapping[str, int] | None = None,
    pattern: str | None = None,
    require_label: bool = True,
    skip: bool = False,
) -> tuple[list[Scan], list[tuple[str, str]]]:
    """Scans in a flat or nested folder of .nii and .nii.gz files, and what was skipped as (name, reason).

    Without ``pattern``, a file belongs to the participant it is named after (``<participant_id>.nii.gz``,
    with or without ``sub-``), or to the one in its BIDS-like name
    (``sub-<id>[_ses-<session>][_...]_spect.nii.gz``, also ``_pet``; other suffixes are no DAT scans and are
    passed over).

    Parameters
    ----------
    participants : path
        Table, relative to ``root`` or absolute; ``columns``, ``label_values`` and ``require_label`` as in
        `datxai.cohort.table.read_participants`.
    pattern : str, optional
        Paths relative to ``root``, with ``{participant_id}`` and where needed ``{session}``; ``*`` stands for
        anything within a name. Other files are passed over.
    skip : bool
        Whether unusable rows, participants without a scan, scans without a participant, and several scans
        for one participant and session are skipped instead of raising `InputError`.
    """
    root = Path(root)
    skipped: list[tuple[str, str]] = []
    collect = skipped if skip else None
    people, table = _read_people(root, participants, columns, label_values, require_label, collect)
    refused = {strip_prefix(name) for name, _ in skipped}

    found = []
    files = sorted(path for path in _walk(root) if path.name.lower().endswith((".nii", ".nii.gz")))
    for path, identity, session in _name_files(files, root, pattern, people):
        if identity in people:
            found.append((people[identity], session, (path,), "nifti"))
        elif identity not in refused:
            reason = (
                f"{path}: {table.name} has no participant {identity!r} for this scan; add a row, remove the "
                f"file or set data.pattern."
            )
            refuse(path.name, reason, collect)
    scans = _name_cases(found, collect)
    advice = f"among {len(files)} NIfTI files; add it, remove the row, or set data.pattern to how files are named"
    _require_scans(people.values(), found, root, advice, collect)
    return scans, skipped


def find_dicom(
    root: str | os.PathLike,
    participants: str | os.PathLike = "participants.tsv",
    columns: Mapping[str, str | None] | None = None,
    label_values: Mapping[str, int] | None = None,
    require_label: bool = True,
    skip: bool = False,
) -> tuple[list[Scan], list[tuple[str, str]]]:
    """Scans in a folder of DICOM files, and what was skipped as (name, reason).

    A file belongs to the participant whose folder it lies in, at any depth (``<participant_id>/.../*.dcm``), or
    after whom it is named (``<participant_id>*.dcm``), with or without ``sub-``; what a folder or name calls
    ``ses-<session>`` is a session. Files without the suffix .dcm count if they are DICOM. All files of one
    participant and session are one scan: projections, or the slices of a volume.

    Parameters are those of `find_folder`.
    """
    root = Path(root)
    skipped: list[tuple[str, str]] = []
    collect = skipped if skip else None
    people, table = _read_people(root, participants, columns, label_values, require_label, collect)
    known = {*people, *(strip_prefix(name) for name, _ in skipped)}

    files = defaultdict(list)
    strangers = set()
    for path in filter(_is_dicom, _walk(root)):
        parts = path.relative_to(root).parts
        identity = next((owner for part in parts if (owner := _find_owner(part, known, part == path.name))), None)
        session = re.search(r"ses-([0-9A-Za-z]+)", "/".join(parts))
        if identity is None:
            strangers.add(parts[0])
        elif identity in people:
            files[identity, session and session[1]].append(path)
    for name in sorted(strangers):
        reason = (
            f"{root / name}: {table.name} has no participant for these DICOM files; add a row, remove them, or name "
            f"the folder after the participant."
        )
        refuse(name, reason, collect)
    found = [(people[identity], session, tuple(sorted(paths)), "dicom") for (identity, session), paths in files.items()]
    advice = "among the DICOM files; add it, remove the row, or name its folder or file after the participant"
    _require_scans(people.values(), found, root, advice, collect)
    return _name_cases(found, collect), skipped


def find_ppmi(
    root: str | os.PathLike,
    collection: str | os.PathLike | None = None,
    groups: Mapping[str, int] = PPMI_GROUPS,
    skip: bool = False,
) -> tuple[list[Scan], list[tuple[str, str]]]:
    """Reconstructed scans of a PPMI download as it lies on disk, and what was skipped as (name, reason).

    The tree is ``<subject>/Reconstructed_DaTSCAN/<date>/<image>/*.dcm`` anywhere below ``root``. The
    collection table gives group, sex and age; scans are looked up in it by image identifier, or by subject
    and date where the last folder has none. Visits of a subject are sessions.

    Parameters
    ----------
    collection : path, optional
        The table, relative to ``root`` or absolute. By default the one .csv in or beside ``root`` whose
        header is that of a collection.
    groups : mapping
        Label of each group that takes part. Scans of other groups (Prodromal, SWEDD...) are skipped.
    skip : bool
        Whether scans that are listed but not there, there but not listed, or ambiguous are skipped instead of
        raising `InputError`.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; set data.root to the folder that holds the PPMI download.")
    table = root / collection if collection else _find_collection(root)
    rows = [row for row in _read_collection(table) if _spell(row["Description"]) == _spell(PPMI_SERIES)]
    present = Counter(row["Group"] for row in rows)
    for group in groups:
        if group not in present:
            listed = ", ".join(f"{name} ({n})" for name, n in sorted(present.items())) or "none"
            raise InputError(
                f"{table}: no {PPMI_SERIES} scan of group {group!r}, groups found: {listed}; set data.groups."
            )
    folders = defaultdict(list)
    for folder, files in _ppmi_folders(root):
        folders[_folder_key(folder, files)].append((folder, files))
    if not folders:
        raise InputError(
            f"{root}: no DICOM files in the tree <subject>/{PPMI_SERIES}/<date>/<image>/*.dcm; set data.root "
            f"to the unpacked download."
        )

    skipped: list[tuple[str, str]] = []
    collect = skipped if skip else None
    found, used = [], set()
    for row in rows:
        image = row["Image Data ID"]
        key = next((key for key in (image.removeprefix("I"), _row_key(row)) if key in folders), None)
        used.add(key)
        if row["Group"] not in groups:
            skipped.append((image, f"group {row['Group']!r} takes no part"))
            continue
        if key is None or len(folders[key]) > 1:
            refuse(image, _explain_folders(row, root, table, folders.get(key, [])), collect)
            continue
        fields = {"participant_id": "Subject", "age": "Age", "sex": "Sex", "label": "Group"}
        texts = {name: row[column] for name, column in fields.items()}
        extra = {"image": image, "visit": row["Visit"], "group": row["Group"], "date": row["Acq Date"]}
        try:
            person = make_participant(texts, groups, extra, table)
        except InputError as error:
            refuse(image, str(error), collect)
            continue
        found.append((person, re.sub(r"[^0-9A-Za-z]", "", row["Visit"]), folders[key][0][1], "dicom"))
    for key in [key for key in folders if key not in used]:
        for folder, _ in folders[key]:
            refuse(folder.name, f"{folder}: {table} has no row for this scan; add the row or remove it.", collect)
    scans = _name_cases(found, collect)
    require_classes((scan.participant.label for scan in scans), root)
    return scans, skipped


def _read_people(
    root: Path, participants: str | os.PathLike, columns, label_values, require_label: bool, skipped: list | None
) -> tuple[dict[str, Participant], Path]:
    """Participants by identity (without ``sub-``), and the table they stand in."""
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; set data.root to the folder that holds the scans.")
    table = root / participants
    if not table.is_file():
        raise InputError(
            f"{table}: no such file, expected a table of participants (participant_id, age, sex, label); "
            f"write one or set data.participants."
        )
    people = read_participants(table, columns, label_values, require_label, skipped)
    return {strip_prefix(person.participant_id): person for person in people}, table


def _require_scans(people: Iterable[Participant], found: list, root: Path, advice: str, skipped: list | None) -> None:
    """Refuse participants without a scan."""
    with_scan = {person.participant_id for person, *_ in found}
    for person in people:
        if person.participant_id not in with_scan:
            reason = f"{root}: no scan of participant {person.participant_id!r} {advice}."
            refuse(person.participant_id, reason, skipped)


def _is_dicom(path: Path) -> bool:
    if path.name == "DICOMDIR":
        return False
    try:
        return path.suffix.lower() == ".dcm" or has_preamble(path)
    except OSError:
        return True  # whoever reads it says why it cannot be read


def _find_owner(part: str, identities: set[str], is_file: bool) -> str | None:
    """The participant whom a folder is named after; for a file, whose identity its name begins with."""
    part = strip_prefix(part)
    if not is_file:
        return part if part in identities else None
    ends = (end for end in range(len(part), -1, -1) if not re.match("[0-9A-Za-z]", part[end : end + 1]))
    return next((part[:end] for end in ends if part[:end] in identities), None)


def _name_cases(
    found: Iterable[tuple[Participant, str | None, tuple[Path, ...], str]], skipped: list | None
) -> list[Scan]:
    """Scans from (participant, session, files, format), by case; two of one session are refused."""
    sessions = defaultdict(lambda: defaultdict(list))
    for person, session, files, form in found:
        sessions[person.participant_id][session].append((person, files, form))
    scans = []
    for identity, of_person in sessions.items():
        for session, candidates in of_person.items():
            case_id = identity if len(of_person) == 1 or not session else f"{identity}_ses-{session}"
            if len(candidates) == 1:
                scans.append(Scan(case_id, *candidates[0]))
                continue
            places = ", ".join(str(files[0]) for _, files, _ in candidates)
            reason = (
                f"{case_id}: {len(candidates)} scans of one session ({places}), expected one; keep one, or "
                f"with data=folder pick it by data.pattern."
            )
            refuse(case_id, reason, skipped)
    return sorted(scans, key=lambda scan: scan.case_id)


def _walk(root: Path) -> Iterator[Path]:
    """Files below ``root``, links to folders followed once; hidden ones and derived data are left out."""
    seen = set()
    for folder, names, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        names[:] = [] if real in seen else sorted(n for n in names if n[0] != "." and n not in NOT_SCANS)
        if real not in seen:
            yield from (Path(folder, name) for name in sorted(files) if name[0] != ".")
        seen.add(real)


def _name_files(
    files: Iterable[Path], root: Path, pattern: str | None, identities: Mapping[str, object]
) -> Iterator[tuple[Path, str, str | None]]:
    """(file, participant without ``sub-``, session or None) of the files that are DAT scans."""
    matcher = _compile_pattern(pattern, identities) if pattern else None
    for path in files:
        stem = re.sub(r"\.nii(\.gz)?$", "", path.name, flags=re.IGNORECASE)
        if matcher:
            if match := matcher.fullmatch(compose(path.relative_to(root).as_posix())):
                yield path, strip_prefix(match["participant_id"]), match.groupdict().get("session")
        elif strip_prefix(stem) in identities or not stem.startswith("sub-"):
            yield path, strip_prefix(stem), None
        else:
            *entities, last = stem.split("_")
            if "-" in last or last.lower() in SUFFIXES:
                entities = dict(part.partition("-")[::2] for part in (*entities, last))
                yield path, entities["sub"], entities.get("ses")


def _compile_pattern(pattern: str, identities: Iterable[str]) -> re.Pattern:
    """Regular expression of a path pattern; a field that comes again must have the same value. Where a participant's
    identity could end at several places, it is one of ``identities``, if it can be."""
    fields = Counter()
    known = "|".join(map(re.escape, sorted(identities, key=len, reverse=True)))
    of_field = {"participant_id": f"(?:sub-)?(?:{known})|[^/]+?" if known else "[^/]+?", "session": "[^/]+?"}

    def translate(match: re.Match) -> str:
        name = match[1]
        if name is None:
            return "[^/]*" if match[0] == "*" else re.escape(match[0])
        if name not in ("participant_id", "session"):
            raise InputError(
                f"data.pattern: unknown field {{{name}}} in {pattern!r}, expected {{participant_id}} and {{session}}."
            )
        fields[name] += 1
        return f"(?P<{name}>{of_field[name]})" if fields[name] == 1 else f"(?P={name})"

    expression = re.sub(r"\{(\w*)\}|\*|[^{*]+|\{", translate, pattern)
    if not fields["participant_id"]:
        raise InputError(f"data.pattern: {pattern!r} has no {{participant_id}}, expected it once at least.")
    return re.compile(expression)


def _find_collection(root: Path) -> Path:
    tables = []
    for path in sorted({*root.glob("*.csv"), *root.absolute().parent.glob("*.csv")}):
        with path.open(newline="", encoding="utf-8-sig", errors="replace") as stream:
            header = next(csv.reader(stream), [])
        if {name.strip() for name in header}.issuperset(PPMI_COLUMNS):
            tables.append(path)
    if len(tables) != 1:
        raise InputError(
            f"{root}: {len(tables)} collection tables (.csv with {', '.join(PPMI_COLUMNS)}) in or beside it, "
            f"expected one; set data.collection."
        )
    return tables[0]


def _read_collection(table: Path) -> list[dict[str, str]]:
    rows = read_table(table)
    if missing := [name for name in PPMI_COLUMNS if rows and name not in rows[0]]:
        raise InputError(f"{table}: has no column {missing[0]!r}, expected the collection table of the download.")
    return rows


def _ppmi_folders(root: Path) -> Iterator[tuple[Path, tuple[Path, ...]]]:
    """Folders of reconstructed series, with their DICOM files."""
    series = defaultdict(list)
    for path in _walk(root.absolute()):
        folder = path.parent
        if path.suffix.lower() == ".dcm" and _spell(folder.parent.parent.name) == _spell(PPMI_SERIES):
            series[folder].append(path)
    for folder, files in series.items():
        yield folder, tuple(files)


def _folder_key(folder: Path, files: Iterable[Path]) -> str | tuple[str, str]:
    """Image identifier without 'I' from the folder's or a file's name, else (subject, date as YYYY-MM-DD)."""
    if re.fullmatch(r"I\d+", folder.name):
        return folder.name[1:]
    for path in files:
        if match := re.search(r"_I(\d+)\.dcm$", path.name, flags=re.IGNORECASE):
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
        return f"{root}: {image} is listed in {table.name} but not there; download it or remove the row."
    places = ", ".join(str(folder) for folder, _ in folders)
    return f"{root}: {image} lies in {len(folders)} folders ({places}), expected one; remove the others."


def _spell(description: str) -> str:
    return description.strip().replace(" ", "_").lower()
