"""Read autograd's graph: which operations led from the input to the output of a network, wherever they were called.

A network is more than its modules: pooling and activations may be functions, branches may split and join, axes may be
permuted. Autograd records every operation of a forward pass. This module reads that record to find three things: the
activations that guided backpropagation rectifies, operations with zero gradient, and where the units of a layer lie.

An axis of a tensor is a sequence of *atoms*, since reshaping merges axes and splits them again. An atom is a number of
units and their `Place` along an axis of the input, None for channels and for units whose place is unknown.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

from datxai.errors import InputError

_NO_SLOPE = {"Sign", "Sgn", "Round", "Floor", "Ceil", "Trunc", "Heaviside"}
_OTHER_ACTIVATIONS = {  # used instead of ReLU, by autograd's name
    "LeakyRelu": "LeakyReLU", "PreluKernel": "PReLU", "RreluWithNoise": "RReLU", "Hardtanh": "ReLU6 or Hardtanh",
    "Elu": "ELU or SELU", "Celu": "CELU", "Gelu": "GELU", "Silu": "SiLU", "Mish": "Mish", "Hardswish": "Hardswish",
    "Softplus": "Softplus", "Threshold": "Threshold",
}  # fmt: skip
_BATCH_NORMS = {"NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm"}
_POINTWISE = {  # a unit depends only on the units at its own place
    *_OTHER_ACTIVATIONS, *_NO_SLOPE, "Relu", "Sigmoid", "Tanh", "LogSigmoid", "Hardsigmoid", "Hardshrink",
    "Softshrink", "Glu",
    "Add", "Sub", "Rsub", "Mul", "Div", "Pow", "Neg", "Abs", "Exp", "Expm1", "Log", "Log1P", "Sqrt",
    "Rsqrt", "Erf", "Sin", "Cos", "Atan", "Reciprocal", "Clamp", "ClampMin", "ClampMax", "Minimum", "Maximum", "Where",
    "MaskedFill", "Lerp", "Addcmul", "Addcdiv", "NanToNum", *_BATCH_NORMS,
    "NativeGroupNorm", "NativeLayerNorm", "FusedRmsNorm", "NativeDropout", "FusedDropout", "Clone", "ToCopy", "Alias",
    "Expand", "Softmax", "LogSoftmax", "BackwardHookFunction", "Cat",
}  # fmt: skip
_RESHAPE = {"View", "UnsafeView", "ReshapeAlias", "Unsqueeze", "Squeeze"}
_MOVING = ("Flip", "Roll", "Index", "IndexSelect", "Gather", "Sort", "Cumsum", "AsStrided", "GridSampler2D",
           "GridSampler3D")  # fmt: skip
_PADDING = {"ConstantPadNd", *(f"{kind}Pad{axes}D" for kind in ("Reflection", "Replication") for axes in (1, 2, 3))}


def kind_of(node: Node) -> str:
    """The operation of a node, such as ``Convolution`` for ConvolutionBackward0."""
    return re.sub(r"(Backward)?\d*$", "", node.name().split("::")[-1])


def walk(root: Node | None, without: Node | None = None) -> Iterator[Node]:
    """Every node on the way back from ``root`` to the input, once, not going through the node ``without``."""
    seen, waiting = {without}, [root]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            waiting += [parent for parent, _ in node.next_functions]


def steps_without_slope(score: Tensor) -> list[str]:
    """Names of the operations that led to ``score`` and whose gradient is zero everywhere."""
    return sorted({kind_of(node).lower() for node in walk(score.grad_fn) if kind_of(node) in _NO_SLOPE})


def mixes_cases(score: Tensor) -> bool:
    """Whether a batch norm that led to ``score`` computed its statistics over several cases."""
    norms: list[Any] = [node for node in walk(score.grad_fn) if kind_of(node) in _BATCH_NORMS]
    return any(getattr(node, "_saved_training", False) and node._saved_input.shape[0] > 1 for node in norms)


def guide(score: Tensor) -> None:
    """Make every ReLU that led to ``score`` pass only positive gradients back, in the next backward pass.

    Raises InputError for networks with other activations, for which guided backpropagation is not defined.
    """
    nodes = list(walk(score.grad_fn))
    rectifiers = [node for node in nodes if _is_relu(node)]
    others = sorted({_OTHER_ACTIVATIONS[kind] for kind in map(kind_of, nodes) if kind in _OTHER_ACTIVATIONS})
    if not rectifiers or others:
        reason = f"this network has {', '.join(others)}" if others else "no ReLU ran in this network"
        raise InputError(
            f"attribution.method=guided_backprop modifies the gradient of ReLU, but {reason}; choose another method, "
            f"such as gradient."
        )
    for node in rectifiers:
        node.register_prehook(lambda gradients: tuple(gradient.clamp(min=0) for gradient in gradients))


def _is_relu(node: Any) -> bool:
    kind = kind_of(node)
    return kind == "Relu" or (kind in ("Clamp", "ClampMin") and node._saved_min == 0 and not _upper_end(node))


def _upper_end(node: Node) -> bool:
    return getattr(node, "_saved_max", None) is not None


# --- where units lie ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Unit number n reaches from voxel ``first + step * n`` to ``last + step * n`` of the input's ``axis``."""

    axis: int
    step: float = 1.0
    first: float = 0.0
    last: float = 0.0

    @property
    def start(self) -> float:
        """The centre of the first unit's receptive field."""
        return (self.first + self.last) / 2

    def moved(self, units: float, reach: float = 0.0, stride: float = 1.0) -> Place:
        """The place of windows that start ``units`` later, span ``reach`` more units and are ``stride`` units apart."""
        first = self.first + self.step * units
        return replace(self, step=self.step * stride, first=first, last=self.last + self.step * (units + reach))

    def joined(self, other: Place) -> Place | None:
        """The place of units that see what either sees; None if their centres differ by more than half a step."""
        if (self.axis, self.step) != (other.axis, other.step) or abs(self.start - other.start) > self.step / 2:
            return None
        return replace(self, first=min(self.first, other.first), last=max(self.last, other.last))


ELSEWHERE = Place(0)  # of units moved within the input; joined with units that were not, their place is unknown
Atom = tuple[int, Place | None]
Axis = tuple[Atom, ...]
Axes = Sequence[Axis]


def locate(score: Tensor, x: Tensor) -> Callable[[Tensor], Axes | None]:
    """A function that returns the axes of any tensor between ``x`` [batch, channels, ...] and ``score``.

    Call it before a backward pass. It returns an `Axis` for each axis of the tensor.
    """
    axes_of: dict[tuple[Any, int], Axes | None] = {}

    def find(node: Any, number: int) -> Axes | None:
        """The axes of output ``number`` of a node whose inputs are known; None if it does not depend on ``x``."""
        if node is None or (node, number) in axes_of:
            return axes_of.get((node, number))
        if kind_of(node) == "AccumulateGrad":
            if node.variable is not x:
                return None
            input_axes = [_axis(length, Place(axis) if axis > 1 else None) for axis, length in enumerate(x.shape)]
            return axes_of.setdefault((node, number), tuple(input_axes))
        shape = tuple(int(length) for length in node._input_metadata[number].shape)
        inputs = [find(*edge) for edge in node.next_functions]
        axes = None if not any(inputs) else _axes_of_output(node, inputs, shape)
        return axes_of.setdefault((node, number), axes)

    for node in _inputs_first(score.grad_fn):
        for number in range(len(node._input_metadata)):
            find(node, number)
    return lambda tensor: find(tensor.grad_fn, tensor.output_nr)


def _inputs_first(root: Node | None) -> list[Any]:
    """Every node that ``root`` depends on, in topological order, inputs first."""
    order, seen, waiting = [], set(), [(root, False)]
    while waiting:
        node, expanded = waiting.pop()
        if expanded:
            order.append(node)
        elif node is not None and node not in seen:
            seen.add(node)
            waiting.append((node, True))
            waiting += [(parent, False) for parent, _ in node.next_functions]
    return order


def _axis(length: int, place: Place | None) -> Axis:
    return () if length == 1 and place is None else ((length, place),)


def _unknown(shape: Sequence[int]) -> Axes:
    return tuple(_axis(length, None) for length in shape)


def _axes_of_output(node: Any, inputs: list[Axes | None], shape: tuple[int, ...]) -> Axes:
    """The axes of a node's output of ``shape``; `_unknown` if the operation is not supported."""
    kind, first = kind_of(node), next(filter(None, inputs))
    rule = _RULES.get(kind)
    if kind in _POINTWISE:
        axes = _broadcast(inputs, shape)
    elif kind == "Stack":
        new = _signed(node._saved_dim) % len(shape)
        axes = list(_broadcast(inputs, shape[:new] + shape[new + 1 :]))
        axes.insert(new, _axis(shape[new], None))
    elif kind in _RESHAPE:
        axes = _regroup([atom for axis in first for atom in axis], shape)
    else:
        data = inputs[1 if kind == "Addmm" else 0]  # whose first input is the bias
        axes = None if rule is None or data is None else rule(node, data, shape)
    lengths = None if axes is None else tuple(math.prod(length for length, _ in axis) for axis in axes)
    return _unknown(shape) if axes is None or lengths != shape else tuple(axes)


def _broadcast(inputs: list[Axes | None], shape: tuple[int, ...]) -> Axes:
    """The axes of inputs broadcast together: each joins the axes of the inputs that have places there."""
    joined = []
    for back, length in zip(range(len(shape), 0, -1), shape):
        axes_here = [axes[-back] for axes in inputs if axes is not None and len(axes) >= back]
        placed = {axis for axis in axes_here if any(p for _, p in axis) and math.prod(n for n, _ in axis) == length}
        joined.append(_join(sorted(placed, key=repr), length))
    return tuple(joined)


def _join(candidates: list[Axis], length: int) -> Axis:
    if not candidates:
        return _axis(length, None)
    joined, *others = candidates
    for axis in others:
        if [n for n, _ in joined] != [n for n, _ in axis]:
            return _axis(length, None)
        places = [b if a is None else a if b is None else a.joined(b) for (_, a), (_, b) in zip(joined, axis)]
        if any(place is None and a and b for place, (_, a), (_, b) in zip(places, joined, axis)):
            return _axis(length, None)
        joined = tuple((n, place) for (n, _), place in zip(joined, places))
    return joined


def _regroup(atoms: list[Atom], shape: tuple[int, ...]) -> Axes:
    """Atoms regrouped into new axes; if an axis splits an atom, all axes that share its atoms are unknown."""
    regrouped: list[Axis] = []
    atoms, lengths = list(atoms), list(shape)
    while lengths:
        group, new_lengths, group_size = [], [lengths.pop(0)], 1
        new_size = new_lengths[0]
        while group_size != new_size:
            if group_size < new_size:
                if not atoms:
                    return _unknown(shape)
                group.append(atoms.pop(0))
                group_size *= group[-1][0]
            else:
                if not lengths:
                    return _unknown(shape)
                new_lengths.append(lengths.pop(0))
                new_size *= new_lengths[-1]
        if new_lengths == [1] and atoms and atoms[0][0] == 1:
            group.append(atoms.pop(0))
        regrouped += [tuple(group)] if len(new_lengths) == 1 else [_axis(length, None) for length in new_lengths]
    return tuple(regrouped)


def _move_last(axes: Axes, moves: Sequence[Callable[[Place], Place] | None], shape: tuple[int, ...]) -> Axes:
    """Axes whose last ``len(moves)`` places are moved, or become unknown where a move is None; others are kept."""
    kept = [
        axis if math.prod(n for n, _ in axis) == length else _axis(length, None)
        for axis, length in zip(axes[: -len(moves)], shape)
    ]
    changed = []
    for axis, move, length in zip(axes[-len(moves) :], moves, shape[-len(moves) :]):
        place = axis[0][1] if len(axis) == 1 else None
        changed.append(_axis(length, None if place is None or move is None else move(place)))
    return (*kept, *changed)


def _for_each(values: Sequence[int], n: int) -> Sequence[int]:
    """One value for each of ``n`` axes, from as many or from one for all."""
    return values if len(values) == n else tuple(values) * n


def _convolved(node: Any, axes: Axes, shape: tuple[int, ...]) -> Axes:
    kernel = node._saved_weight.shape[2:]
    geometry = node._saved_stride, node._saved_padding, node._saved_dilation
    moves = []
    for k, stride, pad, dilation in zip(kernel, *(_for_each(values, len(kernel)) for values in geometry)):
        reach = dilation * (k - 1)
        if node._saved_transposed:
            moves.append(lambda p, s=stride, a=pad, r=reach: p.moved((a - r) / s, r / s, 1 / s))
        else:
            moves.append(lambda p, s=stride, a=pad, r=reach: p.moved(-a, r, s))
    return _move_last(axes, moves, shape)


def _pooled(node: Any, axes: Axes, shape: tuple[int, ...]) -> Axes:
    n = int(kind_of(node).split("Pool")[1][0])
    kernel = node._saved_kernel_size
    geometry = kernel, node._saved_stride or kernel, node._saved_padding, getattr(node, "_saved_dilation", (1,))
    moves = [
        lambda p, k=k, s=s, a=a, d=d: p.moved(-a, d * (k - 1), s)
        for k, s, a, d in zip(*(_for_each(values, n) for values in geometry))
    ]
    return _move_last(axes, moves, shape)


def _resized(node: Any, axes: Axes, shape: tuple[int, ...]) -> Axes:
    """Adaptive pooling and interpolation with windows of one size; other places become unknown."""
    n = int(kind_of(node)[-2])
    before = [math.prod(units for units, _ in axis) for axis in axes[-n:]]
    corners = getattr(node, "_saved_align_corners", False)
    moves = []
    for old, new in zip(before, shape[-n:]):
        ratio = (old - 1) / max(new - 1, 1) if corners else old / new
        one_size = not kind_of(node).startswith("Adaptive") or (old % new == 0 and (new > 1 or old == 1))
        shift = 0 if corners else (ratio - 1) / 2
        moves.append((lambda p, r=ratio, s=shift: p.moved(s, 0, r)) if one_size else None)
    return _move_last(axes, moves, shape)


def _padded(node: Any, axes: Axes, shape: tuple[int, ...]) -> Axes:
    before = (node._saved_pad if hasattr(node, "_saved_pad") else node._saved_padding)[::2][::-1]
    return _move_last(axes, [lambda p, a=pad: p.moved(-a) for pad in before], shape)


def _sliced(node: Any, axes: Axes, shape: tuple[int, ...]) -> Axes:
    changed, dim = list(axes), _signed(node._saved_dim) % len(axes)
    units, place = axes[dim][0] if len(axes[dim]) == 1 else (0, None)
    if place is not None:
        start = _signed(node._saved_start)
        start = min(max(start + units if start < 0 else start, 0), units)
        changed[dim] = ((shape[dim], place.moved(start, 0, node._saved_step)),)
    else:
        changed[dim] = _axis(shape[dim], None)
    return changed


def _scattered(node: Any, axes: Axes, shape: tuple[int, ...]) -> Axes:
    """Flipped, rolled or indexed: the axes that had places are `ELSEWHERE`."""
    if len(axes) != len(shape):
        return _unknown(shape)
    had_place = (any(place for _, place in axis) for axis in axes)
    return tuple(_axis(length, ELSEWHERE if had else None) for had, length in zip(had_place, shape))


def _split(node: Any, axes: Axes, shape: tuple[int, ...]) -> Axes:
    """Split along an axis, which becomes unknown."""
    changed, dim = list(axes), _signed(node._saved_dim) % len(axes)
    changed[dim] = _axis(shape[dim], None)
    return changed


def _reduced(node: Any, axes: Axes, shape: tuple[int, ...]) -> Axes:
    """Reduced over or selected from some axes, which are dropped or kept at length one."""
    dims = getattr(node, "_saved_dim", ())
    dims = dims if isinstance(dims, (tuple, list)) else [dims]
    reduced = {_signed(dim) % len(axes) for dim in dims} or set(range(len(axes)))
    if len(shape) == len(axes):
        return tuple(() if dim in reduced else axis for dim, axis in enumerate(axes))
    return tuple(axis for dim, axis in enumerate(axes) if dim not in reduced)


def _permuted(node: Any, axes: Axes, shape: tuple[int, ...]) -> Axes:
    return tuple(axes[_signed(dim) % len(shape)] for dim in node._saved_dims)


def _transposed(node: Any, axes: Axes, shape: tuple[int, ...]) -> Axes:
    swapped = list(axes)
    a, b = (_signed(dim) % len(axes) for dim in (node._saved_dim0, node._saved_dim1))
    swapped[a], swapped[b] = axes[b], axes[a]
    return swapped


def _mixed(node: Any, axes: Axes, shape: tuple[int, ...]) -> Axes:
    """A product with a weight matrix: the last axis becomes channels."""
    return (*axes[:-1], _axis(shape[-1], None))


def _signed(number: int) -> int:
    """Undo autograd's representation of some negative numbers as unsigned 64-bit integers."""
    return number - (1 << 64) if number >= 1 << 63 else number


_UPSAMPLING = ("Nearest", "NearestExact", "Linear", "Bilinear", "Bicubic", "Trilinear")
_RULES: dict[str, Callable[[Any, Axes, tuple[int, ...]], Axes]] = {
    "Convolution": _convolved,
    **{kind: _pooled for axes in (2, 3) for kind in (f"MaxPool{axes}DWithIndices", f"AvgPool{axes}D")},
    **{f"Adaptive{kind}Pool{axes}D": _resized for kind in ("Max", "Avg") for axes in (2, 3)},
    **{f"Upsample{kind}{axes}D": _resized for kind in _UPSAMPLING for axes in (1, 2, 3)},
    **dict.fromkeys(_PADDING, _padded),
    "Slice": _sliced,
    **dict.fromkeys(_MOVING, _scattered),
    **dict.fromkeys(("Split", "SplitWithSizes"), _split),
    **dict.fromkeys(("Mean", "Sum", "Amax", "Select", "Unbind"), _reduced),
    "Permute": _permuted,
    "Transpose": _transposed,
    **dict.fromkeys(("Addmm", "Mm", "Linear"), _mixed),
}  # fmt: skip


def units(node: Any) -> int:
    """Number of spatial positions in the output of a convolution."""
    return math.prod(int(length) for length in node._input_metadata[0].shape[2:])


def passes_everything(score: Tensor, x: Tensor, tensor: Tensor) -> bool:
    """Whether every path from ``x`` to ``score`` goes through ``tensor``, and no spatial convolution follows it."""
    after = set(walk(score.grad_fn, without=tensor.grad_fn))
    if get_gradient_edge(x).node in after:
        return False
    return not any(kind_of(node) == "Convolution" and units(node) > 1 for node in after)


def leads_to(earlier: Tensor, later: Tensor) -> bool:
    """Whether ``later`` depends on ``earlier``."""
    return earlier.grad_fn in set(walk(later.grad_fn))
