"""Runs made by hand, with predictions and maps whose comparison is known."""

from itertools import combinations

import numpy as np
import pytest
from forked import datxai

from datxai.analysis.classification import summarise
from datxai.cohort.dataset import write_store
from datxai.commands import compare
from datxai.config import Config
from datxai.errors import InputError
from datxai.files import read_json, read_table, write_json, write_table
from datxai.imaging.atlas import load_atlas, make_regions
from datxai.run import Run
from datxai.volume import Grid, Volume, save

GRID = Grid.axis_aligned((91, 109, 1), (2, 2, 12), (-90, -126, 2))
LABELS = {"sub-1": 0, "sub-2": 0, "sub-3": 1, "sub-4": 1, "sub-5": 1, "sub-6": 0}
SETS = dict.fromkeys(["sub-1", "sub-2", "sub-3", "sub-4"], "test") | dict.fromkeys(["sub-5", "sub-6"], "validation")
MARGINS = {  # logit of reduced minus logit of normal, of three networks
    "a": [-4.0, 1.0, 3.0, 2.0, 0.2, -3.0],
    "b": [-3.0, -2.0, 4.0, -1.0, 1.0, -4.0],
    "c": [-5.0, -0.5, 2.0, -3.0, 0.5, -2.0],
}
NOISE = {"a": 0.0, "b": 0.5, "c": 2.0}


@pytest.fixture(scope="module")
def brain():
    return make_regions(GRID, load_atlas(None, None))["brain"]


def make_run(
    folder, margins, noise, train="t", evaluate="e", sets=SETS, grid=GRID, ages=50, temperature=1.0, split=None
):
    run = Run(folder)
    people, predictions = [], []
    for (name, label), margin in zip(LABELS.items(), margins, strict=True):
        people.append({"participant_id": name, "subject": name, "age": ages, "sex": "F", "label": label})
        predictions.append(
            {"participant_id": name, "set": sets[name], "label": label, "predicted": int(margin > 0), "p_reduced": 0.5,
             "logit_normal": 0.25, "logit_reduced": 0.25 + margin}
        )  # fmt: skip
        save(Volume(draw_map(name, noise, grid.shape), grid.affine), run.relevance_of(name))
    write_table(run.participants, people, list(people[0]))
    write_table(run.predictions, predictions, list(predictions[0]))
    tested = [row for row in predictions if row["set"] == "test"]
    figures = summarise([row["label"] for row in tested], [row["predicted"] for row in tested])
    calibration = {"temperature": temperature, "determined": True, "raw": {"ece": 0.1}, "scaled": {"ece": 0.05}}
    write_json(run.metrics, {"classifiers": {"cnn": figures}, "calibration": calibration})
    write_store(run.store, list(LABELS), [np.zeros(grid.shape)] * len(LABELS), grid)
    entry = {"inputs": {}, "outputs": ["metrics.json"], "config": {"atlas": {"labels": None, "names": None}}}
    write_json(
        run.manifest,
        {
            "split": {**entry, "fingerprint": "s", "config": {"split": split or {}}},
            "train": {**entry, "fingerprint": train, "config": {"training": {"seed": 0}, "network": {}}},
            "evaluate": {**entry, "fingerprint": evaluate},
        },
    )


def draw_map(name, noise, shape=GRID.shape):
    """The same for every network but for noise."""
    shared, own = np.random.default_rng(int(name[-1])), np.random.default_rng([int(name[-1]), int(10 * noise)])
    return (shared.normal(0, 1, shape) + noise * own.normal(0, 1, shape)).astype(np.float32)


@pytest.fixture
def sweep(tmp_path):
    """A sweep's folder with three runs; b has a temperature of two."""
    for name in "abc":
        temperature = 2.0 if name == "b" else 1.0
        make_run(tmp_path / "sweep" / name, MARGINS[name], NOISE[name], name, name, temperature=temperature)
    return tmp_path / "sweep"


def call(*runs, out=None):
    compare.run(Config(runs=[str(run) for run in runs], out=None if out is None else str(out)), Run("."))


def test_every_run_gets_its_row(sweep, capsys):
    call(sweep)
    rows = {row["run"]: row for row in read_table(sweep / "compare" / "runs.tsv")}
    assert list(rows) == ["a", "b", "c", "ensemble"]
    assert [(rows[name]["tn"], rows[name]["fp"], rows[name]["fn"], rows[name]["tp"]) for name in "abc"] == [
        ("1", "1", "0", "2"), ("2", "0", "1", "1"), ("2", "0", "1", "1"),
    ]  # fmt: skip
    assert rows["b"]["temperature"] == "2"
    assert float(rows["c"]["sensitivity_high"]) == pytest.approx(summarise([1, 1], [0, 1])["sensitivity_ci95"][1])
    said = capsys.readouterr().out
    assert said.count("75.0 % (30.1 to 95.4)") == 4
    for name in ("runs.png", "runs.pdf", "agreement.png", "agreement.pdf"):
        assert (sweep / "compare" / name).is_file()


def test_agreement_of_maps_is_that_of_numpy_and_by_sorting(sweep, brain):
    call(sweep)
    found = {(row["run_a"], row["run_b"]): row for row in read_table(sweep / "compare" / "agreement.tsv")}
    n = round(0.01 * brain.sum())
    every = {"correlation": [], "overlap": []}
    for a, b in combinations("abc", 2):
        expected = {"correlation": [], "overlap": []}
        for name in ("sub-1", "sub-2", "sub-3", "sub-4"):
            x, y = (draw_map(name, NOISE[run])[brain] for run in (a, b))
            hottest = [set(np.argsort(-np.abs(values))[:n].tolist()) for values in (x, y)]
            expected["correlation"].append(np.corrcoef(x, y)[0, 1])
            expected["overlap"].append(len(hottest[0] & hottest[1]) / n)
        for name, values in expected.items():
            assert float(found[a, b][f"{name}_mean"]) == pytest.approx(np.mean(values), abs=1e-6)
            assert float(found[a, b][f"{name}_sd"]) == pytest.approx(np.std(values, ddof=1), abs=1e-6)
            every[name] += values
    assert float(found["a", "b"]["same_decision"]) == 0.5
    summary = read_json(sweep / "compare" / "compare.json")["agreement"]
    for name, values in every.items():
        assert summary[name]["mean"] == pytest.approx(np.mean(values), abs=1e-6)
        assert summary[name]["sd"] == pytest.approx(np.std(values, ddof=1), abs=1e-6)
        assert summary[name]["n"] == 12


def test_the_ensemble_and_its_uncertain_cases(sweep):
    call(sweep)
    each = 1 / (1 + np.exp(-np.array([MARGINS["a"], np.divide(MARGINS["b"], 2), MARGINS["c"]])))
    mean = each.mean(axis=0)
    rows = read_table(sweep / "compare" / "ensemble.tsv")
    assert [row["participant_id"] for row in rows] == ["sub-1", "sub-2", "sub-3", "sub-4"]
    assert [float(row["p_reduced"]) for row in rows] == pytest.approx(mean[:4], abs=1e-6)
    assert [row["votes_reduced"] for row in rows] == ["0", "1", "3", "1"]
    assert [row["uncertain_disagree"] for row in rows] == ["false", "true", "false", "true"]
    half_width = np.abs(mean[4:] - 0.5).min()  # 5 % of two validation cases, rounded up, is the one nearest to 0.5
    assert [row["uncertain_interval"] == "true" for row in rows] == (np.abs(mean[:4] - 0.5) <= half_width).tolist()
    found = read_json(sweep / "compare" / "compare.json")["ensemble"]
    assert found["interval"] == pytest.approx([0.5 - half_width, 0.5 + half_width])
    assert found["uncertain"]["disagree"]["caught_of"] == [1, 1]  # sub-4, which only a network in three calls reduced
    assert found["uncertain"]["disagree"]["rate_of"] == [2, 4]
    assert found["brier"] == pytest.approx(np.mean((mean[:4] - [0, 0, 1, 1]) ** 2))


def test_a_run_counts_once_and_one_that_is_not_evaluated_not_at_all(sweep, capsys):
    make_run(sweep / "d", MARGINS["a"], NOISE["a"], "a", "a")
    write_json(sweep / "e" / "manifest.json", {})
    call(sweep, sweep / "b", out=sweep / "out")
    assert [row["run"] for row in read_table(sweep / "out" / "runs.tsv")] == ["a", "b", "c", "ensemble"]
    said = capsys.readouterr().out
    assert f"{sweep / 'd'}: left out, it is the same" in said
    assert f"{sweep / 'e'}: left out, it has not been evaluated" in said


def test_other_explanations_of_one_network_are_no_ensemble(tmp_path):
    for name in "ab":
        make_run(tmp_path / name, MARGINS["a"], NOISE[name], "same", name)
    call(tmp_path)
    found = read_json(tmp_path / "compare" / "compare.json")
    assert "ensemble" not in found
    assert "No ensemble" in found["remarks"][0]
    assert found["agreement"]["correlation"]["n"] == 4


def test_test_sets_that_differ_are_compared_where_they_meet(sweep):
    make_run(sweep / "c", MARGINS["c"], NOISE["c"], "c", "c", sets={**SETS, "sub-4": "train", "sub-6": "test"})
    call(sweep)
    found = read_json(sweep / "compare" / "compare.json")
    assert found["common_test_cases"] == 3
    assert "The test sets differ (4, 4, 4 cases); the 3" in found["remarks"][0]
    assert found["ensemble"]["validation_cases"] == 1


def test_cases_of_the_same_name_in_another_cohort_are_other_cases(tmp_path):
    for name, age in (("a", 50), ("b", 60)):
        make_run(tmp_path / name, MARGINS[name], NOISE[name], name, name, ages=age)
    call(tmp_path)
    found = read_json(tmp_path / "compare" / "compare.json")
    assert found["common_test_cases"] == 0
    assert "no test case in common" in " ".join(found["remarks"])
    assert [row["run"] for row in read_table(tmp_path / "compare" / "runs.tsv")] == ["a", "b"]


FOLDS = (("sub-1", "sub-3"), ("sub-2", "sub-4"), ("sub-5", "sub-6"))  # what each of three folds tests


def make_folds(folder, repeat=0, margins=MARGINS, folds=(0, 1, 2)):
    for fold, run in enumerate("abc"):
        if fold in folds:
            sets = {name: "test" if name in FOLDS[fold] else "train" for name in LABELS}
            split = {"folds": 3, "fold": fold, "repeat": repeat}
            name, made = f"split.fold={fold},split.repeat={repeat}", f"{repeat}{run}"
            make_run(folder / name, margins[run], 0, made, made, sets, split=split)


def test_folds_are_pooled(tmp_path):
    make_folds(tmp_path)
    call(tmp_path)
    rows = read_table(tmp_path / "compare" / "pooled.tsv")
    expected = {"sub-1": "a", "sub-3": "a", "sub-2": "b", "sub-4": "b", "sub-5": "c", "sub-6": "c"}
    assert [row["participant_id"] for row in rows] == sorted(expected)
    for row in rows:
        margin = MARGINS[expected[row["participant_id"]]][list(LABELS).index(row["participant_id"])]
        assert float(row["p_reduced"]) == pytest.approx(1 / (1 + np.exp(-margin)), abs=1e-6)
        assert row["predicted"] == str(int(margin > 0))
        assert row["runs"] == f"split.fold={'abc'.index(expected[row['participant_id']])},split.repeat=0"
    found = read_json(tmp_path / "compare" / "compare.json")
    right = [row["predicted"] == row["label"] for row in rows]
    assert found["pooled"]["pooled"]["classification"]["n"] == 6
    assert found["pooled"]["pooled"]["classification"]["accuracy"] == pytest.approx(np.mean(right))
    assert not any("missing" in remark for remark in found["remarks"])
    assert [row["run"] for row in read_table(tmp_path / "compare" / "runs.tsv")][-1] == "pooled"


def test_a_fold_that_is_missing_is_named(tmp_path):
    make_folds(tmp_path, folds=(0, 2))
    call(tmp_path)
    found = read_json(tmp_path / "compare" / "compare.json")
    assert "The folds 1 of pooled are missing; its cases are of the others." in found["remarks"]
    assert found["pooled"]["pooled"]["classification"]["n"] == 4


def test_repeats_of_folds_are_averaged_case_by_case(tmp_path):
    make_folds(tmp_path)
    other = {run: [margin / 2 for margin in margins] for run, margins in MARGINS.items()}
    make_folds(tmp_path, repeat=1, margins=other)
    call(tmp_path)
    row = read_table(tmp_path / "compare" / "pooled.tsv")[0]
    assert len(row["runs"].split()) == 2
    assert float(row["p_reduced"]) == pytest.approx(np.mean(1 / (1 + np.exp([4.0, 2.0]))), abs=1e-6)


def test_different_grids_have_no_agreement(sweep):
    other = Grid.axis_aligned((46, 55, 2), (4, 4, 12), (-90, -126, 2))
    make_run(sweep / "c", MARGINS["c"], NOISE["c"], "c", "c", grid=other)
    call(sweep)
    found = read_json(sweep / "compare" / "compare.json")
    assert found["remarks"] == ["No agreement of relevance maps: they lie on different grids."]
    assert found["ensemble"]["members"] == 3
    assert not (sweep / "compare" / "agreement.tsv").exists()


def test_a_map_that_is_zero_agrees_with_none(sweep):
    for name in SETS:
        path = Run(sweep / "c").relevance_of(name)
        save(Volume(np.zeros(GRID.shape), GRID.affine), path)
    call(sweep)
    found = {(row["run_a"], row["run_b"]): row for row in read_table(sweep / "compare" / "agreement.tsv")}
    assert found["a", "c"]["correlation_mean"] == found["b", "c"]["overlap_mean"] == "n/a"
    assert float(found["a", "b"]["correlation_mean"]) > 0.5


@pytest.mark.parametrize(("given", "word"), [(["nowhere"], "no such folder"), (["a"], "one run only"), ([], "RUN")])
def test_too_little_to_compare(sweep, given, word):
    with pytest.raises(InputError, match=word):
        call(*(sweep / name for name in given))


def test_folders_of_a_sweep_are_words_of_the_command(sweep, tmp_path):
    for number, name in enumerate("abc", start=1):
        (sweep / name).rename(sweep / f"training.seed={number},network.dropout=0.1")
    answer = datxai("compare", *sorted(sweep.iterdir()), f"out={tmp_path / 'x=1'}", cwd=tmp_path)
    assert "training.seed=2,network.dropout=0.1" in answer.stdout
    assert len(read_table(tmp_path / "x=1" / "runs.tsv")) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sweep", "x=1"]
