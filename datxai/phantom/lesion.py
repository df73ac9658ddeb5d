"""Lesions: pairs of scans of one head that differ only in a known region, as ground truth for relevance maps.

Both scans of a pair share their photons: the lesioned scan is the healthy one without those that the lesion no longer
emits. Binomial thinning of a Poisson variable leaves a Poisson variable with the lower mean, so each scan alone is as
realistic as any other of the phantom.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from datxai.errors import InputError
from datxai.phantom.anatomy import BINDING, PUTAMEN_PARTS, UPTAKE, Head, average_head, place
from datxai.phantom.camera import Camera, count, project
from datxai.phantom.population import Subject, draw_subject
from datxai.phantom.scan import HEAD_SHAPE, PROJECTIONS, VOXEL_MM, centred_grid, subject_camera
from datxai.volume import Volume

KEPT = 0.25  # fraction of the uptake that remains in a lesion, as after an infarct
SIDES = ("left", "right")
EXTENT_VOXEL_MM = 2.0  # voxel size of the volume that locates a lesion

_PARTS = {  # parts of the binding structures
    "putamen": PUTAMEN_PARTS,
    "caudate": ("caudate", "caudate_dorsal"),
    **{name: (name,) for name in BINDING if not name.startswith(("putamen", "caudate"))},
}
REGIONS = {  # possible lesions, and their regions in `anatomy`
    **{f"{name}_{side}": tuple(f"{part}_{side}" for part in parts) for name, parts in _PARTS.items() for side in SIDES},
    **{name: (name,) for name in UPTAKE},
}


@dataclass(frozen=True, eq=False)
class Pair:
    """Counts of a healthy subject's scan and of the lesioned one, float32 (views, rows, bins), and the camera."""

    healthy: np.ndarray
    lesioned: np.ndarray
    camera: Camera


def draw_healthy(n: int, seed: int, beyond: int) -> list[Subject]:
    """The first ``n`` subjects of a seed, from number ``beyond`` on, without disease or loss and labelled normal.

    If ``beyond`` is at least the cohort's size, none of them is in the cohort.
    """
    drawn = (draw_subject(seed, index, 0, "FM"[index % 2]) for index in itertools.count(beyond))
    return list(itertools.islice((subject for subject in drawn if subject.pattern == "normal"), n))


def simulate_pair(subject: Subject, lesion: str, **settings) -> Pair:
    """The scan of a subject, as from `scan.simulate_projections`, and the same scan with a lesion.

    ``lesion`` is one of `REGIONS`, ``settings`` are those of `scan.subject_camera`. The lesioned scan has the same
    dose and duration, hence fewer counts.
    """
    camera = subject_camera(subject, **settings)
    regions = _find_regions(lesion)
    grid = centred_grid(HEAD_SHAPE, VOXEL_MM)
    activity, attenuation = place(subject.head, subject.uptake, grid)
    lesioned_activity, _ = place(subject.head, subject.uptake | _lower(subject.uptake, regions), grid)
    expected, expected_lesioned = (project(image, attenuation, camera) for image in (activity, lesioned_activity))
    rng = np.random.default_rng([*subject.seed, PROJECTIONS])
    healthy = count(expected, camera.counts, rng)
    remaining = np.divide(expected_lesioned, expected, out=np.zeros_like(expected), where=expected > 0).clip(0.0, 1.0)
    lesioned = rng.binomial(healthy.astype(np.int64), remaining).astype(np.float32)
    return Pair(healthy, lesioned, camera)


def locate_lesion(head: Head, lesion: str) -> Volume:
    """Fraction of each voxel that belongs to the lesion, in the world space of the head's scans."""
    regions = _find_regions(lesion)
    x, y, z = (round(n * VOXEL_MM / EXTENT_VOXEL_MM) for n in HEAD_SHAPE)
    grid = centred_grid((x, y, z), EXTENT_VOXEL_MM)
    empty = dict.fromkeys(average_head()[1], 0.0)
    return place(head, empty | dict.fromkeys(regions, 1.0), grid)[0]


def _lower(uptake: Mapping[str, float], regions: Iterable[str]) -> dict[str, float]:
    return {name: KEPT * ({**UPTAKE, **uptake})[name] for name in regions}


def _find_regions(lesion: str) -> tuple[str, ...]:
    if lesion not in REGIONS:
        raise InputError(f"lesion {lesion}: not a region of the phantom, expected some of {', '.join(REGIONS)}.")
    return REGIONS[lesion]
