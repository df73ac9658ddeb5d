"""LRP rules as Zennit hooks: Zennit's relevance without the work that Zennit throws away.

Zennit's hooks run a layer inside the graph, let autograd compute its gradient, and replace that gradient by the rule,
for which they run the layer again, once per branch. The hooks here run the layer as one autograd function: its
forward pass keeps what the rule needs, its backward pass is the rule. Names, parameters and numbers are those of
`zennit.rules`, and both kinds may stand in one composite. A layer for which the short form does not hold (transposed
or grouped convolutions, padding other than zeros, callable stabilisers) gets Zennit's own hook.

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

_CONVOLVE = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}  # by the number of dimensions of the weight
_TRANSPOSE = {3: nn.grad.conv1d_input, 4: nn.grad.conv2d_input, 5: nn.grad.conv3d_input}
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
_BLOCK = 1 << 14  # columns of a weight that are worked on at a time: 32 rows of them stay in the cache


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
        return ctx.rule.hand_on(ctx.module, relevance, *ctx.saved_tensors), None, None


class Rule(Hook):
    """Base of the rules. From `register` to `remove` a rule stands in for its layer's ``forward``.

    Where ``keeps_books`` is set, ``to_bias`` collects what each case's explanations gave to the layer's bias, [batch].
    """

    stock: type[Hook]  # Zennit's rule of the same name

    def __init__(self, **parameters):
        super().__init__()
        self.parameters = parameters
        zero_params = parameters.get("zero_params") or []
        self.zeroed = [zero_params] if isinstance(zero_params, str) else list(zero_params)
        self.keeps_books = False
        self.to_bias: Tensor | None = None
        self.module: nn.Module | None = None
        self.fallback: Hook | None = None

    def copy(self) -> Rule:
        return type(self)(**self.parameters)

    def register(self, module: nn.Module) -> RemovableHandleList:
        if not self.fits(module):
            self.fallback = self.stock(**self.parameters)
            return self.fallback.register(module)
        self.module, self.displaced = module, vars(module).get("forward")
        self.plain_forward = plain_forward = module.forward

        def forward(input: Tensor) -> Tensor:
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
        convolution = isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        return (
            (isinstance(module, nn.Linear) or convolution)
            and all(isinstance(number, (int, float)) for number in numbers)
            and set(self.zeroed) <= {"bias"}
            and not (convolution and (isinstance(module.padding, str) or module.padding_mode != "zeros"))
        )

    def run(self, module: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
        """The layer's output, and whatever `hand_on` needs."""
        return (self.plain_forward(x),)

    def hand_on(self, module: nn.Module, relevance: Tensor, *kept: Tensor) -> Tensor:
        """The relevance of the layer's input, from that of its output. Every rule has its own."""

    def bias_is_apart(self, module: nn.Module) -> bool:
        """Whether the rule knows nothing of a bias that the layer has."""
        return module.bias is not None and "bias" in self.zeroed

    def charge_bias(self, module: nn.Module, s: Tensor, bias: Tensor | None) -> None:
        """Note the share of the bias: the sum over all outputs of its contribution, ``bias`` [channels], times s."""
        if self.keeps_books and bias is not None and not self.bias_is_apart(module):
            if _channels(module) == 1:
                s = s.sum(dim=tuple(range(2, s.ndim)))
            share = (s * bias).flatten(1).sum(dim=1)
            self.to_bias = share if self.to_bias is None else self.to_bias + share


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
        output = _product(module, x, module.weight, module.bias)
        apart = self.bias_is_apart(module)
        z = output - _bias_like(module, output) if apart else output.clone()  # the next layer may write into it
        return output, x, z

    def hand_on(self, module: nn.Module, relevance: Tensor, x: Tensor, z: Tensor) -> Tensor:
        s = relevance / _stabilised(z, self.parameters["epsilon"])
        self.charge_bias(module, s, module.bias)
        return _times_transposed(module, x, module.weight, s)


class _Signed(Rule):
    """Rules that treat positive and negative contributions x_i w_ij apart.

    The sums of the contributions' magnitudes, p_j = sum_i (x_i w_ij)+ + b_j+ and n_j = sum_i (x_i w_ij)- + b_j-,
    come from one product of non-negative numbers, weights stacked to [w+; w-], in which nothing cancels; p - n is
    the layer's output. Signed input is stacked as well: x+ meets [w+; w-], x- meets [w-; w+].
    """

    lift = 0.0  # added to p and to n, which arrive stabilised then
    factors: tuple[float, ...] = (1.0, 1.0)  # of what positive and, unless it is nothing, negative contributions get

    def fits(self, module: nn.Module) -> bool:
        return super().fits(module) and getattr(module, "groups", 1) == 1

    def run(self, module: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
        if x.amin() < 0:
            x = torch.cat(_parts(x), dim=_channels(module))
        weight, apart = _stacked_weight(module, x), self.bias_is_apart(module)
        bias = weight.new_zeros(len(weight)) if apart or module.bias is None else torch.cat(_parts(module.bias))
        z = _product(module, x, weight, bias + self.lift)
        p, n = z.chunk(2, dim=_channels(module))
        return (p - n + _bias_like(module, p) if apart else p - n), x, z

    def hand_on(self, module: nn.Module, relevance: Tensor, x: Tensor, z: Tensor) -> Tensor:
        channels, parts = _channels(module), len(self.factors)
        relevance = _channels_last(relevance)
        s = torch.empty_like(z if parts == 2 else relevance)
        self.share(module, relevance, *z.chunk(2, dim=channels), *s.chunk(parts, dim=channels))
        factors = s.new_tensor(self.factors).repeat_interleave(len(module.weight))
        if module.bias is not None:
            self.charge_bias(module, s, torch.cat(_parts(module.bias)[:parts]).mul_(factors))
        weight = _stacked_weight(module, x)[: len(factors)].mul_(factors.view(-1, *[1] * (module.weight.ndim - 1)))
        handed = _times_transposed(module, x, weight, s)
        return handed if weight.shape[1] == module.weight.shape[1] else sum(handed.chunk(2, dim=channels))

    def share(self, module: nn.Module, relevance: Tensor, p: Tensor, n: Tensor, *s: Tensor) -> None:
        """Fill in s_j / factor for the positive and for the magnitudes of the negative contributions; a rule's own."""


class AlphaBeta(_Signed):
    """R_i = sum_j (alpha (x_i w_ij)+ / (p_j + eps) - beta (x_i w_ij)- / (n_j + eps)) R_j, with alpha - beta = 1."""

    stock = rules.AlphaBeta

    def __init__(self, alpha: float = 2.0, beta: float = 1.0, stabilizer: float = 1e-6, zero_params=None):
        self.stock(alpha, beta)  # raises ValueError where Zennit does
        super().__init__(alpha=alpha, beta=beta, stabilizer=stabilizer, zero_params=zero_params)
        self.lift, self.factors = stabilizer, (alpha, -beta) if beta else (alpha,)

    def share(self, module: nn.Module, relevance: Tensor, p: Tensor, n: Tensor, *s: Tensor) -> None:
        for denominator, share in zip((p, n), s):
            torch.div(relevance, denominator, out=share)


class ZPlus(AlphaBeta):
    """AlphaBeta with alpha = 1 and beta = 0 (deep Taylor decomposition, doi 10.1016/j.patcog.2016.11.008)."""

    stock = rules.ZPlus

    def __init__(self, stabilizer: float = 1e-6, zero_params=None):
        Rule.__init__(self, stabilizer=stabilizer, zero_params=zero_params)
        self.lift, self.factors = stabilizer, (1.0,)


class Gamma(_Signed):
    """R_i = sum_j (x_i w_ij + gamma (x_i w_ij)+) R_j / (the same summed + eps) where z_j > 0, with - where z_j < 0.

    In the form for signed input (Andeol et al. 2021, arXiv 2103.12698); an output of zero hands on nothing.
    """

    stock = rules.Gamma

    def __init__(self, gamma: float = 0.25, stabilizer: float = 1e-6, zero_params=None):
        super().__init__(gamma=gamma, stabilizer=stabilizer, zero_params=zero_params)

    def share(self, module: nn.Module, relevance: Tensor, p: Tensor, n: Tensor, *s: Tensor) -> None:
        raised, epsilon = 1.0 + self.parameters["gamma"], self.parameters["stabilizer"]
        z = p - n + _bias_like(module, p) if self.bias_is_apart(module) else p - n
        above = torch.where(z > 0, relevance, 0) / _stabilised(raised * p - n, epsilon)
        below = torch.where(z < 0, relevance, 0) / _stabilised(p - raised * n, epsilon)
        torch.add(below, above, alpha=raised, out=s[0])
        torch.add(above, below, alpha=raised, out=s[1]).neg_()


class Flat(Rule):
    """R_i = sum_j R_j / (number of inputs of j + eps): the same to every input within reach.

    Depends on the layer's geometry alone. Over a convolution it is a box filter of the relevance summed over output
    channels, the same for all input channels; under zero padding only the inputs that exist count.
    """

    stock = rules.Flat

    def __init__(self, stabilizer: float = 1e-6, zero_params=None):
        super().__init__(stabilizer=stabilizer, zero_params=zero_params)

    def run(self, module: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
        output = _product(module, x, module.weight, module.bias)
        return output, torch.empty(x.shape, device="meta")  # of the input, only the shape is needed

    def hand_on(self, module: nn.Module, relevance: Tensor, x: Tensor) -> Tensor:
        epsilon = self.parameters["stabilizer"]
        if isinstance(module, nn.Linear):
            return (relevance.sum(dim=-1, keepdim=True) / (module.in_features + epsilon)).expand(x.shape)
        s = relevance.unflatten(1, (module.groups, -1)).sum(dim=2)
        per_group = module.in_channels // module.groups
        inputs = per_group * _taps_inside(module, x.shape[2:]).to(s) + epsilon
        s = _spread_over_taps(module, s / inputs, x.shape[2:])
        return s.unsqueeze(2).expand(-1, -1, per_group, *x.shape[2:]).flatten(1, 2)


def _stabilised(z: Tensor, epsilon: float) -> Tensor:
    return torch.where(z < 0, z - epsilon, z + epsilon)


def _parts(x: Tensor) -> tuple[Tensor, Tensor]:
    """Magnitudes of the positive and of the negative part."""
    return F.relu(x), F.relu(-x)


def _stacked_weight(module: nn.Module, x: Tensor) -> Tensor:
    weight = torch.cat(_parts(module.weight))
    if x.shape[_channels(module)] == weight.shape[1]:
        return weight
    return torch.cat([weight, weight.roll(len(module.weight), 0)], dim=1)


def _channels(module: nn.Module) -> int:
    """The axis of a layer's input and output along which its weight mixes."""
    return -1 if isinstance(module, nn.Linear) else 1


def _bias_like(module: nn.Module, output: Tensor) -> Tensor:
    return module.bias if isinstance(module, nn.Linear) else module.bias.view(-1, *[1] * (output.ndim - 2))


def _product(module: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What the layer makes of ``x`` with this weight and bias."""
    if isinstance(module, nn.Linear):
        return _long_product(x, weight, bias)
    assert x.ndim == weight.ndim, f"rules need a batch: input {tuple(x.shape)}, weight {tuple(weight.shape)}"
    x, weight = _channels_last(x), _channels_last(weight)
    if x.device.type == "cpu" and x.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        # where torch.conv3d ends as well, except for a batch of one with one channel: its own path is 4 x slower
        geometry = module.padding, module.stride, module.dilation, module.groups
        return torch.mkldnn_convolution(x, weight, bias, *geometry)
    return _CONVOLVE[x.ndim](x, weight, bias, module.stride, module.padding, module.dilation, module.groups)


def _times_transposed(module: nn.Module, x: Tensor, weight: Tensor, s: Tensor) -> Tensor:
    """x_i sum_j w_ij s_j."""
    if isinstance(module, nn.Linear):
        return _long_transposed(x, weight, s)
    s, weight = _channels_last(s), _channels_last(weight)
    geometry = module.stride, module.padding, module.dilation, module.groups
    return _TRANSPOSE[x.ndim](x.shape, weight, s, *geometry).mul_(x)


def _channels_last(x: Tensor) -> Tensor:
    """In the memory layout in which convolutions on a CPU are fastest."""
    layout = _CHANNELS_LAST.get(x.ndim) if x.device.type == "cpu" else None
    return x if layout is None else x.to(memory_format=layout)


def _long_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer, long sums block by block: one running sum of millions of float32 numbers loses four digits."""
    features = weight.shape[1]
    blocks = features // _BLOCK
    if blocks < 2:
        return F.linear(x, weight, bias)
    whole = blocks * _BLOCK
    rows = x.reshape(-1, features)
    x_blocks = rows[:, :whole].unflatten(1, (blocks, _BLOCK)).transpose(0, 1)
    weight_blocks = weight[:, :whole].unflatten(1, (blocks, _BLOCK)).permute(1, 2, 0)
    total = torch.bmm(x_blocks, weight_blocks).sum(dim=0) + F.linear(rows[:, whole:], weight[:, whole:], bias)
    return total.view(*x.shape[:-1], -1)


def _long_transposed(x: Tensor, weight: Tensor, s: Tensor) -> Tensor:
    """x * (s @ weight), block by block while it lies in the cache; rows of silent outputs are not even read."""
    features = weight.shape[1]
    if features < 2 * _BLOCK:
        return x * (s @ weight)
    rows, s = x.reshape(-1, features), s.reshape(-1, len(weight))
    heard = s.any(dim=0).nonzero().squeeze(1)
    some_silent = len(heard) < len(weight)
    result, s = torch.empty_like(rows), s[:, heard]
    for start in range(0, features, _BLOCK):
        block = slice(start, start + _BLOCK)
        columns = weight[:, block].index_select(0, heard) if some_silent else weight[:, block]
        torch.mul(s @ columns, rows[:, block], out=result[:, block])
    return result.view(x.shape)


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
    for axis, size in enumerate(shape):
        step, pad, dilation, kernel = (
            geometry[axis] for geometry in (module.stride, module.padding, module.dilation, module.kernel_size)
        )
        s = s.movedim(axis + 2, -1)
        wide = s.new_zeros(*s.shape[:-1], size + 2 * pad)
        reach = step * (s.shape[-1] - 1) + 1
        for tap in range(0, kernel * dilation, dilation):
            wide[..., tap : tap + reach : step] += s
        s = wide[..., pad : pad + size].movedim(-1, axis + 2)
    return s
