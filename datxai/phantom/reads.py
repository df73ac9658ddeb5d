"""Simulated reads: two readers, two sessions each, a third if a reader's sessions differ, then consensus."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

READERS = ("reader1", "reader2")
CONSENSUS = "consensus"
CRITERION = (0.735, 0.745)  # putaminal binding, as a fraction of the expected, below which each reader reads reduced
CASE_SPREAD = 0.0907  # standard deviation between readers of the same case (log binding)
SESSION_SPREAD = 0.045  # standard deviation between sessions of one reader (log binding)


class Read(NamedTuple):
    """One read of one case: 0 normal, 1 reduced."""

    reader: str
    session: int
    read: int


def read_case(apparent: float, rng: np.random.Generator, case_spread: float = CASE_SPREAD) -> tuple[Read, ...]:
    """All reads of a case whose weaker putamen has the fraction ``apparent`` of the expected binding (1: normal).

    A reader whose two sessions differ reads a third time. Where the readers' majorities differ, one joint read of
    `CONSENSUS` follows, which sees the case without error.
    """
    reads: list[Read] = []
    for reader, criterion in zip(READERS, CRITERION):
        margin = np.log(criterion / apparent) + case_spread * rng.standard_normal()
        looks = (margin + SESSION_SPREAD * rng.standard_normal(3) > 0).astype(int)
        sessions = 2 if looks[0] == looks[1] else 3
        reads += [Read(reader, session + 1, int(looks[session])) for session in range(sessions)]
    if len({majority(reads, reader) for reader in READERS}) > 1:
        reads.append(Read(CONSENSUS, 1, int(apparent < np.mean(CRITERION))))
    return tuple(reads)


def majority(reads: tuple[Read, ...] | list[Read], reader: str) -> int:
    """The majority of one reader's reads: the last one, which agrees with the first or decides."""
    return [r.read for r in reads if r.reader == reader][-1]


def settle(reads: tuple[Read, ...]) -> int:
    """The label: the last read, which is the readers' agreement or else their consensus."""
    return reads[-1].read
