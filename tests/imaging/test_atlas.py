import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from datxai import mni
from datxai.errors import InputError
from datxai.files import write_table
from datxai.imaging import atlas as atlas_module
from datxai.imaging import template as template_module
from datxai.imaging.atlas import load_atlas, make_parcellation, make_regions, make_view
from datxai.imaging.intensity import scale
from datxai.imaging.lattice import LATTICE, average
from datxai.imaging.quantification import measure_sbr
from datxai.imaging.template import make_template, make_template_bases
from datxai.volume import Grid, Volume, resample

GRIDS = {
    "mni_2mm": Grid.axis_aligned((91, 109, 91), (2, 2, 2), (-90, -126, -72), "mni_2mm"),
    "mni_2mm_paper": Grid.axis_aligned((91, 109, 63), (2, 2, 2), (-90, -126, -44), "mni_2mm_paper"),
    "mni_4mm": Grid.axis_aligned((46, 55, 46), (4, 4, 4), (-90, -126, -72), "mni_4mm"),
    "odd_3.3mm": Grid.axis_aligned((55, 66, 55), (3.3, 3.3, 3.3), (-89.1, -126, -72), "odd_3.3mm"),
    "slab_12mm": Grid.axis_aligned((91, 109, 1), (2, 2, 12), (-90, -126, 3), "slab_12mm"),
}
FINE = GRIDS["mni_2mm"]
SIDES = ("left", "right")


@pytest.fixture(scope="module")
def atlas():
    return load_atlas()


@pytest.fixture(scope="module")
def regions(atlas):
    return make_regions(FINE, atlas)


def opposite(name):
    stem, _, side = name.rpartition("_")
    return {"left": f"{stem}_right", "right": f"{stem}_left"}.get(side, name)


def millilitres(mask, grid=FINE):
    return np.count_nonzero(mask) * grid.voxel_ml


def distance_mm(mask, grid=FINE):
    return ndimage.distance_transform_edt(~mask, grid.spacing)


@pytest.mark.parametrize("name", GRIDS)
def test_the_sides_are_exact_mirror_images_on_any_symmetric_grid(name, atlas):
    grid = GRIDS[name]
    regions = make_regions(grid, atlas)
    for region, mask in regions.items():
        assert mask.shape == grid.shape
        other = regions[opposite(region)]
        np.testing.assert_array_equal(mask, other[::-1], err_msg=region)
    labels, names = make_parcellation(grid, atlas)
    swap = {name: index for index, name in names.items()}
    for index, region in names.items():
        other = swap[opposite(region)]
        np.testing.assert_array_equal(labels == index, (labels == other)[::-1], err_msg=region)


def test_symmetric_labels_are_close_to_the_given_ones(atlas):
    given, names = mni.load_labels()
    for name in ("caudate_left", "putamen_right", "thalamus_left", "brainstem"):
        index = next(i for i, n in names.items() if n == name)
        a = resample(Volume(given.data == index, given.affine), LATTICE).data >= 0.5
        b = atlas.labels.data == index
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.85, name  # Dice


def test_left_is_left_and_front_is_front(regions):
    centre = {name: FINE.index_to_mm(ndimage.center_of_mass(mask)) for name, mask in regions.items()}
    assert np.linalg.norm(centre["putamen_left"] - [-25.5, 1, -1.5]) < 2
    assert np.linalg.norm(centre["putamen_right"] - [25.5, 1, -1.5]) < 2
    assert centre["caudate_left"][1] > centre["putamen_left"][1]


@pytest.mark.parametrize("side", SIDES)
def test_volumes_are_those_of_an_adult_brain(regions, side):
    assert 1500 < millilitres(regions["brain"]) < 2000
    assert 900 < millilitres(regions["reference_region"]) < 1500
    assert 3 < millilitres(regions[f"caudate_{side}"]) < 7
    assert 5 < millilitres(regions[f"putamen_{side}"]) < 10
    assert millilitres(regions[f"putamen_roi_{side}"]) > 20  # room for the hottest 10 ml
    assert millilitres(regions[f"caudate_roi_{side}"]) > 10
    assert millilitres(regions[f"striatum_roi_{side}"]) > 30


@pytest.mark.parametrize("side", SIDES)
def test_large_rois_hold_the_anatomy_with_a_margin_and_do_not_overlap(regions, side):
    caudate, putamen = regions[f"caudate_roi_{side}"], regions[f"putamen_roi_{side}"]
    striatum = regions[f"striatum_roi_{side}"]
    assert not (caudate & putamen).any()
    for name, roi in (("caudate", caudate), ("putamen", putamen)):
        assert (roi & regions[f"{name}_{side}"]).sum() > 0.97 * regions[f"{name}_{side}"].sum()
        assert (roi & striatum).sum() > 0.97 * roi.sum()
    x = FINE.world_coordinates()[..., 0]
    assert (x[striatum] * (-1 if side == "left" else 1) > 0).all()
    lateral = regions[f"putamen_{side}"] & ~caudate
    reach = distance_mm(~putamen)[lateral & ~ndimage.binary_dilation(caudate)]
    assert np.median(reach) > atlas_module.ROI_REACH_MM


def test_the_reference_region_keeps_away_from_what_is_hot(regions):
    reference = regions["reference_region"]
    assert not (reference & ~regions["brain"]).any()
    half_diagonal = np.sqrt(3) * 2  # of two 2 mm voxels
    striata = regions["striatum_left"] | regions["striatum_right"]
    assert distance_mm(striata)[reference].min() > atlas_module.STRIATUM_MARGIN_MM - half_diagonal
    labels, names = make_parcellation(FINE, load_atlas())
    for name in ("thalamus_left", "thalamus_right", "brainstem"):
        index = next(i for i, n in names.items() if n == name)
        assert distance_mm(labels == index)[reference].min() > atlas_module.MARGIN_MM - half_diagonal
    for position in ((-8, -4, 22), (8, -4, 22), (0, -14, 2)):  # bodies of the lateral ventricles, third ventricle
        assert not reference[tuple(np.round(FINE.mm_to_index(position)).astype(int))]


def test_regions_of_coarser_grids_keep_their_volume(atlas, regions):
    grid = GRIDS["mni_4mm"]
    for name, mask in make_regions(grid, atlas).items():
        assert millilitres(mask, grid) == pytest.approx(millilitres(regions[name]), rel=0.1), name


def test_a_parcellation_has_all_regions(atlas):
    labels, names = make_parcellation(FINE, atlas)
    assert labels.dtype == np.int16
    assert set(names) == set(np.unique(labels)) - {0}
    assert len(names) == len(atlas.names)
    given, _ = mni.load_labels()
    for index in (30, 37, 75, 83):
        assert millilitres(labels == index) == pytest.approx((given.data == index).sum() / 1000, rel=0.2)


def test_the_template_shows_a_healthy_subject(atlas, regions):
    template = make_template(FINE, atlas)
    np.testing.assert_array_equal(template.data, template.data[::-1])
    reference = np.percentile(template.data[regions["reference_region"]], 75)
    peak = max(template.data[regions["putamen_left"]].max(), template.data[regions["caudate_left"]].max())
    assert 3.0 < peak / reference < 4.0
    bases = make_template_bases(atlas)
    assert set(bases) == set(template_module.BASES)
    caudate = bases["caudate_left"]
    labelled = atlas.labels.data == 36
    caudate_ml = (labelled & np.roll(labelled, -2, 1)).sum() / 1000  # its first 2 mm do not bind
    assert caudate.data.sum() * caudate.grid.voxel_ml == pytest.approx(caudate_ml, rel=1e-3)  # blur keeps counts


# uptake over the reference region in an average of real normal FP-CIT scans (docs/phantom.md)
REAL = {
    "pallidum": 2.50, "accumbens": 1.66, "thalamus": 1.17, "amygdala": 1.16, "insula": 1.06, "hippocampus": 1.05,
    "brainstem": 1.02, "superiorfrontal": 0.73, "cuneus": 0.89, "lateraloccipital": 0.80, "medialorbitofrontal": 0.83,
}  # fmt: skip
REAL_SBR = {"putamen": 1.62, "caudate": 1.44, "striatum": 1.56}
REAL_PEAK_MM = (18, 8, 2)


def test_the_template_measures_as_real_averages_do(atlas, regions):
    template = scale(make_template(FINE, atlas), regions["reference_region"])
    sbr = measure_sbr(template, regions)
    for region, real in REAL_SBR.items():
        assert sbr[f"{region}_left"] == pytest.approx(real, rel=0.05)
    parcels, names = make_parcellation(FINE, atlas)
    for region, real in REAL.items():
        codes = [code for code, name in names.items() if name.split("_")[0] == region]
        assert template.data[np.isin(parcels, codes)].mean() == pytest.approx(real, rel=0.06), region
    peak = np.abs(FINE.index_to_mm(np.unravel_index(template.data.argmax(), template.shape)))
    assert np.linalg.norm(peak - REAL_PEAK_MM) < 5


def test_bases_are_made_once_for_a_template_of_the_same_content_and_not_kept_for_ever(atlas):
    template = make_template(template_module.HEAD, atlas)
    bases = make_template_bases(atlas, template)
    assert make_template_bases(atlas, Volume(template.data.copy(), template.affine)) is bases
    assert make_template_bases(atlas, Volume(2 * template.data, template.affine)) is not bases
    assert template_module._make_bases.cache_info().maxsize


def test_a_grid_without_striata_is_refused(atlas):
    high = Grid.axis_aligned((91, 109, 10), (2, 2, 2), (-90, -126, 50), "crown")
    with pytest.raises(InputError, match=r"grid crown: holds no voxel of .*putamen_left"):
        make_regions(high, atlas)


@pytest.fixture
def own(tmp_path):
    """A user's atlas of boxes on a 2 mm LAS grid: label image and table."""
    affine = np.diag([-2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = (90, -126, -72)
    data = np.zeros(FINE.shape, np.float32)
    rows = []
    boxes = {"Caudate": (13, 8, 9), "Putamen": (26, 0, 0), "Thalamus": (12, -19, 6)}
    for base, (name, centre) in enumerate(boxes.items()):
        for offset, (hemisphere, sign) in enumerate((("L", -1), ("R", 1))):
            index = 10 * (base + 1) + offset
            i, j, k = np.round(np.linalg.inv(affine)[:3] @ [sign * centre[0], *centre[1:], 1]).astype(int)
            data[i - 3 : i + 4, j - 5 : j + 6, k - 4 : k + 5] = index
            rows.append({"index": index, "name": name, "hemisphere": hemisphere})
    labels, names = tmp_path / "own.nii.gz", tmp_path / "own.tsv"
    nib.save(nib.Nifti1Image(data, affine), labels)
    write_table(names, rows, ["index", "name", "hemisphere"])
    return labels, names, rows


def test_a_users_own_atlas(own):
    labels, names, _ = own
    atlas = load_atlas(labels, names)
    assert sorted(atlas.names.values()) == sorted(f"{n}_{s}" for n in ("caudate", "putamen", "thalamus") for s in SIDES)
    regions = make_regions(FINE, atlas)
    box_ml = 7 * 11 * 9 * FINE.voxel_ml
    for side, x in (("left", -26), ("right", 26)):
        assert millilitres(regions[f"putamen_{side}"]) == pytest.approx(box_ml, rel=0.1)
        centre = FINE.index_to_mm(ndimage.center_of_mass(regions[f"putamen_{side}"]))
        np.testing.assert_allclose(centre, [x, 0, 0], atol=1)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda rows: rows[:-1], "lacks thalamus_right"),
        (lambda rows: [*rows, {"index": "x", "name": "vermis", "hemisphere": "B"}], "index 'x' is not from 1"),
        (lambda rows: [*rows, {**rows[0], "name": "vermis"}], "index '10' is not from 1 to 32767 or is there twice"),
        (lambda rows: [*rows, {**rows[0], "index": 99}], "several indices have the same name"),
        (lambda rows: [{"index": r["index"]} for r in rows], "lacks"),
        (lambda rows: [{**r, "index": r["index"] + 100} for r in rows], "no voxel of caudate_left"),
    ],
)
def test_a_table_that_does_not_fit_gets_one_sentence(own, change, sentence):
    labels, names, rows = own
    write_table(names, change(rows), ["index", "name", "hemisphere"])
    with pytest.raises(InputError, match=sentence):
        load_atlas(labels, names)


def test_another_atlas_under_the_same_name_is_read_anew(own):
    labels, names, _ = own
    before = load_atlas(labels, names)
    assert load_atlas(labels, names) is before
    names.write_text(names.read_text() + "\n")
    assert load_atlas(labels, names) is not before


def test_labels_without_names_are_refused(own):
    with pytest.raises(InputError, match="both a label image and a table"):
        load_atlas(own[0])


def test_columns_must_be_there(own):
    write_table(own[1], [{"id": 1}], ["id"])
    with pytest.raises(InputError, match="expected index and name"):
        load_atlas(own[0], own[1])


def test_averages_are_those_of_the_lattice():
    mask = np.zeros(LATTICE.shape, bool)
    mask[20:31, 40:52, 60:69] = True
    grid = Grid.axis_aligned((51, 64, 55), (3, 3, 3), LATTICE.affine[:3, 3] + 1)  # 3 x 3 x 3 lattice voxels each
    box, fraction = average(mask, grid)
    expected = mask[:153, :192, :165].reshape(51, 3, 64, 3, 55, 3).mean(axis=(1, 3, 5))
    whole = np.zeros(grid.shape)
    whole[box] = fraction
    np.testing.assert_allclose(whole, expected, atol=1e-6)
    assert Volume(whole, grid.affine).data.max() == 1


def test_what_a_network_sees(atlas, regions):
    striatum = regions["striatum_left"] | regions["striatum_right"]
    views = {see: make_view(FINE, atlas, see) for see in ("all", "striatum", "extrastriatal")}
    assert views["all"].all()
    assert views["striatum"][striatum].all()
    assert not (views["striatum"] & views["extrastriatal"]).any()
    distance = ndimage.distance_transform_edt(~views["extrastriatal"], FINE.spacing)
    assert distance[striatum].min() > atlas_module.STRIATUM_MARGIN_MM - 2
    assert views["extrastriatal"][regions["reference_region"]].mean() > 0.95
