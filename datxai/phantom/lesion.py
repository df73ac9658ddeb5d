"""Lesions: pairs of scans of one head whose only difference is a known region, to hold relevance maps against.

Both scans of a pair are the same photons: the lesioned scan is the healthy one without those that the lesion no
longer sends. Thinning a Poisson variable by a binomial one leaves a Poisson variable of the lower mean, so each scan
alone is as real as any other of the phantom.
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

KEPT = 0.25  # of the uptake in a lesion, as an infarct leaves it
SIDES = ("left", "right")
EXTENT_VOXEL_MM = 2.0  # where a lesion lies is worked out on voxels of this size

_PARTS = {  # of what binds
    "putamen": PUTAMEN_PARTS,
    "caudate": ("caudate", "caudate_dorsal"),
    **{name: (name,) for name in BINDING if not name.startswith(("putamen", "caudate"))},
}
REGIONS = {  # what can be lesioned: its regions in `anatomy`
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
    """The first ``n`` subjects without disease or loss, called normal, after number ``beyond`` of a cohort's seed.

    With ``beyond`` not below the cohort's size, none of them is in the cohort.
    """
    drawn = (draw_subject(seed, index, 0, "FM"[index % 2]) for index in itertools.count(beyond))
    return list(itertools.islice((subject for subject in drawn if subject.pattern == "normal"), n))


def simulate_pair(subject: Subject, lesion: str, **settings) -> Pair:
    """The scan of a subject, as `scan.simulate_projections` makes it, and the same scan with a lesion.

    ``lesion`` is one of `REGIONS`, ``settings`` are those of `scan.subject_camera`. The lesioned scan has the same
    dose and duration, hence fewer counts.
    """
    camera = subject_camera(subject, **settings)
    regions = _find_regions(lesion)
    grid = centred_grid(HEAD_SHAPE, VOXEL_MM)
    activity, attenuation = place(subject.head, subject.uptake, grid)
    without, _ = place(subject.head, subject.uptake | _lower(subject.uptake, regions), grid)
    expected, left = (project(image, attenuation, camera) for image in (activity, without))
    rng = np.random.default_rng([*subject.seed, PROJECTIONS])
    healthy = count(expected, camera.counts, rng)
    remaining = np.divide(left, expected, out=np.zeros_like(expected), where=expected > 0).clip(0.0, 1.0)
    lesioned = rng.binomial(healthy.astype(np.int64), remaining).astype(np.float32)
    return Pair(healthy, lesioned, camera)


def locate_lesion(head: Head, lesion: str) -> Volume:
    """Which share of each voxel the lesion takes, in the world of the head's scans."""
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
