"""One head in files of many kinds: each gives the binding ratios of the head, or one sentence that says why not.

``DATXAI_VARIANTS=500`` tries as many.
"""

import gzip
import io
import os
import warnings
from dataclasses import replace

import nibabel as nib
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from datxai.case import SBR, Imaging
from datxai.config import Atlas, Config, Data, Lattice, Registration
from datxai.errors import InputError
from datxai.imaging.atlas import load_atlas
from datxai.imaging.dicom import Projections, write_projections
from datxai.imaging.template import BASES, HEAD, make_template_bases
from datxai.phantom.population import draw_population
from datxai.phantom.scan import simulate_projections
from datxai.scan import Scan
from datxai.volume import Grid, Volume, resample

VARIANTS = int(os.environ.get("DATXAI_VARIANTS", "14"))
SILENT = 0.05  # of a binding ratio, which none may be off without a word
WITHIN = 0.02
SETTINGS = Config(
    grid=Lattice("mni_4mm", [46, 55, 46], [4, 4, 4], [-90, -126, -72]),
    registration=Registration("affine"),
    atlas=Atlas(),
)
SCALES = {"mm": 1.0, "meter": 1e-3, "micron": 1e3, "unknown": 1.0}
pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")  # of a variant that fails
FEW = {
    "deadline": None,
    "derandomize": True,
    "phases": (Phase.explicit, Phase.generate),  # a variant takes seconds: one that fails is not made smaller
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}


@pytest.fixture(scope="module")
def imaging():
    return Imaging.of(SETTINGS)


@pytest.fixture(scope="module")
def head():
    """A head with a worse right side, on voxels of 4 mm, with grain."""
    bases = make_template_bases(load_atlas())
    uptake = {"brain": 1.0, "scalp": 0.6, "glands": 1.5}
    uptake |= {name: (2.0 if name.endswith("right") else 4.0) for name in BASES if name not in uptake}
    truth = Volume(sum(uptake[name] * base.data for name, base in bases.items()), HEAD.affine)
    grid = Grid.axis_aligned((56, 64, 56), (4, 4, 4), (-110, -140, -110))
    data = resample(truth, grid).data
    rng = np.random.default_rng(3)
    return Volume(np.clip(1000 * (data + 0.05 * rng.normal(size=data.shape)), 0, None), grid.affine)


@pytest.fixture(scope="module")
def expected(imaging, head):
    _, measures = imaging.process(head, "head")
    return np.array([measures[name] for name in SBR])


def read(path, imaging):
    """Binding ratios, and whether there is a word of doubt."""
    _, measures = imaging.process(Scan.find(path).read(SETTINGS.reconstruction), path)
    return np.array([measures[name] for name in SBR]), measures["quality"]["verdict"] != "green"


def try_to_read(path, imaging):
    """What `read` says, and the sentence of a refusal."""
    try:
        return *read(path, imaging), ""
    except InputError as error:
        return None, None, str(error)


variants = st.fixed_dictionaries(
    {
        "unit": st.sampled_from(sorted(SCALES)),
        "lie": st.sampled_from([1.0, 1.0, 1.0, 1e3, 1e-3, 0.5, 10.0]),  # lengths that the header has wrong
        "order": st.permutations(range(3)),
        "flips": st.tuples(*[st.booleans()] * 3),
        "values": st.sampled_from(["f4", "f8", "i2", "u2", "i4", "u1", "wrapped"]),
        "rim": st.sampled_from(["none", "zero", "nan", "negative"]),
        "pad": st.integers(0, 30),
        "name": st.sampled_from(["a.nii", "a.nii.gz", "a.img", "a.dcm", "IM1"]),
        "packed": st.booleans(),
        "codes": st.sampled_from([(1, 1), (1, 0), (0, 1), (2, 1), (4, 4), (0, 0)]),
        "qform": st.sampled_from(["same", "same", "same", "mirror", "turned", "stretched"]),
        "pixdim": st.sampled_from([1.0, 1.0, 1.0, 2.0]),
        "shift": st.sampled_from([0.0, 300.0]),  # of the origin, mm
    }
)


def write(folder, head, v):
    data, affine = head.data, head.affine.copy()
    data = np.pad(data, v["pad"], constant_values={"nan": np.nan, "negative": -500.0}.get(v["rim"], 0.0))
    affine[:3, 3] += v["shift"] - affine[:3, :3] @ np.full(3, v["pad"])
    if v["values"] not in ("f4", "f8"):
        data = np.nan_to_num(data)
    if v["values"] == "u2":
        data = np.clip(data, 0, None)
    if v["values"] == "u1":
        data = np.clip(data / head.data.max() * 255, 0, 255)
    if v["values"] == "wrapped":
        data = (np.rint(data / head.data.max() * 60000).astype(int) + 2**15) % 2**16 - 2**15
    kind = np.dtype({"wrapped": "i2"}.get(v["values"], v["values"]))
    data = data.astype(kind) if kind.kind == "f" else np.rint(np.clip(data, *np.array([-(2**15), 2**15]))).astype(kind)
    orientation = np.column_stack([v["order"], np.where(v["flips"], -1, 1)])
    affine = affine @ nib.orientations.inv_ornt_aff(orientation, data.shape)
    data = nib.apply_orientation(data, orientation)
    affine[:3] *= SCALES[v["unit"]] * v["lie"]
    image = (nib.Nifti1Pair if v["name"] == "a.img" else nib.Nifti1Image)(data, affine)
    other = affine.copy()
    if v["qform"] == "mirror":
        other[0] *= -1
    elif v["qform"] == "turned":
        other[:2] *= -1
    elif v["qform"] == "stretched":
        other[:3, :3] *= 1.3
    image.set_sform(affine, v["codes"][0])
    image.set_qform(other, v["codes"][1])
    image.header["pixdim"][1:4] *= v["pixdim"]
    image.header.set_xyzt_units(v["unit"])
    path = folder / v["name"]
    if v["name"] == "a.img":
        nib.save(image, path)
    else:
        content = image.to_bytes()
        path.write_bytes(gzip.compress(content, 1) if v["packed"] else content)
    return path


@settings(max_examples=VARIANTS, **FEW)
@given(v=variants)
def test_nifti(v, imaging, head, expected, tmp_path_factory):
    path = write(tmp_path_factory.mktemp("variant"), head, v)
    contradicts = all(v["codes"]) and v["qform"] == "mirror"
    contradicts |= v["codes"] in ((1, 1), (4, 4)) and (v["qform"] != "same" or v["pixdim"] != 1)
    contradicts |= v["codes"] == (1, 0) and (v["pixdim"] != 1 or v["qform"] == "stretched")
    astray = v["lie"] != 1 or v["codes"] == (0, 0) or contradicts
    astray |= v["codes"] == (0, 1) and (v["qform"] != "same" or v["pixdim"] != 1)  # the only one there is, and wrong
    astray |= v["values"] == "wrapped"
    found, doubted, refusal = try_to_read(path, imaging)
    if refusal:
        assert str(path) in refusal and len(refusal.splitlines()) == 1
        assert astray, (refusal, v)
        return
    assert not contradicts
    if v["codes"] == (0, 1) and v["qform"] == "mirror":  # a header that is wrong but agrees with itself
        found = found.reshape(3, 2)[:, ::-1].ravel()
    off = np.abs(found / expected - 1).max()
    assert off < (WITHIN if not astray else SILENT) or doubted, (off, v)


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        (lambda data: data[:, :, ::-1], "upside down"),
        (lambda data: data[:, ::-1], "back to front"),
        (lambda data: data[:, ::-1, ::-1], "upside down and back to front"),
        (lambda data: data.transpose(2, 0, 1), "with its axes exchanged"),
    ],
)
def test_a_scan_stored_the_wrong_way_round_is_turned_where_asked(stored, words, imaging, head, expected):
    scan = Volume(np.ascontiguousarray(stored(head.data)), head.affine)
    with pytest.raises(InputError, match=rf"seems to be stored {words}.*data\.orientation=as_fitted"):
        imaging.process(scan, "scan")
    turning = replace(imaging, settings=replace(SETTINGS, data=Data("folder", "as_fitted")))
    volume, measures = turning.process(scan, "scan")
    np.testing.assert_allclose([measures[name] for name in SBR], expected, rtol=WITHIN)
    assert measures["quality"]["verdict"] == "amber"
    assert f"stored {words}" in measures["quality"]["reason"]
    assert volume.recorded("turn")["stored"].startswith(words)
    straight, truth = imaging.process(head, "head")
    ends = straight.grid.index_to_mm([[10, 20, 10], [30, 40, 30]])  # to the same voxels of either
    for place in ends:
        here, there = ((m["transform"] @ [*place, 1])[:3] for m in (measures, truth))
        index = np.rint(head.grid.mm_to_index(there)).astype(int)
        own = np.zeros(head.shape, np.float32)
        own[tuple(index)] = 1
        moved = np.argwhere(stored(own))[0]
        assert np.abs(scan.grid.mm_to_index(here) - moved).max() < 1


def test_a_head_in_another_unit_is_that_head(imaging, head, expected, tmp_path):
    """The variants above without chance: three units, and one that cannot be."""
    plain = {
        "lie": 1.0, "order": (0, 1, 2), "flips": (False,) * 3, "values": "f4", "rim": "none", "pad": 0, "name": "a.nii",
        "packed": False, "codes": (1, 1), "qform": "same", "pixdim": 1.0, "shift": 0.0,
    }  # fmt: skip
    for unit in SCALES:
        found, doubted = read(write(tmp_path, head, plain | {"unit": unit}), imaging)
        np.testing.assert_allclose(found, expected, rtol=1e-3)
        assert not doubted
    with pytest.raises(InputError, match=r"voxels are 4000 x 4000 x 4000 mm, .* check the spacing in the header"):
        read(write(tmp_path, head, plain | {"unit": "mm", "lie": 1e3}), imaging)
    with pytest.raises(InputError, match=r"voxels are 0\.004 x .* which is micrometres \(xyzt_units\)"):
        read(write(tmp_path, head, plain | {"unit": "micron", "lie": 1e-3}), imaging)
    with pytest.raises(InputError, match="qform and sform are mirror images"):
        read(write(tmp_path, head, plain | {"unit": "mm", "qform": "mirror"}), imaging)
    with pytest.raises(InputError, match="the axes of its qform and sform are 180 degrees apart"):
        read(write(tmp_path, head, plain | {"unit": "mm", "qform": "turned"}), imaging)
    with pytest.raises(InputError, match="voxels are 4 x 4 x 4 mm by its sform and 8 x 8 x 8 mm by its pixdim"):
        read(write(tmp_path, head, plain | {"unit": "mm", "pixdim": 2.0}), imaging)


@pytest.fixture(scope="module")
def acquisition(tmp_path_factory):
    """A phantom's raw projections as one NM TOMO file."""
    counts, camera = simulate_projections(draw_population(3, 0)[2])
    path = tmp_path_factory.mktemp("raw") / "scan.dcm"
    write_projections(path, Projections(counts, camera.angles_deg, camera.pixel_mm, camera.pixel_mm), "variant")
    return path


@pytest.fixture(scope="module")
def counted(imaging, acquisition):
    """Binding ratios of that acquisition."""
    found, _ = read(acquisition, imaging)
    return found


raw_variants = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["<u2", "<u1", "<u2 shifted", "<u2 wrapped"]),
        "form": st.sampled_from(["file", "bare", "gzip", "no syntax", "folder"]),
        "slope": st.sampled_from([None, None, "2", "0", "0.001"]),
        "arc": st.sampled_from([None, 360, 348, 180, 0]),
        "step": st.sampled_from([1, 1, 1, 2]),
        "spacing": st.sampled_from([1, 1, 1, 1e3, 1e-3]),
        "start": st.sampled_from([None, "", "0"]),
        "age": st.sampled_from(["000Y", "", "071Y", "x"]),
        "radius": st.sampled_from(["", "x", None]),
        "wider": st.integers(0, 90),
    }
)


def write_raw(folder, source, v):
    """The file of a variant, and whether its header can be true."""
    dataset = pydicom.dcmread(source)
    counts = np.pad(dataset.pixel_array, [(0, 0), (0, 0), (v["wider"], v["wider"])])
    if v["kind"] == "<u2 wrapped":
        counts = (counts.astype(int) * 2000) % 2**16  # of the hottest pixels; where two or three wrap, nothing is seen
    scale = 300 if v["kind"] == "<u2 shifted" else 1
    dataset.BitsAllocated = dataset.BitsStored = bits = 8 if v["kind"] == "<u1" else 16
    dataset.HighBit, dataset.Columns = bits - 1, counts.shape[2]
    dataset.PixelData = (counts * scale).astype(v["kind"][:3]).tobytes()
    rotation, detector = dataset.RotationInformationSequence[0], dataset.DetectorInformationSequence[0]
    rotation.AngularStep = float(rotation.AngularStep) * v["step"]
    rotation.ScanArc = v["arc"]
    dataset.PixelSpacing = [4 * v["spacing"]] * 2
    dataset.RescaleSlope = v["slope"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pydicom, that x is no age
        dataset.PatientAge = v["age"]
    for keyword in ("RadialPosition", "StartAngle"):
        if keyword in detector and v["radius"] is None:
            del detector[keyword]
    path = folder / "a" / "IM1" if v["form"] == "folder" else folder / "scan"
    path.parent.mkdir(exist_ok=True)
    if v["form"] in ("bare", "no syntax"):
        made = io.BytesIO()
        bare = pydicom.Dataset()
        bare.update({element.tag: element for element in dataset})
        pydicom.dcmwrite(made, bare, implicit_vr=v["form"] == "bare", little_endian=True, enforce_file_format=False)
        path.write_bytes(made.getvalue())
    else:
        dataset.save_as(path)
    if v["form"] == "gzip":
        path.write_bytes(gzip.compress(path.read_bytes(), 1))
    arc = v["arc"] in (None, 0) or abs(v["arc"] - 360 * v["step"]) <= 14
    return folder if v["form"] == "folder" else path, arc and v["slope"] != "0" and v["spacing"] == 1


@settings(max_examples=VARIANTS, **FEW)
@given(v=raw_variants)
def test_projections(v, imaging, acquisition, counted, tmp_path_factory):
    path, can_be_true = write_raw(tmp_path_factory.mktemp("variant"), acquisition, v)
    found, doubted, refusal = try_to_read(path, imaging)
    if refusal:
        assert len(refusal.splitlines()) == 1
        assert not can_be_true or v["kind"] == "<u2 wrapped" or v["step"] != 1, (refusal, v)
        return
    off = np.abs(found / counted - 1).max()
    assert off < SILENT or doubted, (off, v)
    assert off < 1.5 * WITHIN or not can_be_true or v["step"] != 1 or v["kind"] == "<u2 wrapped", (off, v)
