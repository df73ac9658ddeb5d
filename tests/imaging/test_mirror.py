import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from datxai.errors import InputError
from datxai.imaging.mirror import mirror, mirror_to_lower_left, unmirror
from datxai.volume import Grid, Volume

FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)


def symmetric(data):
    grid = Grid.axis_aligned(data.shape, (2, 2, 2), (-(data.shape[0] - 1), -7, 3))
    return Volume(data, grid.affine)


@settings(max_examples=30, deadline=None)
@given(arrays(np.float32, st.tuples(*[st.integers(1, 5)] * 3), elements=FINITE))
def test_mirroring_twice_gives_every_bit_back(data):
    volume = symmetric(data)
    twice = mirror(mirror(volume))
    assert twice.data.tobytes() == volume.data.tobytes()
    assert twice.grid.same_as(volume.grid)
    assert [record["step"] for record in twice.history] == ["mirror", "mirror"]


@pytest.mark.parametrize("n", [6, 7])
def test_what_is_at_x_comes_to_minus_x(n):
    grid = symmetric(np.zeros((n, 2, 2))).grid
    x, y, z = np.moveaxis(grid.world_coordinates(), -1, 0)
    mirrored = mirror(Volume(x + 100 * y + 7 * z, grid.affine))
    np.testing.assert_array_equal(mirrored.data, (-x + 100 * y + 7 * z).astype(np.float32))


@pytest.mark.parametrize("left", [0.4, 1.2])
def test_the_lower_putamen_comes_to_the_left_and_goes_back(left):
    volume = symmetric(np.arange(24.0).reshape(4, 3, 2))
    placed, mirrored = mirror_to_lower_left(volume, {"putamen_left": left, "putamen_right": 0.8})
    assert mirrored == (left > 0.8)
    assert np.array_equal(placed.data, volume.data) != mirrored
    np.testing.assert_array_equal(unmirror(placed, mirrored).data, volume.data)


def test_equal_sides_stay():
    volume = symmetric(np.ones((4, 3, 2)))
    assert mirror_to_lower_left(volume, {"putamen_left": 0.8, "putamen_right": 0.8}) == (volume, False)


@pytest.mark.parametrize("change", [(0, 3, 1.0), (0, 1, 0.1), (2, 0, 0.1)])
def test_a_grid_that_is_not_symmetric_is_refused(change):
    volume = symmetric(np.ones((4, 3, 2)))
    affine = volume.affine.copy()
    affine[change[:2]] += change[2]
    with pytest.raises(InputError, match="symmetric about x = 0"):
        mirror(Volume(volume.data, affine))
