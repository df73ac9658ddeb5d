"""Consensus of two readers from a table of their reads: their agreement, and which cases must be read again."""

from __future__ import annotations

from math import isnan
from pathlib import Path

from datxai.cohort.consensus import reach_consensus, read_reads
from datxai.config import Config
from datxai.errors import InputError
from datxai.files import write_json, write_table
from datxai.run import Run


def run(settings: Config, folder: Run) -> None:
    """Print the consensus of the reads in ``settings.file``; with ``settings.out``, also write it.

    That folder then holds ``consensus.tsv``, a table of participants with labels, and ``agreement.json``.
    """
    if settings.file is None:
        raise InputError("file has no value; give the table of reads as file=READS.tsv.")
    consensus = reach_consensus(read_reads(settings.file), settings.file)
    summary = consensus.summarise()
    print("\n".join(_describe(summary)))
    if settings.out is not None:
        out = Path(settings.out)
        write_table(out / "consensus.tsv", consensus.rows, consensus.columns)
        write_json(out / "agreement.json", summary)


def _describe(summary: dict) -> list[str]:
    """The lines to print for the result of `Consensus.summarise`."""
    lines = [f"{summary['cases']} cases: {summary['normal']} normal, {summary['reduced']} reduced"]
    for reader, reads in summary["intra_reader"].items():
        lines.append(f"Intra-reader disagreement of {reader}: {_describe_disagreement(reads)}")
    between = summary["inter_reader"]
    lines.append(f"Inter-reader disagreement: {_describe_disagreement(between)}")
    if between["n"] and isnan(between["kappa"]):
        lines.append("Cohen's kappa is not defined: one category only")
    elif between["n"]:
        kappa, error, p = between["kappa"], between["standard_error"], between["p_value"]
        lines.append(f"Cohen's kappa {kappa:.3f} (SE {error:.3f}, p {'< 0.0005' if p < 0.0005 else f'= {p:.3g}'})")
    for occasion, people in summary["to_read"].items():
        lines.append(f"To be read by {occasion}: {len(people)} ({', '.join(people)})")
    lines.append(f"Excluded: {len(summary['excluded'])} ({', '.join(summary['excluded']) or 'none'})")
    return lines


def _describe_disagreement(reads: dict) -> str:
    n, disagreed = reads["n"], reads["disagreed"]
    return f"{disagreed} of {n}" + (f" ({disagreed / n:.1%})" if n else "")
