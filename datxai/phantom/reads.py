"""Simulated readers: two of them, two sessions each, a third look where one contradicts himself, then consensus."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

READERS = ("reader1", "reader2")
CONSENSUS = "consensus"
CRITERION = (0.735, 0.745)  # putaminal binding, as a fraction of the expected, below which each reads reduced
CASE_SPREAD = 0.0907  # how differently two readers see the same case (log binding)
SESSION_SPREAD = 0.045  # how differently one reader sees it twice


class Read(NamedTuple):
    """One look at one case: 0 normal, 1 reduced."""

    reader: str
    session: int
    read: int


def read_case(apparent: float, rng: np.random.Generator, case_spread: float = CASE_SPREAD) -> tuple[Read, ...]:
    """All reads of a case whose weaker putamen looks like ``apparent`` of what its reader expects (1: normal).

    A reader who contradicts himself looks a third time. Where the readers' majorities differ, they look together,
    and see the case as it is: one read of `CONSENSUS` follows.
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
    """What one reader settles on: the last look, which agrees with the first or decides."""
    return [r.read for r in reads if r.reader == reader][-1]


def settle(reads: tuple[Read, ...]) -> int:
    """The label: what both readers settled on, else their consensus. Both stand last."""
    return reads[-1].read
