"""From a subject to projections, to a volume: the camera and the short cut tell the same story."""

from dataclasses import replace

import numpy as np
import pytest

from datxai.imaging.reconstruction import reconstruct
from datxai.phantom.anatomy import Head
from datxai.phantom.population import draw_population
from datxai.phantom.scan import simulate_projections, simulate_volume
from datxai.volume import Grid, resample

PROFILE_CORRELATION = 0.97  # of the two ways' images, smoothed by 9 mm
UPTAKE_RATIO_TOLERANCE = 0.08
MNI_STRIATUM = Grid.axis_aligned((41, 41, 21), (2, 2, 2), (-40, -36, -16))


@pytest.fixture(scope="module")
def normal():
    subject = next(s for s in draw_population(20, seed=3) if s.pattern == "normal")
    still = replace(subject.acquisition, counts=1e8, site="C")
    return replace(subject, acquisition=still)


def through_the_camera(subject):
    counts, camera = simulate_projections(subject, views=40)
    return reconstruct(counts, camera.angles_deg, camera.pixel_mm, **subject.acquisition.reconstruction)


def test_the_short_cut_agrees_with_the_camera(normal):
    camera, short = (
        resample(volume, MNI_STRIATUM, normal.head.mni_to_scan).data
        for volume in (through_the_camera(normal), simulate_volume(normal, views=40))
    )
    assert np.corrcoef(camera.ravel(), short.ravel())[0, 1] > PROFILE_CORRELATION
    contrast = [np.percentile(image, 98) / np.percentile(image, 25) for image in (camera, short)]
    assert contrast[0] == pytest.approx(contrast[1], rel=UPTAKE_RATIO_TOLERANCE)


def test_both_put_the_lesion_on_the_right_side_of_the_world(normal):
    """Take the left striatum away: the left of the volume (x < 0) is the colder one, however the head lies."""
    cold = {name: 1.0 if name.endswith("_left") else value for name, value in normal.uptake.items()}
    head = Head(rotation_deg=(5.0, -3.0, 6.0), shift_mm=(8.0, -5.0, 10.0))
    subject = replace(normal, uptake=cold, head=head)
    for volume in (through_the_camera(subject), simulate_volume(subject)):
        data = resample(volume, MNI_STRIATUM, head.mni_to_scan).data
        assert data[24:].max() > 1.5 * data[:17].max()
        peak = MNI_STRIATUM.index_to_mm(np.unravel_index(data.argmax(), data.shape))
        assert np.abs(peak - (16, 10, 4)).max() < 10


def test_the_same_subject_gives_the_same_bytes_and_another_does_not():
    first, second = draw_population(2, seed=5)
    short = {"views": 6, "rows": 32}
    counts, used = simulate_projections(first, **short)
    assert counts.shape == (6, 32, 64)
    assert used.counts == first.acquisition.counts
    assert used.radius_mm == first.acquisition.radius_mm
    assert simulate_projections(first, **short, counts=1e4)[1].counts == 1e4
    assert counts.tobytes() == simulate_projections(first, **short)[0].tobytes()
    assert counts.tobytes() != simulate_projections(second, **short)[0].tobytes()
    assert simulate_volume(first).data.tobytes() == simulate_volume(first).data.tobytes()


def test_fewer_counts_give_more_noise(normal):
    def noise(counts):
        pair = [
            simulate_volume(replace(normal, seed=(9, i), acquisition=replace(normal.acquisition, counts=counts))).data
            for i in range(2)
        ]
        return (pair[0] - pair[1]).std() / counts

    assert noise(1e6) / noise(4e6) == pytest.approx(2.0, rel=0.05)
