"""Configurations, composed by Hydra from words and records; no code that they name is called here."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import yaml

from datxai.config import CALL, KINDS, MISSING, Config, setting_names, unknown_setting
from datxai.errors import InputError
from datxai.order import Order, key_of
from datxai.record import CODE, GROUPS, OF_0_1, RECORD, Record, flatten, flatten_all, say

if TYPE_CHECKING:
    from omegaconf import DictConfig

PRIMARY = "config"  # the configuration of a new run
ON_RECORD = "config_on_record"  # the configuration of a continued run
RECORDED = "_recorded_"  # choice of a group that stands for the recorded values
REFERENCE = re.compile(r"\$\{(\.*)([A-Za-z_]\w*(?:\.\w+|\[\d+\])*)\}")


def conf() -> Path:
    """The installed configuration tree."""
    import datxai.conf  # pyright: ignore[reportMissingImports]  # the folder conf of the checkout, once installed

    return Path(datxai.conf.__file__).parent


def register_schemas() -> None:
    """Register the schema of the settings with Hydra, so that a misspelt key or a wrong type is refused."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    for name, node in KINDS.items():
        store.store(group="data", name=f"{name}_schema", node=node)


def register_primary(record: Record, of_call: Mapping[str, Any], fixed: Collection[str] = ()) -> str:
    """Register a primary configuration with the record's values in place of the choices of `PRIMARY`; returns its name.

    Experiments and words override it as they would override the defaults. ``of_call`` has further values. The
    ``fixed`` settings keep their values and do not follow other settings.
    """
    from hydra.core.config_store import ConfigStore

    store, values = ConfigStore.instance(), record.with_references(fixed)
    primary = yaml.safe_load((conf() / f"{PRIMARY}.yaml").read_text(encoding="utf-8"))
    for entry in primary["defaults"]:
        group = next(iter(entry)) if isinstance(entry, dict) else None
        if group in values:
            node = values.pop(group)
            schema = {"defaults": [f"{node['kind']}_schema", "_self_"]} if group == "data" else {}
            store.store(group=group, name=RECORDED, node={**schema, **node})
            entry[group] = RECORDED
    hydra = {**primary["hydra"], **of_call.get("hydra", {})}
    store.store(name=ON_RECORD, node={**primary, **values, **of_call, "hydra": hydra})
    return ON_RECORD


def compose(words: Sequence[str], config: str = PRIMARY, folder: str | None = None) -> DictConfig:
    """The configuration composed from the words, including Hydra's own part. Raises Hydra's exceptions."""
    from hydra import compose as of_hydra
    from hydra import initialize_config_module

    register_schemas()
    if folder and not Path(folder).is_dir():
        raise InputError(f"{folder}: no such folder, expected the configuration directory of --config-dir.")
    if folder and {*folder} & {*"'\\"}:
        raise InputError(f"{folder}: a configuration directory has no quotes or backslashes in its name; rename it.")
    searched = any(key_of(word) == "hydra.searchpath" for word in words)
    path = [f"hydra.searchpath=['file://{Path(folder).absolute()}']"] if folder and not searched else []
    with initialize_config_module("datxai.conf", version_base="1.3"):
        return of_hydra(config, [*words, *path], return_hydra_config=True)


def take_choices(cfg: DictConfig) -> Mapping[str, str | None]:
    """The group choices of a configuration; Hydra's own part, which holds them, is removed from it."""
    from omegaconf import flag_override

    choices = cfg.hydra.runtime.choices
    with flag_override(cfg, ["struct", "readonly"], False):
        del cfg.hydra
    return choices


def single(order: Order) -> list[str]:
    """The words that are the same in every job of a sweep."""
    return [word for word, choices in _choices(order) if choices is None]


def _choices(order: Order) -> Iterator[tuple[str, list[str] | None]]:
    """Each word, with its choices if it is swept; the choices of a pattern are all those of its group."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import ValueType

    for override in OverridesParser.create().parse_overrides([*order.words]):
        word = override.input_line
        assert word is not None
        if not override.is_sweep_override():
            yield word, None
        elif override.value_type is ValueType.GLOB_CHOICE_SWEEP:
            files = Path(order.config_dir or conf(), override.key_or_group).glob("*.yaml")
            yield word, [file.stem for file in files]
        else:
            is_choice = override.is_choice_sweep()
            yield word, [*override.sweep_string_iterator()] if is_choice else []


def require_own_hydra(order: Order, config: str) -> None:
    """Raise `InputError` if files of a configuration directory change Hydra's own settings, which can name code.

    Only settings named on the command line may differ from ours, no matter how a file would set them.
    """
    if order.config_dir is None and "hydra.searchpath" not in order.given:
        return
    keys = [key_of(word).partition("@")[0] for word in order.words]
    named_on_line = [key.replace("/", ".") for key in keys if key.startswith(("hydra/", "hydra."))]
    expected, swept = _of_hydra(compose([], config)), []
    for word, choices in _choices(order):
        swept += [f"{word.partition('=')[0]}={choice}" for choice in choices or []]
    for words in [single(order), *([*single(order), word] for word in swept)]:
        composed = _of_hydra(compose(words, config, order.config_dir))
        for key in sorted(composed.keys() | expected.keys()):
            is_named = any(f"hydra.{key}.".startswith(f"{name}.") for name in named_on_line)
            if not is_named and composed.get(key) != expected.get(key):
                place = order.config_dir or order.given["hydra.searchpath"]
                raise InputError(
                    f"{place}: a file there has settings of Hydra itself (hydra.{key}), which could execute code; a "
                    f"file of settings for datxai needs none. Give them on the command line."
                )


def _of_hydra(cfg: DictConfig) -> dict[str, Any]:
    """Hydra's settings, without those that describe the composition itself."""
    tree = _unresolved(cfg.hydra)
    for name in ("overrides", "runtime", "searchpath"):
        tree.pop(name, None)
    for name in ("override_dirname", "config_name"):
        tree["job"].pop(name, None)
    return {key: value for key, value in flatten_all(tree).items() if not isinstance(value, (dict, list)) or not value}


def require_known(cfg: DictConfig) -> None:
    """Raise `InputError` for a setting that is not in the schema, even if added with ``+``."""
    from omegaconf import OmegaConf

    def walk(node: Any, place: str) -> None:
        kind = OmegaConf.get_type(node)
        if is_dataclass(kind):
            names = get_type_hints(kind)
            for key in node:
                if key not in names and (place or key != "hydra"):
                    added = flatten_all(_unresolved(node)[key], f"{place}{key}")
                    raise InputError(unknown_setting([*added][-1]))
                if key in names and OmegaConf.is_dict(child := node._get_node(key)) and not child._is_none():
                    walk(child, f"{place}{key}.")

    if OmegaConf.get_type(cfg) is not Config:
        raise InputError("the schema of the settings is hidden by a file schema.yaml of a configuration directory.")
    walk(cfg, "")


def record_of(
    cfg: DictConfig, before: Record | None, choices: Mapping[str, str | None], fixed: Collection[str] = ()
) -> Record:
    """The record of a composed configuration; ``choices`` are Hydra's.

    References of the ``fixed`` settings are kept from the record ``before`` if the values are still equal.
    """
    from omegaconf import OmegaConf

    names = [str(name) for name in cfg if name not in (*CALL, "hydra") and not OmegaConf.is_missing(cfg, name)]
    raw = {name: value for name, value in _unresolved(cfg).items() if name in names}
    values = {name: OmegaConf.to_container(cfg[name], resolve=True) if OmegaConf.is_config(cfg[name]) else cfg[name]
              for name in names}  # fmt: skip
    flat, references = flatten_all(values), {}
    for place, value in flatten_all(raw).items():
        target = _target(place, value)
        if target in flat and place in flat:
            references[place] = target
    for place, target in before.references.items() if before else ():
        if place in fixed and target in flat and flat.get(place) == flat[target]:
            references[place] = target
    earlier_choices = before.choices if before else {}
    effective = {group: earlier_choices.get(group) if name == RECORDED else name for group, name in choices.items()}
    if effective.get("experiment") is None:
        effective["experiment"] = earlier_choices.get("experiment")
    named = {group: str(effective[group]) for group in (*GROUPS, "experiment") if effective.get(group)}
    return Record(values, named, references)


def _target(place: str, value: Any) -> str | None:
    """The setting to which a reference at ``place`` points; None if the value is not a plain reference."""
    match = REFERENCE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return None
    dots, name = match.groups()
    name = name.replace("[", ".").replace("]", "")
    return ".".join([*place.split(".")[: -len(dots)], name]) if dots else name


def read_0_1(folder: Path, record: Record) -> Record:
    """The record of version 0.1, which kept words: its values, with choices and references as far as they can be found.

    If it holds no values, they are composed from its words, but only from those for our own settings. The configuration
    directory that it names is searched for their choices. The result is data; Hydra settings in its files are ignored.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    words, source = _words_of_0_1(folder)
    try:
        cfg = compose(words, folder=source)
        if any("${" in value and not REFERENCE.fullmatch(value) for value in _texts(cfg)):
            raise InputError(
                f"{folder / RECORD.parent}: the record of version 0.1 takes values from outside of it; choose another "
                f"run=DIR, and give the settings again."
            )
        composed = record_of(cfg, None, cfg.hydra.runtime.choices)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        if not record.values:
            raise InputError(
                f"{folder / RECORD.parent}: the record of version 0.1 cannot be read again ({sentence(error)}); choose "
                f"another run=DIR, and give the settings again."
            ) from error
        return record
    if not record.values:
        return composed
    flat = flatten_all(record.values)
    references = {
        place: target
        for place, target in composed.references.items()
        if place in flat and target in flat and flat[place] == flat[target]
    }
    return Record(record.values, composed.choices, references)


def _unresolved(cfg: DictConfig) -> dict[str, Any]:
    """A configuration as a dictionary, with unresolved references."""
    from omegaconf import OmegaConf

    content: Any = OmegaConf.to_container(cfg, resolve=False)
    return content


def _texts(cfg: DictConfig) -> Iterator[str]:
    raw = {name: value for name, value in _unresolved(cfg).items() if name in GROUPS}
    yield from (value for value in flatten_all(raw).values() if isinstance(value, str))


def _words_of_0_1(folder: Path) -> tuple[list[str], str | None]:
    """The words of a run of version 0.1, as far as they are data, and its configuration directory."""
    contents = []
    for name in OF_0_1:
        try:
            contents.append(yaml.safe_load((folder / RECORD.parent / name).read_text(encoding="utf-8")))
        except (OSError, ValueError, RecursionError, yaml.YAMLError):
            contents.append(None)
    words, hydra = contents
    names = {*get_type_hints(Config), "experiment"} - {*CALL}
    words = [word for word in words if isinstance(word, str)] if isinstance(words, list) else []
    words = [
        word for word in words
        if re.split(r"[.=@/]", word.lstrip("+~"))[0] in names and "${" not in word and "@" not in key_of(word)
        and key_of(word) not in CODE
    ]  # fmt: skip
    try:
        sources = [source["path"] for source in hydra["hydra"]["runtime"]["config_sources"]
                   if source["provider"] == "command-line"]  # fmt: skip
    except (TypeError, KeyError):
        sources = []
    return words, next((path for path in sources if isinstance(path, str) and Path(path).is_dir()), None)


@contextmanager
def refusing() -> Iterator[None]:
    """Convert errors of Hydra and OmegaConf to an `InputError` of one sentence."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith(("hydra.", "omegaconf.")):
            raise
        raise InputError(str(error) if str(error).startswith("datxai: ") else sentence(error)) from error


def sentence(error: Exception) -> str:
    """An error of Hydra or OmegaConf as one sentence, with the choices."""
    from hydra.errors import MissingConfigException, OverrideParseException

    chain: list[BaseException] = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    text = " ".join(str(error).split()) or " ".join(str(chain[-1]).split())
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read as SETTING=VALUE; put blanks and brackets in '\"quotes\"'."
    if isinstance(error, MissingConfigException) and error.options is not None and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        options = [option for option in error.options if not option.startswith("_") and not option.endswith("_schema")]
        return f"{group}={name}: no such choice, expected one of {', '.join(options)}."
    if match := re.match(r"Ambiguous value for argument '(.*?)' 1\.|Sweep parameters '(.*?)' requires", text):
        return f"{match[1] or match[2]}: several values, expected one; add -m for a job with each, or give [a,b]."
    override = re.match(r"Could not override '([^'@]+)", text)
    if override and override[1] not in {*setting_names()}:
        return unknown_setting(override[1])
    config_error: Any = next((link for link in reversed(chain) if getattr(link, "full_key", None)), None)
    if config_error is not None:
        return f"{config_error.full_key}: {str(config_error).splitlines()[0].rstrip('.')}."
    if match := re.match(r"In '[^']*': (.*?)(?:Available options|Search path|$)", text):
        text = match[1]
    return text if text.endswith((".", "?")) else f"{text}."


def describe(record: Record) -> str:
    """The settings of a record that differ from the defaults, as on the command line."""
    defaults: dict[str, Any] = {}
    for entry in yaml.safe_load((conf() / f"{PRIMARY}.yaml").read_text(encoding="utf-8"))["defaults"]:
        defaults |= entry if isinstance(entry, dict) else {}
    settings = []
    for group in GROUPS:
        choice = record.choices.get(group, defaults.get(group))
        settings += [f"{group}={say(choice)}"] if choice != defaults.get(group) else []
        as_chosen = _plain_choice(group, str(choice))
        for key, value in flatten(record.values.get(group, {})).items():
            plain = as_chosen.get(key, value)  # the schema has the default of keys not in the file
            is_open = plain == MISSING or "${" in str(plain) or any(isinstance(part, dict) for part in _parts(plain))
            if plain != value and not is_open and f"{group}.{key}" not in record.references:
                settings.append(f"{group}.{key}={say(value)}")
    plain = Config()
    settings += [f"{key}={say(record.values[key])}" for key in ("target", "seed", "base", "applied", "subgroups")
             if key in record.values and record.values[key] != getattr(plain, key)]  # fmt: skip
    return ", ".join(settings) or "the defaults"


def _parts(value: Any) -> list:
    return value if isinstance(value, list) else [value]


def _plain_choice(group: str, name: str) -> dict[str, Any]:
    """The values of an installed choice, as in its files."""
    path = conf() / group / f"{name}.yaml"
    if not re.fullmatch(r"\w+", name) or not path.is_file():
        return {}
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    inherited = [_plain_choice(group, entry) for entry in content.pop("defaults", []) if isinstance(entry, str)]
    return {key: value for values in [*inherited, flatten(content)] for key, value in values.items()}
