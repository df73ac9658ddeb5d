import numpy as np
import pytest
from scipy import ndimage

from datxai.errors import InputError
from datxai.imaging.atlas import load_atlas
from datxai.imaging.head import blur
from datxai.imaging.orientation import TURNS
from datxai.imaging.reconstruction import reconstruct
from datxai.imaging.registration import compare, register
from datxai.imaging.template import BASES, HEAD, make_template, make_template_bases
from datxai.phantom.population import draw_population
from datxai.phantom.scan import simulate_projections
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


def by_part(uptake):
    """Weights of the striatal bases, of caudate and putamen on both sides; the putamen is in two parts."""
    parts = {"caudate": uptake[:2], "putamen_anterior": uptake[2:], "putamen_posterior": uptake[2:]}
    return {f"{part}_{side}": value for part, pair in parts.items() for side, value in zip(("left", "right"), pair)}


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
    weights |= by_part(uptake)
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
    assert found.orientation == ""
    similarity, overlap, drift = compare(scan, bases, found.affine)
    assert similarity > 0.95
    assert overlap > 0.9
    assert drift < 1.5
    astray = found.affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 9], [0, 0, 1, -4], [0, 0, 0, 1.0]])
    assert compare(scan, bases, astray)[2] == pytest.approx(np.hypot(9, 4), abs=2.0)


def test_weights_tell_the_uptake(bases):
    rng = np.random.default_rng(11)
    scan = make_scan(bases, UPTAKE["one side"], make_pose(rng), rng, extra_fwhm=0.0, noise=0.02)
    weights = register(scan, bases).weights
    assert set(weights) == set(BASES)
    for name, expected in by_part(UPTAKE["one side"]).items():
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


@pytest.fixture(scope="module")
def reduced(bases):
    """A scan, and what registration says of it."""
    rng = np.random.default_rng(2)
    scan = make_scan(bases, UPTAKE["reduced"], make_pose(rng), rng)
    return scan, register(scan, bases)


@pytest.mark.parametrize("gain", [4.0, 1e-9, 1e9])
def test_the_gain_does_not_matter(gain, reduced, bases):
    """Counts, becquerels, or a scan normalised to a sum of one."""
    scan, once = reduced
    other = register(Volume(scan.data * gain, scan.affine), bases)
    np.testing.assert_allclose(other.affine, once.affine, atol=1e-3)
    assert other.weights["brain"] == pytest.approx(gain * once.weights["brain"], rel=1e-4)


def test_noise_alone_is_refused(bases):
    noise = np.random.default_rng(0).normal(3.0, 1.0, (32, 32, 32))
    with pytest.raises(InputError, match="no head stands out"):
        register(Volume(noise, np.diag([4.0, 4.0, 4.0, 1.0])), bases)


@pytest.fixture(scope="module")
def upright(bases):
    """Scans by uptake."""
    scans = {}
    for kind in ("normal", "reduced"):
        rng = np.random.default_rng(17)
        scans[kind] = make_scan(bases, UPTAKE[kind], make_pose(rng), rng)
    return scans


STORED = [  # how, and what is said of it
    (lambda data: data, ""),
    (lambda data: data[::-1], ""),  # a head is symmetric: exchanged sides cannot be seen
    (lambda data: data[:, :, ::-1], "upside down"),
    (lambda data: data[::-1, ::-1], "back to front"),
    (lambda data: data[:, ::-1, ::-1], "upside down and back to front"),
    (
        lambda data: data.transpose(2, 1, 0),
        "with its axes exchanged (left-right, back-front and foot-head of the patient along its z, y, x)",
    ),
    (
        lambda data: data.transpose(2, 0, 1)[:, ::-1],
        "with its axes exchanged (left-right, back-front and foot-head of the patient along its y, z, x)",
    ),
]


@pytest.mark.parametrize(
    ("kind", "stored", "said"), [*(("reduced", *case) for case in STORED), *(("normal", *STORED[n]) for n in (0, 2, 5))]
)
def test_a_scan_that_is_stored_the_wrong_way_round_is_named(kind, stored, said, upright, bases):
    scan = upright[kind]
    assert register(Volume(np.ascontiguousarray(stored(scan.data)), scan.affine), bases).orientation == said


def test_a_scan_that_looks_turned_from_afar_is_upright(bases):
    """A reduced case of the phantom whose coarsest fit is far better with its axes exchanged."""
    subject = next(one for one in draw_population(90, 456) if one.participant_id == "sub-0089")
    counts, camera = simulate_projections(subject)
    scan = reconstruct(counts, camera.angles_deg, camera.pixel_mm)
    assert not register(scan, bases).orientation


def test_turns_are_the_24_rotations_of_a_cube_upright_first():
    np.testing.assert_array_equal(TURNS[0], np.eye(3))
    assert len({turn.tobytes() for turn in map(np.rint, TURNS)}) == 24
    for matrix in TURNS:
        np.testing.assert_array_equal(matrix @ matrix.T, np.eye(3))
        assert np.linalg.det(matrix) == pytest.approx(1)


def test_a_wrong_voxel_size_is_named(bases):
    rng = np.random.default_rng(18)
    scan = make_scan(bases, UPTAKE["normal"], make_pose(rng), rng)
    with pytest.raises(InputError, match=r"litres, expected a head .* voxel size"):
        register(Volume(scan.data, np.eye(4)), bases)


def test_affine_and_inverse_take_points_there_and_back(bases):
    """A hot spot put into the scan is found at its place in MNI space, and back at its place in the scan."""
    rng = np.random.default_rng(19)
    scan = make_scan(bases, UPTAKE["normal"], make_pose(rng), rng)
    affine = register(scan, bases).affine
    voxel = np.array([30, 40, 30])
    hot = np.zeros(scan.shape, np.float32)
    hot[tuple(voxel)] = 1.0
    there = resample(Volume(hot, scan.affine), HEAD, affine)
    peak = HEAD.index_to_mm(np.unravel_index(there.data.argmax(), HEAD.shape))
    np.testing.assert_allclose(affine[:3, :3] @ peak + affine[:3, 3], scan.grid.index_to_mm(voxel), atol=2.5)
    back = resample(there, scan.grid, np.linalg.inv(affine))
    assert np.abs(np.unravel_index(back.data.argmax(), scan.shape) - voxel).max() <= 1


def test_a_template_from_a_file_registers_as_well_as_the_packaged_one(bases, putamina):
    """Also diseased scans, though the template shows healthy ones: its striatum is taken out and fitted apart."""
    template = make_template(HEAD, load_atlas())
    own = make_template_bases(load_atlas(), Volume(250 * template.data, HEAD.affine))
    rng = np.random.default_rng(20)
    for kind in ("normal", "reduced"):
        pose = make_pose(rng)
        scan = make_scan(bases, UPTAKE[kind], pose, rng)
        assert errors_mm(register(scan, own).affine, pose, putamina).max() < MAX_ERROR_MM


def test_a_template_that_is_none_is_refused(bases):
    noise = Volume(np.random.default_rng(0).normal(1, 1, HEAD.shape), HEAD.affine)
    with pytest.raises(InputError, match=r"registration\.template: correlates .* by -?0\.\d\d"):
        make_template_bases(load_atlas(), noise)


def test_smoothing_within_a_box_is_smoothing_of_the_whole():
    data = np.zeros((40, 30, 20), np.float32)
    data[20:24, 0:3, 9:12] = np.random.default_rng(0).normal(size=(4, 3, 3))
    blurred = blur(Volume(data, np.diag([2.0, 2.0, 3.0, 1.0])), 8.0).data
    sigma = 8.0 / np.sqrt(8 * np.log(2)) / np.array([2.0, 2.0, 3.0])
    np.testing.assert_array_equal(blurred, ndimage.gaussian_filter(data, sigma, mode="nearest"))
