"""The record of a run: its settings as data, in one file of the run folder, `RECORD`.

It holds the values of our own schema, the choice for each group, references between settings, and the separate settings
of further explanations. A run folder may come from somebody else, so the record is read with a safe loader and
validated against the schema: it is not a Hydra configuration, has no interpolations, and names no search paths.
"""

from __future__ import annotations

import copy
import os
import types
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from datxai.config import (
    CALL,
    COMMANDS,
    DEFAULT,
    EXPLAINING,
    KINDS,
    MISSING,
    STAGES,
    Config,
    Data,
    entry_name,
    require_name,
)  # fmt: skip
from datxai.errors import InputError
from datxai.files import hash_content, read_json, write_text

RECORD = Path(".hydra", "config.yaml")
OF_0_1 = ("overrides.yaml", "hydra.yaml")  # further files of version 0.1
CODE = ("composite.rules_from", "network.target")  # code, executed only if named on the command line
MAX_BYTES = 2**20
OF_COHORT = ("data", "split", "reconstruction")  # groups that are specific to a cohort
OF_ONE_SCAN = ("seed", "reconstruction.centre", "reconstruction.start_angle_deg", "reconstruction.flip")
GROUPS = tuple(name for name, kind in get_type_hints(Config).items() if is_dataclass(kind) and name not in CALL)


@dataclass(frozen=True)
class Record:
    """The settings of a run."""

    values: Mapping[str, Any]
    choices: Mapping[str, str] = field(default_factory=dict)  # group: name
    references: Mapping[str, str] = field(default_factory=dict)  # setting: the setting that it follows
    explanations: Mapping[str, Record] = field(default_factory=dict)  # name: its settings of `EXPLAINING`

    def text(self) -> str:
        """The content of the file, as read by `read_record`."""
        content = self._content()
        if self.explanations:
            content["explanations"] = {name: record._content() for name, record in self.explanations.items()}
        content |= {"sha256": hash_content(content)}
        return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)

    def _content(self) -> dict[str, Any]:
        return {**self.values, "references": dict(self.references), "choices": dict(self.choices)}

    def of_explanation(self, name: str) -> Record:
        """The record of one explanation of the run; a new one starts with the settings of ``default``."""
        if name == DEFAULT:
            return self
        default, part = self._explaining(), self.explanations.get(name)
        return replace(self if part is None else self._with(part), explanations={**self.explanations, DEFAULT: default})

    def keep(self, now: Record, explanation: str) -> Record:
        """The record of the run after an explanation was made with ``now``; other explanations keep their settings.

        The record itself is that of `of_explanation`, or empty.
        """
        others = {**self.explanations, explanation: now._explaining()}
        default = others.pop(DEFAULT, None)
        return replace(now if default is None else now._with(default), explanations=others)

    def _explaining(self) -> Record:
        """The part that is specific to an explanation."""
        parts = (self.values, self.choices, self.references)
        values, choices, references = ({key: part[key] for key in part if _explains(key)} for part in parts)
        return Record(values, choices, references)

    def _with(self, other: Record) -> Record:
        """This record with the explanation settings of ``other``."""
        pairs = zip((self.values, self.choices, self.references), (other.values, other.choices, other.references))
        values, choices, references = (
            {key: old[key] for key in old if key in new or not _explains(key)} | {**new} for old, new in pairs
        )
        return Record(values, choices, references, self.explanations)

    def with_references(self, fixed: Collection[str] = ()) -> dict[str, Any]:
        """The values, with OmegaConf's ``${setting}`` for references, except those of ``fixed`` settings.

        A file of rules and the class of a network are code and are never taken over.
        """
        values = copy.deepcopy(dict(self.values))
        for setting, target in self.references.items():
            if setting not in fixed:
                *parents, last = setting.split(".")
                node: Any = values
                for part in parents:
                    node = node[int(part) if isinstance(node, list) else part]
                node[int(last) if isinstance(node, list) else last] = f"${{{target}}}"
        for setting in CODE:
            group, name = setting.split(".")
            values.get(group, {}).pop(name, None)
        return values

    def without(self, group: str) -> Record:
        """The record without a group."""
        values = {name: value for name, value in self.values.items() if name != group}
        references = {place: target for place, target in self.references.items() if place.partition(".")[0] != group}
        return replace(self, values=values, references=references)

    def settings(self) -> dict[str, Any]:
        """Values by full setting name, such as ``data.n_subjects``; lists count as values."""
        return flatten(self.values)


def _explains(name: str) -> bool:
    """Whether a setting or choice is specific to an explanation, which includes its experiment."""
    return name.partition(".")[0] in (*EXPLAINING, "experiment")


def flatten(values: Mapping, place: str = "") -> dict[str, Any]:
    """Flatten nested mappings, with names joined by dots."""
    flat = {}
    for key, value in values.items():
        inner = flatten(value, f"{place}{key}.") if isinstance(value, Mapping) and value else {place + str(key): value}
        flat |= inner
    return flat


def read_record(folder: Path) -> Record | None:
    """The record of a run folder; None if no run has been started there.

    Raises `InputError` if the record is invalid, or missing although the folder holds a run. A record of version 0.1
    has neither choices nor references nor a checksum, but further files beside it.
    """
    path = folder / RECORD
    if not path.is_file():
        if (folder / "manifest.json").is_file():
            raise _refuse(path, "no such file, although the folder holds a run")
        if path.parent.is_dir() and any((path.parent / name).is_file() for name in OF_0_1):
            return Record({})
        return None
    try:
        if path.stat().st_size > MAX_BYTES:
            raise _refuse(path, f"has more than {MAX_BYTES} bytes")
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise _refuse(path, f"cannot be read ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(content, dict):
        raise _refuse(path, "does not hold settings")
    checksum = content.pop("sha256", None)
    is_0_1 = "choices" not in content and checksum is None and any((path.parent / name).is_file() for name in OF_0_1)
    if not is_0_1 and checksum != hash_content(content):  # a truncated one may look like one of version 0.1
        raise _refuse(path, "is not as it was written: its checksum differs")
    explanations = content.pop("explanations", {}) if checksum is not None else {}
    choices, references = (content.pop(name, {}) for name in ("choices", "references"))
    values = {name: value for name, value in content.items() if name not in CALL}
    missing = [name for name in GROUPS if name not in values]
    if missing and (checksum is not None or content):
        raise _refuse(path, f"says nothing of {', '.join(missing)}")
    if values:
        _require_fit(values, Config, "", path)
    _require_links(values, choices, references, path)
    record = Record(values, choices, references)
    return replace(record, explanations=dict(_read_explanations(explanations, record, path)))


def check_record(content: Mapping[str, Any], path: Path) -> Record:
    """A record from data (``values, choices, references``), possibly of some groups only, validated like that of a run.

    Raises `InputError`, which names ``path``.
    """
    parts: list[Any] = [content.get(name) for name in ("values", "choices", "references")]
    if not all(isinstance(part, dict) and _has_plain_keys(part) for part in parts):
        raise _refuse(path, "does not hold settings")
    values, choices, references = parts
    _require_fit(values, Config, "", path)
    _require_links(values, choices, references, path)
    return Record(values, choices, references)


def _read_explanations(content: Any, record: Record, path: Path) -> Iterator[tuple[str, Record]]:
    """The settings of each further explanation, validated like those of the run."""
    if not _has_plain_keys(content):
        raise _refuse(path, f"explanations is {content!r:.80}")
    for name, part in content.items():
        try:
            require_name(str(name))
        except InputError:
            raise _refuse(path, f"explanations has the name {name!r:.80}") from None
        if not isinstance(part, dict) or {*part} != {*EXPLAINING, "choices", "references"}:
            raise _refuse(path, f"explanations.{name} is {part!r:.80}")
        choices, references = part.pop("choices"), part.pop("references")
        _require_fit(part, Config, f"explanations.{name}", path)
        explanation = Record(part, choices, references)
        _require_links({**record.values, **part}, choices, references, path)
        yield str(name), explanation


def _require_links(values: Mapping, choices: Mapping, references: Mapping, path: Path) -> None:
    """Raise `InputError` for choices that are not names, and for references to missing settings."""
    for mapping, name in ((choices, "choices"), (references, "references")):
        _require_fit(mapping, dict[str, str], name, path)
    flat = flatten_all(values)
    broken = next((pair for pair in references.items() if not {*pair} <= flat.keys()), None)
    if broken:
        raise _refuse(path, f"lets {broken[0]} follow {broken[1]}, expected settings that it holds")


def flatten_all(value: Any, place: str = "") -> dict[str, Any]:
    """All values at any depth, by their path; elements of lists by their index, from 0."""
    if not isinstance(value, (Mapping, list)):
        return {place: value}
    flat = {place: value} if place else {}
    for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
        flat |= flatten_all(inner, f"{place}.{key}" if place else str(key))
    return flat


@contextmanager
def recording(folder: Path, record: Record) -> Iterator[None]:
    """Write the record to a run folder, and restore the previous one if the block fails.

    A first record stays if stages have been finished by then. The file is replaced atomically, and the previous one is
    kept as a hard link meanwhile, so that restoring it needs no disk space. Nothing is written through a link.
    """
    path, text = folder / RECORD, record.text()
    require_own(folder, path.parent)
    old = path.read_text(encoding="utf-8") if path.is_file() else None
    if old == text:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _linked(path) as backup:
            write_text(path, text, durable=True)
            try:
                yield
            except Exception:
                begun = old is None and (folder / "manifest.json").is_file()  # stages finished before the failure
                if not begun and path.is_file() and path.read_text(encoding="utf-8") == text:  # not another command's
                    _restore(path, old, backup)
                raise
        for name in OF_0_1:
            (path.parent / name).unlink(missing_ok=True)
    finally:
        with suppress(OSError):  # remove new folders that are still empty
            path.parent.rmdir()
            folder.rmdir()


@contextmanager
def _linked(path: Path) -> Iterator[Path]:
    """A hard link to a file's present content; the path does not exist if there are no hard links, or no file."""
    backup = path.with_name(".before")
    backup.unlink(missing_ok=True)
    with suppress(OSError):
        os.link(path, backup)
    try:
        yield backup
    finally:
        backup.unlink(missing_ok=True)


def _restore(path: Path, old: str | None, backup: Path) -> None:
    """Restore a file's old content, from the link ``backup`` unless another command has replaced that."""
    if old is None:
        path.unlink()
    elif backup.is_file() and backup.read_text(encoding="utf-8") == old:
        os.replace(backup, path)
    else:
        write_text(path, old, durable=True)


def require_own(folder: Path, *paths: Path) -> None:
    """Raise `InputError` for links among paths to be written: a foreign run folder may link to files outside it."""
    for path in paths:
        if path.is_symlink():
            raise InputError(f"{path}: is a link, expected a file or folder of the run's own; remove it ({folder}).")


def made_before(folder: Path, task: str, explanation: str = DEFAULT) -> dict[str, str]:
    """Settings on which the input of a stage or command depends: their names, and the stage that depends on each.

    All commands but `spectral` explain anew, and settings of a single scan are free for them; `search` trains anew.
    """
    manifest, journey = folder / "manifest.json", list(STAGES)
    if task in (*journey, "search"):
        stages, free = journey[: journey.index("train" if task == "search" else task)], ()
    else:
        stages, free = [name for name in journey if name != "explain" or task == "spectral"], OF_ONE_SCAN
    entries = read_json(manifest) if manifest.is_file() and (stages and task in (*journey, *COMMANDS)) else {}
    makers: dict[str, str] = {}
    for name in stages:
        entry = entries.get(entry_name(name, explanation))
        config = entry.get("config") if isinstance(entry, Mapping) else None
        makers = dict.fromkeys(flatten(config) if isinstance(config, Mapping) else (), name) | makers
    groups = OF_COHORT if task == "apply" else ()
    return {
        setting: name
        for setting, name in makers.items()
        if setting not in free and setting.partition(".")[0] not in groups
    }


def require_same(folder: Path, before: Record, now: Record, task: str, explanation: str = DEFAULT) -> None:
    """Raise `InputError` if settings on which the input of a stage or command depends differ from the recorded ones."""
    old, new = before.settings(), now.settings()
    for setting, maker in made_before(folder, task, explanation).items():
        if setting in old and old[setting] != new.get(setting) and setting not in CODE:
            group = setting.partition(".")[0]
            was, would = before.choices.get(group), now.choices.get(group)
            if was == would or setting.count(".") != 1:
                group, was, would = setting, old[setting], new.get(setting)
            raise InputError(
                f"run={folder}: '{maker}' was made with {group}={say(was)}, and `{task}` goes on with that, not with "
                f"{group}={say(would)}; leave it out, or make another run: run=OTHER base={folder}."
            )


def say(value: Any) -> str:
    """A value as on the command line."""
    if isinstance(value, list):
        return f"[{','.join(map(say, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{say(inner)}" for key, inner in value.items()) + "}"
    if value is None:
        return "null"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if text.isprintable() else ascii(text)


def _refuse(path: Path, why: str) -> InputError:
    return InputError(
        f"{path}: {why}, expected the settings of the run as datxai writes them; put the file back from a copy, or "
        f"choose another run=DIR."
    )


def _require_fit(value: Any, kind: Any, place: str, path: Path) -> None:
    """Raise `InputError` for keys and types that are not in the schema, and for interpolations."""
    if kind is Data:
        kind = KINDS.get(str(value.get("kind")), Data) if isinstance(value, Mapping) else Data
    if is_dataclass(kind):
        types_of = get_type_hints(kind)
        if not isinstance(value, Mapping):
            raise _refuse(path, f"{place} is {value!r:.80}")
        for key, inner in value.items():
            if key not in types_of:
                raise _refuse(path, f"{f'{place}.{key}'.strip('.')} is not a setting of this version")
            _require_fit(inner, types_of[key], f"{place}.{key}".strip("."), path)
        return
    if not any(_is_of(value, each) for each in _alternatives(kind)):
        raise _refuse(path, f"{place} is {value!r:.80}")
    inner_kinds = get_args(kind)
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _require_fit(inner, inner_kinds[1] if get_origin(kind) is dict else Any, f"{place}.{key}", path)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            _require_fit(inner, inner_kinds[0] if get_origin(kind) is list else Any, f"{place}.{number}", path)
    elif isinstance(value, str) and ("${" in value or value == MISSING):
        raise _refuse(path, f"{place} is {value!r:.80}, which is not a value")


def _alternatives(kind: Any) -> tuple:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _is_of(value: Any, kind: Any) -> bool:
    if kind is Any:
        return value is None or isinstance(value, (bool, int, float, str, list)) or _has_plain_keys(value)
    if get_origin(kind) is dict:
        return _has_plain_keys(value)
    if get_origin(kind) is list:
        return isinstance(value, list)
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _has_plain_keys(value: Any) -> bool:
    keys = value if isinstance(value, Mapping) else [None]
    return all(isinstance(key, (str, int, float)) and "${" not in str(key) for key in keys)


class _Loader(yaml.SafeLoader):
    """Reads plain data, without aliases, with which a small file can expand to a huge one."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias, expected every value where it belongs")
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data):
        return True
