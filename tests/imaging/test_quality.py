import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from datxai.errors import InputError
from datxai.imaging.atlas import load_atlas, make_regions
from datxai.imaging.quality import LIMITS, judge, measure_fit, measure_uptake
from datxai.imaging.template import HEAD, make_template, make_template_bases
from datxai.volume import Grid, Volume, resample

GOOD = {
    "similarity": 0.97, "overlap": 0.95, "drift_mm": 1.0, "determinant": 0.9, "zoom_min": 0.93, "zoom_max": 1.02,
    "wrapped_cm2": 0.0, "plateau_ml": 0.0, "levels": 1e3, "rotation_deg": 8.0,
    "shear": 0.02, "coverage": 1.0, "reference": 1.1, "contrast": 2.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def template():
    return make_template(HEAD, load_atlas())


@pytest.fixture(scope="module")
def bases():
    return make_template_bases(load_atlas())


def test_every_measure_has_limits_the_inner_within_the_outer():
    assert set(GOOD) == set(LIMITS)
    for limits in LIMITS.values():
        assert limits.outer[0] <= limits.inner[0] < limits.inner[1] <= limits.outer[1]


def test_green_amber_red():
    assert judge(GOOD) == {"verdict": "green", "reason": "", **GOOD}
    doubtful = judge(GOOD | {"similarity": 0.8, "shear": 0.12})
    assert doubtful["verdict"] == "amber"
    assert "correlation with the template 0.80, expected at least 0.87" in doubtful["reason"]
    assert "shear of the head 0.12, expected at most 0.08" in doubtful["reason"]
    with pytest.raises(InputError, match=r"quality control: rotation .* 100.00, expected at most 60"):
        judge(GOOD | {"rotation_deg": 100.0})


def test_a_head_without_a_striatum_is_no_dat_spect():
    """A phantom of plain water, say: every scan of the simulated cohort has more than 0.5."""
    assert judge(GOOD | {"contrast": 0.2})["verdict"] == "amber"
    with pytest.raises(InputError, match=r"largest binding ratio of the striatum 0.00, expected at least 0.1"):
        judge(GOOD | {"contrast": 0.0})


def test_what_could_not_be_measured_says_nothing():
    assert judge(GOOD | {"drift_mm": None}) == {"verdict": "green", "reason": "", **GOOD, "drift_mm": None}


def test_nothing_that_is_no_number_is_green():
    with pytest.raises(InputError, match="quality control"):
        judge(GOOD | {"overlap": float("nan")})


def test_the_geometry_of_a_known_map(template, bases):
    rotation = Rotation.from_rotvec(np.radians(20) * np.array([0.6, 0.0, 0.8])).as_matrix()
    stretch = np.array([[1.1, 0.05, 0.0], [0.05, 0.9, 0.0], [0.0, 0.0, 1.0]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ stretch
    found = measure_fit(template, affine, bases)
    assert found["rotation_deg"] == pytest.approx(20, abs=1e-6)
    assert found["shear"] == pytest.approx(0.05, abs=1e-9)
    assert found["determinant"] == pytest.approx(1.1 * 0.9 - 0.05**2, abs=1e-9)
    low, high = np.linalg.eigvalsh(stretch)[[0, -1]]
    assert (found["zoom_min"], found["zoom_max"]) == (pytest.approx(low), pytest.approx(high))


def test_the_template_fits_itself_and_no_more_when_it_is_shifted(template, bases):
    here = measure_fit(template, np.eye(4), bases)
    assert here["similarity"] > 0.99
    assert here["overlap"] > 0.95
    shifts = []
    for mm in (15, 30, 60):
        off = np.eye(4)
        off[1, 3] = mm
        shifts.append(measure_fit(template, off, bases))
    similarity = [here["similarity"], *(found["similarity"] for found in shifts)]
    assert similarity == sorted(similarity, reverse=True)
    assert [found["drift_mm"] for found in (here, *shifts[:2])] == pytest.approx([0, 15, 30], abs=1.0)
    with pytest.raises(InputError, match="quality control"):
        judge(shifts[-1])


def test_a_slab_is_compared_within_itself(template, bases):
    """It cannot tell how a head lies; that it lies elsewhere, or back to front, shows."""
    slab = resample(template, Grid.axis_aligned((91, 109, 1), (2, 2, 12), (-90, -126, 3)))
    noisy = Volume(slab.data + np.random.default_rng(5).normal(0, 0.05, slab.shape) * (slab.data > 0.1), slab.affine)
    here = measure_fit(noisy, np.eye(4), bases)
    assert here["similarity"] > 0.99
    assert here["overlap"] > 0.95
    assert here["drift_mm"] is None
    judge(here)
    moved = []
    for mm in (10, 20, 30):
        affine = slab.affine.copy()
        affine[1, 3] += mm
        moved.append(measure_fit(Volume(noisy.data, affine), np.eye(4), bases)["similarity"])
    assert moved == sorted(moved, reverse=True)
    assert moved[-1] < LIMITS["similarity"].outer[0]
    assert judge(measure_fit(Volume(noisy.data[:, ::-1], slab.affine), np.eye(4), bases))["verdict"] == "amber"
    shift = np.eye(4)
    shift[1, 3] = 30  # a map that makes up for it
    affine = slab.affine.copy()
    affine[1, 3] += 30
    assert measure_fit(Volume(noisy.data, affine), shift, bases)["similarity"] == pytest.approx(here["similarity"])


def test_a_slab_of_nothing_is_like_nothing(bases):
    blank = Volume(np.zeros((91, 109, 1)), Grid.axis_aligned((91, 109, 1), (2, 2, 12), (-90, -126, 3)).affine)
    found = measure_fit(blank, np.eye(4), bases)
    assert (found["similarity"], found["overlap"]) == (0, 0)


def test_a_cylinder_is_no_head(bases):
    position = HEAD.world_coordinates()
    cylinder = (np.hypot(position[..., 0], position[..., 1]) < 60) & (abs(position[..., 2]) < 70)
    with pytest.raises(InputError, match="quality control"):
        judge(measure_fit(Volume(cylinder, HEAD.affine), np.eye(4), bases))


def test_uptake_outside_the_head_shows_in_the_reference(template):
    regions = make_regions(HEAD, load_atlas())
    scaled = template.data / np.percentile(template.data[regions["reference_region"]], 75)
    everything = np.ones(HEAD.shape, bool)
    found = measure_uptake(Volume(scaled, HEAD.affine), regions["brain"], everything)
    assert found["coverage"] == 1
    assert found["reference"] == pytest.approx(1 / scaled[regions["brain"]].mean(dtype=float), rel=1e-6)
    upper = everything.copy()
    upper[:, :, : HEAD.shape[2] // 2] = False
    half = measure_uptake(Volume(scaled, HEAD.affine), regions["brain"], upper)
    z = HEAD.world_coordinates()[..., 2][regions["brain"]]
    above = z >= HEAD.affine[2, 3] + 2 * (HEAD.shape[2] // 2)
    assert half["coverage"] == pytest.approx(above.mean(), abs=1e-6)
    assert half["reference"] == pytest.approx(1 / scaled[regions["brain"]][above].mean(dtype=float), rel=1e-6)
