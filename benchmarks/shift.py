"""Detection of scans that are unlike a run's training scans: detection and false alarm rates.

    python -m benchmarks.shift RUN [--scans 40] [--fresh 200] [--seed 7000]

RUN is a finished run on the phantom. Fresh scans are other people of the same distribution, with another seed; each
condition changes the acquisition or the uptake of some of them, and goes through the whole chain: camera,
reconstruction, registration, scaling, network. Rates have Wilson's 95 % interval. Targets: at least 90 % of each
condition marked, at most 5 % of the fresh scans. Scans that quality control refuses are counted separately.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from datxai.analysis.classification import wilson_interval
from datxai.anatomy import WORKING_GRID, Anatomy
from datxai.case import Imaging
from datxai.config import Phantom, restore
from datxai.data_source import set_camera
from datxai.errors import InputError
from datxai.imaging.atlas import load_atlas, make_regions
from datxai.imaging.reconstruction import reconstruct
from datxai.model.features import watching_features
from datxai.phantom.anatomy import UPTAKE, mni_positions, place
from datxai.phantom.camera import count, project
from datxai.phantom.lesion import KEPT
from datxai.phantom.population import SITES, Subject, draw_population
from datxai.phantom.scan import HEAD_SHAPE, PROJECTIONS, VOXEL_MM, centred_grid, subject_camera
from datxai.progress import parallel
from datxai.reader import Reader
from datxai.record import read_record
from datxai.run import Run
from datxai.volume import Volume, distance_from

LESION_MM = 30.0  # diameter of a sphere
LOBES = ("frontal", "orbitofrontal", "cingulate", "parietal", "precuneus", "temporal", "occipital", "insula")
FAR_MM = 25.0  # from the striatum to the middle of a sphere, at least


@dataclass(frozen=True)
class Condition:
    """Differences from the run's own scans.

    ``uptake``: factors on regions of the head; ``sphere``: a factor on the uptake of a sphere in the brain;
    ``camera``: settings that override; ``counts``: a factor on them; ``reconstruction``: settings that override;
    ``blur_mm``: FWHM of one more filter.
    """

    words: str
    uptake: Callable[[np.random.Generator], dict[str, float]] | None = None
    sphere: float = 1.0
    camera: Mapping[str, Any] = field(default_factory=dict)
    counts: float = 1.0
    reconstruction: Mapping[str, Any] = field(default_factory=dict)
    blur_mm: float = 0.0


def lower_lobe(rng: np.random.Generator) -> dict[str, float]:
    return {str(rng.choice(["frontal", "parietal", "temporal", "occipital", "cerebellum"])): KEPT}


def exchange_lobes(rng: np.random.Generator) -> dict[str, float]:
    """Each lobe gets the uptake of another one in the average head."""
    order = rng.permutation(LOBES)
    return {name: UPTAKE[str(other)] / UPTAKE[name] for name, other in zip(LOBES, order)}


FRESH = Condition("fresh scans, as the run's own")
CONDITIONS = {
    "blur": Condition("12 mm more blur", blur_mm=12.0),
    "counts": Condition("a third of the counts", counts=1 / 3),
    "orbit": Condition("orbit of 200 mm", camera={"radius_mm": 200.0}),
    "hann": Condition("Hann filter, cutoff 0.7 per cm", reconstruction={"filter": "hann", "cutoff_per_cm": 0.7}),
    "smoothed": Condition("6 mm more smoothing", blur_mm=6.0),
    "ramp": Condition("ramp alone, no smoothing", reconstruction={"filter": "ramp", "post_filter_mm": 0.0}),
    "chang": Condition("Chang's correction", reconstruction={"attenuation_per_cm": 0.11}),
    "hot": Condition("hot sphere of 30 mm, twice the uptake", sphere=2.0),
    "cold": Condition("cold sphere of 30 mm, a quarter of the uptake", sphere=KEPT),
    "lobe": Condition("one lobe, or the cerebellum, at a quarter of its uptake", uptake=lower_lobe),
    "pattern": Condition("uptake of the lobes exchanged", uptake=exchange_lobes),
}


def simulate(subject: Subject, condition: Condition, data: Phantom, options: Mapping[str, Any]) -> Volume:
    """A scan of a subject under a condition, made like the run's own scans."""
    rng = np.random.default_rng([*subject.seed, 77])
    uptake = dict(subject.uptake)
    if condition.uptake:
        uptake |= {name: factor * {**UPTAKE, **uptake}[name] for name, factor in condition.uptake(rng).items()}
    activity, attenuation = place(subject.head, uptake, centred_grid(HEAD_SHAPE, VOXEL_MM))
    if condition.sphere != 1.0:
        position = mni_positions(subject.head, activity.grid)
        inside = np.linalg.norm(position - draw_centre(rng), axis=-1) < LESION_MM / 2
        activity = Volume(np.where(inside, condition.sphere * activity.data, activity.data), activity.affine)
    camera = subject_camera(subject, **(set_camera(data.camera) | dict(condition.camera)))
    expected = project(activity, attenuation, camera)
    counts = count(expected, camera.counts * condition.counts, np.random.default_rng([*subject.seed, PROJECTIONS]))
    if data.reconstruction == "sites":
        options = SITES[subject.acquisition.site].reconstruction
    volume = reconstruct(counts, camera.angles_deg, camera.pixel_mm, **{**options, **condition.reconstruction})
    if condition.blur_mm:
        sigma = condition.blur_mm / np.sqrt(8 * np.log(2)) / volume.grid.spacing
        volume = volume.after("post_filter", ndimage.gaussian_filter(volume.data, sigma), fwhm_mm=condition.blur_mm)
    return volume


@cache
def find_places() -> np.ndarray:
    """Allowed sphere centres: deep enough in the brain, far enough from the striatum; MNI mm (n, 3)."""
    regions = make_regions(WORKING_GRID, load_atlas())
    striatum = regions["striatum_left"] | regions["striatum_right"]
    depth = distance_from(~regions["brain"], WORKING_GRID.spacing)
    far = (depth > LESION_MM / 2) & (distance_from(striatum, WORKING_GRID.spacing) > FAR_MM)
    return WORKING_GRID.index_to_mm(np.argwhere(far))


def draw_centre(rng: np.random.Generator) -> np.ndarray:
    places = find_places()
    return places[rng.integers(len(places))]


def judge_all(
    reader: Reader, folder: Path, population: Sequence[Subject], conditions: Mapping[str, Condition], n_jobs: int
) -> Iterator[tuple[str, dict | str]]:
    """The run's result for each subject under each condition: the name of the condition and `Shift.judge`, or why
    quality control refused the scan. Worker processes make the scans; the network runs here."""
    data = restore(read_record(folder).values["data"], Phantom)
    tasks = [(subject, condition) for subject in population for condition in conditions]
    scans = ((subject, conditions[name], data, folder) for subject, name in tasks)
    made = parallel(prepare_scan, scans, len(tasks), n_jobs, "scans")
    for (_, name), outcome in zip(tasks, made):
        yield name, outcome if isinstance(outcome, str) else judge(reader, *outcome)


@cache
def prepare_imaging(folder: Path) -> Imaging:
    settings = restore(read_record(folder).values)
    return Imaging.of(settings, Anatomy.of(settings, cache=Run(folder).anatomy))


def prepare_scan(subject: Subject, condition: Condition, data: Phantom, folder: Path) -> tuple[Volume, dict] | str:
    """A scan in MNI space and its measures; or why it cannot be used."""
    imaging = prepare_imaging(folder)
    options = asdict(imaging.settings.reconstruction)
    options = {key: options[key] for key in options if key not in ("centre", "start_angle_deg", "flip")}
    try:
        return imaging.process(simulate(subject, condition, data, options), subject.participant_id)
    except InputError as error:
        return str(error)


@torch.no_grad()
def judge(reader: Reader, volume: Volume, measures: dict) -> dict:
    with watching_features(reader.explainer.model) as features:
        reader.explainer.model(torch.from_numpy(volume.data)[None, None].to(reader.explainer.device))
    found = reader._compare_with_training(volume, measures, features)
    assert found is not None
    return found


def row(words: str, outcomes: Sequence[dict | str]) -> str:
    """A line of the table: how many scans are marked, and by which measures."""
    read = [found for found in outcomes if not isinstance(found, str)]
    marked = sum(found["marked"] for found in read)
    by = Counter(name for found in read for name, measure in found["measures"].items() if measure["marked"])
    rate = f"{marked / len(read):.1%}" if read else "n/a"
    low, high = wilson_interval(marked, len(read)) or (0.0, 1.0)
    names = ", ".join(f"{name} {n}" for name, n in by.most_common())
    return (
        f"| {words} | {len(read)} | {marked} | {rate} ({low:.1%} to {high:.1%}) | {names or 'none'} "
        f"| {len(outcomes) - len(read)} |"
    )


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--scans", type=int, default=40, help="of each condition")
    parser.add_argument("--fresh", type=int, default=200, help="scans as the run's own")
    parser.add_argument("--seed", type=int, default=7000)
    parser.add_argument("--conditions", default=",".join(CONDITIONS), help="comma-separated")
    parser.add_argument("--n-jobs", type=int, default=-1)
    chosen = parser.parse_args(words)
    record = read_record(chosen.run)
    if record is None or record.values["data"]["kind"] != "phantom":
        raise InputError(f"{chosen.run}: no run on the phantom, expected one; make it with `datxai run={chosen.run}`.")
    reader = Reader.open(chosen.run, device="cpu")
    if reader.reference.shift is None or not reader.reference.shift.measures:
        raise InputError(f"{chosen.run}: does not tell scans that are unlike its own; make `datxai evaluate` anew.")
    if chosen.seed == record.values["data"]["seed"]:
        raise InputError(f"--seed={chosen.seed}: is that of the run's own scans; give another.")
    picked = {name: CONDITIONS[name] for name in filter(None, chosen.conditions.split(","))}
    outcomes: dict[str, list] = {}
    population = draw_population(max(chosen.scans, chosen.fresh), chosen.seed)
    for people, conditions in ((population[: chosen.fresh], {"": FRESH}), (population[: chosen.scans], picked)):
        for name, outcome in judge_all(reader, chosen.run, people, conditions, chosen.n_jobs):
            outcomes.setdefault(name, []).append(outcome)
    own = reader.reference.shift.own
    print("| scans | read | marked | rate (95 % interval) | beyond the limit of | refused |\n|---|---|---|---|---|---|")
    for name, found in outcomes.items():
        print(row((FRESH if not name else CONDITIONS[name]).words, found))
    print(f"\nThe run's own test cases: {own['marked']} of {own['n']} marked.")


if __name__ == "__main__":
    from benchmarks.shift import main  # its functions must be importable by other processes

    main()
