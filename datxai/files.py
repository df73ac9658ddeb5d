"""Reading and writing files so that nothing is ever half-written: atomic replacement, tables, JSON, hashes."""

from __future__ import annotations

import ast
import csv
import functools
import hashlib
import json
import math
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from datxai.errors import InputError


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it replaces ``path``, on any exception it is removed.

    The temporary name ends with the full name of ``path``, so that writers which look at the suffix
    (``.nii.gz``, ``.png``) do the right thing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".part-{secrets.token_hex(8)}-{path.name}")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666))  # less the umask, as any new file
    mode = temporary.stat().st_mode & 0o777
    try:
        yield temporary
        if not temporary.is_symlink():
            temporary.chmod(mode)  # safetensors puts a file of its own there, which its owner alone may read
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write ``text`` to ``path`` atomically, UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, content: object) -> None:
    """Write JSON atomically: two spaces, UTF-8, numpy scalars and arrays as numbers and lists, NaN as null."""
    write_text(path, json.dumps(_plain(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike) -> dict:
    """Read a JSON file; a damaged one is an `InputError`."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as JSON ({error}); delete it and run the stage again.") from error


def write_table(path: str | os.PathLike, rows: Iterable[Mapping], columns: Sequence[str]) -> None:
    """Write a tab-separated table with a header (BIDS style: missing values are ``n/a``, booleans true/false)."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_cell(row.get(column)) for column in columns] for row in rows)


def read_table(path: str | os.PathLike) -> list[dict[str, str]]:
    """Read a table with a header; ``.csv`` is comma- or semicolon-separated, anything else tab-separated.

    Returns one dict of strings per row. Raises `InputError` if the file is missing, empty, or a row has
    more or fewer cells than the header.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such table.")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text table in UTF-8; save it as UTF-8.") from error
    lines = [line for line in lines if line.strip()]
    if not lines:
        raise InputError(f"{path}: the table is empty; expected a header and one row per entry.")
    delimiter = "\t"
    if path.suffix.lower() == ".csv":
        delimiter = ";" if lines[0].count(";") > lines[0].count(",") else ","
    header, *body = csv.reader(lines, delimiter=delimiter)
    header = [name.strip() for name in header]
    twice = [name for name in header if name and header.count(name) > 1]
    if twice:
        raise InputError(f"{path}: column {twice[0]!r} stands there more than once, expected once; remove the others.")
    for number, cells in enumerate(body, start=2):
        if len(cells) != len(header):
            raise InputError(
                f"{path}: row {number} has {len(cells)} cells, the header has {len(header)}; "
                f"check the separator and the quoting."
            )
    return [dict(zip(header, (cell.strip() for cell in cells))) for cells in body]


def hash_file(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, hexadecimal; an `InputError` if it cannot be read."""
    try:
        with Path(path).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); a link may lead nowhere, or the file may not be yours to read."
        ) from error


def has_preamble(path: str | os.PathLike) -> bool:
    """Whether a file begins as DICOM files do."""
    with Path(path).open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def hash_content(content: object) -> str:
    """SHA-256 of a JSON-like value, independent of the order of keys; a path counts by what its file holds, if any."""
    text = json.dumps(_plain(content, _read_hash), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@functools.cache
def hash_code(*modules: str) -> str:
    """SHA-256 of the source of modules of this package and of all in it that they import, directly or not."""
    found: dict[str, bytes] = {}
    wanted = [*modules]
    while wanted:
        name = wanted.pop()
        path = _source_of(name)
        if path is None or name in found:  # what is imported may be a name within a module
            continue
        found[name] = path.read_bytes()
        for node in ast.walk(ast.parse(found[name])):
            if isinstance(node, ast.Import):
                wanted += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                wanted += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    assert {*modules} <= found.keys(), modules
    return hash_content({name: hashlib.sha256(source).hexdigest() for name, source in found.items()})


def _source_of(module: str) -> Path | None:
    """The file of a module of this package; nothing is imported to find it."""
    package, *parts = module.split(".")
    if package != __name__.partition(".")[0]:
        return None
    path = Path(__file__).parent.joinpath(*parts)
    return next((each for each in (path.with_suffix(".py"), path / "__init__.py") if parts and each.is_file()), None)


def _read_hash(path: os.PathLike) -> str:
    return hash_file(path) if Path(path).is_file() else os.fspath(path)


def _plain(value: object, spell: Callable[[os.PathLike], str] = os.fspath) -> object:
    """A value as JSON takes it; ``spell`` makes text of paths."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item, spell) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, spell) for item in value]
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return _plain(value.tolist(), spell)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, os.PathLike):
        return spell(value)
    return value


def _cell(value: object) -> object:
    value = _plain(value)
    if value is None or value == "":
        return "n/a"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.7g}"
    return value
