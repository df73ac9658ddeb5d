"""Fit the free parameters of the phantom to real scans, through the whole chain.

    python -m benchmarks.fit_phantom FOLDER [--heads 32] [--people 1440] [--n-jobs 2]

The parameters are the binding of the striatum's regions, the uptake of others, how binding varies between people and
how it is lost, and how far two readers differ. The targets are the real values of `benchmarks.phantom`, the difficulty
of clinical data (balanced accuracy and AUC of the SBR cutoff) and the rate at which the paper's readers disagree.

Counts are linear in uptake, and so are all later steps except registration, which hardly depends on it. So every head
is scanned once for each region separately (projections, filtered back projection, registration, resampling, as in the
default run) and once for its noise. Any population is then a weighted sum of these scans, and its measures take
a second to compute. FOLDER stores the scans, so an interrupted fit resumes. Heads and people use seeds
that no other command uses. The command prints the constants for `phantom/population.py`, `phantom/anatomy.py` and
`phantom/reads.py`, and the residuals.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import joblib
import numpy as np
from scipy.optimize import least_squares

from benchmarks.phantom import (
    AVERAGE,
    HEMISPHERES,
    PEAK,
    PEAK_MM,
    PROFILES,
    SLAB,
    SLABS,
    Average,
    make_slab_regions,
    measure_difficulty,
    measure_slabs,
)  # fmt: skip
from datxai.anatomy import WORKING_GRID
from datxai.config import Reconstruction
from datxai.files import hash_content, replacing
from datxai.imaging.atlas import load_atlas, make_regions
from datxai.imaging.reconstruction import reconstruct
from datxai.imaging.registration import register
from datxai.imaging.template import make_template_bases
from datxai.phantom.anatomy import (
    BINDING,
    BONE_PER_CM,
    UPTAKE,
    WATER_PER_CM,
    Head,
    average_head,
    render,
    widen_ventricles,
)  # fmt: skip
from datxai.phantom.camera import COLLIMATORS, Camera, count, project
from datxai.phantom.population import (
    STRATA,
    Acquisition,
    Biology,
    draw_acquisition,
    draw_head,
    draw_presentation,
    draw_uptake,
)  # fmt: skip
from datxai.phantom.reads import READERS, majority, settle
from datxai.phantom.scan import HEAD_SHAPE, PROJECTIONS, VOXEL_MM, centred_grid
from datxai.progress import parallel
from datxai.volume import Grid, Volume, resample

HEADS_SEED, PEOPLE_SEED = 3_141_592, 2_718_281
NETWORK_GRID = Grid.axis_aligned((47, 59, 47), (3, 3, 3), (-69, -105, -60), "mni_3mm")  # of the default run
CAMERA = {"rows": 64, "bins": 64, "pixel_mm": 4.0}
BALANCED_ACCURACY, AUC, DISAGREEMENT = (0.935, 0.015), (0.983, 0.007), (0.025, 0.004)  # and their tolerances
STRIATUM = [f"{region}_{side}" for side in HEMISPHERES for region in BINDING]
COURSE = ("caudate", "putamen_anterior", "putamen_posterior")  # whose loss is fitted; the middle's is the unit
TOLERANCES = {"average": 0.05, "profile": 0.15, "median": 0.06, "tails": 0.12, "asymmetry": 3.0}
UNMEASURED = (("cingulate",), ("parietal",), ("cerebellum",), ("white",))
STEP = 0.03  # of the log, for the slopes
EMPHASIS = 1.7  # power of a residual: larger gives more weight to the worst rows
BINDING_SPREAD, COURSE_SPREAD, UPTAKE_SPREAD = 0.5, 0.4, 0.12  # of the log: how far each may move from the start
UNMEASURED_SPREAD = 0.03  # of uptake without a real value: deviations that it could fix have other causes
RIVALS_MM = ((22, 2, 0), (22, 6, 0), (22, 6, 4), (22, 10, 0), (26, 2, 0), (14, 14, 4))  # where the mean must not peak


class Parameters(NamedTuple):
    """The fitted parameters: ``uptake`` per group of regions that share one."""

    biology: Biology
    case_spread: float
    uptake: dict[tuple[str, ...], float]


# Starting point of the search, and prior where there are no real values: binding as uniform as possible, and a
# loss from rear to front. It is not updated with the fitted constants, so that the fit can be repeated.
START = Parameters(
    Biology(
        binding=(4.5, 4.5, 6.0, 1.2, 7.0, 7.0, 7.0, 3.5),
        level=0.15,
        caudate=0.11,
        side=0.02,
        region=0.03,
        severity=(1.08, 0.45),
        loss=(0.36, 0.36, 0.5, 0.2, 0.62, 0.95, 1.32, 0.8),
        other=(0.7, 0.9),
        involvement=0.4,
    ),
    0.08,
    {
        ("thalamus",): 1.40, ("midbrain", "brainstem"): 1.47, ("hippocampus",): 1.45, ("amygdala",): 1.38,
        ("insula",): 0.76, ("frontal",): 0.68, ("orbitofrontal",): 0.85, ("occipital",): 0.80, ("precuneus",): 1.08,
        ("cingulate",): 0.95, ("parietal",): 1.05, ("temporal",): 0.98, ("cerebellum",): 1.00, ("white",): 1.08,
    },
)  # fmt: skip


class HeadScans(NamedTuple):
    """One head's scans of each single part: `STRIATUM` and the groups of `START.uptake` at uptake 1, the rest, noise.

    ``slab`` (parts, pixels), ``volume`` (parts, X, Y, Z) on `NETWORK_GRID`, ``putamen`` (parts, sides, voxels of the
    ROI), ``reference`` (parts, some voxels of the reference region), ``sums`` (parts but the noise): all counts.
    """

    slab: np.ndarray
    volume: np.ndarray
    putamen: tuple[np.ndarray, np.ndarray]
    reference: np.ndarray
    sums: np.ndarray


def scan_head(index: int, folder: Path, n_views: int) -> Path:
    """Make the scans of a head, or load them."""
    geometry = {"views": n_views} | CAMERA
    subject = draw_head_of(index)
    scan = subject.acquisition
    images = _split_head(subject)
    hashes = [sha256(image.tobytes()).hexdigest() for image in images]
    fingerprint = hash_content([asdict(subject.head), asdict(scan), geometry, hashes])
    path = folder / f"head-{index:03d}-{fingerprint[:12]}.npz"
    if path.is_file():
        return path
    grid = centred_grid(HEAD_SHAPE, VOXEL_MM)
    *parts, attenuation = render(subject.head, images, grid)
    attenuation = Volume(attenuation, grid.affine)
    camera = Camera(
        counts=scan.counts, radius_mm=scan.radius_mm, collimator=COLLIMATORS[scan.collimator],
        motion_mm=scan.motion_mm, **geometry,
    )  # fmt: skip
    views = [project(Volume(part, grid.affine), attenuation, camera) for part in parts]
    weights = weigh(START, subject.binding)
    whole = np.tensordot(weights.astype(np.float32), np.stack(views), 1)
    total = float(whole.sum(dtype=float))
    rng = np.random.default_rng([HEADS_SEED, index, PROJECTIONS])
    counted = count(whole, camera.counts, rng) * (total / camera.counts)
    default = Reconstruction()
    images = [
        reconstruct(v, camera.angles_deg, camera.pixel_mm, filter=default.filter, cutoff_per_cm=default.cutoff_per_cm)
        for v in (*views, counted, counted - whole)
    ]
    affine = register(images.pop(-2), make_template_bases(load_atlas())).affine
    working = np.stack([resample(image, WORKING_GRID, affine).data for image in images])
    with replacing(path) as temporary:
        np.savez(temporary, working=working, sums=np.array([view.sum(dtype=float) for view in views]))
    return path


class Anatomy(NamedTuple):
    """A head, its acquisition, its uptake outside the striatum over the average's, and binding (sides, regions)."""

    head: Head
    acquisition: Acquisition
    spread: dict[str, float]
    binding: np.ndarray


def draw_head_of(index: int) -> Anatomy:
    """The person with this head, every other one with a loss; independent of the constants in the code."""
    rng = np.random.default_rng([HEADS_SEED, index])
    sex, age = "FMMF"[index % 4], float(np.clip(rng.normal(67.5, 11.3), 30, 95))
    head, acquisition = draw_head(rng, age, sex), draw_acquisition(rng)
    drawn = draw_uptake(rng, np.ones((2, len(BINDING))))
    while (shown := draw_presentation(rng, age, sex, START.biology, START.case_spread)).diseased != bool(index % 2):
        pass
    spread = {name: drawn[name] / value for name, value in UPTAKE.items() if name in drawn}
    return Anatomy(head, acquisition, spread, shown.binding)


def _split_head(subject: Anatomy) -> list[np.ndarray]:
    """The average head part by part as in `HeadScans`, with the subject's own variation; attenuation last."""
    fractions, names = average_head()

    def image(values: dict[str, float]) -> np.ndarray:
        values = {name: values.get(name, 0.0) * subject.spread.get(name, 1.0) for name in (*UPTAKE, *STRIATUM)}
        values = widen_ventricles(values, subject.head.ventricle_mm)
        return fractions @ np.array([values[name] for name in names], np.float32)

    fitted = {name for group in START.uptake for name in group}
    return [
        *(image({name: 1.0}) for name in STRIATUM),
        *(image(dict.fromkeys(group, 1.0)) for group in START.uptake),
        image({name: value for name, value in UPTAKE.items() if name not in fitted}),
        fractions @ np.array([BONE_PER_CM if n == "skull" else WATER_PER_CM for n in names], np.float32),
    ]


def weigh(sought: Parameters, binding: np.ndarray) -> np.ndarray:
    """Weights of a head's parts but the noise; ``binding`` (sides, regions)."""
    return np.concatenate([1.0 + binding.ravel(), list(sought.uptake.values()), [1.0]])


def load_head(path: Path) -> HeadScans:
    """Measures of the scans of a head."""
    atlas = load_atlas()
    regions, pixels = make_regions(WORKING_GRID, atlas), _slab_pixels(make_slab_regions(atlas))
    reference = np.flatnonzero(regions["reference_region"])[::20]
    with np.load(path) as content:
        working, sums = content["working"], content["sums"]
    coarse = [resample(Volume(data, WORKING_GRID.affine), NETWORK_GRID) for data in working]
    return HeadScans(
        slab=np.stack([resample(volume, SLAB).data.mean(axis=2)[pixels] for volume in coarse]),
        volume=np.stack([volume.data for volume in coarse]),
        putamen=tuple(working[:, regions[f"putamen_roi_{side}"]] for side in HEMISPHERES),
        reference=working.reshape(len(working), -1)[:, reference],
        sums=sums,
    )


def _slab_pixels(regions: dict[str, np.ndarray]) -> np.ndarray:
    return np.logical_or.reduce(list(regions.values()))


class Measures(NamedTuple):
    """Measures of a population: rows, profiles and peak of the mean normal scan, rows of the slabs per label,
    balanced accuracy, AUC, share of cases that the readers disagree on."""

    rows: dict[str, float]
    profiles: list[np.ndarray]
    peak: tuple[float, np.ndarray]
    rivals: np.ndarray  # values at the places of `RIVALS_MM` and, last, at the real peak's
    slabs: list[dict[str, np.ndarray]]
    difficulty: tuple[float, float, float]


class Population:
    """People before the camera, each with one of the heads."""

    def __init__(self, heads: Sequence[HeadScans], n: int):
        atlas = load_atlas()
        self.heads, self.average = heads, Average(atlas)
        self.drawn = [weigh(START, draw_head_of(i).binding) for i in range(len(heads))]  # when the noise was drawn
        regions = make_slab_regions(atlas)
        self.regions = {name: mask[_slab_pixels(regions)] for name, mask in regions.items()}
        rng = np.random.default_rng(PEOPLE_SEED)
        strata = list(STRATA.items())
        shares = np.array([size for _, (size, _, _) in strata], float)
        chosen = rng.choice(len(strata), n, p=shares / shares.sum())
        self.people = [
            (strata[i][0][1], float(np.clip(rng.normal(*strata[i][1][1:]), 22, 97))) for i in chosen
        ]

    def measure(self, sought: Parameters) -> Measures:
        """Measures of this population with the parameters ``sought``."""
        cases = [
            draw_presentation(np.random.default_rng([PEOPLE_SEED, i]), age, sex, sought.biology, sought.case_spread)
            for i, (sex, age) in enumerate(self.people)
        ]
        labels = np.array([settle(case.reads) for case in cases])
        weights = np.stack([weigh(sought, case.binding) for case in cases])
        heads = (2 * np.arange(len(cases)) + labels) % len(self.heads)  # of people scanned with or without a loss
        slabs, lower = {}, np.zeros(len(cases))
        mean = np.zeros(NETWORK_GRID.shape)
        for h, head in enumerate(self.heads):
            own = np.flatnonzero(heads == h)
            noise = weights[own] @ head.sums / (self.drawn[h] @ head.sums)
            whole = np.column_stack([weights[own], noise]).astype(np.float32)
            reference = np.percentile(whole @ head.reference, 75, axis=1)
            size = round(10.0 / WORKING_GRID.voxel_ml)
            hottest = [np.partition(-(whole @ side), size, axis=1)[:, :size].mean(axis=1) for side in head.putamen]
            putamen = -np.stack(hottest) / reference - 1
            lower[own] = putamen.min(axis=0)
            slabs.update(zip(own, whole @ head.slab))
            for flipped in (False, True):
                here = (labels[own] == 0) & ((putamen[1] < putamen[0]) == flipped)
                part = np.tensordot((whole[here] / reference[here, None]).sum(axis=0), head.volume, 1)
                mean += part[::-1] if flipped else part
        images = np.stack([slabs[i] for i in range(len(cases))])
        scaled = Volume((mean / (labels == 0).sum()).astype(np.float32), NETWORK_GRID.affine)
        rows, profiles, peak = self.average.measure(scaled)
        found = measure_difficulty(labels, lower)
        settled = np.array([[majority(case.reads, reader) for reader in READERS] for case in cases])
        return Measures(
            rows, profiles, peak, self._rivals(scaled),
            [measure_slabs(images[labels == label], self.regions) for label in (0, 1)],
            (found["balanced_accuracy"], found["auc"], float((settled[:, 0] != settled[:, 1]).mean())),
        )  # fmt: skip

    def _rivals(self, mean: Volume) -> np.ndarray:
        places = np.array([*RIVALS_MM, PEAK_MM], float)
        index = np.rint([
            [NETWORK_GRID.mm_to_index(place * (side, 1, 1)) for side in (-1, 1)] for place in places
        ]).astype(int)
        return mean.data[tuple(np.moveaxis(index, -1, 0))].mean(axis=1)


def compare(found: Measures) -> np.ndarray:
    """Differences from the real values, in units of the tolerance."""
    rows = [np.log(found.rows[name] / real) / TOLERANCES["average"] for name, real in AVERAGE.items()]
    slabs = []
    for name, real in SLABS.items():
        for label in (0, 1):
            here = np.percentile(found.slabs[label][name], (10, 50, 90))
            if name.endswith("%"):
                slabs += list((here - real[label]) / TOLERANCES["asymmetry"])
            else:
                tolerance = [TOLERANCES[kind] for kind in ("tails", "median", "tails")]
                slabs += list(np.log(here / np.array(real[label])) / tolerance)
    profiles = [(here - real) / TOLERANCES["profile"] for here, real in zip(found.profiles, PROFILES.values())]
    *rivals, top = found.rivals
    difficulty = [
        (value - target) / tolerance
        for value, (target, tolerance) in zip(found.difficulty, (BALANCED_ACCURACY, AUC, DISAGREEMENT))
    ]
    hard = np.array([*rows, *slabs, *(1.4 * np.sqrt(np.mean(profile**2)) for profile in profiles)])
    return np.concatenate([
        np.sign(hard) * np.abs(hard) ** EMPHASIS,
        0.5 * np.concatenate(profiles),
        [np.log(found.peak[0] / PEAK) / TOLERANCES["average"]],
        np.maximum(np.array(rivals) - top + 0.05, 0.0) / 0.05,
        difficulty,
    ])  # fmt: skip


def pack(sought: Parameters) -> np.ndarray:
    """The parameters as one vector of logarithms (but the logit)."""
    b = sought.biology
    loss = [b.loss[BINDING.index(name)] for name in COURSE]
    positive = [*b.binding, b.level, b.caudate, b.side, b.region, *b.severity, *loss, b.other[1], b.involvement]
    return np.concatenate([np.log([*positive, sought.case_spread, *sought.uptake.values()]), [b.other[0]]])


def unpack(vector: np.ndarray) -> Parameters:
    """The inverse of `pack`. Bridges lose as much as the mean of the joined regions, the accumbens half the caudate."""
    values = np.exp(vector[:-1])
    k = len(BINDING)
    caudate, anterior, posterior = values[k + 6 : k + 9]
    loss = dict(zip(BINDING, START.biology.loss)) | {
        "caudate": caudate, "caudate_dorsal": caudate, "bridges": (caudate + anterior) / 2, "accumbens": caudate / 2,
        "putamen_anterior": anterior, "putamen_posterior": posterior,
    }  # fmt: skip
    biology = replace(
        START.biology,
        binding=tuple(values[:k]),
        level=values[k], caudate=values[k + 1], side=values[k + 2], region=values[k + 3],
        severity=tuple(values[k + 4 : k + 6]),
        loss=tuple(loss[name] for name in BINDING),
        other=(float(vector[-1]), values[k + 9]),
        involvement=values[k + 10],
    )  # fmt: skip
    return Parameters(biology, float(values[k + 11]), dict(zip(START.uptake, values[k + 12 :])))


def fit(population: Population, steps: int, n_jobs: int) -> Parameters:
    """Least squares, regularised towards the start where there are no real values."""
    first = pack(START)
    n, m = len(BINDING), len(START.uptake)
    sizes = [n, len(first) - n - m - 1, m, 1]
    spread = np.repeat([BINDING_SPREAD, COURSE_SPREAD, UPTAKE_SPREAD, 1.0], sizes)
    spread[-1 - m : -1][[group in UNMEASURED for group in START.uptake]] = UNMEASURED_SPREAD

    def residuals(vector: np.ndarray) -> np.ndarray:
        return np.concatenate([_compare(population, vector), (vector - first) / spread])

    def jacobian(vector: np.ndarray) -> np.ndarray:
        shifted = [vector, *(vector + STEP * row for row in np.eye(len(vector)))]
        here, *moved = pool(joblib.delayed(_compare)(population, there) for there in shifted)
        slopes = np.stack([(changed - here) / STEP for changed in moved], axis=1)
        return np.concatenate([slopes, np.diag(1.0 / spread)])

    with joblib.Parallel(n_jobs=n_jobs, mmap_mode="r") as pool:  # the scans are passed once
        return unpack(least_squares(residuals, first, jacobian, max_nfev=steps, verbose=2, x_scale=spread).x)


def _compare(population: Population, vector: np.ndarray) -> np.ndarray:
    return compare(population.measure(unpack(vector)))


def describe(sought: Parameters, found: Measures) -> str:
    """The constants, as code, and the residuals."""
    def numbers(values: Sequence[float]) -> str:
        return f"({', '.join(f'{value:.3g}' for value in values)})"

    lines = ["datxai/phantom/population.py:", "BIOLOGY = Biology("]
    for name, value in asdict(sought.biology).items():
        lines.append(f"    {name}={numbers(value) if isinstance(value, tuple) else f'{value:.3g}'},")
    lines += [")", "", f"datxai/phantom/reads.py: CASE_SPREAD = {sought.case_spread:.3g}", ""]
    lines.append("datxai/phantom/anatomy.py, UPTAKE:")
    for group, value in sought.uptake.items():
        lines += [f'    "{name}": {value:.3g},' for name in group]
    lines += ["", "mean normal scan: real, here, difference"]
    for name, real in AVERAGE.items():
        lines.append(f"  {name:24s} {real:5.2f} {found.rows[name]:5.2f} {found.rows[name] / real - 1:+5.0%}")
    lines.append(f"  peak {PEAK} at {PEAK_MM}; {found.peak[0]:.2f} at {found.peak[1]}")
    for here, (place, real) in zip(found.profiles, PROFILES.items()):
        lines.append(f"  {place}: root mean square {np.sqrt(np.mean((here - real) ** 2)):.3f}")
        lines += [f"    {' '.join(f'{v:5.2f}' for v in values)}" for values in (real, here)]
    lines.append("slabs: real, here, difference (10, 50, 90 %)")
    for name, real in SLABS.items():
        for label in (0, 1):
            here = np.percentile(found.slabs[label][name], (10, 50, 90))
            off = here - real[label] if name.endswith("%") else 100 * (here / np.array(real[label]) - 1)
            kind = ("normal", "reduced")[label]
            lines.append(f"  {name:31s} {kind:8s} {real[label]} {here.round(2)} {off.round(1)}")
    lines.append("balanced accuracy {:.3f}, AUC {:.3f}, readers disagree {:.3f}".format(*found.difficulty))
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--people", type=int, default=1440)
    parser.add_argument("--views", type=int, default=60, help="of a scan")
    parser.add_argument("--steps", type=int, default=14, help="of the fit, at most; 0 measures the start alone")
    parser.add_argument("--n-jobs", type=int, default=2)
    given = parser.parse_args(words)
    given.folder.mkdir(parents=True, exist_ok=True)
    tasks = [(index, given.folder, given.views) for index in range(given.heads)]
    paths = list(parallel(scan_head, tasks, len(tasks), given.n_jobs, "heads scanned"))
    heads = list(parallel(load_head, [(path,) for path in paths], len(paths), given.n_jobs, "heads measured"))
    population = Population(heads, given.people)
    print(describe(START, population.measure(START)))
    if given.steps:
        sought = fit(population, given.steps, given.n_jobs)
        print(describe(sought, population.measure(sought)))


if __name__ == "__main__":
    main()
