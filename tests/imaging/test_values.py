import numpy as np
import pytest
from scipy import ndimage

from datxai.errors import InputError
from datxai.imaging.quality import GREEN, judge
from datxai.imaging.values import count_jumps, measure_values, require_counts
from datxai.volume import Volume

SPACING = 4.0


def make_scan(seed=0):
    """A ball of uptake 1 with two hot balls in it (4 and 5 above it), blurred, with noise; maximum 1."""
    rng = np.random.default_rng(seed)
    x = SPACING * np.stack(np.meshgrid(*3 * [np.arange(48) - 23.5], indexing="ij"))
    data = (np.linalg.norm(x, axis=0) < 75).astype(float)
    for side, uptake in ((-1, 4), (1, 5)):
        data += uptake * (np.linalg.norm(x - np.reshape([side * 24, 10, 0], (3, 1, 1, 1)), axis=0) < 14)
    data = ndimage.gaussian_filter(data, 10 / 2.355 / SPACING)
    data += 0.1 * ndimage.gaussian_filter(rng.normal(size=data.shape), 0.7)
    return data / data.max()


def judge_values(data):
    return judge(measure_values(Volume(data, np.diag([SPACING, SPACING, SPACING, 1]))))


def broken(data):
    try:
        return judge_values(data)["verdict"] != GREEN
    except InputError:
        return True


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rim", [0.0, -1.0, -1000.0])
def test_what_a_camera_counted_is_green_whatever_is_around_it(seed, rim):
    data = np.pad(make_scan(seed), 10, constant_values=rim)
    assert judge_values(data)["verdict"] == GREEN
    assert judge_values(np.rint(data * 255))["verdict"] == GREEN
    assert judge_values(np.rint(data * 32767))["verdict"] == GREEN


@pytest.mark.parametrize("beyond", [1.4, 1.8, 2.5])
@pytest.mark.parametrize(("bits", "signed"), [(16, True), (16, False), (8, False)])
def test_values_that_wrap_around(bits, signed, beyond):
    limit = 2 ** (bits - signed)
    counts = np.rint(make_scan() * beyond * limit).astype(np.int64)
    assert not broken(counts)
    wrapped = (counts + limit) % (2 * limit) - limit if signed else counts % limit
    assert broken(wrapped)
    assert broken(1e-3 * wrapped)  # rescaled


@pytest.mark.parametrize("share", [0.7, 0.5, 0.3])
def test_values_that_are_cut_off(share):
    assert broken(np.minimum(make_scan(), share))


@pytest.mark.parametrize("levels", [4, 16, 40])
def test_values_of_few_levels(levels):
    assert broken(np.rint(make_scan() * levels))


def test_jumps_are_counted_where_they_are_surrounded():
    row = np.array([0, 3, 10, 1, 9, 3, 0, 9, 0], float)
    assert count_jumps(row, (0,)).tolist() == [2]  # 10-1 and 0-9; 1-9 differs by 8, 9-0 is an end
    assert count_jumps(np.zeros((3, 3)), (0, 1)).tolist() == [0, 0]


def make_projections(most):
    """Poisson counts of a hot disk on a warm one, (views, rows, bins)."""
    y, x = np.mgrid[-20:20, -32:32] * 4.0
    expected = 0.2 * (np.hypot(x, y) < 70) + 0.8 * (np.hypot(x - 20, y) < 20)
    expected = ndimage.gaussian_filter(expected, 1.5)
    return np.random.default_rng(0).poisson(most * expected / expected.max(), (30, *expected.shape))


@pytest.mark.parametrize("most", [20, 120, 400, 60000])
def test_projections(most):
    counts = make_projections(most)
    require_counts(counts, "scan")
    require_counts(1e-3 * counts, "scan")
    if most == 20:
        return  # no type ends there
    for limit in (most // 2, most * 2 // 3):
        with pytest.raises(InputError, match=r"^scan: the largest count, \d+, occurs in"):
            require_counts(np.minimum(counts, max(limit, 100)), "scan")
    if most > 255:
        for unit in (1, 1e-3, 300):  # what a slope makes of them
            with pytest.raises(InputError, match=r"^scan: .*more bits per pixel"):
                require_counts((unit * (counts % (2**8 if most < 1000 else 2**15))).astype(np.float32), "scan")
    if most > 32767:
        with pytest.raises(InputError, match=r"^scan: .*more bits per pixel"):
            require_counts((counts + 2**15) % 2**16 - 2**15, "scan")


@pytest.mark.parametrize("most", [60, 400, 60000])
@pytest.mark.parametrize("levels", [3, 6, 10])
@pytest.mark.parametrize("round_", [np.rint, np.floor])
def test_projections_of_few_levels(most, levels, round_):
    """Counts of as few levels vary by as much as they are; what was scaled down varies by less."""
    require_counts(make_projections(levels), "scan")
    with pytest.raises(InputError, match=r"^scan: counts have \d+ levels and \d+% of the variance of counts"):
        require_counts(7.5 * round_(make_projections(most) * (levels / most)), "scan")


def test_what_is_no_count():
    with pytest.raises(InputError, match=r"^scan: more than half of the counts are below 0"):
        require_counts(make_projections(120) - 60.0, "scan")
    require_counts(np.ones((3, 4, 5)), "scan")
