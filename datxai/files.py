"""Reading and writing of files, never half-written: atomic replacement, tables, JSON, hashes."""

from __future__ import annotations

import ast
import codecs
import csv
import functools
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datxai.errors import InputError

RUN_MARKERS = ("manifest.json", ".hydra", ".lock")  # every run folder has one of these
UNFINISHED = ".part-"  # prefix of the names of folders with files that are being written


@contextmanager
def replacing(path: str | os.PathLike, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path on the same disk; on success it replaces ``path``, on any exception it is removed.

    If ``durable``, content and name are flushed to the disk, in this order, before the caller continues.

    The temporary file has the name of ``path``, since some writers depend on the suffix (``.nii.gz``, ``.png``). It is
    in a separate folder beside ``path``: some writers (safetensors) create another file next to the one they are given,
    and the folder's name identifies what a killed process leaves behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=path.parent))
    temporary = folder / path.name
    try:
        temporary.touch(0o666)  # minus the umask, like any new file
        mode = temporary.stat().st_mode & 0o777
        yield temporary
        if not temporary.is_symlink():
            temporary.chmod(mode)  # safetensors may leave it readable by its owner only
        if durable:
            _flush(temporary)
        os.replace(temporary, path)
        if durable:
            _flush(path.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_unfinished(folder: Path) -> None:
    """Remove half-written files of killed processes from ``folder``, in which nobody may be writing.

    Run folders within it, as of a sweep, and the targets of links are left alone.
    """
    for place, inner, _ in os.walk(folder):
        for name in [name for name in inner if name.startswith(UNFINISHED)]:
            shutil.rmtree(Path(place) / name, ignore_errors=True)
        inner[:] = [
            name
            for name in inner
            if not name.startswith(".") and not any((Path(place) / name / marker).exists() for marker in RUN_MARKERS)
        ]


def _flush(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: str | os.PathLike, text: str, durable: bool = False) -> None:
    """Write ``text`` to ``path`` atomically, UTF-8."""
    with replacing(path, durable) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, content: object) -> None:
    """Write JSON atomically: two spaces, UTF-8, numpy scalars and arrays as numbers and lists, NaN as null."""
    write_text(path, json.dumps(_plain(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike) -> dict:
    """Read a JSON object; raises `InputError` if the file is damaged."""
    return parse_json(Path(path).read_bytes(), path)


def parse_json(data: bytes, path: str | os.PathLike) -> dict:
    """The JSON object that the file at ``path`` holds as ``data``; raises `InputError` if it is damaged."""
    try:
        content = json.loads(data.decode("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: not readable as JSON ({error}); delete it and run the stage again.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds no JSON object, expected one; delete it and run the stage again.")
    return content


def write_table(path: str | os.PathLike, rows: Iterable[Mapping], columns: Sequence[str]) -> None:
    """Write a tab-separated table with a header (BIDS style: missing values are ``n/a``, booleans true/false)."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_cell(row.get(column)) for column in columns] for row in rows)


def write_arrays(path: str | os.PathLike, arrays: Mapping[str, Any], about: object = None) -> None:
    """Write NumPy arrays by name as safetensors, atomically, with JSON metadata ``about`` them."""
    from safetensors.numpy import save_file

    with replacing(path) as temporary:
        save_file(dict(arrays), temporary, {"about": json.dumps(_plain(about))})


def read_arrays(path: str | os.PathLike) -> tuple[dict[str, Any], Any]:
    """The arrays and metadata written by `write_arrays`; raises `InputError` for another or damaged file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {}).get("about", "null"))
            return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: cannot be read as arrays ({error}), the file is damaged or of another format; delete it and run "
            f"the stage that writes it again."
        ) from error


def read_table(path: str | os.PathLike) -> list[dict[str, str]]:
    """The rows of a table with a header, as dicts of strings; see `read_rows`."""
    return [row for _, row in read_rows(path)]


def read_rows(path: str | os.PathLike) -> list[tuple[int, dict[str, str]]]:
    """The rows of a table with a header, each with its first line, counted from 1.

    The encoding is UTF-8, or UTF-16 with a byte order mark. The separator is a tab, semicolon or comma, whichever is
    most frequent in the header. Blank rows, lines before the header that begin with ``#``, and empty cells after the
    last column are skipped. Raises `InputError` if the file is missing, empty or not text, has an unclosed quote, or
    rows with more or fewer cells than the header, all of which are listed by line.
    """
    path = Path(path)
    records = _read_records(path)
    number, header = next(records, (1, []))
    if not header:
        raise InputError(f"{path}: the table is empty; expected a header and one row per entry.")
    header = [name.strip() for name in header]
    while header and not header[-1]:
        header.pop()
    twice = [name for name in header if name and header.count(name) > 1]
    if twice:
        raise InputError(f"{path}: column {twice[0]!r} occurs more than once, expected once; remove the others.")
    rows, bad = [], []
    for number, cells in records:
        cells = [cell.strip() for cell in cells]
        while len(cells) > len(header) and not cells[-1]:
            cells.pop()
        if len(cells) != len(header):
            bad.append(f"line {number} has {len(cells)} cells")
        rows.append((number, dict(zip(header, cells))))
    if bad:
        raise InputError(f"{path}: {_list(bad)}, the header has {len(header)}; check the separator and the quoting.")
    return rows


def read_header(path: str | os.PathLike) -> list[str]:
    """The names of a table's columns; empty if the file is not a table."""
    try:
        _, header = next(_read_records(Path(path)), (1, []))
    except InputError:
        return []
    return [name.strip() for name in header]


def _read_records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """First line and cells of each row that is not blank, beginning with the header."""
    lines = _read_text(path).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    first = 0
    while first < len(lines) and (not lines[first].strip(" ,;\t") or lines[first].startswith("#")):
        first += 1
    head = lines[first] if first < len(lines) else ""
    separator = re.fullmatch(r"sep=(.)", head.strip())  # written by Excel
    first += bool(separator)
    order = ",;\t" if path.suffix.lower() == ".csv" else "\t;,"
    delimiter = separator[1] if separator else max(order, key=head.count)
    reader = csv.reader((f"{line}\n" for line in lines[first:]), delimiter=delimiter, strict=True)
    begin = 0
    try:
        for cells in reader:
            inner_lines = [line for line in lines[first + begin + 1 : first + reader.line_num] if delimiter in line]
            if begin and any(line.count(delimiter) >= len(cells) - 1 > 0 for line in inner_lines):
                raise csv.Error("a quote is closed only in a later row")
            if any(cell.strip() for cell in cells):
                yield first + begin + 1, cells
            begin = reader.line_num
    except csv.Error as error:
        raise InputError(
            f"{path}: line {first + begin + 1} cannot be read ({error}), expected a quote to be closed in its cell; "
            f"correct the line, or remove the quote."
        ) from error


def _read_text(path: Path) -> str:
    require_file(path)
    if not path.is_file():
        raise InputError(f"{path}: no such table.")
    content = path.read_bytes()
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(
            f"{path}: line {line} is not text in UTF-8 (it may be Latin-1, as older programs write it); save the table "
            f"as UTF-8."
        ) from error
    if "\0" in text:
        raise InputError(f"{path}: holds zero bytes, expected a text table in UTF-8; save it as UTF-8.")
    return text


def _list(faults: list[str], most: int = 10) -> str:
    """Faults in one sentence, at most ``most`` of them."""
    return ", ".join(faults[:most]) + (f" and {len(faults) - most} more" if len(faults) > most else "")


def hash_file(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, hexadecimal; raises `InputError` if it cannot be read."""
    require_file(Path(path))
    try:
        with Path(path).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); a link may lead nowhere, or the file may not be yours to read."
        ) from error


def require_file(path: Path) -> None:
    """Raise `InputError` for a named pipe, a socket or a device, whose reading might block or never end."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise InputError(f"{path}: is a named pipe, a socket or a device, expected a file; copy what it gives to one.")


def hash_once(path: Path) -> str:
    """`hash_file`, cached in this process until the file's time, size or inode changes."""
    try:
        state = path.stat()
    except OSError:
        return hash_file(path)  # raises the error
    return _hash_state(path, state.st_mtime_ns, state.st_size, state.st_ino)


@functools.lru_cache(maxsize=1 << 16)
def _hash_state(path: Path, *state: int) -> str:
    return hash_file(path)


def hash_content(content: object) -> str:
    """SHA-256 of a JSON-like value, independent of the order of keys; a path counts by the content of its file."""
    text = json.dumps(_plain(content, _read_hash), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def hash_json(content: object) -> str:
    """SHA-256 of a value as written by `write_json`: `hash_content`, except that paths count as text."""
    return hash_content(_plain(content))


@functools.cache
def hash_code(*modules: str) -> str:
    """SHA-256 of the source of modules of this package and of all that they import from it, directly or not."""
    sources: dict[str, bytes] = {}
    wanted = [*modules]
    while wanted:
        name = wanted.pop()
        path = _source_of(name)
        if path is None or name in sources:  # the imported name may be one within a module
            continue
        sources[name] = path.read_bytes()
        for node in ast.walk(ast.parse(sources[name])):
            if isinstance(node, ast.Import):
                wanted += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                wanted += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    assert {*modules} <= sources.keys(), modules
    return hash_content({name: hashlib.sha256(source).hexdigest() for name, source in sources.items()})


def _source_of(module: str) -> Path | None:
    """The file of a module of this package, found without importing anything."""
    package, *parts = module.split(".")
    if package != __name__.partition(".")[0]:
        return None
    path = Path(__file__).parent.joinpath(*parts)
    candidates = (path.with_suffix(".py"), path / "__init__.py") if parts else ()
    return next(filter(Path.is_file, candidates), None)


def _read_hash(path: os.PathLike) -> str:
    return hash_file(path) if Path(path).is_file() else os.fspath(path)


def _plain(value: Any, path_to_text: Callable[[os.PathLike], str] = os.fspath) -> object:
    """A value in types that JSON supports; ``path_to_text`` turns paths into text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item, path_to_text) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, path_to_text) for item in value]
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return _plain(value.tolist(), path_to_text)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, os.PathLike):
        return path_to_text(value)
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
