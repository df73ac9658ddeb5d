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
    if settings.applied is not None:  # the cohort is a test set, except for cases without a label
        sets = [UNLABELLED if row["label"] is None else "test" for row in people]
    else:
        sets = _divide(people, settings, run)
    used = [(row, name) for row, name in zip(people, sets) if name != UNLABELLED]
    table1 = make_table1([name for _, name in used], *_list_demographics([row for row, _ in used]))
    write_table(run.table1, table1, TABLE1_COLUMNS)
    rows = [{"participant_id": row["participant_id"], "set": name} for row, name in zip(people, sets)]
    write_table(run.split, rows, ["participant_id", "set"])


def _divide(people: list[dict], settings: Config, run: Run) -> list[str]:
    """The set of each case, as ``settings.split`` asks for it."""
    cases = Cases.of([row["subject"] for row in people], *_list_demographics(people))
    spec, seed = settings.split, settings.seed
    if spec.kind == "kfold":
        return split_folds(cases, spec.folds, spec.fold, spec.validation, spec.candidates, seed, spec.repeat)
    if spec.kind == "column":
        values = _read_column(people, spec.column, run)
        return split_by_column(cases, values, spec.column, spec.test, spec.validation, spec.candidates, seed)
    return split(cases, spec.sizes, spec.candidates, seed)


def _list_demographics(people: list[dict]) -> tuple[list, list, list]:
    """Labels, sexes (None if unknown) and ages."""
    sexes = [None if row["sex"] == "n/a" else row["sex"] for row in people]
    return [row["label"] for row in people], sexes, [row["age"] for row in people]


def _read_column(people: list[dict], column: str, run: Run) -> list[str]:
    """A column of the table of participants, as text."""
    require_column(people, column, run.participants, f"split.column={column}")
    return [str(row[column]) for row in people]
