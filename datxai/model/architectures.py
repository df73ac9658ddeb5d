"""Networks by name: that of the paper, a VGG, MONAI's, and any class that a user names."""

from __future__ import annotations

import copy
import importlib
import inspect
import itertools
import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from datxai.errors import InputError
from datxai.files import hash_file
from datxai.model import network
from datxai.model.network import VIEWS, Input

PLAIN, CUSTOM = "plain", "custom"
LOGITS = (1, 2)  # how many a network may answer with


class Image(nn.Module):
    """A scan [batch, 1, X, Y, Z] as networks of images and videos take it: each channel is the scan, and a scan of one
    slice is [batch, channels, X, Y] if ``spatial_dims`` is 2. Relevance of the channels adds up."""

    def __init__(self, in_channels: int = 1, spatial_dims: int = 3):
        super().__init__()
        self.in_channels, self.spatial_dims = in_channels, spatial_dims

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The scan in each channel."""
        x = x.expand(-1, self.in_channels, -1, -1, -1)
        return x.squeeze(-1) if self.spatial_dims == 2 else x


def build(
    shape: Sequence[int],
    architecture: str = PLAIN,
    arguments: Mapping[str, Any] | None = None,
    target: str | None = None,
    image: Mapping[str, int] | None = None,
    see: str = "all",
    centre: bool = False,
    seed: int = 0,
    **plain: Any,
) -> nn.Sequential:
    """Build a network: volumes [batch, 1, X, Y, Z] float32 to logits [batch, 2].

    Parameters
    ----------
    shape
        Voxels (X, Y, Z) of the input.
    architecture
        "plain", the paper's, which takes ``plain`` (`network.build`); one of `ARCHITECTURES`; or "custom".
    arguments
        Of the class, but for the architecture "plain".
    target
        Of "custom": a class, or a function that makes a network, as ``package.module:Name``. It is imported and called:
        whose word this is has to be clear before.
    image
        ``in_channels`` and ``spatial_dims`` of what the class takes, if it is not a volume of one channel, see `Image`.
    see, centre, seed
        As `network.build` has them. The initial weights are those that the class draws.

    Returns
    -------
    nn.Sequential
        But for "plain", the network is its module ``network``; `network.Input` stands before it where not all is seen,
        and `Image` where it takes other than volumes of one channel.
        To a network of a single logit z, the log-odds of reduced, a fixed layer ``output`` gives (-z/2, z/2).

    Raises
    ------
    InputError
        If the class cannot be found or made, or if what it makes does not answer to a batch of zeros of this shape with
        a tensor [batch, 1] or [batch, 2], in training and in evaluation.
    """
    if architecture == PLAIN:
        return network.build(shape, see=see, centre=centre, seed=seed, **plain)  # pyright: ignore[reportArgumentType]
    if see not in VIEWS:
        raise InputError(f"network.see={see}: expected one of {', '.join(VIEWS)}.")
    if architecture not in (*ARCHITECTURES, CUSTOM):
        raise InputError(
            f"network.architecture={architecture}: expected one of {', '.join((PLAIN, *ARCHITECTURES, CUSTOM))}."
        )
    _require_image(shape, **(image or {}))
    make = find_class(target) if architecture == CUSTOM else ARCHITECTURES[architecture]
    name = f"network.target={target}" if architecture == CUSTOM else f"network={architecture}"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            made = make(**(arguments or {}))
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"{name}: cannot be made with network.arguments={dict(arguments or {})} ({_in_a_line(error)}); change "
                f"the arguments."
            ) from error
    if not isinstance(made, nn.Module):
        raise InputError(f"{name}: makes a {type(made).__name__}, expected a torch.nn.Module.")
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    if centre or see != "all":
        modules["input"] = Input(shape)
    if image is not None:
        modules["image"] = Image(**image)
    modules["network"] = made
    model = nn.Sequential(modules)
    if require_fit(model, shape, name) == 1:
        model.add_module("output", _two_logits())
    return model


def _require_image(shape: Sequence[int], in_channels: int = 1, spatial_dims: int = 3) -> None:
    if in_channels < 1:
        raise InputError(f"network.in_channels={in_channels}: expected a whole number of 1 or more.")
    if spatial_dims not in (2, 3):
        raise InputError(f"network.spatial_dims={spatial_dims}: expected 3, or 2 for a network of images.")
    if spatial_dims == 2 and shape[-1] != 1:
        raise InputError(
            f"network.spatial_dims=2: a grid of {'x'.join(map(str, shape))} voxels has no images, expected one slice, "
            f"such as grid=slab_12mm has."
        )


def outline(**settings: Any) -> nn.Sequential:
    """As `build`; the plain network, which may be large, without weights (on the meta device)."""
    with torch.device("meta") if settings.get("architecture", PLAIN) == PLAIN else nullcontext():
        return build(**settings)


def hash_source(target: str) -> str:
    """Of the file that defines the class."""
    source = inspect.getsourcefile(inspect.unwrap(find_class(target)))
    assert source is not None
    return hash_file(source)


def find_class(target: str | None) -> Callable[..., Any]:
    """What ``package.module:Name`` names; modules of the working directory are found as well."""
    if target is None:
        raise InputError(
            "network=custom: its class is Python code that would be executed, so that it counts only where the command "
            "line names it; give network.target=package.module:Class."
        )
    module_name, colon, name = target.partition(":")
    if not (module_name and colon and name):
        raise InputError(
            f"network.target={target}: expected package.module:Class, a class to be imported and made the network."
        )
    importlib.import_module("datxai.torchvision")  # which the class may be of, or want
    sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module_name), name, None)
    except Exception as error:
        raise InputError(f"network.target={target}: cannot be imported ({_in_a_line(error)}).") from error
    finally:
        sys.path.remove(os.getcwd())
    if not callable(found):
        raise InputError(f"network.target={target}: there is no class {name} in {module_name}.")
    return found


def require_fit(model: nn.Module, shape: Sequence[int], name: str, n: int = 2) -> int:
    """How many logits ``model`` answers with to ``n`` cases; `InputError` if it does not, in training or evaluation.

    It is asked without numbers (on PyTorch's meta device), and where its code needs some, with zeros.
    """
    tensors = dict(itertools.chain(model.named_parameters(), model.named_buffers()))
    zeros, was_training, answer = torch.zeros(n, 1, *shape), model.training, None
    try:
        for training in (True, False):
            model.train(training)
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                try:
                    bare = {key: torch.empty_like(tensor, device="meta") for key, tensor in tensors.items()}
                    answer = functional_call(model, bare, (zeros.to("meta"),))
                except Exception:
                    answer = copy.deepcopy(model).cpu()(zeros)
            _require_logits(answer, name, n)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{name}: cannot take a batch of {n} scans of {'x'.join(map(str, shape))} voxels ({_in_a_line(error)}); "
            f"choose another grid or batch size, or change the network."
        ) from error
    finally:
        model.train(was_training)
    assert isinstance(answer, torch.Tensor)
    return answer.shape[1]


def _require_logits(answer: object, name: str, n: int) -> None:
    what = f"a tensor {list(answer.shape)}" if isinstance(answer, torch.Tensor) else f"a {type(answer).__name__}"
    fits = isinstance(answer, torch.Tensor) and answer.ndim == 2 and len(answer) == n and answer.shape[1] in LOGITS
    if not (isinstance(answer, torch.Tensor) and fits and answer.is_floating_point()):
        raise InputError(
            f"{name}: answers to {n} scans with {what}, expected a tensor of logits, [{n}, 1] or [{n}, 2]; wrap the "
            f"network in a module that hands on its logits alone."
        )


def _two_logits() -> nn.Linear:
    """From the log-odds z [n, 1] to logits (-z/2, z/2) [n, 2], whose difference it is; never trained."""
    layer = nn.Linear(1, 2, bias=False).requires_grad_(False)
    layer.weight.copy_(torch.tensor([[-0.5], [0.5]]))
    return layer


def _vgg(
    channels: Sequence[Sequence[int]] = ((16,), (32,), (64, 64)), hidden: Sequence[int] = (), dropout: float = 0.2
) -> nn.Sequential:
    """VGG with batch norm (Simonyan & Zisserman 2015) in three dimensions: groups of convolutions of kernel size 3,
    with a maximum pooling after each group; then the average over all places, and linear layers."""
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    width, number = 1, 0
    for group, widths in enumerate(channels, start=1):
        for filters in widths:
            number += 1
            modules[f"conv{number}"] = nn.Conv3d(width, filters, 3, padding=1, bias=False)
            modules[f"norm{number}"] = nn.BatchNorm3d(filters)
            modules[f"relu{number}"] = nn.ReLU()
            width = filters
        modules[f"pool{group}"] = nn.MaxPool3d(2, ceil_mode=True)  # an axis of one voxel stays
    modules["average"], modules["flatten"] = nn.AdaptiveAvgPool3d(1), nn.Flatten()
    for layer, units in enumerate(hidden, start=1):
        modules[f"fc{layer}"], modules[f"relu{number + layer}"] = nn.Linear(width, units), nn.ReLU()
        width = units
    modules["dropout"], modules["output"] = nn.Dropout(dropout), nn.Linear(width, 2)
    return nn.Sequential(modules)


def _monai(module: str, name: str, **fixed: Any) -> Callable[..., nn.Module]:
    """What makes one of MONAI's networks, with fixed arguments that others may come to."""

    def make(**arguments: Any) -> nn.Module:
        try:
            kind = getattr(importlib.import_module(f"monai.networks.nets.{module}"), name)
        except ImportError as error:
            raise InputError(
                f"network={module}3d: MONAI is not installed; `pip install 'datxai[networks]'` brings it."
            ) from error
        return kind(**{**fixed, **arguments})

    return make


ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "vgg3d": _vgg,
    "resnet3d": _monai("resnet", "ResNet", spatial_dims=3, n_input_channels=1, num_classes=2),
    "densenet3d": _monai("densenet", "DenseNet", spatial_dims=3, in_channels=1, out_channels=2),
}


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
