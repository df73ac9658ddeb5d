"""The MNI data of the installed packages: what is where."""

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from datxai import mni
from datxai.errors import InputError


def test_labels_have_readable_names_and_lie_on_their_side():
    labels, names = mni.load_labels()
    assert len(names) == 83
    assert (names[36], names[77], names[83]) == ("caudate_left", "caudate_right", "brainstem")
    assert {"thalamus_left", "accumbens_right", "superiorfrontal_left"} <= set(names.values())
    assert set(np.unique(labels.data)) == {0, *names}
    for code, name in names.items():
        x = labels.grid.index_to_mm(np.argwhere(labels.data == code)).mean(axis=0)[0]
        if name.endswith("_left"):
            assert x < 0, name
        elif name.endswith("_right"):
            assert x > 0, name


def test_tissue_fits_the_labels():
    tissue = mni.load_tissue()
    assert set(tissue) == {"grey", "white"}
    labels, names = mni.load_labels()
    code = next(i for i, name in names.items() if name == "precentral_left")
    inside = np.argwhere(labels.data == code)
    grey = tissue["grey"]
    assert grey.data.min() >= 0
    assert grey.data.max() == 1
    index = np.floor(labels.grid.index_to_mm(inside) - grey.affine[:3, 3]).astype(int)
    assert grey.data[tuple(index.T)].mean() > 0.5  # cortex is grey


def test_labels_lie_on_the_brain_that_the_tissue_shows():
    labels, names = mni.load_labels()
    number = {name: index for index, name in names.items()}
    for part in ("caudate", "putamen", "pallidum", "thalamus", "insula"):
        sides = [np.argwhere(labels.data == number[f"{part}_{side}"]) for side in ("left", "right")]
        middle = np.mean([labels.grid.index_to_mm(voxels).mean(axis=0)[0] for voxels in sides])
        assert abs(middle) < 0.3, part  # mm; the tissue is symmetric about 0
    grey = mni.load_tissue()["grey"]
    voxels = np.argwhere(np.ones(labels.shape, bool))[::37]
    labelled = (labels.data > 0)[tuple(voxels.T)]

    def fit(*shift):
        index = nib.affines.apply_affine(np.linalg.inv(grey.affine), labels.grid.index_to_mm(voxels) + shift)
        return np.corrcoef(ndimage.map_coordinates(grey.data, index.T, order=1), labelled)[0, 1]

    assert fit(0, 0, 0) > max(fit(*(step * axis)) for axis in np.eye(3) for step in (-0.5, 0.5))


@pytest.mark.parametrize("lateral", [-1, 1])
def test_rims_go_the_rear_grows_and_bridges_fill_the_gap(lateral):
    """A box for a putamen, a box for a caudate 7 mm farther in: what remains, and what is laid behind and between."""
    shape, origin = (40, 40, 30), np.array([-20.0, -15.0, -15.0])
    x, y, z = (axis + start for axis, start in zip(np.indices(shape), origin))
    x = x * lateral  # grows outwards
    putamen = (x >= 4) & (x < 12) & (abs(y) < 12) & (abs(z) < 10)
    caudate = (x <= -3) & (x > -9) & (abs(y) < 12) & (abs(z) < 10)
    free = ~(putamen | caudate) & ((y > -8) | (x >= 4))
    inner, head, bridges = mni.find_binding(putamen, caudate, free, lateral, origin)
    assert np.array_equal(inner, (x >= 4) & (x < 10) & (y >= -13) & (y < 10) & (abs(z) < 10) & ~bridges)
    assert np.array_equal(head, caudate & (y < 10))
    gap = (x > -3) & (x < 4)
    assert not bridges[~free | (z < -4) | (y > 14)].any()
    within = gap & free & (abs(y) < 8) & (z >= -4) & (z < 8)
    assert bridges[within].all()
    assert not bridges[(x > 12) | (x < -9)].any()


def test_a_missing_package_is_said_in_one_sentence():
    with pytest.raises(InputError, match="not found in the package nopackage; install it again"):
        mni._find("nopackage", "a.nii.gz")
