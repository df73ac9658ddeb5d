"""Does the simulated camera count like a real camera? One table of targets and measurements.

    python -m benchmarks.camera [--device cpu] [--rounds 5]

References are closed formulas. Settings are those of the default run (4 mm voxels and bins, 60 views) unless stated
otherwise. Seconds are medians; on the CPU of one thread.
"""

import argparse
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from datxai.phantom.anatomy import place
from datxai.phantom.camera import COLLIMATORS, FWHM_OF_SIGMA, Camera, acquire, project
from datxai.phantom.population import draw_population
from datxai.phantom.scan import HEAD_SHAPE, VOXEL_MM, centred_grid, simulate_projections, subject_camera
from datxai.volume import Grid, Volume

DIRECT = Camera(scatter=(0.0, 1.0), collimator_scatter=(0.0, 1.0), penetration=(0.0, 1.0))
HEAD = centred_grid(HEAD_SHAPE, VOXEL_MM)
MIDDLE = tuple(n // 2 for n in HEAD_SHAPE)
DISTANCES_MM = (100.0, 150.0, 200.0)
WATER_PER_CM = 0.148
CYLINDER_MM = 80.0  # radius


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--views", type=int, default=DIRECT.views, help="of sources in air; fewer are faster")
    parser.add_argument("--bins", type=int, nargs="+", default=[64, 128], help="that are timed")
    given = parser.parse_args(words)
    device, direct = given.device, replace(DIRECT, views=given.views)
    print(f"device {device}\n\n| measured | target | here |\n|---|---|---|")
    for name in COLLIMATORS:
        for distance in DISTANCES_MM:
            theory, across, along = measure_point(name, distance, camera=direct, device=device)
            print(
                f"| FWHM in mm of a point at {distance:.0f} mm, {name}; along bins, along rows | {theory:.2f} ± 5 % "
                f"| {across:.2f} ({across / theory - 1:+.1%}), {along:.2f} ({along / theory - 1:+.1%}) |"
            )
    expected, found = measure_cylinder(camera=direct, device=device)
    print(
        f"| share that leaves a cylinder of water, {2 * CYLINDER_MM:.0f} mm, middle ray | {expected:.4f} ± 2 % "
        f"| {found:.4f} ({found / expected - 1:+.1%}) |"
    )
    kept = measure_conservation(direct, device)
    print(f"| direct counts of a view over activity, worst view | 1 ± 0.5 % | {kept:.4f} |")
    shares = ", ".join(f"{share:.1%}" for share in measure_shares(device))
    print(f"| through the holes, scattered by the collimator, through its septa | 39 %, 18 %, 43 % | {shares} |")
    asked, found = count_photons(device)
    print(f"| counts of an acquisition | {asked:.0f} ± {5 * asked**0.5:.0f} | {found:.0f} |")
    if device != "cpu":
        print(f"| largest difference from the CPU, over the largest count | 1e-4 | {compare_devices(device):.1e} |")
    for bins in given.bins:
        seconds = clock(bins, device, given.rounds)
        print(f"| s a case, 64 slices x 60 views x {bins} bins | <= 2 on one core | {seconds:.2f} |")


def point(grid: Grid, index: tuple[int, int, int]) -> Volume:
    data = np.zeros(grid.shape, np.float32)
    data[index] = 1.0
    return Volume(data, grid.affine)


def empty(grid: Grid) -> Volume:
    return Volume(np.zeros(grid.shape, np.float32), grid.affine)


def theoretical_fwhm(collimator: str, distance_mm):
    """Holes seen from a distance and the crystal's own resolution, in quadrature (Anger 1964)."""
    hole, length, intrinsic = COLLIMATORS[collimator]
    return np.sqrt(intrinsic**2 + (hole * (1 + distance_mm / length)) ** 2)


def measured_fwhm(profiles: np.ndarray, pixel_mm: float) -> float:
    """From the second moment about the mean, without the width of a bin; root mean square over the profiles."""
    position = np.arange(profiles.shape[1]) * pixel_mm
    centre = profiles @ position / profiles.sum(axis=1)
    variance = (profiles * (position - centre[:, None]) ** 2).sum(axis=1) / profiles.sum(axis=1)
    return float(FWHM_OF_SIGMA * np.sqrt(variance.mean() - pixel_mm**2 / 12))


def measure_point(
    collimator: str,
    radius_mm: float,
    index: tuple[int, int, int] = MIDDLE,
    grid: Grid = HEAD,
    camera: Camera = DIRECT,
    device: str = "cpu",
) -> tuple[float, float, float]:
    """FWHM in mm of a voxel of activity in air: by the formula, along the bins, along the rows.

    Root mean squares over the views, which see an off-axis source from several distances.
    """
    camera = replace(camera, radius_mm=radius_mm, collimator=COLLIMATORS[collimator])
    x, y, _ = grid.index_to_mm(index)
    angle = np.deg2rad(camera.angles_deg)
    distance = radius_mm + x * np.sin(angle) + y * np.cos(angle)
    frames = project(point(grid, index), empty(grid), camera, device)
    theory = float(np.sqrt(np.mean(theoretical_fwhm(collimator, distance) ** 2)))
    return theory, *(measured_fwhm(frames.sum(axis=axis), camera.pixel_mm) for axis in (1, 2))


def measure_cylinder(grid: Grid = HEAD, camera: Camera = DIRECT, device: str = "cpu") -> tuple[float, float]:
    """Share of counts in air in the middle ray of a cylinder of active water: (1 - exp(-mu d)) / mu d, and measured.

    The cylinder's axis is that of rotation.
    """
    voxel = grid.spacing[0]
    world = grid.world_coordinates()
    disc = np.clip((CYLINDER_MM - np.hypot(world[..., 0], world[..., 1])) / voxel + 0.5, 0, 1)
    with_water, without = (
        project(Volume(disc, grid.affine), Volume(disc * mu, grid.affine), camera, device)[:, *middle(camera)].mean()
        for mu in (WATER_PER_CM, 0.0)
    )
    optical_depth = WATER_PER_CM * 2 * CYLINDER_MM / 10.0
    return (1 - np.exp(-optical_depth)) / optical_depth, float(with_water / without)


def middle(camera: Camera) -> tuple[slice, slice]:
    """The two rows and two bins about the middle of a frame."""
    return tuple(slice(n // 2 - 1, n // 2 + 1) for n in (camera.rows, camera.bins))


def measure_conservation(camera: Camera = DIRECT, device: str = "cpu") -> float:
    """Direct counts of a head-sized ball in air over its activity, in the view that is farthest from 1."""
    data = np.exp(-((HEAD.world_coordinates() / 30.0) ** 2).sum(axis=-1) / 2)
    seen = project(Volume(data, HEAD.affine), empty(HEAD), camera, device).sum(axis=(1, 2), dtype=np.float64)
    ratio = seen / (data.sum() * HEAD.voxel_ml)
    return float(ratio[np.abs(ratio - 1).argmax()])


def measure_shares(device: str = "cpu") -> list[float]:
    """Shares of a large detector's counts of a source in air: direct, scattered by the collimator, through septa."""
    large = replace(DIRECT, views=2, rows=400, bins=400)
    default = Camera()
    parts = ({}, {"collimator_scatter": default.collimator_scatter}, {"penetration": default.penetration})
    seen = [project(point(HEAD, MIDDLE), empty(HEAD), replace(large, **part), device).sum() for part in parts]
    amounts = np.array([seen[0], *(total - seen[0] for total in seen[1:])])
    return (amounts / amounts.sum()).tolist()


def count_photons(device: str = "cpu") -> tuple[float, float]:
    """Requested counts, and counts of an acquisition with all effects of the camera."""
    camera = Camera()
    found = acquire(point(HEAD, MIDDLE), empty(HEAD), camera, np.random.default_rng(0), device)
    return camera.counts, float(found.sum(dtype=np.float64))


def compare_devices(device: str) -> float:
    """Largest difference between the expected counts of a head on a device and on the CPU, over the largest."""
    subject = draw_population(1)[0]
    maps = place(subject.head, subject.uptake, HEAD)
    here, there = (project(*maps, subject_camera(subject), where) for where in ("cpu", device))
    return float(np.abs(here - there).max() / here.max())


def clock(bins: int, device: str, rounds: int) -> float:
    """Median seconds to simulate one subject's acquisition, excluding the first, which makes the average head."""
    seconds = []
    for subject in draw_population(rounds + 1):
        begin = time.process_time() if device == "cpu" else time.perf_counter()
        simulate_projections(subject, device, bins=bins, pixel_mm=4.0 * 64 / bins)
        seconds.append((time.process_time() if device == "cpu" else time.perf_counter()) - begin)
    return statistics.median(seconds[1:])


if __name__ == "__main__":
    main()
