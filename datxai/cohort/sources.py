"""Scans on disk: a folder of NIfTI files, or one of DICOM files."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from datxai.cohort.table import (
    Participant,
    compose,
    make_participant,
    read_participants,
    refuse,
    strip_prefix,
)
from datxai.errors import InputError
from datxai.forms import DICOM, DICOMDIR, PAIR, tell_form, walk

SUFFIXES = ("spect", "pet")  # of the BIDS-like names of DAT scans
TABLE = "participants.tsv"  # default name
NOT_SCANS = ("derivatives", "sourcedata", "code")  # folders of a BIDS data set without original scans


@dataclass(frozen=True)
class CohortScan:
    """One scan of one participant.

    ``case_id`` is unique and valid in file names: the participant's identifier, followed by ``_ses-<session>`` if the
    participant has several scans. ``format`` is 'nifti' (one file) or 'dicom' (the files of one series).
    """

    case_id: str
    participant: Participant
    files: tuple[Path, ...]
    format: str


def find_folder(
    root: str | os.PathLike,
    participants: str | os.PathLike = TABLE,
    columns: Mapping[str, str | None] | None = None,
    label_values: Mapping[str, int] | None = None,
    pattern: str | None = None,
    require_label: bool = True,
    skip: bool = False,
) -> tuple[list[CohortScan], list[tuple[str, str]]]:
    """Scans in a folder of NIfTI files (.nii, .nii.gz, .img with .hdr), and what was skipped as (name, reason).

    The folder may be nested. Without ``pattern``, a file belongs to the participant it is named after
    (``<participant_id>.nii.gz``, with or without ``sub-``), or to the one in its BIDS-like name
    (``sub-<id>[_ses-<session>][_...]_spect.nii.gz``, also ``_pet``; files with other suffixes are not DAT scans and
    are ignored).

    Parameters
    ----------
    participants : path
        Table, relative to ``root`` or absolute; ``columns``, ``label_values`` and ``require_label`` as in
        `datxai.cohort.table.read_participants`. Without ``require_label``, `TABLE` may be missing: participants are
        then taken from the names of the files.
    pattern : str, optional
        Paths relative to ``root``, with ``{participant_id}`` and, if needed, ``{session}``; ``*`` matches any text
        within a name. Other files are ignored.
    skip : bool
        Whether to skip unusable rows, participants without a scan, scans without a participant, and several scans
        of one participant and session, instead of raising `InputError`.
    """
    root = Path(root)
    skipped: list[tuple[str, str]] = []
    collect = skipped if skip else None
    people, table = _read_people(root, participants, columns, label_values, require_label, collect)
    is_listed = table.is_file()
    refused = {strip_prefix(name) for name, _ in skipped}

    entries = []
    files = sorted(filter(is_named_nifti, walk(root, NOT_SCANS)))
    for path, identity, session in _name_files(files, root, pattern, people):
        if not is_listed and identity not in refused:
            _add_person(people, identity, path, collect, refused)
        if identity in people:
            entries.append((people[identity], session, (path,), "nifti"))
        elif identity not in refused:
            reason = (
                f"{path}: {table.name} has no participant {identity!r} for this scan; add a row, remove the "
                f"file or set data.pattern."
            )
            refuse(path.name, reason, collect)
    scans = name_cases(entries, collect)
    advice = f"among {len(files)} NIfTI files; add it, remove the row, or set data.pattern to how files are named"
    _require_scans(people.values(), entries, root, advice, collect)
    if not entries and not is_listed:
        raise InputError(
            f"{root}: no scan among {len(files)} NIfTI files, and no {table.name} that lists any; set data.root to the "
            f"folder that holds the scans, data.pattern to how they are named, or data=dicom."
        )
    return scans, skipped


def find_dicom(
    root: str | os.PathLike,
    participants: str | os.PathLike = TABLE,
    columns: Mapping[str, str | None] | None = None,
    label_values: Mapping[str, int] | None = None,
    require_label: bool = True,
    skip: bool = False,
) -> tuple[list[CohortScan], list[tuple[str, str]]]:
    """Scans in a folder of DICOM files, and what was skipped as (name, reason).

    A file belongs to the participant whose folder it lies in, at any depth (``<participant_id>/.../*.dcm``), or after
    whom it is named (``<participant_id>*.dcm``), with or without ``sub-``; ``ses-<session>`` in a folder or file name
    is a session. DICOM is recognised by content, gzipped or not; other files are ignored, and reported if they lie in
    the folder of a participant. All files of one participant and session are one scan: projections, or the slices of
    a volume.

    Parameters are those of `find_folder`.
    """
    root = Path(root)
    skipped: list[tuple[str, str]] = []
    collect = skipped if skip else None
    people, table = _read_people(root, participants, columns, label_values, require_label, collect)
    is_listed = table.is_file()
    identities = {*people, *(strip_prefix(name) for name, _ in skipped)}
    refused: set[str] = set()

    files = defaultdict(list)
    unlisted, odd = set(), []
    for path in walk(root, NOT_SCANS):
        parts = path.relative_to(root).parts
        reason = explain_odd(path)
        if not (is_listed or reason):
            owner = re.split(r"_ses-|\.", path.name)[0] if path.parent == root else parts[0]
            identities.add(identity := strip_prefix(owner))
            if identity not in refused:
                _add_person(people, identity, path, collect, refused)
        if reason:
            odd.append((parts, f"{path}: {reason}, passed over"))
            continue
        identity = next((owner for part in parts if (owner := _find_owner(part, identities, part == path.name))), None)
        if identity is None:
            unlisted.add(parts[0])
        elif identity in people:
            files[identity, _find_session(parts)].append(path)
    for name in sorted(unlisted):
        reason = (
            f"{root / name}: {table.name} has no participant for these DICOM files; add a row, remove them, or name "
            f"the folder after the participant."
        )
        refuse(name, reason, collect)
    entries = [(people[person], session, tuple(sorted(paths)), "dicom") for (person, session), paths in files.items()]
    advice = "among the DICOM files; add it, remove the row, or name its folder or file after the participant"
    _require_scans(people.values(), entries, root, advice, collect)
    if not entries and not is_listed:
        raise InputError(
            f"{root}: no DICOM file, and no {table.name} that lists any scan; set data.root to the folder that holds "
            f"the scans, or data=folder for NIfTI files."
        )
    reported = (  # in the folder of a participant
        ("/".join(parts), reason)
        for parts, reason in odd
        if any(_find_owner(part, identities, False) for part in parts[:-1])
    )
    return name_cases(entries, collect), [*skipped, *reported]


def _read_people(
    root: Path, participants: str | os.PathLike, columns, label_values, require_label: bool, skipped: list | None
) -> tuple[dict[str, Participant], Path]:
    """Participants by identity (without ``sub-``), and the path of their table."""
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; set data.root to the folder that holds the scans.")
    table = root / participants
    if not (table.is_file() or require_label or str(participants) != TABLE):
        return {}, table
    if not table.is_file():
        raise InputError(
            f"{table}: no such file, expected a table of participants (participant_id, age, sex, label); "
            f"write one or set data.participants."
        )
    people = read_participants(table, columns, label_values, require_label, skipped)
    return {strip_prefix(person.participant_id): person for person in people}, table


def _add_person(
    people: dict[str, Participant], identity: str, path: Path, skipped: list | None, refused: set[str]
) -> None:
    """Add the participant after whom a file is named, if there is no table of participants."""
    if identity not in people:
        try:
            people[identity] = make_participant({"participant_id": identity}, source=path, require_label=False)
        except InputError as error:
            refused.add(identity)
            refuse(path.name, str(error), skipped)


def _require_scans(people: Iterable[Participant], entries: list, root: Path, advice: str, skipped: list | None) -> None:
    """Refuse participants without a scan."""
    with_scan = {person.participant_id for person, *_ in entries}
    for person in people:
        if person.participant_id not in with_scan:
            reason = f"{root}: no scan of participant {person.participant_id!r} {advice}."
            refuse(person.participant_id, reason, skipped)


def explain_odd(path: Path) -> str:
    """Why a file cannot be part of a DICOM scan; empty if it may be."""
    if path.name.upper() == DICOMDIR:
        return "lists the files of a medium"
    try:
        form = tell_form(path)
    except OSError:
        return ""  # the error is raised when the file is read
    if form == DICOM or (not form and path.name.lower().endswith((".dcm", ".dcm.gz", ".ima"))):
        return ""
    return "lists the files of a medium" if form == DICOMDIR else f"is {form}" if form else "is not DICOM"


def is_named_nifti(path: Path) -> bool:
    name = path.name.lower()
    return name.endswith((".nii", ".nii.gz")) or (name.endswith((".img", ".img.gz")) and form_of(path) == PAIR)


def form_of(path: Path) -> str:
    try:
        return tell_form(path)
    except OSError:
        return ""


def _find_session(parts: Iterable[str]) -> str | None:
    """The session of a file: ``ses-<session>`` in its name or its folders, up to the next ``_`` or the suffix."""
    sessions = [match[1] for part in parts if (match := re.search(r"(?:^|_)ses-([^_.]+)", part))]
    return sessions[-1] if sessions else None


def _find_owner(part: str, identities: set[str], is_file: bool) -> str | None:
    """The participant after whom a folder is named; for a file, the one whose identity its name begins with."""
    part = strip_prefix(part)
    if not is_file:
        return part if part in identities else None
    ends = (end for end in range(len(part), -1, -1) if not re.match("[0-9A-Za-z]", part[end : end + 1]))
    return next((part[:end] for end in ends if part[:end] in identities), None)


def name_cases(
    entries: Iterable[tuple[Participant, str | None, tuple[Path, ...], str]], skipped: list | None
) -> list[CohortScan]:
    """Scans from (participant, session, files, format), sorted by case; several of one session are refused."""
    sessions = defaultdict(lambda: defaultdict(list))
    for person, session, files, form in entries:
        sessions[person.participant_id][session].append((person, files, form))
    scans = []
    for identity, visits in sessions.items():
        for session, candidates in visits.items():
            case_id = identity if len(visits) == 1 or not session else f"{identity}_ses-{session}"
            if len(candidates) == 1:
                scans.append(CohortScan(case_id, *candidates[0]))
                continue
            places = ", ".join(str(files[0]) for _, files, _ in candidates)
            reason = (
                f"{case_id}: {len(candidates)} scans of one session ({places}), expected one; keep one, or "
                f"with data=folder pick it by data.pattern."
            )
            refuse(case_id, reason, skipped)
    return sorted(scans, key=lambda scan: scan.case_id)


def _name_files(
    files: Iterable[Path], root: Path, pattern: str | None, identities: Mapping[str, object]
) -> Iterator[tuple[Path, str, str | None]]:
    """(file, participant without ``sub-``, session or None) of the files that are DAT scans."""
    matcher = _compile_pattern(pattern, identities) if pattern else None
    for path in files:
        stem = re.sub(r"\.(nii|img)(\.gz)?$", "", path.name, flags=re.IGNORECASE)
        session = _find_session(path.relative_to(root).parts)
        if matcher:
            if match := matcher.fullmatch(compose(path.relative_to(root).as_posix())):
                yield path, strip_prefix(match["participant_id"]), match.groupdict().get("session")
        elif strip_prefix(stem) in identities or not stem.startswith("sub-"):
            yield path, strip_prefix(stem), session
        else:
            *entities, last = stem.split("_")
            if "-" in last or last.lower() in SUFFIXES:
                pairs = (part.partition("-") for part in (*entities, last))
                texts = {name: text for name, _, text in pairs}
                yield path, texts["sub"], texts.get("ses") or session


def _compile_pattern(pattern: str, identities: Iterable[str]) -> re.Pattern:
    """Regular expression of a path pattern. A repeated field must have the same value, and an ambiguous participant is
    one of ``identities`` if possible."""
    fields = Counter()
    listed = "|".join(map(re.escape, sorted(identities, key=len, reverse=True)))
    field_patterns = {"participant_id": f"(?:sub-)?(?:{listed})|[^/]+?" if listed else "[^/]+?", "session": "[^/]+?"}

    def translate(match: re.Match) -> str:
        name = match[1]
        if name is None:
            return "[^/]*" if match[0] == "*" else re.escape(match[0])
        if name not in ("participant_id", "session"):
            raise InputError(
                f"data.pattern: unknown field {{{name}}} in {pattern!r}, expected {{participant_id}} and {{session}}."
            )
        fields[name] += 1
        return f"(?P<{name}>{field_patterns[name]})" if fields[name] == 1 else f"(?P={name})"

    expression = re.sub(r"\{(\w*)\}|\*|[^{*]+|\{", translate, pattern)
    if not fields["participant_id"]:
        raise InputError(f"data.pattern: {pattern!r} has no {{participant_id}}, expected it once at least.")
    return re.compile(expression)
