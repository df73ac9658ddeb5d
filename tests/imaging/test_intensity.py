import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datxai.errors import InputError
from datxai.imaging.intensity import scale
from datxai.volume import Volume

RELATIVE = 1e-5  # a few roundings in float32
MASK = np.zeros((6, 6, 6), bool)
MASK[1:5, 1:5, 1:5] = True


def counts():
    return np.random.default_rng(0).gamma(9.0, 10.0, MASK.shape)


@settings(max_examples=30, deadline=None)
@given(st.floats(1e-6, 1e6))
def test_the_gain_of_a_scanner_does_not_matter(gain):
    once, other = (scale(Volume(factor * counts(), np.eye(4)), MASK).data for factor in (1.0, gain))
    np.testing.assert_allclose(other, once, rtol=RELATIVE)


@pytest.mark.parametrize("percentile", [50.0, 75.0])
def test_the_percentile_becomes_one_and_is_recorded(percentile):
    volume = Volume(counts(), np.eye(4))
    scaled = scale(volume, MASK, percentile)
    ordered = np.sort(volume.data[MASK].astype(float))
    rank = percentile / 100 * (ordered.size - 1)  # linear between the two neighbours
    low = int(rank)
    expected = ordered[low] + (rank - low) * (ordered[low + 1] - ordered[low])
    assert scaled.recorded("scale")["reference_value"] == pytest.approx(expected, rel=RELATIVE)
    np.testing.assert_allclose(scaled.data * expected, volume.data, rtol=RELATIVE)


def test_voxels_outside_the_field_of_view_do_not_count():
    data = counts()
    data[:2] = 0  # a quarter of the region
    seen = MASK.copy()
    seen[:2] = False
    whole, part = (scale(Volume(data, np.eye(4)), mask).recorded("scale") for mask in (MASK, seen))
    assert whole["reference_value"] == part["reference_value"]


def test_a_region_that_is_mostly_out_of_view_is_refused():
    data = counts()
    data[:4] = 0
    with pytest.raises(InputError, match="only 25% of the reference region"):
        scale(Volume(data, np.eye(4)), MASK)


def test_a_reference_without_counts_is_refused():
    with pytest.raises(InputError, match="expected a positive value"):
        scale(Volume(-counts(), np.eye(4)), MASK)
