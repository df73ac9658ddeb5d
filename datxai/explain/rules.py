"""LRP rules as Zennit hooks: Zennit's relevance without the work that Zennit throws away.

Zennit's hooks run a layer inside the graph, let autograd compute its gradient, and replace that gradient by the rule,
for which they run the layer again, once per branch. The hooks here run the layer as one autograd function: its
forward pass keeps what the rule needs, its backward pass is the rule. Names, parameters and numbers are those of
`zennit.rules`, and both kinds may stand in one composite. A layer for which the short form does not hold (transposed
or grouped convolutions, padding other than zeros, callable stabilisers, a ``forward`` that is not PyTorch's) gets
Zennit's own hook.

Notation (Montavon et al. 2019, doi 10.1007/978-3-030-28954-6_10): a layer with inputs a_j, weights w_jk and bias b_k
has outputs z_k = sum_j a_j w_jk + b_k of relevance R_k. Every rule has the form R_j = sum_k c_jk s_k, with
contributions c_jk, and s_k = R_k / (z_k + eps sign(z_k)) with the rule's own z_k and sign(0) = +1. The bias is an
input of constant one: its relevance, sum_k c_bk s_k, leaves the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from datxai.explain._zennit import Hook, RemovableHandle, RemovableHandleList, rules
from datxai.explain.layers import by_case, computes_as_defined, has_hooks
from datxai.explain.products import (
    cases_at_once,
    channels_last,
    channels_of,
    in_pieces,
    product,
    transposed_product,
)

Layer = Any  # nn.Linear or a convolution; to type checkers a module's attributes are tensors or modules
ZeroParams = str | Sequence[str] | None  # names of parameters that a rule takes for zero
# whether relevance may be asked for again
_graph_is_kept = torch._C._autograd._get_current_graph_task_keep_graph  # pyright: ignore[reportAttributeAccessIssue]


class _RuledFunction(torch.autograd.Function):
    """A layer whose backward pass is a rule; differentiating a second time raises."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, rule: Rule, module: Layer, args: tuple, kwargs: dict) -> Tensor:
        ctx.rule, ctx.module = rule, module
        z, *saved = rule.run(module, a, *args, **kwargs)
        ctx.save_for_backward(*saved)
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (relevance,), rule = grad_outputs, ctx.rule
        rule.bias_relevance = relevance.new_zeros(len(relevance), dtype=torch.float64) if rule.on_bias else None
        lower = rule.propagate(ctx.module, relevance, *ctx.saved_tensors)
        if rule.on_bias:
            rule.on_bias(rule.bias_relevance)
        return lower, None, None, None, None


class Rule(Hook):
    """Base of the rules. From `register` to `remove` a rule stands in for its layer's ``forward``.

    A new rule writes `propagate`, and `run` if it needs more than the layer's output; see `Epsilon`.

    Attributes
    ----------
    on_bias
        Called, where it is set, with the relevance of the layer's bias along the first axis of its output, float64.
    precision
        That of the products of convolutions, None for that of the input.
    """

    stock: type[Any]  # Zennit's rule of the same name

    def __init__(self, **parameters: Any):
        super().__init__()
        self.parameters = parameters
        zero_params = parameters.get("zero_params") or []
        self.zero_params = [zero_params] if isinstance(zero_params, str) else list(zero_params)
        self.precision: torch.dtype | None = None
        self.on_bias: Callable[[Tensor], None] | None = None
        self.bias_relevance: Tensor | None = None
        self.module: Layer | None = None
        self.fallback: Hook | None = None
        self.ran = False

    @classmethod
    def complete(cls, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Parameters of a configuration file with those that follow from them.

        Raises ValueError for numbers that the rule has no place for.
        """
        for name, value in parameters.items():
            if isinstance(value, (int, float)) and value < 0:
                raise ValueError(f"{name} is {value!r}, expected zero or more.")
        return dict(parameters)

    def copy(self) -> Rule:
        """Another of the same parameters, for another layer."""
        return type(self)(**self.parameters)

    def register(self, module: Layer) -> RemovableHandleList:
        """Take the place of a layer's ``forward``, or leave it to Zennit's hook; the handles undo it."""
        if has_hooks(module) or not self.fits(module):  # such hooks may change the output, which Zennit's hook knows of
            self.fallback = fallback = self.stock(**self.parameters)
            return fallback.register(module)
        self.module, self.displaced = module, vars(module).get("forward")
        self.plain_forward = plain_forward = module.forward

        def forward(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            self.ran = True
            weight = getattr(module, "weight", input)
            fits = weight is None or weight.dtype == input.dtype  # if not, PyTorch says so
            if not (fits and self.active and input.requires_grad and torch.is_grad_enabled()):
                return plain_forward(input, *args, **kwargs)
            a = input.clone() if getattr(module, "inplace", False) else input
            return _RuledFunction.apply(a, self, module, args, kwargs)

        module.forward = forward
        return RemovableHandleList([RemovableHandle(self)])

    def remove(self) -> None:
        """Give the layer its own ``forward`` back."""
        super().remove()
        if self.module is not None:
            del self.module.forward
            if self.displaced is not None:
                self.module.forward = self.displaced
            self.module = None

    def fits(self, module: Layer) -> bool:
        """Whether the short form holds for this layer and these parameters."""
        numbers = [value for key, value in self.parameters.items() if key != "zero_params"]
        return all(isinstance(number, (int, float)) for number in numbers) and self.fits_layer(module)

    def fits_layer(self, module: Layer) -> bool:
        """Whether the short form holds for this layer."""
        convolution = isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        return (
            (isinstance(module, nn.Linear) or convolution)
            and computes_as_defined(module)
            and set(self.zero_params) <= {"bias"}
            and not (convolution and (isinstance(module.padding, str) or module.padding_mode != "zeros"))
        )

    def run(self, module: Layer, a: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        """The layer's output, and what `propagate` needs; ``args`` and ``kwargs`` are what else the layer is given."""
        return (self.plain_forward(a, *args, **kwargs),)

    def propagate(self, module: Layer, relevance: Tensor, *saved: Any, **unused: Any) -> Tensor:
        """R_j of the layer's inputs, from R_k of its outputs and what `run` has saved."""
        raise NotImplementedError

    def plain_product(self, module: Layer, a: Tensor) -> Tensor:
        """The layer's output."""
        return product(module, self.cast(module, a), module.weight, module.bias).to(a.dtype)

    def ignores_bias(self, module: Layer) -> bool:
        """Whether the layer has a bias which the rule leaves out."""
        return module.bias is not None and "bias" in self.zero_params

    def cast(self, module: Layer, a: Tensor) -> Tensor:
        """Inputs in the precision of the layer's products."""
        return a if self.precision is None or isinstance(module, nn.Linear) else a.to(self.precision)

    def record_bias(self, module: Layer, s: Tensor, bias: Tensor | None, cases: slice = slice(None)) -> None:
        """Add up the relevance of the bias, sum_k b_k s_k, where somebody asks for it; ``bias`` [channels]."""
        if self.bias_relevance is not None and bias is not None and not self.ignores_bias(module):
            if channels_of(module) == 1:
                s = s.sum(dim=tuple(range(2, s.ndim)), dtype=bias.dtype)
            self.bias_relevance[cases] += (s * bias).flatten(1).sum(dim=1)


class Pass(Rule):
    """R_j = R_k: element-wise layers."""

    stock = rules.Pass

    def fits(self, module: Layer) -> bool:
        """Whether this is a single layer."""
        return not list(module.children())

    def propagate(self, module: Layer, relevance: Tensor) -> Tensor:
        """R_j = R_k."""
        return relevance


class Epsilon(Rule):
    """R_j = sum_k a_j w_jk R_k / (z_k + eps sign(z_k)) (Bach et al. 2015, doi 10.1371/journal.pone.0130140)."""

    stock = rules.Epsilon

    def __init__(self, epsilon: float = 1e-6, zero_params: ZeroParams = None):
        super().__init__(epsilon=epsilon, zero_params=zero_params)

    def run(self, module: Layer, a: Tensor) -> tuple[Tensor, ...]:
        """The output; a_j and the rule's z_k are saved."""
        inputs = self.cast(module, a)
        output = product(module, inputs, module.weight, module.bias).to(a.dtype)
        # saved as a copy, since the next layer may write into the output
        z = output - _bias_like(module, output) if self.ignores_bias(module) else output.clone()
        return output, inputs, z

    def propagate(self, module: Layer, relevance: Tensor, a: Tensor, z: Tensor) -> Tensor:
        """s_k = R_k / z_k, then R_j = a_j sum_k w_jk s_k."""
        s = relevance / _stabilised(z, self.parameters["epsilon"])
        self.record_bias(module, s, module.bias)
        return transposed_product(module, a.shape, module.weight, s.to(a.dtype)).to(s.dtype).mul_(a)


class _Signed(Rule):
    """Rules that treat positive and negative contributions a_j w_jk apart.

    The sums of magnitudes z_k+ = sum_j (a_j w_jk)+ + b_k+ and z_k- = sum_j (a_j w_jk)- + b_k- are free of cancellation,
    and z_k = z_k+ - z_k- is the layer's output. One product gives z_k, another the magnitudes: z_k-, or z_k+ where
    negative contributions get nothing. Signed input is stacked: a+ meets [w; w-], a- meets [-w; w+].

    ``factors``: what positive contributions and, unless they get nothing, negative ones are multiplied by.
    ``enlarged_by``: the stabiliser of the saved magnitudes, where they are nothing but a denominator.
    """

    def __init__(self, factors: tuple[float, ...] = (1.0, 1.0), enlarged_by: float = 0.0, **parameters: Any):
        super().__init__(**parameters)
        self.factors, self.enlarged_by = factors, enlarged_by

    def fits(self, module: Layer) -> bool:
        """As `Rule.fits`, without groups."""
        return super().fits(module) and getattr(module, "groups", 1) == 1

    def run(self, module: Layer, a: Tensor) -> tuple[Tensor, ...]:
        """The output; a_j (stacked), z_k and the magnitudes are saved."""
        dtype = a.dtype
        if a.amin() < 0:
            a = torch.cat(_parts(a), dim=channels_of(module))
        a = channels_last(self.cast(module, a))
        biases, saved_part = self.bias_parts(module), len(self.factors) - 1
        z = product(module, a, _weight_for(module, a), biases[0] - biases[1])
        magnitudes = product(module, a, _weight_part(module, a, saved_part), biases[saved_part] + self.enlarged_by)
        output = z.to(dtype, copy=True)  # the next layer may write into it
        if self.ignores_bias(module):
            output += _bias_like(module, output)
        return output, a, z, magnitudes

    def propagate(self, module: Layer, relevance: Tensor, a: Tensor, z: Tensor, magnitudes: Tensor) -> Tensor:
        """R_j = a_j sum_k (w_jk+ f+ s_k+ + w_jk- f- s_k-), with the factors f and s_k by `quotients`."""
        axis, at_once = channels_of(module), cases_at_once(a, module.weight.numel())
        weights = [_weight_part(module, a, part, factor) for part, factor in enumerate(self.factors)]
        biases = [bias * factor for bias, factor in zip(self.bias_parts(module), self.factors)]
        lower = torch.empty_like(a) if at_once < len(a) else None
        for start in range(0, len(a), at_once):
            cases = slice(start, start + at_once)
            sums = []
            for s, weight, bias in zip(
                self.quotients(module, relevance[cases], a[cases], z[cases], magnitudes[cases]), weights, biases
            ):
                self.record_bias(module, s, bias, cases)
                sums.append(transposed_product(module, a[cases].shape, weight, s))
            lower = sums[0] if lower is None else lower
            for into, inputs, first, *others in in_pieces(axis, lower[cases], a[cases], *sums):
                for other in others:
                    first += other
                torch.mul(first, inputs, out=into)
        assert lower is not None  # no case, no relevance
        lower = lower.to(relevance.dtype)
        return torch.add(*lower.chunk(2, dim=axis)) if _is_stacked(module, a) else lower

    def quotients(
        self, module: Layer, relevance: Tensor, a: Tensor, z: Tensor, magnitudes: Tensor
    ) -> tuple[Tensor, ...]:
        """s_k for the positive and, where they count, for the magnitudes of the negative contributions."""
        axis, cancels = channels_of(module), False
        kept = _graph_is_kept()  # if not, z and the magnitudes are needed no more, and s may take their memory
        s = tuple(torch.empty_like(part) if kept else part for part in (z, magnitudes)[: len(self.factors)])
        for z_piece, magnitudes_piece, relevance_piece, *s_pieces in in_pieces(axis, z, magnitudes, relevance, *s):
            z_piece = z_piece.to(relevance.dtype)
            cancels |= self.positive_sum_cancels(relevance_piece, z_piece)
            self.divide(module, relevance_piece, z_piece, magnitudes_piece, *s_pieces)
        if cancels:
            positive = product(module, a, _weight_part(module, a, 0), self.bias_parts(module)[0] + self.enlarged_by)
            torch.div(relevance, positive, out=s[0])
        return s

    def positive_sum_cancels(self, relevance: Tensor, z: Tensor) -> bool:
        """Whether digits of z_k+ = z_k + z_k- that count are lost, so that it has to be summed up by itself."""
        return False

    def divide(self, module: Layer, relevance: Tensor, z: Tensor, magnitudes: Tensor, *s: Tensor) -> None:
        """Fill in s_k; axes are [..., channels], and s may lie in the memory of z and of the magnitudes.

        Here of positive contributions alone, whose magnitudes are at hand: s_k = R_k / z_k+.
        """
        torch.div(relevance, magnitudes, out=s[0])

    def bias_parts(self, module: Layer) -> tuple[Tensor, Tensor]:
        """b_k+ and b_k-; zeros where the bias is to be left out."""
        if module.bias is None or self.ignores_bias(module):
            return _parts(module.weight.new_zeros(len(module.weight)))
        return _parts(module.bias)


class AlphaBeta(_Signed):
    """R_j = sum_k (alpha (a_j w_jk)+ / (z_k+ + eps) - beta (a_j w_jk)- / (z_k- + eps)) R_k, with alpha - beta = 1.

    Bach et al. 2015, doi 10.1371/journal.pone.0130140.
    """

    stock = rules.AlphaBeta

    def __init__(
        self, alpha: float = 2.0, beta: float = 1.0, stabilizer: float = 1e-6, zero_params: ZeroParams = None
    ):
        self.stock(alpha, beta)  # raises ValueError where Zennit does
        parameters = {"alpha": alpha, "beta": beta, "stabilizer": stabilizer, "zero_params": zero_params}
        super().__init__((alpha, -beta) if beta else (alpha,), stabilizer, **parameters)

    @classmethod
    def complete(cls, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Of alpha and beta, alpha is enough. As `Rule.complete`."""
        completed = super().complete(parameters)
        alpha = completed.get("alpha", 2.0)
        beta = completed.get("beta", alpha - 1)
        if beta < 0 or not math.isclose(alpha - beta, 1):
            raise ValueError(f"alpha={alpha:g} and beta={beta:g}, expected alpha - beta = 1, beta 0 or more.")
        if "alpha" in completed:
            completed["beta"] = alpha - 1  # exactly, as Zennit asks
        return completed

    def positive_sum_cancels(self, relevance: Tensor, z: Tensor) -> bool:
        """Where z_k < 0 and R_k is not zero; a ReLU, mostly the next layer, leaves no relevance there."""
        if len(self.factors) == 1:
            return False
        return bool(torch.dot(z.clamp(max=0).mul_(relevance).flatten(), relevance.flatten()) != 0)

    def divide(self, module: Layer, relevance: Tensor, z: Tensor, magnitudes: Tensor, *s: Tensor) -> None:
        """s_k = R_k / (z_k+ + eps), R_k / (z_k- + eps)."""
        if len(self.factors) == 1:
            return super().divide(module, relevance, z, magnitudes, *s)
        torch.div(relevance, z.clamp(min=0).add_(magnitudes), out=s[0])
        torch.div(relevance, magnitudes, out=s[1])


class ZPlus(_Signed):
    """R_j = sum_k (a_j w_jk)+ R_k / (z_k+ + eps): AlphaBeta with alpha = 1 and beta = 0.

    Deep Taylor decomposition (Montavon et al. 2017, doi 10.1016/j.patcog.2016.11.008).
    """

    stock = rules.ZPlus

    def __init__(self, stabilizer: float = 1e-6, zero_params: ZeroParams = None):
        super().__init__((1.0,), stabilizer, stabilizer=stabilizer, zero_params=zero_params)


class Gamma(_Signed):
    """R_j = sum_k (a_j w_jk + gamma (a_j w_jk)+) R_k / (the same summed + eps) where z_k > 0, with - where z_k < 0.

    In the form for signed input (Andeol et al. 2021, arXiv 2103.12698); an output of zero has nothing to give.
    """

    stock = rules.Gamma

    def __init__(self, gamma: float = 0.25, stabilizer: float = 1e-6, zero_params: ZeroParams = None):
        super().__init__(gamma=gamma, stabilizer=stabilizer, zero_params=zero_params)

    def divide(self, module: Layer, relevance: Tensor, z: Tensor, magnitudes: Tensor, *s: Tensor) -> None:
        """s_k of z_k > 0 and of z_k < 0, each (1 + gamma) times for contributions of its own sign."""
        gamma, epsilon = self.parameters["gamma"], self.parameters["stabilizer"]
        output = z + module.bias if self.ignores_bias(module) else z
        raised = z + gamma * (z + magnitudes)  # (1 + gamma) z_k+ - z_k-
        above = torch.where(output > 0, relevance, 0) / _stabilised(raised, epsilon)
        below = torch.where(output < 0, relevance, 0) / _stabilised(z - gamma * magnitudes, epsilon)
        torch.add(below, above, alpha=1.0 + gamma, out=s[0])
        torch.add(above, below, alpha=1.0 + gamma, out=s[1]).neg_()


class _InputFree(Rule):
    """Rules that depend on the layer alone, and not on its input."""

    def __init__(self, stabilizer: float = 1e-6, zero_params: ZeroParams = None):
        super().__init__(stabilizer=stabilizer, zero_params=zero_params)

    def run(self, module: Layer, a: Tensor) -> tuple[Tensor, ...]:
        """The output; of a_j only the shape is saved."""
        return self.plain_product(module, a), torch.empty(a.shape, device="meta")


class Flat(_InputFree):
    """R_j = sum_k R_k / (number of inputs of k + eps): the same to every input within reach.

    Depends on the layer's geometry alone. Over a convolution it is a box filter of the relevance summed over output
    channels, the same for all input channels; under zero padding only the inputs that exist count.
    """

    stock = rules.Flat

    def propagate(self, module: Layer, relevance: Tensor, a: Tensor) -> Tensor:
        """A box filter of R_k over the number of inputs."""
        epsilon = self.parameters["stabilizer"]
        if isinstance(module, nn.Linear):
            return (relevance.sum(dim=-1, keepdim=True) / (module.in_features + epsilon)).expand(a.shape)
        s = relevance.unflatten(1, (module.groups, -1)).sum(dim=2)
        per_group = module.in_channels // module.groups
        inputs = per_group * _taps_inside(module, a.shape[2:]).to(s) + epsilon
        s = _spread_over_taps(module, s / inputs, a.shape[2:])
        return s.unsqueeze(2).expand(-1, -1, per_group, *a.shape[2:]).flatten(1, 2)


class WSquare(_InputFree):
    """R_j = sum_k w_jk^2 R_k / (sum_j w_jk^2 + b_k^2 + eps): whatever the input (doi 10.1016/j.patcog.2016.11.008)."""

    stock = rules.WSquare

    def propagate(self, module: Layer, relevance: Tensor, a: Tensor) -> Tensor:
        """s_k = R_k / sum_j w_jk^2, then R_j = sum_k w_jk^2 s_k."""
        weight = module.weight.square()
        bias = None if module.bias is None or self.ignores_bias(module) else module.bias.square()
        total = product(module, relevance.new_ones(1, *a.shape[1:]), weight, bias)
        s = relevance / (total + self.parameters["stabilizer"])
        self.record_bias(module, s, bias)
        return transposed_product(module, a.shape, weight, s)


@dataclass(frozen=True)
class Extreme:
    """The lowest or highest number of each case in a layer's own input: a bound for `ZBox`.

    ``cases``: how many there are, see `by_case`; ``of``: `torch.amin` or `torch.amax`.
    """

    of: Callable[..., Tensor]
    cases: int

    def __call__(self, a: Tensor) -> Tensor:
        """The bound in the form of the input ``a``."""
        bound = by_case(self.of(a, dim=tuple(range(1, a.ndim))), self.cases, self.of)
        return bound.view(-1, *[1] * (a.ndim - 1)).expand_as(a)


Bound = float | Tensor | Extreme


class _StockZBox(rules.ZBox):
    """Zennit's, with bounds that may be an `Extreme`."""

    def __init__(self, low: Bound, high: Bound, stabilizer: float = 1e-6, zero_params: ZeroParams = None):
        super().__init__(low, high, stabilizer, zero_params)
        plain, *of_bounds = self.input_modifiers
        self.input_modifiers = [plain, *map(_bound_modifier, (low, high), of_bounds)]


def _bound_modifier(bound: Bound, zennits: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return (lambda a: bound(a.detach()).clone()) if isinstance(bound, Extreme) else zennits


class ZBox(Rule):
    """R_j = sum_k (a_j w_jk - l_j w_jk+ - h_j w_jk-) R_k / (the same summed + eps), inputs lying between l and h.

    The bias cancels (doi 10.1016/j.patcog.2016.11.008). ``low`` and ``high`` are numbers, tensors that broadcast
    against the input, or an `Extreme` of it.
    """

    stock = _StockZBox

    def __init__(self, low: Bound, high: Bound, stabilizer: float = 1e-6, zero_params: ZeroParams = None):
        super().__init__(low=low, high=high, stabilizer=stabilizer, zero_params=zero_params)

    @classmethod
    def complete(cls, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """As `Rule.complete`; bounds may be negative."""
        super().complete({name: value for name, value in parameters.items() if name not in ("low", "high")})
        return dict(parameters)

    def fits(self, module: Layer) -> bool:
        """Whether the short form holds: bounds may be tensors."""
        return not callable(self.parameters["stabilizer"]) and self.fits_layer(module)

    def run(self, module: Layer, a: Tensor) -> tuple[Tensor, ...]:
        """The output; a_j and the rule's z_k are saved."""
        z = reduce(torch.add, (product(module, inputs, weight, None) for inputs, weight in self.terms(module, a)))
        return self.plain_product(module, a), a, z

    def propagate(self, module: Layer, relevance: Tensor, a: Tensor, z: Tensor) -> Tensor:
        """s_k = R_k / z_k, then for each term as in `Epsilon`."""
        s = relevance / _stabilised(z, self.parameters["stabilizer"])
        parts = (inputs * transposed_product(module, a.shape, weight, s) for inputs, weight in self.terms(module, a))
        return reduce(torch.add, parts)

    def terms(self, module: Layer, a: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """a_j with w_jk, l_j with -w_jk+, h_j with -w_jk-: inputs and the weights that they meet."""
        positive, negative = _parts(module.weight)
        yield a, module.weight
        yield self.bound("low", a), -positive
        yield self.bound("high", a), negative

    def bound(self, name: str, a: Tensor) -> Tensor:
        """``low`` or ``high`` in the form of the input."""
        bound = self.parameters[name]
        return bound(a) if isinstance(bound, Extreme) else torch.as_tensor(bound, dtype=a.dtype).to(a).expand_as(a)


def _stabilised(z: Tensor, epsilon: float) -> Tensor:
    """z + eps sign(z)."""
    return torch.where(z < 0, z - epsilon, z + epsilon)


def _parts(values: Tensor) -> tuple[Tensor, Tensor]:
    """Magnitudes of the positive and of the negative part."""
    return F.relu(values), F.relu(-values)


def _is_stacked(module: Layer, a: Tensor) -> bool:
    """Whether ``a`` holds the positive and, behind it, the negative part of an input."""
    return a.shape[channels_of(module)] != module.weight.shape[1]


def _weight_for(module: Layer, a: Tensor) -> Tensor:
    """The weights that ``a`` meets."""
    return torch.cat([module.weight, -module.weight], dim=1) if _is_stacked(module, a) else module.weight


def _weight_part(module: Layer, a: Tensor, part: int, factor: float = 1.0) -> Tensor:
    """Magnitudes of the weights that make positive (0) or negative (1) contributions of ``a``, times a factor."""
    weight = -module.weight if part else module.weight
    magnitudes = F.relu(torch.cat([weight, -weight], dim=1) if _is_stacked(module, a) else weight)
    return magnitudes if factor == 1 else magnitudes.mul_(factor)


def _bias_like(module: Layer, output: Tensor) -> Tensor:
    """The bias in a form that broadcasts against the output."""
    return module.bias if isinstance(module, nn.Linear) else module.bias.view(-1, *[1] * (output.ndim - 2))


def _geometry(module: Layer, axis: int) -> tuple[int, int, int, int]:
    """Stride, padding, dilation and kernel size of a convolution along one axis of its image."""
    return module.stride[axis], module.padding[axis], module.dilation[axis], module.kernel_size[axis]


def _taps_inside(module: Layer, shape: Sequence[int]) -> Tensor:
    """How many kernel taps of each output lie within an input of this shape: a tensor of the output's shape."""
    count = torch.ones((), dtype=torch.float32, device="cpu")
    for axis, size in enumerate(shape):
        stride, pad, dilation, kernel = _geometry(module, axis)
        last = size + 2 * pad - dilation * (kernel - 1)
        start, tap = torch.arange(0, last, stride, device="cpu"), torch.arange(kernel, device="cpu")
        position = start[:, None] + tap * dilation - pad
        count = count[..., None] * ((position >= 0) & (position < size)).sum(dim=1)
    return count


def _spread_over_taps(module: Layer, s: Tensor, shape: Sequence[int]) -> Tensor:
    """The transposed convolution of s [batch, groups, ...] with a kernel of ones, axis by axis."""
    for axis, size in enumerate(shape, start=2):
        stride, pad, dilation, kernel = _geometry(module, axis - 2)
        extent = dilation * (kernel - 1)
        wide = s.new_zeros(*s.shape[:axis], size + 2 * pad + extent, *s.shape[axis + 1 :])
        wide.movedim(axis, -1)[..., extent : extent + stride * (s.shape[axis] - 1) + 1 : stride] = s.movedim(axis, -1)
        taps = [wide.narrow(axis, pad + extent - tap * dilation, size) for tap in range(kernel)]
        s = sum(taps[1:], start=taps[0])
    return s
