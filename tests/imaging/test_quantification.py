import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datxai.anatomy import WORKING_GRID
from datxai.imaging.atlas import load_atlas, make_regions
from datxai.imaging.intensity import scale
from datxai.imaging.quantification import average_hottest, measure_halves, measure_sbr, split_putamen
from datxai.volume import Grid, Volume

EXACT = 1e-5
GRID = Grid.axis_aligned((61, 61, 41), (2, 2, 2), (-60, -60, -40))
BINDING = {"putamen_left": 0.6, "putamen_right": 1.4, "caudate_left": 1.9, "caudate_right": 2.6}


def ellipsoid(centre, axes):
    return (((GRID.world_coordinates() - centre) / axes) ** 2).sum(axis=-1) <= 1


def make_phantom():
    """A piecewise constant head with known binding; putamen 20 ml and caudate 11 ml a side."""
    data = np.zeros(GRID.shape)
    head = ellipsoid((0, 0, 0), (58, 58, 38))
    data[head] = 40.0
    regions = {}
    for side, sign in (("left", -1), ("right", 1)):
        structures = {
            "putamen": ellipsoid((30 * sign, -12, 0), (12, 25, 16)),
            "caudate": ellipsoid((15 * sign, 30, 0), (9, 16, 18)),
        }
        for name, mask in structures.items():
            data[mask] *= 1.0 + BINDING[f"{name}_{side}"]
        large = {
            "putamen": ellipsoid((30 * sign, -12, 0), (15, 28, 19)),
            "caudate": ellipsoid((15 * sign, 30, 0), (11, 19, 20)),
        }
        regions |= {f"{name}_roi_{side}": mask for name, mask in large.items()}
        regions[f"putamen_{side}"] = structures["putamen"]
        regions[f"striatum_roi_{side}"] = large["putamen"] | large["caudate"]
    striata = regions["striatum_roi_left"] | regions["striatum_roi_right"]
    return Volume(data, GRID.affine), regions, head & ~striata


def test_a_phantom_gives_the_binding_it_was_made_with():
    volume, regions, reference = make_phantom()
    sbr = measure_sbr(scale(volume, reference), regions)
    for name, expected in BINDING.items():
        assert sbr[name] == pytest.approx(expected, abs=EXACT)
    for side in ("left", "right"):  # the hottest 15 ml: all of the caudate, the rest putamen
        caudate = np.count_nonzero(np.isclose(volume.data, 40 * (1 + BINDING[f"caudate_{side}"]))) * GRID.voxel_ml
        mixed = caudate * BINDING[f"caudate_{side}"] + (15 - caudate) * BINDING[f"putamen_{side}"]
        assert sbr[f"striatum_{side}"] == pytest.approx(mixed / 15, abs=EXACT)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-50, 50), min_size=1, max_size=12), st.integers(1, 130))
def test_the_last_voxel_counts_in_part(values, tenths):
    """A voxel of 1 ml cut into ten parts: the hottest parts are then whole ones."""
    data = np.array(values, np.float32)
    parts = np.sort(np.repeat(data.astype(float), 10))[::-1][:tenths]
    hottest = average_hottest(data, np.ones(len(data), bool), tenths / 10, 1.0)
    assert hottest == pytest.approx(parts.mean(), abs=1e-9)


def test_of_a_part_the_same_part_of_the_amount():
    """A cut that leaves half of every ROI gives the ratios of the hottest 5, 2.5 and 7.5 ml there."""
    volume, regions, reference = make_phantom()
    volume = scale(volume, reference)
    volume.data[:] += np.random.default_rng(4).normal(0, 0.1, volume.shape)
    covered = GRID.world_coordinates()[..., 2] >= 0
    found = measure_sbr(volume, regions, covered=covered)
    for name, roi in ((name, mask) for name, mask in regions.items() if "_roi_" in name):
        inside = np.sort(volume.data[roi & covered].astype(float))
        structure, side = name.split("_roi_")
        wanted = {"putamen": 10, "caudate": 5, "striatum": 15}[structure] * len(inside) / roi.sum() / GRID.voxel_ml
        parts = np.interp(wanted, np.arange(len(inside) + 1), np.concatenate([[0], np.cumsum(inside[::-1])]))
        assert found[f"{structure}_{side}"] == pytest.approx(parts / wanted - 1, abs=1e-6)
    everything = np.ones(GRID.shape, bool)
    assert measure_sbr(volume, regions, covered=everything) == measure_sbr(volume, regions)


def test_only_the_mask_is_looked_at():
    data = np.array([9.0, 1.0, 3.0, 2.0])
    assert average_hottest(data, np.array([False, True, True, True]), 2.0, 1.0) == 2.5


def test_halves_of_the_putamen_are_measured_by_themselves():
    """Behind y = -12, the middle of both ellipsoids, half as much binds: each half is then known without the voxels."""
    volume, regions, reference = make_phantom()
    rear = GRID.world_coordinates()[..., 1] <= -12
    for side in ("left", "right"):
        volume.data[regions[f"putamen_{side}"] & rear] = 40.0 * (1 + BINDING[f"putamen_{side}"] / 2)
    scaled = scale(volume, reference)
    found = measure_halves(scaled, regions)
    for side in ("left", "right"):
        assert found[f"putamen_anterior_{side}"] == pytest.approx(BINDING[f"putamen_{side}"], abs=EXACT)
        assert found[f"putamen_posterior_{side}"] == pytest.approx(BINDING[f"putamen_{side}"] / 2, abs=EXACT)
    front = measure_halves(scaled, regions, covered=~rear)
    assert front["putamen_posterior_left"] is None
    assert front["putamen_anterior_left"] == pytest.approx(found["putamen_anterior_left"])


def test_halves_are_of_one_size_in_the_anatomy_and_make_up_the_roi():
    regions = make_regions(WORKING_GRID, load_atlas())
    halves = split_putamen(regions)
    y = WORKING_GRID.world_coordinates()[..., 1]
    for side in ("left", "right"):
        front, rear = halves[f"putamen_anterior_{side}"], halves[f"putamen_posterior_{side}"]
        np.testing.assert_array_equal(front | rear, regions[f"putamen_roi_{side}"])
        assert y[front].min() > y[rear].max()
        anatomy = regions[f"putamen_{side}"]
        shares = [np.count_nonzero(anatomy & half) / np.count_nonzero(anatomy) for half in (front, rear)]
        assert shares == pytest.approx([0.5, 0.5], abs=0.05)
    np.testing.assert_array_equal(halves["putamen_anterior_left"][::-1], halves["putamen_anterior_right"])
