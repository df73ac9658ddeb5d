"""The settings that go with a bundle: those that reading needs, without a place of the machine and without code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datxai.bundle.archive import LABELS, NAMES, TEMPLATE
from datxai.errors import InputError
from datxai.record import CODE, Record, flatten

GROUPS = ("data", "grid", "reconstruction", "registration", "atlas", "preprocessing", "network",
          "attribution", "composite")  # of settings, that reading needs  # fmt: skip
CHOSEN = ("attribution", "composite", "target")  # those that a reader may choose anew
OWN_FILES = {("registration", "template"): TEMPLATE, ("atlas", "labels"): LABELS, ("atlas", "names"): NAMES}


def settings_to_hand_on(record: Record) -> tuple[dict[str, Any], dict[str, Path]]:
    """The part of a record that reading needs, without a place of the machine; and the files of the run's own that it
    names, by the members that they become. Code is refused (`InputError`)."""
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


def find_code(values: Mapping[str, Any]) -> str | None:
    """The first setting that names code."""
    found = {name: flatten(values).get(name) for name in CODE}
    return next((f"{name}={value}" for name, value in found.items() if value is not None), None)

