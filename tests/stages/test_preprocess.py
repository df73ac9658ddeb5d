"""Quality control from the scans to its table and sheets, through the command."""

import nibabel as nib
import numpy as np
import pytest
from forked import datxai

from datxai.files import read_json, read_table


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of three scans, the second of which is stored upside down, and what was printed."""
    folder = tmp_path_factory.mktemp("quality")
    datxai("simulate", "data.raw=false", "data.n_subjects=3", "n_jobs=1", f"run={folder / 'made'}")
    scans = folder / "made" / "simulated"
    image = nib.load(scans / "sub-0002_spect.nii.gz")
    data = np.asarray(image.dataobj)[:, :, ::-1]
    nib.save(nib.Nifti1Image(data, image.affine), scans / "sub-0002_spect.nii.gz")
    options = ["data=folder", f"data.root={scans}", "grid=slab_12mm", "n_jobs=1", f"run={folder / 'run'}"]
    refused = datxai("preprocess", *options, status=2)
    datxai("preprocess", *options, "on_error=skip")
    return folder / "run", refused


def test_a_scan_stored_upside_down_stops_the_stage_with_its_name(run):
    _, refused = run
    said = refused.stdout + refused.stderr
    assert "sub-0002" in said
    assert "stored upside down" in said


def test_every_scan_is_in_the_table_of_quality_control(run):
    folder, _ = run
    rows = {row["participant_id"]: row for row in read_table(folder / "qc.tsv")}
    assert {name: row["verdict"] for name, row in rows.items()} == {
        "sub-0001": "green", "sub-0002": "red", "sub-0003": "green",
    }  # fmt: skip
    assert "upside down" in rows["sub-0002"]["reason"]
    assert float(rows["sub-0001"]["similarity"]) > 0.9
    assert [row["participant_id"] for row in read_table(folder / "skipped.tsv")] == ["sub-0002"]
    assert [row["participant_id"] for row in read_table(folder / "participants.tsv")] == ["sub-0001", "sub-0003"]
    assert (folder / "qc" / "sheet_01.png").is_file()
    record = read_json(folder / "preprocessed" / "sub-0001_space-MNI_spect.json")["measures"]
    assert record["quality"]["verdict"] == "green"
    assert np.shape(record["transform"]) == (4, 4)


def test_a_template_needs_more_normal_scans(run):
    folder, _ = run
    answer = datxai("template", f"run={folder}", status=2)
    assert "normal scans passed quality control, expected at least 5" in answer.stdout + answer.stderr
