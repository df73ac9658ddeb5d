"""Quality control from the scans to its table and sheets, through the command."""

import os
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from forked import datxai
from pydicom.uid import CTImageStorage, PositronEmissionTomographyImageStorage

from datxai.case import HALVES
from datxai.cohort.sources import CohortScan
from datxai.cohort.table import Participant
from datxai.config import Config, Data
from datxai.files import read_json, read_table, write_json
from datxai.imaging.dicom.objects import write_object
from datxai.run import Run
from datxai.stages import preprocess
from datxai.stages.preprocess import describe
from datxai.volume import Volume, sidecar_path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of three scans, the second of which is stored upside down, and what was printed."""
    folder = tmp_path_factory.mktemp("quality")
    datxai("simulate", "data.raw=false", "data.n_subjects=3", "n_jobs=1", f"run={folder / 'made'}")
    scans = folder / "made" / "simulated"
    image = nib.load(scans / "sub-0003_spect.nii.gz")  # which fits no other way
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


@pytest.fixture
def again(run, tmp_path):
    """Makes the stage again with more words: which scans were made anew. The scans lie in ``tmp_path / "scans"``."""
    folder = shutil.copytree(run[0], tmp_path / "run")
    scans = shutil.copytree(run[0].parent / "made" / "simulated", tmp_path / "scans")
    words = ["data=folder", f"data.root={scans}", "grid=slab_12mm", "n_jobs=1", "on_error=skip", f"run={folder}"]

    def again(*more):
        before = {path: path.stat().st_mtime_ns for path in folder.glob("preprocessed/sub-*.json")}
        assert "up to date" not in datxai("preprocess", *words, *more).stdout
        made = {path for path in folder.glob("preprocessed/sub-*.json") if path.stat().st_mtime_ns != before.get(path)}
        return {path.name[:8] for path in made}

    return again


def double(scan, path):
    """The same scan with twice the counts, which makes no difference but to the file."""
    image = nib.load(scan)
    nib.save(nib.Nifti1Image(2 * image.get_fdata(dtype=np.float32), image.affine), path)


def test_a_scan_more_or_another_age_is_no_reason_to_make_the_others_anew(again, tmp_path):
    table, scans = tmp_path / "scans" / "participants.tsv", tmp_path / "scans"
    header, first, *rest = table.read_text().splitlines()
    name, _, *cells = first.split("\t")
    fourth = rest[-1].replace("sub-0003", "sub-0004")
    table.write_text("\n".join([header, "\t".join([name, "41.5", *cells]), *rest, fourth]))
    double(scans / "sub-0003_spect.nii.gz", scans / "sub-0004_spect.nii.gz")
    assert again() == {"sub-0004"}
    rows = {row["participant_id"]: row for row in read_table(tmp_path / "run" / "participants.tsv")}
    assert rows["sub-0001"]["age"] == "41.5"
    sbr = {row["participant_id"]: row["putamen_left"] for row in read_table(tmp_path / "run" / "sbr.tsv")}
    assert float(sbr["sub-0004"]) == pytest.approx(float(sbr["sub-0003"]), rel=1e-4)
    assert sbr["sub-0001"] != sbr["sub-0003"]


def test_one_scan_under_two_names_is_refused(run, tmp_path):
    scans = shutil.copytree(run[0].parent / "made" / "simulated", tmp_path / "scans")
    shutil.copy(scans / "sub-0001_spect.nii.gz", scans / "sub-0003_spect.nii.gz")
    said = datxai("preprocess", "data=folder", f"data.root={scans}", f"run={tmp_path / 'run'}", status=2).stderr
    assert "are the same scan, byte by byte, for sub-0001 and sub-0003" in said


def test_a_link_that_leads_nowhere_is_a_scan_that_cannot_be_used(run, tmp_path):
    scans = shutil.copytree(run[0].parent / "made" / "simulated", tmp_path / "scans")
    (scans / "sub-0001_spect.nii.gz").unlink()
    (scans / "sub-0001_spect.nii.gz").symlink_to(tmp_path / "gone")
    words = ["preprocess", "data=folder", f"data.root={scans}", "grid=slab_12mm", "n_jobs=1", f"run={tmp_path / 'run'}"]
    assert "sub-0001_spect.nii.gz: cannot be read (No such file" in datxai(*words, status=2).stderr
    datxai(*words, "on_error=skip")
    assert "sub-0001" in [row["participant_id"] for row in read_table(tmp_path / "run" / "skipped.tsv")]


def test_what_lies_beside_a_scan_is_listed_once_also_when_the_scan_is_known(tmp_path, monkeypatch):
    """What an earlier version preprocessed, without the halves of the putamen, is not known: it is measured anew."""
    measured, made = {"putamen_left": 1.0, **dict.fromkeys(HALVES, 0.5)}, []

    class Imaging:
        def process(self, volume, name):
            made.append(name)
            return Volume(np.ones((2, 2, 2)), np.eye(4)), measured

    files = [tmp_path / "scan" / name for name in ("IM0", "IM1", "CT", "notes.txt")]
    for z, path in enumerate(files[:3]):
        kind = ("CT", CTImageStorage) if path.name == "CT" else ("PT", PositronEmissionTomographyImageStorage)
        write_object(path, kind[1], f"1.2.{z}", {
            "Modality": kind[0], "SeriesInstanceUID": "1.2", "PixelSpacing": [2, 2], "Rows": 4, "Columns": 4,
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "ImagePositionPatient": [0, 0, 2 * z], "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2", "BitsAllocated": 16, "BitsStored": 16,
            "HighBit": 15, "PixelRepresentation": 0, "PixelData": np.full((4, 4), z + 1, "<u2").tobytes(),
        })  # fmt: skip
    files[3].write_text("acquired twice")
    monkeypatch.setattr(preprocess, "_prepare_imaging", lambda *_: Imaging())
    scan = CohortScan("01", Participant("01", label=0), tuple(files), "dicom")
    run, settings = Run(tmp_path / "run"), Config(data=Data("dicom"), n_jobs=1)
    for times in (1, 1, 2):
        if times == 2:
            path = sidecar_path(run.scan_of("01"))
            write_json(path, read_json(path) | {"measures": {"putamen_left": 1.0}})
        measures, skipped = {}, []
        assert [name for name, _ in preprocess._collect([scan], settings, run, measures, skipped)] == ["01"]
        assert measures == {"01": measured}
        assert len(made) == times
        assert skipped == [
            ("01/CT", f"{files[2]}: is of modality CT, passed over"),
            ("01/notes.txt", f"{files[3]}: is not DICOM, passed over"),
        ]


@pytest.mark.parametrize(("text", "subject"), [("anna", "anna"), ("n/a", "01"), ("", "01")])
def test_the_subject_is_whom_the_table_says(text, subject):
    person = Participant("01", label=0, extra={"subject": text, "site": "x"})
    found = describe(CohortScan("01_ses-2", person, (), "nifti"))
    assert (found["participant_id"], found["subject"], found["site"]) == ("01_ses-2", subject, "x")
    assert describe(CohortScan("01", Participant("01", label=0), (), "nifti"))["subject"] == "01"


def test_what_shapes_a_scan_is_a_reason_to_make_it_anew(again, tmp_path):
    double(tmp_path / "scans" / "sub-0001_spect.nii.gz", tmp_path / "scans" / "sub-0003_spect.nii.gz")
    assert again() == {"sub-0003"}
    assert again("preprocessing.putamen_ml=9") == {"sub-0001", "sub-0003"}


def test_a_template_needs_more_normal_scans(run):
    folder, _ = run
    answer = datxai("template", f"run={folder}", status=2)
    assert "normal scans passed quality control, expected at least 5" in answer.stdout + answer.stderr


def test_a_scan_is_the_same_however_many_threads_there_are(tmp_path):
    datxai("simulate", "data.n_subjects=2", "n_jobs=1", f"run={tmp_path / 'made'}")
    words = ["preprocess", "data=dicom", f"data.root={tmp_path / 'made' / 'simulated'}", "grid=slab_12mm", "n_jobs=1"]
    for threads in "12":
        command = [sys.executable, "-m", "datxai", *words, f"run={tmp_path / threads}"]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": threads})
    for name in ("sub-0001", "sub-0002"):
        one, two = (Run(tmp_path / threads).scan_of(name) for threads in "12")
        assert one.read_bytes() == two.read_bytes()
        assert sidecar_path(one).read_text() == sidecar_path(two).read_text()
