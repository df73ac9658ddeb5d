"""The product of an input with the weights of a layer, and the transposed product: the work of every rule.

Convolutions on a CPU run in oneDNN with channels-last memory, long sums of linear layers block by block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_CONVOLVE = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}  # by the number of dimensions of the weight
_TRANSPOSE = {3: F.conv_transpose1d, 4: F.conv_transpose2d, 5: F.conv_transpose3d}
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
_SUM = 1 << 12  # length of the longest float32 sum in a linear layer; these sums are added in float64
_COLUMNS = 1 << 17  # columns of a large linear layer computed at a time, so that their sums stay in the cache
_LARGE = 1 << 24  # number of weights from which a linear layer is computed by columns
_ROWS = 1 << 13  # voxels per piece of element-wise work


def channels_of(module: Any) -> int:
    """The channel axis of a layer's input and output."""
    return -1 if isinstance(module, nn.Linear) else 1


def cases_at_once(x: Tensor, n_weights: int = 0) -> int:
    """Number of cases processed together: on a CPU, no more than have as many numbers as there are weights, which are
    then read once for all of them; more would only take memory."""
    return max(1, n_weights // max(1, x[:1].numel())) if x.device.type == "cpu" else len(x)


def channels_last(x: Tensor) -> Tensor:
    """Convert to the memory layout in which convolutions on a CPU are fastest."""
    layout = _CHANNELS_LAST.get(x.ndim) if x.device.type == "cpu" else None
    return x if layout is None else x.to(memory_format=layout)


def in_pieces(axis: int, *tensors: Tensor) -> Iterator[Sequence[Tensor]]:
    """Yield views of tensors that differ in shape only along ``axis``, which is moved last, to read or write.

    On a CPU, yields pieces [voxels, channels] that fit into its cache, in the memory order of the first tensor. Tensors
    to be written must have the memory layout of the first: the pieces of any other layout are copies.
    """
    last = [tensor.movedim(axis, -1) for tensor in tensors]
    if last[0].device.type != "cpu" or not last[0].is_contiguous():
        yield last
        return
    for pieces in zip(*(tensor.flatten(0, -2).split(_ROWS) for tensor in last)):
        yield [piece.contiguous() for piece in pieces]


def product(module: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The output of the layer for ``x`` [batch, ...] with this weight and bias, in the precision of ``x``."""
    weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    if isinstance(module, nn.Linear):
        return _linear(x, weight, bias)
    assert x.ndim == weight.ndim, f"rules need a batch: input {tuple(x.shape)}, weight {tuple(weight.shape)}"
    x, weight = channels_last(x), channels_last(weight)
    if _runs_in_onednn(x):
        geometry = module.padding, module.stride, module.dilation, module.groups
        return torch.mkldnn_convolution(x, weight, bias, *geometry)
    return _CONVOLVE[x.ndim](x, weight, bias, module.stride, module.padding, module.dilation, module.groups)


def transposed_product(module: Any, shape: Sequence[int], weight: Tensor, s: Tensor) -> Tensor:
    """sum_j w_ij s_j for an input of this shape, in the precision of ``s``; a new tensor."""
    if isinstance(module, nn.Linear):
        return _transposed_linear(s, weight)
    s, weight = channels_last(s), channels_last(weight.to(s.dtype))
    sizes = zip(shape[2:], s.shape[2:], module.kernel_size, module.stride, module.padding, module.dilation)
    output_padding = [  # inputs at the far end that the stride skips
        size + 2 * pad - step * (sites - 1) - dilation * (kernel - 1) - 1
        for size, sites, kernel, step, pad, dilation in sizes
    ]
    if _runs_in_onednn(s):
        geometry = module.padding, output_padding, module.stride, module.dilation, module.groups
        return torch.ops.mkldnn._convolution_transpose_pointwise(s, weight, None, *geometry, "none", [], "")
    geometry = module.stride, module.padding, output_padding, module.groups, module.dilation
    return _TRANSPOSE[weight.ndim](s, weight, None, *geometry)


def _runs_in_onednn(x: Tensor) -> bool:
    """Whether to run a convolution of ``x`` in oneDNN explicitly. PyTorch does so by itself, except for a single case
    that is small or has one channel, for which its own code takes 2 to 5 times as long."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and torch.backends.mkldnn.is_available()


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer that copies no weight; a single float32 sum of millions of products would lose four digits.

    On a CPU, short sums are computed case by case, so that results do not depend on a case's neighbours. The blocks of
    long sums are computed for the whole batch, to read a large weight once; adding them in float64 keeps the effect of
    neighbours below the significant digits.
    """
    features = weight.shape[1]
    whole = features // _SUM * _SUM if features >= 2 * _SUM else 0
    short = (F.linear(cases, weight[:, whole:], bias) for cases in x[..., whole:].split(cases_at_once(x)))
    result = torch.cat([cases.double() for cases in short])
    if whole:
        blocks = weight[:, :whole].unflatten(1, (-1, _SUM)).permute(1, 2, 0)
        rows = x[..., :whole].reshape(-1, len(blocks), _SUM).transpose(0, 1)
        result += torch.bmm(rows, blocks).sum(dim=0, dtype=torch.float64).view(result.shape)
    return result.to(x.dtype)


def _transposed_linear(s: Tensor, weight: Tensor) -> Tensor:
    """s @ weight, without reading rows of a large weight whose s is zero, such as those of inactive units."""
    if s.device.type != "cpu" or weight.numel() < _LARGE:
        return s @ weight
    flat = s.reshape(-1, s.shape[-1])
    first, *others = _runs(flat.any(dim=0).tolist()) or [slice(0)]
    result = s.new_empty(len(flat), weight.shape[1])
    for block, out in zip(weight.split(_COLUMNS, dim=1), result.split(_COLUMNS, dim=1)):
        torch.mm(flat[:, first], block[first], out=out)
        for rows in others:
            torch.addmm(out, flat[:, rows], block[rows], out=out)
    return result.view(*s.shape[:-1], -1)


def _runs(mask: Sequence[bool]) -> list[slice]:
    """Slices of the consecutive true values."""
    edges = [i for i, (before, after) in enumerate(zip([False, *mask], [*mask, False])) if before != after]
    return [slice(*pair) for pair in zip(edges[::2], edges[1::2])]
