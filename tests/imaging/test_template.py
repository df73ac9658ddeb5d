import numpy as np
import pytest

from datxai.errors import InputError
from datxai.imaging.atlas import load_atlas, make_regions
from datxai.imaging.registration import register
from datxai.imaging.template import HEAD, average_scans, make_template, make_template_bases
from datxai.volume import Volume, resample


@pytest.fixture(scope="module")
def template():
    return make_template(HEAD, load_atlas())


def test_the_mean_of_moved_templates_is_the_template(template):
    """Whatever their pose, gain, noise and side."""
    rng = np.random.default_rng(0)
    scans = []
    for gain in (3.0, 40.0, 500.0, 60.0):
        affine = np.eye(4)
        affine[:3, 3] = rng.uniform(-8, 8, 3)
        moved = resample(template, HEAD, np.linalg.inv(affine))
        noise = rng.normal(0, 0.05, HEAD.shape)
        scans.append((Volume(gain * (moved.data + noise * (moved.data != 0)), HEAD.affine), affine))
    mean = average_scans(scans, load_atlas())
    np.testing.assert_allclose(mean.data, mean.data[::-1], atol=1e-5)
    brain = make_regions(HEAD, load_atlas())["brain"]
    assert np.corrcoef(mean.data[brain], template.data[brain])[0, 1] > 0.99
    reference = make_regions(HEAD, load_atlas())["reference_region"]
    assert np.percentile(mean.data[reference], 75) == pytest.approx(1, abs=0.03)
    affine = register(scans[0][0], make_template_bases(load_atlas(), mean)).affine
    np.testing.assert_allclose(affine[:3, 3], scans[0][1][:3, 3], atol=1.0)


def test_what_few_scans_show_is_left_out(template):
    low = template.data.copy()
    low[:, :, :40] = 0
    mean = average_scans([(template, np.eye(4)), *[(Volume(low, HEAD.affine), np.eye(4))] * 2], load_atlas())
    assert not mean.data[:, :, :35].any()
    assert mean.data[:, :, 45:].any()


def test_no_scan_no_template():
    with pytest.raises(InputError, match="no scan to average"):
        average_scans([], load_atlas())
