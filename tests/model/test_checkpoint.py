
import re

import pytest
import torch

from datxai.errors import InputError
from datxai.files import write_text
from datxai.model import checkpoint
from datxai.model.network import LAYOUT, build

SHAPE = (10, 9, 1)
NETWORK = {"shape": list(SHAPE), "channels": [4, 4], "hidden": [6, 6]}

CONFIG = {"network": NETWORK, "classes": ["normal", "reduced"]}


@pytest.fixture
def model():
    return build(**NETWORK, seed=1).to(memory_format=LAYOUT)


@pytest.fixture
def folder(model, tmp_path):
    checkpoint.save_weights(model.state_dict(), tmp_path / checkpoint.WEIGHTS)
    checkpoint.save_network(CONFIG, tmp_path / checkpoint.CONFIG)
    return tmp_path


def same(first, second):
    first, second = first.state_dict(), second.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_saved_network_comes_back(model, folder):
    loaded, config = checkpoint.load(folder)
    assert same(loaded, model)
    assert not any(module.training for module in loaded.modules())
    assert config == CONFIG
    x = torch.rand(3, 1, *SHAPE)
    assert torch.equal(loaded(x), model.eval()(x))
    assert sorted(path.name for path in folder.iterdir()) == [checkpoint.CONFIG, checkpoint.WEIGHTS]


def test_loading_into_a_network_keeps_its_parameters(model, folder):
    other = build(**NETWORK, seed=2)
    parameters = list(other.parameters())
    checkpoint.load_weights(other, folder / checkpoint.WEIGHTS)
    assert same(other, model)
    assert all(mine is theirs for mine, theirs in zip(parameters, other.parameters()))


def test_training_a_loaded_network_leaves_the_file_alone(folder):
    before = (folder / checkpoint.WEIGHTS).read_bytes()
    loaded, _ = checkpoint.load(folder)
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.add_(1.0)
    assert (folder / checkpoint.WEIGHTS).read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shape": [12, 9, 1]}, "fc1.weight is float32 [6, 120] in the file but float32 [6, 160] in"),
        ({"channels": [4, 3]}, "conv2.weight is float32 [4, 4, 3, 3, 3] in the file but float32 [3, 4,"),
        ({"hidden": [6, 6, 4]}, "fc3.weight is missing in the file but float32 [4, 6] in the network"),
        ({"hidden": [6]}, "fc2.bias is float32 [6] in the file but missing in the network"),
    ],
)
def test_weights_of_another_network_or_grid(folder, changes, words):
    other = build(**{**NETWORK, **changes}, seed=2)
    untouched = build(**{**NETWORK, **changes}, seed=2)
    with pytest.raises(InputError, match=re.escape(words)):
        checkpoint.load_weights(other, folder / checkpoint.WEIGHTS)
    assert same(other, untouched)


def test_weights_of_another_type(model, folder):
    checkpoint.save_weights(model.to(torch.float16).state_dict(), folder / checkpoint.WEIGHTS)
    with pytest.raises(InputError, match=r"conv1\.weight is float16 .* but float32"):
        checkpoint.load(folder)


@pytest.mark.parametrize("keep", [0, 6, 200, -1])
def test_damaged_weights(folder, keep):
    path = folder / checkpoint.WEIGHTS
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        checkpoint.load(folder)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("network: [1", "not readable as YAML"),
        ("grid: {}", "expected a mapping called 'network'"),
        ("", "expected a mapping called 'network'"),
        ("network: {shape: [9, 9, 9], depth: 3}", "does not hold what a network is built from .*depth"),
        ("network: !!python/object/apply:os.getpid []", "not readable as YAML"),
    ],
)
def test_unusable_description(folder, text, words):
    write_text(folder / checkpoint.CONFIG, text)
    with pytest.raises(InputError, match=words):
        checkpoint.load(folder)


@pytest.mark.parametrize("name", [checkpoint.CONFIG, checkpoint.WEIGHTS])
def test_missing_file(folder, name):
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"{name}: no such file"):
        checkpoint.load(folder)


@pytest.mark.parametrize(
    "changes",
    [{"channels": [-4, 4]}, {"hidden": [-6]}, {"hidden": ["six"]}, {"dropout": 3.5}, {"dropout": None}, {"shape": None},
     {"shape": [10, -9, 1]}, {"kernel_size": -3}, {"kernel_size": 0}, {"see": "nothing"}, {"n_classes": -1},
     {"channels": 4}, {"surprise": 1}, {"padding": "wide"}, {"shape": [2**40, 2**40, 2**40]}],
)  # fmt: skip
def test_a_network_of_another_hand_is_refused_in_one_sentence(folder, changes):
    checkpoint.save_network({"network": {**NETWORK, **changes}}, folder / checkpoint.CONFIG)
    with pytest.raises(InputError, match=r"config\.yaml: |another network or grid") as caught:
        checkpoint.load(folder)
    assert "\n" not in str(caught.value)


def test_weights_are_whole_until_a_byte_changes(folder):
    path = folder / checkpoint.WEIGHTS
    assert checkpoint.is_whole(path)
    content = path.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    for place in range(begin, len(content), (len(content) - begin) // 20):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert not checkpoint.is_whole(path)
    path.write_bytes(content[: len(content) // 2])
    assert not checkpoint.is_whole(path)
