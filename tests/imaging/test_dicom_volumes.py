"""DICOM series written with pydicom and read back: each voxel must lie where the standard says it lies."""

import warnings

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    NuclearMedicineImageStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from datxai.errors import InputError
from datxai.imaging.dicom import identify, keep_scans, read_series
from datxai.volume import Volume

COLUMNS, ROWS, SLICES = 6, 5, 4
SPACING = [2.5, 2.0]  # between rows, between columns, mm
POSITION = np.array([-10.0, 20.0, -30.0])  # LPS mm
STEP = 3.0  # mm
POSITION_TOLERANCE_MM = 1e-4
AXIAL = [1, 0, 0, 0, 1, 0]
CORONAL = [1, 0, 0, 0, 0, -1]
TILT = np.deg2rad(20)
OBLIQUE = [np.cos(TILT), 0, np.sin(TILT), 0, 1, 0]
ORIENTATIONS = {"axial": AXIAL, "flipped": [-1, 0, 0, 0, 1, 0], "coronal": CORONAL, "oblique": OBLIQUE}
PATIENT = "Doe^Jane"


@pytest.fixture
def frames():
    """Stored values (slices, rows, columns), all different."""
    values = np.random.default_rng(0).permutation(COLUMNS * ROWS * SLICES) + 1
    return values.reshape(SLICES, ROWS, COLUMNS).astype(np.uint16)


def make(pixels, storage, syntax=ExplicitVRLittleEndian, **elements) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = storage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = syntax
    big = syntax == ExplicitVRBigEndian
    implicit = syntax == ImplicitVRLittleEndian
    dataset = FileDataset("", {}, b"\0" * 128, meta, is_implicit_VR=implicit, is_little_endian=not big)
    dataset.SOPClassUID = storage
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.PatientID, dataset.PatientName = "4711", PATIENT
    dataset.SeriesInstanceUID = "1.2.3"
    dataset.Modality = "NM"
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    dataset.PixelSpacing = SPACING
    if pixels.ndim == 3:
        dataset.NumberOfFrames = len(pixels)
    dataset.PixelData = pixels.astype(">u2" if big else "<u2").tobytes()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def item(**elements) -> Sequence:
    dataset = Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return Sequence([dataset])


def round_ds(values):
    return [f"{float(value):.10g}" for value in values]


def make_nm(frames, directions=AXIAL, step=STEP, **elements) -> FileDataset:
    """RECON TOMO: all slices in one file, geometry in the detector's item."""
    place = item(ImageOrientationPatient=round_ds(directions), ImagePositionPatient=round_ds(POSITION))
    elements = {
        "ImageType": ["ORIGINAL", "PRIMARY", "RECON TOMO", "EMISSION"],
        "DetectorInformationSequence": place,
        "NumberOfSlices": len(frames),
        "SliceThickness": abs(step),
        "SpacingBetweenSlices": step,
        "SliceVector": list(range(1, len(frames) + 1)),
    } | elements
    return make(frames, NuclearMedicineImageStorage, **elements)


def save(path, dataset):
    dataset.save_as(path, enforce_file_format=True)
    return path


def make_classic(frames, directions=AXIAL, step=STEP, **elements) -> list[FileDataset]:
    """One file per slice."""
    normal = np.cross(directions[:3], directions[3:])
    return [
        make(
            frame,
            CTImageStorage,
            ImageOrientationPatient=round_ds(directions),
            ImagePositionPatient=round_ds(POSITION + number * step * normal),
            **elements,
        )
        for number, frame in enumerate(frames)
    ]


def save_all(folder, datasets):
    order = np.random.default_rng(1).permutation(len(datasets))
    return [save(folder / f"{rank}.dcm", datasets[number]) for rank, number in enumerate(order)]


def expect_places(volume, frames, directions, step):
    """Every stored value lies where PS3.3 C.7.6.2.1.1 (and, for the slices, C.8.4.15) puts it."""
    row_direction, column_direction = np.array(directions[:3], float), np.array(directions[3:], float)
    normal = np.cross(row_direction, column_direction)
    assert volume.data.size == frames.size
    assert volume.data.dtype == np.float32
    assert (np.diag(volume.affine)[:3] > 0).all()  # RAS+, also for the oblique one
    for index, value in np.ndenumerate(volume.data):
        k, j, i = np.argwhere(frames == value)[0]
        lps = (
            POSITION + i * SPACING[1] * row_direction + j * SPACING[0] * column_direction + k * step * normal
        )
        np.testing.assert_allclose(
            volume.grid.index_to_mm(index), lps * [-1, -1, 1], atol=POSITION_TOLERANCE_MM
        )


@pytest.mark.parametrize("step", [STEP, -STEP])
@pytest.mark.parametrize("directions", ORIENTATIONS.values(), ids=ORIENTATIONS)
def test_nuclear_medicine_is_stacked_by_the_sign_of_the_spacing(tmp_path, frames, directions, step):
    path = save(tmp_path / "recon.dcm", make_nm(frames, directions, step))
    expect_places(read_series([path]), frames, directions, step)


@pytest.mark.parametrize("step", [STEP, -STEP])
@pytest.mark.parametrize("directions", ORIENTATIONS.values(), ids=ORIENTATIONS)
def test_single_slices_in_any_order(tmp_path, frames, directions, step):
    files = save_all(tmp_path, make_classic(frames, directions, step))
    expect_places(read_series(files), frames, directions, step)
    expect_places(read_series(tmp_path), frames, directions, step)


def test_enhanced_multi_frame(tmp_path, frames):
    normal = np.cross(OBLIQUE[:3], OBLIQUE[3:])
    shuffled = [2, 0, 3, 1]
    per_frame = Sequence([
        item(PlanePositionSequence=item(ImagePositionPatient=round_ds(POSITION + k * STEP * normal)))[0]
        for k in shuffled
    ])  # fmt: skip
    shared = item(
        PlaneOrientationSequence=item(ImageOrientationPatient=round_ds(OBLIQUE)),
        PixelMeasuresSequence=item(PixelSpacing=SPACING),
        PixelValueTransformationSequence=item(RescaleSlope=2, RescaleIntercept=0),
    )
    dataset = make(
        frames[shuffled],
        EnhancedMRImageStorage,
        PerFrameFunctionalGroupsSequence=per_frame,
        SharedFunctionalGroupsSequence=shared,
    )
    del dataset.PixelSpacing
    volume = read_series(save(tmp_path / "enhanced.dcm", dataset))
    expect_places(volume, 2 * frames, OBLIQUE, STEP)


def test_slice_vector_says_which_frame_is_which_slice(tmp_path, frames):
    order = [3, 1, 4, 2]
    dataset = make_nm(frames[np.array(order) - 1], SliceVector=order)
    expect_places(read_series(save(tmp_path / "a.dcm", dataset)), frames, AXIAL, STEP)


def test_without_spacing_between_slices_the_thickness_counts(tmp_path, frames):
    dataset = make_nm(frames)
    del dataset.SpacingBetweenSlices
    expect_places(read_series(save(tmp_path / "a.dcm", dataset)), frames, AXIAL, STEP)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless])
def test_transfer_syntaxes(tmp_path, frames, syntax):
    if syntax == RLELossless:
        dataset = make_nm(frames)
        dataset.compress(RLELossless)
    else:
        dataset = make_nm(frames, syntax=syntax)
    expect_places(read_series(save(tmp_path / "a.dcm", dataset)), frames, AXIAL, STEP)


def test_rescaled_values(tmp_path, frames):
    slopes = iter(range(1, SLICES + 1))
    datasets = make_classic(frames, RescaleIntercept=-5)
    for dataset in datasets:
        dataset.RescaleSlope = next(slopes)
    volume = read_series(save_all(tmp_path, datasets))
    expected = frames.astype(float) * np.arange(1, SLICES + 1)[:, None, None] - 5
    np.testing.assert_array_equal(np.sort(volume.data.ravel()), np.sort(expected.ravel()).astype(np.float32))


def test_history_holds_no_identity(tmp_path, frames):
    volume = read_series(save(tmp_path / f"{PATIENT}.dcm", make_nm(frames)))
    assert volume.history == (
        {"step": "load", "format": "DICOM", "modality": "NM", "files": 1, "slices": SLICES},
    )


def test_odd_values_do_not_warn(tmp_path, frames):
    dataset = make_nm(frames)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.SeriesInstanceUID = "1.02.not-a-uid"
        dataset.PixelData += b"\0\0\0\0"
        path = save(tmp_path / "a.dcm", dataset)
    expect_places(read_series(path), frames, AXIAL, STEP)


def test_other_files_of_a_folder_are_passed_over(tmp_path, frames):
    save(tmp_path / "a.dcm", make_nm(frames))
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "more").mkdir()
    assert read_series(tmp_path).shape == (COLUMNS, ROWS, SLICES)


def test_what_an_archive_files_beside_a_scan_is_passed_over(tmp_path, frames):
    scan = save(tmp_path / "a.dcm", make_nm(frames))
    save_all(tmp_path, make_classic(frames, Modality="CT"))
    save(tmp_path / "screen.dcm", make(frames[0], SecondaryCaptureImageStorage, ImageType=["DERIVED", "SECONDARY"]))
    assert keep_scans(tmp_path) == [scan]
    assert read_series(keep_scans(tmp_path)).shape == (COLUMNS, ROWS, SLICES)
    scan.unlink()
    with pytest.raises(InputError, match="expected a SPECT or PET scan"):
        identify(keep_scans(tmp_path))


def change(**elements):
    """A change of the first of several datasets; None removes an element."""

    def apply(datasets):
        for keyword, value in elements.items():
            if value is None:
                delattr(datasets[0], keyword)
            else:
                setattr(datasets[0], keyword, value)

    return apply


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: d.pop(1), r"lacks 1 of 4 slices \(a gap of 6\.00 mm"),
        (lambda d: d.append(d[1]), "1 of 5 slices lie where another one does"),
        (change(ImagePositionPatient=[-10, 20, -31]), "not evenly spaced"),
        (change(ImagePositionPatient=[-11, 20, -30]), "not evenly spaced"),
        (change(PixelSpacing=[2.5, 2.1]), "differ in matrix, pixel spacing or orientation"),
        (change(ImageOrientationPatient=CORONAL), "differ in matrix, pixel spacing or orientation"),
        (change(ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), "are no right-angled axes"),
        (change(ImageOrientationPatient=None), "ImageOrientationPatient is missing"),
        (change(ImagePositionPatient=[1, 2]), r"ImagePositionPatient is \[1\.0, 2\.0\], expected 3 numbers"),
        (change(PatientID="other"), "more than one patient"),
        (change(SeriesInstanceUID="1.2.4", SeriesDescription="OSEM"), r"2 series \('', 'OSEM'\)"),
        (change(PixelData=None), "holds no pixel data"),
        (change(SamplesPerPixel=3), "colour picture"),
        (change(NumberOfSlices=9), "has 4 slices, the header promises 9; export the whole series"),
        (lambda d: d.__delitem__(slice(1, None)), "holds one slice"),
    ],
)
def test_broken_series(tmp_path, frames, spoil, message):
    datasets = make_classic(frames)
    spoil(datasets)
    files = [save(tmp_path / f"{number}.dcm", dataset) for number, dataset in enumerate(datasets)]
    with pytest.raises(InputError, match=message) as caught:
        read_series(files)
    assert "4711" not in str(caught.value)
    assert PATIENT not in str(caught.value)


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        (
            {"ImageType": ["ORIGINAL", "PRIMARY", "TOMO", "EMISSION"]},
            "raw projections",
        ),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "STATIC", "EMISSION"]}, "planar images"),
        ({"SliceVector": [1, 2, 3]}, "4 frames and 3 entries in its slice vector"),
        ({"SliceVector": [1, 2, 1, 2], "NumberOfSlices": 2}, "has 4 slices, the header promises 2; give one"),
        ({"SliceVector": [1, 2, 1, 2]}, "2 of 4 slices lie where another"),
        ({"SliceVector": [1, 2, 4, 5], "NumberOfSlices": None}, "lacks 1 of 5 slices"),
        ({"DetectorInformationSequence": item()}, "ImageOrientationPatient is missing"),
        ({"SpacingBetweenSlices": None, "SliceThickness": None}, "SliceThickness is missing"),
        ({"NumberOfSlices": 5}, "has 4 slices, the header promises 5"),
        ({"PixelData": b"\0" * 240}, "every voxel is zero"),
        ({"PixelData": b"\0" * 100}, "cannot be decoded"),
    ],
)
def test_broken_nuclear_medicine(tmp_path, frames, elements, message):
    dataset = make_nm(frames)
    change(**elements)([dataset])
    path = save(tmp_path / "a.dcm", dataset)
    with pytest.raises(InputError, match=message):
        read_series(path)


@pytest.mark.parametrize("keep", [0.0, 0.05, 0.3, 0.6, 0.95])
def test_truncated_file(tmp_path, frames, keep):
    path = save(tmp_path / "a.dcm", make_nm(frames))
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(InputError, match=r"a\.dcm: "):
        read_series([path])


def test_damaged_bytes_never_raise_anything_else(tmp_path, frames):
    path = save(tmp_path / "a.dcm", make_nm(frames))
    content = np.frombuffer(path.read_bytes(), np.uint8)
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(200):
        damaged = content.copy()
        damaged[rng.integers(128, len(content) - frames.nbytes, 3)] = rng.integers(0, 256, 3)
        path.write_bytes(damaged.tobytes())
        try:
            outcomes.add(type(read_series(path)))
        except InputError:
            outcomes.add(InputError)
    assert outcomes == {InputError, Volume}  # some damage is to what does not matter


def test_unknown_transfer_syntax_and_missing_decoder(tmp_path, frames):
    path = save(tmp_path / "a.dcm", make_nm(frames))
    content = path.read_bytes()
    for syntax in (b"1.2.840.99999.1.1.1", b"1.2.840.10008.1.2.4"):  # of one length: private, retired
        assert content.count(b"1.2.840.10008.1.2.1\0") == 1
        path.write_bytes(content.replace(b"1.2.840.10008.1.2.1\0", syntax + b"\0"))
        with pytest.raises(InputError, match=r"a\.dcm: "):
            read_series(path)


def test_not_dicom(tmp_path):
    (tmp_path / "a.dcm").write_text("hello" * 100)
    with pytest.raises(InputError, match=r"a\.dcm: cannot be read as DICOM"):
        read_series([tmp_path / "a.dcm"])
    with pytest.raises(InputError, match="holds no DICOM file"):
        read_series(tmp_path)
    with pytest.raises(InputError, match=r"b\.dcm: no such file"):
        read_series(tmp_path / "b.dcm")


def test_against_pydicom_pixel_order(tmp_path, frames):
    """An axial scan: columns run to the patient's left, rows to the back, so both are flipped."""
    path = save(tmp_path / "a.dcm", make_nm(frames))
    expected = pydicom.dcmread(path).pixel_array.transpose(2, 1, 0)[::-1, ::-1]
    np.testing.assert_array_equal(read_series(path).data, expected)
