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


def test_a_measured_zero_counts_and_the_region_is_recorded():
    data = counts()
    data[1] = 0  # a quarter of the region
    found = scale(Volume(data, np.diag([10, 10, 10, 1])), MASK, 50).recorded("scale")
    seen = np.sort(data[1:5, 1:5, 1:5].ravel().astype(np.float32))
    assert found["reference_value"] == pytest.approx((float(seen[31]) + float(seen[32])) / 2, rel=RELATIVE)
    assert found["reference_ml"] == pytest.approx(64)


def test_a_reference_without_counts_is_refused():
    with pytest.raises(InputError, match="expected a positive value"):
        scale(Volume(-counts(), np.eye(4)), MASK)
