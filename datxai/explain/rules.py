"""LRP rules as Zennit hooks: Zennit's relevance without the work that Zennit throws away.

Zennit's hooks run a layer inside the graph, let autograd compute its gradient, and replace that gradient by the rule,
for which they run the layer again, once per branch. The hooks here run the layer as one autograd function: its
forward pass keeps what the rule needs, its backward pass is the rule. Names, parameters and numbers are those of
`zennit.rules`, and both kinds may stand in one composite. A layer for which the short form does not hold (transposed
or grouped convolutions, padding other than zeros, callable stabilisers, a ``forward`` that is not PyTorch's) gets
Zennit's own hook.

Notation (Bach et al. 2015, doi 10.1371/journal.pone.0130140): a layer with inputs x_i, weights w_ij and bias b_j has
outputs z_j = sum_i x_i w_ij + b_j of relevance R_j. Every rule has the form R_i = sum_j c_ij s_j, with contributions
c_ij, and s_j = R_j over a denominator that eps keeps away from zero (sign(0) = +1). The bias is an input of constant
one: its share, sum_j c_bj s_j, is not handed on.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from datxai.explain._zennit import Hook, RemovableHandle, RemovableHandleList, rules
from datxai.explain.products import (
    cases_at_once,
    channels_last,
    channels_of,
    in_pieces,
    product,
    transposed_product,
)

_graph_is_kept = torch._C._autograd._get_current_graph_task_keep_graph  # whether relevance may be asked for again


class _Layer(torch.autograd.Function):
    """A layer whose backward pass is a rule; differentiating a second time raises."""

    @staticmethod
    def forward(ctx, x: Tensor, rule: Rule, module: nn.Module) -> Tensor:
        ctx.rule, ctx.module = rule, module
        output, *kept = rule.run(module, x)
        ctx.save_for_backward(*kept)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, relevance: Tensor):
        if ctx.rule.keeps_books and ctx.rule.to_bias is None:
            ctx.rule.to_bias = relevance.new_zeros(len(relevance), dtype=torch.float64)
        return ctx.rule.hand_on(ctx.module, relevance, *ctx.saved_tensors), None, None


class Rule(Hook):
    """Base of the rules. From `register` to `remove` a rule stands in for its layer's ``forward``.

    Where ``keeps_books`` is set, ``to_bias`` collects what each case's explanations gave to the layer's bias, [batch].
    ``precision`` is that of the products of convolutions, None for that of the input.
    """

    stock: type[Hook]  # Zennit's rule of the same name

    def __init__(self, **parameters):
        super().__init__()
        self.parameters = parameters
        zero_params = parameters.get("zero_params") or []
        self.zeroed = [zero_params] if isinstance(zero_params, str) else list(zero_params)
        self.precision: torch.dtype | None = None
        self.keeps_books = False
        self.to_bias: Tensor | None = None
        self.module: nn.Module | None = None
        self.fallback: Hook | None = None
        self.ran = False

    def copy(self) -> Rule:
        return type(self)(**self.parameters)

    def register(self, module: nn.Module) -> RemovableHandleList:
        if not self.fits(module):
            self.fallback = self.stock(**self.parameters)
            return self.fallback.register(module)
        self.module, self.displaced = module, vars(module).get("forward")
        self.plain_forward = plain_forward = module.forward

        def forward(input: Tensor) -> Tensor:
            self.ran = True
            if not (self.active and input.requires_grad and torch.is_grad_enabled()):
                return plain_forward(input)
            return _Layer.apply(input.clone() if getattr(module, "inplace", False) else input, self, module)

        module.forward = forward
        return RemovableHandleList([RemovableHandle(self)])

    def remove(self) -> None:
        super().remove()
        if self.module is not None:
            del self.module.forward
            if self.displaced is not None:
                self.module.forward = self.displaced
            self.module = None

    def fits(self, module: nn.Module) -> bool:
        """Whether the short form holds for this layer."""
        numbers = [value for key, value in self.parameters.items() if key != "zero_params"]
        return all(isinstance(number, (int, float)) for number in numbers) and self.short_form_holds(module)

    def short_form_holds(self, module: nn.Module) -> bool:
        """The same, as far as it depends on the layer."""
        convolution = isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        return (
            (isinstance(module, nn.Linear) or convolution)
            and _computes_as_defined(module)
            and set(self.zeroed) <= {"bias"}
            and not (convolution and (isinstance(module.padding, str) or module.padding_mode != "zeros"))
        )

    def run(self, module: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
        """The layer's output, and whatever `hand_on` needs."""
        return (self.plain_forward(x),)

    def hand_on(self, module: nn.Module, relevance: Tensor, *kept: Tensor) -> Tensor:
        """The relevance of the layer's input, from that of its output. Every rule has its own."""

    def plain_product(self, module: nn.Module, x: Tensor) -> Tensor:
        """The layer's output."""
        return product(module, self.lower(module, x), module.weight, module.bias).to(x.dtype)

    def bias_is_apart(self, module: nn.Module) -> bool:
        """Whether the rule knows nothing of a bias that the layer has."""
        return module.bias is not None and "bias" in self.zeroed

    def lower(self, module: nn.Module, x: Tensor) -> Tensor:
        """In the precision of the layer's products."""
        return x if self.precision is None or isinstance(module, nn.Linear) else x.to(self.precision)

    def charge_bias(self, module: nn.Module, s: Tensor, bias: Tensor | None, cases: slice = slice(None)) -> None:
        """Note the share of the bias: the sum over all outputs of its contribution, ``bias`` [channels], times s."""
        if self.keeps_books and bias is not None and not self.bias_is_apart(module):
            if channels_of(module) == 1:
                s = s.sum(dim=tuple(range(2, s.ndim)), dtype=bias.dtype)
            self.to_bias[cases] += (s * bias).flatten(1).sum(dim=1)


class Pass(Rule):
    """Hand relevance on unchanged: element-wise layers."""

    stock = rules.Pass

    def fits(self, module: nn.Module) -> bool:
        return not list(module.children())

    def hand_on(self, module: nn.Module, relevance: Tensor) -> Tensor:
        return relevance


class Epsilon(Rule):
    """R_i = sum_j x_i w_ij R_j / (z_j + eps sign(z_j))."""

    stock = rules.Epsilon

    def __init__(self, epsilon: float = 1e-6, zero_params=None):
        super().__init__(epsilon=epsilon, zero_params=zero_params)

    def run(self, module: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
        lowered = self.lower(module, x)
        output = product(module, lowered, module.weight, module.bias).to(x.dtype)
        apart = self.bias_is_apart(module)
        z = output - _bias_like(module, output) if apart else output.clone()  # the next layer may write into it
        return output, lowered, z

    def hand_on(self, module: nn.Module, relevance: Tensor, x: Tensor, z: Tensor) -> Tensor:
        s = relevance / _stabilised(z, self.parameters["epsilon"])
        self.charge_bias(module, s, module.bias)
        return transposed_product(module, x.shape, module.weight, s.to(x.dtype)).to(s.dtype).mul_(x)


class _Signed(Rule):
    """Rules that treat positive and negative contributions x_i w_ij apart.

    With p_j = sum_i (x_i w_ij)+ + b_j+ and n_j = sum_i (x_i w_ij)- + b_j-, sums of magnitudes in which nothing
    cancels, the output is z_j = p_j - n_j. Two products give z, which is the layer's output as well, and n (or p), each
    with all its digits. Signed input is stacked: x+ meets [w; w-], x- meets [-w; w+].
    """

    lift = 0.0  # added to the sum of magnitudes, which arrives stabilised then
    factors: tuple[float, ...] = (1.0, 1.0)  # of what positive and, unless it is nothing, negative contributions get
    beside = 1  # which sum of magnitudes comes with z: 0 for p, 1 for n

    def fits(self, module: nn.Module) -> bool:
        return super().fits(module) and getattr(module, "groups", 1) == 1

    def run(self, module: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
        dtype = x.dtype
        if x.amin() < 0:
            x = torch.cat(_parts(x), dim=channels_of(module))
        x = channels_last(self.lower(module, x))
        weights, biases = _weight_parts(module, x), self.bias_parts(module)
        z = product(module, x, weights[0] - weights[1], biases[0] - biases[1])
        magnitudes = product(module, x, weights[self.beside], biases[self.beside] + self.lift)
        output = z.to(dtype, copy=True)  # the next layer may write into it
        if self.bias_is_apart(module):
            output += _bias_like(module, output)
        return output, x, z, magnitudes

    def hand_on(self, module: nn.Module, relevance: Tensor, x: Tensor, z: Tensor, magnitudes: Tensor) -> Tensor:
        axis, at_once = channels_of(module), cases_at_once(x)
        weights = [weight * factor for weight, factor in zip(_weight_parts(module, x), self.factors)]
        biases = [bias * factor for bias, factor in zip(self.bias_parts(module), self.factors)]
        signs = weights[0].shape[1] // module.weight.shape[1]  # 2 where signed input is stacked
        result = torch.empty_like(x) if at_once < len(x) else None
        for start in range(0, len(x), at_once):
            cases = slice(start, start + at_once)
            handed = []
            for s, weight, bias in zip(
                self.shares(module, relevance[cases], x[cases], z[cases], magnitudes[cases]), weights, biases
            ):
                self.charge_bias(module, s, bias, cases)
                handed.append(transposed_product(module, x[cases].shape, weight, s))
            result = handed[0] if result is None else result
            for into, some_x, first, *others in in_pieces(axis, result[cases], x[cases], *handed):
                for other in others:
                    first += other
                torch.mul(first, some_x, out=into)
        result = result.to(relevance.dtype)
        return torch.add(*result.chunk(2, dim=axis)) if signs == 2 else result

    def shares(
        self, module: nn.Module, relevance: Tensor, x: Tensor, z: Tensor, magnitudes: Tensor
    ) -> tuple[Tensor, ...]:
        """s_j / factor for the positive and, where they count, for the magnitudes of the negative contributions."""
        axis, lossy = channels_of(module), False
        kept = _graph_is_kept()  # if not, nobody asks again for what lies in z and the magnitudes
        s = tuple(torch.empty_like(each) if kept else each for each in (z, magnitudes)[: len(self.factors)])
        for some_z, some_magnitudes, some_relevance, *some_s in in_pieces(axis, z, magnitudes, relevance, *s):
            lossy |= self.share(module, some_relevance, some_z.to(relevance.dtype), some_magnitudes, *some_s)
        if lossy:
            positive = product(module, x, _weight_parts(module, x)[0], self.bias_parts(module)[0] + self.lift)
            torch.div(relevance, positive, out=s[0])
        return s

    def share(self, module: nn.Module, relevance: Tensor, z: Tensor, magnitudes: Tensor, *s: Tensor) -> bool:
        """Fill in s_j / factor for the positive and for the magnitudes of the negative contributions; a rule's own.

        Axes are [..., channels]; s may lie where z and the magnitudes lie. Returns whether the first is R / p with a
        p that has lost digits.
        """

    def bias_parts(self, module: nn.Module) -> tuple[Tensor, Tensor]:
        """Magnitudes of the positive and of the negative part of the bias; none where it is to be left out."""
        used = module.bias is not None and not self.bias_is_apart(module)
        return _parts(module.bias if used else module.weight.new_zeros(len(module.weight)))


class AlphaBeta(_Signed):
    """R_i = sum_j (alpha (x_i w_ij)+ / (p_j + eps) - beta (x_i w_ij)- / (n_j + eps)) R_j, with alpha - beta = 1."""

    stock = rules.AlphaBeta

    def __init__(self, alpha: float = 2.0, beta: float = 1.0, stabilizer: float = 1e-6, zero_params=None):
        self.stock(alpha, beta)  # raises ValueError where Zennit does
        super().__init__(alpha=alpha, beta=beta, stabilizer=stabilizer, zero_params=zero_params)
        self.lift, self.factors, self.beside = stabilizer, (alpha, -beta) if beta else (alpha,), 1 if beta else 0

    def share(self, module: nn.Module, relevance: Tensor, z: Tensor, magnitudes: Tensor, *s: Tensor) -> bool:
        if self.beside == 0:
            torch.div(relevance, magnitudes, out=s[0])
            return False
        # p = z + n, which would cancel where z < 0. There a ReLU, mostly the next layer, leaves no relevance.
        cancelling = torch.dot(z.clamp(max=0).mul_(relevance).flatten(), relevance.flatten()) != 0
        torch.div(relevance, z.clamp(min=0).add_(magnitudes), out=s[0])
        torch.div(relevance, magnitudes, out=s[1])
        return bool(cancelling)


class ZPlus(AlphaBeta):
    """AlphaBeta with alpha = 1 and beta = 0 (deep Taylor decomposition, doi 10.1016/j.patcog.2016.11.008)."""

    stock = rules.ZPlus

    def __init__(self, stabilizer: float = 1e-6, zero_params=None):
        Rule.__init__(self, stabilizer=stabilizer, zero_params=zero_params)
        self.lift, self.factors, self.beside = stabilizer, (1.0,), 0


class Gamma(_Signed):
    """R_i = sum_j (x_i w_ij + gamma (x_i w_ij)+) R_j / (the same summed + eps) where z_j > 0, with - where z_j < 0.

    In the form for signed input (Andeol et al. 2021, arXiv 2103.12698); an output of zero hands on nothing.
    """

    stock = rules.Gamma

    def __init__(self, gamma: float = 0.25, stabilizer: float = 1e-6, zero_params=None):
        super().__init__(gamma=gamma, stabilizer=stabilizer, zero_params=zero_params)

    def share(self, module: nn.Module, relevance: Tensor, z: Tensor, magnitudes: Tensor, *s: Tensor) -> bool:
        gamma, epsilon = self.parameters["gamma"], self.parameters["stabilizer"]
        output = z + module.bias if self.bias_is_apart(module) else z
        raised = z + gamma * (z + magnitudes)  # (1 + gamma) p - n
        above = torch.where(output > 0, relevance, 0) / _stabilised(raised, epsilon)
        below = torch.where(output < 0, relevance, 0) / _stabilised(z - gamma * magnitudes, epsilon)
        torch.add(below, above, alpha=1.0 + gamma, out=s[0])
        torch.add(above, below, alpha=1.0 + gamma, out=s[1]).neg_()
        return False


class Flat(Rule):
    """R_i = sum_j R_j / (number of inputs of j + eps): the same to every input within reach.

    Depends on the layer's geometry alone. Over a convolution it is a box filter of the relevance summed over output
    channels, the same for all input channels; under zero padding only the inputs that exist count.
    """

    stock = rules.Flat

    def __init__(self, stabilizer: float = 1e-6, zero_params=None):
        super().__init__(stabilizer=stabilizer, zero_params=zero_params)

    def run(self, module: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
        return self.plain_product(module, x), torch.empty(x.shape, device="meta")  # only the shape is needed

    def hand_on(self, module: nn.Module, relevance: Tensor, x: Tensor) -> Tensor:
        epsilon = self.parameters["stabilizer"]
        if isinstance(module, nn.Linear):
            return (relevance.sum(dim=-1, keepdim=True) / (module.in_features + epsilon)).expand(x.shape)
        s = relevance.unflatten(1, (module.groups, -1)).sum(dim=2)
        per_group = module.in_channels // module.groups
        inputs = per_group * _taps_inside(module, x.shape[2:]).to(s) + epsilon
        s = _spread_over_taps(module, s / inputs, x.shape[2:])
        return s.unsqueeze(2).expand(-1, -1, per_group, *x.shape[2:]).flatten(1, 2)


class WSquare(Rule):
    """R_i = sum_j w_ij^2 R_j / (sum_i w_ij^2 + b_j^2 + eps): whatever the input (doi 10.1016/j.patcog.2016.11.008)."""

    stock = rules.WSquare

    def __init__(self, stabilizer: float = 1e-6, zero_params=None):
        super().__init__(stabilizer=stabilizer, zero_params=zero_params)

    def run(self, module: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
        return self.plain_product(module, x), torch.empty(x.shape, device="meta")  # only the shape is needed

    def hand_on(self, module: nn.Module, relevance: Tensor, x: Tensor) -> Tensor:
        weight = module.weight.square()
        bias = None if module.bias is None or self.bias_is_apart(module) else module.bias.square()
        total = product(module, relevance.new_ones(1, *x.shape[1:]), weight, bias)
        s = relevance / (total + self.parameters["stabilizer"])
        self.charge_bias(module, s, bias)
        return transposed_product(module, x.shape, weight, s)


class ZBox(Rule):
    """R_i = sum_j (x_i w_ij - l_i w_ij+ - h_i w_ij-) R_j / (the same summed + eps), inputs lying between l and h.

    The bias cancels (doi 10.1016/j.patcog.2016.11.008). ``low`` and ``high`` are numbers or tensors that broadcast
    against the input.
    """

    stock = rules.ZBox

    def __init__(self, low, high, stabilizer: float = 1e-6, zero_params=None):
        super().__init__(low=low, high=high, stabilizer=stabilizer, zero_params=zero_params)

    def fits(self, module: nn.Module) -> bool:
        return not callable(self.parameters["stabilizer"]) and self.short_form_holds(module)

    def run(self, module: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
        z = sum(product(module, part, weight, None) for part, weight in self.parts(module, x))
        return self.plain_product(module, x), x, z

    def hand_on(self, module: nn.Module, relevance: Tensor, x: Tensor, z: Tensor) -> Tensor:
        s = relevance / _stabilised(z, self.parameters["stabilizer"])
        return sum(part * transposed_product(module, x.shape, weight, s) for part, weight in self.parts(module, x))

    def parts(self, module: nn.Module, x: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        """What is summed up: inputs and the weights that they meet."""
        low, high = (torch.as_tensor(self.parameters[bound]).to(x).expand_as(x) for bound in ("low", "high"))
        positive, negative = _parts(module.weight)
        return (x, module.weight), (low, -positive), (high, negative)


def _computes_as_defined(module: nn.Module) -> bool:
    """Whether a linear layer or convolution runs PyTorch's code, and not a subclass's own or what replaced it."""
    defined = next(base for base in type(module).__mro__ if base.__module__.startswith("torch.nn.modules"))
    parts = [part for part in ("forward", "_conv_forward") if hasattr(defined, part)]
    return all(getattr(type(module), part) is getattr(defined, part) and part not in vars(module) for part in parts)


def _stabilised(z: Tensor, epsilon: float) -> Tensor:
    return torch.where(z < 0, z - epsilon, z + epsilon)


def _parts(x: Tensor) -> tuple[Tensor, Tensor]:
    """Magnitudes of the positive and of the negative part."""
    return F.relu(x), F.relu(-x)


def _weight_parts(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The weights that make positive contributions of ``x``, and the magnitudes of those that make negative ones."""
    positive, negative = _parts(module.weight)
    if x.shape[channels_of(module)] == module.weight.shape[1]:
        return positive, negative
    return torch.cat([positive, negative], dim=1), torch.cat([negative, positive], dim=1)


def _bias_like(module: nn.Module, output: Tensor) -> Tensor:
    return module.bias if isinstance(module, nn.Linear) else module.bias.view(-1, *[1] * (output.ndim - 2))


def _taps_inside(module: nn.Module, shape: Sequence[int]) -> Tensor:
    """How many kernel taps of each output lie within an input of this shape: a tensor of the output's shape."""
    count = torch.ones(())
    for axis, size in enumerate(shape):
        step, pad, dilation, kernel = (
            geometry[axis] for geometry in (module.stride, module.padding, module.dilation, module.kernel_size)
        )
        last = size + 2 * pad - dilation * (kernel - 1)
        position = torch.arange(0, last, step)[:, None] + torch.arange(kernel) * dilation - pad
        count = count[..., None] * ((position >= 0) & (position < size)).sum(dim=1)
    return count


def _spread_over_taps(module: nn.Module, s: Tensor, shape: Sequence[int]) -> Tensor:
    """The transposed convolution of s [batch, groups, ...] with a kernel of ones, axis by axis."""
    for axis, size in enumerate(shape, start=2):
        step, pad, dilation, kernel = (
            geometry[axis - 2] for geometry in (module.stride, module.padding, module.dilation, module.kernel_size)
        )
        extent = dilation * (kernel - 1)
        wide = s.new_zeros(*s.shape[:axis], size + 2 * pad + extent, *s.shape[axis + 1 :])
        wide.movedim(axis, -1)[..., extent : extent + step * (s.shape[axis] - 1) + 1 : step] = s.movedim(axis, -1)
        taps = [wide.narrow(axis, pad + extent - tap * dilation, size) for tap in range(kernel)]
        s = sum(taps[1:], start=taps[0])
    return s
