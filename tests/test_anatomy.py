"""What is kept in a file is what was made, and never that of other settings."""

from dataclasses import replace

import numpy as np
import pytest

from datxai import anatomy as room
from datxai.anatomy import Anatomy
from datxai.config import Atlas, Config, Lattice, Registration
from datxai.errors import InputError
from datxai.imaging.atlas import load_atlas, make_parcellation
from datxai.volume import Volume, save

SETTINGS = Config(
    grid=Lattice("slab", [46, 55, 4], [4, 4, 12], [-90, -126, -18]), registration=Registration("affine"), atlas=Atlas()
)


@pytest.fixture(scope="module")
def made():
    return Anatomy.of(SETTINGS)


@pytest.fixture
def makes(made, monkeypatch):
    """The anatomies whose bases were made, one after the other."""
    makes, bases, working = [], made.bases, made.working
    monkeypatch.setattr(Anatomy, "make_bases", lambda self, template: makes.append(self) or bases)
    monkeypatch.setattr(Anatomy, "_make_regions", lambda self, grid: working)
    return makes


@pytest.fixture
def path(tmp_path, makes):
    """The file of an anatomy."""
    keep(SETTINGS, tmp_path / "anatomy.safetensors")
    assert len(makes) == 1
    return tmp_path / "anatomy.safetensors"


def keep(settings, path):
    anatomy = Anatomy.of(settings, path).keep()
    assert anatomy.bases
    return anatomy


def test_what_was_kept_is_what_was_made(tmp_path, made):
    path = tmp_path / "anatomy.safetensors"
    replace(made, cache=path).keep()
    found = Anatomy.of(SETTINGS, path)
    for ours, theirs in ((found.working, made.working), (found.regions, made.regions)):
        assert ours.keys() == theirs.keys()
        for name, mask in theirs.items():
            assert ours[name].dtype == bool
            np.testing.assert_array_equal(ours[name], mask)
    assert found.brain.shape == (46, 55, 4)
    assert list(found.bases) == list(made.bases)  # in their order: a fit's weights follow it
    for name, base in made.bases.items():
        np.testing.assert_array_equal(found.bases[name].data, base.data)
        np.testing.assert_array_equal(found.bases[name].affine, base.affine)
    assert "atlas" not in vars(found), "nothing was made"


def test_parcels_cover_the_brain_and_outlines_the_striatum(made):
    labels, names = make_parcellation(made.grid, load_atlas())
    np.testing.assert_array_equal(made.parcellation[0], labels)
    assert made.parcellation[1] == names
    assert (made.parcels[made.brain] > 0).all()
    np.testing.assert_array_equal(made.parcels[labels > 0], labels[labels > 0])
    assert made.outline[made.regions["caudate_left"]].all()
    assert not made.outline[~made.striatum].any()
    assert made.frame.grid is made.grid


def test_other_settings_are_made_anew(path, makes, tmp_path):
    keep(replace(SETTINGS, grid=replace(SETTINGS.grid, origin=[-90, -126, -6])), path)
    assert len(makes) == 2
    template = tmp_path / "template.nii"
    for value in (1.0, 2.0):  # the content counts, not the name
        save(Volume(np.full((2, 2, 2), value), np.eye(4)), template)
        keep(replace(SETTINGS, registration=Registration("affine", str(template))), path)
    assert len(makes) == 4


@pytest.mark.parametrize("harm", ["cut", "emptied", "of another code"])
def test_a_file_that_is_not_good_is_made_anew(path, makes, harm, monkeypatch):
    if harm == "of another code":
        monkeypatch.setattr(room, "RESTS_ON", ("numpy",))
    else:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] if harm == "cut" else b"")
    keep(SETTINGS, path)
    assert len(makes) == 2
    keep(SETTINGS, path)
    assert len(makes) == 2


def test_a_folder_that_cannot_be_written_to_is_no_reason_to_stop(makes, tmp_path):
    (tmp_path / "file").write_text("")
    assert keep(SETTINGS, tmp_path / "file" / "anatomy.safetensors").working


def test_a_template_that_has_gone_is_told(path):
    with pytest.raises(InputError, match=r"gone\.nii: no such file"):
        keep(replace(SETTINGS, registration=Registration("affine", "gone.nii")), path)
