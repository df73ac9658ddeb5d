"""Results as DICOM: every value where the scan has it, filed beside the scan, and nobody's name where none is wanted.

Oracles: the formula of DICOM PS3.3 C.7.6.2.1.1 on elements read with pydicom, highdicom's reader, dciodvfy, pydicom's
dictionary of codes.
"""

import re
import shutil
import subprocess
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.sr.codedict import codes
from pydicom.uid import NuclearMedicineImageStorage, generate_uid

from datxai.errors import InputError
from datxai.imaging.dicom import (
    Projections,
    deidentify,
    is_dat_tracer,
    read_series,
    read_source,
    read_subject,
    result,
    source,
    write_dicom_results,
    write_parametric_map,
    write_projections,
)
from datxai.imaging.dicom.objects import BRAIN, write_object
from datxai.imaging.dicom.overlay import STRIP_ROWS, blend
from datxai.volume import Volume

COLUMNS, ROWS, SLICES = 6, 5, 4
SPACING = [2.5, 2.0]  # between rows, between columns, mm
POSITION = [-10.0, 20.0, -30.0]  # LPS mm
STEP = 3.0  # mm
PLACE_TOLERANCE_MM = 1e-4
TILT = np.deg2rad(20)
ORIENTATIONS = {
    "axial": [1, 0, 0, 0, 1, 0],
    "flipped": [-1, 0, 0, 0, 1, 0],
    "coronal": [1, 0, 0, 0, 0, -1],
    "oblique": [np.cos(TILT), 0, np.sin(TILT), 0, 1, 0],
}
STUDY = {
    "PatientName": "Müller^Jürgen",
    "PatientID": "../../etc/A4711",
    "PatientBirthDate": "19510203",
    "PatientSex": "M",
    "PatientAge": "071Y",
    "StudyDate": "20220304",
    "StudyTime": "101112",
    "StudyID": "S17",
    "AccessionNumber": "A4711",
    "ReferringPhysicianName": "Weiß^Ärztin",
    "StudyDescription": "DaTSCAN Jürgen",
}
ELSEWHERE = {  # identifies people too, and has no place in a result
    "InstitutionName": "Klinik am See",
    "StationName": "KAMERA7",
    "OperatorsName": "Schmidt^Eva",
    "PatientComments": "lebt in Celle",
    "OtherPatientIDs": "XJ-9",
    "PatientAddress": "Hauptstr. 5",
    "SeriesDescription": "DAT von Jürgen",
    "DeviceSerialNumber": "SN90210",
}
COLOURS = np.stack([np.arange(256), 255 - np.arange(256), np.full(256, 7)], axis=1).astype(np.uint8)


@pytest.fixture
def frames():
    """Stored values (slices, rows, columns), all different."""
    values = np.random.default_rng(0).permutation(COLUMNS * ROWS * SLICES) + 1
    return values.reshape(SLICES, ROWS, COLUMNS).astype("<u2")


def make_scan(path, frames, directions=ORIENTATIONS["axial"], step=STEP, **elements):
    """A reconstructed scan: NM RECON TOMO, all slices in one file."""
    elements = {
        "SpecificCharacterSet": "ISO_IR 100",
        **STUDY,
        "StudyInstanceUID": "1.2.3.4",
        "SeriesInstanceUID": "1.2.3.4.5",
        "FrameOfReferenceUID": "1.2.3.4.6",
        "Modality": "NM",
        "ImageType": ["ORIGINAL", "PRIMARY", "RECON TOMO", "EMISSION"],
        "DetectorInformationSequence": [
            {"ImageOrientationPatient": [float(x) for x in directions], "ImagePositionPatient": POSITION}
        ],
        "NumberOfSlices": len(frames),
        "NumberOfFrames": len(frames),
        "SliceThickness": abs(step),
        "SpacingBetweenSlices": step,
        "SliceVector": list(range(1, len(frames) + 1)),
        "Rows": frames.shape[1],
        "Columns": frames.shape[2],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 0,
        "PixelSpacing": SPACING,
        "PixelData": frames.tobytes(),
    } | elements
    write_object(path, NuclearMedicineImageStorage, elements.pop("SOPInstanceUID", "1.2.3.4.7"), elements)
    return path


@pytest.fixture
def path(tmp_path, frames):
    return make_scan(tmp_path / "scan.dcm", frames)


def write(folder, path, told=None):
    """Both results of a scan."""
    scan = read_series(path)
    relevance = scan.after("explain", np.random.default_rng(1).normal(size=scan.shape))
    return write_dicom_results(folder, told or read_source(path), relevance, scan, COLOURS, "Relevance (LRP, epsilon)")


def places_of(dataset) -> tuple[np.ndarray, np.ndarray]:
    """LPS mm of every pixel (frames, rows, columns, 3) of a multi-frame object, from its functional groups."""
    shared = dataset.SharedFunctionalGroupsSequence[0]
    directions = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    between_rows, between_columns = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    j, i = np.mgrid[: dataset.Rows, : dataset.Columns][..., None]
    plane = i * between_columns * directions[:3] + j * between_rows * directions[3:]
    return np.array(
        [
            np.array(group.PlanePositionSequence[0].ImagePositionPatient, float) + plane
            for group in dataset.PerFrameFunctionalGroupsSequence
        ]
    )


def places_of_scan(directions, step) -> np.ndarray:
    """LPS mm of every stored pixel of `make_scan`; slices are stacked as C.8.4.15 says."""
    directions = np.array(directions, float)
    k, j, i = np.mgrid[:SLICES, :ROWS, :COLUMNS][..., None]
    normal = np.cross(directions[:3], directions[3:])
    return POSITION + i * SPACING[1] * directions[:3] + j * SPACING[0] * directions[3:] + k * step * normal


@pytest.mark.parametrize("step", [STEP, -STEP])
@pytest.mark.parametrize("directions", ORIENTATIONS.values(), ids=ORIENTATIONS)
def test_each_value_lies_where_the_scan_has_it(tmp_path, frames, directions, step):
    path = make_scan(tmp_path / "scan.dcm", frames, directions, step)
    scan = read_series(path)
    write_parametric_map(tmp_path / "map.dcm", scan, read_source(path), "x")  # the scan itself, as if it were relevance
    dataset = pydicom.dcmread(tmp_path / "map.dcm")
    found, order = dataset.pixel_array.ravel(), np.argsort(frames.ravel())
    np.testing.assert_array_equal(np.sort(found), np.sort(frames.ravel()))
    np.testing.assert_allclose(
        places_of(dataset).reshape(-1, 3)[np.argsort(found)],
        places_of_scan(directions, step).reshape(-1, 3)[order],
        atol=PLACE_TOLERANCE_MM,
    )
    again = read_series(tmp_path / "map.dcm")
    np.testing.assert_array_equal(again.data, scan.data)
    np.testing.assert_allclose(again.affine, scan.affine, atol=PLACE_TOLERANCE_MM)


@pytest.mark.parametrize("step", [STEP, -STEP])
@pytest.mark.parametrize("directions", ORIENTATIONS.values(), ids=ORIENTATIONS)
def test_highdicom_reads_the_same_map(tmp_path, frames, directions, step):
    path = make_scan(tmp_path / "scan.dcm", frames, directions, step)
    scan = read_series(path)
    relevance = scan.after("explain", np.random.default_rng(1).normal(scale=1e-6, size=scan.shape))
    write_parametric_map(tmp_path / "map.dcm", relevance, read_source(path), "x")
    image = highdicom.imread(tmp_path / "map.dcm")
    volume = image.get_volume()
    assert volume.frame_of_reference_uid == "1.2.3.4.6"
    index = np.stack(np.meshgrid(*map(np.arange, volume.spatial_shape), indexing="ij"), axis=-1).reshape(-1, 3)
    own = np.rint([relevance.grid.mm_to_index(place) for place in volume.map_indices_to_reference(index) * [-1, -1, 1]])
    assert len(np.unique(own, axis=0)) == relevance.data.size
    np.testing.assert_array_equal(volume.array.ravel(), relevance.data[tuple(own.astype(int).T)])
    mapping = image.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    assert mapping.DoubleFloatRealWorldValueLastValueMapped == np.abs(relevance.data).max()


@pytest.mark.parametrize("step", [STEP, -STEP])
@pytest.mark.parametrize("directions", ORIENTATIONS.values(), ids=ORIENTATIONS)
def test_pictures_lie_where_the_scan_lies(tmp_path, frames, directions, step):
    path = make_scan(tmp_path / "scan.dcm", np.ones_like(frames), directions, step)
    scan = read_series(path)
    hot = np.zeros(scan.shape, np.float32)
    hot[2, 1, 2] = 1.0
    *_, picture = write_dicom_results(tmp_path, read_source(path), scan.after("explain", hot), scan, COLOURS, "x")
    dataset = pydicom.dcmread(picture)
    excess = dataset.pixel_array.astype(float).max(axis=-1) - dataset.pixel_array.astype(float).min(axis=-1)
    excess[:, -STRIP_ROWS:] = 0
    found = np.average(places_of(dataset).reshape(-1, 3), axis=0, weights=excess.ravel())
    np.testing.assert_allclose(found * [-1, -1, 1], scan.grid.index_to_mm([2, 1, 2]), atol=0.02)
    height = dataset.Rows - STRIP_ROWS
    corners = places_of(dataset)[:, :height].reshape(-1, 3)  # the picture covers the scan's voxels, edge to edge
    inside = scan.grid.mm_to_index(np.mean(corners, axis=0) * [-1, -1, 1])
    np.testing.assert_allclose(inside, (np.array(scan.shape) - 1) / 2, atol=1e-4)


def test_pictures_show_the_patient_from_the_feet():
    """Right and front of the patient are left and up in the picture, and the letters say so."""
    data = np.zeros((256, 64, 2), np.float32)
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    scan, relevance = Volume(data, affine), Volume(data.copy(), affine)
    relevance.data[200, 50, 1] = 1.0  # right, front, top
    pictures, lps = blend(scan, relevance, COLOURS)
    assert pictures.shape == (2, 64 + STRIP_ROWS, 256, 3)
    assert np.argwhere((pictures[:, :64] == COLOURS[255]).all(axis=-1)).tolist() == [[1, 13, 55]]
    np.testing.assert_allclose(lps @ [55, 13, 1, 1], [-200, -50, 2, 1])
    ink = 255.0 - pictures[0, :64, :, 0]
    for half, stands_on_a_foot in ((ink[:, :128], False), (ink[:, 128:], True)):  # R at the left, L at the right
        letter = half[half.any(axis=1)]
        assert (letter[-2:].sum() > 1.5 * letter[:2].sum()) == stands_on_a_foot


def test_colours_are_symmetric_about_zero():
    rng = np.random.default_rng(0)
    affine = np.eye(4)
    scan = Volume(rng.random((256, 64, 2)), affine)
    relevance = Volume(rng.normal(size=scan.shape), affine)
    relevance.data[0, 0, 0] = -2.0 * np.abs(relevance.data).max()  # the scale reaches as far to the other side
    shown, _ = blend(scan, relevance, COLOURS)
    mirrored, _ = blend(scan, Volume(-relevance.data, affine), COLOURS[::-1])
    np.testing.assert_array_equal(shown[:, :64], mirrored[:, :64])
    np.testing.assert_array_equal(shown[0, 63, 255], COLOURS[0])  # where it is largest, nothing but its colour
    share = relevance.data[40, 60, 1] / np.abs(relevance.data).max()  # and elsewhere, computed again in float64
    grey = 255 * (1 - min(scan.data[40, 60, 1] / (1.3 * np.percentile(scan.data, 99.9)), 1))
    opacity = np.sqrt(abs(float(share)))
    expected = opacity * COLOURS[round((share + 1) * 127.5)].astype(float) + (1 - opacity) * grey
    np.testing.assert_allclose(shown[1, 3, 215], expected, atol=0.51)
    plain, _ = blend(scan, Volume(np.zeros(scan.shape), affine), COLOURS)
    assert (np.ptp(plain[:, :64], axis=-1) == 0).all()


@pytest.mark.parametrize("told", [lambda found: found, deidentify], ids=["named", "deidentified"])
@pytest.mark.parametrize("kind", ["map", "colour"])
def test_an_independent_validator_accepts_the_files(tmp_path, path, told, kind):
    if not shutil.which("dciodvfy"):
        pytest.skip("dciodvfy (Debian package dicom3tools) is not installed")
    written = write(tmp_path, path, told(read_source(path)))[kind == "colour"]
    ran = subprocess.run(["dciodvfy", "-new", str(written)], capture_output=True, text=True, check=False)
    said = (ran.stdout + ran.stderr).splitlines()
    assert {"map": "ParametricMap", "colour": "MultiframeTrueColorSCImage"}[kind] in said
    explained = re.compile(
        r"Unrecognized defined term = <(QUANTITY|99DATXAI)>"  # PS3.3 Table C.8.16.1.4 has QUANTITY; 99 is private
        r"|Missing attribute or value that would be needed to build DICOMDIR"  # dates, taken out with the identity
    )
    assert not [line for line in said if re.match("Error|Warning", line.strip()) and not explained.search(line)]
    assert ran.returncode == 0


def test_results_are_filed_in_the_study_of_the_scan(tmp_path, path):
    datasets = [pydicom.dcmread(file) for file in write(tmp_path, path)]
    for dataset in datasets:
        for keyword, value in STUDY.items():
            assert dataset.get(keyword) == value
        assert dataset.StudyInstanceUID == "1.2.3.4"
        assert dataset.FrameOfReferenceUID == "1.2.3.4.6"
        assert "PatientIdentityRemoved" not in dataset
        (series,) = dataset.ReferencedSeriesSequence
        (instance,) = series.ReferencedInstanceSequence
        assert series.SeriesInstanceUID == "1.2.3.4.5"
        assert instance.ReferencedSOPClassUID == NuclearMedicineImageStorage
        assert instance.ReferencedSOPInstanceUID == "1.2.3.4.7"
        holder = dataset.SharedFunctionalGroupsSequence[0].get("DerivationImageSequence", [dataset])[0]
        assert holder.SourceImageSequence[0].ReferencedSOPInstanceUID == "1.2.3.4.7"
        assert holder.SourceImageSequence[0].SpatialLocationsPreserved == "YES"
    uids = [dataset[f"{kind}InstanceUID"].value for dataset in datasets for kind in ("Series", "SOP")]
    assert len({*uids, "1.2.3.4.5", "1.2.3.4.7"}) == 6


def test_names_in_any_script(tmp_path, frames):
    name = "Yamada^Tarou=山田^太郎=やまだ^たろう"
    path = make_scan(tmp_path / "a.dcm", frames, SpecificCharacterSet=["", "ISO 2022 IR 87"], PatientName=name)
    for file in write(tmp_path, path):
        assert pydicom.dcmread(file).PatientName == name


def test_nothing_but_the_named_elements_is_taken_over(tmp_path, frames):
    path = make_scan(tmp_path / "a.dcm", frames, **ELSEWHERE)
    dataset = pydicom.dcmread(path)
    dataset.private_block(0x0019, "CAMERA", create=True).add_new(1, "LO", "geheim")
    dataset.save_as(path)
    for file in write(tmp_path, path):
        content = file.read_bytes()
        for value in [*ELSEWHERE.values(), "geheim"]:
            assert value.encode() not in content and value.encode("latin-1") not in content


def test_deidentified_results_tell_nobody(tmp_path, frames):
    path = make_scan(tmp_path / "a.dcm", frames, **ELSEWHERE)
    told = deidentify(read_source(path))
    datasets = []
    for file in write(tmp_path / "results", path, told):
        content = file.read_bytes()
        for value in [*STUDY.values(), *ELSEWHERE.values(), "Müller", "Jürgen", "A4711", "1.2.3.4"]:
            if len(value) > 1:  # not the sex
                assert value.encode() not in content and value.encode("latin-1") not in content, value
        datasets.append(pydicom.dcmread(file))
    for dataset in datasets:
        assert dataset.PatientSex == dataset.PatientBirthDate == dataset.StudyDate == ""
        assert not {"PatientAge", "StudyDescription", "InstanceCreationDate"} & {*dataset.dir()}
        assert dataset.ContentDate == "19000101"
        assert dataset.PatientIdentityRemoved == "YES"
        assert dataset.DeidentificationMethodCodeSequence[0].CodeValue == "113100"
        assert len(dataset.DeidentificationMethod) <= 64
    for keyword in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):  # both belong together
        assert datasets[0][keyword].value == datasets[1][keyword].value
        assert datasets[0][keyword].value
    another = deidentify(read_source(path))
    for keyword in ("PatientID", "StudyInstanceUID"):  # and nothing links two scans
        assert another.elements[keyword] != told.elements[keyword]


def test_reconstructed_projections_get_a_frame_of_reference_of_their_own(tmp_path):
    seen = Projections(np.random.default_rng(0).poisson(9, (12, 4, 6)), np.arange(0, 360, 30), 4.4, 3.3)
    write_projections(tmp_path / "raw.dcm", seen, "sub-1")
    raw = pydicom.dcmread(tmp_path / "raw.dcm", stop_before_pixels=True)
    scan = Volume(np.random.default_rng(1).random((6, 6, 4)), np.diag([4.4, 4.4, 3.3, 1.0]))
    told = read_source(tmp_path / "raw.dcm")
    datasets = [pydicom.dcmread(file) for file in write_dicom_results(tmp_path, told, scan, scan, COLOURS, "x")]
    assert datasets[0].FrameOfReferenceUID == datasets[1].FrameOfReferenceUID != raw.FrameOfReferenceUID
    assert datasets[0].StudyInstanceUID == raw.StudyInstanceUID
    assert datasets[1].SourceImageSequence[0].SpatialLocationsPreserved == "NO"
    assert datasets[1].SourceImageSequence[0].ReferencedSOPInstanceUID == raw.SOPInstanceUID


def test_one_file_per_slice_and_several_series(tmp_path, frames):
    """Every instance is referred to, by series; a frame of reference that is missing is made."""
    for number, series in enumerate(["1.2.8", "1.2.8", "1.2.9"]):
        make_scan(
            tmp_path / f"{number}.dcm", frames, SeriesInstanceUID=series, SOPInstanceUID=f"1.2.7.{number}"
        )  # fmt: skip
    told = read_source(tmp_path)
    assert [instance[0] for instance in told.instances] == ["1.2.8", "1.2.8", "1.2.9"]
    volume = read_series(tmp_path / "0.dcm")
    dataset = pydicom.dcmread(write_dicom_results(tmp_path / "r", told, volume, volume, COLOURS, "x")[0])
    listed = {
        series.SeriesInstanceUID: [one.ReferencedSOPInstanceUID for one in series.ReferencedInstanceSequence]
        for series in dataset.ReferencedSeriesSequence
    }
    assert listed == {"1.2.8": ["1.2.7.0", "1.2.7.1"], "1.2.9": ["1.2.7.2"]}
    make_scan(tmp_path / "0.dcm", frames, FrameOfReferenceUID="")
    told = read_source(tmp_path / "0.dcm")
    assert not told.in_frame and told.frame_of_reference.startswith("2.25.")


def test_nothing_is_overwritten_and_names_come_from_nobody(tmp_path, path):
    before = path.read_bytes()
    folder = tmp_path / "results"
    files = [*write(folder, path), *write(folder, path)]
    assert len({*files}) == 4 and sorted(folder.iterdir()) == sorted(files)
    assert all(re.fullmatch(r"relevance-(map|colour)_2\.25\.\d+\.dcm", file.name) for file in files)
    volume = read_series(path)
    with pytest.raises(InputError, match=r"scan\.dcm: exists already"):
        write_parametric_map(path, volume, read_source(path), "x")
    assert path.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [folder, path]


def test_a_map_of_zeros(tmp_path, path):
    scan = read_series(path)
    blank = scan.after("explain", np.zeros(scan.shape))
    dataset, picture = map(pydicom.dcmread, write_dicom_results(tmp_path, read_source(path), blank, scan, COLOURS, "x"))
    assert not dataset.pixel_array.any()
    assert dataset.SharedFunctionalGroupsSequence[0].FrameVOILUTSequence[0].WindowWidth > 0
    assert np.ptp(picture.pixel_array[:, :-STRIP_ROWS], axis=-1).max() == 0


def test_a_sheared_volume_leaves_no_file(tmp_path, path):
    affine = np.eye(4)
    affine[0, 1] = 0.2
    with pytest.raises(InputError, match="not at right angles"):
        write_parametric_map(tmp_path / "a.dcm", Volume(np.ones((3, 3, 3)), affine), read_source(path), "x")
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("missing", ["StudyInstanceUID", "SeriesInstanceUID"])
def test_a_scan_without_identifiers(tmp_path, frames, missing):
    path = make_scan(tmp_path / "a.dcm", frames, **{missing: ""})
    with pytest.raises(InputError, match=r"a\.dcm: lacks the unique identifiers"):
        read_source(path)


@pytest.mark.parametrize("other", [{"PatientID": "4712"}, {"StudyInstanceUID": "1.2.99"}])
def test_files_of_two_people_or_studies(tmp_path, frames, other):
    make_scan(tmp_path / "a.dcm", frames)
    make_scan(tmp_path / "b.dcm", frames, SOPInstanceUID=generate_uid(), **other)
    with pytest.raises(InputError, match="more than one patient or study") as caught:
        read_source(tmp_path)
    assert "471" not in str(caught.value)


@pytest.mark.parametrize(
    ("told", "age"),
    [
        ({}, 71),  # Patient's Age goes before the dates
        ({"PatientAge": "018M"}, 1.5),
        ({"PatientAge": None}, 71),
        ({"PatientAge": "", "StudyDate": "20220202"}, 70),  # the day before the birthday
        ({"PatientAge": "", "StudyDate": "20220203"}, 71),
        ({"PatientAge": "unknown"}, 71),
        ({"PatientAge": "", "PatientBirthDate": "1951.02.03"}, 71),
        ({"PatientAge": "", "AcquisitionDate": "20200101", "SeriesDate": "20240101"}, 68),
        ({"PatientAge": "", "StudyDate": None, "SeriesDate": "20240101"}, 72),
        ({"PatientAge": "", "StudyDate": "00000000", "SeriesDate": "20240101"}, 72),
        ({"PatientAge": "", "PatientBirthDate": "20200229", "StudyDate": "20210228"}, None),  # nobody is
        ({"PatientAge": "000Y", "PatientBirthDate": ""}, None),
        ({"PatientAge": "000D", "PatientBirthDate": ""}, None),
        ({"PatientAge": "999Y", "PatientBirthDate": ""}, None),
        ({"PatientAge": "000Y"}, 71),
        ({"PatientAge": "", "PatientBirthDate": ""}, None),
        ({"PatientAge": "", "PatientBirthDate": None}, None),
        ({"PatientAge": "", "StudyDate": ""}, None),
        ({"PatientAge": "", "PatientBirthDate": "19510231"}, None),
        ({"PatientAge": "", "PatientBirthDate": "1951"}, None),
        ({"PatientAge": "", "PatientBirthDate": "3. 2. 1951"}, None),
        ({"PatientAge": "", "PatientBirthDate": ["19510203", "19510204"]}, None),
        ({"PatientAge": "", "PatientBirthDate": "20220305"}, None),  # the day after the scan
        ({"PatientAge": "", "PatientBirthDate": "19000101"}, None),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR")  # of pydicom, that these are no dates
def test_the_age_is_told_or_follows_from_two_dates(tmp_path, frames, told, age):
    path = make_scan(tmp_path / "scan.dcm", frames)
    dataset = pydicom.dcmread(path)
    for keyword, value in told.items():
        if value is None:
            del dataset[keyword]
        else:
            setattr(dataset, keyword, value)
    dataset.save_as(path)
    found = read_subject(path)
    written = pydicom.dcmread(path).get("PatientAge")
    assert (found["doubt"] is not None) == (age is None and bool(written))
    assert found["doubt"] is None or str(written) in found["doubt"]
    assert {key: found[key] for key in ("age", "sex", "tracer")} == {"age": age, "sex": "M", "tracer": None}


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("Ioflupane I-123", True), ("123I-FP-CIT", True), ("DaTSCAN", True), ("[123I]β-CIT", True), ("I-123", True),
        ("Tc-99m TRODAT-1", True), ("123I-IBZM", False), ("FDG", False), ("Tc-99m HMPAO", False), ("MIBG I123", False),
    ],
)  # fmt: skip
def test_tracers_of_the_dopamine_transporter_are_known(name, is_one):
    assert is_dat_tracer(name) == is_one


def test_nifti_has_no_study(tmp_path):
    (tmp_path / "scan.nii.gz").touch()
    with pytest.raises(InputError, match=r"scan\.nii\.gz: is NIfTI, which names neither patient nor study"):
        read_source(tmp_path / "scan.nii.gz")


def test_codes_are_those_of_the_standard():
    known = {
        result.SOURCE_IMAGE: codes.DCM.SourceImageForImageProcessingOperation,
        result.DERIVATION: codes.DCM.UnspecifiedMethodOfCalculation,
        result.QUANTITY: codes.SCT.Quantity,
        result.NO_UNITS: codes.UCUM.NoUnits,
        source.BASIC_PROFILE: codes.DCM.BasicApplicationConfidentialityProfile,
        BRAIN: codes.SCT.Brain,
    }
    for ours, theirs in known.items():
        assert ours[:2] == (theirs.value, theirs.scheme_designator)
        assert ours[2].lower() == theirs.meaning.lower()


def test_the_example_of_the_documentation(tmp_path, frames, monkeypatch):
    text = (Path(__file__).parents[2] / "docs" / "dicom.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "scan").mkdir()
    make_scan(tmp_path / "scan" / "a.dcm", frames)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(example, names)
    assert [pydicom.dcmread(path).PatientIdentityRemoved for path in names["paths"]] == ["YES", "YES"]
