"""Several scans in one start, which of them are of one person, and what changed in between."""

import json
import logging
from dataclasses import replace
from datetime import date
from types import SimpleNamespace

import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from datxai.case import HALVES, SBR
from datxai.commands import case
from datxai.config import Config
from datxai.errors import InputError
from datxai.files import read_json, write_json
from datxai.reader import Reader
from datxai.reading import Reading
from datxai.run import Run
from datxai.volume import Volume, save


@pytest.fixture
def store(finished, tmp_path):
    """Writes a scan of the run under another name, of another person and day."""

    def store(path, person, day, number=1, **elements):
        dataset = pydicom.dcmread(finished[0] / "simulated" / f"sub-{number:04d}_spect.dcm")
        dataset.PatientID, dataset.PatientName, dataset.PatientSex = person, f"{person}^X", "F"
        dataset.AcquisitionDate, dataset.StudyDate = day, day
        dataset.SeriesInstanceUID, dataset.StudyInstanceUID = generate_uid(), generate_uid()
        for keyword, value in elements.items():
            setattr(dataset, keyword, value)
        path = tmp_path / "scans" / path
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset.save_as(path)
        return path

    return store


@pytest.fixture
def read(monkeypatch, tmp_path):
    """Runs the command with a reader that looks at names alone: the results by folder, in the order of writing."""
    written = {}

    def read(scan, age=None, sex=None):
        if scan.place.name.startswith("bad"):
            raise InputError(f"{scan.place}: no scan.")
        ratio = 1 + len(scan.place.name) / 100
        result = {
            **dict.fromkeys([*SBR, *HALVES], ratio), "scan": scan.place.name, "scan_hash": str(scan.files),
            "warnings": [], "predicted": 0, "p_reduced": 0.1, "probability": None, "age": age, "sex": sex,
        }  # fmt: skip
        return Reading(scan.place.stem, *[None] * 4, result)

    def write(reading, place):
        written[place.relative_to(tmp_path).as_posix()] = reading.result
        write_json(place / "prediction.json", reading.result | {"timings": {}})
        return place

    reader = SimpleNamespace(read=read, write=write, timings={})
    monkeypatch.setattr(case, "Reader", SimpleNamespace(of=lambda *_: reader))
    monkeypatch.setattr(Run, "entry", lambda *_: {"fingerprint": "x"})

    def start(**settings):
        written.clear()
        case.run(replace(Config(), run=str(tmp_path / "run"), **settings), Run(tmp_path / "run"))
        return dict(written)

    return start


def priors(written):
    return {place: (its["prior"]["scan"], its["prior"]["years"]) for place, its in written.items() if "prior" in its}


def test_a_folder_of_scans_is_read_in_one_start(store, read, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    store("a/IM0001", "P1", "20200101")
    store("b/IM0001", "P2", "20200102")
    store("b/IM0002", "P3", "20200102")
    assert list(read(scan=str(tmp_path / "scans"))) == ["run/cases/IM0001", "run/cases/IM0001_2", "run/cases/IM0002"]
    assert "cases/IM0001 is another scan of that name; this one is cases/IM0001_2" in caplog.text
    assert "3 scans read, 0 left out" in caplog.text
    folder = tmp_path / "scans"
    again = read(scan=[str(folder / "b"), str(folder / "a" / "IM0001")], out=str(tmp_path / "o"))
    assert list(again) == ["o/IM0001", "o/IM0002", "o/IM0001_2"]


def test_what_cannot_be_used_stops_or_is_listed_at_the_end(store, read, tmp_path, caplog):
    store("a.dcm", "P1", "20200101")
    store("bad.dcm", "P2", "20200101")
    (tmp_path / "scans" / "worse.dcm").write_bytes((tmp_path / "scans" / "a.dcm").read_bytes()[:300])
    folder = str(tmp_path / "scans")
    with pytest.raises(InputError, match=r"worse\.dcm"):
        read(scan=folder)
    assert list(read(scan=folder, on_error="skip")) == ["run/cases/a"]
    assert next(line for line in caplog.messages if line.startswith("left out")).count("worse.dcm") == 1
    assert f"left out: {tmp_path / 'scans' / 'bad.dcm'}: no scan." in caplog.messages
    with pytest.raises(InputError, match=r"None of 2 scans could be used; the first because: .*no such file"):
        read(scan=[str(tmp_path / "scans" / "bad.dcm"), str(tmp_path / "nowhere")], on_error="skip")
    with pytest.raises(InputError, match="no such file or folder"):
        read(scan=str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="scan has no value"):
        read()


def test_the_scans_of_a_person_are_held_against_the_one_before(store, read, tmp_path):
    store("third.dcm", "P1", "20230103")
    store("first.dcm", "P1", "20200103")
    store("second.dcm", "P1", "20210704")
    store("sameday.dcm", "P2", "20210704")
    store("sameday_2.dcm", "P2", "20210704")  # another reconstruction
    store("nobody.dcm", "ANON", "20190101")
    store("nobody_2.dcm", "ANON", "20200101")
    store("other.dcm", "P1", "20240103", PatientSex="M")  # one number, two hospitals
    found = priors(read(scan=str(tmp_path / "scans")))
    assert found == {
        "run/cases/second": ("first.dcm", round((date(2021, 7, 4) - date(2020, 1, 3)).days / 365.25, 2)),
        "run/cases/third": ("second.dcm", round((date(2023, 1, 3) - date(2021, 7, 4)).days / 365.25, 2)),
    }


def test_without_dates_scans_of_a_person_stand_in_the_order_given(store, read, tmp_path):
    a, b = store("a.dcm", "P1", ""), store("b.dcm", "P1", "20210101")
    assert priors(read(scan=[str(b), str(a)])) == {"run/cases/a": ("b.dcm", None)}
    (tmp_path / "nifti").mkdir()
    for name in ("sub-01_ses-1_spect", "sub-01_ses-2_spect", "sub-02_spect"):
        save(Volume(np.ones((2, 2, 2), np.float32), np.eye(4)), tmp_path / "nifti" / f"{name}.nii.gz", mni=False)
    found = priors(read(scan=str(tmp_path / "nifti")))
    assert found == {"run/cases/sub-01_ses-2_spect.nii": ("sub-01_ses-1_spect.nii.gz", None)}


def test_an_earlier_scan_can_be_given(store, read, tmp_path):
    now, before = store("now.dcm", "P1", "20220101"), store("before.dcm", "P9", "20200101")
    (result,) = read(scan=str(now), prior=str(before), age=70.0).values()
    assert (result["prior"]["scan"], result["prior"]["years"], result["age"]) == ("before.dcm", 2.0, 70.0)
    assert result["prior"]["change"]["striatum_left"]["percent"] == pytest.approx(100 * (1.07 / 1.10 - 1))
    assert result["warnings"] == [case.OTHER_PERSON]
    (result,) = read(scan=str(now), prior=str(before), prior_years=3.5).values()
    assert result["prior"]["years"] == 3.5
    with pytest.raises(InputError, match="is of a later day than"):
        read(scan=str(before), prior=str(now))
    with pytest.raises(InputError, match="give that as prior=PATH"):
        read(scan=str(now), prior_years=1.0)
    for setting in ({"age": 60.0}, {"sex": "F"}, {"prior": "x"}):
        with pytest.raises(InputError, match=f"{next(iter(setting))} is of one scan, and there are 2"):
            read(scan=[str(now), str(before)], **setting)


def test_both_scans_are_on_the_page_and_no_date_is_told(finished, store, tmp_path):
    first, second = store("first.dcm", "Jane", "20190304", 1), store("second.dcm", "Jane", "20210904", 2)
    reader = Reader.open(finished[0], dicom=True, deidentify=True)
    settings = replace(reader.settings, scan=[str(second), str(first)], out=str(tmp_path / "out"))
    case.run(settings, Run(finished[0]))
    results = {path.parent: read_json(path) for path in (tmp_path / "out").glob("*/prediction.json")}
    ((place, result),) = [item for item in results.items() if "prior" in item[1]]
    (other,) = results.keys() - {place}
    assert result["prior"]["scan"] == other.name
    assert result["prior"]["years"] == 2.51
    plain = Reader.open(finished[0])
    for region, change in result["prior"]["change"].items():
        before, now = (plain.read(path).result[region] for path in (first, second))
        assert change["percent"] == pytest.approx(100 * (now - before) / before)
        break
    page = (place / "report.html").read_text()
    assert "Change since the earlier scan" in page
    assert f"{other.name}, 2.51 years before" in page
    for path in place.iterdir():
        content = path.read_bytes()
        for told in (b"Jane", b"20190304", b"20210904", b"2019-03-04", b"first.dcm", b"second.dcm"):
            assert told not in content, path
    (earlier,) = json.loads(page.split("const earlier = ")[1].split(";\n")[0])
    assert earlier["tops"].keys() == {"spect", "relevance"}
