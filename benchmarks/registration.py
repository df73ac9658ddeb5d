"""Registration of phantom scans with known pose: error, quality control, binding ratios, time; with other libraries.

    python -m benchmarks.registration [--scans 200] [--seed 4000] [--against simpleitk,simpleitk-tuned,dipy,ants]

Poses exceed the cohort's: 15 degrees about each axis, 25 mm along each, head size from 85 to 115 %, field of view
cut at the top or the bottom in two scans of three; 0.6 to 4 million counts, no post-filter or one of up to 18 mm.

The error is the mean distance over the putamina between their registered and their true position (``putamen``),
or their position by the affine part of the phantom's map (``affine part``); the difference between the two is
individual anatomy, a smooth warp that no affine map can follow. Targets: putamen 1.5 mm median, 3 mm 95th
percentile, failures (beyond 8 mm) at most 0.5 % and all flagged, at most 3 % flagged in vain, SBR within 5 %, 1.5 s.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from datxai.anatomy import WORKING_GRID
from datxai.errors import InputError
from datxai.imaging import quality
from datxai.imaging.atlas import load_atlas, make_regions
from datxai.imaging.intensity import scale
from datxai.imaging.quantification import measure_sbr
from datxai.imaging.reconstruction import reconstruct
from datxai.imaging.registration import register
from datxai.imaging.template import HEAD, STRIATUM, make_template, make_template_bases
from datxai.phantom.anatomy import Head, mni_positions
from datxai.phantom.population import Subject, draw_population
from datxai.phantom.scan import simulate_projections
from datxai.volume import Grid, Volume, field_of_view, find_covered, resample

FAILURE_MM = 8.0
CLASSES = ("all", "normal", "reduced, milder half", "reduced, worse half", "cut at the top", "cut at the bottom")
PUTAMINA = ("putamen_left", "putamen_right")


@dataclass
class Case:
    subject: Subject
    scan: Volume
    cut: str


@dataclass
class Result:
    case: Case
    error_mm: float
    affine_error_mm: float
    sbr_error: float  # of both putamina, mean, relative
    seconds: float  # processor time, registration only
    flagged: str  # amber, red or empty


def draw_cases(n: int, seed: int) -> Iterator[Case]:
    for i, subject in enumerate(draw_population(n, seed)):
        rng = np.random.default_rng([seed, i, 99])
        size = rng.uniform(0.85, 1.15) * np.array([1.0, 0.98, 0.96]) * (1 + 0.015 * rng.standard_normal(3))
        head = replace(
            subject.head,
            zooms=tuple(size),
            rotation_deg=tuple(rng.uniform(-15, 15, 3)),
            shift_mm=tuple(rng.uniform(-25, 25, 3)),
        )
        filtered = float(rng.choice([0.0, rng.uniform(4, 18)]))
        counts = float(np.exp(rng.uniform(np.log(6e5), np.log(4e6))))
        subject = replace(subject, head=head, acquisition=replace(subject.acquisition, counts=counts))
        projections, camera = simulate_projections(subject)
        scan = reconstruct(
            projections, camera.angles_deg, camera.pixel_mm, camera.pixel_mm, post_filter_mm=filtered
        )
        cut = str(rng.choice(["", "top", "bottom"]))
        yield Case(subject, cut_view(scan, head, cut, rng), cut)


def cut_view(scan: Volume, head: Head, cut: str, rng: np.random.Generator) -> Volume:
    """The scan without the part above (or below) a level within the head."""
    level = {"": 0.0, "top": rng.uniform(45, 75), "bottom": rng.uniform(-65, -30)}[cut]
    z = scan.affine[2, 3] + scan.affine[2, 2] * np.arange(scan.shape[2])
    edge = (head.mni_to_scan @ [0, -18, level, 1])[2]
    kept = {"": z == z, "top": z < edge, "bottom": z > edge}[cut]
    affine = scan.affine.copy()
    affine[2, 3] = z[kept][0]
    return Volume(scan.data[:, :, kept], affine)


def locate(head: Head, points: np.ndarray) -> np.ndarray:
    """Positions of MNI points (n, 3) in the scan, warp included: the phantom's own map, inverted iteratively."""
    forward = head.mni_to_scan
    found = points @ forward[:3, :3].T + forward[:3, 3]
    low = found.min(axis=0) - 24
    shape = np.ceil((found.max(axis=0) + 24 - low) / 2).astype(int) + 1
    field = mni_positions(head, Grid.axis_aligned(shape, (2, 2, 2), low))
    for _ in range(20):
        reached = [ndimage.map_coordinates(field[..., axis], ((found - low) / 2).T, order=1) for axis in range(3)]
        missing = points - np.stack(reached, axis=1)
        found = found + missing @ forward[:3, :3].T
    assert np.abs(missing).max() < 1e-6
    return found


class Examiner:
    """Shared by the evaluation of all methods."""

    def __init__(self):
        atlas = load_atlas()
        self.bases = make_template_bases(atlas)
        self.regions = make_regions(WORKING_GRID, atlas)
        wanted = [index for index, name in atlas.names.items() if name in PUTAMINA]
        self.putamina = atlas.labels.grid.index_to_mm(np.argwhere(np.isin(atlas.labels.data, wanted))[::20])

    def examine(self, method: Callable, case: Case) -> Result:
        head, points = case.subject.head, self.putamina
        begin = time.process_time()
        try:
            affine, flagged = method(case.scan), ""
        except InputError:
            affine, flagged = np.eye(4), "red"
        seconds = time.process_time() - begin
        placed = move(affine, points)
        true = self.measure(case.scan, head.mni_to_scan)[0]
        try:
            found, uptake = self.measure(case.scan, affine)
            fit = quality.measure_fit(case.scan, affine, self.bases)
            verdict = quality.judge(fit | uptake)["verdict"]
            flagged = flagged or ("" if verdict == quality.GREEN else verdict)
        except InputError:
            found, flagged = dict.fromkeys(true, np.nan), "red"
        return Result(
            case,
            distance(placed, locate(head, points)),
            distance(placed, move(head.mni_to_scan, points)),
            float(np.mean([abs(found[name] / true[name] - 1) for name in PUTAMINA])),
            seconds,
            flagged,
        )

    def measure(self, scan: Volume, affine: np.ndarray) -> tuple[dict, dict]:
        """Binding ratios, and quality measures of the uptake."""
        assert np.linalg.norm(affine[:3, :3], axis=0).max() < 5, affine
        covered = find_covered(field_of_view(scan), WORKING_GRID, affine)
        volume = scale(resample(scan, WORKING_GRID, affine), self.regions["reference_region"] & covered)
        sbr = measure_sbr(volume, self.regions, covered=covered)
        return sbr, quality.measure_uptake(volume, self.regions["brain"], covered)


def move(affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ affine[:3, :3].T + affine[:3, 3]


def distance(here: np.ndarray, there: np.ndarray) -> float:
    return float(np.linalg.norm(here - there, axis=1).mean())


def by_datxai(examiner: Examiner) -> Callable:
    def method(scan: Volume) -> np.ndarray:
        found = register(scan, examiner.bases)
        if found.orientation:
            raise InputError(found.orientation)
        return found.affine

    method(next(draw_cases(1, 1)).scan)  # one-time work for a cohort is not counted
    return method


def by_simpleitk(examiner: Examiner, tuned: bool = False) -> Callable:
    """SimpleITK: mutual information, multi-resolution gradient descent as in its documentation; or tuned by hand."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)

    def convert(volume: Volume):
        image = sitk.GetImageFromArray(np.ascontiguousarray(volume.data.T, np.float32))
        signs = np.array([-1, -1, 1])  # it uses LPS
        image.SetSpacing(volume.grid.spacing.tolist())
        image.SetOrigin((signs * volume.affine[:3, 3]).tolist())
        image.SetDirection((signs[:, None] * volume.affine[:3, :3] / volume.grid.spacing).ravel().tolist())
        return image

    template = make_template(HEAD, load_atlas())
    fixed = convert(template)
    brain = sum(examiner.bases[name].data for name in ("brain", *STRIATUM)) > 0.4
    near = ndimage.distance_transform_edt(~brain, HEAD.spacing) <= 20
    mask = sitk.Cast(convert(Volume(near, HEAD.affine)), sitk.sitkUInt8)

    def method(scan: Volume) -> np.ndarray:
        moving = convert(scan)
        centring = sitk.CenteredTransformInitializerFilter
        start = sitk.CenteredTransformInitializer(
            fixed, moving, sitk.AffineTransform(3), centring.MOMENTS if tuned else centring.GEOMETRY
        )
        process = sitk.ImageRegistrationMethod()
        process.SetInterpolator(sitk.sitkLinear)
        if tuned:
            process.SetMetricAsCorrelation()
            process.SetMetricSamplingStrategy(process.REGULAR)
            process.SetMetricFixedMask(mask)
            process.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-4, 500, relaxationFactor=0.8)
            factors, sigmas = [4, 2], [2, 1]
        else:
            process.SetMetricAsMattesMutualInformation(50)
            process.SetMetricSamplingStrategy(process.RANDOM)
            process.SetOptimizerAsGradientDescent(1.0, 100, 1e-6, 10)
            factors, sigmas = [4, 2, 1], [2, 1, 0]
        process.SetMetricSamplingPercentage(0.1, 1)
        process.SetOptimizerScalesFromPhysicalShift()
        process.SetShrinkFactorsPerLevel(factors)
        process.SetSmoothingSigmasPerLevel(sigmas)
        process.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
        process.SetInitialTransform(start, inPlace=True)
        process.Execute(fixed, moving)
        corners = np.vstack([np.zeros(3), 100 * np.eye(3)])
        signs = np.array([-1, -1, 1])
        moved = np.array([signs * start.TransformPoint((signs * corner).tolist()) for corner in corners])
        affine = np.eye(4)
        affine[:3, 3] = moved[0]
        affine[:3, :3] = (moved[1:] - moved[0]).T / 100
        return affine

    return method


def by_dipy(examiner: Examiner) -> Callable:
    """DIPY's `affine_registration` with its default pipeline."""
    from dipy.align import affine_registration

    template = make_template(HEAD, load_atlas())

    def method(scan: Volume) -> np.ndarray:
        _, affine = affine_registration(
            scan.data, template.data, moving_affine=scan.affine, static_affine=template.affine
        )
        return affine

    return method


def by_ants(examiner: Examiner) -> Callable:
    """ANTs' default affine recipe, `type_of_transform="Affine"`."""
    import ants

    def convert(volume: Volume):
        signs = np.array([-1, -1, 1])
        return ants.from_numpy(
            volume.data.astype(np.float32),
            origin=(signs * volume.affine[:3, 3]).tolist(),
            spacing=volume.grid.spacing.tolist(),
            direction=signs[:, None] * volume.affine[:3, :3] / volume.grid.spacing,
        )

    fixed = convert(make_template(HEAD, load_atlas()))

    def method(scan: Volume) -> np.ndarray:
        found = ants.registration(fixed, convert(scan), type_of_transform="Affine")
        transform = ants.read_transform(found["fwdtransforms"][0])
        signs = np.array([-1, -1, 1])
        corners = np.vstack([np.zeros(3), 100 * np.eye(3)])
        moved = np.array([signs * np.array(transform.apply_to_point((signs * c).tolist())) for c in corners])
        affine = np.eye(4)
        affine[:3, 3] = moved[0]
        affine[:3, :3] = (moved[1:] - moved[0]).T / 100
        return affine

    return method


METHODS = {
    "datxai": by_datxai,
    "simpleitk": by_simpleitk,
    "simpleitk-tuned": lambda examiner: by_simpleitk(examiner, tuned=True),
    "dipy": by_dipy,
    "ants": by_ants,
}
HEADER = (
    "| | n | putamen, mm: median | 95 % | worst | affine part: median | 95 % | failures | flagged failures | "
    "flagged in vain | SBR, median error | s per scan |"
)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scans", type=int, default=200)
    parser.add_argument("--seed", type=int, default=4000)
    parser.add_argument("--against", default="", help=f"comma-separated: {', '.join([*METHODS][1:])}")
    chosen = parser.parse_args(words)
    examiner = Examiner()
    methods, absent = {}, []
    for name in ["datxai", *filter(None, chosen.against.split(","))]:
        try:
            methods[name] = METHODS[name](examiner)
        except ImportError:
            absent.append(name)
    results = {name: [] for name in methods}
    for case in draw_cases(chosen.scans, chosen.seed):
        for name, method in methods.items():
            results[name].append(examiner.examine(method, case))
    print(HEADER + "\n" + "|---" * (HEADER.count("|") - 1) + "|")
    for name, found in results.items():
        for title in CLASSES if name == "datxai" else CLASSES[:1]:
            print(row(f"{name}, {title}", select(found, title)))
    for name in absent:
        print(f"{name}: not installed")


def select(results: list[Result], title: str) -> list[Result]:
    """The results of one of `CLASSES`."""
    reduced = [result.case.subject.severity for result in results if result.case.subject.label]
    half = statistics.median(reduced) if reduced else 0.0
    chosen = {
        "all": lambda case: True,
        "normal": lambda case: not case.subject.label,
        "reduced, milder half": lambda case: case.subject.label and case.subject.severity <= half,
        "reduced, worse half": lambda case: case.subject.label and case.subject.severity > half,
        "cut at the top": lambda case: case.cut == "top",
        "cut at the bottom": lambda case: case.cut == "bottom",
    }[title]
    return [result for result in results if chosen(result.case)]


def row(title: str, results: list[Result]) -> str:
    if not results:
        return f"| {title} | 0 |"
    errors = np.array([result.error_mm for result in results])
    affine = np.array([result.affine_error_mm for result in results])
    failed = errors > FAILURE_MM
    flagged = np.array([bool(result.flagged) for result in results])
    cells = [
        len(results),
        f"{np.median(errors):.2f}",
        f"{np.percentile(errors, 95):.2f}",
        f"{errors.max():.2f}",
        f"{np.median(affine):.2f}",
        f"{np.percentile(affine, 95):.2f}",
        failed.sum(),
        f"{(failed & flagged).sum()} of {failed.sum()}",
        f"{(flagged & ~failed).sum()} ({(flagged & ~failed).mean():.1%})",
        f"{np.nanmedian([result.sbr_error for result in results]):.1%}",
        f"{statistics.median(result.seconds for result in results):.2f}",
    ]
    return f"| {title} | " + " | ".join(map(str, cells)) + " |"


if __name__ == "__main__":
    main()
