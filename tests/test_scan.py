"""A scan is found by content, and each of its headers is read once, whoever asks for what it says."""

from collections import Counter

import numpy as np
import pydicom
import pytest
from pydicom.uid import ComputedRadiographyImageStorage, PositronEmissionTomographyImageStorage

from datxai.config import Reconstruction
from datxai.errors import InputError
from datxai.files import hash_content, hash_file
from datxai.imaging.dicom.objects import write_object
from datxai.scan import Scan
from datxai.volume import Volume, save

SLICES, ROWS, COLUMNS = 3, 4, 5


def write_slice(path, number, kind=PositronEmissionTomographyImageStorage, **elements):
    """One slice of a PET series, 3 mm above the one before."""
    pixels = np.random.default_rng(number).integers(1, 900, (ROWS, COLUMNS)).astype("<u2")
    elements = {
        "PatientID": "P1", "PatientSex": "F", "PatientAge": "064Y", "StudyInstanceUID": "1.2.3",
        "SeriesInstanceUID": "1.2.3.4", "FrameOfReferenceUID": "1.2.3.5", "Modality": "PT",
        "ImageType": ["ORIGINAL", "PRIMARY"], "ImageOrientationPatient": [1.0, 0.0, 0.0, 0.0, 1.0, 0.0],
        "ImagePositionPatient": [0.0, 0.0, 3.0 * number], "PixelSpacing": [2.0, 2.0], "SliceThickness": 3.0,
        "Rows": ROWS, "Columns": COLUMNS, "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15, "PixelRepresentation": 0, "PixelData": pixels.tobytes(),
        **elements,
    }  # fmt: skip
    write_object(path, kind, f"1.2.7.{number}", elements)


@pytest.fixture
def series(tmp_path):
    """A folder with a series, and a picture and a text that lie beside it."""
    folder = tmp_path / "series"
    folder.mkdir()
    for number in range(SLICES):
        write_slice(folder / f"{number}.dcm", number)
    write_slice(folder / "other.dcm", 9, ComputedRadiographyImageStorage, Modality="CR")
    (folder / "notes.txt").write_text("read me")
    return folder


def test_every_header_is_read_once_and_all_voxels_once(series, monkeypatch):
    headers, wholes, read = Counter(), Counter(), pydicom.dcmread

    def count(content, stop_before_pixels=False, **options):
        dataset = read(content, stop_before_pixels=stop_before_pixels, **options)
        (headers if stop_before_pixels else wholes)[str(dataset.SOPInstanceUID)] += 1
        return dataset

    monkeypatch.setattr(pydicom, "dcmread", count)
    scan = Scan.find(series)
    assert [path.name for path in scan.files] == ["0.dcm", "1.dcm", "2.dcm"]
    assert scan.subject == {"age": 64.0, "sex": "F", "tracer": None, "doubt": None}
    assert [instance[2] for instance in scan.source.instances] == ["1.2.7.0", "1.2.7.1", "1.2.7.2"]
    assert scan.read(Reconstruction()).shape == (COLUMNS, ROWS, SLICES)
    slices = {f"1.2.7.{number}": 1 for number in range(SLICES)}
    assert headers == slices | {"1.2.7.9": 1}
    assert wholes == slices


def test_the_files_of_a_cohort_are_the_same_scan(series):
    found, given = Scan.find(series), Scan(tuple(series.glob("*.dcm")), "dicom")
    assert set(given.series.paths) == set(found.files)
    np.testing.assert_array_equal(given.read(Reconstruction()).data, found.read(Reconstruction()).data)
    assert found.hash == hash_content(sorted(map(hash_file, found.files)))


def test_nifti_is_known_by_content_and_tells_nobody(tmp_path):
    path = tmp_path / "scan"
    save(Volume(np.arange(24.0).reshape(2, 3, 4), np.eye(4)), tmp_path / "scan.nii")
    (tmp_path / "scan.nii").rename(path)
    scan = Scan.find(path)
    assert (scan.files, scan.form) == ((path,), "nifti")
    assert set(scan.subject.values()) == {None}
    with pytest.raises(InputError, match="is NIfTI, which names neither patient nor study"):
        scan.source  # noqa: B018


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"scan=.*gone: no such file or folder"):
        Scan.find(tmp_path / "gone")


def test_a_folder_of_several_scans(series, tmp_path):
    """Two series in one folder, one of another person in a folder of its own, NIfTI beside it and elsewhere."""
    for number in range(2):
        write_slice(series / f"second_{number}.dcm", number, SeriesInstanceUID="1.2.3.9")
    (tmp_path / "alone").mkdir()
    write_slice(tmp_path / "alone" / "IM0001", 1, PatientID="P2", StudyDate="2020.03.04", AcquisitionDate="")
    volume = Volume(np.ones((3, 4, 5), np.float32), np.eye(4))
    save(volume, tmp_path / "alone" / "converted.nii.gz", mni=False)
    save(volume, tmp_path / "nifti" / "sub-01_ses-a_spect.nii.gz", mni=False)
    scans = {scan.place.relative_to(tmp_path).as_posix(): scan for scan in Scan.find_all(tmp_path)}
    assert {name: [file.name for file in scan.files] for name, scan in scans.items()} == {
        "alone/IM0001": ["IM0001"],
        "series": ["second_0.dcm", "second_1.dcm"],  # the later of two of one name
        "nifti/sub-01_ses-a_spect.nii.gz": ["sub-01_ses-a_spect.nii.gz"],
    }
    assert len(Scan.find_all(tmp_path)) == 4
    assert {str(path) for scan in scans.values() for path, _ in scan.others} >= {
        str(series / "notes.txt"), str(tmp_path / "alone" / "converted.nii.gz")
    }  # fmt: skip
    assert [len(scan.files) for scan in Scan.find_all(tmp_path / "nifti")] == [1]
    ((alone,),) = [Scan.find_all(tmp_path / "alone")]
    assert alone.place == tmp_path / "alone"  # as `find` has it
    (one,) = {scan.visit[0] for name, scan in scans.items() if name == "series"}
    person, day = scans["alone/IM0001"].visit
    assert (person != one, str(day)) == (True, "2020-03-04")
    assert scans["nifti/sub-01_ses-a_spect.nii.gz"].visit == ("sub-01", None)
    (tmp_path / "series" / "cut.dcm").write_bytes((series / "0.dcm").read_bytes()[:300])
    with pytest.raises(InputError, match=r"cut\.dcm"):
        Scan.find_all(tmp_path)
    skipped = []
    assert len(Scan.find_all(tmp_path, skipped)) == 4
    assert [path.name for path, _ in skipped] == ["cut.dcm"]


@pytest.mark.parametrize("name", ["", "ANON", "Anonymous", "000", "unknown"])
def test_a_placeholder_tells_nobody(tmp_path, name):
    for path in ("a.dcm", "b.dcm"):
        write_slice(tmp_path / path, 1, PatientID=name)
    assert Scan.find(tmp_path / "a.dcm").visit == (None, None)
