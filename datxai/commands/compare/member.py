"""The runs that are compared: each with its predictions by person, and their common cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from datxai.config import DEFAULT, require_name
from datxai.errors import InputError
from datxai.files import hash_content
from datxai.findings import Findings
from datxai.run import Run
from datxai.volume import Volume

PERSON = ("participant_id", "subject", "age", "sex", "label")  # identify a case across runs


@dataclass(frozen=True)
class Member:
    """One of the runs compared."""

    name: str
    findings: Findings

    @property
    def run(self) -> Run:
        return self.findings.run

    @property
    def metrics(self) -> dict:
        return self.findings.metrics

    @cached_property
    def cases(self) -> dict[tuple, dict]:
        """The predictions by `PERSON`."""
        people = self.findings.people
        return {
            tuple(people[case["participant_id"]].get(key) for key in PERSON): case for case in self.findings.predictions
        }

    def of_set(self, name: str) -> set[tuple]:
        return {person for person, case in self.cases.items() if case["set"] == name}

    def probabilities(self, people: Sequence[tuple]) -> np.ndarray:
        """The calibrated probability of reduced."""
        return self.findings.calibrate([self.cases[person]["margin"] for person in people])

    def map_of(self, person: tuple) -> Volume:
        """The relevance map of a case."""
        return self.findings.map_of(person[0])

    @cached_property
    def split(self) -> dict:
        """The settings of its split; empty if they are not recorded, or if all cases are tested."""
        entry = self.run.find("split")
        return {} if entry is None else entry["config"].get("split", {})

    @property
    def apart_from_fold(self) -> str:
        """A hash of everything that its network was made from, except for the tested cases and seeds."""
        scans, training = self.run.find("preprocess") or {}, self.run.entry("train", "compare")["config"]
        split = {name: value for name, value in self.split.items() if name not in ("fold", "repeat", "test")}
        recipe = {name: value for name, value in training.get("training", {}).items() if name != "seed"}
        return hash_content([scans.get("fingerprint"), split, {**training, "training": recipe}])

    def fingerprint(self, stage: str) -> str:
        return self.run.entry(stage, "compare")["fingerprint"]


def find_members(paths: Sequence[Path], explanation: str, full: bool) -> list[Member]:
    """The evaluated runs among these paths and within these folders, each once, with the maps of ``explanation``."""
    require_name(explanation)
    folders: dict[Path, None] = {}
    option = "" if explanation == DEFAULT else f" explanation={explanation}"
    for path in paths:
        if not path.is_dir():
            raise InputError(f"{path}: no such folder, expected a run folder or that of a sweep.")
        within = [manifest.parent for manifest in sorted(path.glob("*/manifest.json"))]
        evaluated = [folder for folder in [path, *within] if Run(folder, explanation, full).holds("evaluate")]
        for folder in sorted({*within} - {*evaluated}):
            print(f"{folder}: left out, it has not been evaluated; `datxai run='{folder}'{option}` goes on with it")
        if not evaluated:
            raise InputError(f"{path}: no evaluated run, and none within it; run `datxai run={path}{option}` first.")
        folders |= dict.fromkeys(evaluated)
    base_names = [folder.resolve().name for folder in folders]
    names = [str(folder) if base_names.count(name) > 1 else name for folder, name in zip(folders, base_names)]
    members = [Member(name, Findings(Run(folder, explanation, full))) for name, folder in zip(names, folders)]
    for member in members:
        member.run.entry("evaluate", "compare")
    different = differ_in(members, "evaluate")
    for member in members:
        if member not in different:
            print(f"{member.run.folder}: left out, it is the same as another run")
    if len(different) < 2:
        raise InputError(f"{', '.join(map(str, paths))}: one run only, expected two or more that differ.")
    return different


def differ_in(members: Sequence[Member], stage: str) -> list[Member]:
    """The first member of each group that made a stage from the same settings and inputs."""
    first: dict[str, Member] = {}
    for member in members:
        first.setdefault(member.fingerprint(stage), member)
    return list(first.values())


def find_common(members: Sequence[Member], name: str) -> tuple[list[tuple], list[str]]:
    """The cases that are in this set in every run, and a remark if there are others."""
    sets = [member.of_set(name) for member in members]
    common = set.intersection(*sets)
    remarks = []
    if any(people != common for people in sets):
        sizes = ", ".join(str(len(people)) for people in sets)
        remarks.append(f"The {name} sets differ ({sizes} cases); the {len(common)} cases in all of them are compared.")
    return [person for person in members[0].cases if person in common], remarks
