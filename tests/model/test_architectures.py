"""Networks other than the paper's: made, completed to two logits, refused, trained and loaded."""

import sys
import textwrap

import numpy as np
import pytest
import torch
from torch import nn

from datxai.errors import InputError
from datxai.model import architectures, checkpoint, training
from datxai.model.architectures import build, find_class, hash_source, outline
from datxai.model.recipe import Recipe

SHAPE = (16, 18, 15)
SMALL = {
    "vgg3d": {"channels": [[4], [8]], "hidden": [6]},
    "resnet3d": {
        "block": "basic", "layers": [1, 1, 1, 1], "block_inplanes": [4, 4, 8, 8], "conv1_t_size": 3,
        "conv1_t_stride": 2,
    },
    "densenet3d": {"init_features": 8, "growth_rate": 4, "block_config": [2, 2]},
}  # fmt: skip
CODE = """
    import torch
    from torch import nn

    class OneLogit(nn.Module):
        def __init__(self, width=3):
            super().__init__()
            self.convolution, self.last = nn.Conv3d(1, width, 3), nn.Linear(width, 1)

        def forward(self, x):
            return self.last(self.convolution(x).relu().mean((2, 3, 4)))

    class Auxiliary(OneLogit):  # as GoogLeNet
        def forward(self, x):
            return (super().forward(x), None) if self.training else super().forward(x)

    class ByTheNumbers(OneLogit):  # asks for values, which the meta device has not
        def forward(self, x):
            return super().forward(x + float(x.mean()))

    class Three(OneLogit):
        def forward(self, x):
            return super().forward(x).expand(-1, 3)

    class Flat(OneLogit):
        def forward(self, x):
            return super().forward(x)[:, 0]

    class Slices(nn.Conv2d):
        def __init__(self):
            super().__init__(1, 2, 3)

    def make(n):
        return "a network" * n
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name of a module in the working directory."""
    (tmp_path / "networks_of_mine.py").write_text(textwrap.dedent(CODE))
    monkeypatch.chdir(tmp_path)
    yield "networks_of_mine"
    sys.modules.pop("networks_of_mine", None)


@pytest.mark.parametrize("name", SMALL)
def test_a_network_by_name_is_saved_and_comes_back(name, tmp_path):
    state = torch.get_rng_state()
    model = build(SHAPE, name, SMALL[name], seed=1, see="striatum")
    assert torch.equal(torch.get_rng_state(), state)
    again, other = (build(SHAPE, name, SMALL[name], seed=seed, see="striatum") for seed in (1, 2))
    x = torch.rand(2, 1, *SHAPE)
    model.input.mask.copy_(torch.rand(SHAPE) > 0.5)
    model.input.mean.fill_(0.3)
    model.eval()
    logits = model(x)
    assert logits.shape == (2, 2)
    assert torch.equal(logits, model.network((x - 0.3) * model.input.mask))
    weights = [dict(each.network.named_parameters()) for each in (model, again, other)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert not all(torch.equal(weights[0][key], weights[2][key]) for key in weights[0])
    checkpoint.save_weights(model.state_dict(), tmp_path / checkpoint.WEIGHTS)
    settings = {"shape": list(SHAPE), "architecture": name, "arguments": SMALL[name], "see": "striatum"}
    checkpoint.save_network({"network": settings}, tmp_path / checkpoint.CONFIG)
    loaded, _ = checkpoint.load(tmp_path)
    torch.testing.assert_close(loaded(x), logits)  # in another memory layout


def test_vgg_is_convolution_batch_norm_relu_and_pooling_and_takes_a_slab():
    model = build((15, 18, 1), "vgg3d", {"channels": [[3, 4], [5]], "hidden": [6]}, seed=1).eval()
    kinds = [type(module).__name__ for module in model.network]
    group = ["Conv3d", "BatchNorm3d", "ReLU"]
    assert kinds == [
        *group, *group, "MaxPool3d", *group, "MaxPool3d", "AdaptiveAvgPool3d", "Flatten", "Linear", "ReLU", "Dropout",
        "Linear",
    ]  # fmt: skip
    # convolutions without biases, two numbers for each channel of a batch norm, linear layers
    expected = 27 * (3 + 3 * 4 + 4 * 5) + 2 * (3 + 4 + 5) + (5 * 6 + 6) + (6 * 2 + 2)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected
    assert model(torch.rand(2, 1, 15, 18, 1)).shape == (2, 2)


@pytest.mark.parametrize("name", ["OneLogit", "ByTheNumbers"])
def test_a_single_logit_becomes_two_whose_difference_it_is(module, tmp_path, name):
    model = build(SHAPE, "custom", {"width": 2}, f"{module}:{name}", seed=1)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    x = torch.rand(3, 1, *SHAPE)
    logits, z = model.eval()(x), model.network(x)
    assert torch.equal(logits, torch.cat([-z / 2, z / 2], dim=1))
    data = [(case, number % 2) for number, case in enumerate(torch.rand(4, 1, *SHAPE))]
    recipe = Recipe(batch_size=2, max_epochs=1, learning_rate=0.01, weight_decay=0.1)
    training.train(model, data, data, recipe, folder=tmp_path / "model", fingerprint="a")
    changed = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}
    assert changed == before.keys() - {"output.weight"}


def test_code_of_a_run_folder_is_executed_only_if_the_caller_names_it(module, tmp_path):
    settings = {"shape": list(SHAPE), "architecture": "custom", "target": f"{module}:OneLogit"}
    model = build(**settings)
    checkpoint.save_weights(model.state_dict(), tmp_path / checkpoint.WEIGHTS)
    checkpoint.save_network({"network": settings}, tmp_path / checkpoint.CONFIG)
    (tmp_path / "networks_of_mine.py").write_text("raise SystemExit('executed')")
    sys.modules.pop(module)
    for trusted in (None, f"{module}:Three"):
        with pytest.raises(InputError, match=f"executed; if you trust it, name it .*network.target={module}:OneLogit"):
            checkpoint.load(tmp_path, trusted=trusted)
    (tmp_path / "networks_of_mine.py").write_text(textwrap.dedent(CODE))
    loaded, _ = checkpoint.load(tmp_path, trusted=f"{module}:OneLogit")
    assert torch.equal(loaded.network.last.weight, model.network.last.weight)


def test_a_changed_file_is_another_network(module, tmp_path):
    before = hash_source(f"{module}:OneLogit")
    assert before == hash_source(f"{module}:Three")
    with (tmp_path / "networks_of_mine.py").open("a") as stream:
        stream.write("# changed\n")
    assert hash_source(f"{module}:OneLogit") != before


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"architecture": "swin"}, "network.architecture=swin: expected one of plain, vgg3d, resnet3d, densenet3d"),
        ({"architecture": "vgg3d", "see": "left"}, "network.see=left"),
        ({"architecture": "vgg3d", "arguments": {"depth": 3}}, "network=vgg3d: cannot be made .*unexpected keyword"),
        ({"architecture": "resnet3d", "arguments": {**SMALL["resnet3d"], "block": "wide"}}, "Unknown block 'wide'"),
        ({"architecture": "densenet3d", "shape": (15, 18, 1)}, "cannot take a batch of 2 scans of 15x18x1 voxels"),
        ({"target": None}, "Python code that would be executed, so that it counts only where the command line"),
        ({"target": "OneLogit"}, "network.target=OneLogit: expected package.module:Class"),
        ({"target": "no_such_package.models:Net"}, "cannot be imported .ModuleNotFoundError"),
        ({"target": "networks_of_mine:Two"}, "there is no class Two in networks_of_mine"),
        ({"target": "networks_of_mine:make", "arguments": {"n": 1}}, "makes a str, expected a torch.nn.Module"),
        ({"target": "networks_of_mine:make"}, "cannot be made with network.arguments={} .TypeError"),
        ({"target": "networks_of_mine:Auxiliary"}, "answers to 2 scans with a tuple, expected a tensor of logits"),
        ({"target": "networks_of_mine:Three"}, r"answers to 2 scans with a tensor \[2, 3\]"),
        ({"target": "networks_of_mine:Flat"}, r"answers to 2 scans with a tensor \[2\]"),
        ({"target": "networks_of_mine:Slices"}, "cannot take a batch of 2 scans of 16x18x15 voxels .RuntimeError"),
    ],
)  # fmt: skip
def test_what_is_no_network_is_said(module, settings, words):
    with pytest.raises(InputError, match=words):
        build(**{"shape": SHAPE, "architecture": "custom", **settings})


def test_monai_that_is_not_installed_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "monai.networks.nets.resnet", None)
    with pytest.raises(InputError, match=r"MONAI is not installed; `pip install 'datxai\[networks\]'`"):
        build(SHAPE, "resnet3d", SMALL["resnet3d"])


def test_a_last_batch_of_one_is_said_where_batch_norm_needs_more(tmp_path):
    tiny = (2, 2, 1)
    data = [(torch.rand(1, *tiny), number % 2) for number in range(5)]
    model = build(tiny, "vgg3d", {"channels": [[2], [2]]})  # the second batch norm sees one place
    with pytest.raises(InputError, match=r"training.batch_size=4, 5 training cases: cannot take a batch of 1 scans"):
        training.train(model, data, data, Recipe(batch_size=4), folder=tmp_path, fingerprint="a")
    with pytest.raises(InputError, match=r"training.precision=bf16 is for network=nazari2021"):
        training.train(model, data, data, Recipe(precision="bf16"), folder=tmp_path, fingerprint="a")
    assert list(tmp_path.iterdir()) == []
    history = training.train(model, data, data, Recipe(batch_size=5, max_epochs=1), folder=tmp_path, fingerprint="a")
    assert np.isfinite(history[0]["train_loss"])


def test_training_any_network_goes_on_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "STATE_SHARE", float("inf"))
    data = [(torch.from_numpy(case), number % 2) for number, case in enumerate(np.random.default_rng(0).normal(
        1, 0.3, (6, 1, 8, 9, 7)).astype(np.float32))]  # fmt: skip
    for folder, ends in (("whole", [3]), ("parts", [1, 3])):
        for epochs in ends:
            model = build((8, 9, 7), "vgg3d", {"channels": [[3], [4]]}, seed=2)
            recipe = Recipe(batch_size=3, max_epochs=epochs, ema_decay=0.8, learning_rate=0.01)
            training.train(model, data, data, recipe, folder=tmp_path / folder, fingerprint="a")
    whole, parts = ((tmp_path / name / "weights.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts
    assert any(isinstance(layer, nn.BatchNorm3d) for layer in model.modules())


def test_an_outline_of_the_papers_network_has_no_weights_and_finds_what_does_not_fit():
    model = outline(shape=(91, 109, 63), channels=[16] * 4, hidden=[32, 16])
    assert all(parameter.is_meta for parameter in model.parameters())
    with pytest.raises(InputError, match="too small for 4 convolutions"):
        outline(shape=(8, 8, 8), channels=[16] * 4, hidden=[32, 16], padding="0")
    assert find_class("torch.nn:Identity") is nn.Identity


class Seen(nn.Module):
    """Answers with the sums of its first two channels, of an input of the shape it wants."""

    def __init__(self, axes):
        super().__init__()
        self.axes = axes

    def forward(self, x):
        assert x.ndim == self.axes
        return x.flatten(2).sum(-1)[:, :2]


@pytest.mark.parametrize(
    ("shape", "axes", "image"),
    [((4, 5, 1), 4, {"in_channels": 2, "spatial_dims": 2}), ((4, 5, 3), 5, {"in_channels": 3})],
)
def test_a_network_of_images_or_videos_gets_the_scan_in_each_channel(tmp_path, monkeypatch, shape, axes, image):
    monkeypatch.setattr(architectures, "find_class", lambda target: Seen)
    model = build(shape, "custom", {"axes": axes}, "here:Seen", image=image)
    x = torch.rand(2, 1, *shape)
    torch.testing.assert_close(model(x), x.sum((1, 2, 3, 4))[:, None].expand(-1, 2))


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ({"spatial_dims": 2}, "network.spatial_dims=2: a grid of 4x5x3 voxels has no images, expected one slice"),
        ({"spatial_dims": 4}, "network.spatial_dims=4: expected 3, or 2"),
        ({"in_channels": 0}, "network.in_channels=0: expected a whole number of 1 or more"),
    ],
)
def test_an_image_that_a_scan_is_not_is_refused(image, said):
    with pytest.raises(InputError, match=said):
        build((4, 5, 3), "vgg3d", image=image)
