"""The camera against closed formulas."""

from dataclasses import replace

import numpy as np
import pytest

from datxai.phantom.camera import COLLIMATORS, FWHM_OF_SIGMA, Camera, acquire, project
from datxai.volume import Grid, Volume

FWHM_TOLERANCE = 0.05
CYLINDER_TOLERANCE = 0.02
COUNT_TOLERANCE = 0.005
DIRECT = Camera(views=12, rows=48, bins=96, pixel_mm=2.0, scatter=(0.0, 1.0), penetration=(0.0, 1.0))


def cube(n, nz, voxel):
    return Grid.axis_aligned((n, n, nz), 3 * (voxel,), [-(k - 1) / 2 * voxel for k in (n, n, nz)])


def point(grid, index):
    data = np.zeros(grid.shape, np.float32)
    data[index] = 1.0
    return Volume(data, grid.affine)


def empty(grid):
    return Volume(np.zeros(grid.shape, np.float32), grid.affine)


def measured_fwhm(profiles, pixel_mm):
    """From the second moment about the mean, without the width of a bin; root mean square over the profiles."""
    position = np.arange(profiles.shape[1]) * pixel_mm
    centre = profiles @ position / profiles.sum(axis=1)
    variance = (profiles * (position - centre[:, None]) ** 2).sum(axis=1) / profiles.sum(axis=1)
    return FWHM_OF_SIGMA * np.sqrt(variance.mean() - pixel_mm**2 / 12)


def theoretical_fwhm(collimator, distance_mm):
    hole, length, intrinsic = COLLIMATORS[collimator]
    return np.sqrt(intrinsic**2 + (hole * (1 + distance_mm / length)) ** 2)


@pytest.mark.parametrize("collimator", COLLIMATORS)
@pytest.mark.parametrize("distance_mm", [100.0, 150.0, 200.0])
def test_point_source_fwhm_at_distance(collimator, distance_mm):
    """Source on the axis, so that every view sees it at the same distance."""
    grid = cube(33, 17, 2.0)
    camera = replace(DIRECT, pixel_mm=1.0, radius_mm=distance_mm, collimator=COLLIMATORS[collimator])
    frames = project(point(grid, (16, 16, 8)), empty(grid), camera)
    theory = pytest.approx(theoretical_fwhm(collimator, distance_mm), rel=FWHM_TOLERANCE)
    assert measured_fwhm(frames.sum(axis=1), 1.0) == theory
    assert measured_fwhm(frames.sum(axis=2), 1.0) == theory


def test_point_source_fwhm_off_the_axis_on_the_voxels_of_a_head():
    grid = cube(40, 16, 4.0)
    x, y, _ = grid.index_to_mm((25, 12, 8))
    camera = replace(DIRECT, views=40, pixel_mm=1.0, bins=160, start_angle_deg=3.0, radius_mm=150.0)
    angle = np.deg2rad(camera.angles_deg)
    distance = 150.0 + x * np.sin(angle) + y * np.cos(angle)
    theory = np.sqrt(np.mean(theoretical_fwhm("lehr_24mm", distance) ** 2))
    frames = project(point(grid, (25, 12, 8)), empty(grid), camera)
    assert measured_fwhm(frames.sum(axis=1), 1.0) == pytest.approx(theory, rel=FWHM_TOLERANCE)


def test_resolution_of_the_reference_collimator_is_the_published_one():
    found = COLLIMATORS["lehr_24mm"].fwhm_mm(np.array([100.0, 150.0, 200.0]))
    assert found == pytest.approx([7.0, 9.2, 11.4], abs=0.05)


def test_attenuation_of_a_uniform_cylinder():
    """Activity 1 and attenuation mu in a cylinder: a central ray holds (1 - exp(-mu d)) / mu."""
    grid = cube(100, 24, 2.0)
    radius_cm, mu = 8.0, 0.148
    world = grid.world_coordinates() / 10.0
    edge = np.clip((radius_cm - np.hypot(world[..., 0], world[..., 1])) / 0.2 + 0.5, 0, 1).astype(np.float32)
    camera = replace(DIRECT, rows=4, bins=32, radius_mm=120.0)
    with_mu, without = (
        project(Volume(edge, grid.affine), Volume(edge * value, grid.affine), camera) for value in (mu, 0.0)
    )
    found = (with_mu / without)[:, 1:3, 15:17].mean()
    assert found == pytest.approx((1 - np.exp(-mu * 2 * radius_cm)) / (mu * 2 * radius_cm), rel=CYLINDER_TOLERANCE)
    pixel_ml = (camera.pixel_mm / 10) ** 2 * 2 * radius_cm
    assert without[:, 1:3, 15:17].mean() == pytest.approx(pixel_ml, rel=CYLINDER_TOLERANCE)


def test_nothing_is_lost_and_the_broad_parts_are_added():
    grid = cube(24, 8, 4.0)
    blob = np.exp(-(((grid.world_coordinates() - (6, -9, 0)) / 8.0) ** 2).sum(axis=-1) / 2)
    amount = blob.sum() * grid.voxel_ml
    source = Volume(blob, grid.affine)
    direct = project(source, empty(grid), DIRECT)
    assert direct.sum(axis=(1, 2)) == pytest.approx(amount, rel=COUNT_TOLERANCE)
    wide = project(source, empty(grid), replace(DIRECT, rows=200, bins=200, pixel_mm=4.0, scatter=(0.3, 90.0)))
    assert wide.sum(axis=(1, 2)) == pytest.approx(1.3 * amount, rel=COUNT_TOLERANCE)


def test_where_things_are_seen():
    """Left of the patient is right in a view from the front; the top of the head is the first row."""
    grid = cube(24, 24, 4.0)
    x, y, z = grid.index_to_mm((4, 17, 20))  # left, front, up
    camera = replace(DIRECT, views=4, rows=64, start_angle_deg=0.0)
    frames = project(point(grid, (4, 17, 20)), empty(grid), camera)
    assert camera.angles_deg.tolist() == [0, 90, 180, 270]
    middle = (camera.bins - 1) / 2
    expected = [x, -y, -x, y]  # from behind, from the left, from the front, from the right
    for frame, offset in zip(frames, expected):
        assert frame.sum(axis=0) @ np.arange(96) / frame.sum() == pytest.approx(middle + offset / 2.0, abs=0.1)
        assert frame.sum(axis=1) @ np.arange(64) / frame.sum() == pytest.approx(31.5 - z / 2.0, abs=0.1)


def test_what_is_near_the_detector_is_sharper_and_brighter():
    grid = cube(48, 8, 4.0)
    water = Volume(np.full(grid.shape, 0.148, np.float32), grid.affine)
    frames = project(point(grid, (24, 40, 4)), water, replace(DIRECT, views=2, start_angle_deg=180.0))
    front, back = frames.sum(axis=1)
    assert front.sum() > 3 * back.sum()
    assert front.max() / front.sum() > 1.3 * back.max() / back.sum()


def test_counts_are_whole_poisson_numbers_and_repeatable():
    grid = cube(24, 24, 4.0)
    data = np.zeros(grid.shape, np.float32)
    data[6:18, 6:18, 6:18] = 1.0
    body, air = Volume(data, grid.affine), empty(grid)
    camera = replace(DIRECT, counts=2e5)
    first, second = (acquire(body, air, camera, np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(first, second)
    assert first.dtype == np.float32
    assert np.array_equal(first, np.rint(first))
    assert first.sum() == pytest.approx(2e5, abs=5 * np.sqrt(2e5))
    expected = project(body, air, camera)
    expected = expected * 2e5 / expected.sum()
    used = expected > 1.0
    excess = ((first - expected)[used] ** 2 / expected[used]).mean()
    assert excess == pytest.approx(1.0, abs=5 * np.sqrt(2.5 / used.sum()))
