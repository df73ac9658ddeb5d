"""Training, validation and test set, and the table of their ages."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from datxai.cohort.split import TABLE1_COLUMNS, make_table1, split
from datxai.config import Config
from datxai.files import write_table
from datxai.findings import Findings
from datxai.run import Run


def depends(settings: Config) -> dict:
    return {"split": asdict(settings.split), "seed": settings.seed}


def outputs(run: Run) -> list[Path]:
    return [run.split, run.table1]


def make(settings: Config, run: Run) -> None:
    people = list(Findings(run).people.values())
    labels, ages = ([row[name] for row in people] for name in ("label", "age"))
    sexes = [None if row["sex"] == "n/a" else row["sex"] for row in people]
    sizes, candidates = settings.split.sizes, settings.split.candidates
    sets = split([row["subject"] for row in people], labels, sexes, ages, sizes, candidates, settings.seed)
    write_table(run.table1, make_table1(sets, labels, sexes, ages), TABLE1_COLUMNS)
    rows = [{"participant_id": row["participant_id"], "set": name} for row, name in zip(people, sets)]
    write_table(run.split, rows, ["participant_id", "set"])
