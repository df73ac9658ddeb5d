"""Division into training, validation and test set, and the table of ages."""

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
    options, seed = settings.split, settings.seed
    if options.kind == "kfold":
        sets = split_folds(
            cases, options.folds, options.fold, options.validation, options.candidates, seed, options.repeat
        )
    elif options.kind == "column":
        values = _read_column(people, options.column, run)
        sets = split_by_column(
            cases, values, options.column, options.test, options.validation, options.candidates, seed
        )
    else:
        sets = split(cases, options.sizes, options.candidates, seed)
    _write(people, sets, make_table1(sets, labels, sexes, ages), run)


def _test_all(people: list[dict], run: Run) -> None:
    """Put all cases with a label into the test set, since another run is applied to them."""
    sets = [UNLABELLED if row["label"] is None else "test" for row in people]
    labelled = [row for row in people if row["label"] is not None]
    labels, ages = ([row[name] for row in labelled] for name in ("label", "age"))
    sexes = [None if row["sex"] == "n/a" else row["sex"] for row in labelled]
    _write(people, sets, make_table1(["test"] * len(labelled), labels, sexes, ages), run)


def _write(people: list[dict], sets: list[str], table1: list[dict], run: Run) -> None:
    write_table(run.table1, table1, TABLE1_COLUMNS)
    rows = [{"participant_id": row["participant_id"], "set": name} for row, name in zip(people, sets)]
    write_table(run.split, rows, ["participant_id", "set"])


def _read_column(people: list[dict], column: str, run: Run) -> list[str]:
    """A column of the table of participants, as text."""
    require_column(people, column, run.participants, f"split.column={column}")
    return [str(row[column]) for row in people]
