"""What the settings of `data` name."""

import shutil

import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, NuclearMedicineImageStorage

from datxai.config import Config, Dicom, Folder, Phantom
from datxai.data_source import _parse_labels, find_scans, makes_projections, set_camera
from datxai.errors import InputError
from datxai.run import Run


@pytest.mark.parametrize("words", [{"0": [0]}, {"HC": 2}, {}, "HC"])
def test_labels_that_are_none_are_refused(words):
    with pytest.raises(InputError, match="expected a mapping to 0"):
        _parse_labels(words, "data.label_values")


def test_truths_of_a_spreadsheet_are_words_in_any_case():
    found = _parse_labels({True: 1, False: 0, "PD": 1}, "data.label_values")
    assert (found["TRUE"], found["false"], found["PD"]) == (1, 0, 1)


def test_the_camera_counts_in_whole_numbers():
    assert set_camera({"views": 60.0, "pixel_mm": 3}) == {"views": 60, "pixel_mm": 3.0}
    for name, value in (("views", 60.5), ("pixel_mm", 0), ("rows", -1)):
        with pytest.raises(InputError, match=f"data.camera.{name}="):
            set_camera({name: value})
    with pytest.raises(InputError, match=r"data\.camera has no lens, expected some of"):
        set_camera({"lens": 1.0})


def test_the_phantom_makes_projections_unless_volumes_are_asked_for():
    kinds = ({}, {"raw": False}, {"reconstruction": "sites"})
    made = [makes_projections(Phantom("phantom", n_subjects=1, seed=0, **more)) for more in kinds]
    assert made == [True, False, False]


@pytest.mark.parametrize(
    ("data", "on_error", "words"),
    [(Folder("tape", root="."), "raise", "data.kind=tape: expected"), (Folder("folder"), "stop", "on_error=stop")],
)
def test_what_is_no_source_is_refused(tmp_path, data, on_error, words):
    with pytest.raises(InputError, match=words):
        find_scans(Config(data=data, on_error=on_error), Run(tmp_path))


def write_header(path, **elements):
    """A DICOM file that tells something of a person, and no more."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset = pydicom.Dataset()
    dataset.update({"SOPClassUID": NuclearMedicineImageStorage, "SOPInstanceUID": "1.2.3", **elements})
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)


def test_age_and_sex_are_those_of_the_header_where_no_table_says_any(tmp_path):
    root = tmp_path / "scans"
    told = {
        "one": ({"PatientAge": "064Y", "PatientSex": "F"}, (64.0, "F")),
        "two": ({"PatientAge": "000Y", "PatientSex": "O"}, (None, None)),
        "three": ({"PatientBirthDate": "19510203", "StudyDate": "20220202", "PatientSex": "M"}, (70.0, "M")),
        "four": ({"PatientAge": "999Y", "PatientSex": ""}, (None, None)),
    }
    for name, (elements, _) in told.items():
        write_header(root / name / "scan.dcm", **elements)
    for session, age in (("1", "070Y"), ("2", "072Y")):
        write_header(root / "five" / f"ses-{session}" / "scan.dcm", PatientAge=age, PatientSex="M")
    damaged = root / "six" / "scan.dcm"
    damaged.parent.mkdir()
    damaged.write_bytes((root / "one" / "scan.dcm").read_bytes()[:180])
    settings = Config(data=Dicom("dicom", root=str(root)), applied="run")
    found = {scan.case_id: (scan.participant.age, scan.participant.sex) for scan in find_scans(settings, Run("x"))[0]}
    expected = {name: who for name, (_, who) in told.items()}
    assert found == {**expected, "five_ses-1": (70.0, "M"), "five_ses-2": (72.0, "M"), "six": (None, None)}
    (root / "participants.tsv").write_text("participant_id\tage\tsex\none\tn/a\tn/a\n")
    for name in ("two", "three", "four", "five", "six"):
        shutil.rmtree(root / name)
    (scan,) = find_scans(settings, Run("x"))[0]
    assert (scan.participant.age, scan.participant.sex) == (None, None), "what the table says holds"
