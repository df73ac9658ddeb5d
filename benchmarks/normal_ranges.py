"""How many normal cases that a run has not seen are outside its normal range? Nominally five in a hundred.

    python -m benchmarks.normal_ranges RUN [--scans 400] [--seed 7001] [--n-jobs -1] [--keep FILE]

New phantoms, labelled normal by their readers as the run's are, go through the run's camera and imaging. Each measure
is compared with the run's normal range, by age and sex; the table has how many have |z| > 1.96, with Wilson's 95 %
interval.

One run's range has a sampling error: n cases determine a standard deviation to 1 / sqrt(2 n), so with 125 the rate is
3.7 to 6.5 % in two of three runs. ``model`` is the rate without it: each new case compared with ranges of the other new
cases (ten parts, each in turn). With --keep, measurements are stored in FILE and reused.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from datxai.analysis.classification import wilson_interval
from datxai.analysis.normal_range import NormalRange, fit_ranges
from datxai.case import Imaging, tabulate_measures
from datxai.config import Config, restore
from datxai.data_source import set_camera
from datxai.errors import InputError
from datxai.files import read_json, write_json
from datxai.findings import Findings
from datxai.phantom.population import draw_subject
from datxai.progress import parallel
from datxai.record import read_record
from datxai.run import Run
from datxai.scan import Scan
from datxai.stages.simulate import simulate_scan

BEYOND = 1.96
PARTS = 10
SEXES = ("F", "M")


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--scans", type=int, default=400, help="half of each sex")
    parser.add_argument("--seed", type=int, default=7001)
    parser.add_argument("--n-jobs", type=int, default=-1)
    parser.add_argument("--keep", type=Path)
    given = parser.parse_args(words)
    record = read_record(given.run)
    assert record is not None, f"{given.run} is no run folder"
    settings, findings = restore(record.values), Findings(Run(given.run))
    assert settings.data.kind == "phantom", f"{given.run} is no run of the phantom"
    camera = set_camera(record.values["data"]["camera"])
    if given.keep and given.keep.is_file():
        cases = read_json(given.keep)["cases"]
    else:
        tasks = [(settings, camera, given.seed, number) for number in range(given.scans)]
        measured = parallel(measure, tasks, len(tasks), given.n_jobs, "normal scans measured")
        cases = [case for case in measured if case]
    if given.keep:
        write_json(given.keep, {"cases": cases})
    print("\n".join(describe(findings.ranges, cases, len(findings.normals))))


def measure(settings: Config, camera: dict[str, float], seed: int, number: int) -> dict | None:
    """Age, sex and measures of a normal subject; None if its scan cannot be used."""
    subject = draw_subject(seed, number, 0, SEXES[number % 2])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "scan.dcm")
        simulate_scan(subject, path, camera, True, "")
        try:
            _, measures = prepare_imaging(settings).process(Scan.find(path).read(settings.reconstruction), path)
        except InputError:
            return None
    return {"age": subject.age, "sex": subject.sex, **tabulate_measures(measures)}


_of_this_process: list[Imaging] = []


def prepare_imaging(settings: Config) -> Imaging:
    """Made once in each process."""
    if not _of_this_process:
        _of_this_process.append(Imaging.of(settings))
    return _of_this_process[0]


def describe(ranges: Mapping[str, NormalRange], cases: Sequence[Mapping], n: int) -> Iterator[str]:
    """The table: rows of measures, and for each sex how many are outside the range of the run, and of the model."""
    yield f"Range of {n} normal cases, {len(cases)} new ones; |z| > {BEYOND}, %:"
    yield ""
    yield "| | F | M | both | model, F | model, M | model, both |"
    yield "|---" * 7 + "|"
    parts = [fit_ranges([case for i, case in enumerate(cases) if i % PARTS != part]) for part in range(PARTS)]
    totals = np.zeros(12, int)
    for name in (name for name in cases[0] if name not in ("age", "sex")):
        counts = []
        for of in ([ranges] * PARTS, parts):
            beyond = {sex: [] for sex in SEXES}
            for i, case in enumerate(cases):
                its = of[i % PARTS].get(name)
                expected = its and its.expect(case["age"], case["sex"])
                if expected and case[name] is not None:
                    beyond[case["sex"]].append(abs(expected.score(case[name])[0]) > BEYOND)
            for flags in (*beyond.values(), list(chain(*beyond.values()))):
                counts += [sum(flags), len(flags)]
        totals += counts
        yield f"| {name.replace('_', ' ')} | " + " | ".join(map(rate, counts[::2], counts[1::2])) + " |"
    shares = (f"{100 * k / n:.1f}" if n else "n/a" for k, n in zip(totals[::2], totals[1::2]))
    yield "| mean of all | " + " | ".join(shares) + " |"


def rate(k: int, n: int) -> str:
    interval = wilson_interval(k, n)
    if interval is None:
        return "n/a"
    return f"{100 * k / n:.1f} ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"


if __name__ == "__main__":
    main()
