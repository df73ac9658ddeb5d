"""Population: who is scanned, how much binding each has left, how the scan was made, and what the readers say.

Subject ``i`` follows from the seed and ``i`` alone: a cohort can be drawn in any order by any number of workers, and
a larger cohort begins with the smaller one.

Proportions and ages: Nazari et al. 2022, Table 1 (doi 10.1007/s00259-021-05569-9). Decline with age, and sex:
Varrone et al. 2013 (doi 10.1007/s00259-012-2276-8). Course of the loss, posterior to anterior, putamen before
caudate, one side first: Kish et al. 1988 (doi 10.1056/NEJM198804073181402).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datxai.phantom.anatomy import BINDING, UPTAKE, UPTAKE_SPREAD, Head
from datxai.phantom.camera import COLLIMATORS
from datxai.phantom.reads import Read, read_case, settle

# number of cases, mean and standard deviation of age, per label and sex
STRATA = {
    (0, "F"): (296, 67.7, 11.3),
    (0, "M"): (380, 68.7, 11.6),
    (1, "F"): (246, 66.7, 11.0),
    (1, "M"): (374, 66.6, 11.0),
}
AGE_RANGE, REFERENCE_AGE = (22.0, 97.0), 67.0
DISEASED_SHARE = 0.478

# Per region of `BINDING`: binding ratio of a man of the reference age, and the share lost per decade. The ratios are
# sharpened against the blur to come, as `anatomy.UPTAKE`.
NORMAL = {"binding": (13.4, 0.6, 6.6, 6.6, 6.4, 2.0), "decade": (0.02, 0.02, 0.03, 0.035, 0.04, 0.03)}
FEMALE_GAIN = 0.05
# Standard deviations of the log between people: of all binding, of the caudate apart from that, of sides and regions.
LEVEL_SPREAD, CAUDATE_SPREAD, SIDE_SPREAD, REGION_SPREAD = 0.125, 0.11, 0.02, 0.03
# Per region: log loss at severity 1; the caudate's share of the disease varies (standard deviation of the log).
PARKINSON = (0.36, 0.20, 0.62, 0.95, 1.32, 0.80)
ATYPICAL = (0.85, 0.55, 0.92, 1.00, 1.05, 0.90)
VASCULAR = (0.9, 0.6, 1.0, 1.0, 1.0, 1.0)
CAUDATE_INVOLVEMENT = 0.4
# how much of what a reader sees is each region; and the share of a person's general level that he does not
# take for normal variation
READER_WEIGHTS, READER_LEVEL = (0.0, 0.0, 0.2, 0.35, 0.45, 0.0), 0.5


@dataclass(frozen=True)
class Acquisition:
    """How one scan is made: what differs between sites and days.

    ``counts`` of the whole acquisition, ``radius_mm`` of the orbit, ``collimator`` one of `camera.COLLIMATORS`,
    ``motion_mm`` FWHM of the patient's movement. ``post_filter_mm`` is the FWHM of the site's smoothing, which no
    projections hold: only `scan.simulate_volume` applies it. Projections differ in sharpness by radius, collimator
    and motion.
    """

    counts: float = 2.0e6
    radius_mm: float = 135.0
    collimator: str = next(iter(COLLIMATORS))
    motion_mm: float = 0.0
    post_filter_mm: float = 0.0


@dataclass(frozen=True)
class Subject:
    """One case. ``label`` is what the readers made of it (0 normal, 1 reduced), ``diseased`` is the truth.

    ``uptake`` per region over the reference region (specific binding + 1 in the striatum); ``severity`` is the log
    loss of the weaker side's putamen, ``side`` the weaker one, ``asymmetry`` the other side's share of binding
    kept, over the weaker side's, minus 1.
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
    seed: tuple[int, int]  # for whatever else is random about this case


def draw_population(n: int, seed: int = 0) -> list[Subject]:
    """The first ``n`` subjects of the cohort of this seed, labels and sexes in the proportions of `STRATA`."""
    return [draw_subject(seed, i, *stratum) for i, stratum in enumerate(_quota(n))]


def _quota(n: int) -> list[tuple[int, str]]:
    """Label and sex of each subject: every first k of them are in proportion, as near as whole numbers can be."""
    share = np.array([count for count, _, _ in STRATA.values()], float)
    share /= share.sum()
    given = np.zeros(len(share))
    order = []
    for k in range(1, n + 1):
        chosen = int(np.argmax(share * k - given))
        given[chosen] += 1
        order.append(list(STRATA)[chosen])
    return order


def draw_subject(seed: int, index: int, label: int, sex: str) -> Subject:
    """Subject ``index`` of the cohort of a seed, with a label and a sex.

    Cases are drawn until the readers give one the label that is due: they are sometimes wrong, and so is the label.
    """
    rng = np.random.default_rng([seed, index])
    _, mean, deviation = STRATA[label, sex]
    age = _between(rng, mean, deviation, *AGE_RANGE)
    while True:
        diseased = bool(rng.random() < DISEASED_SHARE)
        pattern, loss = _draw_loss(rng, diseased)
        level = np.exp(LEVEL_SPREAD * rng.standard_normal())
        own = SIDE_SPREAD * rng.standard_normal((2, 1)) + REGION_SPREAD * rng.standard_normal((2, len(BINDING)))
        kept = np.exp(own - loss)
        seen = kept @ READER_WEIGHTS
        reads = read_case(seen.min() * level**READER_LEVEL, rng)
        if settle(reads) == label:
            break
    expected = np.array(NORMAL["binding"]) * (1 - np.array(NORMAL["decade"])) ** ((age - REFERENCE_AGE) / 10)
    expected[BINDING.index("caudate")] *= np.exp(CAUDATE_SPREAD * rng.standard_normal())
    binding = expected * (1 + FEMALE_GAIN * (sex == "F")) * level * kept
    weaker = int(seen.argmin())
    return Subject(
        participant_id=f"sub-{index + 1:04d}",
        age=round(age, 1),
        sex=sex,
        label=label,
        diseased=diseased,
        pattern=pattern,
        severity=float(-np.log(seen.min())),
        side=("left", "right")[weaker],
        asymmetry=float(seen.max() / seen.min() - 1),
        uptake=_draw_uptake(rng, binding),
        head=_draw_head(rng, age, sex),
        acquisition=_draw_acquisition(rng),
        reads=reads,
        seed=(seed, index),
    )


def _draw_loss(rng: np.random.Generator, diseased: bool) -> tuple[str, np.ndarray]:
    """Kind of case and its log loss of binding, shape (2 sides, regions)."""
    if not diseased:  # some have lost binding evenly, by vascular lesions or drugs: these make readers hesitate
        if rng.random() < 0.86:
            return "normal", np.zeros((2, len(BINDING)))
        return "vascular", rng.uniform(0.05, 0.35) * rng.uniform(0.7, 1.0, (2, 1)) * np.array(VASCULAR)
    worse = 1.08 * np.exp(0.45 * rng.standard_normal())
    if rng.random() < 0.88:
        pattern, shape, other = "parkinson", PARKINSON, rng.beta(4.0, 2.0)
    else:
        pattern, shape, other = "atypical", ATYPICAL, rng.beta(12.0, 2.0)
    sides = np.array([worse, worse * other])[:: rng.choice([-1, 1])]
    loss = sides[:, None] * np.array(shape)
    loss[:, BINDING.index("caudate")] *= np.exp(CAUDATE_INVOLVEMENT * rng.standard_normal())
    return pattern, np.minimum(loss, 3.0)


def _draw_uptake(rng: np.random.Generator, binding: np.ndarray) -> dict[str, float]:
    """Uptake per region: the given binding of the striatum, and what varies outside it."""
    uptake = {
        name: UPTAKE[name] * float(np.exp(spread * rng.standard_normal())) for name, spread in UPTAKE_SPREAD.items()
    }
    striatum = {
        f"{region}_{side}": 1.0 + float(binding[i, j])
        for i, side in enumerate(("left", "right"))
        for j, region in enumerate(BINDING)
    }
    return uptake | striatum


def _draw_head(rng: np.random.Generator, age: float, sex: str) -> Head:
    size = (0.92 if sex == "F" else 0.96) * (1 + 0.025 * rng.standard_normal())
    zooms = size * np.array([1.0, 0.98, 0.96]) * (1 + 0.015 * rng.standard_normal(3))
    striata = np.exp(-0.01 * (age - REFERENCE_AGE) / 10 + 0.025 * rng.standard_normal() + 0.01 * rng.standard_normal(2))
    return Head(
        zooms=tuple(zooms.tolist()),
        rotation_deg=tuple(_between(rng, 0.0, spread, -10.0, 10.0) for spread in (5.0, 3.0, 4.0)),
        shift_mm=tuple(_between(rng, 0.0, spread, -15.0, 15.0) for spread in (5.0, 7.0, 7.0)),
        striata=tuple(striata.tolist()),
        ventricle_mm=_between(rng, 0.06 * (age - 45.0), 1.0, 0.0, 6.0),
        warp_mm=1.5,
        warp_seed=int(rng.integers(2**32)),
    )


def _draw_acquisition(rng: np.random.Generator) -> Acquisition:
    return Acquisition(
        counts=float(np.exp(_between(rng, np.log(2.3e6), 0.3, np.log(1e6), np.log(3.5e6)))),
        radius_mm=_between(rng, 135.0, 9.0, 118.0, 160.0),
        collimator=str(rng.choice(list(COLLIMATORS))),
        motion_mm=abs(_between(rng, 0.0, 2.0, -6.0, 6.0)),
        post_filter_mm=rng.uniform(6.0, 9.0),
    )


def _between(rng: np.random.Generator, mean: float, deviation: float, low: float, high: float) -> float:
    """A normal number, drawn again while it lies outside the limits."""
    while not low <= (value := float(rng.normal(mean, deviation))) <= high:
        pass
    return value
