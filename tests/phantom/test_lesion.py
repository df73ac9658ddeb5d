"""Pairs of scans: the healthy one is the phantom's own, the lesioned one the same photons less those of the lesion."""

from dataclasses import replace

import numpy as np
import pytest

from datxai.errors import InputError
from datxai.imaging.reconstruction import reconstruct
from datxai.phantom.anatomy import PUTAMEN_PARTS, average_head, place
from datxai.phantom.camera import project
from datxai.phantom.lesion import KEPT, REGIONS, draw_healthy, locate_lesion, simulate_pair
from datxai.phantom.population import draw_population
from datxai.phantom.scan import HEAD_SHAPE, VOXEL_MM, centred_grid, simulate_projections
from datxai.volume import resample

VIEWS = {"views": 12}
STANDARD_ERRORS = 4.0
CENTRE_TOLERANCE_MM = 5.0  # half the resolution


@pytest.fixture(scope="module")
def subject():
    return draw_healthy(1, seed=0, beyond=5)[0]


@pytest.fixture(scope="module")
def pair(subject):
    return simulate_pair(subject, "putamen_left", **VIEWS)


def test_the_healthy_scan_is_that_of_the_phantom(subject, pair):
    counts, camera = simulate_projections(subject, **VIEWS)
    assert np.array_equal(pair.healthy, counts)
    assert pair.camera == camera


def test_a_lesion_takes_photons_and_adds_none(pair):
    assert (pair.lesioned <= pair.healthy).all()
    assert (pair.lesioned == np.rint(pair.lesioned)).all()


def test_what_is_taken_is_what_the_lesion_sent(subject, pair):
    """Oracle: the projection of the lesion alone, in the units of the healthy scan, on every view."""
    grid = centred_grid(HEAD_SHAPE, VOXEL_MM)
    zeros = dict.fromkeys(average_head()[1], 0.0)
    names = [f"{part}_left" for part in PUTAMEN_PARTS]
    alone, attenuation = place(subject.head, zeros | {n: (1 - KEPT) * subject.uptake[n] for n in names}, grid)
    whole, _ = place(subject.head, subject.uptake, grid)
    lost, all_of_it = (project(image, attenuation, pair.camera) for image in (alone, whole))
    expected = (lost * (pair.camera.counts / all_of_it.sum(dtype=float))).sum(axis=(1, 2))
    taken = (pair.healthy - pair.lesioned).sum(axis=(1, 2))
    assert (np.abs(taken - expected) < STANDARD_ERRORS * np.sqrt(expected)).all()


def test_the_change_of_the_image_lies_where_the_lesion_is_said_to_be(subject):
    still = replace(subject, acquisition=replace(subject.acquisition, counts=1e8))
    pair = simulate_pair(still, "putamen_right", views=30)
    images = [reconstruct(c, pair.camera.angles_deg, pair.camera.pixel_mm) for c in (pair.healthy, pair.lesioned)]
    extent = resample(locate_lesion(subject.head, "putamen_right"), images[0].grid).data
    change = images[0].data - images[1].data
    centre, peak = (np.average(np.argwhere(mask), axis=0) for mask in (extent > 0.5, change > 0.5 * change.max()))
    assert np.linalg.norm(centre - peak) * pair.camera.pixel_mm < CENTRE_TOLERANCE_MM
    assert change[extent > 0.5].mean() > 10 * np.abs(change[extent == 0]).mean()


def test_a_lesion_lies_in_its_own_region_and_side(subject):
    left, right = (locate_lesion(subject.head, f"putamen_{side}") for side in ("left", "right"))
    assert left.data.min() >= 0
    assert left.data.max() == pytest.approx(1.0, abs=1e-5)
    assert (np.minimum(left.data, right.data) < 0.01).all()
    volumes = [volume.data.sum() * volume.grid.voxel_ml for volume in (left, right)]
    assert all(3.0 < ml < 9.0 for ml in volumes)


def test_heads_are_healthy_and_of_no_cohort():
    heads = draw_healthy(3, seed=0, beyond=40)
    assert {(head.label, head.pattern, head.diseased) for head in heads} == {(0, "normal", False)}
    assert not {head.seed for head in heads} & {head.seed for head in draw_population(40, seed=0)}
    assert draw_healthy(2, seed=0, beyond=40) == heads[:2]


def test_an_unknown_region_is_refused(subject):
    with pytest.raises(InputError, match=r"lesion heart: .*putamen_left"):
        locate_lesion(subject.head, "heart")
    assert {name for regions in REGIONS.values() for name in regions} <= {*average_head()[1]}
