"""NM TOMO written and read back: counts, angles and sides must survive, and each defect gets one sentence."""

import shutil
import subprocess

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, RLELossless

from datxai.errors import InputError
from datxai.imaging.dicom import Projections, identify, read_projections, write_projections
from datxai.imaging.reconstruction import reconstruct
from datxai.phantom.camera import Camera, project
from datxai.volume import Volume

VIEWS, ROWS, BINS = 12, 4, 6
PIXEL_MM, ROW_MM, RADIUS_MM = 4.4, 3.3, 135.0
ANGLE_TOLERANCE_DEG = 1e-6
MARKER_TOLERANCE_MM = 3.0  # less than a voxel
DIRECTIONS = pytest.mark.parametrize("sense", [1, -1], ids=["CC", "CW"])
HEADS = pytest.mark.parametrize("detectors", [1, 2])


def make(sense=1, start=180.0, detectors=1, views=VIEWS) -> Projections:
    """Random counts; with two detectors half a turn each, opposite to one another."""
    turn = 360.0 / views * np.arange(views // detectors)
    angles = np.concatenate([start + 180.0 * k + sense * turn for k in range(detectors)]) % 360
    counts = np.random.default_rng(0).poisson(9, (views, ROWS, BINS))
    return Projections(counts, angles, PIXEL_MM, ROW_MM, RADIUS_MM)


def apart(a, b):
    """Distance of angles in degrees."""
    return np.abs((np.asarray(a) - b + 180.0) % 360.0 - 180.0).max()


def expect_same(found: Projections, made: Projections) -> None:
    np.testing.assert_array_equal(found.counts, made.counts)
    assert found.counts.dtype == np.float32
    assert apart(found.angles_deg, made.angles_deg) < ANGLE_TOLERANCE_DEG
    assert (found.pixel_mm, found.row_spacing_mm) == (made.pixel_mm, made.row_spacing_mm)
    np.testing.assert_allclose(found.radius_mm, made.radius_mm)


@pytest.fixture
def path(tmp_path):
    write_projections(tmp_path / "scan.dcm", make(), "sub-1")
    return tmp_path / "scan.dcm"


def assign(dataset, **elements) -> Dataset:
    """Set elements by keyword; None removes one."""
    for keyword, value in elements.items():
        delattr(dataset, keyword) if value is None else setattr(dataset, keyword, value)
    return dataset


def edit(path, change=None, **elements):
    """Change a written file: its elements, and whatever ``change`` does."""
    dataset = assign(pydicom.dcmread(path), **elements)
    if change:
        change(dataset)
    dataset.save_as(path)
    return path


def window(name="", low=None, high=None) -> Dataset:
    limits = {} if low is None else {"EnergyWindowLowerLimit": low, "EnergyWindowUpperLimit": high}
    ranges = Sequence([assign(Dataset(), **limits)])
    return assign(Dataset(), EnergyWindowName=name, EnergyWindowRangeSequence=ranges)


@HEADS
@DIRECTIONS
@pytest.mark.parametrize("start", [0.0, 90.0, 180.0, 33.3])
def test_round_trip(tmp_path, start, sense, detectors):
    made = make(sense, start, detectors)
    write_projections(tmp_path / "a.dcm", made, "sub-1", detectors)
    found = read_projections(tmp_path / "a.dcm")
    expect_same(found, made)
    assert found.history[0]["detectors"] == detectors
    assert found.history[0]["energy_window_kev"] == [143.1, 174.9]


@HEADS
@DIRECTIONS
@pytest.mark.parametrize("start", [0.0, 90.0, 180.0])
def test_a_marker_comes_out_where_it_was(tmp_path, start, sense, detectors):
    """Left, in front, at the top: through the camera, a DICOM file and the reconstruction."""
    marker = np.array([-36.0, 48.0, 24.0])
    activity = np.zeros((33, 33, 25), np.float32)
    affine = np.diag([6.0, 6.0, 6.0, 1.0])
    affine[:3, 3] = [-96.0, -96.0, -72.0]
    activity[tuple(np.rint((marker - affine[:3, 3]) / 6.0).astype(int))] = 1.0
    views = 40
    clear = dict.fromkeys(("scatter", "collimator_scatter", "penetration"), (0, 0))
    camera = Camera(views, 24, 32, 6.4, start_angle_deg=start, **clear)
    seen = project(Volume(activity, affine), Volume(np.zeros_like(activity), affine), camera)
    order = (sense * np.arange(views)) % views
    if detectors == 2:
        order = np.concatenate([order[: views // 2], (order[: views // 2] + views // 2) % views])
    counts = seen[order] * (50_000 / seen.max())
    made = Projections(counts, camera.angles_deg[order], 6.4, 6.4, camera.radius_mm)
    write_projections(tmp_path / "a.dcm", made, "marker", detectors)

    found = read_projections(tmp_path / "a.dcm")
    volume = reconstruct(found.counts, found.angles_deg, found.pixel_mm, found.row_spacing_mm)
    weights = np.where(volume.data > 0.3 * volume.data.max(), volume.data, 0.0)
    centre = np.average(volume.grid.world_coordinates().reshape(-1, 3), axis=0, weights=weights.ravel())
    np.testing.assert_allclose(centre, marker, atol=MARKER_TOLERANCE_MM)


@pytest.mark.parametrize("detectors", [1, 2])
def test_an_independent_validator_accepts_the_file(tmp_path, detectors):
    if not shutil.which("dciodvfy"):
        pytest.skip("dciodvfy (Debian package dicom3tools) is not installed")
    write_projections(tmp_path / "a.dcm", make(detectors=detectors), "sub-1", detectors, patient_age=61.5)
    told = subprocess.run(["dciodvfy", str(tmp_path / "a.dcm")], capture_output=True, text=True, check=False)
    assert told.returncode == 0
    assert "NMImage" in told.stderr
    assert "Error" not in told.stdout + told.stderr
    assert "Standard Extended" not in told.stderr


def test_elements_of_the_written_object(path):
    dataset = pydicom.dcmread(path)
    assert list(dataset.ImageType) == ["ORIGINAL", "PRIMARY", "TOMO", "EMISSION"]
    assert [tag >> 16 for tag in dataset.FrameIncrementPointer] == 4 * [0x0054]
    assert (dataset.PatientID, dataset.PatientName) == ("PHANTOM", "PHANTOM^DIGITAL")
    assert dataset.pixel_array.shape == (VIEWS, ROWS, BINS)
    assert [float(x) for x in dataset.PixelSpacing] == [ROW_MM, PIXEL_MM]
    rotation = dataset.RotationInformationSequence[0]
    assert (rotation.StartAngle, rotation.AngularStep, rotation.RotationDirection) == (180, 30, "CC")  # growing
    detector = dataset.DetectorInformationSequence[0]
    position = np.array(detector.ImagePositionPatient, float)
    directions = np.array(detector.ImageOrientationPatient, float).reshape(2, 3)
    middle = position + (BINS - 1) / 2 * PIXEL_MM * directions[0] + (ROWS - 1) / 2 * ROW_MM * directions[1]
    np.testing.assert_allclose(middle, [0, -RADIUS_MM, 0], atol=1e-6)  # LPS: in front, at 180 degrees
    np.testing.assert_allclose(directions, [[1, 0, 0], [0, 0, -1]], atol=1e-9)  # the patient's left is on the right


def test_same_names_same_bytes(tmp_path):
    for name, seed in (("a", "x"), ("b", "x"), ("c", "y")):
        write_projections(tmp_path / name, make(), seed)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b != c


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"counts": np.full((2, 2, 2), 7e4), "angles_deg": [0, 180]}, "run from 70000 to 70000"),
        ({"counts": np.full((2, 2, 2), -1), "angles_deg": [0, 180]}, "run from -1 to -1"),
        ({"counts": np.ones((3, 2, 2)), "angles_deg": [0, 90, 200]}, "not evenly spaced"),
    ],
)
def test_what_cannot_be_written_leaves_no_file(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        write_projections(tmp_path / "a.dcm", Projections(pixel_mm=4.0, row_spacing_mm=4.0, **changes), "x")
    assert list(tmp_path.iterdir()) == []


def test_frames_in_another_order(path):
    order = np.random.default_rng(1).permutation(VIEWS)
    dataset = pydicom.dcmread(path)
    edit(path, AngularViewVector=(order + 1).tolist(), PixelData=dataset.pixel_array[order].tobytes())
    expect_same(read_projections(path), make())


def test_views_counted_on_by_the_second_detector(tmp_path):
    """Whether its views are counted from 1 or on from those of the first, its start angle is that of its first."""
    made = make(detectors=2)
    write_projections(tmp_path / "a.dcm", made, "x", 2)
    edit(tmp_path / "a.dcm", AngularViewVector=[*range(1, VIEWS + 1)])
    expect_same(read_projections(tmp_path / "a.dcm"), made)


def test_detectors_without_start_angles_but_counted_on(tmp_path):
    made = make(detectors=2)
    write_projections(tmp_path / "a.dcm", made, "x", 2)

    def strip(dataset):
        for detector in dataset.DetectorInformationSequence:
            del detector.StartAngle

    edit(tmp_path / "a.dcm", strip, AngularViewVector=[*range(1, VIEWS + 1)])
    expect_same(read_projections(tmp_path / "a.dcm"), made)
    edit(tmp_path / "a.dcm", AngularViewVector=2 * [*range(1, VIEWS // 2 + 1)])
    with pytest.raises(InputError, match="2 detectors start at one angle"):
        read_projections(tmp_path / "a.dcm")


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(("slope", "intercept"), [(None, None), (2.5, None), (0.5, -3.0)])
def test_stored_values(path, bits, slope, intercept):
    made = make()
    elements = {"BitsAllocated": bits, "BitsStored": bits, "HighBit": bits - 1}
    elements |= {"PixelData": made.counts.astype(f"<u{bits // 8}").tobytes()}
    elements |= {"RescaleSlope": slope} if slope else {}
    elements |= {"RescaleIntercept": intercept} if intercept else {}
    found = read_projections(edit(path, **elements))
    np.testing.assert_allclose(found.counts, made.counts * (slope or 1.0) + (intercept or 0.0))


def test_compressed(path):
    edit(path, lambda dataset: dataset.compress(RLELossless))
    expect_same(read_projections(path), make())


@pytest.mark.parametrize(
    ("windows", "chosen"),
    [
        ([window("SC", 120, 140), window("EM", 143, 175)], 1),
        ([window("I-123", 143, 175), window("I-123 scatter", 120, 140)], 0),
        ([window("upper 123"), window("Iodine"), window("I123_SC")], 1),
        ([window("wide", 120, 190), window("I-123", 143, 175)], 1),
        ([window("Tc-99m", 126, 154), window("PP", 159, 175)], 1),
        ([window()], 0),
    ],
)
def test_choice_of_energy_window(path, windows, chosen):
    made, several = make(), len(windows)
    shares = np.stack([made.counts if k == chosen else made.counts + 100 for k in range(several)])
    edit(
        path,
        EnergyWindowInformationSequence=Sequence(windows),
        NumberOfEnergyWindows=several,
        NumberOfFrames=several * VIEWS,
        EnergyWindowVector=np.repeat(range(1, several + 1), VIEWS).tolist(),
        DetectorVector=several * VIEWS * [1],
        RotationVector=np.repeat(range(1, several + 1), VIEWS).tolist(),  # as some cameras count them
        RotationInformationSequence=several * [pydicom.dcmread(path).RotationInformationSequence[0]],
        AngularViewVector=several * [*range(1, VIEWS + 1)],
        PixelData=shares.astype("<u2").tobytes(),
    )
    expect_same(read_projections(path), made)


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        ([window("Tc-99m", 126, 154)], r"none of the energy windows \('Tc-99m' 126-154 keV\)"),
        ([window("a", 150, 170), window("b", 143, 175)], "2 of the energy windows"),
        ([window("I-123", 150, 170), window("123-I", 143, 175)], "2 of the energy windows"),
        (
            [window("one"), window("two")],
            r"none of the energy windows \('one', 'two'\) could be that of I-123",
        ),
    ],
)
def test_no_clear_energy_window(path, windows, message):
    half = len(windows)
    edit(
        path,
        EnergyWindowInformationSequence=Sequence(windows),
        NumberOfEnergyWindows=half,
        EnergyWindowVector=np.repeat(range(1, half + 1), VIEWS // half).tolist(),
        AngularViewVector=half * [*range(1, VIEWS // half + 1)],
    )
    with pytest.raises(InputError, match=message):
        read_projections(path)


def test_radius_per_view(path):
    radii = np.linspace(120.0, 150.0, VIEWS)
    made = make()
    write_projections(path, Projections(made.counts, made.angles_deg, PIXEL_MM, ROW_MM, radii), "x")
    np.testing.assert_allclose(read_projections(path).radius_mm, radii)
    write_projections(path, Projections(made.counts, made.angles_deg, PIXEL_MM, ROW_MM), "x")
    assert read_projections(path).radius_mm is None


def test_overrides(path):
    made = make()
    found = read_projections(path, start_angle_deg=45.0)
    assert apart(found.angles_deg, made.angles_deg - 135.0) < ANGLE_TOLERANCE_DEG
    found = read_projections(path, flip=("rotation",))
    assert apart(found.angles_deg, 360.0 - made.angles_deg) < ANGLE_TOLERANCE_DEG  # mirrored about the first, at 180
    found = read_projections(path, flip=("bins", "rows"))
    np.testing.assert_array_equal(found.counts, made.counts[:, ::-1, ::-1])
    assert found.history[0]["flip"] == ["bins", "rows"]
    with pytest.raises(InputError, match="'columns' is not known"):
        read_projections(path, flip=("columns",))


def test_a_start_angle_that_is_not_recorded_can_be_given(path):
    edit(path, **rotation(StartAngle=None))
    with pytest.raises(InputError, match="StartAngle is missing"):
        read_projections(path)
    expect_same(read_projections(path, start_angle_deg=180.0), make())


def rotation(**elements):
    return {"change": lambda dataset: assign(dataset.RotationInformationSequence[0], **elements)}


def hide_pixels(dataset):
    """Pixels in a private block only, as some workstations keep them."""
    dataset.private_block(0x7FE1, "VENDOR PIXELS", create=True).add_new(0x10, "OW", dataset.PixelData)
    del dataset.PixelData


def take_fan_beam(dataset):
    dataset.DetectorInformationSequence[0].CollimatorType = "FANB"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (rotation(AngularStep=None), "AngularStep is missing"),
        (rotation(AngularStep=0), "AngularStep is 0 and RotationDirection CC"),
        (rotation(RotationDirection=None), "RotationDirection missing, expected more than 0 degrees and CC or CW"),
        (rotation(ScanArc=90), r"Scan Arc .* is 90 degrees, but 12 views in steps of 30 .* make 360, expected them to"),
        (rotation(AngularStep=15), r"Scan Arc .* is 360 degrees, but 12 views in steps of 15 .* make 180"),
        (rotation(AngularStep=60, ScanArc=None), "12 views in steps of 60 degrees .* go round more than once"),
        ({"RescaleSlope": "0"}, r"Rescale Slope \(0028,1053\) is 0"),
        (rotation(NumberOfFramesInRotation=VIEWS + 1), "has 12 views of a detector, the rotation promises 13"),
        ({"RotationInformationSequence": None}, "lacks the rotation information"),
        ({"RotationVector": [1, 2] * (VIEWS // 2)}, "makes several rotations"),
        ({"AngularViewVector": [*range(1, VIEWS)]}, "has 12 frames and 11 entries in AngularViewVector"),
        ({"AngularViewVector": [0, *range(1, VIEWS)]}, "AngularViewVector has entries below 1"),
        ({"AngularViewVector": [1, *range(1, VIEWS)]}, r"12 frames \(11 different ones\), expected 12"),
        ({"NumberOfDetectors": 2}, "has 12 frames .*, expected 24 .*1 energy windows x 2 detectors x 12 views"),
        ({"NumberOfEnergyWindows": 2}, "2 energy windows x 1 detectors x 12 views"),
        ({"DetectorVector": [1] * 7 + [2] * 5}, "expected 14"),
        ({"NumberOfFrames": VIEWS + 1}, "cannot be decoded"),
        ({"PixelData": bytes(2 * VIEWS * ROWS * BINS)}, "every count is zero"),
        ({"PixelSpacing": None}, "PixelSpacing is missing"),
        ({"PixelSpacing": [0, 4]}, r"PixelSpacing is \[0\.0, 4\.0\]"),
        ({"PixelData": None}, "holds no pixel data"),
        ({"change": hide_pixels}, "only private elements of the manufacturer"),
        ({"change": take_fan_beam}, "collimator of type FANB"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "RECON TOMO"]}, "holds no projections"),
    ],
)
def test_broken_acquisition(path, changes, message):
    edit(path, **changes)
    with pytest.raises(InputError, match=message) as caught:
        read_projections(path)
    assert str(caught.value).startswith(str(path))
    assert "PHANTOM" not in str(caught.value)


def test_unknown_transfer_syntax(path):
    content = path.read_bytes()
    assert content.count(b"1.2.840.10008.1.2.1\0") == 1
    path.write_bytes(content.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.99999.1.1.1\0"))
    with pytest.raises(InputError, match=r"scan\.dcm: the pixel data cannot be decoded"):
        read_projections(path)


def test_damaged_bytes_never_raise_anything_else(path):
    content = np.frombuffer(path.read_bytes(), np.uint8)
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(200):
        damaged = content.copy()
        damaged[rng.integers(128, len(content) - 2 * VIEWS * ROWS * BINS, 3)] = rng.integers(0, 256, 3)
        path.write_bytes(damaged.tobytes())
        try:
            outcomes.add(type(read_projections(path)))
        except InputError:
            outcomes.add(InputError)
    assert outcomes == {InputError, Projections}
    for keep in (0.0, 0.3, 0.95):
        path.write_bytes(content[: int(keep * len(content))].tobytes())
        with pytest.raises(InputError, match=r"scan\.dcm: "):
            read_projections(path)


def test_no_file(path):
    with pytest.raises(InputError, match="no such file"):
        read_projections(path.with_name("third.dcm"))


def test_identify(path):
    assert identify(path) == identify(path.parent) == "projections"
    other = shutil.copy(path, path.with_name("recon.dcm"))
    edit(other, ImageType=["ORIGINAL", "PRIMARY", "RECON TOMO", "EMISSION"])
    assert identify([other]) == "volume"
    with pytest.raises(InputError, match=r"scan\.dcm: holds projections, and .*recon\.dcm of the same"):
        identify(path.parent)


@pytest.mark.parametrize("kind", ["STATIC", "WHOLE BODY", "DYNAMIC", "GATED", "GATED TOMO", "RECON GATED TOMO"])
def test_identify_refuses_other_images(path, kind):
    edit(path, ImageType=["ORIGINAL", "PRIMARY", kind, "EMISSION"])
    with pytest.raises(InputError, match=rf"scan\.dcm: holds (planar|gated) images \(Image Type .*{kind}"):
        identify(path)


def test_identify_refuses_other_modalities(path):
    edit(path, Modality="CT", SOPClassUID=CTImageStorage, ImageType=["ORIGINAL", "PRIMARY", "AXIAL"])
    with pytest.raises(InputError, match="is of modality CT"):
        identify(path)
    path.write_bytes(b"no DICOM")
    with pytest.raises(InputError, match=r"scan\.dcm: cannot be read as DICOM"):
        identify(path)
