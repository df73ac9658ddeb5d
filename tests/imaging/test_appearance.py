"""Noise, sharpness and uptake of a scan, against what was put into it."""

import numpy as np
import pytest
from scipy import ndimage

from datxai.imaging import appearance
from datxai.imaging.appearance import Appearance

SHAPE, SPACING = (47, 59, 47), (3.0, 3.0, 3.0)


@pytest.fixture(scope="module")
def look():
    x, y, z = np.ogrid[:47, :59, :47]
    ball = ((x - 23) / 21) ** 2 + ((y - 29) / 27) ** 2 + ((z - 23) / 21) ** 2 < 1
    return Appearance(ball, SPACING)


def noise(seed=0, sigma=1.0):
    return ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32), sigma)


def test_twice_the_noise_has_four_times_the_power(look):
    level, shape = look.measure_texture(noise())
    twice, same = look.measure_texture(2 * noise())
    assert twice - level == pytest.approx([np.log(4)], abs=1e-5)
    np.testing.assert_allclose(same, shape, atol=1e-4)


def test_white_noise_has_as_much_in_every_band(look):
    levels = np.mean([look.measure_texture(noise(seed, 0.0))[1] for seed in range(20)], axis=0)
    assert np.ptp(levels) < 0.1


def test_blur_falls_off_as_a_gaussian_does(look):
    """Of noise smoothed with sigma the power at frequency f falls as exp(-(2 pi sigma f)^2), summed here over waves."""
    sigma = 4.0  # mm
    shape = look.measure_texture(noise(0, sigma / 3.0))[1] - look.measure_texture(noise(0, 0.0))[1]
    squared = sum(f**2 for f in np.meshgrid(*(np.fft.fftfreq(n, 3.0) for n in SHAPE), indexing="ij"))
    band = np.digitize(np.sqrt(squared), 1 / np.array(appearance.PERIODS_MM))
    gain = np.exp(-((2 * np.pi * sigma) ** 2) * squared)
    expected = np.array([np.log(gain[band == number].mean()) for number in range(1, len(shape) + 1)])
    known = expected > -5  # below, the kernel's cut end and the window's edge count
    np.testing.assert_allclose((shape - shape[0])[known], (expected - expected[0])[known], atol=0.25)
    assert known.sum() >= 3


@pytest.mark.parametrize(("axis", "period"), [(0, 12.0 * 1.35), (1, 12.0), (2, 12.0 * 0.75)])
def test_periods_are_those_of_the_scan_itself(look, axis, period):
    """A wave of 12 mm on the grid was one of another period in a scan that was stretched into it, and turned."""
    wave = np.cos(2 * np.pi * np.ogrid[:47, :59, :47][axis] * 3.0 / 12.0) * np.ones(SHAPE)
    angle = np.deg2rad(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    moved = np.eye(4)
    moved[:3, :3], moved[:3, 3] = turn @ np.diag([1.35, 1.0, 0.75]), (5, 6, 7)
    for linear, expected in ((moved, period), (None, 12.0)):
        band = np.argmax(look.measure_texture(wave.astype(np.float32), linear)[1])
        longest, shortest = appearance.PERIODS_MM[band : band + 2]
        assert shortest < expected < longest


def test_what_lies_outside_the_region_changes_nothing(look):
    scan = noise()
    other = np.where(look.region, scan, np.float32(9))
    for before, after in zip(look.measure_texture(scan), look.measure_texture(other)):
        np.testing.assert_array_equal(before, after)
    np.testing.assert_array_equal(look.average_uptake(scan), look.average_uptake(other))


def test_even_uptake_is_that_everywhere(look):
    found = look.average_uptake(np.full(SHAPE, 1.5, np.float32))
    assert len(found) > 200
    np.testing.assert_allclose(found, 1.5, rtol=1e-5)


def test_uptake_is_a_weighted_mean_of_the_surroundings(look):
    scan = noise(1) + 2
    sigma = appearance.NEIGHBOURHOOD_MM / appearance.FWHM_OF_SIGMA
    number = len(look.average_uptake(scan)) // 2
    at = np.argwhere(look._points)[number]
    squared = sum(((axis - centre) * 3.0) ** 2 for axis, centre in zip(np.ogrid[:47, :59, :47], at))
    weight = np.exp(-squared / (2 * sigma**2)) * look.region
    expected = (weight * scan).sum() / weight.sum()
    assert look.average_uptake(scan)[number] == pytest.approx(expected, rel=2e-3)  # which goes on beyond three sigma


def test_a_hot_place_is_seen_where_it_is(look):
    scan = np.ones(SHAPE, np.float32)
    at = tuple(np.argwhere(look._points)[100])
    scan[at] += 50
    assert look.average_uptake(scan).argmax() == 100


@pytest.mark.parametrize(
    ("shape", "spacing"), [((91, 109, 1), (2, 2, 12)), ((46, 55, 46), (4, 4, 4)), ((30, 36, 30), (6, 6, 6))]
)
def test_any_grid_has_an_appearance(shape, spacing):
    centre = [slice(n // 6, n - n // 6) for n in shape]
    region = np.zeros(shape, bool)
    region[tuple(centre)] = True
    look = Appearance(region, spacing)
    scan = np.random.default_rng(0).random(shape, np.float32)
    (level,), shape_of = look.measure_texture(scan)
    assert np.isfinite(level) and np.isfinite(shape_of).all() and len(shape_of) >= 3
    assert np.isfinite(look.average_uptake(scan)).all() and len(look.average_uptake(scan)) >= 20


def test_a_blank_scan_has_a_finite_texture(look):
    level, shape = look.measure_texture(np.zeros(SHAPE, np.float32))
    assert np.isfinite(level).all() and not shape.any()
