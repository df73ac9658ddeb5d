"""The benchmark of a tiny run: its numbers, that nothing is made twice, methods of one's own, names that are wrong."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from forked import datxai

import datxai as package
from datxai.case import Imaging
from datxai.commands.benchmark import _share_out, check, trials
from datxai.commands.benchmark.bench import Bench, Trial
from datxai.config import Attribution, Benchmark, Config, Method, Reconstruction
from datxai.errors import InputError
from datxai.files import read_json, read_table, write_json
from datxai.imaging.atlas import load_atlas, make_regions
from datxai.model import checkpoint
from datxai.phantom.camera import Camera
from datxai.volume import load, write_sidecar

SMALL = [
    "benchmark.methods=[lrp_epsilon,gradient,uptake,noise]", "benchmark.metrics=[relevance_mass,random_logit,lesion]",
    "benchmark.n_cases=2", "benchmark.n_checks=1", "benchmark.lesions=[putamen_right]", "benchmark.n_heads=1",
    "benchmark.min_effect=0", "n_jobs=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def compared(finished, tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark") / "run"
    shutil.copytree(finished[0], folder, symlinks=True)
    datxai("benchmark", f"run={folder}", *SMALL)
    return folder


def read_results(folder):
    rows = read_table(folder / "benchmark" / "results.tsv")
    return {(row["method"], row["case"], row["metric"]): row for row in rows}


def test_every_map_is_measured_and_told_of(compared):
    place = compared / "benchmark"
    cases = read_table(place / "cases.tsv")
    assert [row["lesion"] for row in cases] == ["n/a", "n/a", "putamen_right"]
    assert [row["checked"] for row in cases].count("true") == 1
    results = read_results(compared)
    for method in ("lrp_epsilon", "gradient", "uptake", "noise"):
        for row in cases:
            cell = results[method, row["case"], "relevance_mass.striatum"]
            assert float(cell["seconds"]) > 0
            assert ((method, row["case"], "random_logit.spearman") in results) == (row["checked"] == "true")
        assert (method, "putamen_right-1", "lesion.seen_share") in results
    for name in ("summary.tsv", "summary.md", "report.html", "figures/ranks.png", "figures/maps_putamen_right-1.png"):
        assert (place / name).stat().st_size > 0
    assert "<img src=\"data:image/webp;base64" in (place / "report.html").read_text()


def test_numbers_follow_from_the_maps_on_disk(compared):
    """Oracle: the mass of a map read back, and a gradient by autograd."""
    case = read_table(compared / "benchmark" / "cases.tsv")[0]
    found = load(compared / "benchmark" / "maps" / "gradient" / f"{case['case']}_relevance.nii.gz")
    scan = load(compared / "preprocessed" / f"{case['case']}_space-MNI_spect.nii.gz")
    regions = make_regions(found.grid, load_atlas())
    positive = found.data.astype(float).clip(0)
    mass = positive[regions["striatum_left"] | regions["striatum_right"]].sum() / positive.sum()
    row = read_results(compared)["gradient", case["case"], "relevance_mass.striatum"]
    assert float(row["value"]) == pytest.approx(mass, rel=1e-5)
    model, _ = checkpoint.load(compared / "model")
    x = torch.from_numpy(scan.data)[None, None].requires_grad_()
    assert case["target"] == "difference"
    logits = model(x)[0]
    (gradient,) = torch.autograd.grad(logits[1] - logits[0], x)
    assert np.allclose(found.data, gradient[0, 0], atol=1e-4 * float(gradient.abs().max()))


def test_controls_know_nothing_of_the_network(compared):
    cases = read_table(compared / "benchmark" / "cases.tsv")
    (checked,) = (row["case"] for row in cases if row["checked"] == "true")
    results = read_results(compared)
    for control in ("uptake", "noise"):
        assert float(results[control, checked, "random_logit.spearman"]["value"]) == pytest.approx(1.0)


def test_the_pair_is_mirrored_alike_and_the_lesion_lies_on_the_lower_side(compared):
    place = compared / "benchmark" / "pairs"
    healthy, lesioned, lesion = (
        load(place / f"putamen_right-1_{kind}.nii.gz") for kind in ("healthy", "lesioned", "lesion")
    )
    record = read_json(place / "putamen_right-1_lesioned.json")["measures"]
    assert record["mirrored"]
    inside = lesion.data >= 0.5
    x = lesion.grid.world_coordinates()[..., 0]
    assert (x[inside] < 0).all()
    lost = healthy.data - lesioned.data
    assert lost[inside].mean() > 5 * np.abs(lost[~inside]).mean()


def test_nothing_is_made_twice(compared):
    maps = sorted((compared / "benchmark" / "maps").rglob("*.nii.gz"))
    made = {path: path.stat().st_mtime_ns for path in maps}
    gone = maps[0]
    gone.with_name(gone.name.replace(".nii.gz", ".json")).unlink()  # as a kill between map and record leaves it
    before = read_results(compared)
    metrics = "benchmark.metrics=[relevance_mass,random_logit,lesion,sparseness]"
    datxai("benchmark", f"run={compared}", *(word for word in SMALL if "metrics" not in word), metrics)
    assert [path for path in maps if path.stat().st_mtime_ns != made[path]] == [gone]
    after = read_results(compared)
    assert {key[2] for key in after} - {key[2] for key in before} == {"sparseness.gini"}
    assert all(after[key]["value"] == row["value"] for key, row in before.items())


def test_code_that_has_changed_makes_its_numbers_anew_and_no_others(compared, tmp_path):
    """A copy of the package in which a metric and the controls read differently; numbers that are kept are marked."""
    shutil.copytree(compared, tmp_path / "run", symlinks=True)
    for part in ("datxai", "conf"):
        shutil.copytree(Path(package.__file__).parents[1] / part, tmp_path / "checkout" / part)
    words = [f"run={tmp_path / 'run'}", *(word for word in SMALL if "metrics" not in word)]
    words += ["benchmark.metrics=[relevance_mass,sparseness,lesion]", "benchmark.n_checks=0"]
    datxai("benchmark", *words)
    maps = tmp_path / "run" / "benchmark" / "maps"
    record = next((maps / "gradient").glob("*.json"))
    found = read_json(record)
    known = found["measures"]["sparseness"]["gini"]
    found["measures"] |= {"relevance_mass": {"striatum": -1.0}, "sparseness": {"gini": -1.0}}
    write_sidecar(record.with_suffix(".nii.gz"), found)
    made = {path: path.stat().st_mtime_ns for path in maps.rglob("*.nii.gz")}
    for changed in ("metrics/sparseness.py", "explain/controls.py"):
        with (tmp_path / "checkout" / "datxai" / changed).open("a") as source:
            source.write("\nCHANGED = True\n")
    elsewhere = {"cwd": tmp_path / "checkout", "env": {**os.environ, "PYTHONPATH": str(tmp_path / "checkout")}}
    command = [sys.executable, "-m", "datxai", "benchmark", *words]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=300, **elsewhere)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    after = read_json(record)["measures"]
    assert after["sparseness"]["gini"] == known and after["relevance_mass"] == {"striatum": -1.0}
    anew = {path.parent.name for path, time in made.items() if path.stat().st_mtime_ns != time}
    assert anew == {"uptake", "noise"}


def test_pairs_are_reconstructed_as_the_phantom_was_taken(monkeypatch, tmp_path):
    """Not about the centre, or from the angle, of a clinic's camera."""
    asked = {}

    def reconstruct(*_, **how):
        asked.update(how)
        raise NotImplementedError

    pair = SimpleNamespace(camera=Camera(), lesioned=None, healthy=None)
    bench = SimpleNamespace(pair=lambda name, kind: tmp_path / f"{kind}.nii.gz")
    monkeypatch.setattr(trials, "reconstruct", reconstruct)
    monkeypatch.setattr(trials, "simulate_pair", lambda *_, **__: pair)
    monkeypatch.setattr(trials, "of_this_process", lambda *_: bench)
    settings = Config(reconstruction=Reconstruction(post_filter_mm=5.0, centre=63.5, start_angle_deg=9, flip=["rows"]))
    with pytest.raises(NotImplementedError):
        trials._make_pair(settings, tmp_path, SimpleNamespace(seed=(0, 1)), "putamen_left", "putamen_left-1")
    assert asked == {
        "filter": "shepp-logan", "cutoff_per_cm": 1.25, "attenuation_per_cm": None, "post_filter_mm": 5.0,
        "equivalent_mm": 4.0,
    }  # fmt: skip


def test_a_process_prepares_once_for_all_its_pairs(monkeypatch):
    made = []
    monkeypatch.setattr(Imaging, "of", lambda settings, anatomy: made.append(settings))
    bench = Bench.__new__(Bench)
    bench.settings, bench.anatomy = Config(), None
    assert bench.imaging is bench.imaging and made == [bench.settings]


def test_work_is_shared_out_by_trials_and_long_work_comes_first():
    trials = [Trial("quick", 1), Trial("long", 1, checked=True), Trial("done", 1)]

    class Known:
        options = Benchmark(methods=["a", "b", "c"])

        @staticmethod
        def find_missing(trial, method):
            return [] if trial.name == "done" or method == "b" else ["sparseness"]

    assert _share_out(Known, trials) == [(trials[1], ["a"]), (trials[1], ["c"]), (trials[0], ["a", "c"])]


def test_a_method_of_ones_own_takes_one_file(compared, tmp_path):
    (tmp_path / "benchmark").mkdir()
    (tmp_path / "benchmark" / "mine.yaml").write_text(
        "defaults:\n  - default\n  - /attribution@catalogue.mine.attribution: lrp\n"
        "  - /composite@catalogue.mine.composite: gamma\n  - _self_\nmethods: [uptake, mine]\n"
    )
    rest = [word for word in SMALL if "methods" not in word]
    datxai("benchmark", f"run={compared}", "--config-dir", str(tmp_path), "benchmark=mine", *rest)
    summary = read_table(compared / "benchmark" / "summary.tsv")
    assert {row["method"] for row in summary} == {"uptake", "mine"}
    record = read_json(next((compared / "benchmark" / "maps" / "mine").glob("*.json")))
    assert record["method"]["composite"]["name"] == "gamma"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"methods": ["lpr"]}, "benchmark.methods: there is no lpr, expected some of mine, bare, both"),
        ({"metrics": ["beauty"]}, "benchmark.metrics: there is no beauty, expected some of patch_flipping"),
        ({"lesions": ["heart"]}, "benchmark.lesions: there is no heart, expected some of caudate_left|putamen_left"),
        ({"metrics": ["lesion", "lesion"]}, "comes twice"),
        ({"methods": []}, "at least one method"),
        ({"methods": ["bare"]}, "bare: lrp needs a composite"),
        ({"methods": ["both"]}, "both: expected either an attribution or a control"),
        ({"fill": "air"}, "benchmark.fill=air: expected one of mean, blur, brain_mean"),
        ({"n_cases": 0, "lesions": []}, "nothing to explain"),
    ],
)
def test_names_that_nothing_stands_behind_are_refused(changes, said):
    lrp = Attribution(method="lrp")
    catalogue = {
        "mine": Method(Attribution(method="gradient")), "bare": Method(lrp), "both": Method(lrp, control="noise"),
    }  # fmt: skip
    chosen = Benchmark(catalogue, ["mine"], ["lesion"], lesions=["thalamus"])
    check(Config(benchmark=chosen))
    with pytest.raises(InputError, match=said):
        check(Config(benchmark=replace(chosen, **changes)))


def test_a_trained_network_is_all_it_needs(finished, tmp_path):
    """As after `datxai explain composite=...`, which leaves the evaluation behind."""
    folder = shutil.copytree(finished[0], tmp_path / "run", symlinks=True)
    manifest = read_json(folder / "manifest.json")
    write_json(folder / "manifest.json", {stage: entry for stage, entry in manifest.items() if stage != "evaluate"})
    few = ["methods=[gradient]", "metrics=[sparseness]", "n_cases=1", "lesions=[]"]
    datxai("benchmark", f"run={folder}", "n_jobs=1", *(f"benchmark.{word}" for word in few))
    assert len(read_table(folder / "benchmark" / "results.tsv")) == 1


def test_a_run_is_needed(tmp_path):
    assert "run=RUN_DIR" in datxai("benchmark", status=2).stderr
    assert "no run folder" in datxai("benchmark", f"run={tmp_path}", status=2).stderr
