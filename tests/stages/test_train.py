"""The stage `train` through the installed command, on a run folder whose earlier stages are written here by hand."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress

import forked
import numpy as np
import pytest
import torch

from benchmarks.case import begin_run
from datxai.cohort.dataset import open_store, write_store
from datxai.explain.attribution import attribute
from datxai.files import read_json, read_table, write_json, write_table
from datxai.model import checkpoint
from datxai.run import Run
from datxai.stages import train
from datxai.volume import Grid

GRID = Grid.axis_aligned((10, 9, 8), (12, 12, 12), (-54, -66, -40), "tiny")
N = {"train": 22, "validation": 9, "test": 4}
EPOCHS = 3
SETTINGS = [
    "data=folder", "data.root=nowhere", "device=cpu", "training.batch_size=8", "training.learning_rate=0.003",
    f"training.max_epochs={EPOCHS}", "training.patience=null", "training.schedule=constant", "network=nazari2021",
    "network.channels=[4,4]", "network.hidden=[6,5]",
    "grid.name=tiny", "grid.shape=[10,9,8]", "grid.spacing=[12,12,12]", "grid.origin=[-54,-66,-40]",
]  # fmt: skip
MANY = "training.max_epochs=60"
LOSS_TOLERANCE = 1e-4  # relative, between one process and two after three epochs of float32
ALONE = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """A run folder in which everything before training is there: volumes whose far half is dimmer where reduced."""
    run = Run(tmp_path_factory.mktemp("split") / "run")
    rng = np.random.default_rng(0)
    cases = [(f"sub-{number:02}", which) for number, which in enumerate(w for w, n in N.items() for _ in range(n))]
    labels = rng.permutation(len(cases)) % 2
    volumes = rng.normal(1.0, 0.3, (len(cases), *GRID.shape)).astype(np.float32)
    volumes[labels == 1, :, :5] *= 0.5
    run.preprocessed.mkdir(parents=True)
    write_store(run.store, [case for case, _ in cases], volumes, GRID)
    write_table(run.split, [{"participant_id": case, "set": which} for case, which in cases], ["participant_id", "set"])
    people = [{"participant_id": case, "label": label} for (case, _), label in zip(cases, labels)]
    write_table(run.participants, people, ["participant_id", "label"])
    begin_run(run, SETTINGS)
    entry = {"fingerprint": "made by hand", "config": {}, "inputs": {}, "outputs": ["split.tsv"]}
    write_json(run.manifest, {"split": entry})
    return run.folder


@pytest.fixture
def folder(split, tmp_path):
    return shutil.copytree(split, tmp_path / "run")


def trained(split, tmp_path_factory, *overrides):
    folder = shutil.copytree(split, tmp_path_factory.mktemp("trained") / "run")
    status, said = datxai(folder, *overrides)
    assert status == 0, said
    return folder


@pytest.fixture(scope="module")
def alone(split, tmp_path_factory):
    """Trained by one process."""
    return trained(split, tmp_path_factory)


@pytest.fixture(scope="module")
def whole(split, tmp_path_factory):
    """Trained for MANY without an interruption."""
    return trained(split, tmp_path_factory, MANY)


def command(folder, *overrides):
    return ["datxai", "train", *SETTINGS, *overrides, f"run={folder}"]


def datxai(folder, *overrides):
    answer = forked.datxai(*command(folder, *overrides)[1:], status=None)
    return answer.returncode, answer.stdout + answer.stderr


def torchrun(folder, *overrides):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    answer = subprocess.run(
        [*launcher, *command(folder, *overrides)], capture_output=True, text=True, timeout=300, env=ALONE
    )
    return answer.returncode, answer.stdout + answer.stderr


def losses(folder):
    rows = read_table(folder / "model" / "history.tsv")
    return [[float(row[name]) for name in ("train_loss", "validation_loss")] for row in rows]


def weights(folder):
    return (folder / "model" / "weights.safetensors").read_bytes()


def test_it_says_how_long_it_will_take_and_predicts_everyone(folder):
    status, said = datxai(folder)
    assert status == 0, said
    assert re.search(r"about .+ an epoch, at most .+ in all; if stopped before, the same command goes on", said)
    assert [row["epoch"] for row in read_table(folder / "model" / "history.tsv")] == ["1", "2", "3"]
    assert len(read_table(folder / "predictions.tsv")) == sum(N.values())
    assert "train" in read_json(folder / "manifest.json")
    before = weights(folder)
    assert "up to date" in datxai(folder, "training.tracking=tensorboard")[1], "how it is watched changes no result"
    assert weights(folder) == before
    status, said = datxai(folder, "training.tracking=none", "training.augmentation.noise=-1")
    assert status == 2
    assert said.count("training.augmentation.noise is -1.0, expected zero (off) or more") == 1
    assert "Traceback" not in said


def test_the_estimate_is_of_the_steps_that_were_timed(monkeypatch):
    clock = iter([0.0, 90.0, 100.0, 112.0, 122.0, 132.0, 142.0])
    monkeypatch.setattr(train.time, "perf_counter", lambda: next(clock))
    said = []
    estimate = train._estimate(n_batches=108, n_validation=27, max_epochs=84, say=said.append)
    for n in [108 * 4, 1, 1, 1, 1, 1, 1]:  # gone on after four epochs
        estimate(n)
    epoch = 10 * (108 + 27 / 3)  # seconds; the median of 12, 10, 10 and 10
    left = epoch * (84 - 4) - 5 * 10
    assert len(said) == 1
    assert f"about {epoch / 60:.1f} min an epoch, at most {left / 3600:.1f} h in all" in said[0]


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_told_to_end_it_leaves_a_usable_run(folder, whole, end):
    heeding = f"import signal, os, sys; signal.signal({int(end)}, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    process = subprocess.Popen(  # a shell's background jobs, this test's run among them, may be deaf to Ctrl-C
        [sys.executable, "-c", heeding, sys.executable, "-m", *command(folder, MANY)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (folder / "model" / "last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(end)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 128 + end
    assert "the same command goes on from" in said
    assert "Traceback" not in said
    assert len(read_table(folder / "model" / "history.tsv")) < 60, "it was to be stopped on its way"
    assert not list((folder / "model").glob(".part-*"))
    assert datxai(folder, MANY)[0] == 0
    assert weights(folder) == weights(whole)
    assert losses(folder) == losses(whole)


@pytest.mark.parametrize(
    ("end", "raised"),
    [(signal.SIGTERM, pytest.raises(SystemExit, match="143")), (signal.SIGINT, pytest.raises(KeyboardInterrupt))],
)
def test_told_to_end_where_exceptions_are_dropped_it_ends_at_the_next_batch(end, raised):
    before = signal.getsignal(end)
    with raised, train._ending_in_order() as heed:
        heed()  # told nothing yet
        with suppress(SystemExit, KeyboardInterrupt):
            signal.raise_signal(end)
            pytest.fail("not raised at once")
        heed()
        pytest.fail("not raised again")
    assert signal.getsignal(end) == before


def test_a_background_job_deaf_to_ctrl_c_stays_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with train._ending_in_order() as heed:
            signal.raise_signal(signal.SIGINT)
            heed()
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    "setting",
    ["training.save_memory=false", "training.save_memory=true", "training.shard=true"],
)
def test_two_processes_train_as_one(folder, alone, setting):
    # Three epochs of batches of 8, 8 and 6: two processes get 4, 4 and 3 each. Dropout is on.
    status, said = torchrun(folder, setting)
    assert status == 0, said
    np.testing.assert_allclose(losses(folder), losses(alone), rtol=LOSS_TOLERANCE)
    assert said.count("epoch  3") == 1, "only the first process speaks"
    for row, other in zip(read_table(folder / "predictions.tsv"), read_table(alone / "predictions.tsv"), strict=True):
        assert float(row["p_reduced"]) == pytest.approx(float(other["p_reduced"]), abs=LOSS_TOLERANCE)


def test_two_processes_go_on_bit_for_bit_and_share_odd_batches(folder, tmp_path):
    whole = shutil.copytree(folder, tmp_path / "whole")
    odd = "training.batch_size=7"  # 7, 7, 7 and 1: the second process gets 3, 3, 3 and none
    assert torchrun(whole, odd, "training.shard=true")[0] == 0
    for epochs in (1, EPOCHS):
        status, said = torchrun(folder, odd, "training.shard=true", f"training.max_epochs={epochs}")
        assert status == 0, said
    assert weights(folder) == weights(whole)
    alone = shutil.copytree(folder, tmp_path / "alone")
    shutil.rmtree(alone / "model")
    assert datxai(alone)[0] == 2, "the record has training.shard=true, which one process cannot do"
    assert datxai(alone, odd, "training.shard=false")[0] == 0
    np.testing.assert_allclose(losses(folder), losses(alone), rtol=LOSS_TOLERANCE)


def test_a_network_that_sees_less_than_all(split, tmp_path_factory):
    folder = trained(split, tmp_path_factory, "network.see=extrastriatal", "network.centre=true")
    run = Run(folder)
    model, config = checkpoint.load(run.model)
    assert (config["network"]["see"], config["network"]["centre"]) == ("extrastriatal", True)
    store = open_store(run.store)
    cases = [row["participant_id"] for row in read_table(run.split) if row["set"] == "train"]
    expected = np.mean([store.volume(case) for case in cases], axis=0, dtype=np.float64)
    np.testing.assert_allclose(model.input.mean, expected, atol=1e-6)
    mask = model.input.mask.numpy()
    for side in (-1, 1):
        assert mask[tuple(np.rint(GRID.mm_to_index((side * 25, 2, 0))).astype(int))] == 0  # the middle of the putamen
    assert 0.5 < mask.mean() < 1.0
    x = torch.from_numpy(store.volume(cases[0]))[None, None]
    y = x + 5 * torch.from_numpy(1 - mask)
    assert torch.equal(model(x), model(y)), "what is hidden makes no difference"
    assert not attribute(model, x, "gradient").relevance[0, 0][mask == 0].any()
