"""The scripts of the paper on a small run: made-up scans in MNI space, some with the wrong label, on one slice."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from forked import datxai
from manifests import forget_checksums

from datxai.files import read_table, write_table
from datxai.imaging.atlas import load_atlas, make_regions
from datxai.imaging.template import HEAD, make_template_bases
from datxai.volume import Volume, load, save

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
CASES, WRONG_LABELS = 32, 5
FIRST, LAST = ("preprocess", "split"), ("train", "explain", "evaluate")  # stages; the scripts need no report


def call(*arguments, status=0):
    answer = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, timeout=600)
    assert answer.returncode == status, answer.stdout + answer.stderr
    return answer.stdout + answer.stderr


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run and its repeat with other initial weights."""
    folder = tmp_path_factory.mktemp("reproduce")
    rng, bases, rows = np.random.default_rng(3), make_template_bases(load_atlas()), []
    rest = bases["brain"].data + 0.8 * bases["scalp"].data
    for number in range(CASES):
        label, name = number % 2, f"sub-{number:02d}"
        side = ("left", "right")[rng.integers(2)]
        other = "right" if side == "left" else "left"
        binding = {f"putamen_{end}_{side}": (4.5, 1.5)[label] for end in ("anterior", "posterior")}
        binding |= {f"putamen_{end}_{other}": (4.5, 2.5)[label] for end in ("anterior", "posterior")}
        binding |= {"caudate_left": (4.5, 3.5)[label], "caudate_right": (4.5, 3.5)[label]}
        data = rest + sum(value * rng.uniform(0.8, 1.2) * bases[part].data for part, value in binding.items())
        save(Volume(data.astype(np.float32), HEAD.affine), folder / "cohort" / f"{name}_spect.nii.gz")
        label = 1 - label if number >= CASES - WRONG_LABELS else label
        rows.append({"participant_id": name, "age": 50 + number, "sex": "FM"[number // 2 % 2], "label": label})
    write_table(folder / "cohort" / "participants.tsv", rows, list(rows[0]))
    settings = [
        "data=folder", f"data.root={folder / 'cohort'}", "registration=none", "preprocessing.min_coverage=0",
        "grid=slab_12mm", "network.channels=[8,8,8,8]", "network.dropout=0", "split.sizes=[12,4,16]",
        "training.max_epochs=16", "training.batch_size=4", "training.patience=null", "training.learning_rate=1e-3",
        "n_jobs=1",
    ]  # fmt: skip
    for stage in (*FIRST, *LAST):
        datxai(stage, *settings, f"run={folder / 'run'}")
    shutil.copytree(folder / "run", folder / "repeat")
    for stage in LAST:
        datxai(stage, *settings, "training.seed=1", f"run={folder / 'repeat'}")
    return folder / "run", folder / "repeat"


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    """Where everything was written to, and the rows of the page: part, first cell, further cells."""
    out = tmp_path_factory.mktemp("paper")
    call(EXAMPLES / "sign_of_relevance.py", *runs, "--out", out)
    call(EXAMPLES / "reproduce.py", *runs, "--out", out, "--markdown", out / "page.md")
    rows, part = {}, None
    for line in (out / "page.md").read_text().splitlines():
        part = line[3:] if line.startswith("## ") else part
        if line.startswith("| ") and "---" not in line:
            first, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            rows[part, first] = cells
    return out, rows


def test_every_figure_is_made_for_print_and_screen(page):
    out, _ = page
    names = {path.name for path in out.iterdir()}
    for name in (
        "table1", "classification", "fig3", "fig3_all_slices", "fig4", "fig5", "sbr", "cart", "repeats", "errors",
        "regions", "sign_of_relevance",
    ):  # fmt: skip
        assert {f"{name}.png", f"{name}.pdf"} <= names


def test_numbers_of_the_page_are_those_of_the_tables(runs, page):
    _, rows = page
    cases = [row for row in read_table(runs[0] / "predictions.tsv") if row["set"] == "test"]
    pairs = [(row["label"], row["predicted"]) for row in cases]
    tn, fp, fn, tp = (pairs.count(pair) for pair in (("0", "0"), ("0", "1"), ("1", "0"), ("1", "1")))
    assert tn and tp and fp + fn, "the run holds correct and misclassified cases"
    assert rows["Classification", "CNN: confusion matrix"][:2] == [
        "TN 148, FP 2, FN 10, TP 128", f"TN {tn}, FP {fp}, FN {fn}, TP {tp}",
    ]  # fmt: skip
    for name, hits, total in (
        ("Accuracy", tn + tp, len(cases)), ("Sensitivity", tp, tp + fn), ("Specificity", tn, tn + fp),
        ("PPV", tp, tp + fp), ("NPV", tn, tn + fn),
    ):  # fmt: skip
        assert rows["Classification", f"CNN: {name}"][1].startswith(f"{100 * hits / total:.1f} % (")
    measured = read_table(runs[0] / "roi_relevance.tsv")
    for group, name in (("FN", "false negative"), ("FP", "false positive")):
        marked = [row["consistent"] == "false" for row in measured if row["group"] == group]
        assert rows["Fig. 4", f"{name} cases with an inconsistent map"][1] == f"{sum(marked)} of {len(marked)}"
    means = [load(runs[0] / "means" / f"{group}_relevance.nii.gz", blank=True) for group in ("TN", "TP")]
    brain = make_regions(means[0].grid, load_atlas())["brain"]
    metrics = json.loads((runs[0] / "metrics.json").read_text())
    correlation = np.corrcoef(*(mean.data[brain] for mean in means))[0, 1]
    assert metrics["mean_map_correlation"] == pytest.approx(correlation, abs=1e-3)
    said = rows["Fig. 3", "correlation of the mean maps of TN and TP"][1].replace("−", "-")
    assert float(said) == pytest.approx(metrics["mean_map_correlation"], abs=0.005)
    positive = [float(row["putamen_ipsilateral"]) > 0 for row in measured]
    right = np.mean([found == (label == "1") for found, (label, _) in zip(positive, pairs)])
    assert rows["Fig. 5", "relevance in the ipsilateral putamen above zero: Accuracy"][1].startswith(
        f"{100 * right:.1f} % ("
    )
    inside = sum(row["peak_inside"] == "true" for row in measured)
    assert rows["Most relevant voxel", "most relevant voxel in the striatum"][1] == f"{inside} of {len(cases)}"
    whole = next(row for row in read_table(runs[0] / "table1.tsv") if row["set"] == "whole" and row["sex"] == "F")
    shown = rows["Table 1", f"Whole sample, {('normal', 'reduced')[int(whole['label'])]}, females: age in years"]
    assert shown[1] == f"{float(whole['age_mean']):.1f} ± {float(whole['age_sd']):.1f} (n = {whole['n']})"
    repeats = [json.loads((run / "metrics.json").read_text())["classifiers"]["cnn"]["accuracy"] for run in runs]
    assert rows["Repeats", "accuracy over 2 initialisations"][1] == (
        f"{100 * min(repeats):.1f} % to {100 * max(repeats):.1f} %"
    )


def test_the_page_says_what_it_rests_on(page):
    text = (page[0] / "page.md").read_text()
    assert f"{CASES} scans (own data)" in text
    assert "phantom" not in text.split("## Table 1")[0]
    assert "output: `difference`" in text


@pytest.fixture
def sign(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import sign_of_relevance

    return sign_of_relevance


def test_two_maps_of_a_case_make_those_of_every_start(runs, page, sign):
    """Against the maps of the stage `explain`, which starts with the logits of reduced less normal."""
    from datxai.findings import Findings
    from datxai.run import Run

    found = Findings(Run(runs[0]))
    cases, kept, logits = sign.explain(found, found, page[0] / "sign")
    maps = sign.Maps.of("reduced − normal, logit", logits, kept, np.array([0]))
    brain = found.anatomy.brain
    tested = [(number, case) for number, case in enumerate(cases) if case["set"] == "test"]
    assert len(tested) == 16
    for number, case in tested:
        expected = load(found.run.relevance_of(case["participant_id"]), blank=True).data[brain]
        assert np.linalg.norm(maps[number] - expected) < 1e-4 * np.linalg.norm(expected)
    named = {name: sign.Maps.of(name, logits, kept, np.array([0])) for name in sign.STARTS}
    for number in range(len(cases)):
        both = [named[name][number] for name in ("reduced, logit", "normal, logit", "reduced − normal, logit")]
        np.testing.assert_allclose(both[0] - both[1], both[2], rtol=1e-5, atol=1e-9)
        odds = logits[number, 1] - logits[number, 0]
        np.testing.assert_allclose(both[2], named["log-odds, one"][number] * odds, rtol=1e-5, atol=1e-9)


def test_the_table_of_the_sign(runs, page):
    out, rows = page
    table = read_table(out / "sign_of_relevance.tsv")
    of = [row for row in table if row["start"] == "reduced − normal, logit"]
    assert [row["run"] for row in of] == [run.name for run in runs]
    for run, row in zip(runs, of):
        metrics = json.loads((run / "metrics.json").read_text())
        assert float(row["accuracy"]) == pytest.approx(metrics["classifiers"]["roi_relevance"]["accuracy"])
        if "mean_map_correlation" in metrics:
            assert float(row["correlation"]) == pytest.approx(metrics["mean_map_correlation"], abs=1e-4)
    shown = rows["Sign of the relevance", "reduced − normal, logit"]
    accuracies = [100 * float(row["accuracy"]) for row in of]
    numbers = [float(text) for text in re.findall(r"[\d.]+(?= %)", shown[3])]
    assert numbers == pytest.approx([np.mean(accuracies), min(accuracies), max(accuracies)], abs=0.051)


def test_a_second_call_explains_nothing_again(runs, page):
    maps = {path: path.stat().st_mtime_ns for path in (page[0] / "sign").iterdir()}
    assert len(maps) == 4
    call(EXAMPLES / "sign_of_relevance.py", *runs, "--out", page[0])
    assert {path: path.stat().st_mtime_ns for path in (page[0] / "sign").iterdir()} == maps


def test_runs_with_other_test_cases_are_refused(runs, tmp_path):
    other = shutil.copytree(runs[1], tmp_path / "other")
    text = (other / "predictions.tsv").read_text()
    (other / "predictions.tsv").write_text(text.replace("\ttest\t", "\ttrain\t", 1))
    forget_checksums(other)
    said = call(EXAMPLES / "repeats.py", runs[0], other, "--out", tmp_path, status=2)
    assert "test cases are not those" in said


@pytest.mark.parametrize("name", ["table1", "figure3", "supplement1", "figure4", "figure5", "classification",
                                  "comparison", "peaks", "regions", "errors"])  # fmt: skip
def test_each_script_runs_by_itself(runs, tmp_path, monkeypatch, capsys, name):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(sys, "argv", [name, str(runs[0]), "--out", str(tmp_path)])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert name == "supplement1" or "here: " in capsys.readouterr().out
    assert list(tmp_path.iterdir())
