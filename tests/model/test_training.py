import copy
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections import namedtuple
from dataclasses import fields
from typing import Any, Literal, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from datxai.config import MISSING, Training
from datxai.errors import InputError
from datxai.files import read_table
from datxai.model import checkpoint, factored, prediction, training
from datxai.model.augmentation import Augmenter
from datxai.model.network import build
from datxai.model.training import Recipe

SHAPE = (10, 9, 1)
N_TRAIN, BATCH = 22, 8  # batches of 8, 8 and 6
N_BATCHES = 3
EPOCHS, LR = 4, 1e-3
FILES = ["history.tsv", "last.ckpt", "weights.safetensors"]
LOSS_TOLERANCE = 1e-5  # of float32 against float64, relative
BF16_TOLERANCE = 0.02  # of logits, relative to their largest
WEIGHT_TOLERANCE = 1e-2  # of trained weights, relative to what training changed: Adam divides small by small
BATCH_TOLERANCE = 1e-6  # of logits, between batch sizes


def cases(n, seed, flip=False):
    """Volumes whose far half is dimmer where the label is 1."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(n) % 2
    volumes = rng.normal(1.0, 0.3, (n, 1, *SHAPE)).astype(np.float32)
    volumes[labels == 1, :, :5] *= 0.5
    return list(zip(torch.from_numpy(volumes), (1 - labels if flip else labels).tolist()))


TRAIN, VALIDATION = cases(N_TRAIN, 0), cases(10, 1)


def network(dropout=0.2):
    return build(SHAPE, channels=(4, 4), hidden=(6, 5), dropout=dropout, seed=6)


def train(folder, model=None, train_set=TRAIN, validation_set=VALIDATION, **arguments):
    defaults = {"fingerprint": "a", "batch_size": BATCH, "learning_rate": LR, "max_epochs": EPOCHS, "seed": 7}
    arguments = {**defaults, **arguments}
    recipe = Recipe(**{field.name: arguments.pop(field.name) for field in fields(Recipe) if field.name in arguments})
    return training.train(model or network(), train_set, validation_set, recipe, folder=folder, **arguments)


def test_the_settings_of_a_training_are_those_of_its_recipe():
    """Field by field, with the same defaults; augmentation and tracking are no part of it, and the settings give two
    numbers no default, since a file of settings does."""
    schema = {field.name: field for field in fields(Training) if field.name not in ("augmentation", "tracking")}
    recipe = {field.name: field for field in fields(Recipe)}
    assert list(schema) == list(recipe)
    kinds, written = get_type_hints(Recipe), get_type_hints(Training)
    for name, own in recipe.items():
        kind = str if get_origin(kinds[name]) is Literal else kinds[name]
        kind = Any if name == "class_weights" else kind  # OmegaConf knows no union of a word and numbers
        assert written[name] == kind, name
        assert schema[name].default in (own.default, MISSING), name
    assert {name for name in schema if schema[name].default == MISSING} == {"max_epochs", "seed"}


def outcome(folder):
    """All that must not depend on interruptions."""
    state = torch.load(folder / "last.ckpt", weights_only=True)
    history = [{name: value for name, value in row.items() if name != "seconds"} for row in state["history"]]
    tensors = [state["model"], *(each for kept in state["optimisers"] for each in kept["state"].values())]
    return (
        (folder / "weights.safetensors").read_bytes(),
        history,
        [{name: tensor.numpy().tobytes() for name, tensor in each.items()} for each in tensors],
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train(folder)
    torch.set_num_threads(threads)
    return outcome(folder)


@pytest.fixture
def every_epoch(monkeypatch):
    """The state is written after every epoch, whatever that costs."""
    monkeypatch.setattr(training, "STATE_SHARE", float("inf"))


# --- the numbers ------------------------------------------------------------------------------------------


def test_training_is_adam_on_the_cross_entropy(tmp_path):
    model = network(dropout=0.0)
    oracle = copy.deepcopy(model).double()
    history = train(tmp_path, model)
    m, v = ([torch.zeros_like(p) for p in oracle.parameters()] for _ in range(2))
    t = 0
    for row in history:
        order = np.random.default_rng([7, row["epoch"]]).permutation(N_TRAIN)
        losses, right = [], []
        for start in range(0, N_TRAIN, BATCH):
            x = torch.stack([TRAIN[i][0] for i in order[start : start + BATCH]]).double()
            y = torch.tensor([TRAIN[i][1] for i in order[start : start + BATCH]])
            logits = oracle(x)
            each = logits.exp().sum(1).log() - logits[range(len(y)), y]
            gradients = torch.autograd.grad(each.mean(), list(oracle.parameters()))
            t += 1
            with torch.no_grad():  # Kingma & Ba 2015, algorithm 1
                for p, g, first, second in zip(oracle.parameters(), gradients, m, v):
                    first.mul_(0.9).add_(0.1 * g)
                    second.mul_(0.999).add_(0.001 * g**2)
                    p -= LR * (first / (1 - 0.9**t)) / ((second / (1 - 0.999**t)).sqrt() + 1e-8)
            losses += each.tolist()
            right += (logits.argmax(1) == y).tolist()
        assert row["train_loss"] == pytest.approx(np.mean(losses), rel=LOSS_TOLERANCE)
        assert row["train_accuracy"] == np.mean(right)
        loss, accuracy = evaluate(oracle)
        assert row["validation_loss"] == pytest.approx(loss, rel=LOSS_TOLERANCE)
        assert row["validation_accuracy"] == accuracy


def evaluate(model, dataset=VALIDATION):
    """Mean cross entropy and accuracy, in float64."""
    logits = model.double().eval()(torch.stack([x for x, _ in dataset]).double())
    labels = torch.tensor([y for _, y in dataset])
    return F.cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).double().mean().item()


def plain_loop(model, precision="float32", epochs=EPOCHS):
    """The loop of every tutorial, over the same batches: its loss at each epoch."""
    optimiser, losses = torch.optim.Adam(model.parameters(), lr=LR), []
    model.train()
    for epoch in range(1, epochs + 1):
        order = np.random.default_rng([7, epoch]).permutation(N_TRAIN)
        total = 0.0
        for start in range(0, N_TRAIN, BATCH):
            batch = [TRAIN[i] for i in order[start : start + BATCH]]
            optimiser.zero_grad()
            loss = F.cross_entropy(model(torch.stack([x for x, _ in batch])), torch.tensor([y for _, y in batch]))
            loss.backward()
            optimiser.step()
            total += loss.item() * len(batch)
        losses.append(total / N_TRAIN)
    return losses


@pytest.mark.parametrize(
    ("choice", "tolerance"), [({}, 1e-5), ({"save_memory": True}, 1e-5), ({"precision": "bf16"}, BF16_TOLERANCE)]
)
def test_the_loss_curve_is_that_of_a_plain_loop(tmp_path, choice, tolerance):
    history = train(tmp_path, network(dropout=0.0), max_epochs=12, **choice)
    plain = plain_loop(network(dropout=0.0), epochs=12)
    assert plain[-1] < 0.8 * plain[0]
    assert [row["train_loss"] for row in history] == pytest.approx(plain, rel=tolerance)


def test_saving_memory_gives_the_same_weights_and_leaves_the_model_as_it_was(tmp_path):
    models = {save: network() for save in (False, True)}
    for save, model in models.items():
        train(tmp_path / str(save), model, save_memory=save)  # with dropout
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert not model.fc1._forward_hooks
    for name, plain in models[False].named_parameters():
        change = (plain - dict(network().named_parameters())[name]).abs().max()
        assert (models[True].get_parameter(name) - plain).abs().max() < WEIGHT_TOLERANCE * change, name


def test_the_large_gradient_is_never_there(tmp_path, monkeypatch):
    monkeypatch.setattr(factored, "ROWS", 2)
    model, sizes = network(), []
    step = torch.optim.Adam.step

    def noting(self):
        sizes.extend(p.grad.numel() for group in self.param_groups for p in group["params"] if p.grad is not None)
        step(self)

    monkeypatch.setattr(torch.optim.Adam, "step", noting)
    train(tmp_path, model, save_memory=True, max_epochs=1)
    units, features = model.fc1.weight.shape
    assert model.fc1.weight.grad is None
    assert sizes.count(2 * features) == N_BATCHES * units // 2
    assert units * features not in sizes


def test_augmentation_varies_the_training_cases_alone(tmp_path, monkeypatch):
    augmentation, seen = Augmenter((12.0, 12.0, 12.0), translation_mm=30.0), []
    vary = Augmenter.vary
    monkeypatch.setattr(Augmenter, "vary", lambda self, x, seed: (seen.append(seed), vary(self, x, seed))[1])
    train(tmp_path / "varied", augmenter=augmentation, max_epochs=2)
    assert sorted(seen) == [[7, epoch, case] for epoch in (1, 2) for case in range(N_TRAIN)]
    train(tmp_path / "off", augmenter=Augmenter((12.0, 12.0, 12.0)), max_epochs=2)
    train(tmp_path / "none", max_epochs=2)
    assert outcome(tmp_path / "off")[0] == outcome(tmp_path / "none")[0] != outcome(tmp_path / "varied")[0]


def test_it_learns(tmp_path):
    history = train(tmp_path, max_epochs=40, learning_rate=3e-3)
    assert history[0]["train_loss"] > 0.5
    assert history[-1]["validation_accuracy"] == 1.0


def test_the_best_epoch_is_kept_and_patience_ends(tmp_path):
    misleading = cases(10, 1, flip=True)  # the better the training, the worse the validation
    history = train(tmp_path, validation_set=misleading, learning_rate=3e-3, max_epochs=60, patience=3)
    losses = [row["validation_loss"] for row in history]
    best = int(np.argmin(losses))
    assert len(history) == best + 1 + 3 < 60
    model = network()
    checkpoint.load_weights(model, tmp_path / "weights.safetensors")
    assert evaluate(model, misleading)[0] == pytest.approx(losses[best], rel=LOSS_TOLERANCE)


def test_callbacks_history_and_files(tmp_path):
    batches, rows = [], []
    history = train(tmp_path, on_batch=batches.append, on_epoch=rows.append)
    assert batches == [1] * EPOCHS * N_BATCHES
    assert rows == history
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]
    table = read_table(tmp_path / "history.tsv")
    assert list(table[0]) == list(training.COLUMNS)
    for written, row in zip(table, history, strict=True):
        assert [float(written[name]) for name in written] == pytest.approx([row[name] for name in written])
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES


def test_the_seed_decides_and_the_global_random_state_stays(tmp_path, uninterrupted):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    train(tmp_path / "again")
    assert torch.equal(torch.get_rng_state(), state)
    train(tmp_path / "other", seed=8)
    assert outcome(tmp_path / "again") == uninterrupted
    assert outcome(tmp_path / "other")[0] != uninterrupted[0]


def test_bf16_is_for_the_convolutions(tmp_path):
    model = network(dropout=0.0)
    seen = {}
    for name, module in model.named_children():
        module.register_forward_hook(lambda _, x, y, name=name: seen.update({name: (x[0].dtype, y.dtype)}))
    x = torch.stack([x for x, _ in TRAIN])
    logits = prediction.Forward(model, "bf16")(x)
    assert seen["conv2"][1] == torch.bfloat16
    assert {seen[name] for name in ("fc1", "fc2", "output")} == {(torch.float32, torch.float32)}
    exact = network(dropout=0.0).double()(x.double())
    error = ((logits - exact).abs().max() / exact.abs().max()).item()
    assert 1e-6 < error < BF16_TOLERANCE
    history = train(tmp_path, model, precision="bf16")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert history[-1]["train_loss"] < history[0]["train_loss"]


# --- going on after a kill --------------------------------------------------------------------------------


class Killed(BaseException):
    pass


def call_and_die(monkeypatch, owner, name, call):
    """The ``call``-th call of a function does not come back: half of its work is done."""
    function, calls = getattr(owner, name), []

    def dying(*arguments, **keywords):
        calls.append(name)
        function(*arguments, **keywords)
        if len(calls) == call:
            raise Killed

    monkeypatch.setattr(owner, name, dying)


@pytest.mark.parametrize(
    ("owner", "name", "call", "done"),
    [
        (torch.Tensor, "backward", 2, 0),  # in the first epoch: no state yet
        (torch.Tensor, "backward", 2 * N_BATCHES + 2, 2),  # in the third epoch
        (training, "save_weights", 2, 1),  # better weights on disk, the state still before them
        (training, "write_table", 3, 2),
        (torch, "save", 3, 2),  # the state written beside the old one, not yet in its place
        (training, "write_state", 3, 3),
        (training, "write_state", EPOCHS, EPOCHS),  # finished
    ],
)
def test_killed_and_started_again(tmp_path, monkeypatch, every_epoch, uninterrupted, owner, name, call, done):
    with monkeypatch.context() as context:
        call_and_die(context, owner, name, call)
        with pytest.raises(Killed):
            train(tmp_path)
    batches = []
    train(tmp_path, on_batch=batches.append)
    assert batches == [done * N_BATCHES] * bool(done) + [1] * (EPOCHS - done) * N_BATCHES
    assert outcome(tmp_path) == uninterrupted
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES


@pytest.mark.parametrize(
    "choice", [{"save_memory": True}, {"augmenter": Augmenter((12.0, 12.0, 12.0), 18, 0.1, 3, 4)}]
)
def test_going_on_is_bit_for_bit_with(tmp_path, every_epoch, choice):
    train(tmp_path / "whole", **choice)
    train(tmp_path / "parts", max_epochs=2, **choice)
    train(tmp_path / "parts", **choice)
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


def test_a_full_disk_is_said_and_the_state_before_is_whole(tmp_path, every_epoch, uninterrupted):
    train(tmp_path, max_epochs=2)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before["last.ckpt"]) // 2, hard))  # files may not grow beyond
    try:
        with pytest.raises(InputError, match=r"state .* cannot be written \(.*File too large.*\); free space"):
            train(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "last.ckpt").read_bytes() == before["last.ckpt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    train(tmp_path)
    assert outcome(tmp_path) == uninterrupted


def test_kill_minus_nine_at_random_moments(tmp_path):
    """Epochs of milliseconds, so most moments are in the middle of a file; what was half-written is swept up."""
    epochs, state = 200, tmp_path / "killed" / "last.ckpt"
    program = f"""
import importlib.util
spec = importlib.util.spec_from_file_location("these_tests", {__file__!r})
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)
tests.torch.set_num_threads(1)
tests.training.STATE_SHARE = float("inf")
tests.train({str(state.parent)!r}, max_epochs={epochs})
"""
    waits = np.random.default_rng(int(time.time())).uniform(0, 0.05, 3)
    for wait in waits:
        written = state.stat().st_mtime_ns if state.exists() else None
        process = subprocess.Popen([sys.executable, "-c", program])
        while not state.exists() or state.stat().st_mtime_ns == written:
            assert process.poll() is None
            time.sleep(0.001)
        time.sleep(wait)
        process.kill()
        process.wait()
    done = len(torch.load(state, weights_only=True)["history"])
    assert 3 <= done < epochs, f"killed {waits} s after a state was written"
    for folder in ("killed", "whole"):
        train(tmp_path / folder, max_epochs=epochs)
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
    assert sorted(path.name for path in state.parent.iterdir()) == FILES


def test_kill_minus_nine(tmp_path, uninterrupted):
    program = f"""
import importlib.util, os, signal
spec = importlib.util.spec_from_file_location("these_tests", {__file__!r})
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)
tests.torch.set_num_threads(1)
steps = []
def on_batch(n):
    steps.append(n)
    if len(steps) == 2 * tests.N_BATCHES + 1:
        os.kill(os.getpid(), signal.SIGKILL)
tests.train({str(tmp_path)!r}, on_batch=on_batch)
"""
    ended = subprocess.run([sys.executable, "-c", program], cwd=os.getcwd(), timeout=120, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert (tmp_path / "last.ckpt").exists()
    train(tmp_path)
    assert outcome(tmp_path) == uninterrupted


def test_more_epochs_go_on_fewer_begin_anew(tmp_path, uninterrupted):
    train(tmp_path, max_epochs=2)
    batches = []
    train(tmp_path, on_batch=batches.append)
    assert batches[0] == 2 * N_BATCHES
    assert outcome(tmp_path) == uninterrupted
    batches.clear()
    assert len(train(tmp_path, max_epochs=3, on_batch=batches.append)) == 3
    assert batches == [1] * 3 * N_BATCHES


@pytest.mark.parametrize(
    "change", [{"fingerprint": "b"}, {"learning_rate": 1e-4}, {"seed": 8}, {"batch_size": 7}, {"patience": 9}]
)
def test_another_training_begins_anew(tmp_path, change):
    train(tmp_path, max_epochs=2)
    batches = []
    train(tmp_path, max_epochs=2, on_batch=batches.append, **change)
    assert set(batches) == {1}
    train(tmp_path / "fresh", max_epochs=2, **change)
    assert outcome(tmp_path) == outcome(tmp_path / "fresh")


def test_a_costly_state_is_written_rarely(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "STATE_SHARE", 1e-9)
    seen = []
    monkeypatch.setattr(training, "write_state", lambda state, _: seen.append(len(state["history"])))
    train(tmp_path)
    assert seen == [1, EPOCHS]


# --- prediction -------------------------------------------------------------------------------------------


def test_prediction_is_the_forward_pass_of_each_case(one_thread):
    model = network(dropout=0.9).train()
    logits = prediction.predict(model, TRAIN, batch_size=5)
    assert logits.shape == (N_TRAIN, 2)
    assert logits.dtype == np.float32
    assert model.training
    assert model.dropout.training
    assert np.array_equal(prediction.predict(model, TRAIN, batch_size=5), logits)
    model.eval()
    each = torch.cat([model(x[None]) for x, _ in TRAIN]).detach().numpy()
    assert np.abs(each - logits).max() < BATCH_TOLERANCE
    prediction.predict(model, TRAIN[:1])
    assert not model.training


# --- what cannot be trained -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"train_set": []}, "training set is empty"),
        ({"validation_set": []}, "validation set is empty"),
        ({"shard": True}, "training.shard=true: there is one process only, expected several; .* `torchrun"),
        ({"shard": True, "save_memory": True}, "training.save_memory and training.shard exclude each other"),
        ({"precision": "float16"}, "training.precision is 'float16', expected one of float32, bf16"),
        ({"learning_rate": 1e38}, "training loss of epoch 1, batch 2, is nan.*learning_rate"),
        (
            {"validation_set": [(torch.full((1, *SHAPE), torch.nan), 0)]},
            "validation loss of epoch 1 is nan.*intensity scaling",
        ),
    ],
)
def test_what_cannot_be_trained_is_said(tmp_path, arguments, words):
    with pytest.raises(InputError, match=words):
        train(tmp_path, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_before_training(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    n_parameters = sum(p.numel() for p in network().parameters())
    enough = 2 * 4 * 4 * n_parameters  # two of each, weights and the three parts of a state, float32
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, enough - 1))
    with pytest.raises(InputError, match=r"GB are free, training needs .* free space"):
        train(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, enough))
    train(tmp_path, max_epochs=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, enough - 1))
    train(tmp_path, max_epochs=2)  # what stands there will be replaced


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def test_a_damaged_or_harmful_state_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train("run", max_epochs=1)
    state = tmp_path / "run" / "last.ckpt"
    content = state.read_bytes()
    for keep in (0, 100, len(content) // 2):
        state.write_bytes(content[:keep])
        with pytest.raises(InputError, match=r"last\.ckpt: cannot be read .* delete it"):
            train("run")
    state.write_bytes(content)
    with zipfile.ZipFile(state) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
        begin = content.index(archive.read(largest))
    for place in (begin, begin + largest.file_size // 2):  # bits that PyTorch itself would take as they are
        state.write_bytes(content[:place] + bytes([content[place] ^ 64]) + content[place + 1 :])
        with pytest.raises(InputError, match=r"last\.ckpt: cannot be read"):
            train("run")
    torch.save(Harmful(), state)
    with pytest.raises(InputError, match=r"last\.ckpt: cannot be read"):
        train("run")
    assert not (tmp_path / "harm").exists()


def test_best_weights_that_were_damaged_meanwhile_are_refused(tmp_path):
    train(tmp_path, max_epochs=1)
    weights = tmp_path / "weights.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
    with pytest.raises(InputError, match=r"weights\.safetensors: the file is damaged"):
        train(tmp_path, max_epochs=2)
    weights.unlink()
    assert len(train(tmp_path, max_epochs=2)) == 2


def test_a_finished_training_writes_its_history_again(tmp_path):
    train(tmp_path, max_epochs=2)
    before = (tmp_path / "history.tsv").read_bytes()
    (tmp_path / "history.tsv").unlink()
    train(tmp_path, max_epochs=2)
    assert (tmp_path / "history.tsv").read_bytes() == before
