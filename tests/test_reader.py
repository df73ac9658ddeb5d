"""Reading one new scan with a finished run."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pydicom
import pytest

import datxai
from datxai import reader as room
from datxai.analysis.calibration import probability
from datxai.commands import case
from datxai.config import Config
from datxai.errors import InputError
from datxai.files import read_json, read_table, write_json
from datxai.integrity import describe_files
from datxai.reader import Reader
from datxai.reading import deidentify_subject
from datxai.run import Run
from datxai.volume import Volume, load, resample, save

DOCS = Path(datxai.__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def folder(finished, tmp_path_factory):
    return shutil.copytree(finished[0], tmp_path_factory.mktemp("reader") / "run")


@pytest.fixture(scope="module")
def reader(folder):
    return Reader.open(folder)


@pytest.fixture(scope="module")
def reading(reader, folder):
    return reader.read(folder / "simulated" / "sub-0002_spect.dcm")


def test_the_settings_of_the_run_come_back(folder, reader):
    assert isinstance(reader.settings, Config)
    assert reader.settings.grid.name == "slab_12mm"
    assert reader.settings.composite.layers[0].rule == "flat"
    assert Reader.open(folder, target="difference").settings.target == "difference"


def test_the_reading_is_that_of_the_pipeline(folder, reading):
    row = next(row for row in read_table(folder / "predictions.tsv") if row["participant_id"] == "sub-0002")
    assert reading.result["logit_reduced"] == pytest.approx(float(row["logit_reduced"]), rel=1e-4, abs=1e-5)
    sbr = next(row for row in read_table(folder / "sbr.tsv") if row["participant_id"] == "sub-0002")
    assert reading.result["putamen_left"] == pytest.approx(float(sbr["putamen_left"]), rel=1e-3)
    assert reading.result["mirrored"] == (sbr["mirrored"] == "true")
    calibration = read_json(folder / "metrics.json")["calibration"]
    margin = reading.result["logit_reduced"] - reading.result["logit_normal"]
    expected = float(probability([margin], calibration["temperature"])[0]) if calibration["determined"] else None
    assert reading.result["probability"] == expected
    assert set(reading.result["timings"]) >= {"read", "register", "explain"}


def test_age_and_sex_are_those_of_the_header(folder, reader, reading):
    person = next(row for row in read_table(folder / "participants.tsv") if row["participant_id"] == "sub-0002")
    assert (reading.result["age"], reading.result["sex"]) == (round(float(person["age"])), person["sex"])
    older = reader.read(folder / "simulated" / "sub-0002_spect.dcm", age=85.0)
    assert older.result["age"] == 85.0
    assert older.result["normal_range"]["putamen_left"] != reading.result["normal_range"]["putamen_left"]


@pytest.mark.parametrize("age", [-4, 300])
def test_an_age_that_nobody_has_is_refused(folder, reader, age):
    with pytest.raises(InputError, match=f"the age is {age}, expected years, from 0 to 120"):
        reader.read(folder / "simulated" / "sub-0002_spect.dcm", age=age)


def test_a_map_is_held_against_mean_maps_made_alike_alone(folder, reading, tmp_path):
    """LRP of the decision has the opposite sign in normal cases, and would look like a wrong decision."""
    folder = shutil.copytree(folder, tmp_path / "run")
    for group in ("TN", "TP"):
        save(reading.relevance, Run(folder).mean_of(f"{group}_relevance"))
    entries = Run(folder).entries()
    entries["evaluate"]["files"] = describe_files(folder, [folder / name for name in entries["evaluate"]["outputs"]])
    Run(folder)._write(entries)
    assert Reader.open(folder).reference.means is not None
    assert Reader.open(folder, target="decision").reference.means is None


def test_a_tracer_of_something_else_is_named(folder, reader, reading, tmp_path):
    assert reading.result["tracer"] == "Ioflupane I-123"
    assert "tracer" not in " ".join(reading.result["warnings"])
    other = pydicom.dcmread(folder / "simulated" / "sub-0002_spect.dcm")
    other.RadiopharmaceuticalInformationSequence[0].Radiopharmaceutical = "123I-IBZM"
    other.save_as(tmp_path / "scan.dcm")
    assert "The header names the tracer 123I-IBZM" in " ".join(reader.read(tmp_path / "scan.dcm").result["warnings"])


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_map_goes_back_to_the_scan_and_to_its_side(reader, side, monkeypatch, tmp_path):
    """With the network's input as the map, what comes back is the scan itself, on its own side and in its place."""
    scan = load_asymmetric_scan(reader, side)

    def explain(x):
        return [(x[0, 0].numpy(), {"method": {}, "logits": [0.0, 1.0], "seed": [0.0, 1.0], "sum": 1.0, "ledger": []})]

    monkeypatch.setattr(room.Explainer, "explain", lambda self, x: explain(x))
    monkeypatch.setattr(room.Scan, "read", lambda self, reconstruction: scan)
    (tmp_path / "scan.nii.gz").touch()
    reading = reader.read(tmp_path / "scan.nii.gz")
    assert reading.result["mirrored"] == (side == "right")
    own, shown = reading.own_relevance, reading.own_relevance.data > 0
    assert own.grid.same_as(scan.grid)
    lower = reading.result["putamen_left"] < reading.result["putamen_right"]
    assert lower == (side == "left")
    smooth = resample(resample(scan, reading.relevance.grid, np.array(reading.result["transform"])), scan.grid,
                      np.linalg.inv(reading.result["transform"])).data  # fmt: skip
    right = np.corrcoef(own.data[shown], smooth[shown])[0, 1]
    wrong = np.corrcoef(own.data[::-1][shown & shown[::-1]], smooth[shown & shown[::-1]])[0, 1]
    assert right > 0.999
    assert wrong < 0.9


def load_asymmetric_scan(reader, side):
    """The template with one dark putamen, moved and turned: no normal pose, nothing symmetric."""
    bases = reader.imaging.bases
    uptake = {"brain": 1.0, "scalp": 0.8, "glands": 2.5}
    for name in bases:
        if name.startswith(("caudate", "putamen")):
            uptake[name] = 0.8 if name == f"putamen_posterior_{side}" or name == f"putamen_anterior_{side}" else 4.5
    head = Volume(sum(uptake.get(name, 0.0) * base.data for name, base in bases.items()), bases["brain"].affine)
    angle = np.radians(8)
    pose = np.eye(4)
    pose[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    pose[:3, 3] = (9, -6, 12)
    return resample(head, head.grid, pose)


def test_writing_leaves_everything_or_nothing(reader, reading, tmp_path, monkeypatch):
    place = reader.write(reading, tmp_path / "cases" / reading.name)
    names = {path.name for path in place.iterdir()}
    volumes = {f"{reading.name}_{kind}.nii.gz" for kind in ("relevance", "space-MNI_relevance", "space-MNI_spect")}
    assert {"report.html", "report.pdf", "prediction.json", "case.png"} | volumes <= names
    assert json.loads((place / "prediction.json").read_text())["predicted"] == reading.result["predicted"]
    own = nib.load(place / f"{reading.name}_relevance.nii.gz")
    assert own.shape == reading.scan.shape
    np.testing.assert_array_equal(load(place / f"{reading.name}_relevance.nii.gz").data, reading.own_relevance.data)
    page = (place / "report.html").read_text()
    assert "not diagnostic" in page
    assert all(f'href="{name}"' in page for name in ("report.pdf", "prediction.json"))

    def fail(*_):
        raise OSError("no space left on device")

    before = dict(reading.result["timings"])
    monkeypatch.setattr("datxai.pages.report.write_case_report", fail)
    with pytest.raises(OSError, match="no space"):
        reader.write(reading, tmp_path / "other" / "scan")
    assert list((tmp_path / "other").iterdir()) == []
    assert reading.result["timings"] == before, "writing leaves a reading as it is"


def test_dicom_results_without_a_name(folder, tmp_path):
    scan = folder / "simulated" / "sub-0002_spect.dcm"
    reader = Reader.open(folder, dicom=True, deidentify=True)
    reading = reader.read(scan)
    place = reader.write(reading, tmp_path / reading.name)
    assert reading.name.startswith("ANON-")
    results = [pydicom.dcmread(path) for path in sorted(place.glob("*.dcm"))]
    assert len(results) == 2
    source = pydicom.dcmread(scan, stop_before_pixels=True)
    for result in results:
        assert str(result.PatientID) == reading.name
        assert result.StudyInstanceUID != source.StudyInstanceUID
    for path in place.iterdir():
        if path.suffix in (".json", ".html"):
            text = path.read_text()
            assert str(source.PatientID) not in text, path.name
            assert scan.name not in text, path.name


@pytest.mark.parametrize(
    ("changes", "scan", "words"),
    [
        ({"target": "label"}, "sub-0002_spect.dcm", "target=label needs a labelled case"),
        ({"deidentify": True}, "sub-0002_spect.dcm", "deidentify=true needs dicom=true"),
        ({}, "nobody.dcm", "no such file"),
    ],
)
def test_what_cannot_be_read(folder, changes, scan, words):
    with pytest.raises(InputError, match=words):
        Reader.open(folder, **changes).read(folder / "simulated" / scan)


@pytest.mark.parametrize("missing", ["manifest.json", ".hydra/config.yaml", "model/weights.safetensors"])
def test_a_run_folder_half_written(folder, tmp_path, missing):
    half = shutil.copytree(folder, tmp_path / "half")
    (half / missing).unlink()
    with pytest.raises(InputError, match=r"expected|no such file|run .* first"):
        Reader.open(half)


def test_the_example_of_the_page(folder, tmp_path, monkeypatch, capsys):
    code = (DOCS / "case.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    shutil.copy(folder / "simulated" / "sub-0001_spect.dcm", "scan.dcm")
    exec(code.replace("RUN_DIR", str(folder)), {})
    assert (tmp_path / "out" / "scan" / "report.html").is_file()
    assert "(91, 109, 1)" in capsys.readouterr().out


def test_scans_of_one_name_are_cases_of_their_own(reader, folder, tmp_path, monkeypatch, caplog):
    """Media call the scans of all patients alike, and a data set of git-annex links to content named by its hash."""
    scan, run = folder / "simulated" / "sub-0002_spect.dcm", Run(tmp_path / "run")
    written = []
    monkeypatch.setattr(case, "Reader", SimpleNamespace(of=lambda *_: reader))
    monkeypatch.setattr(Run, "entry", lambda *_: {"fingerprint": "x"})
    monkeypatch.setattr(type(reader), "write", lambda self, reading, place: record(reading, place))

    def record(reading, place):
        written.append(place.relative_to(run.folder).as_posix())
        write_json(place / "prediction.json", reading.result)
        return place

    for patient in ("PAT1", "PAT2", "PAT1"):
        path = tmp_path / patient / "IM0001"
        path.parent.mkdir(exist_ok=True)
        dataset = pydicom.dcmread(scan)
        dataset.PatientID = patient
        dataset.save_as(path)
        case.run(replace(reader.settings, scan=str(path)), run)
    assert written == ["cases/IM0001", "cases/IM0001_2", "cases/IM0001"]
    assert "cases/IM0001 is another scan of that name; this one is cases/IM0001_2" in caplog.text
    (tmp_path / "sub-07_spect.dcm").symlink_to(path.rename(tmp_path / "MD5E-s524--0123.dcm"))
    assert reader.read(tmp_path / "sub-07_spect.dcm").name == "sub-07_spect"


@pytest.mark.parametrize(("told", "age"), [("000Y", None), ("999Y", None), ("071Y", 71)])
def test_an_age_that_is_a_placeholder_is_unknown_and_the_page_says_so(folder, reader, tmp_path, told, age):
    dataset = pydicom.dcmread(folder / "simulated" / "sub-0002_spect.dcm")
    dataset.PatientAge, dataset.PatientBirthDate = told, ""
    dataset.save_as(tmp_path / "scan.dcm")
    result = reader.read(tmp_path / "scan.dcm").result
    assert result["age"] == age
    assert (f"The header gives the age {told}" in " ".join(result["warnings"])) == (age is None)
    assert reader.read(tmp_path / "scan.dcm", age=60).result["age"] == 60


def test_without_identity_nothing_of_the_header_is_told():
    told = {"age": 61.0, "sex": "F", "doubt": "The header gives the age 61X."}
    for tracer, kept in ((None, None), ("DaTSCAN for Mrs Doe", None), ("FDG, Mrs Doe", "(left out)")):
        expected = {"age": None, "sex": None, "tracer": kept, "doubt": None}
        assert deidentify_subject({**told, "tracer": tracer}) == expected
