"""Rules for what a network computes between its layers: sums, averages, gates and activations in forward code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from datxai.explain._zennit import canonizers
from datxai.explain.layers import OutsideLayers

EPSILON = 1e-9  # of sums and averages; a larger one would absorb relevance that no row of the ledger shows
_SUMS = {"add", "radd", "iadd", "sub", "rsub", "isub", "subtract"}
_AVERAGES = {"mean", *(f"{kind}avg_pool{n}d" for kind in ("", "adaptive_") for n in (1, 2, 3))}
_PRODUCTS = {"mul", "rmul", "imul", "multiply"}
_QUOTIENTS = {"div", "truediv", "itruediv", "true_divide", "divide"}
_ACTIVATIONS = {
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus", "hardswish", "hardtanh",
    "tanh", "logsigmoid",
}  # fmt: skip
_GATES = ("Sigmoid", "Hardsigmoid", "Softmax", "Tanh")  # how the name of what made a gate begins, in PyTorch's graph
_SEEN_THROUGH = 4  # views and identities between a gate and where it is used


class FunctionalCanonizer(canonizers.Canonizer):
    """Gives relevance a rule where forward code computes with tensors, outside of layers of torch.nn.

    - Sums of what depends on the input, such as residual additions, and averages: in proportion to the contributions,
      as Zennit's Norm does for a layer.
    - Products and quotients with a constant: unchanged, but none where the constant is zero.
    - Products of two that depend on the input, of which one is a gate (broadcast over the other, or made by a sigmoid,
      softmax or tanh): all to the other ("signal takes all", Arras et al. 2017, doi:10.18653/v1/W17-5221).
    - Activations: unchanged, as by the rule pass.

    What else there is keeps its gradient, and the ledger's last row shows what that made.
    """

    model: nn.Module
    displaced: Callable | None  # a ``forward`` that was the network's own, and not of its class

    def apply(self, root_module: nn.Module) -> list:
        """Let the network's ``forward`` run under these rules."""
        wrapped = self.copy()
        wrapped.model = root_module
        wrapped.register()
        return [wrapped]

    def register(self) -> None:
        """Wrap the ``forward`` of the model. Its layers have hooks of this only while it runs: before, they would keep
        the rules from taking the place of the layers' ``forward``."""
        model, forward = self.model, self.model.forward
        self.displaced = vars(model).get("forward")

        def run(*args: Any, **named: Any) -> Any:
            rules = _FunctionalRules()
            handles = rules.follow(model)
            try:
                with rules:
                    return forward(*args, **named)
            finally:
                for handle in handles:
                    handle.remove()

        model.forward = run

    def remove(self) -> None:
        """Give the network its own ``forward`` back."""
        del self.model.forward
        if self.displaced is not None:
            self.model.forward = self.displaced

    def copy(self) -> FunctionalCanonizer:
        """Another one, for another network."""
        return FunctionalCanonizer()


class _FunctionalRules(OutsideLayers):
    """While it is on, relevance follows a rule through the functions that are called outside of layers."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Call the function, so that its relevance follows its rule."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if self.inside or not torch.is_grad_enabled() or kwargs.get("out") is not None:
            return func(*args, **kwargs)
        in_place = name.startswith("__i") or name.rstrip("_") + "_" == name or bool(kwargs.get("inplace"))

        def call(*operands: Any) -> Tensor:
            first = operands[0].clone() if in_place else operands[0]  # what is written over is needed again
            return func(first, *operands[1:], *args[len(operands) :], **kwargs)

        with torch._C.DisableTorchFunction():  # for others that look, a rule makes no values without gradients
            made = _follow(name.strip("_"), call, args[:2])
        if made is None:
            return func(*args, **kwargs)
        return args[0].copy_(made) if in_place else made


def _follow(name: str, call: Callable[..., Tensor], operands: tuple) -> Tensor | None:
    """What ``call`` makes of its operands, with a rule for its way back; None where there is none."""
    live = [isinstance(operand, Tensor) and operand.requires_grad for operand in operands]
    if name in _SUMS and live == [True, True]:
        return _Proportional.apply(call, *operands)
    if not any(live):
        return None
    if name in _AVERAGES:
        return _Proportional.apply(lambda x: call(x, *operands[1:]), operands[0])
    if name in _ACTIVATIONS:
        return _Unchanged.apply(lambda x: call(x, *operands[1:]), operands[0], None)
    if name in _PRODUCTS and len(operands) == 2:
        gate = 1 - live.index(True) if live != [True, True] else _find_gate(*operands)
        if gate == 0:
            return _Unchanged.apply(lambda x: call(operands[0], x), operands[1], operands[0])
        if gate == 1:
            return _Unchanged.apply(lambda x: call(x, operands[1]), operands[0], operands[1])
    if name in _QUOTIENTS and live == [True, False]:
        return _Unchanged.apply(lambda x: call(x, operands[1]), operands[0], None)
    return None


def _find_gate(first: Tensor, second: Tensor) -> int | None:
    """Which of two factors is a gate on the other; None if that cannot be told."""
    if first.numel() != second.numel():
        return int(second.numel() < first.numel())
    made = [_is_gate(factor) for factor in (first, second)]
    return made.index(True) if sum(made) == 1 else None


def _is_gate(factor: Tensor) -> bool:
    node = factor.grad_fn
    for _ in range(_SEEN_THROUGH):
        if node is None or node.name().startswith(_GATES):
            return node is not None
        node = node.next_functions[0][0] if node.next_functions else None
    return False


class _Proportional(torch.autograd.Function):
    """Relevance of a linear function's value in proportion to what each number contributes."""

    @staticmethod
    def forward(ctx: Any, call: Callable[..., Tensor], *operands: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.call = call
        ctx.save_for_backward(*(operand.clone() for operand in operands))  # the network may write over them later
        return call(*operands)

    @staticmethod
    def backward(ctx: Any, relevance: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        operands = [operand.detach().requires_grad_() for operand in ctx.saved_tensors]
        with torch.enable_grad():
            value = ctx.call(*operands)
            stable = value + EPSILON * torch.where(value < 0, -1.0, 1.0)
            slopes = torch.autograd.grad(value, operands, relevance / stable.detach())
        return None, *(slope * operand.detach() for slope, operand in zip(slopes, operands))


class _Unchanged(torch.autograd.Function):
    """Relevance of the value is that of the signal; none where the factor on it is zero."""

    @staticmethod
    def forward(ctx: Any, call: Callable[..., Tensor], signal: Tensor, factor: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        value = call(signal)
        ctx.shape = signal.shape
        ctx.open = None if factor is None else torch.as_tensor(factor != 0, device=value.device)
        ctx.gate = factor.shape if isinstance(factor, Tensor) and factor.requires_grad else None
        return value

    @staticmethod
    def backward(ctx: Any, relevance: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        kept = relevance if ctx.open is None else relevance * ctx.open
        nothing = None if ctx.gate is None else relevance.new_zeros(ctx.gate)  # hooks on the way to a gate want numbers
        return None, kept.sum_to_size(ctx.shape), nothing
