"""Training, validation and test set, and the table of their ages."""

from __future__ import annotations

from pathlib import Path

from datxai.cohort.split import TABLE1_COLUMNS, Cases, make_table1, split, split_by_column, split_folds
from datxai.cohort.table import require_column
from datxai.config import Config, describe_split
from datxai.files import write_table
from datxai.findings import UNLABELLED, Findings
from datxai.run import Run


def depends(settings: Config) -> dict:
    if settings.applied is not None:
        return {"tested": "all with a label"}
    return {"split": describe_split(settings.split), "seed": settings.seed}


def outputs(run: Run) -> list[Path]:
    return [run.split, run.table1]


def make(settings: Config, run: Run) -> None:
    people = list(Findings(run).people.values())
    if settings.applied is not None:
        _test_all(people, run)
        return
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


def _test_all(people: list[dict], run: Run) -> None:
    """Another run is applied to all cases: a test set, but for those without a label."""
    sets = [UNLABELLED if row["label"] is None else "test" for row in people]
    known = [row for row in people if row["label"] is not None]
    labels, ages = ([row[name] for row in known] for name in ("label", "age"))
    sexes = [None if row["sex"] == "n/a" else row["sex"] for row in known]
    write_table(run.table1, make_table1(["test"] * len(known), labels, sexes, ages), TABLE1_COLUMNS)
    rows = [{"participant_id": row["participant_id"], "set": name} for row, name in zip(people, sets)]
    write_table(run.split, rows, ["participant_id", "set"])


def _read_column(people: list[dict], column: str, run: Run) -> list[str]:
    """A column of the table of participants, as text."""
    require_column(people, column, run.participants, f"split.column={column}")
    return [str(row[column]) for row in people]
