"""Networks, configuration files and the oracle of this room's tests."""

import importlib.util
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

import datxai
from datxai.model import network

HERE = Path(__file__).parent
COMPOSITES = Path(datxai.__file__).parents[1] / "conf" / "composite"


@pytest.fixture(scope="session")
def oracle():
    spec = importlib.util.spec_from_file_location("explain_oracle", HERE / "oracle.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def composites():
    """Every file in conf/composite, by name, with the values that its lines refer to."""
    files = {path.stem: OmegaConf.load(path) for path in sorted(COMPOSITES.glob("*.yaml"))}
    return OmegaConf.to_container(OmegaConf.create(files), resolve=True)


@pytest.fixture
def cnn():
    """The paper's network on a small grid, float64, with biases that matter."""
    model = network.build((11, 12, 11), seed=3).double()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.1 if parameter.ndim == 1 else 1.5 * parameter.std()
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * scale)
    return model


@pytest.fixture
def scans():
    """Two cases for `cnn`, with exact zeros as outside the head."""
    x = torch.rand(2, 1, 11, 12, 11, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 3
    x[..., :2, :] = 0
    return x


@pytest.fixture
def other_network():
    """A network that is not the paper's: batch norm, pooling, in-place and repeated activations, float64."""
    torch.manual_seed(6)
    model = nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1, bias=False), nn.BatchNorm3d(4), nn.ReLU(inplace=True), nn.MaxPool3d(2),
        nn.Conv3d(4, 6, 3, padding=1, stride=2), nn.BatchNorm3d(6), nn.LeakyReLU(), nn.AdaptiveAvgPool3d(2),
        nn.Flatten(), nn.Linear(48, 3),
    ).double()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm3d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                module.bias.normal_()
    return model.eval()
