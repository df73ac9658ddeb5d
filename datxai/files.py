"""Reading and writing files so that nothing is ever half-written: atomic replacement, tables, JSON, hashes."""

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

RUN_HAS = ("manifest.json", ".hydra", ".lock")  # one of these, whatever else
UNFINISHED = ".part-"  # begins the names of folders for files that are being written


@contextmanager
def replacing(path: str | os.PathLike, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path on the same disk; on success it replaces ``path``, on any exception it is removed.

    A ``durable`` one is on the disk before its name is, and the name before the caller goes on.

    The temporary file has the name of ``path``, so that writers which look at the suffix (``.nii.gz``, ``.png``) do
    the right thing. It stands alone in a folder of its own beside ``path``: some writers (safetensors) put a file of
    their own beside the one they are given, and what a kill leaves of either is found by the folder's name.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    room = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=path.parent))
    temporary = room / path.name
    try:
        temporary.touch(0o666)  # less the umask, as any new file
        mode = temporary.stat().st_mode & 0o777
        yield temporary
        if not temporary.is_symlink():
            temporary.chmod(mode)  # that file of safetensors may be read by its owner alone
        if durable:
            _synchronise(temporary)
        os.replace(temporary, path)
        if durable:
            _synchronise(path.parent)
    finally:
        shutil.rmtree(room, ignore_errors=True)


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes have left half-written in ``folder``; nobody may be writing there.

    Runs within it, of a sweep, and what links lead to are left alone.
    """
    for place, inner, _ in os.walk(folder):
        for name in [name for name in inner if name.startswith(UNFINISHED)]:
            shutil.rmtree(Path(place) / name, ignore_errors=True)
        inner[:] = [
            name
            for name in inner
            if not name.startswith(".") and not any((Path(place) / name / own).exists() for own in RUN_HAS)
        ]


def _synchronise(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
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
    """Read a JSON file; a damaged one is an `InputError`."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
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
    """Write NumPy arrays by name as safetensors, atomically; ``about`` them, what JSON takes."""
    from safetensors.numpy import save_file

    with replacing(path) as temporary:
        save_file(dict(arrays), temporary, {"about": json.dumps(_plain(about))})


def read_arrays(path: str | os.PathLike) -> tuple[dict[str, Any], Any]:
    """What `write_arrays` wrote, and what it is about; a file that is not that is an `InputError`."""
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
    """The rows of a table with a header, a dict of strings each; see `read_rows`."""
    return [row for _, row in read_rows(path)]


def read_rows(path: str | os.PathLike) -> list[tuple[int, dict[str, str]]]:
    """The rows of a table with a header, each with the line it begins in, counted from 1.

    UTF-8 or, with its mark, UTF-16. Cells are separated by tabs, semicolons or commas, whichever the header has
    most of. Blank rows, lines before the header that begin with ``#``, and empty cells behind the last column are
    passed over. Raises `InputError` if the file is missing, empty, no text, has a quote that is not closed, or
    rows with more or fewer cells than the header: all of them, by their lines.
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
        raise InputError(f"{path}: column {twice[0]!r} stands there more than once, expected once; remove the others.")
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
    """The names of a table's columns; empty if it is no table."""
    try:
        _, header = next(_read_records(Path(path)), (1, []))
    except InputError:
        return []
    return [name.strip() for name in header]


def _read_records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Cells of each row that is not blank, the header's first, with the line it begins in."""
    lines = _read_text(path).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    first = 0
    while first < len(lines) and (not lines[first].strip(" ,;\t") or lines[first].startswith("#")):
        first += 1
    head = lines[first] if first < len(lines) else ""
    separator = re.fullmatch(r"sep=(.)", head.strip())  # as Excel has it
    first += bool(separator)
    order = ",;\t" if path.suffix.lower() == ".csv" else "\t;,"
    delimiter = separator[1] if separator else max(order, key=head.count)
    reader = csv.reader((f"{line}\n" for line in lines[first:]), delimiter=delimiter, strict=True)
    begin = 0
    try:
        for cells in reader:
            swallowed = [line for line in lines[first + begin + 1 : first + reader.line_num] if delimiter in line]
            if begin and any(line.count(delimiter) >= len(cells) - 1 > 0 for line in swallowed):
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
    """Faults in one sentence; of many the first."""
    return ", ".join(faults[:most]) + (f" and {len(faults) - most} more" if len(faults) > most else "")


def hash_file(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, hexadecimal; an `InputError` if it cannot be read."""
    require_file(Path(path))
    try:
        with Path(path).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); a link may lead nowhere, or the file may not be yours to read."
        ) from error


def require_file(path: Path) -> None:
    """Refuse what would be waited for, or never ends: a named pipe, a socket, a device."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise InputError(f"{path}: is a named pipe, a socket or a device, expected a file; copy what it gives to one.")


def hash_once(path: Path) -> str:
    """`hash_file` of a file that is not read again in this process while it stays as it is."""
    try:
        state = path.stat()
    except OSError:
        return hash_file(path)  # which says what is wrong
    return _hash_state(path, state.st_mtime_ns, state.st_size, state.st_ino)


@functools.lru_cache(maxsize=1 << 16)
def _hash_state(path: Path, *state: int) -> str:
    return hash_file(path)


def hash_content(content: object) -> str:
    """SHA-256 of a JSON-like value, independent of the order of keys; a path counts by what its file holds, if any."""
    text = json.dumps(_plain(content, _read_hash), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def hash_json(content: object) -> str:
    """SHA-256 of a value as `write_json` writes it: `hash_content`, but for paths, which count as text."""
    return hash_content(_plain(content))


@functools.cache
def hash_code(*modules: str) -> str:
    """SHA-256 of the source of modules of this package and of all in it that they import, directly or not."""
    sources: dict[str, bytes] = {}
    wanted = [*modules]
    while wanted:
        name = wanted.pop()
        path = _source_of(name)
        if path is None or name in sources:  # what is imported may be a name within a module
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
    """The file of a module of this package; nothing is imported to find it."""
    package, *parts = module.split(".")
    if package != __name__.partition(".")[0]:
        return None
    path = Path(__file__).parent.joinpath(*parts)
    candidates = (path.with_suffix(".py"), path / "__init__.py") if parts else ()
    return next(filter(Path.is_file, candidates), None)


def _read_hash(path: os.PathLike) -> str:
    return hash_file(path) if Path(path).is_file() else os.fspath(path)


def _plain(value: Any, spell: Callable[[os.PathLike], str] = os.fspath) -> object:
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
