"""Reproduce all results of Nazari et al. 2022 from a run folder, and write docs/reproduction.md.

    datxai run=RUN_DIR
    python examples/reproduce.py RUN_DIR [REPEAT_DIR ...] [--out DIR] [--markdown docs/reproduction.md]

Repeats are runs with the same test cases and different initial weights (`datxai -m base=RUN_DIR run=DIR
training.seed=1,2,3,4`). The sign of the relevance is included if `sign_of_relevance.py` has been run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import classification
import comparison
import errors
import figure3
import figure4
import figure5
import peaks
import regions
import repeats
import sign_of_relevance
import supplement1
import table1
from nazari2021 import parse

from datxai.config import STAGES
from datxai.files import write_text

ITEMS = {
    "Table 1": table1,
    "Classification": classification,
    "Fig. 3": figure3,
    "Supplementary Fig. 1": supplement1,
    "Fig. 4": figure4,
    "Fig. 5": figure5,
    "Most relevant voxel": peaks,
    "Conventional classifiers": comparison,
    "Repeats": repeats,
    "Detecting misclassified cases": errors,
    "Relevance by region": regions,
    "Sign of the relevance": sign_of_relevance,
}
HEAD = """\
# The paper, reproduced

Made by `python examples/reproduce.py RUN_DIR {repeats}--markdown docs/{page}`; do not edit.

The values of Nazari et al. 2022 ([doi:10.1007/s00259-021-05569-9](https://doi.org/10.1007/s00259-021-05569-9)) next to
those of this run: {n} scans ({kind}), grid of {grid} voxels, {tested} test cases. Explained
output: `{target}`; start: `{start}`. Percentages with 95 % intervals.
{caution}"""
PHANTOM = """
**Everything on this page rests on the digital phantom ([phantom.md](phantom.md)), not on patients.** It shows that the
methods run and how they behave, not how useful they are in the clinic. The readers are simulated, and the difficulty
is that of the phantom.
"""


def make(runs, out) -> dict[str, list]:
    """Every item's rows, by its title; figures and tables are written to ``out``."""
    made = {}
    for title, item in ITEMS.items():
        if item is sign_of_relevance and not all(item.is_made(run, runs[0], out) for run in runs):
            print(f"{title}: left out, run sign_of_relevance.py first")
            continue
        print(title)
        made[title] = item.make(runs, out)
    return made


def tabulate(title, lines, note="") -> str:
    """A part of a page: heading, note, and a table whose first line is its header."""
    header, *rows = lines
    table = ["| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *rows)]
    return "\n".join([f"\n## {title}\n", *([note, ""] if note else []), *table, ""])


def write_markdown(path, runs, made) -> None:
    findings = runs[0]
    kind = next(iter(findings.run.entries())) == next(iter(STAGES))
    text = HEAD.format(
        repeats="REPEAT_DIR ... " if len(runs) > 1 else "",
        page=Path(path).name,
        n=len(findings.people),
        kind="phantom" if kind else "own data",
        grid=" x ".join(map(str, findings.store.shape)),
        tested=len(findings.tested),
        target=findings.metrics["target"],
        start=findings.metrics["attribution"]["start"],
        caution=PHANTOM if kind else "",
    )
    for title, rows in made.items():
        if rows:
            text += tabulate(title, [rows[0].HEAD, *rows], getattr(ITEMS[title], "NOTE", ""))
    write_text(path, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--markdown", metavar="FILE", help="also write the comparison as a page")
    runs, out, given = parse(parser)
    made = make(runs, out)
    if given.markdown:
        write_markdown(given.markdown, runs, made)


if __name__ == "__main__":
    main()
