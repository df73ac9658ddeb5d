"""Rules for computation outside layers: sums, averages, gates and activations in forward code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from datxai.explain._zennit import canonizers
from datxai.explain.layers import OutsideLayers

EPSILON = 1e-9  # for sums and averages; a larger one would absorb relevance that no row of the ledger shows
_SUMS = {"add", "radd", "iadd", "sub", "rsub", "isub", "subtract"}
_AVERAGES = {"mean", *(f"{kind}avg_pool{n}d" for kind in ("", "adaptive_") for n in (1, 2, 3))}
_PRODUCTS = {"mul", "rmul", "imul", "multiply"}
_QUOTIENTS = {"div", "truediv", "itruediv", "true_divide", "divide"}
_ACTIVATIONS = {
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus", "hardswish", "hardtanh",
    "tanh", "logsigmoid",
}  # fmt: skip
_GATES = ("Sigmoid", "Hardsigmoid", "Softmax", "Tanh")  # prefixes of the autograd nodes that compute gates
_MAX_STEPS_TO_GATE = 4  # views and identities between a gate and its use


class FunctionalCanonizer(canonizers.Canonizer):
    """Propagates relevance by rules through tensor operations in forward code, outside the layers of torch.nn.

    - Sums of terms that depend on the input, such as residual additions, and averages: relevance in proportion to the
      contributions, as Zennit's Norm does for a layer.
    - Products and quotients with a constant: relevance is unchanged, but zero where the constant is zero.
    - Products of two factors that depend on the input, one of them a gate (broadcast over the other, or computed by a
      sigmoid, softmax or tanh): all to the other ("signal takes all", Arras et al. 2017, doi:10.18653/v1/W17-5221).
    - Activations: relevance is unchanged, as by the rule pass.

    All other operations keep their gradient; the ledger's last row shows the relevance that they add or remove.
    """

    model: nn.Module
    instance_forward: Callable | None  # a ``forward`` set on the network itself, not its class

    def apply(self, root_module: nn.Module) -> list:
        """Make the network's ``forward`` run under these rules."""
        wrapped = self.copy()
        wrapped.model = root_module
        wrapped.register()
        return [wrapped]

    def register(self) -> None:
        """Wrap the ``forward`` of the model, and hook its layers only while it runs.

        Earlier hooks would keep fast rules from replacing the layers' ``forward``.
        """
        model, forward = self.model, self.model.forward
        self.instance_forward = vars(model).get("forward")

        def run(*args: Any, **kwargs: Any) -> Any:
            rules = _FunctionalRules()
            handles = rules.follow(model)
            try:
                with rules:
                    return forward(*args, **kwargs)
            finally:
                for handle in handles:
                    handle.remove()

        model.forward = run

    def remove(self) -> None:
        """Restore the network's original ``forward``."""
        del self.model.forward
        if self.instance_forward is not None:
            self.model.forward = self.instance_forward

    def copy(self) -> FunctionalCanonizer:
        """A new canonizer, for another network."""
        return FunctionalCanonizer()


class _FunctionalRules(OutsideLayers):
    """While active, applies rules to the functions that are called outside layers."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Call the function with its rule for the backward pass."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if self.inside or not torch.is_grad_enabled() or kwargs.get("out") is not None:
            return func(*args, **kwargs)
        in_place = name.startswith("__i") or name.rstrip("_") + "_" == name or bool(kwargs.get("inplace"))

        def call(*operands: Any) -> Tensor:
            first = operands[0].clone() if in_place else operands[0]  # the original is needed in the backward pass
            return func(first, *operands[1:], *args[len(operands) :], **kwargs)

        with torch._C.DisableTorchFunction():  # other modes must not see a rule compute without gradients
            value = _apply_rule(name.strip("_"), call, args[:2])
        if value is None:
            return func(*args, **kwargs)
        return args[0].copy_(value) if in_place else value


def _apply_rule(name: str, call: Callable[..., Tensor], operands: tuple) -> Tensor | None:
    """The value of ``call`` for its operands, with a rule for the backward pass; None if there is no rule."""
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
    """Index of the factor that gates the other; None if neither or both could."""
    if first.numel() != second.numel():
        return int(second.numel() < first.numel())
    are_gates = [_is_gate(factor) for factor in (first, second)]
    return are_gates.index(True) if sum(are_gates) == 1 else None


def _is_gate(factor: Tensor) -> bool:
    node = factor.grad_fn
    for _ in range(_MAX_STEPS_TO_GATE):
        if node is None or node.name().startswith(_GATES):
            return node is not None
        node = node.next_functions[0][0] if node.next_functions else None
    return False


class _Proportional(torch.autograd.Function):
    """A linear function whose relevance is shared in proportion to the contributions."""

    @staticmethod
    def forward(ctx: Any, call: Callable[..., Tensor], *operands: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.call = call
        ctx.save_for_backward(*(operand.clone() for operand in operands))  # the network may modify them in place later
        return call(*operands)

    @staticmethod
    def backward(ctx: Any, relevance: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        operands = [operand.detach().requires_grad_() for operand in ctx.saved_tensors]
        with torch.enable_grad():
            value = ctx.call(*operands)
            stabilised = value + EPSILON * torch.where(value < 0, -1.0, 1.0)
            slopes = torch.autograd.grad(value, operands, relevance / stabilised.detach())
        return None, *(slope * operand.detach() for slope, operand in zip(slopes, operands))


class _Unchanged(torch.autograd.Function):
    """A function of a signal that receives the relevance of its value, except where its factor is zero."""

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
        for_gate = None if ctx.gate is None else relevance.new_zeros(ctx.gate)  # hooks before a gate need a tensor
        return None, kept.sum_to_size(ctx.shape), for_gate
