"""The settings in a bundle: those needed to read scans, without paths of the machine and without code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datxai.bundle.archive import LABELS, NAMES, TEMPLATE
from datxai.errors import InputError
from datxai.record import CODE, Record, flatten

GROUPS = ("data", "grid", "reconstruction", "registration", "atlas", "preprocessing", "network",
          "attribution", "composite")  # groups of settings needed to read scans  # fmt: skip
CHOSEN = ("attribution", "composite", "target")  # groups that a reader may change
OWN_FILES = {("registration", "template"): TEMPLATE, ("atlas", "labels"): LABELS, ("atlas", "names"): NAMES}


def settings_to_hand_on(record: Record) -> tuple[dict[str, Any], dict[str, Path]]:
    """The part of a record needed to read scans, without paths of the machine, and the run's own files that it names,
    by the members that they become. Raises `InputError` for code."""
    values = {name: dict(record.values[name]) for name in GROUPS} | {"target": record.values["target"]}
    if code := find_code(values):
        raise InputError(
            f"{code} is Python code, which a bundle does not hold; hand the run folder and the code on, or make a run "
            f"without it."
        )
    values["data"] = {"orientation": values["data"].get("orientation", "header")}
    values["network"] |= {"weights": None, "rename": None, "initial": [], "freeze": []}
    files = {}
    for (group, key), name in OWN_FILES.items():
        if (file := values[group].get(key)) is not None:
            files[name], values[group][key] = Path(file), name
    groups = {*GROUPS, "target"} - {"data"}
    links = {
        setting: target
        for setting, target in record.references.items()
        if {setting.partition(".")[0], target.partition(".")[0]} <= groups
    }
    choices = {group: name for group, name in record.choices.items() if group in groups}
    return {"values": values, "choices": choices, "references": links}, files


def find_code(values: Mapping[str, Any]) -> str | None:
    """The first setting that names code, if any."""
    values_of_code = {name: flatten(values).get(name) for name in CODE}
    return next((f"{name}={value}" for name, value in values_of_code.items() if value is not None), None)

