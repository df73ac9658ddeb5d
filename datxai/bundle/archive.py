"""The file format of a bundle: members, manifest, archive. A file that is not exactly as written is refused."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import struct
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from datxai.errors import InputError
from datxai.files import hash_json, replacing, require_file

if TYPE_CHECKING:
    import numpy as np

FORMAT = 1
SUFFIX = ".datxai"
MANIFEST, CARD, SETTINGS, NETWORK, REFERENCE = (
    "manifest.json", "card.md", "settings.json", "network.yaml", "reference.json"
)  # fmt: skip
MEANS, SHIFT, WEIGHTS = "means.safetensors", "shift.safetensors", "weights.safetensors.planes"
TEMPLATE, LABELS, NAMES = "template.nii", "labels.nii", "names.tsv"  # a run's own files, gzipped or not
NEEDED = (CARD, SETTINGS, NETWORK, REFERENCE, WEIGHTS)
MOST = {  # largest size of each member in bytes, in the order of the file
    MANIFEST: 2**20, CARD: 2**20, SETTINGS: 2**20, NETWORK: 2**20, REFERENCE: 2**20, NAMES: 2**20,
    TEMPLATE: 2**28, LABELS: 2**28, MEANS: 2**28, SHIFT: 2**28, WEIGHTS: 2**32 - 2**30,
}  # fmt: skip
WIDTHS = {"float32": 4, "bf16": 2}  # bytes per number, by precision
LOCAL, CENTRAL, END = "<4s5H3L2H", "<4s6H3L5H2L", "<4s4H2LH"  # records of a zip archive (PKWARE's APPNOTE 6.3)
BEGIN = struct.calcsize(LOCAL) + len(MANIFEST)  # bytes before the manifest
DOS_EPOCH = 0x21  # 1 January 1980, the first date of the format


class Entry(NamedTuple):
    """The manifest's entry for a member."""

    size: int
    crc32: int
    sha256: str

    @classmethod
    def of(cls, content: bytes) -> Entry:
        return cls(len(content), zlib.crc32(content), hashlib.sha256(content).hexdigest())


def write_bundle(path: Path, given: Mapping[str, bytes | Mapping], about: Mapping[str, Any]) -> None:
    """Write a bundle atomically; equal members and equal manifest entries ``about`` them give equal bytes.

    Members are ``given`` as bytes, or as data to be written as JSON. Raises `InputError` if the path is taken by
    something that is not a bundle, or if a member is too large.
    """
    require_place(path)
    members = {name: dump(content) if isinstance(content, Mapping) else content for name, content in given.items()}
    for name, content in members.items():
        if len(content) > MOST[name]:
            raise InputError(f"{path}: {name} would have {len(content)} bytes, a bundle holds {MOST[name]} at most.")
    entries = {name: Entry.of(members[name]) for name in MOST if name in members}
    content = {"format": FORMAT, **about, "members": {name: entry._asdict() for name, entry in entries.items()}}
    first = dump(content | {"sha256": hash_json(content)})
    headers, tail = _lay_out({MANIFEST: Entry.of(first), **entries})
    with replacing(path) as temporary, temporary.open("wb") as stream:
        for header, member in zip(headers, [first, *(members[name] for name in entries)], strict=True):
            stream.write(header)
            stream.write(member)
        stream.write(tail)


def require_place(path: Path) -> None:
    """Raise `InputError` if the name is not that of a bundle, or the path is taken by something else."""
    if path.suffix != SUFFIX:
        raise InputError(f"out={path}: expected a name that ends with {SUFFIX}; change out=FILE{SUFFIX}.")
    require_file(path)
    if path.is_dir() or (path.exists() and not is_bundle(path)):
        what = "a folder" if path.is_dir() else "a file that is not a bundle"
        raise InputError(f"out={path}: is {what}, which is not replaced; choose another out=FILE{SUFFIX}.")


def is_bundle(path: Path) -> bool:
    """Whether a file begins like a bundle."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return _has_signature(stream.read(BEGIN))


def _has_signature(begin: bytes) -> bool:
    return len(begin) == BEGIN and begin.startswith(b"PK\3\4") and begin.endswith(MANIFEST.encode())

def pack_numbers(data: bytes, width: int) -> bytes:
    """Pack little-endian numbers of ``width`` bytes by byte planes, the lowest first and the highest one deflated.

    In a network's weights the highest bytes, sign and exponent, are similar; the rest is noise. ``data`` is a whole
    file; a remainder shorter than a number is stored as it is.
    """
    import numpy as np

    count, tail = divmod(len(data), width)
    planes = np.frombuffer(data, np.uint8, count * width).reshape(count, width).T
    deflater = zlib.compressobj(1, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    highest = deflater.compress(planes[-1].tobytes()) + deflater.flush()
    return b"".join([struct.pack("<QB", count, tail), data[len(data) - tail :], planes[:-1].tobytes(), highest])


def unpack_numbers(packed: bytes, width: int, name: object) -> np.ndarray:
    """The bytes packed by `pack_numbers`, uint8. Raises `InputError` for invalid data."""
    import numpy as np

    begin = struct.calcsize("<QB")
    if len(packed) > begin:
        count, remainder = struct.unpack_from("<QB", packed)
        start = begin + remainder
        stop = start + count * (width - 1)
        if stop <= len(packed) and remainder < width:
            inflater = zlib.decompressobj(-15)
            try:
                highest = inflater.decompress(memoryview(packed)[stop:], count + 1)
            except zlib.error:
                highest = b""
            if len(highest) == count and inflater.eof and not inflater.unused_data:
                data = np.empty(count * width + remainder, np.uint8)
                planes = data[: count * width].reshape(count, width)
                for k in range(width - 1):
                    planes[:, k] = np.frombuffer(packed, np.uint8, count, start + k * count)
                planes[:, -1] = np.frombuffer(highest, np.uint8)
                data[count * width :] = np.frombuffer(packed, np.uint8, remainder, begin)
                return data
    raise InputError(f"{name}: does not hold the numbers that it declares; make the bundle again.")


def read_members(stream: BinaryIO, path: Path, only: Collection[str]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Manifest and members; memory is allocated only for bytes that are in the file."""
    size, begin = os.fstat(stream.fileno()).st_size, stream.read(BEGIN)
    if not _has_signature(begin):
        raise InputError(f"{path}: is not a bundle of datxai, expected a file made by `datxai bundle`.")
    (length,) = struct.unpack_from("<L", begin, 22)
    if length > MOST[MANIFEST]:
        raise InputError(f"{path}: {MANIFEST} has {length} bytes, expected {MOST[MANIFEST]} at most; get it again.")
    first = stream.read(length)
    manifest, entries = _read_manifest(first, path)
    headers, tail = _lay_out({MANIFEST: Entry.of(first), **entries})
    expected = sum(map(len, headers)) + sum(entry.size for entry in entries.values()) + len(first) + len(tail)
    if size != expected:
        fault = f"is cut off: it has {size} bytes" if size < expected else f"has {size} bytes"
        raise InputError(f"{path}: {fault}, expected {expected}; copy the bundle again.")
    content: dict[str, bytes] = {}
    if begin != headers[0]:
        raise altered(path, "its archive")
    for (name, entry), header in zip(entries.items(), headers[1:], strict=True):
        if stream.read(len(header)) != header:
            raise altered(path, f"its archive at {name}")
        if name not in only:
            stream.seek(entry.size, os.SEEK_CUR)
            continue
        content[name] = stream.read(entry.size)
        if hashlib.sha256(content[name]).hexdigest() != entry.sha256:
            raise altered(path, name)
    if stream.read() != tail:
        raise altered(path, "the end of its archive")
    return manifest, content


def _read_manifest(text: bytes, path: Path) -> tuple[dict[str, Any], dict[str, Entry]]:
    manifest = parse(text, path / MANIFEST)
    version = manifest.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise InputError(
            f"{path}: is a bundle of format {version}, this version of datxai reads {FORMAT}; update datxai."
        )
    signed = {name: value for name, value in manifest.items() if name != "sha256"}
    if version != FORMAT or manifest.get("sha256") != hash_json(signed) or dump(manifest) != text:
        raise altered(path, MANIFEST)
    entries, members = {}, manifest.get("members")
    for name, entry in members.items() if isinstance(members, dict) else ():
        if name not in MOST or name == MANIFEST:
            raise InputError(f"{path}: has a member {name!r:.80}, expected {', '.join(MOST)} alone; get it again.")
        entries[name] = _read_entry(entry)
        if entries[name] is None:
            raise InputError(f"{path}: {MANIFEST} says of {name} {entry!r:.80}, which is not a size and hash.")
        if entries[name].size > MOST[name]:
            raise InputError(
                f"{path}: {name} has {entries[name].size} bytes, expected {MOST[name]} at most; get it again."
            )
    if missing := [name for name in NEEDED if name not in entries]:
        raise InputError(f"{path}: lacks {', '.join(missing)}, which a bundle has; get it again.")
    if [*entries] != [name for name in MOST if name in entries]:
        raise altered(path, "the order of its members")
    return manifest, entries


def _read_entry(entry: Any) -> Any:
    """An `Entry`, or None if it is invalid."""
    types = {"size": int, "crc32": int, "sha256": str}
    if not isinstance(entry, dict) or [*entry] != [*types]:
        return None
    if any(type(entry[name]) is not type_ for name, type_ in types.items()):
        return None
    in_range = entry["size"] >= 0 and 0 <= entry["crc32"] < 2**32
    return Entry(**entry) if in_range and re.fullmatch("[0-9a-f]{64}", entry["sha256"]) else None


def _lay_out(entries: Mapping[str, Entry]) -> tuple[list[bytes], bytes]:
    """The zip header before each member, and the end of the archive after the last one."""
    headers, central, offset = [], io.BytesIO(), 0
    for name, (size, crc32, _) in entries.items():
        encoded = name.encode()
        shared = (20, 0, 0, 0, DOS_EPOCH, crc32, size, size, len(encoded), 0)  # version 2.0, stored
        headers.append(struct.pack(LOCAL, b"PK\3\4", *shared) + encoded)
        central.write(struct.pack(CENTRAL, b"PK\1\2", 20, *shared, 0, 0, 0, 0, offset) + encoded)
        offset += len(headers[-1]) + size
    length = central.tell()
    end = struct.pack(END, b"PK\5\6", 0, 0, len(entries), len(entries), length, offset, 0)
    return headers, central.getvalue() + end


def dump(content: Mapping) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def parse(text: bytes, path: Path) -> dict[str, Any]:
    try:
        content = json.loads(text.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise altered(path.parent, path.name) from error
    if not isinstance(content, dict):
        raise altered(path.parent, path.name)
    return content


def _refuse_constant(word: str) -> None:
    raise ValueError(word)


def altered(path: Path, what: str) -> InputError:
    return InputError(f"{path}: {what} is not as it was written, expected the bundle that was made; copy it again.")

