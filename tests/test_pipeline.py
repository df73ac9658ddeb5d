"""The journey end to end, small: the phantom on the one-slice grid, through the installed command."""

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from forked import datxai

from datxai import pipeline
from datxai.cohort.consensus import reach_consensus, read_reads
from datxai.config import Config
from datxai.errors import InputError
from datxai.files import read_table, write_json, write_table
from datxai.findings import Findings
from datxai.run import Run


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """A folder of reconstructed NIfTI scans and their table; tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("cohort") / "run"
    datxai("simulate", "data.raw=false", "data.n_subjects=8", "n_jobs=1", f"run={folder}")
    return folder / "simulated"


def test_the_run_folder_holds_what_is_promised(finished):
    folder, said = finished
    for name in (
        ".hydra/config.yaml", "manifest.json", "participants.tsv", "sbr.tsv", "split.tsv", "table1.tsv",
        "model/weights.safetensors", "model/config.yaml", "model/history.tsv", "model/last.ckpt",
        "predictions.tsv", "roi_relevance.tsv", "metrics.json", "report.html", "report/case.html",
    ):  # fmt: skip
        assert (folder / name).is_file(), name
    for name in ("fig3", "fig3_all_slices", "fig4", "fig5", "training", "table1", "sbr"):
        assert (folder / "figures" / f"{name}.png").is_file()
        assert (folder / "figures" / f"{name}.pdf").is_file()
    assert "${" not in (folder / ".hydra" / "config.yaml").read_text()
    assert str(folder / "report.html") in said
    assert "accuracy" in said


def test_tables_have_their_columns_and_agree(finished):
    folder, _ = finished
    people = read_table(folder / "participants.tsv")
    split = {row["participant_id"]: row["set"] for row in read_table(folder / "split.tsv")}
    predictions = read_table(folder / "predictions.tsv")
    assert len(people) == len(split) == len(predictions) == 24
    assert [row["participant_id"] for row in people] == [row["participant_id"] for row in predictions]
    for row in predictions:
        logits = float(row["logit_normal"]), float(row["logit_reduced"])
        assert row["set"] == split[row["participant_id"]]
        assert int(row["predicted"]) == int(logits[1] > logits[0])
        assert float(row["p_reduced"]) == pytest.approx(1 / (1 + np.exp(logits[0] - logits[1])), rel=1e-5)
    metrics = json.loads((folder / "metrics.json").read_text())["classifiers"]
    test = [row for row in predictions if row["set"] == "test"]
    assert metrics["cnn"]["n"] == len(test) == 6
    assert metrics["cnn"]["accuracy"] == pytest.approx(np.mean([row["label"] == row["predicted"] for row in test]))
    assert set(metrics) == {"cnn", "roi_relevance", "sbr", "cart"}


def test_volumes_are_float32_ras_mm_and_relevance_lies_on_the_grid_of_its_input(finished):
    folder, _ = finished
    test = [row["participant_id"] for row in read_table(folder / "split.tsv") if row["set"] == "test"]
    assert len(list((folder / "relevance").glob("*.nii.gz"))) == len(test)
    for case in test:
        scan = nib.load(folder / "preprocessed" / f"{case}_space-MNI_spect.nii.gz")
        relevance = nib.load(folder / "relevance" / f"{case}_relevance.nii.gz")
        assert scan.get_data_dtype() == relevance.get_data_dtype() == np.float32
        assert nib.aff2axcodes(relevance.affine) == ("R", "A", "S")
        np.testing.assert_array_equal(scan.affine, relevance.affine)
        assert scan.shape == relevance.shape == (91, 109, 1)
        record = json.loads((folder / "relevance" / f"{case}_relevance.json").read_text())
        assert record["sum"] == pytest.approx(float(relevance.get_fdata().sum()), rel=1e-4, abs=1e-9)
        assert record["method"]["composite"] == "nazari2021"
        assert record["seed"] == [-record["logits"][0], record["logits"][1]]
        steps = [step["step"] for step in record["history"]]
        assert steps[:4] == ["load", "reconstruct", "register", "scale"]
        assert steps[-1] == "explain"


def test_mirroring_puts_the_lower_putamen_to_the_left(finished):
    folder, _ = finished
    rows = read_table(folder / "sbr.tsv")
    for row in rows:
        assert (row["mirrored"] == "true") == (float(row["putamen_right"]) < float(row["putamen_left"]))
    assert {row["mirrored"] for row in rows} == {"true", "false"}


def test_a_second_call_makes_nothing_again(finished, tiny, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "run")

    def times():
        changing = {".hydra", ".lock", "datxai.log"}  # the last of two readers of a run may leave the lock's file
        return {path: path.stat().st_mtime_ns for path in folder.rglob("*.*") if not changing & {*path.parts}}

    before = times()
    said = datxai(*tiny, f"run={folder}").stdout
    assert said.count("up to date") == 7
    assert times() == before


def test_one_stage_keeps_the_settings_of_its_run(finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    said = datxai("explain", f"run={folder}", "composite=epsilon", "target=reduced").stdout
    assert "up to date" not in said
    record = json.loads(next((folder / "relevance").glob("*.json")).read_text())
    assert record["method"]["composite"] == "epsilon"
    assert record["method"]["target"] == "reduced"
    assert nib.load(next((folder / "relevance").glob("*.nii.gz"))).shape == (91, 109, 1)
    answer = datxai("report", f"run={folder}", status=2)  # its evaluation is of the old maps
    assert "datxai evaluate" in answer.stdout + answer.stderr


def test_a_composite_that_names_a_missing_layer(finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    maps = {path.name: path.read_bytes() for path in (folder / "relevance").iterdir()}
    (tmp_path / "conf" / "composite").mkdir(parents=True)
    (tmp_path / "conf" / "composite" / "mine.yaml").write_text(
        "name: mine\nlayers:\n  - {match: [conv9], rule: flat}\n  - {match: ['*'], rule: epsilon}\n"
    )
    answer = datxai("explain", "--config-dir", tmp_path / "conf", "composite=mine", f"run={folder}", status=2)
    assert "conv9" in answer.stdout + answer.stderr
    record = (folder / ".hydra" / "config.yaml").read_text()
    assert "mine" not in record, "what is refused must not be taken over by the next stage"
    assert maps == {path.name: path.read_bytes() for path in (folder / "relevance").iterdir()}


def test_a_network_that_has_been_changed(finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    config = folder / "model" / "config.yaml"
    config.write_text(config.read_text().replace("- 109", "- 108"))
    answer = datxai("explain", f"run={folder}", "target=normal", status=2)
    assert "config.yaml: has been changed since it was made" in answer.stdout + answer.stderr


def test_one_new_scan(finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    manifest, record = (folder / "manifest.json").read_bytes(), (folder / ".hydra" / "config.yaml").read_bytes()
    scan = folder / "simulated" / "sub-0002_spect.dcm"
    datxai("case", f"scan={scan}", f"run={folder}")
    made = folder / "cases" / "sub-0002_spect"
    result = json.loads((made / "prediction.json").read_text())
    row = next(row for row in read_table(folder / "predictions.tsv") if row["participant_id"] == "sub-0002")
    assert result["logit_reduced"] == pytest.approx(float(row["logit_reduced"]), rel=1e-5)
    own = nib.load(made / "sub-0002_spect_relevance.nii.gz")
    assert own.shape == (64, 64, 64)
    np.testing.assert_allclose(np.diag(own.affine), [4, 4, 4, 1])
    assert float(result["sum"]) != 0
    assert (made / "report.html").is_file()
    assert (folder / "manifest.json").read_bytes() == manifest
    assert (folder / ".hydra" / "config.yaml").read_bytes() == record


def spoil(path, kind):
    image = nib.load(path)
    data = np.asarray(image.dataobj)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-2000])
        return
    if kind == "nan":
        data[5, 5, 5] = np.nan
    elif kind == "zero":
        data[:] = 0
    elif kind == "frames":
        data = np.stack([data, data], axis=-1)
    nib.save(nib.Nifti1Image(data, image.affine), path)


@pytest.mark.parametrize("kind", ["truncated", "nan", "zero", "frames"])
def test_a_scan_that_cannot_be_used(cohort, tmp_path, kind):
    cohort = shutil.copytree(cohort, tmp_path / "cohort")
    spoil(cohort / "sub-0001_spect.nii.gz", kind)
    options = ["data=folder", f"data.root={cohort}", "grid=slab_12mm", f"run={tmp_path / 'run'}", "n_jobs=1"]
    answer = datxai("preprocess", *options, status=2)
    assert "sub-0001" in answer.stdout + answer.stderr
    assert not (tmp_path / "run" / "manifest.json").exists()


def test_on_error_skip_goes_on_and_counts(cohort, tmp_path):
    cohort = shutil.copytree(cohort, tmp_path / "cohort")
    for path in sorted(cohort.glob("*.nii.gz"))[6:]:
        path.unlink()
    spoil(cohort / "sub-0001_spect.nii.gz", "nan")
    options = ["data=folder", f"data.root={cohort}", "grid=slab_12mm", f"run={tmp_path / 'run'}", "n_jobs=1"]
    said = datxai("preprocess", "on_error=skip", *options).stdout
    skipped = read_table(tmp_path / "run" / "skipped.tsv")
    assert len(skipped) == 3  # one spoilt, two without a scan
    assert "sub-0001" in {row["participant_id"] for row in skipped}
    assert "5 scans used, 3 left out" in said
    assert len(read_table(tmp_path / "run" / "participants.tsv")) == 5


def test_a_table_of_another_shape(cohort, tmp_path):
    cohort = shutil.copytree(cohort, tmp_path / "cohort")
    rows = read_table(cohort / "participants.tsv")
    (cohort / "participants.tsv").unlink()
    with (cohort / "cases.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["uid", "is_pathologic"])
        writer.writerows([row["participant_id"], "yes" if row["label"] == "1" else "no"] for row in rows)
    columns = "{participant_id: uid, label: is_pathologic, age: null, sex: null}"
    datxai(
        "preprocess", "data=folder", f"data.root={cohort}", "data.participants=cases.csv", f"data.columns={columns}",
        "data.label_values={yes: 1, no: 0}", "data.pattern='{participant_id}_spect.nii.gz'", "grid=slab_12mm",
        "n_jobs=1", f"run={tmp_path / 'run'}",
    )  # fmt: skip
    made = {row["participant_id"]: row["label"] for row in read_table(tmp_path / "run" / "participants.tsv")}
    assert made == {row["participant_id"]: row["label"] for row in rows}


N_KILLED = 8  # scans, of the 24


def test_killed_preprocessing_goes_on_where_it_was(finished, tmp_path):
    made, root, folder = finished[0], tmp_path / "scans", tmp_path / "run"
    root.mkdir()
    for scan in sorted((made / "simulated").glob("*.dcm"))[:N_KILLED]:
        shutil.copy(scan, root)
    first = (made / "simulated" / "participants.tsv").read_text().splitlines(keepends=True)[: N_KILLED + 1]
    (root / "participants.tsv").write_text("".join(first))
    options = ["data=dicom", f"data.root={root}", "grid=slab_12mm", "n_jobs=1"]
    command = [sys.executable, "-m", "datxai", "preprocess", *options, f"run={folder}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while len(list(folder.glob("preprocessed/*.json"))) < 3 and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {path: path.stat().st_mtime_ns for path in folder.glob("preprocessed/sub-*.json")}
    assert 3 <= len(done) < N_KILLED
    datxai("preprocess", *options, f"run={folder}")
    assert done == {path: path.stat().st_mtime_ns for path in done}
    rows = (made / "sbr.tsv").read_bytes().splitlines(keepends=True)
    assert (folder / "sbr.tsv").read_bytes() == b"".join(rows[: N_KILLED + 1])


EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def test_example_reads_a_run(finished):
    answer = subprocess.run(
        [sys.executable, EXAMPLES / "read_a_run.py", finished[0]], capture_output=True, text=True, timeout=120
    )
    assert answer.returncode == 0, answer.stderr
    assert "24 cases, 6 in the test set" in answer.stdout


def test_example_of_an_own_composite(finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    datxai("explain", f"run={folder}", "--config-dir", EXAMPLES / "my_conf", "composite=gamma_everywhere")
    record = json.loads(next((folder / "relevance").glob("*.json")).read_text())
    assert {row["rule"] for row in record["ledger"]} == {"gamma"}
    datxai("evaluate", f"run={folder}")  # without naming the directory again
    assert json.loads((folder / "metrics.json").read_text())["composite"] == "gamma_everywhere"


def test_example_of_any_network():
    answer = subprocess.run(
        [sys.executable, EXAMPLES / "explain_any_network.py"], capture_output=True, text=True, timeout=120
    )
    assert answer.returncode == 0, answer.stderr
    assert "relevance (4, 1, 24, 24, 24)" in answer.stdout


@pytest.mark.parametrize(
    ("setting", "word"),
    [("data.camera.pixel_mm=-4", "positive"), ("+data.camera.bin=3", "bins"), ("data.camera.rows=2.5", "whole"),
     ("+data.camera.counts=0", "positive")],
)
def test_a_camera_that_cannot_be(tmp_path, setting, word):
    answer = datxai("simulate", setting, "data.n_subjects=2", f"run={tmp_path / 'run'}", status=2)
    assert word in answer.stdout + answer.stderr


def test_the_same_seed_gives_the_same_bytes_whatever_the_number_of_processes(tmp_path):
    made = []
    for jobs in (1, 2):
        folder = tmp_path / str(jobs)
        datxai("simulate", "data.n_subjects=3", f"n_jobs={jobs}", f"run={folder}")
        made.append({path.name: path.read_bytes() for path in (folder / "simulated").iterdir()})
    assert made[0] == made[1]
    assert len([name for name in made[0] if name.endswith(".dcm")]) == 3


def test_a_larger_phantom_cohort_begins_with_the_scans_that_are_there(tmp_path):
    def simulate(*words, run="run"):
        datxai("simulate", "data.raw=false", "n_jobs=1", *words, f"run={tmp_path / run}")
        return {path.name: path for path in (tmp_path / run / "simulated").glob("*.nii.gz")}

    before = {name: path.stat().st_mtime_ns for name, path in simulate("data.n_subjects=2").items()}
    larger = simulate("data.n_subjects=3")
    assert len(larger) == 3
    assert before == {name: larger[name].stat().st_mtime_ns for name in before}
    alone = simulate("data.n_subjects=3", run="alone")
    assert {name: path.read_bytes() for name, path in larger.items()} == {
        name: path.read_bytes() for name, path in alone.items()
    }
    for word in ("data.seed=1", "+data.camera.motion_mm=0", "+data.camera.start_angle_deg=0"):
        before = {name: path.stat().st_mtime_ns for name, path in larger.items()}
        simulate("data.n_subjects=3", word)
        assert all(path.stat().st_mtime_ns != before[name] for name, path in larger.items()), word


def test_the_reads_of_the_phantom_come_to_its_labels(finished):
    folder, _ = finished
    labels = {row["participant_id"]: int(row["label"]) for row in read_table(folder / "participants.tsv")}
    assert reach_consensus(read_reads(folder / "simulated" / "reads.tsv")).labels == labels


def test_the_objective_of_a_job_is_a_number_that_it_has_found(tmp_path):
    settings = Config(run=str(tmp_path))
    assert pipeline.find_objective(settings) is None
    rows = [("validation", 1, 1), ("validation", 0, 1), ("validation", 0, 0), ("test", 0, 1)]
    columns = ["set", "label", "predicted"]
    write_table(tmp_path / "predictions.tsv", [dict(zip(columns, row)) for row in rows], columns)
    assert pipeline.find_objective(settings) == pytest.approx(2 / 3)
    write_json(tmp_path / "metrics.json", {"classifiers": {"cnn": {"auc": 0.75}}})
    assert pipeline.find_objective(replace(settings, objective="classifiers.cnn.auc")) == 0.75
    for name in ("classifiers.cnn", "classifiers.cnn.none", "x.y"):
        with pytest.raises(InputError, match=f"objective={name}: no number"):
            pipeline.find_objective(replace(settings, objective=name))


def test_the_roc_curves_have_the_areas_of_the_metrics(finished):
    findings = Findings(Run(finished[0]))
    for name, figures in findings.metrics["classifiers"].items():
        curve = findings.roc_of(name)
        assert curve["auc"] == pytest.approx(figures["auc"])
        assert np.trapezoid(curve["found"], curve["false_alarms"]) == pytest.approx(figures["auc"])
