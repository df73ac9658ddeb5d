"""What is dropped by mistake or to do harm: one sentence that names the file, little memory, the next scan is read.

How headers of DICOM can lie is tested in tests/imaging/test_dicom_hostile.py; here what gets to a reader.
"""

import gzip
import shutil
import struct
import tracemalloc
import zipfile

import nibabel as nib
import numpy as np
import pytest
from forked import datxai
from pydicom.uid import generate_uid

from datxai.case import Imaging
from datxai.config import Atlas, Config, Lattice, Registration
from datxai.errors import InputError
from datxai.imaging.dicom.objects import write_object
from datxai.nifti import LARGEST_VOXELS
from datxai.scan import Scan
from datxai.volume import Volume, load, save

MOST_MEMORY = 64 << 20  # bytes
RNG = np.random.default_rng(11)
GRID = Lattice("mni_4mm", [46, 55, 46], [4, 4, 4], [-90, -126, -72])
NM, CT = "1.2.840.10008.5.1.4.1.1.20", "1.2.840.10008.5.1.4.1.1.2"  # SOP classes


@pytest.fixture(scope="module")
def imaging():
    return Imaging.of(Config(grid=GRID, registration=Registration("affine"), atlas=Atlas()))


def write_dicom(path, kind=NM, **elements):
    image = {
        "Modality": "NM", "PatientID": "1", "SeriesInstanceUID": "1.2.3", "StudyInstanceUID": "1.2", "Rows": 8,
        "Columns": 8, "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "BitsAllocated": 16,
        "BitsStored": 16, "HighBit": 15, "PixelRepresentation": 0, "PixelSpacing": [4, 4],
        "PixelData": np.ones((8, 8), "<u2").tobytes(),
    }  # fmt: skip
    write_object(path, kind, generate_uid(), image | elements)


def bone_scan(folder):
    write_dicom(folder / "scan.dcm", ImageType=["ORIGINAL", "PRIMARY", "WHOLE BODY", "EMISSION"])
    return folder / "scan.dcm"


def planar_image(folder):
    write_dicom(folder / "scan.dcm", ImageType=["ORIGINAL", "PRIMARY", "STATIC", "EMISSION"])
    return folder / "scan.dcm"


def ct(folder):
    write_dicom(folder / "scan.dcm", kind=CT, Modality="CT", ImageType=["ORIGINAL", "PRIMARY", "AXIAL"])
    return folder / "scan.dcm"


def noise(folder):
    (folder / "scan.dcm").write_bytes(RNG.bytes(20 << 20))
    return folder / "scan.dcm"


def noise_called_nifti(folder):
    (folder / "scan.nii.gz").write_bytes(RNG.bytes(20 << 20))
    return folder / "scan.nii.gz"


def bomb_of_nifti(folder):
    """A header that promises 64 GB, and zeros that keep some of the promise."""
    header = nib.Nifti1Header()
    header.set_data_dtype(np.float32)
    header.set_data_shape((4000, 4000, 1000))
    with gzip.open(folder / "scan.nii.gz", "wb") as stream:
        stream.write(header.binaryblock + bytes(4))
        for _ in range(64):
            stream.write(bytes(1 << 20))
    return folder / "scan.nii.gz"


def bomb_of_zip(folder):
    with zipfile.ZipFile(folder / "scan.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("scan.dcm", bytes(100 << 20))
    return folder / "scan.zip"


def empty_file(folder):
    (folder / "scan.dcm").touch()
    return folder / "scan.dcm"


def empty_folder(folder):
    (folder / "scan").mkdir()
    return folder / "scan"


def two_patients(folder):
    for z, patient in enumerate("12"):
        place = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "ImagePositionPatient": [0, 0, 4 * z]}
        kind = {"ImageType": ["ORIGINAL", "PRIMARY", "RECON TOMO", "EMISSION"], "DetectorInformationSequence": [place]}
        write_dicom(folder / f"{patient}.dcm", PatientID=patient, SliceThickness=4, **kind, **place)
    return folder


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (bone_scan, "holds planar images"),
        (planar_image, "holds planar images"),
        (ct, "is of modality CT"),
        (noise, "cannot be read as DICOM"),
        (noise_called_nifti, "cannot be read as NIfTI"),
        (bomb_of_nifti, "promises 4000 x 4000 x 1000 voxels"),
        (bomb_of_zip, "is a ZIP archive, which is not read"),
        (empty_file, "cannot be read as DICOM"),
        (empty_folder, "holds no DICOM file"),
        (two_patients, "more than one patient"),
    ],
)
def test_files_of_something_else(make, words, tmp_path):
    path = make(tmp_path)
    before = sorted(tmp_path.iterdir())
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=words) as caught:
            Scan.find(path).read(Config().reconstruction)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert str(tmp_path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert peak < MOST_MEMORY
    assert sorted(tmp_path.iterdir()) == before


def test_the_bound_lies_above_every_scan(tmp_path):
    assert LARGEST_VOXELS == 512 * 512 * 256
    save(Volume(np.ones((3, 4, 5)), np.eye(4)), tmp_path / "scan.nii")
    assert load(tmp_path / "scan.nii").shape == (3, 4, 5)
    content = bytearray((tmp_path / "scan.nii").read_bytes())
    struct.pack_into("<h", content, 42, 0)  # dim[1]
    (tmp_path / "scan.nii").write_bytes(content)
    with pytest.raises(InputError, match="0 x 4 x 5 voxels"):
        load(tmp_path / "scan.nii")


def make_ball(radius_mm, centre):
    positions = np.stack(np.meshgrid(*3 * [4.0 * np.arange(48) - 94], indexing="ij"))
    inside = ((positions - np.reshape(centre, (3, 1, 1, 1))) ** 2).sum(axis=0) < radius_mm**2
    return Volume(50 * inside + RNG.poisson(2, inside.shape), np.diag([4, 4, 4, 1]) + np.array(
        [[0, 0, 0, -94], [0, 0, 0, -94], [0, 0, 0, -94], [0, 0, 0, 0]]))  # fmt: skip


@pytest.mark.parametrize(
    "scan",
    [
        Volume(RNG.poisson(20, (48, 48, 48)), np.diag([4, 4, 4, 1])),
        make_ball(25, (0, 0, 0)),
        make_ball(94, (0, 0, 40)),
        Volume(make_ball(80, (0, 0, 0)).data, np.diag([0.4, 0.4, 0.4, 1])),
    ],
    ids=["noise", "a ball of the size of a knee", "a large ball at the rim", "a head of a doll"],
)
def test_scans_that_are_no_head(imaging, scan):
    with pytest.raises(InputError, match=r"^what was given: (registration|quality control|the scan)") as caught:
        imaging.process(scan, "what was given")
    assert len(str(caught.value).splitlines()) == 1


def test_the_command_says_one_sentence_and_leaves_nothing(finished, tmp_path):
    folder, here = shutil.copytree(finished[0], tmp_path / "run"), tmp_path / "here"
    here.mkdir()
    (here / "scan.dcm").write_bytes(RNG.bytes(1 << 20))
    before = sorted(folder.iterdir())
    answer = datxai("case", f"scan={here / 'scan.dcm'}", f"run={folder}", cwd=here, status=2)
    assert answer.stderr.splitlines() == [line for line in answer.stderr.splitlines() if line.startswith("datxai: ")]
    assert "cannot be read as DICOM" in answer.stderr
    assert "Traceback" not in answer.stderr + answer.stdout
    after = {path.name for path in folder.iterdir()} - {path.name for path in before}
    assert after <= {"anatomy.safetensors"}
    assert list(here.iterdir()) == [here / "scan.dcm"]
