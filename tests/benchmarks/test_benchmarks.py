"""Every benchmark runs, at its smallest: what it prints is there, not how fast or how good it is."""

import importlib
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from manifests import forget_checksums

import benchmarks
from datxai.analysis import shift
from datxai.anatomy import Anatomy
from datxai.case import SBR
from datxai.config import restore
from datxai.files import read_table, write_table
from datxai.findings import Findings
from datxai.imaging.atlas import load_atlas
from datxai.imaging.template import BASES, STRIATUM, make_template_bases
from datxai.record import read_record
from datxai.run import Run
from datxai.stages import evaluate
from datxai.volume import Grid, Volume, resample, save

FOLDER = Path(benchmarks.__file__).parent
ELSEWHERE = {"__init__", "analytic", "faults"}  # used by the tests of reconstruction, and those of tests/test_faults.py
NUMBER = r"-?\d+\.\d+"
SMALLEST = {  # words of the command, and what has to be in its answer
    "archive": (["--files", "60", "--n-jobs", "1"], r"60 files, 2 scans.*\n.*\n3 odd files, each listed once"),
    "camera": (["--rounds", "1", "--views", "4", "--bins", "64"], rf"64 bins \| <= 2 on one core \| {NUMBER} \|"),
    "case": (
        ["--rounds", "0", "--settings", "grid=slab_12mm", "network.channels=[4,4,4,4]"], rf"weights \(GB\) +{NUMBER}",
    ),
    "explain": (
        ["--grids", "slab_12mm", "--rounds", "2", "--no-slow", "--threads", "1"],
        rf"LRP, Zennit alone +{NUMBER} +{NUMBER} +{NUMBER}-{NUMBER} +\d\.\de-\d\d",
    ),
    "fit_phantom": (
        ["FOLDER", "--heads", "1", "--people", "30", "--views", "15", "--steps", "0", "--n-jobs", "1"],
        rf"CASE_SPREAD = {NUMBER}(.|\n)*readers disagree {NUMBER}$",
    ),
    "matrix": (
        ["--subjects", "1", "--bins-mm", "4.8", "--views", "15", "--n-jobs", "1"],
        rf"\| 128 x 128 of 4\.8 mm \| 1 \| [01] \| [01] \| ({NUMBER}|\+{NUMBER}|nan)%",
    ),
    "normal_ranges": (["FINISHED", "--scans", "2", "--n-jobs", "1"], r"\| putamen left \| .*(.|\n)*\| mean of all \|"),
    "phantom": (["RUN", "--markdown", "FOLDER/page.md"], rf"\| putamen SBR, 10 ml \| 1\.62 \| {NUMBER} \|"),
    "preprocess": (["--scans", "1"], rf"process \(affine\) +{NUMBER} +{NUMBER}"),
    "quantus": ([], "Gini sparseness +Quantus"),
    "reconstruction": (["--rounds", "1", "--tiny"], r"8 slices x 40 views x 32 bins: ms per slice"),
    "registration": (["--scans", "1"], r"\| datxai, all \| 1 \|"),
    "sanity": (["FINISHED", "--cases", "2", "--networks", "1"], r"## LRP(.|\n)*\| metric \| trained \| random"),
    "serve": (["WHOLE", "--scans", "2", "--clients", "2"], r" 2 +2 +0 (.|\n)*\n0 files left after it has ended"),
    "shift": (
        ["JUDGED", "--scans", "1", "--fresh", "1", "--conditions", "blur", "--n-jobs", "1"],
        r"own \| 1 \| [01] \| (.|\n)*blur \| 1 \| 1 \| 100.0% (.|\n)*: \d of 6 marked",
    ),
    "startup": (["--rounds", "1"], rf"datxai --help +{NUMBER} +{NUMBER}"),
    "train": (
        ["--grid", "tiny", "--rounds", "1", "--variants", "plain loop", "datxai, float32"],
        rf"datxai, float32 +{NUMBER} +{NUMBER} +{NUMBER} +{NUMBER} +{NUMBER}",
    ),
}  # fmt: skip


def test_no_benchmark_is_left_out():
    assert {path.stem for path in FOLDER.glob("*.py")} == ELSEWHERE | SMALLEST.keys()


def test_every_benchmark_says_how_it_is_run():
    for name in SMALLEST:
        assert f"python -m benchmarks.{name}" in (FOLDER / f"{name}.py").read_text(), name


@pytest.fixture
def places(request, tmp_path):
    """Folders by what stands for them in `SMALLEST`: made where they are asked for."""

    def find(word: str) -> str:
        if word == "RUN":
            return str(make_preprocessed(tmp_path / "run"))
        if word == "WHOLE":
            return str(request.getfixturevalue("finished")[0])
        if word == "FINISHED":
            return str(make_right(request.getfixturevalue("finished")[0], tmp_path / "run"))
        if word == "JUDGED":
            return str(make_judged(request.getfixturevalue("finished")[0], tmp_path / "run"))
        return word.replace("FOLDER", str(tmp_path))

    return find


def make_preprocessed(folder: Path) -> Path:
    """Scans of a run in MNI space, made of the template: normal ones and reduced ones, of other sizes each."""
    run, bases, rng = Run(folder), make_template_bases(load_atlas()), np.random.default_rng(1)
    grid = Grid.axis_aligned((46, 55, 46), (4, 4, 4), (-90, -126, -72))
    parts = {name: resample(base, grid).data for name, base in bases.items()}
    people, ratios = [], []
    for number in range(8):
        name, label = f"sub-{number:04d}", number % 2
        binding = BASES | {part: rng.uniform(4, 5) for part in STRIATUM}
        binding |= {part: rng.uniform(1.5, 3) for part in STRIATUM if label and part.startswith("putamen")}
        save(Volume(sum(binding[part] * parts[part] for part in parts), grid.affine), run.scan_of(name))
        people.append({"participant_id": name, "label": label})
        ratios.append({"participant_id": name, **dict.fromkeys(SBR, 1.0 - 0.5 * label + 0.01 * number)})
    write_table(run.participants, people, list(people[0]))
    write_table(run.sbr, ratios, list(ratios[0]))
    return folder


def make_right(finished: Path, folder: Path) -> Path:
    """A finished run that has all its test cases right, as a network that was trained for longer would."""
    run = Run(shutil.copytree(finished, folder))
    rows = [{**row, "predicted": row["label"]} for row in read_table(run.predictions)]
    write_table(run.predictions, rows, list(rows[0]))
    forget_checksums(folder)
    return folder


def make_judged(finished: Path, folder: Path) -> Path:
    """A finished run that holds scans against its training cases, few as they are."""
    run = Run(shutil.copytree(finished, folder))
    settings = restore(read_record(folder).values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shift, "MIN_CASES", 10)
        patch.setattr(shift.conformal_limit, "__defaults__", (0.2,))
        evaluate._hold_against_training(settings, Findings(run), Anatomy.of(settings))
    forget_checksums(folder)
    return folder


@pytest.mark.parametrize("name", sorted(SMALLEST))
def test_a_benchmark_runs(name, places, capsys):
    if name == "quantus":
        pytest.importorskip("quantus", reason="not installed: pip install quantus==0.6.0 beside an older PyTorch")
    words, answer = SMALLEST[name]
    importlib.import_module(f"benchmarks.{name}").main(*([[places(word) for word in words]] if words else []))
    said = capsys.readouterr().out
    assert re.search(answer, said, re.MULTILINE), said


def test_parameters_of_the_phantom_go_into_a_vector_and_back():
    fit_phantom = importlib.import_module("benchmarks.fit_phantom")
    vector = fit_phantom.pack(fit_phantom.START)
    np.testing.assert_allclose(fit_phantom.pack(fit_phantom.unpack(vector)), vector)
    other = vector + 0.01 * np.arange(len(vector))
    np.testing.assert_allclose(fit_phantom.pack(fit_phantom.unpack(other)), other)


def test_the_peak_of_memory_is_measured(capsys):
    """As `benchmarks.explain` asks a process of its own."""
    words = ["--grids", "slab_12mm", "--memory", "1", "--peak-of", "forward"]
    importlib.import_module("benchmarks.explain").main(words)
    assert 0.05 < float(capsys.readouterr().out) < 64
