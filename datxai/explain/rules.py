"""LRP rules as Zennit hooks: the relevance that Zennit computes, with less work.

Zennit's hooks run a layer inside the graph, let autograd compute its gradient, and replace that gradient by the rule,
for which they run the layer again, once per branch. The hooks here run the layer as a single autograd function: its
forward pass saves what the rule needs, and its backward pass is the rule. Names, parameters and results match those of
`zennit.rules`, and both kinds can be mixed in one composite. A layer that is not supported here (transposed
convolutions, grouped ones under a rule that separates signs, padding other than zeros, callable stabilisers, a
``forward`` that is not PyTorch's) gets Zennit's hook instead.

Notation (Montavon et al. 2019, doi 10.1007/978-3-030-28954-6_10): a layer with inputs a_j, weights w_jk and bias b_k
has outputs z_k = sum_j a_j w_jk + b_k of relevance R_k. Every rule has the form R_j = sum_k c_jk s_k, with
contributions c_jk, and s_k = R_k / (z_k + eps sign(z_k)) with the rule's own z_k and sign(0) = +1. The bias acts
as an input of constant one; the layer absorbs its relevance, sum_k c_bk s_k.
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
ZeroParams = str | Sequence[str] | None  # names of parameters that a rule treats as zero
# whether the graph is kept for another backward pass (retain_graph=True)
_graph_is_kept = torch._C._autograd._get_current_graph_task_keep_graph  # pyright: ignore[reportAttributeAccessIssue]


class _RuledFunction(torch.autograd.Function):
    """A layer whose backward pass is a rule; differentiating twice raises an error."""

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
    """Base class of the rules; between `register` and `remove`, a rule replaces its layer's ``forward``.

    Subclasses implement `propagate`, and `run` if they need more than the layer's output; see `Epsilon`.

    Attributes
    ----------
    on_bias
        If set, called with the relevance of the layer's bias for each row of its output, float64.
    precision
        Data type in which convolutions are computed; None: that of the input.
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
        """Complete the parameters of a configuration file with those that follow from them.

        Raises ValueError for values out of range.
        """
        for name, value in parameters.items():
            if isinstance(value, (int, float)) and value < 0:
                raise ValueError(f"{name} is {value!r}, expected zero or more.")
        return dict(parameters)

    def copy(self) -> Rule:
        """A new rule with the same parameters, for another layer."""
        return type(self)(**self.parameters)

    def register(self, module: Layer) -> RemovableHandleList:
        """Replace a layer's ``forward``, or register Zennit's hook if the layer is unsupported; the handles undo it."""
        if has_hooks(module) or not self.fits(module):  # hooks may change the output, which Zennit's hook sees
            self.fallback = fallback = self.stock(**self.parameters)
            return fallback.register(module)
        self.module, self.instance_forward = module, vars(module).get("forward")
        self.plain_forward = plain_forward = module.forward

        def forward(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            self.ran = True
            weight = getattr(module, "weight", input)
            dtypes_match = weight is None or weight.dtype == input.dtype  # if not, PyTorch raises
            if not (dtypes_match and self.active and input.requires_grad and torch.is_grad_enabled()):
                return plain_forward(input, *args, **kwargs)
            a = input.clone() if getattr(module, "inplace", False) else input
            return _RuledFunction.apply(a, self, module, args, kwargs)

        module.forward = forward
        return RemovableHandleList([RemovableHandle(self)])

    def remove(self) -> None:
        """Restore the layer's original ``forward``."""
        super().remove()
        if self.module is not None:
            del self.module.forward
            if self.instance_forward is not None:
                self.module.forward = self.instance_forward
            self.module = None

    def fits(self, module: Layer) -> bool:
        """Whether this layer is supported with these parameters."""
        numbers = [value for key, value in self.parameters.items() if key != "zero_params"]
        return all(isinstance(number, (int, float)) for number in numbers) and self.fits_layer(module)

    def fits_layer(self, module: Layer) -> bool:
        """Whether this layer is supported."""
        convolution = isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        return (
            (isinstance(module, nn.Linear) or convolution)
            and computes_as_defined(module)
            and set(self.zero_params) <= {"bias"}
            and not (convolution and (isinstance(module.padding, str) or module.padding_mode != "zeros"))
        )

    def run(self, module: Layer, a: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        """Compute the output, then the tensors to save for `propagate`; ``args`` and ``kwargs``: further arguments."""
        return (self.plain_forward(a, *args, **kwargs),)

    def propagate(self, module: Layer, relevance: Tensor, *saved: Any, **unused: Any) -> Tensor:
        """Relevance R_j of the inputs, from R_k of the outputs and the tensors that `run` saved."""
        raise NotImplementedError

    def plain_product(self, module: Layer, a: Tensor) -> Tensor:
        """The layer's output."""
        return product(module, self.cast(module, a), module.weight, module.bias).to(a.dtype)

    def ignores_bias(self, module: Layer) -> bool:
        """Whether the layer has a bias that the rule treats as zero."""
        return module.bias is not None and "bias" in self.zero_params

    def cast(self, module: Layer, a: Tensor) -> Tensor:
        """The input of a convolution in `precision`; that of a linear layer as it is."""
        return a if self.precision is None or isinstance(module, nn.Linear) else a.to(self.precision)

    def record_bias(self, module: Layer, s: Tensor, bias: Tensor | None, cases: slice = slice(None)) -> None:
        """Add the relevance of the bias, sum_k b_k s_k, to `bias_relevance` if it is recorded; ``bias`` [channels]."""
        if self.bias_relevance is not None and bias is not None and not self.ignores_bias(module):
            if channels_of(module) == 1:
                s = s.sum(dim=tuple(range(2, s.ndim)), dtype=bias.dtype)
            self.bias_relevance[cases] += (s * bias).flatten(1).sum(dim=1)


class Pass(Rule):
    """R_j = R_k: element-wise layers."""

    stock = rules.Pass

    def fits(self, module: Layer) -> bool:
        """Whether the module has no children."""
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
        """Compute the output; save a_j and the rule's z_k."""
        inputs = self.cast(module, a)
        output = product(module, inputs, module.weight, module.bias).to(a.dtype)
        # a copy: the next layer may modify the output in place
        z = output - _bias_like(module, output) if self.ignores_bias(module) else output.clone()
        return output, inputs, z

    def propagate(self, module: Layer, relevance: Tensor, a: Tensor, z: Tensor) -> Tensor:
        """s_k = R_k / z_k, then R_j = a_j sum_k w_jk s_k."""
        s = relevance / _stabilised(z, self.parameters["epsilon"])
        self.record_bias(module, s, module.bias)
        return transposed_product(module, a.shape, module.weight, s.to(a.dtype)).to(s.dtype).mul_(a)


class _Signed(Rule):
    """Base class of the rules that treat positive and negative contributions a_j w_jk separately.

    The sums of magnitudes z_k+ = sum_j (a_j w_jk)+ + b_k+ and z_k- = sum_j (a_j w_jk)- + b_k- are free of cancellation,
    and z_k = z_k+ - z_k- is the layer's output. One product computes z_k, another the magnitudes: z_k-, or
    z_k+ if the rule ignores negative contributions. Signed input is stacked as [a+; a-]: a+ is multiplied by w for z_k
    and by w- for z_k-, a- by -w and w+.

    ``factors``: by which positive and, unless the rule ignores them, negative contributions are multiplied.
    ``denominator_eps``: the stabiliser, added to the saved magnitudes if they serve only as a denominator.
    """

    def __init__(self, factors: tuple[float, ...] = (1.0, 1.0), denominator_eps: float = 0.0, **parameters: Any):
        super().__init__(**parameters)
        self.factors, self.denominator_eps = factors, denominator_eps

    def fits(self, module: Layer) -> bool:
        """As `Rule.fits`, but not with groups."""
        return super().fits(module) and getattr(module, "groups", 1) == 1

    def run(self, module: Layer, a: Tensor) -> tuple[Tensor, ...]:
        """Compute the output; save a_j (stacked if signed), z_k and the magnitudes."""
        dtype = a.dtype
        if a.amin() < 0:
            a = torch.cat(_parts(a), dim=channels_of(module))
        a = channels_last(self.cast(module, a))
        biases, saved_part = self.bias_parts(module), len(self.factors) - 1
        z = product(module, a, _weight_for(module, a), biases[0] - biases[1])
        magnitudes = product(module, a, _weight_part(module, a, saved_part), biases[saved_part] + self.denominator_eps)
        output = z.to(dtype, copy=True)  # the next layer may modify it in place
        if self.ignores_bias(module):
            output += _bias_like(module, output)
        return output, a, z, magnitudes

    def propagate(self, module: Layer, relevance: Tensor, a: Tensor, z: Tensor, magnitudes: Tensor) -> Tensor:
        """R_j = a_j sum_k (w_jk+ f+ s_k+ + w_jk- f- s_k-), with the factors f, and s_k from `quotients`."""
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
            for out, inputs, first, *others in in_pieces(axis, lower[cases], a[cases], *sums):
                for other in others:
                    first += other
                torch.mul(first, inputs, out=out)
        assert lower is not None  # a batch holds at least one case
        lower = lower.to(relevance.dtype)
        return torch.add(*lower.chunk(2, dim=axis)) if _is_stacked(module, a) else lower

    def quotients(
        self, module: Layer, relevance: Tensor, a: Tensor, z: Tensor, magnitudes: Tensor
    ) -> tuple[Tensor, ...]:
        """s_k for the positive and, unless the rule ignores them, the negative contributions."""
        axis, cancels = channels_of(module), False
        graph_is_kept = _graph_is_kept()  # if not, z and the magnitudes are no longer needed: s reuses their memory
        used = (z, magnitudes)[: len(self.factors)]
        s = tuple(torch.empty_like(saved) if graph_is_kept else saved for saved in used)
        for z_piece, magnitudes_piece, relevance_piece, *s_pieces in in_pieces(axis, z, magnitudes, relevance, *s):
            z_piece = z_piece.to(relevance.dtype)
            cancels |= self.positive_sum_cancels(relevance_piece, z_piece)
            self.divide(module, relevance_piece, z_piece, magnitudes_piece, *s_pieces)
        if cancels:
            positive = product(module, a, _weight_part(module, a, 0), self.bias_parts(module)[0] + self.denominator_eps)
            torch.div(relevance, positive, out=s[0])
        return s

    def positive_sum_cancels(self, relevance: Tensor, z: Tensor) -> bool:
        """Whether z_k+ = z_k + z_k- would lose significant digits, so that it must be computed by its own product."""
        return False

    def divide(self, module: Layer, relevance: Tensor, z: Tensor, magnitudes: Tensor, *s: Tensor) -> None:
        """Write s_k into ``s``; axes are [..., channels], and ``s`` may share memory with z and the magnitudes.

        By default for positive contributions alone, whose magnitudes were saved: s_k = R_k / z_k+.
        """
        torch.div(relevance, magnitudes, out=s[0])

    def bias_parts(self, module: Layer) -> tuple[Tensor, Tensor]:
        """b_k+ and b_k-; zeros if there is no bias or the rule ignores it."""
        if module.bias is None or self.ignores_bias(module):
            return _parts(module.weight.new_zeros(len(module.weight)))
        return _parts(module.bias)


class AlphaBeta(_Signed):
    """R_j = sum_k (alpha (a_j w_jk)+ / (z_k+ + eps) - beta (a_j w_jk)- / (z_k- + eps)) R_k, with alpha - beta = 1.

    Bach et al. 2015, doi 10.1371/journal.pone.0130140.
    """

    stock = rules.AlphaBeta

    def __init__(self, alpha: float = 2.0, beta: float = 1.0, stabilizer: float = 1e-6, zero_params: ZeroParams = None):
        self.stock(alpha, beta)  # raises the ValueErrors of Zennit
        parameters = {"alpha": alpha, "beta": beta, "stabilizer": stabilizer, "zero_params": zero_params}
        super().__init__((alpha, -beta) if beta else (alpha,), stabilizer, **parameters)

    @classmethod
    def complete(cls, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """As `Rule.complete`; beta defaults to alpha - 1."""
        completed = super().complete(parameters)
        alpha = completed.get("alpha", 2.0)
        beta = completed.get("beta", alpha - 1)
        if beta < 0 or not math.isclose(alpha - beta, 1):
            raise ValueError(f"alpha={alpha:g} and beta={beta:g}, expected alpha - beta = 1, beta 0 or more.")
        if "alpha" in completed:
            completed["beta"] = alpha - 1  # exact, as Zennit requires
        return completed

    def positive_sum_cancels(self, relevance: Tensor, z: Tensor) -> bool:
        """Whether any R_k with z_k < 0 is nonzero; none is if a ReLU comes next, as it usually does."""
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
    """R_j = sum_k c_jk R_k / (sum_j c_jk + eps), with c_jk = a_j w_jk + gamma (a_j w_jk)+ where z_k > 0.

    Where z_k < 0, c_jk = a_j w_jk - gamma (a_j w_jk)-; outputs of zero pass nothing on. Form for signed input by Andeol
    et al. 2021, arXiv 2103.12698.
    """

    stock = rules.Gamma

    def __init__(self, gamma: float = 0.25, stabilizer: float = 1e-6, zero_params: ZeroParams = None):
        super().__init__(gamma=gamma, stabilizer=stabilizer, zero_params=zero_params)

    def divide(self, module: Layer, relevance: Tensor, z: Tensor, magnitudes: Tensor, *s: Tensor) -> None:
        """s_k for z_k > 0 plus s_k for z_k < 0, times 1 + gamma for contributions that have the sign of z_k."""
        gamma, epsilon = self.parameters["gamma"], self.parameters["stabilizer"]
        output = z + module.bias if self.ignores_bias(module) else z
        raised = z + gamma * (z + magnitudes)  # (1 + gamma) z_k+ - z_k-
        above = torch.where(output > 0, relevance, 0) / _stabilised(raised, epsilon)
        below = torch.where(output < 0, relevance, 0) / _stabilised(z - gamma * magnitudes, epsilon)
        torch.add(below, above, alpha=1.0 + gamma, out=s[0])
        torch.add(above, below, alpha=1.0 + gamma, out=s[1]).neg_()


class _InputFree(Rule):
    """Base class of the rules that depend only on the layer, not on its input."""

    def __init__(self, stabilizer: float = 1e-6, zero_params: ZeroParams = None):
        super().__init__(stabilizer=stabilizer, zero_params=zero_params)

    def run(self, module: Layer, a: Tensor) -> tuple[Tensor, ...]:
        """Compute the output; save only the shape of a_j."""
        return self.plain_product(module, a), torch.empty(a.shape, device="meta")


class Flat(_InputFree):
    """R_j = sum_k R_k / (number of inputs of k + eps): each output is shared equally among its inputs.

    Depends only on the layer's geometry. For a convolution it is a box filter of the relevance summed over output
    channels, identical for all input channels; padding does not count as an input.
    """

    stock = rules.Flat

    def propagate(self, module: Layer, relevance: Tensor, a: Tensor) -> Tensor:
        """A box filter of s_k = R_k / (number of inputs of k + eps)."""
        epsilon = self.parameters["stabilizer"]
        if isinstance(module, nn.Linear):
            return (relevance.sum(dim=-1, keepdim=True) / (module.in_features + epsilon)).expand(a.shape)
        s = relevance.unflatten(1, (module.groups, -1)).sum(dim=2)
        per_group = module.in_channels // module.groups
        inputs = per_group * _taps_inside(module, a.shape[2:]).to(s) + epsilon
        s = _spread_over_taps(module, s / inputs, a.shape[2:])
        return s.unsqueeze(2).expand(-1, -1, per_group, *a.shape[2:]).flatten(1, 2)


class WSquare(_InputFree):
    """R_j = sum_k w_jk^2 R_k / (sum_j w_jk^2 + b_k^2 + eps), for any input (doi 10.1016/j.patcog.2016.11.008)."""

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
    """The minimum or maximum of each case in a layer's input, as a bound for `ZBox`.

    ``reduce``: `torch.amin` or `torch.amax`; ``cases``: the number of cases, see `by_case`.
    """

    reduce: Callable[..., Tensor]
    cases: int

    def __call__(self, a: Tensor) -> Tensor:
        """The bound, expanded to the shape of the input ``a``."""
        bound = by_case(self.reduce(a, dim=tuple(range(1, a.ndim))), self.cases, self.reduce)
        return bound.view(-1, *[1] * (a.ndim - 1)).expand_as(a)


Bound = float | Tensor | Extreme


class _StockZBox(rules.ZBox):
    """Zennit's ZBox, with bounds that may be an `Extreme`."""

    def __init__(self, low: Bound, high: Bound, stabilizer: float = 1e-6, zero_params: ZeroParams = None):
        super().__init__(low, high, stabilizer, zero_params)
        identity, *bound_modifiers = self.input_modifiers
        self.input_modifiers = [identity, *map(_bound_modifier, (low, high), bound_modifiers)]


def _bound_modifier(bound: Bound, default: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return (lambda a: bound(a.detach()).clone()) if isinstance(bound, Extreme) else default


class ZBox(Rule):
    """R_j = sum_k c_jk R_k / (sum_j c_jk + eps), with c_jk = a_j w_jk - l_j max(0, w_jk) - h_j min(0, w_jk).

    Inputs lie between l and h; the bias cancels (doi 10.1016/j.patcog.2016.11.008). ``low`` and ``high`` are numbers,
    tensors that broadcast against the input, or an `Extreme` of it.
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
        """As `Rule.fits`, but bounds may be tensors."""
        return not callable(self.parameters["stabilizer"]) and self.fits_layer(module)

    def run(self, module: Layer, a: Tensor) -> tuple[Tensor, ...]:
        """Compute the output; save a_j and the rule's z_k."""
        z = reduce(torch.add, (product(module, inputs, weight, None) for inputs, weight in self.terms(module, a)))
        return self.plain_product(module, a), a, z

    def propagate(self, module: Layer, relevance: Tensor, a: Tensor, z: Tensor) -> Tensor:
        """s_k = R_k / z_k, then for each of `terms` as in `Epsilon`."""
        s = relevance / _stabilised(z, self.parameters["stabilizer"])
        terms = (inputs * transposed_product(module, a.shape, weight, s) for inputs, weight in self.terms(module, a))
        return reduce(torch.add, terms)

    def terms(self, module: Layer, a: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and their weights: a_j and w_jk, l_j and -max(0, w_jk), h_j and -min(0, w_jk)."""
        positive, negative = _parts(module.weight)
        yield a, module.weight
        yield self.bound("low", a), -positive
        yield self.bound("high", a), negative

    def bound(self, name: str, a: Tensor) -> Tensor:
        """``low`` or ``high``, expanded to the shape of the input."""
        bound = self.parameters[name]
        return bound(a) if isinstance(bound, Extreme) else torch.as_tensor(bound, dtype=a.dtype).to(a).expand_as(a)


def _stabilised(z: Tensor, epsilon: float) -> Tensor:
    """z + eps sign(z)."""
    return torch.where(z < 0, z - epsilon, z + epsilon)


def _parts(values: Tensor) -> tuple[Tensor, Tensor]:
    """Magnitudes of the positive and the negative part."""
    return F.relu(values), F.relu(-values)


def _is_stacked(module: Layer, a: Tensor) -> bool:
    """Whether ``a`` is stacked: the positive part of an input, then the negative part, along the channels."""
    return a.shape[channels_of(module)] != module.weight.shape[1]


def _weight_for(module: Layer, a: Tensor) -> Tensor:
    """The weights that ``a`` is multiplied by."""
    return torch.cat([module.weight, -module.weight], dim=1) if _is_stacked(module, a) else module.weight


def _weight_part(module: Layer, a: Tensor, part: int, factor: float = 1.0) -> Tensor:
    """Magnitudes of the weights that give ``a`` positive (``part`` 0) or negative (1) contributions, times a factor."""
    weight = -module.weight if part else module.weight
    magnitudes = F.relu(torch.cat([weight, -weight], dim=1) if _is_stacked(module, a) else weight)
    return magnitudes if factor == 1 else magnitudes.mul_(factor)


def _bias_like(module: Layer, output: Tensor) -> Tensor:
    """The bias, shaped to broadcast against the output."""
    return module.bias if isinstance(module, nn.Linear) else module.bias.view(-1, *[1] * (output.ndim - 2))


def _geometry(module: Layer, axis: int) -> tuple[int, int, int, int]:
    """Stride, padding, dilation and kernel size of a convolution along one spatial axis."""
    return module.stride[axis], module.padding[axis], module.dilation[axis], module.kernel_size[axis]


def _taps_inside(module: Layer, shape: Sequence[int]) -> Tensor:
    """For each output, the number of kernel taps inside an input of ``shape``; has the spatial shape of the output."""
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
