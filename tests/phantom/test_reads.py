"""Simulated readers."""

from collections import Counter

import numpy as np
import pytest

from datxai.phantom.reads import CONSENSUS, CRITERION, READERS, read_case, settle


def many(apparent, n=400):
    return [read_case(apparent, np.random.default_rng([1, i])) for i in range(n)]


@pytest.mark.parametrize(("apparent", "label"), [(1.2, 0), (0.4, 1)])
def test_clear_cases_are_read_alike_twice_by_both(apparent, label):
    for reads in many(apparent, 50):
        assert [(r.reader, r.session) for r in reads] == [(reader, s) for reader in READERS for s in (1, 2)]
        assert settle(reads) == label


def test_borderline_cases_follow_the_protocol():
    seen = Counter()
    for reads in many(float(np.mean(CRITERION))):
        votes = {reader: [r.read for r in reads if r.reader == reader] for reader in READERS}
        majority = {}
        for reader, looks in votes.items():
            assert len(looks) == (2 if looks[0] == looks[1] else 3)
            majority[reader] = Counter(looks).most_common(1)[0][0]
        together = [r.read for r in reads if r.reader == CONSENSUS]
        agreed = len(set(majority.values())) == 1
        assert len(together) == (0 if agreed else 1)
        assert settle(reads) == (majority[READERS[0]] if agreed else together[0])
        seen["agreed" if agreed else "together"] += 1
    assert min(seen["agreed"], seen["together"]) > 100


def test_more_is_lost_more_is_called_reduced():
    rates = [np.mean([settle(reads) for reads in many(apparent)]) for apparent in (0.85, 0.78, 0.74, 0.7, 0.63)]
    assert rates == sorted(rates)
    assert rates[0] < 0.1 < 0.9 < rates[-1]
