"""The cohort on disk: projections, or volumes as each site reconstructs them."""

import numpy as np
import pytest
from forked import datxai

from datxai.files import read_json, read_table
from datxai.imaging.dicom import read_projections
from datxai.imaging.reconstruction import reconstruct
from datxai.phantom.population import SITES, draw_population
from datxai.volume import load

FEW = ["data.n_subjects=2", "data.camera.views=20", "n_jobs=1"]


def test_sites_reconstruct_the_very_projections_that_would_be_read(tmp_path):
    datxai("simulate", *FEW, f"run={tmp_path / 'projections'}")
    datxai("simulate", *FEW, "data.reconstruction=sites", f"run={tmp_path / 'volumes'}")
    subjects = draw_population(2, seed=0)
    sites = [row["site"] for row in read_table(tmp_path / "volumes" / "simulated" / "participants.tsv")]
    assert sites == [subject.acquisition.site for subject in subjects]
    for subject in subjects:
        seen = read_projections([tmp_path / "projections" / "simulated" / f"{subject.participant_id}_spect.dcm"])
        expected = reconstruct(
            seen.counts, seen.angles_deg, seen.pixel_mm, **SITES[subject.acquisition.site].reconstruction
        )
        path = tmp_path / "volumes" / "simulated" / f"{subject.participant_id}_spect.nii.gz"
        assert np.array_equal(load(path).data, expected.data)
        record = read_json(path.with_name(f"{subject.participant_id}_spect.json"))
        assert record["history"][-1]["step"] == "post_filter"
        assert record["site"] == subject.acquisition.site
    datxai("preprocess", f"run={tmp_path / 'volumes'}", "n_jobs=1", "grid=slab_12mm")
    assert len(read_table(tmp_path / "volumes" / "sbr.tsv")) == 2


def test_a_change_of_reconstruction_makes_the_scans_anew(tmp_path):
    folder = tmp_path / "run"
    datxai("simulate", *FEW, "data.reconstruction=sites", f"run={folder}")
    datxai("simulate", *FEW, "data.reconstruction=null", f"run={folder}")
    assert {path.suffix for path in (folder / "simulated").iterdir()} == {".dcm", ".json", ".tsv"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data.reconstruction=osem"], "data.reconstruction is osem, expected sites"),
        (["data.reconstruction=sites", "data.raw=false"], "needs projections"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, words, said):
    answer = datxai("simulate", *FEW, *words, f"run={tmp_path / 'run'}", status=2)
    assert said in answer.stdout + answer.stderr
    assert not (tmp_path / "run").exists()
