"""The change of a map with a lesion, on numbers made by hand."""

import numpy as np
import pytest

from datxai.errors import InputError
from datxai.metrics.lesion import follow_lesion, measure_change


def test_the_change_of_a_map_is_shared_out():
    brain, lesion = np.zeros((4, 4, 4), bool), np.zeros((4, 4, 4), bool)
    brain[:3], lesion[0, 0, :2] = True, True
    healthy = np.where(brain, 1.0, 50.0)
    lesioned = healthy.copy()
    lesioned[0, 0, 0], lesioned[2, 2, 2], lesioned[3, 3, 3] = -2.0, 0.0, 9.0  # outside the brain nothing counts
    found = measure_change(lesioned, healthy, lesion, brain)
    assert found["share"] == pytest.approx(3 / 4)
    assert found["density"] == pytest.approx((3 / 2) / ((46 + 2) / 48))
    assert measure_change(healthy, healthy, lesion, brain) == {"share": None, "density": 0.0}


def test_a_change_counts_towards_what_the_lesion_raises():
    brain, lesion = np.ones((4, 4, 4), bool), np.zeros((4, 4, 4), bool)
    lesion[1, 1, 1:3] = True
    healthy, lesioned = np.ones((2, 4, 4, 4))
    lesioned[1, 1, 1], lesioned[1, 1, 2], lesioned[3, 3, 3] = 3.0, 2.0, -9.0
    given = (lesioned, healthy, lesion, brain, (4.0, 4.0, 4.0))
    assert follow_lesion(*given, 0.5, True) == {"seen_share": pytest.approx(3 / 13), "seen_rank": 1, "seen_point": 1}
    assert follow_lesion(*given, -0.5, True)["seen_point"] == 0
    assert set(follow_lesion(*given, 0.01, False)) == {"unseen_density"}


@pytest.mark.parametrize("value", [0.0, 3.0, np.nan, np.inf])
def test_a_map_that_says_nothing_has_no_numbers(value):
    brain, lesion = np.ones((4, 4, 4), bool), np.zeros((4, 4, 4), bool)
    lesion[1, 1, 1:3] = True
    map_, silent = np.random.default_rng(0).normal(size=(4, 4, 4)), np.full((4, 4, 4), value)
    pairs = [(silent, map_), (silent, silent)] + [(map_, silent)] * (not np.isfinite(value))
    for lesioned, healthy in pairs:
        assert measure_change(lesioned, healthy, lesion, brain) == {"share": None, "density": None}
        seen, unseen = (
            follow_lesion(lesioned, healthy, lesion, brain, (4.0, 4.0, 4.0), 0.5, seen) for seen in (True, False)
        )
        assert all(number is None or np.isnan(number) for number in [*seen.values(), *unseen.values()])
        assert len(seen) == 3 and len(unseen) == 1


def test_a_lesion_outside_the_brain_is_refused():
    brain, lesion = np.zeros((4, 4, 4), bool), np.zeros((4, 4, 4), bool)
    brain[:2], lesion[3] = True, True
    with pytest.raises(InputError, match="no voxel in the brain"):
        measure_change(brain + 0.0, lesion + 0.0, lesion, brain)
