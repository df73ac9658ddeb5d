"""The text that the viewer is given, unpacked by NumPy."""

import base64
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from datxai.pages.viewer import LEVELS, RELEVANCE, UPTAKE, pack, pack_colours, pack_space
from datxai.volume import Volume


def unpack(packed, shape):
    low, high = np.frombuffer(zlib.decompress(base64.b64decode(packed["data"])), np.uint8).reshape(2, -1)
    levels = (low.astype(np.uint16) | high.astype(np.uint16) << 8).view(np.int16)
    return levels.reshape(shape) * packed["step"]


@given(arrays(np.float32, array_shapes(min_dims=3, max_dims=3), elements=st.floats(-1e6, 1e6, width=32)))
def test_what_is_unpacked_is_right_to_half_a_step(data):
    packed = pack(data)
    found = unpack(packed, data.shape)
    assert np.abs(found - data).max() <= 0.5001 * packed["step"]
    if np.abs(data).max() > 1e-30:
        assert packed["step"] == pytest.approx(np.abs(data).max() / LEVELS)


def test_zero_stays_zero_and_the_highest_value_is_exact():
    data = np.array([[[0.0, 0.0031, -0.7]]], np.float32)
    found = unpack(pack(data), data.shape)
    assert found[0, 0, 0] == 0
    assert found[0, 0, 2] == pytest.approx(-0.7, rel=1e-6)
    assert not unpack(pack(np.zeros((2, 2, 2))), (2, 2, 2)).any()


def test_a_space_tells_where_its_voxels_lie():
    volume = Volume(np.ones((2, 3, 4)), np.diag([2.0, 3.0, 4.0, 1.0]))
    outline = np.zeros((2, 3, 4), bool)
    outline[1, 2, 3] = True
    space = pack_space("MNI space", {"spect": volume, "relevance": volume}, outline, ("I", "C"))
    assert (space["shape"], space["affine"], space["sides"]) == ([2, 3, 4], volume.affine.tolist(), ["I", "C"])
    assert (unpack(space["outline"], (2, 3, 4)) > 0).tolist() == outline.tolist()
    assert "outline" not in pack_space("", {"spect": volume, "relevance": volume})


def test_colours_are_those_of_the_figures():
    from matplotlib import colormaps

    def colour(text, level):
        return tuple(base64.b64decode(text)[3 * level : 3 * level + 3])

    packed = pack_colours()
    for name, words in UPTAKE.items():
        assert colour(packed["uptake"][words], 200) == colormaps[name](200, bytes=True)[:3]
    low, middle, high = (np.array(colour(packed["relevance"], level), int) for level in (0, 128, 255))
    assert low[2] > low[0] and high[0] > high[2]  # blue against, red for
    assert np.ptp(middle) < 10  # nothing to be seen at zero
    assert RELEVANCE == "RdBu_r"
