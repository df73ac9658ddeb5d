"""Augmentation against SciPy's interpolation and filters, and against the statistics it promises."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

from datxai.errors import InputError
from datxai.model.augmentation import FWHM, NOISE_FWHM_MM, TRUNCATE, Augmenter, blur, move

SHAPE, SPACING = (20, 17, 14), (2.0, 3.0, 4.0)
TOLERANCE = 2e-4  # of float32 coordinates, in units of the volumes' standard deviation
FEW_PERCENT = 0.05  # of statistics over 10^5 voxels


@pytest.fixture
def volume():
    rng = np.random.default_rng(0)
    return torch.from_numpy(ndimage.gaussian_filter(rng.normal(size=SHAPE), 1).astype(np.float32))[None]


def test_moving_is_scipys_affine_transform(volume):
    angles, shift = np.array([0.1, -0.2, 0.3]), np.array([3.0, -2.0, 5.0])  # radian about x, then y, then z; mm
    rotation = Rotation.from_euler("xyz", angles).as_matrix()
    to_mm, centre = np.diag(SPACING), (np.array(SHAPE) - 1) / 2
    inverse = np.linalg.inv(to_mm) @ rotation.T @ to_mm
    offset = centre - inverse @ centre - np.linalg.inv(to_mm) @ rotation.T @ shift
    oracle = ndimage.affine_transform(volume[0].double().numpy(), inverse, offset, order=1, mode="nearest")
    moved = move(volume, SPACING, angles, shift)
    assert moved.shape == (1, *SHAPE)
    np.testing.assert_allclose(moved[0].numpy(), oracle, atol=TOLERANCE)
    assert np.abs(oracle - volume[0].numpy()).max() > 0.1


def test_a_shift_of_whole_voxels_shifts(volume):
    moved = move(volume, SPACING, np.zeros(3), np.array([2 * SPACING[0], 0, -SPACING[2]]))
    np.testing.assert_allclose(moved[:, 2:, :, :-1], volume[:, :-2, :, 1:], atol=TOLERANCE)


def test_blurring_is_scipys_gaussian_filter(volume):
    fwhm = 11.0
    sigmas = [fwhm / FWHM / step for step in SPACING]
    radii = [round(TRUNCATE * sigma) for sigma in sigmas]
    oracle = ndimage.gaussian_filter(volume[0].double().numpy(), sigmas, mode="nearest", radius=radii)
    np.testing.assert_allclose(blur(volume, SPACING, fwhm)[0].numpy(), oracle, atol=TOLERANCE)


def test_one_slice_stays_one_slice():
    slab = torch.rand(1, 12, 10, 1)
    varied = Augmenter((2.0, 2.0, 12.0), 18, 0.1, 3, 4).vary(slab, [0, 1, 2])
    assert varied.shape == slab.shape
    assert varied.isfinite().all()
    np.testing.assert_allclose(blur(torch.ones_like(slab), (2.0, 2.0, 12.0), 18.0), 1, atol=TOLERANCE)


def test_noise_goes_with_the_square_root_of_the_uptake_and_is_correlated():
    shape, spacing = (60, 60, 40), (2.0, 2.0, 2.0)
    for uptake in (1.0, 4.0):
        flat = torch.full((1, *shape), uptake)
        seeds = [[0, 1, case] for case in range(12)]
        varied = [Augmenter(spacing, noise=0.1).vary(flat, seed) for seed in seeds]
        noise = [(each - flat)[0, 8:-8, 8:-8, 8:-8].numpy() for each in varied]
        # Drawn are three angles, three shifts, blurring, noise.
        drawn = [0.1 * np.random.default_rng(seed).uniform(size=8)[7] for seed in seeds]
        ratios = [each.std() / (sigma * math.sqrt(uptake)) for each, sigma in zip(noise, drawn)]
        assert np.mean(ratios) == pytest.approx(1.0, abs=FEW_PERCENT)
    along = np.mean([(each[1:] * each[:-1]).mean() / each.var() for each in noise])
    sigma = NOISE_FWHM_MM / FWHM / 2.0
    assert along == pytest.approx(math.exp(-1 / (4 * sigma**2)), abs=FEW_PERCENT)  # of a Gaussian with itself


def test_the_seed_alone_decides(volume):
    augmentation = Augmenter(SPACING, 18, 0.1, 3, 4)
    one = augmentation.vary(volume, [3, 1, 5])
    torch.manual_seed(8)
    state = torch.get_rng_state()
    assert torch.equal(augmentation.vary(volume, [3, 1, 5]), one)
    assert torch.equal(torch.get_rng_state(), state)
    for other in ([4, 1, 5], [3, 2, 5], [3, 1, 6]):
        assert not torch.equal(augmentation.vary(volume, other), one)


def test_zeros_change_nothing_and_are_off(volume):
    off = Augmenter(SPACING)
    assert not off
    assert off.vary(volume, [0, 0, 0]) is volume
    for name in ("blur_fwhm_mm", "noise", "rotation_deg", "translation_mm"):
        on = Augmenter(SPACING, **{name: 10.0})
        assert on
        assert not torch.equal(on.vary(volume, [0, 0, 0]), volume), name


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_what_makes_no_sense_is_refused(value):
    with pytest.raises(InputError, match=r"training\.augmentation\.noise is .*, expected zero \(off\) or more"):
        Augmenter(SPACING, noise=value)
