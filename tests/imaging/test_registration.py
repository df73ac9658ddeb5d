import numpy as np
import pytest
from scipy import ndimage

from datxai.errors import InputError
from datxai.imaging.atlas import BASES, HEAD, load_atlas, make_template_bases
from datxai.imaging.registration import register
from datxai.volume import Grid, Volume, resample

MAX_ERROR_MM = 2.0  # anywhere in the putamina
UPTAKE = {  # caudate and putamen, left and right, over the rest of the brain
    "normal": (4.4, 4.6, 4.8, 5.0),
    "one side": (2.5, 4.2, 1.2, 4.2),
    "reduced": (2.2, 2.4, 1.0, 1.1),
    "none": (1.0, 1.0, 0.8, 0.8),
}


@pytest.fixture(scope="module")
def bases():
    return make_template_bases(load_atlas())


@pytest.fixture(scope="module")
def putamina():
    labels = load_atlas().labels
    index = np.argwhere(np.isin(labels.data, (37, 78)))[::50]
    return labels.grid.index_to_mm(index)


def turn(pitch, roll, yaw):
    matrix = np.eye(3)
    for axis, degrees in enumerate((pitch, roll, yaw)):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        i, j = (k for k in range(3) if k != axis)
        step = np.eye(3)
        step[[i, i, j, j], [i, j, i, j]] = c, -s, s, c
        matrix = matrix @ step
    return matrix


def make_pose(rng, degrees=10.0, shift_mm=15.0, size=0.08):
    """Template mm -> scan mm."""
    pose = np.eye(4)
    pose[:3, :3] = turn(*rng.uniform(-degrees, degrees, 3)) @ np.diag(1 + rng.uniform(-size, size, 3))
    pose[:3, 3] = rng.uniform(-shift_mm, shift_mm, 3)
    return pose


def make_scan(bases, uptake, pose, rng, spacing=4.4, extra_fwhm=6.0, noise=0.12):
    """The template's ingredients with weights, sharpness, gain and noise of their own."""
    weights = {"brain": 1.0, "scalp": rng.uniform(0.3, 1), "glands": rng.uniform(0.5, 3)}
    weights |= dict(zip(("caudate_left", "caudate_right", "putamen_left", "putamen_right"), uptake))
    truth = Volume(sum(weight * bases[name].data for name, weight in weights.items()), HEAD.affine)
    shape = tuple(round(mm / spacing) for mm in (290, 290, 230))
    origin = [-(n - 1) / 2 * spacing for n in shape] - np.array([0, 15, 5])
    scan = resample(truth, Grid.axis_aligned(shape, 3 * [spacing], origin), np.linalg.inv(pose))
    data = ndimage.gaussian_filter(scan.data, extra_fwhm / 2.355 / spacing)
    grain = ndimage.gaussian_filter(rng.normal(size=shape), 3.0 / spacing)
    data = data * (1 + noise * grain / grain.std()) + 0.05 * noise * grain / grain.std()
    return Volume(data * rng.uniform(10, 1000), scan.affine)


def errors_mm(affine, pose, points):
    return np.linalg.norm((affine - pose)[:3, :3] @ points.T + (affine - pose)[:3, 3:], axis=0)


@pytest.mark.parametrize("spacing", [4.4, 2.0])
@pytest.mark.parametrize("kind", UPTAKE)
def test_a_known_pose_is_found(kind, spacing, bases, putamina):
    rng = np.random.default_rng([7, list(UPTAKE).index(kind), int(spacing)])
    pose = make_pose(rng)
    scan = make_scan(bases, UPTAKE[kind], pose, rng, spacing, extra_fwhm=rng.choice([0.0, 6.0, 12.0]))
    found = register(scan, bases)
    assert errors_mm(found.affine, pose, putamina).max() < MAX_ERROR_MM
    assert found.plausible, found.reason
    assert found.similarity > 0.95
    assert found.reason == ""


def test_weights_tell_the_uptake(bases):
    rng = np.random.default_rng(11)
    scan = make_scan(bases, UPTAKE["one side"], make_pose(rng), rng, extra_fwhm=0.0, noise=0.02)
    weights = register(scan, bases).weights
    assert set(weights) == set(BASES)
    for name, expected in zip(("caudate_left", "caudate_right", "putamen_left", "putamen_right"), UPTAKE["one side"]):
        assert weights[name] / weights["brain"] == pytest.approx(expected, rel=0.15), name


def test_a_head_far_off_cut_at_the_neck_and_on_oblique_axes_is_found(bases, putamina):
    rng = np.random.default_rng(5)
    pose = make_pose(rng, 20.0, 40.0, 0.1)
    scan = make_scan(bases, UPTAKE["normal"], pose, rng)
    gantry = np.eye(4)
    gantry[:3, :3] = turn(12, -8, 15)
    cut = scan.affine.copy()
    cut[:3, 3] += 12 * cut[:3, 2]  # the field of view ends at the temporal lobes
    found = register(Volume(scan.data[:, :, 12:], gantry @ cut), bases)
    assert errors_mm(found.affine, gantry @ pose, putamina).max() < MAX_ERROR_MM


def test_a_single_template_will_do_for_a_normal_scan(bases, putamina):
    rng = np.random.default_rng(3)
    pose = make_pose(rng)
    template = Volume(sum(weight * bases[name].data for name, weight in BASES.items()), HEAD.affine)
    found = register(make_scan(bases, UPTAKE["normal"], pose, rng), {"template": template})
    assert errors_mm(found.affine, pose, putamina).mean() < MAX_ERROR_MM


def test_the_gain_does_not_matter(bases):
    rng = np.random.default_rng(2)
    scan = make_scan(bases, UPTAKE["reduced"], make_pose(rng), rng)
    once, twice = register(scan, bases), register(Volume(scan.data * 4.0, scan.affine), bases)
    np.testing.assert_allclose(twice.affine, once.affine, atol=1e-6)
    assert twice.weights["brain"] == pytest.approx(4 * once.weights["brain"])


def test_what_is_no_head_is_reported_not_trusted(bases):
    grid = Grid.axis_aligned((64, 64, 64), (4, 4, 4), (-126, -126, -126))
    position = grid.world_coordinates()
    cylinder = (np.hypot(position[..., 0], position[..., 1]) < 90) & (abs(position[..., 2]) < 80)
    found = register(Volume(cylinder, grid.affine), bases)
    assert not found.plausible
    assert found.reason


def test_noise_alone_is_refused(bases):
    noise = np.random.default_rng(0).normal(3.0, 1.0, (32, 32, 32))
    with pytest.raises(InputError, match="no head stands out"):
        register(Volume(noise, np.diag([4.0, 4.0, 4.0, 1.0])), bases)
