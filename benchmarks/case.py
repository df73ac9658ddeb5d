"""How long one new scan takes, from raw projections to prediction, relevance map and report.

    python -m benchmarks.case [--rounds 5] [--folder DIR] [--settings experiment=paper]

Uses the paper's grid and network (2 mm, 236 million parameters), or those of other settings, with two threads. The
weights on disk and the tables of their run are random, because the time does not depend on them. Each round starts the
command ``datxai case`` again on projections of 60 views and 64 rows. ``work`` is everything after the steps that do not
depend on the scan: imports, opening the network, template and atlas. Targets: work 3 s, total 8 s, and
weights that are mapped, not copied: they count as memory of the process once, as pages of the file, not twice.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml

from datxai.anatomy import grid_of
from datxai.case import SBR
from datxai.config import CALL, Config, restore
from datxai.files import read_json, write_json, write_table, write_text
from datxai.imaging.dicom import Projections, write_projections
from datxai.model.checkpoint import CONFIG, WEIGHTS, save_network, save_weights
from datxai.model.network import build
from datxai.phantom.population import draw_population
from datxai.phantom.scan import simulate_projections
from datxai.record import RECORD, Record
from datxai.run import Run
from datxai.volume import Volume, save

CAMERA = {"views": 60, "rows": 64}
THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "2")
NORMAL_CASES = 40


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the run is made, and kept; else a temporary folder")
    parser.add_argument("--settings", nargs="+", default=["experiment=paper"], help="words of the command")
    arguments = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        run, scan = Run(folder / "run"), folder / "scan.dcm"
        if not run.manifest.is_file():
            make_run(run, arguments.settings)
            make_scan(scan)
        rounds = [read_once(run, scan) for _ in range(arguments.rounds + 1)]
    first, *rounds = rounds
    print(f"{'':22}  median   range (s), {len(rounds)} rounds; the first of the run: {first['all']:.2f}")
    for name in first:
        values = [seconds[name] for seconds in rounds or [first]]
        print(f"{name:22}  {statistics.median(values):6.2f}   {min(values):.2f} to {max(values):.2f}")


def begin_run(run: Run, words: list[str]) -> Config:
    """Write the record of a run from command-line settings, so that the run counts as started."""
    text = subprocess.run(
        [sys.executable, "-m", "datxai", "--cfg", "job", "--resolve", *words],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    values = {name: value for name, value in yaml.safe_load(text).items() if name not in CALL}
    write_text(run.folder / RECORD, Record(values).text())
    return restore(values)


def make_run(run: Run, words: list[str]) -> None:
    """A finished run with some settings and random results: weights, means and tables."""
    settings = begin_run(run, words)
    grid, rng = grid_of(settings), np.random.default_rng(0)
    chosen = settings.network
    network = {
        "shape": list(grid.shape),
        "channels": chosen.channels,
        "kernel_size": chosen.kernel_size,
        "padding": chosen.padding,
        "hidden": chosen.hidden,
        "dropout": chosen.dropout,
    }
    save_weights(build(**network).state_dict(), run.model / WEIGHTS)
    save_network({"network": network}, run.model / CONFIG)
    for group in ("TN", "TP"):
        save(Volume(rng.normal(size=grid.shape), grid.affine), run.mean_of(f"{group}_relevance"))
    cases = [subject for subject in draw_population(2 * NORMAL_CASES) if subject.label == 0]
    people = [{"participant_id": case.participant_id, "age": case.age, "label": case.label} for case in cases]
    write_table(run.participants, people, list(people[0]))
    ratios = [{"participant_id": case.participant_id, **dict(zip(SBR, rng.normal(2.0, 0.3, 6)))} for case in cases]
    write_table(run.sbr, ratios, list(ratios[0]))
    predictions = [
        {"participant_id": case.participant_id, "set": "validation", "label": 0, "predicted": 0, "p_reduced": 0.5,
         "logit_normal": 0.0, "logit_reduced": margin}
        for case, margin in zip(cases, rng.normal(size=len(cases)))
    ]  # fmt: skip
    write_table(run.predictions, predictions, list(predictions[0]))
    write_json(run.metrics, {"classifiers": {}, "calibration": {"temperature": 1.0, "determined": True}})
    finished = {"finished": "", "fingerprint": "random", "config": {}, "inputs": {}, "outputs": ["metrics.json"]}
    write_json(run.manifest, {"explain": finished, "evaluate": finished})


def make_scan(path: Path) -> None:
    """Projections of the phantom's first subject."""
    (subject,) = draw_population(1)
    counts, camera = simulate_projections(subject, **CAMERA)
    seen = Projections(counts, camera.angles_deg, camera.pixel_mm, camera.pixel_mm, camera.radius_mm)
    write_projections(path, seen, name="benchmark", patient_age=subject.age)


def read_once(run: Run, scan: Path) -> dict[str, float]:
    """Seconds of ``datxai case``, by stage and in total, and its peak memory in GB."""
    begin = time.perf_counter()
    command = [sys.executable, "-m", "datxai", "case", f"scan={scan}", f"run={run.folder}"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, **THREADS})
    _, status, used = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - begin
    child.returncode = os.waitstatus_to_exitcode(status)  # otherwise it counts as still running
    if child.returncode:
        sys.exit(f"datxai case ended with {child.returncode}")
    stages = read_json(run.folder / "cases" / scan.stem / "prediction.json")["timings"]
    size = (run.model / WEIGHTS).stat().st_size
    return {
        **stages,
        "work": sum(stages.values()),
        "all": seconds,
        "processor": used.ru_utime + used.ru_stime,
        "peak memory (GB)": used.ru_maxrss * 1024 / 1e9,
        "weights (GB)": size / 1e9,
    }


if __name__ == "__main__":
    main()
