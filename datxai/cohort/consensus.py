"""Visual reads of scans by two readers, their consensus, and their agreement."""

from __future__ import annotations

import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

import numpy as np

from datxai.errors import InputError
from datxai.files import read_table

COLUMNS = ("participant_id", "reader", "session", "read")
CONSENSUS_READER = "consensus"
READS = {"0": 0, "normal": 0, "1": 1, "reduced": 1, "excluded": None}
MISSING = {"", "n/a"}


@dataclass(frozen=True)
class RecordedRead:
    """One read: 0 normal, 1 reduced, None excluded (atypical; only by the reader 'consensus')."""

    participant_id: str
    reader: str
    session: int
    read: int | None


@dataclass(frozen=True)
class Kappa:
    """Cohen's kappa, its standard error, two-sided p-value for kappa = 0, proportion of agreement, and n."""

    kappa: float
    standard_error: float
    p_value: float
    agreement: float
    n: int


@dataclass(frozen=True)
class Consensus:
    """The consensus of two readers.

    ``rows`` has one entry per participant, in order of appearance: participant_id, ``read_<reader>`` with the
    intra-reader consensus of each reader, label, status ('agreed', 'consensus', 'excluded' or 'to read') and to_read,
    the reads that are still missing. ``intra_reader`` gives for each reader the number of scans read in both sessions
    and in how many of them the sessions disagree. ``kappa`` is between the readers' intra-reader consensuses where
    both are complete, including excluded scans; None if there are none.
    """

    readers: tuple[str, str]
    rows: list[dict]
    intra_reader: dict[str, dict[str, int]]
    kappa: Kappa | None

    @property
    def labels(self) -> dict[str, int]:
        """Label by participant, for those who have one."""
        return {row["participant_id"]: row["label"] for row in self.rows if row["label"] is not None}

    @property
    def columns(self) -> list[str]:
        """Keys of a row."""
        return ["participant_id", *map(_column, self.readers), "label", "status", "to_read"]

    def summarise(self) -> dict:
        """Agreement and outstanding reads, as plain counts and lists of participants."""
        to_read = defaultdict(list)
        for row in self.rows:
            for occasion in row["to_read"].split(", ") if row["to_read"] else ():
                to_read[occasion].append(row["participant_id"])
        labels = Counter(self.labels.values())
        inter_reader = {"n": 0, "disagreed": 0}
        if self.kappa:
            inter_reader = asdict(self.kappa) | {"disagreed": round((1 - self.kappa.agreement) * self.kappa.n)}
        return {
            "cases": len(self.rows),
            "normal": labels[0],
            "reduced": labels[1],
            "readers": list(self.readers),
            "intra_reader": self.intra_reader,
            "inter_reader": inter_reader,
            "to_read": dict(sorted(to_read.items())),
            "excluded": [row["participant_id"] for row in self.rows if row["status"] == "excluded"],
        }


def read_reads(path: str | os.PathLike) -> list[RecordedRead]:
    """Reads from a table (participant_id, reader, session, read).

    ``session`` is 1, 2 or 3 (ignored for the reader 'consensus'). ``read`` is 0 or normal, 1 or
    reduced; 'excluded' is for atypical scans, in rows of the reader 'consensus' only.
    """
    table = read_table(path)
    if not table:
        raise InputError(f"{path}: has a header but no rows, expected one row per read.")
    if missing := [name for name in COLUMNS if name not in table[0]]:
        raise InputError(
            f"{path}: has no column {missing[0]!r}, expected {', '.join(COLUMNS)}; rename the columns of the table."
        )
    reads = []
    for row in table:
        common = row["reader"] == CONSENSUS_READER
        where = f"{path}: participant {row['participant_id']!r}, reader {row['reader']!r}"
        if row["participant_id"].lower() in MISSING or row["reader"].lower() in MISSING:
            raise InputError(f"{where}: participant or reader is missing, expected both; complete the row.")
        read = row["read"].lower()
        if read not in READS or (READS[read] is None and not common):
            raise InputError(
                f"{where}: read is {row['read']!r}, expected 0 or normal, 1 or reduced (or excluded, by "
                f"'{CONSENSUS_READER}'); correct it, or remove the row if the scan is still to be read."
            )
        if not common and row["session"] not in ("1", "2", "3"):
            raise InputError(f"{where}: session is {row['session']!r}, expected 1, 2 or 3; correct it.")
        session = 1 if common else int(row["session"])
        reads.append(RecordedRead(row["participant_id"], row["reader"], session, READS[read]))
    return reads


def reach_consensus(reads: Iterable[RecordedRead], source: object = "reads") -> Consensus:
    """Consensus of two readers who read every scan in two sessions (Nazari et al. 2022).

    A reader whose two sessions differ reads a third time, and the majority counts. Where the readers differ, a common
    read (reader 'consensus') decides; it may exclude the scan, and it takes precedence wherever it exists. Missing
    sessions are still to be read. ``source`` is named in errors.
    """
    by_participant: dict[str, dict[str, dict[int, int | None]]] = defaultdict(lambda: defaultdict(dict))
    for read in reads:
        sessions = by_participant[read.participant_id][read.reader]
        if read.session in sessions:
            raise InputError(
                f"{source}: participant {read.participant_id!r} was read twice by {read.reader!r} in session "
                f"{read.session}, expected once; remove one row."
            )
        sessions[read.session] = read.read
    readers = sorted({reader for by_reader in by_participant.values() for reader in by_reader} - {CONSENSUS_READER})
    if len(readers) != 2:
        raise InputError(
            f"{source}: has {len(readers)} readers ({', '.join(readers) or 'none'}), expected two, and "
            f"'{CONSENSUS_READER}' for their common reads; rename or remove rows."
        )
    rows = [_conclude(identity, by_reader, readers) for identity, by_reader in by_participant.items()]
    pairs = [[row[_column(reader)] for reader in readers] for row in rows]
    complete = np.array([pair for pair in pairs if None not in pair], dtype=int).reshape(-1, 2)
    kappa = measure_kappa(*complete.T) if len(complete) else None
    intra_reader = {}
    for reader in readers:
        read_twice = [s for by_reader in by_participant.values() if {1, 2} <= (s := by_reader.get(reader, {})).keys()]
        disagreed = sum(sessions[1] != sessions[2] for sessions in read_twice)
        intra_reader[reader] = {"n": len(read_twice), "disagreed": disagreed}
    return Consensus((readers[0], readers[1]), rows, intra_reader, kappa)


def measure_kappa(first: Iterable[int], second: Iterable[int]) -> Kappa:
    """Cohen's kappa of two raters' categories.

    Standard error and, for the p-value, the standard error under independence are the large-sample ones of
    Fleiss, Cohen and Everitt 1969 (doi:10.1037/h0028106). Values are NaN where undefined because a rater uses only
    one category.
    """
    first, second = np.asarray(first), np.asarray(second)
    categories = np.union1d(first, second)
    n = len(first)
    p = np.array([[np.mean((first == a) & (second == b)) for b in categories] for a in categories])
    rows, columns = p.sum(axis=1), p.sum(axis=0)
    observed, expected = float(np.trace(p)), float(rows @ columns)
    if len(categories) < 2:
        return Kappa(math.nan, math.nan, math.nan, observed, n)
    kappa = (observed - expected) / (1 - expected)
    # Weights of p_ij in the gradient of kappa: (1 - kappa) (p_.i + p_j.), subtracted from 1 on the diagonal.
    gradient = np.eye(len(p)) - (1 - kappa) * (columns[:, None] + rows[None, :])
    variance = ((p * gradient**2).sum() - (kappa - expected * (1 - kappa)) ** 2) / (1 - expected) ** 2
    null = expected + expected**2 - (rows * columns * (rows + columns)).sum()
    standard_error = math.sqrt(max(variance, 0.0) / n)
    p_value = math.nan
    if min(np.count_nonzero(rows), np.count_nonzero(columns)) > 1:
        z = kappa * (1 - expected) / math.sqrt(null / n)
        p_value = math.erfc(abs(z) / math.sqrt(2))
    return Kappa(kappa, standard_error, p_value, observed, n)


def _column(reader: str) -> str:
    return f"read_{reader}"


def _conclude(identity: str, by_reader: Mapping[str, Mapping[int, int | None]], readers: list[str]) -> dict:
    """The row of one participant from their reads by reader and session."""
    settled = {reader: _settle(by_reader.get(reader, {})) for reader in readers}
    to_read = [f"{reader} session {session}" for reader, (_, missing) in settled.items() for session in missing]
    reads = [read for read, _ in settled.values()]
    common = by_reader.get(CONSENSUS_READER, {})
    label, status = None, "to read"
    if common:
        label = common[1]
        status, to_read = ("excluded" if label is None else "consensus"), []
    elif not to_read and reads[0] == reads[1]:
        label, status = reads[0], "agreed"
    elif not to_read:
        to_read = [CONSENSUS_READER]
    return {
        "participant_id": identity,
        **dict(zip(map(_column, readers), reads)),
        "label": label,
        "status": status,
        "to_read": ", ".join(to_read),
    }


def _settle(sessions: Mapping[int, int | None]) -> tuple[int | None, list[int]]:
    """(intra-reader consensus or None, sessions still to be read)."""
    if missing := [session for session in (1, 2) if session not in sessions]:
        return None, missing
    if sessions[1] == sessions[2]:
        return sessions[1], []
    return (sessions[3], []) if 3 in sessions else (None, [3])
