import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from datxai.analysis.relevance import MeanMap, check_consistency, find_peak, make_heat_map, summarise_peaks
from datxai.volume import Grid

ROUNDING = 1e-12
GRID = Grid.axis_aligned((12, 10, 8), (2.0, 3.0, 4.0), (-11.0, -20.0, -6.0))


@pytest.fixture
def striatum():
    mask = np.zeros(GRID.shape, bool)
    mask[3:5, 4:7, 3:5] = mask[7:9, 4:7, 3:5] = True
    return mask


@given(st.tuples(*(st.integers(0, n - 1) for n in GRID.shape)), st.sampled_from([-3.0, 3.0]))
def test_peak_position_and_distance(index, value):
    mask = np.zeros(GRID.shape, bool)
    mask[3:5, 4:7, 3:5] = True
    relevance = np.random.default_rng(0).uniform(-1, 1, GRID.shape)
    relevance[index] = value
    peak = find_peak(relevance, GRID, mask)
    assert [peak[axis] for axis in "xyz"] == pytest.approx(
        [-11 + 2 * index[0], -20 + 3 * index[1], -6 + 4 * index[2]], abs=ROUNDING
    )
    distances = ndimage.distance_transform_edt(~mask, sampling=GRID.spacing)
    assert peak["distance_mm"] == pytest.approx(distances[index], abs=1e-9)
    assert peak["value"] == value
    assert peak["inside"] == mask[index] == (peak["distance_mm"] == 0)


def test_a_map_of_zeros_has_no_peak(striatum):
    peak = find_peak(np.zeros(GRID.shape), GRID, striatum)
    assert peak["x"] is peak["distance_mm"] is None
    assert not peak["inside"]


def test_summary_of_peaks():
    peaks = [{"distance_mm": d, "inside": d == 0} for d in (0.0, 0.0, 3.0, 9.0, None)]
    expected = {"n": 5, "inside": 2, "near": 3, "near_mm": 4.0, "median_distance_mm": 1.5}
    assert summarise_peaks(peaks) == expected
    assert summarise_peaks([])["median_distance_mm"] is None


def test_mean_map_equals_that_of_all_maps_at_once():
    maps = np.random.default_rng(2).normal(1e3, 1e-2, (17, *GRID.shape)).astype(np.float32)
    running = MeanMap()
    assert running.mean is None
    for data in maps:
        running.add(data)
    stacked = maps.astype(np.float64)
    assert running.n == 17
    assert np.allclose(running.mean, stacked.mean(axis=0), rtol=ROUNDING, atol=0)


def test_a_mean_without_one_of_its_maps():
    maps = np.random.default_rng(5).normal(1e-3, 1e-2, (9, *GRID.shape)).astype(np.float32)
    running = MeanMap()
    for data in maps:
        running.add(data)
    for left_out in (0, 4, 8):
        expected = np.delete(maps, left_out, axis=0).mean(axis=0, dtype=float)
        assert np.allclose(running.without(maps[left_out]), expected, rtol=0, atol=ROUNDING)
    single = MeanMap()
    single.add(maps[0])
    assert single.without(maps[0]) is None


def test_heat_map_is_positive_where_relevance_speaks_for_reduced(striatum):
    heat = make_heat_map(true_positive=2.0 * striatum, true_negative=-1.0 * striatum)
    assert (heat[striatum] == 3).all()
    assert (heat[~striatum] == 0).all()


@pytest.mark.parametrize("predicted", [0, 1])
@pytest.mark.parametrize("looks", [0, 1])
def test_consistent_means_like_the_predicted_class(striatum, predicted, looks):
    rng = np.random.default_rng(3)
    normal, reduced = (sign * striatum + rng.normal(0, 0.05, GRID.shape) for sign in (-1, 1))
    case = (normal, reduced)[looks] + rng.normal(0, 0.3, GRID.shape)
    result = check_consistency(case, predicted, normal, reduced)
    assert result["consistent"] is (looks == predicted)
    for name, mean in (("r_normal", normal), ("r_reduced", reduced)):
        oracle = np.corrcoef(case.ravel(), mean.ravel())[0, 1]
        assert result[name] == pytest.approx(oracle, abs=ROUNDING)


def test_consistency_within_a_mask_ignores_what_lies_outside(striatum):
    rng = np.random.default_rng(4)
    normal, reduced, case = rng.normal(size=(3, *GRID.shape))
    inside = check_consistency(case, 1, normal, reduced, striatum)
    changed = np.where(striatum, case, 100 * normal)
    assert check_consistency(changed, 1, normal, reduced, striatum) == inside


def test_a_constant_map_is_neither_consistent_nor_inconsistent(striatum):
    result = check_consistency(np.full(GRID.shape, 0.1, np.float32), 1, -1.0 * striatum, 1.0 * striatum)
    assert result == {"r_normal": None, "r_reduced": None, "consistent": None}
