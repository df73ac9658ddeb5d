"""Results of Nazari et al. 2022 (doi:10.1007/s00259-021-05569-9), and the command line of the scripts beside it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from datxai.analysis.classification import summarise
from datxai.errors import InputError
from datxai.findings import Findings
from datxai.run import Run

TABLE1 = {  # set, label, sex: mean age, SD, n
    ("whole", 0, "F"): (67.7, 11.3, 296), ("whole", 0, "M"): (68.7, 11.6, 380),
    ("whole", 1, "F"): (66.7, 11.0, 246), ("whole", 1, "M"): (66.6, 11.0, 374),
    ("train", 0, "F"): (67.6, 11.4, 197), ("train", 0, "M"): (68.7, 11.9, 254),
    ("train", 1, "F"): (66.7, 11.2, 164), ("train", 1, "M"): (66.4, 10.8, 249),
    ("validation", 0, "F"): (68.2, 12.2, 33), ("validation", 0, "M"): (68.3, 9.8, 42),
    ("validation", 1, "F"): (66.8, 10.1, 27), ("validation", 1, "M"): (66.8, 11.9, 42),
    ("test", 0, "F"): (67.6, 10.5, 66), ("test", 0, "M"): (68.8, 11.3, 84),
    ("test", 1, "F"): (66.7, 11.1, 55), ("test", 1, "M"): (66.9, 11.0, 83),
}  # fmt: skip


def _from_counts(tn: int, fp: int, fn: int, tp: int) -> dict:
    return summarise([0] * (tn + fp) + [1] * (fn + tp), [0] * tn + [1] * fp + [0] * fn + [1] * tp)


CNN = _from_counts(tn=148, fp=2, fn=10, tp=128)
ROI_RELEVANCE = _from_counts(tn=144, fp=6, fn=3, tp=135)  # the counts that give the paper's five percentages
INCONSISTENT_FN = 7  # of 10


class Row(NamedTuple):
    """A line of docs/reproduction.md."""

    item: str
    paper: str
    ours: str
    why: str = ""
    HEAD = ("", "paper", "here", "why they differ, or how")


Make = Callable[[Sequence[Findings], Path], Sequence[tuple]]


def main(make: Make, text: str) -> None:
    """Make one item from the command line: RUN_DIR, further runs with different initial weights, and ``--out``."""
    runs, out = parse(argparse.ArgumentParser(description=text, formatter_class=argparse.RawTextHelpFormatter))[:2]
    for row in make(runs, out):
        print("; ".join(f"{head}: {cell}" if head else cell for head, cell in zip(row.HEAD, row) if cell))


def parse(parser: argparse.ArgumentParser) -> tuple[list[Findings], Path, argparse.Namespace]:
    """The runs, the output folder (RUN_DIR/paper by default), and all arguments."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="an evaluated run; then its repeats")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where figures and tables go; default RUN_DIR/paper")
    given = parser.parse_args()
    for folder in given.runs:
        if not folder.is_dir():
            parser.error(f"{folder}: no such folder, expected a run folder (DIR/*/ names the folders in DIR alone)")
    out = given.out or given.runs[0] / "paper"
    out.mkdir(parents=True, exist_ok=True)
    runs = [Findings(Run(folder)) for folder in given.runs]
    for findings in runs:
        try:
            findings.run.entry("train", "examples")
        except InputError as error:
            parser.error(str(error))
        if _tested(findings) != _tested(runs[0]):
            parser.error(f"{findings.run.folder}: its test cases are not those of {runs[0].run.folder}")
    return runs, out, given


def _tested(findings: Findings) -> list[str]:
    return [case["participant_id"] for case in findings.of_set("test")]
