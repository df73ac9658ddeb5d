"""Paths from the input to the answer that the gradient misses: values detached beside a differentiable path."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from inspect import getattr_static
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from datxai.explain.layers import OutsideLayers, tensors_in

_DETACHING = {torch.Tensor.detach, torch.Tensor.detach_, torch.detach, torch.detach_,
              getattr_static(torch.Tensor, "data").__get__}  # fmt: skip
_TO_PYTHON = {torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.__float__}


class Lookout(OutsideLayers):
    """While active, notes in ``seen`` if a value that depends on the input was detached or computed under no_grad.

    ``taken``: whether one was converted to a Python number. The inside of torch.nn layers is ignored, since rules
    compute there without gradients.
    """

    def __init__(self):
        super().__init__()
        self.seen = self.taken = False

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Call the function and check whether it detached a value."""
        output = func(*args, **(kwargs or {}))
        if func in _TO_PYTHON and not self.inside:
            self.taken = self.taken or args[0].requires_grad
        if self.seen or self.inside or not (func in _DETACHING or not torch.is_grad_enabled()):
            return output
        has_values = any(tensor.is_floating_point() for tensor in tensors_in(output))
        self.seen = has_values and any(tensor.requires_grad for tensor in tensors_in((args, kwargs)))
        return output


class _Attached(TorchFunctionMode):
    """While active, nothing is detached and no_grad has no effect."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Call the function with gradients; return what it would detach unchanged."""
        if func in _DETACHING:
            return args[0]
        with torch.enable_grad():
            return func(*args, **(kwargs or {}))


class _Shifted(TorchFunctionMode):
    """While active, tensors that are converted to Python numbers give slightly larger ones."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Call the function, and shift the number if it is a conversion."""
        output = func(*args, **(kwargs or {}))
        return _shift(output) if func in _TO_PYTHON else output


def _shift(number: Any) -> Any:
    return [_shift(each) for each in number] if isinstance(number, list) else 1.01 * number + 0.01


def shift_taken(answer: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor] | None:
    """A network's answers to ``x``: unchanged, and with slightly larger numbers where it converts tensors to Python.

    None if the network fails in either way.
    """
    answers = []
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            for mode in (nullcontext(), _Shifted()):
                with mode:
                    answers.append(answer(x))
    except Exception:  # third-party code, run in a way that it was not written for
        return None
    return answers


def find_lost(answer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor | None:
    """The gradient of a network's answers at ``x``: unchanged, and with nothing detached, stacked.

    None if the network fails in either way.
    """
    slopes = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch warns of numbers taken from tensors that are not detached
            for mode in (nullcontext(), _Attached()):
                inputs = x.detach().clone().requires_grad_()
                with mode:
                    output = answer(inputs)
                weights = torch.linspace(1, 2, output.shape[1], dtype=output.dtype, device=output.device)
                score = (output * weights).sum()
                slopes += torch.autograd.grad(score, inputs, allow_unused=True, materialize_grads=True)
    except Exception:  # third-party code, run in a way that it was not written for
        return None
    return torch.stack(slopes)
