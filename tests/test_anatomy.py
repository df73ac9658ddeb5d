"""What is kept in a file is what was made, and never that of other settings."""

from dataclasses import replace

import numpy as np
import pytest

from datxai import anatomy as room
from datxai.anatomy import load_anatomy, make_anatomy
from datxai.config import Atlas, Config, Lattice, Registration
from datxai.errors import InputError
from datxai.volume import Volume, save

SETTINGS = Config(
    grid=Lattice("slab", [46, 55, 4], [4, 4, 12], [-90, -126, -18]), registration=Registration("affine"), atlas=Atlas()
)


@pytest.fixture(scope="module")
def made():
    return make_anatomy(SETTINGS)


@pytest.fixture
def calls(made, monkeypatch):
    """The settings that an anatomy was made for, one after the other."""
    calls = []
    monkeypatch.setattr(room, "make_anatomy", lambda settings: calls.append(settings) or made)
    return calls


@pytest.fixture
def path(tmp_path, calls):
    """The file of an anatomy."""
    path = tmp_path / "anatomy.safetensors"
    load_anatomy(SETTINGS, path)
    assert len(calls) == 1
    return path


def test_what_was_kept_is_what_was_made(path, calls, made):
    found = load_anatomy(SETTINGS, path)
    assert len(calls) == 1
    for ours, theirs in ((found.working, made.working), (found.regions, made.regions)):
        assert ours.keys() == theirs.keys()
        for name, mask in theirs.items():
            assert ours[name].dtype == bool
            np.testing.assert_array_equal(ours[name], mask)
    assert found.regions["brain"].shape == (46, 55, 4)
    assert list(found.bases) == list(made.bases)  # in their order: a fit's weights follow it
    for name, base in made.bases.items():
        np.testing.assert_array_equal(found.bases[name].data, base.data)
        np.testing.assert_array_equal(found.bases[name].affine, base.affine)


def test_other_settings_are_made_anew(path, calls, tmp_path):
    load_anatomy(replace(SETTINGS, grid=replace(SETTINGS.grid, origin=[-90, -126, -6])), path)
    assert len(calls) == 2
    template = tmp_path / "template.nii"
    for value in (1.0, 2.0):  # the content counts, not the name
        save(Volume(np.full((2, 2, 2), value), np.eye(4)), template)
        load_anatomy(replace(SETTINGS, registration=Registration("affine", str(template))), path)
    assert len(calls) == 4


@pytest.mark.parametrize("harm", ["cut", "emptied", "of another code"])
def test_a_file_that_is_not_good_is_made_anew(path, calls, harm, monkeypatch):
    if harm == "of another code":
        monkeypatch.setattr(room, "RESTS_ON", ("numpy",))
    else:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] if harm == "cut" else b"")
    load_anatomy(SETTINGS, path)
    assert len(calls) == 2
    load_anatomy(SETTINGS, path)
    assert len(calls) == 2


def test_a_folder_that_cannot_be_written_to_is_no_reason_to_stop(calls, made, tmp_path):
    (tmp_path / "file").write_text("")
    assert load_anatomy(SETTINGS, tmp_path / "file" / "anatomy.safetensors") is made


def test_a_template_that_has_gone_is_told(path):
    with pytest.raises(InputError, match=r"gone\.nii: no such file"):
        load_anatomy(replace(SETTINGS, registration=Registration("affine", "gone.nii")), path)
