"""NM TOMO as different cameras write it, built here element by element: a marker must come out in its place.

The oracle is geometry (DICOM PS3.3 C.8.4.12): a detector at an angle sees the marker at x cos - y sin to the right of
the axis. What cameras do follows their public conformance statements and readers of their files (STIR, PyTomography):
start angles stand in the detectors or only in the rotation; energy windows are counted as rotations; each detector
has a rotation of its own; frames run by window, detector and view, or view by view.
"""

from io import BytesIO

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    NuclearMedicineImageStorage,
    generate_uid,
)

from datxai.errors import InputError
from datxai.imaging.dicom import identify, read_projections
from datxai.imaging.reconstruction import reconstruct

ROWS, BINS = 16, 48
PIXEL_MM, ROW_MM = 5.0, 4.0
MARKER = np.array([-35.0, 50.0, 12.0])  # mm: left, in front, above the middle
MARKER_TOLERANCE_MM = 1.0
SIGMA_MM = 8.0
WINDOWS = {"I123 EM": (143.1, 174.9), "SC1": (126.4, 143.1), "SC2": (174.9, 190.8)}
SERIES = "1.2.826.0.1.3680043.8.498.1"


def see(angles_deg, offset_mm=0.0) -> np.ndarray:
    """Counts of a marker, (views, rows, bins): rows from the head downwards, the axis ``offset_mm`` to the right."""
    theta = np.deg2rad(np.asarray(angles_deg, float))[:, None, None]
    across = (np.arange(BINS) - (BINS - 1) / 2) * PIXEL_MM - offset_mm
    down = (np.arange(ROWS) - (ROWS - 1) / 2)[:, None] * ROW_MM
    distance = (across - MARKER[0] * np.cos(theta) + MARKER[1] * np.sin(theta)) ** 2 + (down + MARKER[2]) ** 2
    return np.rint(4000 * np.exp(-distance / (2 * SIGMA_MM**2))).astype("<u2")


def item(**elements) -> Dataset:
    made = Dataset()
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return made


def write(
    path,
    starts,
    views=60,
    step=3.0,
    direction="CW",
    windows=("I123 EM",),
    detector_starts=True,
    rotation_start=None,
    rotations="one",
    by_view=False,
    offsets=None,
    series=SERIES,
    syntax=ExplicitVRLittleEndian,
    **elements,
):
    """A file of ``len(starts)`` detectors; scatter windows hold a marker somewhere else."""
    sense = 1 if direction == "CC" else -1
    frames = []
    for w, name in enumerate(windows, start=1):
        for d, start in enumerate(starts, start=1):
            turned = start + sense * step * np.arange(views)
            shots = see(turned, offsets[d - 1] if offsets else 0.0)
            shots = shots if name == "I123 EM" else shots[:, ::-1, ::-1]
            turn = {"one": 1, "per window": w, "per detector": d}[rotations]
            frames += [(w, d, turn, v, shot) for v, shot in enumerate(shots, start=1)]
    if by_view:
        frames.sort(key=lambda frame: frame[3])
    window, detector, rotation, view, shots = zip(*frames)
    turns = [
        item(
            AngularStep=step,
            RotationDirection=direction,
            ScanArc=step * views,
            NumberOfFramesInRotation=views,
            RadialPosition=[130.0] * views,
            **({} if rotation_start is None else {"StartAngle": rotation_start}),
        )
        for _ in range(max(rotation))
    ]
    if rotations == "per detector":
        for turn, start in zip(turns, starts):
            turn.StartAngle = start
    heads = [
        item(
            CollimatorType="PARA",
            **({"StartAngle": start % 360} if detector_starts else {}),
            **({"CenterOfRotationOffset": offsets[d]} if offsets else {}),
        )
        for d, start in enumerate(starts)
    ]
    ranges = [
        item(EnergyWindowLowerLimit=WINDOWS[name][0], EnergyWindowUpperLimit=WINDOWS[name][1]) for name in windows
    ]
    dataset = item(
        SOPClassUID=NuclearMedicineImageStorage,
        SOPInstanceUID=generate_uid(entropy_srcs=[str(path)]),
        SeriesInstanceUID=series,
        Modality="NM",
        ImageType=["ORIGINAL", "PRIMARY", "TOMO", "EMISSION"],
        SamplesPerPixel=1,
        PhotometricInterpretation="MONOCHROME2",
        Rows=ROWS,
        Columns=BINS,
        BitsAllocated=16,
        BitsStored=16,
        HighBit=15,
        PixelRepresentation=0,
        PixelSpacing=[ROW_MM, PIXEL_MM],
        NumberOfFrames=len(shots),
        EnergyWindowVector=list(window),
        NumberOfEnergyWindows=len(windows),
        DetectorVector=list(detector),
        NumberOfDetectors=len(starts),
        RotationVector=list(rotation),
        NumberOfRotations=max(rotation),
        AngularViewVector=list(view),
        EnergyWindowInformationSequence=[
            item(EnergyWindowName=name, EnergyWindowRangeSequence=[limits]) for name, limits in zip(windows, ranges)
        ],
        DetectorInformationSequence=heads,
        RotationInformationSequence=turns,
        PixelData=np.stack(shots).tobytes(),
    )
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = NuclearMedicineImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    if syntax == ExplicitVRBigEndian:
        dataset.PixelData = np.stack(shots).astype(">u2").tobytes()
    if syntax.is_compressed and syntax != DeflatedExplicitVRLittleEndian:
        dataset.PixelData = encapsulate([squeeze(shot) for shot in shots])
        dataset["PixelData"].VR = "OB"
    dataset.save_as(path, enforce_file_format=True)
    return path


def squeeze(shot) -> bytes:
    """A frame as JPEG 2000, lossless."""
    stream = BytesIO()
    Image.fromarray(shot).save(stream, format="JPEG2000", irreversible=False, no_jp2=True)
    return stream.getvalue()


def find_marker(found) -> np.ndarray:
    """World mm of the reconstructed marker, as its centre of mass."""
    volume = reconstruct(
        found.counts, found.angles_deg, found.pixel_mm, found.row_spacing_mm, filter="ramp", centre=found.centre_bin
    )
    weights = np.where(volume.data > 0.3 * volume.data.max(), volume.data, 0.0)
    return np.average(volume.grid.world_coordinates().reshape(-1, 3), axis=0, weights=weights.ravel())


def expect_marker(found) -> None:
    np.testing.assert_allclose(find_marker(found), MARKER, atol=MARKER_TOLERANCE_MM)


OPPOSITE, AT_RIGHT_ANGLES = (180.0, 0.0), (180.0, 270.0)


@pytest.mark.parametrize("direction", ["CC", "CW"])
@pytest.mark.parametrize(
    "camera",
    [
        {"starts": OPPOSITE, "windows": (*WINDOWS,), "rotation_start": 180.0},  # H mode, windows one after another
        {"starts": AT_RIGHT_ANGLES, "windows": (*WINDOWS,), "rotation_start": 180.0},  # L mode
        {"starts": OPPOSITE, "windows": ("SC1", "I123 EM"), "rotations": "per window"},
        {"starts": (180.041, 0.041), "by_view": True},
        {"starts": OPPOSITE, "windows": ("I123 EM", "SC1"), "by_view": True},
        {"starts": OPPOSITE, "rotations": "per detector", "detector_starts": False},
        {"starts": (200.0,), "views": 120, "rotation_start": 200.0, "detector_starts": False},
        {"starts": (0.0, 120.0, 240.0), "views": 40},  # three heads
    ],
    ids=["H mode", "L mode", "windows as rotations", "by view", "by view, two windows", "a rotation each", "one", "3"],
)
def test_cameras(tmp_path, camera, direction):
    found = read_projections(write(tmp_path / "a.dcm", direction=direction, **camera))
    expect_marker(found)
    assert found.history[0]["detectors"] == len(camera["starts"])
    np.testing.assert_allclose(found.radius_mm, 130.0)
    assert found.centre_bin is None


@pytest.mark.parametrize("start", [{"rotation_start": 180.0}, {}], ids=["one for both", "none"])
def test_start_angles_that_are_not_told_can_be_given(tmp_path, start):
    path = write(tmp_path / "a.dcm", OPPOSITE, detector_starts=False, **start)
    told = r"2 detectors start at one angle \(180, 180 degrees\)" if start else "StartAngle is missing"
    with pytest.raises(InputError, match=rf"a\.dcm: {told}.* set reconstruction\.start_angle_deg to a list of 2"):
        read_projections(path)
    expect_marker(read_projections(path, OPPOSITE))


def test_one_start_angle_moves_all_detectors(tmp_path):
    path = write(tmp_path / "a.dcm", OPPOSITE)
    x, y, z = find_marker(read_projections(path, 90.0))  # a quarter turn, from in front to the left
    np.testing.assert_allclose([x, y, z], [-MARKER[1], MARKER[0], MARKER[2]], atol=MARKER_TOLERANCE_MM)


@pytest.mark.parametrize("given", [[180.0, 0.0, 90.0], "back", [180.0, "front"], [180.0, float("nan")], []])
def test_start_angles_that_do_not_fit(tmp_path, given):
    path = write(tmp_path / "a.dcm", OPPOSITE)
    with pytest.raises(
        InputError, match=r"a\.dcm: reconstruction\.start_angle_deg is .*expected a number of degrees or a list of 2"
    ):
        read_projections(path, given)


@pytest.mark.parametrize("flip", [(), ("bins",)])
def test_centre_of_rotation_offset(tmp_path, flip):
    """Each detector's axis is where its file says, so that the marker is as sharp as without offsets."""
    offsets = (9.0, -6.0)
    straight = read_projections(write(tmp_path / "a.dcm", OPPOSITE), flip=flip)
    shifted = read_projections(write(tmp_path / "b.dcm", OPPOSITE, offsets=offsets), flip=flip)
    side = -1 if flip else 1
    expected = (BINS - 1) / 2 + side * np.repeat(offsets, 60) / PIXEL_MM
    np.testing.assert_allclose(shifted.centre_bin, expected)
    assert shifted.history[0]["centre_offset_mm"] == [side * offset for offset in offsets]

    def image(found, **options):
        return reconstruct(found.counts, found.angles_deg, PIXEL_MM, ROW_MM, filter="ramp", **options).data

    wanted = image(straight)
    difference = np.linalg.norm(image(shifted, centre=shifted.centre_bin) - wanted) / np.linalg.norm(wanted)
    assert difference < 0.02  # linear interpolation of the bins
    assert np.linalg.norm(image(shifted) - wanted) / np.linalg.norm(wanted) > 0.2  # it does matter


def test_centre_of_rotation_offset_that_was_corrected_for(tmp_path):
    path = write(tmp_path / "a.dcm", OPPOSITE, offsets=(9.0, -6.0), CorrectedImage=["UNIF", "COR"])
    assert read_projections(path).centre_bin is None
    path = write(tmp_path / "a.dcm", OPPOSITE, offsets=(0.0, 0.0), CorrectedImage="UNIF")
    assert read_projections(path).centre_bin is None
    path = write(tmp_path / "a.dcm", OPPOSITE, offsets=(90.0, 0.0))
    with pytest.raises(InputError, match=r"a\.dcm: CenterOfRotationOffset is 90 mm, expected at most 50"):
        read_projections(path)


def test_a_file_per_detector_and_a_file_per_window(tmp_path):
    for number, start in enumerate(OPPOSITE):
        write(tmp_path / f"head{number}.dcm", (start,))
        write(tmp_path / f"scatter{number}.dcm", (start,), windows=("SC1",), series=SERIES + ".2")
    assert identify(tmp_path) == "projections"
    found = read_projections(tmp_path)
    expect_marker(found)
    assert (found.history[0]["files"], found.history[0]["detectors"]) == (2, 2)
    assert len(found.counts) == 120


def test_several_files_that_are_not_one_acquisition(tmp_path):
    write(tmp_path / "a.dcm", OPPOSITE)
    write(tmp_path / "b.dcm", OPPOSITE)
    with pytest.raises(InputError, match=r"4 detectors of 2 files start at one angle .*; keep one file if they repeat"):
        read_projections(tmp_path)
    write(tmp_path / "b.dcm", OPPOSITE, series=SERIES + ".2")
    with pytest.raises(InputError, match="holds 2 acquisitions in the window of I-123, expected one"):
        read_projections(tmp_path)
    write(tmp_path / "b.dcm", (90.0,), PixelSpacing=[ROW_MM, 2 * PIXEL_MM])
    with pytest.raises(InputError, match="the files differ in matrix or pixel spacing"):
        read_projections(tmp_path)
    for name in "ab":
        write(tmp_path / f"{name}.dcm", (180.0,), views=120, windows=("SC1",))
    with pytest.raises(InputError, match=r"a\.dcm: none of the energy windows \('SC1' 126\.4-143\.1 keV\)"):
        read_projections(tmp_path)


def test_a_scatter_window_without_limits_is_no_photopeak(tmp_path):
    scatter = [item(EnergyWindowName="SCATTER", EnergyWindowRangeSequence=[])]
    write(tmp_path / "a.dcm", OPPOSITE, EnergyWindowInformationSequence=scatter)
    with pytest.raises(InputError, match=r"none of the energy windows \('SCATTER'\)"):
        read_projections(tmp_path / "a.dcm")


def test_transmission_scans_are_refused(tmp_path):
    write(tmp_path / "a.dcm", OPPOSITE, ImageType=["ORIGINAL", "PRIMARY", "TOMO", "TRANSMISSION"])
    with pytest.raises(InputError, match=r"a\.dcm: holds transmission images"):
        identify(tmp_path)


@pytest.mark.parametrize(
    "syntax",
    [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, JPEG2000Lossless],
    ids=lambda syntax: syntax.name,
)
def test_transfer_syntaxes(tmp_path, syntax):
    plain = read_projections(write(tmp_path / "a.dcm", OPPOSITE))
    found = read_projections(write(tmp_path / "b.dcm", OPPOSITE, syntax=syntax))
    assert pydicom.dcmread(tmp_path / "b.dcm").file_meta.TransferSyntaxUID == syntax
    np.testing.assert_array_equal(found.counts, plain.counts)


def test_a_syntax_without_decoder(tmp_path):
    path = write(tmp_path / "a.dcm", OPPOSITE, syntax=JPEGLosslessSV1)
    with pytest.raises(InputError, match=r"no decoder is installed for transfer syntax JPEG Lossless.*export"):
        read_projections(path)
