"""Ways from the input to the answer that PyTorch's gradient does not go back: values detached beside a live path."""

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
_TAKING_OUT = {torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.__float__}  # numbers that are Python's


class Lookout(OutsideLayers):
    """While it is on, notes in ``seen`` whether a value made of the input was detached, or made under no_grad.

    ``taken``: whether one was made a number of Python's. What layers of torch.nn do inside is not looked at: a rule
    computes there without gradients.
    """

    def __init__(self):
        super().__init__()
        self.seen = self.taken = False

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Call the function, and look at what it did."""
        output = func(*args, **(kwargs or {}))
        if func in _TAKING_OUT and not self.inside:
            self.taken = self.taken or args[0].requires_grad
        if self.seen or self.inside or not (func in _DETACHING or not torch.is_grad_enabled()):
            return output
        made = any(tensor.is_floating_point() for tensor in tensors_in(output))
        self.seen = made and any(tensor.requires_grad for tensor in tensors_in((args, kwargs)))
        return output


class _Attached(TorchFunctionMode):
    """While it is on, nothing is detached, and no_grad does nothing."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Call the function, or hand on what it would detach."""
        if func in _DETACHING:
            return args[0]
        with torch.enable_grad():
            return func(*args, **(kwargs or {}))


class _Shifted(TorchFunctionMode):
    """While it is on, numbers that are taken out of tensors come out a little larger."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Call the function, and change the number that it made."""
        output = func(*args, **(kwargs or {}))
        return _shift(output) if func in _TAKING_OUT else output


def _shift(number: Any) -> Any:
    return [_shift(each) for each in number] if isinstance(number, list) else 1.01 * number + 0.01


def shift_taken(answer: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor] | None:
    """A network's answers at ``x`` as it is, and with the numbers that it makes Python's a little larger.

    None where the network does not run so.
    """
    answers = []
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            for mode in (nullcontext(), _Shifted()):
                with mode:
                    answers.append(answer(x))
    except Exception:  # somebody else's code, run in a way that it was not written for
        return None
    return answers


def find_lost(answer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor | None:
    """The gradient of a network's answers at ``x`` as it is, and as it would be with nothing detached, stacked.

    None where the network does not run so.
    """
    slopes = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PyTorch, where a number is taken from what is no longer detached
            for mode in (nullcontext(), _Attached()):
                given = x.detach().clone().requires_grad_()
                with mode:
                    output = answer(given)
                weights = torch.linspace(1, 2, output.shape[1], dtype=output.dtype, device=output.device)
                score = (output * weights).sum()
                slopes += torch.autograd.grad(score, given, allow_unused=True, materialize_grads=True)
    except Exception:  # somebody else's code, run in a way that it was not written for
        return None
    return torch.stack(slopes)
