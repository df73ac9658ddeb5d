"""Typed reading of a run's tables and documents.

Any deviation (a missing column, text instead of a number, a truncated line, an empty file) is an `InputError` that
names the file, the line and the column.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from datxai.errors import InputError
from datxai.files import read_json, read_rows

UNKNOWN = "n/a"
REMEDY = "run the stage that writes it again"


class Kind(NamedTuple):
    """The type of a cell: its description, and a conversion that raises `KeyError` or `ValueError` for other text."""

    expected: str
    convert: Callable[[str], Any]

    def or_unknown(self) -> Kind:
        """The same type, or ``n/a``, which becomes None."""
        return Kind(f"{self.expected}, or {UNKNOWN}", lambda text: None if text == UNKNOWN else self.convert(text))


def one_of(*words: str) -> Kind:
    """One of a few words."""
    return Kind(" or ".join(words), {word: word for word in words}.__getitem__)


def _to_number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


TEXT = Kind("text", str)
NUMBER = Kind("a number", _to_number)
WHOLE = Kind("a whole number", int)
LABEL = Kind("0 (normal) or 1 (reduced)", {"0": 0, "1": 1}.__getitem__)
FLAG = Kind("true or false", {"true": True, "false": False}.__getitem__)


class ByCase(dict):
    """Rows of a table by case; raises `InputError` for a missing case."""

    def __init__(self, path: str | os.PathLike, rows: list[dict]):
        super().__init__({row["participant_id"]: row for row in rows})
        self.path = path

    def __missing__(self, case: str) -> dict:
        raise InputError(f"{self.path}: has no line for {case}, expected one for every case; {REMEDY}.")


def read_columns(
    path: str | os.PathLike,
    columns: Mapping[str, Kind],
    others: Kind | None = None,
    optional: Mapping[str, Kind] | None = None,
    may_be_empty: bool = False,
) -> list[dict]:
    """The rows of a table, each a dict with the requested columns, converted.

    Parameters
    ----------
    columns : name to kind of required columns
    others : kind of all other columns, which are left out if it is None
    optional : name to kind of columns that may be missing
    may_be_empty : whether a table without rows is allowed; a header is required in any case

    Raises
    ------
    InputError
        If the file is missing, empty or not a table, lacks a column, or has a cell of another kind.
    """
    rows = read_rows(path)
    if not rows:
        if may_be_empty:
            return []
        raise InputError(f"{path}: holds a header and no rows, expected at least one row; {REMEDY}.")
    present = rows[0][1].keys()
    for name in columns:
        if name not in present:
            raise InputError(f"{path}: line 1 has no column {name!r}, expected {', '.join(columns)}; {REMEDY}.")
    named_kinds = {**(optional or {}), **columns}
    kinds = {name: kind for name in present if (kind := named_kinds.get(name, others))}
    return [
        {name: _convert(path, line, name, row[name], kind) for name, kind in kinds.items()} for line, row in rows
    ]


def _convert(path: str | os.PathLike, line: int, name: str, text: str, kind: Kind) -> object:
    try:
        return kind.convert(text)
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{path}: line {line}, column {name!r} holds {text!r}, expected {kind.expected}; {REMEDY}."
        ) from error


def read_document(path: str | os.PathLike, fields: Mapping[str, Any]) -> dict:
    """A JSON document with the required ``fields``: types by name, or nested mappings of types.

    Raises `InputError` if the file is missing or damaged, or a field is missing or of another type.
    """
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such file; {REMEDY}.")
    content = read_json(path)
    _require_fields(path, content, fields, "")
    return content


def _require_fields(path: str | os.PathLike, content: object, fields: Mapping[str, Any], where: str) -> None:
    for name, kind in fields.items():
        value = content.get(name) if isinstance(content, Mapping) else None
        expected = dict if isinstance(kind, Mapping) else (int, float) if kind is float else kind
        if not isinstance(value, expected) or (kind is float and isinstance(value, bool)):
            word = {dict: "a mapping", list: "a list", float: "a number", bool: "true or false", str: "text"}
            fault = "is missing" if value is None else f"is {value!r}"
            raise InputError(
                f"{path}: {where}{name} {fault}, expected {word[dict if isinstance(kind, Mapping) else kind]}; "
                f"{REMEDY}."
            )
        if isinstance(kind, Mapping):
            _require_fields(path, value, kind, f"{where}{name}.")
