"""What a command line asks for: a pure function from its words to an `Order`.

Nothing is looked up here, neither files nor configurations, and nothing is imported that takes time.
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
SHOWING = ("--cfg", "-c", "--info", "-i")  # something is shown, nothing is made
OF_HYDRA = ("--hydra-help", "--shell-completion", "-sc")  # flags that ask nothing of a run


@dataclass(frozen=True)
class Order:
    """What is to be done, and with which words.

    ``task`` is a stage, a command, all stages (`ALL`), `HELP` (on ``topic``) or `VERSION`. ``words`` are overrides as
    Hydra's grammar takes them, ``flags`` the options with their values.
    """

    task: str
    words: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    topic: str | None = None

    @cached_property
    def given(self) -> Mapping[str, str]:
        """What the words say, setting by setting."""
        return {key_of(word): _unquote(word.partition("=")[2]) for word in self.words}

    @cached_property
    def explanation(self) -> str:
        """Which of a run's explanations the words are about."""
        return self.given.get("explanation", DEFAULT)

    @cached_property
    def sweeps(self) -> bool:
        """Whether there are several jobs, one for each combination of choices between commas."""
        return _sweeps(self.flags, self.words)

    @cached_property
    def shows(self) -> bool:
        """Whether a configuration is to be shown and nothing to be made."""
        return bool({*SHOWING} & {*self.flags})

    @cached_property
    def asks_hydra(self) -> bool:
        """Whether Hydra itself is asked for something: its help, or completions."""
        return bool({*OF_HYDRA} & {*self.flags})

    @cached_property
    def leaves_nothing(self) -> bool:
        """Whether no run folder is touched."""
        return self.shows or self.asks_hydra or self.given.get("dry_run") == "true"

    @cached_property
    def config_dir(self) -> str | None:
        """The configuration directory of one's own, if one is given."""
        return self.value_of("--config-dir", "-cd")

    def value_of(self, *names: str) -> str | None:
        """The value of an option under any of its names, as the word after it or behind an equals sign."""
        for flag, following in zip(self.flags, [*self.flags[1:], None]):
            name, equals, value = flag.partition("=")
            if name in names:
                return value if equals else following
        return None


def read_order(arguments: Sequence[str]) -> Order:
    """What a command line asks for. Raises `InputError` for a first word that is neither stage nor command."""
    words, flags = _part(["dry_run=true" if word == "--dry-run" else word for word in arguments])
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
        # Cohort and split are those of the run, whatever the seed; what the seed is left to choose is the training.
        words = [f"training.{word}" if key_of(word) == "seed" else word for word in words]
    sweeps = _sweeps(flags, words)
    return Order(task, tuple(quote(word, sweeps) for word in words), tuple(flags))


def key_of(word: str) -> str:
    """The setting, or the group, that an override is about."""
    return word.partition("=")[0].lstrip("+~")


def group_of(key: str) -> str:
    """The first part of a setting's name."""
    return key.partition(".")[0]


def quote(word: str, sweeps: bool = False) -> str:
    """An override in quotes where Hydra's grammar needs them: the value is a path, with blanks, commas or umlauts
    maybe, or holds an equals sign, as the folders of a sweep do."""
    key, _, value = word.partition("=")
    if not value or value == "null" or value[0] in "'\"":
        return word
    is_path = key_of(word) in PATHS and not sweeps  # a sweep may name several, and choices between commas
    holds_equals = "=" in value and value[0] not in "[{" and "(" not in value
    if key_of(word) == "scan" and value[0] == "[" and value[-1] == "]":
        return f"{key}={_quote_items(value)}"
    escaped = value.replace("'", r"\'")
    return f"{key}='{escaped}'" if is_path or holds_equals else word


def _quote_items(value: str) -> str:
    """A list of paths with each of them in quotes; a path that holds a comma comes in quotes."""
    items = re.findall(r"""'(?:\\.|[^'])*'|"(?:\\.|[^"])*"|[^,]+""", value[1:-1])
    plain = (_unquote(item.strip()) for item in items if item.strip())
    return "[" + ",".join("'" + item.replace("'", r"\'") + "'" for item in plain) + "]"


def _unquote(value: str) -> str:
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        return value[1:-1].replace("\\" + value[0], value[0])
    return value


def _part(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Overrides and options: Hydra wants its overrides together, a user puts them anywhere."""
    words, flags = [], []
    for before, word in zip([None, *arguments], arguments):
        (flags if before in FLAGS_WITH_VALUE or word.startswith("-") else words).append(word)
    if "--hydra-help" in flags:  # of Hydra alone, which knows none of our settings
        return [], ["--hydra-help"]
    if {*OF_HYDRA} & {*flags}:  # what is to be completed or installed
        return [], [*arguments]
    return words, flags


def _sweeps(flags: Sequence[str], words: Sequence[str]) -> bool:
    return bool({"-m", "--multirun"} & {*flags}) or "hydra.mode=multirun" in map(str.lower, words)


def _gather_runs(words: list[str]) -> list[str]:
    """The words after ``compare``, with the folders among them as one override: runs=[...]; run=DIR is one too."""
    runs = [word for word in words if "=" not in word or word.startswith("run=") or Path(word).is_dir()]
    folders = [_unquote(word.removeprefix("run=")) if not Path(word).is_dir() else word for word in runs]
    named = ",".join("'" + folder.replace("'", r"\'") + "'" for folder in folders)
    return [*(word for word in words if word not in runs), f"runs=[{named}]"]


def _name_applied(words: list[str]) -> list[str]:
    """The words of ``apply``, which is the whole journey of another cohort in a folder of its own: run=RUN to=DIR are
    applied=RUN run=DIR."""
    given = {key_of(word) for word in words}
    whose = "RUN_DIR, the folder of a finished run, or a bundle of one"
    for key, what in (("run", whose), ("to", "DIR, the folder of what is made")):
        if key not in given:
            raise InputError(f"`datxai apply` needs {key}={what}.")
    renamed = {"run": "applied", "to": "run"}
    return [f"{renamed.get(key_of(word), key_of(word))}={word.partition('=')[2]}" if key_of(word) in renamed else word
            for word in words]  # fmt: skip


def _name_first(words: list[str]) -> list[str]:
    """The words of ``case``: of several explanations the first is the one that the numbers are of."""
    given = {key_of(word): word.partition("=")[2] for word in words}
    first = given.get("explanations", "").strip("[]").split(",")[0].strip(" '\"")
    return [*words, f"explanation={first}"] if first and "explanation" not in given else words


def _name_what_is_close(task: str) -> str:
    import difflib

    close = difflib.get_close_matches(task, [*STAGES, *COMMANDS, HELP], 1)
    guess = f" (did you mean {close[0]}?)" if close else ""
    return (
        f"'{task}' is neither stage nor command{guess}; the stages are {', '.join(STAGES)}, "
        f"the commands {', '.join(COMMANDS)} (see `datxai --help`)."
    )
