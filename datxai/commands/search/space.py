"""The search space: settings, each with a distribution such as ``log(1e-5, 1e-2)``."""

from __future__ import annotations

import contextlib
import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Literal

from datxai.commands.search.trials import require_optuna
from datxai.config import Config, Search, unknown_setting
from datxai.errors import InputError
from datxai.record import flatten

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

# Groups of settings that a search can vary, and the first stage in which a trial then differs from its base.
STAGE_OF = {
    **dict.fromkeys(("grid", "reconstruction", "registration", "atlas", "preprocessing"), "preprocess"),
    **dict.fromkeys(("network", "training"), "train"),
}
OBJECTIVES: dict[str, Literal["minimize", "maximize"]] = {"loss": "minimize", "auc": "maximize", "accuracy": "maximize"}
EXPRESSION = re.compile(r"\s*(uniform|log|integer|choice)\s*\((.*)\)\s*", re.S)


def read_space(options: Search, settings: Config) -> dict[str, BaseDistribution]:
    """The distributions by setting. Raises `InputError` for unknown settings and invalid distributions."""
    if not isinstance(options.space, (dict, type(None))):
        raise InputError(f"search.space is {options.space}, expected settings with spaces: {{SETTING: 'log(1, 2)'}}.")
    if options.objective not in OBJECTIVES:
        raise InputError(f"search.objective is {options.objective}, expected one of {', '.join(OBJECTIVES)}.")
    if options.pruning not in ("median", "none"):
        raise InputError(f"search.pruning is {options.pruning}, expected median or none.")
    if options.trials < 1 or options.processes < 1:
        raise InputError("search.trials and search.processes: expected 1 or more of each.")
    if not re.fullmatch(r"[A-Za-z0-9][\w-]{0,63}", options.name):
        raise InputError(f"search.name is {options.name}, expected letters, digits, - and _; change search.name=NAME.")
    require_optuna()
    existing, space = flatten(asdict(settings)), {}
    for key, text in (options.space or {}).items():
        if text is None:
            continue
        group = key.partition(".")[0]
        is_argument = key.startswith("network.arguments.") and settings.network.architecture != "plain"
        if key not in existing and not is_argument:
            raise InputError(f"search.space: {unknown_setting(key)}")
        if group not in STAGE_OF:
            raise InputError(f"search.space: {key} changes no training, expected settings of {', '.join(STAGE_OF)}.")
        space[key] = _parse(key, str(text))
    if not space:
        raise InputError(
            "search.space is empty, expected settings with spaces, as in {network.dropout: 'uniform(0, 0.5)'}."
        )
    return space


def _parse(key: str, text: str) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    match = EXPRESSION.fullmatch(text)
    values = [_parse_value(word.strip()) for word in match[2].split(",") if word.strip()] if match else []
    kind = match[1] if match else None
    try:
        if kind == "choice" and values:
            return CategoricalDistribution(values)
        low, high = (value for value in values if isinstance(value, (int, float)))
        if kind == "integer":
            return IntDistribution(int(low), int(high))
        return FloatDistribution(float(low), float(high), log=kind == "log")
    except (TypeError, ValueError) as error:
        raise InputError(
            f"search.space: {key} is {text!r}, expected uniform(LOW, HIGH), log(LOW, HIGH), integer(LOW, HIGH) or "
            f"choice(A, B, ...), with LOW below HIGH, and above 0 for log."
        ) from error


def _parse_value(text: str) -> bool | int | float | str | None:
    constants = {"null": None, "true": True, "false": False}
    if text in constants:
        return constants[text]
    for number in (int, float):
        with contextlib.suppress(ValueError):
            return number(text)
    return text.strip("'\"")
