"""Run a third-party network: check it, get its answers and gradients, and warn of what makes its maps misleading."""

from __future__ import annotations

import random
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from datxai.errors import InputError
from datxai.explain import graph
from datxai.explain._zennit import types
from datxai.explain.detached import Lookout, find_lost, shift_taken
from datxai.explain.layers import FoldedBatch, require_weights, tensors_in

ONE_AT_A_TIME = threading.RLock()  # explaining adds hooks to the network and changes PyTorch's global settings
MIXES = (
    "the network's answer to a case depends on the other inputs of its batch, as with a batch norm without running "
    "statistics, or on earlier inputs: a case's map depends on what is explained with it."
)
_FORWARD_CODE = "somewhere"  # in `_cut_layers`: in forward code, beside a path that gradients take
_pending_warnings: set[str] = set()  # of the current explanation
_cut_layers: set[str] = set()  # names of layers that block gradients, of the current explanation
_REPEATS = 8  # of one input to find randomness: two random answers may be equal by chance
_QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.ao.nn.sparse.quantized")
_WITHOUT_GRADIENT = "occlusion, lime and kernel_shap need no gradient"


def require_explainable(model: nn.Module, x: Tensor, by_gradient: bool) -> None:
    """Raise InputError for problems that show before the network runs; ``by_gradient``: whether it needs gradients."""
    if not isinstance(model, nn.Module):
        raise InputError(f"the network is a {type(model).__name__}, expected a torch.nn.Module.")
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2:
        what = f"a {x.dtype} tensor of shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise InputError(f"the input is {what}, expected a tensor of floating point numbers [batch, ...].")
    if x.layout != torch.strided or x.is_meta or x.is_nested:
        raise InputError(f"the input is of layout {x.layout} on {x.device}, expected numbers in memory: x.to_dense().")
    if not len(x):
        raise InputError(f"the input, of shape {tuple(x.shape)}, holds no case; expected one or more.")
    for name, module in model.named_modules():
        compiled = hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None)
        if compiled or isinstance(module, torch.jit.ScriptModule):
            raise InputError(
                "the network is compiled (torch.compile or torch.jit), and its layers take no rules; pass the "
                "network that was compiled, which torch.compile keeps as model._orig_mod."
            )
        if by_gradient and type(module).__module__.startswith(_QUANTISED):
            raise InputError(
                f"layer {name} ({type(module).__name__}) is quantised and has no gradient; pass the network as it "
                f"was before quantisation ({_WITHOUT_GRADIENT})."
            )
    require_weights(model)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if by_gradient and tensor.is_inference():
            raise InputError(
                f"{name} was made in inference mode, where PyTorch takes no gradients; create or load the network "
                f"outside of torch.inference_mode() ({_WITHOUT_GRADIENT})."
            )


def run(model: nn.Module, x: Tensor) -> Any:
    """The output of ``model`` for a copy of ``x``, which the model may modify in place."""
    with _refusing(lambda error: _why_it_cannot_run(model, x, error)), _finding_cuts(model, x):
        return model(x.clone())


@contextmanager
def _finding_cuts(model: nn.Module, x: Tensor) -> Iterator[None]:
    """Note the layers whose input depends on ``x``, but through whose output no gradient flows back."""

    def check(name: str, inputs: tuple, output: object) -> None:
        requires_grad = [tensor.requires_grad for tensor in tensors_in(output) if tensor.is_floating_point()]
        if requires_grad and not any(requires_grad) and any(tensor.requires_grad for tensor in tensors_in(inputs)):
            _cut_layers.add(name)

    if not (x.requires_grad and torch.is_grad_enabled()):
        yield
        return
    lookout = Lookout()
    handles = [
        *lookout.follow(model),
        *(
            module.register_forward_hook(
                lambda module, args, kwargs, output, name=name: check(name, (args, kwargs), output), with_kwargs=True
            )
            for name, module in model.named_modules()
        ),
    ]
    try:
        with lookout:
            yield
        if lookout.seen or lookout.taken:
            _cut_layers.add(_FORWARD_CODE)
    finally:
        for handle in handles:
            handle.remove()


def answer(model: nn.Module, x: Tensor) -> Tensor:
    """Logits [batch, outputs] of ``model``."""
    output = run(model, x)
    if not isinstance(output, Tensor):
        raise InputError(
            f"the network answers with a {type(output).__name__}, expected one tensor of logits [batch, outputs]; "
            f"wrap it in a module that returns only its logits."
        )
    shape = tuple(output.shape)
    if output.ndim == 0 or len(output) != len(x) or not output.numel():
        raise InputError(f"the network answers with shape {shape} to {len(x)} cases, expected [batch, outputs].")
    if any(length != 1 for length in shape[2:]):
        raise InputError(
            f"the network answers with shape {shape}, expected [batch, outputs]: choose the number of each output to "
            f"explain by wrapping it in a module that reduces the other axes, as in output.flatten(2).mean(dim=2)."
        )
    if not output.is_floating_point():
        raise InputError(
            f"the network answers with {output.dtype} numbers, expected logits, which are floating point; wrap it in a "
            f"module that returns the numbers by which it decides."
        )
    return output.as_subclass(Tensor).reshape(len(x), -1)


def are_close(values: Tensor, expected: Tensor, scale: Tensor, input_dtype: torch.dtype | None = None) -> bool:
    """Whether answers to the same input are equal up to rounding, relative to the largest magnitude in ``scale``.

    ``input_dtype``: the data type of the input, if the network may have continued in a finer one.
    """
    if not scale.isfinite().all():
        return True  # not comparable
    tolerance = max(torch.finfo(dtype).eps for dtype in (scale.dtype, input_dtype or scale.dtype)) ** 0.5
    return torch.allclose(values, expected, rtol=tolerance, atol=tolerance * float(scale.abs().max()))


def note_mixing(model: nn.Module, x: Tensor, answers: Tensor) -> None:
    """Note a warning if ``model`` answers the first of several inputs differently from that input alone."""
    if len(x) > 1:
        with torch.no_grad():
            alone = answer(model, x[:1])
        if not are_close(alone, answers[:1], answers, x.dtype):
            note(MIXES)


def gradient(score: Tensor, x: Tensor) -> Tensor:
    """The gradient of the sum of ``score`` with respect to ``x``."""
    require_way_back(score.requires_grad)
    if graph.mixes_cases(score):
        note(MIXES)
    with _refusing(lambda error: f"the network cannot be differentiated ({_in_a_line(error)})."):
        total = score.sum()  # with grad_outputs instead, PyTorch would import SymPy first
        (slope,) = torch.autograd.grad(total, x, allow_unused=True)
    require_way_back(slope is not None)
    if not slope.any() and (steps := graph.steps_without_slope(score)):
        require_way_back(False, f"it goes through {', '.join(steps)}, whose gradient is zero")
    return slope


def require_way_back(
    exists: bool,
    reason: str = "it is detached, computed under torch.no_grad(), thresholded, or independent of the input",
) -> None:
    """Raise InputError for a network whose gradient does not reach its input."""
    if not exists:
        raise InputError(
            f"no gradient leads from the network's answer back to its input: {reason}; pass a network that can be "
            f"differentiated, or choose another method ({_WITHOUT_GRADIENT})."
        )


def require_rows_are_cases(model: nn.Module, x: Tensor, layers: Iterable[nn.Module]) -> None:
    """Raise FoldedBatch if rows of any of ``layers`` are not cases, even though there are as many of both."""

    def check(module: nn.Module, args: tuple) -> None:
        if args and isinstance(args[0], Tensor) and args[0].shape[:1] != (1,):
            raise FoldedBatch

    handles = [layer.register_forward_pre_hook(check) for layer in layers] if len(x) > 1 else []
    try:
        if handles:
            with torch.no_grad():
                run(model, x[:1])
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def noticing(model: nn.Module, x: Tensor) -> Iterator[None]:
    """Warn, once each, of behaviour of a network in evaluation mode that makes its maps misleading."""
    _pending_warnings.clear()
    _cut_layers.clear()
    before = _random_state(x)
    yield
    not_finite = [number for number, case in enumerate(x) if not torch.isfinite(case).all()]
    if not_finite:
        note(f"the input has numbers that are not finite, in {_listed('case', not_finite)}; so may the map.")
    without_statistics = [
        f"{name} ({type(module).__name__})"
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None
    ]
    drawing = None if before == _random_state(x) else _find_drawing(model, x[:1])
    if drawing is not None:
        _pending_warnings.discard(MIXES)
        note(
            f"{drawing} draws random numbers in evaluation mode, as a functional dropout without "
            f"training=self.training does: the network answers the same input differently each time, and so does its "
            f"map."
        )
    if without_statistics:
        _pending_warnings.discard(MIXES)
        note(
            f"{_listed('layer', without_statistics)} normalises by the cases that are explained together, having no "
            f"running statistics (track_running_stats=False): a case's map depends on the others."
        )
    in_forward_code = _FORWARD_CODE in _cut_layers
    _cut_layers.discard(_FORWARD_CODE)
    cut = _find_used(model, x[:1]) if drawing is None else []
    if in_forward_code and not cut and drawing is None and (message := _find_lost(model, x[:1])):
        note(message)
    if cut:
        note(
            f"no gradient leads back through {_listed('layer', cut)} (detached, or under torch.no_grad()): the map "
            f"lacks its contribution."
        )
    for message in sorted(_pending_warnings):
        warnings.warn(message, stacklevel=4)  # where `attribute` was called


def note_not_finite(x: Tensor, relevance: Tensor) -> None:
    """Note a warning if a map is not finite although its input is."""
    broken = [
        number
        for number, (case, case_map) in enumerate(zip(x, relevance))
        if not torch.isfinite(case_map).all() and torch.isfinite(case).all()
    ]
    if broken:
        note(
            f"the map of {_listed('case', broken)} has numbers that are not finite, and the input has none: look for "
            f"NaN and infinity in the network's weights and answers."
        )


def note(message: str) -> None:
    """Add a warning to show after the map is computed; each message is shown once."""
    _pending_warnings.add(message)


def _random_state(x: Tensor) -> tuple:
    """State of the PyTorch, NumPy and Python generators that a network on the device of ``x`` may use."""
    states = [torch.random.get_rng_state()] + ([torch.cuda.get_rng_state(x.device)] if x.is_cuda else [])
    numpy_state: Any = np.random.get_state()
    return *(bytes(state.numpy()) for state in states), bytes(numpy_state[1]), numpy_state[2], random.getstate()


def _find_drawing(model: nn.Module, x: Tensor) -> str | None:
    """The innermost module that draws random numbers, if repeated answers to one input differ."""
    drawing, states = [], []

    def leave(module: nn.Module, name: str) -> None:
        has_drawn = states.pop() != _random_state(x)
        if has_drawn and not any(_lies_in(inner, name) for inner, _ in drawing):
            drawing.append((name, type(module).__name__))

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_: states.append(_random_state(x))))
        handles.append(module.register_forward_hook(lambda module, args, output, name=name: leave(module, name)))
    try:
        with torch.no_grad():
            first, *others = (answer(model, x) for _ in range(_REPEATS))
    finally:
        for handle in handles:
            handle.remove()
    if all(torch.equal(first, other) for other in others) or not drawing:
        return None
    name, kind = drawing[0]
    return f"layer {name} ({kind})" if name else f"the network itself ({kind})"


def _find_used(model: nn.Module, x: Tensor) -> list[str]:
    """Names of the layers without a gradient whose output nevertheless changes with the input."""
    outputs_of: dict[str, list[list[Tensor]]] = {}
    modules = {name: module for name, module in model.named_modules() if name in _cut_layers}
    handles = [
        module.register_forward_hook(
            lambda module, args, output, name=name: outputs_of.setdefault(name, []).append(list(tensors_in(output)))
        )
        for name, module in modules.items()
    ]
    try:
        if handles:
            with torch.no_grad():
                run(model, x)
                run(model, 1.1 * x + 0.1)
    finally:
        for handle in handles:
            handle.remove()
    used = [
        name
        for name, outputs in outputs_of.items()
        if not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(outputs[0], outputs[-1]))
    ]
    return [name for name in used if not any(_lies_in(other, name) for other in used)]


def _find_lost(model: nn.Module, x: Tensor) -> str | None:
    """The warning for values detached in the network's forward code; None if they do not affect its answer."""
    slopes = find_lost(lambda inputs: answer(model, inputs), x)
    answers = shift_taken(lambda inputs: answer(model, inputs), x)
    if slopes is None or answers is None:
        return (
            "a value that depends on the input is detached somewhere in the network (.detach(), .data, .item(), NumPy, "
            "or under torch.no_grad()), and its effect on the answer is unknown: the map may lack its contribution."
        )
    if are_close(slopes[0], slopes[1], slopes) and are_close(answers[0], answers[1], answers[0]):
        return None
    return (
        "a value that depends on the input is detached somewhere in the network (.detach(), .data, .item(), or under "
        "torch.no_grad()) and affects its answer: the map lacks its contribution."
    )


def _lies_in(inner: str, outer: str) -> bool:
    """Whether the module named ``inner`` is inside the one named ``outer``; the network itself has an empty name."""
    return inner != outer and inner.startswith(f"{outer}." if outer else "")


@contextmanager
def _refusing(describe: Callable[[Exception], str]) -> Iterator[None]:
    """Turn exceptions of third-party code into an InputError of one sentence."""
    try:
        yield
    except (InputError, FoldedBatch, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise InputError(describe(error)) from error


def _why_it_cannot_run(model: nn.Module, x: Tensor, error: Exception) -> str:
    weight = next((parameter for parameter in model.parameters() if parameter.is_floating_point()), x)
    layer: Any = next((module for module in model.modules() if isinstance(module, types.Convolution)), None)
    advice = "expected the shape that it was made for, [batch, channels, ...]"
    if weight.dtype != x.dtype:
        advice = f"the input is {x.dtype} and its weights are {weight.dtype}: give it x.to({weight.dtype})"
    elif weight.device != x.device:
        advice = f"the input is on {x.device} and its weights on {weight.device}: give it x.to({str(weight.device)!r})"
    elif layer is not None and x.ndim == len(layer.kernel_size) + 1:
        advice = "expected [batch, channels, ...]: add the axis of the batch, as in x[None]"
    return f"the network cannot take an input of shape {tuple(x.shape)} ({_in_a_line(error)}); {advice}."


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _listed(what: str, names: list) -> str:
    return f"{what}{'s' if len(names) > 1 else ''} {', '.join(map(str, names))}"
