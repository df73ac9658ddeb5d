import os
import re

import numpy as np
import pytest
import safetensors.torch
import torch

from datxai.errors import InputError
from datxai.files import read_table
from datxai.model import checkpoint, training
from datxai.model.architectures import build, outline
from datxai.model.recipe import Recipe
from datxai.model.weights import freeze, load_pretrained

SHAPE = (8, 9, 7)
SMALL = {"channels": [[3], [4]], "hidden": [5]}


def network(seed=0):
    return build(SHAPE, "vgg3d", SMALL, seed=seed)


def values(model):
    return {name: tensor.clone() for name, tensor in model.network.state_dict().items()}


def same(model, expected, names=None):
    found = model.network.state_dict()
    return all(torch.equal(found[name], expected[name]) for name in names or expected)


@pytest.mark.parametrize("wrapped", [None, "state_dict", "model_state_dict", "model"])
def test_weights_of_either_form_are_taken(tmp_path, wrapped):
    theirs, path = values(network(1)), tmp_path / "theirs.pth"
    torch.save(theirs if wrapped is None else {"epoch": 3, wrapped: theirs}, path)
    model = network()
    load_pretrained(model, path)
    assert same(model, theirs)
    safetensors.torch.save_file(theirs, tmp_path / "theirs.safetensors")
    model = network()
    load_pretrained(model, tmp_path / "theirs.safetensors")
    assert same(model, theirs)
    load_pretrained(outline(shape=SHAPE, channels=[2], hidden=[]), saved_plain(tmp_path))


def saved_plain(folder):
    """Of the paper's network, whose names have nothing before them."""
    path = folder / "plain.safetensors"
    checkpoint.save_weights(build(SHAPE, channels=[2], hidden=[]).state_dict(), path)
    return path


def test_names_are_changed_left_out_and_kept_as_they_are(tmp_path):
    theirs, path = values(network(1)), tmp_path / "theirs.pth"
    changed = {f"module.{name.replace('conv', 'features.c')}": tensor for name, tensor in theirs.items()}
    head = [name for name in theirs if name.startswith(("fc1", "output"))]
    for name in head:
        del changed[f"module.{name}"]
    torch.save({"state_dict": {**changed, "module.head.weight": torch.ones(9)}}, path)
    model, before = network(), values(network())
    rename = {r"^module\.": "", r"features\.c(\d)": r"conv\1", "^head": None}
    load_pretrained(model, path, rename, ["fc1.*", "output.*"])
    assert same(model, theirs, theirs.keys() - head)
    assert same(model, before, head)


def test_all_that_does_not_fit_is_in_one_message(tmp_path):
    theirs = values(network(1))
    theirs["output.bias"] = torch.ones(3)
    theirs["extra.weight"] = theirs.pop("conv1.weight")
    torch.save(theirs, tmp_path / "theirs.pth")
    model, before = network(), values(network())
    with pytest.raises(InputError) as error:
        load_pretrained(model, tmp_path / "theirs.pth")
    expected = "missing: conv1.weight; unexpected: extra.weight; of another shape: output.bias ([3] in the file, "
    assert expected in str(error.value)
    assert same(model, before)


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file"),
        (b"damaged", "cannot be read as weights"),
        (Harmful(), "cannot be read as weights"),
        ({"epoch": 3}, "holds no weights"),
        ({}, "holds no weights"),
    ],
)
def test_what_holds_no_weights_is_said_and_not_executed(tmp_path, monkeypatch, content, words):
    monkeypatch.chdir(tmp_path)
    for name in ("theirs.pth", "theirs.safetensors"):
        if isinstance(content, bytes):
            (tmp_path / name).write_bytes(content)
        elif content is not None:
            torch.save(content, tmp_path / name)
    with pytest.raises(InputError, match=f"network.weights=theirs.pth: {words}"):
        load_pretrained(network(), "theirs.pth")
    with pytest.raises(InputError, match=r"theirs.safetensors: (no such file|cannot be read as weights)"):
        load_pretrained(network(), "theirs.safetensors")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rename": {"(": ""}}, r"network.rename: '(' with '' is no regular expression"),
        ({"rename": {r"conv\d": "conv"}}, "network.rename: two names of the file become conv.weight"),
        ({"initial": ["head*"]}, "network.initial: no weights of the network match 'head*'; they are conv1.weight"),
    ],
)
def test_patterns_that_do_not_work_are_said(tmp_path, settings, words):
    torch.save(values(network()), tmp_path / "theirs.pth")
    with pytest.raises(InputError, match=re.escape(words)):
        load_pretrained(network(), tmp_path / "theirs.pth", **settings)


def cases(n, seed):
    rng = np.random.default_rng(seed)
    volumes = rng.normal(1, 0.3, (n, 1, *SHAPE)).astype(np.float32)
    return [(torch.from_numpy(volume), number % 2) for number, volume in enumerate(volumes)]


@pytest.mark.parametrize("save_memory", [False, True])
def test_what_is_frozen_stays(tmp_path, save_memory):
    model, before = network(), values(network())
    freeze(model, ["conv1.*", "fc1.*"])
    recipe = Recipe(batch_size=3, max_epochs=2, learning_rate=0.01, weight_decay=0.1, save_memory=save_memory)
    training.train(model, cases(6, 0), cases(4, 1), recipe, folder=tmp_path, fingerprint="a")
    changed = {name for name, tensor in values(model).items() if not torch.equal(tensor, before[name])}
    assert changed == before.keys() - {"conv1.weight", "fc1.weight", "fc1.bias"}


@pytest.mark.parametrize(
    ("pattern", "words"), [("*", "leaves nothing to train"), ("head*", "no weights of the network")]
)
def test_freezing_all_or_nothing_is_said(pattern, words):
    with pytest.raises(InputError, match=f"network.freeze.*{words}"):
        freeze(network(), [pattern])


def test_a_trained_network_is_kept_as_it_is(tmp_path):
    model, train, validation = network(3), cases(7, 0), cases(4, 1)
    (row,) = training.keep(model, train, validation, Recipe(batch_size=3), tmp_path)
    saved = safetensors.torch.load_file(tmp_path / "weights.safetensors")
    assert all(torch.equal(saved[name], tensor) for name, tensor in model.state_dict().items())
    oracle = network(3).double().eval()
    for name, dataset in (("train", train), ("validation", validation)):
        logits = oracle(torch.stack([x for x, _ in dataset]).double())
        y = torch.tensor([y for _, y in dataset])
        loss = (logits.exp().sum(1).log() - logits[range(len(y)), y]).mean().item()
        assert row[f"{name}_loss"] == pytest.approx(loss, rel=1e-5)
        assert row[f"{name}_accuracy"] == (logits.argmax(1) == y).double().mean().item()
    (written,) = read_table(tmp_path / "history.tsv")
    assert list(written) == list(training.COLUMNS)
    assert (written["epoch"], written["kept"]) == ("0", "1")
