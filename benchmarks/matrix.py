"""Is the binding ratio independent of the acquisition matrix and bin size?

    python -m benchmarks.matrix [--subjects 20] [--bins-mm 2 3 3.9 4 4.8] [--rows 128] [--n-jobs 2]

The same people are acquired with 64 x 64 bins of 4 mm and with ROWS x 128 bins of other widths, reconstructed,
registered and measured as in the default run. A row per width: how many scans are refused, how many are not green,
and how much the mean binding ratio of each region differs from that of 64 x 64 bins (target: none refused, 3 %).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datxai.case import SBR, Imaging
from datxai.config import Atlas, Config, Lattice, Registration
from datxai.errors import InputError
from datxai.imaging.reconstruction import reconstruct
from datxai.phantom.anatomy import place
from datxai.phantom.camera import count, project
from datxai.phantom.population import Subject, draw_population
from datxai.phantom.scan import HEAD_SHAPE, PROJECTIONS, VOXEL_MM, centred_grid, subject_camera
from datxai.progress import parallel

USUAL = (64, 64, 4.0)  # rows, bins, mm
SETTINGS = Config(
    grid=Lattice("mni_3mm", [47, 59, 47], [3, 3, 3], [-69, -105, -60]),
    registration=Registration("affine"),
    atlas=Atlas(),
)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, default=20)
    parser.add_argument("--bins-mm", type=float, nargs="+", default=[2.0, 3.0, 3.9, 4.0, 4.8])
    parser.add_argument("--rows", type=int, default=128, help="along the axis of the patient")
    parser.add_argument("--seed", type=int, default=6000)
    parser.add_argument("--views", type=int, default=60)
    parser.add_argument("--n-jobs", type=int, default=2)
    given = parser.parse_args(words)
    people = draw_population(given.subjects, given.seed)
    matrices = [USUAL, *((given.rows, 128, width) for width in given.bins_mm)]
    imaging = Imaging.of(SETTINGS)
    tasks = [(imaging, subject, *matrix, given.views) for matrix in matrices for subject in people]
    found = np.array(list(parallel(measure, tasks, len(tasks), given.n_jobs, "scans measured")))
    found = found.reshape(len(matrices), len(people), -1)
    print(f"| bins | scans | refused | not green | {' | '.join(SBR)} |\n|{'---|' * (4 + len(SBR))}")
    for (rows, bins, width), here in zip(matrices, found):
        both = np.isfinite(here[:, 0]) & np.isfinite(found[0, :, 0])
        ratios = here[both, 1:].mean(axis=0) / found[0, both, 1:].mean(axis=0) - 1
        refused, doubtful = np.isnan(here[:, 0]).sum(), int(np.nansum(here[:, 0]))
        said = " | ".join(f"{off:+.1%}" for off in ratios)
        print(f"| {rows} x {bins} of {width:g} mm | {len(people)} | {refused} | {doubtful} | {said} |")


def measure(imaging: Imaging, subject: Subject, rows: int, bins: int, width: float, views: int) -> np.ndarray:
    """Whether a scan is not green, and its binding ratios; NaN if it is refused.

    The acquisition time is that of the usual matrix: counts in a wider field are additional.
    """
    head = place(subject.head, subject.uptake, centred_grid(HEAD_SHAPE, VOXEL_MM))
    cameras = [
        subject_camera(subject, rows=n, bins=m, pixel_mm=mm, views=views) for n, m, mm in (USUAL, (rows, bins, width))
    ]
    usual, expected = (project(*head, camera) for camera in cameras)
    counts = cameras[0].counts * float(expected.sum(dtype=float) / usual.sum(dtype=float))
    counted = count(expected, counts, np.random.default_rng([*subject.seed, PROJECTIONS]))
    fbp = imaging.settings.reconstruction
    settings = {"filter": fbp.filter, "cutoff_per_cm": fbp.cutoff_per_cm, "equivalent_mm": fbp.equivalent_mm}
    scan = reconstruct(counted, cameras[1].angles_deg, width, **settings)
    try:
        _, measures = imaging.process(scan, Path(f"subject {subject.seed}"))
    except InputError as error:
        print(f"{rows} x {bins} of {width:g} mm: {error}")
        return np.full(1 + len(SBR), np.nan)
    return np.array([measures["quality"]["verdict"] != "green", *(measures[name] for name in SBR)])


if __name__ == "__main__":
    main()
