"""What leaves a head."""

import numpy as np
import pytest

from datxai.photons import average_transmission


def test_transmission_of_a_uniform_cylinder():
    """From its axis the same in all directions, exp(-mu r); more leaves near its surface."""
    x, y = np.ogrid[-20:21, -20:21]
    mu, radius = 0.015, 15
    thickness = np.repeat((x**2 + y**2 <= radius**2)[..., None] * np.float32(mu), 3, axis=2)
    passed = average_transmission(thickness)
    assert passed[20, 20] == pytest.approx(np.exp(-mu * (radius + 0.5)), rel=0.01)
    assert passed[20, 20, 1] < passed[27, 20, 1] < passed[33, 20, 1]
