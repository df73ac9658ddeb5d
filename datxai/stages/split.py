"""Training, validation and test set, and the table of their ages."""

from __future__ import annotations

from pathlib import Path

from datxai.cohort.split import TABLE1_COLUMNS, Cases, make_table1, split, split_by_column, split_folds
from datxai.config import Config, describe_split
from datxai.errors import InputError
from datxai.files import write_table
from datxai.findings import Findings
from datxai.run import Run


def depends(settings: Config) -> dict:
    return {"split": describe_split(settings.split), "seed": settings.seed}


def outputs(run: Run) -> list[Path]:
    return [run.split, run.table1]


def make(settings: Config, run: Run) -> None:
    people = list(Findings(run).people.values())
    labels, ages = ([row[name] for row in people] for name in ("label", "age"))
    sexes = [None if row["sex"] == "n/a" else row["sex"] for row in people]
    cases = Cases.of([row["subject"] for row in people], labels, sexes, ages)
    given, seed = settings.split, settings.seed
    if given.kind == "kfold":
        sets = split_folds(cases, given.folds, given.fold, given.validation, given.candidates, seed, given.repeat)
    elif given.kind == "column":
        values = _read_column(people, given.column, run)
        sets = split_by_column(cases, values, given.column, given.test, given.validation, given.candidates, seed)
    else:
        sets = split(cases, given.sizes, given.candidates, seed)
    write_table(run.table1, make_table1(sets, labels, sexes, ages), TABLE1_COLUMNS)
    rows = [{"participant_id": row["participant_id"], "set": name} for row, name in zip(people, sets)]
    write_table(run.split, rows, ["participant_id", "set"])


def _read_column(people: list[dict], column: str, run: Run) -> list[str]:
    """A column of the table of participants, as text."""
    if column not in people[0]:
        raise InputError(
            f"{run.participants}: has no column {column!r}, expected it for split.column={column}; "
            f"there are {', '.join(people[0])}."
        )
    return [str(row[column]) for row in people]
