"""The average head and how it is placed in the camera."""

import numpy as np
import pytest
from scipy import ndimage

from datxai import mni
from datxai.phantom import anatomy
from datxai.phantom.anatomy import BINDING, HEAD_CENTRE, HEAD_GRID, PUTAMEN_PARTS, UPTAKE, Head, average_head, place
from datxai.volume import Grid

POSITION_TOLERANCE_MM = 0.6  # a weighted centre on 4 mm voxels
AMOUNT_TOLERANCE = 0.01
SCAN = Grid.axis_aligned((64, 64, 64), (4, 4, 4), (-126, -126, -126))
FINE = Grid.axis_aligned((110, 110, 70), (2, 2, 2), (-109, -109, -69))


def uptake(value=1.0, **regions):
    """The given regions' uptake, ``value`` everywhere else."""
    binding = [f"{region}_{side}" for region in BINDING for side in ("left", "right")]
    return {**dict.fromkeys([*UPTAKE, *binding], value), **regions}


def centre_of_mass(volume):
    weight = volume.data / volume.data.sum(dtype=np.float64)
    return np.einsum("xyz,xyzd->d", weight, volume.grid.world_coordinates())


def atlas_points(*names):
    labels, label_names = mni.load_labels()
    codes = [code for code, name in label_names.items() if name in names]
    return labels.grid.index_to_mm(np.argwhere(np.isin(labels.data, codes)))


def count_binding(structure, side):
    """Voxels of what of the atlas' caudate or putamen binds: less what has none of it 2 mm farther in front, and, of
    the putamen, farther out; with what is free up to 2 mm behind that."""
    voxels = {tuple(point) for point in atlas_points(f"{structure}_{side}").tolist()}
    inner = {(x, y, z) for x, y, z in voxels if (x, y + 2, z) in voxels}
    if structure == "caudate":
        return len(inner)
    out = {"left": -2, "right": 2}[side]
    inner = {(x, y, z) for x, y, z in inner if (x + out, y, z) in voxels}
    taken = {tuple(point) for point in atlas_points(*mni.load_labels()[1].values()).tolist()}
    return len(inner | ({(x, y - step, z) for x, y, z in inner for step in (1, 2)} - taken))


def test_regions_hold_what_the_atlas_gives_them():
    fractions, names = average_head()
    amount = dict(zip(names, fractions.sum(axis=0) * HEAD_GRID.voxel_ml))
    for side in ("left", "right"):
        caudate = amount[f"caudate_{side}"] + amount[f"caudate_dorsal_{side}"]
        assert caudate == pytest.approx(count_binding("caudate", side) / 1000)
        parts = [amount[f"{part}_{side}"] for part in PUTAMEN_PARTS]
        assert sum(parts) == pytest.approx(count_binding("putamen", side) / 1000, rel=0.005)  # some is bridge
        assert min(parts) > 0.7 * max(parts)
    assert amount["brainstem"] + amount["midbrain"] == pytest.approx(len(atlas_points("brainstem")) / 1000)
    assert 100 < amount["cerebellum"] < 220
    total = fractions.sum(axis=1)
    assert total.min() >= 0
    assert total.max() < 1.001
    assert (total > 0.99).sum() > 0.95 * (total > 0).sum()  # no holes


def test_bridges_lie_between_caudate_and_putamen():
    fractions, names = average_head()
    x, y, z = HEAD_GRID.world_coordinates().reshape(-1, 3).T
    column = {name: fractions[:, [names.index(name)]].toarray().ravel() for name in names}
    for side, sign in (("left", -1), ("right", 1)):
        bridges = column[f"bridges_{side}"]
        assert 1.0 < bridges.sum() * HEAD_GRID.voxel_ml < 4.0
        inner, middle, outer = (
            np.average(sign * x, weights=weight * (y > -5) * (y <= 15))
            for weight in (column[f"caudate_{side}"], bridges, sum(column[f"{p}_{side}"] for p in PUTAMEN_PARTS))
        )
        assert inner + 2 < middle < outer - 2
        assert z[bridges > 0].min() >= -5


def test_putamen_parts_follow_one_another():
    fractions, names = average_head()
    y = HEAD_GRID.world_coordinates().reshape(-1, 3)[:, 1]
    middle = [fractions[:, [names.index(f"{part}_left")]].toarray().ravel() for part in PUTAMEN_PARTS]
    posterior, central, anterior = (np.average(y, weights=weight) for weight in middle)
    assert posterior < central - 5 < anterior - 10


@pytest.mark.parametrize(
    "head",
    [
        Head(),
        Head(zooms=(0.9, 0.95, 1.0), rotation_deg=(10, -4, 7), shift_mm=(12, -9, 6)),
    ],
)
def test_a_structure_lands_where_the_affine_says(head):
    activity, _ = place(head, uptake(0.0, pallidum_right=1.0), SCAN)
    in_mni = atlas_points("pallidum_right").mean(axis=0)
    expected = head.mni_to_scan[:3, :3] @ in_mni + head.mni_to_scan[:3, 3]
    assert np.abs(centre_of_mass(activity) - expected).max() < POSITION_TOLERANCE_MM
    amount = activity.data.sum() * SCAN.voxel_ml
    assert amount == pytest.approx(len(atlas_points("pallidum_right")) / 1000 * np.prod(head.zooms), rel=0.05)


@pytest.mark.parametrize(
    ("rotation", "direction", "goes_to"),
    [
        ((90, 0, 0), (0, 0, 10), (0, -10, 0)),  # pitch takes the top to the back
        ((0, 90, 0), (0, 0, 10), (10, 0, 0)),  # roll takes the top to the right
        ((0, 0, 90), (10, 0, 0), (0, 10, 0)),  # yaw takes the right to the front
    ],
)
def test_rotation_is_pitch_roll_yaw_about_the_head_centre(rotation, direction, goes_to):
    affine = Head(rotation_deg=rotation, shift_mm=(1, 2, 3)).mni_to_scan
    moved = affine[:3, :3] @ (HEAD_CENTRE + direction) + affine[:3, 3]
    assert moved == pytest.approx(np.add(goes_to, (1, 2, 3)))


def test_attenuation_is_water_and_bone_within_the_head_only():
    activity, attenuation = place(Head(), uptake(1.0), FINE)
    inside = activity.data > 0.999
    assert attenuation.data[inside].min() == pytest.approx(anatomy.WATER_PER_CM, rel=AMOUNT_TOLERANCE)
    assert attenuation.data.max() == pytest.approx(anatomy.BONE_PER_CM, rel=AMOUNT_TOLERANCE)
    assert attenuation.data[0, 0, 0] == 0


def test_wider_ventricles_take_white_matter_but_no_striatum():
    narrow, wide = (place(Head(ventricle_mm=v), uptake(1.0, csf=0.0), FINE)[0].data for v in (0, 5))
    lost = narrow - wide
    assert lost.min() > -1e-5
    assert 5 < lost.sum() * FINE.voxel_ml < 60
    kept = [place(Head(ventricle_mm=v), uptake(0.0, caudate_left=1.0), FINE)[0].data for v in (0, 5)]
    assert np.array_equal(*kept)


def test_a_striatum_grows_on_its_own_side():
    def volume(striata, side):
        regions = {f"{r}_{side}": 1.0 for r in ("caudate", *PUTAMEN_PARTS)}
        return place(Head(striata=striata), uptake(0.0, **regions), FINE)[0].data.sum()

    assert volume((1.1, 1.0), "left") > 1.12 * volume((1.0, 1.0), "left")
    assert volume((1.1, 1.0), "right") == pytest.approx(volume((1.0, 1.0), "right"), rel=AMOUNT_TOLERANCE)


def test_the_warp_is_smooth_of_the_given_size_and_repeatable():
    grid = Grid.axis_aligned((24, 24, 24), (10, 10, 10), (-115, -115, -115))
    plain = anatomy.mni_positions(Head(), grid)
    shifts = np.stack([anatomy.mni_positions(Head(warp_mm=2.0, warp_seed=seed), grid) - plain for seed in range(20)])
    assert shifts.std() == pytest.approx(2.0, rel=0.1)
    assert np.abs(np.diff(shifts, axis=1)).max() < 0.4 * 10  # no folding
    assert np.array_equal(shifts[3], anatomy.mni_positions(Head(warp_mm=2.0, warp_seed=3), grid) - plain)
    half = Grid.axis_aligned((12, 12, 12), (10, 10, 10), (-115, -115, -115))
    part = anatomy.mni_positions(Head(warp_mm=2.0, warp_seed=3), half)
    assert np.allclose(part, (shifts[3] + plain)[:12, :12, :12])  # the same field on any grid


def test_uptake_is_what_is_asked_for():
    value = uptake(1.0, thalamus=3.0)
    activity, _ = place(Head(), value, FINE)
    at = FINE.mm_to_index(np.array([11.0, -19.0, 7.0]) - HEAD_CENTRE)  # in the thalamus
    found = ndimage.map_coordinates(activity.data, at[:, None], order=1)[0]
    assert found == pytest.approx(3.0, rel=AMOUNT_TOLERANCE)
