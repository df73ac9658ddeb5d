"""Networks other than the paper's through the whole journey by the command, on the cohort of the finished run."""

import re
import textwrap

import forked
import numpy as np
import pytest

from datxai.files import read_json, read_table
from datxai.run import Run
from datxai.volume import sidecar_path

CLOSED = 1e-5  # of the seed
SMALL = {
    "vgg3d": ["network.arguments.channels=[[4],[8]]"],
    "resnet3d": [
        "network.arguments.layers=[1,1,1,1]", "network.arguments.block_inplanes=[4,4,8,8]",
        "network.arguments.conv1_t_stride=1",
    ],
}  # fmt: skip
MINE = """
    from torch import nn

    class OneLogit(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.convolution, self.act = nn.Conv3d(1, width, 3, padding=1), nn.ReLU()
            self.average, self.last = nn.AdaptiveAvgPool3d(1), nn.Linear(width, 1)

        def forward(self, x):
            return self.last(self.average(self.act(self.convolution(x))).flatten(1))
"""
TARGET = ["network.target=my_networks:OneLogit"]
IMAGES, COLOURS = "network.spatial_dims=2", "network.in_channels=3"
MONAI, TORCHVISION = "network.target=monai.networks.nets:", "network.target=torchvision.models"
OF_LIBRARIES = {  # given the slices of the finished run, as images where they take images
    "resnet-18": ["network=resnet3d", "network.arguments.block_inplanes=[4,4,8,8]",
                  "network.arguments.conv1_t_stride=1"],
    "resnet-50": ["network=resnet3d", "network.arguments.block=bottleneck", "network.arguments.layers=[3,4,6,3]",
                  "network.arguments.block_inplanes=[2,2,4,4]"],
    "densenet-121": [f"{MONAI}DenseNet121", IMAGES,
                     "network.arguments={spatial_dims:2,in_channels:1,out_channels:2,init_features:8,growth_rate:4}"],
    "squeeze and excitation": [f"{MONAI}SEResNet50", IMAGES,
                               "network.arguments={spatial_dims:2,in_channels:1,num_classes:2,layers:[1,1,1,1]}"],
    "encoder of a u-net": [f"{MONAI}Classifier", IMAGES, "network.arguments="
                           "{in_shape:[1,91,109],classes:2,channels:[4,8,8],strides:[2,2,2]}"],
    "resnet-18 of images": [f"{TORCHVISION}:resnet18", IMAGES, COLOURS, "network.arguments={num_classes:2}"],
    "efficientnet": [f"{TORCHVISION}:efficientnet_b0", IMAGES, COLOURS, "network.arguments={num_classes:2}"],
    "mobilenet": [f"{TORCHVISION}:mobilenet_v3_small", IMAGES, COLOURS, "network.arguments={num_classes:2}"],
}  # fmt: skip


def journey(finished, folder, *words, cwd=None, status=0):
    words = [f"base={finished[0]}", f"run={folder}", "training.max_epochs=1", *words]
    return forked.datxai(*words, cwd=cwd, status=status)


def require_explained(folder):
    """Maps of the test cases whose ledger closes, and a report."""
    run = Run(folder)
    assert run.report.is_file()
    assert read_json(run.metrics)["classifiers"]["cnn"]["accuracy"] is not None
    cases = [row["participant_id"] for row in read_table(run.predictions) if row["set"] == "test"]
    assert cases
    for case in cases:
        record = read_json(sidecar_path(run.relevance_of(case)))
        absorbed = sum(row["absorbed"] for row in record["ledger"])
        seed = np.sum(record["seed"])
        assert record["ledger"][-1]["layer"] != "between layers"
        assert abs(seed - absorbed - record["sum"]) <= CLOSED * np.abs(record["seed"]).sum()


@pytest.mark.parametrize("name", SMALL)
def test_a_network_by_name_is_trained_explained_and_reported(finished, tmp_path, name):
    choice = ["training.optimiser=adamw", "training.loss=focal", "training.monitor=auc"]
    journey(finished, tmp_path / "run", f"network={name}", *SMALL[name], "composite=auto", *choice)
    require_explained(tmp_path / "run")
    (row,) = read_table(tmp_path / "run" / "model" / "history.tsv")
    assert 0 <= float(row["validation_auc"]) <= 1 and row["kept"] == "1"
    before = {*tmp_path.rglob("*")}
    shown = forked.datxai("explain", "--dry-run", f"run={tmp_path / 'run'}", cwd=tmp_path).stdout
    assert {*tmp_path.rglob("*")} == before, "a dry run leaves no trace"
    rules = re.findall(r"Conv3d .*?(flat|zplus|alpha_beta)", shown)
    assert rules[0] == "flat" and set(rules[1:]) == {"zplus"}, "of the recorded network and composite"


@pytest.mark.parametrize("name", OF_LIBRARIES)
def test_a_network_of_a_library_is_trained_explained_and_reported(finished, tmp_path, name):
    words = [*([] if OF_LIBRARIES[name][0].startswith("network=") else ["network=custom"]), *OF_LIBRARIES[name]]
    journey(finished, tmp_path / "run", *words, "composite=auto")
    require_explained(tmp_path / "run")


def test_a_class_of_ones_own_counts_where_the_command_names_it(finished, tmp_path):
    (tmp_path / "my_networks.py").write_text(textwrap.dedent(MINE))
    words = ["network=custom", "network.arguments={width:3}", "composite=auto"]
    refused = journey(finished, "run", *words, cwd=tmp_path, status=2)
    assert "give network.target=package.module:Class" in refused.stderr
    assert not (tmp_path / "run" / "manifest.json").exists(), "said before anything is made"
    journey(finished, "run", *words, *TARGET, cwd=tmp_path)
    require_explained(tmp_path / "run")
    (tmp_path / "my_networks.py").write_text("open('executed', 'w')\n" + textwrap.dedent(MINE))
    scan = next((finished[0] / "simulated").glob("*"))
    for command in (["explain", "composite=epsilon"], ["case", f"scan={scan}"]):
        refused = forked.datxai(*command, "run=run", cwd=tmp_path, status=2)
        assert "Python code that would be executed" in refused.stderr and "network.target=" in refused.stderr
    directory = tmp_path / "theirs" / "network"
    directory.mkdir(parents=True)
    (directory / "nice.yaml").write_text("architecture: custom\ntarget: my_networks:OneLogit\narguments: {width: 3}\n")
    refused = journey(finished, "other", "--config-dir=theirs", "network=nice", cwd=tmp_path, status=2)
    assert "name it on the command line: network.target=my_networks:OneLogit" in refused.stderr
    assert not (tmp_path / "executed").exists()
    (tmp_path / "my_networks.py").write_text(textwrap.dedent(MINE))
    forked.datxai("explain", "composite=epsilon", "run=run", *TARGET, cwd=tmp_path)


def test_a_trained_network_is_explained_without_training(finished, tmp_path):
    weights = finished[0] / "model" / "weights.safetensors"
    words = [f"network.weights={weights}", "training=none"]  # the network is that of the base
    forked.datxai(f"base={finished[0]}", f"run={tmp_path / 'run'}", *words)
    found, before = (read_table(Run(folder).predictions) for folder in (tmp_path / "run", finished[0]))
    assert found == before, "the weights are those of the other run"
    require_explained(tmp_path / "run")
    assert (tmp_path / "run" / "model" / "weights.safetensors").read_bytes() == weights.read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["network=vgg3d", "network.channels=[4]"], "network.channels: the network vgg3d has no such setting"),
        (["network.arguments={width:3}"], "network.arguments: the network plain has no such setting"),
        (["training=none"], "training=none: expected the weights of a trained network; give network.weights=FILE"),
        (["network.freeze=[head.*]"], "network.freeze: no weights of the network match 'head.*'"),
        (["network.weights=no_such_file.pth"], "no such file"),
        (["training.optimiser=lion"], "training.optimiser is 'lion', expected one of adam, adamw, sgd"),
        (["network=densenet3d", "grid=slab_12mm"], "network=densenet3d: cannot take a batch of 2 scans"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_made(tmp_path, words, said):
    refused = forked.datxai(*words, "data.n_subjects=24", f"run={tmp_path / 'run'}", status=2)
    assert said in refused.stderr and refused.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
