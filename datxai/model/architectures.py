"""Networks by name: the paper's, a VGG, MONAI's, and any class that a user names."""

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


class Image(nn.Module):
    """Turns a scan [batch, 1, X, Y, Z] into the input of a network for images or videos: each channel is the scan.

    If ``spatial_dims`` is 2, a scan of one slice becomes [batch, channels, X, Y]. Relevance adds up over channels.
    """

    def __init__(self, in_channels: int = 1, spatial_dims: int = 3):
        super().__init__()
        self.in_channels, self.spatial_dims = in_channels, spatial_dims

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Copy the scan to each channel."""
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
    """Build a network that maps volumes [batch, 1, X, Y, Z] float32 to logits [batch, 2].

    Parameters
    ----------
    shape
        Voxels (X, Y, Z) of the input.
    architecture
        "plain", the paper's, which takes ``plain`` (`network.build`); one of `ARCHITECTURES`; or "custom".
    arguments
        Arguments of the class; not used by "plain".
    target
        For "custom": a class, or a function that returns a network, as ``package.module:Name``. It is imported and
        called, so the caller must first make sure that it comes from a trusted source.
    image
        ``in_channels`` and ``spatial_dims`` that the class expects, if not volumes of one channel; see `Image`.
    see, centre, seed
        As in `network.build`, but the class draws the initial weights.

    Returns
    -------
    nn.Sequential
        Except for "plain", the network is the module ``network``. `network.Input` precedes it if the scan is masked or
        centred, and `Image` if it expects anything but volumes of one channel. If it returns a single logit z, the
        log-odds of reduced, a fixed layer ``output`` turns it into (-z/2, z/2).

    Raises
    ------
    InputError
        If the class cannot be found or instantiated, or if the network does not return a tensor [batch, 1] or
        [batch, 2] for a batch of zeros of this shape, in both training and evaluation mode.
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
    factory = find_class(target) if architecture == CUSTOM else ARCHITECTURES[architecture]
    name = f"network.target={target}" if architecture == CUSTOM else f"network={architecture}"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            module = factory(**(arguments or {}))
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"{name}: cannot be made with network.arguments={dict(arguments or {})} ({_describe_error(error)}); "
                f"change the arguments."
            ) from error
    if not isinstance(module, nn.Module):
        raise InputError(f"{name}: makes a {type(module).__name__}, expected a torch.nn.Module.")
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    if centre or see != "all":
        modules["input"] = Input(shape)
    if image is not None:
        modules["image"] = Image(**image)
    modules["network"] = module
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
            f"as with grid=slab_12mm."
        )


def outline(**settings: Any) -> nn.Sequential:
    """Like `build`, but without weights (on the meta device) for the plain network, which may be large."""
    with torch.device("meta") if settings.get("architecture", PLAIN) == PLAIN else nullcontext():
        return build(**settings)


def hash_source(target: str) -> str:
    """Hash of the file that defines the class."""
    source = inspect.getsourcefile(inspect.unwrap(find_class(target)))
    assert source is not None
    return hash_file(source)


def find_class(target: str | None) -> Callable[..., Any]:
    """The object called ``package.module:Name``; modules in the working directory are found too."""
    if target is None:
        raise InputError(
            "network=custom: its class is Python code that would be executed, so that it counts only where the command "
            "line names it; give network.target=package.module:Class."
        )
    module_name, colon, name = target.partition(":")
    if not (module_name and colon and name):
        raise InputError(
            f"network.target={target}: expected package.module:Class, the class of the network, which is imported."
        )
    importlib.import_module("datxai.torchvision")  # must come before torchvision, which the class may need
    sys.path.insert(0, os.getcwd())
    try:
        candidate = getattr(importlib.import_module(module_name), name, None)
    except Exception as error:
        raise InputError(f"network.target={target}: cannot be imported ({_describe_error(error)}).") from error
    finally:
        sys.path.remove(os.getcwd())
    if not callable(candidate):
        raise InputError(f"network.target={target}: there is no class {name} in {module_name}.")
    return candidate


def require_fit(model: nn.Module, shape: Sequence[int], name: str, n: int = 2) -> int:
    """How many logits ``model`` returns per case for ``n`` cases; `InputError` if it fails in training or evaluation.

    The network runs without values, on PyTorch's meta device, or on zeros if its code needs values.
    """
    tensors = dict(itertools.chain(model.named_parameters(), model.named_buffers()))
    zeros, was_training, output = torch.zeros(n, 1, *shape), model.training, None
    try:
        for training in (True, False):
            model.train(training)
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                try:
                    meta_tensors = {key: torch.empty_like(tensor, device="meta") for key, tensor in tensors.items()}
                    output = functional_call(model, meta_tensors, (zeros.to("meta"),))
                except Exception:
                    output = copy.deepcopy(model).cpu()(zeros)
            _require_logits(output, name, n)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{name}: cannot take a batch of {n} scans of {'x'.join(map(str, shape))} voxels "
            f"({_describe_error(error)}); choose another grid or batch size, or change the network."
        ) from error
    finally:
        model.train(was_training)
    assert isinstance(output, torch.Tensor)
    return output.shape[1]


def _require_logits(output: object, name: str, n: int) -> None:
    is_tensor = isinstance(output, torch.Tensor)
    if not (is_tensor and output.is_floating_point() and output.shape in ((n, 1), (n, 2))):
        description = f"a tensor {list(output.shape)}" if is_tensor else f"a {type(output).__name__}"
        raise InputError(
            f"{name}: answers to {n} scans with {description}, expected a tensor of logits, [{n}, 1] or [{n}, 2]; wrap "
            f"the network in a module that returns its logits alone."
        )


def _two_logits() -> nn.Linear:
    """Map the log-odds z [n, 1] to logits (-z/2, z/2) [n, 2], whose difference is z; never trained."""
    layer = nn.Linear(1, 2, bias=False).requires_grad_(False)
    layer.weight.copy_(torch.tensor([[-0.5], [0.5]]))
    return layer


def _vgg(
    channels: Sequence[Sequence[int]] = ((16,), (32,), (64, 64)), hidden: Sequence[int] = (), dropout: float = 0.2
) -> nn.Sequential:
    """Three-dimensional VGG with batch norm (Simonyan & Zisserman 2015).

    Groups of convolutions of kernel size 3, each followed by max pooling; then global average pooling, linear layers.
    """
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    width, number = 1, 0
    for group, widths in enumerate(channels, start=1):
        for filters in widths:
            number += 1
            modules[f"conv{number}"] = nn.Conv3d(width, filters, 3, padding=1, bias=False)
            modules[f"norm{number}"] = nn.BatchNorm3d(filters)
            modules[f"relu{number}"] = nn.ReLU()
            width = filters
        modules[f"pool{group}"] = nn.MaxPool3d(2, ceil_mode=True)  # an axis of one voxel keeps its size
    modules["average"], modules["flatten"] = nn.AdaptiveAvgPool3d(1), nn.Flatten()
    for layer, units in enumerate(hidden, start=1):
        modules[f"fc{layer}"], modules[f"relu{number + layer}"] = nn.Linear(width, units), nn.ReLU()
        width = units
    modules["dropout"], modules["output"] = nn.Dropout(dropout), nn.Linear(width, 2)
    return nn.Sequential(modules)


def _monai(module: str, name: str, **fixed: Any) -> Callable[..., nn.Module]:
    """A factory for one of MONAI's networks; its arguments add to ``fixed`` or override them."""

    def make(**arguments: Any) -> nn.Module:
        try:
            network_class = getattr(importlib.import_module(f"monai.networks.nets.{module}"), name)
        except ImportError as error:
            raise InputError(
                f"network={module}3d: MONAI is not installed; `pip install 'datxai[networks]'` brings it."
            ) from error
        return network_class(**{**fixed, **arguments})

    return make


ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "vgg3d": _vgg,
    "resnet3d": _monai("resnet", "ResNet", spatial_dims=3, n_input_channels=1, num_classes=2),
    "densenet3d": _monai("densenet", "DenseNet", spatial_dims=3, in_channels=1, out_channels=2),
}


def _describe_error(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
