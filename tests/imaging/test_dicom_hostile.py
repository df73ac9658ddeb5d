"""Files that are broken, of something else, or made to harm: one sentence, little memory, nothing left behind."""

import tracemalloc
import zlib
from io import BytesIO

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.filereader import read_file_meta_info
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    NuclearMedicineImageStorage,
    RLELossless,
    generate_uid,
)

from datxai.errors import InputError
from datxai.imaging.dicom import Projections, dataset, identify, read_projections, read_series, write_projections
from datxai.imaging.dicom.objects import write_object

PATIENT = "../../../etc/passwd"
MOST_MEMORY = 32 << 20  # bytes
SHAPE = (4, 5, 6)  # slices, rows, columns
VOXELS = np.random.default_rng(0).permutation(np.prod(SHAPE)).astype("<u2")


def make(path, **elements):
    """A reconstructed scan of a hostile patient."""
    write_object(
        path,
        NuclearMedicineImageStorage,
        generate_uid(),
        {
            "PatientID": PATIENT,
            "SeriesInstanceUID": "1.2.3",
            "Modality": "NM",
            "ImageType": ["ORIGINAL", "PRIMARY", "RECON TOMO", "EMISSION"],
            "DetectorInformationSequence": [
                {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "ImagePositionPatient": [0, 0, 0]}
            ],
            "NumberOfFrames": SHAPE[0],
            "Rows": SHAPE[1],
            "Columns": SHAPE[2],
            "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2",
            "BitsAllocated": 16,
            "BitsStored": 16,
            "HighBit": 15,
            "PixelRepresentation": 0,
            "PixelSpacing": [4, 4],
            "SpacingBetweenSlices": 4,
            "PixelData": VOXELS.tobytes(),
        }
        | elements,
    )
    return path


def make_projections(path, patient=PATIENT, **elements):
    angles = np.arange(0.0, 360.0, 30.0)
    write_projections(path, Projections(np.ones((12, 4, 6)), angles, 4.0, 4.0), "one", patient_id=patient)
    if elements:
        found = pydicom.dcmread(path)
        for keyword, value in elements.items():
            setattr(found, keyword, value)
        found.save_as(path)


def read(files):
    """As a scan is read: what it is, then its pixels."""
    return read_series(files) if identify(files) == "volume" else read_projections(files)


def compress_and_enlarge(path):
    found = pydicom.dcmread(make(path))
    found.compress(RLELossless)
    found.Rows = found.Columns = 65535
    found.save_as(path)


def deflate(path, more=0):
    """Rewrite as Deflated Explicit VR, with so many zeros behind the elements, in a private one."""
    found = pydicom.dcmread(make(path))
    found.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    found.save_as(path)
    content, start = path.read_bytes(), 144 + read_file_meta_info(path).FileMetaInformationGroupLength
    pack = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    tail = b"\xe1\x7f\x10\x00OB\0\0" + more.to_bytes(4, "little") + bytes(more) if more else b""
    path.write_bytes(
        content[:start] + pack.compress(zlib.decompress(content[start:], -zlib.MAX_WBITS) + tail) + pack.flush()
    )


def hide_a_large_picture(path):
    """A JPEG 2000 stream of 4 million pixels, all the same, where the header promises 30."""
    stream = BytesIO()
    Image.new("L", (2000, 2000)).save(stream, "JPEG2000")
    found = pydicom.dcmread(make(path, BitsAllocated=8, BitsStored=8, HighBit=7))
    found.file_meta.TransferSyntaxUID = JPEG2000Lossless
    found.PixelData = encapsulate([stream.getvalue()] * SHAPE[0])
    found["PixelData"].is_undefined_length = True
    found.save_as(path)


def nest(path):
    """Sequences in sequences in sequences, none of which ends."""
    content = make(path).read_bytes()
    head = content[: content.index(b"\x54\x00\x22\x00")]
    path.write_bytes(head + b"\x54\x00\x22\x00SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 3000)


def cut(path):
    path.write_bytes(make(path).read_bytes()[:-60])


def cut_deflated(path):
    deflate(path)
    path.write_bytes(path.read_bytes()[:-40])


def write_noise(path):
    path.write_bytes(b"\0" * 128 + b"DICM" + np.random.default_rng(0).bytes(1 << 20))


def mix(write_one):
    """The same series for two patients, a file each."""

    def write(path):
        write_one(path, "one")
        write_one(path.with_name("b.dcm"), "two")

    return write


def with_elements(**elements):
    return lambda path: make(path, **elements)


TECHNETIUM, IODINE = (
    [{"EnergyWindowRangeSequence": [{"EnergyWindowLowerLimit": low, "EnergyWindowUpperLimit": high}]}]
    for low, high in ((126.0, 154.0), (143.0, 175.0))
)
HOSTILE = {
    "size declared": (
        with_elements(Rows=65535, Columns=65535, NumberOfFrames=2000),
        "declares 65535 x 65535 x 2000 pixels, expected at most 67,108,864",
    ),
    "size declared, compressed": (compress_and_enlarge, "declares 65535 x 65535 x 4 pixels"),
    "zip bomb": (lambda path: deflate(path, 16 << 20), r"unpacks to more than 8 MiB"),
    "picture bomb": (hide_a_large_picture, "less or other data than the header promises"),
    "nested": (nest, "cannot be read as DICOM"),
    "cut": (cut, "truncated or damaged"),
    "deflated and cut": (cut_deflated, "cannot be read as DICOM"),
    "noise": (write_noise, "expected|cannot be read"),
    "header only": (lambda path: path.write_bytes(b"\0" * 128 + b"DICM"), "of modality unknown"),
    "two patients": (mix(lambda path, who: make(path, PatientID=who)), "more than one patient"),
    "two patients, raw": (mix(lambda path, who: make_projections(path, who)), "more than one patient"),
    "planar": (with_elements(ImageType=["ORIGINAL", "PRIMARY", "STATIC", "EMISSION"]), "holds planar images"),
    "bone scan": (with_elements(ImageType=["ORIGINAL", "PRIMARY", "WHOLE BODY", "EMISSION"]), "holds planar images"),
    "bone SPECT": (with_elements(EnergyWindowInformationSequence=TECHNETIUM), "was counted at 126-154 keV, .*another"),
    "bone SPECT, raw": (
        lambda path: make_projections(path, EnergyWindowInformationSequence=[item_of(TECHNETIUM)]),
        "expected one that holds 159 keV",
    ),
    "CT": (with_elements(Modality="CT"), "is of modality CT"),
    "spacing too small": (with_elements(PixelSpacing=["1e-30", "1e-30"]), r"PixelSpacing is \[1e-30, 1e-30\]"),
    "spacing too large": (with_elements(PixelSpacing=["1e30", "1e30"]), "expected lengths of 0.1 to 50 mm"),
    "slices too far apart": (with_elements(SpacingBetweenSlices="1e30"), r"slices are 1e\+30 mm apart"),
    "escapes": (with_elements(Modality="CT\x1b[31m\r\n" + "x" * 500), r"is of modality CT\\x1b\[31m\\r\\nxx"),
}


def item_of(sequence):
    """A sequence of one energy window as pydicom has it."""
    made, part = pydicom.Dataset(), pydicom.Dataset()
    for keyword, value in sequence[0]["EnergyWindowRangeSequence"][0].items():
        setattr(part, keyword, value)
    made.EnergyWindowName, made.EnergyWindowRangeSequence = "Tc-99m", [part]
    return made


@pytest.mark.filterwarnings("ignore")  # of pydicom, while odd files are written
@pytest.mark.parametrize(("write", "message"), HOSTILE.values(), ids=HOSTILE)
def test_one_sentence(tmp_path, monkeypatch, write, message):
    monkeypatch.setattr(dataset, "LARGEST_UNPACKED", 8 << 20)
    write(tmp_path / "a.dcm")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=message) as caught:
            read(tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MOST_MEMORY
    said = str(caught.value).replace(str(tmp_path), "")
    assert said.isprintable() and len(said) < 400
    assert PATIENT not in said and "Traceback" not in said
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_hostile_name_is_only_a_name(tmp_path):
    volume = read(make(tmp_path / "a.dcm", SeriesDescription="a/../b", PatientName="$(rm -rf ~)^`x`"))
    assert PATIENT not in str(volume.history)
    assert [path.name for path in tmp_path.iterdir()] == ["a.dcm"]


def test_a_deflated_scan_is_read(tmp_path):
    deflate(tmp_path / "a.dcm")
    np.testing.assert_array_equal(np.sort(read(tmp_path).data.ravel()), np.sort(VOXELS))


@pytest.mark.parametrize("windows", [[], [{}], TECHNETIUM + IODINE])
def test_scans_that_may_be_of_iodine_are_read(tmp_path, windows):
    assert read(make(tmp_path / "a.dcm", EnergyWindowInformationSequence=windows)).shape == SHAPE[::-1]
