import gzip

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datxai import volume
from datxai.errors import InputError
from datxai.files import read_json
from datxai.volume import Grid, Volume

EXACT_MM = 1e-4  # float32 values of some hundred mm
SHAPE = (5, 6, 7)
_TURN = np.array([[0.96, -0.2, 0.19], [0.22, 0.97, -0.1], [-0.17, 0.14, 0.98]])
ORIENTATIONS = {
    "RAS": np.diag([2.0, 3.0, 4.0]),
    "LAS": np.diag([-2.0, 3.0, 4.0]),
    "LPS": np.diag([-2.0, -3.0, 4.0]),
    "permuted": np.array([[0, 0, -4.0], [2.0, 0, 0], [0, 3.0, 0]]),
    "oblique": _TURN @ np.diag([-2.0, -3.0, 4.0]),
}


def ramp(position):
    """A scan whose values say where they are: linear in world mm."""
    return 100.0 + position @ np.array([1.0, 0.3, -0.7])


def make_affine(linear, origin=(-3.0, 8.0, -12.0)):
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = origin
    return affine


def write(path, data, affine):
    nib.save(nib.Nifti1Image(np.asarray(data, np.float32), affine), path)
    return path


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_loading_brings_the_axes_to_ras_and_leaves_every_value_where_it_was(name, tmp_path):
    grid = Grid(SHAPE, make_affine(ORIENTATIONS[name]))
    loaded = volume.load(write(tmp_path / "scan.nii.gz", ramp(grid.world_coordinates()), grid.affine))
    assert nib.aff2axcodes(loaded.affine) == ("R", "A", "S")
    np.testing.assert_allclose(loaded.data, ramp(loaded.grid.world_coordinates()), atol=EXACT_MM)
    assert sorted(loaded.shape) == sorted(SHAPE)
    assert loaded.recorded("load") == {"step": "load", "file": "scan.nii.gz"}


def test_a_header_that_does_not_say_how_the_scan_lies_is_refused(tmp_path):
    """nibabel makes up an orientation for it, and with it left and right."""
    image = nib.Nifti1Image(np.ones(SHAPE, np.float32), None)
    assert image.header["sform_code"] == image.header["qform_code"] == 0
    nib.save(image, tmp_path / "scan.nii.gz")
    with pytest.raises(InputError, match=r"scan\.nii\.gz: its header does not say how the scan lies"):
        volume.load(tmp_path / "scan.nii.gz")


def test_nothing_but_the_sentence_is_said_of_an_odd_header(tmp_path, caplog):
    path = write(tmp_path / "scan.nii", np.ones(SHAPE), np.eye(4))
    with path.open("r+b") as stream:
        stream.seek(254)
        stream.write(b"\x63\x00")  # sform_code 99
    with pytest.raises(InputError):
        volume.load(path)
    assert caplog.records == []


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_resampling_a_linear_image_gives_its_value_at_the_voxel_centres(name):
    grid = Grid((24, 24, 24), make_affine(ORIENTATIONS[name]))
    source = volume.to_ras(ramp(grid.world_coordinates()), grid.affine)
    middle = source.grid.index_to_mm((np.array(source.shape) - 1) / 2)
    target = Grid.axis_aligned((3, 3, 2), (5, 4, 6), middle - np.array([5, 4, 3]))
    assert np.abs(volume.resample(source, target).data - ramp(target.world_coordinates())).max() < EXACT_MM


def test_coarse_voxels_are_the_means_of_what_they_hold():
    data = np.random.default_rng(1).normal(size=(12, 8, 18)).astype(np.float32)
    source = Volume(data, make_affine(np.diag([2.0, 2.0, 2.0]), (1, 1, 1)))
    coarse = volume.resample(source, Grid.axis_aligned((6, 2, 3), (4, 8, 12), (2, 4, 6), "coarse"))
    blocks = data.astype(np.float64).reshape(6, 2, 2, 4, 3, 6).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(coarse.data, blocks, atol=1e-6)
    assert coarse.recorded("resample")["spacing_mm"] == [4, 8, 12]


def test_a_transform_maps_the_target_world_to_the_source_world():
    grid = Grid((30, 30, 30), make_affine(np.diag([2.0, 2.0, 2.0]), (-29, -29, -29)))
    transform = make_affine(_TURN, (3, -2, 5))
    target = Grid.axis_aligned((4, 4, 4), (3, 3, 3), (-4, -4, -4))
    moved = volume.resample(Volume(ramp(grid.world_coordinates()), grid.affine), target, transform)
    expected = ramp(target.world_coordinates() @ transform[:3, :3].T + transform[:3, 3])
    np.testing.assert_allclose(moved.data, expected, atol=EXACT_MM)
    np.testing.assert_array_equal(moved.recorded("resample")["transform"], transform)


@settings(deadline=None)
@given(
    spacing=st.tuples(*[st.integers(10, 90).map(lambda tenths: tenths / 10)] * 3),
    origin=st.tuples(*[st.integers(-60, 60).map(lambda tenths: tenths / 10 + 0.0371)] * 3),  # no point on an edge
    flips=st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3),
    shape=st.tuples(*[st.integers(1, 7)] * 3),
)
def test_sampling_axis_by_axis_is_sampling_at_once(spacing, origin, flips, shape):
    data = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    source = Volume(data, np.diag([2.0, 3.0, 4.0, 1.0]))
    target = Grid.axis_aligned((4, 5, 6), spacing, origin, "target")
    transform = np.diag([*flips, 1.0])
    turned = transform.copy()
    turned[0, 1] = 1e-9  # no longer along the axes, and next to nothing
    np.testing.assert_allclose(
        volume.resample(source, target, transform).data, volume.resample(source, target, turned).data, atol=2e-5
    )


@settings(max_examples=25, deadline=None)
@given(st.tuples(*[st.integers(0, 4)] * 3), st.tuples(*[st.integers(1, 4)] * 3))
def test_a_crop_is_exact(offset, shape):
    source = Volume(np.random.default_rng(2).normal(size=(8, 8, 8)), make_affine(np.diag([2.0, 2.0, 2.0])))
    target = Grid.axis_aligned(shape, (2, 2, 2), source.grid.index_to_mm(offset))
    window = tuple(slice(o, o + n) for o, n in zip(offset, shape))
    np.testing.assert_array_equal(volume.resample(source, target).data, source.data[window])


def test_outside_the_scan_is_zero_and_counted():
    source = Volume(np.ones((4, 4, 4)), np.eye(4))
    target = Grid.axis_aligned((8, 4, 4), (1, 1, 1), (0, 0, 0))
    assert volume.resample(source, target).data.sum() == 64
    assert volume.find_covered(source.grid, target).mean() == 0.5


@settings(max_examples=25, deadline=None)
@given(st.tuples(*[st.integers(0, 3)] * 3), st.tuples(*[st.integers(1, 4)] * 3), st.floats(-20, 20))
def test_what_is_covered_is_what_a_scan_of_ones_shows(start, shape, degrees):
    """However it is turned, and padded with zeros."""
    data = np.zeros((8, 8, 8))
    data[tuple(slice(o, o + n) for o, n in zip(start, shape))] = 1
    source = Volume(data, make_affine(np.diag([4.0, 4.0, 4.0])))
    field = volume.field_of_view(source)
    assert field.shape == shape
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.array([[c, -s, 0, 1.7], [s, c, 0, 0.3], [0, 0, 1, 0.9], [0, 0, 0, 1]])
    target = Grid.axis_aligned((16, 16, 16), (3, 3, 3), (-8, -8, -8))
    shown = volume.resample(Volume(np.ones(field.shape), field.affine), target, turn).data
    np.testing.assert_array_equal(volume.find_covered(field, target, turn), shown > 0.5)


def test_a_zero_that_has_been_measured_is_in_the_field_of_view():
    data = np.ones((5, 5, 5))
    data[2, 2, 2] = data[0] = 0
    field = volume.field_of_view(Volume(data, np.eye(4)))
    assert field.shape == (4, 5, 5)
    np.testing.assert_array_equal(field.affine[:3, 3], [1, 0, 0])
    assert volume.field_of_view(Volume(np.zeros((3, 3, 3)), np.eye(4))).shape == (3, 3, 3)


def test_saving_and_loading_give_the_same_volume(tmp_path):
    affine = make_affine(_TURN @ np.diag([2.0, 3.0, 4.0]))
    original = Volume(np.random.default_rng(3).normal(size=SHAPE), affine, ({"step": "made", "gain": 2.0},))
    volume.save(original, tmp_path / "a_spect.nii.gz", sidecar={"target": "reduced"})
    loaded = volume.load(tmp_path / "a_spect.nii.gz")
    np.testing.assert_array_equal(loaded.data, original.data)
    assert loaded.grid.same_as(original.grid)
    header = nib.load(tmp_path / "a_spect.nii.gz").header
    assert header["sform_code"] == header["qform_code"] == volume.MNI_CODE
    sidecar = read_json(tmp_path / "a_spect.json")
    assert sidecar.pop("checksum")
    assert sidecar == {"target": "reduced", "history": [{"step": "made", "gain": 2.0}]}


@pytest.mark.parametrize(("shows", "low"), [("relevance", -3.0), ("uptake ratio", 0.0)])
def test_the_header_says_what_is_shown_and_on_which_scale(tmp_path, shows, low):
    data = np.zeros((3, 4, 5), np.float32)
    data[0, 0, :2] = -3, 2
    volume.save(Volume(data, np.eye(4)), tmp_path / "a.nii.gz", shows=shows)
    header = nib.load(tmp_path / "a.nii.gz").header
    assert header["descrip"].item().decode() == f"datxai: {shows}"
    assert header.get_intent() == ("estimate", (), shows)
    assert (header["cal_min"], header["cal_max"]) == (low, 3)
    volume.save(Volume(data, np.eye(4)), tmp_path / "b.nii.gz")
    assert nib.load(tmp_path / "b.nii.gz").header.get_intent()[0] == "none"


@pytest.mark.parametrize("name", ["a.nii.gz", "a.json"])
def test_a_volume_is_whole_until_a_byte_of_it_or_of_what_is_said_of_it_changes(tmp_path, name):
    path = tmp_path / "a.nii.gz"
    record = {"measures": {"gain": np.float32(0.1), "none": np.nan}, 3: (1, 2), "file": tmp_path}
    volume.save(Volume(np.ones(SHAPE), np.eye(4)), path, record)
    assert volume.is_whole(path)
    volume.write_sidecar(path, read_json(tmp_path / "a.json") | {"more": 1})
    assert volume.is_whole(path)
    content = (tmp_path / name).read_bytes()
    key = content.find(b"checksum") if name == "a.json" else -100  # without that name it is as older ones are
    for place in sorted({*range(0, len(content), 7)} - {*range(key, key + 8)}):
        (tmp_path / name).write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert not volume.is_whole(path), place
    (tmp_path / name).unlink()
    assert not volume.is_whole(path)


def _truncate(path):
    path.write_bytes(path.read_bytes()[:300])


def _flatten(path):
    image = nib.Nifti1Image(np.ones(SHAPE, np.float32), None)
    image.header["srow_x"], image.header["srow_y"], image.header["srow_z"] = np.zeros((3, 4))
    image.header["sform_code"] = 1
    nib.save(image, path)


RGB = [("R", "u1"), ("G", "u1"), ("B", "u1")]


def _store(path, data):
    """With values of their own type."""
    nib.save(nib.Nifti1Image(data, np.eye(4)), path)


def _patch(path, offset, number):
    """Other bytes in the header: 40 is the number of axes, 70 the type of the values."""
    header = bytearray(gzip.decompress(path.read_bytes()))
    header[offset : offset + 2] = number.to_bytes(2, "little")
    path.write_bytes(gzip.compress(header))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda p: p.unlink(), "no such file"),
        (_truncate, "truncated"),
        (lambda p: p.write_bytes(gzip.compress(b"not an image")), "cannot be read as NIfTI"),
        (lambda p: write(p, np.ones((*SHAPE, 2)), np.eye(4)), r"shape \(5, 6, 7, 2\)"),
        (lambda p: write(p, np.where(np.arange(7) == 3, np.nan, np.ones(SHAPE)), np.eye(4)), "30 voxels within the"),
        (lambda p: write(p, np.zeros(SHAPE), np.eye(4)), "every voxel is zero"),
        (_flatten, "cannot be inverted"),
        (lambda p: _store(p, np.ones(SHAPE, RGB)), "holds colours, expected one real number per voxel"),
        (lambda p: _store(p, np.full(SHAPE, 1 + 1j, np.complex64)), "holds values of type complex64"),
        (lambda p: _store(p, np.full(SHAPE, 1e39)), "210 voxels are infinite"),
        (lambda p: _patch(p, 70, 999), "data code 999 not recognized"),
        (lambda p: _patch(p, 40, 9), "cannot be read as NIfTI"),
    ],
)
def test_what_is_no_scan_gets_one_sentence_with_its_name(make, sentence, tmp_path):
    path = write(tmp_path / "scan.nii.gz", np.random.default_rng(4).normal(size=SHAPE), np.eye(4))
    make(path)
    with pytest.raises(InputError, match=sentence) as caught:
        volume.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_frame_in_a_fourth_dimension_is_one_scan(tmp_path):
    assert volume.load(write(tmp_path / "scan.nii", np.ones((*SHAPE, 1)), np.eye(4))).shape == SHAPE


def test_a_failed_save_leaves_nothing_behind(tmp_path):
    path = tmp_path / "scan.nii.gz"
    volume.save(Volume(np.ones(SHAPE), np.eye(4)), path)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        volume.save(Volume(np.ones(SHAPE), np.eye(4), ({"step": object()},)), path)
    assert not volume.sidecar_path(path).exists()  # without it the volume does not count as written
    assert sorted(p.name for p in tmp_path.iterdir()) == ["scan.nii.gz"]
    assert len(path.read_bytes()) == len(before)


def test_a_gzipped_scan_is_read_to_its_checksum(tmp_path):
    path = tmp_path / "scan.nii.gz"
    header = nib.Nifti1Image(np.random.default_rng(5).normal(size=SHAPE).astype(np.float32), np.eye(4)).to_bytes()
    content = gzip.compress(header, 0)  # stored, not packed: a flipped bit is another number
    path.write_bytes(content)
    volume.load(path)
    for place in (len(content) - 30, len(content) - 6):  # a value; the checksum itself
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(InputError, match="cannot be read as NIfTI"):
            volume.load(path)
    path.write_bytes(content + bytes(512))  # zeros that fill a block
    assert volume.load(path).shape == SHAPE
