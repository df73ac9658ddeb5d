"""Searches for settings: what Optuna is asked for, what is trained, and what is there after a kill."""

import os
import signal
import subprocess
import sys
import time

import pytest
import yaml
from forked import datxai

from datxai.commands.search.space import read_space
from datxai.config import Config, Network, Search
from datxai.errors import InputError
from datxai.files import read_table
from datxai.run import Run

optuna = pytest.importorskip("optuna")

SPACE = {"training.learning_rate": "log(1e-5, 1e-3)", "network.dropout": "choice(0.1, 0.4)"}
QUICK = ("search=custom", "search.space={training.learning_rate: 'log(1e-5, 1e-3)'}", "search.unpruned=1",
         "search.name=quick")  # fmt: skip


def read(space, **options):
    return read_space(Search(space=space, **options), Config(run="r", network=Network(channels=[4])))


def test_spaces_become_distributions():
    found = read({
        "training.learning_rate": "log(1e-5, 1e-2)",
        "network.dropout": "uniform(0, 0.5)",
        "network.kernel_size": "integer(1, 5)",
        "training.optimiser": "choice(adam, sgd)",
        "training.clip_norm": "choice(null, 1, 2.5)",
        "training.batch_size": None,
    })  # fmt: skip
    assert found == {
        "training.learning_rate": optuna.distributions.FloatDistribution(1e-5, 1e-2, log=True),
        "network.dropout": optuna.distributions.FloatDistribution(0, 0.5),
        "network.kernel_size": optuna.distributions.IntDistribution(1, 5),
        "training.optimiser": optuna.distributions.CategoricalDistribution(["adam", "sgd"]),
        "training.clip_norm": optuna.distributions.CategoricalDistribution([None, 1, 2.5]),
    }


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"training.learning_rat": "log(1, 2)"}, "no setting training.learning_rat; did you mean training.learning_r"),
        ({"split.candidates": "integer(1, 2)"}, "split.candidates changes no training, expected settings of grid, "),
        ({"network.dropout": "normal(0, 1)"}, r"network.dropout is 'normal\(0, 1\)', expected uniform"),
        ({"network.dropout": "uniform(1, 0)"}, "with LOW below HIGH"),
        ({"network.dropout": "log(0, 1)"}, "above 0 for log"),
        ({"network.dropout": "uniform(a, b)"}, "expected uniform"),
        ({"network.dropout": "choice()"}, "expected uniform"),
        ({"network.dropout": None}, "search.space is empty"),
        ("all", "search.space is all, expected settings with spaces"),
    ],
)
def test_spaces_that_are_none(space, said):
    with pytest.raises(InputError, match=said):
        read(space)


@pytest.mark.parametrize(
    ("option", "value"), [("objective", "test"), ("pruning", "all"), ("trials", 0), ("processes", 0), ("name", "../x")]
)
def test_options_that_are_none(option, value):
    with pytest.raises(InputError, match=f"search.{option}"):
        read(SPACE, **{option: value})


def test_an_optuna_that_is_too_old_is_named(monkeypatch):
    monkeypatch.setattr(optuna, "__version__", "2.10.1")
    with pytest.raises(InputError, match=r"needs Optuna 4 or newer, here is 2\.10\.1"):
        read(SPACE)


def test_a_search_needs_a_run_with_a_split(tmp_path):
    answer = datxai("search", f"run={tmp_path / 'none'}", cwd=tmp_path, status=2)
    assert "no run folder of datxai there" in answer.stderr


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A small cohort of slabs, not trained yet."""
    folder = tmp_path_factory.mktemp("search")
    small = ("data.n_subjects=24", "data.raw=false", "grid=slab_12mm", "network=nazari2021", "network.channels=[4,4]",
             "split.sizes=[0.5,0.25,0.25]", "training.max_epochs=2", "n_jobs=1")  # fmt: skip
    for stage in ("simulate", "preprocess", "split"):
        datxai(stage, "run=base", *(small if stage == "simulate" else ()), cwd=folder)
    return folder


def read_trials(folder, name="quick"):
    return read_table(folder / "base" / "search" / name / "trials.tsv")


def test_a_search_ends_with_its_best_as_an_experiment(base):
    answer = datxai("search", "run=base", *QUICK, "search.trials=3", cwd=base)
    place = base / "base" / "search" / "quick"
    rows = read_trials(base)
    assert [row["trial"] for row in rows] == ["0", "1", "2"]
    whole = [row for row in rows if row["state"] == "finished"]
    best = min(whole, key=lambda row: float(row["validation_loss"]))
    content = yaml.safe_load((place / "experiment" / "best.yaml").read_text())
    assert content["training"]["learning_rate"] == pytest.approx(float(best["training.learning_rate"]), rel=1e-4)
    assert f"The best of 3 trials, trial {best['trial']}" in answer.stdout
    assert {path.name for path in place.iterdir()} == {
        "experiment", "search.pdf", "search.png", "study.db", "trials", "trials.tsv",
    }  # fmt: skip
    (kept,) = (place / "trials").iterdir()
    history = read_table(Run(kept).model / "history.tsv")
    loss = next(row["validation_loss"] for row in reversed(history) if row["kept"] == "1")
    assert float(best["validation_loss"]) == pytest.approx(float(loss), rel=1e-4)

    datxai("train", "run=again", "base=base", "experiment=best", "--config-dir", str(place), cwd=base)
    assert read_table(base / "again" / "model" / "history.tsv")[-1]["validation_loss"] == history[-1]["validation_loss"]


def test_the_same_command_goes_on_and_a_larger_number_goes_further(base):
    datxai("search", "run=base", *QUICK, "search.trials=3", cwd=base)
    before = read_trials(base)
    answer = datxai("search", "run=base", *QUICK, "search.trials=4", cwd=base)
    after = read_trials(base)
    assert after[:3] == before and len(after) == 4
    assert "3 trials are done already" in answer.stdout + answer.stderr


def test_another_space_is_another_search(base):
    datxai("search", "run=base", *QUICK, "search.trials=3", cwd=base)
    other = [word.replace("1e-5", "1e-4") for word in QUICK]
    answer = datxai("search", "run=base", *other, cwd=base, status=2)
    assert "is a search with another space" in answer.stderr and "choose another search.name" in answer.stderr


def test_a_search_that_was_killed_while_a_trial_was_proposed_proposes_another(base):
    words = [*QUICK[:3], "search.name=unproposed"]
    datxai("search", "run=base", *words, "search.trials=1", cwd=base)
    storage = f"sqlite:///{base / 'base' / 'search' / 'unproposed' / 'study.db'}"
    optuna.load_study(study_name="unproposed", storage=storage).ask()
    datxai("search", "run=base", *words, "search.trials=3", cwd=base)
    assert len({row["training.learning_rate"] for row in read_trials(base, "unproposed")}) == 3


def test_a_search_that_was_killed_loses_no_trial_and_makes_none_twice(base):
    words = ["search", "run=base", *QUICK[:3], "search.name=killed", "search.trials=4", "search.processes=2"]
    command = [sys.executable, "-m", "datxai", *words]
    process = subprocess.Popen(
        command, cwd=base, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    storage = f"sqlite:///{base / 'base' / 'search' / 'killed' / 'study.db'}"
    try:
        deadline = time.monotonic() + 120
        while not (done := _count(storage)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert done
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    datxai(*words, cwd=base)
    rows = read_trials(base, "killed")
    assert len(rows) == 4
    assert len({row["training.learning_rate"] for row in rows}) == 4
    study = optuna.load_study(study_name="killed", storage=storage)
    lost = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.FAIL]
    assert all(any(other.params == trial.params for other in study.trials if other is not trial) for trial in lost)


def _count(storage):
    try:
        study = optuna.load_study(study_name="killed", storage=storage)
    except Exception:  # not there yet
        return 0
    return sum(trial.state.is_finished() for trial in study.trials)


def test_a_database_that_is_none(base):
    place = base / "base" / "search" / "broken"
    place.mkdir(parents=True)
    (place / "study.db").write_text("no database" * 100)
    answer = datxai("search", "run=base", *QUICK[:3], "search.name=broken", cwd=base, status=2)
    assert "study.db: " in answer.stderr and "begin the search anew" in answer.stderr


def test_trials_that_cannot_be_made_end_the_search(base):
    space = "search.space={training.batch_size: 'choice(0, -1, -2)'}"
    words = ("run=base", "search=custom", space, "search.name=none", "search.trials=5")
    answer = datxai("search", *words, cwd=base, status=2)
    assert "3 trials in a row ended without a result, the last with: training.batch_size is" in answer.stderr
