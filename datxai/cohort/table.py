"""Participants, read from a TSV or CSV table with one row per person."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from datxai.errors import InputError
from datxai.files import read_rows

FIELDS = ("participant_id", "age", "sex", "label")
LABELS = {
    "0": 0, "0.0": 0, "false": 0, "normal": 0,
    "1": 1, "1.0": 1, "true": 1, "reduced": 1,
}  # fmt: skip
SEXES = {"f": "F", "female": "F", "m": "M", "male": "M"}
MISSING = {"", "n/a", "na", "nan", "none", "null"}
MISSING_SEX = MISSING | {"o", "other", "u", "unknown"}
OLDEST_YEARS = 120
AGE = re.compile(r"(?:>=?|≥|over|above)?\s*(\d{1,3}(?:[.,]\d+)?)\s*(?:\+|y|yrs?|years|or older|and over)?", re.I)
AGE_TEXT = "age_as_told"  # column for the text of an age that is not a plain number
MAX_LISTED = 10  # largest number of unusable rows listed in one message
UNSAFE = set('/\\:*?"<>|')  # characters not allowed in file names


@dataclass(frozen=True)
class Participant:
    """A person, or a person at one visit: age in years, sex 'F' or 'M', label 0 normal or 1 reduced."""

    participant_id: str
    age: float | None = None
    sex: str | None = None
    label: int | None = None
    extra: Mapping[str, str] = field(default_factory=dict)


def read_participants(
    path: str | os.PathLike,
    columns: Mapping[str, str | None] | None = None,
    label_values: Mapping[str, int] | None = None,
    require_label: bool = True,
    skipped: list[tuple[str, str]] | None = None,
) -> list[Participant]:
    """Read a table of participants, tab-separated or ``.csv``.

    Sex is F, M, female or male in upper or lower case; 'O', 'unknown' and ``n/a`` count as missing, and numbers are
    refused, since codings differ. If an age is not a plain number, such as 90+ or n.k., its text is kept in
    ``age_as_told``. ``participant_id`` is kept as written; '01' and 'sub-01' are the same person. All other columns go
    to ``extra`` as text.

    Parameters
    ----------
    columns : mapping, optional
        Column names of the table by field (participant_id, age, sex, label), if they differ from the field
        names. A field that is mapped to None is not read.
    label_values : mapping, optional
        Label (0 or 1) by the text of the label column, `LABELS` if left out.
    require_label : bool
        Whether everyone needs a label, and both labels must occur.
    skipped : list, optional
        If given, unusable rows are appended as (participant_id, reason) instead of raising `InputError`.
    """
    rows = read_rows(path)
    names = _find_columns(path, [row for _, row in rows], columns, require_label)
    count = Counter(strip_prefix(row[names["participant_id"]]) for _, row in rows)
    participants, refused = [], []
    for line, row in rows:
        texts = {field: row[name] for field, name in names.items()}
        identity = texts["participant_id"]
        extra = {name: text for name, text in row.items() if name not in names.values()}
        try:
            if count[strip_prefix(identity)] > 1:
                raise InputError(
                    f"{path}, line {line}: participant {identity!r} occurs in {count[strip_prefix(identity)]} rows, "
                    f"expected one row per participant; remove the others."
                )
            participants.append(make_participant(texts, label_values, extra, f"{path}, line {line}", require_label))
        except InputError as error:
            refused.append((identity, str(error)))
    if refused and skipped is None:
        others = [reason.removeprefix(f"{path}, ") for _, reason in refused[1:MAX_LISTED]]
        more = f" Also {len(refused) - 1} more rows: {' '.join(others)}" if others else ""
        raise InputError(f"{refused[0][1]}{more}")
    if skipped is not None:
        skipped.extend(refused)
    if require_label:
        require_classes((participant.label for participant in participants), path, skipped)
    return participants


def make_participant(
    texts: Mapping[str, str],
    label_values: Mapping[str, int] | None = None,
    extra: Mapping[str, str] | None = None,
    source: object = "participants",
    require_label: bool = True,
) -> Participant:
    """Participant from the texts of table cells, by field; ``source`` is named in errors."""
    identity = texts["participant_id"]
    if (
        identity.lower() in MISSING
        or identity.startswith(".")
        or not identity.isprintable()
        or UNSAFE & {*identity}
    ):
        raise InputError(
            f"{source}: participant_id {identity!r} cannot name files, expected letters, digits, '-' and "
            f"'_'; rename the participant."
        )
    where = f"{source}: participant {identity!r}"
    age, written = _parse_age(texts.get("age", "")), texts.get("age", "")
    if written.lower() not in MISSING and not (age is not None and re.fullmatch(r"[\d.,]+", written)):
        extra = {**(extra or {}), AGE_TEXT: written}
    return Participant(
        identity,
        age,
        _parse_sex(texts.get("sex", ""), where),
        _parse_label(texts.get("label", ""), label_values, where, require_label),
        extra or {},
    )


def require_column(rows: Iterable[Mapping], column: str, table: object, setting: str) -> None:
    """Raise `InputError` if a ``setting`` names a column that no row of a table has."""
    columns = dict.fromkeys(key for row in rows for key in row)
    if column not in columns:
        raise InputError(
            f"{table}: has no column {column!r}, expected it for {setting}; there are {', '.join(columns)}."
        )


def strip_prefix(participant_id: str) -> str:
    """The identity without the ``sub-`` of BIDS, for comparison."""
    return compose(participant_id).removeprefix("sub-")


def compose(text: str) -> str:
    """Text with composed accents, as in tables; macOS stores file names with decomposed ones."""
    return unicodedata.normalize("NFC", text)


def require_classes(
    labels: Iterable[int | None], source: object, skipped: Sequence[tuple[str, str]] | None = None
) -> None:
    """Raise `InputError` unless both labels, 0 and 1, occur; the message gives the reason of the first ``skipped``."""
    counts = Counter(labels)
    for label, name in enumerate(("normal", "reduced")):
        if not counts[label]:
            raise InputError(
                f"{source}: no participant with label {label} ({name}) among {counts.total()}, expected both "
                f"classes; check the label column and what its values mean."
                + (f" {len(skipped)} rows are left out, the first because: {skipped[0][1]}" if skipped else "")
            )


def refuse(name: str, reason: str, skipped: list[tuple[str, str]] | None) -> None:
    """Append (name, reason) to ``skipped``, or raise `InputError` if there is no such list."""
    if skipped is None:
        raise InputError(reason)
    skipped.append((name, reason))


def _find_columns(path, rows, columns, require_label) -> dict[str, str]:
    """Column name by field, for the fields in the table."""
    columns = dict(columns or {})
    if unknown := columns.keys() - set(FIELDS):
        raise InputError(f"columns: unknown field {min(unknown)!r}, expected {', '.join(FIELDS)}.")
    if not rows:
        raise InputError(f"{path}: has a header but no rows, expected one row per participant.")
    names = {}
    for name in FIELDS:
        column = columns.get(name, name)
        needed = name == "participant_id" or (name == "label" and require_label)
        if column in rows[0]:
            names[name] = column
        elif needed or (name in columns and column not in (None, name)):
            raise InputError(
                f"{path}: has no column {column!r} for {name}, found {', '.join(map(repr, rows[0]))}; "
                f"rename the column or set data.columns.{name}."
            )
    return names


def _parse_age(text: str) -> float | None:
    """Age in years; None for placeholders (-1, 999) and words.

    Open-ended ages such as 90+ or >89, with which registries mask their oldest, count as the number.
    """
    match = AGE.fullmatch(text)
    age = float(match[1].replace(",", ".")) if match else 0.0
    return age if 0 < age <= OLDEST_YEARS else None


def _parse_sex(text: str, where: str) -> str | None:
    if text.lower() in MISSING_SEX:
        return None
    if text.lower() not in SEXES:
        raise InputError(f"{where}: sex is {text!r}, expected F, M or n/a; spell codes and numbers out.")
    return SEXES[text.lower()]


def _parse_label(text: str, values: Mapping[str, int] | None, where: str, required: bool) -> int | None:
    values, code = (LABELS, text.lower()) if values is None else (values, text)
    if code in values:
        if values[code] not in (0, 1):
            raise InputError(
                f"data.label_values: {code!r} means {values[code]!r}, expected 0 (normal) or 1 (reduced)."
            )
        return values[code]
    if text.lower() in MISSING and not required:
        return None
    raise InputError(
        f"{where}: label is {text!r}, expected one of {', '.join(map(repr, values))}; correct it or set "
        f"data.label_values."
    )
