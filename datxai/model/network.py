"""The convolutional network of Nazari et al. 2022 (doi 10.1007/s00259-021-05569-9), for any grid."""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from datxai.errors import InputError

VIEWS = ("all", "striatum", "extrastriatal")  # the part of a scan that a network sees
INITIALISATIONS = ("glorot", "looks_linear")
LAYOUT = torch.channels_last_3d  # the memory format in which oneDNN and cuDNN convolve volumes fastest
_LAYOUTS = {4: torch.channels_last, 5: LAYOUT}  # by number of axes: batches of images, of volumes


class Input(nn.Module):
    """Subtracts the mean of the training cases from volumes [batch, 1, X, Y, Z] and applies a mask.

    ``mean`` and ``mask``, of shape (X, Y, Z), are saved with the weights. Relevance passes through unchanged, so none
    lies outside the mask.
    """

    case_by_case = True  # spares `datxai.explain.attribute` a forward pass that would find this out
    mean: torch.Tensor
    mask: torch.Tensor

    def __init__(self, shape: Sequence[int]):
        super().__init__()
        self.register_buffer("mean", torch.zeros(*shape))
        self.register_buffer("mask", torch.ones(*shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Subtract the mean, then apply the mask."""
        return (x - self.mean) * self.mask


def build(
    shape: Sequence[int],
    channels: Sequence[int] = (16, 16, 16, 16),
    kernel_size: int = 3,
    padding: int | str = "auto",
    hidden: Sequence[int] = (32, 16),
    dropout: float = 0.2,
    see: Literal["all", "striatum", "extrastriatal"] = "all",
    centre: bool = False,
    initialisation: Literal["glorot", "looks_linear"] = "glorot",
    n_classes: int = 2,
    seed: int = 0,
) -> nn.Sequential:
    """Build the network, which maps volumes [batch, 1, X, Y, Z] float32 to logits [batch, n_classes].

    Convolutions of stride 1 with ReLU and no pooling, then fully connected layers with ReLU, dropout after
    the first. The modules are named conv1, relu1, ..., flatten, fc1, relu5, dropout, fc2, relu6, output.
    There is no softmax: explanations start at the logits. The defaults are the paper's; on a grid of
    91 x 109 x 63 voxels they give its 236 million parameters.

    Parameters
    ----------
    shape
        Voxels (X, Y, Z) of the input.
    channels, hidden
        Number of filters of each convolution, of units of each fully connected layer.
    padding
        Zeros that each convolution adds on each side: a number for all axes, or "auto" for none, except along
        axes too thin for that (the one-slice slab), which keep their size.
    dropout
        Probability.
    see, centre
        Whether the network sees ``all`` of a scan, only its ``striatum``, or only what is ``extrastriatal``; and
        whether the mean training case is subtracted. Where needed, the first module is an `Input` called ``input``,
        whose mean and mask the caller fills in.
    initialisation
        Initial weights, which the paper does not specify. "glorot": uniform after Glorot and Bengio (AISTATS 2010),
        with zero biases, so that they absorb no relevance at first. "looks_linear": these, paired after Balduzzi et
        al. (ICML 2017, arXiv:1702.08591), so that the untrained network is linear: uptake below zero (the mean scan,
        with ``centre``) activates as many units as uptake above, and speaks for the other class. Of an odd number of
        units, the last is not paired.
    seed
        Seed of the initial weights. The global random state does not change.

    Raises
    ------
    InputError
        If the convolutions would leave nothing of the grid, if ``padding``, ``see`` or ``initialisation`` has another
        value, or if channels, kernel size or units are not numbers of 1 or more.
    """
    if not all(isinstance(n, int) and n > 0 for n in (*channels, kernel_size, *hidden)):
        raise InputError(
            f"network.channels={[*channels]}, kernel_size={kernel_size}, hidden={[*hidden]}: expected whole numbers of "
            f"1 or more."
        )
    if see not in VIEWS:
        raise InputError(f"network.see={see}: expected one of {', '.join(VIEWS)}.")
    if initialisation not in INITIALISATIONS:
        raise InputError(f"network.initialisation={initialisation}: expected {' or '.join(INITIALISATIONS)}.")
    pads = _padding(shape, len(channels), kernel_size, padding)
    sizes = [n + len(channels) * (2 * pad - kernel_size + 1) for n, pad in zip(shape, pads)]
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    device = torch.get_default_device()
    with torch.device("meta"):  # skips PyTorch's initialisation, which is overwritten below
        if centre or see != "all":
            modules["input"] = Input(shape)
        width = 1
        for number, filters in enumerate(channels, start=1):
            modules[f"conv{number}"] = nn.Conv3d(width, filters, kernel_size, padding=(pads[0], pads[1], pads[2]))
            modules[f"relu{number}"] = nn.ReLU()
            width = filters
        modules["flatten"] = nn.Flatten()
        width *= math.prod(sizes)
        for number, units in enumerate(hidden, start=1):
            modules[f"fc{number}"] = nn.Linear(width, units)
            modules[f"relu{len(channels) + number}"] = nn.ReLU()
            if number == 1:
                modules["dropout"] = nn.Dropout(dropout)
            width = units
        modules["output"] = nn.Linear(width, n_classes)
    model = nn.Sequential(modules)
    if device.type == "meta":  # on the meta device there are no weights to initialise
        return model
    model.to_empty(device=device)
    _initialise(model, initialisation, seed)
    return model


def _initialise(model: nn.Sequential, initialisation: str, seed: int) -> None:
    """Fill weights, biases, mean and mask in place; the global random state does not change."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for name, parameter in model.named_parameters():
            if name.endswith("weight"):
                nn.init.xavier_uniform_(parameter)
            else:
                nn.init.zeros_(parameter)
        if initialisation == "looks_linear":
            _pair_units(model)
        for name, buffer in model.named_buffers():
            buffer.fill_(name == "input.mask")


def _pair_units(model: nn.Sequential) -> None:
    """Make the second half of each layer's units the negative of the first, and the next layer subtract them.

    The ReLU of a number minus that of its negative is the number, so the network is linear.
    """
    channels = None  # of the layer before
    for layer in model:
        if not isinstance(layer, (nn.Conv3d, nn.Linear)):
            continue
        weight, units = layer.weight, len(layer.weight)
        if channels is not None:
            blocks = weight.view(units, channels, -1)  # of a flattened volume, the voxels of each channel
            paired = channels // 2
            blocks[:, paired : 2 * paired] = -blocks[:, :paired]
        weight[units // 2 : 2 * (units // 2)] = -weight[: units // 2]
        channels = units


def place(model: nn.Module, device: str | torch.device) -> None:
    """Move a network to a device, with its convolution weights in the memory format in which they run fastest."""
    model.to(device)
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        if tensor.ndim in _LAYOUTS:
            tensor.data = tensor.data.to(memory_format=_LAYOUTS[tensor.ndim])


def _padding(shape: Sequence[int], depth: int, kernel_size: int, padding: int | str) -> tuple[int, ...]:
    thinnest = depth * (kernel_size - 1) + 1  # unpadded convolutions reduce this to one voxel
    if padding == "auto":
        return tuple(kernel_size // 2 if n < thinnest else 0 for n in shape)
    if not str(padding).isdecimal():
        raise InputError(f"network.padding is {padding}, expected auto or a number of voxels (0 for none).")
    padding = int(padding)
    thinnest -= 2 * depth * padding
    if min(shape) < thinnest:
        raise InputError(
            f"network.padding={padding}: a grid of {'x'.join(map(str, shape))} voxels is too small for "
            f"{depth} convolutions with kernel size {kernel_size}, expected at least {thinnest} voxels along "
            f"each axis; set network.padding=auto or choose a finer grid."
        )
    return (padding,) * len(shape)
