"""Seconds per scan and core in preprocessing, and memory by the number of subjects.

    python -m benchmarks.preprocess [--scans 8]

Targets: 1.5 s per volume of 91 x 109 x 91 voxels without registration; memory does not grow with the cohort.
"""

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from datxai.case import Imaging
from datxai.cohort.dataset import write_store
from datxai.config import Atlas, Config, Lattice, Preprocessing, Registration
from datxai.phantom.population import draw_population
from datxai.phantom.scan import simulate_volume
from datxai.volume import load, resample, save

STEPS = ("read", "process (registration none)", "process (affine)", "write")


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scans", type=int, default=8)
    scans = parser.parse_args(words).scans
    grid = Lattice("mni_2mm", [91, 109, 91], [2, 2, 2], [-90, -126, -72])
    imaging = {
        kind: Imaging.of(
            Config(grid=grid, registration=Registration(kind), atlas=Atlas(), preprocessing=Preprocessing())
        )
        for kind in ("none", "affine")
    }
    seconds = {step: [] for step in STEPS}
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for subject in draw_population(scans):
            scan = simulate_volume(subject)
            path = Path(folder, f"{subject.participant_id}.nii.gz")
            save(resample(scan, imaging["none"].grid, subject.head.mni_to_scan), path)
            volume = timed(seconds["read"], load, path)
            timed(seconds["process (registration none)"], imaging["none"].process, volume, path)
            timed(seconds["process (affine)"], imaging["affine"].process, scan, path)
            timed(seconds["write"], save, volume, path)
            paths.append(path)
        for n in (1, scans):
            write_store(
                Path(folder, f"{n}.npy"), [str(i) for i in range(n)], map(data_of, paths[:n]), imaging["none"].grid
            )
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
    print(f"{'':28}  median s  slowest s")
    for step, values in seconds.items():
        print(f"{step:28}  {statistics.median(values):8.3f}  {max(values):9.3f}")
    print(f"peak memory, GiB: {peaks[0]:.2f} with one volume stored, {peaks[1]:.2f} with {scans}")


def timed(seconds: list, function, *arguments):
    begin = time.process_time()
    result = function(*arguments)
    seconds.append(time.process_time() - begin)
    return result


def data_of(path: Path):
    return load(path).data


if __name__ == "__main__":
    main()
