"""A model that is handed on: one file with what reading a scan needs, and nothing of anybody's scans.

The file is a plain zip archive that any zip program lists and unpacks: members stored in a fixed order without times,
``manifest.json`` first, which says the version of the format, and of every other member its size, CRC-32 and SHA-256.
All else of the archive follows from the manifest, so what is read is the very file that `write_bundle` makes of these
members, to the last bit, or it is refused. A bundle may come from a stranger: no member names a place, none is
compressed by the archive, none is executed, sizes are looked at before memory is taken. Its checksums tell damage, not
who made it.

The weights are safetensors whose highest bytes, sign and exponent of each number, are deflated: `pack_numbers`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import struct
import tempfile
import weakref
import zlib
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from datxai.config import ALL, MISSING, Config, restore
from datxai.errors import InputError
from datxai.files import hash_content, hash_json, read_arrays, replacing, require_file
from datxai.record import CODE, OF_ONE_SCAN, Record, check_record, flatten, flatten_all, say

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from datxai.analysis.shift import Shift

FORMAT = 1
SUFFIX = ".datxai"
MANIFEST, CARD, SETTINGS, NETWORK, REFERENCE = (
    "manifest.json", "card.md", "settings.json", "network.yaml", "reference.json"
)  # fmt: skip
MEANS, SHIFT, WEIGHTS = "means.safetensors", "shift.safetensors", "weights.safetensors.planes"
TEMPLATE, LABELS, NAMES = "template.nii", "labels.nii", "names.tsv"  # files of the run's own, gzipped or not
NEEDED = (CARD, SETTINGS, NETWORK, REFERENCE, WEIGHTS)
MOST = {  # bytes of each member, in the order in which they lie in the file
    MANIFEST: 2**20, CARD: 2**20, SETTINGS: 2**20, NETWORK: 2**20, REFERENCE: 2**20, NAMES: 2**20,
    TEMPLATE: 2**28, LABELS: 2**28, MEANS: 2**28, SHIFT: 2**28, WEIGHTS: 2**32 - 2**30,
}  # fmt: skip
WIDTHS = {"float32": 4, "bf16": 2}  # bytes of most numbers, by precision
GROUPS = ("data", "grid", "reconstruction", "registration", "atlas", "preprocessing", "network",
          "attribution", "composite")  # of settings, that reading needs  # fmt: skip
CHOSEN = ("attribution", "composite", "target")  # those that a reader may choose anew
OWN_FILES = {("registration", "template"): TEMPLATE, ("atlas", "labels"): LABELS, ("atlas", "names"): NAMES}
LOCAL, CENTRAL, END = "<4s5H3L2H", "<4s6H3L5H2L", "<4s4H2LH"  # records of a zip archive (PKWARE's APPNOTE 6.3)
BEGIN = struct.calcsize(LOCAL) + len(MANIFEST)  # bytes before the manifest
MIDNIGHT = 0x21  # 1 January 1980, 0:00, in which archives begin


class Entry(NamedTuple):
    """What the manifest says of a member."""

    size: int
    crc32: int
    sha256: str

    @classmethod
    def of(cls, content: bytes) -> Entry:
        return cls(len(content), zlib.crc32(content), hashlib.sha256(content).hexdigest())


def write_bundle(path: Path, given: Mapping[str, bytes | Mapping], about: Mapping[str, Any]) -> None:
    """Write a bundle atomically; the same members and words of the manifest ``about`` them make the same bytes.

    Members are ``given`` as bytes, or as data that becomes JSON. Raises `InputError` where something else has the
    file's name, or they are too large.
    """
    require_place(path)
    members = {name: _dump(content) if isinstance(content, Mapping) else content for name, content in given.items()}
    for name, content in members.items():
        if len(content) > MOST[name]:
            raise InputError(f"{path}: {name} would have {len(content)} bytes, a bundle holds {MOST[name]} at most.")
    entries = {name: Entry.of(members[name]) for name in MOST if name in members}
    content = {"format": FORMAT, **about, "members": {name: entry._asdict() for name, entry in entries.items()}}
    first = _dump(content | {"sha256": hash_json(content)})
    headers, tail = _lay_out({MANIFEST: Entry.of(first), **entries})
    with replacing(path) as temporary, temporary.open("wb") as stream:
        for header, part in zip(headers, [first, *(members[name] for name in entries)], strict=True):
            stream.write(header)
            stream.write(part)
        stream.write(tail)


def require_place(path: Path) -> None:
    """Refuse a place for a bundle where something else is, or whose name is none (`InputError`)."""
    if path.suffix != SUFFIX:
        raise InputError(f"out={path}: expected a name that ends with {SUFFIX}; change out=FILE{SUFFIX}.")
    require_file(path)
    if path.is_dir() or (path.exists() and not is_bundle(path)):
        what = "a folder" if path.is_dir() else "a file that is no bundle"
        raise InputError(f"out={path}: is {what}, which is not replaced; choose another out=FILE{SUFFIX}.")


def is_bundle(path: Path) -> bool:
    """Whether a file begins as a bundle does."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return _begins(stream.read(BEGIN))


def _begins(begin: bytes) -> bool:
    return len(begin) == BEGIN and begin.startswith(b"PK\3\4") and begin.endswith(MANIFEST.encode())


@dataclass(frozen=True, eq=False)
class Bundle:
    """A bundle in memory, whole and as it was written.

    Attributes
    ----------
    folder : the file; so called since it takes the place of a run folder
    manifest : what its first member says
    content : member to its bytes, but for the manifest
    """

    folder: Path
    manifest: Mapping[str, Any]
    content: dict[str, bytes]

    @classmethod
    def open(cls, path: str | os.PathLike, only: Collection[str] = tuple(MOST)) -> Bundle:
        """Read a bundle, or ``only`` some of its members; the others are then not looked at.

        Raises `InputError` for what is none, damaged, cut off, too large, or of a newer format.
        """
        path = Path(path)
        require_file(path)
        if not path.is_file():
            raise InputError(f"{path}: no such file, expected a bundle, as `datxai bundle` makes it.")
        try:
            with path.open("rb") as stream:
                return cls(path, *_read(stream, path, only))
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); is it yours to read?") from error

    @property
    def card(self) -> str:
        """The model card, Markdown."""
        return self.content[CARD].decode("utf-8", "replace")

    @property
    def explanation(self) -> str:
        """The name that the explanation had in its run."""
        return str(self.manifest.get("explanation"))

    @property
    def identity(self) -> str:
        """What identifies all that the bundle holds."""
        return str(self.manifest["sha256"])

    @property
    def anatomy(self) -> Path:
        """A file among those that the user's programs keep to save time: regions and template of this grid."""
        caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        kinds = [self.record.values["grid"], [self.manifest["members"].get(name) for name in OWN_FILES.values()]]
        return Path(caches, "datxai", f"anatomy-{hash_content(kinds)[:16]}.safetensors")

    @cached_property
    def record(self) -> Record:
        """The recorded settings that reading needs, checked against the schema."""
        record = check_record(_parse(self.content[SETTINGS], self._place(SETTINGS)), self._place(SETTINGS))
        if missing := [name for name in (*GROUPS, "target") if name not in record.values]:
            raise InputError(f"{self._place(SETTINGS)}: says nothing of {', '.join(missing)}; make the bundle again.")
        if code := _find_code(record.values):
            raise InputError(f"{self._place(SETTINGS)}: {code} is Python code, which no bundle names; do not trust it.")
        return record

    @cached_property
    def settings(self) -> Config:
        """The settings of the run, with the files of its own where they lie now."""
        settings = restore(self.record.values)
        known = flatten_all({name: asdict(getattr(settings, name)) for name in GROUPS if name != "data"})
        if missing := [name for name, value in known.items() if value == MISSING]:
            raise InputError(f"{self._place(SETTINGS)}: says nothing of {', '.join(missing)}; make the bundle again.")
        return self.localise(replace(settings, explanation=self.explanation))

    def localise(self, settings: Config) -> Config:
        """Settings that name members of the bundle, with the files that these have become; and of its explanation."""
        changed = {}
        for (group, key), name in OWN_FILES.items():
            if getattr(getattr(settings, group), key) == name:
                group_now = changed.get(group, getattr(settings, group))
                changed[group] = replace(group_now, **{key: str(self._files / name)})
        return replace(settings, **changed)

    def require_same(self, now: Record, task: str) -> None:
        """Refuse settings that shaped what the bundle holds, if they are others than it was made with."""
        old, new = self.record.settings(), now.settings()
        for setting, value in old.items():
            if setting in self.fixed and setting in new and new[setting] != value:
                raise InputError(
                    f"run={self.folder}: the bundle was made with {setting}={say(value)}, and `{task}` goes on with "
                    f"that, not with {setting}={say(new[setting])}; leave it out."
                )

    @cached_property
    def fixed(self) -> tuple[str, ...]:
        """The settings that are not a reader's to choose."""
        own = [name for name in self.record.settings() if name.partition(".")[0] not in CHOSEN]
        return tuple(name for name in own if name not in OF_ONE_SCAN)

    def load_network(self, device: str) -> nn.Module:
        """The network, ready to predict; its packed weights are let go. Raises `InputError` if it is code."""
        import safetensors.torch

        from datxai.model import checkpoint

        weights = unpack_numbers(self.content.pop(WEIGHTS), self._width, self._place(WEIGHTS))
        with tempfile.TemporaryDirectory(prefix="datxai-", ignore_cleanup_errors=True) as place:
            path = Path(place, checkpoint.WEIGHTS)
            weights.tofile(path)  # and mapped from there, as a run's are: the same numbers at the same places
            if self._width != WIDTHS["float32"]:
                try:
                    tensors = {name: tensor.float() for name, tensor in safetensors.torch.load_file(path).items()}
                except safetensors.SafetensorError as error:
                    raise InputError(f"{self._place(WEIGHTS)}: cannot be read as safetensors ({error}).") from error
                safetensors.torch.save_file(tensors, path)
            Path(place, checkpoint.CONFIG).write_bytes(self.content[NETWORK])
            try:
                network, config = checkpoint.load(place, device)
            except InputError as error:  # the place is gone before anybody could look there
                raise InputError(str(error).replace(f"{place}{os.sep}", f"{self.folder}: ")) from error
        if config["network"].get("shape") != self.settings.grid.shape:
            raise InputError(f"{self._place(NETWORK)}: is of another grid than the settings; make the bundle again.")
        return network

    @cached_property
    def reference(self) -> dict[str, Any]:
        """Calibration, ranges of normal cases, and what identifies the run: the content of ``reference.json``."""
        place, found = self._place(REFERENCE), _parse(self.content[REFERENCE], self._place(REFERENCE))
        kinds = {"calibration": dict, "ranges": dict, "evaluated": dict, "method": str}
        wrong = next((name for name, kind in kinds.items() if not isinstance(found.get(name), kind)), None)
        if wrong is not None:
            raise InputError(f"{place}: {wrong} is {found.get(wrong)!r:.80}, which is none; make the bundle again.")
        temperature, half_width = (found["calibration"].get(name) for name in ("temperature", "half_width"))
        fits = all(type(number) in (int, float) for number in (temperature, half_width))
        if not (fits and temperature > 0 and 0 <= half_width <= 1 and "determined" in found["calibration"]):
            raise InputError(f"{place}: the calibration cannot be used; make the bundle again.")
        if not all(isinstance(found["evaluated"].get(name), str) for name in ("fingerprint", "finished")):
            raise InputError(f"{place}: does not say which run it is of; make the bundle again.")
        return found

    @cached_property
    def means(self) -> list[np.ndarray] | None:
        """Mean relevance maps of true negative and true positive test cases; None where there were too few of them."""
        import numpy as np
        import safetensors.numpy

        if MEANS not in self.content:
            return None
        shape = tuple(self.settings.grid.shape)
        try:
            found = safetensors.numpy.load(self.content[MEANS])
        except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{self._place(MEANS)}: cannot be read as safetensors ({error}).") from error
        pair = [found[name] for name in ("TN", "TP") if name in found]
        fits = [mean.shape == shape and mean.dtype == np.float32 and np.isfinite(mean).all() for mean in pair]
        if len(pair) < 2 or not all(fits):
            raise InputError(f"{self._place(MEANS)}: expected two maps of the grid {shape}; make the bundle again.")
        return pair

    @cached_property
    def shift(self) -> Shift | None:
        """What tells whether a scan is like the training cases; None where the run did not look."""
        from datxai.analysis.shift import Shift

        if SHIFT not in self.content:
            return None
        try:
            return Shift.unpack(*read_arrays(self._files / SHIFT))
        except (InputError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{self._place(SHIFT)}: does not hold what scans are held against; make the bundle again."
            ) from error

    @cached_property
    def _files(self) -> Path:
        """A private folder with the members that are read as files; it goes when the bundle does."""
        place = Path(tempfile.mkdtemp(prefix="datxai-"))
        weakref.finalize(self, shutil.rmtree, place, ignore_errors=True)
        for name in (*OWN_FILES.values(), SHIFT):
            if name in self.content:
                (place / name).write_bytes(self.content[name])
        return place

    @property
    def _width(self) -> int:
        precision = self.manifest.get("precision")
        if precision not in WIDTHS:
            raise InputError(f"{self.folder}: precision is {precision!r:.80}, expected {' or '.join(WIDTHS)}.")
        return WIDTHS[precision]

    def _place(self, name: str) -> Path:
        return self.folder / name


def settings_to_hand_on(record: Record) -> tuple[dict[str, Any], dict[str, Path]]:
    """The part of a record that reading needs, without a place of the machine; and the files of the run's own that it
    names, by the members that they become. Code is refused (`InputError`)."""
    values = {name: dict(record.values[name]) for name in GROUPS} | {"target": record.values["target"]}
    if code := _find_code(values):
        raise InputError(
            f"{code} is Python code, which a bundle does not hold; hand the run folder and the code on, or make a run "
            f"without it."
        )
    values["data"] = {"orientation": values["data"].get("orientation", "header")}
    values["network"] |= {"weights": None, "rename": None, "initial": [], "freeze": []}
    files = {}
    for (group, key), name in OWN_FILES.items():
        if (given := values[group].get(key)) is not None:
            files[name], values[group][key] = Path(given), name
    kept = {*GROUPS, "target"} - {"data"}
    links = {
        place: target
        for place, target in record.references.items()
        if {place.partition(".")[0], target.partition(".")[0]} <= kept
    }
    choices = {group: name for group, name in record.choices.items() if group in kept}
    return {"values": values, "choices": choices, "references": links}, files


def _find_code(values: Mapping[str, Any]) -> str | None:
    """The first setting that names code."""
    found = {name: flatten(values).get(name) for name in CODE}
    return next((f"{name}={value}" for name, value in found.items() if value is not None), None)


def pack_numbers(data: bytes, width: int) -> bytes:
    """Numbers of ``width`` bytes, little-endian, in less room: all their lowest bytes, all those above, ..., and the
    highest ones deflated. Of a network's weights these, sign and exponent, are alike; the rest is noise.

    ``data`` is a whole file, of which a rest of fewer bytes than a number stays as it is.
    """
    import numpy as np

    count, rest = divmod(len(data), width)
    planes = np.frombuffer(data, np.uint8, count * width).reshape(count, width).T
    deflater = zlib.compressobj(1, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    highest = deflater.compress(planes[-1].tobytes()) + deflater.flush()
    return b"".join([struct.pack("<QB", count, rest), data[len(data) - rest :], planes[:-1].tobytes(), highest])


def unpack_numbers(packed: bytes, width: int, name: object) -> np.ndarray:
    """The bytes, uint8, that `pack_numbers` was given. Raises `InputError` where they cannot have been."""
    import numpy as np

    begin = struct.calcsize("<QB")
    if len(packed) > begin:
        count, rest = struct.unpack_from("<QB", packed)
        start = begin + rest
        stop = start + count * (width - 1)
        if stop <= len(packed) and rest < width:
            inflater = zlib.decompressobj(-15)
            try:
                highest = inflater.decompress(memoryview(packed)[stop:], count + 1)
            except zlib.error:
                highest = b""
            if len(highest) == count and inflater.eof and not inflater.unused_data:
                data = np.empty(count * width + rest, np.uint8)
                planes = data[: count * width].reshape(count, width)
                for k in range(width - 1):
                    planes[:, k] = np.frombuffer(packed, np.uint8, count, start + k * count)
                planes[:, -1] = np.frombuffer(highest, np.uint8)
                data[count * width :] = np.frombuffer(packed, np.uint8, rest, begin)
                return data
    raise InputError(f"{name}: does not hold the numbers that it says; make the bundle again.")


def _read(stream: BinaryIO, path: Path, only: Collection[str]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Manifest and members; memory is taken for what the file has."""
    size, begin = os.fstat(stream.fileno()).st_size, stream.read(BEGIN)
    if not _begins(begin):
        raise InputError(f"{path}: is no bundle of datxai, expected a file that `datxai bundle` has made.")
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
        raise _altered(path, "its archive")
    for (name, entry), header in zip(entries.items(), headers[1:], strict=True):
        if stream.read(len(header)) != header:
            raise _altered(path, f"its archive at {name}")
        if name not in only:
            stream.seek(entry.size, os.SEEK_CUR)
            continue
        content[name] = stream.read(entry.size)
        if hashlib.sha256(content[name]).hexdigest() != entry.sha256:
            raise _altered(path, name)
    if stream.read() != tail:
        raise _altered(path, "the end of its archive")
    return manifest, content


def _read_manifest(text: bytes, path: Path) -> tuple[dict[str, Any], dict[str, Entry]]:
    manifest = _parse(text, path / MANIFEST)
    version = manifest.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise InputError(
            f"{path}: is a bundle of format {version}, this version of datxai reads {FORMAT}; update datxai."
        )
    rest = {name: value for name, value in manifest.items() if name != "sha256"}
    if version != FORMAT or manifest.get("sha256") != hash_json(rest) or _dump(manifest) != text:
        raise _altered(path, MANIFEST)
    entries, members = {}, manifest.get("members")
    for name, entry in members.items() if isinstance(members, dict) else ():
        if name not in MOST or name == MANIFEST:
            raise InputError(f"{path}: has a member {name!r:.80}, expected {', '.join(MOST)} alone; get it again.")
        entries[name] = _read_entry(entry)
        if entries[name] is None:
            raise InputError(f"{path}: {MANIFEST} says of {name} {entry!r:.80}, which is no size and hash.")
        if entries[name].size > MOST[name]:
            raise InputError(
                f"{path}: {name} has {entries[name].size} bytes, expected {MOST[name]} at most; it is none of ours."
            )
    if missing := [name for name in NEEDED if name not in entries]:
        raise InputError(f"{path}: lacks {', '.join(missing)}, which a bundle has; get it again.")
    if [*entries] != [name for name in MOST if name in entries]:
        raise _altered(path, "the order of its members")
    return manifest, entries


def _read_entry(entry: Any) -> Any:
    """An `Entry`, or None if it is none."""
    kinds = {"size": int, "crc32": int, "sha256": str}
    if not isinstance(entry, dict) or [*entry] != [*kinds]:
        return None
    fits = all(type(entry[name]) is kind for name, kind in kinds.items())
    fits = fits and entry["size"] >= 0 and 0 <= entry["crc32"] < 2**32 and re.fullmatch("[0-9a-f]{64}", entry["sha256"])
    return Entry(**entry) if fits else None


def _lay_out(entries: Mapping[str, Entry]) -> tuple[list[bytes], bytes]:
    """What a zip archive has before each member, and behind the last one."""
    headers, central, place = [], io.BytesIO(), 0
    for name, (size, crc32, _) in entries.items():
        encoded = name.encode()
        of_both = (20, 0, 0, 0, MIDNIGHT, crc32, size, size, len(encoded), 0)  # version 2.0, stored
        headers.append(struct.pack(LOCAL, b"PK\3\4", *of_both) + encoded)
        central.write(struct.pack(CENTRAL, b"PK\1\2", 20, *of_both, 0, 0, 0, 0, place) + encoded)
        place += len(headers[-1]) + size
    length = central.tell()
    end = struct.pack(END, b"PK\5\6", 0, 0, len(entries), len(entries), length, place, 0)
    return headers, central.getvalue() + end


def _dump(content: Mapping) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _parse(text: bytes, path: Path) -> dict[str, Any]:
    try:
        content = json.loads(text.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise _altered(path.parent, path.name) from error
    if not isinstance(content, dict):
        raise _altered(path.parent, path.name)
    return content


def _refuse_constant(word: str) -> None:
    raise ValueError(word)


def _altered(path: Path, what: str) -> InputError:
    return InputError(f"{path}: {what} is not as it was written, expected the bundle that was made; copy it again.")


def say_what_it_holds(path: Path, task: str) -> InputError:
    """The sentence on a command that needs the cases of a run."""
    what = "a stage" if task == ALL else f"`{task}`"
    return InputError(
        f"{path}: is a bundle, which holds network, settings and reference and no case, and {what} needs a run with "
        f"cases; give the run folder, or read scans with the bundle (`datxai case`, `datxai serve`)."
    )
