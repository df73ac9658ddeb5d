"""Filtered back projection against closed formulas and against scikit-image."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.transform import iradon

from benchmarks import analytic
from benchmarks.analytic import gaussian_image, gaussian_projections, positions, shepp_logan
from datxai.errors import InputError
from datxai.imaging.reconstruction import FILTERS, correct_attenuation, reconstruct
from datxai.volume import Grid, Volume, resample

IRADON_TOLERANCE = 0.02
SMOOTH_TOLERANCE = 0.02  # relative L2 on a source without edges; linear interpolation of the bins
SHEPP_LOGAN_TOLERANCE = 0.15  # with edges, which ring
FWHM_TOLERANCE = 0.02
COUNT_TOLERANCE = 0.01
CHANG_TOLERANCE = 0.02  # the ellipse has pixels for an edge
LINEARITY_TOLERANCE = 1e-4  # float32, values up to 20
FULL_TURN = np.arange(120) * 3.0


def relative(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def slice_of(lines, angles=FULL_TURN, pixel_mm=4.0, **options):
    return reconstruct(lines[:, None, :], angles, pixel_mm, **options).data[:, :, 0]


@pytest.mark.parametrize("name", ["ramp", "shepp-logan", "hann"])
@pytest.mark.parametrize("turn", [180.0, 360.0])
def test_agrees_with_iradon_at_nyquist(name, turn):
    """An odd number of bins, where both rotate about the same bin: iradon's is n // 2, a camera's (n - 1) / 2."""
    bins = 95
    angles = np.arange(90) * turn / 90
    lines, _ = shepp_logan(bins, angles)
    theirs = iradon(lines.T, theta=angles, filter_name=name, circle=True).T
    x, y = np.meshgrid(*2 * [positions(bins)])
    inside = np.hypot(x, y) < bins / 2 - 1
    ours = slice_of(lines, angles, filter=name)
    assert relative(ours[inside], theirs[inside]) < IRADON_TOLERANCE


def test_shepp_logan_head():
    lines, image = shepp_logan(128, np.arange(180.0))
    assert relative(slice_of(lines, np.arange(180.0), filter="ramp"), image) < SHEPP_LOGAN_TOLERANCE


def test_a_smooth_source_comes_back_in_its_place():
    """And says where right, front and top are: the detector stands at the back at 0 and at the left at 90 degrees."""
    centre = (9.0, -14.0)  # right and back
    lines = gaussian_projections(FULL_TURN, centre)
    rows = np.zeros((120, 5, 64))
    rows[:, 1] = lines  # near the top
    volume = reconstruct(rows, FULL_TURN, 4.0, row_spacing_mm=6.0, filter="ramp")
    assert relative(volume.data[:, :, 3], gaussian_image(centre)) < SMOOTH_TOLERANCE
    assert not volume.data[:, :, [0, 1, 2, 4]].any()
    peak = volume.grid.index_to_mm(np.unravel_index(volume.data.argmax(), volume.shape))
    assert peak == pytest.approx((36, -56, 6), abs=3.0)
    assert volume.grid.spacing.tolist() == [4, 4, 6]
    assert volume.grid.index_to_mm((31.5, 31.5, 2)) == pytest.approx(0)


@pytest.mark.parametrize("name", [f for f in FILTERS if f != "none"])
@pytest.mark.parametrize("cutoff_per_cm", [1.25, 0.8])
def test_point_spread_is_that_of_the_filter(name, cutoff_per_cm):
    theory = analytic.point_fwhm(name, cutoff_per_cm * 0.4, sigma=1.2)
    lines = gaussian_projections(FULL_TURN, (10, -7), sigma=1.2, bins=63)
    image = slice_of(lines, filter=name, cutoff_per_cm=cutoff_per_cm)
    for flank in (image[41:, 24], image[41::-1, 24], image[41, 24:]):
        assert analytic.profile_fwhm(flank) == pytest.approx(theory, rel=FWHM_TOLERANCE)


@pytest.mark.parametrize("name", [f for f in FILTERS if f != "none"])
def test_counts_are_kept(name):
    lines = gaussian_projections(FULL_TURN, (5.0, 3.0))
    assert slice_of(lines, filter=name).sum() == pytest.approx(lines.sum() / 120, rel=COUNT_TOLERANCE)


@settings(max_examples=20, deadline=None)
@given(a=st.floats(-3, 3), b=st.floats(-3, 3), seed=st.integers(0, 1000))
def test_it_is_linear(a, b, seed):
    first, second = np.random.default_rng(seed).random((2, 8, 3, 16)) + 0.1
    angles = np.arange(8) * 22.5
    whole = reconstruct(a * first + b * second + 5.0, angles, 4.0).data
    parts = [reconstruct(p, angles, 4.0).data for p in (first, second, np.full_like(first, 5.0))]
    assert np.abs(whole - (a * parts[0] + b * parts[1] + parts[2])).max() < LINEARITY_TOLERANCE


def test_views_in_any_order_and_unevenly_spread():
    centre = (9.0, -14.0)
    angles = np.concatenate([np.arange(0, 90, 2.0), np.arange(90, 180, 6.0)])
    uneven = slice_of(gaussian_projections(angles, centre), angles, filter="ramp")
    assert relative(uneven, gaussian_image(centre)) < SMOOTH_TOLERANCE
    order = np.random.default_rng(0).permutation(angles.size)
    shuffled = slice_of(gaussian_projections(angles[order], centre), angles[order], filter="ramp")
    assert shuffled == pytest.approx(uneven, abs=1e-5)


def test_the_centre_of_rotation_may_lie_off_the_middle():
    centre = (9.0, -14.0)
    lines = gaussian_projections(FULL_TURN, centre, shift=1.3)
    moved = slice_of(lines, filter="ramp", centre=31.5 + 1.3)
    assert relative(moved, gaussian_image(centre)) < SMOOTH_TOLERANCE
    assert relative(slice_of(lines, filter="ramp"), gaussian_image(centre)) > 5 * SMOOTH_TOLERANCE


def test_the_centre_of_rotation_may_differ_from_view_to_view():
    centre = (9.0, -14.0)
    shifts = np.where(FULL_TURN < 180, 1.3, -0.8)
    lines = np.stack([gaussian_projections(FULL_TURN[k : k + 1], centre, shift=shifts[k])[0] for k in range(120)])
    assert relative(slice_of(lines, filter="ramp", centre=31.5 + shifts), gaussian_image(centre)) < SMOOTH_TOLERANCE


def test_a_cutoff_beyond_nyquist_is_nyquist_and_recorded():
    lines = gaussian_projections(FULL_TURN)[:, None]
    at, beyond = (reconstruct(lines, FULL_TURN, 5.0, cutoff_per_cm=c) for c in (1.0, 1.25))
    assert np.array_equal(at.data, beyond.data)
    record = beyond.recorded("reconstruct")
    assert (record["cutoff_per_cm"], record["cutoff_requested_per_cm"]) == (1.0, 1.25)
    assert (record["filter"], record["views"]) == ("shepp-logan", 120)


def test_plain_back_projection_only_adds_up():
    lines = np.ones((120, 1, 32))
    inside = slice_of(lines[:, 0], filter="none")[12:20, 12:20]
    assert inside == pytest.approx(np.full((8, 8), np.pi), rel=1e-5)


@pytest.mark.parametrize("per_cm", [0.11, 0.15])
@pytest.mark.parametrize("haze", [0.0, 0.3])
def test_chang_factor_of_a_uniform_disc(per_cm, haze):
    """At the centre as at the rim; counts scattered all over the field of view do not widen the disc."""
    disc_cm = 9.0
    radius = np.hypot(*np.meshgrid(*2 * [positions(64) * 0.4]))
    edge = np.clip((disc_cm - radius) / 0.4 + 0.5, 0, 1)
    data = np.broadcast_to((edge * (1 - haze) + haze)[..., None], (64, 64, 12)).astype(np.float32)
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = -(np.array(data.shape) - 1) / 2 * 4.0
    seen = data[:, :, 6] > 0
    corrected = correct_attenuation(Volume(data, affine), per_cm).data[:, :, 6]
    factor = np.divide(corrected, data[:, :, 6], out=np.ones_like(corrected), where=seen)
    for at in (0.3, 5.0, 8.0):
        near = np.abs(radius - at) < 0.2
        exact = [analytic.chang_factor(r, disc_cm, per_cm) for r in radius[near]]
        np.testing.assert_allclose(factor[near], exact, rtol=CHANG_TOLERANCE)
    assert (factor[radius > disc_cm + 0.4] == 1.0).all()


@pytest.mark.parametrize("more_bins", [-8, 48])
def test_chang_factor_does_not_depend_on_the_air_around(more_bins):
    """A head with hot spots in fields of 192, 256 and 640 mm."""
    x, y, z = np.meshgrid(*2 * [4.0 * (np.arange(64) - 31.5)], 4.0 * (np.arange(8) - 3.5), indexing="ij")
    head = 0.7 * (np.hypot(x / 72, y / 90) < 1)
    for side in (-1, 1):
        head += 4 * ((x - 24 * side) ** 2 + (y - 10) ** 2 + z**2 < 14**2)
    head = ndimage.gaussian_filter(head, 1.2) + 0.05 * np.random.default_rng(0).normal(size=head.shape)
    wide = np.pad(head, [2 * [more_bins]] * 2 + [(0, 0)]) if more_bins > 0 else head[8:-8, 8:-8]
    factors = []
    for data, first in ((head, 28), (wide, 28 + more_bins)):
        middle = slice(first, -first)
        corrected = correct_attenuation(Volume(data, np.diag([4.0, 4.0, 4.0, 1.0])), 0.11).data
        factors.append(corrected[middle, middle] / data[middle, middle])
    np.testing.assert_allclose(*factors, rtol=CHANG_TOLERANCE)


def test_chang_flattens_a_uniform_cylinder():
    """Projections of a disk with its own attenuation, by the closed formula (1 - exp(-mu chord)) / mu."""
    mu, radius = 0.15, 9.0
    s = positions(96, 8) * 0.4
    chord = 2 * np.sqrt(np.clip(radius**2 - s**2, 0, None))
    line = ((1 - np.exp(-mu * chord)) / mu).reshape(96, 8).mean(axis=1)
    projections = np.broadcast_to(line, (120, 24, 96))
    plain = reconstruct(projections, FULL_TURN, 4.0).data[:, :, 12]
    fixed = reconstruct(projections, FULL_TURN, 4.0, attenuation_per_cm=mu).data[:, :, 12]
    x, y = np.meshgrid(*2 * [positions(96) * 0.4])
    inside = np.hypot(x, y) < radius - 1.5
    centre = np.hypot(x, y) < 1.5
    assert plain[centre].mean() < 0.75 * plain[inside].max()
    assert fixed[inside].std() < 0.05 * fixed[inside].mean()
    truth = 0.4  # activity 1 per cm, bins of 0.4 cm: a ray of length l cm counts l, a voxel 0.4
    assert fixed[inside].mean() == pytest.approx(truth, rel=0.05)


def test_post_filter_widens_and_is_recorded():
    lines = gaussian_projections(FULL_TURN, bins=63)
    volume = reconstruct(np.repeat(lines[:, None], 31, axis=1), FULL_TURN, 4.0, filter="ramp", post_filter_mm=12.0)
    expected = gaussian_image((0, 0), np.hypot(3.0, 3.0 / np.sqrt(8 * np.log(2))), bins=63)
    assert relative(volume.data[:, :, 15], expected) < SMOOTH_TOLERANCE
    assert volume.recorded("post_filter")["fwhm_mm"] == 12.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"projections": np.zeros((12, 4, 8))}, "every count is zero"),
        ({"projections": np.ones((12, 8))}, "have shape \\(12, 8\\), expected \\(views, rows, bins\\)"),
        ({"projections": np.full((12, 4, 8), np.nan)}, "NaN or infinite"),
        ({"angles_deg": np.arange(11.0)}, "12 views but 11 angles"),
        ({"angles_deg": np.arange(12) * 10.0}, "gap of 70 degrees"),
        ({"angles_deg": np.full(12, np.nan)}, "NaN or infinite"),
        ({"pixel_mm": 0.0}, "pixel_mm: 0.0 is not a length"),
        ({"row_spacing_mm": -1.0}, "row_spacing_mm: -1.0 is not a length"),
        ({"filter": "hamming"}, "'hamming' is not known, expected one of ramp"),
        ({"cutoff_per_cm": 0.0}, "expected more than 0 cycles"),
    ],
)
def test_what_cannot_be_reconstructed_is_said_in_one_sentence(change, message):
    good = {"projections": np.ones((12, 4, 8)), "angles_deg": np.arange(12) * 30.0, "pixel_mm": 4.0}
    assert reconstruct(**good).shape == (8, 8, 4)
    with pytest.raises(InputError, match=message):
        reconstruct(**{**good, **change})


def test_fine_voxels_count_as_coarse_ones():
    """Noise on bins of 2 mm is as strong, once interpolated, as on the same counts in bins of 4 mm."""
    rng = np.random.default_rng(0)
    fine = rng.poisson(20.0, (60, 64, 96)).astype(float)
    coarse = fine.reshape(60, 32, 2, 48, 2).sum(axis=(2, 4)) / 4
    spread = []
    for counts, pixel, equivalent in ((coarse, 4.0, 4.0), (fine, 2.0, 4.0), (fine, 2.0, None)):
        volume = reconstruct(counts, np.arange(60) * 6.0, pixel, equivalent_mm=equivalent)
        grid = Grid.axis_aligned((40, 40, 30), (2, 2, 2), (-39.3, -39.3, -29.3))
        spread.append(resample(volume, grid).data.std() * 4.0 / pixel)  # a ray of the same counts has more voxels
        assert (volume.recorded("match_voxels") is not None) == (pixel < (equivalent or 0))
    assert spread[1] == pytest.approx(spread[0], rel=0.15)
    assert spread[2] > 1.5 * spread[0]
