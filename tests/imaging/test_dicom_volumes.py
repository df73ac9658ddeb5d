"""DICOM series written with pydicom and read back: each voxel must lie where the standard says it lies."""

import gzip
import io
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
from datxai.imaging.dicom import identify, keep_scans, read_series, survey
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
META = b"\2\0\0\0UL\4\0\x0e\0\0\0\2\0\1\0OB\0\0\2\0\0\0\0\1"  # group length and version, no Transfer Syntax UID


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
    for group in dataset.PerFrameFunctionalGroupsSequence:  # there, and empty: what is shared counts
        group.PlaneOrientationSequence = item(ImageOrientationPatient=None)
        group.PixelMeasuresSequence = item(PixelSpacing=None)
        group.PixelValueTransformationSequence = item()
    volume = read_series(save(tmp_path / "enhanced.dcm", dataset))
    expect_places(volume, 2 * frames, OBLIQUE, STEP)


@pytest.mark.parametrize("digits", [2, 3])
@pytest.mark.parametrize("degrees", range(2, 45, 7))
def test_rounded_directions_are_made_right_angled(tmp_path, frames, degrees, digits):
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    exact = np.array([1, 0, 0, 0, c, s])
    turned = np.array([c, s * s, s * c, 0, c, -s])
    for directions in (exact, turned):
        volume = read_series(save(tmp_path / "a.dcm", make_nm(frames, np.round(directions, digits))))
        axes = volume.affine[:3, :3] / volume.grid.spacing
        np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-12)
        np.testing.assert_allclose(sorted(volume.grid.spacing), sorted([*SPACING, STEP]))
        normal = np.cross(directions[:3], directions[3:])
        truth = np.abs(np.column_stack([directions[:3], directions[3:], normal]))
        error = np.abs(np.sort(np.abs(axes).ravel()) - np.sort(truth.ravel()))
        assert error.max() < 0.6 * 10.0**-digits


@pytest.mark.parametrize("keyword", ["ImageOrientationPatient", "ImagePositionPatient"])
def test_what_is_empty_in_the_detector_is_told_at_the_top(tmp_path, frames, keyword):
    dataset = make_nm(frames, OBLIQUE)
    place = dataset.DetectorInformationSequence[0]
    setattr(dataset, keyword, getattr(place, keyword))
    setattr(place, keyword, None)
    expect_places(read_series(save(tmp_path / "a.dcm", dataset)), frames, OBLIQUE, STEP)


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_files_without_preamble_or_syntax(tmp_path, frames, implicit, packed):
    bare = Dataset()
    bare.update({element.tag: element for element in make_nm(frames)})
    made = io.BytesIO()
    pydicom.dcmwrite(made, bare, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
    content = made.getvalue()
    assert content[128:132] != b"DICM"
    for name, head in (("scan", b""), ("scan.dcm", bytes(128) + b"DICM" + META)):
        (tmp_path / name).write_bytes(gzip.compress(head + content) if packed else head + content)
        expect_places(read_series(tmp_path / name), frames, AXIAL, STEP)
        assert identify(tmp_path / name) == "volume"
    whole = save(tmp_path / "whole.dcm", make_nm(frames)).read_bytes()[128:]  # the prefix without the preamble
    (tmp_path / "scan").write_bytes(gzip.compress(whole) if packed else whole)
    expect_places(read_series(tmp_path / "scan"), frames, AXIAL, STEP)


def test_compressed_pixels_without_a_syntax_are_named(tmp_path, frames):
    dataset = make_nm(frames)
    dataset.compress(RLELossless)
    content = save(tmp_path / "a.dcm", dataset).read_bytes()
    begin = content.index(b"\x08\0\x08\0CS")  # of the first element behind the meta information
    (tmp_path / "a.dcm").write_bytes(content[begin:])
    with pytest.raises(InputError, match=r"a\.dcm: does not say how its pixels are compressed"):
        read_series(tmp_path / "a.dcm")


def test_folders_are_looked_through_and_what_is_passed_over_is_named(tmp_path, frames):
    for number, dataset in enumerate(make_classic(frames, Modality="NM")):
        (tmp_path / f"a/{number % 2}/b").mkdir(parents=True, exist_ok=True)
        save(tmp_path / f"a/{number % 2}/b/IM{number}", dataset)
    report = make(frames[0], "1.2.840.10008.5.1.4.1.1.88.11", Modality="SR")
    raw = make(frames[0], "1.2.840.10008.5.1.4.1.1.66", Rows=None)
    planar = make(frames[0], NuclearMedicineImageStorage, ImageType=["ORIGINAL", "PRIMARY", "STATIC"])
    for name, dataset in (("SR", report), ("RAW", raw), ("PLANAR", planar)):
        save(tmp_path / "a" / name, dataset)
    (tmp_path / "a/notes.txt").write_text("left")
    (tmp_path / "a/0/empty.dcm").touch()
    scans, others = survey(tmp_path)
    assert sorted(path.name for path in scans) == ["IM0", "IM1", "IM2", "IM3"]
    assert {path.name: reason for path, reason in others} == {
        "SR": "is of modality SR",
        "RAW": "is not an image (SOP Class 1.2.840.10008.5.1.4.1.1.66)",
        "PLANAR": "holds planar images (Image Type ORIGINAL/PRIMARY/STATIC), expected projections (TOMO) or a "
        "reconstructed volume (RECON TOMO)",
        "notes.txt": "is not DICOM",
        "empty.dcm": "is not DICOM",
    }
    expect_places(read_series(scans), frames, AXIAL, STEP)
    scans[1].write_bytes(scans[1].read_bytes()[:140])  # may be a part of the scan: not passed over
    with pytest.raises(InputError, match=r"IM\d: ends before its modality"):
        survey(tmp_path)


def test_a_link_of_a_folder_that_leads_nowhere_may_be_a_part_of_the_scan(tmp_path, frames):
    save_all(tmp_path, make_classic(frames, Modality="NM"))
    (tmp_path / "last").symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match=r"last: cannot be read \(No such file or directory\), and may be a part of"):
        survey(tmp_path)


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


@pytest.mark.parametrize("kind", [0, 1])
def test_bits_that_are_there_and_not_used(tmp_path, frames, kind):
    """Also of negative numbers, whose sign goes on beyond the bits that are stored."""
    values = (frames.astype(np.int16) - 60 * kind).view(np.uint16)
    dataset = make_nm(values, BitsStored=12, HighBit=11, PixelRepresentation=kind)
    volume = read_series(save(tmp_path / "a.dcm", dataset))
    np.testing.assert_array_equal(np.sort(volume.data.ravel()), np.sort(frames.ravel()) - 60.0 * kind)


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
        (change(ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), "are not at right angles"),
        (change(ImageOrientationPatient=None), "ImageOrientationPatient is missing"),
        (change(ImagePositionPatient=[1, 2]), r"ImagePositionPatient is \[1\.0, 2\.0\], expected 3 numbers"),
        (change(PatientID="other"), "more than one patient"),
        (change(SeriesInstanceUID="1.2.4", SeriesDescription="OSEM"), r"2 series \('', 'OSEM'\)"),
        (change(PixelData=None), "holds no pixel data"),
        (change(SamplesPerPixel=3), "colour picture"),
        (change(SpacingBetweenSlices=4.5), r"slices are 3 mm apart by their positions and 4\.5 mm by Spacing Between"),
        (change(ImageOrientationPatient=[1, 0, 0, 0, 0.9, 0.3]), "are not at right angles"),
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
        (
            {"ImageOrientationPatient": CORONAL, "ImagePositionPatient": [0, 0, 0]},
            r"Image Orientation is \[1.* in one place and \[1.*-1.* in another \(detectors, top level\)",
        ),
        ({"RescaleSlope": 0}, r"Rescale Slope \(0028,1053\) is 0, which makes all values alike"),
        ({"RescaleSlope": -1}, r"Rescale Slope \(0028,1053\) is -1, which turns uptake into its reverse"),
        ({"BitsStored": 6, "HighBit": 5}, r"Bits Stored \(0028,0101\) is 6, but the pixels use more of the 16"),
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
