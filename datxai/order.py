"""Parsing of a command line: a pure function from its words to an `Order`.

It reads neither files nor configurations, and imports nothing heavy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from datxai.config import ALL, COMMANDS, DEFAULT, STAGES
from datxai.errors import InputError

HELP, VERSION = "help", "version"
NEED_NO_RUN = ("compare", "reads", "doctor")
FROM_TRAINING_ON = tuple(STAGES)[tuple(STAGES).index("train") :]
PATHS = (  # settings whose value is a path, a pattern of paths, or the name of a folder
    "run", "base", "applied", "scan", "prior", "file", "out", "data.root", "data.participants", "data.collection",
    "data.pattern", "explanation", "registration.template", "atlas.labels", "atlas.names", "composite.rules_from",
    "network.weights",
)  # fmt: skip
FLAGS_WITH_VALUE = (
    "--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd",
    "--info", "-i", "--experimental-rerun",
)  # fmt: skip
SHOWING = ("--cfg", "-c", "--info", "-i")  # the configuration is shown, nothing is run
OF_HYDRA = ("--hydra-help", "--shell-completion", "-sc")  # flags that need no run


@dataclass(frozen=True)
class Order:
    """The task of a command line, its overrides and its flags.

    ``task`` is a stage, a command, all stages (`ALL`), `HELP` (on ``topic``) or `VERSION`. ``words`` are overrides in
    Hydra's grammar, ``flags`` the options with their values.
    """

    task: str
    words: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    topic: str | None = None

    @cached_property
    def given(self) -> Mapping[str, str]:
        """The values of the words by setting."""
        return {key_of(word): _unquote(word.partition("=")[2]) for word in self.words}

    @cached_property
    def explanation(self) -> str:
        """The run's explanation to which the words refer."""
        return self.given.get("explanation", DEFAULT)

    @cached_property
    def sweeps(self) -> bool:
        """Whether there are several jobs, one for each combination of choices between commas."""
        return _sweeps(self.flags, self.words)

    @cached_property
    def shows(self) -> bool:
        """Whether a configuration is shown and nothing is run."""
        return bool({*SHOWING} & {*self.flags})

    @cached_property
    def asks_hydra(self) -> bool:
        """Whether Hydra itself is to answer, with its help or completions."""
        return bool({*OF_HYDRA} & {*self.flags})

    @cached_property
    def leaves_nothing(self) -> bool:
        """Whether no run folder is touched."""
        return self.shows or self.asks_hydra or self.given.get("dry_run") == "true"

    @cached_property
    def config_dir(self) -> str | None:
        """The user's configuration directory, if given."""
        return self.value_of("--config-dir", "-cd")

    def value_of(self, *names: str) -> str | None:
        """The value of an option under any of its ``names``, from the next word or after an equals sign."""
        for flag, following in zip(self.flags, [*self.flags[1:], None]):
            name, equals, value = flag.partition("=")
            if name in names:
                return value if equals else following
        return None


def read_order(arguments: Sequence[str]) -> Order:
    """Parse a command line. Raises `InputError` for a first word that is neither a stage nor a command."""
    words, flags = _separate(["dry_run=true" if word == "--dry-run" else word for word in arguments])
    plain = [word for word in words if "=" not in word and not word.startswith("~")]
    task = plain[0] if plain else ALL
    if task == HELP or {"--help", "-h"} & {*flags}:
        return Order(HELP, topic=next((word for word in plain if word in (*STAGES, *COMMANDS)), None))
    if "--version" in flags:
        return Order(VERSION)
    if task not in (*STAGES, *COMMANDS, ALL):
        raise InputError(_name_what_is_close(task))
    if task in words:
        words.remove(task)
    if task == "compare":
        words = _gather_runs(words)
    if task == "apply":
        task, words = ALL, _name_applied(words)
    if task == "case":
        words = _name_first(words)
    if task in FROM_TRAINING_ON and not any(key_of(word) == "training.seed" for word in words):
        # Cohort and split are those of the run, whatever the seed; only the training still depends on it.
        words = [f"training.{word}" if key_of(word) == "seed" else word for word in words]
    sweeps = _sweeps(flags, words)
    return Order(task, tuple(quote(word, sweeps) for word in words), tuple(flags))


def key_of(word: str) -> str:
    """The setting or group that an override changes."""
    return word.partition("=")[0].lstrip("+~")


def group_of(key: str) -> str:
    """The first part of a setting's name."""
    return key.partition(".")[0]


def quote(word: str, sweeps: bool = False) -> str:
    """An override, quoted if Hydra's grammar requires it: for paths, which may have blanks, commas or umlauts, and for
    values with an equals sign, such as the folders of a sweep."""
    key, _, value = word.partition("=")
    if not value or value == "null" or value[0] in "'\"":
        return word
    is_path = key_of(word) in PATHS and not sweeps  # a sweep may name several, separated by commas
    holds_equals = "=" in value and value[0] not in "[{" and "(" not in value
    if key_of(word) == "scan" and value[0] == "[" and value[-1] == "]":
        return f"{key}={_quote_items(value)}"
    escaped = value.replace("'", r"\'")
    return f"{key}='{escaped}'" if is_path or holds_equals else word


def _quote_items(value: str) -> str:
    """A list of paths with each of them quoted; a path with a comma must be quoted already."""
    items = re.findall(r"""'(?:\\.|[^'])*'|"(?:\\.|[^"])*"|[^,]+""", value[1:-1])
    plain = (_unquote(item.strip()) for item in items if item.strip())
    return "[" + ",".join("'" + item.replace("'", r"\'") + "'" for item in plain) + "]"


def _unquote(value: str) -> str:
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        return value[1:-1].replace("\\" + value[0], value[0])
    return value


def _separate(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Overrides and options: Hydra expects its overrides together, users put them anywhere."""
    words, flags = [], []
    for previous, word in zip([None, *arguments], arguments):
        (flags if previous in FLAGS_WITH_VALUE or word.startswith("-") else words).append(word)
    if "--hydra-help" in flags:  # Hydra's own help does not know our settings
        return [], ["--hydra-help"]
    if {*OF_HYDRA} & {*flags}:  # shell completion needs the words unchanged
        return [], [*arguments]
    return words, flags


def _sweeps(flags: Sequence[str], words: Sequence[str]) -> bool:
    return bool({"-m", "--multirun"} & {*flags}) or "hydra.mode=multirun" in map(str.lower, words)


def _gather_runs(words: list[str]) -> list[str]:
    """The words after ``compare``, with the folders among them, and run=DIR, as one override: runs=[...]."""
    runs = [word for word in words if "=" not in word or word.startswith("run=") or Path(word).is_dir()]
    folders = [_unquote(word.removeprefix("run=")) if not Path(word).is_dir() else word for word in runs]
    named = ",".join("'" + folder.replace("'", r"\'") + "'" for folder in folders)
    return [*(word for word in words if word not in runs), f"runs=[{named}]"]


def _name_applied(words: list[str]) -> list[str]:
    """The words of ``apply``, which runs all stages for another cohort in a separate folder: run=RUN to=DIR become
    applied=RUN run=DIR."""
    keys = {key_of(word) for word in words}
    run_description = "RUN_DIR, the folder of a finished run, or a bundle of one"
    for key, description in (("run", run_description), ("to", "DIR, the folder of what is made")):
        if key not in keys:
            raise InputError(f"`datxai apply` needs {key}={description}.")
    renamed = {"run": "applied", "to": "run"}
    return [f"{renamed.get(key_of(word), key_of(word))}={word.partition('=')[2]}" if key_of(word) in renamed else word
            for word in words]  # fmt: skip


def _name_first(words: list[str]) -> list[str]:
    """The words of ``case``: the first of several explanations is the one for which numbers are given."""
    values = {key_of(word): word.partition("=")[2] for word in words}
    first = values.get("explanations", "").strip("[]").split(",")[0].strip(" '\"")
    return [*words, f"explanation={first}"] if first and "explanation" not in values else words


def _name_what_is_close(task: str) -> str:
    import difflib

    close = difflib.get_close_matches(task, [*STAGES, *COMMANDS, HELP], 1)
    guess = f" (did you mean {close[0]}?)" if close else ""
    return (
        f"'{task}' is neither stage nor command{guess}; the stages are {', '.join(STAGES)}, "
        f"the commands {', '.join(COMMANDS)} (see `datxai --help`)."
    )
