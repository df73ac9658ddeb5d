"""Scans that show a part of the head: a slab of one slice, a field of view that is cut, a file padded with zeros."""

from dataclasses import replace

import numpy as np
import pytest

from datxai.anatomy import WORKING_GRID
from datxai.case import SBR, Imaging
from datxai.config import Atlas, Config, Lattice, Preprocessing, Registration
from datxai.errors import InputError
from datxai.imaging.atlas import load_atlas
from datxai.imaging.template import HEAD, make_template_bases
from datxai.volume import Grid, Volume, resample

SLAB = Lattice("slab_12mm", [91, 109, 1], [2, 2, 12], [-90, -126, 3])
WHOLE = Lattice("mni_4mm", [46, 55, 46], [4, 4, 4], [-90, -126, -72])
Z = WORKING_GRID.world_coordinates()[..., 2]


@pytest.fixture(scope="module")
def imaging():
    return Imaging.of(Config(grid=SLAB, registration=Registration("none"), atlas=Atlas()))


@pytest.fixture(scope="module")
def head():
    """A head in MNI space whose right putamen has lost uptake, with noise, in counts."""
    bases = make_template_bases(load_atlas())
    weights = {"brain": 1.0, "scalp": 0.5, "caudate_left": 4.5, "caudate_right": 4.0}
    weights |= {f"putamen_{end}_{side}": value for end in ("anterior", "posterior")
                for side, value in (("left", 4.0), ("right", 2.0))}  # fmt: skip
    data = sum(weight * bases[name].data for name, weight in weights.items())
    data = 40 * data * np.random.default_rng(8).uniform(0.8, 1.2, data.shape)
    return resample(Volume(data, HEAD.affine), WORKING_GRID)


def cut_slab(head, centre=3, thickness=12):
    return resample(head, Grid.axis_aligned((91, 109, 1), (2, 2, thickness), (-90, -126, centre)))


def measure(data, regions, seen):
    """Reference value and binding ratios of what is ``seen``, written out voxel by voxel."""
    reference = np.percentile(data[regions["reference_region"] & seen].astype(float), 75)
    ratios = {}
    for name in SBR:
        structure, side = name.split("_")
        roi = regions[f"{structure}_roi_{side}"]
        values = np.sort(data[roi & seen].astype(float))[::-1] / reference
        wanted = {"putamen": 10, "caudate": 5, "striatum": 15}[structure] / 0.008 * (roi & seen).sum() / roi.sum()
        weights = np.clip(wanted - np.arange(len(values)), 0, 1)
        ratios[name] = values @ weights / wanted - 1
    return reference, ratios


def test_a_slab_is_measured_by_what_it_shows(imaging, head):
    slab, seen = cut_slab(head), (Z > -3) & (Z < 9)
    volume, found = imaging.process(slab, "slab")
    six = np.zeros(WORKING_GRID.shape, np.float32)
    six[seen] = np.repeat(slab.data, 6, axis=2).ravel()
    reference, ratios = measure(six, imaging.regions, seen)
    assert found["reference_value"] == pytest.approx(reference, rel=1e-5)
    assert {name: found[name] for name in SBR} == pytest.approx(ratios, abs=1e-4)
    assert volume.shape == (91, 109, 1)
    np.testing.assert_allclose(volume.data[::-1], slab.data / reference, atol=1e-4)  # mirrored: the right is lower
    assert found["mirrored"]
    counted = {name: (imaging.regions[name] & seen).sum() / imaging.regions[name].sum() for name in found["coverage"]}
    assert found["coverage"] == pytest.approx(counted)
    assert counted["putamen_roi_left"] == pytest.approx(0.353, abs=0.001)
    reference_ml = volume.recorded("scale")["reference_ml"]
    assert reference_ml == pytest.approx(0.008 * (imaging.regions["reference_region"] & seen).sum())
    assert found["quality"]["verdict"] == "green"
    assert found["quality"]["coverage"] == 1
    assert found["quality"]["drift_mm"] is None


def test_a_slab_says_much_the_same_as_its_head(imaging, head):
    _, whole = imaging.process(head, "head")
    _, slab = imaging.process(cut_slab(head), "slab")
    assert set(whole["coverage"].values()) == {1.0}
    assert slab["mirrored"] == whole["mirrored"]
    for name in SBR:
        assert slab[name] == pytest.approx(whole[name], rel=0.35), "its level shows the most of the striatum"


def test_a_cut_head_is_measured_by_what_it_shows(imaging, head):
    """Cropped, or with zeros where it was cut; the last voxels are measured up to their edge."""
    kept = slice(33, 70)  # z from -6 to 66 mm
    affine = head.affine.copy()
    affine[2, 3] += 2 * kept.start
    cropped = Volume(head.data[:, :, kept], affine)
    padded = np.zeros_like(head.data)
    padded[:, :, kept] = cropped.data
    seen = (Z > -7) & (Z < 67)
    reference, ratios = measure(head.data, imaging.regions, seen)
    (volume, found), (other, same) = (
        imaging.process(scan, "cut") for scan in (cropped, Volume(padded, head.affine))
    )
    assert found["reference_value"] == pytest.approx(reference, rel=1e-6)
    assert {name: found[name] for name in SBR} == pytest.approx(ratios, abs=1e-5)
    assert 0.3 < found["coverage"]["reference_region"] < 0.7
    assert 0.6 < found["coverage"]["putamen_roi_left"] < 0.7
    np.testing.assert_array_equal(volume.data, other.data)
    assert {name: same[name] for name in SBR} == {name: found[name] for name in SBR}
    assert same["coverage"] == found["coverage"]


def without_striatum(head):
    slab = cut_slab(head)
    affine = slab.affine.copy()
    affine[1, 3] += 2 * 80
    return Volume(slab.data[:, 80:], affine)  # what lies in front of y = 34


@pytest.mark.parametrize(
    ("make", "least", "words"),
    [
        (lambda head: cut_slab(head, centre=43), 0.9, "covers 0% of grid slab_12mm, expected 90% or more"),
        (lambda head: cut_slab(head, centre=43), 0, "holds 0% of the reference region, 0% of the left putamen"),
        (lambda head: cut_slab(head, centre=0), 0.9, r"holds \d\d% of the reference region, \d\d% of the left putamen"),
        (lambda head: cut_slab(head, thickness=6), 0.9, "one slice of 6 mm, expected 12 mm as grid slab_12mm has"),
        (lambda head: cut_slab(head, thickness=24), 0, "one slice of 24 mm, expected 12 mm"),
        (without_striatum, 0, "holds 0% of the left putamen, 0% of the right putamen"),
    ],
    ids=["another height", "no region", "a little off", "thin", "thick", "no striatum"],
)
def test_what_shows_too_little_is_refused_by_name(imaging, head, make, least, words):
    chosen = replace(imaging, settings=replace(imaging.settings, preprocessing=Preprocessing(min_coverage=least)))
    with pytest.raises(InputError, match=words) as caught:
        chosen.process(make(head), "sub-01")
    assert str(caught.value).startswith("sub-01: the ")
    assert len(str(caught.value).splitlines()) == 1


def test_a_grid_of_the_whole_head_wants_a_whole_head(head):
    settings = Config(grid=WHOLE, registration=Registration("none"), atlas=Atlas())
    with pytest.raises(InputError, match=r"covers \d% of grid mni_4mm, expected 90% or more"):
        Imaging.of(settings).process(cut_slab(head), "slab")
    settings = replace(settings, registration=Registration("affine"))
    with pytest.raises(InputError, match="or set registration=none for slabs in MNI space"):
        Imaging.of(settings).process(cut_slab(head), "slab")
