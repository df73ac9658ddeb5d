"""Population: the subjects, their remaining binding, the acquisition of their scans, and the readers' labels.

Subject ``i`` depends only on the seed and ``i``: a cohort can be drawn in any order by any number of workers, and a
larger cohort begins with the smaller one.

Proportions and ages: Nazari et al. 2022, Table 1 (doi 10.1007/s00259-021-05569-9). Decline with age, and sex:
Varrone et al. 2013 (doi 10.1007/s00259-012-2276-8). Course of the loss, posterior to anterior, putamen before
caudate, one side first: Kish et al. 1988 (doi 10.1056/NEJM198804073181402).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from datxai.phantom.anatomy import BINDING, UPTAKE, UPTAKE_SPREAD, Head
from datxai.phantom.camera import COLLIMATORS
from datxai.phantom.reads import CASE_SPREAD, Read, read_case, settle

# number of cases, mean and standard deviation of age, per label and sex
STRATA = {
    (0, "F"): (296, 67.7, 11.3),
    (0, "M"): (380, 68.7, 11.6),
    (1, "F"): (246, 66.7, 11.0),
    (1, "M"): (374, 66.6, 11.0),
}
AGE_RANGE, REFERENCE_AGE = (22.0, 97.0), 67.0
DISEASED_SHARE = 0.478
SIDES = ("left", "right")
# These vary together, independently of the putamen.
_CAUDATE = tuple(map(BINDING.index, ("caudate", "caudate_dorsal", "accumbens")))

FEMALE_GAIN = 0.05
DECADE = (0.02, 0.02, 0.025, 0.02, 0.03, 0.035, 0.04, 0.03)  # share lost per decade, per region of `BINDING`
ATYPICAL = (0.85, 0.85, 0.88, 0.55, 0.92, 1.00, 1.05, 0.90)  # log loss at severity 1, per region
VASCULAR = (0.9, 0.9, 0.95, 0.6, 1.0, 1.0, 1.0, 1.0)
ATYPICAL_SHARE, VASCULAR_SHARE = 0.12, 0.14  # of the diseased, of the others
# weight of each region in a reader's impression; and the share of a person's general level that readers do not take for
# normal variation
READER_WEIGHTS, READER_LEVEL = (0.0, 0.0, 0.0, 0.0, 0.2, 0.35, 0.45, 0.0), 0.5


@dataclass(frozen=True)
class Biology:
    """Binding of the striatum, its variation between people, and the course of its loss, per region of `BINDING`.

    ``binding``: binding ratio of a man of the reference age, sharpened to compensate for later blur, as in
    `anatomy.UPTAKE`. Standard deviations of the log between people: ``level`` of all binding, ``caudate`` additionally
    of caudate and accumbens, ``side`` and ``region``. ``severity``: median and standard deviation of the log on the
    worse side; ``loss``: log loss at severity 1; ``other``: the other side's share of the loss, mean and standard
    deviation of its logit; ``involvement``: standard deviation of the log of the caudate's share in the disease.
    """

    binding: tuple[float, ...]
    level: float
    caudate: float
    side: float
    region: float
    severity: tuple[float, float]
    loss: tuple[float, ...]
    other: tuple[float, float]
    involvement: float


# Output of `python -m benchmarks.fit_phantom`: fitted to real scans through the whole chain (docs/phantom.md).
BIOLOGY = Biology(
    binding=(5.43, 1.68, 5.45, 0.893, 6.42, 4.91, 6.78, 3.09),
    level=0.125,
    caudate=0.134,
    side=0.0166,
    region=0.023,
    severity=(0.926, 0.452),
    loss=(0.192, 0.192, 0.391, 0.0959, 0.59, 0.95, 2.41, 0.8),
    other=(0.307, 0.839),
    involvement=0.365,
)


class Site(NamedTuple):
    """Protocol of a clinic: median counts of an acquisition, mean radius of the orbit, one of `camera.COLLIMATORS`, and
    reconstruction settings, as keywords of `datxai.imaging.reconstruction.reconstruct`."""

    counts: float
    radius_mm: float
    collimator: str
    reconstruction: dict[str, Any]


SITES = {
    "A": Site(2.6e6, 130.0, "lehr_24mm", {"filter": "shepp-logan", "post_filter_mm": 6.0}),
    "B": Site(2.2e6, 134.0, "lehr_27mm", {"filter": "hann", "post_filter_mm": 6.5, "attenuation_per_cm": 0.11}),
    "C": Site(1.8e6, 140.0, "lehr_35mm", {"filter": "shepp-logan", "post_filter_mm": 9.0}),
    "D": Site(2.9e6, 127.0, "lehr_24mm", {"filter": "ramp", "post_filter_mm": 7.0, "attenuation_per_cm": 0.11}),
    "E": Site(2.1e6, 143.0, "lehr_27mm", {"filter": "butterworth", "cutoff_per_cm": 0.8, "post_filter_mm": 7.5}),
}


@dataclass(frozen=True)
class Acquisition:
    """Settings of one scan that differ between sites and days.

    ``site``: one of `SITES`. ``counts`` of the whole acquisition, ``radius_mm`` of the orbit, ``collimator`` one of
    `camera.COLLIMATORS`, ``motion_mm`` FWHM of the patient's movement.
    """

    site: str = next(iter(SITES))
    counts: float = 2.0e6
    radius_mm: float = 135.0
    collimator: str = next(iter(COLLIMATORS))
    motion_mm: float = 0.0

    @property
    def reconstruction(self) -> dict[str, Any]:
        """Reconstruction settings of the site."""
        return SITES[self.site].reconstruction


@dataclass(frozen=True)
class Subject:
    """One case. ``label`` is the readers' conclusion (0 normal, 1 reduced), ``diseased`` is the truth.

    ``uptake`` is per region relative to the reference region (specific binding + 1 in the striatum); ``severity`` is
    the log loss of the weaker putamen, ``side`` its side, ``asymmetry`` the remaining share of binding on the other
    side over that on the weaker side, minus 1.
    """

    participant_id: str
    age: float
    sex: str
    label: int
    diseased: bool
    pattern: str
    severity: float
    side: str
    asymmetry: float
    uptake: dict[str, float]
    head: Head
    acquisition: Acquisition
    reads: tuple[Read, ...]
    seed: tuple[int, int]  # for everything else that is random about this case


def draw_population(n: int, seed: int = 0) -> list[Subject]:
    """The first ``n`` subjects of the cohort of this seed, with labels and sexes in the proportions of `STRATA`."""
    return [draw_subject(seed, i, *stratum) for i, stratum in enumerate(_quota(n))]


def _quota(n: int) -> list[tuple[int, str]]:
    """Label and sex of each subject: the first k are in proportion for every k, as closely as integers allow."""
    proportions = np.array([count for count, _, _ in STRATA.values()], float)
    proportions /= proportions.sum()
    drawn = np.zeros(len(proportions))
    order = []
    for k in range(1, n + 1):
        stratum = int(np.argmax(proportions * k - drawn))
        drawn[stratum] += 1
        order.append(list(STRATA)[stratum])
    return order


def draw_subject(seed: int, index: int, label: int, sex: str) -> Subject:
    """Subject ``index`` of the cohort of a seed, with the given label and sex.

    Cases are drawn until the readers assign this label. Readers are sometimes wrong, and so is the label.
    """
    rng = np.random.default_rng([seed, index])
    _, mean, deviation = STRATA[label, sex]
    age = _draw_truncated(rng, mean, deviation, *AGE_RANGE)
    while settle((shown := draw_presentation(rng, age, sex)).reads) != label:
        pass
    return Subject(
        participant_id=f"sub-{index + 1:04d}",
        age=round(age, 1),
        sex=sex,
        label=label,
        diseased=shown.diseased,
        pattern=shown.pattern,
        severity=float(-np.log(shown.kept.min())),
        side=SIDES[int(shown.kept.argmin())],
        asymmetry=float(shown.kept.max() / shown.kept.min() - 1),
        uptake=draw_uptake(rng, shown.binding),
        head=draw_head(rng, age, sex),
        acquisition=draw_acquisition(rng),
        reads=shown.reads,
        seed=(seed, index),
    )


class Presentation(NamedTuple):
    """Disease and its pattern, the putaminal binding kept on each side, binding (2 sides, regions of `BINDING`), and
    the reads."""

    diseased: bool
    pattern: str
    kept: np.ndarray
    binding: np.ndarray
    reads: tuple[Read, ...]


def draw_presentation(
    rng: np.random.Generator, age: float, sex: str, biology: Biology = BIOLOGY, case_spread: float = CASE_SPREAD
) -> Presentation:
    """Draw a person of this age and sex, diseased or not, and the reads of the scan."""
    diseased = bool(rng.random() < DISEASED_SHARE)
    pattern, loss = _draw_loss(rng, diseased, biology)
    level = np.exp(biology.level * rng.standard_normal())
    variation = biology.side * rng.standard_normal((2, 1)) + biology.region * rng.standard_normal((2, len(BINDING)))
    kept = np.exp(variation - loss)
    apparent = kept @ READER_WEIGHTS
    expected = np.array(biology.binding) * (1 - np.array(DECADE)) ** ((age - REFERENCE_AGE) / 10)
    expected[list(_CAUDATE)] *= np.exp(biology.caudate * rng.standard_normal())
    binding = expected * (1 + FEMALE_GAIN * (sex == "F")) * level * kept
    reads = read_case(apparent.min() * level**READER_LEVEL, rng, case_spread)
    return Presentation(diseased, pattern, apparent, binding, reads)


def _draw_loss(rng: np.random.Generator, diseased: bool, biology: Biology) -> tuple[str, np.ndarray]:
    """Pattern of a case and its log loss of binding, shape (2 sides, regions)."""
    if not diseased:  # vascular lesions or drugs lower binding evenly in some, which makes readers disagree
        if rng.random() >= VASCULAR_SHARE:
            return "normal", np.zeros((2, len(BINDING)))
        return "vascular", rng.uniform(0.05, 0.35) * rng.uniform(0.7, 1.0, (2, 1)) * np.array(VASCULAR)
    median, spread = biology.severity
    worse, (mean, deviation) = median * np.exp(spread * rng.standard_normal()), biology.other
    if rng.random() >= ATYPICAL_SHARE:
        pattern, shape = "parkinson", biology.loss
    else:
        pattern, shape, mean = "atypical", ATYPICAL, mean + 1.0
    other = 1.0 / (1.0 + np.exp(-mean - deviation * rng.standard_normal()))
    sides = np.array([worse, worse * other])[:: rng.choice([-1, 1])]
    loss = sides[:, None] * np.array(shape)
    loss[:, list(_CAUDATE)] *= np.exp(biology.involvement * rng.standard_normal())
    return pattern, np.minimum(loss, 3.0)


def draw_uptake(rng: np.random.Generator, binding: np.ndarray) -> dict[str, float]:
    """Uptake per region: the given binding of the striatum, and random variation outside it."""
    uptake = {
        name: UPTAKE[name] * float(np.exp(spread * rng.standard_normal())) for name, spread in UPTAKE_SPREAD.items()
    }
    striatum = {
        f"{region}_{side}": 1.0 + float(binding[i, j])
        for i, side in enumerate(SIDES)
        for j, region in enumerate(BINDING)
    }
    return uptake | striatum


def draw_head(rng: np.random.Generator, age: float, sex: str) -> Head:
    """Draw size, pose, ventricles and deformation of a person's head."""
    size = (0.92 if sex == "F" else 0.96) * (1 + 0.025 * rng.standard_normal())
    zooms = size * np.array([1.0, 0.98, 0.96]) * (1 + 0.015 * rng.standard_normal(3))
    striata = np.exp(-0.01 * (age - REFERENCE_AGE) / 10 + 0.025 * rng.standard_normal() + 0.01 * rng.standard_normal(2))
    pitch, roll, yaw = (_draw_truncated(rng, 0.0, spread, -10.0, 10.0) for spread in (5.0, 3.0, 4.0))
    x, y, z = (_draw_truncated(rng, 0.0, spread, -15.0, 15.0) for spread in (5.0, 7.0, 7.0))
    return Head(
        zooms=tuple(zooms.tolist()),
        rotation_deg=(pitch, roll, yaw),
        shift_mm=(x, y, z),
        striata=tuple(striata.tolist()),
        ventricle_mm=_draw_truncated(rng, 0.06 * (age - 45.0), 1.0, 0.0, 6.0),
        warp_mm=1.5,
        warp_seed=int(rng.integers(2**32)),
    )


def draw_acquisition(rng: np.random.Generator) -> Acquisition:
    """Draw the site and settings of a person's scan."""
    name = str(rng.choice(list(SITES)))
    site = SITES[name]
    return Acquisition(
        site=name,
        counts=float(np.exp(_draw_truncated(rng, np.log(site.counts), 0.2, np.log(1e6), np.log(3.5e6)))),
        radius_mm=_draw_truncated(rng, site.radius_mm, 5.0, 118.0, 160.0),
        collimator=site.collimator,
        motion_mm=abs(_draw_truncated(rng, 0.0, 2.0, -6.0, 6.0)),
    )


def _draw_truncated(rng: np.random.Generator, mean: float, deviation: float, low: float, high: float) -> float:
    """A normally distributed number, redrawn until it lies within the limits."""
    while not low <= (value := float(rng.normal(mean, deviation))) <= high:
        pass
    return value
