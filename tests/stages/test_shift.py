"""What evaluate keeps to hold new scans against, and what the reader makes of it."""

import json
import shutil

import numpy as np
import pytest
from scipy import ndimage, stats

from datxai import pipeline
from datxai.analysis import shift
from datxai.config import restore
from datxai.errors import InputError
from datxai.files import read_arrays, read_json, read_table, write_arrays
from datxai.findings import Findings
from datxai.reader import Reader
from datxai.record import read_record
from datxai.run import Run
from datxai.scan import Scan
from datxai.volume import save


@pytest.fixture(scope="module")
def folder(finished, tmp_path_factory):
    """The finished run, evaluated and reported as if its twelve training cases were enough."""
    folder = shutil.copytree(finished[0], tmp_path_factory.mktemp("shift") / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shift, "MIN_CASES", 10)
        patch.setattr(shift, "LEVEL", 0.2)
        patch.setattr(shift.conformal_limit, "__defaults__", (0.2,))
        (folder / "shift.safetensors").unlink()
        settings = restore(read_record(folder).values)
        for stage in ("evaluate", "report"):
            pipeline.perform(stage, settings, Run(folder))
    return folder


@pytest.fixture(scope="module")
def reader(folder):
    return Reader.open(folder, device="cpu")


def test_few_training_cases_are_not_enough_and_the_run_says_so(finished):
    said = read_json(finished[0] / "metrics.json")["shift"]
    assert said["judged"] is False and "12 training cases are too few" in said["note"]
    assert said["note"] in (finished[0] / "report.html").read_text()
    assert Findings(Run(finished[0])).shift.measures == {}
    header = (finished[0] / "shift.tsv").read_text()
    assert header == "participant_id\tset\tmarked\n"


def test_a_network_that_was_not_trained_here_has_no_training_scans(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "run")
    settings = restore(read_record(other).values)
    settings.training.max_epochs = 0
    (other / "shift.safetensors").unlink()
    pipeline.perform("evaluate", settings, Run(other))
    assert "was not trained in this run" in read_json(other / "metrics.json")["shift"]["note"]


def test_features_of_the_network_are_kept_for_every_case(finished):
    run = Run(finished[0])
    features = read_arrays(run.features)[0]["features"]
    rows = read_table(run.predictions)
    assert features.shape == (len(rows), 16) and features.dtype == np.float32
    from datxai.model import checkpoint

    model, _ = checkpoint.load(run.model)
    weight, bias = (p.detach().double().numpy() for p in model[-1].parameters())
    expected = [[float(row["logit_normal"]), float(row["logit_reduced"])] for row in rows]
    np.testing.assert_allclose(features @ weight.T + bias, expected, rtol=1e-4, atol=1e-4)


def test_the_rate_is_counted_on_the_test_cases(folder):
    said, rows = read_json(folder / "metrics.json")["shift"], read_table(folder / "shift.tsv")
    tested = [row for row in rows if row["set"] == "test"]
    assert {row["set"] for row in rows} == {"validation", "test"} and said["n"] == len(tested) == 6
    assert said["marked"] == sum(row["marked"] == "true" for row in tested)
    assert said["ci95"] == pytest.approx([*stats.binomtest(said["marked"], 6).proportion_ci(method="wilson")])
    for name, row in said["measures"].items():
        assert row["marked"] == sum(float(case[name]) > row["limit"] for case in tested)
    for case in tested:
        beyond = any(float(case[name]) > row["limit"] for name, row in said["measures"].items())
        assert beyond == (case["marked"] == "true")
    assert '<section id="shift">' in (folder / "report.html").read_text()


def test_a_test_case_is_read_as_it_was_evaluated(folder, reader):
    row = next(row for row in read_table(folder / "shift.tsv") if row["set"] == "test")
    found = reader.read(folder / "simulated" / f"{row['participant_id']}_spect.dcm").result["shift"]
    assert {*found["measures"]} == {*shift.MEASURES}
    for name, measure in found["measures"].items():
        assert measure["value"] == pytest.approx(float(row[name]), rel=0.02, abs=1e-3)
    assert found["marked"] == (row["marked"] == "true")
    assert found["own"] == {
        key: read_json(folder / "metrics.json")["shift"][key] for key in ("marked", "n", "rate", "ci95")
    }


def test_a_scan_that_is_blurred_is_marked_and_its_page_says_so(folder, reader, tmp_path):
    volume = Scan.find(folder / "simulated" / "sub-0002_spect.dcm").read(reader.settings.reconstruction)
    blurred = volume.after("blur", ndimage.gaussian_filter(volume.data, 12 / 2.355 / volume.grid.spacing))
    save(blurred, tmp_path / "scan.nii.gz", mni=False)
    reading = reader.read(tmp_path / "scan.nii.gz")
    found = reading.result["shift"]
    assert found["marked"] and found["measures"]["noise"]["marked"]
    (warning,) = [text for text in reading.result["warnings"] if "unlike the training scans" in text]
    assert "noise" in warning
    page = reader.write(reading, tmp_path / "case")
    text = (page / "report.html").read_text()
    assert warning in text and "Similarity to the training scans" in text
    assert json.loads((page / "prediction.json").read_text())["shift"]["marked"] is True


def test_a_run_of_an_earlier_version_judges_none(folder, tmp_path):
    old = shutil.copytree(folder, tmp_path / "run")
    entries = Run(old).entries()
    for stage, gone in (("train", ["model/features.safetensors"]), ("evaluate", ["shift.safetensors", "shift.tsv"])):
        for name in gone:
            (old / name).unlink()
            entries[stage]["outputs"].remove(name)
            del entries[stage]["files"][name]
    Run(old)._write(entries)
    reading = Reader.open(old, device="cpu").read(old / "simulated" / "sub-0002_spect.dcm")
    assert reading.result["shift"] is None
    assert not any("unlike" in warning for warning in reading.result["warnings"])


def test_without_activations_the_rest_is_judged(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(shift, "MIN_CASES", 10)
    monkeypatch.setattr(shift.conformal_limit, "__defaults__", (0.2,))
    other = shutil.copytree(folder, tmp_path / "run")
    write_arrays(Run(other).features, {})
    from datxai.anatomy import Anatomy
    from datxai.stages import evaluate

    settings = restore(read_record(other).values)
    said = evaluate._hold_against_training(settings, Findings(Run(other)), Anatomy.of(settings))
    assert "no activations" in said["note"] and "activations" not in said["measures"] and said["judged"]


def test_a_damaged_file_is_named(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "run")
    for write in (lambda path: path.write_bytes(b"no"), lambda path: write_arrays(path, {}, {"limits": {"noise": 1}})):
        write(Run(other).shift)
        with pytest.raises(InputError, match=r"shift\.safetensors: "):
            _ = Findings(Run(other)).shift
