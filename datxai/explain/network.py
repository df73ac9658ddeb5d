"""Running a network that somebody else wrote: what it has to be, what it answers, and what leads back to its input."""

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

ONE_AT_A_TIME = threading.RLock()  # a network that is explained has hooks, and PyTorch's settings are the process's
MIXES = (
    "the network's answer to a case depends on the other inputs of its batch, as with a batch norm without running "
    "statistics, or on what it was asked before: a case's map depends on what is explained with it."
)
SOMEWHERE = "somewhere"  # in the code of a module, beside a way that gradients go back
_noted: set[str] = set()  # of the explanation that is being made
_cut: set[str] = set()  # names of layers, the same
_AGAIN = 8  # times that a network is asked the same, as what it draws may be a choice of two
_QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.ao.nn.sparse.quantized")
_WITHOUT_GRADIENT = "occlusion, lime and kernel_shap need no gradient"


def require_explainable(model: nn.Module, x: Tensor, by_gradient: bool) -> None:
    """Refuse what shows before the network runs; ``by_gradient``: whether its gradients are asked for."""
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
                "the network is compiled (torch.compile or torch.jit), and its layers take no rules; hand over the "
                "network that was compiled, which torch.compile keeps as model._orig_mod."
            )
        if by_gradient and type(module).__module__.startswith(_QUANTISED):
            raise InputError(
                f"layer {name} ({type(module).__name__}) is quantised and hands no gradient back; hand over the "
                f"network before quantisation ({_WITHOUT_GRADIENT})."
            )
    require_weights(model)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if by_gradient and tensor.is_inference():
            raise InputError(
                f"{name} was made in inference mode, of which PyTorch takes no gradients; make or load the network "
                f"outside of torch.inference_mode() ({_WITHOUT_GRADIENT})."
            )


def run(model: nn.Module, x: Tensor) -> Any:
    """What ``model`` makes of ``x``; it is given a copy, which it may write into."""
    with _refusing(lambda error: _why_it_cannot_run(model, x, error)), _finding_cuts(model, x):
        return model(x.clone())


@contextmanager
def _finding_cuts(model: nn.Module, x: Tensor) -> Iterator[None]:
    """Note the layers that take what depends on ``x``, and hand on what no gradient leads back from."""

    def look(name: str, given: tuple, output: object) -> None:
        made = [tensor.requires_grad for tensor in tensors_in(output) if tensor.is_floating_point()]
        if made and not any(made) and any(tensor.requires_grad for tensor in tensors_in(given)):
            _cut.add(name)

    if not (x.requires_grad and torch.is_grad_enabled()):
        yield
        return
    lookout = Lookout()
    handles = [
        *lookout.follow(model),
        *(
            module.register_forward_hook(
                lambda module, args, named, output, name=name: look(name, (args, named), output), with_kwargs=True
            )
            for name, module in model.named_modules()
        ),
    ]
    try:
        with lookout:
            yield
        if lookout.seen or lookout.taken:
            _cut.add(SOMEWHERE)
    finally:
        for handle in handles:
            handle.remove()


def answer(model: nn.Module, x: Tensor) -> Tensor:
    """Logits [batch, outputs] of ``model``."""
    output = run(model, x)
    if not isinstance(output, Tensor):
        raise InputError(
            f"the network answers with a {type(output).__name__}, expected one tensor of logits [batch, outputs]; "
            f"wrap it in a module that hands on its logits alone."
        )
    shape = tuple(output.shape)
    if output.ndim == 0 or len(output) != len(x) or not output.numel():
        raise InputError(f"the network answers with shape {shape} to {len(x)} cases, expected [batch, outputs].")
    if any(length != 1 for length in shape[2:]):
        raise InputError(
            f"the network answers with shape {shape}, expected [batch, outputs]: say which number of each output is to "
            f"be explained by wrapping it in a module that reduces the other axes, as in output.flatten(2).mean(dim=2)."
        )
    if not output.is_floating_point():
        raise InputError(
            f"the network answers with {output.dtype} numbers, expected logits, which are floating point; wrap it in a "
            f"module that hands on what it decides by."
        )
    return output.as_subclass(Tensor).reshape(len(x), -1)


def are_close(values: Tensor, expected: Tensor, among: Tensor, made_in: torch.dtype | None = None) -> bool:
    """Whether answers to the same input are the same but for rounding, which is of the size of those ``among``.

    ``made_in``: the type of the input, where the network may have gone on in a finer one.
    """
    if not among.isfinite().all():
        return True  # nobody can tell
    close = max(torch.finfo(kind).eps for kind in (among.dtype, made_in or among.dtype)) ** 0.5
    return torch.allclose(values, expected, rtol=close, atol=close * float(among.abs().max()))


def note_mixing(model: nn.Module, x: Tensor, answers: Tensor) -> None:
    """Note it if ``model`` answered the first of several inputs otherwise than when it is asked for that alone."""
    if len(x) > 1:
        with torch.no_grad():
            alone = answer(model, x[:1])
        if not are_close(alone, answers[:1], answers, x.dtype):
            note(MIXES)


def gradient(score: Tensor, x: Tensor) -> Tensor:
    """The gradient of the sum of ``score`` at ``x``, which has led to it."""
    require_way_back(score.requires_grad)
    if graph.mixes_cases(score):
        note(MIXES)
    with _refusing(lambda error: f"nothing can be handed back through the network ({_in_a_line(error)})."):
        total = score.sum()  # given a seed instead, PyTorch would import SymPy first
        (slope,) = torch.autograd.grad(total, x, allow_unused=True)
    require_way_back(slope is not None)
    if not slope.any() and (steps := graph.steps_without_slope(score)):
        require_way_back(False, f"it goes through {', '.join(steps)}, which has no slope")
    return slope


def require_way_back(
    there_is: bool,
    why: str = "it is detached, computed under torch.no_grad(), compared with a threshold, or made without the input",
) -> None:
    """Refuse a network through which no gradient comes back."""
    if not there_is:
        raise InputError(
            f"no gradient leads from the network's answer back to its input: {why}; hand over a network that can be "
            f"differentiated, or choose another method ({_WITHOUT_GRADIENT})."
        )


def require_rows_are_cases(model: nn.Module, x: Tensor, layers: Iterable[nn.Module]) -> None:
    """Raise FoldedBatch if of several cases any of ``layers`` has rows that are no cases, though there be as many."""

    def look(module: nn.Module, args: tuple) -> None:
        if args and isinstance(args[0], Tensor) and args[0].shape[:1] != (1,):
            raise FoldedBatch

    handles = [layer.register_forward_pre_hook(look) for layer in layers] if len(x) > 1 else []
    try:
        if handles:
            with torch.no_grad():
                run(model, x[:1])
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def noticing(model: nn.Module, x: Tensor) -> Iterator[None]:
    """Warn, once each, of what a network in evaluation mode does that makes a map something else than it seems."""
    _noted.clear()
    _cut.clear()
    before = _random_state(x)
    yield
    unusual = [number for number, case in enumerate(x) if not torch.isfinite(case).all()]
    if unusual:
        note(f"the input has numbers that are not finite, in {_listed('case', unusual)}; so may have the map.")
    lacking = [
        f"{name} ({type(module).__name__})"
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None
    ]
    drawing = None if before == _random_state(x) else _find_drawing(model, x[:1])
    if drawing is not None:
        _noted.discard(MIXES)
        note(
            f"{drawing} draws random numbers in evaluation mode, as a functional dropout without "
            f"training=self.training does: the network answers the same input differently each time, and so does its "
            f"map."
        )
    if lacking:
        _noted.discard(MIXES)
        note(
            f"{_listed('layer', lacking)} normalises by the cases that are explained together, having no running "
            f"statistics (track_running_stats=False): a case's map depends on the others."
        )
    somewhere = SOMEWHERE in _cut
    _cut.discard(SOMEWHERE)
    cut = _find_used(model, x[:1]) if drawing is None else []
    if somewhere and not cut and drawing is None and (lost := _find_lost(model, x[:1])):
        note(lost)
    if cut:
        note(
            f"no gradient leads back through {_listed('layer', cut)} (detached, or under torch.no_grad()): the map "
            f"lacks what goes that way."
        )
    for message in sorted(_noted):
        warnings.warn(message, stacklevel=4)  # where `attribute` was called


def note_not_finite(x: Tensor, relevance: Tensor) -> None:
    """Note it where a map is not finite although the input is."""
    broken = [
        number
        for number, (case, found) in enumerate(zip(x, relevance))
        if not torch.isfinite(found).all() and torch.isfinite(case).all()
    ]
    if broken:
        note(
            f"the map of {_listed('case', broken)} has numbers that are not finite, and the input has none: look for "
            f"NaN and infinity in the network's weights and answers."
        )


def note(message: str) -> None:
    """Something to warn of once the map is made; saying it again changes nothing."""
    _noted.add(message)


def _random_state(x: Tensor) -> tuple:
    """The state of the generators of PyTorch, NumPy and Python that a network on the device of ``x`` may draw from."""
    states = [torch.random.get_rng_state()] + ([torch.cuda.get_rng_state(x.device)] if x.is_cuda else [])
    of_numpy: Any = np.random.get_state()
    return *(bytes(state.numpy()) for state in states), bytes(of_numpy[1]), of_numpy[2], random.getstate()


def _find_drawing(model: nn.Module, x: Tensor) -> str | None:
    """The innermost module that draws random numbers, if the network's answers to one input differ."""
    drawing, begun = [], []

    def leave(module: nn.Module, name: str) -> None:
        drew = begun.pop() != _random_state(x)
        if drew and not any(_lies_in(inner, name) for inner, _ in drawing):
            drawing.append((name, type(module).__name__))

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_: begun.append(_random_state(x))))
        handles.append(module.register_forward_hook(lambda module, args, output, name=name: leave(module, name)))
    try:
        with torch.no_grad():
            first, *others = (answer(model, x) for _ in range(_AGAIN))
    finally:
        for handle in handles:
            handle.remove()
    if all(torch.equal(first, other) for other in others) or not drawing:
        return None
    name, kind = drawing[0]
    return f"layer {name} ({kind})" if name else f"the network itself ({kind})"


def _find_used(model: nn.Module, x: Tensor) -> list[str]:
    """Of the layers that hand nothing back, those that hand on something else for another input."""
    seen: dict[str, list[list[Tensor]]] = {}
    modules = {name: module for name, module in model.named_modules() if name in _cut}
    handles = [
        module.register_forward_hook(
            lambda module, args, output, name=name: seen.setdefault(name, []).append(list(tensors_in(output)))
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
        for name, outputs in seen.items()
        if not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(outputs[0], outputs[-1]))
    ]
    return [name for name in used if not any(_lies_in(other, name) for other in used)]


def _find_lost(model: nn.Module, x: Tensor) -> str | None:
    """What is to be said of values that are detached somewhere in the network's code; None if they change no map."""
    slopes = find_lost(lambda given: answer(model, given), x)
    answers = shift_taken(lambda given: answer(model, given), x)
    if slopes is None or answers is None:
        return (
            "a value made of the input is detached somewhere in the network (.detach(), .data, .item(), NumPy, or "
            "under torch.no_grad()), and what goes that way cannot be told: the map may lack it."
        )
    if are_close(slopes[0], slopes[1], slopes) and are_close(answers[0], answers[1], answers[0]):
        return None
    return (
        "a value made of the input is detached somewhere in the network (.detach(), .data, .item(), or under "
        "torch.no_grad()) and goes on to its answer: the map lacks what goes that way."
    )


def _lies_in(inner: str, outer: str) -> bool:
    """Whether the module of one name lies in that of the other; the network itself has no name."""
    return inner != outer and inner.startswith(f"{outer}." if outer else "")


@contextmanager
def _refusing(what: Callable[[Exception], str]) -> Iterator[None]:
    """Say in one sentence what somebody else's code answers with a traceback."""
    try:
        yield
    except (InputError, FoldedBatch, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise InputError(what(error)) from error


def _why_it_cannot_run(model: nn.Module, x: Tensor, error: Exception) -> str:
    weight = next((parameter for parameter in model.parameters() if parameter.is_floating_point()), x)
    layer: Any = next((module for module in model.modules() if isinstance(module, types.Convolution)), None)
    advice = "expected what it was made for, [batch, channels, ...]"
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
