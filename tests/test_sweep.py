"""Sweeps: runs that share what a base run has made."""

import math
import shutil
from itertools import chain
from pathlib import Path

import pytest
from forked import datxai

from datxai.errors import InputError
from datxai.explain.batches import WORTHWHILE
from datxai.files import read_json, read_table
from datxai.run import Run


def make(run, stage, output, config=None, inputs=None):
    with run.recording(stage, config or {}, inputs or {}, [output]) as fingerprint:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(f"made by {run.folder.name}")
    return fingerprint


@pytest.fixture
def base(tmp_path):
    return Run(tmp_path / "base")


@pytest.fixture
def repeat(tmp_path, base):
    """A run that has taken over a stage; its folder is within the base's, as that of a sweep's job."""
    fingerprint = make(base, "split", base.folder / "tables" / "split.tsv")
    run = Run(base.folder / "job")
    run.folder.mkdir()
    assert run.adopt("split", fingerprint, base)
    return run


def test_what_is_taken_over_is_there_and_said_to_be_of_the_base(base, repeat):
    assert (repeat.folder / "tables" / "split.tsv").read_text() == "made by base"
    entry = repeat.entry("split", "train")
    assert entry == base.entry("split", "train") | {"base": ".."}


def test_base_and_run_may_be_moved_together(base, repeat, tmp_path):
    base.folder.rename(tmp_path / "moved")
    moved = Run(tmp_path / "moved" / "job")
    assert moved.holds("split")
    assert (moved.folder / "tables" / "split.tsv").read_text() == "made by base"


def test_what_is_taken_over_is_stale_once_the_base_is_made_again(base, repeat):
    make(base, "split", base.folder / "tables" / "split.tsv", {"seed": 1})
    assert not repeat.holds("split")
    with pytest.raises(InputError, match="datxai split"):
        repeat.entry("split", "train")


def test_making_a_stage_anew_leaves_the_base_as_it_is(base, repeat):
    make(repeat, "split", repeat.folder / "tables" / "split.tsv", {"seed": 1})
    assert (base.folder / "tables" / "split.tsv").read_text() == "made by base"
    assert (repeat.folder / "tables" / "split.tsv").read_text() == "made by job"
    assert "base" not in repeat.entries()["split"]


def test_only_what_was_made_with_the_same_settings_is_taken_over(base, repeat):
    assert not repeat.adopt("split", repeat.fingerprint("split", {"seed": 1}, {}), base)


def test_processes_may_take_over_at_once(base, repeat, monkeypatch):
    """What another has linked just before is linked again, not stumbled over."""
    fingerprint = base.entries()["split"]["fingerprint"]
    symlink_to = Path.symlink_to

    def linked_by_another(link, target):
        monkeypatch.setattr(Path, "symlink_to", symlink_to)
        assert Run(repeat.folder).adopt("split", fingerprint, base)
        symlink_to(link, target)

    monkeypatch.setattr(Path, "symlink_to", linked_by_another)
    assert repeat.adopt("split", fingerprint, base)
    assert (repeat.folder / "tables" / "split.tsv").read_text() == "made by base"
    assert sorted(path.name for path in repeat.folder.iterdir()) == ["manifest.json", "tables"]


def test_files_of_ones_own_are_not_replaced(base, repeat):
    fingerprint = make(base, "train", base.folder / "model" / "weights")
    (repeat.folder / "model").mkdir()
    assert not repeat.adopt("train", fingerprint, base)
    assert "train" not in repeat.entries()


def test_a_run_that_has_taken_over_can_be_a_base_itself(base, repeat, tmp_path):
    third = Run(tmp_path / "third")
    third.folder.mkdir()
    assert third.adopt("split", repeat.entries()["split"]["fingerprint"], repeat)
    assert (third.folder / "tables" / "split.tsv").read_text() == "made by base"
    make(base, "split", base.folder / "tables" / "split.tsv", {"seed": 1})
    assert not third.holds("split")


@pytest.fixture(scope="module")
def swept(finished, tmp_path_factory):
    """A base run's folder with a sweep over initial weights in it, its state before the sweep, and what was said."""
    folder = shutil.copytree(finished[0], tmp_path_factory.mktemp("runs") / "base")
    before = state(folder)
    said = datxai("-m", f"run={folder}", "training.seed=0,1", cwd=folder.parent).stdout
    return folder, before, said


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """The folder of a run that ends with the preprocessing of a few scans, which are simulated as volumes."""
    folder = tmp_path_factory.mktemp("few") / "run"
    settings = ["data.n_subjects=4", "data.raw=false", "grid=slab_12mm", "n_jobs=1"]
    for stage in ("simulate", "preprocess"):
        datxai(stage, *settings, f"run={folder}")
    return folder


def state(folder):
    """Time of the last change of each file of a run."""
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    of_others = (".hydra", "multirun.yaml", "training.seed", "composite")
    return {name: (folder / name).stat().st_mtime_ns for name in names if not name.parts[0].startswith(of_others)}


def test_repeats_share_all_but_what_differs(swept):
    folder, before, said = swept
    assert said.count("preprocess  taken over") == 2
    assert said.count("train       taken over") == 1  # the base has seed 0
    job = folder / "training.seed=1"
    early = ("simulate", "preprocess", "split")
    made_before = {name.split("/")[0] for stage in early for name in Run(folder).entries()[stage]["outputs"]}
    assert {path.name for path in job.iterdir() if path.is_symlink()} == made_before
    assert read_table(job / "split.tsv") == read_table(folder / "split.tsv")
    assert read_table(job / "predictions.tsv") != read_table(folder / "predictions.tsv")
    assert (job / "report.html").is_file()
    assert state(folder) == before
    assert not (folder / "training.seed=0" / "model").resolve().is_relative_to(folder / "training.seed=0")


def test_a_repeat_is_the_run_that_it_would_be_by_itself(swept, tmp_path):
    alone = tmp_path / "alone"
    shutil.copytree(swept[0], alone, ignore=shutil.ignore_patterns("training.seed=*", "model", "predictions.tsv"))
    datxai("train", f"run={alone}", "training.seed=1", cwd=tmp_path)
    repeat = swept[0] / "training.seed=1"
    for name in ("model/weights.safetensors", "predictions.tsv"):
        assert (alone / name).read_bytes() == (repeat / name).read_bytes()


def test_a_stage_of_a_repeat_made_anew_leaves_the_base_alone(swept, tmp_path):
    base = shutil.copytree(swept[0], tmp_path / "base", symlinks=True)
    before = state(base)
    job = base / "training.seed=0"  # its relevance maps are those of the base
    datxai("explain", f"run={job}", "composite=epsilon", cwd=tmp_path)
    assert state(base) == before
    records = [read_json(next((folder / "relevance").glob("*.json"))) for folder in (base, job)]
    assert [record["method"]["composite"] for record in records] == ["nazari2021", "epsilon"]


def test_a_sweep_over_explanations_trains_nothing(swept, tmp_path):
    base = shutil.copytree(swept[0], tmp_path / "base", ignore=shutil.ignore_patterns("training.seed=*"))
    said = datxai("explain", "-m", f"base={base}", "composite=epsilon,gradient", cwd=tmp_path).stdout
    assert "epoch " not in said
    for name in ("epsilon", "gradient"):
        job = base / f"composite={name}"
        assert read_json(next((job / "relevance").glob("*.json")))["method"]["composite"] == name
        assert (job / "model").is_symlink()


def test_evaluation_holds_the_calibration_of_the_predictions(swept):
    metrics = read_json(swept[0] / "metrics.json")["calibration"]
    test = [row for row in read_table(swept[0] / "predictions.tsv") if row["set"] == "test"]
    p = [float(row["p_reduced"]) if row["label"] == "1" else 1 - float(row["p_reduced"]) for row in test]
    assert metrics["raw"]["nll"] == pytest.approx(-sum(map(math.log, p)) / len(p), rel=1e-5)
    assert metrics["raw"]["brier"] == pytest.approx(sum((1 - value) ** 2 for value in p) / len(p), rel=1e-5)
    assert metrics["n"] == 6
    assert (swept[0] / "figures" / "reliability.pdf").is_file()


def test_compare_takes_the_folder_of_the_sweep(swept, tmp_path):
    said = datxai("compare", swept[0], f"out={tmp_path / 'out'}", cwd=tmp_path).stdout
    assert "training.seed=0: left out, it is the same" in said
    assert [row["run"] for row in read_table(tmp_path / "out" / "runs.tsv")] == [
        "base", "training.seed=1", "ensemble",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "run=new", "base={base}", "grid=mni_4mm"], "other settings"),
        (["train", "run=new", "base=nowhere"], "base=nowhere"),
        (["base={base}", "training.seed=5"], "run=RUN_DIR"),
        (["train", "-m", "run=new", "seed=1,2"], "`datxai run=new`"),
    ],
)
def test_a_base_that_does_not_fit_gets_one_sentence(swept, tmp_path, arguments, words):
    answer = datxai(*(word.format(base=swept[0]) for word in arguments), cwd=tmp_path, status=2)
    assert words in answer.stdout + answer.stderr
    assert "Traceback" not in answer.stderr


def test_the_seed_of_a_sweep_from_training_on_leaves_the_cohort_alone(swept, tmp_path):
    base = shutil.copytree(swept[0], tmp_path / "base", ignore=shutil.ignore_patterns("training.seed=*"))
    said = datxai("train", "-m", f"run={base}", "seed=0,1", cwd=tmp_path).stdout
    assert [line for line in said.splitlines() if line.startswith(str(base))] == [
        f"{base}/training.seed=0", f"{base}/training.seed=1",
    ]  # fmt: skip
    weights = [folder / "training.seed=1" / "model" / "weights.safetensors" for folder in (swept[0], base)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert (base / "training.seed=0" / "model").is_symlink()


def test_a_job_that_cannot_go_on_leaves_the_others_to_be_made(swept, tmp_path):
    base = shutil.copytree(swept[0], tmp_path / "base", ignore=shutil.ignore_patterns("training.seed=*"))
    answer = datxai("train", "-m", f"run={base}", "training.precision=half,bf16", cwd=tmp_path, status=2)
    assert f"datxai: {base}/training.precision=half: training.precision is 'half'" in answer.stderr
    assert "Traceback" not in answer.stdout + answer.stderr
    assert (base / "training.precision=bf16" / "predictions.tsv").is_file()


LAUNCHERS = {"joblib": ["hydra.launcher.n_jobs=2"], "submitit_local": [], "ray": []}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_jobs_in_parallel_make_what_they_make_in_turn(swept, tmp_path, launcher):
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher")
    base = shutil.copytree(swept[0], tmp_path / "base", ignore=shutil.ignore_patterns("training.seed=*"))
    choice = [f"hydra/launcher={launcher}", *LAUNCHERS[launcher]]
    datxai("train", "-m", f"run={base}", "training.seed=1,2", *choice, cwd=tmp_path)
    weights = [folder / "training.seed=1" / "model" / "weights.safetensors" for folder in (swept[0], base)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert (base / "training.seed=2" / "predictions.tsv").is_file()


@pytest.mark.parametrize("stage", ["preprocess", "explain"])
def test_shards_and_a_last_call_make_what_one_call_makes(few, swept, tmp_path, stage):
    whole = few if stage == "preprocess" else swept[0]
    folder = shutil.copytree(whole, tmp_path / "run", ignore=shutil.ignore_patterns("training.seed=*"))
    place = {"preprocess": "preprocessed", "explain": "relevance"}[stage]
    expected = {path.name: path.read_bytes() for path in (folder / place).glob("*.nii.gz")}
    shutil.rmtree(folder / place)
    datxai(stage, "-m", "shard=0/3,2/3", f"run={folder}", cwd=tmp_path)
    names = sorted(expected)
    made = {path.name: path.stat().st_mtime_ns for path in (folder / place).glob("*.nii.gz")}
    size = {"preprocess": 1, "explain": WORTHWHILE["cpu"]}[stage]
    parts = [names[start : start + size] for start in range(0, len(names), size)]
    assert sorted(made) == sorted(chain(*parts[0::3], *parts[2::3]))
    assert not Run(folder).holds(stage)
    datxai(stage, f"run={folder}", cwd=tmp_path)
    assert Run(folder).holds(stage)
    assert {name: (folder / place / name).stat().st_mtime_ns for name in made} == made
    assert {name: (folder / place / name).read_bytes() for name in names} == expected


@pytest.mark.parametrize("arguments", [["explain", "shard=2/2"], ["explain", "shard=1"], ["train", "shard=0/2"]])
def test_a_shard_that_cannot_be(swept, tmp_path, arguments):
    answer = datxai(*arguments, f"run={swept[0]}", "target=normal", cwd=tmp_path, status=2)
    assert "shard=" in answer.stderr
